"""Generate the text `embedded`, for tests, from a source whose entropy is known exactly.

So a chart of it can show the lowest perplexity that any model can reach. It is a chain of words: 5 classes of 40
invented words; the class of a word depends on the classes of the two words before it, the word on its class. Spaces end
words and no word has two classes, so whoever has read the text knows the source's state (nothing is hidden) and entropy
per character = entropy per word / mean length of a word with its space. Its memory is two words, up to 12 characters:
longer than the n-grams beside it see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from harness.data.corpus import CHARACTERS, EMBEDDED, WORDS, Corpus, from_text

if TYPE_CHECKING:  # numpy costs the command line 0.1 s: imported where it is used
    import numpy as np
    import numpy.typing as npt

EMBEDDED_CHARACTERS = 100_000
EMBEDDED_SEED = 1895


@dataclass(frozen=True)
class Source:
    """The source that `embedded` is drawn from. Whole-number weights, so that every machine draws the same text.

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
    """Return the entropy over the last axis, in nats."""
    import numpy as np

    return np.asarray(-(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1))


def embedded(unit: str = CHARACTERS) -> Corpus:
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
    found = from_text(EMBEDDED, whole.encode(), whole, "raw", unit=unit)
    return replace(found, floor=None if unit == WORDS else made.floor, text="lines")  # it is that of a character


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
