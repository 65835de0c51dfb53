"""Wrap torch.nn.RNN, GRU and LSTM behind the same face, each the same mathematics as a cell written here.

Their weights lie side by side in torch's own tensors, in torch's order of blocks; `weights` names
each part as the cell written here names it, so that both start from the same values for a seed. torch adds a
second bias everywhere. They cannot train several seeds at once, nor fix a gate.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from .cell import Cell, State


class Library(Cell):
    """A torch.nn recurrent module as a cell. `blocks`: the letters of its gates, in torch's order."""

    module: ClassVar[type[nn.RNN] | type[nn.GRU] | type[nn.LSTM]]
    blocks: ClassVar[str]

    def __init__(self, d: int, h: int, seeds: int = 1) -> None:
        if seeds != 1:
            raise ValueError(f"nn.{self.module.__name__.lower()} trains one seed at a time, not {seeds}")
        super().__init__(d, h, seeds)
        self.rnn = self.module(d, h, self.layers)

    def named_parts(self) -> list[tuple[str, Tensor]]:
        """(name, view) for every block, transposed to the shapes of cell.py: W_x* (1, d, h), b_* (1, 1, h)."""
        parts = []
        kinds = (("W_x", "weight_ih"), ("W_h", "weight_hh"), ("b_x", "bias_ih"), ("b_h", "bias_hh"))
        for layer in range(self.layers):
            for prefix, tensor in kinds:
                rows = getattr(self.rnn, f"{tensor}_l{layer}").detach().chunk(len(self.blocks))
                parts += [
                    (f"above.{layer - 1}." * (layer > 0) + prefix + k, r.mT[None] if r.dim() == 2 else r[None, None])
                    for k, r in zip(self.blocks, rows, strict=True)
                ]
        return parts

    def unroll(self, X: Tensor, state: State) -> tuple[Tensor, State]:
        """X (T, 1, n, d), state -> outputs (T, 1, n, h), state: the whole sequence in torch's one call."""
        each = self.states // self.layers  # torch's states are (layers, n, h) each, the bottom layer first
        first = state if self.layers == 1 else tuple(torch.cat(state[k::each][::-1]) for k in range(each))
        Y, after = self.rnn(X[:, 0], first if each > 1 else first[0])
        parts = [part.split(1) for part in (after if isinstance(after, tuple) else (after,))]
        return Y[:, None], tuple(part[layer] for layer in reversed(range(self.layers)) for part in parts)


class RNN(Library):
    name = "nn.rnn"
    module = torch.nn.RNN
    blocks = "h"


class GRU(Library):
    name = "nn.gru"
    keeps = "b_xz"
    module = torch.nn.GRU
    blocks = "rzh"


class LSTM(Library):
    name = "nn.lstm"
    module = torch.nn.LSTM
    blocks = "ifco"
    states = 2
