"""What the README and docs/ say can be typed works when it is typed, and every figure in them is its file's."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import synthetic
import torch

import harness
from docs import splice
from harness import __main__ as command
from harness.options import VERBS
from harness.record.schema import COLUMNS
from variants.cell import fix

ROOT = Path(__file__).parent.parent
DOCUMENTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in splice.documents()}
README = DOCUMENTS["README.md"]
WRITTEN = {name: text for name, text in DOCUMENTS.items() if name not in ("docs/licenses.md", "Makefile")}


def test_the_cell_it_adds_is_a_cell() -> None:
    """Against a second writing: its equations, its gate, its parameters, its ablation."""
    (code,) = re.findall(r"```python\n(\"\"\"Minimal gated unit.*?)```", DOCUMENTS["docs/cells.md"], re.DOTALL)
    module: dict[str, Any] = {"__name__": "variants.mgu", "__package__": "variants"}
    exec(compile(code, "cells.md", "exec"), module)  # the document's own text, in the repository
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


@pytest.mark.parametrize("line", re.findall(r"^    python -m harness (.*)", "\n".join(WRITTEN.values()), re.MULTILINE))
def test_command_lines_are_understood(line: str) -> None:
    options = command.parser().read(line.split("#")[0].split())
    assert options.verb in VERBS


def test_files_it_names_are_the_files_there_are() -> None:
    named = set(re.findall(r"`(\w+)\.csv`", DOCUMENTS["docs/files.md"].split("## Columns")[0]))
    assert named == set(COLUMNS)


@pytest.mark.parametrize(
    ("name", "link"),
    [(name, link) for name, text in WRITTEN.items() for link in re.findall(r"\]\((?!http)([^)#]+)", text)],
)
def test_links_lead_somewhere(name: str, link: str) -> None:
    assert ((ROOT / name).parent / link).exists()


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 110
    assert len(README.split()) <= 900


@pytest.mark.parametrize("name", WRITTEN)
def test_no_figure_is_stale(name: str) -> None:
    assert splice.spliced(WRITTEN[name]) == WRITTEN[name], "make docs writes it anew"


def test_make_help_says_what_the_command_line_says() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert splice.helped(makefile) == makefile, "make docs writes it anew"
    assert splice.helped("# make bench  old\n# make test  every check") != "# make bench  old\n# make test  every check"


# Figures that nothing on file makes: versions, levels that were chosen, what was tried by hand with its date beside it.
BY_HAND = {"docs/cluster.md", "docs/maintenance.md"}
CHOSEN = ("Python 3.11", "95 %", "95%", "0.01 is about 1 %")


@pytest.mark.parametrize("name", [name for name in WRITTEN if name not in BY_HAND])
def test_no_measured_figure_stands_outside_what_is_spliced(name: str) -> None:
    prose = re.sub(
        r"```.*?```|`[^`\n]*`|^    .*$", "", splice.BLOCK.sub("", WRITTEN[name]), flags=re.DOTALL | re.MULTILINE
    )
    for chosen in CHOSEN:
        prose = prose.replace(chosen, "")
    assert re.findall(r"\d[\d,]*\.\d+|\d+ ?%|(?<!\])\[\d|n = \d+", prose) == []


def test_a_figure_that_changes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    data = splice.results("evidence")
    moved = data.ablate.assign(heldout_perplexity=data.ablate.heldout_perplexity * 1.01)
    monkeypatch.setattr(splice, "results", lambda folder: dataclasses.replace(data, ablate=moved))
    assert splice.spliced(README) != README
    with pytest.raises(ValueError, match=r"no block 'mian'\. Did you mean 'main'"):
        splice.spliced("<!-- splice mian -->\n<!-- end -->")


def test_every_folder_of_results_is_described() -> None:
    there = {path.name for path in splice.REFERENCE.iterdir() if (path / "runs.csv").exists()}
    assert there <= set(re.findall(r"\[([\w-]+)\]\(\.\./results/reference/", DOCUMENTS["docs/results.md"]))


def test_the_files_are_read_as_it_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, figures = re.findall(r"```python\n(import harness\n.*?)```", README, re.DOTALL)
    (means,) = re.findall(r"```python\n(import harness\n.*?)```", DOCUMENTS["docs/files.md"], re.DOTALL)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no results folder results: make bench"):
        harness.read()
    made = synthetic.write(tmp_path / "results", seeds=3, bench=("gru", "rnn"), ablate=("gru", "gru:R=1"))
    runs = pd.read_csv(made / "runs.csv")
    other = runs.assign(protocol="book,lr=16", heldout_perplexity=2.7e17, run="x" + runs.run)  # no mean is over both
    pd.concat([runs, other]).to_csv(made / "runs.csv", index=False)
    answers = []
    for code in (table, means):
        *before, last = code.strip().splitlines()
        names: dict[str, Any] = {}
        exec("\n".join(before), names)  # the document's own text, in the repository
        answers.append(eval(last, names))
    assert list(answers[0].variant) == ["gru", "gru:R=1"]
    finished = runs.dropna(subset=["heldout_perplexity"])
    assert answers[1]["count"].sum() == len(finished)
    assert answers[1]["max"].max() < 1e3
    exec(figures, {})
    assert (tmp_path / "tasks.pdf").read_bytes().startswith(b"%PDF")


def test_a_new_file_trains_over_twice_as_fast_as_jax() -> None:
    """Figures in words are of a file too: every cell and size of peers.csv, the cell of a newcomer among them."""
    peers = pd.read_csv(ROOT / "results/reference/peers/peers.csv")
    times = peers[peers.threads == 1].pivot_table("times_nn", ["size", "cell"], "peer")
    ratios = (times["native"] / times["jax lax.scan"]).dropna()
    assert "A new file trains over twice as fast as JAX" in README
    assert {size for size, cell in ratios.index if cell == "newcomer"} == {"quick", "classic", "book"}
    assert ratios.min() > 2
