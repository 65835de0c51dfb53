"""What is on file: whole or not at all, done or to do, and tables that can always be made again."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import files
from harness.experiments.protocols import Protocol
from harness.experiments.runs import MISSING, Run
from harness.record import csv_files, pack, store, tables
from harness.record.schema import COLUMNS

RUN = Run("gru", 0, Protocol(), "sha", "cpu", source="a")


def fact(**outcome: object) -> dict[str, object]:
    """A training that ended well, with `outcome` changed."""
    whole = {
        "train_perplexity": 1.1, "heldout_perplexity": 7.25, "parameters": 10, "tokens": 100, "train_s": 2.0,
        "sample": "time traveller", "error": "",
        "curve": [{"epoch": 1, "tokens": 100, "train_perplexity": 1.1, "heldout_perplexity": 7.25}],
    }  # fmt: skip
    return {
        "corpus": "time-machine", "outcome": whole | outcome, "environment": {"torch": "2", "device": "cpu"},
        "started": "2026-01-01T00:00:00+00:00", "wall_s": 3.0, "together": 2, "load": 0.5,
    }  # fmt: skip


def grid_of(*runs: Run, session: str = "s") -> dict[str, object]:
    protocol = {**dataclasses.asdict(RUN.protocol), "label": RUN.protocol.label}
    return {
        "protocol": protocol, "variants": ["gru"], "runs": [r.key for r in runs], "device": "cpu", "corpus": "text",
        "corpus_sha256": "sha", "anchors": {"1-gram": 16.5}, "session": session, "speed_baseline": "gru",
    }  # fmt: skip


def test_done_reads_the_error(tmp_path: Path) -> None:
    assert not store.done(tmp_path, RUN)
    assert store.failed(tmp_path, RUN) == ""
    store.write_run(tmp_path, RUN, fact(error="diverged: x", heldout_perplexity=None))
    assert not store.done(tmp_path, RUN)
    assert store.failed(tmp_path, RUN) == "diverged: x"
    store.write_run(tmp_path, RUN, fact(error="diverged", sample=store.WELL))  # its words are not the file's lines
    assert store.failed(tmp_path, RUN) == "diverged"
    store.write_run(tmp_path, RUN, fact())
    assert store.done(tmp_path, RUN)
    assert not store.done(tmp_path, dataclasses.replace(RUN, seed=1))
    path = tmp_path / "runs" / f"{RUN.key}.json"
    whole = path.read_text()
    assert store.WELL in whole  # as `done` reads it, without JSON
    assert whole.startswith(store.HEAD)
    for changed in (whole[:-200], whole.replace("7.25", "7.5"), whole.replace('"version": 1', '"version": 2')):
        path.write_text(changed)
        assert not store.done(tmp_path, RUN)


def test_an_index_tells_how_every_training_ended_and_the_files_stay_the_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "INDEXED", 2)
    runs = [dataclasses.replace(RUN, seed=seed) for seed in range(4)]
    for run in runs[:3]:
        store.write_run(tmp_path, run, fact(error="oom:\tx\ny" * (run.seed == 1)))
    want = {run.key: "oom:\tx\ny" * (run.seed == 1) for run in runs[:3]}
    assert store.states(tmp_path) == want
    assert not (tmp_path / store.INDEX).exists()  # only the folder's writer leaves one
    with store.writing(tmp_path):
        assert store.states(tmp_path) == want
    index, read, error = (tmp_path / store.INDEX).read_text(), list[str](), store._error

    def counted(folder: Path, name: str) -> str | None:
        read.append(name)
        return error(folder, name)

    monkeypatch.setattr(store, "_error", counted)
    assert (store.states(tmp_path), read) == (want, [])
    with store.writing(tmp_path), pytest.raises(ValueError, match="is being written"), store.writing(tmp_path):
        raise AssertionError("two writers at once")
    for torn in ("", index[:-40], index.replace("oom", "0om"), index.replace("index 1", "index 0"), "\udcff"):
        (tmp_path / store.INDEX).write_text(torn, errors="surrogateescape")
        assert store.states(tmp_path) == want
    (tmp_path / store.INDEX).write_text(index)
    read.clear()
    store.write_run(tmp_path, runs[1], fact())  # newer than the index
    store.write_run(tmp_path, runs[3], fact())
    (tmp_path / "runs" / f"{runs[0].key}.json").unlink()
    torn_file = tmp_path / "runs" / f"{runs[2].key}.json"
    torn_file.write_text(torn_file.read_text()[:-99])
    assert store.states(tmp_path) == {runs[1].key: "", runs[3].key: ""}
    assert len(read) == 3
    monkeypatch.setattr(store, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with store.writing(tmp_path):
        assert store.states(tmp_path) == {runs[1].key: "", runs[3].key: ""}  # a full disk costs no answer
    monkeypatch.undo()
    torn_file.unlink()
    pack.pack(tmp_path)
    assert store.states(tmp_path) == {runs[1].key: "", runs[3].key: ""}


def test_tables_of_a_large_folder_are_not_made_again_from_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "INDEXED", 1)
    store.write_run(tmp_path, RUN, fact())
    store.write_grid(tmp_path, "bench", grid_of(RUN))
    assert tables.unchanged(tmp_path, "runs") is None
    tables.write(tables.gather(tmp_path), tmp_path)
    tables.mark(tmp_path)
    known = tables.unchanged(tmp_path, "runs")
    assert known is not None
    assert (known.runs["run"].tolist(), len(known.curves)) == ([RUN.key], 0)
    undo = {path: path.read_bytes() for path in (tmp_path / "curves.csv", tmp_path / "grids/bench.json")}
    for path, whole in undo.items():
        path.write_bytes(whole + b" ")
        assert tables.unchanged(tmp_path, "runs") is None
        path.write_bytes(whole)
    tables.write(tables.gather(tmp_path), tmp_path)
    tables.mark(tmp_path)
    store.write_run(tmp_path, dataclasses.replace(RUN, seed=1), fact())
    assert tables.unchanged(tmp_path, "runs") is None


def test_gathered_is_what_was_written(tmp_path: Path) -> None:
    store.write_run(tmp_path, RUN, fact())
    store.write_run(tmp_path, dataclasses.replace(RUN, seed=1), fact(error="oom: x", heldout_perplexity=None, curve=[]))
    store.write_grid(tmp_path, "bench", grid_of(RUN))
    tables.write(tables.gather(tmp_path), tmp_path)
    results = tables.read(tmp_path)
    assert results.runs["run"].tolist() == [RUN.key, dataclasses.replace(RUN, seed=1).key]
    assert results.runs["heldout_perplexity"].iloc[0] == 7.25
    assert math.isnan(results.runs["heldout_perplexity"].iloc[1])  # missing, not 0
    assert results.runs["error"].iloc[1] == "oom: x"
    assert results.curves[["epoch", "heldout_perplexity"]].to_numpy().tolist() == [[1, 7.25]]
    assert results.anchors.to_dict("records") == [
        {"protocol": "classic", "corpus": "text", "corpus_sha256": "sha", "model": "1-gram", "heldout_perplexity": 16.5}
    ]
    assert results.protocols["epochs"].tolist() == [500]
    assert results.runs["environment"].iloc[0] == results.environments["environment"].iloc[0]
    assert not len(results.speed)
    text = (tmp_path / "runs.csv").read_text()
    assert "nan" not in text.lower()
    assert text.splitlines()[0] == ",".join(COLUMNS["runs"])


def test_the_run_a_grid_names_stands_for_its_edited_selves(tmp_path: Path) -> None:
    later = dataclasses.replace(RUN, source="b")
    store.write_run(tmp_path, RUN, fact())
    store.write_run(tmp_path, later, fact() | {"started": "2026-02-01T00:00:00+00:00"})
    store.write_grid(tmp_path, "bench", grid_of())
    assert tables.gather(tmp_path).runs["run"].tolist() == [later.key]
    store.write_grid(tmp_path, "bench", grid_of(RUN))
    assert tables.gather(tmp_path).runs["run"].tolist() == [RUN.key]
    assert len(tables.gather(tmp_path).curves) == 1


def test_speed_samples_of_the_sessions_a_grid_names(tmp_path: Path) -> None:
    answer = {"blocks": [{"block": 0, "tokens_per_sec": 5.0}, {"block": 1, "tokens_per_sec": 6.0}], "load": 0.1,
              "environment": {"torch": "2"}}  # fmt: skip
    for session in ("s", "old"):
        for label in ("gru", "gru#2"):
            store.write_sample(tmp_path, session, 0, label, RUN, answer)
    store.write_sample(tmp_path, "s", 1, "gru", RUN, {"error": "timeout: x"})
    store.write_grid(tmp_path, "bench", grid_of())
    speed = tables.gather(tmp_path).speed
    assert set(speed["session"]) == {"s"}
    assert sorted(speed["tokens_per_sec"].dropna()) == [5, 5, 6, 6]
    assert speed[speed["error"].notna()]["round"].tolist() == [1]
    assert store.round_done(tmp_path, "s", 0, ["gru", "gru#2"])
    assert not store.round_done(tmp_path, "s", 0, ["gru", "gru#2", "rnn"])
    assert not store.round_done(tmp_path, "s", 1, ["gru"])  # it failed: to be tried again


@pytest.mark.parametrize("torn", ["", "{", '{"version": 0}', "[]", "\udcff"])
def test_a_torn_file_is_named_and_not_done(torn: str, tmp_path: Path) -> None:
    store.write_run(tmp_path, RUN, fact())
    path = next((tmp_path / "runs").glob("*.json"))
    path.write_text(torn, errors="surrogateescape")
    assert not store.done(tmp_path, RUN)
    with pytest.raises(ValueError, match=path.name):
        tables.gather(tmp_path)


@pytest.mark.parametrize("fail", ["fsync", "replace"])
def test_written_whole_or_not_at_all(fail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write(tmp_path / "x", "before")

    def no(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, fail, no)
    with pytest.raises(OSError, match="No space"):
        files.write(tmp_path / "x", "after")
    assert (tmp_path / "x").read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_one_writer(tmp_path: Path) -> None:
    code = "import sys, pathlib; from harness.files import writing\nwith writing(pathlib.Path(sys.argv[1])): pass"
    run = [sys.executable, "-c", code, str(tmp_path)]
    with store.writing(tmp_path):
        second = subprocess.run(run, capture_output=True, text=True)
        assert f"is being written by process {os.getpid()}" in second.stderr
    assert subprocess.run(run, capture_output=True, text=True).returncode == 0


def test_missing_tables_are_frames_without_rows(tmp_path: Path) -> None:
    tables.write(tables.gather(tmp_path), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [csv_files.SUMS]  # a table without rows is no file
    results = tables.read(tmp_path)
    for name, columns in COLUMNS.items():
        frame = getattr(results, name)
        assert isinstance(frame, pd.DataFrame)
        assert not len(frame)
        assert tuple(frame.columns) == columns


@pytest.mark.parametrize(
    "break_it",
    [
        lambda p: p.write_text(""),
        lambda p: p.write_text("a,b\n1,2\n"),
        lambda p: p.write_bytes(b"\xff\xfe\x00"),
        lambda p: p.write_text('"' + p.read_text()),
    ],
)
def test_a_table_of_another_kind_is_refused(break_it: Callable[[Path], object], tmp_path: Path) -> None:
    store.write_run(tmp_path, RUN, fact())
    tables.write(tables.gather(tmp_path), tmp_path)
    break_it(tmp_path / "runs.csv")
    with pytest.raises(ValueError, match=r"runs\.csv") as error:
        tables.read(tmp_path)
    assert "\n" not in str(error.value)


def test_json_holds_the_whole_run(tmp_path: Path) -> None:
    store.write_run(tmp_path, RUN, fact())
    whole = json.loads(next((tmp_path / "runs").glob("*.json")).read_text())
    assert whole["run"] == dataclasses.asdict(RUN)
    assert store.as_run(whole["run"]).key == RUN.key


def test_an_environments_name_is_never_read_back_as_a_number() -> None:
    names = [tables._environment({}, {"torch": str(k)}) for k in range(200)]
    assert not any(name[0].isdigit() for name in names)  # pandas would take 27299456 and 1234e567 for numbers
    assert len(set(names)) == 200


def test_a_full_disk_names_the_file_and_leaves_the_old_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bench.csv"
    files.write(path, "old")

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=re.escape(str(path))) as caught:
        files.write(path, "new")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_facts_that_only_some_trainings_have(tmp_path: Path) -> None:
    """A cell may have no gate, or none that keeps: in whichever order they are read."""
    kept = {"mean": 0.5, "sd": 0.1, "shut": 0.0, "open": 0.0, "unit_sd": 0.1}
    store.write_run(tmp_path, RUN, fact(gates={"R": kept}))
    assert tables.gather(tmp_path).gates["tau_50"].isna().tolist() == [True]
    store.write_run(tmp_path, dataclasses.replace(RUN, seed=1), fact())
    store.write_run(tmp_path, dataclasses.replace(RUN, seed=2), fact(gates={"Z": {**kept, "tau_50": 3.0}, "R": kept}))
    gates = tables.gather(tmp_path).gates
    assert gates[["seed", "gate"]].values.tolist() == [[0, "R"], [2, "Z"], [2, "R"]]
    assert gates["tau_50"].tolist()[1] == 3.0
    assert gates["tau_50"].isna().tolist() == [True, False, True]
    assert list(gates) == list(COLUMNS["gates"])


# What a text may be made of: its white space is spaces by then.
LETTERS = st.characters(exclude_categories=["Cs"]).filter(lambda c: c == " " or not c.isspace())


@settings(max_examples=25, deadline=None)
@given(st.text(LETTERS, max_size=12).filter(lambda text: not text.isspace()), st.text(LETTERS, min_size=1, max_size=12))
def test_any_text_comes_back_from_a_table_as_it_was(name: str, sample: str) -> None:
    """What a corpus file is called, and what a network trained on it writes."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        heat = [{"gate": "Z", "position": 0, "character": sample[0], "unit": 0, "value": 0.5}]
        store.write_run(folder, RUN, {**fact(sample=sample, heat=heat), "corpus": name})
        tables.write(tables.gather(folder), folder)
        found = tables.read(folder)
        assert found.runs["sample"].tolist() == [sample]
        assert found.runs["corpus"].fillna("").tolist() == [name]
        assert found.heat["character"].tolist() == [sample[0]]


def test_plain_pandas_finds_no_text_missing(tmp_path: Path) -> None:
    from pandas._libs.parsers import STR_NA_VALUES

    assert MISSING == STR_NA_VALUES
    names = sorted(MISSING - {""})
    for column in ("variant", "corpus", "sample", "error"):
        table = tables.frame("runs", [{"run": "r", column: name} for name in names])
        (tmp_path / "runs.csv").write_text(csv_files.to_text(table))
        assert pd.read_csv(tmp_path / "runs.csv")[column].tolist() == [f"./{name}" for name in names]
    empty = csv_files.to_text(tables.frame("runs", [{"run": "r", "error": ""}, {"run": "s", "lr": float("nan")}]))
    assert "./" not in empty
