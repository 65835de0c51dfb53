"""Minimal LSTM: neither its gates nor its candidate sees the state.
Feng et al. 2024, https://arxiv.org/abs/2410.01201, the version without logarithms, its gates scaled to add up to one

    F  = σ(X W_xf + b_f)              forget
    I  = σ(X W_xi + b_i)              input
    H~ = X W_xh + b_h                 candidate
    H  = (F ⊙ H + I ⊙ H~) / (F + I)
"""

from .cell import Cell, Tensor, gate, sigmoid


class MinLSTM(Cell):
    weights = "W_xf b_f W_xi b_i W_xh b_h"

    @gate
    def F(self, X: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xf + self.b_f)

    @gate
    def I(self, X: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xi + self.b_i)

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        F, I, H_tilde = self.F(X), self.I(X), X @ self.W_xh + self.b_h
        return F / (F + I) * H + I / (F + I) * H_tilde
