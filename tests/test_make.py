"""Does `make` hand on what was typed, install once and only if asked, pass failures on, delete only what is its own?

A script stands in for Python, which prints its arguments; make, the shell and the Makefile are the real ones.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = ("make", "sh", "sed", "touch", "mkdir", "cp", "rm", "ls")
pytestmark = pytest.mark.skipif(
    not all(shutil.which(t) for t in TOOLS), reason=f"needs {', '.join(TOOLS)}: one of them is not on the PATH"
)

ECHO = f"""#!{sys.executable} -IS
import json, os, sys
print(json.dumps(sys.argv[1:]))
sys.exit(int(os.environ.get("STATUS", "0")))
"""
# A Python that can be too old or without venv, and whose pip can fail; it notes what it was asked for.
STAND_IN = """#!/bin/sh
echo "$0 $*" >>"$LOG"
case "$*" in
  *ensurepip*) exit "${NO_VENV:-0}" ;;
  *version_info*) case "$0" in *"${OLD:-none}") exit 1 ;; esac ;;
  "-m venv --clear"*) rm -rf .venv; mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  "-m pip "*install*) exit "${NO_PIP:-0}" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with a space in its name, with the Makefile, its stand-in for Python, and nothing else."""
    here = tmp_path / "a checkout"
    (here / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", here)
    shutil.copytree(ROOT / "requirements", here / "requirements")
    for name, text in (("echo python", ECHO), ("python3", STAND_IN)):
        (here / "bin" / name).write_text(text)
        (here / "bin" / name).chmod(0o755)
    for tool in TOOLS:
        (here / "bin" / tool).symlink_to(shutil.which(tool) or "")
    return here


def make(checkout: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """make with these words and no other environment: the PATH is `bin`, so no other Python is found."""
    clean = {"PATH": str(checkout / "bin"), "LOG": str(checkout / "log"), "HOME": str(checkout), **environment}
    return subprocess.run(["make", *words], cwd=checkout, env=clean, capture_output=True, text=True, timeout=20)


def handed_on(checkout: Path, *words: str, **environment: str) -> list[str]:
    """The arguments Python got."""
    answer = make(checkout, *words, "PYTHON=bin/echo python", **environment)
    assert answer.returncode == 0, answer.stderr
    arguments: list[str] = json.loads(answer.stdout)
    return arguments


def log(checkout: Path) -> list[str]:
    """What the stand-in was asked for, in order."""
    path = checkout / "log"
    return path.read_text().splitlines() if path.exists() else []


def test_with_nothing_given_nothing_is_added(checkout: Path) -> None:
    for verb in ("bench", "ablate", "report", "list"):
        assert handed_on(checkout, verb) == ["-m", "harness", verb]


NASTY = [
    *("a b", 'a"b', "a'b", "a;exit 3", "a|b>c", "*", "-x", "\\n", "#x"),
    *("a$HOME", "a$(HOME)", "$$", "`id`", "$(shell echo x)"),
]


@pytest.mark.parametrize("value", NASTY)
@pytest.mark.parametrize("typed", ["after make", "in the environment"])
def test_values_arrive_as_typed(checkout: Path, value: str, typed: str) -> None:
    options = {n: n.lower() for n in ("PROTOCOL", "CORPUS", "DEVICE", "SEEDS", "RESULTS")}
    words = [f"{name}={value}" for name in options] + [f"INIT={value}"] if typed == "after make" else []
    environment = {} if words else dict.fromkeys((*options, "INIT"), value)
    got = handed_on(checkout, "bench", *words, **environment)
    assert sorted(got[3:]) == sorted([f"--{o}={value}" for o in options.values()] + [f"--set=init={value}"])


def test_lists_are_split_at_spaces_and_nothing_else(checkout: Path) -> None:
    words = handed_on(checkout, "bench", "VARIANTS= gru:Z=0,R=1  b* $HOME;x ", "SET=epochs=2  hidden=8 b*")
    assert words[3:] == ["--set=epochs=2", "--set=hidden=8", "--set=b*", "--variants", "gru:Z=0,R=1", "b*", "$HOME;x"]


@pytest.mark.parametrize("verb", ["bench", "test", "lint", "speed"])
def test_a_failure_is_a_failure_of_make(checkout: Path, verb: str) -> None:
    assert make(checkout, verb, "PYTHON=bin/echo python", STATUS="1").returncode != 0
    assert make(checkout, verb, "PYTHON=bin/echo python").returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seeds=3"], "no NAME= 'seeds'. Did you mean 'SEEDS'?"),
        (["SEED=3"], "no NAME= 'SEED'. Did you mean 'SEEDS'?"),
        (["VARIANT=gru rnn"], "no NAME= 'VARIANT'. Did you mean 'VARIANTS'?"),
        (["EPOCHS=3"], """no NAME= 'EPOCHS': epochs is a field of the protocol, SET="epochs=3\""""),
        (["SET=epochs=2", "hidden=4"], 'SET="hidden=4"'),
        (["VARIANTS=gru", "rnn"], """no target 'rnn': variants are one list, like VARIANTS="gru rnn\""""),
        (["VARIANTS=gru", "gru:R=1"], """no target 'gru:R=1': variants are one list, like VARIANTS="gru gru:R=1\""""),
        (["bnech"], "no target 'bnech'. Did you mean 'bench'?"),
        (["X=it's $(HOME) `id`"], "no NAME= 'X'. There are: PROTOCOL, CORPUS,"),
    ],
)
def test_a_slip_is_one_line_before_anything_runs(words: list[str], said: str, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    answer = subprocess.run(["make", "help", *words, f"PYTHON={sys.executable}"], cwd=ROOT, env=environment,
                            capture_output=True, text=True, timeout=60)  # fmt: skip
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.count("\n") == 1
    assert said in answer.stderr


def test_a_slip_is_refused_where_there_is_no_python_to_ask(checkout: Path) -> None:
    for word, said in (("seeds=3", "no NAME= seeds. There are: PROTOCOL"), ("gru", "no target gru. There are: help")):
        answer = make(checkout, "bench", word)
        assert (answer.returncode, answer.stderr.count("\n")) == (2, 1)
        assert said in answer.stderr
    assert "no NAME= seeds." in make(checkout, "bench", MAKEFLAGS="seeds=3").stderr
    assert not (checkout / ".venv").exists()


def test_a_name_that_is_nearly_ours_in_the_environment_is_noted(checkout: Path) -> None:
    answer = make(checkout, "help", SEED="3", device="cpu")
    assert answer.returncode == 0
    assert [line.split()[2] for line in answer.stderr.splitlines()] == ["SEED", "device"]


def test_the_tests_own_names_and_makes_are_taken(checkout: Path) -> None:
    assert handed_on(checkout, "faults", "KILLS=3", "CC=clang", "SHELL=/bin/sh") == ["-m", "tests.faults"]


def test_a_python_that_leaves_this_folder_out_is_told_not_to(checkout: Path) -> None:
    (checkout / "bin" / "echo python").write_text(f"#!{sys.executable} -IS\nimport json, os\n"
                                                  "print(json.dumps([os.environ['PYTHONSAFEPATH']]))\n")  # fmt: skip
    assert handed_on(checkout, "test", PYTHONSAFEPATH="1") == [""]


def test_a_given_python_installs_nothing(checkout: Path) -> None:
    assert handed_on(checkout, "test") == ["-m", "pytest", "--halves"]
    assert not (checkout / ".venv").exists()


def test_a_given_python_that_is_not_there_is_one_line(checkout: Path) -> None:
    answer = make(checkout, "bench", "PYTHON=no such")
    said, of_make = answer.stderr.splitlines()
    assert answer.returncode != 0
    assert "'no such'" in said
    assert "***" in of_make


def test_installs_once(checkout: Path) -> None:
    assert make(checkout, "bench").returncode == 0
    assert sum("-m venv" in line for line in log(checkout)) == 1
    pip = ".venv/bin/python -m pip --disable-pip-version-check "
    (torch,) = re.findall(r"^torch==\S+", (ROOT / "requirements" / "torch.txt").read_text(), re.MULTILINE)
    assert log(checkout)[-6:] == [
        pip + "install --no-deps --require-hashes -r requirements/packages.txt",
        pip + f"download --no-deps --dest .venv/torch {torch}",
        pip + "install --no-deps --require-hashes --no-index --find-links .venv/torch -r requirements/torch.txt",
        pip + f"install {torch}",
        pip + "check",
        ".venv/bin/python -m harness bench",
    ]
    before = len(log(checkout))
    assert make(checkout, "ablate").returncode == 0
    assert log(checkout)[before:] == [".venv/bin/python -m harness ablate"]


def test_an_interrupted_installation_is_done_again(checkout: Path) -> None:
    assert make(checkout, "bench", NO_PIP="1").returncode != 0
    assert not any("harness" in line for line in log(checkout))
    assert make(checkout, "bench").returncode == 0
    assert sum("packages.txt" in line for line in log(checkout)) == 2


def test_new_requirements_are_installed(checkout: Path) -> None:
    make(checkout, "bench")
    stamp = (checkout / ".venv" / ".installed").stat().st_mtime
    os.utime(checkout / "requirements" / "packages.txt", (stamp + 10, stamp + 10))
    make(checkout, "bench")
    assert sum("packages.txt" in line for line in log(checkout)) == 2


def test_an_interpreter_that_is_gone_is_replaced(checkout: Path) -> None:
    make(checkout, "bench")
    (checkout / ".venv" / "bin" / "python").unlink()
    (checkout / ".venv" / "bin" / "python").symlink_to("/gone")  # as after the system's Python was upgraded
    assert (checkout / ".venv" / ".installed").exists()
    assert make(checkout, "bench").returncode == 0
    assert sum("-m venv --clear" in line for line in log(checkout)) == 2


def test_an_old_python3_is_passed_over(checkout: Path) -> None:
    shutil.copy(checkout / "bin" / "python3", checkout / "bin" / "python3.12")
    assert make(checkout, "bench", OLD="bin/python3").returncode == 0
    (made,) = (line for line in log(checkout) if "-m venv" in line)
    assert made.endswith("bin/python3.12 -m venv --clear .venv")


@pytest.mark.parametrize(
    ("trouble", "said"), [({"OLD": "python3"}, "3.11 or newer"), ({"NO_VENV": "1"}, "python3-venv")]
)
def test_what_cannot_be_installed_is_one_line(checkout: Path, trouble: dict[str, str], said: str) -> None:
    answer = make(checkout, "bench", **trouble)
    line, of_make = answer.stderr.splitlines()
    assert answer.returncode != 0
    assert said in line
    assert "***" in of_make
    assert not (checkout / ".venv").exists()


def test_clean_removes_what_running_made_and_nothing_else(checkout: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    goes = ["results/bench.csv", "results/runs/a.json", "results/.lock", ".ruff_cache/x", "harness/__pycache__/x.pyc"]
    stays = ["results/reference/cpu/bench.csv", ".venv/.installed", "harness/plan.py", "other/x", "../elsewhere/x"]
    for name in goes + stays:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("x")
    (checkout / "results" / "link").symlink_to(elsewhere)
    answer = make(checkout, "clean", f"RESULTS={elsewhere}")
    assert answer.returncode == 0, answer.stderr
    assert not [name for name in goes if (checkout / name).exists()]
    assert [name for name in stays if (checkout / name).exists()] == stays
    named = {line.removeprefix("removed ") for line in answer.stdout.splitlines()}
    assert named == {
        "results/bench.csv",
        "results/runs",
        "results/.lock",
        "results/link",
        ".ruff_cache",
        "harness/__pycache__",
    }
    assert make(checkout, "clean").stdout == ""


def test_clean_deletes_nothing_behind_a_link(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "bench.csv").write_text("x")
    (checkout / "results").symlink_to(tmp_path / "elsewhere")
    assert make(checkout, "clean").returncode == 0
    assert (tmp_path / "elsewhere" / "bench.csv").exists()


def test_help_is_the_default_and_names_every_target(checkout: Path) -> None:
    said = make(checkout).stdout
    assert said == make(checkout, "help").stdout
    text = (checkout / "Makefile").read_text()
    targets = text.partition("TARGETS := help ")[2].partition("\n")[0].split()
    names = text.partition("NAMES := ")[2].partition("\n")[0].split()
    assert len(targets) == 22
    assert len(names) == 23
    assert [word for word in targets + names if word not in said.replace("=", " ").replace(":", " ").split()] == []
    assert not log(checkout)
