"""The family rnn, gru, gru_after and every fixed gate of theirs, its backward pass written by hand.

One recurrence, its parts present or absent. Columns: the learned gates (Z, R), then the candidate N.

    reset none      G = A + H W                  N = tanh(G_n)
    reset before    G = A + H W (gates only)     N = tanh(A_n + (R ⊙ H) W_n)
    reset after     G = A + H W (gates only)     N = tanh(A_n + R ⊙ (H W_n + b_n))

    Z, R = σ(G_z), σ(G_r)                        H = Z ⊙ H + (1 - Z) ⊙ N

A, the input product of a character, is a row of W_x + b, looked up before time starts. A reset gate held at c is no
reset, with W_n scaled by c; Z held is a number. Backwards, what does not depend on the gradient of H is computed for
every t at once, and the gradient of a weight is one product over all of time. Inside, shapes are (S, T, n, columns), so
that this product needs no copy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..cell import Absent, Cell, State
from ..gru import GRU
from ..gru_after import GRUAfter
from ..rnn import RNN


def refuses(variant: type[Cell], device: str = "cpu") -> str:
    if not issubclass(variant, RNN | GRU | GRUAfter):
        return "it is written for rnn, gru, gru_after and their fixed gates"
    if variant.fixed.get("Z") == 1:
        return "Z = 1 keeps the first state for ever: there is nothing to compute"
    return ""


def unroll(
    cell: Cell, X: Tensor, state: State, recurrence: type[torch.autograd.Function] | None = None
) -> tuple[Tensor, State]:
    """As every engine's; `recurrence` is what runs in time, this file's if not given."""
    if reason := refuses(type(cell)):
        raise ValueError(reason)
    held = cell.fixed if cell.gates() else {"Z": 0.0, "R": 1.0}  # rnn is the GRU with both gates fixed
    gates = [symbol.lower() for symbol in "ZR" if symbol not in held]
    reset = "none" if "R" in held else "after" if isinstance(cell, GRUAfter) else "before"
    W_x = torch.cat([getattr(cell, f"W_x{k}") for k in (*gates, "h")], -1)
    b, b_n = _biases(cell, gates, held)
    W_n = cell.W_hh if held.get("R", 1.0) == 1 else cell.W_hh * held["R"]
    W_h = [getattr(cell, f"W_h{k}") for k in gates] + [W_n] * (not isinstance(W_n, Absent))
    table = W_x + b  # the input product, of every character there is
    offsets = cell.d * torch.arange(cell.seeds, device=X.device)[:, None, None]
    W = torch.cat(W_h, -1) if W_h else None
    H = (recurrence or Recurrence).apply(table, X.transpose(0, 1) + offsets, state[0], W, b_n, reset, held.get("Z"))
    return H.transpose(0, 1), (H[:, -1],)


def _biases(cell: Cell, gates: list[str], held: dict[str, float]) -> tuple[Tensor, Tensor | None]:
    """What adds to A, all columns; and b_n, which a learned reset gate multiplies (reset after only)."""
    if not isinstance(cell, GRUAfter):
        return torch.cat([getattr(cell, f"b_{k}") for k in (*gates, "h")], -1), None
    both = [getattr(cell, f"b_x{k}") + getattr(cell, f"b_h{k}") for k in gates]
    if "R" not in held:
        return torch.cat([*both, cell.b_xh], -1), cell.b_hh
    return torch.cat([*both, cell.b_xh + cell.b_hh * held["R"]], -1), None


class Recurrence(torch.autograd.Function):
    """table (S, d, columns), its rows X (S, T, n), H0 (S, n, h), W (S, h, columns), b_n (S, 1, h) -> H (S, T, n, h)."""

    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        X: Tensor,
        H0: Tensor,
        W: Tensor | None,
        b_n: Tensor | None,
        reset: str,
        z: float | None,
    ) -> Tensor:
        G = functional.embedding(X, table.flatten(0, 1))  # A, to become the gates and the candidate in place
        S, T, n, columns = G.shape
        h = H0.shape[-1]
        k = columns - h  # columns of gates; the candidate's come after
        Hs = G.new_empty(S, T + 1, n, h)
        Hs[:, 0] = H0
        U = G.new_empty(S, T, n, h) if reset != "none" else None  # before: R ⊙ H; after: H W_n + b_n
        for t in range(T):
            H, G_t = Hs[:, t], G[:, t]
            N = G_t[..., k:]
            if reset == "none":
                if W is not None:
                    _add(G_t[..., : W.shape[-1]], H, W)
                G_t[..., :k].sigmoid_()
            else:
                assert U is not None  # for the type checker: a reset gate has both
                assert W is not None
                _add(G_t[..., :k], H, W[..., :k])
                R = G_t[..., :k].sigmoid_()[..., k - h :]
                if reset == "before":
                    _add(N, torch.mul(R, H, out=U[:, t]), W[..., k:])
                else:
                    U[:, t] = b_n  # type: ignore[assignment]
                    _add(U[:, t], H, W[..., k:])
                    N.addcmul_(R, U[:, t])
            N.tanh_()
            torch.lerp(N, H, G_t[..., :h] if z is None else z, out=Hs[:, t + 1])
        ctx.save_for_backward(X, G, Hs, U, W)
        ctx.d, ctx.reset, ctx.z = table.shape[1], reset, z
        return Hs[:, 1:]

    @staticmethod
    def backward(ctx: Any, dHs: Tensor) -> Any:
        X, G, Hs, U, W = ctx.saved_tensors
        reset, z = ctx.reset, ctx.z
        S, T, n, columns = G.shape
        h = Hs.shape[-1]
        k = columns - h
        H, N = Hs[:, :-1], G[..., k:]
        Z = G[..., :h] if z is None else z
        R = G[..., k - h : k]
        # what one unit of gradient of H becomes at each column before its activation
        C = torch.empty_like(G)
        torch.mul(1 - N * N, 1 - Z, out=C[..., k:])
        if z is None:
            torch.mul(H - N, Z * (1 - Z), out=C[..., :h])
        slope: Any = R * (1 - R) if reset != "none" else None
        if reset == "after":
            torch.mul(C[..., k:], U * slope, out=C[..., k - h : k])
        elif reset == "before":
            slope = slope * H
        dA = torch.empty_like(G)
        d = torch.zeros_like(Hs[:, 0])
        W_T: Any = None if W is None else W.mT
        after: Any = U.new_empty(S, n, columns) if reset == "after" else None
        for t in range(T - 1, -1, -1):
            d = d + dHs[:, t]
            g = dA[:, t]
            if reset == "before":
                if z is None:
                    torch.mul(d, C[:, t, :, :h], out=g[..., :h])
                torch.mul(d, C[:, t, :, k:], out=g[..., k:])
                dU = torch.bmm(g[..., k:], W_T[:, k:])
                torch.mul(dU, slope[:, t], out=g[..., k - h : k])
                d = d * (Z[:, t] if z is None else z)
                d.addcmul_(dU, R[:, t])
                _add(d, g[..., :k], W_T[:, :k])
                continue
            torch.mul(d[:, :, None], C[:, t].view(S, n, -1, h), out=g.view(S, n, -1, h))
            d = d * (Z[:, t] if z is None else z)
            if reset == "after":
                after[..., :k] = g[..., :k]
                torch.mul(g[..., k:], R[:, t], out=after[..., k:])
                _add(d, after, W_T)
            elif W is not None:
                _add(d, g[..., : W.shape[-1]], W_T)
        dN = dA[..., k:] * R if reset == "after" else None
        dW, db = weight_gradients(Hs, U, dA, dN, reset, 0 if W is None else W.shape[-1])
        return table_gradient(X, dA, ctx.d), None, d, dW, db, None, None


def table_gradient(X: Tensor, dA: Tensor, d: int) -> Tensor:
    """dA (S, T, n, columns) added up by character: (S, d, columns). On a GPU a product: adding has no order there."""
    S, columns = len(dA), dA.shape[-1]
    if dA.is_cuda:
        offsets = d * torch.arange(S, device=X.device)[:, None, None]
        one_hot = functional.one_hot((X - offsets).flatten(1), d).to(dA.dtype)
        return one_hot.mT @ dA.view(S, -1, columns)
    return dA.new_zeros(S * d, columns).index_add_(0, X.flatten(), dA.view(-1, columns)).view(S, d, columns)


def weight_gradients(
    Hs: Tensor, U: Tensor | None, dA: Tensor, dN: Tensor | None, reset: str, columns: int
) -> tuple[Tensor | None, Tensor | None]:
    """Of W, which has so many columns, and of b_n: one product over all of time. dN: what W_n saw (reset after)."""
    S, T, n, wide = dA.shape
    h = Hs.shape[-1]
    k = wide - h
    if not columns:
        return None, None
    H, g = Hs[:, :-1].reshape(S, T * n, h).mT, dA.view(S, T * n, wide)
    if reset == "none":
        return H @ g[..., :columns], None
    dW = dA.new_empty(S, h, columns)
    dW[..., :k] = H @ g[..., :k]
    if reset == "before":
        assert U is not None  # for the type checker: a reset gate has both
        dW[..., k:] = U.view(S, T * n, h).mT @ g[..., k:]
        return dW, None
    assert dN is not None
    each = dN.reshape(S, T * n, h)
    dW[..., k:] = H @ each
    return dW, each.sum(1, keepdim=True)


def _add(out: Tensor, left: Tensor, right: Tensor) -> None:
    """out += left @ right, in place. One seed is a plain product: on a CPU a batch of one costs more."""
    if len(out) == 1:
        out[0].addmm_(left[0], right[0])
    else:
        out.baddbmm_(left, right)
