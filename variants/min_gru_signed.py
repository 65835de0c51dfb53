"""Minimal GRU whose gate may also turn the state around: what it keeps is from -1 to 1, not from 0 to 1.
Feng et al. 2024, https://arxiv.org/abs/2410.01201, with the range of Grazzi et al. 2024, https://arxiv.org/abs/2411.12537

    Z  = σ(X W_xz + b_z)              update: Z = 0 keeps the old state, Z = 1 keeps it with the other sign
    H~ = X W_xh + b_h                 candidate
    H  = (1 - 2 Z) ⊙ H + Z ⊙ H~
"""

from .cell import Cell, Tensor, gate, sigmoid


class MinGRUSigned(Cell):
    weights = "W_xz b_z W_xh b_h"

    @gate
    def Z(self, X: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xz + self.b_z)

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        Z, H_tilde = self.Z(X), X @ self.W_xh + self.b_h
        return (1 - 2 * Z) * H + Z * H_tilde
