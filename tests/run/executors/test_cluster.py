"""The driver of a cluster, by a cluster made up; and the real ones, each where it is there."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from faults import cluster as faults

from harness import __main__ as command
from harness import files
from harness.data import embedded
from harness.experiments.protocols import Protocol
from harness.experiments.runs import Run
from harness.plan import Where
from harness.record import store
from harness.run.executors import Finished, InProgress, group_batchable, local, ray, slurm
from harness.run.outcome import Outcome

TINY = Protocol(train_characters=300, heldout_characters=100, batch_size=4, num_steps=5, hidden=4, epochs=2)
RUNS = [Run("rnn", seed, TINY, "sha", "cpu") for seed in range(6)]


class Fake:
    """A cluster that trains in no time what it was given first, until a node of it is ended."""

    def __init__(self, **nodes: int) -> None:
        self.alive, self.facts = dict(nodes), {"bits": "aaaaaaaa", "host": "n"}
        self.of: dict[str, dict[str, Any]] = {}  # facts by node
        self.at: dict[int, str] = {}
        self.given: dict[int, list[tuple[int, list[Run]]]] = {}
        self.begun: list[tuple[int, Run, bytes | None]] = []
        self.stopped: list[int] = []
        self.ready: list[int] = []
        self.send: list[ray.Event] = []
        self.before: Callable[[Fake], None] = lambda fake: None

    def nodes(self) -> dict[str, int]:
        return dict(self.alive)

    def start(self, place: int, node: str) -> None:
        self.at[place], self.given[place] = node, []
        self.ready.append(place)

    def train(self, place: int, job: int, group: Sequence[Run], standing: bytes | None) -> None:
        self.begun.append((job, group[0], standing))
        self.given[place].append((job, list(group)))

    def events(self, seconds: float) -> list[ray.Event]:
        self.before(self)
        events, self.send = self.send, []
        events += [ray.Ready(p, {**self.facts, **self.of.get(self.at[p], {})}) for p in self.ready if p in self.at]
        self.ready = []
        for place, jobs in self.given.items():
            if jobs and self.at.get(place) in self.alive:
                job, group = jobs.pop(0)
                ppl = 7.0 if self.of.get(self.at[place], self.facts)["bits"] == "aaaaaaaa" else 7.07
                done = [Finished(r, Outcome(heldout_perplexity=ppl), 1.0, 1, 0.1, "", dict(self.facts)) for r in group]
                events += [ray.Sign(job, InProgress(tuple(group), 0.5, 7.0)), ray.Answered(job, tuple(done))]
        return events

    def stop(self, place: int) -> None:
        self.stopped.append(place)
        self.at.pop(place, None)


def drive(link: Fake, runs: Sequence[Run], folder: Path, mixed: bool = False) -> list[Finished]:
    driver = ray.Driver(
        link, "ray at h:1", group_batchable(runs), Where("ray:h:1", mixed), folder, lambda sign: None, store.checkpoint
    )
    return list(driver.results())


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "LOOK_S", 0.0)


def test_every_run_is_yielded_once_and_the_first_line_says_on_what(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = Fake(a=2, b=1)
    ended = drive(link, RUNS, tmp_path)
    assert sorted(f.run.seed for f in ended) == list(range(6))
    assert {(f.together, f.environment["bits"], "host" in f.environment) for f in ended} == {(None, "aaaaaaaa", False)}
    assert capsys.readouterr().out.startswith("ray at h:1: 2 nodes, 3 processors, one class of bits, torch ")
    assert sorted(link.stopped) == sorted(link.given)  # nothing is left on any node
    assert "ray" not in sys.modules


def test_runs_of_a_node_that_is_gone_go_to_another_from_their_checkpoint_and_count_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = Fake(a=1, b=1)
    lost: list[tuple[int, Run]] = []

    def before(link: Fake) -> None:
        if not lost and len(link.begun) >= 2 and any(link.given.values()):
            [place] = [p for p, node in link.at.items() if node == "b"]
            job, (run, *_) = link.given[place][0]
            lost.append((job, run))
            link.send.append(ray.Kept(job, b"half of it"))
            del link.alive["b"]
        elif lost and "b" not in link.alive:
            job, run = lost[0]
            twice = Finished(run, Outcome(heldout_perplexity=9.9), 1.0, 1, 0.1, "", {})
            link.send.append(ray.Answered(job, (twice,)))  # the link healed: what it trained comes after all
            link.alive["b"] = 1

    link.before = before
    ended = drive(link, RUNS, tmp_path)
    assert sorted(f.run.seed for f in ended) == list(range(6))
    assert {f.outcome.heldout_perplexity for f in ended} == {7.0}
    [again] = [standing for job, run, standing in link.begun if run == lost[0][1] and job != lost[0][0]]
    assert again == b"half of it"
    assert f"note: {lost[0][1].key} is handed out again: its node is gone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("oom", "why", "times"),
    [(False, "crashed: 4 times its node or its Ray process ended under it: ActorDiedError", 4),
     (True, "oom: the system ended its process, which had no memory left", 1)],
)  # fmt: skip
def test_a_run_under_which_every_processor_ends_is_one_row_and_no_innocent_run_is(
    oom: bool, why: str, times: int, tmp_path: Path
) -> None:
    link = Fake(a=1)

    def before(link: Fake) -> None:
        for place, jobs in link.given.items():
            if jobs and jobs[0][1][0].seed == 0 and place in link.at:
                link.send.append(ray.Lost(place, "ActorDiedError", oom))
                jobs.clear()

    link.before = before
    ended = drive(link, RUNS[:3], tmp_path)
    assert {f.run.seed: f.outcome.error for f in ended} == {0: why, 1: "", 2: ""}
    assert sum(run.seed == 0 for _, run, _ in link.begun) == times
    [bad] = [f for f in ended if f.outcome.error]
    assert (bad.environment, bad.load, bad.together) == ({}, None, None)  # nothing is known of its machine


def test_nodes_that_do_not_train_to_the_same_bits_are_refused_or_mixed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = Fake(a=1, b=1)
    link.of = {"b": {"bits": "bbbbbbbb"}}
    with pytest.raises(ValueError, match=r"2 classes of bits \(1 of aaaaaaaa, 1 of bbbbbbbb\): .* --mixed \(MIXED=1\)"):
        drive(link, RUNS, tmp_path)
    assert not link.begun
    link = Fake(a=1, b=1)
    link.of = {"b": {"bits": "bbbbbbbb"}}
    ended = drive(link, RUNS, tmp_path, mixed=True)
    assert sorted(f.run.seed for f in ended) == list(range(6))  # seed 0 was trained twice, and is yielded once
    assert sum(run.seed == 0 for _, run, _ in link.begun) == 2
    assert "mixed: 1 training ran on two classes of bits; largest difference 0.01 nats" in (capsys.readouterr().out)
    link = Fake(a=1, b=1)
    link.of = {"b": {"torch": "9.9", "host": "far"}}
    with pytest.raises(ValueError, match=r"far has torch 9\.9, this machine 2\.\S+: install the same on both"):
        drive(link, RUNS, tmp_path)


def test_without_ray_or_a_cluster_one_line_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    size = ["train_characters=300", "heldout_characters=100", "batch_size=4", "num_steps=5", "epochs=1"]
    words = [
        "bench",
        "--corpus",
        "embedded",
        "--no-timing",
        "--seeds",
        "1",
        "--variants",
        "rnn",
        "--set",
        *size,
        "--results",
    ]
    assert command.main([*words, str(tmp_path / "r"), "--on", "ray"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: --on ray needs Ray: pip install 'gru-bench[ray]'"
    with pytest.raises(ValueError, match=r"no Ray at 127\.0\.0\.1:1: Connection refused; on its first node: ray start"):
        ray._reachable("127.0.0.1:1")
    assert command.main(["sweep", "--on", "ray"]) == 2
    assert "sweep takes no --on" in capsys.readouterr().err


@pytest.mark.skipif(bool(faults.missing("ray")), reason=faults.missing("ray") or "there")
def test_on_a_real_cluster_nothing_is_lost() -> None:
    assert [(tally.fault, tally.lost) for tally in faults.faults(quick=True) if tally.lost] == []


def test_stderr_is_not_held_back_where_python_is_unbuffered() -> None:
    """PYTHONUNBUFFERED=1, as containers have it: a note of a run of hours is said when it happens."""
    code = "import os, sys; from harness.run.process import keep_streams; keep_streams(); "
    code += "print('note', file=sys.stderr); os._exit(0)"
    env, root = {**os.environ, "PYTHONUNBUFFERED": "1"}, Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stderr == "note\n"


class FakeSlurm:
    """Programs of Slurm that run a job when asked about it. `ends`: jobs that are killed in their first run."""

    def __init__(self, *ends: str) -> None:
        self.batches: dict[str, list[str]] = {}
        self.killed, self.ended, self.asked = set(ends), dict[tuple[str, str], str](), list[str]()
        self.jobs = Path()

    def __call__(self, words: Sequence[str], input: str | None = None) -> subprocess.CompletedProcess[str]:
        said, self.asked = "", [*self.asked, words[0]]
        if words[0] == "sinfo":
            said = "all*|2|0/2/0/2"
        elif words[0] == "sbatch":
            options = dict(word[2:].partition("=")[::2] for word in words[1:])
            self.jobs = Path(options["chdir"])
            last = int(options["array"].partition("-")[2])
            self.batches[options["job-name"]] = [str(k) for k in range(last + 1)]
            assert input is not None
            assert "pickle" not in input
        elif words[0] == "squeue":
            for batch, numbers in self.batches.items():
                for number in numbers:
                    if (batch, number) not in self.ended:
                        self.ended[batch, number] = self.train(batch, number)
            said = "".join(f"{batch}|{number}|{state}\n" for (batch, number), state in self.ended.items())
        return subprocess.CompletedProcess(list(words), 0, said, "")

    def train(self, batch: str, number: str) -> str:
        if number in self.killed:
            self.killed.discard(number)
            [first, *_] = json.loads(files.unsealed(self.jobs / f"_{batch}.{number}.json")[0])["runs"]
            (self.jobs / f"{slurm.as_run(first).key}.sign").write_text("[0.5, null]")
            return "FAILED"
        slurm.work(self.jobs, batch, number)
        return "COMPLETED"


def on_slurm(fake: FakeSlurm, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Finished]:
    monkeypatch.setattr(slurm, "run_quietly", fake)
    monkeypatch.setattr(slurm, "LOOK_S", 0.0)
    monkeypatch.setattr("shutil.which", lambda name: name)
    return list(slurm.execute(RUNS, embedded.embedded(), Where("slurm"), folder, lambda sign: None, store.checkpoint))


def test_jobs_of_slurm_give_what_this_machine_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: None
) -> None:
    fake = FakeSlurm()
    ended = on_slurm(fake, tmp_path, monkeypatch)
    assert sorted(f.run.seed for f in ended) == list(range(6))
    for finished in ended:
        [here] = local._one([finished.run], embedded.embedded(), 1, lambda sign: None)
        assert dataclasses.replace(finished.outcome, train_s=0.0) == dataclasses.replace(here.outcome, train_s=0.0)
        assert (finished.together, finished.environment["bits"]) == (None, here.environment["bits"])
    assert [len(numbers) for numbers in fake.batches.values()] == [2]  # two processors: two slices, never a job a run
    assert not (tmp_path / "jobs").exists()


@pytest.mark.parametrize("threads", [0, 1])
def test_a_second_signal_leaves_no_job(threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It came between two cancellations, and one was never asked for; or another thread took it, as one of torch's."""
    asked: list[str] = []
    over = threading.Event()
    for _ in range(threads):
        threading.Thread(target=over.wait, daemon=True).start()
    handler, mask = signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def program(words: Sequence[str], input: str | None = None) -> subprocess.CompletedProcess[str]:
        asked.append(words[0])
        if words[0] == "scancel":
            os.kill(os.getpid(), signal.SIGINT)
        if words[0] == "squeue":
            raise KeyboardInterrupt  # the first one
        return subprocess.CompletedProcess(list(words), 0, "all*|2|0/2/0/2" if words[0] == "sinfo" else "", "")

    monkeypatch.setattr(slurm, "run_quietly", program)
    monkeypatch.setattr(slurm, "LOOK_S", 0.0)
    monkeypatch.setattr("shutil.which", lambda name: name)
    with pytest.raises(KeyboardInterrupt):
        list(slurm.execute(RUNS, embedded.embedded(), Where("slurm"), tmp_path, lambda sign: None, store.checkpoint))
    over.set()
    assert asked.count("scancel") == 2
    assert not (tmp_path / "jobs").exists()
    assert signal.getsignal(signal.SIGINT) is handler
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


def test_a_job_that_is_killed_is_one_row_and_a_driver_that_is_killed_submits_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = on_slurm(FakeSlurm("1"), tmp_path / "a", monkeypatch)
    bad = [f for f in ended if f.outcome.error]
    assert [f.run.seed for f in bad] == [1]
    assert bad[0].outcome.error.startswith("crashed: Slurm ended its job gru-bench-")
    assert bad[0].outcome.error.endswith(" 1: FAILED")
    assert "note: 2 trainings for another job" in capsys.readouterr().err

    fake = FakeSlurm()
    monkeypatch.setattr(slurm, "run_quietly", fake)
    left = {run.key: run for run in RUNS}
    killed = slurm.Driver(left, embedded.embedded(), "", tmp_path / "b", lambda sign: None, store.checkpoint)
    killed.submit(RUNS)
    assert len(on_slurm(fake, tmp_path / "b", monkeypatch)) == len(RUNS)
    assert fake.asked.count("sbatch") == 1
    assert "slurm: 6 trainings of jobs submitted before, which go on" in capsys.readouterr().out
