"""Are the tasks what their docstrings draw, are their scores right, and what looks inside a network only a look."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from harness import __main__ as command
from harness import corpus as text
from harness import evidence, grid, inside, probes, record, sections
from harness import plan as planning
from harness.grid import Run
from variants.model import Model

pytestmark = pytest.mark.usefixtures("in_process")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_adding_asks_for_the_sum_of_the_two_that_are_marked() -> None:
    X, Y, counts = probes.adding(7, 500, rng())
    numbers, marks = X.unbind(-1)
    assert ((numbers >= 0) & (numbers <= 1)).all()
    assert (marks[:3].sum(0) == 1).all()
    assert (marks[3:].sum(0) == 1).all()
    assert counts.nonzero()[:, 0].unique().tolist() == [6]
    assert torch.equal(Y[-1], (numbers * marks).sum(0))
    assert {int(t) for t in marks.nonzero()[:, 0]} == set(range(7))  # every place is asked for


@pytest.mark.parametrize("task", ["copy", "selective_copy"])
def test_copy_answers_with_the_symbols_in_their_order(task: str) -> None:
    X, Y, counts = probes.PROBES[task].make(6, 300, rng())
    blank, signal = probes.SYMBOLS, probes.SYMBOLS + 1
    assert X.shape == (6 + 2 * probes.KEPT, 300)
    assert (X[6 + probes.KEPT] == signal).all()
    assert (X[7 + probes.KEPT :] == blank).all()
    assert (counts.nonzero()[:, 0] >= 6 + probes.KEPT).all()
    assert int(counts.sum()) == 300 * probes.KEPT
    for n in range(300):
        shown = [int(x) for x in X[: 6 + probes.KEPT, n] if x < blank]
        assert shown == Y[-probes.KEPT :, n].tolist()
    first = (X[:, :] < blank).float().mean(1)[: 6 + probes.KEPT]
    scattered = first.min() > 0.4 and first.max() < 0.85  # 10 of 16 places
    assert scattered == (task == "selective_copy")


def test_counting_answers_every_symbol_that_is_certain() -> None:
    for make, least, most in ((probes.counting, 1, 5), (probes.counting_on, 6, 10)):
        X, Y, counts = make(5, 400, rng())
        seen = set()
        for n in range(400):
            x, y, c = (v[:, n].tolist() for v in (X, Y, counts))
            k = x.count(1)
            seen.add(k)
            string = [0] + [1] * k + [2] * k
            assert x[: 2 * k + 1] == string
            assert not any(x[2 * k + 1 :])
            assert y[: 2 * k + 1] == [*string[1:], 0]
            assert [t for t, counted in enumerate(c) if counted] == list(range(k + 1, 2 * k + 1))
        assert seen == set(range(least, most + 1))


class Oracle(torch.nn.Module):
    """Answers from a table of what is right, or always the same."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer
        self.cell = self

    def begin(self, n: int) -> tuple[()]:
        return ()

    def forward(self, X: torch.Tensor, state: object) -> tuple[torch.Tensor, object]:
        return self.answer, state


@pytest.mark.parametrize("task", list(grid.PROBES))
def test_the_ends_of_a_score_are_what_is_said(task: str) -> None:
    """A perfect network, and one without memory, against grid.SCORES."""
    _, Y, counts = probes.together([probes.fresh(task, 5)], "cpu")
    ends, outputs = grid.SCORES[task], probes.PROBES[task].outputs
    if outputs == 1:
        perfect, dull = Y[..., None], torch.ones_like(Y)[..., None]
    else:
        perfect = torch.nn.functional.one_hot(Y.long(), outputs).float()
        dull = torch.zeros_like(perfect)
        dull[..., 2] = 1.0
    assert probes.score(Oracle(perfect), task, 5, 1, "cpu") == [ends.optimal]  # type: ignore[arg-type]
    [found] = probes.score(Oracle(dull), task, 5, 1, "cpu")  # type: ignore[arg-type]
    assert found == pytest.approx(ends.trivial, abs=0.015)  # 1,000 sequences: three standard errors
    wrong = perfect.clone()
    wrong[~counts] = 0  # what does not count changes nothing
    assert probes.score(Oracle(wrong), task, 5, 1, "cpu") == [ends.optimal]  # type: ignore[arg-type]


def test_one_wrong_symbol_makes_a_string_wrong() -> None:
    _, Y, counts = probes.together([probes.fresh("counting", 5)], "cpu")
    perfect = torch.nn.functional.one_hot(Y, 3).float()
    t = int(counts[:, 0, 0].nonzero()[0])
    perfect[t, 0, 0] = perfect[t, 0, 0].roll(1)
    assert probes.score(Oracle(perfect), "counting", 5, 1, "cpu") == [1 - 1 / grid.SCORED]  # type: ignore[arg-type]


def run(task: str, seed: int = 0, variant: str = "gru", engine: str = "fused", **changes: object) -> Run:
    protocol = dataclasses.replace(grid.PROBES[task], hidden=8, epochs=2, num_steps=4, **changes)  # type: ignore[arg-type]
    return Run(variant, seed, protocol, "", "cpu", engine)


def test_a_probe_is_learned_and_a_seed_is_its_own() -> None:
    together = probes.train([run("adding", seed) for seed in (0, 1)])
    alone = probes.train([run("adding", 1)])[0]
    assert alone.score == pytest.approx(together[1].score, rel=1e-3)
    assert alone.score != pytest.approx(together[0].score, rel=1e-3)
    assert (alone.score or 1) < 0.9 * grid.SCORES["adding"].trivial
    assert alone.heldout_perplexity is None
    assert probes.train([run("adding", 1)])[0].score == alone.score
    loop = probes.train([run("adding", 1, engine="loop")])[0]
    assert loop.score == pytest.approx(alone.score, rel=1e-2)


def test_a_seed_that_diverges_is_a_row_and_the_other_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    real = probes.PROBES["adding"].make

    def poisoned(length: int, n: int, generator: torch.Generator) -> probes.Batch:
        X, Y, counts = real(length, n, generator)
        return (X * math.nan if generator.initial_seed() == 1 else X), Y, counts

    monkeypatch.setitem(probes.PROBES, "adding", dataclasses.replace(probes.PROBES["adding"], make=poisoned))
    monkeypatch.setattr(probes, "fresh", lambda task, length: real(length, 50, rng(5)))
    good, bad = probes.train([run("adding", seed) for seed in (0, 1)])
    assert "diverged" in bad.error
    assert bad.score is None
    assert good.error == ""
    assert (good.score or 1) < 0.2


def test_probe_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["probe", "--device", "cpu", "--seeds", "2", "--tasks", "copy", "adding", "--lengths", "3", "4",
             "--variants", "gru", "rnn", "--set", "epochs=1", "hidden=4", "--results", str(tmp_path)]  # fmt: skip
    assert command.main(words) == 0
    rows = record.read(tmp_path).probes
    assert len(rows) == 2 * 2 * 2 * 2
    assert record.read(tmp_path).runs.empty
    assert set(rows.length) == {3, 4}
    for r in rows.itertuples():
        ends = grid.SCORES[r.task]
        assert (r.score_is, r.trivial, r.optimal) == tuple(ends)
    scores = evidence.probe_scores(rows)
    own = rows[(rows.task == "copy") & (rows.length == 3) & (rows.variant == "gru")].score
    found = scores[(scores.task == "copy") & (scores.length == 3) & (scores.variant == "gru")].iloc[0]
    assert found.score == pytest.approx(own.mean())
    assert (found.n, found.failed) == (2, 0)
    assert found.low < found.score < found.high
    said = capsys.readouterr().out
    assert "adding: mean squared error" in said
    (section,) = sections.sections(evidence.typed(record.read(tmp_path)))
    again = command.parser().parse_args(section.command.split()[3:])
    assert section.id == "probes"
    keys = [
        {run.key for plan in planning.probes(asked) for run in plan.runs}
        for asked in (again, command.parser().parse_args(words))
    ]
    assert keys[0] == keys[1]  # typed again, it would train the same


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "coppy"], "Did you mean 'copy'?"),
        (["--lengths", "1"], "at least 2"),
        (["--lengths", "x"], "whole number"),
        (["--protocol", "quick"], "no --protocol"),
        (["--set", "num_steps=4"], "num_steps"),
        (["--variants", "grru"], "Did you mean 'gru'?"),
        (["--precision", "tf32"], "needs CUDA"),
        (["--engine", "naitive"], "Did you mean 'native'?"),
    ],
)
def test_a_bad_probe_is_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["probe", "--device", "cpu", "--results", str(tmp_path), *words]) == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1


# ---- inside the gates ----


@functools.cache
def book() -> text.Corpus:
    return text.load("embedded")


def network(variant: str = "gru", seeds: tuple[int, ...] = (0, 1)) -> Model:
    return Model(variant, len(book().vocabulary), 6, seeds, "torch", dtype=torch.float64)


def characters(length: int, seeds: int, n: int = 3) -> torch.Tensor:
    return torch.randint(len(book().vocabulary), (length, 1, n), generator=rng(2)).expand(length, seeds, n)


def test_gate_values_are_those_of_the_equation() -> None:
    """Once more, step by step, by the cell's own methods."""
    model = network()
    X = characters(30, 2)
    found = inside.gates(model, X)
    H = model.cell.begin(3)[0]
    seen: dict[str, list[torch.Tensor]] = {"Z": [], "R": []}
    with torch.no_grad():
        for x in model.cell.one_hot(X[:-1]):
            for gate in "ZR":
                seen[gate].append(getattr(model.cell, gate)(x, H))
            H = torch.as_tensor(model.cell.step(x, H))
    for seed, gate in itertools.product(range(2), "ZR"):
        v = torch.stack(seen[gate])[:, seed]
        facts = found[seed][gate]
        assert facts["mean"] == pytest.approx(v.mean().item(), abs=1e-12)
        assert facts["sd"] == pytest.approx(v.std(correction=0).item(), abs=1e-9)
        assert facts["unit_sd"] == pytest.approx(v.mean((0, 1)).std(correction=0).item(), abs=1e-9)
        assert ("tau_50" in facts) == (gate == "Z")
    tau = -1 / torch.stack(seen["Z"])[:, 0].log().mean((0, 1))
    assert found[0]["Z"]["tau_50"] == pytest.approx(tau.quantile(0.5).item(), rel=1e-9)
    assert "Z" not in vars(model.cell)  # nothing of the look is left


@pytest.mark.parametrize(("bias", "shut", "open_"), [(-8.0, 1.0, 0.0), (8.0, 0.0, 1.0), (0.0, 0.0, 0.0)])
def test_saturation_and_time_constant(bias: float, shut: float, open_: float) -> None:
    model = network()
    for name in ("W_xz", "W_hz"):
        getattr(model.cell, name).data.zero_()
    model.cell.b_z.data.fill_(bias)
    facts = inside.gates(model, characters(20, 2))[1]["Z"]
    z = 1 / (1 + math.exp(-bias))
    assert (facts["shut"], facts["open"]) == (shut, open_)
    assert facts["mean"] == pytest.approx(z)
    assert facts["tau_10"] == facts["tau_90"] == pytest.approx(-1 / math.log(z))


def test_a_fixed_gate_is_not_looked_at_and_torch_has_none() -> None:
    assert list(inside.gates(network("gru:R=1"), characters(9, 2))[0]) == ["Z"]
    assert inside.gates(network("rnn"), characters(9, 2)) == [{}, {}]
    assert inside.gates(network("gru:Z=1"), characters(9, 2)) == [{}, {}]  # R has no weights left: nothing to look at
    assert inside.gates(network("nn.gru", (0,)), characters(9, 1)) == [{}]


@pytest.mark.parametrize("variant", ["gru", "rnn", "lstm", "nn.gru", "nn.lstm"])
def test_reach_is_the_gradient_by_finite_differences(variant: str) -> None:
    """The state some characters back, moved a little in one direction: what the last loss does."""
    seeds = (0,) if variant.startswith("nn.") else (0, 1)
    model = network(variant, seeds)
    X = characters(14, len(seeds), 1)
    found = inside.reach(model, X)
    begun = max(0, 14 - 2 - 12 - inside.REACH)
    assert begun == 0

    def last_loss(back: int, change: torch.Tensor, part: int) -> torch.Tensor:
        """Per seed, the state before character 13 - back moved."""
        with torch.no_grad():
            _, state = model(X[: 13 - back], model.cell.begin(1))
            state = tuple(s + change if k == part else s for k, s in enumerate(state))
            if back:
                logits, _ = model(X[13 - back : 13], state)
                logits = logits[-1]
            else:
                logits = state[0] @ model.W_hq + model.b_q
            nats: torch.Tensor = -logits.log_softmax(-1)[:, 0].gather(-1, X[13, :, :1])[:, 0]
            return nats

    norms = {}
    for back in (0, 2, 4):
        total = torch.zeros(len(seeds), dtype=torch.float64)
        for part in range(model.cell.states):
            for unit in range(6):
                e = torch.zeros(6, dtype=torch.float64)
                e[unit] = 1e-5
                slope = (last_loss(back, e, part) - last_loss(back, -e, part)) / 2e-5
                total += slope**2
        norms[back] = total.sqrt()
    for s in range(len(seeds)):
        assert found[s][0] == 1.0
        for back in (2, 4):
            assert found[s][back] == pytest.approx((norms[back][s] / norms[0][s]).item(), rel=1e-5)


def test_reach_of_a_network_that_keeps_everything_is_whole() -> None:
    model = network()
    model.cell.b_z.data.fill_(40.0)  # Z = 1 to the last bit
    assert inside.reach(model, characters(80, 2))[0] == dict.fromkeys(inside.REACHES, 1.0)
    assert list(inside.reach(model, characters(6, 2))[0]) == [0, 1, 2, 3, 4]
    assert inside.reach(model, characters(2, 2)) == [{}, {}]


def test_the_map_is_of_one_sentence_of_the_text_read_in_order() -> None:
    model = network()
    letters = torch.from_numpy(book().tokens[:300].astype("int64"))
    facts = inside.heat(model, book(), letters)
    assert len(facts) == 2 * inside.SENTENCE * 6  # all six units: there are not sixteen
    shown = "".join(f["character"] for f in facts if (f["gate"], f["unit"]) == ("Z", 0))
    assert shown == text.decode(book(), book().tokens[inside.SENTENCE : 2 * inside.SENTENCE])
    means = [sum(f["value"] for f in facts if (f["gate"], f["unit"]) == ("Z", u)) for u in range(6)]
    assert means == sorted(means)
    with torch.no_grad():
        X = letters[:, None, None].expand(-1, 2, 1)
        _, (H,) = model(X[: inside.SENTENCE], model.cell.begin(1))
        update = model.cell.__class__.Z  # type: ignore[attr-defined]
        z = update(model.cell, model.cell.one_hot(X[inside.SENTENCE][None])[0], H)[0, 0]
    first = sorted(f["value"] for f in facts if (f["gate"], f["position"]) == ("Z", 0))
    assert first == pytest.approx(sorted(z.tolist()), abs=1e-4)
    assert inside.heat(model, book(), letters[:50]) == []


def test_the_map_shows_an_unknown_symbol_and_a_line_end_as_one_each() -> None:
    tokens = np.resize(np.arange(4, dtype=np.int32), 200)
    made = text.Corpus("made", "", tokens, (text.UNKNOWN, "\n", "a", "\u2028"))
    letters = torch.from_numpy(tokens.astype("int64"))
    facts = inside.heat(Model("gru", 4, 6, [0]), made, letters)
    shown = [f["character"] for f in facts if (f["gate"], f["unit"]) == ("Z", 0)]
    assert shown == ["<unk>", "\\n", "a", "\\u2028"] * 15


def test_a_training_leaves_what_it_looked_at_in_the_tables(tmp_path: Path) -> None:
    words = ["ablate", "--corpus", "embedded", "--device", "cpu", "--seeds", "2", "--no-timing", "--variants", "gru",
             "gru:Z=0", "nn.gru", "--results", str(tmp_path), "--set", "train_characters=300", "heldout_characters=700",
             "batch_size=4", "num_steps=5", "epochs=1", "hidden=4"]  # fmt: skip
    assert command.main(words) == 0
    results = record.read(tmp_path)
    assert sorted(zip(results.gates.variant, results.gates.gate, results.gates.seed, strict=True)) == [
        ("gru", "R", 0), ("gru", "R", 1), ("gru", "Z", 0), ("gru", "Z", 1), ("gru:Z=0", "R", 0), ("gru:Z=0", "R", 1),
    ]  # fmt: skip
    assert results.reach.groupby(["variant", "seed"]).ngroups == 6
    assert set(results.reach.characters_back) == set(inside.REACHES)
    assert set(zip(results.heat.variant, results.heat.seed, strict=True)) == {("gru", 0)}
    (section,) = sections.sections(evidence.typed(results))
    assert section.table is not None
    assert [row[0].text for row in section.table.rows] == ["Z of gru", "R of gru", "R of gru:Z=0"]
    assert [bool(alt(*frames)) for _, _, _, alt, frames, _ in section.pictures] == [True] * 3


# ---- gates, one value a step ------------------------------------------------------------------------


def test_a_gate_computed_twice_in_a_step_counts_once_and_its_last_value() -> None:
    model, X = network("gru"), characters(9, 2)
    once = inside.gates(model, X)

    class Twice(type(model.cell)):  # type: ignore[misc]
        def step(self, X: torch.Tensor, H: torch.Tensor) -> torch.Tensor:
            self.Z(1 - X, H)
            after: torch.Tensor = super().step(X, H)
            return after

    model.cell.__class__ = Twice
    assert inside.gates(model, X) == once
    assert model.cell.on_gate is None


def test_a_gate_with_values_that_no_gate_has_is_refused_with_its_reason() -> None:
    model, X = network("gru"), characters(9, 2)

    class Wide(type(model.cell)):  # type: ignore[misc]
        def Z(self, X: torch.Tensor, H: torch.Tensor) -> torch.Tensor:
            values: torch.Tensor = 3 * super().Z(X, H)
            return values

    model.cell.__class__ = Wide
    for facts in inside.gates(model, X):
        assert list(facts["Z"]) == ["error"]
        assert "a gate's are from 0 to 1" in facts["Z"]["error"]
        assert 0 <= facts["R"]["mean"] <= 1
    model.cell.W_xr.data[0] = math.nan
    broken, whole = inside.gates(model, X)
    assert list(broken["R"]) == ["error"]
    assert 0 <= whole["R"]["mean"] <= 1
