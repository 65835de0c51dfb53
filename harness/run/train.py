"""Train the runs of one variant, as many seeds at once as it can take.

A seed's numbers do not depend on which other seeds train beside it. Evaluation happens off the clock.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.data import corpus as text
from harness.data.batches import TextData, arrange, sample_epoch, split_streams
from harness.experiments.grids import BASELINE
from harness.experiments.protocols import Protocol
from harness.experiments.runs import Run
from harness.run import diagnostics
from harness.run.cuda_graph import Work, branches, captured
from harness.run.evaluate import evaluation_epochs, generate, lesions, score
from harness.run.network import network
from harness.run.outcome import OnTrained, Outcome, Point, divergence, perplexity
from harness.run.process import describe
from harness.run.progress import Arrays, CheckpointStore, Monitor, Progress, get_rng_state, set_rng_state
from variants import optimizer
from variants.cell import State
from variants.model import Model, SideBySide, build
from variants.optimizer import Optimizer

LOOKS = "sample, lesions, gates, reach, network"  # what is only looked at, once a training is scored
GRAPH_WINDOWS = 8  # of one CUDA graph, which is replayed: an epoch of `book` has 149, of a thousand kernels and more
Graphs = Mapping[int, tuple[int, Work]]  # first window -> (window after the last, graph)


@dataclass(frozen=True)
class Position:
    """Within an epoch: minibatches done, the state carried on (none by windows), the sum of their mean losses (S,)."""

    window: int
    state: State
    total: Tensor


class TrainState:
    """Everything that the rest of a training follows from; S is the seeds that train side by side."""

    def __init__(self, model: Model, seeds: Sequence[int], protocol: Protocol) -> None:
        self.model = model
        self.epoch = 1  # the one that is being trained
        self.rngs = [random.Random(seed) for seed in seeds]  # sample each epoch's data
        self.rng_state = get_rng_state(self.rngs)  # before this epoch's data was sampled
        self.position = start_of(model, protocol, len(seeds))
        self.diverged = torch.zeros(len(seeds), device=model.b_q.device, dtype=torch.bool)  # for good
        self.evaluated: dict[int, list[list[float]]] = {}  # epoch -> nats in training and held out, each of S seeds
        self.best_nats = torch.full_like(self.position.total, math.inf)  # (S,) lowest validation loss so far
        self.best_epoch = torch.zeros(len(seeds), device=model.b_q.device, dtype=torch.int64)  # 0 before any
        self.best: dict[str, Tensor] = {}  # the weights then, each seed's its own; none where nothing is validated

    def state_dict(self) -> Arrays:
        """Return the checkpoint: weights, hidden state, position in the epoch, metrics, and the RNG state."""
        return {
            **self.model.snapshot(),
            **{f"state/{k}": part.cpu().numpy() for k, part in enumerate(self.position.state)},
            "total": self.position.total.cpu().numpy(), "window": np.array(self.position.window),
            "epoch": np.array(self.epoch), "rng_state": self.rng_state, "diverged": self.diverged.cpu().numpy(),
            "evaluated_at": np.array(list(self.evaluated)),
            "evaluated": np.array(list(self.evaluated.values())).reshape(len(self.evaluated), 2, len(self.diverged)),
            "best_nats": self.best_nats.cpu().numpy(), "best_epoch": self.best_epoch.cpu().numpy(),
            **{f"best/{name}": weight.cpu().numpy() for name, weight in self.best.items()},
        }  # fmt: skip

    def load_state_dict(self, arrays: Arrays) -> None:
        """Continue where the training that `arrays` is the `state_dict` of stood."""
        device = self.diverged.device
        self.model.restore(arrays)
        set_rng_state(self.rngs, arrays["rng_state"])
        self.epoch = int(arrays["epoch"])
        parts = sum(name.startswith("state/") for name in arrays)
        state = tuple(torch.from_numpy(arrays[f"state/{k}"]).to(device) for k in range(parts))
        self.position = Position(int(arrays["window"]), state, torch.from_numpy(arrays["total"]).to(device))
        self.diverged = torch.from_numpy(arrays["diverged"]).to(device)
        self.evaluated = dict(zip(arrays["evaluated_at"].tolist(), arrays["evaluated"].tolist(), strict=True))
        self.best_nats = torch.from_numpy(arrays["best_nats"]).to(device)
        self.best_epoch = torch.from_numpy(arrays["best_epoch"]).to(device)
        best = {name.removeprefix("best/"): array for name, array in arrays.items() if name.startswith("best/")}
        self.best = {name: torch.from_numpy(array).to(device) for name, array in best.items()}

    def record(self, nats: Tensor, heldout: Tensor) -> float | None:
        """Add this epoch's losses (S,) in nats, NaN for a seed that diverged. Return the first seed's perplexity."""
        self.evaluated[self.epoch] = torch.where(self.diverged, math.nan, torch.stack([nats, heldout])).tolist()
        return perplexity(self.evaluated[self.epoch][1][0])

    def keep_best(self, nats: Tensor) -> None:
        """Keep the weights of each seed whose validation loss (S,) in nats is its lowest so far."""
        better = (nats < self.best_nats) & ~self.diverged  # NaN is not lower
        self.best_nats = torch.where(better, nats, self.best_nats)
        self.best_epoch = torch.where(better, self.epoch, self.best_epoch)
        self.best = self.model.chosen(better, self.best)

    @property
    def all_diverged(self) -> bool:
        """Whether no seed had a finite perplexity at the latest evaluation."""
        pairs = zip(*self.evaluated[self.epoch], strict=True)
        return all(perplexity(train) is None or perplexity(heldout) is None for train, heldout in pairs)


def train(
    runs: Sequence[Run],
    corpus: text.Corpus,
    progress: Progress = lambda share, perplexity: None,
    keep: CheckpointStore | None = None,
    on_trained: OnTrained = lambda outcomes, left: None,
) -> list[Outcome]:
    """Train runs that differ in their seed alone, side by side. Return an `Outcome` a run, in their order.

    With `keep` a checkpoint is saved there from time to time, and a training goes on from the one found there.
    `on_trained` is told the outcomes as soon as they are scored, and again before anything looks at the networks:
    should what follows end the process, they stand.
    """
    protocol, device = runs[0].setting, runs[0].device
    seeds = [run.seed for run in runs]
    model = build(
        runs[0].variant, len(corpus.vocabulary), protocol.hidden, seeds, protocol.init, device=device,
        engine=runs[0].engine, update_bias=protocol.update_bias, horizon=protocol.num_steps,
        layers=protocol.layers, dropout=protocol.dropout, embedding=protocol.embedding,
    )  # fmt: skip
    model.unknown_nats = corpus.unknown_nats
    data = arrange(corpus, protocol, len(runs), device)
    state, watch = TrainState(model, seeds, protocol), Monitor(device, progress, keep)
    if checkpoint := watch.load():
        state.load_state_dict(checkpoint)
    graphs, uncaptured = _capture(model, data, protocol, len(runs)) if runs[0].capture else ({}, "")
    eval_epochs = evaluation_epochs(protocol)
    while True:
        nats = train_epoch(state, data, protocol, watch, graphs)
        if state.epoch in eval_epochs:
            final = score(model, data.curve, protocol, watch.alive)
            watch.sign(state.epoch / protocol.epochs, state.record(nats, final[0]))
            if data.validated:
                state.keep_best(final[0])
            if state.all_diverged:
                break
        if state.epoch == protocol.epochs:
            break
        state.epoch += 1

    def scored(best: Tensor | None, unseen: dict[str, str]) -> list[Outcome]:
        return [
            replace(outcome, train_s=watch.seconds, uncaptured=uncaptured, unseen={} if outcome.error else unseen)
            for outcome in _outcomes(state, data, protocol, final, best)
        ]

    best: Tensor | None = None
    missed: dict[str, str] = {}
    if data.validated:
        final = score(model, data.heldout, protocol, watch.alive)
        on_trained(scored(None, {}), f"best epoch, {LOOKS}")
        best, missed = score_best(state, data, protocol, watch, final[0])
    bare = scored(best, missed)
    on_trained(bare, LOOKS)  # from here on the network is only looked at, and nothing of that can lose these
    seen, unseen = _inspect(state.model, runs, corpus, data, protocol, watch)
    unseen = missed | unseen
    return [
        outcome if outcome.error else replace(outcome, unseen=unseen, **{k: v[s] for k, v in seen.items() if v[s]})
        for s, outcome in enumerate(bare)
    ]


def score_best(
    state: TrainState, data: TextData, protocol: Protocol, watch: Monitor, final: Tensor
) -> tuple[Tensor | None, dict[str, str]]:
    """Score the held-out part with each seed's best weights: (S,) in nats; `final` is that of the weights at the end.

    Where that fails it is None, with its reason: that costs no training. The weights are those at the end again.
    """
    model = state.model
    if not state.best or bool((state.best_epoch == state.epoch).all()):
        return final, {}
    own = {name: weight.clone() for name, weight in model.state_dict().items()}
    try:
        model.put(state.best)
        return score(model, data.heldout, protocol, watch.alive)[0], {}
    except Exception as error:
        return None, {"best epoch": describe(error)}
    finally:
        model.put(own)


def train_epoch(state: TrainState, data: TextData, protocol: Protocol, watch: Monitor, graphs: Graphs) -> Tensor:
    """Train to the end of the epoch, by `graphs` where there are any. Return the mean loss (S,) in nats."""
    model = state.model
    model.train()
    state.rng_state = get_rng_state(state.rngs)
    watch.start()

    def on_step(position: Position) -> None:
        state.position = position
        share = (state.epoch - 1 + position.window / data.windows) / protocol.epochs
        watch.between(share, state.state_dict)

    streams = sample_epoch(data.train, protocol, state.rngs)
    on_step(state.position)
    nats = epoch_of(
        model, streams, windows=data.windows, protocol=protocol, at=state.position, on_step=on_step, graphs=graphs
    )
    state.diverged.logical_or_(~nats.isfinite())
    watch.stop()
    model.eval()
    state.position = start_of(model, protocol, len(state.diverged))
    return nats


def start_of(model: Model, protocol: Protocol, seeds: int) -> Position:
    """Before an epoch's first minibatch: a zero state where one is carried, nothing lost."""
    total = torch.zeros(seeds, device=model.b_q.device, dtype=model.b_q.dtype)
    return Position(0, model.cell.begin(protocol.batch_size) if protocol.sampling == "sequential" else (), total)


def epoch_of(
    model: Model,
    streams: Tensor,
    *,
    windows: int,
    protocol: Protocol,
    at: Position | None = None,
    on_step: Callable[[Position], None] = lambda position: None,
    graphs: Graphs | None = None,
) -> Tensor:
    """Train over one epoch's streams (length, S, n), state carried and detached. Mean loss (S,) in nats.

    Or over its windows (num_steps + 1, S, N), `batch_size` at a time, each from a zero state. From where it stands,
    `at`, on; `on_step` is called after each minibatch but the last, or after each of `graphs` (see `graphs_of`).

    NaN for a seed that had a loss or a gradient that is not finite: the epoch's mean is not its either.
    """
    at = at or start_of(model, protocol, streams.shape[1])
    how = optimizer.of(protocol, windows * protocol.epochs)
    while at.window < windows:
        end, work = (graphs or {}).get(at.window) or (at.window + 1, functools.partial(steps, model, protocol, how))
        total, *state = work(part_of(streams, at.window, end, protocol), at.total, *at.state)
        at = Position(end, tuple(state), total)
        if end < windows:
            on_step(at)
    return at.total / windows


def part_of(streams: Tensor, begin: int, end: int, protocol: Protocol) -> Tensor:
    """Windows `begin` to `end` of an epoch's data, as it is laid out."""
    if protocol.sampling == "sequential":
        return streams[begin * protocol.num_steps : end * protocol.num_steps + 1]
    return streams[:, :, begin * protocol.batch_size : end * protocol.batch_size]


def steps(
    model: Model, protocol: Protocol, how: Optimizer, part: Tensor, total: Tensor, *state: Tensor
) -> tuple[Tensor, ...]:
    """Train over some windows, laid out as an epoch's: the sum of mean losses (S,) so far, and the state after them."""
    if isinstance(model, SideBySide):  # each seed by itself, from the first of these windows to the last
        works = [
            functools.partial(
                steps, one, protocol, how, part[:, k : k + 1], total[k : k + 1], *(s[k : k + 1] for s in state)
            )
            for k, one in enumerate(model.models)
        ]
        return tuple(torch.cat(parts) for parts in zip(*branches(works, part.device), strict=True))
    T, n, carried = protocol.num_steps, protocol.batch_size, protocol.sampling == "sequential"
    for w in range((len(part) - 1) // T if carried else math.ceil(part.shape[2] / n)):
        window = part_of(part, w, w + 1, protocol)
        if not carried:
            state = model.cell.begin(window.shape[2])
        losses, norms, state = model.learn(window[:-1], window[1:], state, protocol.lr, protocol.clip, how)
        total = total + torch.where(norms.isfinite(), losses, math.nan)
    return (total, *(state if carried else ()))


def graphs_of(model: Model, example: Tensor, windows: int, protocol: Protocol) -> dict[int, tuple[int, Work]]:
    """An epoch as CUDA graphs: first window -> (window after the last, graph).

    A graph has GRAPH_WINDOWS windows at most, whatever an epoch has: one is replayed again and again. What an epoch
    ends with is another.
    """
    how = optimizer.of(protocol, windows * protocol.epochs)
    model.prepare(how)
    weights, at = model.changing(), start_of(model, protocol, example.shape[1])
    made: dict[tuple[int, ...], Work] = {}
    graphs: dict[int, tuple[int, Work]] = {}
    for begin in range(0, windows, GRAPH_WINDOWS):
        end = min(begin + GRAPH_WINDOWS, windows)
        part = part_of(example, begin, end, protocol)
        if part.shape not in made:
            made[part.shape] = captured(
                functools.partial(steps, model, protocol, how), (part, at.total, *at.state), weights
            )
        graphs[begin] = end, made[part.shape]
    return graphs


def _capture(model: Model, data: TextData, protocol: Protocol, seeds: int) -> tuple[Graphs, str]:
    """Capture an epoch as CUDA graphs; else none and why it cannot be. torch.OutOfMemoryError passes."""
    example = sample_epoch(data.train, protocol, [random.Random(0) for _ in range(seeds)])
    try:
        return graphs_of(model, example, data.windows, protocol), ""
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # the same steps, one by one, are the same numbers, only later
        return {}, " ".join(str(error).split())[:200] or "it cannot be captured"


def _outcomes(
    state: TrainState, data: TextData, protocol: Protocol, final: tuple[Tensor, Tensor], best: Tensor | None
) -> list[Outcome]:
    """Return what was trained, of each seed: curve and perplexities, from held-out losses at the end and at the best
    epoch.
    """
    windows = protocol.sampling == "windows"
    sequences = len(data.train) - protocol.num_steps if windows else data.windows * protocol.batch_size
    tokens = protocol.num_steps * sequences  # an epoch's
    outcomes = []
    for s, (nats, mean_exp) in enumerate(zip(*(part.tolist() for part in final), strict=True)):
        curve = tuple(
            Point(epoch, epoch * tokens, perplexity(learnt[s]), perplexity(heldout[s]))
            for epoch, (learnt, heldout) in state.evaluated.items()
        )
        error = divergence(curve) or ("" if perplexity(nats) else "diverged: the held-out loss is no number")
        outcome = Outcome(
            parameters=state.model.parameters_per_seed, tokens=state.epoch * tokens, error=error, curve=curve
        )
        if not error:
            outcome = replace(
                outcome,
                train_perplexity=curve[-1].train_perplexity,
                heldout_perplexity=perplexity(nats),
                heldout_mean_exp=mean_exp if math.isfinite(mean_exp) else None,
                best_epoch=None if best is None else int(state.best_epoch[s]),
                best_perplexity=None if best is None else perplexity(float(best[s])),
            )
        outcomes.append(outcome)
    return outcomes


def _inspect(
    model: Model, runs: Sequence[Run], corpus: text.Corpus, data: TextData, protocol: Protocol, watch: Monitor
) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """Look at the trained networks: field of `Outcome` -> its value of each seed, and why what is missing is."""
    unseen: dict[str, str] = {}

    def look(what: str, at_it: Callable[[], list[Any]]) -> list[Any]:
        watch.alive()
        try:
            return at_it()
        except Exception as error:
            unseen[what] = describe(error)
            return [None] * len(runs)

    def heat() -> list[Any]:
        return [tuple(diagnostics.heat(model, corpus, data.heldout_text, watch.alive)), *[()] * (len(runs) - 1)]

    streams = split_streams(data.heldout_text, len(runs)).tokens
    seen = {
        "sample": look("sample", lambda: generate(model, corpus, data.heldout_text)),
        "lesions": look(
            "lesions", lambda: lesions(model, runs[0].variant, data.heldout, protocol, watch.alive, unseen)
        ),
        "gates": look("gates", lambda: diagnostics.gates(model, streams, watch.alive)),
        "reach": look("reach", lambda: diagnostics.reach(model, streams, watch.alive)),
    }
    if runs[0].variant == BASELINE and runs[0].seed == 0:
        seen["heat"] = look("heat", heat)
    if runs[0].seed == 0:
        seen["network"] = look(
            "network",
            lambda: [
                network(model, 0, corpus.vocabulary, data.heldout_text.tolist(), corpus.unit),
                *[None] * (len(runs) - 1),
            ],
        )
    return seen, unseen
