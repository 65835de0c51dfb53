"""Train here, or in single-threaded worker processes, one a core.

Rule: on a CPU every training runs on one thread, so its numbers do not depend on how many workers there are. What an
engine trains counts only where it agrees with the reference engine, there and then. A run that fails is an outcome with
an error; the others go on.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import mmap
import os
import pickle
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, Pipe, wait
from typing import cast

from harness.data.corpus import Corpus
from harness.experiments.runs import Run
from harness.experiments.tasks import TASKS
from harness.files import now
from harness.plan import source
from harness.run.agreement import FLOAT32, check_agreement, max_abs_error
from harness.run.executors import Finished as Finished
from harness.run.executors import InProgress as InProgress
from harness.run.executors import OnProgress, OpenCheckpoint, group_batchable
from harness.run.machine import Fact, configure_process, training_facts
from harness.run.outcome import Outcome
from harness.run.process import command, describe, ended, keep_streams, memory_kills
from harness.run.train import train
from harness.run.train_task import train as train_task


@dataclass(frozen=True)
class Trained:
    """Runs that have ended while their networks are still looked at: what is kept if that ends the process."""

    finished: tuple[Finished, ...]
    left: str  # what is not known of them yet


SHARING = 8  # processes that train torch's own modules on one GPU
PATIENCE_S = 600.0  # a worker that gives no sign of life for longer is ended, and its runs are error rows
LOOK_S = 1.0  # between two looks at whether one has
SERVE = "from harness.run.executors.local import serve"  # what a worker runs first
STOPS = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM}  # what ends the parent, which ends its workers
HEADER = struct.Struct("!i")


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def execute(
    runs: Iterable[Run],
    corpus: Corpus,
    workers: int,
    tell: OnProgress = lambda sign: None,
    open_checkpoint: OpenCheckpoint | None = None,
) -> Iterator[Finished]:
    """Train every run, yielded as it ends; `tell` hears of those underway. Closing the iterator ends the workers.

    On a CPU the runs are taken from their iterator one by one, as workers come free.
    """
    groups = group_batchable(runs)
    if (first := next(groups, None)) is None:
        return
    if first[0].device == "cuda":
        todo = [first, *groups]
        # one process for all that trains its seeds side by side: what a fault leaves behind in it is lost with it
        side_by_side = [pack for pack in todo if pack[0].engine != "library" or pack[0].capture]
        yield from Pool(side_by_side, corpus, 1, tell, open_checkpoint).results()
        # torch's own modules step by step, a seed at a time, leave most of a GPU idle: several processes share it
        alone = [pack for pack in todo if pack not in side_by_side]
        yield from Pool(alone, corpus, min(SHARING, cores(), len(alone)), tell, open_checkpoint).results()
    else:
        yield from Pool(itertools.chain([first], groups), corpus, workers, tell, open_checkpoint).results()


def _one(
    pack: Sequence[Run],
    corpus: Corpus,
    workers: int,
    tell: Callable[[InProgress | Trained], None],
    open_checkpoint: OpenCheckpoint | None = None,
) -> list[Finished]:
    """Train a pack in this process."""

    def finished(outcomes: Sequence[Outcome | None]) -> list[Finished]:
        wall_s, load = time.perf_counter() - begun, os.getloadavg()[0]
        return [
            Finished(run, outcome, wall_s, len(pack) * workers, load, started, facts)
            for run, outcome in zip(pack, outcomes, strict=True)
            if outcome is not None
        ]

    def trained(outcomes: Sequence[Outcome | None], left: str) -> None:
        tell(Trained(tuple(finished(outcomes)), left))

    def progress(share: float, perplexity: float | None) -> None:
        tell(InProgress(tuple(pack), share, perplexity))

    started, begun, facts = now(), time.perf_counter(), training_facts(pack[0].device)
    keep = open_checkpoint(pack, facts) if open_checkpoint else None
    try:
        text = pack[0].protocol.task == "text"
        inputs = len(corpus.vocabulary) if text else TASKS[pack[0].protocol.task].inputs
        if pack[0].source not in ("", here := source(replace(pack[0], seed=0))):
            raise RuntimeError(f"its code is not what it was asked for with (source {pack[0].source}, here {here}): "
                               "changed meanwhile? The same command trains the code that is there")  # fmt: skip
        if reason := _disagrees(replace(pack[0], seed=0), inputs):
            outcomes = [Outcome(error=f"{reason}: --engine names another")] * len(pack)
        else:
            outcomes = (
                train(pack, corpus, progress, keep, trained) if text else train_task(pack, progress, keep, trained)
            )
    except Exception as error:
        outcomes = [Outcome(error=describe(error))] * len(pack)
    return finished(outcomes)


@functools.cache
def _disagrees(run: Run, inputs: int) -> str:
    """Asked once for all seeds of a variant: why what this engine trains does not count, '' where it does.

    The GPU kernel may not even be compiled here, for want of a compiler or of room on chip.
    """
    try:
        return check_agreement(run, max_abs_error(run, inputs))
    except Exception as error:
        if run.engine not in FLOAT32:
            raise
        return f"cannot run: {run.engine} fails, {describe(error)}"


def serve(pipe: int, shared: int) -> None:
    """Be a worker: groups of runs in, events out, until the pipe closes. `pipe`, `shared`: file descriptors.

    What comes first is (workers, a run like those that follow, the checkpoints); the text lies in the file `shared`.
    """
    keep_streams()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    ours = Connection(pipe)
    try:
        workers, like, open_checkpoint = ours.recv()
        with mmap.mmap(shared, 0, access=mmap.ACCESS_READ) as text:
            corpus = pickle.loads(text)
        configure_process(1, like.precision, like.deterministic)
        ours.send(training_facts(like.device))
        while True:
            for finished in _one(ours.recv(), corpus, workers, ours.send, open_checkpoint):
                ours.send(finished)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent has ended, or needs it no more
        return


def spoils(finished: Finished) -> bool:
    """Whether its process is unfit for more: on CUDA an error stays, and after a capture that failed torch's allocator
    believes that it is still underway.
    """
    outcome = finished.outcome
    fault = (
        outcome.uncaptured
        or outcome.unseen
        or (outcome.error and not outcome.error.startswith(("diverged", "disagrees")))
    )
    return finished.run.device == "cuda" and bool(fault)


@dataclass
class Worker:
    """A process that trains one group of runs at a time."""

    process: subprocess.Popen[bytes]
    pipe: Connection
    kills: int | None  # by the system, for want of memory, before it began
    silent_s: float = 0.0  # since its last sign of life, as far as the parent was there to hear one
    facts: dict[str, Fact] = field(default_factory=dict)  # of its machine, once it has said them
    group: list[Run] = field(default_factory=list)  # those of its group that it has not answered
    trained: dict[Run, tuple[Finished, str]] = field(default_factory=dict)  # those it only looks at, and what is left
    started: str = ""  # when it was given them
    since: float = 0.0
    idle: bool = False  # it waits for a group
    spoilt: bool = False  # it finishes its group, and is given no other
    arrived: bytearray = field(default_factory=bytearray)  # what it has sent and nobody read

    def fileno(self) -> int:
        return self.pipe.fileno()

    def receive(self) -> None:
        """Take what has arrived, without waiting for the rest. EOFError or OSError where it has ended."""
        if not (some := os.read(self.fileno(), 2**20)):
            raise EOFError
        self.arrived += some

    def event(self) -> bytes | None:
        """The next event that has arrived whole, pickled. `Connection.send` puts its length in front."""
        if len(self.arrived) < HEADER.size:
            return None
        (size,) = HEADER.unpack_from(self.arrived)
        end = HEADER.size + max(0, size)
        if len(self.arrived) < end:
            return None
        event = bytes(self.arrived[HEADER.size : end])
        del self.arrived[:end]
        return event

    def end(self) -> None:
        """It holds nothing that is not on file."""
        self.process.kill()
        self.pipe.close()
        self.process.wait()


class Pool:
    """Worker processes that train groups of runs, each as it comes free.

    A worker that dies, hangs or answers with anything else than what it is asked for makes error rows of its group, and
    another takes its place. The parent never waits for one of them: not while it starts, nor in the middle of an event.
    """

    def __init__(
        self,
        groups: Iterable[list[Run]],
        corpus: Corpus,
        size: int,
        on_progress: OnProgress,
        open_checkpoint: OpenCheckpoint | None,
    ) -> None:
        self.groups, self.corpus, self.size = iter(groups), corpus, size
        self.on_progress, self.open_checkpoint = on_progress, open_checkpoint
        self.workers: list[Worker] = []
        self.ahead: list[list[Run]] = []  # the next group, where a look has been taken at it

    def results(self) -> Iterator[Finished]:
        """Every run, as it ends. A group that is empty means that none is there now: a worker waits for the next."""
        if self.next() is None:
            return
        with tempfile.TemporaryFile() as self.shared:
            pickle.dump(self.corpus, self.shared, pickle.HIGHEST_PROTOCOL)
            self.shared.flush()
            try:
                for _ in range(self.size):
                    if self.next() is not None:
                        self.assign(self.start())
                looked = time.monotonic()
                while self.workers:
                    for idle in [worker for worker in self.workers if not worker.group]:
                        self.assign(idle)
                    for worker in cast("list[Worker]", wait(self.workers, LOOK_S)):  # type: ignore[arg-type]
                        yield from self.events(worker)
                    passed, looked = time.monotonic() - looked, time.monotonic()
                    for worker in self.workers:  # after Ctrl-Z and fg hours have passed, and nobody was silent
                        worker.silent_s += min(passed, 2 * LOOK_S)
                    for worker in [w for w in self.workers if w.group and w.silent_s > PATIENCE_S]:
                        yield from self.fail(worker, f"timeout: no sign of life for {PATIENCE_S:g} s")
            finally:
                for worker in self.workers:
                    worker.process.kill()
                for worker in self.workers:
                    worker.end()

    def next(self) -> list[Run] | None:
        """The next group, which stays the next until it is taken; None where there is none."""
        if not self.ahead:
            self.ahead = list(itertools.islice(self.groups, 1))
        return self.ahead[0] if self.ahead else None

    def start(self) -> Worker:
        """Another process. It is given no more than its pipe holds, so that nobody waits for it to read."""
        ours, theirs = Pipe()
        handles = (theirs.fileno(), self.shared.fileno())
        code = f"{SERVE}; serve({handles[0]}, {handles[1]})"
        # Ctrl-C reaches every process of a terminal, but is the parent's to handle: the child is born with it blocked,
        # and a signal that comes meanwhile waits.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        try:
            kills = memory_kills()
            process = subprocess.Popen(command(code, follow=True), pass_fds=handles, stdin=subprocess.DEVNULL)
            worker = Worker(process, ours, kills)
            self.workers.append(worker)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        with contextlib.suppress(OSError):  # it has died since: the next look at the pipe says so
            ours.send((self.size, self.ahead[0][0], self.open_checkpoint))
        return worker

    def assign(self, worker: Worker) -> None:
        """The next group, or its end where there is none. One that ended while it waited is replaced first."""
        group = self.next()
        if group and worker.idle and worker.process.poll() is not None:
            self.workers.remove(worker)
            worker.end()
            worker = self.start()
        self.ahead.clear()
        worker.group, worker.idle, worker.trained = list(group or ()), group == [], {}
        worker.started, worker.since, worker.silent_s = now(), time.monotonic(), 0.0
        if worker.group:
            with contextlib.suppress(OSError):
                worker.pipe.send(worker.group)
        elif group is None:
            self.workers.remove(worker)
            worker.end()

    def events(self, worker: Worker) -> Iterator[Finished]:
        """Return what a worker has sent: its machine, signs of life, finished runs."""
        try:
            worker.receive()
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(5)  # how it ended is known a moment after its pipe is closed
            yield from self.fail(worker)
            return
        while worker in self.workers and (whole := worker.event()) is not None:
            try:
                event = pickle.loads(whole)
            except Exception as error:
                yield from self.fail(worker, f"crashed: its worker sent what cannot be read: {error!r:.200}")
                return
            worker.silent_s = 0.0
            if isinstance(event, dict):
                worker.facts = event
            elif isinstance(event, InProgress):
                self.on_progress(event)
            elif isinstance(event, Trained) and {done.run for done in event.finished} <= set(worker.group):
                worker.trained |= {done.run: (done, event.left) for done in event.finished}
            elif isinstance(event, Finished) and event.run in worker.group:
                worker.group.remove(event.run)
                worker.spoilt |= spoils(event)
                ended_group = not worker.group
                if ended_group and not worker.spoilt:
                    self.assign(worker)
                yield event
                if ended_group and worker.spoilt:
                    yield from self.fail(worker)  # of its group nothing is left: another takes the next
            else:
                yield from self.fail(worker, f"crashed: its worker sent something else: {event!r:.200}")

    def fail(self, worker: Worker, why: str = "") -> Iterator[Finished]:
        """Give an error row for each run that it has not answered, or its numbers where only looks are missing.

        Another worker takes what is left.
        """
        self.workers.remove(worker)
        worker.end()
        outcome = Outcome(error=why or ended(worker.process.returncode, worker.kills))
        wall_s, load = time.monotonic() - worker.since, os.getloadavg()[0]
        for run in worker.group:
            if run in worker.trained:
                done, left = worker.trained[run]
                lost = {} if done.outcome.error or not left else {left: outcome.error}
                yield replace(done, outcome=replace(done.outcome, unseen=done.outcome.unseen | lost))
                continue
            yield Finished(run, outcome, wall_s, self.size, load, worker.started, worker.facts)
        if self.next():
            self.assign(self.start())
