"""The text: its bytes, its cut, its anchors. Independent second writings of what corpus.py computes."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import http.server
import math
import os
import re
import subprocess
import sys
import threading
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data import batches, corpus, download, embedded, ngrams
from harness.data import load as loading
from harness.data.corpus import Corpus
from harness.experiments import protocols
from harness.experiments.runs import MISSING

ROOT = Path(__file__).resolve().parents[2]
BOOK = gzip.decompress(download.PACKAGED.read_bytes())
TEXT = b"A book, not THE book;\r\n\n  but --3 bytes\nthat stand in for it.\n" * 1000


def made(text: str) -> Corpus:
    """A text through the file path, without the file."""
    return loading._file(Path("made.txt"), text.encode())


def whole(text: Corpus) -> str:
    return corpus.decode(text, text.tokens)


def fails(source: str | Path, cache: Path | None = None) -> str:
    with pytest.raises(ValueError, match=r"\A.{10,}\Z") as caught:  # without DOTALL: one line
        loading.load(str(source), cache)
    return str(caught.value)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """TEXT in the place of the book's bytes."""
    monkeypatch.setattr(download, "SIZE", len(TEXT))
    monkeypatch.setattr(download, "SHA256", hashlib.sha256(TEXT).hexdigest())
    return TEXT


def test_import_needs_neither_torch_nor_numpy_nor_the_network() -> None:
    code = (
        "import sys, harness.data.corpus; print([m for m in ('torch', 'numpy', 'urllib.request') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- time-machine ------------------------------------------------------------------------------


@pytest.fixture
def unpackaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where somebody has deleted the book from the package."""
    monkeypatch.setattr(download, "PACKAGED", download.PACKAGED.with_name("none"))


def test_the_book_is_in_the_package_and_any_other_bytes_there_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "download", lambda *_: b"downloaded")
    assert download.time_machine(tmp_path) == (BOOK, "")
    assert list(tmp_path.iterdir()) == []
    for broken in (b"", download.PACKAGED.read_bytes()[:-9], b"no gzip", gzip.compress(b"other"), None):
        other = tmp_path / "book.gz"
        other.unlink(missing_ok=True) if broken is None else other.write_bytes(broken)
        monkeypatch.setattr(download, "PACKAGED", other)
        assert download.time_machine(tmp_path / "cache")[0] == b"downloaded"


def test_the_book_goes_into_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    own = project["tool"]["setuptools"]["package-data"]["harness.data"]
    assert any(download.PACKAGED in download.PACKAGED.parent.glob(pattern) for pattern in own)


@pytest.mark.parametrize(
    "edited",
    [
        BOOK.replace(b"\n", b"\r\n"),
        BOOK.replace(b"\n", b"\r"),
        b"\xef\xbb\xbf" + BOOK,
        b"\xef\xbb\xbf" + BOOK.replace(b"\n", b"  \r\n") + b"\r\n\r\n",
        BOOK.rstrip(),
    ],
    ids=["CRLF", "CR", "mark", "all", "no last line end"],
)
def test_the_book_is_recognised_however_it_was_saved(edited: bytes, tmp_path: Path) -> None:
    (tmp_path / "saved.txt").write_bytes(edited)
    for how in ("lines", "whole", "raw"):
        saved, book = (loading.load(s, text=how) for s in (str(tmp_path / "saved.txt"), None))
        assert (saved.name, saved.sha256, saved.text, saved.note) == ("time-machine", book.sha256, how, "")
        assert np.array_equal(saved.tokens, book.tokens)


@pytest.mark.parametrize(
    "edited",
    [BOOK.replace(b"e", b"E", 1), BOOK[:60_000], BOOK[50_000:60_000], b"Another preface. " * 999 + BOOK, BOOK.upper()],
)
def test_what_looks_like_the_book_and_is_not_is_said(edited: bytes, tmp_path: Path) -> None:
    (tmp_path / "edited.txt").write_bytes(edited)
    text = loading.load(str(tmp_path / "edited.txt"))
    assert (text.name, text.text) == ("edited.txt", "spaces")
    assert "edited.txt' looks like the book but is not" in text.note
    (tmp_path / "edited.txt").write_text("It was the best of times, it was the worst of times. " * 999)
    assert loading.load(str(tmp_path / "edited.txt")).note == ""


def test_the_book_whatever_its_path(tmp_path: Path) -> None:
    copy = tmp_path / "embedded"
    copy.write_bytes(BOOK)
    book = loading.load(str(copy))
    assert (book.name, book.floor, book.note) == ("time-machine", None, "")
    assert book.sha256 == "8424dbd9532ac81f7e5f0b6add90e6952baea29158309d7d1bf3884f4e12c516"
    assert "".join(book.vocabulary[1:]) == " etainoshrdlmucfwgypbvkxzjq"
    assert (len(book.vocabulary), book.vocabulary[0]) == (28, "<unk>")
    # a second writing, a character at a time
    text = ""
    for line in BOOK.decode().split("\n"):
        kept = "".join(c.lower() if c.isalpha() else " " for c in line)
        text += " ".join(kept.split())
    assert len(text) == len(book.tokens) == 170_580
    assert whole(book) == text
    assert text.startswith("the time machine by h g wellsithe time traveller for so")


def test_book_preprocessing_goes_line_by_line(stand_in: bytes, tmp_path: Path) -> None:
    file = tmp_path / "any.txt"
    file.write_bytes(stand_in)
    book = loading.load(str(file))
    assert book.name == "time-machine"
    assert whole(book)[:60] == "a book not the bookbut bytesthat stand in for ita book not t"


def test_anchors_of_the_later_edition_as_published() -> None:
    """v1 (FACTS): 10,000 windows of 32 + 1 characters, then the targets of the 5,000 windows that follow."""
    book = loading.load()
    text = re.sub("[^A-Za-z]+", " ", BOOK.decode()).lower()
    assert whole(loading.load(text="whole")) == text
    assert len(text) == 173_428
    published = {"1-gram": 16.66, "2-gram": 9.53, "3-gram": 6.47, "4-gram": 5.31, "5-gram": 5.36}
    train, heldout = text[:10_032], text[10_001:15_032]
    # to every published digit where the held-out part starts without a context
    fresh = witten_bell(train, "", heldout, 28, range(1, 6))
    assert {n: round(p, 2) for n, p in fresh.items()} == published
    # and to 0.01 where the character before it is its context, as it is here
    after = text[10_000:15_032]  # the first of it is a context alone, as it is of networks
    own = ngrams.ngram_baselines(book, corpus.encode(book, train), corpus.encode(book, after))
    assert own == pytest.approx(published, abs=0.01)
    assert own == pytest.approx(witten_bell(train, after[0], heldout, 28, range(1, 6)), rel=1e-12)


# --- any file ----------------------------------------------------------------------------------


def test_file_keeps_characters_but_for_mark_and_whitespace(tmp_path: Path) -> None:
    file = tmp_path / "Été.txt"
    data = "\ufeff  Hé\r\nHé\t\u00a0\u3000 x\n\n\nA\ufeff\U0001f600\n".encode()
    file.write_bytes(data)
    text = loading.load(str(file))
    assert whole(text) == " Hé Hé x A\ufeff\U0001f600 "
    assert (text.name, text.sha256) == ("Été.txt", hashlib.sha256(data).hexdigest())
    assert (text.floor, text.note) == (None, "")


def test_vocabulary_by_frequency_then_code_point() -> None:
    text = made("ccbbaad")
    assert text.vocabulary == ("<unk>", "a", "b", "c", "d")
    assert text.tokens.tolist() == [3, 3, 2, 2, 1, 1, 4]
    assert text.tokens.dtype == np.int32
    with pytest.raises(ValueError, match="read-only"):
        text.tokens[0] = 1


def test_every_symbol_is_in_the_vocabulary_however_many_there_are() -> None:
    common = "".join(chr(0x10000 + i) for i in range(40_000))
    text = made(common * 2 + "x")
    assert (len(text.vocabulary), text.left_out, text.unknown_share) == (40_002, 0, 0.0)
    assert whole(text) == common * 2 + "x"


def test_a_limit_on_the_vocabulary_is_said_and_the_rare_are_not_scored_as_if_known() -> None:
    common = "".join(chr(0x4E00 + i) for i in range(255))
    text = loading._file(Path("made.txt"), (common * 2 + "xyx").encode(), most=255)
    assert len(text.vocabulary) == 256
    assert text.vocabulary[1] == "x"  # ties: by code point, so the last of the common ones is out
    assert "y" not in text.vocabulary
    assert common[-1] not in text.vocabulary
    assert text.tokens[254] == 0
    assert whole(text).endswith("x<unk>x")
    assert (text.left_out, text.unknown_share) == (2, 3 / 513)
    assert text.note == (
        "0.58 % of the characters are none of the 255 that max_vocabulary=255 keeps: each is predicted as <unk>, "
        "and scored as one of 2 equally likely"
    )
    # 500 symbols in equal shares have perplexity 500, whatever the limit
    even = "".join(chr(0x4E00 + i) for i in np.random.default_rng(0).integers(0, 500, 60_000))
    for most in (0, 450, 300, 100, 2):
        text = loading._file(Path("made.txt"), even.encode(), most=most)
        found = ngrams.ngram_baselines(text, text.tokens[:50_000], text.tokens[50_000:], (1,))
        assert found["1-gram"] == pytest.approx(500, rel=0.02)


ANY = "Ab, c\r\n\t d  E\u0301\u2028e\u0301\u00e9 \U0001f600\x0bX9\x85\u3000\u4e2d \rEnd.\n"


@pytest.mark.parametrize(
    ("how", "left"),
    [
        ("raw", ANY),
        ("spaces", "Ab, c d E\u0301 e\u0301\u00e9 \U0001f600 X9 \u4e2d End. "),
        ("lines", "ab cd e\u0301e\u0301\u00e9x\u4e2dend"),
        ("whole", "ab c d e\u0301 e\u0301\u00e9 x \u4e2d end "),
    ],
)
def test_what_is_done_to_a_text(how: str, left: str) -> None:
    text = loading._file(Path("made.txt"), ("\ufeff" + ANY).encode(), how)
    assert whole(text) == left
    assert text.text == how


@pytest.mark.parametrize("how", ["lines", "whole"])
@given(st.text("aB1 .\n\r\t\u2029'"))
def test_the_books_two_ways_with_a_text_as_the_book_writes_them(how: str, text: str) -> None:
    parts = [re.sub("[^A-Za-z]+", " ", part) for part in ([text] if how == "whole" else text.splitlines())]
    want = "".join(part if how == "whole" else part.strip() for part in parts).lower()
    assert "".join(map(chr, corpus._prepared(text, how))) == want


@pytest.mark.parametrize("how", ["lines", "whole"])
def test_a_text_without_letters_is_refused_with_the_way_to_keep_it(how: str) -> None:
    with pytest.raises(ValueError, match="where letters alone are kept: take --set text=spaces"):
        loading._file(Path("made.txt"), b"1 2 3, 4 5 6\n" * 9, how)


def test_accents_of_their_own_are_said() -> None:
    assert made("cafe\u0301 " * 9).note.endswith("(NFC): a letter's accent may be a character of its own")
    assert made("caf\u00e9 " * 9).note == ""


CHINESE = "\u5e8a\u524d\u660e\u6708\u5149\uff0c\u7591\u662f\u5730\u4e0a\u971c\u3002 " * 40
RUSSIAN = ("\u041f\u0443\u0442\u0435\u0448\u0435\u0441\u0442\u0432\u0435\u043d\u043d\u0438\u043a "
           "\u0431\u044b\u043b \u043f\u043e. \u041e\u043d \u044f\u0441\u0435\u043d. ") * 40  # fmt: skip

GREEK = ("\u039f \u03c4\u03b1\u03be\u03b9\u03b4\u03b9\u03ce\u03c4\u03b7\u03c2 \u03c4\u03bf\u03c5 "
         "\u03c7\u03c1\u03cc\u03bd\u03bf\u03c5. \u0395\u03be\u03b7\u03b3\u03b5\u03af. ") * 40  # fmt: skip

TRADITIONAL = "\u8209\u982d\u671b\u660e\u6708\uff0c\u4f4e\u982d\u601d\u6545\u9109\u3002 " * 40


@pytest.mark.parametrize(
    ("data", "why", "encoding"),
    [
        (CHINESE.encode("gbk"), "is not UTF-8: byte 0xb4 at offset 0", "GBK"),
        (CHINESE.encode("gb18030"), "is not UTF-8", "GBK"),
        (TRADITIONAL.encode("big5"), "is not UTF-8", "BIG5"),
        ("\u3044\u308d\u306f\u306b\u307b\u3078\u3068\u6f22\u5b57\n".encode("shift_jis") * 40, "not UTF-8", "SHIFT_JIS"),
        ("\u3044\u308d\u306f\u306b\u307b\u3078\u3068\u6f22\u5b57\n".encode("euc_jp") * 40, "not UTF-8", "EUC-JP"),
        ("\ub3d9\ud574 \ubb3c\uacfc \ubc31\ub450\uc0b0\uc774\n".encode("euc_kr") * 40, "not UTF-8", "EUC-KR"),
        ("\u043c\u043e\u0439 \u0434\u044f\u0434\u044f\n".encode("cp1251") * 40, "not UTF-8", "CP1251"),
        ("\u043c\u043e\u0439 \u0434\u044f\u0434\u044f\n".encode("koi8_r") * 40, "not UTF-8", "KOI8-R"),
        ("d\u00e9j\u00e0 vu\n".encode("latin-1") * 40, "is not UTF-8: byte 0xe9 at offset 1", "CP1252"),
        (BOOK.decode().encode("utf-16-le"), "is no text: a NUL at offset 1", "UTF-16LE"),
        (BOOK.decode().encode("utf-16-be"), "is no text: a NUL at offset 0", "UTF-16BE"),
        (BOOK.decode().encode("utf-16"), "is not UTF-8: byte 0xff at offset 0", "UTF-16"),
        (BOOK.decode().encode("utf-32"), "is not UTF-8: byte 0xff at offset 0", "UTF-32"),
        (BOOK.decode().encode("utf-32-le"), "is no text: a NUL at offset 1", "UTF-32LE"),
        (CHINESE.encode("utf-16-le"), "", "UTF-16LE"),
        (CHINESE.encode("utf-16-be"), "", "UTF-16BE"),
        (CHINESE.encode()[:-2], "is not UTF-8", "UTF-8"),
        (CHINESE.encode() + b"\xed\xa0\xbd", "is not UTF-8: byte 0xed", "UTF-8"),  # half of a surrogate pair
        (b"plain text, and one\0 NUL " * 9, "is no text: a NUL at offset 19", ""),
        (RUSSIAN.encode("utf-16-le"), "is no text: a NUL at offset 29", "UTF-16LE"),
        (RUSSIAN.encode("utf-16-be"), "is no text: a NUL at offset 28", "UTF-16BE"),
        (RUSSIAN.encode("cp866"), "is not UTF-8", "CP866"),
        (RUSSIAN.encode("iso8859_5"), "is not UTF-8", "ISO-8859-5"),
        (
            "\u05d4\u05e0\u05d5\u05e1\u05e2 \u05d1\u05d6\u05de\u05df \u05d4\u05e1\u05d1\u05d9\u05e8 ".encode("cp1255")
            * 9,
            "",
            "CP1255",
        ),
        ("\u0627\u0644\u0645\u0633\u0627\u0641\u0631 \u0639\u0628\u0631 ".encode("cp1256") * 9, "", "CP1256"),
        ("\u0e19\u0e31\u0e01\u0e40\u0e14\u0e34\u0e19 ".encode("tis_620") * 9, "is not UTF-8", "TIS-620"),
        (
            "Za\u017c\u00f3\u0142\u0107 g\u0119\u015bl\u0105 Podr\u00f3\u017cnik m\u00f3wi\u0142. ".encode("iso8859_2")
            * 9,
            "is not UTF-8",
            "ISO-8859-2",
        ),
        ("Er erl\u00e4utert es; F\u00fc\u00dfe. ".encode("mac_roman") * 9, "is not UTF-8", "MACINTOSH"),
        ("\uc2dc\uac04 \uc5ec\ud589\uc790\ub294 ".encode("utf-16-le") * 9, "", "UTF-16LE"),
        (
            "\u3044\u308d\u306f\u306b\u307b\u3078\u3068\n".encode("iso2022_jp") * 9,
            "is no text: an escape at offset 0",
            "ISO-2022-JP",
        ),
        (bytes(range(256)) * 9, "is not UTF-8: byte 0x80 at offset 128", ""),
    ],
)
def test_a_text_in_another_encoding_is_refused_with_what_makes_it_utf_8(
    data: bytes, why: str, encoding: str, tmp_path: Path
) -> None:
    (tmp_path / "a text.txt").write_bytes(data)
    said = fails(tmp_path / "a text.txt")
    assert why in said
    assert ("iconv" in said) == bool(encoding)
    if encoding:
        asked = said[said.index("iconv") :]
        assert f"-f {encoding} -t UTF-8" in asked
        subprocess.run(["sh", "-c", asked], cwd=tmp_path, capture_output=True)  # of damaged UTF-8 its status is 1
        got = loading.load(str(tmp_path / "a text.utf-8.txt"))
        assert len(got.vocabulary) > 5


@pytest.mark.parametrize(
    ("data", "others"),
    [
        (CHINESE.encode("gb18030"), "GB18030"),
        (RUSSIAN.encode("koi8_r"), "KOI8-U or CP1256"),
        (GREEK.encode("iso8859_7"), "CP1253, ISO-8859-7"),
        ("d\u00e9j\u00e0 vu\n".encode("latin-1") * 40, "ISO-8859-1"),
        ("G\u00fcne\u015f de\u011fil, \u00e7etrefil\n".encode("cp1254") * 40, "CP1254"),
    ],
)
def test_every_encoding_that_a_text_may_be_in_is_named(data: bytes, others: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    said = fails(tmp_path / "a.txt")
    assert others in said[said.index("(it may also be ") : said.index("), iconv -f")]


def test_a_text_with_some_nuls_is_made_one_without(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a text with a hole in it\n" * 99 + b"\0\0" + b"and more of it\n" * 99)
    said = fails(tmp_path / "a.txt")
    subprocess.run(["sh", "-c", said[said.index("tr -d") :]], cwd=tmp_path, check=True)
    assert loading.load(str(tmp_path / "a.utf-8.txt")).note == ""


def test_encode_and_decode() -> None:
    text = made("hello world")
    assert corpus.decode(text, corpus.encode(text, "hold well")) == "hold well"
    assert corpus.encode(text, "hQ").tolist() == [text.vocabulary.index("h"), 0]
    assert corpus.encode(text, "").shape == (0,)


def test_a_file_is_not_the_text_it_is_called_after(tmp_path: Path) -> None:
    (tmp_path / "time-machine").write_text("not it")
    assert loading.load(str(tmp_path / "time-machine")).name == "./time-machine"


def test_bad_files_each_say_what_is_wrong(tmp_path: Path) -> None:
    def file(data: bytes) -> Path:
        path = tmp_path / "bad.txt"
        path.write_bytes(data)
        return path

    assert fails(tmp_path).endswith("is a folder, not a text")
    assert "'bad.txt' is" not in fails(file(b"")), "the whole path is named"
    assert fails(file(b"")).endswith("is empty")
    assert fails(file(b"\xef\xbb\xbf")).endswith("is empty")
    assert "one symbol only, 'a'" in fails(file(b"aaa"))
    assert "one symbol only, ' '" in fails(file(b" \r\n\t"))
    assert "not UTF-8: byte 0xff at offset 4" in fails(file("é b\xff".encode("latin-1").replace(b"\xe9", b"\xc3\xa9")))
    assert "not UTF-8: byte 0xe9 at offset 5" in fails(file(b"\xef\xbb\xbfab\xe9"))
    if Path("/dev/zero").exists():
        assert "not a regular file" in fails("/dev/zero")


def test_missing_file_suggests_the_names(tmp_path: Path) -> None:
    assert "Did you mean 'time-machine'?" in fails("time-machin")
    message = fails(tmp_path / "none.txt")
    assert "none.txt" in message
    assert message.endswith("There are: time-machine, or the path of a UTF-8 file")
    assert fails(f"{__file__}/x").endswith("cannot be read: Not a directory")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this platform")
def test_a_fifo_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in fails(tmp_path / "pipe")
    # one that takes the place of a file after the look at it
    regular, stat = os.stat(__file__), os.stat
    monkeypatch.setattr(os, "stat", lambda path, **kw: regular if str(path).endswith("pipe") else stat(path, **kw))
    assert "not a regular file" in fails(tmp_path / "pipe")


def test_too_large_is_refused_unread(tmp_path: Path) -> None:
    with open(tmp_path / "large", "wb") as file:
        file.truncate(loading.LARGEST_FILE + 1)
    start = time.monotonic()
    assert "the most is 268,435,456" in fails(tmp_path / "large")
    assert time.monotonic() - start < 0.5


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("ab")

    def refuse(path: Path, *rest: int) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)  # root may read everything: chmod would prove nothing
    assert fails(tmp_path / "secret").endswith("secret' cannot be read: Permission denied")


@pytest.mark.parametrize("change", ["longer", "touched"])
def test_changed_while_read(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    path.write_text("some text")
    real = os.fstat
    looks: list[os.stat_result] = []

    def fstat(handle: int) -> os.stat_result:
        looks.append(real(handle))
        if len(looks) == 2:  # the last look, after the reading
            if change == "longer":  # its time put back: the size alone must tell
                with open(path, "ab") as file:
                    file.write(b"!")
                os.utime(path, ns=(looks[0].st_atime_ns, looks[0].st_mtime_ns))
            else:
                os.utime(path, (1, 1))
            return real(handle)
        return looks[-1]

    monkeypatch.setattr(os, "fstat", fstat)
    assert "changed while it was read" in fails(path)


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="no /proc")
def test_a_file_longer_than_it_says() -> None:
    assert "changed while it was read" in fails("/proc/version")


def test_a_path_the_system_refuses() -> None:
    assert "name too long" in fails("x" * 5000)


# --- the cut -----------------------------------------------------------------------------------


def test_split_by_position() -> None:
    text = made("abcdefgh")
    train, heldout = corpus.split(text, 5, 2)
    assert (corpus.decode(text, train), corpus.decode(text, heldout)) == ("abcde", "fg")
    assert not train.flags.writeable
    corpus.split(text, 5, 3)  # all of it


def test_split_of_a_short_text_says_what_would_fit() -> None:
    text = made("abcdefgh")
    with pytest.raises(ValueError, match=r"'made.txt' has 8 characters, 6 to train and 3 held out need 9:") as caught:
        corpus.split(text, 6, 3)
    fits = re.findall(r"--set \w+=(\d+)", str(caught.value))
    assert fits == ["5", "3"]
    corpus.split(text, *map(int, fits))
    for parts in ((0, 3), (3, 0), (-1, 3)):
        with pytest.raises(ValueError, match="both parts need a character"):
            corpus.split(text, *parts)
    with pytest.raises(ValueError, match=r"train_characters=7 --set heldout_characters=1$"):
        corpus.split(text, 10**9, 1)
    with pytest.raises(ValueError, match=r"train_characters=1 --set heldout_characters=7$"):
        corpus.split(text, 1, 10**9)


def test_windows_are_those_of_the_largest_offset() -> None:
    for characters, batch, steps in ((10_000, 32, 35), (10_000, 32, 3), (117, 4, 5), (71, 2, 7), (26, 4, 5)):
        each = [((characters - offset - 1) // batch) // steps for offset in range(steps + 1)]
        assert corpus.windows(characters, batch, steps) == min(each)
    assert corpus.windows(10_000, 32, 35) == 8


def test_windows_of_too_short_a_text() -> None:
    assert corpus.windows(26, 4, 5) == 1
    for characters in (25, 1, 0):
        with pytest.raises(ValueError, match=r"batch_size 4 x num_steps 5 \+ 5 \+ 1 = 26; take --set train_char"):
            corpus.windows(characters, 4, 5)


# --- anchors -----------------------------------------------------------------------------------


def witten_bell(train: str, before: str, heldout: str, symbols: int, orders: Sequence[int]) -> dict[str, float]:
    """A second writing with dictionaries and recursion, a character at a time."""
    follow: dict[str, Counter[str]] = {}
    for i, c in enumerate(train):
        for k in range(max(orders)):
            if i >= k:
                follow.setdefault(train[i - k : i], Counter())[c] += 1

    def p(c: str, h: str | None) -> float:
        if h is None:
            return 1 / symbols
        lower = p(c, h[1:] if h else None)
        seen = follow.get(h)
        return lower if not seen else (seen[c] + len(seen) * lower) / (sum(seen.values()) + len(seen))

    text, found = before + heldout, {}
    for n in orders:
        nats = 0.0
        for i in range(len(before), len(text)):
            nats -= math.log(p(text[i], text[max(0, i - n + 1) : i]))
        found[f"{n}-gram"] = math.exp(nats / len(heldout))
    return found


@pytest.mark.parametrize(
    ("text", "train"),
    [("the cat sat on the mat and the rat sat", 20), ("abracadabra", 2), ("ab" * 9 + "cd", 18), ("abcabcaba", 1)],
)
def test_anchors_against_a_second_writing(text: str, train: int) -> None:
    c = made(text)
    got = ngrams.ngram_baselines(c, c.tokens[:train], c.tokens[train:], (1, 2, 3, 4, 5))
    want = witten_bell(text[:train], text[train], text[train + 1 :], len(c.vocabulary), range(1, 6))
    assert got == pytest.approx(want, rel=1e-12)
    assert list(got) == ["1-gram", "2-gram", "3-gram", "4-gram", "5-gram"]
    assert ngrams.ngram_baselines(c, c.tokens[:train], c.tokens[train:], (4, 2)) == {
        n: got[n] for n in ("4-gram", "2-gram")
    }


def test_anchors_are_probabilities() -> None:
    c = made("she sells sea shells by the sea shore")
    for end in (3, 20, 30):
        for n in (1, 3, 5):
            every = [np.array([1, s], dtype=np.int32) for s in range(len(c.vocabulary))]
            shares = [1 / ngrams.ngram_baselines(c, c.tokens[:end], s, (n,))[f"{n}-gram"] for s in every]
            assert sum(shares) == pytest.approx(1, abs=1e-12)


def test_anchors_refuse_what_means_nothing() -> None:
    c = made("abc")
    for orders, heldout in (((0, 1), c.tokens), ((), c.tokens), ((1,), c.tokens[:1])):
        with pytest.raises(ValueError, match="orders from 1 up and two held-out characters"):
            ngrams.ngram_baselines(c, c.tokens, heldout, orders)


def test_anchors_of_a_large_vocabulary_take_bounded_time() -> None:
    tokens = np.random.default_rng(0).integers(0, 256, 200_000).astype(np.int32)
    c = Corpus("made", "", tokens, tuple(map(chr, range(256))))
    start = time.monotonic()
    found = ngrams.ngram_baselines(c, tokens[:150_000], tokens[150_000:])
    assert time.monotonic() - start < 5
    assert found["1-gram"] == pytest.approx(256, rel=0.01)


# --- embedded ----------------------------------------------------------------------------------


def odds(made_from: embedded.Source) -> dict[str, tuple[int, float]]:
    """Of each word its class and its share of it."""
    return {
        word: (k, weight / sum(weights))
        for k, (words, weights) in enumerate(zip(made_from.words, made_from.weights, strict=True))
        for word, weight in zip(words, weights, strict=True)
    }


def test_embedded_is_the_same_on_every_machine() -> None:
    text = loading.load("embedded")
    assert text.sha256 == "488f377d5a152756c41a51b44ca88a7d930ecf3b0bf7c593f49c7ed8f79bbe2a"
    assert hashlib.sha256(whole(text).encode()).hexdigest() == text.sha256
    assert (text.name, len(text.tokens), text.note) == ("embedded", 100_000, "")
    assert sorted(text.vocabulary) == sorted(["<unk>", *" abcdefghijklmnopqrstuvwxyz"])
    assert np.array_equal(text.tokens, embedded.embedded().tokens)


def test_another_seed_is_another_text(monkeypatch: pytest.MonkeyPatch) -> None:
    before = embedded.embedded()
    monkeypatch.setattr(embedded, "EMBEDDED_SEED", embedded.EMBEDDED_SEED + 7)
    assert embedded.embedded().sha256 != before.sha256


def test_no_word_has_two_classes_so_nothing_is_hidden() -> None:
    made_from = embedded.source()
    shares = odds(made_from)
    assert len(shares) == sum(map(len, made_from.words)) == 200
    assert all(re.fullmatch("[a-z]{1,5}", word) for word in shares)


# no symmetry for an error to hide behind: classes differ in size, lengths, weights and what follows
LOPSIDED = embedded.Source(
    (("a", "bab"), ("cde", "c", "cd")), ((1, 5), (2, 3, 7)), (((1, 3), (5, 1)), ((2, 9), (4, 4)))
)


@pytest.mark.parametrize("made_from", [embedded.source(), LOPSIDED], ids=["embedded", "lopsided"])
def test_floor_is_the_entropy_a_character(made_from: embedded.Source) -> None:
    """Once more, by power iteration over classes and then character by character along each word."""
    shares = odds(made_from)
    k = len(made_from.words)
    pairs = {(a, b): 1 / k**2 for a in range(k) for b in range(k)}
    for _ in range(500):
        after = dict.fromkeys(pairs, 0.0)
        for (a, b), p in pairs.items():
            row = made_from.follows[a][b]
            for c in range(k):
                after[b, c] += p * row[c] / sum(row)
        pairs = after
    nats = characters = 0.0
    for (a, b), share in pairs.items():
        row = made_from.follows[a][b]
        next_word = {word: row[c] / sum(row) * p for word, (c, p) in shares.items()}
        reach: defaultdict[str, float] = defaultdict(float)  # of the part of a word that has been read
        for word, p in next_word.items():
            for end in range(len(word) + 2):
                reach[(word + " ")[:end]] += p
        assert reach[""] == pytest.approx(1)
        for part, p in reach.items():
            if part:
                nats -= share * p * math.log(p / reach[part[:-1]])
                characters += share * p
    assert made_from.floor == pytest.approx(math.exp(nats / characters), rel=1e-9)
    if made_from != LOPSIDED:
        assert embedded.embedded().floor == made_from.floor == pytest.approx(3.1204, abs=1e-4)


@pytest.mark.parametrize(("start", "end"), [(0, 100_000), (0, 10_000), (10_000, 20_000), (90_000, 100_000)])
def test_the_source_itself_scores_the_floor(start: int, end: int) -> None:
    """The true source's cross-entropy on its own text, within 3 standard errors of ln(floor)."""
    text = embedded.embedded()
    made_from = embedded.source()
    shares = odds(made_from)
    words = corpus.decode(text, text.tokens[start:end]).split(" ")[1:-1]
    nats, lengths = [], []
    for first, second, word in zip(words, words[1:], words[2:], strict=False):
        row = made_from.follows[shares[first][0]][shares[second][0]]
        nats.append(-math.log(row[shares[word][0]] / sum(row) * shares[word][1]))
        lengths.append(len(word) + 1)
    rate = sum(nats) / sum(lengths)
    error = float(np.std(np.array(nats) - rate * np.array(lengths))) / math.sqrt(len(nats)) / np.mean(lengths)
    assert error < 0.011
    assert text.floor is not None
    assert abs(rate - math.log(text.floor)) < 3 * error


@pytest.mark.parametrize("train", [10_000, 90_000])
def test_no_anchor_beats_the_floor_and_longer_memory_pays(train: int) -> None:
    text = embedded.embedded()
    found = ngrams.ngram_baselines(text, *corpus.split(text, train, 10_000))
    assert text.floor is not None
    assert min(found.values()) > text.floor * 1.02  # 2.5 standard errors of 10,000 characters
    assert found["1-gram"] > 1.5 * found["2-gram"] > 2 * found["3-gram"] > 2 * found["4-gram"]


# --- downloads ---------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    asked: list[str]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/absent":
            self.send_error(404)
        elif self.path == "/silent":
            time.sleep(2)
        elif self.path == "/headers":
            self.drip(b"HTTP/1.0 200 OK\r\n" + b"X: y\r\n" * 100)
        elif self.path in ("/moved", "/ftp", "/round"):
            self.send_response(302)
            where = {"/moved": "/right", "/round": "/round", "/ftp": "ftp://127.0.0.1/right"}
            self.send_header("Location", where[self.path])
            self.end_headers()
        else:
            data = {"/wrong": TEXT[::-1], "/long": TEXT + b"!", "/cut": TEXT[:1000], "/empty": b""}.get(self.path, TEXT)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data) if self.path != "/cut" else len(TEXT)))
            self.end_headers()
            if self.path == "/slow":
                self.drip(data)
            else:
                self.wfile.write(data)

    def drip(self, data: bytes) -> None:
        for i in range(40):
            try:
                self.wfile.write(data[i : i + 1])
            except OSError:
                return  # the other side has hung up, as it should
            time.sleep(0.05)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def server(asked: list[str], stand_in: bytes) -> Iterator[str]:
    running = Server(("127.0.0.1", 0), type("Asked", (Handler,), {"asked": asked}))
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    thread.join()
    running.server_close()


def test_download_once_then_from_the_cache(unpackaged: None, server: str, asked: list[str], tmp_path: Path) -> None:
    cache = tmp_path / "not" / "there"
    assert download.time_machine(cache, f"{server}/right", allow_http=True) == (TEXT, "")
    assert download.time_machine(cache, f"{server}/right", allow_http=True) == (TEXT, "")
    assert asked == ["/right"]
    assert [file.name for file in cache.iterdir()] == ["timemachine.txt"]
    assert loading.load("time-machine", cache).name == loading.load(None, cache).name == "time-machine"


@pytest.mark.parametrize("kept", [TEXT[::-1], TEXT + b"!", TEXT[:-1], b""])
def test_a_wrong_cached_file_is_replaced(kept: bytes, server: str, tmp_path: Path) -> None:
    (tmp_path / "timemachine.txt").write_bytes(kept)
    assert download.time_machine(tmp_path, f"{server}/right", allow_http=True) == (TEXT, "")
    assert (tmp_path / "timemachine.txt").read_bytes() == TEXT


def test_a_redirect_is_followed(server: str, asked: list[str]) -> None:
    assert download.download(f"{server}/moved", allow_http=True) == TEXT
    assert asked == ["/moved", "/right"]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("wrong", "other bytes than the book's"),
        ("cut", "1,000 bytes of 62,000"),
        ("empty", "0 bytes of 62,000"),
        ("long", "more than the 62,000 bytes of the book"),
        ("absent", "HTTP Error 404: Not Found"),
        ("ftp", "refused ftp://127.0.0.1/right: not https"),
        ("round", "more than 5 redirects"),
        ("slow", "took more than 0.3 s"),
        ("silent", "(timed out|took more than 0.3 s)"),
        ("headers", "took more than 0.3 s"),
    ],
)
def test_downloads_that_fail(path: str, why: str, server: str, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(ValueError, match=why) as caught:
        download.time_machine(tmp_path, f"{server}/{path}", allow_http=True, seconds=0.3)
    assert time.monotonic() - start < 1
    assert "\n" not in str(caught.value)
    assert f"{server}/{path}" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_redirects_and_time_are_bounded_where_they_are_spent(server: str, asked: list[str]) -> None:
    with pytest.raises(ValueError, match="redirects"):
        download.download(f"{server}/round", allow_http=True)
    assert len(asked) == 6
    with pytest.raises(ValueError, match=r"took more than 0\.2 s"):  # the thread ends too, nobody waiting for it
        download._get(f"{server}/slow", ("http",), 0.2)


def test_no_server_and_no_https(server: str, asked: list[str]) -> None:
    with pytest.raises(ValueError, match=r"refused http://127.0.0.1:\d+/right: not https"):
        download.download(f"{server}/right")
    with pytest.raises(ValueError, match=r"file:///etc/passwd: refused"):
        download.download("file:///etc/passwd", allow_http=True)
    with pytest.raises(ValueError, match="refused"):
        download.download("http://127.0.0.1:9/right", allow_http=True)
    assert asked == []
    assert download.URL.startswith("https://")


def test_a_cache_that_cannot_be_written_is_said(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    data, note = download.time_machine(tmp_path, f"{server}/right", allow_http=True)
    assert data == TEXT
    assert note == "time-machine was downloaded but could not be kept (No space left on device)"
    assert list(tmp_path.iterdir()) == []  # nor half a file
    monkeypatch.setattr(download, "time_machine", lambda cache: (data, note))
    assert loading.load("time-machine").note == note


def test_without_the_package_that_names_the_cache(unpackaged: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "platformdirs", None)  # as on a machine whose python is used as it is
    with pytest.raises(ValueError, match=r"platformdirs names: install it.*CORPUS=path"):
        loading.load()


def test_without_package_network_and_cache(unpackaged: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object) -> bytes:
        raise ValueError("https://x: no route")

    monkeypatch.setattr(download, "download", offline)
    why = "time-machine is neither in the package nor in the cache nor to be downloaded (https://x: no route)"
    assert fails("time-machine", tmp_path) == f"{why}. Have the file? CORPUS=path"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"plain.txt", "plain.txt"),
        ("größe 1.txt".encode(), "größe 1.txt"),
        (b"=cmd|' .C calc'!A0", "./=cmd|' .C calc'!A0"),
        (b"+1", "./+1"),
        (b"-1", "./-1"),
        (b"@SUM(1)", "./@SUM(1)"),
        (b"embedded", "./embedded"),
        (b"a\nb\x1b[31m", "a\\nb\\x1b[31m"),
        ("a\u202eb".encode(), "a\\u202eb"),
        (b"\xff.txt", "\\xff.txt"),
        (b"<script>", "<script>"),
        (b"None", "./None"),
        (b"null.txt", "null.txt"),
        (b"12", "./12"),
        (b"inf", "./inf"),
        (b"True", "./True"),
        *((name.encode(), f"./{name}") for name in sorted(MISSING - {""}) if name[0] not in "#-" and "/" not in name),
    ],
)
def test_a_files_name_is_shown_so_that_it_can_do_nothing(name: bytes, shown: str, tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)
    with open(path, "w") as file:
        file.write("the time traveller " * 100)
    assert loading.load(os.fsdecode(path)).name == shown


# ---- tokens that are no characters

ALL = "The Time Traveller's clock \u2014 \u201c YES , \u201d said he ; 24 caf\u00e9s ."
SPEECH = "The Time Traveller's clock\u2014 \u201cYES,\u201d said he; 24 caf\u00e9s.\nThe end 'so' far. " * 3


def tokens(text: str, how: str, unit: str = corpus.WORDS, most: int = 0, **more: Any) -> Corpus:
    return corpus.from_text("made", text.encode(), text, how, most, unit=unit, **more)


@pytest.mark.parametrize(
    ("how", "more", "words"),
    [
        ("spaces", {}, f"{ALL} The end ' so ' far ."),
        ("raw", {}, f"{ALL} \n The end ' so ' far ."),
        ("lines", {}, "the time traveller s clock yes said he caf\u00e9s the end so far"),
        ("whole", {"case": "keep"}, "The Time Traveller s clock YES said he caf\u00e9s The end so far"),
        ("spaces", {"case": "lower", "punctuation": "drop"},
         "the time traveller s clock yes said he caf\u00e9s the end so far"),
        ("whole", {"punctuation": "keep"}, f"{ALL.lower()} the end ' so ' far ."),
    ],
)  # fmt: skip
def test_words_case_and_punctuation(how: str, more: dict[str, Any], words: str) -> None:
    text = tokens(SPEECH, how, **more)
    assert corpus.decode(text, text.tokens) == " ".join([words] * 3)
    assert list(corpus.encode(text, words.replace(" \n ", "\n"))) == list(text.tokens[: len(text.tokens) // 3])
    characters = corpus._prepared(SPEECH, "whole" if how == "lines" else how, **more)
    assert text.lengths is not None
    assert int(text.lengths.sum()) == len(characters) - (chr(characters[-1]) == " ")
    counts = Counter(corpus.decode(text, [t]) for t in text.tokens.tolist())
    assert list(text.vocabulary[1:]) == sorted(counts, key=lambda w: (-counts[w], w))


def test_a_limit_on_words_says_what_it_leaves_out_and_scores_it_as_unknown() -> None:
    text = tokens("a b a c a b d e " * 50, "spaces", most=2)
    assert text.vocabulary == ("<unk>", "a", "b")
    assert (text.left_out, text.unknown_share) == (3, 0.375)
    assert "38 % of the words are none of the 2" in text.note
    assert text.unknown_nats == math.log(3)
    n = ngrams.ngram_baselines(text, text.tokens[:200], text.tokens[200:], (1,))["1-gram"]
    p, unknown = {"a": 3 / 8, "b": 2 / 8}, 3 / 8 / 3
    nats = -np.mean([math.log(p.get(w, unknown)) for w in ("a b a c a b d e " * 25).split()[1:]])
    assert n == pytest.approx(math.exp(nats), rel=0.02)


def test_bytes_are_those_of_utf_8_and_count_the_characters_that_begin_there() -> None:
    text = tokens("caf\u00e9 \u20ac5 \U0001f600!", "raw", corpus.BYTES)
    assert corpus.decode(text, text.tokens) == "caf\u00e9 \u20ac5 \U0001f600!"
    assert text.lengths is not None
    assert (text.characters, len(text.tokens)) == (10, len("caf\u00e9 \u20ac5 \U0001f600!".encode()))
    assert {"c", "<0xC3>", "<0xA9>", "<0xF0>"} <= set(text.vocabulary)
    assert list(corpus.encode(text, "\u00e9")) == list(text.tokens[3:5])
    assert corpus.decode(text, text.tokens[3:4]) == "\ufffd"


def test_parts_are_cut_by_characters_whatever_the_tokens_are() -> None:
    text = "one two three four five six seven eight nine ten " * 40
    protocol = protocols.Protocol(train_characters=1000, heldout_characters=300, validation_characters=200,
                                  text="spaces", tokens="words", batch_size=2, num_steps=5)  # fmt: skip
    words = tokens(text, "spaces")
    parts = batches.split_text(words, protocol)
    spelt = [corpus.decode(words, part) for part in parts]
    assert all(abs(len(part) - n) < 8 for part, n in zip(spelt, (1000, 200, 300), strict=True))
    assert " ".join(spelt) == text[: len(" ".join(spelt))]
    assert batches.characters_per_token(words, protocol) == pytest.approx(len(" ".join(spelt[2].split()[1:])) /
                                                                          (len(parts[2]) - 1), rel=0.02)  # fmt: skip
    short = dataclasses.replace(protocol, train_characters=10**6)
    with pytest.raises(ValueError, match="has 1,959 characters, 1,000,000 to train"):
        batches.split_text(words, short)
    with pytest.raises(ValueError, match="words are too few for one batch"):
        batches.windows_per_epoch(20, dataclasses.replace(protocol, batch_size=32))
    one = dataclasses.replace(protocol, heldout_characters=3, validation_characters=0)
    with pytest.raises(ValueError, match="needs two words"):
        batches.split_text(words, one)
    with pytest.raises(ValueError, match="fewer than two different words"):
        tokens("aaa aaa aaa", "spaces")


def test_the_embedded_text_has_words_and_no_floor_of_theirs() -> None:
    words, characters = loading.load("embedded", unit="words"), loading.load("embedded")
    assert words.floor is None
    assert len(words.vocabulary) == 201
    assert words.tokens_sha256 != characters.tokens_sha256
