"""Write and read what runs leave: a file a training, a timed sample, an unfinished training, a grid. No torch.

    results/runs/KEY.json     one training: its run, its environment, its curve, or its error
    results/networks/         seed 0 of each of them, trained: its program and weights, which the page runs
    results/checkpoints/      trainings that have not ended, as arrays (NumPy's npz, no pickle)
    results/speed/S/N-L.json  one timed sample, a fresh process: session S, round N, label L
    results/grids/NAME.json   what `bench`, `ablate` or another command last asked for
    results/.index            how each training of a large folder ended, so that not all are read to know it

Each is written whole or not at all. Tables are made from them: harness/record/tables.py. So is the index: where it is
absent, torn or older than a file, the file counts.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.experiments.protocols import Protocol, unsaid
from harness.experiments.runs import Run
from harness.files import digest, now, sealed, unseal, unsealed, write, writes
from harness.files import writing as writing
from harness.record import pack
from variants import registry

VERSION = 1  # of the JSON files
HEAD = f'{{\n "version": {VERSION},\n'  # how a file of this version begins
WELL = '\n  "error": "",\n'  # the line in it, at the depth of an outcome's fields alone, of a training that ended well
Loaded = dict[str, Any]  # what a JSON file holds


# ---- a training that has not ended ------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """Where the training of some runs is kept until it ends: as harness/run/progress.py says of `CheckpointStore`.

    `of` is what it may be gone on from: the same runs, the same class of bits and settings.
    """

    path: Path
    of: str

    def load(self) -> dict[str, npt.NDArray[Any]] | None:
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
            return None  # it is not there, or was not written here: the training begins anew
        return found if str(found.pop("of", "")) == self.of else None

    def save(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        whole = io.BytesIO()
        np.savez(whole, **{**arrays, "of": np.array(self.of)})  # type: ignore[arg-type]  # numpy's own types say bool
        write(self.path, whole.getvalue())


# What a training must have in common with the one that it goes on from, of its machine: see run/machine.py.
DECIDE_BITS = ("bits", "torch", "cuda", "driver", "device", "threads", "matmul_precision", "cudnn_rnn_tf32",
               "cublas_workspace", "deterministic", "flush_denormal")  # fmt: skip


def checkpoint(folder: Path, runs: Sequence[Run], machine: Mapping[str, object]) -> Checkpoint:
    """Name the checkpoint of runs that train side by side, on a machine in this state: on another of the same bits it
    is gone on from.
    """
    facts = {name: machine.get(name) for name in DECIDE_BITS}
    whole = json.dumps([[run.key for run in runs], facts], sort_keys=True)
    return Checkpoint(_checkpoint_path(folder, runs[-1].key), hashlib.sha256(whole.encode()).hexdigest())


# ---- one training -----------------------------------------------------------------------------


def write_run(folder: Path, run: Run, fact: dict[str, object]) -> None:
    """One training that ended. `fact`: corpus, outcome (curve in it), environment, started, wall_s, together, load."""
    outcome = fact.get("outcome")
    network = outcome.pop("network", None) if isinstance(outcome, dict) else None
    if network:  # first: were it the other way round, a run could be done and have none
        text = registry.source(run.variant.partition(":")[0])  # as it is now: later the file may be edited
        _dump(folder / f"networks/{run.key}.json", {"run": run.key, "variant": run.variant, "source": text, **network})
    _dump(folder / _run(run), {"run": run.fields, **fact})
    _checkpoint_path(folder, run.key).unlink(missing_ok=True)  # of all that trained beside it this run was the last


def networks(folder: Path) -> list[Loaded]:
    """The trained networks that were kept, one seed of a variant, as run/network.py makes them."""
    return [load(folder, name) for name in names(folder, "networks")]


def done(folder: Path, run: Run) -> bool:
    """Whether this run has ended well. One that failed, or whose file is torn, is to be tried again."""
    return _ended(folder, _run(run)) == ""


def failed(folder: Path, run: Run) -> str:
    """Why this run failed when it was last tried; '' where it did not, or was never tried."""
    return _ended(folder, _run(run)) or ""


def machine_of(folder: Path, run: Run) -> Loaded:
    """Return the machine and software that a run on file was tried on."""
    return dict(load(folder, _run(run))["environment"])


def outcome(folder: Path, run: Run) -> Loaded | None:
    """Return what a run gave that ended well; None where there is none."""
    return dict(load(folder, _run(run))["outcome"]) if done(folder, run) else None


def _ended(folder: Path, name: str) -> str | None:
    """The error of a run on file, '' where it ended well; None where it is not there, or cannot be read."""
    packed = pack.opened(folder)
    try:
        found = os.stat(folder / name)
    except FileNotFoundError:
        if packed is None or name not in packed.sums:
            return None
        found = os.stat(packed.path)
    return _known_error(folder, name, found.st_mtime_ns, found.st_size, found.st_ino)


@functools.lru_cache(maxsize=10_000)
def _known_error(folder: Path, name: str, *stamp: int) -> str | None:
    """Asked for several times of the same file."""
    return _error(folder, name)


def _error(folder: Path, name: str) -> str | None:
    try:
        text, checked = _text(folder, name)
        if checked and text.startswith(HEAD) and WELL in text:
            return ""  # nearly all of a long night's: to read each as JSON takes three times as long
        return str(load(folder, name)["outcome"]["error"])
    except (ValueError, KeyError, TypeError, FileNotFoundError):
        return None


# ---- how every training ended -----------------------------------------------------------------

INDEX = ".index"
INDEXED = 1_000  # trainings from which on a folder has one: fewer are read in no time
INDEX_HEAD = "index 1"  # its first line: the version of the others


def states(folder: Path) -> dict[str, str]:
    """key -> why a training failed, '' where it ended well: of every one on file whose file is whole.

    A file is read where the index does not have it as it is now: by its times, its size and its number. The writer of
    the folder writes the index anew where that was so.
    """
    known, found, where, anew = _index(folder), dict[str, str](), dict[str, str](), False
    for name, stamp in stamped(folder):
        said = known.get(name, "")
        if not said.startswith(stamp):
            error = _error(folder, name)
            anew |= error is not None
            said = "" if error is None else stamp + (error and json.dumps(error))
        if said:
            key = name[len("runs/") : -len(".json")]
            found[key] = json.loads(said[len(stamp) :]) if len(said) > len(stamp) else ""
            where[name] = said
    if (anew or len(where) != len(known)) and len(where) >= INDEXED and writes(folder):
        text = "\n".join([INDEX_HEAD, *(f"{name}\t{said}" for name, said in where.items())])
        with contextlib.suppress(OSError):  # a full disk: it is for speed alone
            write(folder / INDEX, f"{text}\n{digest(text)}")
    return found


def _index(folder: Path) -> dict[str, str]:
    """name -> stamp and error of the trainings in the index; none where it is absent, torn or of another version."""
    try:
        text, _, seal = (folder / INDEX).read_text(encoding="utf-8").rpartition("\n")
    except (OSError, UnicodeDecodeError):
        return {}
    if not text.startswith(INDEX_HEAD + "\n") or digest(text) != seal:
        return {}
    lines = iter(text.splitlines())
    next(lines)
    return {name: said for name, _, said in (line.partition("\t") for line in lines)}


def stamped(folder: Path) -> Iterator[tuple[str, str]]:
    """(name, what changes with its content) of each training's file, packed or not."""
    loose = set()
    with contextlib.suppress(FileNotFoundError), os.scandir(folder / "runs") as entries:
        for entry in entries:
            if entry.name.endswith(".json") and not entry.name.startswith("."):
                at, name = entry.stat(), f"runs/{entry.name}"
                loose.add(name)
                yield name, f"{at.st_mtime_ns} {at.st_ctime_ns} {at.st_size} {at.st_ino}\t"
    if packed := pack.opened(folder):
        at = packed.path.stat()
        stamp = f"{at.st_mtime_ns} {at.st_ctime_ns} {at.st_size} {at.st_ino} packed\t"
        for name in packed.sums:
            if name.startswith("runs/") and name not in loose:
                yield name, stamp


# ---- one timed sample -------------------------------------------------------------------------


def write_sample(
    folder: Path,
    session: str,
    number: int,
    label: str,
    run: Run,
    answer: Mapping[str, object],
    control_of: str = "",
    disturbed: Sequence[Mapping[str, object]] = (),
) -> None:
    """Write the answer of one fresh process, {blocks, ..., environment} or {error}.

    `control_of`: the label that it repeats. `disturbed`: the other answers of a sample that was repeated because other
    processes disturbed it; their blocks stay on file.
    """
    whole = {"session": session, "round": number, "label": label, "control_of": control_of, "run": run.fields}
    whole |= {"started": now(), "answer": answer} | ({"disturbed": list(disturbed)} if disturbed else {})
    _dump(folder / _sample(session, number, label), whole)


def round_done(folder: Path, session: str, number: int, labels: Sequence[str]) -> bool:
    """Whether every label of a round has answered. Ratios are paired by round: a part of one is worth nothing."""
    try:
        answers = [load(folder, _sample(session, number, label))["answer"] for label in labels]
    except (ValueError, KeyError, TypeError, FileNotFoundError):
        return False
    return not any(a.get("error") for a in answers)


def runs(folder: Path) -> Iterator[tuple[Path, str, Loaded]]:
    """Every training on file by key: its path, its key and what it holds. ValueError names a file that is torn."""
    return ((folder / name, Path(name).stem, load(folder, name)) for name in names(folder, "runs"))


def samples(folder: Path, session: str) -> Iterator[tuple[Path, Loaded]]:
    """Every sample of a speed session: its path and what it holds. ValueError names a file that is torn."""
    return ((folder / name, load(folder, name)) for name in names(folder, f"speed/{session}"))


# ---- what was asked for -----------------------------------------------------------------------


def write_grid(folder: Path, verb: str, fact: dict[str, object]) -> None:
    """Record what `bench` or `ablate` was last asked for, so that its tables can be built again without the text."""
    _dump(folder / f"grids/{verb}.json", fact)


def grids(folder: Path) -> dict[str, Loaded]:
    """verb -> what it was last asked for. Empty where nothing was."""
    return {Path(name).stem: load(folder, name) for name in names(folder, "grids")}


def _run(run: Run) -> str:
    return f"runs/{run.key}.json"


def _checkpoint_path(folder: Path, key: str) -> Path:
    return folder / "checkpoints" / f"{key}.npz"


def _sample(session: str, number: int, label: str) -> str:
    safe = "".join(c if c.isalnum() or c in "._=,#" else "." for c in label)
    return f"speed/{session}/{number}-{safe}.json"


def _dump(path: Path, fact: Mapping[str, object]) -> None:
    write(path, sealed(json.dumps({"version": VERSION, **fact}, indent=1)))


def names(folder: Path, kind: str) -> list[str]:
    """The files of a kind (`runs`, `grids`, `speed/SESSION`), packed or not, by name below the folder."""
    loose = {f"{kind}/{path.name}" for path in (folder / kind).glob("[!.]*.json")}
    packed = pack.opened(folder)
    return sorted(loose.union(name for name in (packed.sums if packed else ()) if name.startswith(f"{kind}/")))


def _text(folder: Path, name: str) -> tuple[str, bool]:
    """The text of a file, from beside the pack or from inside, and whether it had a digest."""
    packed = pack.opened(folder)
    if packed and name in packed.sums and not (folder / name).exists():
        return unseal(packed.bytes(name).decode(), packed.path / name)
    return unsealed(folder / name)


def load(folder: Path, name: str) -> Loaded:
    """Return what a raw file holds, by its name below the folder.

    ValueError for one that is torn or of another version.
    """
    path = folder / name
    try:
        whole = json.loads(_text(folder, name)[0])
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{path} cannot be read as JSON: delete it, and run again what it held") from None
    if not isinstance(whole, dict) or whole.get("version") != VERSION:
        raise ValueError(f"{path} is not of this version ({VERSION}): give another --results, or delete it")
    return whole


def as_run(fields: Loaded) -> Run:
    return Run(**{**fields, "protocol": _protocol(*fields["protocol"].items())})


@functools.lru_cache
def _protocol(*fields: tuple[str, object]) -> Protocol:
    """One for all runs that have it: its label takes long to spell."""
    known = dict(fields)
    return Protocol(**{**unsaid(str(known.get("task", "text"))), **known})  # type: ignore[arg-type]


@contextlib.contextmanager
def as_written(path: Path) -> Iterator[None]:
    """Raise an error that names the file, where its content is of another make."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} is not as this version writes it ({error!r:.200}): delete it, and run again what it held"
        ) from None
