"""Load cells that lie elsewhere: in a file, in a module, in an installed package that names them as entry points.

    resolve(["gru", "./my_cell.py", "my_cell:T=1", "package.module:Cell:Z=0"])     names, as `registry.parse` takes them

They are found by importing them, so torch is needed. A file is read anew by every `resolve`. Modules that lie beside it
are found as a script finds them (`import helpers`), or by `from .helpers import ...`.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from . import fingerprint, registry
from .registry import VariantInfo

if TYPE_CHECKING:
    from .cell import Cell

GROUP = "gru_bench.variants"  # of entry points: name = "package.module:Cell"
HELP = "name it ./FILE.py, or package.module:Cell"
_FILE = re.compile(r"(?P<place>.*\.py)(:(?P<cls>[^\W\d]\w*))?(?P<fixed>:[^:]*=.*)?", re.DOTALL)
_CLASS = re.compile(r"(?P<place>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<cls>[^\W\d]\w*)(?P<fixed>:[^:]*=.*)?")
_classes: dict[VariantInfo, type[Cell]] = {}
_files: dict[str, ModuleType] = {}
_imported: set[str] = set()  # modules that lie beside a file, imported for it


def resolve(words: Iterable[str]) -> tuple[str, ...]:
    """The canonical names of variants given by name or by place, each once; what lies elsewhere is found by name then.

    ValueError in one line: no such place, nothing there that is a cell, or a name that another cell has.
    """
    words = list(words)
    _forget()
    added: dict[str, VariantInfo] = {}
    named: list[str] = []
    for word in words:
        place, cls, fixed = _split(word)
        if not place:
            named.append(word)
            base = word.partition(":")[0]
            if base in added or base not in installed():
                continue
            _alone(base)
            place, cls = installed()[base].module, installed()[base].attr
            cells = {base: _cells(place, cls).popitem()[1]}
        else:
            cells = _cells(place, cls)
            if fixed and len(cells) > 1:
                raise ValueError(f"{word!r} fixes gates of one of {', '.join(cells)}: say which, like "
                                 f"{place}:{next(iter(cells.values())).cls}{fixed}")  # fmt: skip
            named += [name + fixed for name in cells]
        for name, entry in cells.items():
            if not registry.NAME.fullmatch(name):
                raise ValueError(f"{entry.where} names its cell {name!r}: a name is letters, digits, _, - and .; "
                                 'give the class a line name = "..."')  # fmt: skip
            other = registry.written().get(name) or added.get(name)
            if other and (other.path, other.cls) != (entry.path, entry.cls):
                raise ValueError(
                    f"two cells are called {name!r}: {entry.cls} of {entry.where} and {other.cls} of {other.where}; "
                    'give one of the classes a line name = "..." of its own'
                )
            added[name] = entry
    if added:
        registry.use({**registry.OUTSIDE, **added})
    return tuple(dict.fromkeys(registry.canonical(name) for name in named))


def installed() -> Mapping[str, importlib.metadata.EntryPoint]:
    """Return what installed packages offer, by name; none is imported for it."""
    return _entry_points(tuple(sys.path))


@functools.cache
def _entry_points(path: tuple[str, ...]) -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in reversed(tuple(importlib.metadata.entry_points(group=GROUP)))}


def _alone(name: str) -> None:
    """ValueError where two installed packages offer different cells under one name."""
    points = [point for point in importlib.metadata.entry_points(group=GROUP) if point.name == name]
    if len({point.value for point in points}) > 1:
        both = " and ".join(f"{point.value} of {point.dist.name if point.dist else 'a package'}" for point in points)
        raise ValueError(f"two cells are called {name!r}: {both}; name one by its place, like {points[0].value}")


def load(entry: VariantInfo) -> type[Cell]:
    """The class of a cell that lies elsewhere. Whatever importing it raises."""
    if entry not in _classes:
        module = imported(entry.path) if entry.file.endswith(".py") else importlib.import_module(entry.file)
        _classes[entry] = getattr(module, entry.cls)
    return _classes[entry]


def placed(variant: str) -> str:
    """Where the cell of a variant lies, as `resolve` takes it, a file below this folder as ./...; '' of the package's.

    ValueError for a variant that is not known.
    """
    entry = registry.catalog()[registry.parse(variant)[0]]
    if not entry.path:
        return ""
    if not entry.file.endswith(".py"):
        return f"{entry.file}:{entry.cls}"
    near = os.path.relpath(entry.path)
    return f"{entry.path if near.startswith(os.pardir) else os.path.join(os.curdir, near)}:{entry.cls}"


def importable(module: str) -> bool:
    """Whether a module is found by its name, without importing it: one that was only typed is not."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _split(word: str) -> tuple[str, str, str]:
    """('./a.py', 'Cell', ':Z=1') of './a.py:Cell:Z=1'; '' as the place of what is a name."""
    if match := _FILE.fullmatch(word):
        return match["place"], match["cls"] or "", match["fixed"] or ""
    if "/" in word or os.sep in word or word.startswith("~"):
        path = Path(os.path.expanduser(word))
        kind = "a folder" if path.is_dir() else "no Python file"
        raise ValueError(f"{word!r} is {kind}: a cell is a file like ./my_cell.py, which may be followed by :Class")
    match = _CLASS.fullmatch(word)
    if match and match["place"] not in registry.catalog() and match["place"] not in installed():
        first = match["place"].partition(".")[0]
        if first != match["place"] or importable(first):
            return match["place"], match["cls"], match["fixed"] or ""
    return "", "", ""


def _cells(place: str, cls: str) -> dict[str, VariantInfo]:
    """name -> cell of what a file or a module defines, or of the one class that is asked for."""
    from .cell import Cell
    from .library import Library

    is_file = place.endswith(".py")
    path = Path(os.path.abspath(os.path.expanduser(place))).resolve() if is_file else Path()
    if is_file and not path.is_file():
        raise ValueError(f"no file {place!r}{': it is a folder' * path.is_dir()}: a cell is a file like ./my_cell.py")
    try:
        module = imported(str(path)) if is_file else importlib.import_module(place)
    except (Exception, SystemExit) as error:
        said, hint = registry.one_line(error), ""
        if isinstance(error, ImportError) and re.search(r"relative import|cells_of_\w+\.(cell|library)\b", said):
            hint = "; what cells are written with is found by: from variants import Cell, gate, sigmoid, tanh"
        raise ValueError(f"{place} cannot be used: it cannot be imported: {said}{hint}") from None
    if not is_file:
        path = Path(getattr(module, "__file__", None) or "")
        if path.suffix != ".py":
            raise ValueError(f"{place} cannot be used: its source is not there, and is what its runs are named by")
    stem = path.stem if path.stem != "__init__" else path.parent.name
    classes = {name: value for name, value in vars(module).items() if isinstance(value, type)}
    here = {name: value for name, value in classes.items() if value.__module__ == module.__name__}
    own = {name: value for name, value in here.items() if issubclass(value, Cell) and value not in (Cell, Library)}
    if cls:
        if not isinstance(getattr(module, cls, None), type) or not issubclass(classes[cls], Cell):
            which = f"it has {', '.join(own) or 'none'}; a gate is fixed by its value, like {place}:R=1"
            raise ValueError(f"{place} has no class {cls!r} that is a Cell: {which}")
        own = {cls: classes[cls]}
    else:
        bases = {base for value in own.values() for base in value.__mro__[1:]}
        own = {name: value for name, value in own.items()
               if "name" in vars(value) or not (name.startswith("_") or value in bases)}  # fmt: skip
    if not own:
        raise ValueError(
            f"{place} has no cell: write a class that inherits from Cell (from variants import Cell, gate)"
        )
    cells: dict[str, VariantInfo] = {}
    for attribute, value in own.items():
        name = vars(value).get("name", stem)
        about = (module.__doc__ or value.__doc__ or "").strip().partition("\n")[0]
        file = f"{path.name}" if is_file else place
        entry = VariantInfo(file, attribute, tuple(value.gates()), about, issubclass(value, Library), str(path))
        if not isinstance(name, str):
            raise ValueError(f"{place}: the name of its class {attribute} is text, not {name!r}")
        if name in cells:
            raise ValueError(f"two cells are called {name!r}: {cells[name].cls} and {attribute} of {path}; give one of "
                             'the classes a line name = "..." of its own')  # fmt: skip
        cells[name] = entry
        _classes[entry] = value
    return cells


def _forget() -> None:
    """Files are read anew, and what was imported for them: somebody may have edited them."""
    for name in [*_imported, *(module.__name__ for module in _files.values())]:
        sys.modules.pop(name, None)
    _imported.clear()
    _files.clear()
    _classes.clear()
    importlib.invalidate_caches()


def imported(place: str, anew: bool = False) -> ModuleType:
    """Import a file as part of a package made up for its folder, which is searched last for what it imports.

    `anew`: also where it was imported before. Whatever the file raises comes out.
    """
    if anew:
        _files.pop(place, None)
    if place in _files:
        return _files[place]
    path = Path(place)
    package = ModuleType(f"cells_of_{hashlib.sha256(str(path.parent).encode()).hexdigest()[:12]}")
    package.__path__ = [str(path.parent)]
    name = f"{package.__name__}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    sys.modules.setdefault(package.__name__, package)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        with _settings_kept():
            spec.loader.exec_module(module)
        beside = [n for n in set(sys.modules) - before - {name} if _lies_in(sys.modules.get(n), path.parent)]
        _imported.update(beside, {package.__name__})
        _same_files(path.parent, [place, *(str(sys.modules[n].__file__) for n in beside if n != package.__name__)])
    except BaseException:
        sys.modules.pop(name, None)
        raise
    _files[place] = module
    return module


@contextlib.contextmanager
def _settings_kept() -> Iterator[None]:
    """ImportError where a file changes what every other cell computes with. No .pyc is left in somebody's folder."""
    import torch

    written, kind = sys.dont_write_bytecode, torch.get_default_dtype()
    sys.dont_write_bytecode = True
    try:
        yield
        if torch.get_default_dtype() != kind:
            raise ImportError("it sets torch's default dtype, with which every other cell would compute too")
    finally:
        sys.dont_write_bytecode = written
        torch.set_default_dtype(kind)


def _lies_in(module: ModuleType | None, folder: Path) -> bool:
    file = Path(str(getattr(module, "__file__", None) or ""))  # torch.ops calls its own _ops.py, with no folder
    return file.is_absolute() and file.resolve().is_relative_to(folder)


def _same_files(folder: Path, files: Iterable[str]) -> None:
    """ImportError where `import helpers` found another file than the one beside: its key would be of the wrong one."""
    for file in files:
        for node in ast.walk(ast.parse(Path(file).read_bytes())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for first in {name.partition(".")[0] for name in names}:
                if not first or first in sys.stdlib_module_names or first in (*fingerprint.PACKAGES, *fingerprint.OWN):
                    continue
                here = [p for p in (folder / f"{first}.py", folder / first / "__init__.py") if p.is_file()]
                if here and first in sys.modules and not _lies_in(sys.modules[first], folder):
                    other = getattr(sys.modules[first], "__file__", "of Python")
                    raise ImportError(f"{here[0]} is not the {first!r} that it imports, which is {other}: rename one")
