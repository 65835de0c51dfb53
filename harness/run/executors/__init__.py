"""Train groups of runs on this machine or on a cluster: what every executor gives.

The contract: groups of runs go in, finished runs, signs of life and checkpoints come out. Only the process that called
the executor, the driver, writes results. Each run is yielded once, in any order; closing the iterator ends all work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from harness.experiments.runs import Run
from harness.run.machine import Fact
from harness.run.outcome import Outcome
from harness.run.progress import CheckpointStore

TRIES = 3  # nodes that may end under a run before it is a row


@dataclass(frozen=True)
class Finished:
    """One training that has ended: what it gave, how long it took, what else its machine was doing.

    `together` is how many were trained at once on that machine; None on a cluster, where no number says it.
    """

    run: Run
    outcome: Outcome
    wall_s: float
    together: int | None
    load: float | None
    started: str
    environment: dict[str, Fact]


@dataclass(frozen=True)
class InProgress:
    """A sign of life: the share of a group of runs that is done, and its first seed's held-out perplexity."""

    runs: tuple[Run, ...]
    share: float
    perplexity: float | None


class FileStore(CheckpointStore, Protocol):
    """A checkpoint that is a file, and so can be carried to another machine as bytes."""

    @property
    def path(self) -> Path: ...


OnProgress = Callable[[InProgress], None]
OpenCheckpoint = Callable[[Sequence[Run], Mapping[str, Fact]], CheckpointStore]  # of a group, on such a machine
# The same in any folder: `record.store.checkpoint`, which a cluster's nodes call with a folder of their own.
Checkpoints = Callable[[Path, Sequence[Run], Mapping[str, Fact]], FileStore]


def group_batchable(runs: Iterable[Run]) -> Iterator[list[Run]]:
    """Runs that can train side by side: on CUDA all seeds of one variant; on a CPU each by itself, lazily.

    On CUDA each by itself too of torch's own modules that are not captured: as branches of a graph seeds run at once,
    fed step by step by one process they do not.
    """
    groups: dict[Run, list[Run]] = {}
    for run in runs:
        if run.device == "cpu":
            yield [run]
            continue
        alone = run.engine == "library" and not run.capture
        groups.setdefault(run if alone else replace(run, seed=0), []).append(run)
    yield from groups.values()
