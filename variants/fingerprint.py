"""Hash the code that a variant's numbers follow from, read as text: no module is imported.

    fingerprint("gru:R=1", "native", ("harness.run.train.train",))   16 hexadecimal digits

It starts at definitions given by their qualified names (a function, a class, a method, a name assigned at the top of a
module, an entry of a dict there) and follows every name in them: within a module, through imports of every form, and to
base classes. What a module does at its top beside defining is followed too, and so are files that a definition names
beside its own, like native.c. Python's own modules and installed packages are not followed.

Left out are docstrings, comments, annotations and messages of errors, and the names of files, modules, functions,
classes and local variables: what is moved or renamed, every use with it, keeps its hash. Names of parameters, methods
and attributes stay: calls may use them.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import sys
import sysconfig
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .registry import FORGET, catalog, parse, reference_engine, written

HOME = Path(__file__).parent.parent  # where the packages lie that qualified names begin with
DEEPEST = 20  # imports that hand one name on: they may go in a circle
PACKAGES = {"numpy", "platformdirs", "torch", "triton"}  # installed, also where somebody works on one of them
OWN = ("harness", "variants")  # from wherever they are imported, those beside this file
COMPUTED = ("variants.registry.get", "variants.registry.parse")  # of finding a cell by its name, what is computed
SKIPPED = {"ctx", "kind", "type_comment", "type_ignores", "type_params", "annotation", "returns", "simple"}


@functools.cache
def fingerprint(
    variant: str, engine: str = "", roots: tuple[str | tuple[Path, str], ...] = (), stops: tuple[str, ...] = (),
    home: Path = HOME,
) -> str:  # fmt: skip
    """A hash of a variant's equations, of the engine that executes them, '' for the reference engine, and of `roots`.

    `stops` are qualified names, of modules too, that decide no number: not followed. ValueError for a name not there.
    """
    entries = catalog()
    entry = entries[parse(variant)[0]]
    root = (Path(entry.path), entry.cls) if entry.path else f"variants.{entry.file}.{entry.cls}"
    cell = code([root], home=home, package=entry.file if entry.path else "")
    # An engine names the cells it is written for; what they compute is theirs.
    cells = [f"variants.{other.file}.{other.cls}" for other in written().values()]
    own = [f"variants.engines.{engine or reference_engine(variant)}.unroll", "variants.model.Model"]
    rest = code([*own, *COMPUTED, *roots], [*cells, *stops], home)
    return hashlib.sha256((cell + rest).encode()).hexdigest()[:16]


FORGET.append(fingerprint.cache_clear)


def code(
    roots: Sequence[str | tuple[Path, str]], stops: Collection[str] = (), home: Path = HOME, package: str = ""
) -> str:
    """A hash of these definitions and of all that they refer to. ValueError for a name that is not there.

    A root outside `home` is a file and a name in it; `package`: its module, if its package is to be followed by name.
    """
    text = "\n".join(_Walk(home, stops, roots, package).said())
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class Import:
    """An imported name: `from .module import name`, of `level` dots; without `name` it stands for the module."""

    level: int
    module: str
    name: str = ""


Base = str | Import
Key = tuple[Path, str]  # of a definition: its file, its name there; '' is what the file does beside defining
Target = tuple[Path, str, tuple[str, ...]]  # the same, and the attributes that are asked of it
WHOLE = "*"  # for a name: all of a module


@dataclass(frozen=True)
class Definition:
    """A definition without what decides no number; `@k` in its text is `refs[k]`: a name, and the attributes asked."""

    text: str
    refs: tuple[tuple[Base, tuple[str, ...]], ...]
    strings: tuple[str, ...]  # any of which may name a file beside it


class Module:
    """A file as text: what it defines at its top, by name; what it imports; what it does besides."""

    def __init__(self, text: bytes) -> None:
        self.nodes: dict[str, list[ast.AST]] = {}
        self.imports: dict[str, list[Import]] = {}
        self.effects: list[ast.AST] = []
        self.read: dict[str, Definition] = {}
        tree = ast.parse(text)
        for node in tree.body:
            self._add(node)
        if "__getattr__" in self.nodes:  # it hands on, when asked, what it seems to import for annotations alone
            for node in tree.body:
                if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
                    for inner in node.body:
                        if isinstance(inner, ast.Import | ast.ImportFrom):
                            self._import(inner)

    def _add(self, node: ast.stmt) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            self.nodes.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            for part in _apart(node):
                targets = part.targets if isinstance(part, ast.Assign) else [part.target]
                stored = [name for t in targets for name in _stored(t)]
                for name in stored:
                    self.nodes.setdefault(name, []).append(part)
                if not stored or any(isinstance(t, ast.Attribute | ast.Subscript) for t in targets):
                    self.effects.append(part)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pass  # for annotations alone
        elif isinstance(node, ast.If) and ast.unparse(node.test).startswith("__name__"):
            pass  # a program, which is not what is imported
        elif isinstance(node, ast.Import | ast.ImportFrom):
            self._import(node)
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            self.effects.append(node)
            for inner in ast.walk(node):
                if isinstance(inner, ast.Import | ast.ImportFrom):
                    self._import(inner)
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    self.nodes.setdefault(inner.name, [node])
            for name in _stored(node):
                self.nodes.setdefault(name, []).append(node)

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        for name, what in _imported(node):
            self.imports.setdefault(name, []).append(what)

    def definition(self, name: str) -> Definition | None:
        """Return the definition of a name, of `Class.method` or of `DICT.key`; of '', all that the file does beside
        defining.
        """
        if name not in self.read:
            nodes = self.effects if not name else self._nodes(name)
            if nodes is None:
                return None
            writer = _Writer()
            text = "\n".join(writer.write(node) for node in nodes)
            self.read[name] = Definition(text, tuple(writer.refs), tuple(writer.strings))
        return self.read[name]

    def _nodes(self, name: str) -> list[ast.AST] | None:
        if name in self.nodes:
            return self.nodes[name]
        outer, _, inner = name.partition(".")
        for node in self.nodes.get(outer, ()) if inner else ():
            if isinstance(node, ast.ClassDef):
                within: list[ast.AST] = [n for n in node.body if getattr(n, "name", "") == inner]
            else:
                pairs = getattr(getattr(node, "value", None), "keys", []), getattr(node.value, "values", [])  # type: ignore[attr-defined]
                within = [v for k, v in zip(*pairs, strict=True) if isinstance(k, ast.Constant) and k.value == inner]
            if within:
                return within
        return None


class _Walk:
    """From definitions to all that they refer to, each once, numbered in the order in which they are met."""

    def __init__(
        self, home: Path, stops: Collection[str], roots: Sequence[str | tuple[Path, str]], package: str = ""
    ) -> None:
        self.home = home
        named = [root for root in roots if isinstance(root, str)]
        self.own = {name.partition(".")[0]: home for name in [*OWN, *named, *stops]}
        self.modules: dict[Path, Module] = {}
        self.places: dict[tuple[Path, int, str], Path | None] = {}
        self.numbers: dict[Key, int] = {}
        self.reached: dict[Path, None] = {}
        self.stops: set[Key] = set()
        for root in roots:
            if isinstance(root, str):
                self._number(*self._named(root))
                continue
            if package and not package.endswith(".py"):
                above = package.count(".") + (root[0].name == "__init__.py")
                self.own.setdefault(package.partition(".")[0], root[0].parents[above])
            for path, name, _ in self._targets(*root, ()):
                self._number(path, name)
            if not self.numbers:
                raise ValueError(f"no {root[1]!r} in {root[0]}: it is to be a class, or a name assigned there")
        self.stops = {self._named(stop) for stop in stops}

    def said(self) -> Iterator[str]:
        """Every definition's text, and what its references stand for."""
        queue = list(self.numbers)
        while queue:
            path, name = queue.pop(0)
            met, found = len(self.numbers), self._module(path).definition(name)
            assert found is not None
            yield found.text
            yield from (self._said(path, base, attrs) for base, attrs in found.refs)
            yield from _beside(path, found.strings)
            queue += list(self.numbers)[met:]
            if not queue:  # what modules do besides, once all that is defined is there: it is seldom anything
                doing = [(p, "") for p in self.reached if self._module(p).effects and (p, WHOLE) not in self.stops]
                doing = [key for key in doing if key not in self.numbers]
                queue = [key for key in doing if self._number(*key)]

    def _module(self, path: Path) -> Module:
        """Read once a walk; of a folder without a file of its own, nothing."""
        if path not in self.modules:
            try:
                self.modules[path] = _of_text(path.read_bytes() if path.suffix == ".py" else b"")
            except SyntaxError as error:
                raise ValueError(f"{path} is not Python: {error.msg} (line {error.lineno})") from None
        return self.modules[path]

    def _number(self, path: Path, name: str) -> str:
        self._reach(path)
        return str(self.numbers.setdefault((path, name), len(self.numbers) + 1))

    def _reach(self, path: Path) -> None:
        """A module that is imported runs, and so does all that it imports."""
        if path in self.reached:
            return
        self.reached[path] = None
        for what in (what for some in self._module(path).imports.values() for what in some):
            for module in (what.module, f"{what.module}.{what.name}".strip(".")):
                if other := self._locate(path, what.level, module):
                    self._reach(other)

    def _named(self, qualified: str) -> Key:
        """The file of a qualified name and the name in it; of a module the name is WHOLE."""
        words = qualified.split(".")
        for cut in range(len(words), 0, -1):
            if path := self._locate(self.home, 0, ".".join(words[:cut])):
                name = ".".join(words[cut:]) or WHOLE
                if name == WHOLE or self._module(path).definition(name):
                    return path, name
                break
        raise ValueError(f"no {qualified!r} in {self.home}: moved or renamed? harness/plan.py names it still")

    def _said(self, path: Path, base: Base, attrs: tuple[str, ...]) -> str:
        """Return what stands in the hash for a name: the number of what it refers to, which is then followed."""
        words = []
        for other, name, left in self._targets(path, base, attrs):
            stopped = {(other, name), (other, WHOLE)} & self.stops and (other, name) not in self.numbers
            words.append(".".join(["-" if stopped else self._number(other, name), *left]))
        if words:
            return " ".join(words)
        meant = self._module(path).imports.get(base, [base]) if isinstance(base, str) else [base]
        names = [what if isinstance(what, str) else f"{what.module}.{what.name}".strip(".") for what in meant]
        return " ".join(".".join([name, *attrs]) for name in names)

    def _targets(self, path: Path, base: Base, attrs: tuple[str, ...], depth: int = 0) -> list[Target]:
        """The definitions that a name may stand for, `attrs` asked of it; none for what is not followed."""
        if isinstance(base, Import):
            asked = (base.name, *attrs) if base.name else attrs
            return self._within(path, base.level, base.module, asked, depth)
        module = self._module(path)
        found: list[Target] = [(path, base, attrs)] if base in module.nodes else []
        if depth < DEEPEST:
            for what in module.imports.get(base, ()) or (() if found else module.imports.get(WHOLE, ())):
                star = Import(what.level, what.module, base) if what.name == WHOLE else what
                found += self._targets(path, star, attrs, depth + 1)
        return found

    def _within(self, path: Path, level: int, module: str, attrs: tuple[str, ...], depth: int) -> list[Target]:
        other = self._locate(path, level, module)
        if not attrs:  # a module handed on as a value
            return [(other, name, ()) for name in self._module(other).nodes] if other else []
        if other and (found := self._targets(other, attrs[0], attrs[1:], depth)):
            return found
        deeper = f"{module}.{attrs[0]}".strip(".")
        return self._within(path, level, deeper, attrs[1:], depth) if self._locate(path, level, deeper) else []

    def _locate(self, path: Path, level: int, module: str) -> Path | None:
        """The file of a module as a file at `path` imports it, or its folder; None for what is not followed."""
        asked = (path.parent, level, module)
        if asked not in self.places:
            self.places[asked] = self._place(path, level, module)
        return self.places[asked]

    def _place(self, path: Path, level: int, module: str) -> Path | None:
        first = module.partition(".")[0]
        if level:
            folders = [path.parents[level - 1]]
        elif first in self.own:
            folders = [self.own[first]]
        elif not first or first in sys.stdlib_module_names or first in PACKAGES:
            return None
        else:
            folders = [path.parent, *_search()]
        for folder in folders:
            place = folder.joinpath(*module.split(".")) if module else folder
            for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
                if file.is_file():
                    return file
            if place.is_dir():
                return place
        return None


@functools.lru_cache(maxsize=2000)
def _of_text(text: bytes) -> Module:
    return Module(text)


def _search() -> list[Path]:
    """Where else modules are found, but for what comes with Python or is installed."""
    python = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib"))
    folders = [Path(entry or ".").resolve() for entry in sys.path if not entry.startswith(python)]
    return [folder for folder in folders if folder.name not in ("site-packages", "dist-packages")]


def _beside(path: Path, strings: Iterable[str]) -> Iterator[str]:
    """Digests of the files that a definition names: by their name, or by what they have instead of .py."""
    for word in strings:
        file = path.parent / (path.stem + word if word.startswith(".") else word)
        if file.is_file():
            yield hashlib.sha256(file.read_bytes()).hexdigest()


def _apart(node: ast.Assign | ast.AnnAssign | ast.AugAssign) -> Sequence[ast.Assign | ast.AnnAssign | ast.AugAssign]:
    """`A, B = 1, 2` as A = 1 and B = 2: whoever uses A does not depend on B."""
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target, value = node.targets[0], node.value
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            parts = list(zip(target.elts, value.elts, strict=True))
            starred = any(isinstance(part, ast.Starred) for pair in parts for part in pair)
            return [node] if starred else [ast.Assign([t], v) for t, v in parts]
    return [node]


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, Import]]:
    for alias in node.names:
        if isinstance(node, ast.ImportFrom):
            yield alias.asname or alias.name, Import(node.level, node.module or "", alias.name)
        elif alias.asname:
            yield alias.asname, Import(0, alias.name)
        else:  # `import a.b` binds a
            yield alias.name.partition(".")[0], Import(0, alias.name.partition(".")[0])
            yield "", Import(0, alias.name)


class _Inside(dict[str, Base]):
    """The names that a class body binds: seen there, and not in its methods."""


class _Writer:
    """A syntax tree as text, the same under every version of Python, without what decides no number.

    Local variables become %0, %1 ... in the order of their use, names from outside the definition @0, @1 ...
    """

    def __init__(self) -> None:
        self.refs: dict[tuple[Base, tuple[str, ...]], int] = {}
        self.strings: dict[str, None] = {}
        self.scopes: list[
            dict[str, Base]
        ] = []  # name -> its spelling here, '' before its first use; or what it imports
        self.locals = 0

    def write(self, node: object) -> str:
        if isinstance(node, list):
            return f"[{' '.join(filter(None, map(self.write, node)))}]"
        if not isinstance(node, ast.AST):
            return repr(node)
        special = getattr(self, f"_{type(node).__name__}", None)
        return special(node) if special else self._plain(node)

    def _plain(self, node: ast.AST, without: Collection[str] = ()) -> str:
        fields = [
            f"{field}={self.write(value)}"
            for field, value in ast.iter_fields(node)
            if not (field in SKIPPED or field in without or value is None or value == [])
        ]
        return f"{type(node).__name__}({' '.join(fields)})"

    def _name(self, name: str, attrs: tuple[str, ...] = ()) -> str:
        for scope in reversed(self.scopes):
            if name in scope:
                base = scope[name]
                if isinstance(base, Import):
                    break
                if not base:
                    base = scope[name] = f"%{self.locals}"
                    self.locals += 1
                return ".".join([base, *attrs])
        else:
            base = name
        return f"@{self.refs.setdefault((base, attrs), len(self.refs))}"

    def _Name(self, node: ast.Name) -> str:
        return self._name(node.id)

    def _Attribute(self, node: ast.Attribute) -> str:
        attrs: list[str] = []
        value: ast.expr = node
        while isinstance(value, ast.Attribute):
            attrs.insert(0, value.attr)
            value = value.value
        if isinstance(value, ast.Name):
            return self._name(value.id, tuple(attrs))
        return ".".join([self.write(value), *attrs])

    def _Constant(self, node: ast.Constant) -> str:
        word = node.value
        if (
            isinstance(word, str)
            and "." in word
            and len(word) < 60
            and word.isprintable()
            and not set(word) & set("/ ")
        ):
            self.strings[word] = None
        return repr(word)

    def _Call(self, node: ast.Call) -> str:
        """A module imported by its name is all of it."""
        function, first = ast.unparse(node.func).rpartition(".")[2], node.args[0] if node.args else None
        name = first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""
        if function in ("import_module", "__import__") and name:
            module = Import(len(name) - len(name.lstrip(".")), name.lstrip("."))
            return self._plain(node) + f"@{self.refs.setdefault((module, ()), len(self.refs))}"
        return self._plain(node)

    def _Expr(self, node: ast.Expr) -> str:
        return "" if isinstance(node.value, ast.Constant) else self._plain(node)  # a docstring, or ...

    def _Raise(self, node: ast.Raise) -> str:
        if not isinstance(node.exc, ast.Call):
            return self._plain(node)
        words = [a for a in node.exc.args if not isinstance(a, ast.JoinedStr | ast.Constant)]
        return f"Raise({self.write(node.exc.func)} {self.write(words)})"

    def _nothing(self, node: ast.AST) -> str:
        return ""

    _Import = _ImportFrom = _Global = _Nonlocal = _nothing  # what they bind is in the scope

    def _AnnAssign(self, node: ast.AnnAssign) -> str:
        if self.scopes and isinstance(self.scopes[-1], _Inside):
            return self._plain(node)  # a field
        return self.write(ast.Assign([node.target], node.value)) if node.value else ""

    def _ExceptHandler(self, node: ast.ExceptHandler) -> str:
        name = self._name(node.name) if node.name else ""
        return f"ExceptHandler({self.write(node.type) if node.type else ''} {name} {self.write(node.body)})"

    def _arguments(self, node: ast.arguments) -> str:
        """Names alone: what they have by default belongs to the scope outside."""
        names = [[a.arg for a in some] for some in (node.posonlyargs, node.args, node.kwonlyargs)]
        return repr([*names, *(a and a.arg for a in (node.vararg, node.kwarg))])

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> str:
        given = self.write([node.args.defaults, [d or "" for d in node.args.kw_defaults]])
        outer, scope = self.scopes, _bound(node)
        self.scopes = [s for s in outer if not isinstance(s, _Inside)] + [scope]
        text = f"{type(node).__name__}({self.write(node.args)} {given} {self.write(node.body)})"
        self.scopes = outer
        return text

    def _defined(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
        """Its decorators and its name: not at the top, where others have a number for it."""
        return self.write(node.decorator_list) + (self._name(node.name) if self.scopes else "")

    def _FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
        return self._defined(node) + self._function(node)

    _AsyncFunctionDef = _FunctionDef
    _Lambda = _function

    def _ClassDef(self, node: ast.ClassDef) -> str:
        head = self._defined(node) + self.write(node.bases) + self.write(node.keywords)
        names = {name for part in node.body for name in _stored(part)}
        names |= {
            part.name for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        }
        self.scopes.append(_Inside({name: name for name in names}))
        text = f"ClassDef({head} {self.write(node.body)})"
        self.scopes.pop()
        return text

    def _comprehension_(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> str:
        first, outer = self.write(node.generators[0].iter), self.scopes
        bound: dict[str, Base] = {name: "" for g in node.generators for name in _stored(g.target)}
        self.scopes = [s for s in outer if not isinstance(s, _Inside)] + [bound]
        parts = [self._plain(g, {"iter"} if k == 0 else ()) for k, g in enumerate(node.generators)]
        text = f"{self._plain(node, {'generators'})} {first} {parts}"
        self.scopes = outer
        return text

    _ListComp = _SetComp = _GeneratorExp = _DictComp = _comprehension_


def _stored(tree: ast.AST) -> list[str]:
    return [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]


def _bound(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> dict[str, Base]:
    """The names that a function binds; those of its parameters, and of patterns, stay as they are."""
    bound: dict[str, Base] = {}
    some, outside = node.args, set[str]()
    args = [*some.posonlyargs, *some.args, *some.kwonlyargs, *filter(None, (some.vararg, some.kwarg))]
    kept = {arg.arg for arg in args}
    todo: list[ast.AST] = list(node.body) if isinstance(node.body, list) else []
    while todo:
        part = todo.pop()
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound[part.name] = ""
        elif isinstance(part, ast.Import | ast.ImportFrom):
            bound |= dict(_imported(part))
        elif isinstance(part, ast.Global | ast.Nonlocal):
            outside |= set(part.names)
        elif isinstance(part, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            for inner in ast.walk(part):
                bound |= dict.fromkeys(_stored(inner.target), "") if isinstance(inner, ast.NamedExpr) else {}
        elif isinstance(part, ast.Lambda):
            pass
        else:
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                bound.setdefault(part.id, "")
            if isinstance(part, ast.ExceptHandler) and part.name:
                bound.setdefault(part.name, "")
            if isinstance(part, ast.MatchAs | ast.MatchStar | ast.MatchMapping):
                kept |= {name for name in (getattr(part, "name", None), getattr(part, "rest", None)) if name}
            todo += ast.iter_child_nodes(part)
    return {name: base for name, base in (bound | {name: name for name in kept}).items() if name not in outside}
