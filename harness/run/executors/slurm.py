"""Train on Slurm: an array of jobs, each with a slice of the runs, trained by the local executor in that job.

Rule: jobs leave sealed files in `jobs/` of the results folder, which every node sees; the driver alone moves them into
the results. Jobs go on when the driver is gone, and the same command takes up what they left. Plain JSON, no pickle.

    jobs/_standing.json   batches that are out: their slices, and how often a run was tried
    jobs/_BATCH.N.json    a slice: its runs, and where the text lies;  _BATCH.N.log: what its job said
    jobs/KEY.json         what a run gave;  jobs/KEY.sign: that it is underway, and how far it is
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import pkgutil
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.corpus import Corpus
from harness.experiments.protocols import Protocol
from harness.experiments.runs import Run
from harness.files import now, sealed, unsealed, write
from harness.formatting import pluralize
from harness.run import machine
from harness.run.executors import TRIES, Checkpoints, Finished, InProgress, OnProgress, local
from harness.run.outcome import Outcome, Point
from harness.run.process import command

if TYPE_CHECKING:
    from harness.plan import Where

ARRAYS = ("tokens", "lengths")  # of a text
LOOK_S = 1.0  # between two looks at what jobs left
MISSED = 3  # looks at which Slurm knows a job no more, or as ended, before what it left undone is given to another
MOST = 1000  # jobs of an array, as Slurm allows without being told
OVER = {"COMPLETED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "CANCELLED", "BOOT_FAIL", "DEADLINE", "NODE_FAIL",
        "PREEMPTED", ""}  # fmt: skip
OWN = {"FAILED": "crashed", "OUT_OF_MEMORY": "oom", "CANCELLED": "crashed"}  # ended with what was underway in it


# ---- in a job -------------------------------------------------------------------------------------


def work(jobs: Path, batch: str, number: str) -> None:
    """Train the slice of a job, leaving a file a run. A run that has one already is not trained again."""
    whole = json.loads(unsealed(jobs / f"_{batch}.{number}.json")[0])
    runs = [as_run(fields) for fields in whole["runs"]]
    checkpoints: Checkpoints = pkgutil.resolve_name(whole["checkpoints"])

    def underway() -> Iterator[Run]:
        for run in runs:
            if not (jobs / f"{run.key}.json").exists():  # done before this job was requeued
                sign(InProgress((run,), 0.0, None))
                yield run

    def sign(word: InProgress) -> None:
        for run in word.runs:
            write(jobs / f"{run.key}.sign", json.dumps([word.share, word.perplexity]))

    open_checkpoint = functools.partial(checkpoints, jobs.parent)
    for finished in local.execute(underway(), as_corpus(jobs / whole["corpus"]), 1, sign, open_checkpoint):
        fact = {f: getattr(finished, f) for f in ("wall_s", "load", "started", "environment")}
        whole = {**fact, "outcome": dataclasses.asdict(finished.outcome)}
        write(jobs / f"{finished.run.key}.json", sealed(json.dumps(whole, indent=1)))


def as_run(fields: Mapping[str, Any]) -> Run:
    return Run(**{**fields, "protocol": Protocol(**fields["protocol"])})


def as_corpus(path: Path) -> Corpus:
    import numpy as np

    whole = json.loads(unsealed(path)[0])
    arrays = {name: np.array(whole[name], dtype=np.int32) for name in ARRAYS if whole.get(name) is not None}
    return Corpus(**{**whole, **arrays, "vocabulary": tuple(whole["vocabulary"])})


def as_finished(run: Run, path: Path) -> Finished:
    """Return what a job left of a run."""
    whole = json.loads(unsealed(path)[0])
    outcome = whole.pop("outcome")
    outcome |= {
        "curve": tuple(Point(**point) for point in outcome["curve"]), "heat": tuple(outcome["heat"]),
        "reach": {int(back): share for back, share in outcome["reach"].items()},
        "checks": tuple(outcome["checks"]), "positions": tuple(outcome["positions"]),
    }  # fmt: skip
    return Finished(run, Outcome(**outcome), together=None, **whole)


# ---- the driver -----------------------------------------------------------------------------------


class Standing:
    """The batches that are out, on file before Slurm is asked for them: (batch, number) -> the runs of that slice."""

    def __init__(self, jobs: Path) -> None:
        self.path = jobs / "_standing.json"
        self.slices: dict[tuple[str, str], list[str]] = {}
        self.tries: dict[str, int] = {}
        with contextlib.suppress(FileNotFoundError):
            whole = json.loads(unsealed(self.path)[0])
            self.slices = {(batch, number): keys for batch, number, keys in whole["slices"]}
            self.tries = whole["tries"]

    def save(self) -> None:
        slices = [[*place, keys] for place, keys in self.slices.items()]
        write(self.path, sealed(json.dumps({"slices": slices, "tries": self.tries}, indent=1)))


def execute(
    runs: Iterable[Run], corpus: Corpus, where: Where, folder: Path, on_progress: OnProgress, checkpoints: Checkpoints
) -> Iterator[Finished]:
    """Train every run as jobs of Slurm, yielded as it ends. ValueError, in one line, where Slurm refuses.

    A driver that is closed or interrupted cancels its jobs; the jobs of one that was killed go on.
    """
    for program in ("sbatch", "squeue", "scancel", "sinfo"):
        if not shutil.which(program):
            raise ValueError(f"--on slurm needs {program} on this machine: give the command on a login node")
    left = {run.key: run for run in runs}
    if not left:
        return
    driver = Driver(left, corpus, where.on.partition(":")[2], folder.resolve(), on_progress, checkpoints)
    try:
        yield from driver.results()
    finally:  # a second Ctrl-C waits: no job is left
        with held({*local.STOPS, signal.SIGALRM}):
            driver.close()


@contextlib.contextmanager
def held(signals: set[signal.Signals]) -> Iterator[None]:
    """Have signals wait until the end of the block, also where another thread of this process may take them.

    What the block starts is born with them blocked. Python runs handlers in the main thread: only there are they held.
    """
    came: list[int] = []
    own: dict[signal.Signals, Any] = {}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        if threading.current_thread() is threading.main_thread():
            for each in signals:  # blocked here alone, one would go to a thread that does not block it, such as torch's
                own[each] = signal.getsignal(each)
                signal.signal(each, lambda number, frame: came.append(number))
        yield
    finally:
        for each, handler in own.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number in dict.fromkeys(came):
            signal.raise_signal(number)


class Driver:
    """Gives runs to jobs, takes what they leave, and gives to others what a job that ended has left undone."""

    def __init__(
        self,
        left: dict[str, Run],
        corpus: Corpus,
        partition: str,
        folder: Path,
        on_progress: OnProgress,
        checkpoints: Checkpoints,
    ) -> None:
        self.left, self.corpus, self.partition, self.on_progress = left, corpus, partition, on_progress
        self.checkpoints, self.jobs = checkpoints, folder / "jobs"
        self.jobs.mkdir(parents=True, exist_ok=True)
        self.standing = Standing(self.jobs)
        self.missed: dict[tuple[str, str], int] = {}
        self.classes: set[str] = set()
        self.looked = 0
        self.commit = machine._commit()

    def results(self) -> Iterator[Finished]:
        """Every run, as it ends."""
        yield from self.collected()  # of a driver that was killed
        taken = {key for keys in self.standing.slices.values() for key in keys}
        if going := taken & set(self.left):
            print(f"slurm: {pluralize(len(going), 'training')} of jobs submitted before, which go on", flush=True)
        self.submit([run for key, run in self.left.items() if key not in taken])
        while self.left:
            time.sleep(LOOK_S)
            yield from self.collected()
            yield from self.ended()

    def collected(self) -> Iterator[Finished]:
        """Return what jobs have left since the last look."""
        looked, self.looked = self.looked, time.time_ns()
        for entry in list(os.scandir(self.jobs)):
            key, _, kind = entry.name.rpartition(".")
            if entry.name.startswith(".") or key not in self.left:
                continue
            if kind == "json":
                done = as_finished(self.left[key], Path(entry.path))
                del self.left[key]
                facts = {**done.environment, **self.commit} if done.environment else {}
                self.told(str(facts.get("bits")))
                yield dataclasses.replace(done, environment=facts)
                Path(entry.path).unlink()  # it is on file by now
                (self.jobs / f"{key}.sign").unlink(missing_ok=True)
            elif kind == "sign":
                with contextlib.suppress(FileNotFoundError):
                    if os.stat(entry.path).st_mtime_ns > looked:
                        self.on_progress(InProgress((self.left[key],), *json.loads(Path(entry.path).read_text())))

    def told(self, bits: str) -> None:
        """Say it once where jobs run on nodes of several classes of bits."""
        if bits not in self.classes and len(self.classes) == 1:
            print("warning: jobs run on nodes of two classes of bits, whose trainings differ: SBATCH_CONSTRAINT=... "
                  "asks for nodes of one kind; column bits says which ran where", file=sys.stderr)  # fmt: skip
        self.classes.add(bits)

    def submit(self, runs: Sequence[Run]) -> None:
        """Have these runs trained: an array of slices, one a processor."""
        if not runs:
            return
        nodes, processors = size(self.partition)
        count = max(1, min(len(runs), processors, MOST))
        batch = f"gru-bench-{uuid.uuid4().hex[:8]}"
        text = f"_text-{self.corpus.tokens_sha256[:16] or 'none'}.json"
        if not (self.jobs / text).exists():
            whole = {field.name: getattr(self.corpus, field.name) for field in dataclasses.fields(self.corpus)}
            whole |= {name: None if whole[name] is None else whole[name].tolist() for name in ARRAYS}
            write(self.jobs / text, sealed(json.dumps(whole, indent=1)))
        how = f"{self.checkpoints.__module__}:{self.checkpoints.__qualname__}"
        for k in range(count):
            slice_ = runs[k::count]
            whole = {"corpus": text, "checkpoints": how, "runs": [run.fields for run in slice_]}
            write(self.jobs / f"_{batch}.{k}.json", sealed(json.dumps(whole, indent=1)))
            self.standing.slices[batch, str(k)] = [run.key for run in slice_]
            for run in slice_:  # of a job that was cancelled while it said so
                (self.jobs / f"{run.key}.sign").unlink(missing_ok=True)
        self.standing.save()  # before Slurm has it: a driver that is killed here submits nothing twice
        code = f"import os, pathlib; from {__name__} import work; "
        code += f"work(pathlib.Path({str(self.jobs)!r}), {batch!r}, os.environ['SLURM_ARRAY_TASK_ID'])"
        script = f"#!/bin/sh\nexec {shlex.join(command(code))}\n"
        asked = ["sbatch", "--parsable", f"--array=0-{count - 1}", f"--job-name={batch}", "--requeue",
                 "--cpus-per-task=1", "--open-mode=append", f"--output={self.jobs}/_{batch}.%a.log",
                 f"--chdir={self.jobs}"]  # fmt: skip
        asked += [f"--partition={self.partition}"] * bool(self.partition)
        asked += ["--gpus-per-task=1"] * (runs[0].device == "cuda")
        done = run_quietly(asked, input=script)
        if done.returncode:
            self.standing.slices = {at: keys for at, keys in self.standing.slices.items() if at[0] != batch}
            self.standing.save()
            raise ValueError(f"Slurm refuses: {' '.join(done.stderr.split())[:300]}")
        place = f"partition {self.partition}, " * bool(self.partition)
        print(f"slurm: {place}{nodes} node{'s' * (nodes != 1)}, {processors} processor{'s' * (processors != 1)}; "
              f"array {done.stdout.strip()} of {count} job{'s' * (count != 1)}, {len(runs)} trainings; "
              "a first one ends 20 s after its job begins, or later", flush=True)  # fmt: skip

    def ended(self) -> Iterator[Finished]:
        """Handle jobs that have ended and left something undone: the run underway may be a row, the others go on."""
        known = states({batch for batch, _ in self.standing.slices})
        if known is None:
            return  # the controller is away: it comes back
        again: list[Run] = []
        changed = False
        for place, keys in list(self.standing.slices.items()):
            undone = [key for key in keys if key in self.left]
            state = known.get(place, "")
            self.missed[place] = self.missed.get(place, 0) + 1 if state in OVER else 0
            if undone and self.missed[place] < MISSED:
                continue
            if undone and any((self.jobs / f"{key}.json").exists() for key in undone):
                continue  # left since the last look
            if not undone and state not in OVER and place in known:
                continue
            del self.standing.slices[place]
            changed = True
            begun = [key for key in undone if (self.jobs / f"{key}.sign").exists()]
            for key in undone:
                mine = key == begun[-1] if begun else True
                tries = self.standing.tries[key] = self.standing.tries.get(key, 0) + mine
                word = OWN.get(state, "crashed")
                if mine and ((begun and state in OWN) or tries > TRIES):
                    run = self.left.pop(key)
                    reason = f"{word}: Slurm ended its job {place[0]} {place[1]}: {state or 'unknown to it'}"
                    yield Finished(run, Outcome(error=reason), 0.0, None, None, now(), {})
                else:
                    again.append(self.left[key])
                (self.jobs / f"{key}.sign").unlink(missing_ok=True)
        if again:
            print(f"note: {pluralize(len(again), 'training')} for another job", file=sys.stderr)
            self.submit(again)
        elif changed:
            self.standing.save()

    def close(self) -> None:
        """Cancel the jobs that are out, and take away what lies in `jobs/` for them."""
        if batches := sorted({batch for batch, _ in self.standing.slices}):
            for batch in batches:
                if self.left:  # at once, where Slurm would ask first and wait: a job's files are whole at any instant
                    run_quietly(["scancel", f"--name={batch}", "--full", "--signal=KILL", "--state=RUNNING"])
                run_quietly(["scancel", f"--name={batch}"])
        self.standing.path.unlink(missing_ok=True)
        for path in list(self.jobs.iterdir()):
            if path.name.startswith("_") or path.suffix == ".sign":
                path.unlink(missing_ok=True)  # what a run gave stays: the same command takes it up
        with contextlib.suppress(OSError):
            self.jobs.rmdir()


def size(partition: str) -> tuple[int, int]:
    """Nodes and processors of a partition, '' for the default one. ValueError where there is none of that name."""
    done = run_quietly(["sinfo", "-h", "-o", "%P|%D|%C", *(["-p", partition] if partition else [])])
    rows = [line.split("|") for line in done.stdout.splitlines()]
    rows = [row for row in rows if partition or row[0].endswith("*")] or rows
    if done.returncode or not rows:
        why = " ".join(done.stderr.split()) or f"no partition {partition!r}; sinfo lists them"
        raise ValueError(f"Slurm: {why[:300]}")
    allocated, idle, _, _ = zip(*(map(int, row[2].split("/")) for row in rows), strict=True)
    return sum(int(row[1]) for row in rows), sum(allocated) + sum(idle)


def states(batches: set[str]) -> dict[tuple[str, str], str] | None:
    """(batch, number) -> the state of its job, of those that the queue still knows; None where it cannot be asked."""
    if not batches:
        return {}
    done = run_quietly(["squeue", "-h", "-r", "-t", "all", "-n", ",".join(sorted(batches)), "-o", "%j|%K|%T"])
    if done.returncode:
        return None
    found = (line.split("|") for line in done.stdout.splitlines())
    return {(batch, number): state for batch, number, state in found}


def run_quietly(words: Sequence[str], input: str | None = None) -> subprocess.CompletedProcess[str]:
    """A program of Slurm to its end, out of reach of Ctrl-C, which is the driver's to handle."""
    return subprocess.run(
        words, input=input, capture_output=True, text=True, timeout=120,
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}),
    )  # fmt: skip
