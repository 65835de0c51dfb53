"""Find the cells, read a variant's name, give its class.

Rule: names are read from the files' text, so that all but `get` and `refusals` work without torch.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cell import Cell

HERE = Path(__file__).parent
# the fastest first; the last is only to be timed beside them
NAME = re.compile(r"[^\W\d][\w-]*(\.[\w-]+)*")  # of a cell
ENGINES = ("library", "resident", "native", "fused", "loop", "book")


@dataclass(frozen=True)
class VariantInfo:
    """Where a variant stands: its file (stem), its class, its gates in order of definition, its first line.

    `library`: it is one of torch's own modules, or inherits from one.
    """

    file: str
    cls: str
    gates: tuple[str, ...]
    about: str
    library: bool = False
    path: str = ""  # of a cell that lies elsewhere; `file` is then its file's name, or its module

    @property
    def where(self) -> str:
        """Its file, as a message names it."""
        return self.path or f"variants/{self.file}.py"


OUTSIDE: dict[str, VariantInfo] = {}  # cells that lie elsewhere, by name: see outside.py
FORGET: list[Callable[[], None]] = []  # called where they change, by what remembers something of cells


def use(cells: Mapping[str, VariantInfo]) -> None:
    """Have these cells, which lie elsewhere, found by their names, and no others that do."""
    OUTSIDE.clear()
    OUTSIDE.update(cells)
    for forget in (_class.cache_clear, *FORGET):
        forget()


def tell(cells: Mapping[str, tuple[Any, ...]]) -> None:
    """Know the cells that another process of ours knows, each given as the fields of its entry."""
    use({name: VariantInfo(*fields) for name, fields in cells.items()})


def written() -> dict[str, VariantInfo]:
    """Every variant of this folder, by name: the cells written here first, then torch's."""
    return _read()[0]


def catalog() -> dict[str, VariantInfo]:
    """Every variant, by name: those of this folder, then those that lie elsewhere."""
    return {**written(), **OUTSIDE} if OUTSIDE else written()


def unusable() -> dict[str, str]:
    """Return what lies in this folder and cannot be used, by the name it would have: why, in one line."""
    return _read()[1]


@functools.cache
def _read() -> tuple[dict[str, VariantInfo], dict[str, str]]:
    """The files of this folder, as text. One that cannot be read takes nothing down but what needs it."""
    modules, faults = {}, {}
    for path in sorted(HERE.glob("[!_.]*.py"), key=lambda p: (p.stem == "library", p.stem)):
        try:
            if not path.is_file():
                raise OSError("it is no file, or a link to nothing")
            modules[path.stem] = _Module(ast.parse(path.read_bytes()))
            if not path.stem.isidentifier():
                raise ValueError("a cell's file is named with letters, digits and _ alone")
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            faults[path.stem] = f"{path.name} cannot be used: {one_line(error)}"
            modules.pop(path.stem, None)
    entries: dict[str, VariantInfo] = {}
    for stem, module in modules.items():
        unnamed = [node for cls, node in module.classes.items() if not (cls.startswith("_") or _name_of(node))]
        bases = {_full(modules, stem, ast.unparse(base)) for node in unnamed for base in node.bases}
        for cls, node in module.classes.items():
            if f"variants.{stem}.{cls}" in (*_CELL, *_LIBRARY):
                continue
            line = _line_of(modules, f"variants.{stem}.{cls}")
            root = line[-1]
            if root not in (*_CELL, *_LIBRARY):
                missing = root.removeprefix("variants.").partition(".")[0]
                if root.startswith("variants.") and missing in faults:
                    faults[stem] = f"{stem}.py cannot be used: it inherits from {faults[missing]}"
                continue
            name = _name_of(node)
            unfinished = not any("step" in _methods(modules, c) for c in line) and root in _CELL
            if cls.startswith("_") or (name is None and f"variants.{stem}.{cls}" in bases):
                continue  # what others build on
            if unfinished and name is None and _is_base(modules, f"variants.{stem}.{cls}"):
                continue
            name, gates = name or stem, _gates(modules, line)
            about = module.about if name == stem else f"torch.nn.{cls}, as torch runs it" * (stem == "library")
            if not NAME.fullmatch(name):
                faults[name] = f"{stem}.py names its cell {name!r}: a name is letters, digits, _, - and ."
            elif name in entries:
                other = entries[name]
                faults[f"{stem}.{cls}"] = (
                    f"{stem}.py cannot be used: its class {cls} would be called {name!r}, as {other.cls} of "
                    f'{other.file}.py is: give it a line name = "..." of its own'
                )
            else:
                entries[name] = VariantInfo(stem, cls, gates, about or module.about, root in _LIBRARY)
    return entries, faults


_CELL = ("variants.Cell", "variants.cell.Cell")
_LIBRARY = ("variants.Library", "variants.library.Library")
_GATE = ("gate", "variants.gate", "variants.cell.gate")


class _Module:
    """A file as it describes itself in text: its first line, its classes, and what each imported name stands for."""

    def __init__(self, tree: ast.Module) -> None:
        self.about = (ast.get_docstring(tree) or "").partition("\n")[0]
        self.classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        self.names: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                self.names |= {a.asname or a.name.partition(".")[0]: (a.asname and a.name) or a.name.partition(".")[0]
                               for a in node.names}  # fmt: skip
            elif isinstance(node, ast.ImportFrom):
                origin = ".".join(["variants"] * (node.level == 1) + [node.module or ""] * bool(node.module))
                self.names |= {a.asname or a.name: f"{origin}.{a.name}" for a in node.names}


def _full(modules: dict[str, _Module], stem: str, dotted: str) -> str:
    """'variants.gru.GRU' of what a file calls `GRU`, or `gru.GRU`; imports are followed from file to file."""
    for _ in range(len(modules) + 1):
        module, (first, _, rest) = modules[stem], dotted.partition(".")
        if dotted in module.classes:
            return f"variants.{stem}.{dotted}"
        full = module.names.get(first, first) + "." * bool(rest) + rest
        where, _, last = full.removeprefix("variants.").partition(".")
        if not full.startswith("variants.") or where not in modules or not last or full in (*_CELL, *_LIBRARY):
            return full
        stem, dotted = where, last
    return dotted


def _line_of(modules: dict[str, _Module], full: str) -> list[str]:
    """A class and those it inherits from, nearest first; last what is no class of a file here, like 'variants.Cell'."""
    line: list[str] = []
    todo, roots = [full], []
    while todo:
        cls = todo.pop(0)
        stem, _, name = cls.removeprefix("variants.").partition(".")
        if cls in line:
            continue
        if cls in (*_CELL, *_LIBRARY) or stem not in modules or name not in modules[stem].classes:
            roots.append(cls)
            continue
        line.append(cls)
        todo += [_full(modules, stem, ast.unparse(base)) for base in modules[stem].classes[name].bases]
    known = [root for root in roots if root in (*_CELL, *_LIBRARY)]
    return [*line, (known or [r for r in roots if r.startswith("variants.")] or [""])[0]]


def _is_base(modules: dict[str, _Module], full: str) -> bool:
    """Whether a class of any file inherits from this one."""
    return any(
        full in _line_of(modules, f"variants.{stem}.{cls}")[1:] for stem, m in modules.items() for cls in m.classes
    )


def _methods(modules: dict[str, _Module], full: str) -> dict[str, ast.stmt]:
    """Return what the body of a class says, by name; none of a class that is not written here."""
    stem, _, cls = full.removeprefix("variants.").partition(".")
    node = modules[stem].classes.get(cls) if stem in modules else None
    said: dict[str, ast.stmt] = {}
    for line in node.body if node else ():
        if isinstance(line, ast.FunctionDef):
            said[line.name] = line
        elif isinstance(line, ast.Assign | ast.AnnAssign) and line.value is not None:
            said |= {ast.unparse(t): line for t in (line.targets if isinstance(line, ast.Assign) else [line.target])}
    return said


def _gates(modules: dict[str, _Module], line: list[str]) -> tuple[str, ...]:
    """Symbols in order of definition, those of what it inherits from first, as `Cell.gates` has them."""
    gates: dict[str, bool] = {}
    for full in reversed(line):
        stem = full.removeprefix("variants.").partition(".")[0]
        for name, said in _methods(modules, full).items():
            if isinstance(said, ast.FunctionDef):
                marks = [_full(modules, stem, ast.unparse(d)) for d in said.decorator_list]
                if any(mark in _GATE for mark in marks) or name in gates:
                    gates[name] = True
            elif name in gates:  # `Z = None`: the gate is gone
                gates[name] = False
    return tuple(name for name, there in gates.items() if there)


def _name_of(node: ast.ClassDef) -> str | None:
    """Return what a class says its variant is called, if it does."""
    for line in node.body:
        if isinstance(line, ast.Assign | ast.AnnAssign) and isinstance(line.value, ast.Constant):
            target = line.targets[0] if isinstance(line, ast.Assign) else line.target
            if ast.unparse(target) == "name" and isinstance(line.value.value, str):
                return line.value.value
    return None


def parse(name: str) -> tuple[str, dict[str, float]]:
    """('gru', {'Z': 0.0}) of 'gru:Z=0'. ValueError names what is wrong, the choices, the nearest."""
    try:
        return _parse(name)
    except ValueError as error:
        raise ValueError(_slip(name) or str(error)) from None


def _slip(name: str) -> str:
    """Return what was meant by a name that is none because of its signs; '' where that is not why."""
    plain, why = ascii_of(name), list[str]()
    if plain != name:
        why.append(foreign(name))
    base, colon, fixed = plain.partition(":")
    point = re.sub(r"=(\d*),(\d+)", r"=\1.\2", fixed)
    if point != fixed:
        why.append("a number has a point, not a comma")
    meant = list[str]()
    for part in re.split("[,;]", base + colon + point):
        if "=" in part and ":" not in part and meant:
            meant[-1] += f",{part.strip()}"
        else:
            meant.append(part.strip())
    if len(meant) > 1:
        why.append("spaces separate variants, not commas")
    try:
        for part in meant:
            _parse(part)
    except ValueError:
        return ""
    return f"no variant {name!r}: {', and '.join(why)}. Did you mean {' '.join(meant)}?" if why else ""


def _parse(name: str) -> tuple[str, dict[str, float]]:
    base, colon, fixed = name.partition(":")
    if base not in catalog() and base in unusable():
        raise ValueError(f"variants/{unusable()[base]}")
    if base not in catalog():
        raise ValueError(unknown("variant", base, catalog()) + "; of your own: ./FILE.py, or package.module:Cell")
    gates = catalog()[base].gates
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
    """The class of a variant. ValueError as for `parse`, and where it breaks what every cell must keep."""
    from .cell import fix

    base, values = parse(name)
    cell = _class(base)
    return fix(cell, tuple(values.items())) if values else cell  # type: ignore[arg-type]


@functools.cache
def _class(base: str) -> type[Cell]:
    """A cell as it is written, checked once: in words what it breaks, not as a traceback later."""
    from .contract import fault

    entry = catalog()[base]
    where = f"{entry.where} cannot be used: "
    try:
        if entry.path:
            from .outside import load

            cell = load(entry)
        else:
            cell = getattr(importlib.import_module(f"variants.{entry.file}"), entry.cls)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{where}it cannot be imported: {one_line(error)}") from None
    if broken := fault(cell, entry.gates):
        raise ValueError(f"{where}{broken}")
    return cell


def source(name: str) -> str:
    """Return the text of the file that a cell is written in, less its imports; '' where no cell has this name."""
    entry = catalog().get(name)
    if entry is None:
        return ""
    if entry.library:
        return f"{entry.about}."
    try:
        text = (Path(entry.path) if entry.path else HERE / f"{entry.file}.py").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    text = re.sub(r"^(from|import) .*\n", "", text, flags=re.MULTILINE).replace('"""\n', "\n").strip().strip('"')
    return re.sub(r"\n{3,}", "\n\n", text)


def reference_engine(name: str) -> str:
    """The engine that every other must agree with: the loop, or torch's own for torch's own."""
    return "library" if catalog()[parse(name)[0]].library else "loop"


def refusals(
    name: str, device: str = "cpu", hidden: int = 256, batch: int = 32, precision: str = "ieee", layers: int = 1,
    drops: bool = False,
) -> dict[str, str]:  # fmt: skip
    """engine -> why it cannot run this variant at this size, '' where it can; the fastest first.

    `layers` of it, with dropout between them where it `drops`.
    """
    from .layers import stack

    cell, said = stack(get(name), layers, drops), dict[str, str]()
    for name_of in ENGINES:
        try:
            engine = importlib.import_module(f"variants.engines.{name_of}")
        except Exception as error:  # a cell that it builds on is half-written
            said[name_of] = f"it cannot be imported: {one_line(error)}"
            continue
        said[name_of] = engine.unsupported_reason(cell, device)
        if not said[name_of] and hasattr(engine, "unsupported_size"):
            said[name_of] = engine.unsupported_size(hidden, batch, precision)
        elif not said[name_of] and precision == "bf16":
            said[name_of] = "it takes torch's products of float32, of which none is bf16"
    return said


def one_line(error: BaseException) -> str:
    """An exception in one line, its kind first."""
    if isinstance(error, SyntaxError):
        return f"{error.msg} (line {error.lineno})"
    return " ".join(f"{type(error).__name__}: {error}".split())


def _gated() -> str:
    return ", ".join(name for name, entry in catalog().items() if entry.gates)


def _number(value: float) -> str:
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


# what others call it, where the nearest spelling is another thing; None: nothing here is that
MEANT = {"gpu": "cuda", "nvidia": "cuda", "rocm": "cuda", "tpu": None, "xpu": None, "npu": None, "mps": None,
         "fp32": "ieee", "float32": "ieee", "fp16": None, "float16": None, "torch": "library", "pytorch": "library",
         "c": "native", "triton": "resident", "python": "loop"}  # fmt: skip


def unknown(kind: str, name: str, choices: Iterable[str]) -> str:
    """One line for a name that is not there: what was asked, the nearest, all there are."""
    known = list(choices)
    folded = {choice.lower(): choice for choice in known}
    plain = ascii_of(name).strip().lower()
    meant = MEANT.get(plain.split(":")[0], "") if plain not in folded else ""
    near = [meant] if meant in known else [folded[n] for n in difflib.get_close_matches(plain, folded, n=1)]
    if meant is None:
        near = []
    listed = [part.strip() for part in re.split("[,;]", plain)]
    if len(listed) > 1 and any(part in folded for part in listed):
        hint = f" Spaces separate them, not commas: {' '.join(folded.get(part, part) for part in listed)}."
    else:
        hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"no {kind} {name!r}{foreign(name, ': ')}.{hint} There are: {', '.join(known)}"


def ascii_of(text: str) -> str:
    """Full-width letters, digits and signs, and what looks like a colon or a dash, as ASCII has them."""
    return unicodedata.normalize("NFKC", text).translate(LOOK_ALIKE)


LOOK_ALIKE = str.maketrans({**dict.fromkeys("\u2236\ua789\u02d0\u02f8", ":"), "\u3001": ",", "\u060c": ",",
                            **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-")})  # fmt: skip


def foreign(text: str, before: str = "") -> str:
    """The first character that is not ASCII, by its name; '' where there is none."""
    sign = next((c for c in text if not c.isascii()), "")
    return f"{before}its {sign!r} is {unicodedata.name(sign, f'U+{ord(sign):04X}')}" if sign else ""
