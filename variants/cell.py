"""What every recurrent cell shares: its weights, its gates, and how a gate is fixed.

Shapes, explained here and only here:

    S seeds trained side by side    n sequences in a minibatch    T time steps
    d inputs (one-hot characters)   h hidden units

    X (S, n, d)    H (S, n, h)    W_x* (S, d, h)    W_h* (S, h, h)    w_*, b_*, g_*, m_*, v_* (S, 1, h)

`@` broadcasts over S, so an equation written for one network is S independent networks at once.
A cell is a subclass of `Cell` that lists its weights by name, marks its gates and writes `step`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn, relu, sigmoid, tanh

__all__ = ["ABSENT", "Absent", "Cell", "State", "Tensor", "fix", "gate", "relu", "sigmoid", "tanh"]

State = tuple[Tensor, ...]
Gate = Callable[..., Tensor]  # (self, X, H, or more) -> (S, n, h), from 0 to 1


def gate(equation: Gate) -> Gate:
    """Mark a method as a gate: its name is its symbol, and `fix` can hold it at a constant."""
    equation.is_gate = True  # type: ignore[attr-defined]
    return equation


class Absent:
    """A weight that a fixed gate made dead: it adds nothing, multiplies to nothing, costs nothing."""

    def _other(self, other: Tensor) -> Tensor:
        return other

    def _self(self, other: object) -> Absent:
        return self

    __add__ = __radd__ = _other
    __sub__ = __mul__ = __rmul__ = __truediv__ = __matmul__ = __rmatmul__ = _self

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Tensor], types: object, args: tuple[object, ...] = (), kwargs: object = None
    ) -> object:
        """tanh(absent) is absent, sigmoid(absent) is 1/2; operators fall through to the methods above."""
        if len(args) != 1:
            return NotImplemented
        return function(torch.zeros(())).item() or ABSENT


ABSENT = Absent()


class Cell(nn.Module):
    """One step of a recurrent network. Subclasses say `weights`, mark gates, write `step`.

    weights: names, from which the shapes follow: `W_x*` (S, d, h), `W_h*` (S, h, h), `w_*`, `b_*` and `g_*`, which
             scales and starts at 1, (S, 1, h).
    averages: of means `m_*` and variances `v_*` (S, 1, h), kept while it trains and used after, not learned.
    states:  how many tensors (S, n, h) are carried from step to step; the first is the output H.
    keeps:   the bias of its update gate, if the larger it is the longer the state is kept.
    fixed, absent: the gates held at a constant, and the weights that are dead for it; `fix` fills them.
    """

    weights: ClassVar[str] = ""
    averages: ClassVar[str] = ""
    states: ClassVar[int] = 1
    keeps: ClassVar[str] = ""
    absent: ClassVar[frozenset[str]] = frozenset()
    fixed: ClassVar[dict[str, float]] = {}
    linear: Callable[..., tuple[Tensor, Tensor]]  # for engines/scan.py alone
    step: Callable[..., Tensor | State]  # the equations: X (S, n, d) and the state before -> the state after

    def __init__(self, d: int, h: int, seeds: int = 1) -> None:
        super().__init__()
        self.d, self.h, self.seeds = d, h, seeds
        self.register_buffer("zero", torch.zeros(()), persistent=False)  # knows device and dtype, weights or none
        row = (seeds, 1, h)
        shapes = {"W_x": (seeds, d, h), "W_h": (seeds, h, h), "w_": row, "b_": row, "g_": row}
        for name in self.weights.split():
            shape = next(shapes[prefix] for prefix in shapes if name.startswith(prefix))
            setattr(self, name, ABSENT if name in self.absent else nn.Parameter(torch.zeros(shape)))
        for name in self.averages.split():
            self.register_buffer(name, torch.full(row, float(name.startswith("v_"))))

    def __getattr__(self, name: str) -> Tensor:
        return super().__getattr__(name)  # type: ignore[return-value]

    @classmethod
    def gates(cls) -> list[str]:
        """Symbols in order of definition, whether fixed or not."""
        return [k for c in reversed(cls.__mro__) for k, v in vars(c).items() if getattr(v, "is_gate", False)]

    def one_hot(self, X: Tensor) -> Tensor:
        """Characters as indices (T, S, n) -> (T, S, n, d); what is numbers already stays as it is."""
        return X if X.is_floating_point() else nn.functional.one_hot(X, self.d).to(self.zero.dtype)

    def begin(self, n: int) -> State:
        """The state before the first character: zeros, for n sequences a seed."""
        zeros = self.zero.new_zeros(self.seeds, n, self.h)
        return (zeros,) * self.states


@functools.cache
def fix(cell: type[Cell], values: tuple[tuple[str, float], ...]) -> type[Cell]:
    """The ablation: gates held at constants, and every weight that thereby stops mattering gone.

    `fix(GRU, (("R", 1.0),))` is `gru:R=1`. Which weights are dead is found, not declared: those with
    no gradient, to the last bit, in a small random network run from its zero state.
    """
    constants = {symbol: (lambda self, *seen, value=value: value) for symbol, value in values}
    fixed = type(cell.__name__, (cell,), constants)
    probe = fixed(2, 3).double().eval()
    rng = torch.Generator().manual_seed(0)
    for weight in probe.parameters():
        weight.data = torch.randn(weight.shape, generator=rng, dtype=torch.float64)
    state, total = probe.begin(2), torch.zeros((), dtype=torch.float64)
    for _ in range(4):
        try:
            after = probe.step(torch.randn(1, 2, 2, generator=rng, dtype=torch.float64), *state)
        except ZeroDivisionError:
            names = ", ".join(f"{gate}={value:g}" for gate, value in values)
            raise ValueError(f"with {names} its equations divide by 0: hold one of these gates elsewhere") from None
        state = after if isinstance(after, tuple) else (after,)
        total = total + (state[0] * torch.randn(1, 2, 3, generator=rng, dtype=torch.float64)).sum()
    if total.requires_grad:
        total.backward()
    dead = [name for name, weight in probe.named_parameters() if weight.grad is None or not weight.grad.any()]
    return type(cell.__name__, (fixed,), {"absent": frozenset(dead), "fixed": dict(values)})
