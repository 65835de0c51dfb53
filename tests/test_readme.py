"""What the README says can be typed works when it is typed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import made_up
import pytest
import torch

import harness
from harness import __main__ as command
from harness import record
from variants.cell import fix

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_cell_it_adds_is_a_cell() -> None:
    """Against a second writing: its equations, its gate, its parameters, its ablation."""
    (code,) = re.findall(r"```python\n(\"\"\"Minimal gated unit.*?)```", README, re.DOTALL)
    module: dict[str, Any] = {"__name__": "variants.mgu", "__package__": "variants"}
    exec(compile(code, "README.md", "exec"), module)  # the README's own text, in the repository
    mgu = module["MGU"]
    cell = mgu(28, 256)
    assert mgu.gates() == ["F"]
    assert sum(w.numel() for w in cell.parameters()) + 256 * 28 + 28 == 153_116
    for weight in cell.parameters():
        torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(weight.numel()))
    X, H = torch.randn(1, 2, 28), torch.randn(1, 2, 256)
    F = torch.sigmoid(X @ cell.W_xf + H @ cell.W_hf + cell.b_f)
    tilde = torch.tanh(X @ cell.W_xh + (F * H) @ cell.W_hh + cell.b_h)
    torch.testing.assert_close(cell.step(X, H), H + F * (tilde - H))
    assert set(dict(fix(mgu, (("F", 1.0),))(2, 3).named_parameters())) == {"W_xh", "W_hh", "b_h"}
    assert len(code.splitlines()) <= 27
    assert code == (Path(__file__).parent.parent / "variants" / "mgu.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("line", re.findall(r"python -m harness (.*)", README))
def test_command_lines_are_understood(line: str) -> None:
    options = command.parser().parse_args(line.split("#")[0].split())
    assert options.verb in command.VERBS


def test_files_it_names_are_the_files_there_are() -> None:
    named = set(re.findall(r"`(\w+)\.csv`", README))
    assert named == set(record.COLUMNS)


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_links_lead_somewhere(link: str) -> None:
    assert (Path(__file__).parent.parent / link).exists()


def test_the_files_are_read_as_it_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, figures = re.findall(r"```python\n(import harness\n.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no results folder results: make bench"):
        harness.read()
    made = made_up.write(tmp_path / "results")
    *before, last = code.strip().splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(before), names)  # the README's own text, in the repository
    table = eval(last, names)
    finished = harness.read(made).runs.dropna(subset=["heldout_perplexity"])
    assert table["count"].sum() == len(finished) > 100
    exec(figures, {})
    assert (tmp_path / "probes.pdf").read_bytes().startswith(b"%PDF")
    assert table["mean"]["gru"] == pytest.approx(finished[finished.variant == "gru"].heldout_perplexity.mean())
