"""Minimal GRU: neither its gate nor its candidate sees the state.
Feng et al. 2024, https://arxiv.org/abs/2410.01201, the version without logarithms

    Z  = σ(X W_xz + b_z)              update: Z = 1 replaces the old state, as in the paper; in gru it keeps it
    H~ = X W_xh + b_h                 candidate
    H  = (1 - Z) ⊙ H + Z ⊙ H~
"""

from .cell import Cell, Tensor, gate, sigmoid


class MinGRU(Cell):
    weights = "W_xz b_z W_xh b_h"

    @gate
    def Z(self, X: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xz + self.b_z)

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        Z, H_tilde = self.Z(X), X @ self.W_xh + self.b_h
        return (1 - Z) * H + Z * H_tilde
