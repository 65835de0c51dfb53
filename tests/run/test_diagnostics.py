"""What looks inside a trained network only looks, and sees what the equations say."""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import variants
from harness import __main__ as command
from harness.data import batches, corpus
from harness.data import load as loading
from harness.experiments import protocols
from harness.record import tables
from harness.report import page, select
from harness.run import diagnostics, evaluate
from variants.model import Model

pytestmark = pytest.mark.usefixtures("in_process")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- inside the gates ----


@functools.cache
def book() -> corpus.Corpus:
    return loading.load("embedded")


def network(variant: str = "gru", seeds: tuple[int, ...] = (0, 1)) -> Model:
    return Model(variant, len(book().vocabulary), 6, seeds, "torch", dtype=torch.float64)


def characters(length: int, seeds: int, n: int = 3) -> torch.Tensor:
    return torch.randint(len(book().vocabulary), (length, 1, n), generator=rng(2)).expand(length, seeds, n)


def test_the_gates_of_a_second_layer_are_told_apart_and_a_lesion_holds_both() -> None:
    """By the layers run one after the other by hand."""
    model = Model("gru", len(book().vocabulary), 6, [0, 1], "torch", dtype=torch.float64, layers=2).eval()
    X = characters(30, 2)
    found = diagnostics.gates(model, X)[1]
    below, above = model.cell.begin(3)[:2]
    second: Any = model.cell.each_layer()[1]
    values = []
    with torch.no_grad():
        for x in model.cell.one_hot(X[:-1]):
            below = torch.as_tensor(variants.get("gru").step(model.cell, x, below))
            values.append(second.Z(below, above))
            above = second.step(below, above)
    assert list(found) == ["Z", "R", "Z.2", "R.2"]
    assert found["Z.2"]["mean"] == pytest.approx(torch.stack(values)[:, 1].mean().item(), abs=1e-12)
    assert [gate for gate, facts in found.items() if "tau_50" in facts] == ["Z", "Z.2"]
    assert all(cell.on_gate is None for cell in model.cell.each_layer())
    shares = diagnostics.reach(model, characters(80, 2))[0]
    assert shares[0] == 1 > shares[8] > 0
    letters = torch.arange(2 * diagnostics.SENTENCE) % 5
    told = {row["gate"] for row in diagnostics.heat(model, book(), letters)}
    assert told == {"Z", "R", "Z.2", "R.2"}
    protocol = protocols.protocol("quick")
    held = batches.split_streams(torch.arange(80) % 5, 2)
    lesion = evaluate.lesions(model, "gru", held, protocol)[0]["Z=1"]
    keeps = Model("gru:Z=1", len(book().vocabulary), 6, [0, 1], "torch", dtype=torch.float64, layers=2).eval()
    for name, weight in keeps.state_dict().items():
        weight.copy_(model.state_dict()[name])
    assert lesion == pytest.approx(evaluate.evaluate(keeps, held)[0].exp().item(), rel=1e-12)


def test_gate_values_are_those_of_the_equation() -> None:
    """Once more, step by step, by the cell's own methods."""
    model = network()
    X = characters(30, 2)
    found = diagnostics.gates(model, X)
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
    facts = diagnostics.gates(model, characters(20, 2))[1]["Z"]
    z = 1 / (1 + math.exp(-bias))
    assert (facts["shut"], facts["open"]) == (shut, open_)
    assert facts["mean"] == pytest.approx(z)
    assert facts["tau_10"] == facts["tau_90"] == pytest.approx(-1 / math.log(z))


def test_a_fixed_gate_is_not_looked_at_and_torch_has_none() -> None:
    assert list(diagnostics.gates(network("gru:R=1"), characters(9, 2))[0]) == ["Z"]
    assert diagnostics.gates(network("rnn"), characters(9, 2)) == [{}, {}]
    assert diagnostics.gates(network("gru:Z=1"), characters(9, 2)) == [
        {},
        {},
    ]  # R has no weights left: nothing to look at
    assert diagnostics.gates(network("nn.gru", (0,)), characters(9, 1)) == [{}]


@pytest.mark.parametrize("variant", ["gru", "rnn", "lstm", "nn.gru", "nn.lstm"])
def test_reach_is_the_gradient_by_finite_differences(variant: str) -> None:
    """The state some characters back, moved a little in one direction: what the last loss does."""
    seeds = (0,) if variant.startswith("nn.") else (0, 1)
    model = network(variant, seeds)
    X = characters(14, len(seeds), 1)
    found = diagnostics.reach(model, X)
    begun = max(0, 14 - 2 - 12 - diagnostics.REACH)
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
    assert diagnostics.reach(model, characters(80, 2))[0] == dict.fromkeys(diagnostics.REACHES, 1.0)
    assert list(diagnostics.reach(model, characters(6, 2))[0]) == [0, 1, 2, 3, 4]
    assert diagnostics.reach(model, characters(2, 2)) == [{}, {}]


def test_the_map_is_of_one_sentence_of_the_text_read_in_order() -> None:
    model = network()
    letters = torch.from_numpy(book().tokens[:300].astype("int64"))
    facts = diagnostics.heat(model, book(), letters)
    assert len(facts) == 2 * diagnostics.SENTENCE * 6  # all six units: there are not sixteen
    shown = "".join(f["character"] for f in facts if (f["gate"], f["unit"]) == ("Z", 0))
    assert shown == corpus.decode(book(), book().tokens[diagnostics.SENTENCE : 2 * diagnostics.SENTENCE])
    means = [sum(f["value"] for f in facts if (f["gate"], f["unit"]) == ("Z", u)) for u in range(6)]
    assert means == sorted(means)
    with torch.no_grad():
        X = letters[:, None, None].expand(-1, 2, 1)
        _, (H,) = model(X[: diagnostics.SENTENCE], model.cell.begin(1))
        update = model.cell.__class__.Z  # type: ignore[attr-defined]
        z = update(model.cell, model.cell.one_hot(X[diagnostics.SENTENCE][None])[0], H)[0, 0]
    first = sorted(f["value"] for f in facts if (f["gate"], f["position"]) == ("Z", 0))
    assert first == pytest.approx(sorted(z.tolist()), abs=1e-4)
    assert diagnostics.heat(model, book(), letters[:50]) == []


def test_the_map_shows_an_unknown_symbol_and_a_line_end_as_one_each() -> None:
    tokens = np.resize(np.arange(4, dtype=np.int32), 200)
    made = corpus.Corpus("made", "", tokens, (corpus.UNKNOWN, "\n", "a", "\u2028"))
    letters = torch.from_numpy(tokens.astype("int64"))
    facts = diagnostics.heat(Model("gru", 4, 6, [0]), made, letters)
    shown = [f["character"] for f in facts if (f["gate"], f["unit"]) == ("Z", 0)]
    assert shown == ["<unk>", "\\n", "a", "\\u2028"] * 15


def test_a_training_leaves_what_it_looked_at_in_the_tables(tmp_path: Path) -> None:
    words = ["ablate", "--corpus", "embedded", "--device", "cpu", "--seeds", "2", "--no-timing", "--variants", "gru",
             "gru:Z=0", "nn.gru", "--results", str(tmp_path), "--set", "train_characters=300", "heldout_characters=700",
             "batch_size=4", "num_steps=5", "epochs=1", "hidden=4"]  # fmt: skip
    assert command.main(words) == 0
    results = tables.read(tmp_path)
    assert sorted(zip(results.gates.variant, results.gates.gate, results.gates.seed, strict=True)) == [
        ("gru", "R", 0), ("gru", "R", 1), ("gru", "Z", 0), ("gru", "Z", 1), ("gru:Z=0", "R", 0), ("gru:Z=0", "R", 1),
    ]  # fmt: skip
    assert results.reach.groupby(["variant", "seed"]).ngroups == 6
    assert set(results.reach.characters_back) == set(diagnostics.REACHES)
    assert set(zip(results.heat.variant, results.heat.seed, strict=True)) == {("gru", 0)}
    (section,) = page.further(select.typed(results))
    assert section.table is not None
    assert [row[0].text for row in section.table.rows] == ["Z of gru", "R of gru", "R of gru:Z=0"]
    assert [bool(p.describe and p.describe(*p.frames)) for p in section.pictures] == [True] * 3


# ---- gates, one value a step ------------------------------------------------------------------------


def test_a_gate_computed_twice_in_a_step_counts_once_and_its_last_value() -> None:
    model, X = network("gru"), characters(9, 2)
    once = diagnostics.gates(model, X)

    class Twice(type(model.cell)):  # type: ignore[misc]
        def step(self, X: torch.Tensor, H: torch.Tensor) -> torch.Tensor:
            self.Z(1 - X, H)
            after: torch.Tensor = super().step(X, H)
            return after

    model.cell.__class__ = Twice
    assert diagnostics.gates(model, X) == once
    assert model.cell.on_gate is None


def test_a_gate_with_values_that_no_gate_has_is_refused_with_its_reason() -> None:
    model, X = network("gru"), characters(9, 2)

    class Wide(type(model.cell)):  # type: ignore[misc]
        def Z(self, X: torch.Tensor, H: torch.Tensor) -> torch.Tensor:
            values: torch.Tensor = 3 * super().Z(X, H)
            return values

    model.cell.__class__ = Wide
    for facts in diagnostics.gates(model, X):
        assert list(facts["Z"]) == ["error"]
        assert "a gate's are from 0 to 1" in facts["Z"]["error"]
        assert 0 <= facts["R"]["mean"] <= 1
    model.cell.W_xr.data[0] = math.nan
    broken, whole = diagnostics.gates(model, X)
    assert list(broken["R"]) == ["error"]
    assert 0 <= whole["R"]["mean"] <= 1
