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


def kill_at(write: int) -> None:
    calls = itertools.count(1)

    def counted(real: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object) -> None:
            if next(calls) == write:
                os.kill(os.getpid(), signal.SIGKILL)
            real(*args)

        return call

    os.fsync, os.replace = counted(os.fsync), counted(os.replace)


if __name__ == "__main__":
    from harness import __main__ as harness
    from harness.run.executors import local

    who, write, charts, *words = sys.argv[1:]
    if who == "driver":
        kill_at(int(write))
    if who == "worker":
        local.SERVE = f"from {__spec__.name} import kill_at; kill_at({int(write)}); {local.SERVE}"
    if charts == "no":  # half of the time goes into them
        from harness.report import sections

        sections.__dict__.update(charts=lambda *what: [])
    sys.exit(harness.command(words))
