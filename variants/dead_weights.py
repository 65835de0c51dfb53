"""Find the weights that a fixed gate leaves without any way to the output.

`step` is run once on real numbers, each tensor known by what it depends on: weights, buffers, states, the input. Only a
product with a constant 0 ends a dependence, never a number that merely came out as 0: a closed ReLU, a state that is
small, a warm-up that has not ended, keep their weights. In doubt a weight stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .cell import Cell

SIZES = ((2, 3, 1, 2), (28, 64, 2, 32))  # d, h, S, n: a step may ask for its sizes
LEAVES_TORCH = {"tolist", "numpy", "__array__", "data_ptr", "untyped_storage", "storage", "__dlpack__"}
PRODUCTS = {"mul", "mm", "bmm", "mv", "dot", "matmul"}
ADDED_PRODUCTS = {"addmm", "baddbmm", "addbmm", "addmv", "addr", "addcmul"}
OF_SHAPES = ("new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like")
UNKNOWN = "a number that torch did not set"


class Dependence(TorchDispatchMode):
    """While it is entered: storage -> the names that what lies in it depends on. None, and it is a constant."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.of: dict[int, set[str]] = {}
        self.read: set[str] = set()
        self.alive: list[Tensor] = []  # no address is used twice
        self.escaped = ""  # how a value reached Python, where nothing can be known of it

    def mark(self, tensor: Tensor, name: str) -> None:
        self.of[_key(tensor)] = {name}
        self.alive.append(tensor)

    def names(self, tensor: Tensor) -> set[str]:
        return self.of.get(_key(tensor), set())

    def _names(self, tensors: Iterable[Tensor]) -> set[str]:
        return {name for tensor in tensors for name in self.names(tensor)}

    def constant(self, x: object, value: float) -> bool:
        """Whether it is this number, whatever the weights, the states and the input are."""
        if isinstance(x, Tensor):
            return not self.names(x) and bool((x == value).all())
        return isinstance(x, int | float) and x == value

    def __torch_dispatch__(
        self, function: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name, schema = function._schema.name.removeprefix("aten::"), function._schema
        given = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
        changed = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
        seen = list(_tensors((args, kwargs)))
        depends = self._names(self._matter(name.removesuffix("_"), args, seen))
        self.read |= self._names(seen)
        if name.startswith(("empty", "new_empty")) or torch.Tag.nondeterministic_seeded in function.tags:
            depends = depends | {UNKNOWN}
        before = {_key(t) for t in seen}
        result = function(*args, **kwargs)
        chosen = self._names(_tensors(args[1])) if name == "index" else depends  # by a mask, perhaps
        shaped = torch.Tag.dynamic_output_shape in function.tags and chosen
        if shaped or (depends and isinstance(result, bool | int | float)):
            self.escaped = f"its step asks for a value ({name.lstrip('_')})"
        for target in _tensors([given[a] for a in changed if a in given]):
            whole = target.numel() * target.element_size() == target.untyped_storage().nbytes()
            kept = set() if whole and target.is_contiguous() else self.names(target)
            self.of[_key(target)] = depends | kept
            self.alive.append(target)
        for made in _tensors(result):
            if _key(made) not in before:
                self.of[_key(made)] = depends
            self.alive.append(made)
        return result

    def _matter(self, name: str, args: tuple[Any, ...], seen: list[Tensor]) -> list[Tensor]:
        """The tensors that a result depends on."""
        if name in PRODUCTS and any(self.constant(x, 0) for x in args[:2]):
            return []
        if name == "div" and self.constant(args[0], 0):
            return []
        if name in ADDED_PRODUCTS and any(self.constant(x, 0) for x in args[1:3]):
            return list(_tensors(args[0]))
        if name == "lerp" and (self.constant(args[2], 0) or self.constant(args[2], 1)):
            return list(_tensors(args[int(self.constant(args[2], 1))]))
        if name == "where" and len(args) == 3 and (self.constant(args[0], 0) or self.constant(args[0], 1)):
            return list(_tensors(args[1 if self.constant(args[0], 1) else 2]))
        if name in OF_SHAPES:
            return list(_tensors(args[2:]))
        if name in ("copy", "fill", "zero"):  # what was there before is gone
            return list(_tensors(args[1:]))
        return seen


class _Escapes(TorchFunctionMode):
    """Watch for numbers that leave torch without an operation of it."""

    def __init__(self, dependence: Dependence) -> None:
        super().__init__()
        self.dependence = dependence

    def __torch_function__(
        self, function: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name in LEAVES_TORCH and any(self.dependence.names(t) for t in _tensors(args)):
            self.dependence.escaped = f"its step takes numbers out of torch ({name})"
        return function(*args, **(kwargs or {}))


def dead_weights(cell: type[Cell]) -> tuple[frozenset[str], frozenset[str], str]:
    """Weights with no way to the output, those of them that `step` never reads, and why none could be told, or ''.

    From the states that `begin` gives: where a fixed gate keeps one at 0 for ever, what it multiplies is dead too.
    """
    ways: dict[str, set[str]] = {}
    read: set[str] = set()
    for d, h, seeds, n in SIZES:
        for training in (True, False):
            probe = cell(d, h, seeds).train(training)
            moving = [False] * len(probe.begin(n))  # whether a state is anything but 0
            while True:
                traced, after = _step(probe, n, moving)
                if traced.escaped:
                    return frozenset(), frozenset(), traced.escaped
                read |= traced.read
                for name, tensor in [*probe.named_buffers(), *probe.named_parameters()]:  # changed in place, perhaps
                    ways.setdefault(name, set()).update(traced.names(tensor))
                now = [m or not traced.constant(a, 0) for m, a in zip(moving, after, strict=True)]
                for k, value in enumerate(after):
                    names = traced.names(value) if isinstance(value, Tensor) else set()
                    ways.setdefault(f"state {k}", set()).update(names)
                if now == moving:
                    break
                moving = now
    live, todo = {"state 0"}, ["state 0"]
    while todo:
        new = ways.get(todo.pop(), set()) - live
        live |= new
        todo += new
    names = {name for name, _ in probe.named_parameters()}
    return frozenset(names - live), frozenset(names - live - read), ""


def _step(probe: Cell, n: int, moving: list[bool]) -> tuple[Dependence, tuple[Any, ...]]:
    """One step: what depends on what, and the states after it."""
    traced = Dependence()
    with torch.no_grad():
        for weight in probe.parameters():
            weight.fill_(0.01)  # no number decides anything here
        for name, tensor in [*probe.named_parameters(), *probe.named_buffers()]:
            if name != "zero":
                traced.mark(tensor, name)
        X = torch.full((probe.seeds, n, probe.d), 0.5)
        traced.mark(X, "X")
        with traced, _Escapes(traced):
            state = list(probe.begin(n))
        for k, value in enumerate(state):
            moving[k] = moving[k] or not traced.constant(value, 0)
            if moving[k]:
                state[k] = torch.full_like(value, 0.5)
                traced.mark(state[k], f"state {k}")
        with traced, _Escapes(traced):
            after = probe.step(X, *state)
    return traced, after if isinstance(after, tuple) else (after,)


def _tensors(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, list | tuple):
        for part in x:
            yield from _tensors(part)
    elif isinstance(x, dict):
        yield from _tensors(list(x.values()))


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
