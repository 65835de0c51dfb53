"""Long short-term memory whose gates also see the memory, each unit its own.
Gers and Schmidhuber 2000, https://doi.org/10.1109/IJCNN.2000.861302

    I  = σ(X W_xi + H W_hi + w_ci ⊙ C + b_i)      input: how much of the candidate enters the memory
    F  = σ(X W_xf + H W_hf + w_cf ⊙ C + b_f)      forget: F = 1 keeps the memory
    C~ = tanh(X W_xc + H W_hc + b_c)              candidate
    C  = F ⊙ C + I ⊙ C~
    O  = σ(X W_xo + H W_ho + w_co ⊙ C + b_o)      output, which sees the new memory: how much of it is shown
    H  = O ⊙ tanh(C)
"""

from .cell import Cell, State, Tensor, gate, sigmoid, tanh


class LSTMPeephole(Cell):
    weights = "W_xi W_hi w_ci b_i W_xf W_hf w_cf b_f W_xo W_ho w_co b_o W_xc W_hc b_c"
    states = 2

    @gate
    def I(self, X: Tensor, H: Tensor, C: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xi + H @ self.W_hi + self.w_ci * C + self.b_i)

    @gate
    def F(self, X: Tensor, H: Tensor, C: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xf + H @ self.W_hf + self.w_cf * C + self.b_f)

    @gate
    def O(self, X: Tensor, H: Tensor, C: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xo + H @ self.W_ho + self.w_co * C + self.b_o)

    def step(self, X: Tensor, H: Tensor, C: Tensor) -> State:
        I, F = self.I(X, H, C), self.F(X, H, C)
        C_tilde = tanh(X @ self.W_xc + H @ self.W_hc + self.b_c)
        C = F * C + I * C_tilde
        return self.O(X, H, C) * tanh(C), C
