"""Define the result of a training, as it is recorded.

Perplexity is exp(mean loss in nats a character).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Point:
    """One evaluation. `train_perplexity` is the book's number: over the epoch, while the weights move."""

    epoch: int
    tokens: int
    train_perplexity: float | None
    heldout_perplexity: float | None


@dataclass(frozen=True)
class Outcome:
    """The result of a training. A value that is not finite is None; then `error` says since when."""

    train_perplexity: float | None = None
    heldout_perplexity: float | None = None
    parameters: int | None = None
    tokens: int | None = None
    train_s: float | None = None
    sample: str = ""
    error: str = ""
    curve: tuple[Point, ...] = field(default=())
    lesions: dict[str, float | None] = field(default_factory=dict)  # 'R=0' -> held-out perplexity
    score: float | None = None  # of a task, at the trained length
    score_longer: float | None = None  # at the longer one
    solved_after: int | None = None  # updates; None where the task was not solved
    checks: tuple[float, ...] = ()  # the score every 100 updates
    gates: dict[str, dict[str, Any]] = field(default_factory=dict)  # of diagnostics.py, over the held-out text
    reach: dict[int, float] = field(default_factory=dict)
    heat: tuple[dict[str, object], ...] = ()
    positions: tuple[dict[str, object], ...] = ()  # of a task that marks a step: its gates around it
    network: dict[str, object] | None = None  # of seed 0: see run/network.py
    unseen: dict[str, str] = field(default_factory=dict)  # what could not be looked at ('reach', 'lesion R=0') -> why
    uncaptured: str = ""  # why it was trained step by step, where a CUDA graph was asked for
    best_epoch: int | None = None  # at which the validation part was best, of those evaluated; None without that part
    best_perplexity: float | None = None  # held-out, of the weights at that epoch
    heldout_mean_exp: float | None = None  # the mean of exp(loss) over minibatches, as the book's later edition has it


# Told of trainings that have ended: an outcome of each run, None of one that has not, and what is left to find out.
OnTrained = Callable[[Sequence[Outcome | None], str], None]


def perplexity(nats: float) -> float | None:
    """exp of a mean loss in nats; None where that is no finite number."""
    return math.exp(nats) if nats < 700 else None  # NaN fails the comparison too


def divergence(curve: Sequence[Point]) -> str:
    for point in curve:
        if point.train_perplexity is None or point.heldout_perplexity is None:
            return f"diverged: the loss is not a number by epoch {point.epoch}"
    return ""
