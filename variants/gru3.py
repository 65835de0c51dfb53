"""Gated recurrent unit whose gates are a bias alone: one constant a unit.
Dey and Salem 2017, https://arxiv.org/abs/1701.05923

    Z  = σ(b_z)                               update: Z = 1 keeps the old state
    R  = σ(b_r)                               reset: how much of the old state the candidate sees
    H~ = tanh(X W_xh + (R ⊙ H) W_hh + b_h)    candidate
    H  = Z ⊙ H + (1 - Z) ⊙ H~
"""

from .cell import Cell, Tensor, gate, sigmoid, tanh


class GRU3(Cell):
    weights = "b_z b_r W_xh W_hh b_h"
    keeps = "b_z"

    @gate
    def Z(self, X: Tensor, H: Tensor) -> Tensor:
        return sigmoid(self.b_z)

    @gate
    def R(self, X: Tensor, H: Tensor) -> Tensor:
        return sigmoid(self.b_r)

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        Z, R = self.Z(X, H), self.R(X, H)
        H_tilde = tanh(X @ self.W_xh + (R * H) @ self.W_hh + self.b_h)
        return Z * H + (1 - Z) * H_tilde
