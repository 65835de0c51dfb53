"""Define what every recurrent cell shares: its weights, its gates, and how a gate is fixed.

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
from typing import Any, ClassVar

import torch
from torch import Tensor, nn, relu, sigmoid, tanh

__all__ = ["Absent", "Cell", "State", "Tensor", "fix", "gate", "relu", "sigmoid", "tanh"]

State = tuple[Tensor, ...]
PREFIXES = ("W_x", "W_h", "w_", "b_", "g_")  # of weights: what it begins with is a weight's shape
Gate = Callable[..., Tensor]  # (self, X, H, or more) -> (S, n, h), from 0 to 1


def gate(equation: Gate) -> Gate:
    """Mark a method as a gate: its name is its symbol, `fix` can hold it at a constant, and `Cell.on_gate` sees it."""

    @functools.wraps(equation)
    def observed(self: Cell, *seen: Tensor) -> Tensor:
        values = equation(self, *seen)
        if self.on_gate is not None:
            self.on_gate(equation.__name__, values)
        return values

    observed.is_gate = True  # type: ignore[attr-defined]
    return observed


class Absent:
    """A weight that a fixed gate made dead: to every function a tensor of zeros, but one that costs nothing.

    It adds nothing, and what it multiplies is absent too. `zeros` makes the zeros themselves, for functions that need
    them: of the shape, device and type that the weight would have.
    """

    def __init__(self, zeros: Callable[[], Tensor]) -> None:
        self.zeros = zeros

    def __add__(self, other: Any) -> Any:
        return self.zeros() + other if isinstance(other, int | float) else other

    def __sub__(self, other: Any) -> Any:
        return self if isinstance(other, Absent) else self + -other

    def __neg__(self) -> Absent:
        return self

    def __mul__(self, other: Any) -> Absent:
        return _absent(torch.mul, self, other)

    def __truediv__(self, other: Any) -> Absent:
        return _absent(torch.div, self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return other / self.zeros()

    def __matmul__(self, other: Any) -> Absent:
        return _absent(torch.matmul, self, other)

    def __rmatmul__(self, other: Any) -> Absent:
        return _absent(torch.matmul, other, self)

    __radd__, __rsub__, __rmul__ = __add__, __add__, __mul__

    def __getitem__(self, place: Any) -> Absent:
        return _absent(Tensor.__getitem__, self, place)

    def __getattr__(self, name: str) -> Any:
        """Return the attribute of the tensor: `A.mean(-2)`, `A.shape`."""
        if name.startswith("__"):
            raise AttributeError(name)
        method = getattr(Tensor, name)
        if not callable(method):
            return getattr(self.zeros(), name)
        return lambda *args, **kwargs: self.__torch_function__(method, (), (self, *args), kwargs)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """tanh(absent) is absent, sigmoid(absent) is 1/2; of several arguments as of zeros."""
        kwargs, name = kwargs or {}, getattr(function, "__name__", "").strip("_")
        operator = OPERATORS.get(name)
        if operator and len(args) == 2 and not kwargs:
            one, other = args
            return (getattr(one, f"__{operator}__")(other) if isinstance(one, cls)
                    else getattr(other, f"__r{operator}__")(one))  # fmt: skip
        if name in ("einsum", "mm", "bmm") or (name == "linear" and len(args) + len(kwargs) == 2):
            return _absent(function, *args, **kwargs)
        if len(args) == 1 and isinstance(args[0], cls) and not kwargs:
            value = function(torch.zeros(()))
            if isinstance(value, Tensor) and value.dim() == 0:
                return value.item() or _absent(function, *args)
        return function(*_with_zeros(args), **_with_zeros(kwargs))


for _name in ("gt", "lt", "ge", "le", "pow", "rpow", "abs", "len", "iter"):  # the other signs, of the zeros themselves
    setattr(Absent, f"__{_name}__", lambda self, *args, _name=f"__{_name}__": getattr(self.zeros(), _name)(*args))


OPERATORS = {  # torch's names of what Python writes as a sign
    "add": "add", "sub": "sub", "subtract": "sub", "mul": "mul", "multiply": "mul", "matmul": "matmul",
    "div": "truediv", "divide": "truediv", "true_divide": "truediv", "truediv": "truediv",
    "radd": "add", "rmul": "mul",
}  # fmt: skip


def _absent(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Absent:
    """Return a part that is 0 whatever the other arguments are; computed, for its shape, only if someone asks."""
    return Absent(lambda: torch.zeros_like(function(*_with_zeros(args), **_with_zeros(kwargs))))


def _with_zeros(x: Any) -> Any:
    """The same arguments, zeros in place of what is absent."""
    if isinstance(x, Absent):
        return x.zeros()
    if isinstance(x, list | tuple):
        return type(x)(map(_with_zeros, x))
    return {key: _with_zeros(value) for key, value in x.items()} if isinstance(x, dict) else x


class Cell(nn.Module):
    """One step of a recurrent network. Subclasses say `weights`, mark gates, write `step`.

    weights: names, from which the shapes follow: `W_x*` (S, d, h), `W_h*` (S, h, h), `w_*`, `b_*` and `g_*`, which
             scales and starts at 1, (S, 1, h).
    averages: of means `m_*` and variances `v_*` (S, 1, h), kept while it trains and used after, not learned.
    states:  how many tensors (S, n, h) are carried from step to step; the first is the output H.
    keeps:   the bias of its update gate, if the larger it is the longer the state is kept.
    fixed, absent: the gates held at a constant, and the weights that are dead for it; `fix` fills them. `whole`: why
             it could not be told which are, so that none is taken. `written`: the class that was fixed.
    on_gate: if it is set, it is told every value of a learned gate, as it is computed: its symbol, and (S, n, h).
    """

    weights: ClassVar[str] = ""
    averages: ClassVar[str] = ""
    states: ClassVar[int] = 1
    keeps: ClassVar[str] = ""
    absent: ClassVar[frozenset[str]] = frozenset()
    whole: ClassVar[str] = ""
    on_gate: Callable[[str, Tensor], None] | None = None
    fixed: ClassVar[dict[str, float]] = {}
    written: ClassVar[type[Cell] | None] = None
    layers: ClassVar[int] = 1  # see layers.py
    step: Callable[..., Tensor | State]  # the equations: X (S, n, d) and the state before -> the state after

    def __init__(self, d: int, h: int, seeds: int = 1) -> None:
        super().__init__()
        self.d, self.h, self.seeds = d, h, seeds
        self.register_buffer("zero", torch.zeros(()), persistent=False)  # knows device and dtype, weights or none
        row = (seeds, 1, h)
        shapes = dict(zip(PREFIXES, ((seeds, d, h), (seeds, h, h), row, row, row), strict=True))
        for name in self.weights.split():
            shape = next(shapes[prefix] for prefix in PREFIXES if name.startswith(prefix))
            gone = Absent(functools.partial(self._zeros, shape))
            setattr(self, name, gone if name in self.absent else nn.Parameter(torch.zeros(shape)))
        for name in self.averages.split():
            self.register_buffer(name, torch.full(row, float(name.startswith("v_"))))

    def __getattr__(self, name: str) -> Tensor:
        return super().__getattr__(name)  # type: ignore[return-value]

    def __init_subclass__(cls) -> None:
        """A gate that is written anew is a gate, marked or not."""
        for symbol in set(cls.gates()) & set(vars(cls)) - set(cls.fixed):
            if not hasattr(vars(cls)[symbol], "is_gate"):
                setattr(cls, symbol, gate(vars(cls)[symbol]))

    @classmethod
    def gates(cls) -> list[str]:
        """Symbols in order of definition, those of what it inherits from first, whether fixed or not."""
        marked = [k for c in reversed(cls.__mro__) for k, v in vars(c).items() if hasattr(v, "is_gate")]
        return [symbol for symbol in dict.fromkeys(marked) if callable(getattr(cls, symbol))]

    def _zeros(self, shape: tuple[int, ...]) -> Tensor:
        return self.zero.expand(shape)

    def each_layer(self) -> list[Cell]:
        """Itself, and the cells of the layers above."""
        return [self, *getattr(self, "above", ())]

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

    `fix(GRU, (("R", 1.0),))` is `gru:R=1`. Which weights are dead is found, not declared: see dead_weights.py. What is
    left is checked against the same cell with all its weights; were it another, no weight would be taken.
    """
    from .dead_weights import dead_weights

    names = ", ".join(f"{gate}={value:g}" for gate, value in values)
    why = ""
    for constant in (_number, _tensor):  # a number costs nothing; some functions want a tensor
        constants = {symbol: constant(value) for symbol, value in values}
        fixed = type(cell.__name__, (cell,), {**constants, "fixed": dict(values), "written": cell})
        try:
            dead, unread, whole = dead_weights(fixed)
        except ZeroDivisionError:
            raise ValueError(f"with {names} its equations divide by 0: hold one of these gates elsewhere") from None
        except Exception as error:
            why = why or " ".join(f"{type(error).__name__}: {error}".split())
            continue
        for absent in dict.fromkeys((dead, unread, frozenset[str]())):
            less = type(cell.__name__, (fixed,), {"absent": absent, "whole": whole})
            if _same(fixed, less):
                return less
            whole = "without them its step is another, or fails"
    raise ValueError(f"with {names} its step cannot be computed: {why or 'it gives other states'}")


def _number(value: float) -> Gate:
    return lambda self, *seen: value  # type: ignore[return-value]


def _tensor(value: float) -> Gate:
    def constant(self: Cell, *seen: Tensor) -> Tensor:
        return self.zero.new_full((self.seeds, max(x.shape[-2] for x in seen if isinstance(x, Tensor)), self.h), value)

    return constant


def _same(whole: type[Cell], less: type[Cell]) -> bool:
    """Whether both give the same outputs over a few steps, in training and after it, dead weights being anything."""
    rng = torch.Generator().manual_seed(0)
    one, other = whole(2, 3, 2).double(), less(2, 3, 2).double()
    for name, weight in one.named_parameters():
        weight.data = torch.randn(weight.shape, generator=rng, dtype=torch.float64)
        if name not in less.absent:
            other.get_parameter(name).data = weight.data.clone()
    try:
        for training in (True, False):
            states = [cell.train(training).begin(2) for cell in (one, other)]
            for _ in range(one.states + 3):
                X = torch.randn(2, 2, 2, generator=rng, dtype=torch.float64)
                for k, cell in enumerate((one, other)):
                    after = cell.step(X, *states[k])
                    states[k] = after if isinstance(after, tuple) else (after,)
                a, b = states[0][0], states[1][0]
                if not isinstance(b, Tensor) or not torch.allclose(
                    a, b.expand_as(a), rtol=0, atol=1e-9, equal_nan=True
                ):
                    return False
    except Exception:
        return False
    return True
