"""What a recurrent network computes, one cell a file; `registry` finds them and reads their names.

    canonical("gru:R=1.0,Z=0")   'gru:Z=0,R=1'          works without torch: reads the files as text
    get("gru:R=1")               the class, its reset gate held at 1, its dead weights gone

A class that subclasses `Cell` (or `Library`) is a variant, named by its file, or by its `name`. What a cell is written
with comes from here too, wherever its file lies: `from variants import Cell, gate, sigmoid, tanh`.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .registry import ENGINES, HERE, Entry, canonical, found, get, parse, plainest, refusals

if TYPE_CHECKING:
    from .cell import Absent, Cell, State, Tensor, gate, relu, sigmoid, tanh

__all__ = ["ENGINES", "Absent", "Cell", "Entry", "State", "Tensor", "canonical", "fingerprint", "found", "gate", "get",
           "parse", "plainest", "refusals", "relu", "sigmoid", "tanh"]  # fmt: skip


def __getattr__(name: str) -> Any:
    """What cell.py offers, when it is asked for: names are read without torch."""
    if name not in __all__:
        raise AttributeError(f"module 'variants' has no attribute {name!r}")
    from . import cell

    return getattr(cell, name)


def fingerprint(name: str, engine: str = "", also: Iterable[Path] = ()) -> str:
    """A hash of the code a variant's numbers follow from: its file, cell.py, model.py, the engine's files, `also`.

    Of the syntax tree without docstrings: a comment or a line break changes no number, and so no name.
    """
    files = [HERE / f"{found()[parse(name)[0]].file}.py", HERE / "cell.py", HERE / "model.py"]
    files += [*_engine(engine or plainest(name)), *also]
    return hashlib.sha256("\n".join(_tree(f) for f in files).encode()).hexdigest()[:16]


@functools.cache
def _engine(name: str) -> list[Path]:
    """The files of an engine, those beside it that it builds on included."""
    own = sorted((HERE / "engines").glob(f"{name}.*"))
    module = ast.parse((HERE / "engines" / f"{name}.py").read_text(encoding="utf-8"))
    beside = [node for node in ast.walk(module) if isinstance(node, ast.ImportFrom) and node.level == 1]
    names = [alias.name if node.module is None else node.module for node in beside for alias in node.names]
    return [*own, *(file for other in dict.fromkeys(names) for file in _engine(other))]


@functools.cache
def _tree(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            del body[0]
    return ast.unparse(tree)  # `unparse`, not `dump`: the same text under every version of Python we support
