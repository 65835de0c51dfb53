"""A packed results folder is read as before, goes on beside its pack, and survives a kill at any instant."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from test_store import RUN, fact, grid_of

from harness import __main__ as command
from harness.record import pack, store, tables

OTHER = dataclasses.replace(RUN, seed=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two trainings, one of which failed, a speed session and a grid, with their tables."""
    own = tmp_path / "results"
    answer: dict[str, object] = {"blocks": [{"block": 0, "tokens_per_sec": 5.0}], "environment": {"torch": "2"}}
    store.write_run(own, RUN, fact())
    store.write_run(own, OTHER, fact(error="oom: x", heldout_perplexity=None))
    for label in ("gru", "gru#2"):
        store.write_sample(own, "s", 0, label, RUN, answer, "gru" * ("#" in label))
    store.write_grid(own, "bench", grid_of(RUN, OTHER))
    tables.write(tables.gather(own), own)
    return own


def raw(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in pack.loose(folder)}


def same(folder: Path, before: tables.Results) -> None:
    after = tables.gather(folder)
    for field in dataclasses.fields(before):
        assert getattr(before, field.name).equals(getattr(after, field.name)), field.name
    assert store.done(folder, RUN)
    assert store.failed(folder, OTHER) == "oom: x"
    assert store.round_done(folder, "s", 0, ["gru", "gru#2"])
    assert list(store.grids(folder)) == ["bench"]


def test_packed_is_read_as_before_and_unpacked_is_byte_for_byte_as_it_was(folder: Path) -> None:
    before, files = tables.gather(folder), raw(folder)
    assert command.main(["pack", "--results", str(folder)]) == 0
    assert not pack.loose(folder)
    assert not (folder / "runs").exists()
    same(folder, before)
    packed = (folder / pack.PACK).read_bytes()
    assert command.main(["pack", "--results", str(folder)]) == 0  # once more changes nothing
    assert (folder / pack.PACK).read_bytes() == packed
    assert command.main(["pack", "--undo", "--results", str(folder)]) == 0
    assert raw(folder) == files
    assert not (folder / pack.PACK).exists()
    later = folder.with_name("later")
    shutil.copytree(folder, later)
    for path in later.rglob("*"):
        os.utime(path, (1e9, 1e9))
    assert pack.pack(later) == len(files) + 2  # anchors.csv, curves.csv
    assert (later / pack.PACK).read_bytes() == packed  # of the same files the same bytes


def test_the_long_tables_are_packed_too_and_read_from_there(folder: Path) -> None:
    whole = tables.gather(folder)
    tables.write(whole, folder)
    before = tables.read(folder)
    assert len(before.curves) > 0
    pack.pack(folder)
    assert not (folder / "curves.csv").exists()
    assert (folder / "runs.csv").exists()
    after = tables.read(folder)
    for field in dataclasses.fields(before):
        assert getattr(before, field.name).equals(getattr(after, field.name)), field.name
    tables.write(dataclasses.replace(whole, curves=whole.curves.iloc[:0]), folder)
    assert tables.read(folder).curves.empty  # the packed one is of before
    tables.write(whole, folder)
    (folder / "curves.csv").unlink()
    (folder / pack.PACK).unlink()
    with pytest.raises(ValueError, match=r"curves.csv is gone"):
        tables.read(folder)


def test_a_run_goes_on_beside_the_pack_and_is_packed_next_time(folder: Path) -> None:
    pack.pack(folder)
    store.write_run(folder, OTHER, fact(heldout_perplexity=9.5))
    assert store.done(folder, OTHER)
    assert sorted(tables.gather(folder).runs["heldout_perplexity"]) == [7.25, 9.5]
    assert pack.pack(folder) == 7  # with anchors.csv and curves.csv
    assert not pack.loose(folder)
    assert sorted(tables.gather(folder).runs["heldout_perplexity"]) == [7.25, 9.5]


@pytest.mark.parametrize("verb", [pack.pack, pack.unpack])
def test_a_kill_at_any_instant_loses_nothing(verb: object, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rename and deletion in turn is the last: the folder is read as before, and the verb can be repeated."""
    before, ended = tables.gather(folder), False
    if verb is pack.unpack:
        pack.pack(folder)
    for step in range(1, 60):
        own, left = folder.with_name(f"{step}"), [step]
        shutil.copytree(folder, own)

        def guarded(do: object) -> object:
            def one(*words: object, **more: object) -> object:
                left[0] -= 1  # noqa: B023
                if left[0] <= 0:  # noqa: B023
                    raise KeyboardInterrupt
                return do(*words, **more)  # type: ignore[operator]

            return one

        with monkeypatch.context() as patch:
            for name in ("replace", "unlink", "rmdir"):
                patch.setattr(os, name, guarded(getattr(os, name)))
            for name in ("unlink", "rmdir"):
                patch.setattr(Path, name, guarded(getattr(Path, name)))
            try:
                verb(own)  # type: ignore[operator]
                ended = True
            except KeyboardInterrupt:
                pass
        same(own, before)
        verb(own)  # type: ignore[operator]
        same(own, before)
        if ended:
            break
    assert ended


def test_what_was_changed_or_is_torn_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = folder / "runs" / f"{RUN.key}.json"
    text = whole.read_text()
    whole.write_text(text.replace("7.25", "6.25"))
    assert command.main(["pack", "--results", str(folder)]) == 2  # nothing that is torn is packed
    assert whole.name in capsys.readouterr().err
    whole.write_text(text)
    pack.pack(folder)
    packed = (folder / pack.PACK).read_bytes()
    for damage in (packed[:-40], packed[: len(packed) // 2], b"", packed[:300] + b"xxxx" + packed[304:]):
        (folder / pack.PACK).write_bytes(damage)
        with pytest.raises(ValueError, match=pack.PACK):
            tables.gather(folder)
        assert command.main(["report", "--results", str(folder)]) == 2
        assert pack.PACK in capsys.readouterr().err
    with tarfile.open(folder / pack.PACK, "w:xz") as archive, tarfile.open(fileobj=io.BytesIO(packed)) as before:
        for entry in before:  # a whole archive, one number of which is another
            part = before.extractfile(entry)
            assert part is not None
            archive.addfile(entry, io.BytesIO(part.read().replace(b"7.25", b"6.25")))
    with pytest.raises(ValueError, match="was changed after it was packed"):
        tables.gather(folder)
    assert command.main(["pack", "--results", str(folder / "none")]) == 2
    assert command.main(["bench", "--undo"]) == 2
    assert "bench takes no --undo" in capsys.readouterr().err


def test_merge_takes_one_of_two_and_refuses_two_versions(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two outcomes of one training name both places, one of them in a pack; a good one stands for a failed one."""
    other, target = tmp_path / "other", tmp_path / "merged"
    store.write_run(other, RUN, {**fact(), "started": "2030", "wall_s": 9.0})  # trained twice, to the same outcome
    store.write_run(other, OTHER, fact())  # failed in the first folder
    store.write_grid(other, "bench", grid_of(RUN))
    pack.pack(other)
    assert command.main(["merge", str(folder), str(other), "--results", str(target)]) == 0
    assert "merged: 2 trainings in" in (said := capsys.readouterr().out)
    assert "2 lay in two folders" in said
    assert store.done(target, OTHER)
    assert raw(target)[f"runs/{RUN.key}.json"] == raw(folder)[f"runs/{RUN.key}.json"]
    assert store.grids(target)["bench"]["runs"] == store.grids(folder)["bench"]["runs"]  # the larger one
    before = raw(target)
    assert command.main(["merge", str(folder), str(other), "--results", str(target)]) == 0  # once more: nothing
    assert raw(target) == before
    capsys.readouterr()
    pack.unpack(other)
    store.write_run(other, RUN, fact(heldout_perplexity=8.5))
    pack.pack(other)
    assert command.main(["merge", str(folder), str(other), "--results", str(tmp_path / "new")]) == 2
    said = capsys.readouterr().err
    assert (
        f"{folder}/runs/{RUN.key}.json and {other}/{pack.PACK}/runs/{RUN.key}.json differ in heldout_perplexity" in said
    )
    assert said.count("\n") == 1
    assert not list((tmp_path / "new").rglob("*.json"))
    for words, why in (([], "merge takes results folders"), ([str(tmp_path / "none")], "no results in")):
        assert command.main(["merge", *words, "--results", str(tmp_path / "new")]) == 2
        assert why in capsys.readouterr().err
