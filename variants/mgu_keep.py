"""Minimal gated unit, coupled the other way, as some libraries ship it: what is kept is what the candidate sees.
After Zhou et al. 2016, https://arxiv.org/abs/1603.09420, whose own is mgu: there 1 - F keeps

    F  = σ(X W_xf + H W_hf + b_f)             forget: F = 1 keeps the old state
    H~ = tanh(X W_xh + (F ⊙ H) W_hh + b_h)    candidate
    H  = F ⊙ H + (1 - F) ⊙ H~
"""

from .cell import Cell, Tensor, gate, sigmoid, tanh


class MGUKeep(Cell):
    weights = "W_xf W_hf b_f W_xh W_hh b_h"

    @gate
    def F(self, X: Tensor, H: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xf + H @ self.W_hf + self.b_f)

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        F = self.F(X, H)
        H_tilde = tanh(X @ self.W_xh + (F * H) @ self.W_hh + self.b_h)
        return F * H + (1 - F) * H_tilde
