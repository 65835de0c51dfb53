"""Independently recurrent network: each unit remembers itself alone.
Li et al. 2018, https://arxiv.org/abs/1803.04831

    H = relu(X W_xh + w_hh ⊙ H + b_h)
"""

from .cell import Cell, Tensor, relu


class IndRNN(Cell):
    weights = "W_xh w_hh b_h"

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        return relu(X @ self.W_xh + self.w_hh * H + self.b_h)
