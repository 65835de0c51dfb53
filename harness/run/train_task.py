"""Train on a task until it is solved or the budget ends, and score at the trained length and beyond.

One rule: data are a function of (seed, epoch), so a training that goes on from a checkpoint sees what it would have
seen, and a seed's numbers do not depend on which others train beside it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from harness.experiments.runs import Run
from harness.experiments.tasks import SYMBOLS, TASKS, Batch, Task
from harness.run import diagnostics
from harness.run.outcome import Outcome
from harness.run.progress import CheckpointStore, Monitor, Progress
from variants.model import Model

UPDATES = 100  # in an epoch: between two checks
HELD = 2  # checks in a row that reach the threshold: then it is solved, at the first of them


def train(
    runs: Sequence[Run], progress: Progress = lambda share, score: None, keep: CheckpointStore | None = None
) -> list[Outcome]:
    """Train runs that differ in their seed alone, side by side. One `Outcome` a run, in their order.

    `score` and `score_longer` are those of the check at which a seed's training ended: where it had solved the task
    (with `stop` solved), or at the end of the budget. `solved_after` is in updates, None where it was not solved.
    """
    setting, device, seeds = runs[0].setting, runs[0].device, len(runs)
    task = TASKS[setting.task]
    model = Model(
        runs[0].variant, task.inputs, setting.hidden, [run.seed for run in runs], setting.init, device=device,
        engine=runs[0].engine, update_bias=setting.update_bias, horizon=setting.num_steps, outputs=task.outputs,
        layers=setting.layers, dropout=setting.dropout,
    )  # fmt: skip
    diverged = torch.zeros(seeds, dtype=torch.bool, device=device)
    checks = np.full((setting.epochs, seeds), math.nan)
    ends = np.zeros(seeds, dtype=int)  # epoch at which each seed's training ended, 0 while it has not
    longer = np.full(seeds, math.nan)
    first, watch = 0, Monitor(device, progress, keep)
    if found := watch.load():
        model.restore(found)
        first, diverged = int(found["epoch"]), torch.from_numpy(found["diverged"]).to(device)
        checks, ends, longer = found["checks"], found["ends"], found["longer"]
    for epoch in range(first, setting.epochs):
        watch.start()
        X, Y, counts = stacked([drawn(task, setting.num_steps, setting.batch_size, run.seed, epoch) for run in runs])
        X, Y, counts = X.to(device), Y.to(device), counts.to(device)
        model.train()
        for x, y, asked in zip(*(part.split(setting.batch_size, 2) for part in (X, Y, counts)), strict=True):
            state = model.cell.begin(setting.batch_size)
            _, norms, _ = model.learn(x, y, state, setting.lr, setting.clip, adam=True, counts=asked)
            diverged.logical_or_(~norms.isfinite())
            watch.alive()
        watch.stop()
        model.eval()
        checks[epoch] = score(model, task, setting.num_steps, setting.batch_size)
        gone = diverged.cpu().numpy()
        checks[epoch, gone] = math.nan
        last = epoch + 1 == setting.epochs
        held = [solved(task, checks[: epoch + 1, s]) > 0 and setting.stop == "solved" for s in range(seeds)]
        new = (ends == 0) & (np.array(held) | gone | last)
        if new.any():
            ends[new] = epoch + 1
            longer[new] = score(model, task, task.longer * setting.num_steps, setting.batch_size)[new]
        watch.sign((epoch + 1) / setting.epochs, float(checks[epoch, 0]))
        if ends.all():
            break
        watch.start()
        watch.between((epoch + 1) / setting.epochs, lambda done=epoch + 1: {  # type: ignore[misc]
            **model.snapshot(), "epoch": np.array(done), "diverged": diverged.cpu().numpy(), "checks": checks,
            "ends": ends, "longer": longer,
        })  # fmt: skip
        watch.stop()
    gone = diverged.cpu().numpy()
    positions: list[diagnostics.Facts] = []
    unseen: dict[str, str] = {}
    try:
        positions = looked_into(model, task, setting.num_steps) if seeds == 1 and not gone.any() else []
    except Exception as error:  # a look that fails loses no number
        unseen["positions"] = f"{type(error).__name__}: {error}"
    tokens = UPDATES * setting.batch_size * len(X)
    return [
        Outcome(
            parameters=model.parameters_per_seed, train_s=watch.seconds, tokens=int(ends[s]) * tokens,
            score=None if gone[s] else float(checks[ends[s] - 1, s]),
            score_longer=None if gone[s] or not math.isfinite(longer[s]) else float(longer[s]),
            solved_after=(solved(task, checks[: ends[s], s]) * UPDATES or None) if not gone[s] else None,
            checks=tuple(float(value) for value in checks[: ends[s], s]) if not gone[s] else (),
            error="diverged: the gradient is not a number" if gone[s] else "", positions=tuple(positions),
            unseen=unseen,
        )
        for s in range(seeds)
    ]  # fmt: skip


def looked_into(model: Model, task: Task, length: int) -> list[diagnostics.Facts]:
    """Of a task that marks a step t', what the gates do around it, over its scored sequences; else nothing."""
    if task.name != "delayed_recall":
        return []
    X, _, _ = fresh(task.name, length)
    marked = (X >= SYMBOLS) & (X < 2 * SYMBOLS)
    device = model.b_q.device
    return diagnostics.by_position(model, X.to(device), marked.int().argmax(0).to(device))


def solved(task: Task, scores: Iterable[float]) -> int:
    """The first of HELD checks in a row that reach the task's threshold, counted from 1; 0 where there are none."""
    run = 0
    for k, value in enumerate(scores, 1):
        run = run + 1 if task.is_solved(value) else 0
        if run == HELD:
            return k - HELD + 1
    return 0


def drawn(task: Task, length: int, batch_size: int, seed: int, epoch: int) -> Batch:
    """One epoch's minibatches of one seed, side by side: (length, UPDATES * batch_size)."""
    return task.make(length, UPDATES * batch_size, np.random.default_rng([seed, epoch]))


def stacked(batches: Sequence[Batch]) -> tuple[Tensor, Tensor, Tensor]:
    """Each seed's own batch beside the others': (T, S, n)."""
    X, Y, counts = (torch.from_numpy(np.stack(parts, 1)) for parts in zip(*batches, strict=True))
    return (X.float() if X.is_floating_point() else X), (Y.float() if Y.is_floating_point() else Y), counts


@functools.cache
def fresh(name: str, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """The scored sequences of a task as tensors (T, n)."""
    X, Y, counts = stacked([TASKS[name].fresh(length)])
    return X[:, 0], Y[:, 0], counts[:, 0]


@torch.no_grad()
def score(model: Model, task: Task, length: int, batch_size: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Score (S,) on the task's scored sequences of one length, read `batch_size` at a time as in training."""
    device, seeds = model.b_q.device, len(model.b_q)
    X, Y, counts = (part.to(device) for part in fresh(task.name, length))
    right, asked = torch.zeros(seeds, dtype=torch.float64, device=device), 0
    for part in zip(*(part.split(batch_size, 1) for part in (X, Y, counts)), strict=True):
        x, y, c = (values[:, None].expand(-1, seeds, *values.shape[1:]) for values in part)
        outputs = model(x, model.cell.begin(x.shape[2]))[0]
        if task.outputs == 1:
            right += (((outputs[..., 0] - y) ** 2) * c).sum((0, 2)).double()
        elif task.whole:
            right += ((outputs.argmax(-1) == y) | ~c).all(0).sum(1).double()
        else:
            right += ((outputs.argmax(-1) == y) & c).sum((0, 2)).double()
        asked += c.shape[2] if task.whole else int(c[:, 0].sum())
    return (right / asked).cpu().numpy()
