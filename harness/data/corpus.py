"""THE TEXT: time-machine or a UTF-8 file, what is done to it; and what counting characters reaches on it.

Rule: a text is exactly its bytes. They come whole, checked and bounded, or one line says why not. No torch.

The book is part of the package (public domain). `embedded`, for tests, is generated here: drawn from a source whose
entropy is known exactly, so that a chart of it can show the lowest perplexity that any model can reach. It is a chain
of words: 5 classes of 40 invented words; the class of a word depends on the classes of the two words before it, the
word on its class. Spaces end words and no word has two classes, so whoever has read the text knows the source's state
(nothing is hidden) and entropy per character = entropy per word / mean length of a word with its space. Its memory is
two words, up to 12 characters: longer than the n-grams beside it see.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import gzip
import hashlib
import json
import math
import os
import re
import shlex
import stat
import tempfile
import threading
import time
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.experiments.grid import MISSING, unknown

if TYPE_CHECKING:  # numpy costs the command line 0.1 s: imported where it is used
    import numpy as np
    import numpy.typing as npt

    Tokens = npt.NDArray[np.int32]

BOOK, EMBEDDED = "time-machine", "embedded"
URL = "https://d2l-data.s3-accelerate.amazonaws.com/timemachine.txt"
PACKAGED = Path(__file__).with_name("timemachine.txt.gz")
SIZE = 178_979
SHA256 = "8424dbd9532ac81f7e5f0b6add90e6952baea29158309d7d1bf3884f4e12c516"
LARGEST_FILE = 2**28  # bytes, 256 MiB: reading one takes about 20 times its size in memory at the peak
UNKNOWN = "<unk>"
EMBEDDED_CHARACTERS = 100_000
EMBEDDED_SEED = 1895
READ_SECONDS, WHOLE_SECONDS = 10.0, 20.0  # of a download: silence, and all of it
REDIRECTS = 5


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text as numbers.

    `sha256` is of the source's bytes, before any preprocessing; `text` says which: see `_prepared`. `tokens`
    (characters,) is read-only, an index into `vocabulary` each; index 0 is <unk>, then by falling frequency, ties by
    code point. `left_out`: how many different symbols are not in the vocabulary, so are <unk>; `unknown_share` of all
    tokens is. `floor` is the exact perplexity of the source, None where nobody knows it. `note` is '' or one line to
    show.
    """

    name: str
    sha256: str
    tokens: Tokens
    vocabulary: tuple[str, ...]
    floor: float | None = None
    note: str = ""
    text: str = "lines"
    left_out: int = 0
    unknown_share: float = 0.0

    @property
    def unknown_nats(self) -> float:
        """What an unknown symbol costs beyond <unk>, so that none is scored as if it were known: all that were left
        out are equally likely, p(symbol) = p(<unk>) / left_out."""
        return math.log(self.left_out) if self.left_out else 0.0

    @functools.cached_property
    def tokens_sha256(self) -> str:
        """Of what is trained on: tokens and vocabulary, after all preprocessing; '' where there is no text."""
        if not self.vocabulary:
            return ""
        known = json.dumps(self.vocabulary) + str(self.left_out or "")
        return hashlib.sha256(known.encode() + self.tokens.astype("<i4").tobytes()).hexdigest()


NOTHING = Corpus("", "", None, ())  # type: ignore[arg-type]  # the text of what has none


def load(
    source: str | None = None, cache: Path | None = None, text: str = "lines", other: str = "spaces", most: int = 0
) -> Corpus:
    """The text called `time-machine` (None too) or `embedded`, or the UTF-8 file at that path.

    `text`: what is done to the book, and `other` to any other file (see `_prepared`). `most`: symbols kept, the most
    frequent ones; 0 keeps all. `cache`: the folder that keeps a download of the book, by default the platform's.
    ValueError, one line, for a text that cannot be used.
    """
    if source == EMBEDDED:
        return replace(embedded(), text=text)
    if source is None or source == BOOK:
        try:
            data, note = time_machine(cache)
        except ValueError as error:
            raise ValueError(f"{error}. Have the file? CORPUS=path") from None
        return _corpus(BOOK, data, data.decode("ascii"), text, most, note)
    path = Path(os.path.expanduser(source))
    data = _read(path, LARGEST_FILE)
    if book := _as_the_book(data):
        return _corpus(BOOK, book, book.decode("ascii"), text, most)
    return _file(path, data, other, most)


def encode(corpus: Corpus, text: str) -> Tokens:
    """The indices (len(text),) of the characters as they stand; one outside the vocabulary is <unk>, 0."""
    import numpy as np

    index = {symbol: i for i, symbol in enumerate(corpus.vocabulary)}
    return np.array([index.get(character, 0) for character in text], dtype=np.int32)


def decode(corpus: Corpus, tokens: Sequence[int] | Tokens) -> str:
    """The text of some indices; <unk> is written out."""
    return "".join(corpus.vocabulary[int(token)] for token in tokens)


def visible(corpus: Corpus, tokens: Sequence[int] | Tokens) -> list[str]:
    """Each token as tables and pages may have it: a line end, or what else cannot be printed, as its escape."""
    return [printable(corpus.vocabulary[int(token)]) for token in tokens]


def printable(text: str) -> str:
    """The text, every character that cannot be printed as its escape, a line end as `\\n`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def split(corpus: Corpus, train_characters: int, heldout_characters: int, between: int = 0) -> tuple[Tokens, Tokens]:
    """The first `train_characters`; the `heldout_characters` that follow them and those `between`. Views, read-only."""
    have, need = len(corpus.tokens), train_characters + between + heldout_characters
    if min(train_characters, heldout_characters) < 1:
        raise ValueError(f"both parts need a character: {train_characters:,} to train, {heldout_characters:,} held out")
    if have < need:
        fits = max(have * train_characters // need, 1)
        rest = (have - fits) // (2 if between else 1)
        raise ValueError(
            f"the text {corpus.name!r} has {have:,} characters, {train_characters:,} to train and "
            f"{heldout_characters:,} held out{f' and {between:,} to validate' * (between > 0)} need {need:,}: take a "
            f"longer text, or --set train_characters={fits} --set heldout_characters={rest}"
            f"{f' --set validation_characters={rest}' * (between > 0)}"
        )
    return corpus.tokens[:train_characters], corpus.tokens[train_characters + between : need]


def windows(characters: int, batch_size: int, num_steps: int) -> int:
    """Training windows in an epoch: what is left at the largest random offset, so every epoch has as many."""
    count = ((characters - num_steps - 1) // batch_size) // num_steps
    if count < 1:
        need = batch_size * num_steps + num_steps + 1
        raise ValueError(
            f"{characters:,} characters are too few for one batch: batch_size {batch_size} x num_steps "
            f"{num_steps} + {num_steps} + 1 = {need:,}; take --set train_characters={need} or a smaller batch_size"
        )
    return count


def anchors(
    corpus: Corpus, train: Tokens, heldout: Tokens, orders: Sequence[int] = (1, 2, 3, 4, 5)
) -> dict[str, float]:
    """Held-out perplexity of Witten-Bell interpolated n-grams counted on `train`: {'1-gram': ...}.

    p(c | h) = (count(hc) + kinds(h) p(c | shorter h)) / (count(h) + kinds(h)), where kinds(h) is how many
    different characters followed h; a context never seen leaves p to the shorter one; below order 1 all
    of the vocabulary is equally likely. Witten and Bell 1991, method C. As of networks, each held-out character but the
    first is scored, and what is before the first is no context. Time: one sort of both parts an order, whatever the
    vocabulary. An unknown symbol is scored as networks' are, see `Corpus.unknown_nats`.
    """
    import numpy as np

    if not orders or min(orders) < 1 or len(heldout) < 2:
        raise ValueError(f"anchors need orders from 1 up and two held-out characters, not {orders} and {len(heldout)}")
    symbols, trained = len(corpus.vocabulary), len(train)
    text = np.concatenate([train, heldout]).astype(np.int64)
    context = np.zeros(len(text), dtype=np.int64)  # of each character: a number for the n - 1 before it
    p = np.full(len(heldout), 1 / symbols)
    found = {}
    beyond = float((heldout[1:] == 0).mean()) * corpus.unknown_nats
    before = np.arange(len(heldout))  # characters of its own part that are before each
    for n in range(1, max(orders) + 1):
        # the first n - 1 characters have no context of that length: not counted
        _, gram = np.unique(context * symbols + text, return_inverse=True)
        kinds_of = np.zeros(gram.max() + 1, dtype=np.int64)
        kinds_of[gram] = context
        learn = slice(n - 1, trained)
        count = np.bincount(gram[learn], minlength=len(kinds_of))
        total = np.bincount(context[learn], minlength=context.max() + 1)
        kinds = np.bincount(kinds_of[count > 0], minlength=len(total))
        h = context[trained:]
        interpolated = (count[gram[trained:]] + kinds[h] * p) / np.maximum(total[h] + kinds[h], 1)
        p = np.where((total[h] > 0) & (before >= n - 1), interpolated, p)
        found[n] = float(np.exp(-np.log(p[1:]).mean() + beyond))
        context = np.concatenate([[0], gram[:-1]])
    return {f"{n}-gram": found[n] for n in orders}


# --- time-machine ------------------------------------------------------------------------------


def time_machine(
    cache: Path | None = None, url: str = URL, allow_http: bool = False, seconds: float = WHOLE_SECONDS
) -> tuple[bytes, str]:
    """The book's bytes and a note ('' or one line): the package's own, else from the folder `cache`, else downloaded.

    What is in the package and is not the book is passed over. A cached file with other bytes is not used and is
    replaced. A cache that cannot be written costs a download each time and the note says so. ValueError where there is
    none of the three.
    """
    with contextlib.suppress(OSError, EOFError, zlib.error):  # deleted, or damaged
        data = gzip.decompress(PACKAGED.read_bytes())
        if _digest(data) == SHA256:
            return data, ""
    if cache is None:
        try:
            import platformdirs
        except ModuleNotFoundError:  # a machine's own python, used as it is
            raise ValueError(f"{BOOK} is kept in a folder that the package platformdirs names: install it") from None

        cache = Path(platformdirs.user_cache_dir("recurrent-harness", appauthor=False))
    kept = cache / "timemachine.txt"
    try:
        data = _read(kept, SIZE)
    except ValueError:
        data = b""  # not there, or not it: either way the download below answers, or says why it cannot
    if _digest(data) == SHA256:
        return data, ""
    try:
        data = download(url, allow_http, seconds)
    except ValueError as error:
        raise ValueError(f"{BOOK} is neither in the package nor in the cache nor to be downloaded ({error})") from None
    try:
        _write(kept, data)
    except OSError as error:
        return data, f"{BOOK} was downloaded but could not be kept ({error.strerror})"
    return data, ""


def download(url: str = URL, allow_http: bool = False, seconds: float = WHOLE_SECONDS) -> bytes:
    """The book's bytes from `url`, size and SHA-256 checked, within `seconds` whatever the other side does.

    https only, redirects included; `allow_http` is for a local server in tests. ValueError says what failed.
    """
    came: list[bytes | Exception] = []

    def work() -> None:
        try:
            came.append(_get(url, ("https", "http") if allow_http else ("https",), seconds))
        except Exception as error:  # recorded: raised again below, in the caller's thread
            came.append(error)

    # A thread, because no timeout of a socket bounds a name look-up or headers sent a byte at a time.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not came:
        raise ValueError(f"{url}: took more than {seconds:g} s")
    data = came[0]
    if isinstance(data, Exception):
        raise ValueError(f"{url}: {' '.join(str(data).split()) or type(data).__name__}") from data
    if len(data) > SIZE:
        raise ValueError(f"{url}: more than the {SIZE:,} bytes of the book")
    if len(data) < SIZE:
        raise ValueError(f"{url}: {len(data):,} bytes of {SIZE:,}")
    if _digest(data) != SHA256:
        raise ValueError(f"{url}: other bytes than the book's (SHA-256 {_digest(data)[:16]}..., not {SHA256[:16]}...)")
    return data


def _get(url: str, schemes: tuple[str, ...], seconds: float) -> bytes:
    """At most SIZE + 1 bytes of that address, or of where it redirects to."""
    import urllib.request
    from urllib.error import HTTPError
    from urllib.parse import urljoin, urlsplit

    class Stay(urllib.request.HTTPRedirectHandler):
        # urllib would read the whole of a redirecting page, however long, and go on to http or ftp
        def redirect_request(self, *_: object) -> None:
            return None

    opener = urllib.request.build_opener(Stay)
    end = time.monotonic() + seconds
    for _ in range(REDIRECTS + 1):
        if urlsplit(url).scheme not in schemes:
            raise ValueError(f"refused {url}: not https")
        try:
            reply = opener.open(url, timeout=min(READ_SECONDS, seconds))
        except HTTPError as error:
            error.close()
            if error.code not in (301, 302, 303, 307, 308) or not error.headers["Location"]:
                raise
            url = urljoin(url, error.headers["Location"])
            continue
        data = bytearray()
        with reply:
            while len(data) <= SIZE and time.monotonic() < end:
                part = reply.read1(SIZE + 1 - len(data))  # read() would wait for all of it, past the end
                if not part:
                    return bytes(data)
                data += part
        if len(data) > SIZE:
            return bytes(data)
        raise ValueError(f"took more than {seconds:g} s")
    raise ValueError(f"more than {REDIRECTS} redirects")


def _write(path: Path, data: bytes) -> None:
    """Atomically: whoever looks finds the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _as_the_book(data: bytes) -> bytes:
    """The book's bytes where these are they, or differ by a byte order mark, line ends, spaces before them or blank
    lines at an end; else b''."""
    if _digest(data) == SHA256:
        return data
    if len(data) < 3 * SIZE:
        with contextlib.suppress(UnicodeDecodeError):
            lines = data.decode("utf-8-sig").splitlines()
            same = ("\n".join(line.rstrip() for line in lines).strip("\n") + "\n").encode()
            if _digest(same) == SHA256:
                return same
    return b""


def _resembles_the_book(text: str) -> bool:
    """Whether most passages of a text, a hundred of them, are the book's, but for punctuation, case and line ends."""
    with contextlib.suppress(OSError, EOFError, zlib.error):
        book = " ".join(re.findall("[a-z]+", gzip.decompress(PACKAGED.read_bytes()).decode("latin-1").lower()))
        step = max(len(text) // 100, 60)
        passages = [re.findall("[a-z]+", text[at : at + 60].lower())[1:-1] for at in range(0, len(text), step)]
        known = [" ".join(words) in book for words in passages if len(words) > 4]
        return 2 * sum(known) > len(passages)
    return False


# --- any file ----------------------------------------------------------------------------------


def _read(path: Path, largest: int) -> bytes:
    """The bytes of a regular file of at most `largest` bytes. ValueError, one line, for anything else."""
    name = repr(str(path))

    def check(status: os.stat_result) -> os.stat_result:
        if stat.S_ISDIR(status.st_mode):
            raise ValueError(f"{name} is a folder, not a text")
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{name} is not a regular file (a device, a pipe or a socket)")
        if status.st_size > largest:
            raise ValueError(f"{name} has {status.st_size:,} bytes, the most is {largest:,}: cut it")
        return status

    try:
        check(os.stat(path))  # before opening: opening a FIFO waits for a writer, a device may act
        # O_NONBLOCK: it may have become a FIFO since, hence the second check
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
            before = check(os.fstat(file.fileno()))
            data = file.read(largest + 1)
            after = os.fstat(file.fileno())
    except FileNotFoundError:
        raise ValueError(f"{unknown('text', str(path), (BOOK,))}, or the path of a UTF-8 file") from None
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(data) != after.st_size:
        raise ValueError(f"{name} changed while it was read: try again when nothing writes to it")
    return data


def _file(path: Path, data: bytes, how: str = "spaces", most: int = 0) -> Corpus:
    """Any text but the book; what may not be as its reader thinks is in its note."""
    name, text, notes = repr(str(path)), _decoded(path, data), []
    if _resembles_the_book(text):
        notes.append(f"{name} looks like the book but is not: it has other characters, and is read as any other text")
    if not unicodedata.is_normalized("NFC", text):
        notes.append(f"{name} is not in Unicode's composed form (NFC): a letter's accent may be a character of its own")
    return _corpus(_shown(path), data, text, how, most, "; ".join(notes), name)


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
    """What bytes that are not UTF-8 text most likely are, as iconv calls it; '' where they are no text."""
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
    words = (BOOK, EMBEDDED, *MISSING, "true", "false")
    return f"./{name}" if name in words or name.lower() in words or name.startswith(("=", "+", "-", "@")) else name


def _codes(text: str) -> npt.NDArray[np.int32]:
    """Code points: arrays, because a list of words would take 60 bytes a word."""
    import numpy as np

    return np.frombuffer(text.encode("utf-32-le"), dtype="<i4").astype(np.int32, copy=False)


def _prepared(text: str, how: str) -> npt.NDArray[np.int32]:
    """The characters that are trained on, as code points.

    lines: as the book's chapter does it: a line at a time, all but letters to one space, ends cut, lower case, and the
    lines joined with nothing between them (so words meet there). whole: as its later edition does: all but letters to
    one space, lower case. spaces: each run of white space, line ends too, to one space; case and punctuation stay.
    raw: the text as it is, lines and all. Letters are Unicode's, with their accents.
    """
    import numpy as np

    codes = _codes(text.lower() if how in ("lines", "whole") else text)
    if how == "raw" or not len(codes):
        return codes
    gap, end = np.zeros((2, int(codes.max()) + 1), dtype=bool)
    for code in np.flatnonzero(np.bincount(codes)).tolist():
        gap[code] = chr(code).isspace() if how == "spaces" else unicodedata.category(chr(code))[0] not in "LM"
        end[code] = how == "lines" and len(f"a{chr(code)}a".splitlines()) > 1
    gap, end = gap[codes], end[codes]
    first = gap.copy()
    first[1:] &= ~gap[:-1]  # of each run of what is not kept
    keep = ~gap | first
    if how == "lines":
        run = np.cumsum(first)
        cut = np.zeros(int(run[-1]) + 1, dtype=bool)
        cut[run[end]] = True
        cut[run[0]] |= gap[0]
        cut[run[-1]] |= gap[-1]
        keep &= ~(gap & cut[run])
    return np.where(gap, ord(" "), codes)[keep]


def _corpus(name: str, data: bytes, text: str, how: str, most: int = 0, note: str = "", file: str = "") -> Corpus:
    """A text as numbers. `file`: as errors call it."""
    import numpy as np

    codes = _prepared(text, how)
    hint = " where letters alone are kept: take --set text=spaces" * (how in ("lines", "whole"))
    if not len(codes):
        raise ValueError(f"{file or name} is empty{hint}")
    if codes.min() == codes.max():
        raise ValueError(f"{file or name} has one symbol only, {chr(int(codes[0]))!r}{hint or ': nothing to predict'}")
    counts = np.bincount(codes)
    present = np.flatnonzero(counts)
    chosen = present[np.argsort(-counts[present], kind="stable")][: most or None]
    index = np.zeros(len(counts), dtype=np.int32)
    index[chosen] = np.arange(1, len(chosen) + 1)
    tokens = index[codes]
    tokens.flags.writeable = False
    left_out, share = len(present) - len(chosen), float((tokens == 0).mean())
    if left_out:
        note += "; " * bool(note) + (
            f"{100 * share:.2g} % of the characters are none of the {most:,} that max_vocabulary={most} keeps: each is "
            f"predicted as {UNKNOWN}, and scored as one of {left_out:,} equally likely"
        )
    vocabulary = (UNKNOWN, *(chr(code) for code in chosen))
    return Corpus(name, _digest(data), tokens, vocabulary, None, note, how, left_out, share)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- embedded ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """What `embedded` is drawn from. Whole-number weights, so that every machine draws the same text.

    `words[k]` are class k's words, `weights[k]` how often each; `follows[a][b][k]` how often class k
    comes after a word of class a and then one of class b.
    """

    words: tuple[tuple[str, ...], ...]
    weights: tuple[tuple[int, ...], ...]
    follows: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def floor(self) -> float:
        """exp(nats per character) = exp(mean nats per word / mean characters per word, its space included)."""
        import numpy as np

        k = len(self.words)
        follows = np.array([[np.array(row) / sum(row) for row in rows] for rows in self.follows])
        step = np.zeros((k * k, k * k))  # of the pair of last classes, (a, b) -> (b, c)
        for a, b, c in np.ndindex(k, k, k):
            step[a * k + b, b * k + c] = follows[a, b, c]
        # stationary: pi step = pi, sum pi = 1
        system = np.vstack([step.T - np.eye(k * k), np.ones(k * k)])
        pairs = np.linalg.lstsq(system, np.append(np.zeros(k * k), 1.0), rcond=None)[0].reshape(k, k)
        shares = pairs.sum(axis=0)  # of words, by class
        within = [np.array(weights) / sum(weights) for weights in self.weights]
        nats = (pairs * _entropy(follows)).sum() + sum(s * _entropy(w) for s, w in zip(shares, within, strict=True))
        lengths = [w @ [len(word) + 1 for word in words] for w, words in zip(within, self.words, strict=True)]
        return math.exp(float(nats) / float(shares @ lengths))


def _entropy(p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of the last axis, in nats."""
    import numpy as np

    return np.asarray(-(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1))


def embedded() -> Corpus:
    """The first EMBEDDED_CHARACTERS of a text drawn from `source()`; `floor` is the source's, exactly.

    A slice of it scatters about the floor: the source itself, scored on 10,000 of its characters, lands
    within some 2% (two standard errors), so a model may be that much below it by luck.
    """
    import numpy as np

    made = source()
    # .random() alone: its stream is the one that numpy promises to keep
    random = np.random.Generator(np.random.PCG64(EMBEDDED_SEED + 1)).random
    a = b = length = 0
    text: list[str] = []
    while length < EMBEDDED_CHARACTERS:
        a, b = b, _pick(made.follows[a][b], random())
        word = made.words[b][_pick(made.weights[b], random())]
        text.append(word)
        length += len(word) + 1
    whole = " ".join([*text, ""])[:EMBEDDED_CHARACTERS]
    return replace(_corpus(EMBEDDED, whole.encode(), whole, "raw"), floor=made.floor, text="lines")


def source() -> Source:
    """The source of `embedded`: 5 classes of 40 words of 1 to 5 letters, consonants and vowels in turn."""
    import numpy as np

    random = np.random.Generator(np.random.PCG64(EMBEDDED_SEED)).random
    classes, size = 5, 40
    letters = ("aeiou", "tnshrdlcmwfgypbvkxjqz")
    seen: dict[str, None] = {}  # in order, each once: the word says its class
    while len(seen) < classes * size:
        kind, length = int(2 * random()), (1, 2, 2, 3, 3, 4, 4, 5)[int(8 * random())]
        word = ""
        for i in range(length):
            some = letters[(kind + i) % 2]
            word += some[int(len(some) * random())]
        seen[word] = None
    words = list(seen)
    # the j-th word of a class weighs about 240 / (j + 8); the likeliest next class 20 of 32
    weights = tuple(240 // (j + 8) + 1 for j in range(size))
    order = [sorted(range(classes), key=lambda _: random()) for _ in range(classes * classes)]
    follows = [tuple((20, 8, 2, 1, 1)[row.index(k)] for k in range(classes)) for row in order]
    return Source(
        tuple(tuple(words[k::classes]) for k in range(classes)),
        (weights,) * classes,
        tuple(tuple(follows[a * classes : (a + 1) * classes]) for a in range(classes)),
    )


def _pick(weights: Sequence[int], u: float) -> int:
    """The index at which the running sum of the weights passes u of their total, u in [0, 1)."""
    left = u * sum(weights)
    for index, weight in enumerate(weights):
        left -= weight
        if left < 0:
            return index
    return len(weights) - 1
