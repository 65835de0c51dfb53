"""Cells that somebody who knows nothing of engines might write. Each is one thing that no cell of variants/ has."""

import torch
from torch.nn import functional

from variants.cell import Cell, State, Tensor, gate, relu, sigmoid, tanh


class Highway(Cell):
    """A GRU with a third gate, that carries the input's own projection past the recurrence."""

    weights = "W_xz W_hz b_z W_xr W_hr b_r W_xt W_ht b_t W_xh W_hh b_h W_xp"
    keeps = "b_z"

    @gate
    def Z(self, X: Tensor, H: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xz + H @ self.W_hz + self.b_z)

    @gate
    def R(self, X: Tensor, H: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xr + H @ self.W_hr + self.b_r)

    @gate
    def T(self, X: Tensor, H: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xt + H @ self.W_ht + self.b_t)

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        Z, R, T = self.Z(X, H), self.R(X, H), self.T(X, H)
        N = tanh(X @ self.W_xh + (R * H) @ self.W_hh + self.b_h)
        return T * (Z * H + (1 - Z) * N) + (1 - T) * tanh(X @ self.W_xp)


class TwoLayers(Cell):
    """Two networks in one step; three states, one of them a copy of the older."""

    weights = "W_xh W_hh b_h W_ha W_hb b_b w_s"
    states = 3

    def step(self, X: Tensor, H: Tensor, A: Tensor, old: Tensor) -> State:
        after = tanh(X @ self.W_xh + A @ self.W_hh + self.b_h)
        return tanh(after @ self.W_ha + H @ self.W_hb + self.b_b + self.w_s * old), after, H


class Leaky(Cell):
    """How fast each unit moves is a weight."""

    weights = "W_xh W_hh b_h w_a"

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        return torch.lerp(H, relu(X @ self.W_xh + H @ self.W_hh + self.b_h), torch.sigmoid(self.w_a))


class Swap(Cell):
    weights = "W_xh W_hh"
    states = 2

    def step(self, X: Tensor, H: Tensor, C: Tensor) -> State:
        return tanh(X @ self.W_xh + C @ self.W_hh), H


class Twice(Cell):
    """One weight in two products, one of them halved, as the input is; the state's own way has no activation."""

    weights = "W_xh W_hh b_h"

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        N = tanh((0.5 * X) @ self.W_xh + H @ self.W_hh + self.b_h)
        return 0.5 * H - 0.25 * tanh((0.5 * N) @ self.W_hh) + N / 2


class Deep(Cell):
    """Three products one after the other; two of one state in one sum, so that their gradients are one."""

    weights = "W_xh W_ha W_hb W_hc b_a b_b"

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        A = relu(X @ self.W_xh + H @ self.W_ha + H @ self.W_hc + self.b_a)
        B = sigmoid(A @ self.W_hb + self.b_b) * A
        return tanh(B @ self.W_hc + A) + 0.1 * H


class Ratio(Cell):
    weights = "W_xf W_hf W_xi W_hi W_xh"

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        F, G = torch.exp(-(X @ self.W_xf + H @ self.W_hf)), torch.sigmoid(X @ self.W_xi + H @ self.W_hi)
        return (F * H + G * tanh(X @ self.W_xh)) / torch.sqrt(1 + F * F + G)


class LayerNorm(Cell):
    """Of the state, by hand."""

    weights = "W_xh W_hh b_h g_h"

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        A = X @ self.W_xh + H @ self.W_hh
        m = A.mean(-1, keepdim=True)
        v = ((A - m) * (A - m)).mean(-1, keepdim=True)
        return tanh(self.g_h * (A - m) / torch.sqrt(v + 1e-5) + self.b_h)


class TorchsLayerNorm(Cell):
    """By torch's own, and a second one by its variance."""

    weights = "W_xz W_hz b_z W_xh W_hh b_h g_h"

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        N = tanh(functional.layer_norm(X @ self.W_xh + H @ self.W_hh, (self.h,)) * self.g_h + self.b_h)
        Z = sigmoid(X @ self.W_xz + H @ self.W_hz + self.b_z)
        N = N / (1 + N.var(-1, keepdim=True)) - H.sum(dim=-1, keepdim=True) / self.h
        return Z * H + (1 - Z) * N


class Activations(Cell):
    weights = "W_xh W_hh b_h W_xa W_ha"

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        A, B = X @ self.W_xh + H @ self.W_hh + self.b_h, X @ self.W_xa + H @ self.W_ha
        A = functional.gelu(A) + 0.1 * functional.softplus(B) - functional.hardsigmoid(A - B)
        A = torch.where(B > 0.1, A, -abs(B)) + functional.silu(A).clamp(-1, 2) + torch.maximum(A, B) / 4
        return tanh(A - functional.leaky_relu(B, 0.2) + functional.elu(A) / 2 + B**2 / 8 + torch.minimum(A, H))


class Scaled(Cell):
    """The input shapes a gate of its own, before time; a difference of weights multiplies the state."""

    weights = "W_xa W_xb b_a W_ha W_hb b_b"

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        A = functional.softplus(X @ self.W_xa + self.b_a) * tanh(X @ self.W_xb)
        return tanh(H @ (self.W_ha - 2 * self.W_hb) + A) * sigmoid(self.b_b + 1)


class Asks(Cell):
    """A comparison of the input alone: its weight has no gradient, and is needed before time."""

    weights = "W_xa W_xb W_ha b_a b_b"

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        A = torch.where(X @ self.W_xa > self.b_a, self.b_b, 0.5 * self.b_b)
        return tanh(H @ self.W_ha + A * H + torch.where(X @ self.W_xa > 0, X @ self.W_xb, H))


ALL = [Asks, Highway, TwoLayers, Leaky, Swap, Twice, Deep, Ratio, LayerNorm, TorchsLayerNorm, Activations, Scaled]
