"""The networks that the page runs: what a training keeps of itself, and that JavaScript computes what Python does."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import variants
from harness.data import load as loading
from harness.experiments import protocols
from harness.experiments.runs import Run
from harness.experiments.tasks import TASKS
from harness.record import store, tables
from harness.report import page
from harness.report.sections import laboratory
from harness.run import network, train, train_task
from harness.run.outcome import Outcome
from variants import outside
from variants.cell import Cell, gate, sigmoid
from variants.engines import derive
from variants.layers import stack
from variants.model import Model

NODE = shutil.which("node")
LETTERS, HIDDEN, LENGTH = 9, 7, 40
SYMBOLS = np.random.default_rng(0).integers(1, LETTERS, LENGTH).tolist()
CHECK = """
const { symbols, letters, cases } = JSON.parse(require("fs").readFileSync(process.argv[1], "utf8"));
console.log(JSON.stringify(cases.map(({ spec, hold }) => {
  const net = new Net(spec, letters);
  net.forward(symbols.slice(0, 9).concat(1, 2, 3)); // what was read before does not matter
  net.held(hold).forward(symbols);
  return { perplexity: net.perplexity(), reach: Array.from(net.reach(symbols.length - 1)) };
})));
"""


class Odd(Cell):
    """Every kind of line that there is."""

    weights = "W_xh W_hh b_h W_xz W_hz b_z"
    states = 2

    @gate
    def Z(self, X: Tensor, H: Tensor) -> Tensor:
        return functional.hardsigmoid(X @ self.W_xz + H @ self.W_hz + self.b_z)

    @gate
    def G(self, X: Tensor, H: Tensor) -> Tensor:
        return sigmoid(H @ self.W_hz)

    def step(self, X: Tensor, H: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        A = X @ self.W_xh + H @ self.W_hh + self.b_h
        Z = self.Z(X, H)
        C = Z * C + (1 - Z) * functional.gelu(A) + functional.softplus(A) / 9
        C = C + torch.where(A > 0.1, torch.exp(-A.abs()), torch.sqrt(A.square() + 1)) * self.G(X, H)
        C = C + torch.sin(A) * torch.cos(A) + torch.atan(A) + torch.log1p(abs(A)) + torch.expm1(-abs(A)) / 2
        C = C + torch.softmax(A, -1)
        N = (C - C.mean(-1, keepdim=True)) / torch.sqrt(C.var(-1, keepdim=True) + 1e-3)
        return torch.relu(N) + torch.log(1 + C.square()).clamp(max=2.0) + functional.leaky_relu(A) * (H >= 0), C


def model_of(variant: str, cell: type[Cell] | None = None, holds: dict[str, float] | None = None) -> Model:
    """A network with large weights, in float64, so that nothing in it is near 0; `holds` as a lesion holds them."""
    model = Model(variant, LETTERS, HIDDEN, [0], "torch", torch.float64)
    if cell:
        model.cell = cell(LETTERS, HIDDEN).double()
        for k, weight in enumerate(model.cell.parameters()):
            rng = torch.Generator().manual_seed(k)
            weight.data = (torch.randn(weight.shape, generator=rng) / 2).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3 if not cell else 1)
    for symbol, value in (holds or {}).items():
        name, _, layer = symbol.partition(".")
        model.cell.each_layer()[int(layer or 1) - 1].__dict__[name] = functools.partial(_constant, model.cell, value)
    return model.eval()


def _constant(cell: Cell, value: float, *seen: Tensor) -> Tensor:
    return cell.zero.new_full((1, 1, cell.h), value)


def answer(model: Model) -> tuple[float, list[float]]:
    """Perplexity of SYMBOLS, and as diagnostics.reach the norms of the last loss's gradient at each earlier state."""
    X = torch.tensor(SYMBOLS)[:, None, None]
    states = [tuple(s.requires_grad_() for s in model.cell.begin(1))]
    nats = []
    for t in range(len(X) - 1):
        if isinstance(model.cell, variants.library.Library):
            _, after = model.cell.unroll(model.cell.one_hot(X[t : t + 1]), states[-1])
        else:
            found = model.cell.step(model.cell.one_hot(X[t : t + 1])[0], *states[-1])
            after = found if isinstance(found, tuple) else (found,)
        states.append(tuple(s.clone() for s in after))
        logits = states[-1][0].reshape(1, 1, -1) @ model.W_hq + model.b_q
        nats.append(nn.functional.cross_entropy(logits.flatten(0, 1), X[t + 1].flatten()))
    grads = torch.autograd.grad(nats[-1], [s for state in states[1:] for s in state], allow_unused=True)
    each = len(states[0])
    norms = [
        float(sum((g.square().sum() for g in grads[k : k + each] if g is not None), torch.zeros(())).sqrt())
        for k in range(0, len(grads), each)
    ]
    return float(torch.stack(nats).mean().exp().detach()), norms


def in_node(cases: Any, folder: Path, check: str = CHECK) -> list[Any]:
    file = folder / "cases.json"
    file.write_text(json.dumps({"symbols": SYMBOLS, "letters": LETTERS, "cases": cases}))
    script = page.SCRIPT.joinpath("net.js").read_text() + check
    said = subprocess.run([str(NODE), "-e", script, str(file)], capture_output=True, text=True, check=True)
    found: list[Any] = json.loads(said.stdout)
    return found


@pytest.mark.skipif(NODE is None, reason="no node here")
def test_a_network_in_javascript_computes_what_it_computes_in_python(tmp_path: Path) -> None:
    """Every variant there is, some with gates fixed, one of every kind of line, one of two layers; each gate held,

    too; the gradients.
    """
    letters, wanted, names = list("?abcdefgh"), list[tuple[float, list[float]]](), list[str]()
    cases = list[dict[str, Any]]()
    cells: dict[str, type[Cell] | None] = {
        **dict.fromkeys([*variants.catalog(), "gru:R=1", "gru:Z=0", "lstm:F=1"]),
        "odd": Odd,
        "two layers": stack(variants.get("gru"), 2),
    }
    kept = list[str]()
    for name, cell in cells.items():
        model = model_of("rnn" if cell else name, cell)
        spec = network.network(model, 0, letters, SYMBOLS)
        if "why" in spec:
            assert derive.unsupported_reason(type(model.cell)) or "torch" in spec["why"], spec
            continue
        kept.append(name)
        assert name != "two layers" or list(spec["gates"]) == ["Z", "R", "Z.2", "R.2"]
        own = [] if name.startswith("nn.") else list(spec["gates"])
        for hold in [{}, *({symbol: value} for symbol in own for value in (0.0, 0.3, 1.0))]:
            wanted.append(answer(model_of("rnn" if cell else name, cell, hold)))
            names.append(f"{name} {hold}")
            cases.append({"spec": spec, "hold": hold})
    assert {"rnn", "gru", "lstm", "nn.gru", "nn.lstm", "nn.rnn", "gru:R=1", "gru:Z=0", "odd"} <= set(kept)
    used = {line[0] for case in cases for line in case["spec"]["code"]}
    assert {*derive.UNARY, *derive.COMPARE, "lin", "mul", "where", *derive.OVER, "mm", "gate"} - used <= {"tanh"} | used
    assert {"erf", "softplus", "hardsigmoid", "where", "positive", "natural", "log", "abs", "mean"} <= used
    for name, (perplexity, reach), found in zip(names, wanted, in_node(cases, tmp_path), strict=True):
        assert found["perplexity"] == pytest.approx(perplexity, rel=1e-5), name
        np.testing.assert_allclose(found["reach"], reach, rtol=1e-3, atol=1e-5 * max(reach), err_msg=name)


ANSWERS = """
const { cases } = JSON.parse(require("fs").readFileSync(process.argv[1], "utf8"));
console.log(JSON.stringify(cases.flatMap(t => t.nets.map(spec => {
  const net = new Net(spec, t.inputs.length, t.answers.length);
  return t.examples.map(x => net.forward(x.inputs) && x.asked.map(at => [net.answer(at), Math.max(...net.next(at))]));
}))));
"""


def probes(variants: tuple[str, ...], names: tuple[str, ...]) -> tuple[tables.Results, list[dict[str, Any]]]:
    """Tables and networks, of large random weights, of trainings on tasks."""
    rows, networks = list[dict[str, Any]](), list[dict[str, Any]]()
    for name in names:
        task = TASKS[name]
        for variant in variants:
            model = Model(variant, task.inputs, 16, [0], "torch", outputs=task.outputs).eval()
            with torch.no_grad():
                for weight in model.parameters():
                    weight.mul_(4)
            rows.append({"run": f"{variant} {name}", "variant": variant, "task": name, "protocol": name, "seed": 0,
                         "length": task.length, "score": 0.5, "error": ""})  # fmt: skip
            networks.append({"run": f"{variant} {name}", **json.loads(train_task.kept(model, 0, task)), "model": model})
    empty = {field.name: tables.frame(field.name, []) for field in dataclasses.fields(tables.Results)}
    return tables.Results(**{**empty, "probes": tables.frame("probes", rows)}), networks


@pytest.mark.skipif(NODE is None, reason="no node here")
def test_a_task_is_answered_in_javascript_as_in_python(tmp_path: Path) -> None:
    """Each answer of each network to each example: the same, as sure; the examples are of the scored sequences."""
    results, networks = probes(("gru", "gru:Z=0", "rnn", "nn.lstm"), ("s3", "delayed_recall", "counting", "copy"))
    text, _ = laboratory.data(results, networks)
    found = json.loads(text)["tasks"]
    assert [task["name"] for task in found] == ["s3", "delayed_recall", "copy", "counting"]
    assert [net["about"] for net in found[0]["nets"]] == ["both gates", "without Z", "neither", ""]
    models = {net["run"]: net["model"] for net in networks}
    said = iter(in_node(found, tmp_path, ANSWERS))
    for task in found:
        X, Y, counts = TASKS[task["name"]].fresh(TASKS[task["name"]].length)
        for net in task["nets"]:
            model = models[f"{net['name']} {task['name']}"]
            with torch.no_grad():
                outputs = model(torch.from_numpy(X[:, None, :20]), model.cell.begin(20))[0][:, 0].softmax(-1)
            for k, answered in enumerate(next(said)):
                own = task["examples"][k]
                assert own["inputs"] == X[: len(own["inputs"]), k].tolist()
                assert own["answers"] == Y[own["asked"], k].tolist()
                assert counts[own["asked"], k].all()
                assert [a for a, _ in answered] == outputs[own["asked"], k].argmax(-1).tolist()
                np.testing.assert_allclose([p for _, p in answered], outputs[own["asked"], k].amax(-1), rtol=1e-4)
    assert len({x["answers"][-1] for x in found[3]["examples"]}) > 1  # counting's last answer is always alike


def test_tasks_leave_room_and_say_what_they_are() -> None:
    results, networks = probes(("gru", "rnn"), ("s3", "adding"))
    found, used = laboratory.task_examples(results, networks)
    assert [task["name"] for task in found] == ["s3"]  # what reads numbers is not in the page
    assert used == sum(len(net["weights"]) for net in networks if "weights" in net)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(laboratory, "MOST_TASK_WEIGHTS", used - 1)
        assert [net["name"] for net in laboratory.task_examples(results, networks)[0][0]["nets"]] == ["gru"]
    assert laboratory.data(results, [])[0] == ""


def test_the_equations_are_those_that_were_trained(tmp_path: Path) -> None:
    """A cell of a user's own too, after its file was edited, or is gone."""
    file = tmp_path / "mine.py"
    file.write_text(OWN.format(law="torch.tanh"))
    [name] = outside.resolve([str(file)])
    run = Run(name, 0, protocols.protocol("quick"), "", "cpu", engine="loop")
    store.write_run(tmp_path, run, {"outcome": {"error": "", "network": {"why": "too large"}}})
    file.write_text(OWN.format(law="torch.relu"))
    kept = store.networks(tmp_path)
    empty = {field.name: tables.frame(field.name, []) for field in dataclasses.fields(tables.Results)}
    shown = tables.Results(**{**empty, "bench": tables.frame("bench", [{"variant": v} for v in ("mine", "gru")])})
    (_, _, own), (_, _, gru) = laboratory.equations(shown, kept)
    assert "torch.tanh" in own
    assert "import" not in own
    assert "H_tilde = tanh(" in gru
    (_, _, today), _ = laboratory.equations(shown, [])
    assert "torch.relu" in today
    file.unlink()
    assert len(laboratory.equations(shown, [])) == 1


OWN = '''"""H = f(X W + H W)"""

import torch

from variants import Cell


class Mine(Cell):
    weights = "W_xh W_hh b_h"

    def step(self, X, H):
        return {law}(X @ self.W_xh + H @ self.W_hh + self.b_h)
'''


@pytest.fixture(scope="module")
def trained() -> list[tuple[Run, Outcome]]:
    corpus = loading.load("embedded")
    protocol = dataclasses.replace(
        protocols.protocol("quick"), epochs=1, train_characters=3000, heldout_characters=1200, evaluations=1, hidden=8
    )
    runs = [Run(v, seed, protocol, corpus.sha256, "cpu", engine="loop") for v in ("gru", "gru:R=1") for seed in (0, 1)]
    return [(run, train.train([run], corpus)[0]) for run in runs]


def test_one_seed_of_each_variant_is_kept_beside_its_run(trained: list[tuple[Run, Outcome]], tmp_path: Path) -> None:
    for run, outcome in trained:
        assert (outcome.network is not None) == (run.seed == 0)
        store.write_run(tmp_path, run, {"outcome": {**vars(outcome), "curve": []}})
    kept = store.networks(tmp_path)
    assert [(net["variant"], net["hidden"], list(net["gates"])) for net in kept] == [
        ("gru", 8, ["Z", "R"]), ("gru:R=1", 8, ["Z"])
    ]  # fmt: skip
    assert all("network" not in file.read_text() for file in (tmp_path / "runs").glob("*.json"))
    assert kept[0]["keeps"] == "Z"
    assert kept[0]["vocabulary"][0] == "<unk>"


def test_what_cannot_be_run_by_the_page_says_why() -> None:
    def found(step: Any) -> dict[str, Any]:
        model = model_of("rnn", type("Drawn", (Cell,), {"weights": "W_xh W_hh b_h", "step": step}))
        return network.network(model, 0, "?ab", SYMBOLS)

    assert "cumsum" in found(lambda c, X, H: torch.cumsum(X @ c.W_xh + H @ c.W_hh, -1))["why"]
    assert "softmax" in found(lambda c, X, H: torch.softmax(X @ c.W_xh + H @ c.W_hh, 0))["why"]  # not over the units
    over_units = found(lambda c, X, H: torch.softmax(X @ c.W_xh + H @ c.W_hh, -1))
    assert "why" not in over_units
    assert "amax" in [line[0] for line in over_units["code"]]
    assert "larger than" in network.network(Model("rnn", 9, 800, [0]), 0, "?ab", SYMBOLS)["why"]
    assert laboratory.MOST_WEIGHTS < 2_000_000
