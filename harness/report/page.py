"""One self-contained HTML file that answers, from the tables and nothing else.

Rule: it only reads. Every sentence is computed from rows that are shown below it, or left out; a number
carries its n, its interval and its unit; what is missing is said with the command that makes it. The same
tables give the same bytes. Every text from a file is escaped. No torch, no address, no clock.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from harness import files
from harness.analysis import stats
from harness.experiments import grids
from harness.record import csv_files, store
from harness.record import tables as record_tables
from harness.record.schema import COLUMNS, names
from harness.report import sections, select
from harness.report.drawing import DARK, LIGHT, inches, pdf, png
from harness.report.sections import (
    Figures,
    Section,
    answers,
    axes,
    claims,
    comparison,
    first_screen,
    gates,
    laboratory,
    methods,
    speed,
    tasks,
)
from variants import registry

NAME = "report.html"
SCRIPT = Path(__file__).parent  # of the laboratory
MOST_CSV = 700_000  # bytes of tables put inside the page, which is to stay under 3 MB; the smallest go first
FIRST_ROWS = 5_000  # alone too large: then so is the table
FURTHER = (  # sections with a heading of their own, in the order of the page
    claims.reproduction, axes.learning_rates, claims.exercises, axes.questions, axes.section, claims.section,
    tasks.section, gates.section, speed.latency,
)  # fmt: skip


def write(results: record_tables.Results, folder: Path) -> Path:
    """The report as `folder/report.html`, whole or not at all. Returns its path."""
    path = Path(folder) / NAME
    figures: Figures = {}
    page = html(results, figures, made_from(path.parent), store.networks(path.parent))
    keep(figures, path.parent / "figures")
    files.write(path, page.encode("utf-8", "replace"))
    return path


def made_from(folder: Path) -> str:
    """A digest of a folder's tables and of what draws them: code, libraries. '' where the tables have no digests."""
    sums = record_tables.sums(folder)
    if not sums:
        return ""
    code = (file for file in sorted(Path(__file__).parent.parent.rglob("*.*")) if "__pycache__" not in file.parts)
    cells = sorted(registry.HERE.glob("*.py"))  # their equations are shown
    own = [file.read_bytes().hex() for file in (*code, *cells) if file.is_file()]
    libraries = [f"{name} {metadata.version(name)}" for name in ("matplotlib", "pandas", "seaborn", "jinja2")]
    kept = store.names(folder, "networks")
    return files.digest("\n".join([sums, *own, *libraries, *kept]))


def current(folder: Path) -> bool:
    """Whether the page that is there is the one that would be written: of the same tables, by the same code."""
    try:
        with (folder / NAME).open(encoding="utf-8", errors="replace") as page:
            head = page.read(1_000)
    except FileNotFoundError:
        return False
    known = made_from(folder)
    return bool(known) and f'content="{known}"' in head and (folder / "figures").is_dir()


def keep(figures: Figures, folder: Path) -> None:
    """Each figure as SVG and PNG, for a paper; those of an earlier report that are no longer drawn go."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*-*.*"):
        if old.stem not in figures and old.suffix in (".svg", ".png"):
            old.unlink()
    for name, (figure, text) in figures.items():
        files.write(folder / f"{name}.svg", text)
        files.write(folder / f"{name}.png", png(figure))


def write_figures(results: record_tables.Results, folder: Path, width: str | float) -> list[Path]:
    """Each figure of the report as `folder/NAME.pdf`, drawn `width` wide, as `inches` reads it. Returns the paths."""
    wide = inches(width)
    data = select.typed(results)
    pictures = [(verb, p) for verb, table in (("bench", data.bench), ("ablate", data.ablate)) if len(table)
                for p in comparison.pictures(data, verb)]  # fmt: skip
    pictures += [(s.id, p) for s in further(data) for p in s.pictures]
    written = []
    for section, picture in pictures:
        if picture.describe and not picture.describe(*picture.frames):
            continue
        if figure := picture.draw(*picture.frames, width=wide):
            folder.mkdir(parents=True, exist_ok=True)
            written.append(folder / f"{section}-{picture.name}.pdf")
            files.write(written[-1], pdf(figure))
    return written


def html(
    results: record_tables.Results,
    figures: Figures | None = None,
    made_from: str = "",
    networks: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The whole page. Works for any tables missing, empty or half filled. `figures` gets what is drawn, by its id.

    `networks`: `store.networks`, of the laboratory.

    `made_from` stands in its head, so that `current` can tell whether it would come out the same.
    """
    drawn: Figures = {} if figures is None else figures
    data = select.typed(results)
    verbs = [(verb, table) for verb, table in (("bench", data.bench), ("ablate", data.ablate)) if len(table)]
    first = first_screen.screen(data)
    every = [chart for verb, _ in verbs for chart in sections.charts(verb, comparison.pictures(data, verb), drawn)]
    lab, left_out = laboratory.data(data, networks)
    equations = laboratory.equations(data, networks)
    parts: dict[str, object] = {  # in the order of the page, by its id: what is empty is not drawn
        "caveats": methods.caveats(data), "sections": [comparison.section(data, verb) for verb, _ in verbs],
        "lesions": gates.lesions(data), "sweep": speed.sweep(data),
        "further": [(s, [chart for chart in sections.charts(s.id, s.pictures, drawn) if not chart.missing])
                    for s in further(data)],
        "charts": [chart for chart in every if not chart.missing], "samples": comparison.samples(data),
        "failures": methods.failures(data), "noise": speed.noise(data), "machine": methods.machine(data),
        "methods": methods.methods(data), "downloads": downloads(results),
    }  # fmt: skip
    return _template().render(
        **parts,
        contents=_contents(parts, bool(equations)),
        lab=lab,
        left_out=left_out,
        page_script=_script("page.js"),
        lab_script=_script("net.js", "lab.js") if lab else "",
        equations=equations,
        equation_ids={name for name, *_ in equations},
        made_from=made_from,
        title="What is each gate for?" if any(c.symbol for c in first.cards) else "Recurrent networks, measured",
        settings=[("Bench" if verb == "bench" else "Ablation", methods.brief(table)) for verb, table in verbs],
        first=first,
        findings={verb: comparison.findings(data, table) for verb, table in verbs},
        margin=stats.MARGIN_NATS,
        alpha=stats.ALPHA,
        inks=[(name, LIGHT[name], DARK[name]) for name in LIGHT],
        symbols=select.symbols(data),
        baseline=grids.BASELINE,
        absent=answers.absent(data, [chart.heading for chart in every if chart.missing]),
        limits=methods.limits(data),
    )


def further(data: record_tables.Results) -> list[Section]:
    """Return the sections with a heading of their own that have something to show, in the order of the page."""
    return [section for make in FURTHER if (section := make(data))]


def _script(*names: str) -> Markup:
    """Files of this folder as they stand in a script element."""
    return Markup("").join(Markup(SCRIPT.joinpath(name).read_text(encoding="utf-8")) for name in names)


def _contents(parts: dict[str, Any], equations: bool) -> list[tuple[str, str]]:
    """(id, name) of the sections that are drawn, in their order."""
    found = [("found", "Found"), ("caveats", "Caveats")]
    found += [(s["verb"], "Bench" if s["verb"] == "bench" else "Ablation") for s in parts["sections"]]
    found += [(s.id, s.word) for s, _ in parts["further"]]
    found += [(name, name.capitalize()) for name in ("charts", "samples", "failures", "noise", "machine", "methods")
              if parts[name]]  # fmt: skip
    return [
        *found,
        ("read", "How to read it"),
        *[("equations", "Equations")] * equations,
        ("limits", "Limits"),
        *[("data", "Data")] * bool(parts["downloads"]),
    ]


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # by name it would not be: the template ends in .jinja
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["csp"] = _csp
    return environment.get_template(f"{NAME}.jinja")


def downloads(results: record_tables.Results) -> list[tuple[str, int, str]]:
    """(file, rows, data URI): the tables as they were read; without a URI where too large for one page."""
    tables = {name: frame for name in COLUMNS if len(frame := getattr(results, name))}
    raw = {  # what is too large for certain need not be written out to know it
        name: _csv(name, frame) for name, frame in tables.items() if len(_csv(name, frame.head(FIRST_ROWS))) <= MOST_CSV
    }
    inside, room = set(), MOST_CSV
    for name, text in sorted(raw.items(), key=lambda item: len(item[1])):
        if len(text) <= room:
            inside.add(name)
            room -= len(text)
    head = "data:text/csv;charset=utf-8;base64,"
    return [
        (f"{name}.csv", len(frame), head + base64.b64encode(raw[name]).decode() if name in inside else "")
        for name, frame in tables.items()
    ]


def _csv(name: str, frame: pd.DataFrame) -> bytes:
    """A table as its file has it: a count that was read beside an empty cell is no 10.0."""
    counts = {c: frame[c].map(lambda x: int(x) if x % 1 == 0 else x, na_action="ignore").astype(object)
              for c in names(name, int) if frame[c].dtype.kind == "f"}  # fmt: skip
    return csv_files.to_text(frame.assign(**counts)).encode("utf-8", "replace")


def _csp(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode()
