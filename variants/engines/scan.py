"""Cells that are linear in their state, H_t = A_t ⊙ H_{t-1} + B_t with A and B of X alone, computed for all t at once.

On a CPU the rest is one operation a step. On a GPU, where each costs a launch, it is log T passes: a pass joins each
step with the one 1, 2, 4, ... before it, (A_t A_s, A_t B_s + B_t). Hillis and Steele 1986. That is T log T operations:
on a CPU half as fast as the loop. Such a cell has a method `linear`, X (..., S, n, d) -> A, B, from which its `step`
follows.
"""

import torch
from torch import Tensor

from ..cell import Cell, State


def unsupported_reason(variant: type[Cell], device: str = "cpu") -> str:
    if not hasattr(variant, "linear"):
        return "its state is not a linear function of the state before (it has no method `linear`)"
    step, linear = (next(c for c in variant.__mro__ if name in vars(c)) for name in ("step", "linear"))
    if not issubclass(linear, step):
        return "its step was written anew, its method `linear` is that of the cell it inherits from"
    if variant.absent and "W_xh" in variant.absent:
        return "nothing of the input reaches its state: there is nothing to scan"
    return ""


def unroll(cell: Cell, X: Tensor, state: State) -> tuple[Tensor, State]:
    if reason := unsupported_reason(type(cell)):
        raise ValueError(reason)
    A, B = cell.linear(cell.one_hot(X))
    A = A.expand_as(B) if isinstance(A, Tensor) else torch.full_like(B, A)  # a gate held is a number
    H = in_turn(A, B, state[0]) if B.device.type == "cpu" else in_passes(A, B, state[0])
    return H, (H[-1],)


def in_turn(A: Tensor, B: Tensor, H: Tensor) -> Tensor:
    """A, B (T, S, n, h), the state before -> every state (T, S, n, h): T operations."""
    states = []
    for A_t, B_t in zip(A.unbind(), B.unbind(), strict=True):
        H = torch.addcmul(B_t, A_t, H)
        states.append(H)
    return torch.stack(states)


def in_passes(A: Tensor, B: Tensor, H: Tensor) -> Tensor:
    """As `in_turn`, in log T passes."""
    B = torch.cat([B[:1] + A[:1] * H, B[1:]])
    T, back = len(B), 1
    while back < T:
        joined = A[back:] * B[:-back] + B[back:]
        A = torch.cat([A[:back], A[back:] * A[:-back]])
        B = torch.cat([B[:back], joined])
        back *= 2
    return B
