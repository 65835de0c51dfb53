"""10,000 finished runs in one folder: `list`, `report` and going on, in seconds and memory; 100,000 runs planned."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from harness import __main__ as command
from harness import files
from harness import plan as planning
from harness.experiments import grids
from harness.record import store
from harness.run.train import train

from . import ROOT, TEXT, Tally

SEEDS = 1_111
SIZE = ["train_characters=2000", "heldout_characters=1000", "epochs=1", "hidden=8"]
WORDS = ["ablate", "--no-tasks", *TEXT, "--seeds", str(SEEDS), "--set", *SIZE]  # of nine variants: 9,999 trainings
SECONDS, GIB = 10, 1.0  # what was asked for


def fill(folder: Path) -> None:
    """As many runs as WORDS asks for, as an ablate would have left them: one of each variant is trained, its perplexity
    then made up for every seed."""
    random = np.random.default_rng(1895)
    plan = planning.planned("ablate", command.parser().read(WORDS))
    (folder / "runs").mkdir(parents=True)
    trained = {v: dataclasses.asdict(train([plan.run(v, 0)], plan.corpus)[0]) for v in plan.variants}
    for run in plan.runs:
        outcome = trained[run.variant]
        outcome["heldout_perplexity"] *= float(np.exp(random.normal(0, 0.001)))
        outcome["heat"] = outcome["heat"] * (run.seed == 0)  # a sentence is shown of one
        whole = {
            "version": store.VERSION, "run": run.fields, "corpus": plan.corpus.name, "outcome": outcome,
            "environment": {"torch": "2"}, "started": "2026-01-01T00:00:00+00:00", "wall_s": 1.0, "together": 2,
            "load": 0.5,
        }  # fmt: skip
        (folder / "runs" / f"{run.key}.json").write_text(files.sealed(json.dumps(whole, indent=1)))
    asked = {"session": "none", "speed_baseline": plan.speed_baseline, "learning_rates": [], "looks": ()}
    store.write_grid(folder, "ablate", {**planning.described(plan), **asked})


def measured(words: list[str]) -> tuple[int, float, float, str]:
    """Status, seconds, GiB at the most, and what was said of an error."""
    with tempfile.TemporaryFile("w+") as said:
        begun = time.monotonic()
        child = subprocess.Popen(
            [sys.executable, "-m", "harness", *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=said
        )
        _, code, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(code)
        said.seek(0)
        return child.returncode, time.monotonic() - begun, usage.ru_maxrss / 2**20, said.read()[-300:]


def faults() -> Iterator[Tally]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "results"
        fill(folder)
        tally = Tally(f"{9 * SEEDS:,} finished runs in one folder")
        notes = []
        listing = ["list", *(word for word in WORDS[1:] if word != "--no-timing")]
        for name, words in zip(
            ("list", "report", "going on", "with one left to train"), (listing, ["report"], WORDS, WORDS), strict=True
        ):
            if name.startswith("with"):
                next((folder / "runs").glob("gru-7-*.json")).unlink()
            status, seconds, gib, said = measured([*words, "--results", str(folder)])
            tally.tried += 1
            tally.check(status == 0, f"{name}: status {status}, {said}")
            tally.check(gib < GIB, f"{name}: {gib:.2f} GiB")
            notes.append(f"{name} {seconds:.1f} s, {gib:.2f} GiB")
        tally.note = f"{'; '.join(notes)} ({SECONDS} s and {GIB:g} GiB were asked for)"
        yield tally

    tally = Tally("a grid of 100,000 runs is planned", 1)
    plan = planning.planned("ablate", command.parser().read(WORDS))
    plan = dataclasses.replace(plan, variants=(*grids.ABLATE, "lstm"), seeds=10_000)
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    first = next(iter(plan.runs))
    at_once = time.monotonic() - begun
    count = sum(1 for run in plan.runs if run.key)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    tally.check(count == plan.size == 100_000 and first.seed == 0, f"{count} runs")
    tally.check(grown < 50, f"{grown:.0f} MiB")
    tally.note = (
        f"the first after {at_once:.2f} s, every key after {time.monotonic() - begun:.1f} s, {grown:.0f} MiB more"
    )
    yield tally
