"""Where it runs: the same numbers whoever runs them, and a worker that dies takes its own run only."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.data import embedded
from harness.experiments import grids
from harness.experiments.protocols import Protocol, task_protocol
from harness.experiments.runs import Run
from harness.plan import source
from harness.run import machine, process, timing, train_task
from harness.run.agreement import UNFIT, check_agreement, max_abs_error
from harness.run.executors import local
from harness.run.outcome import Outcome
from harness.run.train import train
from variants import registry
from variants.cell import Cell, State
from variants.engines import fused

TINY = Protocol(train_characters=300, heldout_characters=100, batch_size=4, num_steps=5, hidden=4, epochs=2)
RUNS = [Run("rnn", seed, TINY, "sha", "cpu") for seed in range(3)]


def in_a_worker(function: Callable[[int, int], None]) -> str:
    """Code that runs it by its source alone, without what this file imports."""
    return f"exec({inspect.getsource(function)!r}); serve = {function.__name__}"


def test_workers_give_what_one_process_gives_and_a_dead_one_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one test, because starting processes that import torch is the slow part of it."""
    text = embedded.embedded()
    deadly = dataclasses.replace(RUNS[0], seed=7)
    signs: list[local.InProgress] = []
    monkeypatch.setattr(local, "SERVE", in_a_worker(serve_but_die_at_seed_7))
    ended = {f.run: f for f in local.execute([RUNS[0], deadly, *RUNS[1:]], text, 2, signs.append)}
    assert set(ended) == {*RUNS, deadly}
    assert ended[deadly].outcome.error == "crashed: its process ended with status 3"
    assert ended[deadly].outcome.heldout_perplexity is None
    assert ended[deadly].environment == ended[RUNS[0]].environment  # its worker's own, not the parent's
    for run in RUNS:
        here = train([run], text)[0]
        there = ended[run].outcome
        assert dataclasses.replace(there, train_s=here.train_s) == here
        assert ended[run].environment["threads"] == 1
        assert ended[run].together == 2
    assert {s.runs for s in signs} == {(run,) for run in RUNS}
    assert max(s.share for s in signs) == 1


def serve_but_die_at_seed_7(pipe: int, shared: int) -> None:
    import os

    from harness.run.executors import local

    real = local._one

    def one(pack, *rest):  # type: ignore[no-untyped-def]
        if pack[0].seed == 7:
            os._exit(3)
        return real(pack, *rest)

    local._one = one
    local.serve(pipe, shared)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import os; os.kill(os.getpid(), 9)", "crashed: its process was ended by SIGKILL"),
        ("raise ImportError", "crashed: its process ended with status 1"),
        ("import os; os.kill(os.getpid(), 19)", "timeout: no sign of life for 0.5 s"),  # SIGSTOP
        (
            "import os; serve = lambda pipe, *_: (os.write(pipe, b'\\x7f' * 5), os.kill(os.getpid(), 19))",
            "timeout: no sign of life for 0.5 s",
        ),
    ],
)
def test_a_worker_that_ends_or_stops_before_it_has_read_anything_is_a_row(
    code: str, why: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of a text that fills every pipe. The last stops in the middle of what it sends."""
    monkeypatch.setattr(local, "PATIENCE_S", 0.5)
    monkeypatch.setattr(local, "LOOK_S", 0.1)
    monkeypatch.setattr(local, "SERVE", code)
    text = dataclasses.replace(embedded.embedded(), tokens=np.zeros(10**6, dtype=np.int16))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    old = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.setitimer(signal.ITIMER_REAL, 60)
    ended = list(local.execute(RUNS, text, 2))
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)
    assert {f.run for f in ended} == set(RUNS)
    assert {f.outcome.error for f in ended} == {why}
    assert {tuple(f.environment) for f in ended} == {()}  # it had said nothing of its machine
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def serve_but_die_while_looking(pipe: int, shared: int) -> None:
    import os
    import signal

    from harness.run import train as training
    from harness.run.executors import local

    vars(training).update(_inspect=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    local.serve(pipe, shared)


def serve_but_hang_while_looking(pipe: int, shared: int) -> None:
    import time

    from harness.run import train as training
    from harness.run.executors import local

    vars(training).update(_inspect=lambda *_: time.sleep(1000))
    local.serve(pipe, shared)


def serve_but_die_while_scoring(pipe: int, shared: int) -> None:
    """A text at the best epoch, a task at the longer length: what was trained and scored before is finished."""
    import os
    import signal

    from harness.run import train, train_task
    from harness.run.executors import local

    vars(train).update(score_best=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    train_task.TaskState.score_longer = lambda self: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    local.serve(pipe, shared)


def serve_but_die_while_keeping(pipe: int, shared: int) -> None:
    import os
    import signal

    from harness.run import train_task
    from harness.run.executors import local

    train_task.TaskState.keep_network = lambda self: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    local.serve(pipe, shared)


def test_a_process_that_is_killed_while_it_scores_the_best_epoch_or_a_longer_length_loses_no_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    why = "crashed: its process was ended by SIGKILL"
    validated = dataclasses.replace(TINY, validation_characters=50)
    task = dataclasses.replace(task_protocol("delayed_recall"), num_steps=5, epochs=1, hidden=4)
    runs = [Run("rnn", 0, protocol, "sha", "cpu") for protocol in (validated, task)]
    monkeypatch.setattr(local, "SERVE", in_a_worker(serve_but_die_while_scoring))
    text = embedded.embedded()
    killed = {f.run: f.outcome for f in local.execute(runs, text, 1)}
    (one,), (other,) = train(runs[:1], text), train_task.train(runs[1:])
    left = "best epoch, sample, lesions, gates, reach, network"
    kept = dataclasses.replace(one, sample="", lesions={}, gates={}, reach={}, network=None, unseen={left: why})
    kept = dataclasses.replace(kept, best_epoch=None, best_perplexity=None)
    assert one.best_epoch is not None
    assert dataclasses.replace(killed[runs[0]], train_s=one.train_s) == kept
    assert other.score_longer is not None
    kept = dataclasses.replace(other, score_longer=None, positions=(), unseen={"score_longer, positions": why})
    assert dataclasses.replace(killed[runs[1]], train_s=other.train_s) == kept
    monkeypatch.setattr(local, "SERVE", in_a_worker(serve_but_die_while_keeping))
    (finished,) = local.execute(runs[1:], text, 1)
    kept = dataclasses.replace(kept, network=None, unseen={"network, score_longer, positions": why})
    assert dataclasses.replace(finished.outcome, train_s=other.train_s) == kept


@pytest.mark.parametrize(
    ("serve", "why"),
    [
        (serve_but_die_while_looking, "crashed: its process was ended by SIGKILL"),
        (serve_but_hang_while_looking, "timeout: no sign of life for 0.2 s"),
    ],
)
def test_a_process_that_ends_or_hangs_while_it_only_looks_loses_no_training(
    serve: Callable[[int, int], None], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = local.Pool.events

    def events(pool: local.Pool, worker: local.Worker) -> Iterator[local.Finished]:
        yield from real(pool, worker)
        if worker.trained:  # however slow the machine, only the looking is left
            monkeypatch.setattr(local, "PATIENCE_S", 0.2)

    monkeypatch.setattr(local.Pool, "events", events)
    monkeypatch.setattr(local, "LOOK_S", 0.1)
    monkeypatch.setattr(local, "SERVE", in_a_worker(serve))
    text = embedded.embedded()
    (finished,) = local.execute(RUNS[:1], text, 1)
    (whole,) = train(RUNS[:1], text)
    unseen = {"sample, lesions, gates, reach, network": why}
    kept = dataclasses.replace(whole, sample="", lesions={}, gates={}, reach={}, heat=(), network=None, unseen=unseen)
    assert dataclasses.replace(finished.outcome, train_s=whole.train_s) == kept
    assert finished.environment["threads"] == 1


def test_a_process_ends_with_the_one_that_started_it_before_it_has_imported_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else it outlives a driver that is killed then by what it takes to import torch, seconds on a busy machine."""
    (waits, go), (ran, says) = os.pipe(), os.pipe()
    child = f"import os; os.read({waits}, 1); os.write({says}, b'ran')"
    driver = (
        "import os, subprocess; from harness.run.process import command; "
        f"subprocess.Popen(command({child!r}, follow=True), pass_fds=({waits}, {says})); os.kill(os.getpid(), 9)"
    )
    subprocess.run(process.command(driver), pass_fds=(waits, says))
    os.write(go, b"!")
    os.close(says)
    assert os.read(ran, 3) == b""
    for handle in (waits, go, ran):
        os.close(handle)

    asked: list[list[str]] = []
    popen = subprocess.Popen

    def refused(words: list[str], **how: object) -> None:
        asked.append(words)
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "Popen", refused)
    for start in (lambda: list(local.execute(RUNS[:1], embedded.embedded(), 1)), lambda: timing.sample(RUNS[0], 28, 1)):
        with pytest.raises(FileNotFoundError):
            start()
    monkeypatch.setattr(subprocess, "Popen", popen)
    assert [f"follow_parent({os.getpid()})" in words[-1] for words in asked] == [True, True]


def test_runs_come_from_an_iterator_as_workers_come_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan of a million runs is never a list; an empty group means that none is there yet, and nobody waits long."""
    monkeypatch.setattr(local, "PATIENCE_S", 30.0)
    asked: list[Run] = []

    def lazily() -> Iterator[Run]:
        for run in RUNS:
            asked.append(run)
            yield run

    results = local.execute(lazily(), embedded.embedded(), 1)
    assert next(results).run == RUNS[0]
    assert asked == RUNS[:2]  # one is trained, the next is given out while the first is written
    assert [finished.run for finished in results] == RUNS[1:]

    feed: list[list[Run]] = [RUNS[:1]]
    pool = local.Pool(iter(lambda: feed.pop() if feed else [], None), embedded.embedded(), 1, lambda sign: None, None)
    ended = pool.results()
    assert next(ended).run == RUNS[0]
    [worker] = pool.workers
    assert not worker.group
    worker.process.kill()  # while it waits: the next run is nobody's victim
    worker.process.wait()
    worker.silent_s = 1e9
    feed.append(RUNS[1:2])
    second = next(ended)
    assert (second.run, second.outcome.error) == (RUNS[1], "")
    ended.close()  # type: ignore[attr-defined]
    assert pool.workers[0].process.poll() is not None


def test_code_that_is_not_what_was_asked_for_is_not_trained() -> None:
    """The fingerprint is computed again where a run is trained: another checkout, or an edit since the plan."""
    good = dataclasses.replace(RUNS[0], source=source(RUNS[0]))
    for run, why in ((good, ""), (dataclasses.replace(good, source="0" * 16), "its code is not what it was asked for")):
        (finished,) = local._one([run], embedded.embedded(), 1, lambda sign: None)
        assert bool(why) == bool(finished.outcome.error)
        assert why in finished.outcome.error
        assert len(str(finished.environment["bits"])) == 8


def test_the_class_of_bits_is_of_what_an_engine_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    machine.bits.cache_clear()
    one = machine.bits("cpu")
    machine.bits.cache_clear()
    assert machine.bits("cpu") == one
    real = fused.unroll

    def other(cell: Cell, X: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        H, last = real(cell, X, state)
        return H * (1 + 2**-23), last

    monkeypatch.setattr(fused, "unroll", other)
    machine.bits.cache_clear()
    assert machine.bits("cpu") != one
    machine.bits.cache_clear()


def serve_as_a_gpu(pipe: int, shared: int) -> None:
    """A worker that trains nothing: its lstm could not be captured, its mgu failed, its janet diverged."""
    import os

    from harness.run.executors import local
    from harness.run.outcome import Outcome

    said = {
        "lstm": Outcome(uncaptured="operation not permitted when stream is capturing"),
        "mgu": Outcome(error="crashed: RuntimeError: CUDA error: an illegal memory access was encountered"),
        "janet": Outcome(error="diverged: the loss is not a number by epoch 3"),
    }

    def one(pack, *rest):  # type: ignore[no-untyped-def]
        facts: dict[str, machine.Fact] = {"pid": os.getpid()}
        return [local.Finished(run, said.get(run.variant, Outcome()), 0.0, 1, 0.0, "", facts) for run in pack]

    vars(local).update(_one=one, configure_process=lambda *how: None, training_facts=lambda device: {})
    local.serve(pipe, shared)


def test_a_process_whose_capture_failed_takes_no_further_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA: nor one in which anything else went wrong. What only diverged leaves its process fit."""
    monkeypatch.setattr(local, "SERVE", in_a_worker(serve_as_a_gpu))
    variants = ("rnn", "janet", "lstm", "gru", "mgu", "ligru")
    runs = [Run(v, seed, TINY, "sha", "cuda", capture=True) for v in variants for seed in (0, 1)]
    ended = list(local.execute(runs, embedded.embedded(), 1))
    assert [f.run for f in ended] == runs
    pids = [ended[2 * k].environment["pid"] for k in range(len(variants))]
    assert [f.environment["pid"] for f in ended] == [pid for pid in pids for _ in (0, 1)]
    assert [a == b for a, b in itertools.pairwise(pids)] == [True, True, False, True, False]
    assert os.getpid() not in pids


def test_a_run_that_raises_is_an_outcome() -> None:
    run = dataclasses.replace(RUNS[0], protocol=dataclasses.replace(TINY, batch_size=10**6))
    (finished,) = local._one([run], embedded.embedded(), 1, lambda sign: None)
    assert finished.outcome.error.startswith("crashed: ValueError: ")
    assert finished.outcome.parameters is None


@pytest.mark.parametrize("variant", sorted({*grids.ABLATE, *grids.BENCH, "gru:Z=1,R=1", "lstm:F=1,I=0", "mgu:F=0"}))
def test_every_variant_of_a_default_command_trains_in_every_engine_that_takes_it(variant: str) -> None:
    """Also those whose state never changes, or whose gates are all fixed: no gradient may be missed."""
    taken = [engine for engine, refusal in registry.refusals(variant).items() if not refusal]
    assert taken
    for engine in taken:
        run = dataclasses.replace(RUNS[0], variant=variant, engine=engine)
        (finished,) = local._one([run], embedded.embedded(), 1, lambda sign: None)
        assert finished.outcome.error == "", engine


def test_what_an_engine_that_disagrees_trains_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here by its last state alone; asked once, whatever the number of seeds."""
    real, asked = fused.unroll, list[object]()

    def wrong(cell: Cell, X: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        asked.append(cell)
        H, (last,) = real(cell, X, state)
        return H, (last + 1e-9,)

    monkeypatch.setattr(fused, "unroll", wrong)
    local._disagrees.cache_clear()
    for seed in (0, 1):
        run = dataclasses.replace(RUNS[0], seed=seed, engine="fused")
        (finished,) = local._one([run], embedded.embedded(), 1, lambda sign: None)
        said = "disagrees: fused differs from the reference engine by 1e-09, over 1e-10: --engine names another"
        assert finished.outcome == Outcome(error=said)
    assert len(set(map(id, asked))) == 1  # one model
    (finished,) = local._one([RUNS[0]], embedded.embedded(), 1, lambda sign: None)
    assert finished.outcome.error == ""


@pytest.mark.parametrize("where", ["losses", "weight"])
def test_an_engine_that_gives_no_number_disagrees(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in one gradient alone, behind others that are right."""
    real = fused.unroll

    def wrong(cell: Cell, X: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        if where == "weight":
            cell.b_h.register_hook(lambda gradient: gradient * float("nan"))
            return real(cell, X, state)
        H, last = real(cell, X, state)
        return H * float("nan"), last

    monkeypatch.setattr(fused, "unroll", wrong)
    run = dataclasses.replace(RUNS[0], engine="fused")
    assert check_agreement(run, max_abs_error(run, 5)).startswith("disagrees: fused differs")


def test_the_gpu_kernel_where_it_fails_costs_its_process_and_not_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiler, say, or no room on chip: another engine trains instead, in another process."""

    def fails(run: Run, inputs: int) -> float:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(local, "max_abs_error", fails)
    monkeypatch.setattr(local, "training_facts", lambda device: {})
    local._disagrees.cache_clear()
    said = []
    for engine in ("resident", "fused"):
        run = dataclasses.replace(RUNS[0], engine=engine, device="cuda")
        (finished,) = local._one([run], embedded.embedded(), 1, lambda sign: None)
        said.append(finished.outcome.error)
        assert local.spoils(finished)
    assert said == [
        "cannot run: resident fails, crashed: RuntimeError: Failed to find C compiler: --engine names another",
        "crashed: RuntimeError: Failed to find C compiler",
    ]
    assert [one.startswith(UNFIT) for one in said] == [True, False]


def test_nothing_to_do() -> None:
    assert list(local.execute([], embedded.embedded(), 0)) == []


def test_a_script_without_a_main_guard_trains_and_no_worker_imports_it(tmp_path: Path) -> None:
    """Typed into a pipe, as `python - <<END` has it; with PYTHONSAFEPATH, which leaves the current folder out."""
    script = f"""
import sys
sys.path.insert(0, {str(Path(local.__file__).parents[3])!r})
print("main")
from harness.data.embedded import embedded
from harness.experiments.protocols import Protocol, task_protocol
from harness.experiments.runs import Run
from harness.run.executors import local
size = Protocol(train_characters=300, heldout_characters=100, batch_size=4, num_steps=5, hidden=4, epochs=1)
for finished in local.execute([Run("rnn", 0, size, "", "cpu")], embedded(), 1):
    print(finished.outcome.error or "trained")
"""
    done = subprocess.run(
        [sys.executable, "-"], input=script, capture_output=True, text=True, cwd=tmp_path, timeout=120,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("main\ntrained\n", "")
