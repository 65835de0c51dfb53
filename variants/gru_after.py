"""Gated recurrent unit, the reset after the product: nn.GRU's mathematics, both its biases.
Cho et al. 2014, https://arxiv.org/abs/1406.1078v1; https://docs.pytorch.org/docs/stable/generated/torch.nn.GRU.html

    Z  = σ(X W_xz + b_xz + H W_hz + b_hz)                update: Z = 1 keeps the old state
    R  = σ(X W_xr + b_xr + H W_hr + b_hr)                reset: how much of the old state the candidate sees
    H~ = tanh(X W_xh + b_xh + R ⊙ (H W_hh + b_hh))       candidate
    H  = Z ⊙ H + (1 - Z) ⊙ H~
"""

from .cell import Cell, Tensor, gate, sigmoid, tanh


class GRUAfter(Cell):
    weights = """W_xz W_hz b_xz b_hz
                 W_xr W_hr b_xr b_hr
                 W_xh W_hh b_xh b_hh"""
    keeps = "b_xz"

    @gate
    def Z(self, X: Tensor, H: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xz + self.b_xz + H @ self.W_hz + self.b_hz)

    @gate
    def R(self, X: Tensor, H: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xr + self.b_xr + H @ self.W_hr + self.b_hr)

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        Z, R = self.Z(X, H), self.R(X, H)
        H_tilde = tanh(X @ self.W_xh + self.b_xh + R * (H @ self.W_hh + self.b_hh))
        return Z * H + (1 - Z) * H_tilde
