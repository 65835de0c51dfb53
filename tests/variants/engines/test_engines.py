"""Every engine that can run a variant gives what the loop gives: outputs, last state, and every gradient, by name."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import newcomers
import pytest
import torch
from torch import Tensor

import variants
from variants import layers as layers_of
from variants import model as model_of
from variants.cell import Cell
from variants.engines import book, derive, emit, fused, loop, native, resident
from variants.library import Library
from variants.optimizer import ADAM, SGD, Optimizer

WITHOUT = native.unsupported_reason(variants.get("gru"))
NATIVE = pytest.mark.skipif(bool(WITHOUT), reason=WITHOUT or "it runs")
FAST = [fused, pytest.param(native, marks=NATIVE)]
WRITTEN = [name for name in variants.catalog() if variants.reference_engine(name) == "loop"]
CELLS = [*WRITTEN, *newcomers.ALL]
HELD = [
    f"{name}:{gate}={value}" for name in WRITTEN for gate in variants.catalog()[name].gates for value in (0, 0.3, 1)
]
VALUES = (None, 0, 0.3, 1)
FAMILY = [
    "rnn",
    *(
        variants.canonical(cell + ":" * bool(fixed) + fixed)
        for cell in ("gru", "gru_after")
        for z, r in itertools.product(VALUES, VALUES)
        for fixed in [",".join(f"{g}={v}" for g, v in (("Z", z), ("R", r)) if v is not None)]
        if z != 1
    ),
]


def results(
    variant: str | type[Cell],
    engine: ModuleType,
    seeds: int,
    dtype: torch.dtype,
    n: int = 3,
    h: int = 5,
    device: str = "cpu",
    numbers: bool = False,
) -> dict[str, Tensor]:
    """Outputs, last states, gradients and running averages of a random network with a random state.

    Of characters, or of `numbers`, as a probe gives. They are float32's, whatever the dtype that computes with them.
    """
    rng = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng).to(device, dtype)

    cell: Cell = (variants.get(variant) if isinstance(variant, str) else variant)(4, h, seeds).to(device, dtype)
    for weight in cell.parameters():
        weight.data = normal(*weight.shape) / 2 ** round(math.log2(h) / 2)  # exactly
    X = normal(6, seeds, n, 4) if numbers else torch.randint(4, (6, seeds, n), generator=rng).to(device)
    begin = tuple(normal(seeds, n, h).requires_grad_() for _ in range(cell.states))
    H, last = engine.unroll(cell, X, begin)
    given = [normal(*t.shape) for t in (H, *last)]
    torch.autograd.backward([H, *last], given)
    found = {"H": H, **{f"last {i}": x for i, x in enumerate(last)}, **{f"d {i}": x.grad for i, x in enumerate(begin)}}
    found |= {name: weight.grad for name, weight in cell.named_parameters()} | dict(cell.named_buffers())
    return {name: torch.zeros(()) if x is None else x.detach() for name, x in found.items()}


def apart(
    variant: str | type[Cell], engine: ModuleType, seeds: int = 2, n: int = 3, h: int = 5, numbers: bool = False
) -> float:
    """How far an engine is from the loop, in float64: the largest difference, relative where values pass 1."""
    one, other = (results(variant, e, seeds, torch.float64, n, h, numbers=numbers) for e in (loop, engine))
    assert one.keys() == other.keys()
    return max(((one[k] - other[k]).abs().max() / one[k].abs().max().clamp(min=1)).item() for k in one)


def compile_together(kinds: list[type[Cell]], d: int, h: int, patch: pytest.MonkeyPatch) -> None:
    """Compile in one call what native would compile in one each: what is common to them takes longest."""
    patch.setattr(native, "FLAGS", [flag.replace("-O3", "-O1") for flag in native.FLAGS])
    plans = [derive.program(cell, d, h, True) for cell in kinds]  # type: ignore[arg-type]
    own = re.compile(r"\b(use\d+|(?:forward|backward|before|after)(?:_\w+)?)\b")
    text = "".join(own.sub(rf"cell{i}_\1", emit.source(plan)) for i, plan in enumerate(plans))
    whole = native.library(text, torch.float64)
    names = ("forward", "backward", "before", "after")
    made = [SimpleNamespace(**{k: getattr(whole, f"cell{i}_{k}", None) for k in names}) for i in range(len(plans))]
    of = dict(zip(plans, made, strict=True))
    patch.setattr(native, "compiled", lambda plan, dtype: of[plan])


@pytest.mark.parametrize("engine", FAST)
@pytest.mark.parametrize("variant", CELLS)
def test_a_derived_engine_is_the_loop(variant: str | type[Cell], engine: ModuleType) -> None:
    """For every cell: one seed and several, characters and numbers, sizes beside the width of a register."""
    assert engine.unsupported_reason(variants.get(variant) if isinstance(variant, str) else variant) == ""
    assert apart(variant, engine, 1) <= 1e-12
    assert apart(variant, engine, 3, numbers=True) <= 1e-12
    for n, h in ((1, 1), (5, 3), (3, 17), (17, 49))[variant is newcomers.TorchsLayerNorm :]:
        assert apart(variant, engine, 2, n, h) <= 1e-12, (n, h)


def test_a_derived_engine_is_the_loop_with_every_gate_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 0, between, 1. Compiled in a hurry: what is emitted is under test, not the compiler."""
    if not WITHOUT:
        compile_together([variants.get(variant) for variant in HELD], 4, 5, monkeypatch)
    wrong = {(variant, e.__name__): apart(variant, e) for variant in HELD for e in [fused] + [native] * (not WITHOUT)}
    assert {variant: by for variant, by in wrong.items() if not by <= 1e-12} == {}


@pytest.mark.parametrize("engine", FAST)
@pytest.mark.parametrize("variant", CELLS)
def test_float32_is_as_far_from_float64_as_the_loop_s(variant: str | type[Cell], engine: ModuleType) -> None:
    """Both round at every step, in another order: an engine may be a few times as far as the loop, not more."""
    exact = results(variant, loop, 2, torch.float64, 9, 49)
    plain, fast = (results(variant, e, 2, torch.float32, 9, 49) for e in (loop, engine))
    for name, value in exact.items():
        allowed = 4 * (plain[name] - value).abs().max() + 1e-6 * value.abs().max()
        assert (fast[name] - value).abs().max() <= allowed, name


@NATIVE
def test_native_does_not_depend_on_seeds_or_threads() -> None:
    """To the last bit: no row's arithmetic knows of another."""
    threads = torch.get_num_threads()
    try:
        for variant in ("gru", "gru_after", "lstm_peephole", "ligru", newcomers.LayerNorm, newcomers.Twice):
            torch.set_num_threads(1)
            one = results(variant, native, 3, torch.float32, 19, 20)
            torch.set_num_threads(3)
            other = results(variant, native, 3, torch.float32, 19, 20)
            assert all(torch.equal(one[name], other[name]) for name in one)
    finally:
        torch.set_num_threads(threads)


def learned(
    variant: str | type[Cell], engine: str, seeds: list[int], how: Optimizer = SGD, counts: bool = False, bad: int = -1
) -> list[Tensor]:
    """What four training steps give and leave, float32's numbers in float64; of seed `bad` a weight is no number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_of, "get", lambda name: name if isinstance(name, type) else variants.get(name))
        model = model_of.Model(variant, 7, 9, seeds, "torch", torch.float64, engine=engine)  # type: ignore[arg-type]
    if bad >= 0:
        model.b_q.data[bad] = torch.nan
    T, n, found = 6, 5, list[Tensor]()
    state = model.cell.begin(n)
    for k in range(4):
        rngs = [torch.Generator().manual_seed(10 * seed + k) for seed in seeds]
        data = torch.stack([torch.randint(7, (T + 1, n), generator=rng) for rng in rngs], 1)
        some = torch.stack([torch.rand(T, n, generator=rng) < 0.5 for rng in rngs], 1) if counts else None
        losses, norms, state = model.learn(
            data[:-1], data[1:], state, 0.7 if how.kind == "sgd" else 0.02, 0.3, how, some
        )
        found += [losses, norms, *state]
    return [*found, model.flat, *model.moments]


@NATIVE
@pytest.mark.parametrize("variant", CELLS)
def test_a_whole_step_in_c_is_the_loop_s(variant: str | type[Cell]) -> None:
    for seeds, how, counts in (([0], SGD, False), ([0, 1, 2], ADAM, True)):
        one, other = (learned(variant, engine, seeds, how, counts) for engine in ("loop", "native"))
        assert max((a - b).abs().max().item() for a, b in zip(one, other, strict=True)) <= 1e-12
    served = derive.program(variant if isinstance(variant, type) else variants.get(variant), 7, 9).outside == ""  # type: ignore[arg-type]
    assert served == (variant not in ("ligru", newcomers.Scaled))


@NATIVE
@pytest.mark.parametrize("variant", ["gru", "lstm_peephole", newcomers.TorchsLayerNorm, newcomers.Twice])
def test_a_whole_step_does_not_depend_on_seeds_or_threads(variant: str | type[Cell]) -> None:
    """To the last bit; also where another seed's numbers are none, and that one stays as it is."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        many, ill = learned(variant, "native", [0, 1, 2]), learned(variant, "native", [0, 1, 2], bad=0)
        torch.set_num_threads(3)
        assert all(map(torch.equal, many, learned(variant, "native", [0, 1, 2])))
        for other in (many, ill):
            alone = learned(variant, "native", [1])
            assert all(torch.equal(a[0], b[1]) for a, b in zip(alone, other, strict=True))
    finally:
        torch.set_num_threads(threads)
    assert ill[1][0].isnan()
    [before] = [learned(variant, engine, [0, 1, 2], bad=0)[-1][0] for engine in ("loop",)]
    assert torch.equal(ill[-1][0].nan_to_num(9), before.nan_to_num(9))


@NATIVE
def test_every_length_and_batch_of_a_whole_step_has_its_own_room() -> None:
    """One model, steps of several shapes, of a part of a text that is not laid out by itself."""
    found = []
    for engine in ("loop", "native"):
        model = model_of.Model("gru", 7, 9, [0, 1], "torch", torch.float64, engine=engine)
        text = torch.randint(7, (12, 2, 11), generator=torch.Generator().manual_seed(0))
        for T, n in ((5, 11), (5, 3), (11, 4), (5, 11)):
            part = text[: T + 1, :, 11 - n :]
            found.append(model.learn(part[:-1], part[1:], model.cell.begin(n), 0.5, 1.0)[0])
    for one, other in zip(found[:4], found[4:], strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-12)


class Functions(Cell):
    """Of each state what a function makes of it."""

    functions = ("sigmoid", "tanh", "relu", "abs", "exp", "log", "sqrt", "reciprocal", "erf",
                 "sin", "cos", "atan", "log1p", "expm1")  # fmt: skip
    states = len(functions) + 2

    def step(self, X: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        *first, soft, hard = states
        made = [getattr(torch, name)(x) for name, x in zip(self.functions, first, strict=True)]
        return (*made, torch.nn.functional.softplus(soft), torch.nn.functional.hardsigmoid(hard))


@NATIVE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_native_activations_are_those_of_the_library(dtype: torch.dtype) -> None:
    """And their slopes, over all that a value can be, its ends and what is not a number."""
    ends = torch.tensor([0.0, torch.inf, -torch.inf, torch.nan])
    x = torch.cat([torch.linspace(-100, 100, 4001), torch.logspace(-8, 2, 500), ends]).to(dtype)
    found = []
    for engine in (loop, native):
        begin = tuple(x.clone()[None, :, None].requires_grad_() for _ in range(Functions.states))
        _, last = engine.unroll(Functions(1, 1, 1).to(dtype), torch.zeros(1, 1, len(x), dtype=torch.int64), begin)
        torch.stack(last).nan_to_num(0, 0, 0).sum().backward()
        found.append([*last, *(b.grad for b in begin)])
    few = 6 * torch.finfo(dtype).eps
    names = (*Functions.functions, "softplus", "hardsigmoid")
    for k, (one, other) in enumerate(zip(*found, strict=True)):  # a slope is a difference: 1 - y * y
        say, least = f"{names[k % len(names)]}: {{}}".format, 1e-30 if k < len(names) else few
        torch.testing.assert_close(other, one, rtol=few, atol=least, equal_nan=True, msg=say)


def test_without_a_compiler_native_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    native.library.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setenv("PATH", str(tmp_path))
            assert "no C compiler here" in native.unsupported_reason(variants.get("gru"))
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "platformdirs", None)  # as on a machine whose python is used as it is
            assert "platformdirs is not installed" in native.unsupported_reason(variants.get("gru"))
        native.library.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(native, "cache", lambda: tmp_path)
            patch.setattr(native, "KERNELS", tmp_path / "native.c")
            (tmp_path / "native.c").write_text("this is not C")
            assert "could not compile native.c: " in native.unsupported_reason(variants.get("gru"))
            hangs = tmp_path / "hangs"
            hangs.write_text('#!/bin/sh\ntest "$1" = --version || exec sleep 60\n')
            hangs.chmod(0o755)
            patch.setenv("CC", str(hangs))
            patch.setattr(native, "PATIENCE_S", 0.2)
            assert "has not compiled native.c within 0.2 s" in native.unsupported_reason(variants.get("gru"))
        assert "it runs on the CPU" in native.unsupported_reason(variants.get("gru"), "cuda")
    finally:
        native.library.cache_clear()


@pytest.mark.parametrize("engine", FAST)
@pytest.mark.parametrize("variant", ["gru", "gru_after", "gru:R=1", "min_gru", "rnn"])
def test_a_seed_alone_is_the_seed_among_many(variant: str, engine: ModuleType) -> None:
    """And one that is not a number leaves the others as they are."""
    X = torch.arange(24).view(4, 3, 2) % 5
    many: Cell = variants.get(variant)(5, 6, 3).double()
    for weight in many.parameters():
        torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(weight.numel()))
    state = torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    H, _ = engine.unroll(many, X, (state,))
    alone: Cell = variants.get(variant)(5, 6, 1).double()
    for weight, whole in zip(alone.parameters(), many.parameters(), strict=True):
        weight.data = whole.data[1:2].clone()
    torch.testing.assert_close(engine.unroll(alone, X[:, 1:2], (state[1:2],))[0], H[:, 1:2], rtol=0, atol=1e-12)
    state[0] = torch.nan
    broken, _ = engine.unroll(many, X, (state,))
    assert broken[:, 0].isnan().any()
    torch.testing.assert_close(broken[:, 1:], H[:, 1:], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("variant", "reason"),
    [("lstm", "written for rnn, gru"), ("nn.gru", "written for rnn, gru"), ("gru:Z=1", "nothing to compute")],
)
def test_resident_refuses_with_a_reason(variant: str, reason: str) -> None:
    cell = variants.get(variant)
    assert reason in resident.unsupported_reason(cell)
    with pytest.raises(ValueError, match=reason):
        resident.unroll(cell(4, 5), torch.zeros(1, 1, 1, dtype=torch.long), (torch.zeros(1, 1, 5),))


def test_resident_in_triton_s_interpreter() -> None:
    """One block a seed, on the CPU: the kernel's equations, forward and backward, are the loop's.

    float32: both round every product to 24 bits, in another order, over 6 steps. bf16 is not to be had there.
    """
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed (torch brings it with CUDA, on Linux)")
    code = (
        "import torch; import test_engines as here; from variants.engines import loop, resident\n"
        "torch.set_float32_matmul_precision('high')\n"
        "for name in here.FAMILY:\n"
        "    one = here.results(name, loop, 2, torch.float64, 3, 32)\n"
        "    other = here.results(name, resident, 2, torch.float32, 3, 32)\n"
        "    wrong = {k: float((other[k] - one[k]).norm() / (one[k].norm() + 1e-12)) for k in one}\n"
        "    assert max(wrong.values()) < 1e-5, (name, wrong)\n"
        "print('agreed', len(here.FAMILY))"
    )
    here = Path(__file__).parent
    paths = here.parents[2], here.parents[1] / "support", here, os.environ.get("PYTHONPATH", "")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.split() == ["agreed", str(len(FAMILY))], done.stderr[-2000:]


@pytest.mark.parametrize(
    ("hidden", "batch", "precision", "reason"),
    [(256, 32, "ieee", "tf32 or bf16"), (100, 32, "tf32", "power of two"), (512, 32, "tf32", "to 256, not 512"),
     (256, 33, "bf16", "at most 32, not 33"), (256, 32, "tf32", "")],
)  # fmt: skip
def test_resident_says_what_does_not_fit(hidden: int, batch: int, precision: str, reason: str) -> None:
    assert reason in resident.unsupported_size(hidden, batch, precision)
    assert bool(resident.unsupported_size(hidden, batch, precision)) == bool(reason)
    assert "it runs on CUDA" in resident.unsupported_reason(variants.get("gru"))
    assert variants.refusals("gru", "cpu", hidden, batch, precision)["resident"] == "it runs on CUDA"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
@pytest.mark.parametrize(
    ("hidden", "precision"), [(32, "high"), (64, "high"), (128, "high"), (256, "high"), (256, "medium")]
)
@pytest.mark.parametrize("seeds", [1, 30])
@pytest.mark.parametrize("variant", ["rnn", "gru", "gru_after", "gru:R=1", "gru:Z=0.3", "gru_after:Z=0.3", "gru:R=0"])
def test_resident_on_a_gpu_is_near_the_loop(variant: str, seeds: int, hidden: int, precision: str) -> None:
    if reason := resident.unsupported_reason(variants.get(variant), "cuda"):
        pytest.skip(reason)
    exact = results(variant, loop, seeds, torch.float64, 32, hidden, "cuda")
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        fast = results(variant, resident, seeds, torch.float32, 32, hidden, "cuda")
    finally:
        torch.set_float32_matmul_precision(before)
    most = {"high": 2e-3, "medium": 2e-2}[precision]  # as timing.ROUNDED
    wrong = {name: ((fast[name] - exact[name]).norm() / (exact[name].norm() + 1e-12)).item() for name in exact}
    assert max(wrong.values()) <= most, wrong


@pytest.mark.parametrize("variant", [*WRITTEN, "gru:R=1", "gru:Z=1", "gru:Z=0,R=0.3", "ligru:Z=0", "min_gru:Z=0"])
def test_one_seed_without_its_axis_is_the_step_with_it(variant: str) -> None:
    """Outputs, last state, gradients and running averages; the products are plain ones."""
    assert loop.counts_from_the_end(variants.get(variant))  # type: ignore[arg-type]
    rng = torch.Generator().manual_seed(1)
    cells: list[Cell] = [variants.get(variant)(4, 5, 1).double() for _ in range(2)]
    X, found = torch.randint(4, (6, 1, 3), generator=rng), []
    for weights in zip(*(cell.parameters() for cell in cells), strict=True):
        value = torch.randn(weights[0].shape, generator=rng, dtype=torch.float64)
        for weight in weights:
            weight.data = value.clone()
    for cell, unroll in zip(cells, (loop.steps, loop.unroll), strict=True):
        H, last = unroll(cell, X, cell.begin(3))
        (H * torch.arange(5)).sum().backward() if H.requires_grad else None
        gradients = [w.grad for w in cell.parameters() if w.grad is not None]
        found.append([H, *last, *gradients, *cell.buffers()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-12)


class FromTheFront(Cell):
    """As nobody has to write it: an axis counted from the front."""

    weights = "W_xh W_hh b_h"

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        both = torch.cat([X, H], 2) @ torch.cat([self.W_xh, self.W_hh], 1) + self.b_h
        return torch.tanh(both / (1 + both.mean(1, keepdim=True).square()))


class MeansTheFront(Cell):
    """It runs without the axis, and is another network then."""

    weights = "W_xh W_hh b_h"

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        return torch.tanh(X @ self.W_xh + H @ self.W_hh + self.b_h) - H.mean(1, keepdim=True)


@pytest.mark.parametrize("variant", [FromTheFront, MeansTheFront])
def test_a_cell_that_needs_the_axis_of_seeds_keeps_it(variant: type[Cell]) -> None:
    assert not loop.counts_from_the_end(variant)  # type: ignore[arg-type]
    cell = variant(4, 5, 1)
    X = torch.randint(4, (6, 1, 3), generator=torch.Generator().manual_seed(1))
    assert torch.equal(loop.unroll(cell, X, cell.begin(3))[0], loop.steps(cell, X, cell.begin(3))[0])


def test_looking_whether_an_axis_is_needed_draws_no_number() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    loop.counts_from_the_end.cache_clear()
    with torch.no_grad():
        assert loop.counts_from_the_end(variants.get("gru"))  # type: ignore[arg-type]
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("numbers", [False, True])
@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("variant", ["rnn", "gru", "lstm"])
def test_the_book_s_code_is_the_loop(variant: str, seeds: int, numbers: bool) -> None:
    rng = torch.Generator().manual_seed(1)
    cell: Cell = variants.get(variant)(4, 5, seeds).double()
    X = torch.randint(4, (6, seeds, 3), generator=rng)
    if numbers:
        X = torch.randn(6, seeds, 3, 4, generator=rng, dtype=torch.float64)
    for weight in cell.parameters():
        weight.data = torch.randn(weight.shape, generator=rng, dtype=torch.float64)
    state = tuple(torch.randn(s.shape, generator=rng, dtype=torch.float64) for s in cell.begin(3))
    found = []
    for engine in (loop, book):
        cell.zero_grad()
        H, last = engine.unroll(cell, X, state)
        (H * torch.arange(5)).sum().backward()
        found.append([H, *last, *(w.grad for w in cell.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-12)


def test_the_book_s_code_trains_nothing_unless_asked_for() -> None:
    for name in variants.catalog():
        engines = [engine for engine, refusal in variants.refusals(name).items() if not refusal]
        assert engines[0] != "book"
        assert ("book" in engines) == (name in ("rnn", "gru", "lstm"))
    assert "no gate fixed" in book.unsupported_reason(variants.get("gru:R=1"))


def test_who_refuses_what() -> None:
    for name in variants.catalog():
        engines = [e.__name__ for e in (loop, fused, native) if not e.unsupported_reason(variants.get(name))]
        assert bool(engines) != (variants.reference_engine(name) == "library"), name


# ---- layers of a cell

COMPILED = ["gru", "lstm_peephole", "gru:Z=0.3", "gru:Z=1", newcomers.Highway, newcomers.TwoLayers, newcomers.LayerNorm]
STACKED = [*WRITTEN, *COMPILED[2:], newcomers.Scaled, newcomers.Apart]
NO_LAYERS: dict[str | type[Cell], str] = {  # of a second layer, whose input is a state
    "ligru": "a mean or sum of the state that is not over the units",
    newcomers.Scaled: "torch's flip of the state",
}


def stacked(
    variant: str | type[Cell], engine: str, seeds: list[int], layers: int = 2, dropout: float = 0.0, embedding: int = 0
) -> tuple[model_of.Model, list[Tensor]]:
    """What losses and two steps of training give and leave, from a state that is not zero, every weight random."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_of, "get", lambda name: name if isinstance(name, type) else variants.get(name))
        make = functools.partial(model_of.Model, engine=engine, layers=layers, dropout=dropout, embedding=embedding)
        model = make(variant, 4, 5, seeds, "torch", torch.float64)  # type: ignore[arg-type]
    rngs = [torch.Generator().manual_seed(seed) for seed in seeds]
    draw = functools.partial(torch.randn, dtype=torch.float64)
    state = tuple(torch.stack([draw(3, 5, generator=rng) for rng in rngs]) for _ in range(model.cell.states))
    text = torch.stack([torch.randint(4, (7, 3), generator=rng) for rng in rngs], 1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.rpartition(".")[2].startswith(("b_", "g_", "w_")):
                weight.add_(torch.stack([draw(weight.shape[1:], generator=rng) for rng in rngs]), alpha=0.25)
    losses, after = model.losses(text[:-1], text[1:], state)
    losses.sum().backward()
    found = [losses, *after, *(torch.zeros_like(w) if w.grad is None else w.grad for w in model.parameters())]
    model.gather()
    for _ in range(2):
        losses, norms, state = model.learn(text[:-1], text[1:], state, 0.7, 0.3)
        found += [losses, norms, *state]
    return model, [x.detach().clone() for x in (*found, model.flat)]


@pytest.mark.parametrize("variant", STACKED)
def test_layers_by_every_engine_are_the_loop_s(variant: str | type[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout and without; whole steps in C are, too. What cannot be derived says which operation it is."""
    monkeypatch.setattr(native, "FLAGS", [flag.replace("-O3", "-O1") for flag in native.FLAGS])
    kind: type[Cell] = variants.get(variant) if isinstance(variant, str) else variant
    for dropout in (0.0, 0.4) if variant in COMPILED else (0.0,):
        cell = layers_of.stack(kind, 2, dropout > 0)
        if reason := derive.unsupported_reason(cell):
            assert variant in NO_LAYERS, reason
            assert NO_LAYERS[variant] in reason
            continue
        assert variant not in NO_LAYERS
        _, one = stacked(variant, "loop", [0, 1], dropout=dropout)
        for engine in ["fused"] + ["native"] * (not WITHOUT and variant in COMPILED):
            model, other = stacked(variant, engine, [0, 1], dropout=dropout)
            assert max((a - b).abs().max().item() for a, b in zip(one, other, strict=True)) <= 1e-12, engine
            if engine == "native":
                assert (model.trainer.plan is None) == (dropout > 0 and variant != "gru:Z=1")


def test_layers_of_a_cell_are_the_cell_run_layer_by_layer() -> None:
    """By hand: each layer a cell of its own, run over all of the outputs of the one below."""
    for variant, layers in (("gru", 3), ("lstm", 2), ("ligru", 2)):
        model = model_of.Model(variant, 4, 5, [0, 1], "torch", torch.float64, layers=layers)
        each = variants.get(variant).states
        rng = torch.Generator().manual_seed(0)
        X = torch.randint(4, (6, 2, 3), generator=rng)
        state = tuple(torch.randn(2, 3, 5, generator=rng, dtype=torch.float64) for _ in range(model.cell.states))
        outputs, after = model.unroll(model.cell, X, state)
        inputs, ends = model.cell.one_hot(X), list[Tensor]()
        for k in range(layers):
            weights = {
                name.removeprefix(f"above.{k - 1}."): weight for name, weight in model.cell.state_dict().items()
                if ("above" in name) == (k > 0) and name.startswith(f"above.{k - 1}." * (k > 0))
            }  # fmt: skip
            cell = variants.get(variant)(4 if k == 0 else 5, 5, 2).double()
            cell.load_state_dict(weights, strict=False)  # running averages have moved on
            for name, average in cell.named_buffers():
                average.fill_(float(name.startswith("v_")))
            begin = (layers - 1 - k) * each
            inputs, last = loop.unroll(cell, inputs, state[begin : begin + each])
            ends = [*last, *ends]
        torch.testing.assert_close(outputs, inputs, rtol=0, atol=1e-12)
        torch.testing.assert_close(list(after), ends, rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", ["loop", "fused", pytest.param("native", marks=NATIVE)])
def test_a_seed_of_several_layers_with_dropout_is_the_seed_alone(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "FLAGS", [flag.replace("-O3", "-O1") for flag in native.FLAGS])
    for dropout in (0.0, 0.4):  # with which the product of the input is torch's
        one, many = (stacked("gru", engine, seeds, 2, dropout)[1] for seeds in ([1], [0, 1]))
        for alone, among in zip(one, many, strict=True):
            exact = engine == "native" and not dropout
            torch.testing.assert_close(alone[0], among[1], rtol=0, atol=0 if exact else 1e-12)


def test_dropout_takes_its_share_scales_the_rest_and_is_off_in_evaluation() -> None:
    """Of each seed and step other units; the factors of two models of one seed and variant are the same."""
    for variant in ("gru", "nn.gru"):
        models = [model_of.Model(variant, 4, 64, [5], "torch", layers=2, dropout=0.25) for _ in range(2)]
        X = torch.zeros(20, 1, 32, dtype=torch.int64)
        with torch.no_grad():
            first, again, other = (m(X, m.cell.begin(32))[0] for m in (*models, models[0]))
            assert torch.equal(first, again)
            assert not torch.equal(first, other)
            plain = model_of.Model(variant, 4, 64, [5], "torch", layers=2).eval()
            assert torch.equal(plain(X, plain.cell.begin(32))[0], models[0].eval()(X, plain.cell.begin(32))[0])
    factors = model_of.Model("gru", 4, 64, [5, 6], "torch", layers=3, dropout=0.25)._with_factors(X.expand(-1, 2, -1))
    assert factors.shape == (20, 2, 32, 4 + 2 * 64)
    kept = factors[..., 4:]
    assert kept.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert kept.eq(0).double().mean().item() == pytest.approx(0.25, abs=0.01)
    assert not torch.equal(kept[:, 0], kept[:, 1])


def test_a_layer_more_starts_as_the_network_without_it_and_counts_its_weights() -> None:
    one, two = (model_of.Model("gru", 7, 5, [3], "torch", layers=layers) for layers in (1, 2))
    start, more = dict(one.named_parameters()), dict(two.named_parameters())
    assert all(torch.equal(more[name], value) for name, value in start.items())
    assert not torch.equal(more["cell.W_hz"], more["cell.above.0.W_hz"])
    assert two.parameters_per_seed - one.parameters_per_seed == 3 * (5 * 5 + 5 * 5 + 5)
    library = model_of.Model("nn.gru", 7, 5, [3], "torch", layers=2).cell
    assert isinstance(library, Library)
    assert torch.equal(dict(library.named_parts())["above.0.W_xz"], more["cell.above.0.W_xz"])
    h = model_of.matched("lstm", "gru", 7, 20, 7, layers=2)
    near = [model_of.Model("lstm", 7, k, [0], layers=2).parameters_per_seed for k in (h - 1, h, h + 1)]
    want = model_of.Model("gru", 7, 20, [0], layers=2).parameters_per_seed
    assert min(near, key=lambda p: abs(p - want)) == near[1]


# ---- a trained table of tokens


@pytest.mark.parametrize("variant", ["gru", "lstm", "ligru", "gru:R=1", "nn.gru"])
def test_an_embedding_by_every_engine_is_the_loop_s_and_one_hot_times_its_table(variant: str) -> None:
    """Losses, states, gradients and two steps of training; outputs are those of the cell that reads the rows."""
    plain = variants.reference_engine(variant)
    seeds = [3] if variant.startswith("nn.") else [0, 1]
    for layers, dropout in ((1, 0.0), (2, 0.4 * (plain == "loop"))):
        model, expected = stacked(variant, plain, seeds, layers, dropout, embedding=3)
        assert model.E is not None
        assert model.parameters_per_seed == sum(w[0].numel() for w in model.parameters() if w.dim() == 3) or (
            variant.startswith("nn.")
        )
        for engine, refusal in variants.refusals(variant, "cpu", 5, 3, "ieee", layers, dropout > 0).items():
            if refusal or engine in (plain, "resident"):
                continue
            _, found = stacked(variant, engine, seeds, layers, dropout, embedding=3)
            assert all(torch.allclose(a, b, rtol=0, atol=1e-11) for a, b in zip(expected, found, strict=True)), engine
    model, _ = stacked(variant, plain, seeds, 1, embedding=3)
    assert model.E is not None
    X = torch.tensor([0, 3, 2, 2]).view(4, 1, 1).expand(-1, len(seeds), 1)
    rows = torch.nn.functional.one_hot(X, 4).to(torch.float64).transpose(0, 1).flatten(1, 2) @ model.E
    H, _ = model.unroll(model.cell, rows.view(len(seeds), 4, 1, 3).transpose(0, 1), model.cell.begin(1))
    assert torch.allclose(model(X, model.cell.begin(1))[0], (H.transpose(0, 1)[:, :, 0] @ model.W_hq + model.b_q)
                          .transpose(0, 1)[:, :, None], atol=1e-12)  # fmt: skip


def test_a_seed_s_embedding_is_the_seed_s_alone_and_counted() -> None:
    many, one = (model_of.Model("gru", 6, 5, seeds, "torch", embedding=3) for seeds in ([0, 1], [1]))
    assert many.E is not None
    assert one.E is not None
    assert torch.equal(many.E[1], one.E[0])
    assert 0.5 < float(many.E.detach().std()) < 1.5  # as torch.nn.Embedding begins
    assert one.parameters_per_seed == 6 * 3 + 3 * (3 * 5 + 5 * 5 + 5) + 6 * 6
    book = model_of.Model("gru", 6, 5, [0], embedding=3)
    assert book.E is not None
    assert float(book.E.detach().abs().max()) < 0.06
    h = model_of.matched("rnn", "gru", 600, 20, 600, embedding=8)
    near = [model_of.Model("rnn", 600, k, [0], embedding=8).parameters_per_seed for k in (h - 1, h, h + 1)]
    want = model_of.Model("gru", 600, 20, [0], embedding=8).parameters_per_seed
    assert abs(near[1] - want) == min(abs(n - want) for n in near)


class LearnedStart(Cell):
    """A state before the first token that is trained."""

    weights = "W_xh W_hh b_h b_0"

    def begin(self, n: int) -> tuple[torch.Tensor, ...]:
        return (self.b_0.expand(-1, n, -1),)

    def step(self, X: torch.Tensor, H: torch.Tensor) -> torch.Tensor:
        return torch.tanh(X @ self.W_xh + H @ self.W_hh + self.b_h)


def test_a_learned_first_state_is_trained_alike_by_every_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_of, "get", lambda name: LearnedStart)
    text = torch.randint(4, (6, 2, 3), generator=torch.Generator().manual_seed(0))
    found = []
    for engine in ["loop", "fused", *["native"] * (not variants.refusals("rnn")["native"])]:
        model = model_of.Model("rnn", 4, 5, [0, 1], "torch", torch.float64, engine=engine)
        before = model.flat.clone()
        for _ in range(2):
            model.learn(text[:-1], text[1:], model.cell.begin(3), 0.7, 1.0)
        found.append(model.flat - before)
        assert bool((model.flat != before).all())  # the first state's weights too
    assert all(torch.allclose(found[0], other, rtol=0, atol=1e-12) for other in found)
