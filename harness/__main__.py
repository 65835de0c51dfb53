"""The command line: options -> pipeline; its signals, its streams, its exit status.

Rule: bad input is one line on stderr, the thing, the choices and the next step, and status 2; a run that failed is
status 1; Ctrl-C keeps what is finished and is status 130 (SIGTERM 143, SIGHUP 129). Nothing slow is imported before it
is needed.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from harness import pipeline
from harness.experiments.runs import Run
from harness.options import parser, strange
from harness.plan import GRIDS, planned
from harness.run.process import keep_streams, leave

__all__ = ["command", "main", "parser", "strange"]


def _stopped(runs: Sequence[Run], folder: Path) -> int:
    """The last line of a verb that was stopped, and its exit status. No table is made: one who stops is in a hurry."""
    from harness.record import store

    status = _status()
    if not runs:
        print("stopped; what was timed is kept, and the same command goes on", file=sys.stderr)
        return status
    kept = sum(store.done(folder, run) for run in runs)
    ask = shlex.join([os.path.basename(sys.executable), "-m", "harness", *sys.argv[1:]])
    print(f"stopped; {kept} of {len(runs)} trainings are kept, `report` shows them. To go on: {ask}", file=sys.stderr)
    return status


def _report(folder: Path) -> int:
    """The tables and the report again. Where only tables are, from elsewhere, the report from them."""
    from harness.record import store, tables
    from harness.record.schema import COLUMNS

    if not folder.is_dir():
        raise ValueError(f"no folder {str(folder)!r} to report on: run bench first, or give --results")
    with store.writing(folder):
        if store.grids(folder):
            pipeline.tabulate(folder)
        elif any((folder / f"{name}.csv").exists() for name in COLUMNS):
            tables.read(folder)  # an edited one is named
        else:
            raise ValueError(f"nothing in {str(folder)!r} to report on: run bench or ablate first, or give --results")
        return pipeline.draw(folder, anew=True)


def _pack(folder: Path, undo: bool) -> int:
    """Put the raw files of a folder into its pack, or back where they were. The exit status."""
    from harness.record import pack, store

    if not folder.is_dir():
        raise ValueError(f"no folder {str(folder)!r} to pack: run bench first, or give --results")
    with store.writing(folder):
        if undo:
            print(f"unpacked: {pack.unpack(folder)} files; {folder / pack.PACK} is gone")
        else:
            count = pack.pack(folder)
            if not count:
                raise ValueError(f"nothing in {str(folder)!r} to pack: run bench or ablate first, or give --results")
            print(f"packed: {count} files in {folder / pack.PACK}; `pack --undo` puts them back")
    return 0


def _new(words: Sequence[str]) -> int:
    """Write what `words`, like `cell my_cell`, ask for, where the user stands."""
    from harness import new_cell

    if len(words) != 2 or words[0] != "cell":
        raise ValueError(f"new takes the word cell and a name, like: new cell my_cell; not {' '.join(words)!r}")
    cell, test = new_cell.write(words[1], Path())
    python = os.path.basename(sys.executable)
    print(f"{cell} and {test}: edit both, then {python} -m pytest {test}, "
          f"and {python} -m harness bench --variants gru ./{cell}")  # fmt: skip
    return 0


def _list(options: argparse.Namespace, folder: Path) -> int:
    import variants
    from harness.record import store
    from variants import outside

    plans = [planned(verb, options) for verb in GRIDS][: 1 if options.variants else None]  # the same for both then
    print("variants, with the gates that can be fixed (like gru:R=1 or gru:Z=0,R=1):")
    for name, entry in variants.found().items():
        try:
            why = variants.refusals(name)["native"]
        except ValueError as error:
            print(f"  {name:<10} {error}")
            continue
        print(f"  {name:<10} {' '.join(entry.gates):<6} {entry.about}")
        if why.startswith("step of"):
            print(f"{'':<20}in the loop: {why}")
    for name, why in variants.unusable().items():
        print(f"  {name:<10} variants/{why}")
    for name, point in outside.installed().items():
        if name not in variants.found() or variants.found()[name].path == "":
            print(f"  {name:<10} {point.value}, of {point.dist.name if point.dist else 'a package'}"
                  f"{': its name is taken' * (name in variants.found())}")  # fmt: skip
    known = store.grids(folder)
    for asked in plans:
        rows = [row for one in known.values() for row in one.get("learning_rates", ())]
        tried = [row for row in rows if row["protocol"] == asked.protocol.label]
        asked = dataclasses.replace(asked, rates={row["variant"]: row["lr"] for row in tried if row["chosen"]})
        print(f"\n{asked.verb}: protocol {asked.protocol.label}, text {asked.corpus.name}, device {asked.device}")
        asked, wrong = pipeline.remembered(asked, folder)
        for (name, _), why in wrong.items():
            print(f"  {name} is trained by {asked.engines(name)[0]}: {why} on this machine; --engine tries it again")
        for cell, name in [(variants.get(name), name) for name in asked.variants if ":" in name]:
            gone = [weight for weight in cell.weights.split() if weight in cell.absent]
            print(f"  {name} is without {' '.join(gone) or 'nothing'}{f': {cell.whole}' * bool(cell.whole)}")
        for run in asked.runs:
            state = "done" if store.done(folder, run) else "failed" if store.failed(folder, run) else "to do"
            print(f"  {state:<7} {run.key}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """One verb. Its exit status."""
    try:
        options = parser().read(arguments)
        folder = Path(options.results)
        if options.verb == "new":
            return _new(options.new)
        if options.verb == "list":
            return _list(options, folder)
        if options.verb == "pack":
            return _pack(folder, options.undo)
        if options.verb == "report":
            return _report(folder)
        return pipeline.run(options)
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or 'system'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except pipeline.Interrupted as stop:
        try:
            return _stopped(stop.runs, folder)
        except KeyboardInterrupt:
            return _status()
    except KeyboardInterrupt:  # early, or the second one: every file is whole, but the tables may be old
        print("stopped; what is finished is kept, and the same command goes on", file=sys.stderr)
        return _status()


class Stopped(KeyboardInterrupt):
    """A signal came, its number. Not the class above: Python would end by SIGINT where that crossed an `exec`."""


def _status() -> int:
    """As a shell counts: 128 and the signal that was asked for, whatever became of the exception on its way."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    return 128 + (_asked or signal.SIGINT)


def _stop(number: int, frame: object) -> None:
    """Raise it here, and again in a second: where it came Python may have ignored it, as at the end of an object."""
    global _asked
    _asked = _asked if number == signal.SIGALRM else number
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    raise Stopped(_asked)


_asked = 0  # the signal that was asked for last


def command(arguments: Sequence[str] | None = None) -> NoReturn:
    """`main` as a program of its own: with its signals and its streams, and its end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        if signal.getsignal(number) != signal.SIG_IGN:  # a shell's background job does not hear Ctrl-C
            signal.signal(number, _stop)
    said = sys.unraisablehook
    sys.unraisablehook = lambda what: None if what.exc_type is Stopped else said(what)
    keep_streams()
    ended = main(arguments)
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
    ):  # all is on file: one that comes now would stop nothing
        signal.signal(number, signal.SIG_IGN)
    leave(ended)


if __name__ == "__main__":
    command()
