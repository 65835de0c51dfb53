"""RUN IT: the runs of one variant, as many seeds at once as it can take, to their perplexities.

Rule: a seed's numbers do not depend on which other seeds train beside it. Perplexity is exp(mean loss in nats
a character); evaluation happens off the clock.
"""

from __future__ import annotations

import functools
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

import variants
from harness import corpus as text
from harness.capture import Epoch, captured
from harness.grid import Protocol, Run
from variants.model import Model

HELD = (0.0, 0.5, 1.0)  # what a lesion holds a gate at
PROMPT, SAMPLED = "time traveller", 50  # the book's prompt and length


@dataclass(frozen=True)
class Point:
    """One evaluation. `train_perplexity` is the book's number: over the epoch, while the weights move."""

    epoch: int
    tokens: int
    train_perplexity: float | None
    heldout_perplexity: float | None


@dataclass(frozen=True)
class Outcome:
    """What a training gave. A value that is not finite is None; then `error` says since when."""

    train_perplexity: float | None = None
    heldout_perplexity: float | None = None
    parameters: int | None = None
    tokens: int | None = None
    train_s: float | None = None
    sample: str = ""
    error: str = ""
    curve: tuple[Point, ...] = field(default=())
    lesions: dict[str, float | None] = field(default_factory=dict)  # 'R=0' -> held-out perplexity


Progress = Callable[[float, float | None], None]  # share done, held-out perplexity of the first seed


def train(
    runs: Sequence[Run], corpus: text.Corpus, progress: Progress = lambda share, perplexity: None
) -> list[Outcome]:
    """Train runs that differ in their seed alone, side by side. One `Outcome` a run, in their order."""
    protocol, device = runs[0].protocol, runs[0].device
    train_part, heldout_part = text.split(corpus, protocol.train_characters, protocol.heldout_characters)
    windows = text.windows(len(train_part), protocol.batch_size, protocol.num_steps)
    seeds = [run.seed for run in runs]
    model = Model(
        runs[0].variant, len(corpus.vocabulary), protocol.hidden, seeds, protocol.init, device=device,
        engine=runs[0].engine,
    )  # fmt: skip
    characters = torch.from_numpy(train_part.astype(np.int64)).to(device)
    heldout = streams(torch.from_numpy(heldout_part.astype(np.int64)).to(device), protocol.batch_size, len(runs))
    offsets = [random.Random(run.seed) for run in runs]
    looks = evaluation_epochs(protocol)
    curves: list[list[Point]] = [[] for _ in runs]
    epoch_on: Epoch = functools.partial(epoch_of, model, windows=windows, protocol=protocol)
    if runs[0].capture:
        example = sequential(characters, protocol, [0] * len(runs))
        epoch_on = captured(epoch_on, example, list(model.parameters()))
    lost = torch.zeros(len(runs), device=device, dtype=torch.bool)  # for good: its later epochs are not its own
    tokens, train_s = 0, 0.0
    for epoch in range(1, protocol.epochs + 1):
        begun = clock(device)
        drawn = [rng.randint(0, protocol.num_steps) for rng in offsets]
        nats = epoch_on(sequential(characters, protocol, drawn))
        lost |= ~nats.isfinite()
        tokens += windows * protocol.num_steps * protocol.batch_size
        train_s += clock(device) - begun
        if epoch in looks:
            held = evaluate(model, heldout, protocol.num_steps)
            seen = torch.where(lost, math.nan, torch.stack([nats, held]))
            for curve, a, b in zip(curves, *seen.tolist(), strict=True):
                curve.append(Point(epoch, tokens, perplexity(a), perplexity(b)))
            progress(epoch / protocol.epochs, curves[0][-1].heldout_perplexity)
            if all(c[-1].heldout_perplexity is None or c[-1].train_perplexity is None for c in curves):
                break  # every seed has diverged
    samples = generate(model, corpus)
    broken = lesions(model, runs[0].variant, heldout, protocol.num_steps)
    return [
        Outcome(
            train_perplexity=None if error else curve[-1].train_perplexity,
            heldout_perplexity=None if error else curve[-1].heldout_perplexity,
            parameters=model.parameters_per_seed,
            tokens=tokens,
            train_s=train_s,
            sample="" if error else sample,
            error=error,
            curve=tuple(curve),
            lesions={} if error else lesion,
        )
        for curve, sample, lesion in zip(curves, samples, broken, strict=True)
        for error in [divergence(curve)]
    ]


def sequential(characters: Tensor, protocol: Protocol, offsets: Sequence[int]) -> Tensor:
    """The book's sequential partition of one epoch, a column a stream: (length, S, n).

    From a seed's random offset the text is cut into `batch_size` streams of equal length, read side by side.
    """
    n = protocol.batch_size
    rows = []
    for offset in offsets:
        length = (len(characters) - offset - 1) // n
        starts = offset + length * torch.arange(n, device=characters.device)
        rows.append(starts)
    length = (len(characters) - protocol.num_steps - 1) // n + 1  # the same for every offset, targets included
    steps = torch.arange(length, device=characters.device)
    return characters[steps[:, None, None] + torch.stack(rows)]


def epoch_of(model: Model, streams: Tensor, *, windows: int, protocol: Protocol) -> Tensor:
    """Train over one epoch's streams (length, S, n), state carried and detached. Mean loss (S,) in nats.

    NaN for a seed that had a loss or a gradient that is not finite: the epoch's mean is not its either.
    """
    state = model.cell.begin(protocol.batch_size)
    total = torch.zeros(streams.shape[1], device=streams.device, dtype=model.b_q.dtype)
    for w in range(windows):
        here = slice(w * protocol.num_steps, (w + 1) * protocol.num_steps)
        after = slice(here.start + 1, here.stop + 1)
        losses, state = model.losses(streams[here], streams[after], state)
        losses.sum().backward()  # each seed's own mean: the sum has each seed's own gradient
        norms = model.update(protocol.lr, protocol.clip)
        state = tuple(s.detach() for s in state)
        total += torch.where(norms.isfinite(), losses.detach(), math.nan)
    return total / windows


def streams(characters: Tensor, most: int, seeds: int) -> Tensor:
    """Held-out text as at most `most` streams side by side, the same for each seed: (length, S, n)."""
    n = max(1, min(most, len(characters) // 2))
    length = len(characters) // n
    return characters[: n * length].view(n, length).T[:, None].expand(length, seeds, n)


@torch.no_grad()
def evaluate(model: Model, streams: Tensor, num_steps: int) -> Tensor:
    """Mean loss (S,) in nats over streams (length, S, n), each read from a zero state that is carried."""
    state = model.cell.begin(streams.shape[2])
    total = torch.zeros(streams.shape[1], device=streams.device, dtype=model.b_q.dtype)
    for begin in range(0, len(streams) - 1, num_steps):
        end = min(begin + num_steps, len(streams) - 1)
        losses, state = model.losses(streams[begin:end], streams[begin + 1 : end + 1], state)
        total += losses * (end - begin)
    return total / (len(streams) - 1)


def lesions(model: Model, variant: str, streams: Tensor, num_steps: int) -> list[dict[str, float | None]]:
    """Held-out perplexity of a trained model with one of its gates held only now, of every seed: {'R=0': 12.3, ...}.

    Against the same gate held in training too, it tells what training works around. `streams` as for `evaluate`.
    """
    base, fixed = variants.parse(variant)
    S, h, d = model.W_hq.shape
    trained = dict(model.named_parameters())
    found: list[dict[str, float | None]] = [{} for _ in range(S)]
    for gate in [g for g in variants.found()[base].gates if g not in fixed]:
        for value in HELD:
            name = variants.canonical(f"{base}:" + ",".join(f"{g}={v}" for g, v in {**fixed, gate: value}.items()))
            held = Model(name, d, h, range(S), dtype=model.b_q.dtype, device=str(model.b_q.device))
            for key, weight in held.named_parameters():
                weight.data = trained[key].data
            for seed, nats in enumerate(evaluate(held, streams, num_steps).tolist()):
                found[seed][f"{gate}={value:g}"] = perplexity(nats)
    return found


@torch.no_grad()
def generate(model: Model, corpus: text.Corpus, prompt: str = PROMPT, characters: int = SAMPLED) -> list[str]:
    """The prompt and what each seed's network writes after it, always the likeliest character, as the book does."""
    start = torch.from_numpy(text.encode(corpus, prompt).astype(np.int64)).to(model.b_q.device)
    seeds = len(model.b_q)
    logits, state = model(start[:, None, None].expand(-1, seeds, 1), model.cell.begin(1))
    written = [logits[-1].argmax(-1)]
    for _ in range(characters - 1):
        logits, state = model(written[-1][None], state)
        written.append(logits[-1].argmax(-1))
    return [prompt + text.decode(corpus, torch.stack(written)[:, s, 0].tolist()) for s in range(seeds)]


def evaluation_epochs(protocol: Protocol) -> set[int]:
    """About `evaluations` epochs spread evenly, the last always among them."""
    points = min(protocol.evaluations, protocol.epochs)
    return {math.ceil(protocol.epochs * (k + 1) / points) for k in range(points)}


def perplexity(nats: float) -> float | None:
    """exp of a mean loss in nats; None where that is no finite number."""
    return math.exp(nats) if nats < 700 else None  # NaN fails the comparison too


def divergence(curve: Sequence[Point]) -> str:
    for point in curve:
        if point.train_perplexity is None or point.heldout_perplexity is None:
            return f"diverged: the loss is not a number by epoch {point.epoch}"
    return ""


def clock(device: str) -> float:
    """Seconds, after everything asked of the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def packs(runs: Sequence[Run]) -> Iterator[list[Run]]:
    """Runs that can train side by side: on CUDA all seeds of one scratch variant, else one by one."""
    groups: dict[Run, list[Run]] = {}
    for run in runs:
        alone = run.device == "cpu" or run.engine == "library"
        groups.setdefault(run if alone else replace(run, seed=0), []).append(run)
    yield from groups.values()
