"""Does a key change with all the code that a number follows from, and with nothing else: in copies that are edited."""

from __future__ import annotations

import ast
import functools
import re
import shutil
import sys
import unittest.mock
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import torch

from harness import plan as planning
from harness.data import corpus
from harness.data import load as loading
from harness.experiments import protocols
from harness.experiments.protocols import Protocol
from harness.experiments.runs import Run
from harness.run import machine, train, train_task
from variants import registry
from variants.engines import loop
from variants.fingerprint import COMPUTED, _Walk, code, fingerprint

ROOT = Path(__file__).parents[2]
TINY = Protocol(train_characters=300, heldout_characters=200, batch_size=4, num_steps=5, hidden=8, epochs=2)
LAYERS = Protocol(**{**vars(TINY), "layers": 2, "dropout": 0.3})
WINDOWS = Protocol(train_characters=20, heldout_characters=9, batch_size=4, num_steps=5, hidden=8, epochs=1,
                   sampling="windows", validation_characters=9, update_bias="chrono", init="torch")  # fmt: skip
TEXT, PROBE = planning.NUMBERS[True], (*planning.NUMBERS[False], "harness.experiments.tasks.copy")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A copy of both packages, to be edited."""
    for package in ("harness", "variants"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def prints(home: Path, variant: str = "gru:R=1", engine: str = "", roots: tuple[str, ...] = TEXT) -> str:
    return fingerprint.__wrapped__(variant, engine, roots, planning.NO_NUMBERS, home)


def edit(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text, f"{old!r} is not in {path.name}"
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


class Edited(ast.NodeTransformer):
    """A statement more in the functions of those lines, or in all."""

    def __init__(self, lines: set[int] | None = None) -> None:
        self.lines = lines

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        if self.lines is None or first in self.lines:
            node.body.insert(0, ast.parse("edited = 0").body[0])
        return node

    def apply(self, text: str) -> str:
        return ast.unparse(ast.fix_missing_locations(self.visit(ast.parse(text))))


def executed(work: Callable[[], object]) -> set[tuple[Path, int]]:
    """The functions of ours that a call went through: file, first line."""
    seen: set[tuple[str, int, str]] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            seen.add((frame.f_code.co_filename, frame.f_code.co_firstlineno, frame.f_code.co_name))

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    ours = [(Path(file), line) for file, line, name in seen if not name.startswith("<")]
    return {(p, k) for p, k in ours if ROOT / "harness" in p.parents or ROOT / "variants" in p.parents}


def trains(variant: str, engine: str, protocol: Protocol, text: corpus.Corpus) -> None:
    run = Run(variant, 0, protocol, text.sha256, "cpu", engine)
    machine.configure_process(1, "ieee")
    keeps = [unittest.mock.patch.object(module, "network", return_value={}) for module in (train, train_task)]
    with keeps[0], keeps[1]:  # it only keeps: a stop of every key
        _ = train.train([run], text) if protocol.task == "text" else train_task.train([run])


RUNS = [
    ("gru:R=1", "loop", TINY, TEXT),
    ("lstm", "loop", WINDOWS, TEXT),
    ("gru", "fused", WINDOWS, TEXT),
    ("ligru", "loop", TINY, TEXT),
    ("lstm", "fused", LAYERS, TEXT),
    ("nn.gru", "library", TINY, TEXT),
    ("gru_after", "loop", Protocol(task="copy", num_steps=3, batch_size=2, hidden=4, epochs=1), PROBE),
]


def test_every_function_that_a_training_goes_through_is_in_its_key(home: Path) -> None:
    """But for the finding of a cell by its name: the name, and what is found, are in the key themselves."""
    precision, text_on = torch.get_float32_matmul_precision(), loading.load("embedded")
    loop.counts_from_the_end.cache_clear()  # what another test found is gone through once more
    gone: set[tuple[Path, int]] = set()
    missed: list[str] = []
    for variant, engine, protocol, roots in RUNS:
        went = executed(functools.partial(trains, variant, engine, protocol, text_on))
        torch.set_float32_matmul_precision(precision)
        torch.set_flush_denormal(False)  # of this process, and other tests are in it
        before = prints(home, variant, engine, roots)
        for path, line in went - gone:
            copy = home / path.relative_to(ROOT)
            text = copy.read_text(encoding="utf-8")
            functions = [n for n in ast.walk(_tree(text)) if isinstance(n, ast.FunctionDef)]
            own = [f for f in functions if min([f.lineno, *(d.lineno for d in f.decorator_list)]) == line]
            if not own or path.name in ("registry.py", "contract.py"):
                continue
            gone.add((path, line))
            lines, first = text.splitlines(keepends=True), own[0].body[-1]
            lines.insert(first.lineno - 1, " " * first.col_offset + "edited = 0\n")
            copy.write_text("".join(lines), encoding="utf-8")
            if prints(home, variant, engine, roots) == before:
                missed.append(f"{path.stem}.{own[0].name}")
            copy.write_text(text, encoding="utf-8")
    assert set(missed) == {"machine._keep_pages"}  # memory, and no number: see plan.NO_NUMBERS
    assert len(gone) > 100


_tree = functools.cache(ast.parse)


@pytest.mark.parametrize("engine", ["fused", "native", "loop"])
def test_the_loop_which_scores_a_network_with_a_gate_held_is_in_every_engine_s_key(home: Path, engine: str) -> None:
    before = prints(home, engine=engine)
    edit(home / "variants/engines/loop.py", ("return steps(cell, X, state)", "return steps(cell, 2 * X, state)"))
    assert prints(home, engine=engine) != before


def test_what_no_training_follows_from_changes_no_key(home: Path) -> None:
    """Every function of every other file edited; in the files of the training path, every one it does not refer to."""
    settings = [("gru:R=1", "native", TEXT), ("gru:R=1", "loop", PROBE), ("nn.gru", "library", TEXT)]
    before = [prints(home, *one) for one in settings]
    used: dict[Path, set[str]] = {}
    for variant, engine, roots in settings:
        entry = registry.catalog()[registry.parse(variant)[0]]
        own = [f"variants.{entry.file}.{entry.cls}", f"variants.engines.{engine}.unroll", "variants.model.Model"]
        walk = _Walk(home, planning.NO_NUMBERS, [*own, *COMPUTED, *roots])
        list(walk.said())
        for path, name in walk.numbers:
            used.setdefault(path, set()).add(name.partition(".")[0])
    untouched = 0
    for path in [*home.rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        tree, other = ast.parse(text), set()
        for node in tree.body:
            if getattr(node, "name", None) not in used.get(path, set()):
                other |= set(range(node.lineno - 3, (node.end_lineno or 0) + 1))
        path.write_text(Edited(other).apply(text) + "\nEDITED = 1\n", encoding="utf-8")
        untouched += path not in used
        assert lines
    assert untouched > 25
    assert [prints(home, *one) for one in settings] == before


def test_a_part_of_the_engine_in_another_language_counts(home: Path) -> None:
    before, loop = prints(home, "gru", "native"), prints(home, "gru", "loop")
    with (home / "variants/engines/native.c").open("a") as file:
        file.write("// edited\n")
    assert prints(home, "gru", "native") != before
    assert prints(home, "gru", "loop") == loop


def test_equations_are_the_variants_own(home: Path) -> None:
    """Also where an engine is written for several cells by name."""
    names = [("gru", "loop"), ("gru:R=1", "fused"), ("rnn", "fused"), ("lstm", "loop"), ("nn.gru", "library")]

    def now() -> dict[str, str]:
        return {variant: prints(home, variant, engine) for variant, engine in names}

    before = now()
    edit(home / "variants/gru.py", ("Z * H + (1 - Z)", "Z * H + (1.0 - Z)"))
    assert {v for v, known in now().items() if known != before[v]} == {"gru", "gru:R=1"}
    edit(home / "variants/cell.py", ("    def begin", "    def start"))
    assert {v for v, known in now().items() if known != before[v]} == set(before)


LAB = """
from __future__ import annotations

from math import inf
from typing import Any

from lab.parts import scale
from lab.parts import Weight as W

RATE, UNUSED = 0.5, 1
TABLE: dict[str, Any] = {"a": scale, "b": None}


def train(steps: int, start: float = 1.0) -> float:
    \"\"\"Words.\"\"\"
    total, best = start, inf
    for k in range(steps):
        total -= RATE * step(total, k)
        best = min(best, total)
    if best > total:
        raise ValueError(f"too large after {steps}")

    def inner(x: float) -> float:
        return x * total

    return sum(inner(y) for y in TABLE["a"](W(2.0), best))


def step(total: float, k: int) -> float:
    return total - k


def other(x: int) -> int:
    return x
"""
PARTS = """
LIMIT = 3


class Weight:
    size: int = 3

    def __init__(self, value: float) -> None:
        self.value = value

    @property
    def half(self) -> float:
        return self.value / 2


def scale(weight, best):
    return [weight.half * k + best for k in range(LIMIT)]
"""


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A package of two files that stands for one of ours."""
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab/run.py").write_text(LAB)
    (tmp_path / "lab/parts.py").write_text(PARTS)
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [
        [("best", "least"), ("for k in", "for t in"), ("step(total, k)\n", "step(total, t)\n")],  # local variables
        [("inner", "within"), ("y)", "z)"), ("for y", "for z")],  # a function inside, a variable of a comprehension
        [("Words.", "Other words."), ("    total, best", "    # a remark\n    total, best")],
        [(": int", ": float"), ("-> float", "-> Any"), ("TABLE: dict[str, Any]", "TABLE")],  # annotations
        [("too large after", "diverged after")],  # the message of an error
        [("RATE, UNUSED = 0.5, 1", "UNUSED = 2\nRATE = 0.5")],
        [("step(", "gradient("), ("RATE", "LR"), ("TABLE", "TASKS")],  # names at the top, and their uses
        [("Weight as W", "Weight"), ("W(2.0)", "Weight(2.0)")],
        [("from lab.parts import scale", "from . import parts"), ('"a": scale', '"a": parts.scale')],
        [("from lab.parts import scale", "from .parts import scale as f"), ('"a": scale', '"a": f')],
        [("from math import inf", "import math"), ("start, inf", "start, math.inf")],
        [("def other(x: int) -> int:\n    return x", "def other(x: int) -> int:\n    return -x")],
        [("RATE, UNUSED", "import os\nRATE, UNUSED")],
    ],
)
def test_what_decides_no_number_changes_no_key(changes: list[tuple[str, str]], lab: Path) -> None:
    before = code(["lab.run.train"], home=lab)
    edit(lab / "lab/run.py", *changes)
    assert code(["lab.run.train"], home=lab) == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("run", "RATE, UNUSED = 0.5", "RATE, UNUSED = 0.25"),
        ("run", "min(best, total)", "min(total, best)"),
        ("run", "total - k", "k - total"),
        ("run", "x * total", "x * best"),  # another local
        ("run", "start: float = 1.0", "start: float = 2.0"),
        ("run", "steps: int, start: float = 1.0", "start: int, steps: float = 1.0"),
        ("run", "from math import inf", "from math import nan as inf"),
        ("run", "RATE * step(total, k)", "RATE * other(total)"),
        ("run", "best > total", "best >= total"),
        ("run", '"a": scale', '"a": step'),
        ("run", "if best > total:\n        raise ValueError", "if best > total:\n        raise KeyError"),
        ("parts", "LIMIT = 3", "LIMIT = 4"),
        ("parts", "self.value / 2", "self.value / 3"),
        ("parts", "@property\n    def half(self) -> float:", "@property\n    def half(self, *_) -> float:"),
        ("parts", "size: int = 3", "size: int = 4"),
        ("parts", "class Weight:", "class Weight(dict):"),
        ("parts", "LIMIT = 3", "LIMIT = 3\nLIMIT += 1"),
        ("parts", "LIMIT = 3", "LIMIT = 3\nimport torch\ntorch.set_default_dtype(torch.float64)"),
        ("parts", "def scale", "@staticmethod\ndef scale"),
    ],
)
def test_what_decides_a_number_changes_the_key(file: str, old: str, new: str, lab: Path) -> None:
    before = code(["lab.run.train"], home=lab)
    edit(lab / f"lab/{file}.py", (old, new))
    assert code(["lab.run.train"], home=lab) != before


def test_code_that_is_moved_keeps_its_key(lab: Path) -> None:
    """One file made two, in a package of another name: the root is named anew, and nothing else."""
    before = code(["lab.run.train"], home=lab)
    cut = LAB.index("def step")
    (lab / "house/loop").mkdir(parents=True)
    head = LAB[: LAB.index("RATE")].replace("lab.parts", "house.weights")
    body = LAB[LAB.index("RATE") : cut].replace("step(total", "small.step(total")
    (lab / "house/loop/__init__.py").write_text("")
    (lab / "house/loop/train.py").write_text(head + "from house.loop import small\n" + body)
    (lab / "house/loop/small.py").write_text(LAB[cut:])
    (lab / "lab/parts.py").rename(lab / "house/weights.py")
    shutil.rmtree(lab / "lab")
    assert code(["house.loop.train.train"], home=lab) == before
    with pytest.raises(ValueError, match=r"no 'lab\.run\.train'"):
        code(["lab.run.train"], home=lab)  # a name that was left behind is no empty list


def test_a_harness_of_another_name_without_a_remark_keeps_every_key(home: Path) -> None:
    """All of our own files: renamed, moved a folder down, laid out anew, comments and docstrings gone."""
    settings = [("gru:R=1", "native", TEXT), ("ligru", "loop", PROBE), ("nn.gru", "library", TEXT)]
    before = [prints(home, *one) for one in settings]
    for path in (home / "harness").rglob("*.py"):
        text = re.sub(r"(?m)^(\s*)(from|import) harness\b", r"\1\2 lab.bench", path.read_text(encoding="utf-8"))
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
                node.body = node.body[1:] or [ast.Pass()]
        path.write_text(ast.unparse(tree), encoding="utf-8")
    (home / "lab").mkdir()
    (home / "harness").rename(home / "lab/bench")

    def there(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(re.sub(r"^harness\b", "lab.bench", name) for name in names)

    stops = there(planning.NO_NUMBERS)
    assert [fingerprint.__wrapped__(v, e, there(roots), stops, home) for v, e, roots in settings] == before


ACT = "import torch\n\nSCALE = 1.0\n\n\ndef act(x):\n    return torch.tanh(x) * SCALE\n"
CELL = """from variants import Cell, Tensor
{imports}

class Mine(Cell):
    weights = "W_xh W_hh b_h"

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        {local}
        return {act}(X @ self.W_xh + H @ self.W_hh + self.b_h)
"""


@pytest.mark.parametrize(
    ("imports", "act", "local"),
    [
        ("from .mathx import act", "act", ""),
        ("from .mathx import act as f", "f", ""),
        ("from . import mathx", "mathx.act", ""),
        ("from variants.mathx import act", "act", ""),
        ("from variants import mathx", "mathx.act", ""),
        ("import variants.mathx", "variants.mathx.act", ""),
        ("import variants.mathx as m", "m.act", ""),
        ("import mathx", "mathx.act", ""),
        ("from mathx import *", "act", ""),
        ("from .tools import act", "act", ""),  # a package that hands on what a file of it defines
        ("from .tools.inner import act", "act", ""),
        ("from .middle import act", "act", ""),  # handed on by a third file
        ("", "mathx.act", "from . import mathx"),
        ("try:\n    from .mathx import act\nexcept ImportError:\n    from torch import tanh as act", "act", ""),
        ("import importlib\nact = importlib.import_module('variants.mathx').act", "act", ""),
        ("from . import mathx\ntable = {'act': mathx.act}", "table['act']", ""),
        ("import functools\nfrom . import mathx\nact = functools.partial(mathx.act)", "act", ""),
        ("from . import mathx\nhere = mathx", "here.act", ""),
        ("from .mathx import act\nMARKS = ('.', '..', '...', '.c', 'a.b', '.git')", "act", "MARKS"),
    ],
)
def test_what_a_cell_imports_is_in_its_key(imports: str, act: str, local: str, home: Path) -> None:
    own = home / "variants"
    (own / "mathx.py").write_text(ACT)
    (own / "middle.py").write_text("from .mathx import act\n")
    (own / "tools").mkdir()
    (own / "tools/__init__.py").write_text("from .inner import act\n")
    (own / "tools/inner.py").write_text(ACT)
    (own / "mine.py").write_text(CELL.format(imports=imports, act=act, local=local))
    before, gru = code(["variants.mine.Mine"], home=home), prints(home, "gru")
    helper = own / ("tools/inner.py" if ".tools" in imports else "mathx.py")
    edit(helper, ("SCALE = 1.0", "SCALE = 0.5"))  # what the function it imports refers to
    assert code(["variants.mine.Mine"], home=home) != before
    assert prints(home, "gru") == gru
    edit(helper, ("SCALE = 0.5", "SCALE = 1.0  # a remark"))
    assert code(["variants.mine.Mine"], home=home) == before


def test_a_helper_that_is_no_python_is_named_and_one_in_latin_1_is_read(home: Path) -> None:
    (home / "variants/mine.py").write_text(CELL.format(imports="from .mathx import act", act="act", local=""))
    (home / "variants/mathx.py").write_bytes(b"# coding: latin-1\n" + ACT.encode() + "é = 1\n".encode("latin-1"))
    assert code(["variants.mine.Mine"], home=home)
    (home / "variants/mathx.py").write_text("def act(x:\n")
    with pytest.raises(ValueError, match=r"mathx\.py is not Python") as error:
        code(["variants.mine.Mine"], home=home)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("base", ["from .gru import GRU", "from variants.gru import GRU", "from . import gru"])
def test_what_a_cell_inherits_is_in_its_key(base: str, home: Path) -> None:
    name = "gru.GRU" if base.endswith("gru") else "GRU"
    (home / "variants/mine.py").write_text(f"{base}\n\nclass Mine({name}):\n    pass\n")
    before = code(["variants.mine.Mine"], home=home)
    edit(home / "variants/gru.py", ("(R * H)", "(H * R)"))
    after = code(["variants.mine.Mine"], home=home)
    assert after != before
    edit(home / "variants/cell.py", ("new_zeros", "new_ones"))
    assert code(["variants.mine.Mine"], home=home) not in (before, after)


def test_what_a_file_does_when_it_is_imported_is_in_the_key(home: Path) -> None:
    (home / "variants/setting.py").write_text("import torch\n\ntorch.set_default_dtype(torch.float32)\n")
    (home / "variants/mine.py").write_text(
        "import variants.setting\n" + CELL.format(imports="", act="X.tanh", local="")
    )
    before = code(["variants.mine.Mine"], home=home)
    edit(home / "variants/setting.py", ("torch.float32", "torch.float64"))
    assert code(["variants.mine.Mine"], home=home) != before


def test_a_helper_beside_a_cell_through_the_command_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "variants/mathx.py").write_text(ACT)
    (home / "variants/mine.py").write_text(CELL.format(imports="from .mathx import act", act="act", local=""))
    entry = registry.VariantInfo("mine", "Mine", (), "")
    monkeypatch.setattr("variants.fingerprint.catalog", lambda: {**registry.catalog(), "mine": entry})
    monkeypatch.setattr("variants.fingerprint.parse", lambda name: (name, {}))
    before = prints(home, "mine", "loop")
    edit(home / "variants/mathx.py", ("tanh", "relu"))
    assert prints(home, "mine", "loop") != before


def test_a_speed_is_told_again_where_the_code_that_times_was_edited(home: Path) -> None:
    before = code(planning.TIMED, planning.NO_NUMBERS, home)
    edit(home / "harness/report/drawing.py", ("import", "import os\nimport"))
    assert code(planning.TIMED, planning.NO_NUMBERS, home) == before
    edit(home / "harness/run/timing.py", ("BLOCK_S = 0.3, 0.25", "BLOCK_S = 0.3, 0.2"))
    assert code(planning.TIMED, planning.NO_NUMBERS, home) != before


def test_what_is_kept_of_a_trained_network_is_in_no_key(home: Path) -> None:
    before = prints(home, "gru", "loop")
    edit(home / "harness/run/network.py", ("EXCERPT = 600", "EXCERPT = 700"))
    edit(home / "variants/engines/derive.py", ("STATIC, INPUT, STATE = 0, 1, 2", "STATIC, INPUT, STATE = 0, 1, 3"))
    assert prints(home, "gru", "loop") == before
    edit(home / "harness/data/batches.py", ("STREAM, WARM, STREAMS = 256", "STREAM, WARM, STREAMS = 128"))
    assert prints(home, "gru", "loop") != before


def test_the_tokens_as_trained_on_are_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same file, cleaned in another way: another text."""
    data = b"The Time Machine, by H. G. Wells [1898]\n\n\nI\n\n\nThe Time Traveller (for so it will be)\n"

    def run() -> Run:
        text = loading._file(Path("made"), data, "lines")
        return planning.Plan("bench", ("gru",), protocols.protocol("quick"), 1, text, "cpu").run("gru", 0, "loop")

    before, cleaned = run(), corpus._codes
    monkeypatch.setattr(corpus, "_codes", lambda text: cleaned(text.replace("e", "a")))
    after = run()
    assert after.corpus_sha256 == before.corpus_sha256
    assert after.key != before.key
    assert corpus.NOTHING.tokens_sha256 == ""
