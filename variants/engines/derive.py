"""Derive what every engine runs from a cell's `step`: one run on symbols gives a program, forward and backward.

When an expression can be computed says where it belongs; nothing else is asked of it:

    STATIC   of weights alone        once a minibatch
    INPUT    of X and weights        before time starts: a row of a table for every character
    STATE    of the state            in time: pointwise operations, and products `expression @ W`

Products of one left operand are one product, a `group`; a product of what a product gave is a later `stage`. The
backward pass is linear in what comes from the step after, so each gradient is slope ⊙ variable, the slopes made of
values alone. A variable is a tuple, its kind first:

    D i   gradient of state i after the step        E x   what the products of left operand x give back
    M k   a sum at a value that several read        R x   the same at a mean: a sum over the units

A mean over the units is `narrow`: one number a sequence. What `cat` and `stack` give is no value but several, `Joined`.
This file knows no engine and no cell.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from ..cell import Cell

STATIC, INPUT, STATE = 0, 1, 2
T = TypeVar("T")


class Unsupported(Exception):
    """An operation that cannot be derived: the cell runs in the loop."""


SIXTH = float(torch.tensor(1 / 6, dtype=torch.float32))  # as torch has it in hardsigmoid's gradient, whatever the dtype
# name: torch's function, and the slope at x, where the value is y
UNARY: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Any, Any], Any]]] = {
    "sigmoid": (torch.sigmoid, lambda x, y: y * (1 - y)),
    "tanh": (torch.tanh, lambda x, y: 1 - y * y),
    "relu": (torch.relu, lambda x, y: _where(y > 0, 1.0, 0.0)),
    "abs": (torch.abs, lambda x, y: _where(x > 0, 1.0, _where(x < 0, -1.0, 0.0))),
    "exp": (torch.exp, lambda x, y: y),
    "log": (torch.log, lambda x, y: 1 / x),
    "sqrt": (torch.sqrt, lambda x, y: 0.5 / y),
    "reciprocal": (torch.reciprocal, lambda x, y: -(y * y)),
    "hardsigmoid": (functional.hardsigmoid, lambda x, y: _where(x > -3, _where(x < 3, SIXTH, 0.0), 0.0)),
    "softplus": (functional.softplus, lambda x, y: _where(x > 20, 1.0, x.make("sigmoid", x))),
    "erf": (torch.erf, lambda x, y: 2 / math.sqrt(math.pi) * x.make("exp", -(x * x))),
    "sin": (torch.sin, lambda x, y: x.make("cos", x)),
    "cos": (torch.cos, lambda x, y: -x.make("sin", x)),
    "atan": (torch.atan, lambda x, y: 1 / (1 + x * x)),
    "log1p": (torch.log1p, lambda x, y: 1 / (1 + x)),
    "expm1": (torch.expm1, lambda x, y: y + 1),
    "detach": (torch.detach, lambda x, y: 0.0),
}
COMPARE = {"positive": lambda x: x > 0, "natural": lambda x: x >= 0}
OVER = ("mean", "amax")  # over the units; amax of what is detached alone
POINTWISE = {*UNARY, *COMPARE, "lin", "mul", "where"}


def _where(condition: Any, a: Any, b: Any) -> Any:
    if not isinstance(condition, Node) or condition.op not in COMPARE:
        raise Unsupported("a where whose condition is not one comparison")
    if isinstance(of := plain(condition.args[0]), float):
        return condition.symbol(a if COMPARE[condition.op](of) else b)
    return condition.make("where", condition, condition.symbol(a), condition.symbol(b))


def _clamp(x: Any, min: float | None = None, max: float | None = None) -> Any:
    x = x if min is None else _where(x < min, min, x)
    return x if max is None else _where(x > max, max, x)


def _hard(x: Any, low: float = -1.0, high: float = 1.0, inplace: bool = False) -> Any:
    """Clamp as `_clamp` does, but that at both ends it is flat."""
    return _where(x <= low, low, _where(x >= high, high, x))


def _power(x: Any, exponent: float) -> Any:
    if exponent == 0.5:
        return x.make("sqrt", x)
    if exponent != int(exponent) or not 0 < abs(exponent) <= 16:
        raise Unsupported(f"torch's pow to {exponent}")
    if exponent < 0:
        return x.make("reciprocal", _power(x, -exponent))
    half = _power(x, exponent // 2) if exponent > 1 else 1.0
    return half * half * x if exponent % 2 else half * half


def _softplus(x: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    if threshold != 20:
        raise Unsupported("a softplus with a threshold of its own")
    return x.make("softplus", beta * x) / beta


def _gelu(x: Any, approximate: str = "none") -> Any:
    if approximate == "tanh":
        return 0.5 * x * (1 + x.make("tanh", math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))
    return 0.5 * x * (1 + x.make("erf", math.sqrt(0.5) * x))


def _elu(x: Any, alpha: float = 1.0, inplace: bool = False) -> Any:
    half = x.make("tanh", 0.5 * _clamp(x, max=0.0))  # e^x - 1 = 2 t / (1 - t), which keeps its digits near 0
    return _where(x > 0, x, 2 * alpha * half / (1 - half))


def _maximum(a: Any, b: Any) -> Any:
    if not isinstance(b, Node):
        raise Unsupported("torch's max or min that is not of two tensors")
    return _where(a > b, a, _where(b > a, b, 0.5 * (a + b)))  # of equals, half of the gradient to each


def _dropout(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    if training and p:
        raise Unsupported("torch's dropout of the state, which is random")
    return x


def _einsum(equation: str, *given: Any) -> Any:
    """A product with a weight, or with its transpose."""
    operands = given[0] if len(given) == 1 else given
    (left, _, right), out = (
        equation.replace(" ", "").partition("->")[0].partition(","),
        equation.split("->")[-1].strip(),
    )
    inner = left[-1:]
    if len(operands) == 2 and len(right) > 1 and out[:-1] == left[:-1] and set(right[:-2]) <= set(left[:-1]):
        if right[-2:] == inner + out[-1:]:
            return operands[0] @ operands[1]
        if right[-2:] == out[-1:] + inner:
            return operands[0] @ operands[1].mT
    raise Unsupported(f"torch's einsum {equation}, which is no product with a weight")


def _mean(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    if dim not in (-1, (-1,), [-1]) or not keepdim:
        raise Unsupported("a mean or sum of the state that is not over the units (dim=-1, keepdim=True)")
    return x if x.narrow else x.make("mean", x)


def _variance(x: Any, dim: Any = None, unbiased: bool = True, keepdim: bool = False, correction: Any = None) -> Any:
    off, free = x - _mean(x, dim, keepdim), x.graph.h - (int(unbiased) if correction is None else correction)
    if free <= 0:
        raise Unsupported("a variance of one unit")
    return _mean(off * off, dim, keepdim) * (x.graph.h / free)


def _layer_norm(x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    if tuple(shape) != (x.graph.h,):
        raise Unsupported("a layer norm that is not over the units")
    out = (x - _mean(x, -1, True)) / x.make("sqrt", _variance(x, -1, correction=0, keepdim=True) + eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def _rms_norm(x: Any, shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    if eps is None:
        raise Unsupported("torch's rms_norm without its eps, which depends on the precision")
    if tuple(shape) != (x.graph.h,):
        raise Unsupported("an rms norm that is not over the units")
    out = x / x.make("sqrt", _mean(x * x, -1, True) + eps)
    return out if weight is None else out * weight


def _normalize(x: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None) -> Any:
    if p != 2:
        raise Unsupported("torch's normalize by another norm than 2")
    return x / x.make("sqrt", _clamp(x.graph.h * _mean(x * x, dim, True), min=eps * eps))


def _log_softmax(x: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    return _shifted(x, dim, lambda off, total: off - total.make("log", total))


def _softmax(x: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    return _shifted(x, dim, lambda off, total: off.make("exp", off) / total)


def _shifted(x: Any, dim: Any, made: Callable[[Any, Any], Any]) -> Any:
    """Return x less the largest of its units, and the sum of their exponentials."""
    if dim != -1:
        raise Unsupported("a softmax of the state that is not over the units (dim=-1)")
    off = x - x.make("amax", x.make("detach", x))
    return made(off, x.graph.h * _mean(off.make("exp", off), -1, True))


OVER_UNITS: dict[str, Callable[..., Any]] = {
    "mean": _mean, "var": _variance, "layer_norm": _layer_norm, "rms_norm": _rms_norm, "normalize": _normalize,
    "softmax": _softmax, "log_softmax": _log_softmax,
    "sum": lambda x, dim=None, keepdim=False: x.graph.h * _mean(x, dim, keepdim),
    "std": lambda x, *args, **kwargs: x.make("sqrt", _variance(x, *args, **kwargs)),
}  # fmt: skip
COMPOSED: dict[str, Callable[..., Any]] = {
    **{name: functools.partial(lambda name, x, inplace=False: x.make(name, x), name) for name in UNARY},
    "add": lambda a, b, alpha=1.0: a + alpha * b, "sub": lambda a, b, alpha=1.0: a - alpha * b,
    "mul": lambda a, b: a * b, "div": lambda a, b: a / b, "matmul": lambda a, b: a @ b, "neg": lambda x: -1.0 * x,
    "gt": lambda a, b: a > b, "lt": lambda a, b: a < b, "ge": lambda a, b: a >= b, "le": lambda a, b: a <= b,
    "addcmul": lambda a, b, c, value=1.0: a + value * (b * c), "lerp": lambda a, b, weight: a + weight * (b - a),
    "square": lambda x: x * x, "rsqrt": lambda x: 1 / x.make("sqrt", x), "pow": _power, "where": _where,
    "float": lambda x: _where(x, 1.0, 0.0), "maximum": _maximum,
    "minimum": lambda a, b: -_maximum(-a, b * -1.0 if isinstance(b, Node) else b),
    "clamp": _clamp, "hardtanh": _hard, "relu6": lambda x, inplace=False: _hard(x, 0.0, 6.0),
    "elu": _elu, "gelu": _gelu,
    "leaky_relu": lambda x, negative_slope=0.01, inplace=False: _where(x > 0, x, negative_slope * x),
    "silu": lambda x, inplace=False: x * x.make("sigmoid", x), "softplus": _softplus,
    "logsigmoid": lambda x: -_softplus(-x), "softsign": lambda x: x / (1 + x.make("abs", x)),
    "mish": lambda x, inplace=False: x * x.make("tanh", _softplus(x)),
    "hardswish": lambda x, inplace=False: x * _hard(x + 3, 0.0, 6.0) / 6, "tanhshrink": lambda x: x - x.make("tanh", x),
    "selu": lambda x, inplace=False: 1.0507009873554805 * _elu(x, 1.6732632423543772),
    "celu": lambda x, alpha=1.0, inplace=False: alpha * _elu(x / alpha),
    "exp2": lambda x: x.make("exp", math.log(2) * x),
    "sign": lambda x: _where(x > 0, 1.0, _where(x < 0, -1.0, 0.0)), "clamp_min": lambda x, min: _clamp(x, min),
    "clamp_max": lambda x, max: _clamp(x, None, max), "masked_fill": lambda x, mask, value: _where(mask, value, x),
    "clone": lambda x: x, "zeros_like": lambda x: x.symbol(0.0), "ones_like": lambda x: x.symbol(1.0),
    "full_like": lambda x, value: x.symbol(value), "logaddexp": lambda a, b: _maximum(a, b) + _softplus(-abs(a - b)),
    "rsub": lambda a, b: b - a, "rtruediv": lambda a, b: b / a, "rpow": lambda a, b: b**a,
    "baddbmm": lambda a, b, c, beta=1.0, alpha=1.0: beta * a + alpha * (b @ c), "einsum": _einsum,
    "and": lambda a, b: a & b, "or": lambda a, b: a | b,
    "cat": lambda given, dim=0: Joined(given, dim), "stack": lambda given, dim=0: Joined(given, dim, (0,)),
}  # fmt: skip
PRODUCTS = ("matmul", "baddbmm", "einsum")
ALSO = {"true_divide": "div", "truediv": "div", "divide": "div", "multiply": "mul", "subtract": "sub", "bmm": "matmul",
        "absolute": "abs", "clip": "clamp", "greater": "gt", "less": "lt", "negative": "neg", "arctan": "atan",
        "log_sigmoid": "logsigmoid", "max": "maximum", "min": "minimum", "concat": "cat", "concatenate": "cat",
        "logical_and": "and", "logical_or": "or", "radd": "add", "rmul": "mul", "rdiv": "rtruediv"}  # fmt: skip


class Graph:
    """Every expression once, in an order in which each comes after what it is made of."""

    def __init__(self, h: int, averages: str = "") -> None:
        self.h, self.averages = h, averages.split()
        self.made: dict[Any, Node] = {}
        self.calls: list[Node] = []  # of torch's other functions, in their order: some change a running average

    def make(self, op: str, *args: Any) -> Node:
        if (op, args) not in self.made:
            self.made[op, args] = Node(self, op, args, len(self.made))
        return self.made[op, args]

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """torch.`function`: one of ours, or, of what the state is not in, torch's own as it stands."""
        name = getattr(function, "__name__", str(function))
        name = name.strip("_") if name.startswith("__") else name
        name = ALSO.get(name, name)
        if name not in ("cat", "stack") and any(isinstance(x, Joined) for x in args):
            return _by_parts(name, args, kwargs)
        args = tuple(x.item() if isinstance(x, Tensor) and x.dim() == 0 else x for x in args)
        given = [*args, *kwargs.values()]
        state = any(x.level == STATE for x in nodes_in(given))
        if any(isinstance(x, Tensor) for x in given):
            raise Unsupported(f"torch's {name} with a tensor that is none of the cell's weights")
        ours = COMPOSED.get(name) or (
            OVER_UNITS.get(name) or (_dropout if name == "dropout" else None) if state else None
        )
        try:
            if ours is not None:
                return ours(*args, **kwargs)
        except TypeError:
            raise Unsupported(f"torch's {name} with arguments that are not provided for") from None
        if state:
            raise Unsupported(f"torch's {name} of the state" + ", in place" * name.endswith("_"))
        node = Node(self, "call", (function, args, tuple(kwargs.items())), -1 - len(self.calls))
        if name.endswith("_") and (args[0].op != "weight" or args[0].args[0] not in self.averages):
            raise Unsupported(f"torch's {name}, in place, of what is no running average")
        self.calls.append(node)
        return node


class Node:
    """An expression. `lin` is c + k1 a1 + k2 a2 + ..., its args (c, ((k1, a1), ...)); a leaf is known before time."""

    def __init__(self, graph: Graph, op: str, args: tuple[Any, ...], index: int) -> None:
        self.graph, self.op, self.args, self.index = graph, op, args, index
        self.parts = list(nodes_in(args))
        own = {"X": INPUT, "state": STATE, "gate": STATE}.get(op, STATIC)
        self.level: int = max([own, *(p.level for p in self.parts)])
        self.stage: int = max([0, *(p.stage for p in self.parts)]) + (op in ("matmul", *OVER) and self.level == STATE)
        inner = [p.narrow for p in self.parts if not isinstance(plain(p), float)]
        self.narrow: bool = op in OVER or (op in POINTWISE and bool(inner) and all(inner))

    def make(self, op: str, *args: Any) -> Node:
        numeric = [x.numeric() if isinstance(x, Node) and op in UNARY else x for x in args]
        return self.graph.make(op, *numeric)

    def symbol(self, x: Any) -> Node:
        """A number as an expression."""
        return x.numeric() if isinstance(x, Node) else self.graph.make("lin", float(x), ())

    def numeric(self) -> Node:
        """A comparison as 1 or 0."""
        return _where(self, 1.0, 0.0) if self.op in COMPARE else self

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return next(nodes_in([args, *(kwargs or {}).values()])).graph.call(function, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        method = getattr(Tensor, name, None)
        if name.startswith("__") or method is None:
            raise AttributeError(name)
        if name in ("shape", "size") and self.level == STATE:
            shape = _Shape(1 if self.narrow else self.graph.h)
            return shape if name == "shape" else shape.__getitem__
        if not callable(method) and (self.level == STATE or name not in ("mT", "T")):
            raise Unsupported(f".{name} of a tensor")
        if not callable(method):
            return self.graph.call(method.__get__, (self,), {})
        return lambda *args, **kwargs: self.graph.call(method, (self, *args), kwargs)

    def __add__(self, other: Any) -> Any:
        return _sum(self, other)

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, int | float):
            return _sum(self, 0.0, own=float(other))
        if not isinstance(other, Node):
            return NotImplemented
        for x, y in ((self, other), (other, self)):
            if isinstance(plain(y), float):
                return x * plain(y)
        (k, a), (m, b) = scaled(self.numeric()), scaled(other.numeric())
        product = self.graph.make("mul", *sorted((a, b), key=lambda x: x.index))
        return product if k * m == 1 else k * m * product

    def __matmul__(self, other: Any) -> Any:
        if not isinstance(other, Node):
            return NotImplemented
        k, a = scaled(self.numeric())
        if plain(a) == 0:
            return a
        if other.level != STATIC:
            raise Unsupported("a product whose right side is no weight")
        return self.graph.make("matmul", a, other if k == 1 else k * other)

    def __truediv__(self, other: Any) -> Any:
        return self * (1 / other) if isinstance(other, Node | int | float) else NotImplemented

    def __pow__(self, exponent: float) -> Any:
        return _power(self, exponent)

    def __bool__(self) -> bool:
        raise Unsupported("an `if` on a value")

    def __iter__(self) -> Any:
        raise Unsupported("a tensor taken apart")

    __radd__, __rmul__ = __add__, __mul__
    __sub__ = lambda self, other: _sum(self, other, k=-1.0)  # noqa: E731
    __rsub__ = lambda self, other: _sum(self, other, own=-1.0)  # noqa: E731
    __neg__ = lambda self: self * -1.0  # noqa: E731
    __abs__ = lambda self: self.make("abs", self)  # noqa: E731
    __rtruediv__ = lambda self, other: self.make("reciprocal", self) * other  # noqa: E731
    __rpow__ = lambda self, other: self.make("exp", math.log(other) * self)  # noqa: E731
    __and__ = lambda self, other: self.numeric() * other.numeric() > 0.5  # noqa: E731
    __or__ = lambda self, other: self.numeric() + other.numeric() > 0.5  # noqa: E731
    __invert__ = lambda self: self.numeric() < 0.5  # noqa: E731
    __gt__ = lambda self, other: self.make("positive", self.symbol(self - other))  # noqa: E731
    __lt__ = lambda self, other: self.make("positive", self.symbol(other - self))  # noqa: E731
    __ge__ = lambda self, other: self.make("natural", self.symbol(self - other))  # noqa: E731
    __le__ = lambda self, other: self.make("natural", self.symbol(other - self))  # noqa: E731


def _sum(self: Node, other: Any, k: float = 1.0, own: float = 1.0) -> Any:
    """own * self + k * other, flat."""
    if not isinstance(other, Node | int | float):
        return NotImplemented
    if isinstance(other, Node) and other.op in COMPARE and self.op in COMPARE:
        raise Unsupported("a sum of comparisons")
    c, terms = 0.0, dict[Node, float]()
    for x, times in ((self.numeric(), own), (other.numeric() if isinstance(other, Node) else other, k)):
        inner = (x, ()) if not isinstance(x, Node) else x.args if x.op == "lin" else (0.0, ((1.0, x),))
        c += times * inner[0]
        for coefficient, a in inner[1]:
            terms[a] = terms.get(a, 0.0) + times * coefficient
    left = tuple(sorted(((v, a) for a, v in terms.items() if v), key=lambda term: term[1].index))
    return left[0][1] if c == 0 and len(left) == 1 and left[0][0] == 1 else self.graph.make("lin", c, left)


class _Shape:
    """Describe a state's shape: how many sequences it has is not known."""

    def __init__(self, last: int) -> None:
        self.last = last

    def __getitem__(self, place: Any) -> Any:
        if place == -1:
            return self.last
        if place == slice(-1, None):
            return (self.last,)
        raise Unsupported("the shape of a tensor but for its last axis")


def _operated(joined: type[T]) -> type[T]:
    """Give a class Python's operators. No statement beside it: what a file does when it is imported is in every key."""
    for name in ("add", "sub", "mul", "truediv", "matmul", "pow", "gt", "lt", "ge", "le"):
        of = getattr(operator, name)
        setattr(joined, f"__{name}__", lambda self, other, of=of: self.graph.call(of, (self, other), {}))
        setattr(joined, f"__r{name}__", lambda self, other, of=of: self.graph.call(of, (other, self), {}))
    return joined


@_operated
class Joined:
    """Values side by side (dim -1), one below the other (-2) or stacked (0); what is done to them is done to each."""

    parts: list[Any]
    dim: int

    def __init__(self, parts: Any, dim: int, among: tuple[int, ...] = (-1, -2)) -> None:
        if dim not in among:
            raise Unsupported("tensors joined along an axis that is neither a new first one nor counted from the end")
        self.parts = [p for x in parts for p in (x.parts if isinstance(x, Joined) and x.dim == dim != 0 else [x])]
        self.dim, self.graph = dim, next(nodes_in(self.parts)).graph

    __torch_function__ = Node.__torch_function__
    __neg__ = lambda self: -1.0 * self  # noqa: E731
    __iter__ = lambda self: iter(_by_parts("unbind", [self], {}))  # noqa: E731
    __getitem__ = lambda self, place: _by_parts("getitem", [self, place], {})  # noqa: E731

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not callable(method := getattr(Tensor, name, None)):
            raise AttributeError(f".{name} of tensors side by side")
        return lambda *args, **kwargs: self.graph.call(method, (self, *args), kwargs)


def _by_parts(name: str, args: Any, kwargs: Any) -> Any:
    """torch's `name` of values that are joined."""
    joined = [x for x in args if isinstance(x, Joined)]
    one, last = joined[0], args[-1]
    count, dim = len(one.parts), kwargs.get("dim", last if isinstance(last, int) and name != "getitem" else 0)
    if name == "matmul" and isinstance(last, Joined) and last.dim == -1:
        return Joined([args[0] @ part for part in last.parts], -1)
    if name == "matmul" and [(x.dim, len(x.parts)) for x in joined] == [(-1, count), (-2, count)]:
        return functools.reduce(operator.add, (a @ b for a, b in zip(one.parts, last.parts, strict=True)))
    if name == "glu" and one.dim == -1:
        a, b = _by_parts("chunk", [one, 2], {"dim": -1})
        return a * b.sigmoid()
    if one.dim == dim == 0 and name in ("unbind", "sum", "mean", "softmax"):
        most = functools.reduce(_maximum, one.parts)
        parts = [(x - most.make("detach", most)).exp() for x in one.parts] if name == "softmax" else one.parts
        total = functools.reduce(operator.add, parts)
        if name == "softmax":
            return Joined([x / total for x in parts], 0, (0,))
        return parts if name == "unbind" else total if name == "sum" else total / count
    if one.dim == 0 and name == "getitem" and isinstance(last, int):
        return one.parts[last]
    if one.dim == -1 and name in ("chunk", "split", "getitem"):
        return _cut(one, name, args[1] if len(args) > 1 else next(iter(kwargs.values())), dim)
    same = all((x.dim, len(x.parts)) == (one.dim, count) for x in joined)
    fits = one.dim == 0 or (name not in PRODUCTS and not any(isinstance(x, Node) and not x.narrow for x in args))
    if not (name in COMPOSED and same and fits):
        raise Unsupported(f"torch's {name} of tensors that are joined")
    each = [[x.parts[i] if isinstance(x, Joined) else x for x in args] for i in range(count)]
    return Joined([COMPOSED[name](*some, **kwargs) for some in each], one.dim, (one.dim,))


def _cut(one: Joined, name: str, how: Any, dim: int) -> Any:
    """`chunk`, `split` or a slice of what lies side by side, into wholes of its parts."""
    h, whole = one.graph.h, one.graph.h * len(one.parts)
    if name == "getitem":
        *before, cut = how if isinstance(how, tuple) else (how,)
        if not isinstance(cut, slice) or cut.step not in (None, 1) or any(x not in (..., slice(None)) for x in before):
            raise Unsupported("an index that is no slice of the last axis")
        ends = [cut.indices(whole)[:2]]
    elif dim != -1:
        raise Unsupported(f"torch's {name} along another axis than the last")
    else:
        each = -(-whole // how) if name == "chunk" else how
        widths = each if isinstance(each, list | tuple) else [each] * -(-whole // each)
        ends = [(sum(widths[:i]), min(sum(widths[: i + 1]), whole)) for i in range(len(widths))]
    if any(end % h for pair in ends for end in pair) or any(getattr(x, "op", "X") == "X" for x in one.parts):
        raise Unsupported(f"torch's {name} into parts that are not as wide as the state")
    found = [one.parts[a // h] if b == a + h else Joined(one.parts[a // h : b // h], -1) for a, b in ends]
    return found[0] if name == "getitem" else found


def nodes_in(x: Any) -> Iterator[Node]:
    if isinstance(x, Node):
        yield x
    elif isinstance(x, Joined):
        yield from nodes_in(x.parts)
    elif isinstance(x, tuple | list):
        for part in x:
            yield from nodes_in(part)


def plain(x: Any) -> Any:
    """An expression that has come down to a number is that number."""
    return x.args[0] if isinstance(x, Node) and x.op == "lin" and not x.args[1] else x


def scaled(x: Node) -> tuple[float, Node]:
    """2·x -> (2, x)."""
    return x.args[1][0] if x.op == "lin" and x.args[0] == 0 and len(x.args[1]) == 1 else (1.0, x)


def parts_of(x: Node, into: Callable[[Node], bool] = lambda part: True) -> set[Node]:
    """Return what an expression is made of, itself included; only `into` what it says."""
    seen, left = {x}, [x]
    while left:
        for part in left.pop().parts:
            if part not in seen and into(part):
                seen.add(part)
                left.append(part)
    return seen


def last_of(name: str) -> str:
    """`W_xz` of `above.0.W_xz`, a weight of a layer above the first."""
    return name.rpartition(".")[2]


def trace(
    variant: type[Cell], d: int, h: int, training: bool, gates: bool = False
) -> tuple[Graph, list[Node], list[Any]]:
    """`step` run on symbols: its states, and what it gives. `gates`: each gate's value stays a node of its own."""
    graph, probe = Graph(h, variant.averages), variant(d, h)
    for name in [k for k, _ in [*probe.named_parameters(), *probe.named_buffers()] if last_of(k) != "zero"]:
        probe.get_submodule(name.rpartition(".")[0]).__dict__[last_of(name)] = graph.make("weight", name)
    probe.train(training)
    for layer, cell in enumerate(probe.each_layer(), 1) if gates else ():
        for symbol in variant.gates():
            named = symbol if layer == 1 else f"{symbol}.{layer}"
            cell.__dict__[symbol] = functools.partial(_watched, graph, named, getattr(cell, symbol))
    states = [graph.make("state", i) for i in range(variant.states)]
    try:
        after: Any = probe.step(graph.make("X"), *states)
    except (TypeError, AttributeError, RuntimeError, ValueError, IndexError) as error:
        raise Unsupported(" ".join(str(error).replace("'Node'", "a symbol").split())) from error
    after = list(after) if isinstance(after, tuple) else [after]
    if len(after) != len(states) or not all(isinstance(x, Node | int | float) for x in after):
        raise Unsupported(f"a step that gives {len(after)} values for {len(states)} states, or what is no tensor")
    return graph, states, after


def _watched(graph: Graph, symbol: str, equation: Callable[..., Any], *seen: Any) -> Any:
    value_ = equation(*seen)
    return graph.make("gate", symbol, value_) if isinstance(value_, Node) else value_


class Program:
    """One cell as lists: an engine emits or runs them and decides nothing.

    outs       states after the step              inputs, rows   leaves: columns of the table, (S, T, n, h); (S, 1, h)
    matrices   right sides, (S, h, h) each        groups         (left operand, its products)
    stored     values kept for later              Qs             (variable, slope) kept: what products, inputs, rows get
    of         product or leaf -> its Q           mixes, sums    M, R -> {variable: slope}; carry: state -> the same
    level      variable -> how many products back it is known
    weights    name -> {leaf: slope}: the gradient of what is needed before time, in gradients of leaves
    outside    why torch must compute what is before time, '' where every engine can
    """

    def __init__(self, variant: type[Cell], d: int, h: int, training: bool) -> None:
        self.h = h
        self.graph, self.states, after = trace(variant, d, h, training)
        if spelt(self.graph, after) != spelt(*trace(variant, d, h, training)[::2]):
            raise Unsupported("other equations each time it is run: something in it is random or counts")
        self.known: dict[Node, Node] = {}
        self.outs = [
            self._in_time(self.graph.make("lin", float(x), ()) if not isinstance(x, Node) else x) for x in after
        ]
        found = {
            part for x in self.outs for part in parts_of(x, lambda p: p.level == STATE or p.op in ("leaf", *COMPARE))
        }
        self.order = sorted(found, key=lambda x: x.index)
        products = [x for x in self.order if x.op == "matmul"]
        products.sort(key=lambda p: (p.stage, p.args[0].index, p.index))
        if any(x.narrow for x in self.outs) or any(p.args[0].narrow for p in products):
            raise Unsupported("one number a sequence where one a unit belongs")
        self.inputs = [x for x in self.order if x.op == "leaf" and x.args[0].level == INPUT]
        self.rows = [x for x in self.order if x.op == "leaf" and x.args[0].level == STATIC]
        self.matrices = list(dict.fromkeys(scaled(p.args[1])[1] for p in products))
        self.groups = [(E, [p for p in products if p.args[0] is E]) for E in dict.fromkeys(p.args[0] for p in products)]
        self.stages = max((x.stage for x in self.outs), default=0)
        used = {x for leaf in self.inputs for x in parts_of(leaf)}
        self.calls = [c for c in self.graph.calls if c.level == INPUT and (c in used or in_place(c))]
        self._check(variant(d, h))
        self._backward(products)
        near = {a: i for i, p in enumerate(p for _, ps in self.groups for p in ps) for y in self.order if p in y.parts
                for a in y.parts}  # fmt: skip
        self.inputs.sort(key=lambda x: near.get(x, len(near)))  # as the products that they are added to
        self._stored()
        self._before()

    def columns(self, leaf: Node) -> slice:
        """Return the columns of an input in the table."""
        at = self.inputs.index(leaf) * self.h
        return slice(at, at + self.h)

    def _in_time(self, x: Node) -> Node:
        """The same expression, all that needs no state gathered into leaves, of a sum into one."""
        if x in self.known:
            return self.known[x]
        made: Any = x
        if x.op in COMPARE:
            made = self.graph.make(x.op, self._in_time(x.args[0]))
        elif x.level != STATE:
            made = x if isinstance(plain(x), float) else self.graph.make("leaf", x)
        elif x.op == "matmul":
            made = self.graph.make("matmul", self._in_time(x.args[0]), x.args[1])
        elif x.op == "lin":
            made, apart = x.args[0], 0.0
            for k, a in x.args[1]:
                if a.level == STATE:
                    made = _sum(self._in_time(a), made, own=k)
                else:
                    apart = _sum(a, apart, own=k)
            if isinstance(apart, Node):
                k, a = scaled(apart)
                made = _sum(self.graph.make("leaf", a), made, own=k)
        elif x.op != "state":
            made = self.graph.make(x.op, *(self._in_time(a) for a in x.args))
        self.known[x] = made
        return self.known[x]

    def _check(self, cell: Cell) -> None:
        """Shapes of what torch computes, in a cell of this size: what does not fit the loop refuses too."""
        known: dict[Any, Any] = {}
        for W in self.matrices:
            if value(W, cell, None, known).shape[-2:] != (self.h, self.h):
                raise Unsupported("a product of the state with a weight that is not (h, h)")

    def _backward(self, products: list[Node]) -> None:
        adjoint: dict[Node, dict[Any, Any]] = {x: {} for x in [*self.order, *self.states]}
        self.mixes: dict[Any, dict[Any, Any]] = {}
        self.sums: dict[Any, dict[Any, Any]] = {}
        self.level: dict[Any, int] = {}
        self.of: dict[Node, tuple[Any, Any]] = {}
        thin: set[Any] = set()  # variables of one number a sequence

        def give(x: Node, variable: Any, slope: Any) -> None:
            slope = plain(slope)
            if x not in adjoint or slope == 0:
                return
            if x.narrow and not (variable in thin and (not isinstance(slope, Node) or slope.narrow)):
                new = ("R", x)  # the same value for every unit: back from all of them
                thin.add(new)
                self.level[new] = max(self.level.get(new, 0), self.level[variable] + 1)
                terms, variable, slope, adjoint[x][new] = self.sums.setdefault(new, {}), variable, slope, 1.0
            else:
                terms = adjoint[x]
            terms[variable] = plain(slope + terms[variable]) if variable in terms else slope

        for i, out in enumerate(self.outs):
            self.level["D", i] = 0
            give(out, ("D", i), 1.0)
        for x in reversed(self.order):
            form = {v: s for v, s in adjoint[x].items() if s != 0}
            if not form or x.op == "state":
                continue
            if len(form) > 1:
                new = ("M", len(self.mixes))
                self.mixes[new], self.level[new] = form, max(self.level[v] for v in form)
                thin |= {new} if x.narrow else set()
                form = {new: 1.0}
            [(v, s)] = form.items()
            if x.op in ("leaf", "matmul"):
                self.of[x] = (v, s)
            if x.op == "matmul":
                E = ("E", x.args[0])
                self.level[E] = max(self.level.get(E, 0), self.level[v] + 1)
                give(x.args[0], E, 1.0 if E not in adjoint[x.args[0]] else 0.0)
            elif x.op == "mean":
                give(x.args[0], v, (1 / self.h) * s)
            elif x.op == "amax":
                continue  # of what is detached
            else:
                for a, slope in slopes(x):
                    give(a, v, slope * s)
        self.carry = {i: {v: s for v, s in adjoint[x].items() if s != 0} for i, x in enumerate(self.states)}
        ours, theirs, rest = (
            dict.fromkeys(self.of[x] for x in xs if x in self.of) for xs in (products, self.inputs, self.rows)
        )
        self.Qs = list(dict.fromkeys([*(q for q in ours if q not in theirs), *ours, *theirs, *rest]))
        for _, group in self.groups:
            group.sort(key=lambda p: self.Qs.index(self.of[p]) if p in self.of else -1)
        self.levels = max(self.level.values(), default=0)

    def _stored(self) -> None:
        """Return what a backward pass or a later stage reads, but for what is cheap: that is done again."""
        inside = set(self.order)

        def read(s: Any) -> set[Node]:
            if not isinstance(s, Node):
                return set()
            if s in inside and (s.op in UNARY or s.op in ("matmul", *OVER, "leaf", "state")):
                return {s}
            return {x for part in s.parts for x in read(part)}

        sums = [*self.mixes.values(), *self.sums.values(), *self.carry.values()]
        needed = {
            x for s in [*(s for _, s in self.Qs), *(s for terms in sums for s in terms.values())] for x in read(s)
        }
        self.reads = set(needed)  # by slopes
        needed |= {x for y in self.order for a in y.parts for x in read(a) if x.op in UNARY and x.stage < y.stage}
        needed |= {E for E, _ in self.groups} | {x for x in self.order if x.op in OVER}
        self.stored = [x for x in self.order if x in needed and x not in self.outs and x.op not in ("state", "leaf")]

    def _before(self) -> None:
        """The gradient of each weight that leaves are made of; or what of them torch must compute."""
        self.weights: dict[str, dict[Node, Any]] = {}
        self.outside = next((f"{W.op} of several weights" for W in self.matrices if W.op != "weight"), "")
        for leaf in [*self.inputs, *self.rows]:
            made, left = dict[Node, tuple[float, Node] | None](), [leaf.args[0]]
            while left:  # also what only a comparison reads: it has no gradient, and must be known
                x = left.pop()
                factor, W = scaled(x.args[1]) if x.op == "matmul" else (1.0, x)
                table = x.op == "matmul" and x.args[0].op == "X" and W.op == "weight"
                if table or (x.op == "weight" and not last_of(x.args[0]).startswith("W_")):
                    made[x] = factor, W
                    self.weights.setdefault(W.args[0], {})
                elif x.op in POINTWISE:
                    made[x] = None
                    left += [part for part in x.parts if part not in made]
                else:
                    self.outside = self.outside or f"torch's {x.args[0].__name__ if x.op == 'call' else x.op}"
            adjoint: dict[Node, Any] = {leaf.args[0]: 1.0}
            for x in sorted(made, key=lambda x: -x.index):
                s, weight = plain(adjoint.get(x, 0.0)), made[x]
                if weight:
                    terms = self.weights[weight[1].args[0]]
                    terms[leaf] = plain(weight[0] * s + terms.get(leaf, 0.0))
                    continue
                for a, slope in slopes(x):
                    adjoint[a] = adjoint.get(a, 0.0) + s * slope


def runs(plan: Program, products: list[Node]) -> list[tuple[int, int, int]]:
    """Products of a group that lie side by side among the Qs: (first of the group, its Q, how many)."""
    out: list[tuple[int, int, int]] = []
    for i, p in enumerate(products):
        if p not in plan.of:  # nothing asks for its gradient
            continue
        q = plan.Qs.index(plan.of[p])
        if out and sum(out[-1][1:]) == q and out[-1][0] + out[-1][2] == i:
            out[-1] = (*out[-1][:2], out[-1][2] + 1)
        else:
            out.append((i, q, 1))
    return out


def slopes(x: Node) -> list[tuple[Node, Any]]:
    """Return what a pointwise operation is made of, each with its slope there."""
    if x.op == "lin":
        return [(a, k) for k, a in x.args[1]]
    if x.op == "mul":
        return [x.args, x.args[::-1]]
    if x.op == "where":
        condition, a, b = x.args
        return [(condition, 0.0), (a, _where(condition, 1.0, 0.0)), (b, _where(condition, 0.0, 1.0))]
    return [(x.args[0], UNARY[x.op][1](x.args[0], x))] if x.op in UNARY else []


def in_place(call: Node) -> bool:
    return str(call.args[0].__name__).endswith("_")


def spelt(graph: Graph, after: list[Any]) -> list[Any]:
    """A graph as lists that can be compared with another's."""
    place = {x: i for i, x in enumerate([*graph.made.values(), *graph.calls])}

    def plain_(x: Any) -> Any:
        return (
            ("node", place[x]) if isinstance(x, Node) else [plain_(y) for y in x] if isinstance(x, tuple | list) else x
        )

    return [[x.op, plain_(x.args)] for x in place] + [plain_(after)]


@functools.cache
def program(variant: type[Cell], d: int, h: int, training: bool = True) -> Program:
    """Unsupported says what of its step stands in the way."""
    return Program(variant, d, h, training)


def unsupported_reason(variant: type[Cell]) -> str:
    """Why nothing can be derived from a variant's `step`, '' where it can."""
    if hasattr(variant, "module"):
        return "torch runs it in one call, there is no step to derive from"
    try:
        program(variant, 3, 5)  # type: ignore[arg-type]
    except Unsupported as error:
        return f"step of {variant.__name__}: {error}"
    return ""


# ---- what does not need the state, by torch


def value(x: Any, cell: Cell, X: Tensor | None, known: dict[Any, Any]) -> Any:
    """An expression without the state. X None: every character there is, so that X @ W is W."""
    if not isinstance(x, Node):
        return type(x)(value(a, cell, X, known) for a in x) if isinstance(x, tuple | list) else x
    if x in known:
        return known[x]
    of = functools.partial(value, cell=cell, X=X, known=known)
    if x.op == "weight":
        made = operator.attrgetter(x.args[0])(cell)
    elif x.op == "X":
        made = torch.eye(cell.d, dtype=cell.zero.dtype, device=cell.zero.device) if X is None else X
    elif x.op == "matmul":
        W = of(x.args[1])
        if X is None and x.args[0].op == "X":
            made = W
        else:
            left = of(x.args[0])  # a number is the same for every unit
            made = left.expand(*left.shape[:-1], W.shape[-2]) @ W
    elif x.op == "call":
        made = x.args[0](*(of(a) for a in x.args[1]), **dict(x.args[2]))
    else:
        made = apply(x, [of(a) for a in x.parts], cell.zero)
    known[x] = made
    return made


def apply(x: Node, parts: list[Tensor], like: Tensor) -> Any:
    """A pointwise operation, or a mean, by torch."""
    if x.op == "lin":
        total, terms = x.args
        for (k, _), part in zip(terms, parts, strict=True):
            if isinstance(total, Tensor):
                total = torch.add(total, part, alpha=k)
            elif k == -1 and total:
                total = total - part
            else:
                total = (part if k == 1 else part * k) + total if total else part if k == 1 else part * k
        return total if terms else like.new_full((1, 1, 1), total)
    if x.op == "mul":
        return parts[0] * parts[1]
    if x.op == "where":
        return torch.where(*parts)
    if x.op in OVER:
        return getattr(parts[0], x.op)(-1, keepdim=True)
    return (
        COMPARE[x.op](parts[0])
        if x.op in COMPARE
        else parts[0]
        if x.op in ("leaf", "gate")
        else UNARY[x.op][0](parts[0])
    )


def prepare(plan: Program, cell: Cell, X: Tensor) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Table (S, rows, inputs * h), the row (T, S, n) of it that each character is, matrices, rows: torch's part."""
    (T, S, n), h, known = X.shape[:3], cell.h, dict[Any, Any]()
    matrices = [value(W, cell, None, known) for W in plan.matrices]
    rows = [value(x, cell, None, known).expand(S, 1, h) for x in plan.rows]

    def columns(X: Tensor | None, like: Tensor, known: dict[Any, Any]) -> Tensor:
        parts = [value(x, cell, X, known).expand(*like.shape[:-1], h) for x in plan.inputs]
        return torch.cat(parts, -1) if parts else like[..., :0]

    if not plan.calls and not X.is_floating_point():
        return columns(None, matrices_like(cell), known), X, matrices, rows
    hot = cell.one_hot(X)
    if not plan.calls:
        rows_of_all = hot.transpose(0, 1).flatten(1, 2)
        table = columns(rows_of_all, rows_of_all, {})
    elif all(map(every_t, plan.calls)):
        seen: dict[Any, Any] = {}
        for call in filter(in_place, plan.calls):
            average, *rest = (value(a, cell, hot, seen) for a in call.args[1])
            for t in range(T):
                call.args[0](
                    average,
                    *(a[t] if isinstance(a, Tensor) and a.dim() == 4 else a for a in rest),
                    **dict(call.args[2]),
                )
        table = columns(hot, hot, seen).transpose(0, 1).flatten(1, 2)
    else:
        each = []
        for X_t in hot:
            seen = {}
            for call in plan.calls:
                value(call, cell, X_t, seen)
            each.append(columns(X_t, X_t, seen))
        table = torch.stack(each, 1).flatten(1, 2)
    at = torch.arange(T * n, device=X.device).view(T, 1, n).expand(T, S, n)
    return table, at, matrices, rows


def matrices_like(cell: Cell) -> Tensor:
    return cell.zero.expand(cell.seeds, cell.d, 1)


def every_t(call: Node) -> bool:
    """Whether it is the same with time as one more axis in front: it names no axis, or one from the end."""
    function, args, kwargs = call.args
    name, over = function.__name__, args[1] if len(args) > 1 else dict(kwargs).get("dim")
    if in_place(call) or name in ("detach", "abs"):
        return True
    return name in ("mean", "var", "std", "sum", "amax", "narrow") and isinstance(over, int) and over < 0


def as_data(cell: Cell, table: Tensor | None = None) -> tuple[dict[str, Any], dict[str, list[Tensor]]]:
    """A cell in time as lines that any language can run, JSON but for their constants, which are `cell`'s own:

        ["x", k]           constant k of a character: its row (S, 1, h) of the table (S, d, h)
        ["c", k]           constant row k (S, 1, h)         ["mm", a, k]        value a times matrix k (S, h, h)
        ["lin", c, k, a..] c + k a + ...                    ["mul", a, b]       ["where", condition, a, b]
        ["gate", a, "Z"]   a, or what Z is held at          ["tanh", a]         UNARY, COMPARE, mean over the units

    Values are numbered, the states first, then the lines. `out`: the states after. A gate stays a line of its own.
    `table`: what the cell reads of each character (S, characters, d), where that is not one-hot. Unsupported where a
    step is more than that: what it makes of one sequence depends on the others.
    """
    graph, states, after = trace(type(cell), cell.d, cell.h, False, gates=True)
    code, known, at = list[list[Any]](), dict[Any, Any](), {x: i for i, x in enumerate(states)}
    constants: dict[str, list[Tensor]] = {"x": [], "c": [], "mm": []}

    def line(*words: Any) -> int:
        code.append(list(words))
        return len(states) + len(code) - 1

    def constant(op: str, x: Node) -> int:
        found = value(x, cell, table, known).detach()
        if op == "x" and any(part.op == "call" for part in parts_of(x)):
            _check_rows(x, cell, table, found)
        constants[op].append(found if op == "mm" else found.expand(*found.shape[:-1], cell.h))
        return len(constants[op]) - 1

    def lower(x: Any) -> int:
        x = x if isinstance(x, Node) else graph.make("lin", float(x), ())
        if x in at:
            return at[x]
        if isinstance(plain(x), float):
            at[x] = line("lin", plain(x))
        elif x.level != STATE and x.op not in COMPARE:
            op = "x" if x.level == INPUT else "c"
            at[x] = line(op, constant(op, x))
        elif x.op == "matmul":
            at[x] = line("mm", lower(x.args[0]), constant("mm", x.args[1]))
        elif x.op == "lin":
            apart = functools.reduce(lambda made, term: _sum(term[1], made, own=term[0]),
                                     [term for term in x.args[1] if term[1].level != STATE], x.args[0])  # fmt: skip
            terms = [word for k, a in x.args[1] if a.level == STATE for word in (k, lower(a))]
            fixed = isinstance(plain(apart), float)
            at[x] = line("lin", plain(apart), *terms) if fixed else line("lin", 0.0, 1.0, lower(apart), *terms)
        elif x.op == "gate":
            at[x] = line("gate", lower(x.args[1]), x.args[0])
        else:
            at[x] = line(x.op, *(lower(a) for a in x.args))
        return at[x]

    out = [lower(x) for x in after]
    gates = {words[2]: len(states) + i for i, words in enumerate(code) if words[0] == "gate"}
    return {"states": len(states), "code": code, "out": out, "gates": gates}, constants


def _check_rows(x: Node, cell: Cell, table: Tensor | None, found: Tensor) -> None:
    """Raise Unsupported where `found`, x of every character at once, is another than x of each beside itself."""
    every = torch.eye(cell.d, dtype=cell.zero.dtype, device=cell.zero.device)[None] if table is None else table
    shape = (cell.seeds, every.shape[1], found.shape[-1])
    try:
        each = [value(x, cell, X.expand(-1, 2, -1), {}).expand(shape[0], 2, -1) for X in every.split(1, 1)]
        whole = found.expand(shape).repeat_interleave(2, 1)
        same = torch.allclose(torch.cat(each, 1), whole, rtol=1e-4, atol=1e-6, equal_nan=True)
    except (RuntimeError, IndexError):
        same = False
    if not same:
        raise Unsupported("what it makes of a character depends on those that are read beside it")
