"""Show how results depend on a field of the protocol, and which learning rate each variant was given."""

from __future__ import annotations

import math
import shlex
from typing import Any

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure as Figure

from harness.analysis import stats
from harness.analysis.axes import trend
from harness.experiments import grids
from harness.experiments.questions import PROTOCOL
from harness.formatting import count, format_interval, format_range, nats, plain, pluralize, ppl, unique
from harness.record import tables
from harness.report.drawing import MOST, WIDE, hint, look, name_lines, short, spaced, style
from harness.report.sections import Cell, Picture, Section, Table


def section(data: tables.Results) -> Section | None:
    """The effect of each variant along a field of the protocol."""
    rows = data.axes[(data.axes.baseline != "") & (data.axes.seeds + data.axes.failed > 0)]
    if rows.empty:
        return None
    axis, points = str(rows.axis.iloc[0]), list(dict.fromkeys(rows.point))
    cells, said = [], []
    for (setting, variant), own in rows.groupby(["setting", "variant"], sort=False):
        by = {r.point: r for r in own.itertuples()}
        last = own.iloc[-1]
        word, change = trend(last), Cell()
        if word:
            bounds = format_interval(last.change_low, last.change_high, nats)
            change = Cell(nats(last.change_nats, sign=True), f"{bounds}\n{word}", plain(last.change_nats))
            what = {"grows": "grows", "shrinks": "shrinks"}.get(word, "may or may not change")
            said.append(
                Markup("The difference of <code>{}</code>{} {} from {} {} to {}: by {} nats {}.").format(
                    variant, f" at {setting}" if setting else "", what, axis, points[0], last.point,
                    nats(last.change_nats, sign=True), bounds)
            )  # fmt: skip
        cells.append([Cell(str(variant), str(setting), f"{setting} {variant}"), *(_effect(by.get(p)) for p in points),
                      change])  # fmt: skip
    one = rows.iloc[0]
    setting = (
        f"Every variant was trained at each value of {axis}, {format_range(rows.seeds)} seeds each. Differences to "
        f"{one.baseline} in held-out nats a character, paired by seed, above 0 is worse; Holm over all "
        f"{count(one.comparisons)} differences and changes of the grid. A change is that of a difference "
        f"from {points[0]} to {points[-1]}."
    )
    heads = [("variant", "setting" * any(rows.setting), False),
             *((f"{axis} {p}", "nats/char", True) for p in points),
             ("change", f"{points[0]} to {points[-1]}", True)]  # fmt: skip
    table = Table("axes", f"Differences to {one.baseline} by {axis}", heads, cells, cards=True)
    picture = Picture("axes", f"Does the effect depend on {axis.replace('_', ' ')}?", along, (rows,), along_alt)
    return Section("axes", "Axes", f"Effects by {axis.replace('_', ' ')}", setting, said, table, [picture])


def _effect(r: Any) -> Cell:
    if r is None or not math.isfinite(r.delta_nats):
        return Cell()
    bounds = format_interval(r.delta_low, r.delta_high, nats)
    return Cell(nats(r.delta_nats, sign=True), f"{r.verdict}\n{bounds}\nn = {count(r.pairs)}", plain(r.delta_nats))


def questions(data: tables.Results) -> Section | None:
    """Answer what a reviewer asks of the ablation: whether each difference stands where one thing is changed."""
    rows = data.questions[data.questions.question != ""]
    if not (rows.seeds + rows.failed > 0).any():
        return None
    names = [name for name in dict.fromkeys(rows.variant) if name != grids.BASELINE]
    cells = []
    for question, own in rows.groupby("question", sort=False):
        by = {r.variant: r for r in own.itertuples()}
        one = own.iloc[0]
        scored = "each training at its best epoch" * (one.score_at == "best epoch")
        about = "\n".join(filter(None, (str(one.setting), scored, *unique(own.corpus))))
        cells.append([Cell(str(one.asks), about, str(question)), *(_asked(by.get(name)) for name in names)])
    told = rows[(rows.variant != grids.BASELINE) & (rows.verdict != "")]
    said = []
    for name in names:
        by_verdict: dict[str, list[str]] = {}
        for r in told[told.variant == name].itertuples():
            by_verdict.setdefault(str(r.verdict), []).append(str(r.question).replace("_", " "))
        parts = [f"{verdict} in {count(len(where))} ({', '.join(where)})" for verdict, where in by_verdict.items()]
        asked = pluralize(int((told.variant == name).sum()), "question")
        words = Markup("<code>{}</code> against <code>{}</code>, of {}: {}.")
        said += [words.format(name, grids.BASELINE, asked, "; ".join(parts))] * bool(parts)
    tried = data.learning_rates.groupby(["protocol", "corpus_sha256"]).lr
    ends = {(key, end) for key, lr in tried for end in (lr.min(), lr.max())}
    chosen = rows[rows.protocol.isin(data.learning_rates.protocol)]
    chosen = chosen.drop_duplicates(["protocol", "corpus_sha256", "variant"])
    at = sum(((r.protocol, r.corpus_sha256), r.lr) in ends for r in chosen.itertuples())
    if at:
        said.append(Markup(f"{at} of {len(chosen)} rates that were chosen are at an end of their grid: one beyond it "
                           "might do better still."))  # fmt: skip
    setting = (
        f"The protocol {PROTOCOL} with one thing changed at a time, {format_range(rows.seeds[rows.seeds > 0])} seeds "
        f"each; this list stood before the first training. Differences to {grids.BASELINE} in held-out nats a "
        "character, paired by seed, above 0 is worse; exact sign-flip test, Holm over the differences of one question. "
        "Where rates are chosen, every variant has the same grid and the same trainings to choose by, of seeds that "
        "are not scored."
    )
    heads = [("question", "setting", False), *((name, "nats/char", True) for name in names)]
    table = Table("questions", "Differences to gru, one thing changed at a time", heads, cells, cards=True)
    command = ["python", "-m", "harness", "questions", "--device", str(rows.device[rows.device != ""].iloc[0]),
             "--seeds", count(rows.seeds.max())]  # fmt: skip
    title = "Tuned? Stopped early? Two layers? Another text?"
    return Section("questions", "Questions", title, setting, said, table, (), shlex.join(command))


def _asked(r: Any) -> Cell:
    """The difference of a variant under a question; `not run`, with its command, where it has no trainings."""
    if r is None or not r.seeds + r.failed > 0:
        return Cell("not run", "make questions")
    return _effect(r)


def along(axes: pd.DataFrame, width: float = WIDE) -> Figure | None:
    """The difference of each variant to the baseline, in nats a character of held-out text, at each value of the field;
    above zero is worse. Bars: intervals, paired by seed. Shaded: the margin, stated beforehand, inside which a
    difference counts as none. A variant without a gate has that gate's colour; its name stands at its last point."""
    data = axes.dropna(subset=["delta_nats"])
    if data.empty:
        return None
    settings = list(dict.fromkeys(data.setting))[:MOST]
    with style() as ink:
        figure = Figure(figsize=(width, 0.4 + 3.0 * len(settings)), layout="constrained")
        for ax, setting in zip(figure.subplots(len(settings), 1, squeeze=False).flat, settings, strict=True):
            own = data[data.setting == setting]
            points = list(dict.fromkeys(own.point))
            joined = pd.to_numeric(own.point, errors="coerce").notna().all()  # between words lies nothing
            ax.axhspan(-stats.MARGIN_NATS, stats.MARGIN_NATS, color=ink["band"], lw=0, zorder=0)
            ax.axhline(0, color=ink["ink"], lw=1, zorder=1)
            ends, names = [], list(dict.fromkeys(own.variant))[:MOST]
            for k, name in enumerate(names):
                line = own[own.variant == name]
                x = [points.index(p) + 0.05 * (k - (len(names) - 1) / 2) for p in line.point]
                colour, dash, marker = look(name)
                ax.plot(x, line.delta_nats, color=ink[colour], lw=1.3, marker=marker, ms=5, ls=dash if joined else "")
                ax.vlines(x, line.delta_low, line.delta_high, color=ink[colour], lw=1.6)
                hint(ax, x, line.delta_nats, [
                    f"{name} at {r.point}: {nats(r.delta_nats, sign=True)}"
                    f"{spaced(format_interval(r.delta_low, r.delta_high, nats))}, n = {count(r.pairs)}"
                    for r in line.itertuples()
                ])  # fmt: skip
                ends.append((float(line.delta_nats.iloc[-1]), short(name), ink[colour]))
            ax.set_xticks(range(len(points)), [short(point) for point in points])
            ax.set_xlabel(short(str(own.axis.iloc[0]).replace("_", " ")))
            ax.set_title(short(setting, 60), loc="left", color=ink["ink"])
            ax.set_ylabel(f"difference to {short(own.baseline.iloc[0])}, nats/char\n(worse \u2191)")
            name_lines(ax, ends, 72 * 2.4)
        return figure


def along_alt(axes: pd.DataFrame) -> str:
    data = axes.dropna(subset=["delta_nats"])
    if data.empty:
        return ""
    said = [
        f"{name}{spaced(setting)}: "
        + ", ".join(f"{nats(r.delta_nats, sign=True)} at {r.point} (n = {count(r.pairs)})" for r in own.itertuples())
        for (setting, name), own in data.groupby(["setting", "variant"], sort=False)
    ]
    axis, base = data.axis.iloc[0], data.baseline.iloc[0]
    return f"Line chart of the difference of held-out log-perplexity to {base}, by {axis}: {'; '.join(said)}."


def learning_rates(data: tables.Results) -> Section | None:
    """How each variant's learning rate was chosen on a text; the section of tasks has theirs."""
    rows = data.learning_rates[~data.learning_rates.protocol.isin(data.tasks.protocol)]
    if rows.empty:
        return None
    tried = sorted(rows.lr.unique())
    cells: list[list[Cell]] = []
    edges = []
    for (label, variant), own in rows.groupby(["protocol", "variant"], sort=False):
        row = [Cell(str(variant), str(label), str(variant))]
        for lr in tried:
            one = own[own.lr == lr]
            if one.empty:
                row.append(Cell())
                continue
            r = one.iloc[0]
            note = f"n = {pluralize(r.seeds, 'seed')}" + (f", {count(r.failed)} failed" if r.failed > 0 else "")
            text = ppl(r.validation_perplexity) if math.isfinite(r.validation_perplexity) else "diverged"
            row.append(Cell(text + " \u2190 chosen" * bool(r.chosen), note, plain(r.validation_perplexity)))
            if r.chosen and lr in (tried[0], tried[-1]):
                edges.append(f"{variant} ({plain(lr)})")
        cells.append(row)
    said = [
        Markup("Chosen: {}.").format(", ".join(f"{r.variant} {plain(r.lr)}" for r in rows[rows.chosen].itertuples()))
    ]
    if edges:
        said.append(
            Markup(
                "At an end of the grid, so a rate beyond it might do better still: {}. Every variant had the same grid."
            ).format(", ".join(edges))
        )
    setting = (
        f"Every variant was trained at each of {len(tried)} rates by as many seeds, none of which is scored, and the "
        "lowest mean loss on the validation part was chosen. The held-out part has no share in the choice."
    )
    heads = [("variant", "protocol", False), *((f"lr {plain(lr)}", "validation perplexity", True) for lr in tried)]
    table = Table("rates", "Validation perplexity by learning rate", heads, cells, cards=True)
    return Section("rates", "Learning rates", "Which learning rate suits each?", setting, said, table)
