"""kill -9 at random instants of a small bench and ablate: the driver, a worker, or in the middle of a write.

Every leg goes on in the folder of the leg before it, until both grids are whole; then runs.csv is compared with that of
a folder that nobody disturbed, and the next folder begins. KILLS=20 for fewer.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from harness import files
from harness.record import tables

from . import ROOT, TEXT, Tally, commands, gone, killed, session

SIZE = ["train_characters=12000", "heldout_characters=700", "epochs=4", "hidden=16", "evaluations=4"]
VERBS = {"bench": ["rnn", "gru", "nn.gru", "mgu"], "ablate": ["gru", "gru:R=1", "gru:Z=0"]}
MAY_DIFFER = ["train_s", "wall_s", "together", "environment", "started", "load"]  # times and machine
PATIENCE_S = 120  # a leg takes 10 s


def leg(verb: str, folder: Path, who: str = "nobody", write: int = 0, charts: bool = False) -> subprocess.Popen[bytes]:
    words = [verb, *TEXT, "--seeds", "2", "--variants", *VERBS[verb], "--set", *SIZE, "--results", str(folder)]
    with folder.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults.leg", who, str(write), "yes" if charts else "no", *words],
            cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "CHECKPOINT_S": "0.02", "OMP_WAIT_POLICY": "PASSIVE"},
        )  # fmt: skip


def whole(verb: str, folder: Path) -> int:
    """A leg that nobody disturbs: its status."""
    return leg(verb, folder).wait(PATIENCE_S)


def comparable(folder: Path) -> str:
    text: str = pd.read_csv(folder / "runs.csv").drop(columns=MAY_DIFFER).to_csv(index=False)
    return text


def finished(folder: Path) -> dict[str, bytes]:
    """Runs that ended well, and their bytes. A file that does not parse raises."""
    found = {}
    for path in (folder / "runs").glob("[!.]*.json"):
        if not json.loads(files.unsealed(path)[0])["outcome"]["error"]:
            found[path.name] = path.read_bytes()
    tables.gather(folder)
    tables.read(folder)
    return found


def chain(kills: int, seed: int) -> Tally:
    """That many kills, one after the other."""
    tally, rng = Tally("kill -9 of bench and ablate, at random instants"), random.Random(seed)
    resumed = wholes = 0
    hits = {"driver": 0, "worker": 0, "write of the driver": 0, "write of a worker": 0}
    with tempfile.TemporaryDirectory() as temporary:
        undisturbed = Path(temporary) / "undisturbed"
        begun = time.monotonic()
        assert [whole(verb, undisturbed) for verb in VERBS] == [0, 0], undisturbed.with_suffix(".log").read_text()
        seconds, want = (time.monotonic() - begun) / len(VERBS), comparable(undisturbed)
        folder, have, todo = Path(temporary) / "0", dict[str, bytes](), list(VERBS)
        while todo:
            last = tally.tried >= kills  # that one to its end
            how = "nobody" if last else rng.choice(list(hits))
            writes = how.startswith("write")
            one = leg(todo[0], folder, how.split()[-1], rng.randrange(1, 60 if how.endswith("driver") else 20) * writes,
                      rng.random() < 0.2)  # fmt: skip
            status: int | None = None
            until = time.monotonic() + (PATIENCE_S if last or writes else rng.uniform(0, 1.05 * seconds))
            try:
                while how == "worker" and one.poll() is None and time.monotonic() < until:  # one after the other
                    time.sleep(rng.uniform(0, seconds / 3))
                    others = [pid for pid in session(one.pid) if pid != one.pid]
                    if others:
                        killed([rng.choice(others)])
                        hits["worker"] += 1
                        tally.tried += 1
                status = one.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                if last or writes:
                    tally.lost.append(f"{todo[0]} hung for {PATIENCE_S} s")
                killed([one.pid])
                hits["driver"] += 1
                tally.tried += 1
                status = one.wait(PATIENCE_S)
                tally.check(status == -signal.SIGKILL, f"status {status} of a driver that was killed")
            else:
                hit = writes and status in (-signal.SIGKILL, 1)
                if hit:
                    hits[how] += 1
                    tally.tried += 1
                fine = hit or status == 0 or (how == "worker" and status == 1)
                tally.check(fine, f"status {status} of {todo[0]}, {how}")
            tally.check(gone(one.pid, 3), f"a process outlived its driver by 3 s: {commands(one.pid)}")
            try:
                now = finished(folder)
            except (ValueError, KeyError) as error:
                tally.lost.append(f"after {how}: {error}")
                now = have
            tally.check(all(now.get(name) == text for name, text in have.items()), "a finished run was lost")
            have = now
            resumed += len(list((folder / "checkpoints").glob("[!.]*.npz")))
            if status == 0:
                todo.pop(0)
            elif last:
                break
            if not todo:
                tally.check(comparable(folder) == want, "runs.csv is not that of an undisturbed run")
                wholes += 1
                shutil.rmtree(folder)
                if not last:
                    folder, have, todo = folder.with_name(str(wholes)), {}, list(VERBS)
    tally.note = (
        f"{', '.join(f'{n} of {a}' for a, n in hits.items() if n)}; {resumed} checkpoints lay there to go on from; "
        f"{wholes} folders came out equal, in every column but {', '.join(MAY_DIFFER)}, to an undisturbed one"
    )
    return tally


def faults(quick: bool = False) -> Iterator[Tally]:
    yield chain(8 if quick else int(os.environ.get("KILLS", "200")), 1895)
