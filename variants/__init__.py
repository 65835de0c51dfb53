"""Define what a recurrent network computes, one cell a file; `registry` finds them and reads their names.

    canonical("gru:R=1.0,Z=0")   'gru:Z=0,R=1'          works without torch: reads the files as text
    get("gru:R=1")               the class, its reset gate held at 1, its dead weights gone

A class that subclasses `Cell` (or `Library`) is a variant, named by its file, or by its `name`. What a cell is written
with comes from here too, wherever its file lies: `from variants import Cell, gate, sigmoid, tanh`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .registry import ENGINES, VariantInfo, canonical, catalog, get, parse, reference_engine, refusals, unusable

if TYPE_CHECKING:
    from .cell import Absent, Cell, State, Tensor, gate, relu, sigmoid, tanh

__all__ = [
    "ENGINES",
    "Absent",
    "Cell",
    "State",
    "Tensor",
    "VariantInfo",
    "canonical",
    "catalog",
    "gate",
    "get",
    "parse",
    "reference_engine",
    "refusals",
    "relu",
    "sigmoid",
    "tanh",
    "unusable",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Return what cell.py offers, when it is asked for: names are read without torch."""
    if name not in __all__:
        raise AttributeError(f"module 'variants' has no attribute {name!r}")
    from . import cell

    return getattr(cell, name)
