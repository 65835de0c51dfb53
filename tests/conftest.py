"""What several test files share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from harness import execute, report
from harness.corpus import Corpus
from harness.grid import Run

# The same examples every time; `pytest --hypothesis-profile=default` looks for others.
settings.register_profile("the same", derandomize=True, deadline=None)
settings.load_profile("the same")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small products on several threads wait for one another: minutes of a suite, where something else runs too."""
    torch.set_num_threads(1)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings in this process, no page drawn: starting workers and drawing are tested elsewhere."""

    def workers(
        todo: list[list[Run]], corpus: Corpus, count: int, tell: execute.Tell, keeper: execute.Keeper | None
    ) -> Iterator[execute.Finished]:
        for pack in todo:
            yield from execute._one(pack, corpus, 1, tell, keeper)

    monkeypatch.setattr(execute, "_workers", workers)
    monkeypatch.setattr(report, "write", lambda results, folder: folder)
