"""Stack layers: a cell above itself, each reading the outputs of the one below, as one cell with one step.

    H1 = step(X, H1)    H2 = step(H1, H2)    ...

What the layers are is again a cell, so every engine, gate and lesion is of them as of any other. The bottom layer's
weights keep their names; those of the next are called `above.0.W_xz`, its gates `Z.2`. The states of the top layer
come first. Dropout multiplies what one layer hands to the next, in training, by columns that the input carries.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .cell import Cell
from .library import Library


def stack(cell: type[Cell], layers: int, drops: bool = False) -> type[Cell]:
    """`layers` of a cell as one; `drops`: X is (S, n, d + (layers - 1) * h) in training, factors behind the inputs."""
    return cell if layers == 1 else _stack(cell, layers, drops)  # type: ignore[arg-type]


@functools.cache
def _stack(cell: type[Cell], layers: int, drops: bool) -> type[Cell]:
    more = {"layers": layers, "states": layers * cell.states, "written": None}
    if issubclass(cell, Library):
        return type(cell.__name__, (cell,), more)
    return type(cell.__name__, (_Stack, cell), {**more, "single": cell, "drops": drops})


class _Stack(Cell):
    single: ClassVar[type[Cell]]
    drops: ClassVar[bool] = False

    def __init__(self, d: int, h: int, seeds: int = 1) -> None:
        super().__init__(d, h, seeds)
        self.above = nn.ModuleList(self.single(h, h, seeds) for _ in range(1, self.layers))

    def step(self, X: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        each, factors = self.single.states, None
        if self.drops and self.training:
            X, factors = torch.narrow(X, -1, 0, self.d), X
        after: list[tuple[Tensor, ...]] = []
        for k in range(self.layers):
            own = states[(self.layers - 1 - k) * each :][:each]
            if k == 0:
                step: Any = super().step
            else:
                cell: Any = self.above[k - 1]
                X, step = after[0][0], cell.step
                if factors is not None:
                    X = X * torch.narrow(factors, -1, self.d + (k - 1) * self.h, self.h)
            made = step(X, *own)
            after.insert(0, made if isinstance(made, tuple) else (made,))
        return tuple(state for layer in after for state in layer)
