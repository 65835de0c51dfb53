"""What is derived from a cell's `step`: the program, the source that is emitted, and what is refused."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import newcomers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engines import CELLS, NATIVE, apart, compile_together, results
from torch import Tensor
from torch.nn import functional

import variants
from variants.cell import Cell
from variants.engines import derive, emit, fused, loop, native

GOLDEN = Path(__file__).with_name("golden_lstm.c")


def made(step: Callable[..., Any], weights: str = "W_xh W_hh b_h", states: int = 1) -> type[Cell]:
    return type("Made", (Cell,), {"weights": weights, "states": states, "step": step})


def candidate(cell: Cell, X: Tensor, H: Tensor) -> Tensor:
    return X @ cell.W_xh + H @ cell.W_hh + cell.b_h


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "an if": (lambda c, X, H: torch.tanh(X @ c.W_xh) if H[..., 0] > 0 else H, "not subscriptable"),
    "an if on a sum": (lambda c, X, H: H if H.mean(-1, keepdim=True) > 0 else -H, "an `if` on a value"),
    "rows mixed": (lambda c, X, H: candidate(c, X, H) - H.mean(-2, keepdim=True), "not over the units"),
    "a sum of all": (lambda c, X, H: candidate(c, X, H) * H.sum(), "not over the units"),
    "softmax": (lambda c, X, H: torch.softmax(candidate(c, X, H), -2), "a softmax of the state that is not over the"),
    "cumulative max": (lambda c, X, H: torch.cummax(H, -1)[0], "torch's cummax of the state"),
    "a max of units": (
        lambda c, X, H: H * H.max(-1, keepdim=True).values,
        "torch's maximum with arguments that are not",
    ),
    "groups": (lambda c, X, H: H.unflatten(-1, (-1, 2)).softmax(-1).flatten(-2), "torch's unflatten of the state"),
    "half a state": (lambda c, X, H: H @ c.W_hh * torch.cat([H[..., :1], H], -1), "not subscriptable"),
    "a cut": (lambda c, X, H: torch.cat([H, H], -1)[..., 1:], "into parts that are not as wide as the state"),
    "chunks": (lambda c, X, H: torch.cat([H, H], -1).chunk(5, -1)[0], "into parts that are not as wide as the state"),
    "of the input": (lambda c, X, H: torch.cat([X, H], -1)[..., -c.h :], "into parts that are not as wide"),
    "another axis": (lambda c, X, H: torch.cat([H, H], 1), "an axis that is neither a new first one nor counted"),
    "joined": (lambda c, X, H: torch.cat([H, H], -1).softmax(-1).chunk(2, -1)[0], "softmax of tensors that are joined"),
    "two and one": (lambda c, X, H: (torch.cat([H, H], -1) + H)[..., : c.h], "add of tensors that are joined"),
    "another einsum": (lambda c, X, H: torch.einsum("snh,snh->sn", H, H)[..., None] * H, "snh,snh->sn, which is no"),
    "eps": (lambda c, X, H: functional.rms_norm(H, (c.h,)), "rms_norm without its eps"),
    "a norm": (lambda c, X, H: functional.normalize(H, p=1.0, dim=-1), "by another norm than 2"),
    "cumsum": (lambda c, X, H: torch.cumsum(candidate(c, X, H), -1), "torch's cumsum of the state"),
    "dropout": (
        lambda c, X, H: functional.dropout(candidate(c, X, H)),
        "torch's dropout of the state, which is random",
    ),
    "attention": (lambda c, X, H: (H @ H.mT) @ candidate(c, X, H), ".mT of a tensor"),
    "a random number": (lambda c, X, H: H + random.random(), "random or counts"),
    "a random tensor": (lambda c, X, H: H + torch.rand(()), "random or counts"),
    "a tensor made": (lambda c, X, H: H * torch.ones(c.h), "a tensor that is none of the cell's weights"),
    "in place": (lambda c, X, H: H.mul_(2), "torch's mul_ of the state, in place"),
    "shapes": (lambda c, X, H: H * H.shape[0], "the shape of a tensor but for its last axis"),
    "taken apart": (lambda c, X, H: sum(H), "taken apart"),
    "of another shape": (lambda c, X, H: H @ c.W_xh, "a weight that is not (h, h)"),
    "one number a sequence": (lambda c, X, H: H.mean(-1, keepdim=True), "one number a sequence"),
    "joined at the end": (lambda c, X, H: torch.cat([H, H], -1), "what is no tensor"),
    "a power": (lambda c, X, H: H**1.5, "torch's pow to 1.5"),
    "comparisons added": (lambda c, X, H: ((H > 0) + (H > 1)) * H, "a sum of comparisons"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_derived_is_named_and_left_to_the_loop(name: str) -> None:
    step, reason = REFUSED[name]
    said = derive.unsupported_reason(made(step))
    assert said.startswith("step of Made: ")
    assert reason in said
    assert "\n" not in said
    with pytest.raises(ValueError, match="step of Made: "):
        native.unroll(made(step)(4, 5), torch.zeros(1, 1, 1, dtype=torch.int64), (torch.zeros(1, 1, 5),))


def test_torch_s_own_cells_have_no_step() -> None:
    assert "no step to derive from" in derive.unsupported_reason(variants.get("nn.gru"))


def test_a_refused_cell_trains_in_the_loop() -> None:
    cell = made(lambda c, X, H: torch.cumsum(candidate(c, X, H), -1))(4, 5)
    loop.unroll(cell, torch.zeros(2, 1, 3, dtype=torch.int64), cell.begin(3))[0].square().sum().backward()
    assert cell.W_xh.grad is not None


def test_what_is_emitted_for_one_cell_is_as_reviewed() -> None:
    """tests/golden_lstm.c; GOLDEN=1 writes it anew."""
    emitted = emit.source(derive.program(variants.get("lstm"), 28, 32))  # type: ignore[arg-type]
    if os.environ.get("GOLDEN"):
        GOLDEN.write_text(emitted)
    assert emitted == GOLDEN.read_text()


def test_a_source_is_the_same_at_every_size() -> None:
    sizes = [(28, 256), (3, 5)]
    assert len({emit.source(derive.program(variants.get("gru"), d, h)) for d, h in sizes}) == 1  # type: ignore[arg-type]


# ---- cells at random: equations of one to three states, as hypothesis draws and shrinks them

WEIGHTS = "W_xa W_xb W_ha W_hb W_hc b_a b_b w_a"
UNARY = [
    "torch.sigmoid",
    "torch.tanh",
    "torch.relu",
    "torch.abs",
    "functional.softplus",
    "functional.gelu",
    "functional.hardsigmoid",
]


def expressions(states: int, means: bool) -> st.SearchStrategy[str]:
    leaf = st.sampled_from(
        [*(f"s[{i}]" for i in range(states)), "self.b_a", "self.b_b", "self.w_a", "(X @ self.W_xa)", "(X @ self.W_xb)"]
    )

    def grown(part: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        two, three = st.tuples(part, part), st.tuples(part, part, part)
        return st.one_of(
            st.builds("({0[0]} {1} {0[1]})".format, two, st.sampled_from("+-*")),
            st.builds(
                "{}({})".format,
                st.sampled_from([f"torch.{u}" if "." not in u else u for u in UNARY[:4]] + UNARY[4:]),
                part,
            ),
            st.builds("({} @ self.W_h{})".format, part, st.sampled_from("abc")),
            st.builds("({} * {})".format, st.sampled_from([0.5, -1, 2, 0, 1]), part),
            st.builds("(1 - {})".format, part),
            st.builds("({0[0]} / (1.5 + torch.sigmoid({0[1]})))".format, two),
            st.builds("torch.lerp({0[0]}, {0[1]}, torch.sigmoid({0[2]}))".format, three),
            st.builds("torch.where({0[0]} > {0[1]}, {0[1]}, {0[2]})".format, three),
            *[st.builds("({}).mean(-1, keepdim=True)".format, part)] * means,
        )

    return st.recursive(leaf, grown, max_leaves=8)


@st.composite
def cells(draw: st.DrawFn, means: bool = True) -> type[Cell]:
    """A cell, its `step` in `text`; values that are used twice, states that are swapped, products of products."""
    states = draw(st.integers(1, 3))
    lines, some = [], expressions(states, means)
    for i in range(draw(st.integers(0, 2))):
        lines.append(f"    v{i} = torch.tanh({draw(some)} + 0 * s[0])")
    used = [f"v{i}" for i in range(len(lines))] or ["s[0]"]
    outs = []
    for i in range(states):
        body = f"({draw(some)} + {draw(st.sampled_from(used))} * {draw(some)})"
        choices = [f"torch.tanh({body} + 0 * s[{i}])", f"0.5 * s[{i}] + torch.sigmoid({body})"]
        outs.append(draw(st.sampled_from([*choices, f"s[{draw(st.integers(0, states - 1))}]"] if i else choices)))
    text = "\n".join(["def step(self, X, *s):", *lines, f"    return {', '.join(outs)}{',' * (states > 1)}"])
    scope = {"torch": torch, "functional": torch.nn.functional}
    exec(text, scope)  # as somebody's file would be
    return type("Random", (Cell,), {"weights": WEIGHTS, "states": states, "step": scope["step"], "text": text})


def derived(cell: type[Cell]) -> bool:
    """Whether a program is made of it; what is refused has one reason."""
    if reason := derive.unsupported_reason(cell):
        assert "one number a sequence" in reason, (reason, cell.text)  # type: ignore[attr-defined]
        return False
    try:
        results(cell, loop, 1, torch.float64)
    except RuntimeError:  # no cell: one number a sequence times a matrix, say, that derivation saw multiplied by 0
        return False
    return True


def agrees(cell: type[Cell], engine: ModuleType) -> None:
    for seeds, numbers in ((1, False), (2, True)) if derived(cell) else ():
        by = apart(cell, engine, seeds, numbers=numbers)
        assert by <= 1e-10, (by, cell.text)  # type: ignore[attr-defined]


@settings(max_examples=100, deadline=None)
@given(cells())
def test_any_cell_interpreted_is_the_loop(cell: type[Cell]) -> None:
    agrees(cell, fused)


@NATIVE
def test_thirty_cells_compiled_are_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one call of the compiler. `python -m tests.faults cells` tries hundreds, every address looked at."""
    kinds = list[type[Cell]]()

    @settings(max_examples=60, deadline=None, database=None)
    @given(cells())
    def draw(cell: type[Cell]) -> None:
        if len(kinds) < 30 and derived(cell):
            kinds.append(cell)

    draw()
    assert len(kinds) == 30
    compile_together(kinds, 4, 5, monkeypatch)
    for cell in kinds:
        agrees(cell, native)


def ran(data: dict[str, Any], constants: dict[str, list[Tensor]], X: Tensor, state: list[Tensor]) -> list[Tensor]:
    """A step of a program as data, X (n) characters, one seed: what the page does in JavaScript."""
    values: list[Any] = list(state)
    for op, *words in json.loads(json.dumps(data["code"])):
        if op in ("x", "c"):
            row = constants[op][words[0]][0]
            values.append(row[X] if op == "x" else row)
        elif op == "mm":
            values.append(values[words[0]] @ constants["mm"][words[1]][0])
        elif op == "lin":
            values.append(words[0] + sum(k * values[a] for k, a in zip(words[1::2], words[2::2], strict=True)))
        elif op == "mul":
            values.append(values[words[0]] * values[words[1]])
        elif op == "where":
            values.append(torch.where(*(torch.as_tensor(values[a]) for a in words)))
        elif op in derive.OVER:
            values.append(getattr(values[words[0]], op)(-1, keepdim=True))
        elif op == "gate":
            values.append(values[words[0]])
        else:
            values.append((derive.COMPARE | {k: f for k, (f, _) in derive.UNARY.items()})[op](values[words[0]]))
    return [torch.as_tensor(values[i]).expand_as(state[0]) for i in data["out"]]


@pytest.mark.parametrize("variant", [*(x for x in CELLS if x is not newcomers.Scaled), newcomers.Apart])
def test_a_program_as_data_is_the_step(variant: str | type[Cell]) -> None:
    """Every gate a line of its own, nothing but JSON and constants."""
    kind: type[Cell] = variants.get(variant) if isinstance(variant, str) else variant
    rng = torch.Generator().manual_seed(0)
    cell = kind(4, 5).double().eval()
    for weight in cell.parameters():
        weight.data = torch.randn(weight.shape, generator=rng, dtype=torch.float64)
    data, constants = derive.as_data(cell)
    assert set(data["gates"]) == set(kind.gates())
    X = torch.randint(4, (6, 1, 3), generator=rng)
    begin = tuple(torch.randn(1, 3, 5, generator=rng, dtype=torch.float64) for _ in range(kind.states))
    _, last = loop.unroll(cell, X, begin)
    state = [s[0] for s in begin]
    for X_t in X[:, 0]:
        state = ran(data, constants, X_t, state)
    for one, other in zip(last, state, strict=True):
        torch.testing.assert_close(other[None], one, rtol=0, atol=1e-12)
    if isinstance(variant, str):
        assert len(json.dumps(data["code"])) <= 700  # bytes of a page


def test_a_step_that_looks_at_other_sequences_is_no_program_as_data() -> None:
    """What torch computes of the input is a row for every character only where no character changes another's."""

    def data(kind: type[Cell]) -> None:
        cell, rng = kind(4, 5).double().eval(), torch.Generator().manual_seed(0)
        for weight in cell.parameters():
            weight.data = torch.randn(weight.shape, generator=rng, dtype=torch.float64)
        derive.as_data(cell)

    def changed(change: Callable[[Tensor], Tensor]) -> type[Cell]:
        return made(lambda c, X, H: torch.tanh(candidate(c, X, H) + change(X @ c.W_xh)))

    mixing: list[Callable[[Tensor], Tensor]] = [
        lambda x: x.mean(-2, keepdim=True), lambda x: x.var(1, keepdim=True), lambda x: torch.narrow(x, 1, 0, 1),
        lambda x: torch.roll(x, 1, -2), lambda x: torch.cumsum(x, 1),
    ]  # fmt: skip
    cells: list[type[Cell]] = [newcomers.Scaled, *map(changed, mixing)]
    for kind in cells:
        with pytest.raises(derive.Unsupported, match="depends on those that are read beside it"):
            data(kind)
    alone: list[Callable[[Tensor], Tensor]] = [
        lambda x: functional.layer_norm(x, (5,)), lambda x: torch.softmax(x, -1),
        lambda x: x - x.amax(-1, keepdim=True), lambda x: torch.flip(x, (-1,)),
    ]  # fmt: skip
    for kind in map(changed, alone):
        data(kind)
