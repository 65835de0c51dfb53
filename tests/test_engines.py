"""Every engine that can run a variant gives what the loop gives: outputs, last state, and every gradient, by name."""

from __future__ import annotations

import itertools
from types import ModuleType

import pytest
import torch
from torch import Tensor

import variants
from variants.cell import Cell
from variants.engines import fused, loop

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


def results(variant: str, engine: ModuleType, seeds: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Outputs, last state and gradients of a random network with a random state, for random gradients of both."""
    rng = torch.Generator().manual_seed(1)
    cell: Cell = variants.get(variant)(4, 5, seeds).to(dtype)
    for weight in cell.parameters():
        weight.data = 0.5 * torch.randn(weight.shape, generator=rng, dtype=dtype)
    X = torch.nn.functional.one_hot(torch.randint(4, (6, seeds, 3), generator=rng), 4).to(dtype)
    H0 = torch.randn(seeds, 3, 5, generator=rng, dtype=dtype).requires_grad_()
    H, (last,) = engine.unroll(cell, X, (H0,))
    weights = [torch.randn(t.shape, generator=rng, dtype=dtype) for t in (H, last)]
    torch.autograd.backward([H, last], weights)
    gradients = {name: weight.grad for name, weight in cell.named_parameters()}
    return {"H": H, "last": last, "H0": H0.grad, **gradients}


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("variant", FAMILY)
def test_fused_is_the_loop(variant: str, seeds: int) -> None:
    one, other = (results(variant, engine, seeds, torch.float64) for engine in (loop, fused))
    assert one.keys() == other.keys()
    wrong = {name: (other[name] - one[name]).abs().max().item() for name in one}
    assert max(wrong.values()) <= 1e-10, wrong


@pytest.mark.parametrize("variant", ["gru", "gru_after", "gru:R=1", "gru:Z=0", "rnn"])
def test_fused_seed_alone_is_the_seed_among_many(variant: str) -> None:
    """And one that is not a number leaves the others as they are."""
    X = torch.nn.functional.one_hot(torch.arange(24).view(4, 3, 2) % 5, 5).double()
    many: Cell = variants.get(variant)(5, 6, 3).double()
    for weight in many.parameters():
        torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(weight.numel()))
    state = torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    H, _ = fused.unroll(many, X, (state,))
    alone: Cell = variants.get(variant)(5, 6, 1).double()
    for weight, whole in zip(alone.parameters(), many.parameters(), strict=True):
        weight.data = whole.data[1:2].clone()
    torch.testing.assert_close(fused.unroll(alone, X[:, 1:2], (state[1:2],))[0], H[:, 1:2], rtol=0, atol=1e-12)
    state[0] = torch.nan
    broken, _ = fused.unroll(many, X, (state,))
    assert broken[:, 0].isnan().any()
    torch.testing.assert_close(broken[:, 1:], H[:, 1:], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("variant", "reason"),
    [("lstm", "written for rnn, gru"), ("nn.gru", "written for rnn, gru"), ("gru:Z=1", "nothing to compute")],
)
def test_fused_refuses_with_a_reason(variant: str, reason: str) -> None:
    cell = variants.get(variant)
    assert reason in fused.refuses(cell)
    with pytest.raises(ValueError, match=reason):
        fused.unroll(cell(4, 5), torch.zeros(1, 1, 1, 4), (torch.zeros(1, 1, 5),))


def test_who_refuses_what() -> None:
    for name in variants.found():
        engines = [e.__name__ for e in (loop, fused) if not e.refuses(variants.get(name))]
        assert bool(engines) != (variants.engine(name) == "library"), name
