"""Find the cells, read a variant's name, give its class.

Rule: names are read from the files' text, so that all but `get` and `refusals` work without torch.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cell import Cell

HERE = Path(__file__).parent
# the fastest first; the last is only to be timed beside them
ENGINES = ("library", "resident", "native", "scan", "fused", "loop", "book")


@dataclass(frozen=True)
class Entry:
    """Where a variant stands: its file (stem), its class, its gates in order of definition, its first line."""

    file: str
    cls: str
    gates: tuple[str, ...]
    about: str


@functools.cache
def found() -> dict[str, Entry]:
    """Every variant, by name: the cells written here first, then torch's."""
    entries = {}
    for path in sorted(HERE.glob("[!_]*.py"), key=lambda p: (p.stem == "library", p.stem)):
        module = ast.parse(path.read_text(encoding="utf-8"))
        for node in module.body:
            bases = {b.id for b in node.bases if isinstance(b, ast.Name)} if isinstance(node, ast.ClassDef) else set()
            if not isinstance(node, ast.ClassDef) or not bases & {"Cell", "Library"} or node.name == "Library":
                continue
            name, about = path.stem, (ast.get_docstring(module) or "").partition("\n")[0]
            for line in node.body:
                if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "name":
                    name = ast.literal_eval(line.value)
                    about = f"torch.nn.{node.name}, as torch runs it"
            gates = tuple(
                f.name
                for f in node.body
                if isinstance(f, ast.FunctionDef) and any(ast.unparse(d) == "gate" for d in f.decorator_list)
            )
            entries[name] = Entry(path.stem, node.name, gates, about)
    return entries


def parse(name: str) -> tuple[str, dict[str, float]]:
    """('gru', {'Z': 0.0}) of 'gru:Z=0'. ValueError names what is wrong, the choices, the nearest."""
    base, colon, fixed = name.partition(":")
    if base not in found():
        raise ValueError(unknown("variant", base, found()))
    gates = found()[base].gates
    values: dict[str, float] = {}
    for part in fixed.split(",") if colon else ():
        symbol, _, text = part.partition("=")
        if not gates:
            raise ValueError(f"{base} has no gate that can be fixed; with gates: {_gated()}")
        if symbol not in gates:
            raise ValueError(f"{name!r}: {unknown('gate', symbol, gates)} (spelt like {base}:{gates[0]}=1)")
        if symbol in values:
            raise ValueError(f"{name!r} fixes gate {symbol} twice")
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 1:
            raise ValueError(f"{name!r}: gate {symbol} is fixed at a number from 0 to 1, not {text!r}")
        values[symbol] = abs(value)  # -0 is 0
    return base, {g: values[g] for g in gates if g in values}


def canonical(name: str) -> str:
    """The one spelling of a variant: gates in the order their cell defines them, numbers at their shortest."""
    base, values = parse(name)
    return base + ":" * bool(values) + ",".join(f"{g}={_number(v)}" for g, v in values.items())


def get(name: str) -> type[Cell]:
    """The class of a variant. ValueError as for `parse`."""
    from .cell import fix

    base, values = parse(name)
    entry = found()[base]
    cell: type[Cell] = getattr(importlib.import_module(f"variants.{entry.file}"), entry.cls)
    return fix(cell, tuple(values.items())) if values else cell  # type: ignore[arg-type]


def plainest(name: str) -> str:
    """The engine that every other must agree with: the loop, or torch's own for torch's own."""
    return "library" if found()[parse(name)[0]].file == "library" else "loop"


def refusals(
    name: str, device: str = "cpu", hidden: int = 256, batch: int = 32, precision: str = "ieee"
) -> dict[str, str]:
    """engine -> why it cannot run this variant at this size, '' where it can; the fastest first."""
    said = {}
    for name_of in ENGINES:
        engine = importlib.import_module(f"variants.engines.{name_of}")
        said[name_of] = engine.refuses(get(name), device)
        if not said[name_of] and hasattr(engine, "fits"):
            said[name_of] = engine.fits(hidden, batch, precision)
    return said


def _gated() -> str:
    return ", ".join(name for name, entry in found().items() if entry.gates)


def _number(value: float) -> str:
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def unknown(kind: str, name: str, choices: Iterable[str]) -> str:
    """One line for a name that is not there: what was asked, the nearest, all there are."""
    known = list(choices)
    folded = {choice.lower(): choice for choice in known}
    near = difflib.get_close_matches(name.lower(), folded, n=1)
    hint = f" Did you mean {folded[near[0]]!r}?" if near else ""
    return f"no {kind} {name!r}.{hint} There are: {', '.join(known)}"
