"""One `step` a character in Python, the backward pass by autograd. Runs every cell.

Of one seed the products are plain ones, (n, d) @ (d, h), as in the book: a batch of one product costs up to a third
more. A seed alone is the same seed among others to rounding: a plain product may add up in another order than a batch.
"""

import functools

import torch
from torch import Tensor

from ..cell import Cell, State


def unsupported_reason(variant: type[Cell], device: str = "cpu") -> str:
    return "torch runs it in one call, there is no step to loop over" if hasattr(variant, "module") else ""


def unroll(cell: Cell, X: Tensor, state: State) -> tuple[Tensor, State]:
    if cell.seeds > 1 or not counts_from_the_end(type(cell)):  # type: ignore[arg-type]
        return steps(cell, X, state)
    outputs, state = steps(without_seeds(cell), X[:, 0], tuple(s[0] for s in state))
    return outputs.unsqueeze(1), tuple(s.unsqueeze(0) for s in state)


def steps(cell: Cell, X: Tensor, state: State) -> tuple[Tensor, State]:
    """Step as `unroll` does, every axis as it comes."""
    outputs = []
    for X_t in cell.one_hot(X):
        after = cell.step(X_t, *state)
        state = after if isinstance(after, tuple) else (after,)
        outputs.append(state[0])
    return torch.stack(outputs), state


def without_seeds(cell: Cell) -> Cell:
    """The same cell of one seed, on views of its weights and averages: (d, h) for (1, d, h)."""
    one = object.__new__(type(cell))
    averages = {name: getattr(cell, name) for name in cell.averages.split()}
    views = {name: weight[0] for name, weight in (dict(cell.named_parameters()) | averages).items()}
    above = tuple(map(without_seeds, cell.each_layer()[1:]))
    one.__dict__ = cell.__dict__ | views | {"above": above}  # found before a module's own parameters
    return one


@functools.cache
@torch.enable_grad()
def counts_from_the_end(variant: type[Cell]) -> bool:
    """Whether a cell gives the same outputs and gradients without the axis of seeds, in a small random network.

    One that counts its axes from the front, or shapes something by the number of seeds, does not.
    """
    before = torch.default_generator.get_state()
    try:
        found = [_small(variant, squeezed) for squeezed in (False, True)]
    except Exception:  # where it is the cell's own fault, `steps` raises it again
        return False
    finally:
        torch.default_generator.set_state(before)
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-9) for a, b in zip(*found, strict=True))


def _small(variant: type[Cell], squeezed: bool) -> list[Tensor]:
    """Outputs (3, 1, 4, 3) and gradients of a random network of one seed."""
    rng = torch.default_generator.manual_seed(0)  # of the processor alone: nothing happens on a GPU
    cell = variant(2, 3, 1).double()
    for weight in cell.parameters():
        weight.data = torch.rand(weight.shape, generator=rng, dtype=torch.float64) - 0.5
    X = torch.randn(3, 1, 4, 2, generator=rng, dtype=torch.float64)
    state = cell.begin(4)
    if squeezed:
        outputs, _ = steps(without_seeds(cell), X[:, 0], tuple(s[0] for s in state))
        outputs = outputs.unsqueeze(1)
    else:
        outputs, _ = steps(cell, X, state)
    if outputs.requires_grad:
        outputs.square().sum().backward()
    return [outputs.detach(), *(torch.zeros_like(w) if w.grad is None else w.grad for w in cell.parameters())]
