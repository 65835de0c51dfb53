"""Long short-term memory with coupled gates: what is forgotten is what is written.
Greff et al. 2015 (CIFG), https://arxiv.org/abs/1503.04069

    F  = σ(X W_xf + H W_hf + b_f)         forget: F = 1 keeps the memory, and writes nothing
    O  = σ(X W_xo + H W_ho + b_o)         output: how much of the memory is shown
    C~ = tanh(X W_xc + H W_hc + b_c)      candidate
    C  = F ⊙ C + (1 - F) ⊙ C~
    H  = O ⊙ tanh(C)
"""

from .cell import Cell, State, Tensor, gate, sigmoid, tanh


class CIFG(Cell):
    weights = "W_xf W_hf b_f W_xo W_ho b_o W_xc W_hc b_c"
    states = 2

    @gate
    def F(self, X: Tensor, H: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xf + H @ self.W_hf + self.b_f)

    @gate
    def O(self, X: Tensor, H: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xo + H @ self.W_ho + self.b_o)

    def step(self, X: Tensor, H: Tensor, C: Tensor) -> State:
        F, O = self.F(X, H), self.O(X, H)
        C_tilde = tanh(X @ self.W_xc + H @ self.W_hc + self.b_c)
        C = F * C + (1 - F) * C_tilde
        return O * tanh(C), C
