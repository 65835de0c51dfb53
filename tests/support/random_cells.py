"""Cells at random: equations of one to three states, as hypothesis draws and shrinks them."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from variants.cell import Cell

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
