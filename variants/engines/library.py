"""torch.nn's own implementation of the whole sequence (cuDNN, oneDNN or ATen's loop: see `kernels` in speed.csv)."""

from torch import Tensor

from ..cell import Cell, State
from ..library import Library


def unsupported_reason(variant: type[Cell], device: str = "cpu") -> str:
    return "" if issubclass(variant, Library) else "only torch.nn's own modules run in torch's own loop"


def unroll(cell: Cell, X: Tensor, state: State) -> tuple[Tensor, State]:
    if not isinstance(cell, Library):
        raise ValueError(unsupported_reason(type(cell)))
    return cell.unroll(cell.one_hot(X), state)
