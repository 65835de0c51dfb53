"""Start processes of ours, and let one go on when nobody listens to it any more.

Rule: no torch, and nothing of the harness.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import io
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from variants import registry


def command(code: str, follow: bool = False) -> list[str]:
    """The command of a fresh Python that finds modules where this one does and runs `code`, knowing the same cells.

    Unlike multiprocessing's children it imports nobody's main script: not one without a `__main__` guard, nor one that
    was typed into a pipe. PYTHONSAFEPATH and the folder it starts in make no difference. With `follow` it ends when
    this process does, also while it imports what is slow.
    """
    path = [entry for entry in sys.path if isinstance(entry, str)]
    cells = {name: dataclasses.astuple(entry) for name, entry in registry.OUTSIDE.items()}
    known = f"import harness; from variants import registry; registry.tell({cells!a}); " if cells else ""
    tasks = getattr(sys.modules.get("harness.experiments.tasks"), "PLACES", {})
    if tasks:
        places = dict.fromkeys(tasks.values())
        known += f"from harness.data.load import own_tasks; [own_tasks(p, check=False) for p in {list(places)!a}]; "
    first = f"from harness.run.process import follow_parent; follow_parent({os.getpid()}); " if follow else ""
    return [sys.executable, "-c", f"import sys; sys.path[:] = {path!a}; {first}{known}{code}"]


class Stream(io.RawIOBase):
    """A file descriptor to write to, whose reader may go away: from then on what is written is dropped.

    A closed pager, `| head` or a full disk is no reason to stop a training. stderr says why stdout broke, unless it is
    that its reader left.
    """

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.handle

    def isatty(self) -> bool:
        return os.isatty(self.handle)

    def write(self, data: Any) -> int:
        while True:
            try:
                return os.write(self.handle, data)
            except BlockingIOError:  # whoever shares it has made it so
                select.select([], [self.handle], [])
            except OSError as error:
                _to_nowhere(self.handle)
                if self.handle == 1 and error.errno not in (errno.EPIPE, errno.EIO):
                    print(f"note: nothing more is written to stdout: {error.strerror}", file=sys.stderr)
                return len(data)


def keep_streams() -> None:
    """Have stdout and stderr outlive their readers, closed ones lead nowhere, and a character they lack be escaped."""
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError:  # closed: the next file opened would be taken for it
            _to_nowhere(handle)
    for name, handle in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        if old is not None and not (isinstance(old, io.TextIOWrapper) and old.fileno() == handle):
            continue  # whoever put another there knows why
        # PYTHONUNBUFFERED says it by `write_through`
        encoding, by_line = (old.encoding, old.line_buffering or old.write_through) if old else ("utf-8", True)
        with contextlib.suppress(OSError):
            (old or io.StringIO()).flush()
        # a folder's name may be no Unicode, a terminal may have no accents
        new = io.TextIOWrapper(io.BufferedWriter(Stream(handle)), encoding, "backslashreplace", line_buffering=by_line)
        setattr(sys, name, new)


def _to_nowhere(handle: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != handle:
        os.dup2(nowhere, handle)
        os.close(nowhere)
    else:
        os.set_inheritable(handle, True)


def describe(error: BaseException) -> str:
    """One line for a row: a word for the kind, then the reason."""
    said = str(error).lower()
    no_memory = isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said
    reason = " ".join(str(error).split())[:300]
    return f"{'oom' if no_memory else 'crashed'}: {type(error).__name__}: {reason}"


def ended(status: int | None, kills: int | None) -> str:
    """One line for a row: a process that ended without an answer. `kills`: `memory_kills` before it began."""
    after = memory_kills()
    if status == -signal.SIGKILL and kills is not None and after is not None and after > kills:
        return "oom: the system ended its process, which had no memory left"
    if status is not None and status < 0:
        with contextlib.suppress(ValueError):
            return f"crashed: its process was ended by {signal.Signals(-status).name}"
    return f"crashed: its process ended with status {status}"


def memory_kills() -> int | None:
    """Processes that the system has ended since it started, to have memory again; None where that is not to be had."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def leave(status: int) -> NoReturn:
    """End this process now, its streams flushed.

    Python's own way out first takes every module apart: with torch 0.7 s of processor time, 5 s on a busy machine, for
    one who pressed Ctrl-C and for every sample that is timed.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


def follow_parent(parent: int) -> None:
    """End this process when the one that started it ends, however that does (Linux; elsewhere at its next answer)."""
    follow = 1  # from prctl.h: PR_SET_PDEATHSIG
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).prctl(follow, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)  # it ended before this was said
