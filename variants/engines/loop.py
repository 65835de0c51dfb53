"""The book's Python loop: one `step` a character, the backward pass by autograd. Runs every cell."""

import torch
from torch import Tensor

from ..cell import Cell, State


def refuses(variant: type[Cell], device: str = "cpu") -> str:
    return "torch runs it in one call, there is no step to loop over" if hasattr(variant, "module") else ""


def unroll(cell: Cell, X: Tensor, state: State) -> tuple[Tensor, State]:
    outputs = []
    for X_t in cell.one_hot(X):
        after = cell.step(X_t, *state)
        state = after if isinstance(after, tuple) else (after,)
        outputs.append(state[0])
    return torch.stack(outputs), state
