"""On Ray and on Slurm, where they are: equal to this machine to the bit; worker, driver, node, link and job ended.

Of Ray a cluster of this machine is started, and as root another with nodes in networks of their own. Slurm has to be
running (docs/cluster.md starts one by hand). Where one of them is missing the table says so. NODES=5 for fewer kills.
"""

from __future__ import annotations

import contextlib
import functools
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
from typing import IO

from harness.record import store
from harness.run.executors import slurm

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
PATIENCE_S = 600
OURS = "TESTS_FAULTS_CLUSTER"


def ask(on: str, folder: Path, *more: str, seeds: str = "2", out: IO[str] | None = None) -> subprocess.Popen[str]:
    """`bench` on a cluster, '' for this machine. `out`: where it says what it says, else in pipes."""
    where = ["--on", on] if on else []
    variants = [] if "--variants" in more else ["--variants", *VARIANTS]
    words = ["bench", *TEXT, "--seeds", seeds, *variants, "--set", *SIZE, "--results", str(folder), *where, *more]
    return subprocess.Popen(
        [sys.executable, "-m", "harness", *words], cwd=ROOT, text=True, start_new_session=True,
        stdout=out or subprocess.PIPE, stderr=out or subprocess.PIPE, env=own_environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def own_environment() -> dict[str, str]:
    """Of all that is started here; of a Ray cluster the token too."""
    return {**os.environ, "CHECKPOINT_S": "0.05", OURS: str(os.getpid()), "RAY_AUTH_TOKEN": "5" * 64,
            "RAY_AUTH_MODE": "token", "PYTHONUNBUFFERED": "1", "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "1000", "RAY_health_check_initial_delay_ms": "2000"}  # fmt: skip


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


def actors(doing: str = ".train") -> list[int]:
    """Ray's processes that hold a worker, or get ready."""
    return [pid for pid, said in processes() if said.startswith(f"ray::Processor{doing}")]


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


def left_behind(on: str, before: set[int]) -> bool:
    """Whether a process of ours trains on, or a job of ours is known to Slurm as waiting or running."""
    jobs = ""
    if on.startswith("slurm"):
        asked = ["squeue", "-h", "-t", "PENDING,RUNNING,SUSPENDED,COMPLETING,CONFIGURING", "-o", "%j"]
        jobs = subprocess.run(asked, capture_output=True, text=True).stdout
    return "gru-bench-" in jobs or not set(trainers()) <= before


@contextlib.contextmanager
def full(on: str) -> Iterator[None]:
    """Every processor of Slurm taken by another job meanwhile: ours waits."""
    if not on.startswith("slurm"):
        yield
        return
    words = ["sbatch", "--parsable", "--exclusive", f"-N{slurm.size('')[0]}", "-o", "/dev/null", "--wrap", "sleep 600"]
    number = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    state = ["squeue", "-h", "-j", number, "-o", "%T"]
    until(30, lambda: "RUNNING" in subprocess.run(state, capture_output=True, text=True).stdout)
    try:
        yield
    finally:
        subprocess.run(["scancel", number])
        until(30, lambda: not subprocess.run(state, capture_output=True, text=True).stdout.strip())


def stops(on: str, place: Path, whole: dict[str, object]) -> Iterator[Tally]:
    """Ctrl-C, SIGTERM and a second one in a moment: each at every stage of one grid, which then goes on."""
    folder, rng = place / "stops", random.Random(7)
    seeds = str(len(whole) // len(VARIANTS))
    kinds = {"SIGINT": [signal.SIGINT], "SIGTERM": [signal.SIGTERM], "twice": [signal.SIGTERM, signal.SIGINT]}
    status = {"SIGINT": {130}, "SIGTERM": {143}, "twice": {130, 143}}

    def finished() -> int:
        return len(list((folder / "runs").glob("*.json")))

    def reached(stage: str, log: Path, begun: int) -> bool:
        if stage == "connecting":
            return "ray: " in log.read_text() or "slurm: " in log.read_text()
        if stage == "waiting":
            return "slurm: " in log.read_text() if on.startswith("slurm") else bool(actors(".ready"))
        return finished() > begun if stage == "training" else finished() == len(whole)

    def stop(stage: str, name: str, tally: Tally) -> float:
        """One stop, and how long the driver took to end."""
        begun, before, log = finished(), set(trainers()), place / "stops.log"
        with full(on) if stage == "waiting" else contextlib.nullcontext(), log.open("w") as out:
            one = ask(on, folder, seeds=seeds, out=out)
            until(PATIENCE_S, lambda: one.poll() is not None or reached(stage, log, begun))
            time.sleep(rng.uniform(0, 0.5) * (stage != "writing"))
            if one.poll() is not None or not reached(stage, log, begun):
                tally.lost.append(f"{name}: {stage} was not reached: {log.read_text()[-300:]}")
                killed([one.pid])
                return 0.0
            tally.tried += 1
            at = time.monotonic()
            for number in kinds[name]:
                os.kill(one.pid, number)
                time.sleep(0.1 * (len(kinds[name]) > 1))
            one.wait(60)
            took = time.monotonic() - at
            by_itself = {0} if stage == "writing" else set[int]()
            tally.check(one.returncode in status[name] | by_itself, f"{name}: status {one.returncode}")
            tally.check("Traceback" not in log.read_text(), f"{name}: {log.read_text()[-400:]}")
            tally.check(took < 5, f"{name}: it took {took:.1f} s")
            tally.check(until(5, lambda: not left_behind(on, before)), f"{name}: something was left")
        return took

    for stage in ("connecting", "waiting", "training", "writing"):
        tally = Tally(f"{on.partition(':')[0]}: SIGINT, SIGTERM and both in a moment, while {stage}")
        took = []
        for name in kinds:
            if stage == "writing":  # all but two are there: the tables follow at once
                done = ask(on, folder, seeds=seeds).wait(2 * PATIENCE_S)
                tally.check(done == 0, f"status {done} when gone on with")
                for path in sorted((folder / "runs").glob("*.json"))[:2]:
                    path.unlink()
            took.append(stop(stage, name, tally))
        tally.note = f"at most {max(took):.1f} s"
        yield tally
    tally = Tally(f"{on.partition(':')[0]}: the grid that was stopped so often, gone on with", tried=1)
    again = ask(on, folder, seeds=seeds)
    _, err = again.communicate(timeout=2 * PATIENCE_S)
    tally.check(again.returncode == 0, f"status {again.returncode}: {err[-300:]}")
    tally.check(outcomes(folder) == whole, "outcomes differ")
    yield tally


def orphaned(on: str, place: Path, whole: dict[str, object]) -> Tally:
    """The driver is killed; gone on with, on Slurm there, on Ray here."""
    tally = Tally(f"{on.partition(':')[0]}: SIGKILL to the driver, gone on with", tried=1)
    folder, seeds, before = place / "killed", str(len(whole) // len(VARIANTS)), set(trainers())
    one = ask(on, folder, seeds=seeds)
    tally.check(until(PATIENCE_S, lambda: begun_in(folder)), "nothing was trained")
    killed([one.pid])
    one.communicate()
    if not on.startswith("slurm"):  # whose jobs go on
        tally.check(until(5, lambda: set(trainers()) <= before), "a process trained on for 5 s")
    again = ask(on if on.startswith("slurm") else "", folder, seeds=seeds)
    _, err = again.communicate(timeout=2 * PATIENCE_S)
    tally.check(again.returncode == 0, f"status {again.returncode}: {err[-300:]}")
    tally.check(outcomes(folder) == whole, "outcomes differ after it was gone on with")
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


class Nodes:
    """A Ray cluster on this machine: a first node without processors and two of one, each in a network of its own."""

    PORT, ADDRESS = 6399, "10.99.0.1"

    def __init__(self) -> None:
        self.place = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: sockets lie in it
        self.bridge = f"gb{os.getpid() % 10**6}"

    def ip(self, words: str, check: bool = True) -> None:
        subprocess.run(["ip", *words.split()], check=check, capture_output=True)

    def ray(self, words: str, number: int = 1) -> None:
        """`ray start` of a node, in its network."""
        inside = ["ip", "netns", "exec", self.name(number)] if number > 1 else []
        start = [*inside, str(Path(sys.executable).with_name("ray")), "start", "--disable-usage-stats",
                 "--object-store-memory=100000000", f"--node-ip-address=10.99.0.{number}", *words.split()]  # fmt: skip
        subprocess.run(start, check=True, env=own_environment(), stdout=subprocess.DEVNULL, timeout=180,
                       stderr=subprocess.DEVNULL)  # fmt: skip

    def name(self, number: int) -> str:
        return f"{self.bridge}n{number}"

    def __enter__(self) -> Nodes:
        self.ip(f"link add {self.bridge} type bridge")
        self.ip(f"addr add {self.ADDRESS}/24 dev {self.bridge}")
        self.ip(f"link set {self.bridge} up")
        for k in (2, 3):
            ours, theirs = f"{self.bridge}v{k}", f"{self.bridge}e{k}"
            self.ip(f"netns add {self.name(k)}")
            self.ip(f"link add {ours} type veth peer name {theirs}")
            self.ip(f"link set {theirs} netns {self.name(k)}")
            self.ip(f"link set {ours} master {self.bridge} up")
            self.ip(f"-n {self.name(k)} addr add 10.99.0.{k}/24 dev {theirs}")
            self.ip(f"-n {self.name(k)} link set {theirs} up")
            self.ip(f"-n {self.name(k)} link set lo up")
        self.up()
        return self

    def up(self) -> None:
        self.ray(f"--head --port={self.PORT} --num-cpus=0 --include-dashboard=false --temp-dir={self.place}")
        for k in (2, 3):
            self.join(k)

    def join(self, number: int) -> None:
        self.ray(f"--address={self.ADDRESS}:{self.PORT} --num-cpus=1", number)

    def pids(self, number: int) -> list[int]:
        if number == 1:  # those of the first node: what was started here, is Ray's, and lies in no other network
            own = [pid for pid, said in processes() if f"{self.place}/" in said and ours(pid)]
            return [pid for pid in own if pid not in {*self.pids(2), *self.pids(3)}]
        said = subprocess.run(["ip", "netns", "pids", self.name(number)], capture_output=True, text=True).stdout
        return [int(pid) for pid in said.split()]

    def kill(self, number: int) -> None:
        killed(self.pids(number))

    def cut(self, number: int, state: str = "down") -> None:
        self.ip(f"link set {self.bridge}v{number} {state}")

    def __exit__(self, *what: object) -> None:
        for k in (2, 3, 1):
            self.kill(k)
        for k in (2, 3):
            self.ip(f"netns del {self.name(k)}", check=False)
        self.ip(f"link del {self.bridge}", check=False)
        shutil.rmtree(self.place, ignore_errors=True)


def nodes(cluster: Nodes, place: Path, whole: dict[str, object], kills: int) -> Iterator[Tally]:
    """Nodes killed, cut off, and the first one killed, each in the middle of a grid."""
    on, seeds, rng = f"ray:{cluster.ADDRESS}:{cluster.PORT}", str(len(whole) // len(VARIANTS)), random.Random(1895)

    def ended(tally: Tally, one: subprocess.Popen[str], folder: Path) -> None:
        _, err = one.communicate(timeout=2 * PATIENCE_S)
        tally.check(one.returncode == 0, f"status {one.returncode}: {err[-400:]}")
        tally.check(outcomes(folder) == whole, f"outcomes differ, or are missing: {err[-300:]}")
        tally.check("(raylet)" not in err and "Traceback" not in err, err[-400:])

    tally, grids = Tally("ray: kill -9 of all processes of a node, at random instants; it joins again"), 0
    while tally.tried < kills:
        folder, grids = place / f"nodes{grids}", grids + 1
        one = ask(on, folder, seeds=seeds)
        until(PATIENCE_S, functools.partial(begun_in, folder))
        while one.poll() is None and tally.tried < kills:
            time.sleep(rng.uniform(0, 6))
            if one.poll() is None:
                number = rng.choice((2, 3))
                cluster.kill(number)
                tally.tried += 1
                cluster.join(number)
        ended(tally, one, folder)
    tally.note = f"{grids} grids of {len(whole)} trainings, each equal to this machine's to the bit"
    yield tally

    for heals, seconds in ((True, 5.0), (True, 20.0), (False, 0.0)):
        tally = Tally(f"ray: a link cut without a word, {f'healed after {seconds:g} s' if heals else 'not healed'}", 1)
        folder = place / f"cut{seconds:g}{heals}"
        one = ask(on, folder, seeds=seeds)
        tally.check(until(PATIENCE_S, functools.partial(begun_in, folder)), "nothing was trained")
        cluster.cut(3)
        if heals:
            time.sleep(seconds)
            cluster.cut(3, "up")
        ended(tally, one, folder)
        cluster.cut(3, "up")
        cluster.kill(3)
        cluster.join(3)
        yield tally

    tally = Tally("ray: kill -9 of the first node's server; the same command goes on", 1)
    folder = place / "head"
    one = ask(on, folder, seeds=seeds)
    tally.check(until(PATIENCE_S, lambda: begun_in(folder)), "nothing was trained")
    begun = time.monotonic()
    killed([pid for pid, said in processes() if "gcs_server" in said.split(" ")[0] and ours(pid)])
    _, err = one.communicate(timeout=PATIENCE_S)
    tally.check(one.returncode == 1 and "its first node has not answered" in err, f"{one.returncode}: {err[-400:]}")
    tally.check("Traceback" not in err and "(raylet)" not in err, err[-400:])
    tally.note = f"it ended after {time.monotonic() - begun:.0f} s"
    for k in (1, 2, 3):
        cluster.kill(k)
    cluster.up()
    ended(tally, ask(on, folder, seeds=seeds), folder)
    yield tally


def unable() -> str:
    """Why no nodes in networks of their own can be had here; '' where they can."""
    if os.geteuid() or not shutil.which("ip"):
        return "networks of their own need root and `ip`"
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True)
    return " ".join(done.stderr.split())


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
        seeds = "2" if quick else "12"
        one = ask("", place / "whole", seeds=seeds)
        assert one.wait(2 * PATIENCE_S) == 0, one.communicate()
        every = outcomes(place / "whole")
        keys = {key for key in every if int(key.split("-")[-2]) < 2}
        for on in kinds:
            own = place / on
            own.mkdir()
            yield equal(on, own, {key: every[key] for key in keys})
            yield deadly(on, own)
            if quick:
                continue
            yield worker(on, own, {key: every[key] for key in keys})
            if on == "slurm" or (why := unable()):
                yield from stops(on, own, every)
                yield orphaned(on, own, every)
            if on == "ray" and why:
                yield Tally("ray: nodes of a cluster: not tried", note=why)
            elif on == "ray":
                with Nodes() as cluster:
                    at = f"ray:{cluster.ADDRESS}:{cluster.PORT}"
                    yield from stops(at, own, every)
                    yield orphaned(at, own, every)
                    yield from nodes(cluster, own, every, int(os.environ.get("NODES", "20")))
