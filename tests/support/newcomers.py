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
    """One weight in two products, one of them halved, as the input is; so is one of the input's own."""

    weights = "W_xh W_hh b_h"

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        N = tanh((0.5 * X) @ self.W_xh * sigmoid(X @ self.W_xh) + H @ self.W_hh + self.b_h)
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
        A = functional.softplus(X @ self.W_xa + self.b_a) * tanh(X @ self.W_xb + torch.flip(X @ self.W_xa, (1,)))
        A = A + torch.einsum("snh,skh->snk", H, self.W_ha) / 9
        return tanh(H @ (self.W_ha - 2 * self.W_hb) + A) * sigmoid(self.b_b + 1)


class Apart(Scaled):
    """The same, but that no sequence sees another: layers of it and a program as data are there to be had."""

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        A = functional.softplus(X @ self.W_xa + self.b_a) * tanh(X @ self.W_xb)
        A = A + torch.einsum("snh,skh->snk", H, self.W_ha) / 9
        return tanh(H @ (self.W_ha - 2 * self.W_hb) + A) * sigmoid(self.b_b + 1)


class Asks(Cell):
    """A comparison of the input alone: its weight has no gradient, and is needed before time."""

    weights = "W_xa W_xb W_ha b_a b_b"

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        A = torch.where(X @ self.W_xa > self.b_a, self.b_b, 0.5 * self.b_b)
        return tanh(H @ self.W_ha + A * H + torch.where(X @ self.W_xa > 0, X @ self.W_xb, H))


class Peephole(Cell):
    """Three states; two products, of different states, in one sum with the input."""

    weights = "W_xi W_hi w_i W_xf W_hf w_f b_f W_xo W_ho w_o b_o W_xc W_hc W_hs b_c w_s"
    states = 3

    def step(self, X: Tensor, H: Tensor, C: Tensor, M: Tensor) -> State:
        I = sigmoid(X @ self.W_xi + H @ self.W_hi + self.w_i * C)  # noqa: E741
        F = sigmoid(X @ self.W_xf + H @ self.W_hf + self.w_f * C + self.b_f)
        C = F * C + I * tanh(X @ self.W_xc + H @ self.W_hc + M @ self.W_hs + self.b_c)
        H = sigmoid(X @ self.W_xo + H @ self.W_ho + self.w_o * C + self.b_o) * tanh(C)
        return H, C, torch.lerp(M, H, torch.sigmoid(self.w_s))


class Joins(Cell):
    """Products side by side and taken apart in every way; a softmax over three ways to go on."""

    weights = "W_xz W_hz b_z W_xr W_hr b_r W_xh W_hh b_h"

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        h, weights = self.h, [(self.W_xz, self.W_hz), (self.W_xr, self.W_hr), (self.W_xh, self.W_hh)]
        wide = torch.cat([torch.cat(both, -2) for both in weights], dim=-1)
        b = torch.cat([self.b_z, self.b_r, self.b_h], -1)
        z, r, n = (torch.cat([X, H], -1) @ wide + b).chunk(3, dim=-1)
        G = H @ torch.cat([self.W_hr, self.W_hh, self.W_hz], -1)
        first, rest = torch.split(0.5 * G, [h, 2 * h], dim=-1)
        share = torch.softmax(torch.stack([z, r + first, tanh(G[..., 2 * h :])]), 0)
        return share[0] * H + share[1] * tanh(n) + 0.1 * functional.glu(rest) + torch.stack([z, n]).tanh().mean(0) / 3


class Inner(Cell):
    """A few steps of its own a character; attention over the units; in the ways that people write a product."""

    weights = "W_xh W_hh b_h W_ha"

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        U = torch.einsum("snd,sdh->snh", X, self.W_xh) + self.b_h
        for _ in range(2):
            H = 0.7 * H + tanh(torch.baddbmm(U, H, self.W_hh))
        A = torch.einsum("snh,shk->snk", H, self.W_ha)
        A = torch.softmax(functional.layer_norm(A, A.shape[-1:]), dim=-1) * A.size(-1)
        return functional.normalize(H, dim=-1) + A + functional.log_softmax(H, -1) / 9


class Curved(Cell):
    """Functions of every kind, numbers that are tensors, conditions put together."""

    weights = "W_xh W_hh b_h"

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        A = X @ self.W_xh + H @ self.W_hh + self.b_h
        B = (
            functional.mish(A)
            + functional.selu(A)
            + functional.celu(A)
            + functional.hardswish(A)
            + A.sign()
            + A**4 / 99
        )
        B = B + torch.sin(A) * torch.cos(A) + torch.atan(A) + torch.log1p(abs(A)) + torch.expm1(-abs(A)) + 2 ** -(A * A)
        B = B + functional.rms_norm(A, (self.h,), eps=1e-3) / 4
        B = torch.where((A > 0) & (H < 0.5) | ~(A > -1), B, functional.tanhshrink(A)).masked_fill(A > 3, 0.5)
        B = (
            torch.logaddexp(B, A)
            + torch.max(A, H).clamp_min(-2)
            + torch.min(A, H.detach()).clamp_max(2)
            + (1 + A * A) ** -2
        )
        return torch.tanh(B / 8) * (torch.ones_like(A) - torch.tensor(0.25)) + 0.1 * functional.dropout(H.clone(), 0.0)


ALL = [
    Peephole,
    Joins,
    Inner,
    Curved,
    Asks,
    Highway,
    TwoLayers,
    Leaky,
    Swap,
    Twice,
    Deep,
    Ratio,
    LayerNorm,
    TorchsLayerNorm,
    Activations,
    Scaled,
]
