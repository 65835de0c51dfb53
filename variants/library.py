"""torch.nn.RNN, GRU and LSTM behind the same face, each the same mathematics as a cell written here.

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
        self.rnn = self.module(d, h)

    def named_parts(self) -> list[tuple[str, Tensor]]:
        """(name, view) for every block, transposed to the shapes of cell.py: W_x* (1, d, h), b_* (1, 1, h)."""
        parts = []
        for prefix, tensor in (
            ("W_x", "weight_ih_l0"),
            ("W_h", "weight_hh_l0"),
            ("b_x", "bias_ih_l0"),
            ("b_h", "bias_hh_l0"),
        ):
            rows = getattr(self.rnn, tensor).detach().chunk(len(self.blocks))
            parts += [
                (prefix + k, r.mT[None] if r.dim() == 2 else r[None, None])
                for k, r in zip(self.blocks, rows, strict=True)
            ]
        return parts

    def unroll(self, X: Tensor, state: State) -> tuple[Tensor, State]:
        """X (T, 1, n, d), state -> outputs (T, 1, n, h), state: the whole sequence in torch's one call."""
        Y, after = self.rnn(X[:, 0], state if self.states > 1 else state[0])
        return Y[:, None], after if isinstance(after, tuple) else (after,)


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
