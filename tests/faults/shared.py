"""Two at once: on one results folder, and what runs beside must not matter."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from . import TEXT, Tally, ask, killed, one_line, session, start
from .kill import SIZE, VERBS, comparable

WORDS = ["bench", *TEXT, "--seeds", "2", "--variants", "rnn", "gru", "--set", *SIZE, "--results"]


def two(times: int = 8) -> Iterator[Tally]:
    refused, dead = Tally("a second bench on one folder"), Tally("a lock of a process that was killed")
    with tempfile.TemporaryDirectory() as temporary:
        for k in range(times):
            folder = Path(temporary) / str(k)
            one = start(*WORDS, str(folder))
            if k % 2:  # else both start together, and either may be first
                while not (folder / ".lock").exists():
                    time.sleep(0.01)
            other = start(*WORDS, str(folder))
            lines = [p.communicate(timeout=120)[1] for p in (one, other)]
            ends = [p.returncode for p in (one, other)]
            refused.tried += 1
            if ends == [0, 0]:  # the first had ended before the second began
                continue
            second = ends.index(2) if 2 in ends else 0
            who = f"is being written by process {(one, other)[1 - second].pid} on "
            fine = sorted(ends) == [0, 2] and one_line(lines[second]) and who in lines[second]
            refused.check(fine, f"{ends}: {lines}")
        for k in range(times):
            folder = Path(temporary) / f"dead{k}"
            one = start(*WORDS, str(folder))
            while not (folder / ".lock").exists():
                time.sleep(0.01)
            time.sleep(0.7 * k)
            killed([one.pid])
            one.communicate()
            status, said = ask(*WORDS, str(folder))
            dead.tried += 1
            dead.check(status == 0, f"status {status}: {said[-500:]}")
            killed(session(one.pid))
    yield refused
    yield dead


def alike() -> Tally:
    """runs.csv by the number of workers, and by what else is in the grid."""
    tally = Tally("one worker or two, alone or beside others: runs.csv the same")
    every = sorted(os.sched_getaffinity(0))

    def runs(folder: Path, verb: str, names: list[str], processors: list[int] = every) -> str:
        words = [verb, *TEXT, "--seeds", "3", "--variants", *names, "--set", *SIZE, "--results", str(folder)]
        status, said = ask(*words, prepare=lambda: os.sched_setaffinity(0, processors))
        tally.check(status == 0, said[-500:])
        return comparable(folder)

    with tempfile.TemporaryDirectory() as temporary:
        found = [
            [runs(Path(temporary) / str(k), verb, names, processors) for verb, names in VERBS.items()][-1]
            for k, processors in enumerate((every[:1], every))
        ]
        tally.tried += 1
        tally.check(found[0] == found[1], "runs.csv depends on the number of workers")
        for variant in dict.fromkeys(v for names in VERBS.values() for v in names):
            alone = runs(Path(temporary) / variant, "bench", [variant]).splitlines()
            tally.tried += 1
            tally.check(set(alone) <= set(found[0].splitlines()), f"{variant} alone is another")
    return tally


def faults() -> Iterator[Tally]:
    yield from two()
    yield alike()
