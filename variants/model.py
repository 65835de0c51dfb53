"""Build a character language model: a cell and the output layer `H @ W_hq + b_q`, for S seeds at once.

Rule: what starts, what is optimised and what is scored is the same for every cell.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from . import get, reference_engine
from .cell import Cell, State
from .layers import stack
from .library import Library
from .optimizer import SGD, Optimizer


class Model(nn.Module):
    """S networks of one variant, one a seed; seed k is the same network alone or among many.

    Initial values come from a generator per (seed, name of the tensor), so a tensor that two variants share
    starts equal. All weights are float32 values, also in a float64 model. `engine` executes the cell; '' is the
    plainest that can. `outputs` of the output layer, as many as the vocabulary if not given. `update_bias`: of the
    gate whose bias the cell names in `keeps`, as `grid.Protocol` has it. `layers` of the cell, see layers.py; in
    training each output that one hands to the next is 0 with probability `dropout`, drawn by a generator per (seed,
    variant), else scaled by 1 / (1 - dropout). `embedding`: the cell reads of each token so many numbers, a row of the
    trained table E (S, vocabulary, embedding), instead of a one-hot vector.
    """

    branches = 0  # how many networks are trained each by itself, see `SideBySide`
    moments: tuple[Tensor, ...] = ()  # (S, P) each: the optimizer's running averages, once there are any
    steps: Tensor  # updates done, where the optimizer counts them

    def __init__(
        self,
        variant: str,
        vocabulary: int,
        hidden: int,
        seeds: Sequence[int],
        init: str = "own",
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        engine: str = "",
        update_bias: str = "own",
        horizon: int = 0,
        outputs: int = 0,
        layers: int = 1,
        dropout: float = 0.0,
        embedding: int = 0,
    ) -> None:
        super().__init__()
        self.E = nn.Parameter(torch.zeros(len(seeds), vocabulary, embedding)) if embedding else None
        self.cell: Cell = stack(get(variant), layers, dropout > 0)(embedding or vocabulary, hidden, len(seeds))
        self.layers, self.dropout = layers, dropout
        self.rngs = [_generator(f"{seed} {variant} dropout") for seed in seeds] if dropout and layers > 1 else []
        self.W_hq = nn.Parameter(torch.zeros(len(seeds), hidden, outputs or vocabulary))
        self.b_q = nn.Parameter(torch.zeros(len(seeds), 1, outputs or vocabulary))
        self.engine = importlib.import_module(f"variants.engines.{engine or reference_engine(variant)}")
        self.unroll = self.engine.unroll
        self.trainer: Any = None  # the engine's own training step, once there is a first
        library = isinstance(self.cell, Library)
        if isinstance(self.cell, Library) and self.rngs:
            self.cell.rnn.dropout = dropout
        if init == "own":
            init = "torch" if library else "book"
        parts = self.cell.named_parts() if isinstance(self.cell, Library) else list(self.cell.named_parameters())
        table = [] if self.E is None else [("E", self.E)]
        for name, value in [*parts, ("W_hq", self.W_hq), ("b_q", self.b_q), *table]:
            for k, seed in enumerate(seeds):
                value.data[k] = initial(name, value.shape[1:], seed, init, hidden)
                if name.rpartition(".")[2] == self.cell.keeps and update_bias != "own":
                    value.data[k] = kept(update_bias, value.shape[1:], seed, horizon)
        self.to(device=device, dtype=dtype)
        self.unknown_nats = 0.0  # what a target of index 0 costs beyond that: see corpus.Corpus
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device), persistent=False)
        weights = list(self.parameters())
        self.flat = torch.cat([w.data.view(len(seeds), -1) for w in weights], 1)  # (S, P): parameters() are views of it
        self.gradient = torch.empty_like(self.flat)  # (S, P), laid out alike: filled by `gather`
        self.values = [self.flat]  # what an update changes
        if library and self.flat.is_cuda:  # cuDNN reads weights without a copy only where it has laid them out itself
            self.values = [w.data.view(len(seeds), -1) for w in weights]
            return
        for w, value in zip(weights, self.flat.split([w.numel() // len(seeds) for w in weights], 1), strict=True):
            w.data = value.view(w.shape)

    @property
    def parameters_per_seed(self) -> int:
        return sum(w.numel() for w in self.parameters()) // len(self.b_q)

    def forward(self, X: Tensor, state: State) -> tuple[Tensor, State]:
        """Characters X (T, S, n) as indices, state -> logits (T, S, n, vocabulary), state."""
        X = self.embedded(X)
        if not (self.rngs and self.training):
            H, state = self.unroll(self.cell, X, state)
        elif isinstance(self.cell, Library):  # torch's own dropout draws from torch's own generator
            with torch.random.fork_rng([X.device] if X.is_cuda else []):
                torch.manual_seed(int(torch.randint(2**62, (), generator=self.rngs[0])))
                H, state = self.unroll(self.cell, X, state)
        else:
            H, state = self.unroll(self.cell, self._with_factors(X), state)
        T, S, n, h = H.shape
        logits = torch.baddbmm(self.b_q, H.transpose(0, 1).reshape(S, T * n, h), self.W_hq)  # one product, not T
        return logits.view(S, T, n, -1).transpose(0, 1), state

    def embedded(self, X: Tensor) -> Tensor:
        """Return what the cell reads: tokens X (T, S, n) as they are, or of a table their rows (T, S, n, embedding)."""
        if self.E is None or X.is_floating_point():
            return X
        S, d, _ = self.E.shape
        rows = X + d * torch.arange(S, device=X.device)[:, None]
        return nn.functional.embedding(rows, self.E.flatten(0, 1))

    def _with_factors(self, X: Tensor) -> Tensor:
        """Inputs (T, S, n, d), and behind them what dropout multiplies: (layers - 1) * h columns."""
        (T, _, n), p = X.shape[:3], self.dropout
        shape = (T, n, (self.layers - 1) * self.cell.h)
        kept = torch.stack([torch.rand(shape, generator=rng) >= p for rng in self.rngs], 1)
        inputs = self.cell.one_hot(X)
        return torch.cat([inputs, kept.to(inputs.device, inputs.dtype) / (1 - p)], -1)

    def nats(self, X: Tensor, Y: Tensor, state: State) -> tuple[Tensor, State]:
        """Cross-entropy (S, T, n) in nats of predicting each of Y (T, S, n) from X, and the state after."""
        logits, state = self(X, state)
        T, S, n = Y.shape
        each, answers = logits.transpose(0, 1).flatten(0, 2), Y.transpose(0, 1).flatten()
        nats = nn.functional.cross_entropy(each, answers, reduction="none")
        if self.unknown_nats:
            nats = nats + self.unknown_nats * (answers == 0).to(nats.dtype)
        return nats.view(S, T, n), state

    def losses(self, X: Tensor, Y: Tensor, state: State) -> tuple[Tensor, State]:
        """Mean cross-entropy (S,) in nats a character of predicting Y (T, S, n) from X, and the state after."""
        nats, state = self.nats(X, Y, state)
        return nats.flatten(1).mean(1), state

    def learn(
        self,
        X: Tensor,
        Y: Tensor,
        state: State,
        lr: float,
        clip: float,
        optimizer: Optimizer = SGD,
        counts: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, State]:  # fmt: skip
        """One training step: losses (S,), norms of the gradient (S,) before clipping, the state after.

        By the engine, where it has whole steps. With `counts` (T, S, n) the mean is over those answers; see `counted`.
        """
        if self.trainer is None and self.E is None and hasattr(self.engine, "Trainer"):
            self.trainer = self.engine.Trainer(self)
        # a state that is learned has a gradient, which whole steps do not compute
        if self.trainer and self.trainer.serves(X) and not any(s.requires_grad for s in state):
            losses, norms, state = self.trainer.step(X, Y, state, lr, clip, optimizer, counts)
            if self.unknown_nats and counts is None:
                losses = losses + self.unknown_nats * (Y == 0).to(losses.dtype).mean((0, 2))
            return losses, norms, state
        if counts is None:
            losses, state = self.losses(X, Y, state)
        else:
            outputs, state = self(X, state)
            losses = counted(outputs, Y, counts)
        weights = list(self.parameters())
        # each seed's own mean: the sum has each seed's own gradient. `backward` would copy those that are slices
        for w, gradient in zip(
            weights, torch.autograd.grad(losses.sum(), weights, materialize_grads=True), strict=True
        ):
            w.grad = gradient
        norms = self.update(lr, clip, optimizer)
        return losses.detach(), norms, tuple(s.detach() for s in state)

    def update(self, lr: float, clip: float, optimizer: Optimizer = SGD) -> Tensor:
        """Gradients clipped to norm `clip` per seed over all its weights, one update, gradients back to zero.

        Gives the norms before clipping (S,); no value is read back from the device. A seed whose norm is not
        finite stays where it is.
        """
        norm = self.gather()
        fine = norm.isfinite()[:, None]
        if optimizer == SGD:
            step = (lr * (clip / norm).clamp(max=1))[:, None]
            self.subtract(torch.where(fine, self.gradient * step, 0.0))
            return norm
        self.prepare(optimizer)
        clipped = self.gradient * (clip / norm).clamp(max=1)[:, None]
        weights = self.flat if len(self.values) == 1 else torch.cat(self.values, 1)
        done = self.steps.double() if self.steps.is_cuda else int(self.steps)
        change = optimizer.change(weights, clipped, self.moments, lr, done, fine)
        self.subtract(torch.where(fine, change, 0.0))
        self.steps += 1
        return norm

    def prepare(self, optimizer: Optimizer) -> None:
        """Have the running averages that an optimizer needs, zeros at first."""
        if not self.moments:
            self.moments = tuple(torch.zeros_like(self.flat) for _ in range(optimizer.moments))

    def changing(self) -> list[Tensor]:
        """Every tensor that a training step writes in place and reads in the next."""
        return [*self.parameters(), *self.buffers(), *self.moments]

    def snapshot(self) -> dict[str, npt.NDArray[Any]]:
        """All that a step changes, as arrays: weights, running averages, and Adam's moments once it has made any."""
        whole = {f"weight/{name}": weight for name, weight in self.state_dict().items()}
        whole |= {f"moment/{k}": moment for k, moment in enumerate(self.moments)}
        whole |= {f"dropout/{k}": rng.get_state() for k, rng in enumerate(self.rngs)}
        return {name: value.cpu().numpy() for name, value in whole.items()} | {"steps": np.array(int(self.steps))}

    @torch.no_grad()
    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Be what `snapshot` was taken of; other arrays may be among them."""
        self.put({name: torch.from_numpy(arrays[f"weight/{name}"]) for name in self.state_dict()})
        self.steps.fill_(int(arrays["steps"]))
        for k, rng in enumerate(self.rngs):
            rng.set_state(torch.from_numpy(arrays[f"dropout/{k}"]))
        names = [f"moment/{k}" for k in range(2) if f"moment/{k}" in arrays]
        self.moments = tuple(torch.from_numpy(arrays[name]).to(self.b_q.device) for name in names)

    @torch.no_grad()
    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Take over what a `state_dict` of it holds, in place."""
        for name, weight in self.state_dict().items():
            weight.copy_(weights[name])

    def chosen(self, which: Tensor, others: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a `state_dict`: weights of the seeds in `which` (S,), the rest from `others` where it has any."""
        found = {}
        for name, weight in self.state_dict().items():
            mine = which.view(-1, *[1] * (weight.dim() - 1)) if len(which) > 1 else which[0]
            found[name] = torch.where(mine, weight, others.get(name, weight))
        return found

    def gather(self) -> Tensor:
        """Move every weight's .grad into `gradient`, by one copy; .grad is then None. Return their norms (S,)."""
        grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in self.parameters()]
        torch.cat([g.reshape(len(self.flat), -1) for g in grads], 1, out=self.gradient)
        for w in self.parameters():
            w.grad = None
        norms: Tensor = torch.linalg.vector_norm(self.gradient, dim=1)
        return norms

    def subtract(self, change: Tensor) -> None:
        """Take a change (S, P) from the weights."""
        torch._foreach_sub_(self.values, change.split([v.shape[1] for v in self.values], 1))


class SideBySide(Model):
    """S networks that take one seed each, as one model: every number is that of the network alone.

    `models`: they. Trained by `harness.run.train.steps`, each by itself; read from here, one after the other.
    """

    models: Sequence[Model]
    W_hq = property(lambda self: torch.cat([one.W_hq for one in self.models]))
    b_q = property(lambda self: torch.cat([one.b_q for one in self.models]))
    E = property(lambda self: None if self.models[0].E is None else torch.cat([one.E for one in self.models]))
    layers = property(lambda self: self.models[0].layers)

    def __init__(self, models: Sequence[Model]) -> None:
        nn.Module.__init__(self)
        self.models = nn.ModuleList(models)  # type: ignore[assignment]
        self.branches = len(models)

    @property
    def cell(self) -> Cell:  # type: ignore[override]
        """The first network's, whose states are of all."""
        cell = copy.copy(self.models[0].cell)
        cell.seeds = self.branches
        return cell

    @property
    def unknown_nats(self) -> float:
        return self.models[0].unknown_nats

    @unknown_nats.setter
    def unknown_nats(self, nats: float) -> None:
        for one in self.models:
            one.unknown_nats = nats

    @property
    def parameters_per_seed(self) -> int:
        return self.models[0].parameters_per_seed

    def forward(self, X: Tensor, state: State) -> tuple[Tensor, State]:
        found = [one(X[:, k : k + 1], tuple(s[k : k + 1] for s in state)) for k, one in enumerate(self.models)]
        states = zip(*(after for _, after in found), strict=True)
        return torch.cat([logits for logits, _ in found], 1), tuple(torch.cat(parts) for parts in states)

    def nats(self, X: Tensor, Y: Tensor, state: State) -> tuple[Tensor, State]:
        found = [
            one.nats(X[:, k : k + 1], Y[:, k : k + 1], tuple(s[k : k + 1] for s in state))
            for k, one in enumerate(self.models)
        ]
        states = zip(*(after for _, after in found), strict=True)
        return torch.cat([nats for nats, _ in found]), tuple(torch.cat(parts) for parts in states)

    def prepare(self, optimizer: Optimizer) -> None:
        for one in self.models:
            one.prepare(optimizer)

    def changing(self) -> list[Tensor]:
        return [tensor for one in self.models for tensor in one.changing()]

    def snapshot(self) -> dict[str, npt.NDArray[Any]]:
        return {f"{k}/{name}": x for k, one in enumerate(self.models) for name, x in one.snapshot().items()}

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        for k, one in enumerate(self.models):
            start = f"{k}/"
            one.restore({name.removeprefix(start): x for name, x in arrays.items() if name.startswith(start)})

    def chosen(self, which: Tensor, others: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for k, one in enumerate(self.models):
            start = f"models.{k}."
            own = {name.removeprefix(start): weight for name, weight in others.items() if name.startswith(start)}
            found |= {start + name: weight for name, weight in one.chosen(which[k : k + 1], own).items()}
        return found


def build(variant: str, vocabulary: int, hidden: int, seeds: Sequence[int], *how: Any, **more: Any) -> Model:
    """`Model` of all seeds; of torch's own modules, which take one each, as many `SideBySide`."""
    if len(seeds) == 1 or not issubclass(get(variant), Library):
        return Model(variant, vocabulary, hidden, seeds, *how, **more)
    return SideBySide([Model(variant, vocabulary, hidden, [seed], *how, **more) for seed in seeds])


def counted(outputs: Tensor, Y: Tensor, counts: Tensor) -> Tensor:
    """(S,) mean over what counts: cross-entropy in nats, or of one output the squared error. outputs (T, S, n, k)."""
    if outputs.shape[-1] == 1:
        each = (outputs[..., 0] - Y) ** 2
    else:
        each = nn.functional.cross_entropy(outputs.movedim(-1, 1), Y, reduction="none")
    return (each * counts).sum((0, 2)) / counts.sum((0, 2))


def matched(
    variant: str, like: str, inputs: int, hidden: int, outputs: int, layers: int = 1, embedding: int = 0
) -> int:
    """The hidden size at which `variant` has as many parameters as `like` with `hidden`, or as near as can be."""

    def parameters(name: str, h: int) -> int:
        cell = stack(get(name), layers)
        with torch.device("meta"):
            return sum(w.numel() for w in cell(embedding or inputs, h, 1).parameters()) + (h + 1) * outputs

    want = parameters(like, hidden)
    high = 1
    while parameters(variant, high) < want:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if parameters(variant, middle) < want else (low, middle)
    return min((h for h in (low, high) if h), key=lambda h: abs(parameters(variant, h) - want))


def initial(name: str, shape: Sequence[int], seed: int, init: str, hidden: int) -> Tensor:
    """float32 values of one tensor for one seed. `book`: N(0, 0.01^2), biases 0. `torch`: U(-1/sqrt(h), 1/sqrt(h)).

    What only scales starts at 1 in both; a table of tokens at N(0, 1) with `torch`, as nn.Embedding does.
    """
    kind, rng = name.rpartition(".")[2], _generator(f"{seed} {name}")
    if kind.startswith("g_"):
        return torch.ones(*shape)
    if kind == "E" and init == "torch":
        return torch.randn(*shape, generator=rng)
    if init == "torch":
        return (2 * torch.rand(*shape, generator=rng) - 1) / math.sqrt(hidden)
    return torch.zeros(*shape) if kind.startswith("b_") else 0.01 * torch.randn(*shape, generator=rng)


def _generator(of: str) -> torch.Generator:
    digest = hashlib.sha256(of.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def kept(bias: str, shape: Sequence[int], seed: int, horizon: int) -> Tensor:
    """An update gate's initial bias. `chrono`: log U(1, horizon - 1), so that the times it keeps for are spread evenly.

    Tallec and Ollivier 2018, https://arxiv.org/abs/1804.11188
    """
    if bias != "chrono":
        return torch.full(tuple(shape), float(bias))
    rng = torch.Generator().manual_seed(seed)
    return torch.log(1 + torch.rand(*shape, generator=rng) * max(horizon - 2, 0))
