"""Gated recurrent unit, the reset before the product.
Cho et al. 2014, https://arxiv.org/abs/1406.1078

    Z  = σ(X W_xz + H W_hz + b_z)             update: Z = 1 keeps the old state
    R  = σ(X W_xr + H W_hr + b_r)             reset: how much of the old state the candidate sees
    H~ = tanh(X W_xh + (R ⊙ H) W_hh + b_h)    candidate
    H  = Z ⊙ H + (1 - Z) ⊙ H~
"""

from .cell import Cell, Tensor, gate, sigmoid, tanh


class GRU(Cell):
    weights = """W_xz W_hz b_z
                 W_xr W_hr b_r
                 W_xh W_hh b_h"""
    keeps = "b_z"

    @gate
    def Z(self, X: Tensor, H: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xz + H @ self.W_hz + self.b_z)

    @gate
    def R(self, X: Tensor, H: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xr + H @ self.W_hr + self.b_r)

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        Z, R = self.Z(X, H), self.R(X, H)
        H_tilde = tanh(X @ self.W_xh + (R * H) @ self.W_hh + self.b_h)
        return Z * H + (1 - Z) * H_tilde
