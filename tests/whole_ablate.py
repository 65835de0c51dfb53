"""How much sooner does a whole ablation end than the book's way of running it? `python -m tests.whole_ablate`

A: as `make ablate` trains it: the fastest engine, one run a core. B: engine loop, one run at a time, on every core.
Only the trainings, importing torch included, on the embedded text; fewer epochs than the chapter's 500, one evaluation
at the end alone. Each in a fresh process, both once a round, in random order; the ratio is paired by round. ROUNDS and
SET choose.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time

import numpy as np

from harness.analysis.stats import interval
from harness.data import load as loading
from harness.experiments import grids, protocols
from harness.plan import Plan
from harness.run.executors.local import cores, execute

SEEDS, EPOCHS = 2, 10
WAYS = ("auto", "loop")


def work(way: str) -> int:
    """Train every variant of the ablation, SEEDS times each; the number of trainings that ended well."""
    settings = [f"epochs={EPOCHS}", "evaluations=1", *os.environ.get("SET", "").split()]
    protocol = protocols.protocol("classic").override(settings)
    text = loading.load("embedded")
    runs = list(Plan("ablate", grids.ABLATE, protocol, SEEDS, text, "cpu", way).runs)
    if way == "auto":
        return sum(not finished.outcome.error for finished in execute(runs, text, cores()))
    from harness.run.machine import settle
    from harness.run.train import train

    settle(cores(), "ieee")
    return sum(not outcome.error for run in runs for outcome in train([run], text))


def seconds(way: str) -> float:
    """Of one fresh process, from its start to its end."""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", __spec__.name, way], check=True, capture_output=True, text=True)
    wall_s = time.perf_counter() - begun
    if int(done.stdout) != SEEDS * len(grids.ABLATE):
        raise RuntimeError(f"{way}: {done.stdout.strip()} of {SEEDS * len(grids.ABLATE)} trainings ended well")
    return wall_s


def main() -> None:
    ratios = []
    print(f"a whole ablation: {len(grids.ABLATE)} variants x {SEEDS} seeds x {EPOCHS} epochs, classic, {cores()} cores")
    for number in range(int(os.environ.get("ROUNDS") or 5)):
        order = random.Random(number).sample(WAYS, len(WAYS))
        taken = {way: seconds(way) for way in order}
        ratios.append(taken["loop"] / taken["auto"])
        print(
            f"round {number + 1}: auto {taken['auto']:.1f} s, loop {taken['loop']:.1f} s, {ratios[-1]:.2f}x", flush=True
        )
    logs = np.log(ratios)
    bounds = interval(logs)
    middle, low, high = np.exp([logs.mean(), bounds.low, bounds.high])
    print(f"{middle:.2f}x [{low:.2f}, {high:.2f}] (n = {len(ratios)} rounds, 95 %, t of the logs)")


if __name__ == "__main__":
    if sys.argv[1:]:
        print(work(sys.argv[1]))
    else:
        main()
