"""Make tasks that ask what a gate is for: sequences with an exact answer, an exact chance and an exact optimum.

One rule: a task is one function with one declaration above it, and knows no network. It is called with a length, a
number of sequences and a NumPy generator, and gives `(inputs, answers, counts)`, each with time first:

    inputs   (T, n) int symbols, or (T, n, d) float numbers
    answers  (T, n) int classes, or float where the task has one output
    counts   (T, n) bool: the steps that are asked and scored

`chance` is what the best predictor scores that sees only the current input; `optimum` what a perfect one scores.
To add a task, write its function here. Its name, its options, its table and its test of chance follow.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from importlib.abc import ResourceLoader
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Batch = tuple[Array, Array, Array]
Make = Callable[[int, int, np.random.Generator], Batch]

SCORED, SCORE_SEED = 1_000, 10**6  # sequences that are scored, and the seed they come from: never trained on
SYMBOLS = 8  # different symbols of the recall tasks
KEPT = 10  # symbols to be remembered in copy and selective_copy


@dataclass(frozen=True)
class Task:
    """One task. `length` on a CPU and, as published, on a GPU; `longer` is the factor of the second scored length.

    `solved`: the score that counts as solved. Where `chance` is above `optimum` the score is an error, and lower is
    better. `asks`: what it asks of a network, as in "for ...".
    """

    name: str
    make: Make
    inputs: int
    outputs: int
    length: int
    published: int
    chance: Callable[[int], float]
    asks: str
    optimum: float = 1.0
    solved: float = 0.99
    score_is: str = "share of answers right"
    whole: bool = False  # a sequence is right only where all of its answers are
    scored: Make | None = None  # the sequences that are scored, where they are not drawn as those trained on
    longer: int = 2
    least: int = 2  # length that makes sense
    most: int = 100_000
    linear: float | None = None  # score of a linear model of all inputs, of a task that is not made up
    needs: str = ""  # what has to be installed: such a task is trained on only where it is asked for

    @property
    def lower_is_better(self) -> bool:
        return self.optimum < self.chance(self.length)

    def is_solved(self, score: float) -> bool:
        """Whether a score reaches the threshold; a score that is not a number does not."""
        return score <= self.solved if self.lower_is_better else score >= self.solved

    def fresh(self, length: int) -> Batch:
        """The scored sequences of one length, the same for every network."""
        return (self.scored or self.make)(length, SCORED, np.random.default_rng([SCORE_SEED, length]))


TASKS: dict[str, Task] = {}
PLACES: dict[str, str] = {}  # of those that lie in a file of the user's: name -> path; see data/load.py


def task(
    inputs: int,
    outputs: int,
    length: int,
    published: int,
    chance: float | Callable[[int], float],
    asks: str,
    **more: object,
) -> Callable[[Make], Make]:
    """Declare the function below as the task of its name."""

    def declared(make: Make) -> Make:
        known = chance if callable(chance) else lambda _: chance
        name = make.__name__
        TASKS[name] = Task(name, make, inputs, outputs, length, published, known, asks, **more)  # type: ignore[arg-type]
        return make

    return declared


def _all(inputs: Array) -> Array:
    return np.ones(inputs.shape[:2], bool)


def _last(inputs: Array, steps: int = 1) -> Array:
    counts = np.zeros(inputs.shape[:2], bool)
    counts[-steps:] = True
    return counts


def _running(choices: int) -> Callable[[int], float]:
    """Chance where each step is asked, the first answer is the first input, and the others are uniform."""
    return lambda length: (1 + (length - 1) / choices) / length


# ---- four tasks, one answer each: `make ablate` runs them -----------------------------------------------------------


def _permutations(things: int, even: bool = False) -> Array:
    """The product table of the permutations of some things, [first, then] -> index; `even`: of the even ones."""
    group = list(itertools.permutations(range(things)))
    if even:
        group = [g for g in group if sum(a > b for a, b in itertools.combinations(g, 2)) % 2 == 0]
    index = {g: k for k, g in enumerate(group)}
    return np.array([[index[tuple(first[i] for i in then)] for then in group] for first in group])


S3, A5 = _permutations(3), _permutations(5, even=True)


def _products(table: Array, length: int, n: int, rng: np.random.Generator) -> Batch:
    inputs = rng.integers(len(table), size=(length, n))
    answers = inputs.copy()
    for t in range(1, length):
        answers[t] = table[answers[t - 1], inputs[t]]
    return inputs, answers, _all(inputs)


@task(6, 6, 32, 128, _running(6), "tracking a state")
def s3(length: int, n: int, rng: np.random.Generator) -> Batch:
    """Give a permutation of three things a step; ask for the product of all so far, at each step.

        input    (12)  (23)      e         (123)
        answer   (12)  (12)(23)  (12)(23)  (12)(23)(123)

    The word problem of S3. Every step is asked, the first too: without it gated networks learn it far less often.
    Expected to tell gates from none. Found: either gate solves it at length 32 within 2,000 updates, none does not,
    though weights written by hand are exact at any length. Merrill, Petty and Sabharwal 2024,
    https://arxiv.org/abs/2404.08819.
    """
    return _products(S3, length, n, rng)


@task(2 * SYMBOLS + 1, SYMBOLS, 64, 256, 1 / SYMBOLS, "long memory")
def delayed_recall(length: int, n: int, rng: np.random.Generator) -> Batch:
    """Mark one of the symbols, at t'; ask for it at the last step. Exercise 1 of the book's chapter.

        input    c a H b e a !         (H is a marked h)
        answer               h

    t' is uniform over all steps but the last. Expected to need the update gate, memory over many steps. Found: solved
    with the update gate, not without it within 2,000 updates.
    """
    inputs = rng.integers(SYMBOLS, size=(length, n))
    where, columns = rng.integers(length - 1, size=n), np.arange(n)
    answers = np.broadcast_to(inputs[where, columns], (length, n)).copy()
    inputs[where, columns] += SYMBOLS
    inputs[-1] = 2 * SYMBOLS
    return inputs, answers, _last(inputs)


ORDER = 3  # symbols that decide an answer of table3
LOOKED_UP = np.random.default_rng(0).integers(SYMBOLS, size=(SYMBOLS,) * ORDER)  # [before last, ..., last] -> answer


def _best_by_last_symbol(length: int) -> float:
    """Chance of table3: for each last symbol, the answer that stands most often in its part of the table."""
    most = [np.bincount(LOOKED_UP[..., last].ravel(), minlength=SYMBOLS).max() for last in range(SYMBOLS)]
    return float(sum(most) / LOOKED_UP.size)


@task(SYMBOLS, SYMBOLS, 16, 64, _best_by_last_symbol, "choosing within short memory", least=3)
def table3(length: int, n: int, rng: np.random.Generator) -> Batch:
    """Look up each answer by the last three symbols, in a table that was drawn once.

        input    c a h b e
        answer       T[c,a,h] T[a,h,b] T[h,b,e]

    Nothing is to be kept for longer than three steps. Expected to need the reset gate: which part of the past is read
    depends on the input. Found: solved with it, not without it within 2,000 updates at the same hidden size; with the
    parameters of the GRU the plain RNN solves it as well.
    """
    inputs = rng.integers(SYMBOLS, size=(length, n))
    answers, counts = np.zeros_like(inputs), _all(inputs)
    answers[ORDER - 1 :] = LOOKED_UP[tuple(inputs[k : length - ORDER + 1 + k] for k in range(ORDER))]
    counts[: ORDER - 1] = False
    return inputs, answers, counts


REGISTERS, VALUES = 3, 4


@task(
    REGISTERS * (REGISTERS - 1) + REGISTERS + REGISTERS * VALUES, VALUES, 24, 96, 1 / VALUES,
    "moving one part of the state to another", least=4,
)  # fmt: skip
def registers(length: int, n: int, rng: np.random.Generator) -> Batch:
    """Set three registers to values, copy one to another, read one: ask for what is read, at each read.

        input    a:=2  b:=3  c:=0  b:=a  a:=1  read b
        answer                                 2

    A step sets (.2), copies (.5) or reads (.3); each register is set first, and the last step reads. Expected to
    need both gates. Found: solved with both; with one of them not within 2,000 updates.
    """
    kind = rng.random((length, n))
    to = rng.integers(REGISTERS, size=(length, n))
    other = (to + rng.integers(1, REGISTERS, size=(length, n))) % REGISTERS
    value = rng.integers(VALUES, size=(length, n))
    sets, reads = kind < 0.2, kind >= 0.7
    sets[:REGISTERS], reads[:REGISTERS], to[:REGISTERS] = True, False, np.arange(REGISTERS)[:, None]
    sets[-1], reads[-1] = False, True
    held, columns = np.zeros((REGISTERS, n), int), np.arange(n)
    answers = np.zeros((length, n), int)
    for t in range(length):
        answers[t] = held[to[t], columns]
        new = np.where(sets[t], value[t], held[other[t], columns])
        held[to[t], columns] = np.where(reads[t], answers[t], new)
    copies = REGISTERS * (REGISTERS - 1)
    copied = (REGISTERS - 1) * to + (other - to) % REGISTERS - 1
    inputs = np.where(sets, copies + REGISTERS + to * VALUES + value, np.where(reads, copies + to, copied))
    return inputs, answers, reads


# ---- memory by length, as published ---------------------------------------------------------------------------------


@task(
    2, 1, 50, 400, 1 / 6, "long memory of numbers", optimum=0.0, solved=1e-3,
    score_is="mean squared error",
)  # fmt: skip
def adding(length: int, n: int, rng: np.random.Generator) -> Batch:
    """Mark two of the numbers, one in each half; ask for their sum at the last step.

        numbers   .71 .10 .49 .82 .33 .64
        marks       0   1   0   0   0   1        answer .10 + .64 = .74

    Numbers are uniform from 0 to 1, so always answering 1 has an error of 1/6. Expected to need the update gate. Found:
    solved with it, not without it within 2,000 updates. Hochreiter and Schmidhuber 1997.
    """
    numbers, marks = rng.random((length, n)), np.zeros((length, n))
    half, columns = length // 2, np.arange(n)
    marks[rng.integers(half, size=n), columns] = 1.0
    marks[rng.integers(half, length, size=n), columns] = 1.0
    answers = np.broadcast_to((numbers * marks).sum(0), (length, n))
    return np.stack([numbers, marks], -1), answers, _last(numbers)


def _recall(inputs: Array, symbols: Array) -> Batch:
    """The last KEPT steps answer with the symbols."""
    answers = np.zeros_like(inputs)
    answers[-KEPT:] = symbols
    return inputs, answers, _last(inputs, KEPT)


@task(SYMBOLS + 2, SYMBOLS, 10, 100, 1 / SYMBOLS, "long memory of a sequence")
def copy(length: int, n: int, rng: np.random.Generator) -> Batch:
    """Give ten symbols, `length` blanks and a signal; ask for the symbols again, in order.

        input    c a h b . . . . . . ! . . .        (here four symbols and six blanks)
        answer                       c a h b

    Expected to need the update gate. Found: far from solved within 2,000 updates at 32 units, by every variant, so that
    it tells no gate apart at this budget. Hochreiter and Schmidhuber 1997;
    Arjovsky et al. 2016.
    """
    symbols = rng.integers(SYMBOLS, size=(KEPT, n))
    inputs = np.full((length + 2 * KEPT, n), SYMBOLS)
    inputs[:KEPT] = symbols
    inputs[length + KEPT] = SYMBOLS + 1
    return _recall(inputs, symbols)


@task(SYMBOLS + 2, SYMBOLS, 10, 100, 1 / SYMBOLS, "memory that the input opens")
def selective_copy(length: int, n: int, rng: np.random.Generator) -> Batch:
    """Copy, the ten symbols scattered among `length` blanks: the input says when to remember.

        input    . c . . a h . . b . ! . . .        (here four symbols and six blanks)
        answer                       c a h b

    Expected to need the update gate. Found: solved by no variant within 2,000 updates; five symbols separate as
    delayed_recall does, for ten times its updates. Gu and Dao 2023, after Jing et al. 2019.
    """
    symbols = rng.integers(SYMBOLS, size=(KEPT, n))
    inputs = np.full((length + 2 * KEPT, n), SYMBOLS)
    where = np.sort(rng.random((length + KEPT, n)).argsort(0)[:KEPT], 0)
    inputs[where, np.arange(n)] = symbols
    inputs[length + KEPT] = SYMBOLS + 1
    return _recall(inputs, symbols)


def _strings(k: Array, longest: int) -> Batch:
    t = np.arange(2 * longest + 2)[:, None]
    text = np.where(t <= k, 1, np.where(t <= 2 * k, 2, 0))
    text[0] = 0
    return text[:-1], text[1:], (t[:-1] > k) & (t[:-1] <= 2 * k)


def _longer_strings(length: int, n: int, rng: np.random.Generator) -> Batch:
    """The strings `counting` is scored on: longer than all that are trained on."""
    return _strings(rng.integers(length + 1, 2 * length + 1, size=n), 2 * length)


@task(
    3, 3, 10, 100, 0.0, "counting beyond the trained length",
    score_is="share of longer strings all right", whole=True, scored=_longer_strings,
)  # fmt: skip
def counting(length: int, n: int, rng: np.random.Generator) -> Batch:
    """Give a^k b^k, k from 1 to `length`; after the first b every next symbol is certain, and asked.

        input    | a a a b b b        answer (from the first b on)    b b |

    Scored on k from length + 1 to 2 length. Expected to tell a bounded state from an unbounded one. Found: nn.lstm
    solves it with 4 of 10 seeds, the GRU and its parts with none, so that it tells no gate of the GRU apart. Gers and
    Schmidhuber 2001; Weiss et al. 2018, https://arxiv.org/abs/1805.04908.
    """
    return _strings(rng.integers(1, length + 1, size=n), length)


# ---- state tracking -------------------------------------------------------------------------------------------------


@task(60, 60, 12, 64, _running(60), "tracking a state in a group that is not solvable")
def a5(length: int, n: int, rng: np.random.Generator) -> Batch:
    """Compose as s3 does, with the sixty even permutations of five things.

        input    (123)  (345)        (12)(34)
        answer   (123)  (123)(345)   (123)(345)(12)(34)

    Expected to be s3's harder case. Found: solved by no variant at 32 units within 2,000 updates: it tells nothing
    here. Merrill, Petty and Sabharwal 2024: no fixed number of layers of a network without a recurrent state can do it.
    """
    return _products(A5, length, n, rng)


MODULUS = 5


@task(MODULUS, MODULUS, 32, 128, _running(MODULUS), "tracking a sum")
def sum_mod(length: int, n: int, rng: np.random.Generator) -> Batch:
    """Give a number from 0 to 4 a step; ask for the sum of all so far mod 5, at each step.

    input    3 4 0 2
    answer   3 2 2 4

    Expected to tell as s3 does. Found: it does: either gate solves it, none does not within 2,000 updates.
    """
    inputs = rng.integers(MODULUS, size=(length, n))
    return inputs, inputs.cumsum(0) % MODULUS, _all(inputs)


@task(2, 2, 40, 256, _running(2), "tracking a parity", longer=6)
def parity(length: int, n: int, rng: np.random.Generator) -> Batch:
    """Give a bit a step; ask for the parity of the ones so far, at each step.

        input    1 0 1 1
        answer   1 1 0 1

    Expected to tell linear recurrences with gates from 0 to 1 from others. Found: min_gru does not solve it; the GRU
    and its parts do, without any gate ten times later. Grazzi et al. 2024, https://arxiv.org/abs/2411.12537. Scored at
    40 and 240 steps.
    """
    inputs = rng.integers(2, size=(length, n))
    return inputs, inputs.cumsum(0) % 2, _all(inputs)


RESET = 1 / 16  # share of the steps of parity_reset that reset


def _parity_reset_chance(length: int) -> float:
    """A reset is answered 0; else the parity is the bit where the step before reset or was none, else even odds."""
    return (1 - RESET + (length - 1) * (1 - RESET) * (1 + RESET) / 2) / length + RESET


@task(3, 2, 32, 128, _parity_reset_chance, "clearing a part of the state")
def parity_reset(length: int, n: int, rng: np.random.Generator) -> Batch:
    """Give bits and, one step in sixteen, a reset; ask for the parity of the ones since the last reset, at each step.

    input    1 0 1 | 1 0
    answer   1 1 0 0 1 1

    Expected to need the reset gate, which clears. Found: solved by every variant within 200 updates: it does not tell
    the gates apart.
    """
    bits, resets = rng.integers(2, size=(length, n)), rng.random((length, n)) < RESET
    ones = (bits * ~resets).cumsum(0)
    before = np.maximum.accumulate(np.where(resets, ones, 0), 0)  # ones up to the last reset
    return np.where(resets, 2, bits), (ones - before) % 2, _all(bits)


# ---- memory that the input opens and reads --------------------------------------------------------------------------

LAGS = 4


@task(LAGS * SYMBOLS, SYMBOLS, 16, 64, 1 / SYMBOLS, "choosing within short memory", least=5)
def lag(length: int, n: int, rng: np.random.Generator) -> Batch:
    """Give a symbol and a number from 1 to 4 a step; ask for the symbol that many steps ago, from the fifth step on.

        input    a1 c1 h2 b1 e3
        answer               c

    Expected to need the reset gate. Found: the variant without update gate solves it; the GRU does where its update
    gate starts out open, else with 2 of 10 seeds; without reset gate none does within 2,000 updates.
    """
    symbols, back = rng.integers(SYMBOLS, size=(length, n)), rng.integers(1, LAGS + 1, size=(length, n))
    answers = np.take_along_axis(symbols, np.maximum(np.arange(length)[:, None] - back, 0), 0)
    counts = _all(symbols)
    counts[:LAGS] = False
    return (back - 1) * SYMBOLS + symbols, answers, counts


IGNORED = 0.98  # share of the steps of flip_flop that are to be ignored


@task(5, 2, 128, 512, 1 / 2, "a latch")
def flip_flop(length: int, n: int, rng: np.random.Generator) -> Batch:
    """Write a bit, ignore a bit, or read: ask for the bit written last, at each read.

        input    w1 i0 i0 r i1 w0 i1 r
        answer            1          0

    .98 of the steps are ignored; the first writes and the last reads. Expected to need the update gate. Found: solved
    by every variant, without update gate with 9 of 10 seeds; it does not tell the gates apart. Liu et al. 2023,
    https://arxiv.org/abs/2306.00946.
    """
    bits, kind = rng.integers(2, size=(length, n)), rng.random((length, n))
    writes, reads = kind < (1 - IGNORED) / 2, kind > (1 + IGNORED) / 2
    writes[0], reads[0], writes[-1], reads[-1] = True, False, False, True
    last = np.maximum.accumulate(np.where(writes, np.arange(length)[:, None], 0), 0)
    inputs = np.where(reads, 4, np.where(writes, bits, 2 + bits))
    return inputs, np.take_along_axis(bits, last, 0), reads


KEYS, ASKED = 16, 2


@task(
    KEYS + SYMBOLS,
    SYMBOLS,
    4,
    8,
    1 / SYMBOLS,
    "recall by content",
    most=KEYS,
)
def pair_recall(length: int, n: int, rng: np.random.Generator) -> Batch:
    """Give `length` pairs of a key and a value, then two of the keys again: ask for the value of each.

        input    K3 v1 K7 v4 K1 v4 K9 v0 K7 K9
        answer                           4  0

    Arora et al. 2023 (MQAR), https://arxiv.org/abs/2312.04927. At most 16 pairs: the keys are all different.
    Expected to tell what recall by content needs. Found: solved by no variant at 32 units within 3,000 updates.
    """
    keys = rng.random((KEYS, n)).argsort(0)[:length]
    values = rng.integers(SYMBOLS, size=(len(keys), n))
    asked = rng.random((len(keys), n)).argsort(0)[:ASKED]
    pairs = np.stack([keys, KEYS + values], 1).reshape(2 * len(keys), n)
    inputs = np.concatenate([pairs, np.take_along_axis(keys, asked, 0)])
    answers = np.zeros_like(inputs)
    answers[-ASKED:] = np.take_along_axis(values, asked, 0)
    return inputs, answers, _last(inputs, ASKED)


DEEPEST = 4


@functools.cache
def _dyck2_chance(length: int) -> float:
    """After an opening bracket its kind is the answer. After a closing one: none, or a kind, whichever is likelier."""
    depth, opened, emptied, uncovered = np.eye(DEEPEST + 1)[0], 0.0, 0.0, 0.0
    up = np.array([1.0] + [0.5] * (DEEPEST - 1) + [0.0])
    for _ in range(length):
        closing = depth * (1 - up)
        opened, emptied, uncovered = opened + (depth * up).sum(), emptied + closing[1], uncovered + closing[2:].sum()
        depth = np.append(0, (depth * up)[:-1]) + np.append(closing[1:], 0)
    return float((opened + max(emptied, uncovered / 2)) / length)


@task(4, 3, 32, 128, _dyck2_chance, "a stack of depth four")
def dyck2(length: int, n: int, rng: np.random.Generator) -> Batch:
    """Give brackets of two kinds, at most four deep; ask for the kind now open, or none, at each step.

    input    ( [ ] [ ] )
    answer   ( [ ( [ ( -

    Expected to need a gate, as a stack is kept and cleared. Found: solved by every variant, without reset gate and
    without any about twice as late: speed alone tells them apart.
    """
    kind, up = rng.integers(2, size=(length, n)), rng.random((length, n)) < 0.5
    inputs, answers = np.zeros((length, n), int), np.zeros((length, n), int)
    depth, stack, columns = np.zeros(n, int), np.zeros((DEEPEST + 1, n), int), np.arange(n)  # stack[0]: none, 0
    for t in range(length):
        opening = (depth == 0) | (up[t] & (depth < DEEPEST))
        inputs[t] = np.where(opening, kind[t], 1 + stack[depth, columns])
        depth = np.where(opening, depth + 1, depth - 1)
        stack[depth, columns] = np.where(opening, 1 + kind[t], stack[depth, columns])
        answers[t] = stack[depth, columns]
    return inputs, answers, _all(inputs)


# ---- a real one ---------------------------------------------------------------------------------------------------

DIGITS_SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
DIGITS_SCORED = 500  # the last ones of the file, by other writers than the 1,297 before


@functools.cache
def digits() -> tuple[Array, Array]:
    """Return the pixels (1797, 8, 8) from 0 to 1 and the classes (1797,) of scikit-learn's own file, in its order.

    ValueError, one line, where it is not installed, or the file is another. scikit-learn itself is not imported.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise ValueError("the tasks on digits need scikit-learn's file: pip install 'gru-bench[digits]'")
    path = found.origin.removesuffix("__init__.py") + "datasets/data/digits.csv.gz"
    try:  # as Python reads a package's own files, a zipped one's too
        data = found.loader.get_data(path) if isinstance(found.loader, ResourceLoader) else b""
    except OSError:
        data = b""
    if hashlib.sha256(data).hexdigest() != DIGITS_SHA256:
        raise ValueError(f"{path} is not the file of digits that is known here: pip install 'gru-bench[digits]'")
    table = np.loadtxt(gzip.decompress(data).decode("ascii").splitlines(), delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8) / 16, table[:, -1].astype(int)


def _read(which: Array, steps: int) -> Batch:
    """Some digits, in as many steps each, asked at the last."""
    pixels, classes = digits()
    inputs = pixels[which].reshape(len(which), steps, -1).transpose(1, 0, 2)
    return inputs, np.broadcast_to(classes[which], inputs.shape[:2]).copy(), _last(inputs)


def _drawn(n: int, rng: np.random.Generator) -> Array:
    return rng.integers(len(digits()[1]) - DIGITS_SCORED, size=n)


def _held_out(length: int, n: int, rng: np.random.Generator) -> Batch:
    return _read(np.arange(len(digits()[1]))[-DIGITS_SCORED:], length)


REAL = {"score_is": "share of digits right", "solved": 0.9, "scored": _held_out, "longer": 1, "linear": 0.866,
        "needs": "digits"}  # fmt: skip


@task(8, 10, 8, 8, 0.102, "reading a digit", least=8, most=8, **REAL)
def digits_rows(length: int, n: int, rng: np.random.Generator) -> Batch:
    """Read a handwritten digit of 8 x 8 pixels row by row; ask at the last row which it is.

    1,297 to learn from, drawn again and again, and the file's last 500, other writers', are scored. Chance is the
    commonest of them; `linear` is least squares on all 64 pixels. Expected to tell little of gates: 8 steps are short.
    Alpaydin and Kaynak 1998, https://doi.org/10.24432/C50P49, as scikit-learn has it.
    """
    return _read(_drawn(n, rng), length)


@task(1, 10, 64, 64, 0.102, "reading a digit pixel by pixel", least=64, most=64, **REAL)
def digits_pixels(length: int, n: int, rng: np.random.Generator) -> Batch:
    """Classify digits_rows, pixel by pixel: 64 steps of one number, so that what came first must be kept for long.

    After Le et al. 2015, https://arxiv.org/abs/1504.00941, who read larger ones. Expected to need the update gate.
    """
    return _read(_drawn(n, rng), length)


# ---- how they are written -------------------------------------------------------------------------------------------


def _cycles(things: int, even: bool = False) -> list[str]:
    """The permutations of `_permutations` as products of cycles, 'e' for the one that moves nothing."""
    names = []
    for g in itertools.permutations(range(things)):
        if even and sum(a > b for a, b in itertools.combinations(g, 2)) % 2:
            continue
        left, found = set(range(things)), ""
        while left:
            first = at = min(left)
            cycle = list[str]()
            while at in left:
                left.remove(at)
                cycle.append(str(at + 1))
                at = g[at]
            assert at == first
            found += f"({''.join(cycle)})" * (len(cycle) > 1)
        names.append(found or "e")
    return names


@functools.cache
def symbols(name: str) -> tuple[list[str], list[str]]:
    """How each input and each answer of a task is written, as its docstring writes them; numbers where it does not."""
    letters, bits, digits = list("abcdefgh"), list("01"), [str(k) for k in range(60)]
    registers = "abc"
    copies = [f"{a}:={b}" for a in registers for b in [*registers, *registers][registers.index(a) + 1 :][:2]]
    sets = [f"{a}:={v}" for a in registers for v in range(VALUES)]
    known: dict[str, tuple[list[str], list[str]]] = {
        "s3": (_cycles(3), _cycles(3)), "a5": (_cycles(5, True), _cycles(5, True)), "table3": (letters, letters),
        "delayed_recall": ([*letters, *(x.upper() for x in letters), "?"], letters),
        "registers": ([*copies, *(f"read {a}" for a in registers), *sets], digits[:VALUES]),
        "copy": ([*letters, ".", "?"], letters), "selective_copy": ([*letters, ".", "?"], letters),
        "counting": (list("|ab"), list("|ab")), "parity": (bits, bits), "parity_reset": ([*bits, "|"], bits),
        "lag": ([f"{x}{back}" for back in range(1, LAGS + 1) for x in letters], letters),
        "flip_flop": ([f"write {b}" for b in bits] + [f"ignore {b}" for b in bits] + ["read"], bits),
        "pair_recall": ([f"K{k}" for k in range(KEYS)] + [f"v{k}" for k in range(SYMBOLS)],
                        [f"v{k}" for k in range(SYMBOLS)]),
        "dyck2": (list("([)]"), ["none", "(", "["]),
    }  # fmt: skip
    task = TASKS[name]
    return known.get(name, (digits[: task.inputs], digits[: task.outputs]))


QUESTIONS = {  # asked of a reader, who sees one sequence up to a step that is asked
    "s3": "Each step permutes three things. Which permutation is their product, in the order written?",
    "a5": "Each step permutes five things. Which permutation is their product, in the order written?",
    "delayed_recall": "One letter was marked: the capital. Which was it?",
    "table3": "The answer follows from the last three letters, by a table drawn once at random: you can only guess.",
    "registers": "Three registers a, b, c are set, copied (b:=a) and read. What does the last read give?",
    "copy": "Ten letters, blanks, a signal; then the letters are asked again in order. Which is the tenth?",
    "selective_copy": "Ten letters lie among blanks; after the signal they are asked in order. Which is the tenth?",
    "counting": "As many b follow as there were a, then |. What comes next?",
    "sum_mod": "What is the sum of all numbers, modulo 5?",
    "parity": "Is the number of ones even (0) or odd (1)?",
    "parity_reset": "Is the number of ones since the last | even (0) or odd (1)?",
    "lag": "Each step is a letter and a number. Which letter stood that many steps before the last?",
    "flip_flop": "Which bit was written last?",
    "pair_recall": "Each key K is followed by its value v. Which value belongs to the last key?",
    "dyck2": "Which bracket is still open at the end, the innermost, if any is?",
}
