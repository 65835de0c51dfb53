"""kill -9 of every worker a moment after it is born: before it has read anything, while it imports, as it begins.

One bench a delay, every worker of which is killed; another that is sent SIGTERM meanwhile. STARTS=20 for fewer of each.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from . import TEXT, Tally, ask, commands, gone, killed, session, start

DELAYS_MS = (0, 5, 20, 50, 100, 300)
SIZE = ["train_characters=2000", "heldout_characters=500", "epochs=1", "hidden=4", "evaluations=1"]
PATIENCE_S = 400  # for all workers of one bench to be born and to die


class Hunt(threading.Thread):
    """Kill each worker of a driver so long after it was seen first. It looks once a millisecond."""

    def __init__(self, driver: subprocess.Popen[str], folder: Path, delay_s: float) -> None:
        super().__init__()
        self.driver, self.folder, self.delay_s = driver, folder, delay_s
        self.seen = set[int]()
        self.start()

    def run(self) -> None:
        children = Path(f"/proc/{self.driver.pid}/task/{self.driver.pid}/children")
        while self.driver.poll() is None:
            born = set[int]()
            if (self.folder / "grids" / "bench.json").exists():  # before it, a child may be git or a compiler
                try:
                    born = {int(pid) for pid in children.read_text().split()} - self.seen
                except OSError:
                    return
            self.seen |= born
            if born and self.delay_s:
                threading.Timer(self.delay_s, functools.partial(killed, list(born))).start()
            else:
                killed(list(born))
            time.sleep(0.001)


def at(delay_ms: int, count: int, folder: Path) -> Tally:
    """A bench of as many trainings as workers are to be killed, each of which then is a row."""
    tally = Tally(f"kill -9 of each worker {delay_ms} ms after it was born")
    words = ["bench", *TEXT, "--variants", "rnn", "--set", *SIZE, "--seeds"]
    driver = start(*words, str(count), "--results", str(folder))
    hunt = Hunt(driver, folder, delay_ms / 1000)
    try:
        _, said = driver.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        tally.lost.append(f"hung for {PATIENCE_S} s")
        driver.kill()
        _, said = driver.communicate()
    hunt.join()
    tally.tried = len(hunt.seen)
    tally.check("Traceback" not in said, said[-500:])
    tally.check(gone(driver.pid, 3), f"a process outlived its driver by 3 s: {commands(driver.pid)}")
    killed(session(driver.pid))
    errors = pd.read_csv(folder / "runs.csv")["error"].fillna("") if (folder / "runs.csv").exists() else pd.Series([])
    tally.check(len(errors) == count, f"{len(errors)} rows of {count}, status {driver.returncode}: {said[-300:]}")
    kinds = set(errors) - {"", "crashed: its process was ended by SIGKILL"}
    tally.check(not kinds, f"rows that say {kinds}")
    tally.check(int((errors != "").sum()) <= tally.tried, "a row without a death")
    stopped = folder.with_name("stopped")
    driver = start(*words, "3000", "--results", str(stopped))
    hunt = Hunt(driver, stopped, delay_ms / 1000)
    while not (stopped / "grids" / "bench.json").exists() and driver.poll() is None:
        time.sleep(0.01)
    time.sleep(random.Random(delay_ms).uniform(2, 5))
    begun = time.monotonic()
    driver.send_signal(signal.SIGTERM)
    try:
        _, said = driver.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        driver.kill()
        _, said = driver.communicate()
    took = time.monotonic() - begun
    hunt.join()
    tally.check(
        driver.returncode == 128 + signal.SIGTERM and took < 5, f"{driver.returncode} after {took:.1f} s: {said}"
    )
    tally.note = f"{len(errors)} rows, {int((errors != '').sum())} of them SIGKILL; SIGTERM meanwhile took {took:.1f} s"
    return tally


def faults() -> Iterator[Tally]:
    count = int(os.environ.get("STARTS", "200"))
    for delay in map(int, os.environ.get("DELAYS_MS", "").split() or DELAYS_MS):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "results"
            tally = at(delay, count, folder)
            if delay == DELAYS_MS[-1]:  # what was killed is tried again, and is whole then
                words = ["bench", *TEXT, "--seeds", "20", "--variants", "rnn", "--set", *SIZE, "--results", str(folder)]
                status, said = ask(*words)
                tally.check(status == 0, f"undisturbed: status {status}, {said[-300:]}")
            yield tally
