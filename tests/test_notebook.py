"""What is yours: a call instead of a command, a class as a variant, a protocol in a file."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import harness
from harness import notebook, options, pipeline, plan
from harness.data import batches, load
from harness.experiments import protocols
from harness.record import store
from harness.report import select
from harness.report.sections import comparison, laboratory, methods
from harness.run import evaluate
from variants import outside

pytestmark = pytest.mark.usefixtures("elsewhere")
ROOT = Path(__file__).parent.parent
SMALL = {"train_characters": 300, "heldout_characters": 100, "batch_size": 4, "num_steps": 5, "hidden": 4, "epochs": 2}
HERE = {"corpus": "embedded", "device": "cpu", "no_timing": True, "set": SMALL}
SCRIPT = '''
import math
import torch
import harness
from variants import Cell, Tensor, gate, sigmoid, tanh

print("the script runs")
SCALE = 0.5

def squash(x: Tensor) -> Tensor:
    return tanh(SCALE * x) / math.sqrt(2)

class MyOwnGRU(Cell):
    """From a script."""

    weights = "W_xz W_hz b_z W_xh W_hh b_h"

    @gate
    def Z(self, X: Tensor, H: Tensor) -> Tensor:
        return sigmoid(X @ self.W_xz + H @ self.W_hz + self.b_z)

    def step(self, X: Tensor, H: Tensor) -> Tensor:
        Z = self.Z(X, H)
        return Z * H + (1 - Z) * squash(torch.add(X @ self.W_xh, H @ self.W_hh) + self.b_h)

'''


def test_options_are_those_of_the_command_line() -> None:
    taken = {name for verb in ("bench", "ablate", "probe") for name in options.TAKES[verb]}
    assert set(harness.Options.__annotations__) == taken - {"settings", "variants"} | {"set"}
    words = notebook.arguments("ablate", ["gru"], {"seeds": 3, "no_timing": True, "deterministic": False,
                                                   "set": {"epochs": 2, "hidden": [4, 8]}, "engine": None})  # fmt: skip
    assert words == ["ablate", "--seeds=3", "--no-timing", "--set", "epochs=2", "hidden=4,8", "--variants", "gru"]
    asked = options.parser().read(words)
    assert (asked.seeds, asked.variants, asked.no_timing) == ("3", ["gru"], True)


def test_what_cannot_be_asked_is_one_line() -> None:
    for call, why in (
        (lambda: harness.bench("gru", seed=3), "no option of bench 'seed'. Did you mean 'seeds'?"),  # type: ignore[call-arg]
        (lambda: harness.bench("gur"), "Did you mean"),
        (lambda: harness.bench("gru", tasks=["copy"]), "no option of bench 'tasks'"),
        (lambda: harness.bench(3), "a variant is a name, a file or a class, not int"),  # type: ignore[arg-type]
        (lambda: harness.ablate("rnn", gates=["Z"]), "has no gate"),
        (lambda: harness.bench("gru", seeds=0), "from 1 to 10,000"),
    ):
        with pytest.raises(ValueError, match=r".") as said:
            call()  # type: ignore[no-untyped-call]
        assert why in str(said.value)
        assert "\n" not in str(said.value)


def test_an_ablation_gives_its_tables_and_shows_them(in_process: None, capsys: pytest.CaptureFixture[str]) -> None:
    r = harness.ablate("gru", gates=["R"], values=[1], seeds=2, results="out", **HERE)  # type: ignore[arg-type]
    assert list(r.table.variant) == ["gru", "gru:R=1"]
    assert r.table is r.ablate
    assert len(r.runs) == 4
    assert len(r.failures) == 0
    assert "<td>gru:R=1</td>" in r._repr_html_()
    assert harness.read("out").table.equals(r.table)
    paper = r.ablate.to_markdown().splitlines()
    assert paper[0] == "| variant | parameters | held-out perplexity [95%, n = 2] | nats/char vs gru [95%] | verdict |"
    assert [line.split(" | ")[0] for line in paper[2:]] == ["| gru", "| gru:R=1"]
    assert "nan" not in r.ablate.to_markdown()
    latex = r.ablate.assign(variant=["gru_after", "gru:R=1"])
    assert type(latex) is pd.DataFrame  # a plain one
    written = notebook.Answer(latex).to_latex()
    assert r"gru\_after & " in written
    assert r"perplexity [95\%, n = 2]" in written
    assert written.count(r"\\") == 3
    assert r.ablate._repr_html_().count("<th>") == 5
    again = harness.ablate("gru", gates=["R"], values=[1], seeds=2, results="out", **HERE)  # type: ignore[arg-type]
    assert "4 done already" in capsys.readouterr().out
    assert again.table.equals(r.table)


def test_an_interrupt_keeps_what_is_done(
    in_process: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, count = store.write_run, iter(range(9))

    def stops(*words: object) -> None:
        if next(count) == 2:
            raise KeyboardInterrupt
        write(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "write_run", stops)
    with pytest.raises(KeyboardInterrupt):
        harness.bench("gru", "rnn", seeds=2, results="out", **HERE)  # type: ignore[arg-type]
    assert "the same call goes on" in capsys.readouterr().err
    assert len(harness.read("out").runs) == 2
    assert len(harness.bench("gru", "rnn", seeds=2, results="out", **HERE).runs) == 4  # type: ignore[arg-type]


def test_a_class_of_an_unguarded_script_is_trained_and_the_script_runs_once(tmp_path: Path) -> None:
    call = (
        'r = harness.bench("gru", MyOwnGRU, seeds=1, corpus="embedded", device="cpu", no_timing=True, results="out",\n'
        f"                  set={SMALL!r})\n"
        "print(list(r.table.variant), len(r.failures), sorted(r.figures)[0])\n"
    )
    (tmp_path / "script.py").write_text(SCRIPT + call, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the script runs") == 1
    assert done.stdout.splitlines()[-1] == "['gru', 'my_own_gru'] 0 bench-curves"
    assert outside.resolve(["out/cells/my_own_gru.py:MyOwnGRU"]) == ("my_own_gru",)  # and again by its file


def test_a_class_that_cannot_be_written_to_a_file_is_refused_with_what_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = type(sys)("typed")
    exec(compile("import torch\nfrom variants import Cell\nTABLE = torch.ones(2)\n\nclass A(Cell):\n"
                 "    def step(self, X, H):\n        return H + TABLE\n", "<typed>", "exec"), vars(module))  # fmt: skip
    with pytest.raises(ValueError, match="the source of A cannot be found"):
        notebook.standalone(module.A, module)
    lines = ["class A(Cell):\n", "    def step(self, X, H):\n", "        return H + TABLE\n"]
    monkeypatch.setattr(notebook.linecache, "getlines", lambda file: lines)  # type: ignore[attr-defined]
    module.A.__module__ = "typed"
    with pytest.raises(ValueError, match=r"uses 'TABLE', of type Tensor, which cannot be written"):
        notebook.standalone(module.A, module)


# ---- a protocol of one's own ----------------------------------------------------------------------


def planned(protocol: str, *settings: str) -> plan.Plan:
    words = ["bench", "--protocol", protocol, "--corpus", "embedded", "--device", "cpu", "--variants", "rnn"]
    return plan.planned("bench", options.parser().read([*words, *(f"--set={s}" for s in settings)]))


def test_a_protocol_of_ones_own_says_what_it_is_in_its_label(tmp_path: Path) -> None:
    text = 'base = "quick"\ntrain_characters = 300\nheldout_characters = 100\nbatch_size = 4\nhidden = 4\nlr = 0.5\n'
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    mine = planned("./mine.toml").protocol
    assert (mine.name, mine.hidden, mine.lr, mine.num_steps) == ("mine", 4, 0.5, protocols.protocol("quick").num_steps)
    assert mine.label.startswith("mine,train_characters=300,")
    assert "hidden=4" in mine.label
    assert planned("./mine.toml", "hidden=5").protocol.label != mine.label
    (tmp_path / "mine.toml").write_text(text.replace("0.5", "0.25"), encoding="utf-8")
    assert planned("./mine.toml").protocol.label != mine.label  # edited: other runs, another label


def test_words_with_an_embedding_have_both_measures_and_a_page_and_their_weights_are_read_again(
    in_process: None, tmp_path: Path
) -> None:
    """Bits per character are of all tokens, characters too; the page leaves its laboratory out and says why."""
    (tmp_path / "a.txt").write_text("The cat sat. A dog, a cat; the DOG ran! " * 40, encoding="utf-8")
    how = {**SMALL, "train_characters": 900, "layers": 2, "tokens": "words", "case": "lower", "embedding": 3}
    asked: dict[str, Any] = {"variants": ["gru", "nn.gru"], "seeds": 2, "corpus": "a.txt", "no_timing": True}
    words = harness.bench(**asked, set={**how, "max_vocabulary": 5})
    letters = harness.bench(**asked, set={**SMALL, "text": "spaces"}, results="letters")
    nats, length = (words.bench[c].to_numpy() for c in ("heldout_perplexity", "characters_per_token"))
    assert words.bench.bits_per_character.to_numpy() == pytest.approx(np.log2(nats) / length)
    assert length == pytest.approx(49 / 17)
    assert letters.bench.bits_per_character.to_numpy() == pytest.approx(np.log2(letters.bench.heldout_perplexity))
    assert words.protocols.loc[0, ["tokens", "case", "punctuation", "embedding"]].tolist() == [
        "words",
        "lower",
        "own",
        3,
    ]
    assert words.bench.unknown_share[0] > 0.2
    data, other = select.typed(words), select.typed(letters)
    lab, why = laboratory.data(data, store.networks(tmp_path / "results"))
    assert not lab
    assert "gru (it reads words, and the page is typed into by characters)" in why
    parts = f"{comparison.section(data, 'bench')}{methods.setting(data, data.bench)}{methods.methods(data)}"
    for said in ("nats/word", "bits per character", "3 trained numbers", "case is lowered", "5 most", "loss a word"):
        assert said in parts
    assert "('bits per character', " not in f"{comparison.section(other, 'bench')}"
    for name in ("gru", "nn.gru"):
        model: Any = harness.load_weights("results", name, seed=0)
        text = load.load("a.txt", unit="words", case="lower", most=5)
        assert model.vocabulary == text.vocabulary
        protocol = store.as_run(next(iter(store.runs(tmp_path / "results")))[2]["run"]).setting
        model.unknown_nats = text.unknown_nats
        held = batches.arrange(text, protocol, 1, "cpu")
        found = float(evaluate.score(model, held.heldout, protocol)[0].exp())
        runs = words.runs.set_index(["variant", "seed"])
        assert found == pytest.approx(runs.heldout_perplexity[name, 0], rel=1e-5)


def test_a_protocol_file_that_is_none_is_one_line_that_names_it(tmp_path: Path) -> None:
    for text, why in {
        "epochs = ": "Invalid value", "epoch = 3": "Did you mean 'epochs'?", "epochs = [1, 2]": "is a number or a text",
        "epochs = true": "not True", 'base = "qick"': "Did you mean 'quick'?", 'name = "quick"': "that is none of",
        "name = 3": "its name is 3", "epochs = -1": "above 0", 'task = "copy"': "no protocol field 'task'",
        "[a]\nb = 1": "a number or a text", 'init = "own"\nepochs = 1.5': "a whole number",
    }.items():  # fmt: skip
        (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"\./mine\.toml: ") as said:
            planned("./mine.toml")
        assert why in str(said.value), text
    with pytest.raises(ValueError, match=r"no file './none\.toml': a protocol is classic"):
        planned("./none.toml")
    (tmp_path / "latin.toml").write_bytes(b"name = '\xff'\n")
    with pytest.raises(ValueError, match=r"latin\.toml: "):
        planned("latin.toml")


def test_pipeline_is_what_both_call(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness import __main__ as command

    asked: list[dict[str, object]] = []

    def keep(one: argparse.Namespace) -> int:
        asked.append(vars(one))
        return 0

    monkeypatch.setattr(pipeline, "run", keep)
    monkeypatch.setattr(notebook, "read", lambda *words: None)
    assert command.main(["bench", "--variants", "gru", "--seeds=3", "--set", "epochs=2", "--results", "out"]) == 0
    harness.bench("gru", seeds=3, set={"epochs": 2}, results="out")
    assert asked[0] | {"given": 0} == asked[1] | {"given": 0}


# ---- the documents, as they stand ------------------------------------------------------------------


def blocks(name: str, language: str) -> list[str]:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_notebook_of_the_docs_runs(in_process: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script_of_docs = "".join(blocks("notebook.md", "python"))
    script = tmp_path / "typed.py"
    script.write_text(script_of_docs, encoding="utf-8")
    module = type(sys)("typed_in_a_notebook")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(script.read_text(encoding="utf-8"), str(script), "exec"), vars(module))
    assert list(module.r.table.variant) == ["gru", "gru:R=0", "gru:R=1", "gru:Z=0", "gru:Z=1"]
    assert set(module.s.bench.variant) == {"gru", "leaky"}
    assert not len(module.s.failures)
    assert (tmp_path / "out" / "cells" / "leaky.py").exists()


def test_the_commands_of_the_docs_are_what_they_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from harness.__main__ import main

    [toml] = blocks("cells.md", "toml")
    (tmp_path / "mine.toml").write_text(toml, encoding="utf-8")
    lines = [line for block in blocks("cells.md", "sh") for line in block.splitlines()]
    assert main(lines[0].removeprefix("python -m harness ").split()) == 0
    for line in lines[2:]:
        asked = options.parser().read(line.removeprefix("python -m harness ").split())
        made = plan.planned(asked.verb, asked)
        assert made.variants in (("gru", "my_cell", "my_cell:Z=0"), ("gru", "gru:R=1"))
    assert made.protocol.label.startswith("mine,")


def test_an_ablation_of_ones_own_cell_is_against_it_and_its_command_names_its_file(
    in_process: None, tmp_path: Path
) -> None:
    from harness.new import write

    write("mine", Path())
    r = harness.ablate("./mine.py", gates=["Z"], values=[0], seeds=2, results="out", **HERE)  # type: ignore[arg-type]
    assert list(r.table.variant) == ["mine", "mine:Z=0"]
    assert list(r.table.baseline.fillna("")) == ["", "mine"]
    place = r.table.cell.iloc[0]
    assert place.startswith("./mine.py:")
    command = methods.command("ablate", r.table.iloc[1])
    assert command.endswith(f"--variants {place} {place}:Z=0")
    asked = options.parser().read(command.split()[3:])
    assert outside.resolve(asked.variants) == ("mine", "mine:Z=0")
    assert outside.placed("gru") == ""


def test_two_packages_that_offer_one_name_are_refused_with_both(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    points = [EntryPoint("mine", f"{package}.cells:Mine", outside.GROUP) for package in ("one", "two")]
    monkeypatch.setattr(outside.importlib.metadata, "entry_points", lambda group: points)  # type: ignore[attr-defined]
    outside._entry_points.cache_clear()
    with pytest.raises(ValueError, match=r"two cells are called 'mine': one.cells:Mine of .* and two.cells:Mine of"):
        outside.resolve(["mine"])
    outside._entry_points.cache_clear()


# ---- three users, each from `pip install` of a wheel, in another folder

FEW = ["--corpus", "embedded", "--device", "cpu", "--no-timing", "--seeds", "1", "--set",
       *(f"{name}={value}" for name, value in SMALL.items())]  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment in which the wheel alone is installed; what it needs is where tests have it."""
    if not os.environ.get("STORIES"):
        pytest.skip("three users' minutes: .ci/run has them, or STORIES=1")
    folder = tmp_path_factory.mktemp("installed")
    source, wheels, home = folder / "source", folder / "wheels", folder / "venv"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("harness", "variants"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    built = subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(wheels), "."],
                           cwd=source, capture_output=True, text=True, timeout=120)  # fmt: skip
    if built.returncode:
        pytest.skip(f"no wheel can be built here: {(built.stderr.strip().splitlines() or ['no word why'])[-1]}")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True, timeout=120)
    [site] = home.glob("lib/python*/site-packages")
    (site / "needed.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")), encoding="utf-8")
    [wheel] = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.endswith(".py")}
    for part in ("timemachine.txt.gz", "native.c", "report.html.jinja", "page.css", "page.js", "LICENSE"):
        assert any(name.endswith(part) for name in held), part
    subprocess.run([*pip, "--python", str(home / "bin" / "python"), "install", "--no-deps", "--no-index", str(wheel)],
                   check=True, timeout=120)  # fmt: skip
    return home / "bin"


def _run(installed: Path, *words: str) -> tuple[int, str]:
    """Run a program where the test stands, without what the tests' own environment says of Python."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run([str(installed / words[0]), *words[1:]], capture_output=True, text=True, timeout=300, env=own)
    return done.returncode, done.stdout + done.stderr


def test_a_student_benches_and_reads_the_answer_beside_folders_of_our_names(installed: Path, tmp_path: Path) -> None:
    for name in ("harness", "variants"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('not mine')", encoding="utf-8")
    status, said = _run(installed, "gru-bench", "bench", "--variants", "rnn", "gru", *FEW)
    assert status == 0, said
    assert "report: results/report.html" in said
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "read.py").write_text(
        "import harness\nr = harness.read('results')\n"
        "print(harness.__file__, list(r.bench.variant), r.bench.seeds.min(), r.bench.to_markdown())\n",
        encoding="utf-8",
    )
    status, said = _run(installed, "python", "elsewhere/read.py")
    assert status == 0, said
    assert str(installed.parent) in said
    assert "['rnn', 'gru'] 1 | variant |" in said


def test_a_researcher_ablates_a_cell_and_compares_in_a_script_without_a_guard(installed: Path, tmp_path: Path) -> None:
    assert _run(installed, "gru-bench", "new", "cell", "my_cell")[0] == 0
    (tmp_path / "script.py").write_text(
        "import harness\nprint('once')\n"
        f"how = dict(corpus='embedded', device='cpu', no_timing=True, seeds=2, set={SMALL!r})\n"
        "r = harness.ablate('./my_cell.py', gates=['Z'], values=[0], **how)\n"
        "print(r.ablate.to_latex())\n"
        "c = harness.compare('results', 'results')\n"
        "print('status', c.status, set(c.rows.verdict))\n",
        encoding="utf-8",
    )
    status, said = _run(installed, "python", "script.py")
    assert status == 0, said
    assert said.count("once") == 1
    assert r"my\_cell:Z=0 &" in said
    assert "status 0 {'identical'}" in said


def test_an_engineer_gates_a_cell_and_leaves_nothing_behind(installed: Path, tmp_path: Path) -> None:
    """The last of the three: the package is removed."""
    assert _run(installed, "gru-bench", "new", "cell", "my_cell")[0] == 0
    asked = ["--variants", "gru", "./my_cell.py", *FEW]
    assert _run(installed, "gru-bench", "bench", "--results", "base", *asked)[0] == 0
    status, said = _run(installed, "gru-bench", "gate", "--base", "base", "--limit", "5%", "--json", *asked)
    assert status == 0, said
    assert '"verdict": "identical"' in said
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "--python", str(installed / "python")]
    subprocess.run([*pip, "uninstall", "-y", "gru-bench"], check=True, timeout=120)
    [site] = installed.parent.glob("lib/python*/site-packages")
    assert [path.name for path in site.iterdir()] == ["needed.pth"]
    assert not (installed / "gru-bench").exists()
