"""PROCESS: how another process of ours is started, and how one goes on when nobody listens to it any more.

Rule: no torch, and nothing of the harness.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from typing import Any


def command(code: str) -> list[str]:
    """The command of a fresh Python that finds modules where this one does and runs `code`.

    Unlike multiprocessing's children it imports nobody's main script: not one without a `__main__` guard, nor one that
    was typed into a pipe. PYTHONSAFEPATH and the folder it starts in make no difference.
    """
    path = [entry for entry in sys.path if isinstance(entry, str)]
    return [sys.executable, "-c", f"import sys; sys.path[:] = {path!a}; {code}"]


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
        encoding, buffered = (old.encoding, old.line_buffering) if old else ("utf-8", True)
        with contextlib.suppress(OSError):
            (old or io.StringIO()).flush()
        # a folder's name may be no Unicode, a terminal may have no accents
        new = io.TextIOWrapper(io.BufferedWriter(Stream(handle)), encoding, "backslashreplace", line_buffering=buffered)
        setattr(sys, name, new)


def _to_nowhere(handle: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != handle:
        os.dup2(nowhere, handle)
        os.close(nowhere)
    else:
        os.set_inheritable(handle, True)
