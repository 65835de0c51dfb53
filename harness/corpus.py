"""THE TEXT: time-machine, a UTF-8 file, or a text generated here; and what counting characters reaches on it.

Rule: a text is exactly its bytes. They come whole, checked and bounded, or one line says why not. No torch.

`embedded` is drawn from a source whose entropy is known exactly, so its charts can show the lowest
perplexity that any model can reach. It is a chain of words: 5 classes of 40 invented words; the class of
a word depends on the classes of the two words before it, the word on its class. Spaces end words and no
word has two classes, so whoever has read the text knows the source's state (nothing is hidden) and
entropy per character = entropy per word / mean length of a word with its space. Its memory is two words,
up to 12 characters: longer than the n-grams beside it see.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
import stat
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.grid import unknown

if TYPE_CHECKING:  # numpy costs the command line 0.1 s: imported where it is used
    import numpy as np
    import numpy.typing as npt

    Tokens = npt.NDArray[np.int16]

BOOK, EMBEDDED = "time-machine", "embedded"
URL = "https://d2l-data.s3-accelerate.amazonaws.com/timemachine.txt"
SIZE = 178_979
SHA256 = "8424dbd9532ac81f7e5f0b6add90e6952baea29158309d7d1bf3884f4e12c516"
LARGEST_FILE = 2**28  # bytes, 256 MiB: reading one takes about 16 times its size in memory at the peak
UNKNOWN = "<unk>"
SYMBOLS = 256  # most in a vocabulary, <unk> included
EMBEDDED_CHARACTERS = 100_000
EMBEDDED_SEED = 1895
READ_SECONDS, WHOLE_SECONDS = 10.0, 20.0  # of a download: silence, and all of it
REDIRECTS = 5


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text as numbers.

    `sha256` is of the source's bytes, before any preprocessing. `tokens` (characters,) is read-only, an
    index into `vocabulary` each; index 0 is <unk>, then by falling frequency, ties by code point. `floor`
    is the exact perplexity of the source, None where nobody knows it. `note` is '' or one line to show.
    """

    name: str
    sha256: str
    tokens: Tokens
    vocabulary: tuple[str, ...]
    floor: float | None = None
    note: str = ""

    @functools.cached_property
    def tokens_sha256(self) -> str:
        """Of what is trained on: tokens and vocabulary, after all preprocessing; '' where there is no text."""
        if not self.vocabulary:
            return ""
        return hashlib.sha256(json.dumps(self.vocabulary).encode() + self.tokens.astype("<i4").tobytes()).hexdigest()


NOTHING = Corpus("", "", None, ())  # type: ignore[arg-type]  # the text of what has none


def load(source: str | None = None, cache: Path | None = None, whole: bool = False) -> Corpus:
    """The text called `time-machine` or `embedded`, or the UTF-8 file at that path.

    None is time-machine where it can be had, else embedded with a note. `cache`: the folder that keeps the download, by
    default the platform's. `whole`: cleaned as the book's later edition does, all at once and not line by line.
    ValueError, one line, for a text that cannot be used.
    """
    if source == EMBEDDED:
        return embedded()
    if source is None or source == BOOK:
        try:
            data, note = time_machine(cache)
        except ValueError as error:
            if source is None:
                return replace(embedded(), note=f"{error}: fell back to the embedded text")
            raise ValueError(f"{error}. Have the file? CORPUS=path. Without it: CORPUS={EMBEDDED}") from None
        return replace(_book(data, whole), note=note)
    path = Path(source).expanduser()
    data = _read(path, LARGEST_FILE)
    return _book(data, whole) if _digest(data) == SHA256 else _file(path, data)


def encode(corpus: Corpus, text: str) -> Tokens:
    """The indices (len(text),) of the characters as they stand; one outside the vocabulary is <unk>, 0."""
    import numpy as np

    index = {symbol: i for i, symbol in enumerate(corpus.vocabulary)}
    return np.array([index.get(character, 0) for character in text], dtype=np.int16)


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
    of the vocabulary is equally likely. The first held-out characters have the end of `train` as context.
    Witten and Bell 1991, method C. Time: one sort of both parts an order, whatever the vocabulary.
    """
    import numpy as np

    if not orders or min(orders) < 1 or len(heldout) == 0:
        raise ValueError(f"anchors need orders from 1 up and a held-out character, not {orders} and {len(heldout)}")
    symbols, trained = len(corpus.vocabulary), len(train)
    text = np.concatenate([train, heldout]).astype(np.int64)
    context = np.zeros(len(text), dtype=np.int64)  # of each character: a number for the n - 1 before it
    p = np.full(len(heldout), 1 / symbols)
    found = {}
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
        p = np.where(total[h] > 0, interpolated, p)
        found[n] = float(np.exp(-np.log(p).mean()))
        context = np.concatenate([[0], gram[:-1]])
    return {f"{n}-gram": found[n] for n in orders}


# --- time-machine ------------------------------------------------------------------------------


def time_machine(
    cache: Path | None = None, url: str = URL, allow_http: bool = False, seconds: float = WHOLE_SECONDS
) -> tuple[bytes, str]:
    """The book's bytes and a note ('' or one line): from the folder `cache`, else downloaded into it.

    A cached file with other bytes is not used and is replaced. A cache that cannot be written costs a
    download each time and the note says so. ValueError where there is neither.
    """
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
        raise ValueError(f"{BOOK} is not in the cache and cannot be downloaded ({error})") from None
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


def _book(data: bytes, whole: bool = False) -> Corpus:
    """The chapter's preprocessing: a line at a time, runs of non-letters to one space, ends cut, lower case,
    and the lines joined with nothing between them (so words meet there, as in the book). Its later edition's, `whole`:
    runs of non-letters to one space, lower case, all at once."""
    text = data.decode("ascii")
    parts = [re.sub("[^A-Za-z]+", " ", part) for part in ([text] if whole else text.splitlines())]
    text = "".join(part if whole else part.strip() for part in parts).lower()
    return _corpus(BOOK, data, _codes(text))


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
        raise ValueError(f"{unknown('text', str(path), (BOOK, EMBEDDED))}, or the path of a UTF-8 file") from None
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(data) != after.st_size:
        raise ValueError(f"{name} changed while it was read: try again when nothing writes to it")
    return data


def _file(path: Path, data: bytes) -> Corpus:
    """Characters as they are, but for a byte order mark (dropped) and runs of whitespace (one space)."""
    import numpy as np

    name = repr(str(path))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start:,}") from None
    codes = _codes(text.removeprefix("\ufeff"))
    if not len(codes):
        raise ValueError(f"{name} is empty")
    space = np.zeros(int(codes.max()) + 1, dtype=bool)
    space[[code for code in np.flatnonzero(np.bincount(codes)) if chr(code).isspace()]] = True
    gap = space[codes]
    first = np.ones(len(codes), dtype=bool)
    first[1:] = ~(gap[1:] & gap[:-1])
    codes = np.where(gap, ord(" "), codes)[first]
    if codes.min() == codes.max():
        raise ValueError(f"{name} has one symbol only, {chr(int(codes[0]))!r}: nothing to predict")
    return _corpus(_shown(path), data, codes)


def _shown(path: Path) -> str:
    """A file's name as tables and pages may have it: what cannot be printed, or is no Unicode, as an escape.

    A file of that name is not the text of that name; and a spreadsheet would take = + - @ in front for a formula.
    """
    name = os.fsencode(path.name).decode("utf-8", "backslashreplace")
    name = printable(name)
    return f"./{name}" if name in (BOOK, EMBEDDED) or name.startswith(("=", "+", "-", "@")) else name


def _codes(text: str) -> npt.NDArray[np.int32]:
    """Code points: arrays, because a list of words would take 60 bytes a word."""
    import numpy as np

    return np.frombuffer(text.encode("utf-32-le"), dtype="<i4").astype(np.int32, copy=False)


def _corpus(name: str, data: bytes, codes: npt.NDArray[np.int32], floor: float | None = None) -> Corpus:
    import numpy as np

    counts = np.bincount(codes)
    present = np.flatnonzero(counts)
    chosen = present[np.argsort(-counts[present], kind="stable")][: SYMBOLS - 1]
    index = np.zeros(len(counts), dtype=np.int16)
    index[chosen] = np.arange(1, len(chosen) + 1)
    tokens = index[codes]
    tokens.flags.writeable = False
    return Corpus(name, _digest(data), tokens, (UNKNOWN, *(chr(code) for code in chosen)), floor)


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
    return _corpus(EMBEDDED, whole.encode(), _codes(whole), made.floor)


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
