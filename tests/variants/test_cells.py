"""A newcomer's cell: found, checked in words, its gates fixed without a live weight lost, no other cell's engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import variants
from variants import registry
from variants.cell import Absent, Cell, State, fix, gate, relu, sigmoid, tanh
from variants.contract import fault
from variants.gru import GRU

RESET = "W_xr W_hr b_r"


def dead(cell: type[Cell], **values: float) -> set[str]:
    fixed = fix(cell, tuple(values.items()))  # type: ignore[arg-type]
    assert not fixed.whole
    return set(fixed.absent)


# ---- what a fixed gate removes --------------------------------------------------------------------


class Gated(Cell):
    """A reset gate, and a `past` to be written: what is left of the state."""

    weights = f"W_xh W_hh b_h {RESET} W_hp"

    @gate
    def R(self, X: Tensor, H: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xr + H @ self.W_hr + self.b_r)

    def past(self, H: Tensor) -> Tensor:
        return H

    def step(self, X: Tensor, H: Tensor) -> Tensor | State:
        return tanh(X @ self.W_xh + self.R(X, H) * (self.past(H) @ self.W_hh) + self.b_h)


class ClosedReLU(Gated):
    def past(self, H: Tensor) -> Tensor:
        return H + relu(H @ self.W_hp - 1000)


class OnlyInTraining(Gated):
    def past(self, H: Tensor) -> Tensor:
        return H + H @ self.W_hp if self.training else H


class Warming(Gated):
    """Its weight acts from the hundredth step on."""

    def __init__(self, d: int, h: int, seeds: int = 1) -> None:
        super().__init__(d, h, seeds)
        self.register_buffer("t", torch.zeros((), dtype=torch.long))

    def past(self, H: Tensor) -> Tensor:
        if self.training:
            self.t.add_(1)
        return torch.where(self.t > 100, H @ self.W_hp, H)


class LongMemory(Gated):
    """What goes in comes out ten steps later."""

    states = 11

    def step(self, X: Tensor, *line: Tensor) -> State:
        H = tanh(self.R(X, line[0]) * (X @ self.W_xh) + line[-1])
        return H, line[0] @ self.W_hp, *line[1:-1]


@pytest.mark.parametrize("cell", [ClosedReLU, OnlyInTraining, Warming, LongMemory])
@pytest.mark.parametrize("value", [0.5, 1.0])
def test_a_weight_that_may_yet_act_is_never_cut(cell: type[Cell], value: float) -> None:
    unused = {"W_hh", "b_h"} if cell is LongMemory else set()
    assert dead(cell, R=value) == {*RESET.split(), *unused}


def test_what_is_multiplied_by_nothing_is_cut_however_it_is_reached() -> None:
    for cell in (ClosedReLU, OnlyInTraining, Warming):
        assert dead(cell, R=0.0) == {*RESET.split(), "W_hh", "W_hp"}


class Branching(Gated):
    def past(self, H: Tensor) -> Tensor:
        return H @ self.W_hp if H.sum() > 5 else H


def test_a_step_that_asks_for_a_value_keeps_every_weight_and_says_why() -> None:
    fixed = fix(Branching, (("R", 0.0),))
    assert not fixed.absent
    assert "asks for a value" in fixed.whole
    assert fixed.gates() == ["R"]


class InPlace(Gated):
    """Written into a tensor made empty, through a view."""

    def past(self, H: Tensor) -> Tensor:
        both = torch.empty(2, *H.shape, dtype=H.dtype)
        both[0].copy_(H)
        both[1].copy_(H @ self.W_hp)
        return both.sum(0)


def test_a_weight_that_comes_in_through_a_view_is_seen() -> None:
    assert dead(InPlace, R=1.0) == set(RESET.split())


class Functions(Cell):
    """Products and sums as torch's functions, of several arguments."""

    weights = f"W_xz W_hz b_z {RESET} W_xh W_hh b_h g_h"

    @gate
    def Z(self, X: Tensor, H: Tensor) -> Tensor:
        return sigmoid(torch.add(torch.matmul(X, self.W_xz), torch.einsum("snh,shk->snk", H, self.W_hz)) + self.b_z)

    @gate
    def R(self, X: Tensor, H: Tensor) -> Tensor:
        return sigmoid(torch.baddbmm(self.b_r, torch.cat([X, H], -1), torch.cat([self.W_xr, self.W_hr], -2)))

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        past = torch.einsum("snh,shk->snk", torch.mul(self.R(X, H), H), self.W_hh)
        A = functional.layer_norm(torch.matmul(X, self.W_xh) + past, (self.h,))
        Z = self.Z(X, H)
        return torch.lerp(tanh(torch.addcmul(self.b_h, self.g_h, A)), H, Z)


@pytest.mark.parametrize("values", [{"Z": 0.0}, {"Z": 0.5}, {"Z": 1.0}, {"R": 0.0}, {"R": 1.0}, {"Z": 1.0, "R": 0.0}])
def test_functions_of_several_arguments_take_what_is_absent(values: dict[str, float]) -> None:
    own = {"Z": {"W_xz", "W_hz", "b_z"}, "R": {"W_xr", "W_hr", "b_r"}}
    every = set(Functions.weights.split())
    expected = every if values.get("Z") == 1 else set().union(*(own[g] for g in values))
    expected |= {"W_hh"} if values.get("R") == 0 else set()
    assert dead(Functions, **values) == expected


def test_absent_is_zeros_to_every_function() -> None:
    cell = fix(GRU, (("Z", 1.0),))(3, 4, 2)
    W, zeros, X = cell.W_xh, torch.zeros(2, 3, 4), torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    assert isinstance(W, Absent)
    calls: list[Callable[[Tensor], Tensor]] = [
        lambda W: functional.layer_norm(X @ W, (4,)), lambda W: functional.linear(X[0], W[0].mT),
        lambda W: torch.cat([X[:, :3], W], -1), lambda W: W**2 + abs(W),
        lambda W: torch.where(W > 0, W, W + 1), lambda W: (W + 2).exp(), lambda W: 3 - W, lambda W: W - 3,
        lambda W: torch.softmax(X @ W, -1), lambda W: (X @ W).mean(-2, keepdim=True),
        lambda W: torch.sub(X[:, :3], W[..., :3]),
        lambda W: torch.stack([W, W]).flatten(0, 1), lambda W: (W * 2 - W / 3).clamp(min=1), lambda W: torch.bmm(X, W),
        lambda W: X.new_ones(W.shape) * torch.sigmoid(W), lambda W: torch.rsub(W, 2),
    ]  # fmt: skip
    for k, call in enumerate(calls):
        result = call(W)
        shown = result.zeros() if isinstance(result, Absent) else result
        torch.testing.assert_close(shown, call(zeros), msg=f"call {k}")


# ---- what every cell must keep --------------------------------------------------------------------


def written(**said: object) -> type[Cell]:
    """A plain cell, some of it written otherwise."""

    def step(self: Cell, X: Tensor, H: Tensor) -> Tensor:
        return tanh(X @ self.W_xh + H @ self.W_hh)

    return type("Own", (Cell,), {"weights": "W_xh W_hh", "step": step, **said})


def stepping(step: Callable[[Cell, Tensor, Tensor], object]) -> dict[str, object]:
    return {"step": step}


def counting(self: Cell, X: Tensor, H: Tensor) -> Tensor:
    self.count = getattr(self, "count", 0) + 1  # type: ignore[assignment]
    return H


def in_eval(self: Cell, X: Tensor, H: Tensor) -> Tensor:
    self.m_h.add_(1)
    return H


def noisy(self: Cell, X: Tensor, H: Tensor) -> Tensor:
    return functional.dropout(H, 0.1, self.training)


OWN_GENERATOR = torch.Generator().manual_seed(0)

BROKEN: dict[str, tuple[dict[str, object], str]] = {
    "a weight's name": ({"weights": "W_xh W_hh alpha"}, "its shape cannot be told from 'alpha' in `weights`: begin it"),
    "an average's name": ({"averages": "mean"}, "from 'mean' in `averages`"),
    "a list": ({"weights": ["W_xh"]}, "in one text, not list"),
    "twice": ({"weights": "W_xh W_xh"}, "twice"),
    "a method's name": ({"b_h": lambda self: 0, "weights": "W_xh W_hh b_h"}, "'b_h' in `weights` is a method"),
    "states": ({"states": 0}, "1 or more, not 0"),
    "keeps": ({"keeps": "b_z"}, "`keeps` is a bias among its weights, not 'b_z'"),
    "no step": ({"step": None}, "no method `step`"),
    "too few": (stepping(lambda self, X, H: (H, H)), "its step gives 2 states, `states` says 1"),
    "no tensor": (stepping(lambda self, X, H: [H]), "gives list"),
    "shape": (stepping(lambda self, X, H: H.mean(-1)), "a state is (S, n, h), here (2, 3, 5); its step gives (2, 3)"),
    "dtype": (stepping(lambda self, X, H: torch.zeros(H.shape, dtype=torch.float32)), "torch.float32 of torch.float64"),
    "raises": (stepping(lambda self, X, H: X @ self.W_hh), "its step fails in training, in float64: RuntimeError"),
    "unknown weight": (stepping(lambda self, X, H: H @ self.W_ho), "AttributeError"),
    "dropout": (stepping(noisy), "draws random numbers (torch's bernoulli)"),
    "a generator": (stepping(lambda self, X, H: H + torch.rand(1, generator=OWN_GENERATOR)), "random numbers (torch's"),
    "Python's": (stepping(lambda self, X, H: H * __import__("random").random()), "Python's random"),
    "numpy's": (stepping(lambda self, X, H: H * __import__("numpy").random.rand()), "numpy.random"),
    "a count": (stepping(counting), "keeps something from one step to the next that no checkpoint holds"),
    "in eval": ({**stepping(in_eval), "averages": "m_h"}, "its step still changes m_h"),
    "in place": (stepping(lambda self, X, H: H.mul_(0.5) + X @ self.W_xh), "its step changes its state 0 in place"),
    "input in place": (stepping(lambda self, X, H: X.mul_(0.5) @ self.W_xh + H), "its step changes its input in place"),
    "seeds": (stepping(lambda self, X, H: X @ self.W_xh - (X @ self.W_xh).mean(0)), "depend on the seeds beside it"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_what_a_cell_breaks_is_said_in_one_line(kind: str) -> None:
    said, reason = BROKEN[kind]
    told = fault(written(**said), ())
    assert reason in told
    assert "\n" not in told


def test_a_module_inside_has_no_axis_of_seeds() -> None:
    def __init__(self: Cell, d: int, h: int, seeds: int = 1) -> None:
        Cell.__init__(self, d, h, seeds)
        self.inner = torch.nn.Linear(h, h)

    assert "draws random numbers" in fault(written(__init__=__init__), ())  # and before any seed is known

    def zeros(self: Cell, d: int, h: int, seeds: int = 1) -> None:
        Cell.__init__(self, d, h, seeds)
        self.inner = torch.nn.Parameter(torch.zeros(h, h))

    assert "the first axis of inner is the seeds (2 here)" in fault(written(__init__=zeros), ())


def test_a_plain_cell_breaks_nothing() -> None:
    assert fault(written(), ()) == ""
    no_number = stepping(lambda self, X, H: torch.log(X @ self.W_xh - 99) + H)  # it diverges, and nothing is random
    assert fault(written(**no_number), ()) == ""
    assert "write `@gate`" in fault(written(), ("Z",))


# ---- found ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder of cells beside variants/ itself, whose gru and library it has."""
    for name in ("cell", "gru", "min_gru", "library"):
        (tmp_path / f"{name}.py").write_bytes((registry.HERE / f"{name}.py").read_bytes())
    caches = (registry._read, registry._class)
    monkeypatch.setattr(registry, "HERE", tmp_path)
    monkeypatch.setattr(variants, "__path__", [*variants.__path__, str(tmp_path)])
    before = set(sys.modules)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith("variants."):
            del sys.modules[name]
            vars(variants).pop(name.removeprefix("variants."), None)


CHILD = '''"""A GRU with a ReLU.
"""
from variants import relu
from variants.gru import GRU


class Own(GRU):
    def step(self, X, H):
        Z, R = self.Z(X, H), self.R(X, H)
        return Z * H + (1 - Z) * relu(X @ self.W_xh + (R * H) @ self.W_hh + self.b_h)
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("from variants.gru import GRU", "from .gru import GRU"),
        ("from variants.gru import GRU", "from .gru import GRU as GRU"),
        ("from variants.gru import GRU\n", "from variants import gru as base\n\nGRU = 0\n"),
        ("from variants.gru import GRU\n", "import variants.gru\n"),
    ],
)
def test_a_cell_that_inherits_is_found_with_its_gates_and_no_engine_of_its_parent(
    folder: Path, old: str, new: str
) -> None:
    text = CHILD.replace(old, new)
    text = text.replace(
        "(GRU)", "(base.GRU)" if "base" in new else "(variants.gru.GRU)" if "import variants" in new else "(GRU)"
    )
    (folder / "child.py").write_text(text)
    assert registry.catalog()["child"].gates == ("Z", "R")
    assert registry.catalog()["child"].about == "A GRU with a ReLU."
    cell = registry.get("child")
    assert cell.gates() == ["Z", "R"]
    can = [engine for engine, reason in registry.refusals("child:R=1").items() if not reason]
    assert "loop" in can
    assert "book" not in can  # `fused` and `native` follow from its own step
    assert "written for" in registry.refusals("child")["resident"]
    assert "rnn, gru and lstm" in registry.refusals("child")["book"]


def test_a_child_of_a_child_and_gates_written_anew(folder: Path) -> None:
    (folder / "child.py").write_text(CHILD)
    (folder / "late.py").write_text('''"""Late.
"""
from variants import gate, sigmoid
from variants.child import Own


class Late(Own):
    weights = Own.weights + " W_hu"

    def Z(self, X, H):
        return 0.5 + 0.5 * super().Z(X, H)

    @gate
    def U(self, X, H):
        return sigmoid(H @ self.W_hu)

    R = None

    def step(self, X, H):
        Z = self.Z(X, H)
        return Z * H + (1 - Z) * self.U(X, H) * (X @ self.W_xh)


class Later(Late):
    name = "later"


class _Hidden(Late):
    name = "hidden"
''')
    assert registry.catalog()["late"].gates == ("Z", "U") == tuple(registry.get("late").gates())
    assert registry.catalog()["later"].cls == "Later"
    assert "hidden" not in registry.catalog()
    assert registry.get("late:Z=0.5").absent >= {"W_xz", "W_hz", "b_z"}


def test_a_child_of_torchs_own_runs_in_torchs_own(folder: Path) -> None:
    (folder / "mine.py").write_text(
        '"""Mine."""\nfrom variants.library import GRU\n\n\nclass Mine(GRU):\n    name = "nn.mine"\n'
    )
    assert registry.catalog()["nn.mine"].library
    assert registry.reference_engine("nn.mine") == "library"


def test_a_stray_file_hurts_who_asks_for_it_and_nobody_else(folder: Path) -> None:
    (folder / "._gru.py").write_bytes(b"\0\0")
    (folder / ".#gru.py").symlink_to("nowhere")
    (folder / "draft.py").write_text("def f(:\n")
    (folder / "latin.py").write_bytes('"""Café"""\nfrom .cell import Cell\n'.encode("latin-1"))
    (folder / "gru.v2.py").write_bytes((folder / "gru.py").read_bytes())
    (folder / "gone.py").symlink_to("nowhere")
    (folder / "nul.py").write_bytes(b"x = 1\0")
    (folder / "folder.py").mkdir()
    os.mkfifo(folder / "pipe.py")
    (folder / "heir.py").write_text("from .draft import Draft\n\n\nclass Heir(Draft):\n    pass\n")
    (folder / "same.py").write_text('from .gru import GRU\n\n\nclass Same(GRU):\n    name = "gru"\n')
    (folder / "wants.py").write_text("import nowhere\nfrom .cell import Cell\n\n\nclass Wants(Cell):\n    pass\n")
    (folder / "quits.py").write_text(
        "from .cell import Cell\n\n\nclass Quits(Cell):\n    pass\n\n\nraise SystemExit(3)\n"
    )
    (folder / "helper.py").write_text("def helper(): ...\n")
    assert list(registry.catalog()) == ["gru", "min_gru", "quits", "wants", "nn.rnn", "nn.gru", "nn.lstm"]
    for name, said in {
        "draft": "variants/draft.py cannot be used: invalid syntax (line 1)",
        "latin": "variants/latin.py cannot be used: (unicode error)",
        "gru.v2": "letters, digits and _ alone", "gone": "a link to nothing", "nul": "null byte", "folder": "no file",
        "pipe": "no file", "heir": "it inherits from draft.py", "same.Same": "would be called 'gru', as GRU of gru.py",
        "wants": "cannot be imported: ModuleNotFoundError", "quits": "cannot be imported: SystemExit",
        "helper": "no variant 'helper'", "._gru": "Did you mean 'gru'",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=r"\w") as error:
            registry.get(name)
        assert said in str(error.value), name
        assert "\n" not in str(error.value)


def test_a_cell_half_written_refuses_the_engines_built_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "variants.engines.fused", None)
    assert "cannot be imported" in registry.refusals("lstm")["fused"]
    assert registry.refusals("lstm")["loop"] == ""


# ---- gates, as they are seen ----------------------------------------------------------------------


def test_a_gate_is_seen_each_time_it_is_computed_and_not_when_it_is_held() -> None:
    class Own(GRU):
        def Z(self, X: Tensor, H: Tensor) -> Tensor:  # not marked: it is the gate of the cell it inherits from
            return 0.5 * super().Z(X, H)

    seen: list[tuple[str, Tensor]] = []
    for cell in (Own(3, 4), fix(Own, (("Z", 0.5),))(3, 4)):
        cell.on_gate = lambda symbol, values: seen.append((symbol, values))
        cell.step(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4))
    assert [symbol for symbol, _ in seen] == ["Z", "Z", "R", "R"]  # Own's Z is made of GRU's
    assert [values.mean().item() for _, values in seen] == [0.5, 0.25, 0.5, 0.5]
