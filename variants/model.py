"""A character language model: a cell and the output layer `H @ W_hq + b_q`, for S seeds at once.

Rule: what starts, what is optimised and what is scored is the same for every cell.
"""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import engine, get
from .cell import Cell, State
from .library import Library


class Model(nn.Module):
    """S networks of one variant, one a seed; seed k is the same network alone or among many.

    Initial values come from a generator per (seed, name of the tensor), so a tensor that two variants share
    starts equal. All weights are float32 values, also in a float64 model.
    """

    def __init__(
        self,
        variant: str,
        vocabulary: int,
        hidden: int,
        seeds: Sequence[int],
        init: str = "own",
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        super().__init__()
        self.cell: Cell = get(variant)(vocabulary, hidden, len(seeds))
        self.W_hq = nn.Parameter(torch.zeros(len(seeds), hidden, vocabulary))
        self.b_q = nn.Parameter(torch.zeros(len(seeds), 1, vocabulary))
        self.unroll = importlib.import_module(f"variants.engines.{engine(variant)}").unroll
        library = isinstance(self.cell, Library)
        if init == "own":
            init = "torch" if library else "book"
        parts = self.cell.named_parts() if isinstance(self.cell, Library) else list(self.cell.named_parameters())
        for name, value in [*parts, ("W_hq", self.W_hq), ("b_q", self.b_q)]:
            for k, seed in enumerate(seeds):
                value.data[k] = initial(name, value.shape[1:], seed, init, hidden)
        self.to(device=device, dtype=dtype)
        self.flats = self._flatten(together=not library)

    def _flatten(self, together: bool) -> list[tuple[Tensor, Tensor]]:
        """[(values, gradients)], each (S, P): every weight becomes a view, so clip and update are one call.

        torch.nn's modules keep their own tensors: cuDNN wants them in its own single chunk.
        """
        weights = list(self.parameters())
        if not together:
            for w in weights:
                w.grad = torch.zeros_like(w)
            return [(w.data.view(1, -1), w.grad.view(1, -1)) for w in weights if w.grad is not None]
        seeds = len(self.b_q)
        values = torch.cat([w.data.reshape(seeds, -1) for w in weights], 1)
        gradients = torch.zeros_like(values)
        end = 0
        for w in weights:
            begin, end = end, end + w.numel() // seeds
            w.data = values[:, begin:end].view(w.shape)
            w.grad = gradients[:, begin:end].view(w.shape)
        return [(values, gradients)]

    @property
    def parameters_per_seed(self) -> int:
        return sum(w.numel() for w in self.parameters()) // len(self.b_q)

    def forward(self, X: Tensor, state: State) -> tuple[Tensor, State]:
        """Characters X (T, S, n) as indices, state -> logits (T, S, n, vocabulary), state."""
        one_hot = nn.functional.one_hot(X, self.b_q.shape[-1]).to(self.b_q.dtype)
        H, state = self.unroll(self.cell, one_hot, state)
        return H @ self.W_hq + self.b_q, state

    def losses(self, X: Tensor, Y: Tensor, state: State) -> tuple[Tensor, State]:
        """Mean cross-entropy (S,) in nats a character of predicting Y (T, S, n) from X, and the state after."""
        logits, state = self(X, state)
        nats = nn.functional.cross_entropy(logits.flatten(0, 2), Y.flatten(), reduction="none")
        return nats.view(Y.shape).mean((0, 2)), state

    def update(self, lr: float, clip: float) -> None:
        """Gradients clipped to norm `clip` per seed over all its weights, one SGD step, gradients back to zero.

        No value is read back from the device. A seed whose gradient is not finite stays where it is.
        """
        norm = torch.stack([g.square().sum(1) for _, g in self.flats]).sum(0).sqrt()[:, None]
        step = lr * (clip / norm).clamp(max=1)
        for values, gradients in self.flats:
            values.sub_(torch.where(norm.isfinite(), gradients * step, 0.0))
            gradients.zero_()


def initial(name: str, shape: Sequence[int], seed: int, init: str, hidden: int) -> Tensor:
    """float32 values of one tensor for one seed. `book`: N(0, 0.01^2), biases 0. `torch`: U(-1/sqrt(h), 1/sqrt(h))."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    rng = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    if init == "torch":
        return (2 * torch.rand(*shape, generator=rng) - 1) / math.sqrt(hidden)
    return torch.zeros(*shape) if name.startswith("b_") else 0.01 * torch.randn(*shape, generator=rng)
