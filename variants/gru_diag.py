"""Gated recurrent unit whose units do not mix: each gate and candidate sees its own unit's state alone.
Cho et al. 2014, https://arxiv.org/abs/1406.1078, with the recurrence of Li et al. 2018, https://arxiv.org/abs/1803.04831

    Z  = σ(X W_xz + w_hz ⊙ H + b_z)             update: Z = 1 keeps the old state
    R  = σ(X W_xr + w_hr ⊙ H + b_r)             reset: how much of the old state the candidate sees
    H~ = tanh(X W_xh + w_hh ⊙ (R ⊙ H) + b_h)    candidate
    H  = Z ⊙ H + (1 - Z) ⊙ H~
"""

from .cell import Cell, Tensor, gate, sigmoid, tanh


class GRUDiag(Cell):
    weights = """W_xz w_hz b_z
                 W_xr w_hr b_r
                 W_xh w_hh b_h"""

    @gate
    def Z(self, X: Tensor, H: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xz + self.w_hz * H + self.b_z)

    @gate
    def R(self, X: Tensor, H: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xr + self.w_hr * H + self.b_r)

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        Z, R = self.Z(X, H), self.R(X, H)
        H_tilde = tanh(X @ self.W_xh + self.w_hh * (R * H) + self.b_h)
        return Z * H + (1 - Z) * H_tilde
