"""Light gated recurrent unit: no reset gate, ReLU, and what the input adds is batch-normalised.
Ravanelli et al. 2018, https://arxiv.org/abs/1803.10225

    Z  = σ(BN(X W_xz) + H W_hz)          update: Z = 1 keeps the old state
    H~ = relu(BN(X W_xh) + H W_hh)       candidate
    H  = Z ⊙ H + (1 - Z) ⊙ H~

    BN(A) = g ⊙ (A - m) / √(v + ε) + b   m, v: mean and variance over the minibatch; after training their averages

The paper has m and v over all steps of a minibatch at once. Here they are each step's own: none knows a later one.
"""

from .cell import Absent, Cell, Tensor, gate, relu, sigmoid

ε, SHARE = 1e-5, 0.01  # SHARE: of the newest step in the averages


class LiGRU(Cell):
    weights = "W_xz g_z b_z W_hz W_xh g_h b_h W_hh"
    averages = "m_z v_z m_h v_h"
    keeps = "b_z"

    @gate
    def Z(self, X: Tensor, H: Tensor) -> Tensor:
        return sigmoid(self.BN(X @ self.W_xz, self.g_z, self.b_z, self.m_z, self.v_z) + H @ self.W_hz)

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        Z = self.Z(X, H)
        H_tilde = relu(self.BN(X @ self.W_xh, self.g_h, self.b_h, self.m_h, self.v_h) + H @ self.W_hh)
        return Z * H + (1 - Z) * H_tilde

    def BN(self, A: Tensor, g: Tensor, b: Tensor, m: Tensor, v: Tensor) -> Tensor:
        if self.training and not isinstance(A, Absent):
            averages, (m, v) = (m, v), (A.mean(-2, keepdim=True), A.var(-2, keepdim=True, correction=0))
            for average, now in zip(averages, (m, v), strict=True):
                average.lerp_(now.detach(), SHARE)
        return g * (A - m) / (v + ε).sqrt() + b
