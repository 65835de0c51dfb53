"""On Ray and on Slurm, where they are: equal to this machine to the bit; worker, driver and job ended; stopped.

Of Ray a cluster of this machine is started. Slurm has to be running (docs/cluster.md starts one by hand). Where one of
them is missing the table says so.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import files
from harness.record import store

from . import ROOT, TEXT, Tally, killed

SIZE = ["train_characters=12000", "heldout_characters=700", "epochs=12", "hidden=16", "evaluations=4"]
VARIANTS = ["rnn", "gru", "mgu"]
DEADLY = '''"""A cell that ends its process at its first step."""
import os

from variants import Cell, sigmoid


class Deadly(Cell):
    weights = "W_xz W_hz b_z"
    about = "ends its process"

    def step(self, X, H):
        if "import serve" in open("/proc/self/cmdline").read():  # the driver only plans it
            os._exit(3)
        return sigmoid(X @ self.W_xz + H @ self.W_hz + self.b_z)
'''
PATIENCE_S = 240
OURS = "TESTS_FAULTS_CLUSTER"


def ask(on: str, folder: Path, *more: str, seeds: str = "2") -> subprocess.Popen[str]:
    where = ["--on", on] if on else []
    variants = [] if "--variants" in more else ["--variants", *VARIANTS]
    words = ["bench", *TEXT, "--seeds", seeds, *variants, "--set", *SIZE, "--results", str(folder), *where, *more]
    return subprocess.Popen(
        [sys.executable, "-m", "harness", *words], cwd=ROOT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "CHECKPOINT_S": "0.05", OURS: str(os.getpid())},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def outcomes(folder: Path) -> dict[str, object]:
    """What every training gave, whole but for its time."""
    return {key: {**whole["outcome"], "train_s": None} for _, key, whole in store.runs(folder)}


def trainers() -> list[int]:
    """Worker processes that train, of ours."""
    return [pid for pid, said in processes() if "harness.run.executors.local import serve" in said and ours(pid)]


def ours(pid: int) -> bool:
    """Whether a process was started by this one, on whatever cluster of this machine: by a name in its environment."""
    try:
        return f"{OURS}={os.getpid()}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def processes() -> Iterator[tuple[int, str]]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield int(path.parent.name), path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue


def begun_in(folder: Path) -> bool:
    """Whether a training has ended there."""
    return any((folder / "runs").glob("*.json"))


def actors() -> list[int]:
    """Ray's processes that hold a worker."""
    return [pid for pid, said in processes() if said.startswith("ray::Processor.train")]


def until(seconds: float, holds: Callable[[], object]) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.05)
    return False


def equal(on: str, place: Path, whole: dict[str, object]) -> Tally:
    tally = Tally(f"{on}: equal to this machine, to the bit", tried=1)
    one = ask(on, place / "equal")
    out, err = one.communicate(timeout=PATIENCE_S)
    tally.check(one.returncode == 0, f"status {one.returncode}: {err[-300:]}")
    tally.check(outcomes(place / "equal") == whole, "outcomes differ")
    tally.check("(raylet)" not in out + err, "a line of the raylet on the user's screen")
    return tally


def deadly(on: str, place: Path) -> Tally:
    """The words are the local executor's, and exactly one row is."""
    tally = Tally(f"{on}: a process that ends is one row", tried=1)
    cell = place / "deadly.py"
    cell.write_text(DEADLY)
    one = ask(on, place / "deadly", "--variants", str(cell), "gru", "--engine", "loop")
    _, err = one.communicate(timeout=PATIENCE_S)
    errors = sorted(str(dict(whole["outcome"])["error"]) for _, _, whole in store.runs(place / "deadly"))
    tally.check(errors == ["", "", *["crashed: its process ended with status 3"] * 2], f"{errors}: {err[-300:]}")
    tally.check(one.returncode == 1, f"status {one.returncode}")
    return tally


def stopped(on: str, place: Path, whole: dict[str, object], number: signal.Signals, status: int) -> Tally:
    """While it trains. Resumed: on the cluster after SIGINT and SIGTERM, here after SIGKILL."""
    tally = Tally(f"{on}: {number.name} to the driver, gone on with", tried=1)
    folder = place / number.name
    before = set(trainers())
    one = ask(on, folder)
    tally.check(until(PATIENCE_S, lambda: begun_in(folder)), "nothing was trained")
    time.sleep(random.Random(status).uniform(0, 1))
    begun = time.monotonic()
    os.kill(one.pid, number)
    _, err = one.communicate(timeout=60)
    seconds = time.monotonic() - begun
    tally.check(one.returncode == status, f"status {one.returncode}, not {status}: {err[-300:]}")
    tally.check(seconds < 5, f"it took {seconds:.1f} s")
    if not (on.startswith("slurm") and number == signal.SIGKILL):  # whose jobs go on
        tally.check(until(5, lambda: set(trainers()) <= before), "a process trained on for 5 s")
    again = ask("" if number == signal.SIGKILL and on == "ray" else on, folder)
    _, err = again.communicate(timeout=PATIENCE_S)
    tally.check(again.returncode == 0, f"gone on with: status {again.returncode}: {err[-300:]}")
    tally.check(outcomes(folder) == whole, "outcomes differ after it was gone on with")
    tally.note = f"{seconds:.1f} s"
    return tally


def worker(on: str, place: Path, whole: dict[str, object]) -> Tally:
    """A worker is a row; Ray's own process under it is none: its run is handed out again."""
    tally = Tally(f"{on}: kill -9 of a training's process")
    folder = place / "worker"
    before = set(trainers())
    one = ask(on, folder)
    if until(PATIENCE_S, lambda: set(trainers()) - before and begun_in(folder)):
        killed(list(set(trainers()) - before)[:1])
        tally.tried += 1
    _, err = one.communicate(timeout=PATIENCE_S)
    rows = {key: dict(held["outcome"])["error"] for _, key, held in store.runs(folder)}
    bad = [error for error in rows.values() if error]
    tally.check(set(bad) <= {"crashed: its process was ended by SIGKILL"} and len(bad) <= 1, f"{bad}: {err[-300:]}")
    tally.check(set(rows) == set(whole), "a run has no row")
    if on == "ray":
        folder = place / "actor"
        one = ask(on, folder)
        if until(PATIENCE_S, lambda: actors() and begun_in(folder)):
            killed(actors()[:1])
            tally.tried += 1
        _, err = one.communicate(timeout=PATIENCE_S)
        tally.check(one.returncode == 0, f"status {one.returncode}: {err[-300:]}")
        tally.check(outcomes(folder) == whole, "outcomes differ after Ray's own process was killed")
    return tally


def missing(on: str) -> str:
    """Why a cluster cannot be tried here; '' where it can."""
    if on == "ray":
        return "" if importlib.util.find_spec("ray") else "Ray is not installed: pip install 'gru-bench[ray]'"
    if not shutil.which("sbatch"):
        return "no sbatch here"
    asked = subprocess.run(["sinfo", "-h"], capture_output=True, text=True)
    return "" if asked.returncode == 0 and asked.stdout.strip() else "no Slurm runs: docs/cluster.md starts one"


def faults(quick: bool = False) -> Iterator[Tally]:
    with tempfile.TemporaryDirectory(dir=ROOT / "results" if (ROOT / "results").is_dir() else None) as temporary:
        place = Path(temporary)
        kinds = [on for on in ("ray", "slurm") if not missing(on)]
        for on in ("ray", "slurm"):
            if on not in kinds:
                yield Tally(f"{on}: not tried", note=missing(on))
        if not kinds:
            return
        assert ask("", place / "whole").wait(PATIENCE_S) == 0
        whole = outcomes(place / "whole")
        files.write(place / "here", "")
        for on in kinds:
            own = place / on
            own.mkdir()
            yield equal(on, own, whole)
            yield deadly(on, own)
            if quick:
                continue
            for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)):
                yield stopped(on, own, whole, number, status)
            yield worker(on, own, whole)
