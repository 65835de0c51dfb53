"""Long short-term memory with a forget gate.
Gers et al. 2000, https://doi.org/10.1162/089976600300015015

    I  = σ(X W_xi + H W_hi + b_i)         input: how much of the candidate enters the memory
    F  = σ(X W_xf + H W_hf + b_f)         forget: F = 1 keeps the memory
    O  = σ(X W_xo + H W_ho + b_o)         output: how much of the memory is shown
    C~ = tanh(X W_xc + H W_hc + b_c)      candidate
    C  = F ⊙ C + I ⊙ C~
    H  = O ⊙ tanh(C)
"""

from .cell import Cell, State, Tensor, gate, sigmoid, tanh


class LSTM(Cell):
    weights = """W_xi W_hi b_i
                 W_xf W_hf b_f
                 W_xo W_ho b_o
                 W_xc W_hc b_c"""
    states = 2

    @gate
    def I(self, X: Tensor, H: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xi + H @ self.W_hi + self.b_i)

    @gate
    def F(self, X: Tensor, H: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xf + H @ self.W_hf + self.b_f)

    @gate
    def O(self, X: Tensor, H: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xo + H @ self.W_ho + self.b_o)

    def step(self, X: Tensor, H: Tensor, C: Tensor) -> State:
        I, F, O = self.I(X, H), self.F(X, H), self.O(X, H)
        C_tilde = tanh(X @ self.W_xc + H @ self.W_hc + self.b_c)
        C = F * C + I * C_tilde
        return O * tanh(C), C
