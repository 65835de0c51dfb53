"""Represent a text as numbers: what is done to its characters, its vocabulary, its parts. No torch."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # numpy costs the command line 0.1 s: imported where it is used
    import numpy as np
    import numpy.typing as npt

    Tokens = npt.NDArray[np.int32]

BOOK, EMBEDDED, PYTHON_DOCS = "time-machine", "embedded", "python-docs"
UNKNOWN = "<unk>"
CHARACTERS, BYTES, WORDS = "characters", "bytes", "words"  # what a token is
LETTERS = ("lines", "whole")  # preparations of a text that keep letters alone, in lower case


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text as numbers.

    `sha256` is of the source's bytes, before any preprocessing; `text` says which: see `_prepared`. `tokens`
    is read-only, an index into `vocabulary` each; index 0 is <unk>, then by falling frequency, ties by
    code point. `left_out`: how many different symbols are not in the vocabulary, so are <unk>; `unknown_share` of all
    tokens is. `floor` is the exact perplexity of the source, None where nobody knows it. `note` is '' or one line to
    show. `unit`: what a token is. `lengths`: characters of the prepared text that each token stands for, white space
    before a word included; None where it is one each.
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
    unit: str = CHARACTERS
    lengths: Tokens | None = None

    @functools.cached_property
    def ends(self) -> npt.NDArray[np.int64]:
        """(tokens,) characters of the text up to and with each token."""
        import numpy as np

        return np.arange(1, len(self.tokens) + 1) if self.lengths is None else np.cumsum(self.lengths, dtype=np.int64)

    @property
    def characters(self) -> int:
        """Characters of the text as it is trained on."""
        return int(self.ends[-1])

    @property
    def unknown_nats(self) -> float:
        """Return the nats that an unknown symbol costs beyond <unk>, so that none is scored as if it were known: all
        that were left out are equally likely, p(symbol) = p(<unk>) / left_out.
        """
        return math.log(self.left_out) if self.left_out else 0.0

    @functools.cached_property
    def tokens_sha256(self) -> str:
        """Return the digest of what is trained on: tokens and vocabulary, after all preprocessing; '' where there is no
        text.
        """
        if not self.vocabulary:
            return ""
        known = json.dumps(self.vocabulary) + str(self.left_out or "") + self.unit * (self.lengths is not None)
        return hashlib.sha256(known.encode() + self.tokens.astype("<i4").tobytes()).hexdigest()


NOTHING = Corpus("", "", None, ())  # type: ignore[arg-type]  # the text of what has none


def encode(corpus: Corpus, text: str) -> Tokens:
    """The indices of a text's tokens, its characters as they stand; one outside the vocabulary is <unk>, 0."""
    import numpy as np

    index = {symbol: i for i, symbol in enumerate(corpus.vocabulary)}
    symbols: Iterable[str] = text
    if corpus.unit == BYTES:
        symbols = map(_byte, text.encode())
    elif corpus.unit == WORDS:
        codes = _codes(text)
        symbols = (text[begin:end] for begin, end in zip(*_words(codes), strict=True)) if len(codes) else ()
    return np.array([index.get(symbol, 0) for symbol in symbols], dtype=np.int32)


def decode(corpus: Corpus, tokens: Sequence[int] | Tokens) -> str:
    """The text of some indices; <unk> is written out. Words are set apart by spaces, their punctuation too."""
    symbols = [corpus.vocabulary[int(token)] for token in tokens]
    if corpus.unit == BYTES:
        known = {_byte(b): bytes([b]) for b in range(256)}
        return b"".join(known.get(symbol, symbol.encode()) for symbol in symbols).decode(errors="replace")
    return (" " if corpus.unit == WORDS else "").join(symbols)


def visible(corpus: Corpus, tokens: Sequence[int] | Tokens) -> list[str]:
    """Each token as tables and pages may have it: a line end, or what else cannot be printed, as its escape."""
    return [printable(corpus.vocabulary[int(token)]) for token in tokens]


def printable(text: str) -> str:
    """The text, every character that cannot be printed as its escape, a line end as `\\n`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def split(corpus: Corpus, train_characters: int, heldout_characters: int, between: int = 0) -> tuple[Tokens, Tokens]:
    """The first `train_characters`; the `heldout_characters` that follow them and those `between`. Views, read-only."""
    check_length(corpus, len(corpus.tokens), train_characters, heldout_characters, between)
    need = train_characters + between + heldout_characters
    return corpus.tokens[:train_characters], corpus.tokens[train_characters + between : need]


def part_sizes(
    corpus: Corpus, train_characters: int, heldout_characters: int, between: int = 0
) -> tuple[int, int, int]:
    """Tokens of the part to learn from, of the part held out and of that between, which are cut by characters.

    So every choice of tokens has the same text to learn from, and the same held out. ValueError where it is too short.
    """
    import numpy as np

    if corpus.lengths is None:
        return train_characters, heldout_characters, between
    check_length(corpus, corpus.characters, train_characters, heldout_characters, between)
    ends = train_characters, train_characters + between, train_characters + between + heldout_characters
    first, middle, last = (int(at) for at in np.searchsorted(corpus.ends, ends, side="right"))
    if min(first, last - middle) < 2 or (between > 0 and middle - first < 2):
        raise ValueError(f"each part of the text needs two {corpus.unit}: {first:,} to train, {middle - first:,} to "
                         f"validate, {last - middle:,} held out")  # fmt: skip
    return first, last - middle, middle - first


def check_length(corpus: Corpus, have: int, train_characters: int, heldout_characters: int, between: int) -> None:
    """ValueError where a text of so many characters, `have`, is too short for its parts."""
    need = train_characters + between + heldout_characters
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


def windows(characters: int, batch_size: int, num_steps: int, unit: str = CHARACTERS) -> int:
    """Training windows in an epoch: what is left at the largest random offset, so every epoch has as many."""
    count = ((characters - num_steps - 1) // batch_size) // num_steps
    if count < 1:
        need = batch_size * num_steps + num_steps + 1
        longer = f"train_characters={need}" if unit == CHARACTERS else "train_characters to more"
        raise ValueError(
            f"{characters:,} {unit} are too few for one batch: batch_size {batch_size} x num_steps "
            f"{num_steps} + {num_steps} + 1 = {need:,}; take --set {longer} or a smaller batch_size"
        )
    return count


def _codes(text: str) -> npt.NDArray[np.int32]:
    """Code points: arrays, because a list of words would take 60 bytes a word."""
    import numpy as np

    return np.frombuffer(text.encode("utf-32-le"), dtype="<i4").astype(np.int32, copy=False)


def _prepared(text: str, how: str, case: str = "own", punctuation: str = "own") -> npt.NDArray[np.int32]:
    """The characters that are trained on, as code points. `case` and `punctuation`: own, as `how` has them.

    lines: as the book's chapter does it: a line at a time, all but letters to one space, ends cut, lower case, and the
    lines joined with nothing between them (so words meet there). whole: as its later edition does: all but letters to
    one space, lower case. spaces: each run of white space, line ends too, to one space; case and punctuation stay.
    raw: the text as it is, lines and all. Letters are Unicode's, with their accents. Punctuation is all but letters
    and white space, digits too.
    """
    import numpy as np

    lower = how in LETTERS if case == "own" else case == "lower"
    drop = how in LETTERS if punctuation == "own" else punctuation == "drop"
    codes = _codes(text.lower() if lower else text)
    if (how == "raw" and not drop) or not len(codes):
        return codes
    gap, end = np.zeros((2, int(codes.max()) + 1), dtype=bool)
    for code in np.flatnonzero(np.bincount(codes)).tolist():
        space, letter = chr(code).isspace(), unicodedata.category(chr(code))[0] in "LM"
        gap[code] = (not letter if how != "raw" else not (letter or space)) if drop else space
        end[code] = how == "lines" and len(f"a{chr(code)}a".splitlines()) > 1
    gap, end = gap[codes], end[codes]
    if how == "raw":
        return codes[~gap]
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


def _words(codes: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where each word of a text, at least one code point long, begins and ends: runs of letters, digits and
    apostrophes between them. Every other character but white space is a word of its own, and so is a line end."""
    import numpy as np

    kinds = np.zeros(int(codes.max()) + 1, dtype=np.int8)  # 0 white space, 1 in a word, 2 apostrophe, 3 alone
    for code in np.flatnonzero(np.bincount(codes)).tolist():
        c = chr(code)
        within = unicodedata.category(c)[0] in "LMN"
        kinds[code] = 1 if within else 2 if c in "'\u2019" else 0 if c.isspace() and c != "\n" else 3
    kind = np.concatenate([[0], kinds[codes], [0]])
    inside = (kind[1:-1] == 2) & (kind[:-2] == 1) & (kind[2:] == 1)
    kind = np.where(inside, 1, np.where(kind[1:-1] == 2, 3, kind[1:-1]))
    before, after = np.concatenate([[0], kind[:-1]]), np.concatenate([kind[1:], [0]])
    begins = (kind == 3) | ((kind == 1) & (before != 1))
    ends = (kind == 3) | ((kind == 1) & (after != 1))
    return np.flatnonzero(begins), np.flatnonzero(ends) + 1


def _byte(value: int) -> str:
    """A byte as the vocabulary has it: its character in ASCII, else like <0xE9>."""
    return chr(value) if value < 128 else f"<0x{value:02X}>"


def _in_bytes(codes: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int32], list[str], Tokens]:
    """Split a text in UTF-8: each token as a number, what numbers stand for, the characters that begin with each."""
    import numpy as np

    found = np.frombuffer(codes.astype("<i4").tobytes().decode("utf-32-le").encode(), dtype=np.uint8)
    return found.astype(np.int32), [_byte(b) for b in range(256)], ((found & 0xC0) != 0x80).astype(np.int32)


def _in_words(codes: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int32], list[str], Tokens]:
    """Split as `_in_bytes` does, a token a word: with each are counted the characters since the word before it."""
    import numpy as np

    begins, ends = _words(codes)
    text = codes.astype("<i4").tobytes().decode("utf-32-le")
    words = [text[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
    symbols = sorted(set(words))
    index = {word: k for k, word in enumerate(symbols)}
    lengths = np.diff(ends, prepend=0)
    return np.array([index[word] for word in words], dtype=np.int32), symbols, lengths.astype(np.int32)


def from_text(
    name: str, data: bytes, text: str, how: str, most: int = 0, note: str = "", file: str = "",
    unit: str = CHARACTERS, case: str = "own", punctuation: str = "own",
) -> Corpus:  # fmt: skip
    """A text as numbers. `file`: as errors call it. `unit`: what a token is."""
    import numpy as np

    # of lines joined with nothing between them, words would meet
    codes = _prepared(text, "whole" if how == "lines" and unit == WORDS else how, case, punctuation)
    hint = " where letters alone are kept: take --set text=spaces" * (how in LETTERS)
    if not len(codes):
        raise ValueError(f"{file or name} is empty{hint}")
    if codes.min() == codes.max():
        raise ValueError(f"{file or name} has one symbol only, {chr(int(codes[0]))!r}{hint or ': nothing to predict'}")
    symbols: Sequence[str] = ()
    lengths = None
    if unit != CHARACTERS:
        codes, symbols, lengths = (_in_bytes if unit == BYTES else _in_words)(codes)
        if not len(codes) or codes.min() == codes.max():
            raise ValueError(f"{file or name} has fewer than two different {unit}: nothing to predict")
    counts = np.bincount(codes)
    present = np.flatnonzero(counts)
    chosen = present[np.argsort(-counts[present], kind="stable")][: most or None]
    index = np.zeros(len(counts), dtype=np.int32)
    index[chosen] = np.arange(1, len(chosen) + 1)
    tokens = index[codes]
    tokens.flags.writeable = False
    if lengths is not None:
        lengths.flags.writeable = False
    left_out, share = len(present) - len(chosen), float((tokens == 0).mean())
    if left_out:
        note += "; " * bool(note) + (
            f"{100 * share:.2g} % of the {unit} are none of the {most:,} that max_vocabulary={most} keeps: each is "
            f"predicted as {UNKNOWN}, and scored as one of {left_out:,} equally likely"
        )
    vocabulary = (UNKNOWN, *(symbols[code] if symbols else chr(code) for code in chosen))
    return Corpus(name, digest(data), tokens, vocabulary, None, note, how, left_out, share, unit, lengths)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
