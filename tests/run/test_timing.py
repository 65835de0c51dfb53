"""The clock: a fresh process a sample, whole steps, and what went wrong is an answer too."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import math
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import harness
import variants
from harness import __main__ as command
from harness import pipeline
from harness.analysis import speed
from harness.experiments.protocols import Protocol
from harness.experiments.runs import Candidate, Run
from harness.report import select
from harness.report.sections import speed as speed_section
from harness.run import latency, machine, process, roofline, timing
from variants.engines import native
from variants.model import Model

WITHOUT = native.unsupported_reason(variants.get("gru"))
RUN = Run("rnn", 0, Protocol(hidden=8, batch_size=4, num_steps=5), "sha", "cpu")


@pytest.fixture(scope="module")
def answer() -> Iterator[timing.Answer]:
    """In a folder that is not this one, of a Python that was told to look in no folder but its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir("/")
        patch.setenv("PYTHONSAFEPATH", "1")
        yield timing.sample(dataclasses.replace(RUN, deterministic=True), vocabulary=28, threads=1)


def test_what_the_environment_tells_threads_is_recorded_and_said_where_it_slows_what_is_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(timing, "compare", lambda *what: iter(()))
    monkeypatch.setattr("harness.run.executors.local.cores", lambda: 2)
    for name in machine.thread_settings():
        monkeypatch.delenv(name)
    contenders = [Candidate("rnn", RUN)]

    def session() -> str:
        pipeline._time(contenders, 28, tmp_path, name := pipeline._session("bench", contenders, "cpu"))
        return name

    plain = session()
    assert machine.environment("cpu")["thread_settings"] == ""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # each sample is told how many
    assert session() == plain
    assert capsys.readouterr().err == ""
    for name, value in (("OMP_WAIT_POLICY", "Passive"), ("GOMP_SPINCOUNT", "0"), ("KMP_BLOCKTIME", "0ms")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert machine.environment("cpu")["thread_settings"] in (
                f"OMP_NUM_THREADS=7 {name}={value}", f"{name}={value} OMP_NUM_THREADS=7"
            )  # fmt: skip
            assert session() != plain
            assert f"note: {name}={value} makes threads sleep" in capsys.readouterr().err
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    session()
    assert capsys.readouterr().err == ""


def test_a_sample_is_a_fresh_process_with_blocks(answer: timing.Answer) -> None:
    assert "error" not in answer
    blocks = answer["blocks"]
    assert len(blocks) >= timing.BLOCKS
    for block in blocks:
        rate = 4 * 5 / (block["step_ms"] / 1000)  # a step is batch_size x num_steps characters
        assert math.isclose(block["tokens_per_sec"], rate, rel_tol=1e-9)
        assert block["cpu_per_wall"] > 0
        assert isinstance(block["disturbed"], bool)
    assert answer["first_step_ms"] > 0
    assert answer["environment"]["threads"] == 1
    assert answer["environment"]["flush_denormal"] is True
    assert answer["environment"]["device"] == "cpu"
    assert "mm" in answer["kernels"]
    assert answer["repeat_difference"] == 0  # the same seed, the same bits


def test_two_trainings_that_differ_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = torch.randint(28, (timing.WINDOWS * 5 + 1, 1, 4), generator=torch.Generator().manual_seed(0))
    assert timing.repeat_difference(RUN, 28, streams) == 0
    real, turn = Model.update, iter([1.0, *[1.0] * 2, 0.5, *[1.0] * 100])  # one update of the first is half as long
    monkeypatch.setattr(Model, "update", lambda model, lr, *rest: real(model, lr * next(turn), *rest))
    assert timing.repeat_difference(RUN, 28, streams) > 1e-4


def test_deterministic_is_set_in_the_process_that_is_timed(answer: timing.Answer) -> None:
    assert answer["environment"]["deterministic"] is True
    assert answer["environment"]["cublas_workspace"] == ":4096:8"
    assert answer["repeat_difference"] == 0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no high-water mark to reset on this system")
def test_memory_is_what_the_steps_took(answer: timing.Answer) -> None:
    """More than its weights, and not what importing torch takes, which is hundreds of MiB."""
    assert 0 < answer["peak_memory_mib"] < 100


@pytest.mark.parametrize(
    ("run", "patience", "said"),
    [
        (Run("rnn", 0, Protocol(), "sha", "cpu"), 0.01, "timeout: no answer within 0.01 s"),
        (Run("nonsense", 0, Protocol(), "sha", "cpu"), 60.0, "crashed: ValueError: no variant 'nonsense'"),
    ],
)
def test_what_goes_wrong_is_an_answer(run: Run, patience: float, said: str) -> None:
    answer = timing.sample(run, vocabulary=28, threads=1, patience_s=patience)
    assert answer["error"].startswith(said)
    assert "\n" not in answer["error"]


def test_every_contender_once_a_round_in_changing_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "sample", lambda run, vocabulary, threads, seeds, *how: {"seed": run.seed})
    contenders = [Candidate(f"c{k}", Run("rnn", k, Protocol(), "sha", "cpu")) for k in range(5)]
    seen = [(number, c.label, a["seed"]) for number, c, [a] in timing.compare(contenders, 28, 1, [0, 1, 4])]
    assert collections.Counter(number for number, _, _ in seen) == {0: 5, 1: 5, 4: 5}
    orders = [[label for n, label, _ in seen if n == number] for number in (0, 1, 4)]
    assert all(sorted(order) == ["c0", "c1", "c2", "c3", "c4"] for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert all(label == f"c{seed}" for _, label, seed in seen)


def quiet(*disturbed: bool) -> timing.Answer:
    return {"blocks": [{"disturbed": d} for d in disturbed]}


def timed(monkeypatch: pytest.MonkeyPatch, answers: dict[str, list[timing.Answer]], each_s: float = 1.0) -> list[str]:
    """What `compare` gives of contenders in one round, each answering in turn, `each_s` a sample by the clock."""
    begun: list[Run] = []
    monkeypatch.setattr("harness.run.timing.time.monotonic", lambda: each_s * len(begun))

    def sample(run: Run, vocabulary: int, threads: int, seeds: int, *how: object) -> timing.Answer:
        begun.append(run)
        return answers[run.variant].pop(0)

    monkeypatch.setattr(timing, "sample", sample)
    contenders = [Candidate(v, Run(v, 0, Protocol(), "sha", "cpu")) for v in answers]
    given = list(timing.compare(contenders, 28, 1, [0]))
    return [f"{c.label} {timing.settled(a).get('error', timing.disturbed(timing.settled(a)))}" for _, c, a in given]


def test_a_sample_disturbed_throughout_is_repeated_after_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "rnn": [quiet(True, True), quiet(True, False)],
        "gru": [quiet(True, False)],
        "lstm": [quiet(True), quiet(True), quiet(True), quiet(False)],  # as often as REPEATS says, and no oftener
        "mgu": [quiet(True), {"error": "crashed: x"}, quiet(False)],
    }
    given = timed(monkeypatch, answers)
    assert sorted(given[:4]) == ["gru False", "lstm True", "mgu True", "rnn True"]
    assert sorted(given[4:7]) == ["lstm True", "mgu True", "rnn False"]  # a repeat that crashed is no answer
    assert sorted(given[7:]) == ["lstm True", "mgu False"]
    assert [len(left) for left in answers.values()] == [0, 0, 1, 0]


def test_on_a_machine_that_stays_busy_timing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within what was said, with a row for what was not timed."""
    assert timing.limit_s(3) == 600
    assert timing.limit_s(100) == 3000
    given = timed(monkeypatch, {v: [quiet(True)] * 9 for v in ("rnn", "gru", "lstm")}, each_s=301.0)
    assert [line.partition(" ")[2] for line in given] == [
        "True", "True", "timeout: the 10 minutes for timing were over",
    ]  # fmt: skip


def test_errors_are_typed() -> None:
    assert process.describe(MemoryError()).startswith("oom: ")
    assert (
        process.describe(RuntimeError("CUDA out of memory.\nTried")) == "oom: RuntimeError: CUDA out of memory. Tried"
    )
    assert process.describe(ValueError("a\nb")) == "crashed: ValueError: a b"


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="no /proc/stat on this system")
def test_work_done_anywhere_is_seen() -> None:
    """What this process does counts too: the difference between all and ours is what others do."""
    before, own = timing._busy_s(), time.process_time()
    while time.process_time() - own < 0.3:
        pass
    after = timing._busy_s()
    assert before is not None
    assert after is not None
    assert after - before >= 0.2  # counted in hundredths


@pytest.mark.parametrize("threads", [1, 2])
def test_a_block_beside_others_is_disturbed(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """All processors are ours here, so one second of others' work in each block is too much; none is none."""
    monkeypatch.setattr(timing, "BLOCK_S", 0.01)
    monkeypatch.setattr(timing, "WARM_S", 0.0)
    monkeypatch.setattr(timing, "SWITCHES_PER_S", math.inf)
    monkeypatch.setattr(timing, "measure_peaks", lambda device: (1e9, 3.0))
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)  # more than processors: none is free, not minus one
    for each, disturbed in ((1.0, True), (0.0, False)):
        clock = itertools.count(0.0, each)
        monkeypatch.setattr(timing, "_busy_s", lambda clock=clock: next(clock))
        blocks = timing.time_steps(RUN, vocabulary=28)["blocks"]
        assert {b["disturbed"] for b in blocks} == {disturbed}
        assert len(blocks) == timing.BLOCKS * (1 + disturbed)  # run again, and kept


def test_work_of_a_step_by_hand() -> None:
    """6 operations a character and weight that multiplies a state: its gates and candidate, and the output layer."""
    from variants.model import Model

    h, v = 4, 28
    for variant, square in {"rnn": 1, "gru": 3, "gru:R=1": 2, "gru:Z=0,R=0": 0, "nn.gru": 3, "lstm": 4}.items():
        model = Model(variant, v, h, [0])
        assert roofline.gflop_per_step(model, 10) == pytest.approx(6 * 10 * (square * h * h + h * v) / 1e9), variant


def test_the_share_of_the_ceiling_is_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "BLOCK_S", 0.01)
    monkeypatch.setattr(timing, "WARM_S", 0.0)
    monkeypatch.setattr(timing, "measure_peaks", lambda device: (2.0, 3.0))
    answer = timing.time_steps(RUN, vocabulary=28)
    assert (answer["peak_gflops"], answer["copy_gib_per_s"]) == (2.0, 3.0)
    for block in answer["blocks"]:
        reached = answer["gflop"] / (block["step_ms"] / 1000)
        assert block["percent_of_peak"] == pytest.approx(100 * reached / 2.0)


def test_a_step_is_never_above_the_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the machine was busier while the ceiling was measured than while the steps were."""
    monkeypatch.setattr(timing, "BLOCK_S", 0.01)
    monkeypatch.setattr(timing, "WARM_S", 0.0)
    monkeypatch.setattr(timing, "measure_peaks", lambda device: (1e-9, 3.0))
    blocks = timing.time_steps(RUN, vocabulary=28)["blocks"]
    assert max(block["percent_of_peak"] for block in blocks) == pytest.approx(100)


def test_the_ceiling_is_the_faster_of_torch_s_product_and_our_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an AMD processor torch's own reaches less than half of it."""
    monkeypatch.setattr(native, "arithmetic", lambda times: 1e15)
    assert roofline.measure_peaks("cpu")[0] > 1e6
    monkeypatch.setattr(native, "arithmetic", lambda times: 0.0)  # no compiler
    assert 0.1 < roofline.measure_peaks("cpu")[0] < 1e6


@pytest.mark.skipif(bool(WITHOUT), reason=WITHOUT or "it runs")
def test_what_our_kernel_does_is_counted() -> None:
    """A product of MR rows of 96 with a panel, however wide both are, as often as asked, on every thread."""
    one = native.arithmetic(1)
    assert one > 0
    assert one % (2 * 96 * torch.get_num_threads()) == 0
    assert native.arithmetic(1000) == 1000 * one


class Machine:
    """A clock and a step that moves it: as if compiling first, and slow until `warm_s` have passed."""

    def __init__(self, first_s: float, warm_s: float) -> None:
        self.now, self.began, self.first_s, self.warm_s = 0.0, 0.0, first_s, warm_s

    def clock(self, device: str) -> float:
        return self.now

    def epoch(self, *given: object, windows: int, **more: object) -> None:
        if not self.began:
            self.now += self.first_s
            self.began = self.now
            return
        self.now += windows * (0.002 if self.now - self.began < self.warm_s else 0.001)


@pytest.mark.parametrize("seeds", [1, 3])
def test_neither_the_first_step_nor_a_cold_machine_is_in_a_block(monkeypatch: pytest.MonkeyPatch, seeds: int) -> None:
    """And what several seeds reach side by side is counted of all of them."""
    machine = Machine(first_s=7.0, warm_s=0.25)
    monkeypatch.setattr("harness.run.progress.clock", machine.clock)
    monkeypatch.setattr("harness.run.train.epoch_of", machine.epoch)
    monkeypatch.setattr(timing, "measure_peaks", lambda device: (1e9, 3.0))
    monkeypatch.setattr(timing, "_kernels", lambda step, device: "")
    answer = timing.time_steps(RUN, vocabulary=28, seeds=seeds)
    assert answer["first_step_ms"] == pytest.approx(7000.0)
    for block in answer["blocks"]:
        assert block["step_ms"] == pytest.approx(1.0)
        assert block["tokens_per_sec"] == pytest.approx(seeds * 4 * 5 * 1000)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no high-water mark to reset on this system")
def test_memory_used_before_is_not_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "BLOCK_S", 0.01)
    monkeypatch.setattr(timing, "WARM_S", 0.0)
    monkeypatch.setattr(timing, "measure_peaks", lambda device: (1e9, 3.0))
    before = torch.ones(2**27)  # 512 MiB
    del before
    assert timing.time_steps(RUN, vocabulary=28)["peak_memory_mib"] < 256


def test_a_floor_is_the_longer_of_work_and_waiting(answer: timing.Answer) -> None:
    assert roofline.lower_bound_ms(1.42, 330.0, 35, None) == pytest.approx(4.303, abs=0.001)
    assert roofline.lower_bound_ms(1.42, 50_000.0, 35, 1.2) == pytest.approx(0.084)  # 70 dependent kernels
    assert roofline.lower_bound_ms(1.42, 10_000.0, 35, 1.2) == pytest.approx(0.142)
    assert answer["node_gap_us"] is None  # of a GPU
    block = answer["blocks"][0]
    assert answer["floor_ms"] / block["step_ms"] == pytest.approx(block["percent_of_peak"] / 100)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
def test_a_gap_between_kernels_of_a_gpu_is_microseconds() -> None:
    assert 0.1 < roofline.node_gap_us() < 100


def test_a_ceiling_is_a_rate() -> None:
    rate, copied = roofline.measure_peaks("cpu")
    assert rate > 0.1
    assert copied > 0.01


def test_the_commit_is_this_codes_whatever_a_git_hook_has_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = machine._commit()
    other = tmp_path / "other"
    identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
    try:
        subprocess.run(["git", "init", "-q", str(other)], check=True)
        subprocess.run(["git", "-C", str(other), *identity, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    except FileNotFoundError:
        pytest.skip("there is no git here")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    assert machine._commit() == own


# ---- one step of one sequence


@pytest.mark.parametrize(
    ("variant", "engine", "told"),
    [
        ("gru", "native", {"recurrence", "head", "update", "python"}),
        ("gru", "loop", {"products", "pointwise", "head", "update", "python"}),
        ("ligru", "native", {"products", "pointwise", "recurrence", "head", "update", "python"}),
        ("nn.gru", "library", {"products", "pointwise", "head", "update", "python"}),
        ("gru:Z=1", "loop", {"products", "pointwise", "head", "update", "python"}),
    ],
)
def test_latency_is_of_single_steps_and_the_parts_of_a_training_step_are_all_of_it(
    variant: str, engine: str, told: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if variants.refusals(variant)[engine]:
        pytest.skip(variants.refusals(variant)[engine])
    for module, name, few in ((latency, "STEPS", 20), (latency, "PROFILED", 2), (latency, "REPEATED", 1),
                              (timing, "WARM_S", 0.0)):  # fmt: skip
        monkeypatch.setattr(module, name, few)
    protocol = Protocol(num_steps=4, batch_size=3, hidden=8, layers=1 + (variant != "ligru"),
                        embedding=5 * (engine == "library"))  # fmt: skip
    answer = latency.measure(Run(variant, 0, protocol, "", "cpu", engine), 11)
    assert "error" not in answer, answer
    assert len(answer["blocks"]) == timing.BLOCKS
    for block in answer["blocks"]:
        assert 0 < block["p50_us"] <= block["p99_us"]
        assert block["mean_us"] > 0
        assert block["disturbed"] in (True, False)
    shares = {part: answer[f"{part}_percent"] for part in latency.PARTS}
    assert {part for part, share in shares.items() if share is not None} >= told - {"recurrence"}
    assert sum(share or 0.0 for share in shares.values()) == pytest.approx(100)
    assert all(share is None or share >= 0 for share in shares.values())
    assert answer["step_ms"] > 0
    assert answer["tokens_per_sec_batch"] > 0


def test_an_engine_that_disagrees_has_no_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "max_abs_error", lambda *how: 0.5)
    found = latency.measure(Run("gru", 0, Protocol(num_steps=4, batch_size=3, hidden=8), "", "cpu", "fused"), 11)
    assert found["error"].startswith("disagrees: fused")


@pytest.mark.usefixtures("in_process", "elsewhere")
def test_latency_has_a_table_a_section_and_an_answer_and_is_no_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Medians of undisturbed blocks over samples; a failed candidate is a row with its reason, and status 1."""
    asked: list[str] = []

    def sample(run: Run, *how: object) -> timing.Answer:
        asked.append(f"{run.variant} {run.engine} {how[-1]}")
        if run.engine == "loop":
            return {"error": "crashed: no word why"}
        p50 = (30.0 if run.variant == "nn.gru" else 20.0) + len(asked) / 100
        blocks = [{"block": k, "steps": 500, "p50_us": p50 * (1 + 9 * (k == 0)), "p99_us": 2 * p50,
                   "mean_us": 1.1 * p50, "disturbed": k == 0} for k in range(3)]  # fmt: skip
        return {"blocks": blocks, "tokens_per_sec_batch": 1e6, "step_ms": 1.5, "recurrence_percent": 60.0,
                "head_percent": 40.0, "environment": {"torch": "1"}}  # fmt: skip

    monkeypatch.setattr(timing, "sample", sample)
    words = ["latency", "--variants", "gru", "nn.gru", "--device", "cpu", "--protocol", "quick"]
    assert command.main(words) == 1
    out, err = capsys.readouterr()
    assert len(asked) == len(set(asked)) * 5 + 5  # 5 rounds, and the A/A control
    assert all(word.endswith(" latency") for word in asked)
    assert "gru (loop): crashed" in err
    assert re.search(r"nn\.gru +library +30\.\d \[", out)
    found = harness.read()
    assert found.speed.empty
    rows = speed.latencies(found.latency)
    assert rows.label[0].startswith("gru")
    assert sorted(rows[rows.label.str.startswith("nn.gru")].label) == ["nn.gru", "nn.gru#2"]
    assert (rows.p50_us < 40).all()  # no disturbed block
    assert rows.products_percent.isna().all()
    assert set(found.latency[found.latency.error.notna()].label) >= {"gru (loop)"}
    section = speed_section.latency(select.typed(found))
    assert section is not None
    assert "timed twice" in " ".join(section.said)
    assert section.table is not None
    assert [cell.text for cell in section.table.rows[0]][-6:] == ["", "", "60", "40", "", ""]
    asked.clear()
    alone = ["latency", "--variants", "gru", "--device", "cpu", "--engine", "fused", "--results", "other", "--json"]
    assert command.main(alone) == 0
    assert len(json.loads(capsys.readouterr().out)["latency"]) == 5 * 2 * 3
