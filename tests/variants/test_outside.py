"""Cells that lie elsewhere: found, named, keyed by what they import, and refused in one line."""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import variants
from harness.run.process import command
from variants import outside, registry
from variants.fingerprint import HOME, _Walk, fingerprint

pytestmark = pytest.mark.usefixtures("elsewhere")
CELL = """\
from variants import Cell, Tensor, gate, sigmoid, tanh


class Mine(Cell):
    weights = "W_xz W_hz b_z W_xh W_hh b_h"

    @gate
    def Z(self, X: Tensor, H: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xz + H @ self.W_hz + self.b_z)

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        Z = self.Z(X, H)
        return Z * H + (1 - Z) * tanh(X @ self.W_xh + H @ self.W_hh + self.b_h)
"""


def write(path: str, text: str = CELL) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")


def refused(*words: str) -> str:
    with pytest.raises(ValueError, match=r".") as said:
        outside.resolve(words)
    assert "\n" not in str(said.value)
    return str(said.value)


# ---- found, by every spelling ----


def test_a_file_is_its_cell_and_the_cell_is_known_by_name_too() -> None:
    write("cells/mine.py")
    asked = ["gru", "cells/mine.py", "mine:Z=1.0", "./cells/mine.py:Z=0", "cells/mine.py:Mine:Z=.5", "cells/mine.py"]
    assert outside.resolve(asked) == ("gru", "mine", "mine:Z=1", "mine:Z=0", "mine:Z=0.5")
    assert registry.catalog()["mine"].gates == ("Z",)
    assert variants.get("mine:Z=0").absent == {"W_xz", "W_hz", "b_z"}
    refusals = variants.refusals("mine")
    assert not any(refusals[engine] for engine in ("native", "fused", "loop"))


def test_every_cell_of_a_file_by_its_own_name_bases_left_out() -> None:
    more = '\n\nclass Other(Mine):\n    name = "other"\n\n\nclass Third(Mine):\n    name = "third"\n'
    write("mine.py", CELL + more)
    assert outside.resolve(["./mine.py"]) == ("other", "third")  # Mine is what they build on
    assert outside.resolve(["./mine.py:Mine"]) == ("mine",)
    assert "say which, like ./mine.py:Other:Z=1" in refused("./mine.py:Z=1")


def test_a_class_of_a_package_which_its_key_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("site-packages/acme/__init__.py", "from acme.cells import Mine\n")
    write("site-packages/acme/sums.py", "def half(x):\n    return x / 2\n")
    write(
        "site-packages/acme/cells.py",
        "from acme.sums import half\n" + CELL.replace("return Z * H", "return half(Z) * H"),
    )
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    assert outside.resolve(["acme.cells:Mine:Z=1"]) == ("cells:Z=1",)
    before = fingerprint("cells")
    write("site-packages/acme/sums.py", "def half(x):\n    return x / 3\n")
    outside.resolve(["acme.cells:Mine"])
    assert fingerprint("cells") != before
    assert outside.resolve(["acme:Mine"]) == ("acme",)
    for name in ("acme", "acme.cells", "acme.sums"):
        sys.modules.pop(name)


def test_an_entry_point_is_a_variant_and_one_of_a_taken_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("there/acme_cells.py")
    info = "there/acme-1.0.dist-info"
    write(f"{info}/METADATA", "Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    write(
        f"{info}/entry_points.txt",
        f"[{outside.GROUP}]\nhighway = acme_cells:Mine\nmgu = acme_cells:Mine\nno = nothing:A\n",
    )
    monkeypatch.syspath_prepend(tmp_path / "there")
    importlib.invalidate_caches()
    assert outside.resolve(["highway:Z=1", "gru"]) == ("highway:Z=1", "gru")
    assert "two cells are called 'mgu': Mine of" in refused("mgu")
    assert "variants/mgu.py" in refused("mgu")
    assert "No module named 'nothing'" in refused("no")
    sys.modules.pop("acme_cells")


def test_another_process_finds_it_and_a_file_edited_since_is_read_anew() -> None:
    write("mine.py")
    outside.resolve(["mine.py"])
    code = "import variants; print(variants.get('mine:Z=1').absent, list(variants.refusals('mine')))"
    done = subprocess.run(command(code), capture_output=True, text=True, cwd="/")
    assert "W_xz" in done.stdout, done.stderr
    write("mine.py", CELL.replace("def Z", "def U").replace("self.Z", "self.U"))
    outside.resolve(["mine.py"])
    assert registry.catalog()["mine"].gates == ("U",) == tuple(variants.get("mine").gates())


# ---- its key ----


def key(text: str = CELL) -> str:
    write("keyed/mine.py", text)
    outside.resolve(["keyed/mine.py"])
    return fingerprint("mine", "loop")


def test_a_key_is_of_its_equations_and_of_what_lies_beside_it_that_it_imports() -> None:
    first = key()
    assert key('"""Another text."""\n' + CELL.replace("Mine", "Renamed").replace("    Z = ", "    gate_of = ").replace(
        "Z * H + (1 - Z)", "gate_of * H + (1 - gate_of)")) == first  # fmt: skip
    assert key(CELL.replace("1 - Z", "0.5 - Z")) != first
    for line in ("from helpers import scale", "from .helpers import scale", "import helpers; scale = helpers.scale"):
        write("keyed/helpers.py", "def scale(x):\n    return 2 * x\n")
        text = line + "\n" + CELL.replace("tanh(X", "scale(X")
        once = key(text)
        write("keyed/other.py", "nobody = 'imports this'\n")
        assert key(text) == once
        write("keyed/helpers.py", "def scale(x):\n    return 3 * x\n")
        assert key(text) != once, line


def test_a_folder_called_variants_beside_a_cell_is_not_what_it_is_written_with() -> None:
    first = key()
    write("keyed/variants/__init__.py", "gate = 1\n")
    write("keyed/variants/cell.py", "class Cell:\n    pass\n")
    write("variants/__init__.py", "gate = 1\n")
    assert key() == first
    reached = {path.name for path in _reached()}
    assert reached >= {"mine.py", "cell.py"}
    assert not any("keyed/variants" in str(path) for path in _reached())


def _reached() -> set[Path]:
    walk = _Walk(HOME, (), [(Path("keyed/mine.py").resolve(), "Mine")])
    list(walk.said())
    return set(walk.reached)


# ---- refused, in one line ----


def test_what_is_no_cell_is_refused_with_what_to_do(tmp_path: Path) -> None:
    write("empty.py", "")
    write("broken.py", "def f(:\n")
    write("raises.py", "1 / 0\n")
    write("quits.py", "raise SystemExit(3)\n")
    write("copied.py", (registry.HERE / "gru.py").read_text(encoding="utf-8"))
    write("double.py", "import torch\ntorch.set_default_dtype(torch.float64)\n" + CELL)
    write("my cell.py")
    write("number.py", CELL.replace("    weights", "    name = 3\n    weights"))
    write("notes.txt")
    write("latin.py")
    Path("latin.py").write_bytes(CELL.encode() + b"x = '\xff'\n")
    Path("folder.py").mkdir()
    for words, why in {
        "./none.py": "no file './none.py'", "./folder.py": "it is a folder", "./notes.txt": "is no Python file",
        "./": "is a folder", "./empty.py": "has no cell: write a class that inherits from Cell",
        "./broken.py": "cannot be imported: invalid syntax (line 1)", "./raises.py": "ZeroDivisionError",
        "./quits.py": "SystemExit", "./copied.py": "from variants import Cell, gate",
        "./double.py": "default dtype", "./my cell.py": "names its cell 'my cell'",
        "./number.py": "is text, not 3", "./latin.py": "cannot be imported", "json:JSONDecoder": "that is a Cell",
        "acme.cells:Mine": "No module named 'acme'", "gur:Z": "no variant 'gur'. Did you mean", "nope": "./FILE.py",
        "./my cell.py:Mine": "names its cell",
    }.items():  # fmt: skip
        assert why in refused("gru", words), words
    write("mine.py")
    assert "has no class 'R' that is a Cell: it has Mine" in refused("mine.py:R")
    assert "no gate 'R'" in refused("mine.py:R=1")
    assert "from 0 to 1" in refused("mine.py:Z=2")
    assert not list(tmp_path.rglob("__pycache__"))


def test_a_name_that_collides_is_refused_with_both_places() -> None:
    write("gru.py")
    assert f"Mine of {Path('gru.py').resolve()} and GRU of variants/gru.py" in refused("./gru.py")
    write("a/mine.py")
    write("b/mine.py")
    said = refused("a/mine.py", "b/mine.py")
    assert str(Path("a/mine.py").resolve()) in said
    assert str(Path("b/mine.py").resolve()) in said
    write("two.py", CELL + CELL.split("\n\n\n")[1].join(["\n\n", ""]).replace("Mine", "Other"))
    assert "two cells are called 'two': Mine and Other" in refused("./two.py")
    assert outside.resolve(["b/mine.py"]) == outside.resolve(["a/mine.py"]) == ("mine",)  # asked for one by one
    os.symlink("a/mine.py", "link.py")
    assert outside.resolve(["link.py", "a/mine.py"]) == ("mine",)


def test_helpers_of_one_name_in_two_folders_are_not_mixed_up() -> None:
    for where in ("a", "b"):
        write(f"{where}/cell_{where}.py", "import helpers\n" + CELL)
        write(f"{where}/helpers.py", f"here = {where!r}\n")
    said = refused("a/cell_a.py", "b/cell_b.py")
    assert str(Path("b/helpers.py").resolve()) in said
    assert str(Path("a/helpers.py").resolve()) in said
    for where in ("a", "b"):
        write(f"{where}/cell_{where}.py", "from .helpers import here\n" + CELL)
    assert outside.resolve(["a/cell_a.py", "b/cell_b.py"]) == ("cell_a", "cell_b")


def test_what_breaks_a_cells_contract_is_said_with_its_place() -> None:
    write("mine.py", CELL.replace("W_xz ", "Q_xz ").replace("self.W_xz", "self.Q_xz"))
    outside.resolve(["mine.py"])
    with pytest.raises(ValueError, match=r"mine\.py cannot be used: its shape cannot be told from 'Q_xz'"):
        variants.get("mine")
    with contextlib.suppress(FileNotFoundError):
        os.remove("mine.py")


# ---- a cell to begin with ----


def test_new_cell_writes_a_cell_and_its_twin_that_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from harness.__main__ import main

    assert main(["new", "cell", "my_cell"]) == 0
    assert outside.resolve(["my_cell.py"]) == ("my_cell",)
    assert registry.catalog()["my_cell"].about.startswith("my_cell: ")
    code = compile(Path("test_my_cell.py").read_text(encoding="utf-8"), "test_my_cell.py", "exec")
    space = {"__file__": str(tmp_path / "test_my_cell.py"), "__name__": "test_my_cell"}
    exec(code, space)
    space["test_the_cell_is_its_equations"]()  # type: ignore[operator]
    write("my_cell.py", Path("my_cell.py").read_text(encoding="utf-8").replace("(1 - Z) *", "(1 - Z * Z) *"))
    with pytest.raises(AssertionError):
        space["test_the_cell_is_its_equations"]()  # type: ignore[operator]
    capsys.readouterr()
    for words, why in {
        ("cell", "my_cell"): "lies here already: nothing is written", ("cell", "gru"): "is a cell already",
        ("cell", "My-Cell"): "is named like my_cell", ("cell",): "new takes", ("text", "a"): "new takes",
        (): "new takes", ("cell", "a", "b"): "new takes", ("cell", "../a"): "is named like",
    }.items():  # fmt: skip
        assert main(["new", *words]) == 2
        assert why in capsys.readouterr().err
    assert not Path("gru.py").exists()
