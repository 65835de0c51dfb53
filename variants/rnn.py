"""Vanilla recurrent network.
Elman 1990, https://doi.org/10.1207/s15516709cog1402_1

    H = tanh(X W_xh + H W_hh + b_h)
"""

from .cell import Cell, Tensor, tanh


class RNN(Cell):
    weights = "W_xh W_hh b_h"

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        return tanh(X @ self.W_xh + H @ self.W_hh + self.b_h)
