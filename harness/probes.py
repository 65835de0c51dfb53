"""PROBES: tasks that ask for memory and nothing else, made by the batch; difficulty is a length.

Rule: a task is a function of (length, how many, generator) and knows no network. A network is trained on its seed's own
data and scored on data that is the same for every network. Every task says its score; what a network without memory
reaches (trivial) and what a perfect one does (optimal) are in grid.SCORES.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harness.grid import SCORED, Run
from harness.train import Outcome
from harness.watch import Keep, Progress, Watch
from variants.model import Model, counted

SCORE_SEED = 10**6  # of the generator that the sequences that are scored come from
UPDATES = 100  # in an epoch
SYMBOLS, KEPT = 8, 10  # of copy: different symbols, and how many are to be remembered

Batch = tuple[Tensor, Tensor, Tensor]  # inputs (T, n) or (T, n, d), answers (T, n), where they count (T, n)


def adding(length: int, n: int, rng: torch.Generator) -> Batch:
    """Two of `length` numbers are marked, one in each half; their sum is asked for last. Score: mean squared error.

        numbers   .71 .10 .49 .82 .33 .64        answer .10 + .64 = .74
        marks       0   1   0   0   0   1

    Numbers are uniform from 0 to 1, so always answering 1 has an error of 1/6. Hochreiter and Schmidhuber 1997.
    """
    numbers, marks = torch.rand(length, n, generator=rng), torch.zeros(length, n)
    half, columns = length // 2, torch.arange(n)
    first = torch.randint(half, (n,), generator=rng)
    second = torch.randint(half, length, (n,), generator=rng)
    marks[first, columns] = marks[second, columns] = 1.0
    counts = torch.zeros(length, n, dtype=torch.bool)
    counts[-1] = True
    return torch.stack([numbers, marks], -1), (numbers * marks).sum(0).expand(length, n), counts


def copy(length: int, n: int, rng: torch.Generator) -> Batch:
    """Ten symbols, `length` blanks, a signal: then the symbols again, in order. Score: share of them that is right.

        input    c a h b . . . . . . ! . . .        (here four symbols and six blanks)
        answer                       c a h b

    There are 8 symbols, so guessing is right 1/8 of the time. Hochreiter and Schmidhuber 1997; Arjovsky et al. 2016.
    """
    symbols = torch.randint(SYMBOLS, (KEPT, n), generator=rng)
    X = torch.full((length + 2 * KEPT, n), SYMBOLS)
    X[:KEPT] = symbols
    X[length + KEPT] = SYMBOLS + 1
    return _recall(X, symbols)


def selective_copy(length: int, n: int, rng: torch.Generator) -> Batch:
    """As copy, the ten symbols scattered among `length` blanks: when to remember is in the input. Score: as copy.

        input    . c . . a h . . b . ! . . .        (here four symbols and six blanks)
        answer                       c a h b

    Gu and Dao 2023, after Jing et al. 2019.
    """
    symbols = torch.randint(SYMBOLS, (KEPT, n), generator=rng)
    X = torch.full((length + 2 * KEPT, n), SYMBOLS)
    where = torch.rand(n, length + KEPT, generator=rng).argsort(1)[:, :KEPT].sort(1).values.T
    X[where, torch.arange(n)] = symbols
    X[length + KEPT] = SYMBOLS + 1
    return _recall(X, symbols)


def counting(length: int, n: int, rng: torch.Generator) -> Batch:
    """a^k b^k, k from 1 to `length`: after the first b every next symbol is certain. Score: share of strings all right.

        input    | a a a b b b        answer (from the first b on)    b b |

    What is scored is longer than all that is trained on: k from length + 1 to 2 length. Always b is right for none.
    Gers and Schmidhuber 2001; Weiss et al. 2018.
    """
    return _strings(torch.randint(1, length + 1, (n,), generator=rng), length)


def counting_on(length: int, n: int, rng: torch.Generator) -> Batch:
    """What `counting` is scored on."""
    return _strings(torch.randint(length + 1, 2 * length + 1, (n,), generator=rng), 2 * length)


def _strings(k: Tensor, longest: int) -> Batch:
    t = torch.arange(2 * longest + 2)[:, None]
    text = torch.where(t <= k, 1, torch.where(t <= 2 * k, 2, 0))
    text[0] = 0
    X, Y = text[:-1], text[1:]
    return X, Y, (t[:-1] > k) & (t[:-1] <= 2 * k)


def _recall(X: Tensor, symbols: Tensor) -> Batch:
    """The last KEPT steps answer with the symbols."""
    Y, counts = torch.zeros_like(X), torch.zeros_like(X, dtype=torch.bool)
    Y[-KEPT:], counts[-KEPT:] = symbols, True
    return X, Y, counts


@dataclass(frozen=True)
class Probe:
    """A task: how its data is made, its inputs and outputs, its lengths on a CPU and, as published, on a GPU."""

    make: Callable[[int, int, torch.Generator], Batch]
    inputs: int
    outputs: int
    lengths: tuple[tuple[int, ...], tuple[int, ...]]
    scored: Callable[[int, int, torch.Generator], Batch] | None = None  # where it is not as what is trained on


PROBES = {
    "adding": Probe(adding, 2, 1, ((10, 25, 50), (200, 400, 600))),
    "copy": Probe(copy, SYMBOLS + 2, SYMBOLS, ((5, 10, 20), (50, 100, 200))),
    "selective_copy": Probe(selective_copy, SYMBOLS + 2, SYMBOLS, ((5, 10, 20), (50, 100, 200))),
    "counting": Probe(counting, 3, 3, ((5, 10, 20), (50, 100, 200)), counting_on),
}


def train(
    runs: Sequence[Run], progress: Progress = lambda share, score: None, keep: Keep | None = None
) -> list[Outcome]:
    """As harness.train.train, on a probe: perplexities stay None, `score` is the task's, on data never trained on."""
    protocol, device = runs[0].setting, runs[0].device
    probe = PROBES[protocol.task]
    model = Model(
        runs[0].variant, probe.inputs, protocol.hidden, [run.seed for run in runs], protocol.init, device=device,
        engine=runs[0].engine, update_bias=protocol.update_bias, horizon=protocol.num_steps, outputs=probe.outputs,
    )  # fmt: skip
    generators = [torch.Generator().manual_seed(run.seed) for run in runs]
    lost = torch.zeros(len(runs), dtype=torch.bool, device=device)
    first, updates = 0, protocol.epochs * UPDATES
    watch = Watch(device, progress, keep)
    if found := watch.load():
        model.restore(found)
        first, lost = int(found["update"]), torch.from_numpy(found["lost"]).to(device)
        for generator, state in zip(generators, found["generators"], strict=True):
            generator.set_state(torch.from_numpy(state))
    watch.start()
    for update in range(first, updates):
        drawn = [probe.make(protocol.num_steps, protocol.batch_size, g) for g in generators]
        X, Y, counts = together(drawn, device)
        state = model.cell.begin(protocol.batch_size)
        _, norms, _ = model.learn(X, Y, state, protocol.lr, protocol.clip, adam=True, counts=counts)
        lost.logical_or_(~norms.isfinite())
        if (update + 1) % UPDATES == 0 and bool(lost.all()):
            break
        if update + 1 < updates:
            watch.between((update + 1) / updates, lambda done=update + 1: {  # type: ignore[misc]
                **model.snapshot(), "update": np.array(done), "lost": lost.cpu().numpy(),
                "generators": np.stack([g.get_state().numpy() for g in generators]),
            })  # fmt: skip
    watch.stop()
    progress(1.0, None)
    scores = score(model.eval(), protocol.task, protocol.num_steps, len(runs), device, protocol.batch_size)
    return [
        Outcome(
            parameters=model.parameters_per_seed, train_s=watch.seconds, score=None if gone else value,
            tokens=protocol.epochs * UPDATES * protocol.batch_size * len(X),
            error="diverged: the gradient is not a number" if gone else "",
        )
        for value, gone in zip(scores, (lost | ~torch.tensor(scores, device=device).isfinite()).tolist(), strict=True)
    ]  # fmt: skip


def together(batches: Sequence[Batch], device: str) -> Batch:
    """Each seed's own batch side by side: (T, S, n)."""
    X, Y, counts = (torch.stack(parts, 1).to(device) for parts in zip(*batches, strict=True))
    return X, Y, counts


@torch.no_grad()
def score(model: Model, task: str, length: int, seeds: int, device: str, batch_size: int = SCORED) -> list[float]:
    """Of every seed, on the same SCORED sequences, `batch_size` at a time: an engine may be unable to take more."""
    X, Y, counts = together([fresh(task, length)] * seeds, device)
    outputs = torch.cat([model(part, model.cell.begin(part.shape[2]))[0] for part in X.split(batch_size, 2)], 2)
    if outputs.shape[-1] == 1:
        return [float(x) for x in counted(outputs, Y, counts)]
    right = (outputs.argmax(-1) == Y) | ~counts
    if task == "counting":
        return [float(x) for x in right.all(0).double().mean(1)]
    return [float(x) for x in ((right & counts).sum((0, 2)) / counts.sum((0, 2)))]


@functools.cache
def fresh(task: str, length: int) -> Batch:
    """Sequences that no training has seen but by chance."""
    probe = PROBES[task]
    return (probe.scored or probe.make)(length, SCORED, torch.Generator().manual_seed(SCORE_SEED))
