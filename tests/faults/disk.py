"""Disks that are full, folders that cannot be written, files that are taken away: one line, status 1, nothing torn."""

from __future__ import annotations

import ctypes
import functools
import random
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from . import TEXT, Tally, ask, one_line, start
from .kill import SIZE, finished

WORDS = ["bench", *TEXT, "--seeds", "3", "--variants", "rnn", "gru", "--set", *SIZE]
TIMES = 12


def wrong(tally: Tally, folder: Path, status: int, said: str, names: str) -> None:
    """What has to hold of a bench that could not write."""
    tally.tried += 1
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    tally.check(status == 1, f"status {status}: {said[-500:]}")
    tally.check("Traceback" not in said and len(errors) == 1 and names in errors[0], f"it said {said[-500:]!r}")
    if folder.is_dir():
        kept(tally, folder)


def kept(tally: Tally, folder: Path) -> None:
    try:
        finished(folder)
    except (ValueError, KeyError) as error:
        tally.lost.append(str(error))


def full(rng: random.Random) -> Tally:
    """A file system of its own, of a random size; then with space enough."""
    tally = Tally("disk full, then space is made")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "results"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
        if subprocess.run(mount, capture_output=True).returncode:
            tally.note = "not tried: it needs the right to mount"
            return tally
        try:
            for _ in range(TIMES):
                size = rng.choice([rng.randrange(8, 80), rng.randrange(80, 600)])
                subprocess.run(["mount", "-o", f"remount,size={size}k", str(folder)], check=True)
                status, said = ask(*WORDS, "--results", str(folder))
                if status:  # else it went in
                    wrong(tally, folder, status, said, "No space left on device")
                    subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
                    status, said = ask(*WORDS, "--results", str(folder))
                tally.check(status == 0, f"it did not go on: {said[-500:]}")
                tally.check(len(finished(folder)) == 6, "a run is missing")
                for path in folder.iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        finally:
            subprocess.run(["umount", str(folder)], check=True)
    return tally


def quota(rng: random.Random) -> Tally:
    """No file longer than so many bytes: what a quota does, to one file."""
    tally = Tally("file size limit, then none")
    with tempfile.TemporaryDirectory() as temporary:
        for k in range(TIMES):
            folder = Path(temporary) / str(k)
            most = rng.randrange(100, 40_000)
            limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most, most))
            status, said = ask(*WORDS, "--results", str(folder), prepare=limit)
            wrong(tally, folder, status, said, "File too large")
            status, said = ask(*WORDS, "--results", str(folder))
            tally.check(status == 0 and len(finished(folder)) == 6, f"it did not go on: {said[-500:]}")
    return tally


def as_anyone() -> None:
    """In a child: permissions hold for root too. 24: PR_CAPBSET_DROP; 1, 2: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


def forbidden() -> Tally:
    """A folder, a part of it, a text that may not be touched."""
    tally = Tally("read-only folder, unreadable text, as an ordinary user")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "results"
        folder.mkdir()
        folder.chmod(0o555)
        for words, where in ((WORDS, folder), (WORDS, folder / "below"), (["report"], folder)):
            status, said = ask(*words, "--results", str(where), prepare=as_anyone)
            wrong(tally, where, status, said, str(folder))
        tally.check(not list(folder.iterdir()), "something was written all the same")
        folder.chmod(0o755)
        (folder / "runs").mkdir(mode=0o555)
        status, said = ask(*WORDS, "--results", str(folder), prepare=as_anyone)
        wrong(tally, folder, status, said, str(folder / "runs"))
        (folder / "runs").chmod(0o755)
        status, said = ask(*WORDS, "--results", str(folder), prepare=as_anyone)
        tally.check(status == 0 and len(finished(folder)) == 6, f"it did not go on: {said[-500:]}")
        text = Path(temporary) / "text.txt"
        text.write_text("abc " * 10_000)
        text.chmod(0)
        status, said = ask("bench", "--corpus", str(text), "--results", str(folder), prepare=as_anyone)
        tally.tried += 1
        tally.check(status == 2 and one_line(said) and str(text) in said, f"an unreadable text: {said[-500:]!r}")
    return tally


def away(rng: random.Random) -> Tally:
    """While it runs: the folder, a finished run, the text."""
    tally = Tally("folder, finished run or text taken away while running")
    with tempfile.TemporaryDirectory() as temporary:
        text = Path(temporary) / "text.txt"
        own = [word if word != "embedded" else str(text) for word in WORDS]
        for k in range(TIMES):
            text.write_text("the time traveller for so it will be convenient to speak of him\n" * 1_000)
            folder, what = Path(temporary) / str(k), ("folder", "run", "text")[k % 3]
            driver = start(*own, "--results", str(folder))
            while not (found := list((folder / "runs").glob("[!.]*"))) and driver.poll() is None:
                time.sleep(0.005)
            tally.check(bool(found), "it ended before anything was taken away")
            time.sleep(rng.uniform(0, 0.2))
            if what == "folder":
                folder.rename(folder.with_name("elsewhere"))
            elif found:
                (found[0] if what == "run" else text).unlink()
            _, said = driver.communicate(timeout=120)
            if what == "folder":
                wrong(tally, folder, driver.returncode, said, str(folder))
                tally.check(not folder.exists(), "it was made again")
                kept(tally, folder.with_name("elsewhere"))
                shutil.rmtree(folder.with_name("elsewhere"))
                continue
            tally.tried += 1
            if what == "text":  # it was read before
                tally.check(driver.returncode == 0, f"status {driver.returncode}: {said[-500:]!r}")
                continue
            fine = driver.returncode == 1 and "its file was taken away" in said and "Traceback" not in said
            tally.check(fine, f"status {driver.returncode}: {said[-500:]!r}")
            status, said = ask(*own, "--results", str(folder))
            tally.check(status == 0 and len(finished(folder)) == 6, f"it did not go on: {said[-500:]}")
    return tally


def faults() -> Iterator[Tally]:
    rng = random.Random(1895)
    yield full(rng)
    yield quota(rng)
    yield forbidden()
    yield away(rng)
