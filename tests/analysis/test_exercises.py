"""The book's exercises: gates by hand are exact, and what trained gates do around the marked step is what they do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
import torch

from harness import __main__ as command
from harness import plan
from harness.analysis import compare
from harness.experiments import grids, protocols, questions
from harness.experiments.questions import Question
from harness.experiments.tasks import SYMBOLS, TASKS
from harness.record import tables
from harness.report import select
from harness.report.sections import axes, claims
from harness.run import by_hand, diagnostics, train_task

TASK = TASKS["delayed_recall"]


@pytest.mark.parametrize("engine", ["loop", "native"])
@pytest.mark.parametrize("length", [8, 32, 64, 1000])
def test_gates_set_by_hand_use_the_input_at_t_exactly(length: int, engine: str) -> None:
    model = by_hand.delayed_recall(engine)
    X, Y, counts = TASK.make(length, 200, np.random.default_rng(length))
    outputs = model(torch.from_numpy(X)[:, None], model.cell.begin(200))[0][:, 0]
    right = (outputs.argmax(-1).numpy() == Y)[counts]
    assert right.all()
    assert len(right) == 200


def test_each_gate_set_by_hand_is_needed() -> None:
    def score(model: object) -> float:
        return float(train_task.score(model, TASK, 32, 32)[0])  # type: ignore[arg-type]

    assert score(by_hand.delayed_recall()) == 1
    never = by_hand.delayed_recall()
    never.cell.W_xz.data[:] = -by_hand.LARGE  # always rewritten
    assert score(never) < 0.3
    always = by_hand.delayed_recall()
    always.cell.W_xz.data[:] = by_hand.LARGE  # never written
    assert score(always) < 0.3


def test_positions_are_relative_to_the_marked_step() -> None:
    model = by_hand.delayed_recall()
    X = torch.from_numpy(TASK.make(40, 300, np.random.default_rng(0))[0])
    at = ((X >= SYMBOLS) & (X < 2 * SYMBOLS)).int().argmax(0)
    rows = diagnostics.by_position(model, X, at)
    means = {(r["gate"], r["position"]): r["mean"] for r in rows}
    assert means == {(g, k): float(k != 0) for g in "ZR" for k in range(-diagnostics.BEFORE, diagnostics.AFTER + 1)}
    assert {r["share"] for r in rows} == {1.0}  # every unit keeps what was written
    shifted = {(r["gate"], r["position"]): r["mean"] for r in diagnostics.by_position(model, X, at - 1)}
    assert shifted["Z", 1] == 0
    assert shifted["Z", 0] == 1


def test_only_units_that_keep_carry() -> None:
    model = by_hand.delayed_recall()
    model.cell.W_xz.data[:, :, 2:] = 0  # all but two units are half rewritten at every step
    X, _, _ = train_task.fresh("delayed_recall", 40)
    rows = train_task.looked_into(model, TASK, 40)
    own = {(r["gate"], r["position"]): r for r in rows}
    assert own["Z", 1]["share"] == 2 / SYMBOLS
    assert own["Z", 1]["carrying"] == 1
    assert own["Z", 0]["carrying"] == 0
    assert own["Z", 1]["mean"] == pytest.approx((2 + 6 / 2) / 8)
    assert train_task.looked_into(model, TASKS["s3"], 32) == []
    assert len(X) == 40


def test_the_exercises_are_answered_from_rows(tmp_path: Path) -> None:
    data = select.typed(synthetic.read(synthetic.write(tmp_path)))
    section = claims.exercises(data)
    assert section is not None
    assert section.table is not None
    first, second, third, fourth = [row[1].text for row in section.table.rows]
    assert "scores 1.000 at length 64" in first
    assert "Trained (3 seeds): on the units that carry the symbol Z is 0.00 at t', 1.00 a step" in first
    assert "From hidden 8 to 32" in second
    assert "of nn.GRU" in third
    assert "the reset gate alone (gru:Z=0)" in fourth
    for p in section.pictures:
        assert p.describe is not None
        assert bool(p.describe(*p.frames)) == (p.draw(*p.frames) is not None)
    nothing = dataclasses.replace(data, axes=data.axes.iloc[:0], bench=data.bench.iloc[:0], ablate=data.ablate.iloc[:0])
    section = claims.exercises(nothing)
    assert section is not None
    assert section.table is not None
    assert [row[1].text for row in section.table.rows][1:] == ["Not on file."] * 3
    assert claims.exercises(dataclasses.replace(data, positions=data.positions.iloc[:0])) is None


def test_the_verb_trains_all_of_it_and_a_rate_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: None
) -> None:
    small: dict[str, Any] = {
        "train_characters": 400,
        "heldout_characters": 200,
        "epochs": 1,
        "evaluations": 1,
        "batch_size": 4,
    }
    monkeypatch.setitem(protocols.PROTOCOLS, "quick", dataclasses.replace(protocols.protocol("quick"), **small))
    parts = ("gru", "gru:R=1", "gru:Z=0", "rnn")
    monkeypatch.setitem(plan.GRIDS, "ablate", parts)
    monkeypatch.setattr("harness.pipeline.EXERCISE_SIZES", (4, 8))
    monkeypatch.setattr(grids, "ANSWERING", ("delayed_recall",))
    monkeypatch.setattr(grids, "TASK_VARIANTS", ("gru", "rnn"))
    monkeypatch.setitem(protocols.TASK_RATES, "adam", (0.01, 0.02))
    whole = protocols.task_protocol("delayed_recall")
    monkeypatch.setattr(protocols, "task_protocol", lambda name: dataclasses.replace(whole, epochs=1, hidden=8))
    ask = ["--seeds", "2", "--results", str(tmp_path), "--device", "cpu"]
    assert command.main(["exercises", "--no-timing", *ask]) == 0
    data = tables.read(tmp_path)
    assert data.positions.groupby("origin").seed.nunique().to_dict() == {"by hand": 1, "trained": 2}
    assert set(data.positions[data.positions.origin == "by hand"].score) == {1.0}
    assert set(data.axes.point) == {"4", "8"}
    assert (len(data.bench), len(data.ablate)) == (3, len(parts))
    assert command.main(["probe", "--tasks", "delayed_recall", "--variants", "gru", "rnn", *ask]) == 0
    assert set(tables.read(tmp_path).tasks.rates_tried) == {2}  # two grids asked for the same


def test_a_reviewer_s_questions_have_a_row_each_and_what_was_not_run_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each difference is that of its own trainings; stopped early, of the same trainings' best epochs."""
    small = ("train_characters=400", "heldout_characters=100", "epochs=4", "batch_size=4", "hidden=4")
    tuned = (*small, "validation_characters=100", "rate=chosen")
    asked = (
        Question("as_it_is", "As it is", small), Question("longer", "Longer?", tuned),
        Question("early_stopping", "Stopped?", tuned, early=True), Question("text", "Another?", small, "python-docs"),
    )  # fmt: skip
    monkeypatch.setattr(questions, "QUESTIONS", asked)
    monkeypatch.setattr(compare, "QUESTIONS", (*asked, Question("later", "Not asked?", (*small, "layers=2"))))
    monkeypatch.setitem(protocols.RATES, "sgd", (0.5, 4.0))
    assert command.main(["questions", "--seeds", "2", "--results", str(tmp_path), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    data = tables.read(tmp_path)
    assert "24 trainings that are scored" in said
    table = data.questions.set_index(["question", "variant"])
    assert len(table) == 5 * 4
    assert set(table.loc["later"].seeds) == {0}
    assert table.loc["later"].delta_nats.isna().all()
    assert set(table.loc["text"].corpus) == {"python-docs"}
    assert set(table[table.seeds > 0].comparisons.dropna()) == {3}
    for question, column in (("as_it_is", "heldout_perplexity"), ("early_stopping", "best_perplexity")):
        own = data.runs[data.runs.protocol == table.loc[question, "gru"].protocol]
        own = own[(own.corpus == "time-machine") & (own.seed < 1000)].set_index(["variant", "seed"])[column].map(np.log)
        assert table.loc[(question, "gru:R=1"), "delta_nats"] == pytest.approx((own["gru:R=1"] - own["gru"]).mean())
    section = axes.questions(select.typed(data))
    assert section is not None
    assert section.table is not None
    last = section.table.rows[-1]
    assert [(cell.text, cell.note) for cell in last[1:]] == [("not run", "make questions")] * 3
    assert section.command == "python -m harness questions --device cpu --seeds 2"
    assert "Another?" in said
    assert "gru:Z=0,R=1: " in said
    assert "gru:R=1: not run" in said
