"""The command line: what it runs, what it keeps, and what it says, in one line, to a tired person."""

from __future__ import annotations

import dataclasses
import errno
import functools
import importlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import harness
import variants
from harness import __main__ as command
from harness import files, pipeline, terminal
from harness import options as options_of
from harness import plan as planning
from harness.analysis import stats
from harness.data import download
from harness.data import load as loading
from harness.experiments import grids, protocols
from harness.experiments.protocols import Protocol
from harness.experiments.runs import Run
from harness.record import tables
from harness.report import page as report
from harness.report import sections
from harness.run import machine, process, timing
from harness.run.executors import local
from harness.run.outcome import Outcome, Point

ROOT = Path(__file__).parent.parent
TINY = [
    "--set",
    "train_characters=300",
    "heldout_characters=100",
    "batch_size=4",
    "num_steps=5",
    "hidden=4",
    "epochs=2",
]
ONE_RNN = ["bench", "--corpus", "embedded", "--device", "cpu", "--variants", "rnn", "--seeds", "1", *TINY]
REPORT_WRITE = report.write
HIDE_TORCH = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is hidden")
sys.meta_path.insert(0, Hidden())
import runpy
sys.argv = ["harness", *sys.argv[1:]]
runpy.run_module("harness", run_name="__main__")
"""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Trainings and timings that take no time, and give away their seed. What was trained, in order."""
    trained: list[Run] = []

    def train(runs: Sequence[Run], *rest: object) -> Iterator[local.Finished]:
        for run in runs:
            trained.append(run)
            ppl = 7 + run.seed / 100 + len(run.variant) / 10
            outcome = Outcome(1.5, ppl, 10, 100, 1.0, "time traveller", "", (Point(1, 100, 1.5, ppl),))
            if run.protocol.task != "text":
                outcome = dataclasses.replace(outcome, heldout_perplexity=None, score=0.5, solved_after=100 + run.seed)
            yield local.Finished(run, outcome, 1.0, 1, 0.1, files.now(), {"torch": "fake", "device": "cpu"})

    def sample(run: Run, vocabulary: int, threads: int, seeds: int, *how: object) -> timing.Answer:
        block = {
            "block": 0,
            "steps": 1,
            "tokens_per_sec": 1000.0 * len(run.variant),
            "step_ms": 1.0,
            "disturbed": False,
        }
        return {"blocks": [block], "environment": {"torch": "fake"}, "peak_memory_mib": 1.0}

    def write(results: tables.Results, folder: Path) -> Path:  # drawing is slow, and tested elsewhere
        files.write(folder / report.NAME, "a report")
        return folder / report.NAME

    monkeypatch.setattr(local, "execute", train)
    monkeypatch.setattr(timing, "sample", sample)
    monkeypatch.setattr(report, "write", write)
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):  # a note is said of them, and .ci/run sets one
        monkeypatch.delenv(name, raising=False)
    return trained


def ask(*words: str, hidden_torch: bool = False) -> subprocess.CompletedProcess[str]:
    start = ["-c", HIDE_TORCH] if hidden_torch else ["-m", "harness"]
    return subprocess.run([sys.executable, *start, *words], capture_output=True, text=True, cwd=ROOT)


def test_every_engine_is_timed_except_under_quick() -> None:
    engines = [engine for engine, refusal in variants.refusals("rnn").items() if not refusal]
    text = loading.load("embedded")
    for name, also in (("classic", [f"rnn ({engine})" for engine in engines[1:]]), ("quick", [])):
        plan = planning.Plan("bench", ("rnn",), protocols.protocol(name), 1, text, "cpu")
        assert [c.label for c in plan.contenders] == ["rnn", *also, "rnn#2"]
        assert {c.run.engine for c in plan.contenders if c.label in ("rnn", "rnn#2")} == {engines[0]}


@pytest.mark.parametrize(
    "words",
    [
        ["reproduce", "--seeds", "2"],
        ["probe", "--tasks", "copy", "--seeds", "2"],
        ["exercises", "--seeds", "2"],
        ["claims", "--seeds", "2"],
        ["ablate", "--seeds", "2", "--no-timing"],
        ["bench", "--seeds", "2", "--set", "hidden=4,8", "--variants", "rnn", "gru"],
        ["sweep", "--variants", "nn.gru", "gru"],
    ],
    ids=lambda words: words[0],
)
def test_every_command_that_trains_goes_from_its_plan_to_its_tables_and_does_nothing_twice(
    words: list[str], tmp_path: Path, fake: list[Run], capsys: pytest.CaptureFixture[str]
) -> None:
    ask = [
        *words,
        "--results",
        str(tmp_path),
        *["--corpus", "embedded"] * (words[0] not in ("probe", "exercises", "claims")),
    ]
    assert command.main(ask) == 0, capsys.readouterr().err
    trained = len(fake)
    assert trained or words[0] == "sweep"
    if words[0] != "exercises":  # a network set by hand is scored anew each time, which is slow
        assert command.main(ask) == 0
        assert len(fake) == trained
    assert "Traceback" not in capsys.readouterr().err


def test_the_book_s_own_loop_stands_beside_the_gru_in_every_bench() -> None:
    """Compiled code is compared with what a reader of the book would run; an ablation compares gates alone."""
    plan = planning.Plan("bench", ("rnn", "gru"), protocols.protocol("quick"), 1, loading.load("embedded"), "cpu")
    assert [c.label for c in plan.contenders] == ["rnn", "gru", "gru (book)", "gru#2"]
    assert {c.label: c.run.engine for c in plan.contenders}["gru (book)"] == "book"
    assert "gru (book)" not in [c.label for c in dataclasses.replace(plan, verb="ablate").contenders]


def test_where_the_fastest_engine_disagrees_the_next_one_trains_and_says_so(
    tmp_path: Path, fake: list[Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fastest, second = [engine for engine, refusal in variants.refusals("gru").items() if not refusal][:2]
    sound, why = local.execute, f"{fastest} differs from the reference engine by 36, over 1e-10"
    here = machine.environment("cpu")

    def train(runs: Sequence[Run], *rest: object) -> Iterator[local.Finished]:
        for finished in sound(runs, *rest):  # type: ignore[arg-type]
            wrong = finished.run.variant == "gru" and finished.run.engine == fastest
            error = f"disagrees: {why}: --engine names another"
            failed = dataclasses.replace(finished, outcome=Outcome(error=error), environment=here)
            yield failed if wrong else finished

    monkeypatch.setattr(local, "execute", train)
    words = ["bench", "--no-timing", "--seeds", "2", "--variants", "rnn", "gru", "--results", str(tmp_path)]
    assert command.main(words) == 0
    assert f"note: gru: {why}; {second} trains it instead" in capsys.readouterr().err
    table = pd.read_csv(tmp_path / "bench.csv").set_index("variant")
    assert table.engine.to_dict() == {"rnn": fastest, "gru": second}
    assert table.failed.tolist() == [0, 0]
    trained = len(fake)
    assert command.main(words) == 0  # it is remembered, and not tried once more
    assert f"note: gru: {why} (found earlier on this machine); {second} trains it instead" in capsys.readouterr().err
    assert len(fake) == trained
    asked = ["list", "--keys", *words[2:]]
    assert command.main(asked) == 0
    shown = capsys.readouterr().out
    assert f"\n  gru is trained by {second}: {why} on this machine; --engine tries it again\n" in shown
    assert shown.count("  done    ") == 2 * 2  # in bench; what ablate has besides is to do
    assert "failed" not in shown
    monkeypatch.setattr(machine, "environment", lambda device: {**here, "torch": "another"})
    command.main(asked)
    assert "is trained by" not in capsys.readouterr().out  # other software may be right
    monkeypatch.setattr(machine, "environment", lambda device: here)
    assert command.main([*words, "--engine", fastest]) == 1  # who asks for it is told
    assert pd.read_csv(tmp_path / "bench.csv").set_index("variant").failed["gru"] == 2


def test_on_cuda_an_epoch_is_a_graph_and_a_bench_also_times_it_step_by_step() -> None:
    text = loading.load("embedded")
    here = planning.Plan("bench", ("nn.gru",), protocols.protocol("classic"), 2, text, "cpu", deterministic=True)
    assert not any(run.capture or run.deterministic for run in here.runs)  # a CPU is deterministic as it is
    there = dataclasses.replace(here, device="cuda")
    assert all(run.capture and run.deterministic for run in there.runs)
    timed = {c.label: c.run.capture for c in there.contenders}
    assert timed == {"nn.gru": True, "nn.gru (step by step)": False, "nn.gru (tf32)": True, "nn.gru#2": True}
    ablated = dataclasses.replace(there, verb="ablate", deterministic=False)
    assert {c.label: c.run.capture for c in ablated.contenders} == {"nn.gru": True, "nn.gru#2": True}
    assert {run.key for run in ablated.runs}.isdisjoint(run.key for run in there.runs)
    probe = dataclasses.replace(there, protocol=protocols.task_protocol("adding"))
    assert not any(run.capture for run in probe.runs)


def test_what_was_never_left_alone_while_it_was_timed_is_said(
    tmp_path: Path, fake: list[Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Repeated after the others, every attempt on file; what stays so is said, beside its figure too."""
    asked: list[str] = []
    quiet = timing.sample

    def sample(run: Run, *rest: Any) -> timing.Answer:
        asked.append(run.variant if run.engine != "book" else f"{run.variant} (book)")
        answer = quiet(run, *rest)
        busy = asked[-1] == "rnn" or (asked[-1] == "gru" and asked.count("gru") == 1)
        slower = {"tokens_per_sec": answer["blocks"][0]["tokens_per_sec"] / (5 if busy else 1), "disturbed": busy}
        return {**answer, "blocks": [block | slower for block in answer["blocks"]]}

    monkeypatch.setattr(timing, "sample", sample)
    words = ["bench", *ONE_RNN[1:], "--results", str(tmp_path)]
    words[words.index("rnn") : words.index("rnn") + 1] = ["rnn", "gru", "lstm"]
    assert command.main(words) == 0
    said = capsys.readouterr()
    assert "timing: 25 samples, for at most 13 minutes" in said.out
    assert "tokens/sec, attempt 2" in said.out
    assert "never left alone by other processes while it was timed: rnn (5 of 5 rounds)" in said.err
    assert "disturbed by other processes in every block, so slower than it is: rnn (" in said.out
    engines = {row[0]: row[1] for line in said.out.splitlines() if len(row := line.split()) > 6}
    assert {engines[name] for name in ("rnn", "gru", "lstm")} <= set(variants.ENGINES)  # a speed names what runs it
    speed = pd.read_csv(tmp_path / "speed.csv")
    asked_again = speed[speed.label == "gru"].sort_values("round")
    assert asked_again.disturbed.sum() == 1  # the first attempt stays on file beside the one that counts
    assert len(asked_again) == 5 + 1
    assert len(speed[speed.label == "rnn"]) == 5 * 3
    assert not speed.duplicated(["label", "round", "block"]).any()
    assert len(asked) == 25 + 1 + 2 * 5
    table = pd.read_csv(tmp_path / "bench.csv")
    (book,) = table[table.engine == "book"].to_dict("records")  # the book's own loop, beside what trains
    assert (book["variant"], book["speed_disturbed"], book["tokens_per_sec"]) == ("gru", 0, 3000)
    table = table[table.engine != "book"].set_index("variant")
    assert table.speed_disturbed.to_dict() == {"rnn": 5, "gru": 0, "lstm": 0}
    assert table.tokens_per_sec.to_dict() == {"rnn": 600, "gru": 3000, "lstm": 4000}
    low_and_high = table.loc["lstm", ["speed_ratio", "speed_ratio_low", "speed_ratio_high"]].tolist()
    assert low_and_high == pytest.approx([4 / 3] * 3)  # no ratio to gru has its disturbed attempt


def test_a_bench_on_cuda_shows_the_fast_engine_to_one_who_does_not_know_of_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """resident computes in tf32 alone: it is timed so beside what trains in ieee, and torch's own beside it."""
    monkeypatch.setattr("variants.engines.resident.triton", object())
    plan = planning.Plan(
        "bench", ("gru", "lstm", "nn.gru"), protocols.protocol("classic"), 1, loading.load("embedded"), "cuda"
    )
    rounded = {c.label: (c.run.engine, c.run.capture) for c in plan.contenders if c.run.precision == "tf32"}
    assert rounded == {"gru (tf32)": ("resident", True), "nn.gru (tf32)": ("library", True)}
    assert {run.precision for run in plan.runs} == {"ieee"}
    asked = dataclasses.replace(plan, precision="tf32")
    assert not any(c.label.endswith("(tf32)") for c in asked.contenders)


def test_bf16_is_what_computes_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's products of float32 do not: of other engines it would be tf32 under another name."""
    monkeypatch.setattr("variants.engines.resident.triton", object())
    plan = planning.Plan(
        "bench", ("gru", "nn.gru"), protocols.protocol("classic"), 1, loading.load("embedded"), "cuda", precision="bf16"
    )
    assert plan.engines("gru") == ["resident"]
    with pytest.raises(
        ValueError, match=r"no engine runs nn.gru in bf16: resident: it is written for .*--precision tf32"
    ):
        list(plan.runs)


# ---- the whole of it, for real -----------------------------------------------------------------


def test_bench_for_real_then_report_without_torch(tmp_path: Path, monkeypatch, capfd) -> None:  # type: ignore[no-untyped-def]
    """The engine that trains is timed in fresh processes, the others in this one, all in short blocks."""
    short = "from harness.run import timing; timing.BLOCK_S, timing.WARM_S, timing.LONGEST_S = 0.01, 0.0, 0.0; "
    real = timing.sample

    def sample(run: Run, vocabulary: int, *rest: Any) -> timing.Answer:
        if run.engine == engines[0]:
            return real(run, vocabulary, *rest)
        return timing.time_steps(run, vocabulary)

    engines = [engine for engine, refusal in variants.refusals("rnn").items() if not refusal]
    monkeypatch.setattr(timing, "command", lambda code, follow: process.command(short + code, follow))
    monkeypatch.setattr(timing, "sample", sample)
    for name, value in {"ROUNDS": 1, "REPEATS": 0, "BLOCK_S": 0.01, "WARM_S": 0.0, "LONGEST_S": 0.0}.items():
        monkeypatch.setattr(timing, name, value)
    monkeypatch.setattr(timing, "measure_peaks", lambda device: (1e3, 3.0))
    monkeypatch.setattr("harness.experiments.grids.SEEDS", 1)
    folder = tmp_path / "results"
    words = ["bench", "--protocol", "classic", *ONE_RNN[1:]]  # quick times only the engine that trains
    assert command.main([*words, "--results", str(folder)]) == 0
    said = capfd.readouterr().out
    assert "[1/1] rnn seed 0: held-out perplexity" in said
    assert f"report: {folder / 'report.html'}" in said
    row, *others = pd.read_csv(folder / "bench.csv").to_dict("records")
    assert [row["engine"], *(r["engine"] for r in others)] == [engines[0], *sorted(engines[1:])]
    assert all(r["tokens_per_sec"] > 0 and r["seeds"] == 0 for r in others)  # timed, not trained
    (run,) = pd.read_csv(folder / "runs.csv").to_dict("records")
    speed = pd.read_csv(folder / "speed.csv")
    assert (row["variant"], row["seeds"], row["failed"]) == ("rnn", 1, 0)
    assert row["heldout_perplexity"] == pytest.approx(run["heldout_perplexity"])
    assert row["protocol"].startswith("classic,train_characters=300")
    assert row["parameters"] == run["parameters"] > 0
    assert set(speed["label"]) == {"rnn", "rnn#2", *(f"rnn ({engine})" for engine in engines[1:])}
    assert speed["disagreement"].between(0, 1e-10).all()
    assert speed["tokens_per_sec"].gt(0).all()
    assert row["peak_memory_mib"] > 0
    environments = pd.read_csv(folder / "environments.csv").set_index("environment")
    assert environments.loc[run["environment"], "threads"] == 1
    assert environments.loc[speed["environment"].iloc[0], "torch"] == environments.loc[run["environment"], "torch"]
    anchors = pd.read_csv(folder / "anchors.csv").set_index("model")["heldout_perplexity"]
    assert set(anchors.index) == {"1-gram", "2-gram", "3-gram", "4-gram", "5-gram", "floor", "uniform"}

    def draw(*_: object) -> Path:
        raise AssertionError("nothing is new, and it was drawn again")

    with monkeypatch.context() as patch:
        patch.setattr(report, "write", draw)
        assert command.main([*words, "--results", str(folder)]) == 0
    page = (folder / "report.html").read_bytes()
    for path in [*folder.glob("*.csv"), folder / "report.html"]:
        path.unlink()
    done = ask("report", "--results", str(folder), hidden_torch=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "report.html").read_bytes() == page


# ---- what is done is not done again -------------------------------------------------------------


def test_resume(fake: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*ONE_RNN, "--results", str(tmp_path)]
    words[words.index("rnn")] = "gru:R=1.0"
    words[words.index("--seeds") + 1] = "2"
    assert command.main(words) == 0
    assert [(r.variant, r.seed) for r in fake] == [("gru:R=1", 0), ("gru:R=1", 1)]
    assert command.main(words) == 0
    assert len(fake) == 2
    samples = len(list((tmp_path / "speed").glob("*/*.json")))
    assert samples == 2 * timing.ROUNDS  # the variant, and the second one of the A/A pair
    words[words.index("--seeds") + 1] = "3"
    assert command.main(words) == 0  # one seed more is one training more
    assert [r.seed for r in fake] == [0, 1, 2]
    assert pd.read_csv(tmp_path / "bench.csv")["seeds"].tolist()[0] == 3
    assert command.main([*words, "--set", "lr=9"]) == 0  # another protocol: everything anew
    assert len(fake) == 6
    assert "3 done already" not in capsys.readouterr().out.splitlines()[-1]


def test_a_failed_run_is_a_row_out_of_every_mean_and_tried_again(
    fake: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    well = local.execute
    broken = Outcome(error="diverged: the loss is not a number by epoch 1", parameters=10)

    def first_seed_fails(runs: Sequence[Run], *rest: object) -> Iterator[local.Finished]:
        for finished in well(runs, *rest):  # type: ignore[arg-type]
            outcome = broken if finished.run.seed == 0 else finished.outcome
            yield local.Finished(finished.run, outcome, 1.0, 1, 0.1, files.now(), finished.environment)

    words = [*ONE_RNN, "--results", str(tmp_path)]
    words[words.index("--seeds") + 1] = "3"
    monkeypatch.setattr(local, "execute", first_seed_fails)
    assert command.main(words) == 1
    row, *_ = pd.read_csv(tmp_path / "bench.csv").to_dict("records")
    assert (row["seeds"], row["failed"]) == (2, 1)
    assert row["heldout_perplexity"] == pytest.approx((7.31 * 7.32) ** 0.5)
    assert row["error"].startswith("1 of 3 runs: diverged")
    shown = capsys.readouterr()
    assert "failed: rnn seed 0: diverged" in shown.err
    assert re.search(r"^rnn +\w+ +10 +2 of 3 ", shown.out, re.MULTILINE)
    fake.clear()
    monkeypatch.setattr(local, "execute", well)
    assert command.main(words) == 0
    assert [r.seed for r in fake] == [0]
    assert pd.read_csv(tmp_path / "bench.csv")["failed"].tolist()[0] == 0


def test_a_failed_timing_is_status_1_and_tried_again(
    fake: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    well = timing.sample
    monkeypatch.setattr(timing, "sample", lambda *a: {"error": "timeout: no answer within 600 s"})
    words = [*ONE_RNN, "--results", str(tmp_path)]
    assert command.main(words) == 1
    assert "failed: timing rnn" in capsys.readouterr().err
    assert pd.read_csv(tmp_path / "bench.csv")["tokens_per_sec"].isna().all()
    monkeypatch.setattr(timing, "sample", well)
    assert command.main(words) == 0


def test_ctrl_c_keeps_what_is_finished(
    fake: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    well = local.execute

    def stopped(runs: Collection[Run], *rest: object) -> Iterator[local.Finished]:
        yield from well(list(itertools.islice(runs, 1)), *rest)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    words = [*ONE_RNN, "--results", str(tmp_path)]
    words[words.index("--seeds") + 1] = "3"
    monkeypatch.setattr(local, "execute", stopped)
    monkeypatch.setattr(sys, "argv", ["harness", *words])
    assert command.main(words) == 130
    said = capsys.readouterr().err
    assert "stopped; 1 of 3 trainings are kept, `report` shows them. To go on: " in said
    assert said.strip().endswith(" ".join(words))
    assert not list(tmp_path.glob("[!.]*.*"))  # tables and drawings take seconds, and one who stops is in a hurry
    assert command.main(["report", "--results", str(tmp_path)]) == 0
    assert pd.read_csv(tmp_path / "bench.csv")["seeds"].tolist() == [1]
    monkeypatch.setattr(local, "execute", well)
    assert command.main(words) == 0
    assert [r.seed for r in fake] == [0, 1, 2]


@pytest.mark.parametrize("write", [1, 2, 3, 5, 9, 20])
def test_a_full_disk_is_one_line_that_names_the_file_and_the_same_command_goes_on(
    write: int, fake: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*ONE_RNN, "--results", str(tmp_path)]
    calls = itertools.count(1)

    def full(handle: int) -> None:
        if next(calls) >= write:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert command.main(words) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(rf"error: {re.escape(str(tmp_path))}/\S+: No space left on device\n", said)
    assert not list(tmp_path.rglob("*.part"))
    assert command.main(words) == 0
    assert len(fake) == (2 if write == 2 else 1)  # the first is the grid, the second the run


def test_a_finished_run_that_is_taken_away_is_missed(
    fake: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    well = local.execute

    def taken(runs: Sequence[Run], *rest: object) -> Iterator[local.Finished]:
        for finished in well(runs, *rest):  # type: ignore[arg-type]
            yield finished
            next((tmp_path / "runs").iterdir()).unlink()

    words = [*ONE_RNN, "--results", str(tmp_path)]
    monkeypatch.setattr(local, "execute", taken)
    assert command.main(words) == 1
    assert "failed: rnn seed 0: its file was taken away" in capsys.readouterr().err
    monkeypatch.setattr(local, "execute", well)
    assert command.main(words) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_for_real_leaves_no_child(number: signal.Signals, tmp_path: Path) -> None:
    words = [*ONE_RNN, "epochs=100000", "--results", str(tmp_path)]
    words.remove("epochs=2")
    driver = subprocess.Popen(
        [sys.executable, "-m", "harness", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    grid = tmp_path / "grids" / "bench.json"
    until = time.monotonic() + 60
    while not grid.exists() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(1)
    if number == signal.SIGINT:
        os.killpg(driver.pid, number)  # as a terminal does: to the workers too
    else:
        driver.send_signal(number)
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == 128 + number
    assert "stopped; 0 of 1 trainings are kept" in said
    assert "Traceback" not in said
    assert _empty_within(5, driver.pid)


@pytest.mark.parametrize(
    ("where", "status"),
    [
        ("class End:\n  def __del__(self): os.kill(os.getpid(), signal.SIGTERM)\nEnd()\ntime.sleep(9)", 143),
        ("exec('os.kill(os.getpid(), signal.SIGINT)')\ntime.sleep(9)", 130),
        ("os.kill(os.getpid(), signal.SIGHUP)\ntime.sleep(9)", 129),
        # a library makes another exception of it on its way
        (
            "try: os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)\n"
            "except KeyboardInterrupt: raise KeyboardInterrupt from None",
            143,
        ),
    ],
)
def test_a_signal_is_heard_wherever_it_comes(where: str, status: int) -> None:
    """Python ignores what is raised at the end of an object, and would end by SIGINT where one crossed an `exec`.

    And its own way out, which takes seconds with torch on a busy machine, is not waited for.
    """
    code = f"""
import atexit, os, signal, sys, time
from harness import __main__ as command

atexit.register(time.sleep, 99)

def main(arguments):
    try:
        exec(compile({where!r}, "", "exec"))
    except KeyboardInterrupt:
        return command._status()

command.main = main
command.command()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60,
        # a shell's background job ignores the one, `nohup` the other
        preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)],
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (status, "")


def _empty_within(seconds: float, group: int) -> bool:
    """Whether a process group has nobody left in it: Python's own helper process goes a moment after the others."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_both_verbs_keep_their_own_speed_baseline(fake: list[Run], tmp_path: Path) -> None:
    common = ["--corpus", "embedded", "--device", "cpu", "--seeds", "2", "--results", str(tmp_path), *TINY]
    assert command.main(["bench", "--variants", "gru", "nn.gru", *common]) == 0
    assert command.main(["ablate", "--variants", "gru", "gru:R=1", "rnn", *common]) == 0
    tables = (pd.read_csv(tmp_path / f"{verb}.csv") for verb in ("bench", "ablate"))
    bench, ablate = (table.drop_duplicates("variant").set_index("variant") for table in tables)
    assert bench["speed_baseline"].tolist() == ["nn.gru"] * 2
    assert ablate["speed_baseline"].tolist() == ["gru"] * 3
    assert bench.loc["gru", "speed_ratio"] == pytest.approx(0.5)
    assert ablate.loc["gru:R=1", "speed_ratio"] == pytest.approx(7 / 3)
    assert len([r for r in fake if r.variant == "gru"]) == 2  # shared between the verbs
    assert set(ablate["baseline"].dropna()) == {"gru"}


# ---- what it says -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bnech"], "Did you mean 'bench'"),
        ([], "a verb comes first, one of bench"),
        (["bench", "--variants", "ltsm"], "Did you mean 'lstm'"),
        (["bench", "--variants", "gru:Q=1"], "no gate 'Q'"),
        (["ablate", "--variants", "gru:R=2"], "from 0 to 1"),
        (["bench", "--protocol", "clasic"], "Did you mean 'classic'"),
        (["bench", "--device", "gpu"], "no device 'gpu'. Did you mean 'cuda'"),
        (["bench", "--device", "tpu"], "no device 'tpu'. There are: "),
        (["bench", "--variants", "gru,rnn"], "Did you mean gru rnn?"),
        (["bench", "--variants", "ltsm,gru"], "Spaces separate them, not commas: ltsm gru."),
        (["bench", "--variants", "gru:R=1,Z=0,rnn"], "Did you mean gru:R=1,Z=0 rnn?"),
        (["bench", "--variants", "gru\uff1aR=1"], "is FULLWIDTH COLON. Did you mean gru:R=1?"),
        (["bench", "--variants", "gru:R=0,5"], "a number has a point, not a comma. Did you mean gru:R=0.5?"),
        (["bench", "--variants", "gru\xa0"], "is NO-BREAK SPACE. Did you mean gru?"),
        (["bench", "--set", "lr=0,5"], "lr is a number, not '0,5': write 0.5"),
        (["bench", "--set", "train_characters=10,000"], "not '10,000': write 10000"),
        (["bench", "--set", "epochs=2,hidden=4"], "--set epochs=2 hidden=4"),
        (["bench", "--set", "epochs\uff1d2"], "is FULLWIDTH EQUALS SIGN"),
        (["bench", "--set", "task=copy"], "no protocol field 'task'"),
        (["bench", "--seeds", "1,000"], "write 1000"),
        (["probe", "--lengths", "10,50"], "write 10 50"),
        (["probe", "--tasks", "copy,adding"], "copy adding"),
        (["bench", "seeds=3"], "Did you mean '--seeds'"),
        (["bench", "\u2014seeds", "3"], "is EM DASH. Did you mean '--seeds'"),
        (["bench", "-seeds", "3"], "Did you mean '--seeds'"),
        (["bench", "--epochs", "3"], "--set epochs=VALUE"),
        (["bench", "HIDDEN=64"], "--set hidden=64"),
        (["bench", "rnn"], "variants are one list, like --variants gru rnn"),
        (["bench", "--variants", "lstm", "--seeds", "until-decided"], "add one to --variants"),
        (["bench", "--results", "~no-such-user/x"], "--results names a folder"),
        (["bench", "--corpus", "~no-such-user/x"], "no text '~no-such-user/x'"),
        (["bench", "--seeds", "0"], "seeds is a whole number"),
        (["bench", "--seeds", "many"], "seeds is a whole number"),
        (["bench", "--set", "epoch=1"], "Did you mean 'epochs'"),
        (["bench", "--sed", "1"], "Did you mean '--seeds'"),
        (["bench", "--seeds", "1", "--seeds", "2"], "--seeds is given twice"),
        (["bench", "--tasks", "copy"], "bench takes no --tasks: it is an option of probe"),
        (["sweep", "--seeds", "3"], "sweep takes no --seeds"),
        (["probe", "--corpus", "embedded"], "probe takes no --corpus"),
        (["report", "--set", "epochs=1"], "report takes no --set"),
        (["list", "--full"], "list takes no --full"),
        (["ablate", "--results", ""], "--results names a folder"),
        (["bench", "--corpus", "/no/such/file"], "/no/such/file"),
        (["bench", "--corpus", "embedded", "--set", "train_characters=1000000"], "has 100,000 characters"),
        (["bench", "--corpus", "embedded", "--set", "batch_size=100000"], "too few for one batch"),
        (["bench", "--corpus", "embedded", "--set", "heldout_characters=1"], "heldout_characters is at least 2"),
        (["list", "--corpus", "embedded", "--set", "validation_characters=1"], "validation_characters is at least 2"),
        (["bench", "--corpus", "embedded", "--set", "max_vocabulary=1"], "max_vocabulary is at least 2"),
        (["ablate", "--corpus", "embedded", "--set", "update_bias=chrono", "num_steps=2"], "num_steps is at least 3"),
        (["list", "--variants", "ltsm"], "Did you mean 'lstm'"),
        (["report", "--results", "/no/such/folder"], "/no/such/folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = [] if "--results" in words else ["--results", str(tmp_path / "none")]
    assert command.main([*words, *folder]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert said in shown.err
    assert shown.out == ""
    assert not (tmp_path / "none").exists()  # nothing is made for a request that cannot be served


ANY = st.text(max_size=8)
COUNT = st.integers(1, 30).map(str)
NUMBER = st.one_of(st.integers(-2, 2).map(str), st.floats().map(str), ANY)
CHOICES = sorted({choice for choices in protocols.CHOICES.values() for choice in choices})
FIELDS = st.one_of(
    st.builds("{}={}".format, st.sampled_from(["hidden", "epochs", "batch_size"]), COUNT),
    st.builds("{}={}".format, st.sampled_from(["lr", "clip"]), st.floats(0.001, 9).map(str)),
    st.sampled_from(["init=torch", "init=book", "update_bias=chrono"]),
)
TYPED = {  # what may be typed for an option: sense, and anything
    "--protocol": (st.sampled_from(["quick", "classic"]), st.one_of(st.sampled_from(["Quick", "clasic", ""]), ANY)),
    "--corpus": (st.just("embedded"), ANY.map("/no/such/{}".format)),
    "--device": (st.sampled_from(["auto", "cpu"]), st.one_of(st.just("CPU"), ANY)),
    "--engine": (st.sampled_from(["auto", "loop", "fused"]), st.one_of(st.just("Loop"), ANY)),
    "--precision": (st.just("ieee"), st.one_of(st.just("tf32"), ANY)),
    "--seeds": (st.one_of(COUNT, COUNT, st.just("until-decided")), NUMBER),
    "--max": (COUNT, NUMBER),
    "--variants": (
        st.lists(st.sampled_from(["gru", "rnn", "gru:R=1", "nn.gru", "gru:Z=0,R=1"]), min_size=1, max_size=3),
        st.lists(st.one_of(st.sampled_from(["gru:Q=1", "gru:Z=0,Z=0", "gru:R=2"]), ANY), max_size=2),
    ),
    "--set": (
        st.lists(FIELDS, min_size=1, max_size=3),
        st.lists(st.builds("{}={}".format, st.one_of(
            st.sampled_from([f.name for f in dataclasses.fields(Protocol)]), ANY
        ), st.one_of(NUMBER, st.sampled_from(CHOICES))), max_size=2),
    ),
    "--tasks": (st.lists(st.sampled_from(["adding", "copy", "s3"]), min_size=1, max_size=2), st.lists(ANY, max_size=2)),
    "--lengths": (st.lists(st.integers(2, 60).map(str), min_size=1, max_size=2), st.lists(NUMBER, max_size=2)),
    "--results": (st.just("/no/folder"), ANY),
    "--no-timing": (st.just([]), st.just([])),
    "--no-tasks": (st.just([]), st.just([])),
    "--full": (st.just([]), st.just([])),
}  # fmt: skip


def dest(flag: str) -> str:
    return "settings" if flag == "--set" else flag.lstrip("-").replace("-", "_")


APART = {
    "exercises",
    "claims",
    "questions",
    "pack",
    "new",
    "compare",
    "gate",
    "latency",
    "export",
}  # they make no plan of the options alone: tested in files of their own


@st.composite
def asked(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A verb and its options: all of them sense, or one that is not, or that belongs to another verb."""
    verb = draw(st.sampled_from([verb for verb in options_of.VERBS if verb not in APART]))
    flags = draw(st.sets(st.sampled_from([flag for flag in TYPED if dest(flag) in options_of.TAKES[verb]]), max_size=4))
    wrong = draw(st.sampled_from(["", "", *sorted(flags), draw(st.sampled_from(list(TYPED)))]))
    options = {flag: draw(TYPED[flag][flag == wrong]) for flag in sorted({*flags, wrong} - {""})}
    return draw(st.sampled_from([verb] * 9 + [verb[:-1]])), options


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked())
def test_whatever_is_typed_it_is_what_runs_or_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: tuple[str, dict[str, Any]]
) -> None:
    verb, options = asked
    plans: list[planning.Plan] = []
    load = functools.cache(loading.load)

    def keep(*some: planning.Plan) -> int:
        plans.extend(some)
        return 0

    with monkeypatch.context() as patch:
        patch.setattr(loading, "load", lambda source, **how: load(source or "embedded", **how))
        patch.setattr(pipeline, "go", lambda plan, *rest: keep(plan))
        patch.setattr(pipeline, "reproduce", lambda some, *rest: keep(*some))
        patch.setattr(pipeline, "sweep", lambda some, *rest: keep(*some))
        patch.setattr(pipeline, "probe", lambda some, *rest: keep(*some))
        patch.setattr(command, "_list", lambda asked, folder: keep(planning.planned("ablate", asked)))
        patch.setattr(command, "_report", lambda folder, figures, width: 0)
        words = [w for flag, value in options.items() for w in [flag, *([value] if isinstance(value, str) else value)]]
        status = command.main([verb, *words])
    shown = capsys.readouterr()
    if status:
        assert status == 2
        assert shown.err.startswith("error: ")
        assert shown.err.count("\n") == 1
        return
    assert shown.err == ""
    for flag in options:
        assert dest(flag) in options_of.TAKES[verb]
    for plan in plans:
        given = {flag: value for flag, value in options.items() if isinstance(value, str)}
        assert str(plan.engine) == given.get("--engine", "auto")
        assert str(plan.precision) == given.get("--precision", "ieee")
        assert plan.corpus.name == ("" if verb == "probe" else "embedded")
        if given.get("--seeds", "until-decided") != "until-decided":
            assert plan.seeds == int(given["--seeds"])
        if "--max" in given:
            assert plan.looks[-1] == plan.seeds == int(given["--max"])
        if "--protocol" in given:
            assert plan.protocol.name == given["--protocol"]
        for setting in options.get("--set", []):
            field, _, value = setting.partition("=")
            if verb != "sweep" or field != "hidden":
                found = getattr(plan.protocol, field)
                assert found == type(found)(value)
        if "--variants" in options:
            assert plan.variants == tuple(dict.fromkeys(variants.canonical(v) for v in options["--variants"]))
        if "--lengths" in options:
            assert str(plan.protocol.num_steps) in {str(int(length)) for length in options["--lengths"]}
        if "--tasks" in options:
            assert plan.protocol.task in options["--tasks"]


def test_cuda_where_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert command.main(["bench", "--device", "cuda", "--results", str(tmp_path)]) == 2
    assert "no device 'cuda'" in capsys.readouterr().err


def test_report_on_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["report", "--results", str(tmp_path)]) == 2
    assert "run bench or ablate first" in capsys.readouterr().err


def test_help_names_what_set_takes_and_nothing_else() -> None:
    said = " ".join(command.parser("probe").format_help().split())
    fields = said.partition("fields of the protocol: ")[2].partition(" --")[0].split(", ")
    for field in fields:
        default = getattr(Protocol(), field)
        value = default if default or field in protocols.MAY_BE_ZERO else 1
        assert protocols.protocol("classic").override([f"{field}={value}"])
    assert {*fields, "name", "task"} == {f.name for f in dataclasses.fields(Protocol)}


def test_each_verb_has_a_short_help_with_an_example_that_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(options_of.VERBS) == set(options_of.TAKES) == set(options_of.EXAMPLES)
    for verb in options_of.VERBS:
        with pytest.raises(SystemExit) as ended:
            command.main([verb, "--help"])
        said = capsys.readouterr().out
        assert ended.value.code == 0
        assert said.startswith(f"usage: python -m harness {verb} ")
        assert max(map(len, said.splitlines())) <= 110
        example = said.rpartition("example: python -m harness ")[2].split()
        assert command.parser().read(example).verb == example[0] == verb
        takes = {"--set" if dest == "settings" else f"--{dest.replace('_', '-')}" for dest in options_of.TAKES[verb]}
        assert set(re.findall(r"^  (--[\w-]+)", said, re.MULTILINE)) == takes | {"--json"}


def test_help_without_a_verb_names_the_verbs_and_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["-h"], ["help"], ["--version"]):
        with pytest.raises(SystemExit):
            command.main(words)
        said = capsys.readouterr().out
        for verb in options_of.VERBS:
            assert (f"\n  {verb} " in said) == (words != ["--version"])
        assert "--set" not in said
    assert said == f"harness {harness.__version__}\n"
    for words, said in (([], "a verb comes first, one of bench, "), (["--seeds", "3", "bench"], "a verb comes first"),
                        (["ablte"], "no verb 'ablte'. Did you mean 'ablate'?")):  # fmt: skip
        assert command.main(words) == 2
        assert said in capsys.readouterr().err


def test_a_home_folder_is_meant(fake: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command.main([*ONE_RNN, "--results=~/x"]) == 0
    assert (tmp_path / "x" / "bench.csv").exists()
    assert len(harness.read("~/x").bench)


@pytest.mark.parametrize(
    ("names", "said"),
    [(["lstm:F=1", "rnn"], "which is not among the variants"), (["gru"], "there is no other variant")],
)
def test_a_grid_without_a_verdict_says_why(
    names: list[str], said: str, fake: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*ONE_RNN, "--results", str(tmp_path)]
    words[words.index("rnn") : words.index("rnn") + 1] = names
    assert command.main(words) == 0
    before, after = (line for line in capsys.readouterr().out.splitlines() if "no verdict" in line)
    assert before.startswith("note: no verdict can be had: every difference is from gru, ")
    assert after.startswith("no verdict: every difference is from gru, ")
    assert said in before
    assert said in after


def test_what_cannot_be_drawn_undoes_nothing(
    fake: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(results: tables.Results, folder: Path) -> Path:
        raise RuntimeError("Failed to process string with tex\nbecause latex could not be found")

    monkeypatch.setattr(report, "write", write)
    words = [*ONE_RNN, "--results", str(tmp_path)]
    assert command.main(words) == 1
    shown = capsys.readouterr()
    said = "failed: no report, RuntimeError: Failed to process string with tex because latex could not be found; "
    assert shown.err.splitlines()[-1] == said + "the tables are whole, and `report` draws them"
    assert re.search(r"^rnn +\w+ +10 +1 ", shown.out, re.MULTILINE)
    assert len(pd.read_csv(tmp_path / "bench.csv"))
    assert command.main(["report", "--results", str(tmp_path)]) == 1
    monkeypatch.delattr(harness.report, "page", raising=False)
    monkeypatch.setitem(sys.modules, "harness.report.page", None)  # it cannot even be imported: a wrong MPLBACKEND
    assert command.main(words) == 1
    assert "import of harness.report.page halted" in capsys.readouterr().err
    assert len(fake) == 1


def test_a_table_wider_than_the_terminal_is_folded_and_a_file_gets_it_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("variant", "a" * 30, "b" * 30, "c" * 30), ("gru", "1", "2", "3"), ("gru:R=1", "4", "5", "6")]
    terminal._print(rows, {"variant"})
    assert len(capsys.readouterr().out.splitlines()) == 4
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    for width, blocks in ((40, 3), (80, 2), (200, 1)):
        monkeypatch.setenv("COLUMNS", str(width))
        terminal._print(rows, {"variant"})
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 4 * blocks
        assert max(map(len, lines)) <= width
        assert sum(line.startswith("gru:R=1") for line in lines) == blocks
        assert all(any(head in line for line in lines) for head in rows[0])


def test_a_terminal_has_colours_unless_none_are_wanted_and_paragraphs_are_folded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    rows = [("variant", "verdict"), ("gru:R=1", "worse")]
    for terminal_is, wanted in ((False, 0), (True, 1)):
        monkeypatch.setattr(sys.stdout, "isatty", lambda it=terminal_is: it, raising=False)
        terminal._print(rows, {"variant", "verdict"})
        assert capsys.readouterr().out.count("\033[31mworse\033[0m") == wanted
        terminal.say("word " * 20, 4)
        lines = capsys.readouterr().out.splitlines()
        assert (max(map(len, lines)) < 40) == terminal_is
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            terminal._print(rows, {"variant", "verdict"})
            assert "\033" not in capsys.readouterr().out
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    for width in (40, 80):
        monkeypatch.setenv("COLUMNS", str(width))
        with terminal.Bar(90, "bench", "run") as bar:
            assert "{remaining} left" in bar.whole.bar_format
            assert ("{bar}" in bar.whole.bar_format) == (width == 80)
            assert len(bar.whole.bar_format.format(percentage=100, n=90, total=90, unit="run", remaining="12:34",
                                                   desc="", bar="", elapsed="")) < 40  # fmt: skip


def test_columns_are_laid_out_in_what_the_terminal_has(capsys: pytest.CaptureFixture[str]) -> None:
    terminal._print([("nats", "p"), ("\u22120.1", "1"), ("+0.1", "1")], set())
    assert capsys.readouterr().out == "\nnats  p\n-0.1  1\n+0.1  1\n"


@pytest.mark.parametrize("name", ["variants", "variants/__init__.py", "variants.py", "harness"])
def test_a_folder_of_the_same_name_where_the_user_stands_is_not_taken_for_ours(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    (path.parent if path.suffix else path).mkdir(exist_ok=True)
    if path.suffix:
        path.write_text("")
    done = subprocess.run(
        [sys.executable, "-c", "import harness.__main__ as m; m.main(['list', '--help'])"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_another_module_of_that_name_that_is_already_imported_is_named(tmp_path: Path) -> None:
    (tmp_path / "variants.py").write_text("")
    code = f"import sys, variants; sys.path.append({str(ROOT)!r}); import harness"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr.splitlines()[-1].startswith(
        f"ImportError: another module 'variants' ({tmp_path}/variants.py) was"
    )


LISTENER = """
import sys
from harness import __main__ as command

def main(arguments):
    for k in range(3):
        print("x" * 100_000, flush=True)
        print("y" * 100_000, file=sys.stderr)
    return 7

command.main = main
command.command()
"""


@pytest.mark.parametrize("ends", ["| true", "2>&1 | true", "2>&-", ">&-", ">&- 2>&- <&-", ">/dev/full", "2>/dev/full"])
def test_who_stops_listening_stops_nothing(ends: str) -> None:
    shell = f'set -o pipefail; python=$0; "$python" -c "$1" {ends}'
    done = subprocess.run(["bash", "-c", shell, sys.executable, LISTENER], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 7
    assert "Traceback" not in done.stdout + done.stderr
    if ends == ">/dev/full":
        assert "note: nothing more is written to stdout: No space left on device" in done.stderr


def test_a_list_that_is_cut_off_ends_well() -> None:
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m harness list --corpus embedded --device cpu | true"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_help_needs_nothing_slow() -> None:
    done = ask("bench", "--help", hidden_torch=True)
    assert done.returncode == 0
    assert "epochs" in done.stdout
    code = """
import runpy, sys
sys.argv = ["harness", "bench", "--help"]
try:
    runpy.run_module("harness", run_name="__main__")
except SystemExit:
    print(*[m for m in ("torch", "pandas", "numpy", "scipy", "matplotlib") if m in sys.modules])
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout
    assert said.splitlines()[-1] == ""


def test_list_says_what_is_done(fake: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*ONE_RNN, "--results", str(tmp_path)]
    assert command.main(words) == 0
    key = tables.gather(tmp_path).runs["run"].iloc[0]
    capsys.readouterr()
    words[0] = "list"
    words[words.index("--seeds") + 1] = "2"
    assert command.main(words) == 0
    shown = capsys.readouterr().out
    assert re.search(r"\n  rnn +1 done, 1 to do\n", shown)
    assert key not in shown
    assert command.main([*words, "--keys"]) == 0
    shown = capsys.readouterr().out
    assert f"done    {key}" in shown
    assert "to do   rnn-1-" in shown
    for name in ("gru_after", "nn.lstm"):
        assert f"\n  {name} " in shown


def test_one_of_a_thing_is_no_plural(fake: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*ONE_RNN, "--results", str(tmp_path)]
    assert command.main(words) == 0
    said = capsys.readouterr().out
    assert "bench: 1 variant x 1 seed = 1 training; " in said
    assert ", 1 worker process\n" in said
    assert command.main(words) == 0  # nothing is left to train
    again = capsys.readouterr().out
    assert ", nothing to train\n" in again
    for text in (said, again):
        assert not re.search(r"\b1 (variants|seeds|trainings|samples|minutes|points|worker processes)\b", text)
        assert not re.search(r"\b0 (worker|samples)", text)


def test_list_of_everything_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["list", "--corpus", "embedded", "--device", "cpu", "--results", str(tmp_path / "none")]) == 0
    shown = capsys.readouterr().out
    assert shown.count(f" {grids.SEEDS} to do\n") == 7 + 9
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("seeds", "warned"), [(7, True), (8, False)])
def test_warns_of_a_grid_that_cannot_answer(
    seeds: int, warned: bool, fake: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "bench",
        "--corpus",
        "embedded",
        "--device",
        "cpu",
        "--seeds",
        str(seeds),
        "--results",
        str(tmp_path),
        *TINY,
    ]
    assert command.main(words) == 0
    assert ("needs 8 (SEEDS=8)" in capsys.readouterr().err) == warned


def test_the_first_run_is_on_the_book_without_a_network(
    fake: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*_: object) -> bytes:
        raise ValueError("the address cannot be reached")

    monkeypatch.setattr(download, "download", none)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = [w for w in ONE_RNN if w not in ("--corpus", "embedded")]
    assert command.main([*words, "--results", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "note" not in shown.err
    assert "text time-machine" in shown.out
    for table in ("bench", "runs"):
        assert set(pd.read_csv(tmp_path / f"{table}.csv")["corpus"]) == {"time-machine"}
    monkeypatch.setattr(download, "PACKAGED", tmp_path / "none")
    assert command.main([*words, "--results", str(tmp_path / "other")]) == 2
    assert "CORPUS=path" in capsys.readouterr().err


def test_what_is_done_to_a_text_is_said_where_a_user_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["bench", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "how a text is prepared](docs/protocols.md#texts)" in (ROOT / "README.md").read_text()
    readme = " ".join((ROOT / "docs" / "protocols.md").read_text().split())
    for how in protocols.CHOICES["text"]:
        assert f"text={how}" in readme
        assert how == "spaces" or f"text={how}" in said
    for words in ("white space, line ends too, becomes one space; case and punctuation stay", "max_vocabulary=N"):
        assert words in said
        assert words in readme


def test_what_is_done_to_a_text_is_in_the_name_of_the_protocol_and_on_the_page(
    fake: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "write", REPORT_WRITE)
    monkeypatch.setattr(sections, "charts", lambda *what: [])  # half of the time goes into them
    (tmp_path / "NA").write_text("Ab c.\nDe f!\n" * 99)
    (tmp_path / "many").write_text("".join(chr(0x4E00 + k * k % 389) for k in range(3000)))
    words = ["bench", "--device", "cpu", "--variants", "rnn", "--seeds", "1", *TINY]
    for name, how, label, said in (
        ("NA", [], ",text=spaces", "case and punctuation are kept, and each run of white space"),
        ("NA", ["text=raw"], ",text=raw", "everything is kept as it is, lines and all"),
        ("NA", ["text=lines"], "", "letters alone, in lower case, line by line"),
        ("NA", ["text=whole"], ",text=whole", "one space for all else"),
        ("many", ["max_vocabulary=50"], ",text=spaces,max_vocabulary=50", "Not every symbol is known"),
    ):
        folder = tmp_path / f"out{label}"
        assert command.main([*words, *how, "--corpus", str(tmp_path / name), "--results", str(folder)]) == 0
        row = pd.read_csv(folder / "bench.csv").iloc[0]
        assert row.protocol.endswith(label)
        assert ("text=" in row.protocol) == ("text=" in label)
        assert row.corpus == ("./NA" if name == "NA" else "many")  # and never missing
        assert said in (folder / "report.html").read_text()
        assert (row.unknown_share > 0.5) == (name == "many")
        assert ("% of the characters are none of the 50" in capsys.readouterr().err) == (name == "many")


def test_a_results_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    assert command.main([*ONE_RNN, "--results", str(tmp_path / "file")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(tmp_path / "file") in said


def test_list_says_what_a_fixed_gate_took_and_which_files_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = variants.refusals

    def refusals(name: str, *size: Any) -> dict[str, str]:
        if name == "mgu":
            raise ValueError("variants/mgu.py cannot be used: it has no method `step`")
        return whole(name, *size)

    monkeypatch.setattr(variants, "refusals", refusals)
    monkeypatch.setattr(variants, "unusable", lambda: {"draft": "draft.py cannot be used: invalid syntax (line 1)"})
    words = ["--corpus", "embedded", "--device", "cpu", "--seeds", "1", "--results", str(tmp_path / "none")]
    assert command.main(["list", "--variants", "gru:R=0", "gru:Z=0.5", *words]) == 0
    shown = capsys.readouterr().out
    assert "\n  gru:R=0 is without W_xr W_hr b_r W_hh\n" in shown
    assert "\n  gru:Z=0.5 is without W_xz W_hz b_z\n" in shown
    assert re.search(r"\n  mgu +variants/mgu.py cannot be used: it has no method `step`\n", shown)
    assert re.search(r"\n  draft +variants/draft.py cannot be used: invalid syntax \(line 1\)\n", shown)


def test_options_serve_ablate_too(fake: list[Run], tmp_path: Path) -> None:
    common = ["--corpus", "embedded", "--device", "cpu", "--seeds", "1", "--results", str(tmp_path)]
    assert (
        command.main(["ablate", "--variants", "gru", "gru:Z=.5", "--set", "hidden=5", "--set", "init=book", *common])
        == 0
    )
    assert {r.variant for r in fake} == {"gru", "gru:Z=0.5"}
    assert {(r.protocol.hidden, r.protocol.init, r.protocol.name) for r in fake} == {(5, "book", "quick")}


def test_sweep_times_by_size_and_seeds(fake: list[Run], tmp_path: Path) -> None:
    words = [
        "sweep",
        "--corpus",
        "embedded",
        "--device",
        "cpu",
        "--results",
        str(tmp_path),
        "--variants",
        "gru",
        "nn.gru",
    ]
    assert command.main(words) == 0
    assert not fake  # nothing is trained
    speed = pd.read_csv(tmp_path / "speed.csv")
    engines = [engine for engine, refusal in variants.refusals("gru").items() if not refusal]
    first = {f"gru {engine}, 256 x {seeds}" for engine in engines for seeds in (1, 8)}
    rest = {f"gru {engines[0]}, {h} x 1" for h in (128, 512)} | {f"nn.gru library, {h} x 1" for h in (128, 256, 512)}
    assert set(speed["label"]) == first | rest | {"nn.gru library, 256 x 1#2"}
    assert (speed.groupby("label")["round"].nunique() == timing.ROUNDS).all()
    assert set(speed["hidden"]) == {128, 256, 512}
    assert command.main(words) == 0
    assert len(pd.read_csv(tmp_path / "speed.csv")) == len(speed)
    full = planning.sizes([planning.planned("sweep", command.parser().read([*words, "--full"]))], full=True)
    assert {c.seeds for c in full if c.run.engine != "library"} == {1, 8, 30}
    assert {c.seeds for c in full if c.run.engine == "library"} == {1}


def test_until_decided_stops_at_the_first_look_at_which_all_is(
    fake: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ablate", "--corpus", "embedded", "--device", "cpu", "--seeds", "until-decided", "--no-timing", *TINY,
             "--results", str(tmp_path), "--variants", "gru"]  # fmt: skip
    assert command.main([*words, "gru:R=0", "--max", "30"]) == 0  # fakes differ by 0.2 from the first seed on
    assert len(fake) == 2 * 10
    table = tables.read(tmp_path).ablate.set_index("variant")
    assert (table.looks["gru:R=0"], table.pairs["gru:R=0"], table.verdict["gru:R=0"]) == (4, 10, "worse")
    assert table.p_holm["gru:R=0"] == pytest.approx(4 * 2 / 2**10)
    runs = tables.read(tmp_path).runs.pivot(index="seed", columns="variant", values="heldout_perplexity")
    low, high, _, _ = stats.interval(np.log(runs["gru:R=0"] / runs["gru"]), 0.9875)
    assert (table.delta_low["gru:R=0"], table.delta_high["gru:R=0"]) == pytest.approx((low, high), rel=1e-9)
    assert "all decided" in capsys.readouterr().out
    page = report.html(tables.read(tmp_path))
    assert "up to 4 times" in page
    assert "98.75 %" in page
    assert "Holm over 1)" in page


def test_until_decided_goes_on_to_its_end_where_nothing_decides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fake: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_decided", lambda *rest: False)
    words = ["ablate", "--corpus", "embedded", "--device", "cpu", "--seeds", "until-decided", "--max", "16",
             "--no-timing", *TINY, "--results", str(tmp_path), "--variants", "gru", "rnn"]  # fmt: skip
    assert command.main(words) == 0
    assert len(fake) == 2 * 16
    assert [run.seed for run in fake] == [seed for seed in range(16) for _ in range(2)]  # none trained twice


def test_looks_are_fixed_by_the_grid_alone() -> None:
    assert grids.interim_analyses(1, 30) == (10, 17, 23, 30)
    assert grids.interim_analyses(8, 30) == (11, 17, 24, 30)  # 10 pairs could not pass Holm over 8 at a quarter of 5 %
    assert grids.interim_analyses(8, 5) == (5,)


@pytest.mark.parametrize(("words", "said"), [
    (["--max", "20"], "give that too"),
    (["--seeds", "until-decided", "--max", "0"], "max is a whole number"),
    (["--seeds", "until"], "seeds is a whole number"),
])  # fmt: skip
def test_max_belongs_to_until_decided(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["ablate", "--corpus", "embedded", "--device", "cpu", "--results", str(tmp_path), *words]
    assert command.main(asked) == 2
    assert said in capsys.readouterr().err


def test_the_installed_command_is_the_one_that_is_run_here() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["gru-bench"].partition(":")
    assert getattr(importlib.import_module(module), name) is command.command


def test_shards_merged_are_the_grid_that_was_never_divided(
    tmp_path: Path, fake: list[Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each seed is in one shard, with every variant; each shard has a folder of its own; the packed merge too."""
    monkeypatch.chdir(tmp_path)
    words = ["bench", "--corpus", "embedded", "--seeds", "3", "--variants", "rnn", "gru"]
    assert command.main([*words, "--no-timing", "--results", "whole"]) == 0
    for part in ("1/2", "2/2"):
        fake.clear()
        assert command.main([*words, "--shard", part]) == 0
        assert {(r.variant, r.seed) for r in fake} == {(v, s) for v in ("rnn", "gru") for s in range(3)
                                                       if s % 2 == int(part[0]) - 1}  # fmt: skip
        assert ", nothing is timed" not in (said := capsys.readouterr().out)
        assert f"of them {len(fake)} in shard {part}" in said
    assert command.main(["pack", "--results", "results/shard-2-of-2"]) == 0
    folders = ["results/shard-1-of-2", "results/shard-2-of-2"]
    assert command.main(["merge", *folders, "--results", "merged"]) == 0
    assert "merged: 6 trainings in merged, 6 of them new" in capsys.readouterr().out
    for name in ("runs", "bench", "curves"):
        one, other = (pd.read_csv(tmp_path / folder / f"{name}.csv") for folder in ("whole", "merged"))
        moving = [c for c in one if c in ("started", "speed_session", "environment")]
        pd.testing.assert_frame_equal(one.drop(columns=moving), other.drop(columns=moving))
    fake.clear()
    assert command.main([*words, "--no-timing", "--results", "merged"]) == 0
    assert not fake  # all is done
    for wrong, why in ((["--shard", "0/2"], "1/4 to 4/4"), (["--shard", "1/4"], "of which there are 3"),
                       (["--on", "dask"], "no cluster 'dask'"), (["--on", "ray:host"], "no cluster 'ray:host'"),
                       (["--mixed"], "--on ray")):  # fmt: skip
        assert command.main([*words, *wrong]) == 2
        assert why in capsys.readouterr().err


def test_a_shard_of_what_chooses_learning_rates_is_merged_first(
    tmp_path: Path, fake: list[Run], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["bench", "--corpus", "embedded", "--seeds", "2", "--variants", "gru", "--no-timing",
             "--set", "rate=chosen", "validation_characters=500"]  # fmt: skip
    for part in ("1/2", "2/2"):
        assert command.main([*words, "--shard", part]) == 0
        assert f"shard {part}: its part of what chooses" in capsys.readouterr().out
    assert not (tmp_path / "results/shard-1-of-2/bench.csv").exists()
    folders = ["results/shard-1-of-2", "results/shard-2-of-2"]
    assert command.main(["merge", *folders, "--results", "both"]) == 0
    fake.clear()
    assert command.main([*words, "--shard", "1/2", "--results", "both"]) == 0
    assert [run.seed for run in fake] == [0]


def test_what_a_signal_makes_of_an_import_is_a_stop_and_without_a_signal_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in the middle of `import numpy`, and the next import of it says: cannot load module more than once."""

    def run(options: object) -> int:
        raise ImportError("cannot load module more than once per process")

    monkeypatch.setattr("harness.pipeline.run", run)
    with pytest.raises(ImportError):
        command.main(["bench"])
    monkeypatch.setattr(command, "_asked", signal.SIGTERM)
    assert command.main(["bench"]) == 143
    assert capsys.readouterr().err.startswith("stopped; ")


def test_a_second_signal_while_what_is_kept_is_counted_has_its_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(options: object) -> int:
        raise pipeline.Interrupted([])

    def again(*_: object) -> int:
        raise command.Stopped(signal.SIGINT)

    ignored: list[int] = []
    monkeypatch.setattr("harness.pipeline.run", run)
    monkeypatch.setattr(command, "_stopped", again)
    monkeypatch.setattr(signal, "signal", lambda number, handler: ignored.append(number))
    assert command.main(["bench"]) == 130
    assert not ignored  # the caller's signals are the caller's
    capsys.readouterr()
    monkeypatch.setattr(signal, "getsignal", lambda number: command._stop)
    assert command.main(["bench"]) == 130
    assert capsys.readouterr().err == "stopped; what is finished is kept, and the same command goes on\n"
    assert signal.SIGINT in ignored
