"""WHERE IT RUNS: here, or in single-threaded worker processes, one a core.

Rule: on a CPU every training runs on one thread, so its numbers do not depend on how many workers there are. What an
engine trains counts only where it agrees with the plainest, there and then. A run that fails is an outcome with an
error; the others go on.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait

from harness.corpus import Corpus
from harness.grid import Run
from harness.measure import (
    Fact,
    describe,
    disagreement,
    disagrees,
    ended,
    environment,
    follow_parent,
    memory_kills,
    now,
    settle,
)
from harness.probes import PROBES
from harness.probes import train as probe
from harness.train import Outcome, packs, train
from harness.watch import Keep


@dataclass(frozen=True)
class Finished:
    """One training that has ended: what it gave, how long it took, what else the machine was doing."""

    run: Run
    outcome: Outcome
    wall_s: float
    together: int
    load: float
    started: str
    environment: dict[str, Fact]


@dataclass(frozen=True)
class Underway:
    """A sign of life: the share of a pack of runs that is done, and its first seed's held-out perplexity."""

    runs: tuple[Run, ...]
    share: float
    perplexity: float | None


SHARING = 8  # processes that train torch's own modules on one GPU
PATIENCE_S = 600.0  # a worker that gives no sign of life for longer is ended, and its runs are error rows
LOOK_S = 1.0  # between two looks at whether one has

Tell = Callable[[Underway], None]
Keeper = Callable[[Sequence[Run], Mapping[str, Fact]], Keep]  # where a pack is kept, on a machine in that state


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def execute(
    runs: Sequence[Run],
    corpus: Corpus,
    workers: int,
    tell: Tell = lambda sign: None,
    keeper: Keeper | None = None,
) -> Iterator[Finished]:
    """Train every run, yielded as it ends; `tell` hears of those underway. Closing the iterator ends the workers."""
    todo = list(packs(runs))
    if todo and runs[0].device == "cuda":
        settle(cores(), runs[0].precision, runs[0].deterministic)
        for pack in todo:
            if pack[0].engine != "library":
                yield from _one(pack, corpus, 1, tell, keeper)
        # torch's own modules take one seed at a time, which leaves most of a GPU idle: several processes share it
        todo = [pack for pack in todo if pack[0].engine == "library"]
        workers = min(SHARING, cores())
    yield from _workers(todo, corpus, min(workers, len(todo)), tell, keeper)


def _one(pack: Sequence[Run], corpus: Corpus, workers: int, tell: Tell, keeper: Keeper | None = None) -> list[Finished]:
    """Train a pack in this process."""

    def progress(share: float, perplexity: float | None) -> None:
        tell(Underway(tuple(pack), share, perplexity))

    started, begun, facts = now(), time.perf_counter(), environment(pack[0].device)
    keep = keeper(pack, facts) if keeper else None
    try:
        text = pack[0].protocol.task == "text"
        inputs = len(corpus.vocabulary) if text else PROBES[pack[0].protocol.task].inputs
        if reason := _disagrees(replace(pack[0], seed=0), inputs):
            outcomes = [Outcome(error=f"{reason}: --engine names another")] * len(pack)
        else:
            outcomes = train(pack, corpus, progress, keep) if text else probe(pack, progress, keep)
    except Exception as error:
        outcomes = [Outcome(error=describe(error))] * len(pack)
    wall_s, load = time.perf_counter() - begun, os.getloadavg()[0]
    return [
        Finished(run, outcome, wall_s, len(pack) * workers, load, started, facts)
        for run, outcome in zip(pack, outcomes, strict=True)
    ]


@functools.cache
def _disagrees(run: Run, inputs: int) -> str:
    """Asked once for all seeds of a variant: why what this engine trains does not count, '' where it does."""
    return disagrees(run, disagreement(run, inputs))


def _serve(pipe: Connection, corpus: Corpus, workers: int, like: Run, keeper: Keeper | None) -> None:
    """A worker: packs in, events out, until the pipe closes."""
    follow_parent()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    settle(1, like.precision, like.deterministic)
    while True:
        try:
            pack = pipe.recv()
        except EOFError:
            return
        for finished in _one(pack, corpus, workers, pipe.send, keeper):
            pipe.send(finished)


@dataclass
class Worker:
    """A process that trains, what it has not answered of what it was given, and when it last gave a sign of life."""

    process: multiprocessing.process.BaseProcess
    left: list[Run]
    heard: float
    kills: int | None  # of the system for want of memory, before it began


def _workers(
    todo: list[list[Run]], corpus: Corpus, count: int, tell: Tell, keeper: Keeper | None
) -> Iterator[Finished]:
    """Hand packs to `count` processes. One that dies, hangs or answers with anything else than what it is asked for
    makes error rows of its pack, and another takes its place."""
    context = multiprocessing.get_context("spawn")
    working: dict[Connection, Worker] = {}
    queue = list(reversed(todo))

    def start() -> Connection:
        ours, theirs = context.Pipe()
        args = (theirs, corpus, count, queue[-1][0], keeper)
        process = context.Process(target=_serve, args=args, daemon=True)
        # Ctrl-C reaches every process of a terminal, but is the parent's to handle: the child is born with it blocked,
        # and a signal that comes meanwhile waits. Python's own helper process would lift the block, so it comes first.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        process.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        working[ours] = Worker(process, [], time.monotonic(), memory_kills())
        return ours

    def give(pipe: Connection) -> None:
        worker = working[pipe]
        worker.left, worker.heard = queue.pop() if queue else [], time.monotonic()
        if worker.left:
            with contextlib.suppress(OSError):  # it has died since: the next look at the pipe says so
                pipe.send(worker.left)
        else:
            del working[pipe]
            pipe.close()
            worker.process.join()

    def give_up(pipe: Connection, why: str) -> Iterator[Finished]:
        """Its runs as error rows; another worker, where there is more to do."""
        worker = working.pop(pipe)
        worker.process.kill()
        worker.process.join()
        pipe.close()
        reason = why or ended(worker.process.exitcode, worker.kills)
        for run in worker.left:
            facts = environment(run.device)
            yield Finished(run, Outcome(error=reason), 0.0, count, os.getloadavg()[0], now(), facts)
        if queue:
            give(start())

    try:
        for _ in range(count):
            give(start())
        while working:
            for pipe in wait(list(working), LOOK_S):
                assert isinstance(pipe, Connection)
                worker = working[pipe]
                try:
                    event = pipe.recv()
                except (EOFError, OSError):
                    worker.process.join(5)  # how it ended is known a moment after its pipe is closed
                    yield from give_up(pipe, "")
                    continue
                except Exception as error:
                    yield from give_up(pipe, f"crashed: its worker sent what cannot be read: {error!r:.200}")
                    continue
                worker.heard = time.monotonic()
                if isinstance(event, Underway):
                    tell(event)
                elif isinstance(event, Finished) and event.run in worker.left:
                    worker.left.remove(event.run)
                    if not worker.left:
                        give(pipe)
                    yield event
                else:
                    yield from give_up(pipe, f"crashed: its worker sent something else: {event!r:.200}")
            silent = [p for p, worker in working.items() if time.monotonic() - worker.heard > PATIENCE_S]
            for pipe in silent:
                yield from give_up(pipe, f"timeout: no sign of life for {PATIENCE_S:g} s")
    finally:
        for worker in working.values():
            worker.process.kill()  # it holds nothing that is not on file
        for worker in working.values():
            worker.process.join()
