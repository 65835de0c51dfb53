"""Represent a text as numbers: what is done to its characters, its vocabulary, its parts. No torch."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # numpy costs the command line 0.1 s: imported where it is used
    import numpy as np
    import numpy.typing as npt

    Tokens = npt.NDArray[np.int32]

BOOK, EMBEDDED = "time-machine", "embedded"
UNKNOWN = "<unk>"


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


def from_text(name: str, data: bytes, text: str, how: str, most: int = 0, note: str = "", file: str = "") -> Corpus:
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
    return Corpus(name, digest(data), tokens, vocabulary, None, note, how, left_out, share)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
