"""Merge results folders, packed or not, into one: `python -m harness merge A B ... --results DIR`.

Each file is taken over byte for byte. A training that lies in two folders with the same outcome is taken once; with two
outcomes it is refused, and both places are named. Nothing is written before everything has been read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.files import write
from harness.record import pack
from harness.record.store import Loaded, load

MACHINE = ("started", "wall_s", "together", "load", "environment")  # of a run's file: no part of its outcome


@dataclass(frozen=True)
class Place:
    """A raw file in one of the folders."""

    folder: Path
    name: str

    @property
    def bytes(self) -> bytes:
        packed = pack.opened(self.folder)
        if packed and self.name in packed.sums and not (self.folder / self.name).exists():
            return packed.bytes(self.name)
        return (self.folder / self.name).read_bytes()

    def __str__(self) -> str:
        inside = not (self.folder / self.name).exists()
        return str(self.folder / pack.PACK / self.name if inside else self.folder / self.name)


@dataclass(frozen=True)
class Merged:
    """The outcome of a merge: how many trainings the folder now holds, how many came, how many lay in two places."""

    runs: int
    new: int
    twice: int


def merge(sources: Sequence[Path], target: Path) -> Merged:
    """Take what is in `sources` over into `target`, whose own files count like theirs.

    ValueError, before anything is written, for a folder without results, a torn file, two versions of one file.
    """
    for folder in sources:
        if not folder.is_dir() or not (pack.opened(folder) or pack.loose(folder)):
            raise ValueError(f"no results in {str(folder)!r}: merge takes the folders that --results named")
    kept: dict[str, Place] = {}
    known: dict[str, Loaded] = {}  # what runs and grids hold, by name
    twice = 0
    for folder in dict.fromkeys([target, *sources]):
        for name in raw(folder):
            place = Place(folder, name)
            kind = name.partition("/")[0]
            whole = load(folder, name)  # a torn file is named
            if name not in kept:
                kept[name], known[name] = place, whole if kind in ("runs", "grids") else {}
                continue
            first = kept[name]
            if kind == "networks":
                continue
            if kind == "speed":
                _same(first, place, load(first.folder, name), whole)
                continue
            if kind == "runs":
                twice += 1
            choose = _newer_run if kind == "runs" else _larger_grid
            if choose(first, place, known[name], whole):
                kept[name], known[name] = place, whole
    for name in [name for name in kept if name.startswith("networks/")]:  # of the training that was taken
        if own := kept.get(name.replace("networks/", "runs/", 1)):
            kept[name] = Place(own.folder, name) if name in raw(own.folder) else kept[name]
    new = [name for name, place in kept.items() if place.folder != target]
    for name in sorted(new, key=lambda name: name.startswith("runs/")):  # a run's network first, as when it was trained
        write(target / name, kept[name].bytes)
    runs = [name for name in kept if name.startswith("runs/")]
    return Merged(len(runs), sum(name.startswith("runs/") for name in new), twice)


def raw(folder: Path) -> list[str]:
    """The raw files of a folder, packed or not, by name below it."""
    packed = pack.opened(folder)
    inside = (name for name in (packed.sums if packed else ()) if name.endswith(".json"))  # no tables: made anew
    return sorted({*pack.loose(folder), *inside})


def _same(one: Place, other: Place, a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """ValueError, which names both places and a field, where two files of one name hold different things."""
    differ = [name for name in {**a, **b} if name != "sha256" and a.get(name) != b.get(name)]
    if differ:
        name = differ[0]
        raise ValueError(
            f"two versions of {one.name}: {one} and {other} differ in {name} "
            f"({a.get(name)!r:.40}, {b.get(name)!r:.40}): delete one of them, or leave its folder out"
        )


def _newer_run(one: Place, other: Place, a: Loaded, b: Loaded) -> bool:
    """Whether the other file of a training stands for it: one that ended well before one that failed."""
    first, second = a["outcome"], b["outcome"]
    if first["error"] or second["error"]:
        later = str(b.get("started")) > str(a.get("started"))
        return (not second["error"]) if bool(first["error"]) != bool(second["error"]) else later
    bare = [{k: v for k, v in whole.items() if k not in (*MACHINE, "outcome")} for whole in (a, b)]
    outcomes = [{k: v for k, v in outcome.items() if k != "train_s"} for outcome in (first, second)]
    _same(one, other, {**bare[0], **outcomes[0]}, {**bare[1], **outcomes[1]})
    return False


def _larger_grid(one: Place, other: Place, a: Loaded, b: Loaded) -> bool:
    """Whether the other grid of a verb stands for it: the one that asks for all that the first asks for, and more."""
    mine, theirs = set(a.get("runs", ())), set(b.get("runs", ()))
    if mine == theirs:
        return not a.get("session") and bool(b.get("session"))
    if not (mine < theirs or theirs < mine):
        _same(one, other, a, b)
    return mine < theirs
