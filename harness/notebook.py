"""Run the command line's verbs from Python, and return their answers as DataFrames.

Rule: options mean what they mean on the command line, and are read by the same parser. A class becomes a file, which
the workers import; they never import the script or notebook that it was written in.
"""

from __future__ import annotations

import ast
import dataclasses
import linecache
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness import files, pipeline
from harness.analysis.history import Comparison
from harness.formatting import pluralize
from harness.options import FLAGS, TAKES, parser
from harness.record import store, tables
from variants import outside, registry
from variants.registry import unknown

if TYPE_CHECKING:
    from variants.model import Model


@dataclasses.dataclass(frozen=True)
class Figure:
    """A chart that is on file: `.svg`, and `.png` beside it. A notebook shows it."""

    svg: Path

    @property
    def png(self) -> Path:
        return self.svg.with_suffix(".png")

    def _repr_svg_(self) -> str:
        return self.svg.read_text(encoding="utf-8")


class Answer(pd.DataFrame):  # type: ignore[misc]  # pandas ships no types
    """bench.csv or ablate.csv: a DataFrame of every column, shown and written for a paper as the five that answer."""

    @property
    def _constructor(self) -> type[pd.DataFrame]:
        plain: type[pd.DataFrame] = pd.DataFrame  # what is cut out of it
        return plain

    def paper(self) -> pd.DataFrame:
        """Return five columns as text: variant, parameters, perplexity and difference with their intervals, verdict."""
        from harness import terminal

        head, *every = terminal.answer_rows(pd.DataFrame(self))
        rows, kept = (
            [row for row in every if row[4]],
            [0, 2, 4, 5, 7],
        )  # not what was timed alone
        seeds = sorted({row[3] for row in rows})
        shown = pd.DataFrame([[row[i] for i in kept] for row in rows], columns=[head[i] for i in kept])
        return shown.rename(columns={head[4]: f"{head[4][:-1]}, n = {' or '.join(seeds)}]"})

    def _repr_html_(self) -> str:
        html: str = self.paper().to_html(index=False)
        return html

    def to_markdown(self, *args: Any, **kwargs: Any) -> str:
        """Return the five columns as a Markdown table; with arguments, what pandas makes of all columns."""
        if args or kwargs:
            return str(super().to_markdown(*args, **kwargs))
        shown = self.paper()
        rows = [list(shown.columns), ["---"] * len(shown.columns), *shown.to_numpy().tolist()]
        return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |\n" for row in rows)

    def to_latex(self, *args: Any, **kwargs: Any) -> str:
        """Return the five columns as a LaTeX tabular, every name escaped; with arguments, what pandas makes of all."""
        if args or kwargs:
            return str(super().to_latex(*args, **kwargs))
        shown = self.paper()
        lines = [" & ".join(map(_latex, row)) + r" \\" for row in [list(shown.columns), *shown.to_numpy().tolist()]]
        lines[1:1] = [r"\hline"]
        return "\n".join([r"\begin{tabular}{lrrrl}", r"\hline", *lines, r"\hline", r"\end{tabular}"]) + "\n"


def _latex(text: object) -> str:
    """A cell as LaTeX reads it: its special characters escaped, a minus as in mathematics."""
    marks = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\u2212": "$-$"}
    escaped = "".join(marks.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in str(text))
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", escaped)


@dataclasses.dataclass(frozen=True)
class Results(tables.Results):
    """Every table of a results folder as a DataFrame. A notebook shows the answer of the verb that it came from."""

    folder: Path = Path("results")
    verb: str = ""

    @property
    def table(self) -> pd.DataFrame:
        """The answer: a row a variant, or a row a task and variant."""
        verb = self.verb or next((v for v in ("ablate", "bench", "tasks") if len(getattr(self, v))), "bench")
        answer: pd.DataFrame = getattr(self, "tasks" if verb == "probe" else verb)
        return answer

    @property
    def failures(self) -> pd.DataFrame:
        """The trainings that failed, each with its `error`."""
        runs = self.runs
        return runs[runs["error"].fillna("").astype(bool)]

    @property
    def report(self) -> Path:
        """The page: one file that needs no network."""
        return self.folder / "report.html"

    @property
    def figures(self) -> dict[str, Figure]:
        """The charts of the page, by name."""
        return {path.stem: Figure(path) for path in sorted((self.folder / "figures").glob("*.svg"))}

    def save_figures(self, folder: str | os.PathLike[str], width: str | float = "3.25in") -> list[Path]:
        """Write each chart as PDF, fonts inside, `width` wide ('3.25in', '8.3cm', inches as a number): their paths."""
        from harness.report import page

        return page.write_figures(self, Path(folder).expanduser(), width)

    def _repr_html_(self) -> str:
        from harness import terminal

        tasks = self.table is self.tasks
        head, *rows = terminal.task_rows(self.table) if tasks else terminal.answer_rows(self.table)
        shown: str = pd.DataFrame(rows, columns=list(head)).to_html(index=False)
        count = pluralize(len(self.failures), "training")
        failed = f"<p>{count} failed: <code>.failures</code></p>" if len(self.failures) else ""
        return shown + failed


def read(folder: Path, verb: str = "") -> Results:
    """The tables of a folder."""
    whole = tables.read(folder)
    named = {field.name: getattr(whole, field.name) for field in dataclasses.fields(whole)}
    named |= {name: Answer(named[name]) for name in ("bench", "ablate")}
    return Results(**named, folder=folder, verb=verb)


def ask(verb: str, variants: Iterable[object], options: Mapping[str, Any]) -> Results:
    """Run one verb. ValueError, in one line, for what cannot be asked; KeyboardInterrupt keeps what is done."""
    results = Path(str(options.get("results") or "results")).expanduser()
    options = dict(options)
    given = options.pop("variants", None) or ()
    variants = [*variants, *([given] if isinstance(given, str | Path | type) else given)]
    asked = parser().read(arguments(verb, [place(variant, results) for variant in variants], options))
    try:
        pipeline.run(asked)
    except KeyboardInterrupt:
        with store.writing(results):
            pipeline.tabulate(results)
        print(f"stopped; what is finished is kept: harness.read({str(results)!r}) has it, and the same call goes on",
              file=sys.stderr)  # fmt: skip
        raise KeyboardInterrupt from None
    return read(results, verb)


def compare(a: str | os.PathLike[str], b: str | os.PathLike[str], limit: float | str) -> Comparison:
    """Two results folders compared. ValueError for what is none."""
    from harness import answers

    return answers.compare(str(a), str(b), answers.share(str(limit)))


def load_weights(folder: Path, variant: object, seed: int, protocol: str) -> Model:
    """The trained network that a folder keeps. ValueError for one that it does not."""
    from harness.run.network import restored

    [name] = outside.resolve([place(variant, folder)])
    every = [store.as_run(whole["run"]) for _, _, whole in store.runs(folder)]
    kept = {str(net["run"]): net for net in store.networks(folder)}
    own = [run for run in every if run.variant == name]
    if not own:
        raise ValueError(unknown("variant in that folder", name, dict.fromkeys(run.variant for run in every)))
    found = [run for run in own if run.seed == seed and protocol in ("", run.protocol.label, run.protocol.name)]
    with_weights = [run for run in found if "state" in kept.get(run.key, {})]
    if len({run.protocol.label for run in with_weights}) > 1:
        labels = " or ".join(repr(run.protocol.label) for run in with_weights)
        raise ValueError(f"{name} seed {seed} was trained by several protocols: give protocol={labels}")
    if not with_weights:
        why = next((str(kept[run.key].get("why", "")) for run in found if run.key in kept), "")
        seeds = ", ".join(sorted({str(run.seed) for run in own if "state" in kept.get(run.key, {})})) or "none"
        raise ValueError(
            f"no weights of {name} seed {seed} are kept{f': {why}' * bool(why)}; of its seeds are: {seeds}"
        )
    return restored(with_weights[-1], kept[with_weights[-1].key])


def arguments(verb: str, variants: Iterable[str], options: Mapping[str, Any]) -> list[str]:
    """Return what would be typed for these options. ValueError for one that the verb does not take."""
    words, takes = [verb], {*TAKES[verb], "set"} - {"settings", "variants"}
    for name, value in options.items():
        if name not in takes:
            raise ValueError(unknown(f"option of {verb}", name, sorted(takes)))
        flag = f"--{name.replace('_', '-')}"
        if name in FLAGS:
            words += [flag] if value else []
        elif isinstance(value, Mapping):
            words += [flag, *(f"{field}={_said(one)}" for field, one in value.items())]
        elif isinstance(value, list | tuple):
            words += [flag, *map(str, value)]
        elif value is not None:
            words.append(f"{flag}={value}")
    named = list(variants)
    return words + (["--variants", *named] if named else [])


def _said(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def gates_fixed(variant: str, gates: Iterable[str] | None, values: Iterable[float]) -> list[str]:
    """The variants of an ablation: the cell, which is the baseline, and each gate (None: every one) at each value."""
    if gates is None:
        [name, *_] = outside.resolve([variant])
        gates = registry.catalog()[registry.parse(name)[0]].gates
    own = [f"{variant}:{gate}={value:g}" for gate in gates for value in values]
    return list(dict.fromkeys([variant, *own]))


# ---- a class as a variant -------------------------------------------------------------------------


def place(variant: object, results: Path) -> str:
    """How the command line names a variant: itself, a path, or the place of a class. ValueError for what is none."""
    if isinstance(variant, str | Path):
        return str(variant)
    if not isinstance(variant, type):
        raise ValueError(f"a variant is a name, a file or a class, not {type(variant).__name__}")
    module, name = sys.modules.get(variant.__module__), variant.__qualname__
    if "." in name:
        raise ValueError(f"class {name} is written inside a function or class: write it at the top, or in a file")
    if variant.__module__ != "__main__" and outside.importable(variant.__module__):
        return f"{variant.__module__}:{name}"
    stem = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])", "_", name).lower()
    path = results.resolve() / "cells" / f"{stem}.py"
    files.write(path, standalone(variant, module).encode())
    return f"{path}:{name}"


def standalone(cls: type, module: ModuleType | None) -> str:
    """A class with all that it needs, as the text of a module of its own. ValueError for what cannot be written so."""
    written: dict[str, str] = {}
    _write(cls.__name__, cls, module, written)
    return (
        f'"""{cls.__name__}, as it was defined in a notebook or script."""\n\n' + "\n\n".join(written.values()) + "\n"
    )


def _write(name: str, value: Any, module: ModuleType | None, written: dict[str, str]) -> None:
    """Add the text that makes `name` mean `value`, after all that it needs itself."""
    if name in written:
        return
    written[name] = ""
    origin = getattr(value, "__module__", None)
    if isinstance(value, ModuleType):
        text = f"import {value.__name__}" + f" as {name}" * (value.__name__ != name)
    elif isinstance(value, type | FunctionType) and origin == getattr(module, "__name__", None):
        node, text = _source(value)
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and inner.id != name and inner.id in vars(module):
                _write(inner.id, vars(module)[inner.id], module, written)
    elif isinstance(value, int | float | str | bool | None) or value == ():
        text = f"{name} = {value!r}"
    else:
        text = f"from {_holder(name, value, str(origin))} import {name}"
    written[name] = written.pop(name) + ("\n\n" + text + "\n" if "\n" in text else text)


def _holder(name: str, value: object, origin: str) -> str:
    """A module from which `name` can be imported as this very value."""
    for holder in ("variants", "torch", "math", origin):
        if holder in sys.modules and getattr(sys.modules[holder], name, None) is value:
            return holder
    raise ValueError(f"the class uses {name!r}, of type {type(value).__name__}, which cannot be written to a file of "
                     "its own: write the class, and what it uses, in a file")  # fmt: skip


def _source(value: Any) -> tuple[ast.AST, str]:
    """The definition of a class or function, as it was typed: in a script, or in a cell of a notebook."""
    functions: list[Callable[..., Any]] = [value] if isinstance(value, FunctionType) else [
        getattr(member, "__wrapped__", member) for member in vars(value).values() if callable(member)
    ]  # fmt: skip
    for file in dict.fromkeys(f.__code__.co_filename for f in functions if isinstance(f, FunctionType)):
        lines = linecache.getlines(file)
        found = [node for node in ast.parse("".join(lines) or "").body if getattr(node, "name", "") == value.__name__]
        if found:
            first = min([found[-1].lineno, *(d.lineno for d in getattr(found[-1], "decorator_list", []))])
            return found[-1], "".join(lines[first - 1 : found[-1].end_lineno])
    raise ValueError(f"the source of {value.__name__} cannot be found: write it in a file, and name that")
