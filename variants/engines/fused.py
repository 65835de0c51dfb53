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
    if (variant.written or variant) not in (RNN, GRU, GRUAfter):  # what inherits from them may step otherwise
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
    if X.is_floating_point():  # (T, S, n, d) numbers: each its own row
        table = (X.transpose(0, 1) @ W_x.unsqueeze(1) + b.unsqueeze(1)).flatten(1, 2)
        X = torch.arange(table.shape[1], device=X.device).view(X.shape[0], 1, X.shape[2]).expand(X.shape[:3])
    else:
        table = W_x + b  # the input product, of every character there is
    offsets = table.shape[1] * torch.arange(cell.seeds, device=X.device)[:, None, None]
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
        h = H0.shape[-1]
        k = table.shape[-1] - h  # columns of gates; the candidate's come after
        G, N = (functional.embedding(X, A.flatten(0, 1)) for A in (table[..., :k], table[..., k:]))  # A, for now
        S, T, n, _ = N.shape
        Hs = N.new_empty(S, T + 1, n, h)
        Hs[:, 0] = H0
        U = torch.empty_like(N) if reset != "none" else None  # before: R ⊙ H; after: H W_n + b_n
        W_g: Any = None if W is None else _plain(W[..., :k])
        W_n: Any = None if W is None else _plain(W[..., k:])
        add, product = (Tensor.addmm_, torch.addmm) if S == 1 else (Tensor.baddbmm_, torch.baddbmm)
        plain = reset == "none" and W is not None and W.shape[-1] > k
        b = _plain(b_n)
        H_, gates, candidate, used = _steps(Hs), _steps(G), _steps(N), _steps(U)
        Z, R = _steps(G[..., :h]) if z is None else [z] * T, _steps(G[..., k - h :])
        for t in range(T):
            H, N_t = H_[t], candidate[t]
            if k:
                add(gates[t], H, W_g).sigmoid_()
            if plain:
                add(N_t, H, W_n)
            elif reset == "before":
                add(N_t, torch.mul(R[t], H, out=used[t]), W_n)
            elif reset == "after":
                N_t.addcmul_(R[t], product(b, H, W_n, out=used[t]))
            torch.lerp(N_t.tanh_(), H, Z[t], out=H_[t + 1])
        ctx.save_for_backward(X, G, N, Hs, U, W)
        ctx.d, ctx.reset, ctx.z = table.shape[1], reset, z
        return Hs[:, 1:]

    @staticmethod
    def backward(ctx: Any, dHs: Tensor) -> Any:
        X, G, N, Hs, U, W = ctx.saved_tensors
        reset, z = ctx.reset, ctx.z
        S, T, n, h = N.shape
        k = G.shape[-1]
        dA = N.new_empty(S, T, n, k + h)  # slopes, then times the gradient of H, in place, the gradient
        dN = torch.empty_like(N) if reset == "after" else None
        W_T: Any = None if W is None else _plain(W.mT)
        add, product = (Tensor.addmm_, torch.mm) if S == 1 else (Tensor.baddbmm_, torch.bmm)
        Z, R = _steps(G[..., :h]) if z is None else [z] * T, _steps(G[..., k - h :])
        dH = [*_steps(dHs), dHs.new_zeros(())]  # at -1: before the first step nothing is asked of H
        each, own = _steps(dA.view(S, T, n, -1, h)), _steps(dN)
        used = _steps(dA[..., : k if reset == "before" else 0 if W is None else W.shape[-1]])
        _slopes(G, N, Hs[:, :-1], U, dA, dN, reset, z)
        d = dH[T - 1]
        for t in range(T - 1, -1, -1):
            kept = torch.add(dH[t - 1], d, alpha=z) if z is not None else torch.addcmul(dH[t - 1], d, Z[t])
            if reset == "before":
                *g_z, g_r, g_n = each[t].unbind(-2)
                for g in g_z:
                    g.mul_(d)
                dU = product(g_n.mul_(d), W_T[..., k:, :])
                g_r.mul_(dU)
                d = add(kept.addcmul_(dU, R[t]), used[t], W_T[..., :k, :])
                continue
            each[t].mul_(d.unsqueeze(-2))
            if own:
                own[t].mul_(d)
            d = kept if W is None else add(kept, used[t], W_T)
        dW, db = weight_gradients(Hs, U, dA, reset, 0 if W is None else W.shape[-1])
        if dN is not None:
            dA[..., k:] = dN
        return table_gradient(X, dA, ctx.d), None, d.view(S, n, h), dW, db, None, None


def _steps(x: Tensor | None) -> Any:
    """(S, T, ...) as T views (S, ...); of one seed without S: on a CPU a batch of one product costs more than one."""
    return () if x is None else x[0].unbind(0) if len(x) == 1 else x.unbind(1)


def _plain(x: Any) -> Any:
    """(S, ...), of one seed without S."""
    return x[0] if x is not None and len(x) == 1 else x


def _slopes(
    G: Tensor, N: Tensor, H: Tensor, U: Tensor | None, C: Tensor, own: Tensor | None, reset: str, z: float | None
) -> None:
    """Into C, for every t at once: what one unit of gradient of H becomes at each column before its activation.

    Of a reset after, the candidate's column is what W_n sees of it, and its own is apart, in `own`.
    """
    h, k = N.shape[-1], G.shape[-1]
    R = G[..., k - h :]
    if z is None:
        Z = G[..., :h]
        open_ = 1 - Z
        torch.mul(Z, open_, out=C[..., :h]).mul_(H - N)
        slope = torch.addcmul(open_, open_, N * N, value=-1)
    else:
        slope = (1 - N * N).mul_(1 - z)
    if own is None:
        C[..., k:] = slope
        if reset == "before":
            torch.mul(R, 1 - R, out=C[..., k - h : k]).mul_(H)
        return
    own.copy_(slope)
    torch.mul(slope, R, out=C[..., k:])
    torch.mul(C[..., k:], 1 - R, out=C[..., k - h : k]).mul_(U)  # type: ignore[arg-type]


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
    """Of W, which has so many columns, and of b_n: one product over all of time. dA: gradient of what W makes."""
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
