"""Train on a task until it is solved or the budget ends, and score at the trained length and beyond.

One rule: data are a function of (seed, epoch), so a training that goes on from a checkpoint sees what it would have
seen, and a seed's numbers do not depend on which others train beside it.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from harness.experiments.protocols import UPDATES
from harness.experiments.runs import Run
from harness.experiments.tasks import SYMBOLS, TASKS, Batch, Task
from harness.run import diagnostics
from harness.run.network import network
from harness.run.outcome import OnTrained, Outcome
from harness.run.process import describe
from harness.run.progress import Arrays, CheckpointStore, Monitor, Progress
from variants import optimizer
from variants.model import Model

MARKED = "delayed_recall"  # the task that marks a step
HELD = 2  # checks in a row that reach the threshold: then it is solved, at the first of them


class TaskState:
    """Everything that the rest of a training on a task follows from; S is the seeds that train side by side."""

    def __init__(self, model: Model, runs: Sequence[Run]) -> None:
        self.model, self.seeds, self.setting = model, [run.seed for run in runs], runs[0].setting
        self.task = TASKS[self.setting.task]
        self.optimizer = optimizer.of(self.setting, UPDATES * self.setting.epochs)
        self.device = runs[0].device
        self.epoch = 0  # how many are done
        self.steps = 0  # of a sequence, once there was one
        self.diverged = torch.zeros(len(runs), dtype=torch.bool, device=self.device)
        self.checks = np.full((self.setting.epochs, len(runs)), math.nan)  # the score after each epoch
        self.ends = np.zeros(len(runs), dtype=int)  # epoch at which each seed's training ended, 0 while it has not
        self.longer = np.full(len(runs), math.nan)  # the score at the longer length, when it ended
        self.network = ""  # seed 0's as it was when its training ended, JSON: see run/network.py

    def state_dict(self) -> Arrays:
        """Return the checkpoint: weights, optimizer state, epochs done, scores."""
        return {
            **self.model.snapshot(), "epoch": np.array(self.epoch), "diverged": self.diverged.cpu().numpy(),
            "checks": self.checks, "ends": self.ends, "longer": self.longer,
            "length": np.array(self.steps), "network": np.array(self.network),
        }  # fmt: skip

    def load_state_dict(self, arrays: Arrays) -> None:
        """Continue where the training that `arrays` is the `state_dict` of stood."""
        self.model.restore(arrays)
        self.epoch, self.diverged = int(arrays["epoch"]), torch.from_numpy(arrays["diverged"]).to(self.device)
        self.checks, self.ends, self.longer = arrays["checks"], arrays["ends"], arrays["longer"]
        self.steps, self.network = int(arrays["length"]), str(arrays["network"])

    def train_epoch(self, heartbeat: Callable[[], None]) -> None:
        """Train UPDATES minibatches of sequences that were never seen; `heartbeat` is called after each."""
        model, size = self.model, self.setting.batch_size
        fresh_data = [drawn(self.task, self.setting.num_steps, size, seed, self.epoch) for seed in self.seeds]
        X, Y, counts = (part.to(self.device) for part in stacked(fresh_data))
        self.steps = len(X)
        model.train()
        for x, y, asked in zip(*(part.split(size, 2) for part in (X, Y, counts)), strict=True):
            _, norms, _ = model.learn(
                x, y, model.cell.begin(size), self.setting.lr, self.setting.clip, self.optimizer, asked
            )
            self.diverged.logical_or_(~norms.isfinite())
            heartbeat()
        self.epoch += 1

    def check(self) -> bool:
        """Score each network, end the training of those that solved the task or diverged. Whether there are some."""
        model, setting, now = self.model, self.setting, self.epoch - 1
        model.eval()
        self.checks[now] = score(model, self.task, setting.num_steps, setting.batch_size)
        gone = self.diverged.cpu().numpy()
        self.checks[now, gone] = math.nan
        scores = self.checks[: self.epoch].T
        held = [solved(self.task, own) > 0 and setting.stop == "solved" for own in scores]
        new = (self.ends == 0) & (np.array(held) | gone | (self.epoch == setting.epochs))
        self.ends[new] = self.epoch
        return bool(new.any())

    def score_longer(self) -> None:
        """Score at the longer length those whose training has just ended."""
        new, length = self.ends == self.epoch, self.task.longer * self.setting.num_steps
        if self.task.longer > 1:
            self.longer[new] = score(self.model, self.task, length, self.setting.batch_size)[new]

    @property
    def first_ended(self) -> bool:
        """Whether the training of seed 0 has just ended."""
        return 0 in self.seeds and bool(self.ends[self.seeds.index(0)] == self.epoch)

    def keep_network(self) -> None:
        """Keep the network of seed 0, whose training has just ended."""
        self.network = kept(self.model, self.seeds.index(0), self.task)

    def look(self) -> tuple[list[diagnostics.Facts], dict[str, str]]:
        """Look at what the gates of a seed that trained alone do around the step that its task marks; why not."""
        try:
            if len(self.seeds) == 1 and not self.diverged.any():
                return looked_into(self.model, self.task, self.setting.num_steps), {}
        except Exception as error:  # a look that fails loses no number
            return [], {"positions": describe(error)}
        return [], {}

    def outcomes(
        self, train_s: float, positions: Sequence[diagnostics.Facts] = (), unseen: Mapping[str, str] | None = None
    ) -> list[Outcome | None]:
        """The result of each seed, None while it trains."""
        gone = self.diverged.cpu().numpy()
        tokens = UPDATES * self.setting.batch_size * self.steps
        outcomes: list[Outcome | None] = []
        each = zip(self.seeds, self.ends, self.longer, gone, self.checks.T, strict=True)
        for seed, end, longer, lost, checks in each:
            own = tuple(float(value) for value in checks[:end])
            outcomes.append(None if end == 0 else Outcome(
                parameters=self.model.parameters_per_seed, train_s=train_s, tokens=int(end) * tokens,
                score=None if lost else own[-1],
                score_longer=None if lost or not math.isfinite(longer) else float(longer),
                solved_after=None if lost else solved(self.task, own) * UPDATES or None,
                checks=() if lost else own, positions=tuple(positions), unseen=dict(unseen or {}),
                error="diverged: the gradient is not a number" if lost else "",
                network=json.loads(self.network) if self.network and seed == 0 and not lost else None,
            ))  # fmt: skip
        return outcomes


def train(
    runs: Sequence[Run],
    progress: Progress = lambda share, score: None,
    keep: CheckpointStore | None = None,
    on_trained: OnTrained = lambda outcomes, left: None,
) -> list[Outcome]:
    """Train runs that differ in their seed alone, side by side. One `Outcome` a run, in their order.

    `on_trained` is told of those that have ended, before a network is kept, before they are scored at the longer length
    and after it: should what follows end the process, they stand.

    `score` and `score_longer` are those of the check at which a seed's training ended: where it had solved the task
    (with `stop` solved), or at the end of the budget. `solved_after` is in updates, None where it was not solved.
    """
    setting, device = runs[0].setting, runs[0].device
    task = TASKS[setting.task]
    model = Model(
        runs[0].variant, task.inputs, setting.hidden, [run.seed for run in runs], setting.init, device=device,
        engine=runs[0].engine, update_bias=setting.update_bias, horizon=setting.num_steps, outputs=task.outputs,
        layers=setting.layers, dropout=setting.dropout,
    )  # fmt: skip
    state, watch = TaskState(model, runs), Monitor(device, progress, keep)
    looks = "positions" if task.name == MARKED and len(runs) == 1 else ""
    if found := watch.load():
        state.load_state_dict(found)
    while state.epoch < setting.epochs and not state.ends.all():
        watch.start()
        state.train_epoch(watch.alive)
        watch.stop()
        ended = state.check()
        watch.sign(state.epoch / setting.epochs, float(state.checks[state.epoch - 1, 0]))
        if ended:
            left = "score_longer" + f", {looks}" * bool(looks)
            if state.first_ended:
                on_trained(state.outcomes(watch.seconds), f"network, {left}")
                state.keep_network()
            on_trained(state.outcomes(watch.seconds), left)
            state.score_longer()
            on_trained(state.outcomes(watch.seconds), looks)
        watch.start()
        watch.between(state.epoch / setting.epochs, state.state_dict)
        watch.stop()
    return [outcome for outcome in state.outcomes(watch.seconds, *state.look()) if outcome]


def kept(model: Model, place: int, task: Task) -> str:
    """One seed's network, `place` among the others, as the page runs it: JSON. A failure is its reason, no error."""
    try:
        found = {"why": "its inputs are numbers"} if task.outputs == 1 or task.needs else network(model, place, (), ())
    except Exception as error:
        found = {"why": describe(error)}
    return json.dumps({"task": task.name, "inputs": task.inputs, "outputs": task.outputs, **found})


def looked_into(model: Model, task: Task, length: int) -> list[diagnostics.Facts]:
    """Return, for a task that marks a step t', what the gates do around it, over its scored sequences; else nothing."""
    if task.name != MARKED:
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
