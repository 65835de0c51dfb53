"""Where it runs: the same numbers whoever runs them, and a worker that dies takes its own run only."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from harness import corpus, execute
from harness.grid import Protocol, Run
from harness.train import Outcome, train
from variants.cell import Cell, State
from variants.engines import fused

TINY = Protocol(train_characters=300, heldout_characters=100, batch_size=4, num_steps=5, hidden=4, epochs=2)
RUNS = [Run("rnn", seed, TINY, "sha", "cpu") for seed in range(3)]


def test_workers_give_what_one_process_gives_and_a_dead_one_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one test, because starting processes that import torch is the slow part of it."""
    text = corpus.embedded()
    deadly = dataclasses.replace(RUNS[0], seed=7)
    signs: list[execute.Underway] = []
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setattr(execute, "_serve", _serve_but_die_at_seed_7)
    ended = {f.run: f for f in execute.execute([RUNS[0], deadly, *RUNS[1:]], text, 2, signs.append)}
    assert set(ended) == {*RUNS, deadly}
    assert ended[deadly].outcome.error == "crashed: its process ended with status 3"
    assert ended[deadly].outcome.heldout_perplexity is None
    for run in RUNS:
        here = train([run], text)[0]
        there = ended[run].outcome
        assert dataclasses.replace(there, train_s=here.train_s) == here
        assert ended[run].environment["threads"] == 1
        assert ended[run].together == 2
    assert {s.runs for s in signs} == {(run,) for run in RUNS}
    assert max(s.share for s in signs) == 1


def _serve_but_die_at_seed_7(pipe, *args) -> None:  # type: ignore[no-untyped-def]
    real = execute._one

    def one(pack, *rest):  # type: ignore[no-untyped-def]
        if pack[0].seed == 7:
            os._exit(3)
        return real(pack, *rest)

    execute._one = one
    _REAL_SERVE(pipe, *args)


_REAL_SERVE = execute._serve


def test_a_run_that_raises_is_an_outcome() -> None:
    run = dataclasses.replace(RUNS[0], protocol=dataclasses.replace(TINY, batch_size=10**6))
    (finished,) = execute._one([run], corpus.embedded(), 1, lambda sign: None)
    assert finished.outcome.error.startswith("crashed: ValueError: ")
    assert finished.outcome.parameters is None


def test_what_an_engine_that_disagrees_trains_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here by its last state alone; asked once, whatever the number of seeds."""
    real, asked = fused.unroll, list[object]()

    def wrong(cell: Cell, X: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        asked.append(cell)
        H, (last,) = real(cell, X, state)
        return H, (last + 1e-9,)

    monkeypatch.setattr(fused, "unroll", wrong)
    execute._disagrees.cache_clear()
    for seed in (0, 1):
        run = dataclasses.replace(RUNS[0], seed=seed, engine="fused")
        (finished,) = execute._one([run], corpus.embedded(), 1, lambda sign: None)
        said = "disagrees: fused differs from the plainest engine by 1e-09, over 1e-10: --engine names another"
        assert finished.outcome == Outcome(error=said)
    assert len(asked) == 1
    (finished,) = execute._one([RUNS[0]], corpus.embedded(), 1, lambda sign: None)
    assert finished.outcome.error == ""


def test_nothing_to_do() -> None:
    assert list(execute.execute([], corpus.embedded(), 0)) == []
