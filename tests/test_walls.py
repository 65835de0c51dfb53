"""Which module imports which: data flow one way, and what a package must not know it does not reach."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# The stages in the order data flows; a module imports from its own stage and from those before it.
STAGES = (
    ("variants",),
    ("harness.files", "harness.formatting"),
    ("harness.experiments",),
    ("harness.data",),
    ("harness.plan",),
    ("harness.run",),
    ("harness.record", "harness.analysis"),
    ("harness.report",),
    ("harness.pipeline", "harness.terminal", "harness.answers"),
    ("harness.__main__", "harness.options", "harness.notebook", "harness.new"),
)
ANYWHERE = {"harness"}  # __init__: the version, and the function that reads a results folder
FLOORS = 9


@functools.cache
def imports() -> dict[str, dict[str, bool]]:
    """Module -> the modules of ours and installed packages that it imports, and whether only for annotations."""
    files = {_name(path): path for package in ("variants", "harness") for path in (ROOT / package).rglob("*.py")}
    graph: dict[str, dict[str, bool]] = {}
    for module, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        checking = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
        annotations = {id(inner) for node in checking for inner in ast.walk(node)}
        found = graph.setdefault(module, {})
        for node in ast.walk(tree):
            for name in _imported(node, module, path.name == "__init__.py", files):
                found[name] = found.get(name, True) and id(node) in annotations
        found.pop(module, None)
    return graph


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imported(node: ast.AST, module: str, package: bool, files: Iterable[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name if alias.name in files else alias.name.partition(".")[0] for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    words = module.split(".")[: None if not node.level else -(node.level - package) or None]
    base = ".".join([*words, *filter(None, [node.module])]) if node.level else node.module or ""
    modules = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in files else base for alias in node.names]
    return [name if name in files else name.partition(".")[0] for name in modules]


def ours(module: str, annotations: bool = False) -> list[str]:
    """The modules of ours that one imports, but packages' own `__init__`."""
    return [name for name, only in imports()[module].items() if name in imports() and (annotations or not only)]


def stage(module: str) -> int:
    """The number of a module's stage."""
    [number] = [k for k, names in enumerate(STAGES) if any(module == n or module.startswith(f"{n}.") for n in names)]
    return number


def of(package: str) -> list[str]:
    found = [name for name in imports() if name == package or name.startswith(f"{package}.")]
    assert found, package
    return found


def test_every_module_has_a_stage_and_none_imports_from_a_later_one() -> None:
    arrows = [(a, b) for a in imports() for b in ours(a, annotations=True) if not {a, b} & ANYWHERE]
    assert len(arrows) > 100
    assert [f"{a} -> {b}" for a, b in arrows if stage(b) > stage(a)] == []


# `registry` reads text and knows no torch; `get` imports a class, and what checks and fixes it, when it is asked.
ON_DEMAND = {
    ("variants.registry", "variants.cell"), ("variants.registry", "variants.contract"),
    ("variants.registry", "variants.outside"), ("variants.cell", "variants.dead_weights"),
}  # fmt: skip


def test_there_is_no_circle() -> None:
    """Also none through an import inside a function, but those named. `variants` and `harness` only hand names on."""
    modules = set(imports()) - {"variants", "harness"}
    left = {m: {n for n in ours(m) if n in modules and (m, n) not in ON_DEMAND} for m in modules}
    assert all(n in ours(m) for m, n in ON_DEMAND)
    while left:
        free = [module for module, below in left.items() if not below & set(left)]
        assert free, f"a circle among {sorted(left)}"
        for module in free:
            del left[module]


LONGEST = 60
# Longer ones, by package, and what they may have at most. The code of an engine and of a training is in the key of what
# it trained: to split it is to train all that anew.
LONGER = {
    "variants.engines.backward": 80, "variants.engines._backward": 68,
    "harness.run.time_steps": 90, "harness.analysis.build": 75,
    "harness.report.of_table": 76, "harness.report.section": 76, "harness.report.learning_curves": 64,
    "harness.report.gate_effects": 62, "harness.report.main_table": 69,
}  # fmt: skip


def test_no_function_is_longer_than_a_screen() -> None:
    long: dict[str, int] = {}
    for path in [p for package in ("variants", "harness") for p in (ROOT / package).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                name = ".".join([*_name(path).split(".")[:2], node.name])
                long[name] = max(long.get(name, 0), (node.end_lineno or 0) - node.lineno + 1)
    assert {name: lines for name, lines in long.items() if lines > LONGER.get(name, LONGEST)} == {}


def test_no_docstring_begins_with_of_as_or_what() -> None:
    """A docstring says, verb first, what is done, or names what a class is."""
    found = []
    for path in [p for package in ("variants", "harness") for p in (ROOT / package).rglob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
                text = ast.get_docstring(node) or ""
                if text.split(" ")[0] in ("Of", "As", "What"):
                    found.append(f"{path.relative_to(ROOT)}: {text.splitlines()[0]}")
    assert found == []


def test_packages_have_nine_floors_at_most() -> None:
    packages = {m: "variants" if m.startswith("variants") else ".".join(m.split(".")[:2]) for m in imports()}
    floors: dict[str, int] = {}

    def floor(package: str) -> int:
        if package not in floors:
            floors[package] = 0
            below = {packages[b] for a, p in packages.items() if p == package for b in ours(a)} - {package, "harness"}
            floors[package] = 1 + max(map(floor, below), default=0)
        return floors[package]

    assert max(map(floor, packages.values())) <= FLOORS


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("variants", ["harness"]),
        ("harness.record", ["torch", "harness.run", "harness.data", "time", "datetime"]),
        ("harness.analysis", ["torch", "harness.run", "harness.data", "time", "datetime"]),
        ("harness.report", ["torch", "harness.run", "harness.data", "harness.plan", "variants.cell", "variants.model",
                            "time", "datetime"]),
        ("harness.experiments.protocols", ["torch", "pathlib", "os", "time", "datetime", "numpy"]),
        ("harness.experiments.runs", ["torch", "pathlib", "os", "time", "datetime", "numpy"]),
        ("harness.experiments.grids", ["torch", "pathlib", "os", "time", "datetime", "numpy"]),
        ("harness.experiments", ["harness.files", "pathlib", "os"]),
    ],
)  # fmt: skip
def test_a_package_does_not_import(package: str, forbidden: list[str]) -> None:
    arrows = [(m, n) for m in of(package) for n, only in imports()[m].items() if not only]
    assert [f"{a} -> {b}" for a, b in arrows if any(b == f or b.startswith(f"{f}.") for f in forbidden)] == []


@pytest.mark.parametrize(
    "package", ["harness.experiments.grids", "harness.record", "harness.analysis", "harness.report"]
)
def test_importing_what_reads_results_imports_no_torch(package: str) -> None:
    code = f"import sys, {', '.join(of(package))}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_nothing_imports_the_command_line() -> None:
    assert [m for m in imports() if {"harness.__main__", "harness.options"} & set(imports()[m]) and m not in
            ("harness.__main__", "harness.options", "harness.notebook")] == []  # fmt: skip


def test_no_engine_but_two_names_a_cell() -> None:
    """`book` is the book's code of three cells, `family` what resident is written for."""
    cells = {path.stem for path in (ROOT / "variants").glob("*.py")} - {
        "__init__", "cell", "registry", "fingerprint", "model", "library", "contract", "dead_weights", "outside",
        "optimizer",
    }  # fmt: skip
    named = ("variants.engines.book", "variants.engines.family")
    arrows = [(e, n) for e in of("variants.engines") if e not in named for n in imports()[e]]
    assert [f"{a} -> {b}" for a, b in arrows if b.removeprefix("variants.") in cells] == []
