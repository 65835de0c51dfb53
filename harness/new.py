"""Write a cell or task to begin with: `harness new cell NAME`, with its test by a scalar twin; `new task NAME`."""

from __future__ import annotations

import re
from pathlib import Path

from variants import registry

CELL = '''"""{title}: what it is, in one line.

    Z  = σ(X W_xz + H W_hz + b_z)             update: Z = 1 keeps the state
    H~ = tanh(X W_xh + H W_hh + b_h)          candidate
    H  = Z ⊙ H + (1 - Z) ⊙ H~
"""

from variants import Cell, Tensor, gate, sigmoid, tanh


class {cls}(Cell):
    weights = "W_xz W_hz b_z W_xh W_hh b_h"  # W_x* (d, h), W_h* (h, h), w_* and b_* (1, h)
    keeps = "b_z"  # the bias of the update gate

    @gate
    def Z(self, X: Tensor, H: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xz + H @ self.W_hz + self.b_z)

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        Z = self.Z(X, H)
        H_tilde = tanh(X @ self.W_xh + H @ self.W_hh + self.b_h)
        return Z * H + (1 - Z) * H_tilde
'''
TEST = '''"""{name}.py against its equations written once more, one number at a time. Run: pytest {test}"""

import math
from pathlib import Path

import harness  # finds `variants`
import pytest
import torch
import variants
from variants.outside import resolve

D, UNITS, STEPS = 3, 2, 4


def sigma(a):
    return 1 / (1 + math.exp(-a))


def product(x, W, j):
    return sum(x[i] * W[i][j] for i in range(len(x)))


def twin(w, x, h):
    """The state after one step: x of D numbers, h of UNITS."""
    new = []
    for j in range(UNITS):
        z = sigma(product(x, w["W_xz"], j) + product(h, w["W_hz"], j) + w["b_z"][0][j])
        candidate = math.tanh(product(x, w["W_xh"], j) + product(h, w["W_hh"], j) + w["b_h"][0][j])
        new.append(z * h[j] + (1 - z) * candidate)
    return new


def test_the_cell_is_its_equations():
    [name] = resolve([str(Path(__file__).parent / "{name}.py")])
    torch.manual_seed(0)
    cell = variants.get(name)(D, UNITS).double()  # checked for all that a cell has to keep
    for weight in cell.parameters():
        weight.data = torch.randn_like(weight)
    w = {{name: weight[0].tolist() for name, weight in cell.named_parameters()}}
    state, h = cell.begin(1), [0.0] * UNITS
    for X in torch.randn(STEPS, 1, 1, D, dtype=torch.float64):
        state = (cell.step(X, *state),)
        h = twin(w, X[0, 0].tolist(), h)
        assert state[0][0, 0].tolist() == pytest.approx(h, abs=1e-12)
'''


TASK = '''"""{title}: what it asks of a network, in one line."""

import numpy as np

from harness.experiments.tasks import task


# 3 symbols go in, 2 classes come out; lengths on a CPU and on a GPU; what a guess without memory scores
@task(3, 2, 20, 100, 0.5, "remembering the first symbol")
def {name}(length, n, rng):
    """Show 0 or 1, then noise that says nothing; ask at the end what was shown first."""
    inputs = rng.integers(0, 2, size=(length, n))  # (T, n) symbols, or (T, n, d) numbers; of `rng` alone
    inputs[-1] = 2  # asks
    answers = np.zeros((length, n), dtype=int)  # (T, n) classes, or numbers where there is one output
    answers[-1] = inputs[0]
    counts = np.zeros((length, n), dtype=bool)  # the steps that are asked and scored
    counts[-1] = True
    return inputs, answers, counts
'''


def write_task(name: str, folder: Path) -> Path:
    """NAME.py in `folder`. ValueError for a name that cannot be, is taken, or is there already."""
    from harness.experiments.tasks import TASKS

    if not re.fullmatch(r"[a-z]\w*", name) or not name.isascii():
        raise ValueError(f"a task's file is named like my_task, in small letters, digits and _, not {name!r}")
    path = folder / f"{name}.py"
    if name in TASKS or path.exists():
        raise ValueError(f"{name!r} is {'a task already' if name in TASKS else 'here already'}: nothing is written")
    path.write_text(TASK.format(name=name, title=name), encoding="utf-8")
    return path


def write(name: str, folder: Path) -> list[Path]:
    """NAME.py and test_NAME.py in `folder`. ValueError for a name that cannot be, is taken, or is there already."""
    if not re.fullmatch(r"[a-z]\w*", name) or not name.isascii():
        raise ValueError(f"a cell's file is named like my_cell, in small letters, digits and _, not {name!r}")
    if name in registry.written():
        raise ValueError(f"{name!r} is a cell already, variants/{registry.written()[name].file}.py: take another name")
    paths = {folder / f"{name}.py": CELL, folder / f"test_{name}.py": TEST}
    if there := [path.name for path in paths if path.exists()]:
        raise ValueError(f"{' and '.join(there)} lies here already: nothing is written")
    cls = "".join(word[:1].upper() + word[1:] for word in name.split("_"))
    for path, text in paths.items():
        said = text.format(name=name, cls=cls, title=name, test=f"test_{name}.py")
        path.write_text(said, encoding="utf-8")
    return list(paths)
