"""python -m tests.faults.leg WHO WRITE CHARTS WORD ...: `python -m harness WORD ...` that kills a process of its own.

WHO (driver, worker, nobody) does so instead of its WRITE-th call of fsync or rename: the part of a file is there then,
and the file is not.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable

WHO, WRITE, CHARTS = sys.argv[1:4]  # a worker has its parent's


def kill_at(write: int) -> None:
    calls = itertools.count(1)

    def counted(real: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object) -> None:
            if next(calls) == write:
                os.kill(os.getpid(), signal.SIGKILL)
            real(*args)

        return call

    os.fsync, os.replace = counted(os.fsync), counted(os.replace)


if {"__main__": "driver", "__mp_main__": "worker"}.get(__name__) == WHO:
    kill_at(int(WRITE))

if __name__ == "__main__":
    from harness import __main__ as harness

    if CHARTS == "no":  # half of the time goes into them
        from harness import report

        report.__dict__.update(charts=lambda *what: [], further=lambda *what: [])
    sys.exit(harness.command(sys.argv[4:]))
