"""The family rnn, gru, gru_after and every fixed gate of theirs, as one recurrence, its parts present or absent.

Columns: the learned gates (Z, R), then the candidate N.

    reset none      G = A + H W                  N = tanh(G_n)
    reset before    G = A + H W (gates only)     N = tanh(A_n + (R ⊙ H) W_n)
    reset after     G = A + H W (gates only)     N = tanh(A_n + R ⊙ (H W_n + b_n))

    Z, R = σ(G_z), σ(G_r)                        H = Z ⊙ H + (1 - Z) ⊙ N

A, the input product of a character, is a row of W_x + b, looked up before time starts. A reset gate held at c is no
reset, with W_n scaled by c; Z held is a number. What runs in time is resident.py's; weight gradients are here, one
product over all of time. Shapes are (S, T, n, columns).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..cell import Absent, Cell, State
from ..gru import GRU
from ..gru_after import GRUAfter
from ..rnn import RNN


def unsupported_reason(variant: type[Cell], device: str = "cpu") -> str:
    if (variant.written or variant) not in (RNN, GRU, GRUAfter):  # what inherits from them may step otherwise
        return "it is written for rnn, gru, gru_after and their fixed gates"
    if variant.fixed.get("Z") == 1:
        return "Z = 1 keeps the first state for ever: there is nothing to compute"
    return ""


def unroll(cell: Cell, X: Tensor, state: State, recurrence: type[torch.autograd.Function]) -> tuple[Tensor, State]:
    """Unroll as every engine does; `recurrence` is what runs in time."""
    if reason := unsupported_reason(type(cell)):
        raise ValueError(reason)
    held = cell.fixed if cell.gates() else {"Z": 0.0, "R": 1.0}  # rnn is the GRU with both gates fixed
    gates = [symbol.lower() for symbol in "ZR" if symbol not in held]
    reset = "none" if "R" in held else "after" if isinstance(cell, GRUAfter) else "before"
    W_x = torch.cat([getattr(cell, f"W_x{k}") for k in (*gates, "h")], -1)
    b, b_n = _biases(cell, gates, held)
    W_n = cell.W_hh if held.get("R", 1.0) == 1 else cell.W_hh * held["R"]
    W_h = [getattr(cell, f"W_h{k}") for k in gates] + [W_n] * (not isinstance(W_n, Absent))
    if X.is_floating_point():  # (T, S, n, d) numbers: each its own row
        table = (X.transpose(0, 1) @ W_x.unsqueeze(1) + b.unsqueeze(1)).flatten(1, 2)
        X = torch.arange(table.shape[1], device=X.device).view(X.shape[0], 1, X.shape[2]).expand(X.shape[:3])
    else:
        table = W_x + b  # the input product, of every character there is
    offsets = table.shape[1] * torch.arange(cell.seeds, device=X.device)[:, None, None]
    W = torch.cat(W_h, -1) if W_h else None
    H = recurrence.apply(table, X.transpose(0, 1) + offsets, state[0], W, b_n, reset, held.get("Z"))
    return H.transpose(0, 1), (H[:, -1],)


def _biases(cell: Cell, gates: list[str], held: dict[str, float]) -> tuple[Tensor, Tensor | None]:
    """Return what adds to A, all columns; and b_n, which a learned reset gate multiplies (reset after only)."""
    if not isinstance(cell, GRUAfter):
        return torch.cat([getattr(cell, f"b_{k}") for k in (*gates, "h")], -1), None
    both = [getattr(cell, f"b_x{k}") + getattr(cell, f"b_h{k}") for k in gates]
    if "R" not in held:
        return torch.cat([*both, cell.b_xh], -1), cell.b_hh
    return torch.cat([*both, cell.b_xh + cell.b_hh * held["R"]], -1), None


def table_gradient(X: Tensor, dA: Tensor, d: int) -> Tensor:
    """dA (S, T, n, columns) added up by row of the table: (S, d, columns), on a GPU by a product: adding has no order.

    Not where d is as many as T n: numbers as inputs, each its own row, to which one gradient is added.
    """
    S, columns = len(dA), dA.shape[-1]
    if dA.is_cuda and d < X[0].numel():
        rows = torch.arange(S * d, device=X.device).view(S, d, 1)
        return (rows == X.flatten(1).unsqueeze(1)).to(dA.dtype) @ dA.view(S, -1, columns)
    return dA.new_zeros(S * d, columns).index_add_(0, X.flatten(), dA.view(-1, columns)).view(S, d, columns)


def weight_gradients(
    Hs: Tensor, U: Tensor | None, dA: Tensor, reset: str, columns: int
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of W, which has so many columns, and of b_n: one product over all of time. dA: gradient of
    what W makes.
    """
    S, T, n, wide = dA.shape
    h = Hs.shape[-1]
    k = wide - h
    if not columns:
        return None, None
    H, g = Hs[:, :-1].reshape(S, T * n, h).mT, dA.view(S, T * n, wide)
    if reset != "before":
        return H @ g[..., :columns], g[..., k:].sum(1, keepdim=True) if reset == "after" else None
    assert U is not None  # for the type checker: a reset gate has both
    dW = dA.new_empty(S, h, columns)
    dW[..., :k] = H @ g[..., :k]
    dW[..., k:] = U.view(S, T * n, h).mT @ g[..., k:]
    return dW, None
