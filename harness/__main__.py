"""The command line: options -> pipeline; its signals, its streams, its exit status.

Rule: bad input is one line on stderr, the thing, the choices and the next step, and status 2; a run that failed is
status 1; Ctrl-C keeps what is finished and is status 130 (SIGTERM 143, SIGHUP 129). Nothing slow is imported before it
is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from harness import pipeline
from harness.experiments.runs import Run
from harness.formatting import pluralize
from harness.options import parser, strange
from harness.plan import GRIDS, planned
from harness.run.process import keep_streams, leave

if TYPE_CHECKING:
    from harness.analysis.history import Comparison

__all__ = ["command", "main", "parser", "strange"]


def _stopped(runs: Collection[Run], folder: Path) -> int:
    """The last line of a verb that was stopped, and its exit status. No table is made: one who stops is in a hurry."""
    from harness.record import store

    status = _status()
    if not runs:
        print("stopped; what was timed is kept, and the same command goes on", file=sys.stderr)
        return status
    states = store.states(folder)
    kept = sum(states.get(run.key) == "" for run in runs)
    ask = shlex.join([os.path.basename(sys.executable), "-m", "harness", *sys.argv[1:]])
    print(f"stopped; {kept} of {len(runs)} trainings are kept, `report` shows them. To go on: {ask}", file=sys.stderr)
    return status


def _at_once() -> int:
    """The last line where there is no time to count, whatever signal comes while it is written; the exit status."""
    status = _status()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is _stop:  # not where a script or a notebook has called
            signal.signal(number, signal.SIG_IGN)
    print("stopped; what is finished is kept, and the same command goes on", file=sys.stderr)
    return status


def _report(folder: Path, figures: str = "", width: str = "") -> int:
    """The tables and the report again. Where only tables are, from elsewhere, the report from them.

    `figures`: a folder that gets the figures as PDF, `width` wide.
    """
    from harness.record import store, tables
    from harness.record.schema import COLUMNS

    if not folder.is_dir():
        raise ValueError(f"no folder {str(folder)!r} to report on: run bench first, or give --results")
    with store.writing(folder):
        if store.grids(folder):
            results = pipeline.tabulate(folder)
        elif any((folder / f"{name}.csv").exists() for name in COLUMNS):
            results = tables.read(folder)  # an edited one is named
        else:
            raise ValueError(f"nothing in {str(folder)!r} to report on: run bench or ablate first, or give --results")
        status = pipeline.draw(folder, results, anew=True)
    if figures and not status:
        from harness.report import page

        written = page.write_figures(results, Path(figures).expanduser(), width)
        print(f"{pluralize(len(written), 'figure')} as PDF, {width} wide: {figures}")
    return status


def _pack(folder: Path, undo: bool) -> int:
    """Put the raw files of a folder into its pack, or back where they were. The exit status."""
    from harness.record import pack, store

    if not folder.is_dir():
        raise ValueError(f"no folder {str(folder)!r} to pack: run bench first, or give --results")
    with store.writing(folder):
        if undo:
            print(f"unpacked: {pluralize(pack.unpack(folder), 'file')}; {folder / pack.PACK} is gone")
        else:
            count = pack.pack(folder)
            if not count:
                raise ValueError(f"nothing in {str(folder)!r} to pack: run bench or ablate first, or give --results")
            print(f"packed: {pluralize(count, 'file')} in {folder / pack.PACK}; `pack --undo` puts them back")
    return 0


def _compare(a: str, b: str, options: argparse.Namespace) -> Comparison:
    """Compare two folders, said on the screen and, with --to, on a page."""
    from harness import answers, files, terminal

    limit = answers.share(options.limit)
    found = answers.compare(a, b, limit)
    terminal.print_comparison(answers.comparison_rows(found), found)
    if options.to:
        files.write(Path(options.to).expanduser(), answers.page(found).encode())
        print(f"page: {options.to}")
    return found


def _gate(options: argparse.Namespace) -> tuple[int, Comparison]:
    """Bench as asked, then compare with the base."""
    from harness import answers

    if not options.base:
        raise ValueError("gate needs --base FOLDER, the results that nothing may be worse than: bench fills one")
    answers.share(options.limit)
    with answers.opened(options.base) as base:
        answers.load(base, options.base)  # a slip is said before anything slow
    if Path(options.base).resolve() == Path(options.results).resolve():
        raise ValueError(f"--base and --results are one folder, {options.base!r}: give --results another")
    bench = argparse.Namespace(**{**vars(options), "verb": "bench"})
    failed = pipeline.run(bench)
    found = _compare(options.base, options.results, options)
    return failed or found.status, found


def _merge(folders: Sequence[str], folder: Path) -> int:
    """Take other results folders over into one, and make its tables and report. The exit status."""
    from harness.record import merge, store

    if not folders:
        raise ValueError("merge takes results folders, like: merge results/shard-1-of-2 results/shard-2-of-2")
    with store.writing(folder):
        done = merge.merge([Path(name).expanduser() for name in folders], folder)
        print(f"merged: {pluralize(done.runs, 'training')} in {folder}, {done.new} of them new"
              f"{f'; {done.twice} lay in two folders, with one outcome' * bool(done.twice)}")  # fmt: skip
        return pipeline.draw(folder, pipeline.tabulate(folder), anew=True)


def _new(words: Sequence[str]) -> int:
    """Write what `words`, like `cell my_cell`, ask for, where the user stands."""
    from harness import new

    if len(words) != 2 or words[0] not in ("cell", "task"):
        raise ValueError(f"new takes the word cell or task and a name, like: new cell my_cell; not {' '.join(words)!r}")
    python = os.path.basename(sys.executable)
    if words[0] == "task":
        path = new.write_task(words[1], Path())
        print(f"{path}: edit it, then {python} -m harness probe --tasks ./{path} --variants gru rnn")
        return 0
    cell, test = new.write(words[1], Path())
    print(f"{cell} and {test}: edit both, then {python} -m pytest {test}, "
          f"and {python} -m harness bench --variants gru ./{cell}")  # fmt: skip
    return 0


def _list(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Print what there is, what would run and what is done; and return it."""
    import variants
    from harness import terminal
    from harness.record import store
    from variants import outside

    plans = [planned(verb, options) for verb in GRIDS][: 1 if options.variants else None]  # the same for both then
    listed: dict[str, list[dict[str, object]]] = {"variants": [], "runs": []}
    terminal.say("variants, with the gates that can be fixed (like gru:R=1 or gru:Z=0,R=1):")
    wide = max(len(name) for name in (*variants.catalog(), *variants.unusable(), *outside.installed()))
    broad = max(len(" ".join(entry.gates)) for entry in variants.catalog().values())
    for name, entry in variants.catalog().items():
        try:
            why = variants.refusals(name)["native"]
        except ValueError as error:
            terminal.say(f"  {name:<{wide}} {error}", wide + 3)
            continue
        listed["variants"].append({"name": name, "gates": entry.gates, "about": entry.about})
        terminal.say(f"  {name:<{wide}} {' '.join(entry.gates):<{broad}} {entry.about}", wide + broad + 4)
        if why.startswith("step of"):
            terminal.say(f"{'':<{wide + broad + 4}}in the loop: {why}", wide + broad + 4)
    for name, why in variants.unusable().items():
        terminal.say(f"  {name:<{wide}} variants/{why}", wide + 3)
    for name, point in outside.installed().items():
        if name not in variants.catalog() or variants.catalog()[name].path == "":
            terminal.say(f"  {name:<{wide}} {point.value}, of {point.dist.name if point.dist else 'a package'}"
                         f"{': its name is taken' * (name in variants.catalog())}", wide + 3)  # fmt: skip
    known, states = store.grids(folder), store.states(folder)
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
        counted: dict[str, Counter[str]] = {}
        for run in asked.runs:
            state = {None: "to do", "": "done"}.get(states.get(run.key), "failed")
            if options.keys:
                print(f"  {terminal.coloured(f'{state:<7}')} {run.key}")
            counted.setdefault(run.variant, Counter())[state] += 1
            listed["runs"].append({"verb": asked.verb, "run": run.key, "state": state})
        longest = max(map(len, counted), default=0)
        for name, states_of in counted.items() if not options.keys else ():
            parts = [f"{states_of[state]} {terminal.coloured(state)}" for state in ("done", "failed", "to do")
                     if states_of[state]]  # fmt: skip
            print(f"  {name:<{longest}} {', '.join(parts)}")
    if not options.keys:
        print("\n--keys names each run by its key")
    return dict(listed)


def main(arguments: Sequence[str] | None = None) -> int:
    """One verb. Its exit status. With --json stdout is one document, and what is said otherwise goes to stderr."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if "--json" not in words:
        return _main(words)[0]
    said = io.StringIO()
    with contextlib.redirect_stdout(Both(sys.stderr, said)):
        status, found, error = _main(words)
        from harness import answers

        folder = next((words[k + 1] for k, word in enumerate(words[:-1]) if word == "--results"), "results")
        folder = next((word.partition("=")[2] for word in words if word.startswith("--results=")), folder)
        verb = words[0]
        if found is None and not error and verb not in answers.ANSWERS:
            answer: object = said.getvalue().splitlines()
        else:
            answer = found
        try:
            whole = answers.document(verb, Path(folder).expanduser(), status, answer, error)
        except (ValueError, OSError) as why:
            whole = answers.document(verb, Path(folder), status or 1, error=str(why))
    print(answers.said(whole))
    return int(whole["status"])


class Both(io.TextIOBase):
    """Two texts that are written at once."""

    def __init__(self, *to: TextIO) -> None:
        self.to = to

    def write(self, text: str) -> int:
        for stream in self.to:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        for stream in self.to:
            stream.flush()


def _main(words: Sequence[str]) -> tuple[int, Comparison | dict[str, object] | None, str]:
    """One verb: its exit status, what it found where that is no table of the folder, and what was wrong."""
    try:
        options = parser().read(words)
        folder = Path(options.results)
        if options.verb == "new":
            return _new(options.words), None, ""
        if options.verb == "compare":
            if len(options.words) != 2:
                raise ValueError(
                    f"compare takes two results folders, like: compare before after; not {len(options.words)}"
                )
            first, second = options.words
            found = _compare(first, second, options)
            return found.status, found, ""
        if options.verb == "gate":
            return *_gate(options), ""
        if options.verb == "list":
            return 0, _list(options, folder), ""
        if options.verb == "pack":
            return _pack(folder, options.undo), None, ""
        if options.verb == "export":
            from harness import answers

            if len(options.words) > 1 or not options.to:
                kinds = ", ".join(answers.KINDS)
                raise ValueError(f"export takes a folder and --to {kinds}, like: export results --to bibtex")
            print(answers.export(Path(options.words[0]).expanduser() if options.words else folder, options.to))
            return 0, None, ""
        if options.verb == "merge":
            return _merge(options.words, folder), None, ""
        if options.verb == "report":
            if options.column_width and not options.figures:
                raise ValueError("--column-width is that of --figures DIR: give that too")
            width = options.column_width or "3.25in"
            if options.figures:
                from harness.report.drawing import inches

                inches(width)  # a slip is said before anything slow
            return _report(folder, options.figures or "", width), None, ""
        return pipeline.run(options), None, ""
    except ValueError as error:
        said = " ".join(str(error).split())
        print(f"error: {said}", file=sys.stderr)
        return 2, None, said
    except OSError as error:
        said = f"{error.filename or 'system'}: {error.strerror or error}"
        print(f"error: {said}", file=sys.stderr)
        return 1, None, said
    except pipeline.Interrupted as stop:
        try:
            return _stopped(stop.runs, folder), None, "stopped"
        except KeyboardInterrupt:  # the second one: what is kept is not counted to the end
            return _at_once(), None, "stopped"
    except (KeyboardInterrupt, Exception) as error:
        # an early signal, or the second one: every file is whole, the tables may be old
        if not (_asked or isinstance(error, KeyboardInterrupt)):
            raise  # a signal in the middle of an import may come out as another error
        return _at_once(), None, "stopped"


class Stopped(KeyboardInterrupt):
    """A signal came, its number. Not the class above: Python would end by SIGINT where that crossed an `exec`."""


def _status() -> int:
    """Return the exit status as a shell counts: 128 and the signal that was asked for, whatever became of the exception
    on its way.
    """
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
