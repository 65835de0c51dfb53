"""Load a text by its name or from a file, a task from a file. What cannot be used is a ValueError of one line."""

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
from typing import TYPE_CHECKING

from harness.data import download
from harness.data.corpus import BOOK, CHARACTERS, EMBEDDED, PYTHON_DOCS, Corpus, digest, from_text, printable
from harness.data.embedded import embedded
from harness.experiments.runs import MISSING
from harness.formatting import join_or

if TYPE_CHECKING:  # it imports NumPy
    from harness.experiments.tasks import Task

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
    source, hint = shlex.quote(str(path)), ""
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        wrong = f"is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start:,}"
    else:
        if not (strange := re.search(rb"\0|\x1b\$[@AB]", data)):  # the second: ISO-2022-JP, whose bytes are all ASCII
            return text
        what = "a NUL" if strange[0] == b"\0" else "an escape"
        wrong = f"is no text: {what} at offset {strange.start():,}"
        if 0 < 100 * data.count(0) <= len(data):
            hint = f"; without every NUL: tr -d '\\000' < {source} > {target}"
    if found := _encodings(data):
        first, *others = found
        also = f" (it may also be {join_or(others)})" if others else ""
        hint = f"; if it is {first}{also}, iconv -f {first} -t UTF-8 {source} > {target}"
        if first == "UTF-8":
            hint = f"; without what is damaged: iconv -c -f UTF-8 -t UTF-8 {source} > {target}"
    raise ValueError(f"{name} {wrong}{hint}")


CJK, KANA, HANGUL = "[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]", "[\u3040-\u30ff]", "[\uac00-\ud7af]"
CYRILLIC, GREEK = "[\u0430-\u045f\u0491]", "[\u03ac-\u03ce]"  # small letters: in another encoding they are large
HEBREW, ARABIC, THAI = "[\u05d0-\u05ea]", "[\u060c-\u0652]", "[\u0e01-\u0e5b]"
LATIN = "(?<=[a-z])[\u00df-\u00f6\u00f8-\u017e]|[\u00df-\u00f6\u00f8-\u017e](?=[a-z])|[\u2013-\u201e]"
ENCODINGS = (  # as iconv and as Python call it, what it would be full of, the least share of that
    ("SHIFT_JIS", "cp932", KANA, 0.2), ("EUC-JP", "euc_jp", KANA, 0.2), ("EUC-KR", "cp949", HANGUL, 0.9),
    ("GBK", "gb2312", CJK, 0.8), ("BIG5", "cp950", CJK, 0.8), ("GBK", "gbk", CJK, 0.8),
    ("GB18030", "gb18030", CJK, 0.5), ("UTF-16LE", "utf-16-le", CJK, 0.8), ("UTF-16BE", "utf-16-be", CJK, 0.8),
    ("UTF-16LE", "utf-16-le", HANGUL, 0.8), ("UTF-16BE", "utf-16-be", HANGUL, 0.8),
    ("CP1251", "cp1251", CYRILLIC, 0.7), ("KOI8-R", "koi8_r", CYRILLIC, 0.7), ("KOI8-U", "koi8_u", CYRILLIC, 0.7),
    ("CP866", "cp866", CYRILLIC, 0.7), ("ISO-8859-5", "iso8859_5", CYRILLIC, 0.7),
    ("CP1253", "cp1253", GREEK, 0.7), ("ISO-8859-7", "iso8859_7", GREEK, 0.7),
    ("CP1255", "cp1255", HEBREW, 0.8), ("ISO-8859-8", "iso8859_8", HEBREW, 0.8),
    ("CP1256", "cp1256", ARABIC, 0.8), ("ISO-8859-6", "iso8859_6", ARABIC, 0.8), ("TIS-620", "tis_620", THAI, 0.9),
    ("CP1252", "cp1252", LATIN, 0.6), ("ISO-8859-1", "latin-1", LATIN, 0.6), ("ISO-8859-15", "iso8859_15", LATIN, 0.6),
    ("CP1250", "cp1250", LATIN, 0.6), ("ISO-8859-2", "iso8859_2", LATIN, 0.6), ("CP1254", "cp1254", LATIN, 0.6),
    ("MACINTOSH", "mac_roman", LATIN, 0.6), ("CP850", "cp850", LATIN, 0.6),
)  # fmt: skip
ZEROS = {"0101": "UTF-16LE", "1010": "UTF-16BE", "0111": "UTF-32LE", "1110": "UTF-32BE", "0011": "UTF-32LE",
         "1100": "UTF-32BE"}  # fmt: skip


def _encodings(data: bytes) -> list[str]:
    """Return what bytes that are not UTF-8 text may be, as iconv calls it, the likeliest first; none: no text."""
    for name, marks in (
        ("UTF-8", (codecs.BOM_UTF8,)), ("UTF-32", (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)),
        ("UTF-16", (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)),
    ):  # fmt: skip
        if data.startswith(marks):
            return [name]
    some = data[: 2**16]
    if re.search(rb"\x1b\$[@AB]", some) and some.isascii():
        return ["ISO-2022-JP"]
    zeros = "".join(str(int(some[k::4].count(0) > 0.3 * len(some) / 4)) for k in range(4))
    if zeros in ZEROS:
        return [ZEROS[zeros]] if _read(some, ZEROS[zeros]) else []
    text = some.decode("utf-8", "replace")
    damaged = text.count("\ufffd")
    if damaged and len(re.findall("[^\0-\x7f]", text)) > 20 * damaged:
        return ["UTF-8"]
    shares: dict[str, float] = {}  # of what it would be full of
    for name, codec, full_of, least in ENCODINGS:
        beyond = re.findall(r"[^\0-\x7f\s]", text := _read(some, codec))
        share = len(re.findall(full_of, text)) / max(len(beyond), 1)
        within = len(re.findall("(?<=[A-Za-z])[^\0-\x7f]|[^\0-\x7f](?=[A-Za-z])", text))
        accents = full_of != LATIN and 3 * within > len(beyond)  # of Latin words, taken for letters
        if full_of == HEBREW:
            share *= 1.01  # without large letters: those of another alphabet would have some
        if share >= least and not accents:
            shares[name] = max(1.0 if full_of == KANA else share, shares.get(name, 0.0))
    best = max(shares.values(), default=0.0)
    found = sorted(
        (name for name in shares if shares[name] > 0.85 * best or name == "GB18030"), key=lambda n: -shares[n]
    )
    return (found or _wide(some) or ["CP1252", "ISO-8859-1"] * bool(_read(some, "cp1252")))[:6]


def _read(data: bytes, codec: str) -> str:
    """The text that bytes are in an encoding, whose last character may be cut off; '' where they are none."""
    with contextlib.suppress(UnicodeDecodeError):
        text = codecs.getincrementaldecoder(codec)().decode(data)
        return "" if re.search("[\0-\x08\x0e-\x1f\x7f-\x9f\ue000-\uf8ff]", text) else text
    return ""


def _wide(data: bytes) -> list[str]:
    """UTF-16 without a mark: a text's characters come from few blocks of 256, so its high bytes are few."""
    kinds = [len(set(data[k::2])) for k in range(2)]
    name = "UTF-16BE" if kinds[0] < kinds[1] else "UTF-16LE"
    text = _read(data, name)
    known = all(unicodedata.category(c) != "Cn" for c in text)
    return [name] * bool(text and known and len(data) % 2 == 0 and 2 * min(kinds) <= max(kinds))


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


# ---- a task of one's own ---------------------------------------------------------------------------


def task_file(word: str) -> tuple[str, str] | None:
    """('./my_task.py', 'name') of './my_task.py:name', '' for every task of the file; None for what is no file."""
    found = re.fullmatch(r"(.*\.py)(?::([^\W\d]\w*))?", word, re.DOTALL)
    if found:
        return found[1], found[2] or ""
    if "/" in word or word.startswith("~"):
        raise ValueError(f"{word!r} is no Python file: a task is one like ./my_task.py, which may be followed by :name")
    return None


def own_tasks(place: str, only: str = "", check: bool = True) -> list[str]:
    """Import a file that declares tasks as experiments/tasks.py does, and return their names. ValueError says why not.

    The file is read anew each time. `check`: that data and declaration agree, see `checked`.
    """
    from harness.experiments.tasks import PLACES, TASKS
    from variants import outside
    from variants.fingerprint import fingerprint
    from variants.registry import one_line, unknown

    path = Path(os.path.abspath(os.path.expanduser(place))).resolve()
    if not path.is_file():
        raise ValueError(f"no file {place!r}{': it is a folder' * path.is_dir()}: a task is one like ./my_task.py")
    for name in [name for name, where in PLACES.items() if where == str(path)]:
        del TASKS[name], PLACES[name]
    before = dict(TASKS)
    try:
        outside.imported(str(path), anew=True)
        found = [name for name, task in TASKS.items() if before.get(name) is not task]
        if taken := [name for name in found if name in before]:
            where = PLACES.get(taken[0], "one of this package")
            raise ValueError(f"{place}: a task {taken[0]!r} is there already, {where}: give the function another name")
        if not found:
            raise ValueError(f"{place} declares no task: put @task(...) above a function, from "
                             "harness.experiments.tasks import task; `new task NAME` writes one")  # fmt: skip
        if only and only not in found:
            raise ValueError(unknown(f"task in {place}", only, found))
        for name in found if check else ():
            checked(TASKS[name], place)
    except ValueError:
        _undo(before)
        raise
    except (Exception, SystemExit) as error:
        _undo(before)
        raise ValueError(f"{place} cannot be used: {one_line(error)}") from None
    PLACES.update(dict.fromkeys(found, str(path)))
    fingerprint.cache_clear()  # the file may have been edited
    return [only] if only else found


def _undo(before: dict[str, Task]) -> None:
    from harness.experiments.tasks import TASKS

    TASKS.clear()
    TASKS.update(before)


def checked(task: Task, place: str) -> None:
    """ValueError where a task's sequences are not as it declares them, or a guess without memory beats its chance."""
    import numpy as np

    def wrong(why: str) -> ValueError:
        return ValueError(f"{place}: task {task.name}: {why}")

    for length in dict.fromkeys((task.least, task.length, task.longer * task.length)):
        X, Y, asked = task.make(length, 4, np.random.default_rng(0))
        again = task.make(length, 4, np.random.default_rng(0))
        if not all(np.array_equal(a, b) for a, b in zip((X, Y, asked), again, strict=True)):
            raise wrong("the same generator gives other sequences: draw by the generator it is given alone")
        if Y.shape[1:] != (4,) or X.shape[:2] != Y.shape or asked.shape != Y.shape or asked.dtype != bool:
            raise wrong(f"of 4 sequences it gives inputs {X.shape}, answers {Y.shape}, counts {asked.shape} of "
                        f"{asked.dtype}: (T, 4) or (T, 4, inputs), (T, 4), and bool (T, 4)")  # fmt: skip
        if not asked.any(0).all():
            raise wrong(f"at length {length} a sequence asks nothing: counts is True where an answer is scored")
        whole = np.issubdtype(X.dtype, np.integer)
        if whole and (X.ndim != 2 or X.min() < 0 or X.max() >= task.inputs):
            raise wrong(
                f"its inputs are symbols from {X.min()} to {X.max()}: declare inputs={int(X.max()) + 1} or less"
            )
        if not whole and X.shape[2:] != (task.inputs,):
            raise wrong(f"it declares {task.inputs} inputs, and gives {X.shape[2:] or 'none'} numbers a step")
        if task.outputs > 1 and (not np.issubdtype(Y.dtype, np.integer) or Y.min() < 0 or Y.max() >= task.outputs):
            raise wrong(
                f"it declares {task.outputs} outputs: its answers are whole numbers from 0 to {task.outputs - 1}"
            )
    chance = task.chance(task.length)
    if task.is_solved(chance) or not task.is_solved(task.optimum):
        raise wrong(f"a score of {task.solved:g} counts as solved, which is not between chance, {chance:g}, and "
                    f"optimum, {task.optimum:g}")  # fmt: skip
    if (best := _without_memory(task)) is not None:
        beats = best < 0.9 * chance if task.lower_is_better else best > chance + 0.05
        if beats:
            raise wrong(f"it declares chance {chance:g}, and a guess from the current input alone scores {best:.3g}")


def _without_memory(task: Task) -> float | None:
    """The score of the best guess from the current input and the step, over the scored sequences; None if unknown."""
    import numpy as np

    X, Y, asked = task.fresh(task.length)
    if task.whole:
        return None
    step = np.broadcast_to(np.arange(len(Y))[:, None], Y.shape)[asked]
    symbol = X[asked] if X.ndim == 2 else np.zeros(asked.sum(), dtype=int)
    keys = np.stack([step, symbol], 1)
    _, group = np.unique(keys, axis=0, return_inverse=True)
    answers, sizes = Y[asked], np.bincount(group.ravel())
    if task.outputs == 1:
        means = np.bincount(group.ravel(), answers) / sizes
        return float(((answers - means[group.ravel()]) ** 2).mean())
    counts = np.zeros((len(sizes), task.outputs))
    np.add.at(counts, (group.ravel(), answers), 1)
    # with few sequences a key the commonest answer of each would be luck
    often = sizes >= 200
    return float(counts[often].max(1).sum() / sizes[often].sum()) if often.any() else None
