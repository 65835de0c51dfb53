"""What may go wrong, for real: processes killed, disks full, memory out. `make faults` tries it and says what is lost.

The quick ones are in tests/test_faults.py too. Nothing here is needed to use the harness.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
TEXT = ["--corpus", "embedded", "--device", "cpu", "--no-timing"]


@dataclass
class Tally:
    """One kind of fault: how often it was tried, and what was lost, a line each. `note`: what else is worth saying."""

    fault: str
    tried: int = 0
    lost: list[str] = field(default_factory=list)
    note: str = ""

    def check(self, right: bool, what: str) -> None:
        if not right:
            self.lost.append(what)


def ask(*words: str, timeout: float = 300, prepare: Callable[[], object] | None = None) -> tuple[int, str]:
    """`python -m harness` to its end: its status, and what it said on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "harness", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        cwd=ROOT, timeout=timeout, preexec_fn=prepare,
    )  # fmt: skip
    return done.returncode, done.stderr


def start(*words: str) -> subprocess.Popen[str]:
    """`python -m harness` in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "harness", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        cwd=ROOT, start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def session(leader: int) -> list[int]:
    """Processes of a session that are alive."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] not in "ZX":
            found.append(int(path.parent.name))
    return found


def commands(leader: int) -> list[str]:
    """The end of each command of a session's processes that are alive."""
    found = []
    for pid in session(leader):
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[-120:])
    return found


def gone(leader: int, seconds: float) -> bool:
    """Whether a session has nobody left in it, within some time."""
    until = time.monotonic() + seconds
    while session(leader):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def one_line(said: str) -> bool:
    """Whether what was said on stderr is one line, and no traceback."""
    return said.count("\n") == 1 and "Traceback" not in said


def killed(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
