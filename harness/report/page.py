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
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from harness import files
from harness.analysis import stats
from harness.experiments import grids, protocols
from harness.formatting import count, mib, pluralize, rate, unique
from harness.record import csv_files, store
from harness.record import tables as record_tables
from harness.record.schema import COLUMNS
from harness.report import elements, first_screen, laboratory, sections, select, sentences
from harness.report import figures as plots
from harness.report.elements import Numbers, Table
from variants import registry

NAME = "report.html"
SCRIPT = Path(__file__).parent  # of the laboratory
MOST_CSV = 700_000  # bytes of tables put inside the page, which is to stay under 3 MB; the smallest go first
FIRST_ROWS = 5_000  # alone too large: then so is the table
LONGEST_ERROR = 2_000  # characters shown of one error

Figures = dict[str, tuple[plots.Figure, str]]  # by its id: drawn, and as SVG
Frames = tuple[pd.DataFrame, pd.DataFrame]


@dataclass(frozen=True)
class Chart:
    """`images` are SVG, wide and narrow. `missing`: why there are none."""

    id: str
    heading: str
    images: Sequence[Markup] = ()
    alt: str = ""
    caption: str = ""
    table: Table | None = None
    missing: str = ""


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
        files.write(folder / f"{name}.png", plots.png(figure))


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
    every = [chart for verb, _ in verbs for chart in charts(data, verb, drawn)]
    lab, left_out = laboratory.data(data, networks)
    equations = laboratory.equations(data, networks)
    parts: dict[str, object] = {  # in the order of the page, by its id: what is empty is not drawn
        "caveats": sentences.caveats(data), "sections": [_section(data, verb) for verb, _ in verbs],
        "lesions": elements.lesions(data), "sweep": elements.sweep(data),
        "further": [(section, further(section, drawn)) for section in sections.sections(data)],
        "charts": [chart for chart in every if not chart.missing], "samples": samples(data),
        "failures": failures(data), "noise": sentences.noise(data), "machine": elements.machine(data),
        "methods": sentences.methods(data), "downloads": downloads(results),
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
        settings=[("Bench" if verb == "bench" else "Ablation", sentences.brief(table)) for verb, table in verbs],
        first=first,
        findings={verb: sentences.findings(data, table) for verb, table in verbs},
        margin=stats.MARGIN_NATS,
        alpha=stats.ALPHA,
        inks=[(name, plots.LIGHT[name], plots.DARK[name]) for name in plots.LIGHT],
        symbols=select.symbols(data),
        baseline=grids.BASELINE,
        absent=sentences.absent(data, [chart.heading for chart in every if chart.missing]),
        limits=sentences.limits(data),
    )


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


def _section(data: record_tables.Results, verb: str) -> dict[str, object]:
    table = data.bench if verb == "bench" else data.ablate
    title = {"bench": "Bench: the variants side by side", "ablate": "Ablation: one gate held fixed at a time"}[verb]
    return {
        "verb": verb, "title": title, "setting": sentences.setting(data, table),
        "table": elements.main_table(data, verb, table),
        "anchors": elements.anchor_line(data, table), "sentence": sentences.anchor_sentence(data, table),
        "commands": [(select.label(row, table), sentences.command(verb, row)) for _, row in table.iterrows()],
    }  # fmt: skip


def charts(data: record_tables.Results, verb: str, drawn: Figures) -> list[Chart]:
    """Those of one table; one that has no data says what is `missing`."""
    table = data.bench if verb == "bench" else data.ablate
    word = "bench" if verb == "bench" else "ablation"
    labelled = table.assign(label=[select.label(row, table) for _, row in table.iterrows()])
    anchors, own, timed = (
        select.anchors(data, table),
        select.finished(data, table),
        select.speed_samples(data, table),
    )
    names = own[["run", "label"]].drop_duplicates("run")
    curves = data.curves[data.curves.run != ""].drop(columns=["variant"]).merge(names, on="run")
    curves = curves.assign(order=curves.label.map({x: i for i, x in enumerate(dict.fromkeys(labelled.label))}))
    curves = curves.sort_values(["order", "seed", "tokens"], kind="stable")
    points = select.differences(data, table)
    base = next(iter(unique(table.baseline)), grids.BASELINE)
    effects = (
        "What does fixing a gate do to held-out perplexity" if verb == "ablate" else f"How far is each from {base}"
    )
    rates, peaks, shares = (
        elements.samples_table(timed, "tokens_per_sec", rate),
        elements.samples_table(timed, "peak_memory_mib", mib),
        elements.samples_table(timed, "percent_of_peak", lambda x: f"{x:.1f}"),
    )
    made: list[tuple[str, str, plots.Draw, plots.Describe, Frames, Numbers, str]] = [
        ("effects", effects, plots.gate_effects, plots.gate_effects_alt, (labelled, points),
         elements.effects_table(labelled, points), "no difference to the baseline is known"),
        ("curves", "How does perplexity fall in training", plots.learning_curves, plots.learning_curves_alt,
         (curves, anchors), elements.curves_table(curves),
         "curves.csv has no evaluation of a finished training of this table"),
        ("trade", "Which variants are both good and fast", plots.perplexity_speed, plots.perplexity_speed_alt,
         (labelled, anchors), elements.trade_table(labelled), "no variant has both a perplexity and a speed"),
        ("speed", "How fast does each train", plots.speed, plots.speed_alt, (timed, labelled), rates,
         "no variant has been timed"),
        ("limit", "How near does each come to the machine's limit", plots.limit, plots.limit_alt, (timed, labelled),
         shares, "no variant was timed beside the machine's own rate"),
        ("memory", "How much memory does each need", plots.memory, plots.memory_alt, (timed, labelled), peaks,
         "no variant has a memory figure"),
    ]  # fmt: skip
    out = []
    for name, question, figure, alt, frames, numbers, lack in made:
        heading = f"{question}? ({word})"
        text = alt(*frames)
        if not text:
            out.append(Chart(f"{verb}-{name}", heading, missing=lack))
            continue
        images = _images(f"{verb}-{name}", figure, frames, drawn, text)
        caption = " ".join((figure.__doc__ or "").split())
        cut = f" The first {plots.MOST} of {len(table)} are drawn." if len(table) > plots.MOST else ""
        out.append(
            Chart(f"{verb}-{name}", heading, images, text, caption + cut, Table(f"{verb}-{name}-data", *numbers))
        )
    return out


def further(section: sections.Section, drawn: Figures) -> list[Chart]:
    """The charts of a further section; one that has no data is left out."""
    found = []
    for name, heading, figure, alt, frames, numbers in section.pictures:
        if text := alt(*frames):
            caption, key = " ".join((figure.__doc__ or "").split()), f"{section.id}-{name}"
            table = Table(f"{key}-data", *numbers) if numbers else None
            found.append(Chart(key, heading, _images(key, figure, frames, drawn, text), text, caption, table))
    return found


def _images(name: str, figure: plots.Draw, frames: Sequence[pd.DataFrame], drawn: Figures, alt: str) -> list[Markup]:
    """SVG: wide, and narrow. The wide one is added to what is `drawn`."""
    images = []
    for width, short in ((plots.WIDE, "w"), (plots.NARROW, "n")):
        picture = figure(*frames, width=width)
        text = plots.svg(picture) if picture else ""
        images.append(Markup(plots.inline(text, f"{name}-{short}", alt) if text else ""))
        if picture and width == plots.WIDE:
            drawn[name] = picture, text
    return images


def samples(data: record_tables.Results) -> list[tuple[str, list[tuple[str, str, str, str]]]]:
    """By text: (label, what, prompt, what was written after it) of each variant's lowest finished seed.

    A prompt other than the book's stands with the rest: where it ends is not on file.
    """
    texts: dict[tuple[str, str], dict[tuple[str, str], tuple[str, str, str, str]]] = {}
    for table in (data.bench, data.ablate):
        own = select.finished(data, table)
        for label, rows in own[own["sample"] != ""].sort_values("seed").groupby("label", sort=False):
            row = rows.iloc[0]
            text = str(row["sample"])
            prompt = protocols.PROMPT * text.startswith(protocols.PROMPT)
            what = f"seed {count(row.seed)}, {row.protocol}"
            of_text = texts.setdefault((str(row.corpus), str(row.corpus_sha256)), {})
            of_text.setdefault((str(label), str(row.protocol)), (str(label), what, prompt, text[len(prompt) :][:80]))
    names = [name for name, _ in texts]
    return [
        (name if names.count(name) == 1 else f"{name} (SHA-256 {sha[:12]})", list(rows.values()))
        for (name, sha), rows in texts.items()
    ]


def failures(data: record_tables.Results) -> list[tuple[str, str, str]]:
    """(what, where, error): every failed training and timing, equal errors of one variant together."""
    out = []
    runs = data.runs[data.runs.error != ""]
    for (variant, engine, label, error), rows in runs.groupby(["variant", "engine", "protocol", "error"], sort=False):
        seeds = ", ".join(count(s) for s in sorted(rows.seed.dropna()))
        keys = ", ".join(unique(rows.run))
        out.append(
            (
                f"{variant} ({engine or 'no engine'})",
                f"training, {label}, seed {seeds or 'unknown'}; {keys}",
                _cut(error),
            )
        )
    probed = data.probes[data.probes.error != ""]
    for (variant, engine, label, error), rows in probed.groupby(["variant", "engine", "protocol", "error"], sort=False):
        which = ", ".join(count(s) for s in sorted(rows.seed.dropna()))
        out.append((f"{variant} ({engine or 'no engine'})", f"probe, {label}, seed {which or 'unknown'}", _cut(error)))
    timed = data.speed[data.speed.error != ""]
    for (label, session, error), rows in timed.groupby(["label", "session", "error"], sort=False):
        out.append((str(label), f"timing, session {session}, {pluralize(len(rows), 'block')}", _cut(error)))
    named = set(runs.variant) | set(timed.variant)
    for table in (data.bench, data.ablate):
        for _, row in table[(table.error != "") & ~table.variant.isin(named)].iterrows():
            out.append((str(row.variant), f"{count(row.failed)} failed", _cut(row.error)))
    return out


def downloads(results: record_tables.Results) -> list[tuple[str, int, str]]:
    """(file, rows, data URI): the tables as they were read; without a URI where too large for one page."""
    tables = {name: frame for name in COLUMNS if len(frame := getattr(results, name))}
    raw = {  # what is too large for certain need not be written out to know it
        name: _csv(frame) for name, frame in tables.items() if len(_csv(frame.head(FIRST_ROWS))) <= MOST_CSV
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


def _csv(frame: pd.DataFrame) -> bytes:
    return csv_files.to_text(frame).encode("utf-8", "replace")


def _cut(error: object) -> str:
    text = str(error)
    more = len(text) - LONGEST_ERROR
    return text if more <= 0 else f"{text[:LONGEST_ERROR]} ... ({more:,} more characters in the CSV)"


def _csp(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode()
