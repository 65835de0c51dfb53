"""Group runs that can be trained as one batch of seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from harness.experiments.runs import Run


def group_batchable(runs: Sequence[Run]) -> Iterator[list[Run]]:
    """Runs that can train side by side: on CUDA all seeds of one scratch variant, else one by one."""
    groups: dict[Run, list[Run]] = {}
    for run in runs:
        alone = run.device == "cpu" or run.engine == "library"
        groups.setdefault(run if alone else replace(run, seed=0), []).append(run)
    yield from groups.values()
