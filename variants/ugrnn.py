"""Update-gate RNN: a plain RNN whose state may be kept. The same as gru:R=1.
Collins et al. 2016, https://arxiv.org/abs/1611.09913

    Z  = σ(X W_xz + H W_hz + b_z)         update: Z = 1 keeps the old state
    H~ = tanh(X W_xh + H W_hh + b_h)      candidate
    H  = Z ⊙ H + (1 - Z) ⊙ H~
"""

from .cell import Cell, Tensor, gate, sigmoid, tanh


class UGRNN(Cell):
    weights = "W_xz W_hz b_z W_xh W_hh b_h"

    @gate
    def Z(self, X: Tensor, H: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xz + H @ self.W_hz + self.b_z)

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        Z = self.Z(X, H)
        return Z * H + (1 - Z) * tanh(X @ self.W_xh + H @ self.W_hh + self.b_h)
