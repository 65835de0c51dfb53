"""What may go wrong around a training, and what is left of it. The long ones are in tests/faults: `make faults`."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch

import variants
from harness import __main__ as command
from harness import files
from harness.data import embedded
from harness.experiments import protocols
from harness.experiments.protocols import Protocol
from harness.experiments.runs import Run
from harness.record import csv_files, store, tables
from harness.record.schema import COLUMNS
from harness.report import page as report
from harness.run import process, progress, train_task
from harness.run.executors import local
from harness.run.outcome import Outcome
from harness.run.train import train

TINY = Protocol(
    train_characters=150, heldout_characters=60, batch_size=4, num_steps=5, hidden=4, epochs=3, evaluations=3, lr=0.5
)
WIDE = len(COLUMNS["runs"])
Arrays = dict[str, npt.NDArray[Any]]


class Killed(Exception):
    pass


class Dying:
    """Keeps every step, and has the process 'killed' after some of them."""

    def __init__(self, after: int) -> None:
        self.left = after
        self.kept: Arrays | None = None

    def load(self) -> Arrays | None:
        return None

    def save(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self.kept = {name: value.copy() for name, value in arrays.items()}
        self.left -= 1
        if not self.left:
            raise Killed


class Going:
    """Goes on from what a `Dying` kept."""

    def __init__(self, kept: Arrays | None) -> None:
        self.kept = kept

    def load(self) -> Arrays | None:
        return self.kept

    def save(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        pass


# ---- a long run goes on from inside -----------------------------------------------------------


def cases() -> list[Any]:
    windows = dataclasses.replace(TINY, sampling="windows", text="whole", train_characters=40, heldout_characters=20)
    stacked = dataclasses.replace(TINY, layers=2, dropout=0.3)
    adding = dataclasses.replace(protocols.task_protocol("adding"), num_steps=4, batch_size=32, hidden=3, epochs=7)
    validated = dataclasses.replace(TINY, validation_characters=50)
    table = dataclasses.replace(TINY, embedding=3)
    found = [
        pytest.param(
            [Run(variant, seed, protocol, "", "cpu", engine) for seed in seeds], id=f"{variant}-{engine}-{name}"
        )
        for variant, engine, protocol, name, seeds in [
            ("gru", "loop", TINY, "two seeds", (0, 3)),
            ("gru:Z=0", "fused", TINY, "sequential", (1,)),
            ("gru", "native", TINY, "sequential", (1,)),
            ("nn.lstm", "library", TINY, "sequential", (0,)),
            ("gru", "native", stacked, "layers and dropout", (1, 2)),
            ("nn.gru", "library", stacked, "layers and dropout", (0,)),
            ("gru", "native", table, "embedding", (0, 3)),
            ("nn.gru", "library", table, "embedding", (0,)),
            ("ligru", "loop", TINY, "running averages", (0, 3)),
            ("rnn", "loop", windows, "windows", (0, 1)),
            ("rnn", "loop", validated, "validation", (0,)),
            ("gru", "loop", adding, "adding", (0, 1)),
        ]
        if not variants.refusals(variant)[engine]
    ]
    assert len(found) >= 8  # all, but native where there is no compiler
    return found


@pytest.mark.parametrize("runs", cases())
def test_a_training_that_goes_on_is_bit_for_bit_one_that_never_stopped(
    runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "CHECKPOINT_S", 0.0)
    text = embedded.embedded()

    def go(keep: progress.CheckpointStore | None) -> list[Outcome]:
        if runs[0].protocol.task == "text":
            return train(runs, text, keep=keep)
        return train_task.train(runs, keep=keep)

    whole = go(counted := Dying(10**9))
    steps = 10**9 - counted.left
    assert steps > 6
    for after in (1, steps // 2, steps):
        dying = Dying(after)
        with pytest.raises(Killed):
            go(dying)
        torch.manual_seed(after)  # nothing hangs on the process's own generator
        assert [dataclasses.replace(o, train_s=0.0) for o in go(Going(dying.kept))] == [
            dataclasses.replace(o, train_s=0.0) for o in whole
        ]


def test_its_clock_goes_on_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "CHECKPOINT_S", 0.0)
    dying = Dying(3)
    with pytest.raises(Killed):
        train([RUN], embedded.embedded(), keep=dying)
    assert dying.kept is not None
    dying.kept["train_s"] = np.array(1000.0)
    (outcome,) = train([RUN], embedded.embedded(), keep=Going(dying.kept))
    assert outcome.train_s is not None
    assert 1000 < outcome.train_s < 1100


RUN = Run("rnn", 0, TINY, "", "cpu")


def test_a_checkpoint_is_of_these_runs_on_this_machine_and_is_gone_when_they_are_done(tmp_path: Path) -> None:
    here = {"torch": "2", "commit": "a", "dirty": True}
    one = store.checkpoint(tmp_path, [RUN], here)
    assert one.load() is None
    one.save({"x": np.arange(3.0), "n": np.array(7)})
    found = one.load()
    assert found is not None
    assert set(found) == {"x", "n"}
    assert found["x"].tolist() == [0, 1, 2]
    assert store.checkpoint(tmp_path, [RUN], {**here, "commit": "b"}).load() is not None
    assert store.checkpoint(tmp_path, [RUN], {**here, "torch": "3"}).load() is None
    assert store.checkpoint(tmp_path, [RUN], {**here, "bits": "b"}).load() is None
    elsewhere = {**here, "memory_gib": 3.9, "cores": 64, "platform": "another kernel"}  # none decides a bit
    assert store.checkpoint(tmp_path, [RUN], elsewhere).load() is not None
    assert store.checkpoint(tmp_path, [dataclasses.replace(RUN, seed=9), RUN], here).load() is None
    store.write_run(tmp_path, RUN, {})
    assert not one.path.exists()
    last = dataclasses.replace(RUN, seed=1)
    both = store.checkpoint(tmp_path, [RUN, last], here)
    both.save({"x": np.arange(3.0)})
    store.write_run(tmp_path, RUN, {})
    assert both.load() is not None  # were it killed here, the other would still go on
    store.write_run(tmp_path, last, {})
    assert not both.path.exists()


@pytest.mark.parametrize("cut", [0, 1, 30, 200, -1])
def test_a_torn_checkpoint_is_none(cut: int, tmp_path: Path) -> None:
    one = store.checkpoint(tmp_path, [RUN], {})
    one.save({"x": np.arange(100.0)})
    one.path.write_bytes(one.path.read_bytes()[:cut])
    assert one.load() is None


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    one = store.checkpoint(tmp_path, [RUN], {})
    one.path.parent.mkdir()
    np.savez(one.path, of=np.array(one.of), x=np.array([Path("/")], dtype=object))  # pickled
    assert one.load() is None


def test_no_room_for_a_checkpoint_is_a_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(Going):
        def save(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
            raise OSError(28, "No space left on device", "results/checkpoints/x.npz")

    monkeypatch.setattr(progress, "CHECKPOINT_S", 0.0)
    (outcome,) = train([RUN], embedded.embedded(), keep=Full(None))
    assert outcome.error == ""
    assert "note: no checkpoint, results/checkpoints/x.npz: No space left on device" in capsys.readouterr().err


# ---- a worker that dies, hangs, or answers with something else ---------------------------------


def serve(pipe: int, shared: int) -> None:
    """By the seed it is given: dies in some way, hangs, or answers with anything. Its source is run by a worker.

    It imports torch, which takes a second, only for the one that is trained.
    """
    import mmap
    import os
    import pickle
    import signal
    import time
    from multiprocessing.connection import Connection

    ours = Connection(pipe)
    workers, _, open_checkpoint = ours.recv()
    while True:
        pack = ours.recv()
        seed = pack[0].seed
        if seed == 0:
            from harness.run.executors import local

            with mmap.mmap(shared, 0, access=mmap.ACCESS_READ) as text:
                for finished in local._one(pack, pickle.loads(text), workers, ours.send, open_checkpoint):
                    ours.send(finished)
        if seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if seed == 2:
            time.sleep(1000)
        if seed == 3:
            os.write(pipe, b"\0\0\0\4junk")
        if seed == 4:
            ours.send("hello")
        if seed == 5:
            os._exit(3)


def test_every_end_of_a_worker_is_a_typed_row_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In one test, because starting processes that import torch is the slow part of it."""
    monkeypatch.setattr(local, "SERVE", f"exec({inspect.getsource(serve)!r})")  # without what this file imports
    monkeypatch.setattr(local, "LOOK_S", 0.1)
    runs = [dataclasses.replace(RUN, seed=seed) for seed in range(6)]
    open_checkpoint = functools.partial(store.checkpoint, tmp_path)
    ended: dict[int, Outcome] = {}
    for finished in local.execute(runs, embedded.embedded(), 2, open_checkpoint=open_checkpoint):
        ended[finished.run.seed] = finished.outcome
        if len(ended) == 5:  # however slow the machine, only the one that hangs is left
            monkeypatch.setattr(local, "PATIENCE_S", 0.5)
    assert {seed: outcome.error.split(":")[0] for seed, outcome in ended.items()} == {
        0: "", 1: "crashed", 2: "timeout", 3: "crashed", 4: "crashed", 5: "crashed"
    }  # fmt: skip
    assert ended[1].error == "crashed: its process was ended by SIGKILL"
    assert ended[2].error == "timeout: no sign of life for 0.5 s"
    assert ended[3].error.startswith("crashed: its worker sent what cannot be read")
    assert ended[4].error == "crashed: its worker sent something else: 'hello'"
    assert ended[5].error == "crashed: its process ended with status 3"
    assert (ended[0].heldout_perplexity or 0) > 1


def test_of_a_run_whose_worker_said_nothing_parameters_and_machine_are_unknown(tmp_path: Path) -> None:
    for seed, machine in ((0, {"torch": "2"}), (1, {})):
        store.write_run(tmp_path, dataclasses.replace(RUN, seed=seed), {
            "corpus": "x", "outcome": dataclasses.asdict(Outcome(error="crashed: x")), "environment": machine,
            "started": "2026-01-01", "wall_s": 1.0, "together": 2, "load": 0.5,
        })  # fmt: skip
    tables.write(tables.gather(tmp_path), tmp_path)
    results = tables.read(tmp_path)
    assert results.runs["parameters"].isna().all()
    assert results.runs["environment"].isna().tolist() == [False, True]
    assert len(results.environments) == 1
    assert report.html(results)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "oom"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you"), "oom"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "oom"),
        (RuntimeError("mat1 and mat2"), "crashed"),
    ],
)
def test_want_of_memory_has_its_own_name(error: Exception, kind: str) -> None:
    assert process.describe(error).split(":")[0] == kind


def test_a_process_that_the_system_ended_for_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "memory_kills", lambda: 5)
    assert process.ended(-9, 4) == "oom: the system ended its process, which had no memory left"
    for status, kills, said in [(-9, 5, "ended by SIGKILL"), (-9, None, "ended by SIGKILL"), (-11, 4, "by SIGSEGV"),
                                (1, 4, "with status 1"), (-100, 4, "with status -100")]:  # fmt: skip
        assert said in process.ended(status, kills)
        assert process.ended(status, kills).startswith("crashed: ")


# ---- results from elsewhere -------------------------------------------------------------------


def written(folder: Path) -> list[str]:
    """Tables of three runs; the lines of runs.csv."""
    for seed in range(3):
        outcome = dataclasses.asdict(Outcome(1.5, 7.25 + seed, 10, 100, 1.0, "time traveller", ""))
        store.write_run(folder, dataclasses.replace(RUN, seed=seed), {
            "corpus": "a, \"text\"", "outcome": outcome, "environment": {"torch": "2"}, "started": "2026-01-01",
            "wall_s": 1.0, "together": 1, "load": 0.5,
        })  # fmt: skip
    tables.write(tables.gather(folder), folder)
    return (folder / "runs.csv").read_text().splitlines(keepends=True)


def swap(old: str, new: str) -> Callable[[list[str]], list[str]]:
    return lambda lines: [lines[0], lines[1], lines[2].replace(old, new), *lines[3:]]


@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (swap("8.25", "eight"), "line 3: heldout_perplexity is 'eight'"),
        (swap("8.25", "inf"), "line 3: heldout_perplexity is 'inf'"),
        (swap("8.25", "nan"), "line 3: heldout_perplexity is 'nan'"),
        (swap("8.25", "0.25"), "line 3: heldout_perplexity is '0.25'"),
        (swap("8.25", "8,25"), f"line 3: {WIDE + 1} cells under {WIDE} heads"),
        (swap("False", "perhaps"), "line 3: capture is 'perhaps'"),
        (lambda lines: [*lines[:3], lines[3][:60]], "line 4"),  # half a line
        (lambda lines: [*lines, lines[2]], "line 5: the run 'rnn-1-"),
        (lambda lines: [*lines[:3], '"' + lines[3]], "is cut off or no table"),
        (lambda lines: [lines[0].replace("sample,", "simple,"), *lines[1:]], "line 1 has no column 'sample'"),
        (lambda lines: ["mine," + lines[0], *("1," + line for line in lines[1:])], "line 1 has a column 'mine'"),
        (lambda lines: ["seed," + lines[0], *("1," + line for line in lines[1:])], "line 1 has a column twice"),
        (lambda lines: [], "line 1 has no column 'run'"),
    ],
)
def test_a_table_that_was_edited_names_its_line(
    edit: Callable[[list[str]], list[str]], said: str, summed: bool, tmp_path: Path
) -> None:
    lines = written(tmp_path)
    if not summed:
        (tmp_path / csv_files.SUMS).unlink()
    (tmp_path / "runs.csv").write_text("".join(edit(lines)))
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        tables.read(tmp_path)
    assert str(tmp_path / "runs.csv") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "edit", [swap("8.25", "8.26"), lambda lines: lines[:3], lambda lines: [*lines[:2], *lines[3:]]]
)
def test_an_edit_that_looks_right_is_told_by_the_digest(
    edit: Callable[[list[str]], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs.csv").write_text("".join(edit(written(tmp_path))))
    with pytest.raises(ValueError, match=r"runs\.csv was changed after it was written"):
        tables.read(tmp_path)
    shutil.rmtree(tmp_path / "runs")  # only tables, from elsewhere
    assert command.main(["report", "--results", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "runs.csv was changed after it was written" in said


def test_line_ends_and_a_byte_order_mark_are_no_edit(tmp_path: Path) -> None:
    lines = written(tmp_path)
    before = tables.read(tmp_path)
    (tmp_path / "runs.csv").write_bytes(b"\xef\xbb\xbf" + "".join(lines).replace("\n", "\r\n").encode())
    pd.testing.assert_frame_equal(tables.read(tmp_path).runs, before.runs)
    assert before.runs["corpus"].tolist() == ['a, "text"'] * 3


def test_a_table_that_is_gone_is_missed(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "protocols.csv").unlink()
    with pytest.raises(ValueError, match=r"protocols\.csv is gone"):
        tables.read(tmp_path)


def test_sums_are_what_sha256sum_checks(tmp_path: Path) -> None:
    written(tmp_path)
    for line in (tmp_path / csv_files.SUMS).read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("8.25", "9.25", "was changed after it was written"),
        ("8.25", '"8.25"', "was changed after it was written"),
        ('"outcome"', '"result"', "was changed after it was written"),
        ('"version": 1', '"version": 2', "was changed after it was written"),
        ("{", "", "was changed after it was written"),
    ],
)
@pytest.mark.parametrize("digest", [True, False])
def test_a_run_that_was_edited_is_named_and_counts_as_not_done(
    old: str, new: str, said: str, digest: bool, tmp_path: Path
) -> None:
    written(tmp_path)
    run = dataclasses.replace(RUN, seed=1)
    (path,) = (tmp_path / "runs").glob("rnn-1-*")
    text = path.read_text().replace(old, new, 1)
    if not digest:  # whoever edits it may leave that line out
        text = re.sub(r',\n "sha256.*\n', "\n", text)
        said = {"9.25": "", '"version": 2': "is not of this version"}.get(new, "is not as this version writes it")
        said = "cannot be read as JSON" if old == "{" else said
    path.write_text(text)
    if said:
        with pytest.raises(ValueError, match=said) as error:
            tables.gather(tmp_path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    assert store.done(tmp_path, run) == (not said or (new == '"8.25"' and not digest))


# ---- the folder -------------------------------------------------------------------------------


def test_a_folder_taken_away_while_it_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    with store.writing(folder):
        folder.rename(tmp_path / "elsewhere")
        with pytest.raises(OSError, match="taken away") as error:
            files.write(folder / "runs" / "x.json", "x")
        assert error.value.filename == str(folder)
    assert not (folder / "runs").exists()


def test_what_a_killed_writer_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    left = [tmp_path / ".x.csv.1.part", tmp_path / "runs" / ".k.json.7.part"]
    for path in left:
        path.write_text("half")
    (tmp_path / "my.part").write_text("mine")
    with store.writing(tmp_path):
        assert not any(path.exists() for path in left)
    assert (tmp_path / "my.part").exists()


def test_permissions_are_the_users(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write(tmp_path / "a" / "x.csv", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "x.csv").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o750
