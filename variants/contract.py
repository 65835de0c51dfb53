"""Check what every cell must keep, when it is first asked for, and say in words what it breaks.

It runs a few steps of a small network: the names and shapes of its weights, its states, its gates, and that a training
can be stopped and go on, alone or beside other seeds, to the same numbers.
"""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .cell import PREFIXES, Cell, State
from .library import Library

D, H, S, N, STEPS = 4, 5, 2, 3, 4  # none equal to another that an axis could be taken for


def fault(cell: type[Cell], gates: Sequence[str]) -> str:
    """Return what is wrong with a cell, in one line that says what is right; '' for one that keeps all. `gates`: as
    read.
    """
    if reason := _names(cell, gates) or ("" if issubclass(cell, Library) else _behaviour(cell)):
        return reason
    return ""


def _names(cell: type[Cell], gates: Sequence[str]) -> str:
    if sorted(cell.gates()) != sorted(gates):
        return (f"its gates are {', '.join(cell.gates()) or 'none'}, in its text are {', '.join(gates) or 'none'}: "
                "write `@gate` in the line above `def`")  # fmt: skip
    for field, prefixes in (("weights", PREFIXES), ("averages", ("m_", "v_"))):
        said = getattr(cell, field)
        if not isinstance(said, str):
            return f"`{field}` is names with spaces between them, in one text, not {type(said).__name__}"
        for name in said.split():
            if not name.startswith(tuple(prefixes)) or not name.isidentifier():
                return f"its shape cannot be told from {name!r} in `{field}`: begin it with {', '.join(prefixes)}"
            if hasattr(cell, name):
                return f"{name!r} in `{field}` is a method of the class, too: call one of them otherwise"
        if twice := [name for name in dict.fromkeys(said.split()) if said.split().count(name) > 1]:
            return f"{twice[0]!r} is twice in `{field}`"
    if not isinstance(cell.states, int) or cell.states < 1:
        return f"`states` is how many tensors are carried from step to step, 1 or more, not {cell.states!r}"
    if issubclass(cell, Library):
        return ""
    if cell.keeps and cell.keeps not in cell.weights.split():
        return f"`keeps` is a bias among its weights, not {cell.keeps!r}"
    if not callable(getattr(cell, "step", None)):
        return "it has no method `step`"
    return ""


def _behaviour(cell: type[Cell]) -> str:
    """One small network, in float64, stepped in training and after it."""
    watch = _Randomness()
    try:
        with watch, torch.no_grad():
            probe = cell(D, H, S).double()
    except Exception as error:
        return f"it cannot be made: {_line(error)}"
    if watch.drawn:
        return _random(watch.drawn)
    for name, weight in probe.named_parameters():
        if weight.dim() < 1 or len(weight) != S:
            return f"the first axis of {name} is the seeds ({S} here), its shape is {tuple(weight.shape)}"
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in probe.parameters():
            weight.copy_(torch.randn(weight.shape, generator=rng, dtype=torch.float64) / 2)
    Xs = torch.randn(STEPS, S, N, D, generator=rng, dtype=torch.float64)
    for training in (True, False):
        when = "in training" if training else "after training"
        probe.train(training)
        before, hidden = copy.deepcopy(probe.state_dict()), _hidden(probe)
        watch = _Randomness()
        try:
            with watch, torch.no_grad():
                states = _steps(probe, Xs)
        except _Wrong as wrong:
            return str(wrong)
        except Exception as error:
            return f"its step fails {when}, in float64: {_line(error)}"
        if watch.drawn:
            return _random(watch.drawn)
        changed = [name for name, value in probe.state_dict().items() if not torch.equal(value, before[name])]
        if changed and not training:
            return f"after training (`self.training` is False) its step still changes {changed[0]}"
        if changed := [name for name in changed if name in dict(probe.named_parameters())]:
            return f"its step changes its weight {changed[0]} in place"
        if _hidden(probe) != hidden:
            return ("its step keeps something from one step to the next that no checkpoint holds: make it a state, or "
                    "a buffer (self.register_buffer)")  # fmt: skip
        probe.load_state_dict(before)
        with torch.no_grad():
            again = zip(states, _steps(probe, Xs), strict=True)
            if not all(torch.allclose(a, b, 0, 0, equal_nan=True) for a, b in again):
                return "the same steps from the same start give other numbers: something in it is random, or counts"
            probe.load_state_dict(before)
            for s in range(S):
                alone = cell(D, H, 1).double().train(training)
                alone.load_state_dict({k: v[s : s + 1] if v.dim() and len(v) == S else v for k, v in before.items()})
                for a, b in zip(_steps(alone, Xs[:, s : s + 1]), states, strict=True):
                    if a.shape != b[s : s + 1].shape or not torch.allclose(a, b[s : s + 1], 0, 1e-9, equal_nan=True):
                        return ("a seed's numbers depend on the seeds beside it: the first axis is the seeds, nothing "
                                "may be summed, averaged or normalised over it")  # fmt: skip
    return ""


class _Wrong(Exception):
    """Raised with what a step gave, in words."""


def _steps(probe: Cell, Xs: Tensor) -> State:
    state = probe.begin(Xs.shape[2])
    for X in Xs:
        given = {"input": X} | {f"state {k}": part for k, part in enumerate(state)}
        before = {name: tensor._version for name, tensor in given.items()}
        after: Any = probe.step(X, *state)
        if changed := [name for name, tensor in given.items() if tensor._version != before[name]]:
            raise _Wrong(f"its step changes its {changed[0]} in place, which training still needs: make a new tensor, "
                         "as H = 0.5 * H does and H *= 0.5 does not")  # fmt: skip
        after = after if isinstance(after, tuple) else (after,)
        if len(after) != probe.states:
            raise _Wrong(f"its step gives {len(after)} states, `states` says {probe.states}")
        for value in after:
            if not isinstance(value, Tensor):
                raise _Wrong(f"its step gives {type(value).__name__}, not a tensor or a tuple of tensors")
            right = (probe.seeds, Xs.shape[2], probe.h)
            if tuple(value.shape) != right:
                raise _Wrong(f"a state is (S, n, h), here {right}; its step gives {tuple(value.shape)}")
            if value.dtype != X.dtype:
                raise _Wrong(f"its step makes {value.dtype} of {X.dtype}: make new tensors as X.new_zeros(...) does")
        state = after
    return state


def _hidden(probe: Cell) -> bytes:
    """Return what a cell holds beside weights and buffers, to be compared."""
    own = {k: v for k, v in vars(probe).items() if not k.startswith("_") and k not in ("training", "on_gate")}
    try:
        return pickle.dumps({k: v.detach().numpy() if isinstance(v, Tensor) else v for k, v in own.items()})
    except Exception:
        return repr(sorted(own)).encode()


class _Randomness(TorchDispatchMode):
    """While it is entered: the first thing that draws a random number, by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drawn = ""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled by torch: to be left out of that would import its compiler, a second."""
        return False

    def __enter__(self) -> _Randomness:
        self.before = (random.getstate(), repr(np.random.get_state()))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        after = (random.getstate(), repr(np.random.get_state()))
        if not self.drawn and after != self.before:
            self.drawn = "Python's random" if after[0] != self.before[0] else "numpy.random"

    def __torch_dispatch__(self, function: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in function.tags and not self.drawn:
            self.drawn = f"torch's {function._schema.name.removeprefix('aten::').strip('_')}"
        return function(*args, **(kwargs or {}))


def _random(what: str) -> str:
    return (f"it draws random numbers ({what}): all seeds of a variant train at once, so that a seed's would depend on "
            "its company, and no checkpoint holds where the generator stood")  # fmt: skip


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
