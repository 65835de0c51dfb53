"""SIGINT and SIGTERM at random instants of a bench: stopped within 5 s, children gone, all that was finished kept.

And a second Ctrl-C a moment after the first. STOPS=5 for fewer of each.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from . import TEXT, Tally, gone, killed, session, start
from .kill import SIZE, finished

WORDS = ["bench", *TEXT, "--seeds", "3000", "--variants", "rnn", "gru", "nn.gru", "--set", *SIZE]


def stop(number: signal.Signals, twice: bool, times: int, rng: random.Random) -> Tally:
    tally = Tally(f"{number.name}{', and again a moment later' * twice}")
    slowest = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        have = dict[str, bytes]()
        for _ in range(times):
            driver = start(*WORDS, "--results", str(folder))
            time.sleep(rng.uniform(0.5, 9))  # the first: Python has its handlers; the last: well into the trainings
            tally.tried += 1
            tally.check(driver.poll() is None, "it had ended of its own accord")
            begun = time.monotonic()
            for k in range(1 + twice):
                time.sleep(k * rng.uniform(0, 0.5))
                if driver.poll() is None:
                    # as a terminal does, to all of them; a kill is for the driver
                    (os.killpg if number == signal.SIGINT else os.kill)(driver.pid, number)
            _, said = driver.communicate(timeout=60)
            slowest = max(slowest, took := time.monotonic() - begun)
            tally.check(took < 5, f"it took {took:.1f} s")
            tally.check(gone(driver.pid, 2), "a child outlived it")
            killed(session(driver.pid))
            tally.check(driver.returncode == 128 + number, f"status {driver.returncode}: {said[-500:]}")
            last = said.strip().rpartition("\n")[2]
            tally.check(last.startswith("stopped; ") and "Traceback" not in said, f"it said {said[-1500:]!r}")
            try:
                now = finished(folder)
            except ValueError as error:
                tally.lost.append(str(error))
                continue
            tally.check(all(now.get(name) == text for name, text in have.items()), "a finished run was lost")
            have = now
    tally.note = f"the slowest took {slowest:.1f} s; {len(have)} runs were kept in the end"
    return tally


def faults() -> Iterator[Tally]:
    times, rng = int(os.environ.get("STOPS", "20")), random.Random(1895)
    for number in (signal.SIGINT, signal.SIGTERM):
        yield stop(number, False, times, rng)
    yield stop(signal.SIGINT, True, times, rng)
