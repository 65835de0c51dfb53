"""WHERE IT RUNS: here, or in single-threaded worker processes, one a core.

Rule: on a CPU every training runs on one thread, so its numbers do not depend on how many workers there are. A run that
fails is an outcome with an error; the others go on.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait

from harness.corpus import Corpus
from harness.grid import Run
from harness.measure import Fact, describe, environment, now, settle
from harness.probes import train as probe
from harness.train import Outcome, packs, train


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

Tell = Callable[[Underway], None]


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def execute(runs: Sequence[Run], corpus: Corpus, workers: int, tell: Tell = lambda sign: None) -> Iterator[Finished]:
    """Train every run, yielded as it ends; `tell` hears of those underway. Closing the iterator ends the workers."""
    todo = list(packs(runs))
    if todo and runs[0].device == "cuda":
        settle(cores(), runs[0].precision)
        for pack in todo:
            if pack[0].engine != "library":
                yield from _one(pack, corpus, 1, tell)
        # torch's own modules take one seed at a time, which leaves most of a GPU idle: several processes share it
        todo = [pack for pack in todo if pack[0].engine == "library"]
        workers = min(SHARING, cores())
    yield from _workers(todo, corpus, min(workers, len(todo)), tell)


def _one(pack: Sequence[Run], corpus: Corpus, workers: int, tell: Tell) -> list[Finished]:
    """Train a pack in this process."""

    def progress(share: float, perplexity: float | None) -> None:
        tell(Underway(tuple(pack), share, perplexity))

    started, begun = now(), time.perf_counter()
    try:
        outcomes = train(pack, corpus, progress) if pack[0].protocol.task == "text" else probe(pack, progress)
    except Exception as error:
        outcomes = [Outcome(error=describe(error))] * len(pack)
    wall_s = time.perf_counter() - begun
    facts, load = environment(pack[0].device), os.getloadavg()[0]
    return [
        Finished(run, outcome, wall_s, len(pack) * workers, load, started, facts)
        for run, outcome in zip(pack, outcomes, strict=True)
    ]


def _serve(pipe: Connection, corpus: Corpus, workers: int, precision: str) -> None:
    """A worker: packs in, events out, until the pipe closes."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    settle(1, precision)
    while True:
        try:
            pack = pipe.recv()
        except EOFError:
            return
        for finished in _one(pack, corpus, workers, pipe.send):
            pipe.send(finished)


def _workers(todo: list[list[Run]], corpus: Corpus, count: int, tell: Tell) -> Iterator[Finished]:
    """Hand packs to `count` processes. One that dies makes error rows of its pack, and another takes its place."""
    context = multiprocessing.get_context("spawn")
    working: dict[Connection, tuple[multiprocessing.process.BaseProcess, list[Run]]] = {}
    queue = list(reversed(todo))

    def start() -> Connection:
        ours, theirs = context.Pipe()
        args = (theirs, corpus, count, queue[-1][0].precision)
        process = context.Process(target=_serve, args=args, daemon=True)
        # Ctrl-C reaches every process of a terminal, but is the parent's to handle: the child is born with it blocked,
        # and a signal that comes meanwhile waits. Python's own helper process would lift the block, so it comes first.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        process.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        working[ours] = (process, [])
        return ours

    def give(pipe: Connection) -> None:
        process, _ = working[pipe]
        pack = queue.pop() if queue else []
        working[pipe] = (process, list(pack))
        if pack:
            pipe.send(pack)
        else:
            del working[pipe]
            pipe.close()
            process.join()

    try:
        for _ in range(count):
            give(start())
        while working:
            for pipe in wait(list(working)):
                assert isinstance(pipe, Connection)
                process, left = working[pipe]
                try:
                    event: Finished | Underway = pipe.recv()
                except (EOFError, OSError):
                    process.join()
                    del working[pipe]
                    reason = f"crashed: its worker process ended with status {process.exitcode}"
                    for run in left:
                        facts = environment(run.device)
                        yield Finished(run, Outcome(error=reason), 0.0, count, os.getloadavg()[0], now(), facts)
                    if queue:
                        give(start())
                    continue
                if isinstance(event, Underway):
                    tell(event)
                    continue
                left.remove(event.run)
                if not left:
                    give(pipe)
                yield event
    finally:
        for process, _ in working.values():
            process.kill()  # it holds nothing that is not on file
        for process, _ in working.values():
            process.join()
