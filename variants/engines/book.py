"""The book's own code of its three networks, to be timed beside the others: chapters 9.5, 10.1 and 10.2.

https://d2l.ai/chapter_recurrent-modern/gru.html. Written from there, not from the cells: weights (d, h) without an axis
of seeds, a loop over the characters, `torch.matmul`. Several seeds are run one after the other. The output layer, the
clip and the update are every engine's. Nothing is trained with it unless asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..cell import Cell, State
from ..gru import GRU
from ..lstm import LSTM
from ..rnn import RNN

States = tuple[list[Tensor], State]


def unsupported_reason(variant: type[Cell], device: str = "cpu") -> str:
    return "" if variant in NETWORKS else "the book writes rnn, gru and lstm, with no gate fixed"


def unroll(cell: Cell, X: Tensor, state: State) -> tuple[Tensor, State]:
    network, names = NETWORKS[type(cell)]
    weights = [getattr(cell, name) for name in names.split()]
    inputs = X if X.is_floating_point() else functional.one_hot(X, cell.d).type(weights[0].dtype)
    runs = [network(inputs[:, k], [s[k] for s in state], *(w[k] for w in weights)) for k in range(cell.seeds)]
    outputs = torch.stack([torch.stack(each) for each, _ in runs], 1)
    return outputs, tuple(torch.stack(parts) for parts in zip(*(last for _, last in runs), strict=True))


def rnn(inputs: Tensor, state: Sequence[Tensor], W_xh: Tensor, W_hh: Tensor, b_h: Tensor) -> States:
    (H,) = state
    outputs = []
    for X in inputs:
        H = torch.tanh(torch.matmul(X, W_xh) + torch.matmul(H, W_hh) + b_h)
        outputs.append(H)
    return outputs, (H,)


def gru(
    inputs: Tensor,
    state: Sequence[Tensor],
    W_xz: Tensor, W_hz: Tensor, b_z: Tensor,
    W_xr: Tensor, W_hr: Tensor, b_r: Tensor,
    W_xh: Tensor, W_hh: Tensor, b_h: Tensor,
) -> States:  # fmt: skip
    (H,) = state
    outputs = []
    for X in inputs:
        Z = torch.sigmoid(torch.matmul(X, W_xz) + torch.matmul(H, W_hz) + b_z)
        R = torch.sigmoid(torch.matmul(X, W_xr) + torch.matmul(H, W_hr) + b_r)
        H_tilde = torch.tanh(torch.matmul(X, W_xh) + torch.matmul(R * H, W_hh) + b_h)
        H = Z * H + (1 - Z) * H_tilde
        outputs.append(H)
    return outputs, (H,)


def lstm(
    inputs: Tensor,
    state: Sequence[Tensor],
    W_xi: Tensor, W_hi: Tensor, b_i: Tensor,
    W_xf: Tensor, W_hf: Tensor, b_f: Tensor,
    W_xo: Tensor, W_ho: Tensor, b_o: Tensor,
    W_xc: Tensor, W_hc: Tensor, b_c: Tensor,
) -> States:  # fmt: skip
    H, C = state
    outputs = []
    for X in inputs:
        I = torch.sigmoid(torch.matmul(X, W_xi) + torch.matmul(H, W_hi) + b_i)
        F = torch.sigmoid(torch.matmul(X, W_xf) + torch.matmul(H, W_hf) + b_f)
        O = torch.sigmoid(torch.matmul(X, W_xo) + torch.matmul(H, W_ho) + b_o)
        C_tilde = torch.tanh(torch.matmul(X, W_xc) + torch.matmul(H, W_hc) + b_c)
        C = F * C + I * C_tilde
        H = O * torch.tanh(C)
        outputs.append(H)
    return outputs, (H, C)


NETWORKS: dict[type[Cell], tuple[Callable[..., States], str]] = {
    RNN: (rnn, "W_xh W_hh b_h"),
    GRU: (gru, "W_xz W_hz b_z W_xr W_hr b_r W_xh W_hh b_h"),
    LSTM: (lstm, "W_xi W_hi b_i W_xf W_hf b_f W_xo W_ho b_o W_xc W_hc b_c"),
}
