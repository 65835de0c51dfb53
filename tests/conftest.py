"""What several test files share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from harness.report import page as report
from harness.run.executors import local
from variants import outside, registry

# The same examples every time; `pytest --hypothesis-profile=default` looks for others.
settings.register_profile("the same", derandomize=True, deadline=None)
settings.load_profile("the same")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small products on several threads wait for one another: minutes of a suite, where something else runs too."""
    torch.set_num_threads(1)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stand in the empty folder `tmp_path`; afterwards no cell that lies outside the package is known."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    registry.use({})
    outside._forget()


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings in this process, no page drawn: starting workers and drawing are tested elsewhere."""

    def results(pool: local.Pool) -> Iterator[local.Finished]:
        for group in pool.groups:
            yield from local._one(group, pool.corpus, 1, lambda sign: None, pool.open_checkpoint)

    monkeypatch.setattr(local.Pool, "results", results)
    monkeypatch.setattr(report, "write", lambda results, folder: folder)
