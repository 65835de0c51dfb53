"""Just another network: an LSTM with its forget gate alone.
van der Westhuizen and Lasenby 2018, https://arxiv.org/abs/1804.04849

    S  = X W_xf + H W_hf + b_f
    F  = σ(S)                                 forget: F = 1 keeps the old state
    I  = 1 - σ(S - β), β = 1                  input: how much of the candidate enters
    C~ = tanh(X W_xc + H W_hc + b_c)          candidate
    H  = F ⊙ H + I ⊙ C~
"""

from .cell import Cell, Tensor, gate, sigmoid, tanh


class JANET(Cell):
    weights = "W_xf W_hf b_f W_xc W_hc b_c"

    @gate
    def F(self, X: Tensor, H: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xf + H @ self.W_hf + self.b_f)

    @gate
    def I(self, X: Tensor, H: Tensor) -> Tensor:
        return 1 - sigmoid(X @ self.W_xf + H @ self.W_hf + self.b_f - 1)

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        F, I = self.F(X, H), self.I(X, H)
        C_tilde = tanh(X @ self.W_xc + H @ self.W_hc + self.b_c)
        return F * H + I * C_tilde
