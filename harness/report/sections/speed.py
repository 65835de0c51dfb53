"""Show speed, memory and the share of the machine's peak; speed by size; how much two equal models differ."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure as Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from harness.analysis import speed as speeds
from harness.experiments import grids
from harness.formatting import (
    compact,
    count,
    format_interval,
    format_range,
    mib,
    nats,
    pct,
    plain,
    pluralize,
    rate,
    times,
    token_name,
    unique,
)
from harness.record import tables
from harness.report import select
from harness.report.drawing import MOST, MOST_POINTS, WIDE, colour_of, hint, jitter, plain_axis, short, spaced, style
from harness.report.sections import Cell, Numbers, Picture, Section, Table, number

LATENCY_STEPS = 500  # as run.latency takes


def pictures(timed: pd.DataFrame, shown: pd.DataFrame, word: str, cut: str) -> list[Picture]:
    """The charts of speed, share of the machine's peak and memory of one table: its samples and its labelled rows."""
    return [
        Picture("speed", f"How fast does each train? ({word})", throughput, (timed, shown), throughput_alt,
                samples_table(timed, "tokens_per_sec", rate), "no variant has been timed", cut),
        Picture("limit", f"How near does each come to the machine's limit? ({word})", limit, (timed, shown), limit_alt,
                samples_table(timed, "percent_of_peak", lambda x: f"{x:.1f}"),
                "no variant was timed beside the machine's own rate", cut),
        Picture("memory", f"How much memory does each need? ({word})", memory, (timed, shown), memory_alt,
                samples_table(timed, "peak_memory_mib", mib), "no variant has a memory figure", cut),
    ]  # fmt: skip


def throughput(samples: pd.DataFrame, summary: pd.DataFrame, width: float = WIDE) -> Figure | None:
    """Training speed of one seed alone on the machine, whole training steps; right is faster. Small points: one
    sample, a fresh process, each. Large marker: their median, with the interquartile range; a square where the
    variant is torch's own, a circle where it is written here."""
    low, mid, high = "tokens_per_sec_q1", "tokens_per_sec", "tokens_per_sec_q3"
    return _ranked(samples, summary, (low, mid, high), rate, "characters (tokens) a second", width)


def throughput_alt(samples: pd.DataFrame, summary: pd.DataFrame) -> str:
    data = summary.dropna(subset=["tokens_per_sec"]).sort_values("tokens_per_sec", ascending=False, kind="stable")
    if data.empty:
        return ""
    parts = [
        f"{r.label} {rate(r.tokens_per_sec)}{spaced(format_interval(r.tokens_per_sec_q1, r.tokens_per_sec_q3, rate))}"
        f"{f' (n = {count(r.speed_samples)})' if count(r.speed_samples) else ''}"
        for r in data.itertuples()
    ]
    return (
        f"Dot plot of training speed in tokens a second, median and quartiles over fresh processes, {len(samples)} "
        f"samples of {len(data)} variants, fastest first: {'; '.join(parts)}.{_largest(data, 'tokens_per_sec')}"
    )


def memory(samples: pd.DataFrame, summary: pd.DataFrame, width: float = WIDE) -> Figure | None:
    """Peak memory of training one seed, less what importing torch takes; left is smaller. Small points: one sample,
    a fresh process, each. Large marker: the figure in the table; a square where the variant is torch's own, a
    circle where it is written here."""
    return _ranked(samples, summary, ("", "peak_memory_mib", ""), mib, "peak memory (MiB)", width)


def memory_alt(samples: pd.DataFrame, summary: pd.DataFrame) -> str:
    data = summary.dropna(subset=["peak_memory_mib"]).sort_values("peak_memory_mib", kind="stable")
    if data.empty:
        return ""
    return (
        f"Dot plot of peak memory in MiB, {len(samples)} samples of {len(data)} variants, smallest first: "
        + "; ".join(f"{r.label} {mib(r.peak_memory_mib)}" for r in data.itertuples())
        + f".{_largest(data, 'peak_memory_mib')}"
    )


def limit(samples: pd.DataFrame, summary: pd.DataFrame, width: float = WIDE) -> Figure | None:
    """The share of the arithmetic rate that a large matrix product reaches on this machine, in the same process, that
    a training step reaches, counting only what no method avoids (6 operations a character and weight that multiplies
    a state). Right is nearer to the machine's limit. Small points: one sample, a fresh process, each. Large marker:
    their median; a square where the variant is torch's own, a circle where it is written here."""
    return _ranked(samples, summary, ("", "percent_of_peak", ""), _percent, "% of the machine's own rate", width, True)


def limit_alt(samples: pd.DataFrame, summary: pd.DataFrame) -> str:
    data = summary.dropna(subset=["percent_of_peak"]).sort_values("percent_of_peak", ascending=False, kind="stable")
    if data.empty:
        return ""
    return (
        f"Dot plot of the share of the machine's own arithmetic rate that a training step reaches, {len(samples)} "
        f"samples of {len(data)} variants, nearest first: "
        + "; ".join(f"{r.label} {_percent(r.percent_of_peak)} %" for r in data.itertuples())
        + "."
    )


def _ranked(
    samples: pd.DataFrame,
    summary: pd.DataFrame,
    columns: tuple[str, str, str],
    spell: Callable[[float], str],
    unit: str,
    width: float,
    most_first: bool = False,
) -> Figure | None:
    low, mid, high = columns
    down = bool(low) or most_first
    data = summary.dropna(subset=[mid]).sort_values(mid, ascending=not down, kind="stable").head(MOST)
    if data.empty:
        return None
    with style() as ink:
        figure = Figure(figsize=(width, 0.8 + 0.34 * len(data)), layout="constrained")
        ax = figure.subplots()
        for y, (_, row) in enumerate(data.iterrows()):
            own = samples.loc[samples.label == row.label, mid].dropna()
            colour = ink[colour_of(row.label)]
            ax.scatter(own, y + jitter(len(own)), s=9, color=ink["point"], lw=0, zorder=2,
                       rasterized=len(own) > MOST_POINTS)  # fmt: skip
            if low and math.isfinite(row[low]) and math.isfinite(row[high]):
                ax.plot([row[low], row[high]], [y, y], color=colour, lw=2.2, zorder=3)
            hint(ax, own, y + jitter(len(own)), [f"{row.label}, one sample: {spell(v)}" for v in own])
            span = spaced(format_interval(row[low], row[high], spell)) if low else ""
            hint(ax, [row[mid]], [y], [f"{row.label}: {spell(row[mid])}{span}, n = {len(own)}"])
            ax.plot(row[mid], y, marker="s" if str(row.label).startswith("nn.") else "o", ms=7, color=colour, zorder=4)
            if width > 5:
                interval = format_interval(row[low], row[high], spell) if low else ""
                ax.annotate(f"{spell(row[mid])} {interval}", (1.015, y), xycoords=("axes fraction", "data"),
                            va="center", fontsize=8)  # fmt: skip
        everything = pd.concat([data[mid], samples[mid].dropna()])
        if everything.max() > 12 * everything.min() > 0:
            ax.set_xscale("log")
            plain_axis(ax, "x")
            unit += ", log scale"
        else:
            ax.set_xlim(0, everything.max() * 1.06)
            ax.xaxis.set_major_locator(MaxNLocator(5 if width > 5 else 4))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: compact(x)))
        ax.set_yticks(range(len(data)), [short(label) for label in data.label])
        ax.set_ylim(len(data) - 0.5, -0.5)
        ax.set_xlabel(unit)
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
        return figure


def _percent(x: float) -> str:
    return f"{x:.0f}" if x >= 10 else f"{x:.2g}"


def _largest(data: pd.DataFrame, column: str) -> str:
    low, high = data[column].min(), data[column].max()
    return f" Largest over smallest: {high / low:.1f} times." if len(data) > 1 and low > 0 else ""


def samples_table(timed: pd.DataFrame, column: str, spell: Callable[[float], str]) -> Numbers:
    rows, unit = [], {"tokens_per_sec": "tokens/s", "peak_memory_mib": "MiB", "percent_of_peak": "%"}[column]
    for label, own in timed.dropna(subset=[column]).groupby("label", sort=False):
        each = ", ".join(spell(float(v)) for v in own.sort_values("round")[column])
        rows.append([Cell(str(label)), Cell(str(len(own))), Cell(each)])
    return f"Every sample, {unit}", [("variant", "", False), ("n", "", True), ("each sample", unit, False)], rows


def sweep(data: tables.Results) -> Table | None:
    """Speed by hidden size and number of seeds side by side, of the session asked for last."""
    speed = speeds.blocks(data.speed[data.speed.verb == "sweep"])
    noise = speeds.noise(speed)
    speed = speed[speed.control_of == ""]
    rows = []
    for _, own in speed.groupby("label", sort=False):
        first, each = own.iloc[0], speeds.summary(own)
        if not each.samples:
            continue
        base = speed[(speed.variant == grids.SPEED_BASELINE) & (speed.hidden == first.hidden) & ~speed.capture]
        # of all its seeds together to one of the baseline
        ratio = speeds.ratio(own, base.assign(seeds=first.seeds), noise)
        against = Cell() if first.variant == grids.SPEED_BASELINE else ratio_cell(ratio, f"\nn = {ratio.rounds}")
        quartiles = format_interval(each.q1, each.q3, rate) or "no quartiles"
        disturbed = f", {each.disturbed} disturbed" if each.disturbed else ""
        rows.append([
            Cell(first.variant, select.how(first), first.label),
            number(first.hidden, count), number(first.seeds, count),
            Cell(rate(each.median), f"{quartiles}\nn = {each.samples}{disturbed}", plain(each.median)), against,
            number(each.step_ms, lambda x: f"{x:.2f}" if x < 10 else mib(x)),
            number(each.percent_of_peak, lambda x: f"{x:.0f}"), number(each.peak_memory_mib, mib),
        ])  # fmt: skip
    heads = [
        ("variant", "engine", False), ("hidden units", "", True), ("seeds together", "", True),
        ("tokens/s", "all seeds, median [quartiles]", True),
        (f"speed vs {grids.SPEED_BASELINE}", "one seed of it, same size, median ratio [94 %]", True),
        ("step (ms)", "median", True), ("of peak (%)", "", True), ("peak memory (MiB)", "", True),
    ]  # fmt: skip
    rows.sort(key=lambda row: (float(row[1].key), float(row[2].key)))
    return Table("sweep", "Speed by hidden size and number of seeds", heads, rows, cards=True) if rows else None


def ratio_cell(ratio: speeds.SpeedRatio, n: str = "") -> Cell:
    """A ratio with its interval; where it cannot be told, that, and the figures small."""
    if not math.isfinite(ratio.ratio):
        return Cell()
    bounds = format_interval(ratio.low, ratio.high, lambda x: f"{x:.2f}") or "no interval"
    if ratio.verdict == speeds.UNTOLD:
        return Cell(speeds.UNTOLD, f"{times(ratio.ratio)} {bounds}{n}", plain(ratio.ratio))
    return Cell(times(ratio.ratio), bounds + n, plain(ratio.ratio))


def latency(data: tables.Results) -> Section | None:
    """One step of one sequence, and where a training step goes."""
    found = speeds.latencies(data.latency)
    if found.empty:
        return None

    def share(x: float) -> Cell:
        return Cell(f"{x:.0f}", "", plain(x)) if math.isfinite(x) else Cell()

    cells = [
        [Cell(str(r["label"]), str(r["engine"]), str(r["label"])),
         *(Cell(rate(r[f"{q}_us"]), format_interval(r[f"{q}_min"], r[f"{q}_max"], rate), plain(r[f"{q}_us"]))
           for q in ("p50", "p99")),
         Cell(rate(1e6 / r["mean_us"]), "", plain(1e6 / r["mean_us"])),
         Cell(rate(r["tokens_per_sec_batch"]), "", plain(r["tokens_per_sec_batch"])),
         Cell(f"{r['step_ms']:.3g}", "", plain(r["step_ms"])), *(share(r[f"{part}_percent"]) for part in speeds.PARTS)]
        for r in found.to_dict("records")
    ]  # fmt: skip
    one, said = found.iloc[0], []
    if busy := int(found.disturbed.sum()):
        text = "Other processes disturbed every block of {} of {} samples: these are slower than they would be."
        said.append(Markup(text).format(count(busy), count(found.samples.sum())))
    control = found[found.control_of.fillna("") != ""]
    twin = found[found.label.isin(control.control_of)]
    if len(control) and len(twin):
        ratio = float(control.p50_us.iloc[0] / twin.p50_us.iloc[0])
        said.append(
            Markup("<code>{}</code>, timed twice, differs from itself by {:.1f} % at p50: less than that is noise.")
            .format(twin.label.iloc[0], 100 * abs(ratio - 1))
        )  # fmt: skip
    setting = (
        f"Protocol {one.protocol}, {one.device}. One sequence, one token at a time, the state carried, no training: "
        f"median and 99th percentile of {LATENCY_STEPS} steps a block; medians over {format_range(found.samples)} "
        "samples, each a fresh process, in random order, and the least and the most of them. The batch is the "
        "protocol's, read whole. Of a training step: products and pointwise operators in time, one by one; "
        "recurrence, where they are one call and cannot be told apart; head: output layer, loss and their "
        "gradients; update: clip and optimizer; "
        "Python: what is left between the calls."
    )
    heads = [("candidate", "engine", False), ("p50 (us)", "[least, most]", True), ("p99 (us)", "[least, most]", True),
             ("tokens/s", "1 sequence", True), ("tokens/s", "batch", True), ("step (ms)", "training", True),
             *((part, "% of it", True) for part in speeds.PARTS)]  # fmt: skip
    table = Table("latency", "One step at a time, and where a training step goes", heads, cells, cards=True)
    return Section("latency", "Latency", "How long does one step take?", setting, said, table)


def noise(data: tables.Results) -> list[Markup]:
    """Say what two equal things differ by here: the same model timed twice, and one model with other seeds."""
    said = []
    for session in unique(data.speed.session):
        here = data.speed[data.speed.session == session]
        for twin in [label for label in unique(here.label) if "#" in label]:
            base = twin.rpartition("#")[0]
            ratio = speeds.speed_ratio(here, twin, base)
            if not ratio.rounds:
                continue
            text = Markup(
                "<code>{}</code> was timed under two names in one session ({}): the second is {} the first{}."
            ).format(base, session, _fold(ratio), _rounds(ratio))
            if math.isfinite(ratio.low):
                widest = max(abs(math.log(ratio.low)), abs(math.log(ratio.high)))
                text += Markup(
                    " Two identical models can differ by {} here: a smaller difference of speed is no finding."
                ).format(pct(100 * math.expm1(widest)))
            said.append(text)
        again = here.dropna(subset=["repeat_difference"]).groupby("label").repeat_difference.max()
        if len(again) and again.max() == 0:
            said.append(
                Markup(
                    "Trained twice from one start, {} of one session ({}) end at the same weights, bit for bit."
                ).format(pluralize(len(again), "contender"), session)
            )
        elif len(again):
            said.append(
                Markup(
                    "Trained twice from one start ({}), weights differ by up to {} after a few steps "
                    "(<code>{}</code>); {} of {} end at the same bits."
                ).format(session, f"{again.max():.1g}", again.idxmax(), int((again == 0).sum()),
                         pluralize(len(again), "contender"))
            )  # fmt: skip
    for title, table in (("bench", data.bench), ("ablation", data.ablate)):
        own = select.finished(data, table)
        logs = np.log(own.loc[own.variant == grids.BASELINE, "heldout_perplexity"].to_numpy(dtype=float))
        if len(logs) > 1:
            said.append(
                Markup(
                    "Between seeds, the log of the held-out perplexity of <code>{}</code> has a standard deviation "
                    "of {} nats/{} (n = {} seeds, {})."
                ).format(
                    grids.BASELINE, nats(float(logs.std(ddof=1))), token_name(table.protocol, True), len(logs), title
                )
            )
    return said


def faster(one: Markup, other: Markup, ratio: speeds.SpeedRatio) -> Markup:
    """At how many times the rate of `other` `one` trains; where that cannot be told, no figure stands out."""
    if ratio.verdict == speeds.UNTOLD:
        return Markup("{} against {}: which trains faster cannot be told, {}{}").format(
            one, other, _fold(ratio), _rounds(ratio)
        )
    return Markup("{} trains at <strong>{}</strong> the rate of {}{}").format(one, _fold(ratio), other, _rounds(ratio))


def engine_note(row: pd.Series) -> str:
    """` (engine native)` of what was written here; torch's own has no other."""
    return f" (engine {row.engine})" if row.engine and row.engine != "library" else ""


def _fold(ratio: speeds.SpeedRatio) -> str:
    return f"{times(ratio.ratio)} {format_interval(ratio.low, ratio.high, lambda x: f'{x:.2f}')}".strip()


def _rounds(ratio: speeds.SpeedRatio) -> str:
    disturbed = f", {pluralize(ratio.disturbed, 'round')} of them disturbed throughout" if ratio.disturbed else ""
    return f" (n = {pluralize(ratio.rounds, 'round')}{disturbed})"
