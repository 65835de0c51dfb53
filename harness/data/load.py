"""Load a text by its name or from a file. A text that cannot be used is a ValueError of one line that says why."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import os
import re
import shlex
import unicodedata
import zlib
from dataclasses import replace
from pathlib import Path

from harness.data import download
from harness.data.corpus import BOOK, CHARACTERS, EMBEDDED, PYTHON_DOCS, Corpus, digest, from_text, printable
from harness.data.embedded import embedded
from harness.experiments.runs import MISSING

LARGEST_FILE = 2**28  # bytes, 256 MiB: reading one takes about 20 times its size in memory at the peak


def load(
    source: str | None = None, cache: Path | None = None, text: str = "lines", other: str = "spaces", most: int = 0,
    unit: str = CHARACTERS, case: str = "own", punctuation: str = "own",
) -> Corpus:  # fmt: skip
    """The text called `time-machine` (None too), `embedded` or `python-docs`, or the UTF-8 file at that path.

    `text`: what is done to the book, and `other` to any other file (see `_prepared`). `most`: symbols kept, the most
    frequent ones; 0 keeps all. `cache`: the folder that keeps a download of the book, by default the platform's.
    `unit`, `case`, `punctuation`: as a protocol has them; `embedded` has lower case and no punctuation.
    ValueError, one line, for a text that cannot be used.
    """
    how = {"unit": unit, "case": case, "punctuation": punctuation}
    if source == EMBEDDED:
        return replace(embedded(unit), text=text)
    if source is None or source == BOOK:
        try:
            data, note = download.time_machine(cache)
        except ValueError as error:
            raise ValueError(f"{error}. Have the file? CORPUS=path") from None
        return from_text(BOOK, data, data.decode("ascii"), text, most, note, **how)
    if source == PYTHON_DOCS:
        from pydoc_data import topics  # of every CPython: what its help() says, about 460,000 characters

        said = "\n\n".join(text for _, text in sorted(topics.topics.items()))
        return from_text(PYTHON_DOCS, said.encode(), said, other, most, **how)
    path = Path(os.path.expanduser(source))
    data = download.read_file(path, LARGEST_FILE)
    if book := _as_the_book(data):
        return from_text(BOOK, book, book.decode("ascii"), text, most, **how)
    return _file(path, data, other, most, **how)


def _as_the_book(data: bytes) -> bytes:
    """The book's bytes where these are they, or differ by a byte order mark, line ends, spaces before them or blank
    lines at an end; else b''."""
    if digest(data) == download.SHA256:
        return data
    if len(data) < 3 * download.SIZE:
        with contextlib.suppress(UnicodeDecodeError):
            lines = data.decode("utf-8-sig").splitlines()
            same = ("\n".join(line.rstrip() for line in lines).strip("\n") + "\n").encode()
            if digest(same) == download.SHA256:
                return same
    return b""


def _resembles_the_book(text: str) -> bool:
    """Whether most passages of a text, a hundred of them, are the book's, but for punctuation, case and line ends."""
    with contextlib.suppress(OSError, EOFError, zlib.error):
        book = " ".join(re.findall("[a-z]+", gzip.decompress(download.PACKAGED.read_bytes()).decode("latin-1").lower()))
        step = max(len(text) // 100, 60)
        passages = [re.findall("[a-z]+", text[at : at + 60].lower())[1:-1] for at in range(0, len(text), step)]
        known = [" ".join(words) in book for words in passages if len(words) > 4]
        return 2 * sum(known) > len(passages)
    return False


def _file(path: Path, data: bytes, how: str = "spaces", most: int = 0, **tokens: str) -> Corpus:
    """Any text but the book; what may not be as its reader thinks is in its note."""
    name, text, notes = repr(str(path)), _decoded(path, data), []
    if _resembles_the_book(text):
        notes.append(f"{name} looks like the book but is not: it has other characters, and is read as any other text")
    if not unicodedata.is_normalized("NFC", text):
        notes.append(f"{name} is not in Unicode's composed form (NFC): a letter's accent may be a character of its own")
    return from_text(_shown(path), data, text, how, most, "; ".join(notes), name, **tokens)


def _decoded(path: Path, data: bytes) -> str:
    """UTF-8 as text, without its byte order mark. ValueError says how to make it that."""
    name, target = repr(str(path)), shlex.quote(f"{path.stem}.utf-8{path.suffix}")
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        wrong = f"is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start:,}"
        encoding = _encoding(data)
    else:
        if "\0" not in text:
            return text
        wrong, encoding = f"is no text: a NUL at offset {data.index(0):,}", _encoding(data)
    hint = f"if it is {encoding}, iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > {target}"
    if encoding == "UTF-8":
        hint = f"without what is damaged: iconv -c -f UTF-8 -t UTF-8 {shlex.quote(str(path))} > {target}"
    raise ValueError(f"{name} {wrong}{f'; {hint}' if encoding else ''}")


CJK, KANA, HANGUL = "[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]", "[\u3040-\u30ff]", "[\uac00-\ud7af]"
CYRILLIC = "(?<=[\u0400-\u0451])[\u0430-\u0451]"  # within words: an accent of Latin-1 stands alone
ENCODINGS = (  # as iconv and as Python call it, what it would be full of, the least share of that
    ("SHIFT_JIS", "cp932", KANA, 0.2), ("EUC-JP", "euc_jp", KANA, 0.2), ("EUC-KR", "cp949", HANGUL, 0.9),
    ("GBK", "gb2312", CJK, 0.8), ("BIG5", "cp950", CJK, 0.8), ("GBK", "gbk", CJK, 0.8),
    ("GB18030", "gb18030", CJK, 0.5), ("UTF-16LE", "utf-16-le", CJK, 0.8), ("UTF-16BE", "utf-16-be", CJK, 0.8),
    ("CP1251", "cp1251", CYRILLIC, 0.6), ("KOI8-R", "koi8_r", CYRILLIC, 0.6),
    ("CP1252", "cp1252", ".", 0.0), ("ISO-8859-1", "latin-1", ".", 0.0),
)  # fmt: skip
ZEROS = {"0101": "UTF-16LE", "1010": "UTF-16BE", "0111": "UTF-32LE", "1110": "UTF-32BE", "0011": "UTF-32LE",
         "1100": "UTF-32BE"}  # fmt: skip


def _encoding(data: bytes) -> str:
    """Return what bytes that are not UTF-8 text most likely are, as iconv calls it; '' where they are no text."""
    if data.startswith(codecs.BOM_UTF8):
        return "UTF-8"
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    some = data[: 2**16]
    zeros = "".join(str(int(some[k::4].count(0) > 0.3 * len(some) / 4)) for k in range(4))
    if zeros in ZEROS:
        return ZEROS[zeros]
    text = some.decode("utf-8", "replace")
    damaged = text.count("\ufffd")
    if len(re.findall("[^\0-\x7f]", text)) > 20 * damaged:
        return "UTF-8"
    for name, codec, full_of, least in ENCODINGS:
        with contextlib.suppress(UnicodeDecodeError):
            text = codecs.getincrementaldecoder(codec)().decode(some)
            beyond = re.findall("[^\0-\x7f]", text)
            if "\0" not in text and len(re.findall(full_of, text)) >= least * len(beyond):
                return name
    return ""


def _shown(path: Path) -> str:
    """A file's name as tables and pages may have it: what cannot be printed, or is no Unicode, as an escape.

    A file of that name is not the text of that name; a spreadsheet would take = + - @ in front for a formula, and
    pandas NA for nothing, 12 for a number.
    """
    name = os.fsencode(path.name).decode("utf-8", "backslashreplace")
    name = printable(name)
    with contextlib.suppress(ValueError):  # 12 and inf: a number
        float(name)
        return f"./{name}"
    words = (BOOK, EMBEDDED, PYTHON_DOCS, *MISSING, "true", "false")
    return f"./{name}" if name in words or name.lower() in words or name.startswith(("=", "+", "-", "@")) else name
