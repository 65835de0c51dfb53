"""DRAW: tidy tables in, matplotlib Figures out; one figure a function, whose docstring is its caption.

Rule: nothing global. No pyplot, no style left behind, none taken from the user (matplotlibrc, MPLBACKEND), no random
number: the same frame gives the same bytes. Each `name` has a `name_alt` of the same frames, the figure in words; no
data gives None and ''.

Frames are tidy and carry a column `label`, the variant as the tables name it. A gate has one colour in every figure,
that of the variant without it; colour is never alone: a marker, a dash or a name goes with it.
"""

# ruff: noqa: E402  (matplotlib reads MPLBACKEND when it is imported)
from __future__ import annotations

import functools
import io
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from html import escape
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd

_backend = os.environ.pop("MPLBACKEND", None)  # matplotlib cannot be imported where it names one that is not installed
import matplotlib as mpl

if _backend is not None:
    os.environ["MPLBACKEND"] = _backend
    with suppress(ValueError):  # as matplotlib itself would have: the caller's own figures are drawn with it
        mpl.rcParams["backend"] = _backend
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Figure
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from harness.analysis import stats
from harness.experiments.grids import BASELINE
from harness.formatting import compact, count, format_interval, mib, nats, ppl, rate, token_name
from harness.report.select import best_ngram, over_seeds

WIDE, NARROW = 7.6, 3.7  # inches: a page, and a phone
MOST_POINTS = 200  # of one row as shapes; more are drawn as dots of a picture
MOST = 24  # rows or panels a figure can hold and be read; the tables have them all
LIGHT = {"ink": "#1c2126", "muted": "#59636e", "grid": "#dde2e7", "point": "#8a949e", "band": "#e9edf1",
         "blue": "#1d4ed8", "vermilion": "#c2410c", "green": "#02805d", "violet": "#7a3e9d",
         "paper": "#fdfdfb"}  # fmt: skip
DARK = {"ink": "#e6e9ec", "muted": "#a3adb8", "grid": "#343c45", "point": "#77828d", "band": "#262d35",
        "blue": "#7fb0ff", "vermilion": "#ff9a5c", "green": "#3fd0a2", "violet": "#c79bf0",
        "paper": "#15191e"}  # fmt: skip
NAMES = {light: name for name, light in LIGHT.items()}
FAMILY = {"gru": "ink", "lstm": "green", "rnn": "muted"}  # with every gate it has; all other cells are violet
HELD = {"R": ("vermilion", (0, (4, 2)), "^"), "Z": ("blue", (0, (5, 1.5, 1, 1.5)), "v")}  # that gate fixed, no other
VERDICT = {"worse": ">", "better": "<", "equivalent": "s"}  # a shape: colours are the gates'
FAR = 0.55  # of the height of a chart: a point alone beyond so much of it is put at its edge, and its value said
Dash = str | tuple[float, tuple[float, ...]]
Draw = Callable[..., Figure | None]
Describe = Callable[..., str]
Hint = tuple[Axes, float, float, str]
_hints: WeakKeyDictionary[object, list[Hint]] = WeakKeyDictionary()  # figure -> what is said of its points
FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif"


def learning_curves(curves: pd.DataFrame, anchors: pd.DataFrame, width: float = WIDE) -> Figure | None:
    """Perplexity, lower is better, against the training characters seen, one panel a variant, the same axes in
    all. Solid: on held-out text, mean over seeds (of log-perplexity) with its 95 % interval, too narrow to see
    where seeds agree. Dashed: on the training text. Thin grey: the baseline, held out, to compare with. Dotted:
    the best n-gram on the same split and, where the source is known, its floor."""
    data = curves.dropna(subset=["heldout_perplexity", "tokens"])
    if data.empty:
        return None
    labels = list(dict.fromkeys(data.label))[:MOST]
    columns = min(len(labels), 4 if width > 5 else 2)
    rows = math.ceil(len(labels) / columns)
    with _style() as ink:
        figure = Figure(figsize=(width, 0.45 + 1.75 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        reference = over_seeds(data[data.label == BASELINE], "heldout_perplexity")
        for panel, label in zip(grid.flat, labels, strict=False):
            own = data[data.label == label]
            colour = ink[_family(label)]
            if label != BASELINE and len(reference):
                panel.plot(reference.index, reference["mean"], color=ink["muted"], lw=0.8)
            held, train = (over_seeds(own, "heldout_perplexity"), over_seeds(own, "train_perplexity"))
            panel.fill_between(held.index, held.low, held.high, color=colour, alpha=0.3, lw=0)
            panel.plot(held.index, held["mean"], color=colour, lw=1.8)
            if len(train):
                panel.plot(train.index, train["mean"], color=colour, lw=1.2, dashes=(3, 2))
            _hint(panel, held.index, held["mean"], [
                f"{label}, {count(tokens)} characters: held out {ppl(r['mean'])}"
                f"{_space(format_interval(r.low, r.high, ppl))}"
                for tokens, r in held.iterrows()
            ])  # fmt: skip
            _hint(panel, train.index, train["mean"],
                  [f"{label}, {count(x)} characters: training {ppl(y)}" for x, y in train["mean"].items()])  # fmt: skip
            title = f"{_short(label)}  (n = {own.seed.nunique()})"
            panel.set_title(title, loc="left", color=ink["ink"], fontsize=9 * min(1, 22 / len(title)))
            panel.set(xlabel="", ylabel="")
        for panel in grid.flat[len(labels) :]:
            panel.set_visible(False)
        first: Axes = grid.flat[0]
        first.set_yscale("log")
        _plain(first, "y")
        first.set_xlim(left=0)
        first.xaxis.set_major_locator(MaxNLocator(3))
        first.xaxis.set_major_formatter(FuncFormatter(lambda x, _: compact(x)))
        for name, value in _references(anchors):
            for panel in grid.flat[: len(labels)]:
                panel.axhline(value, color=ink["ink"], lw=0.9, ls=":")
                panel.annotate(f"{name} {ppl(value)}", (0.02, value), xycoords=("axes fraction", "data"),
                               xytext=(0, -2), textcoords="offset points", va="top", fontsize=7,
                               color=ink["muted"])  # fmt: skip
        if width > 5:
            lowest = min([v for _, v in _references(anchors)] + [float(first.get_ylim()[0]) * 1.1])
            first.set_ylim(bottom=lowest / 1.15)
        for index in range(len(labels)):
            if index + columns >= len(labels):  # sharex hides what lies above an empty cell of the grid
                grid.flat[index].tick_params(labelbottom=True)
        figure.supxlabel(
            f"training characters seen, per seed{'   ' if width > 5 else chr(10)}"
            f"(solid: held out, dashed: training{f', grey: {BASELINE}' if len(reference) else ''})",
            fontsize=9,
        )
        figure.supylabel("perplexity, log scale (\u2190 better)", fontsize=9)
        return figure


def learning_curves_alt(curves: pd.DataFrame, anchors: pd.DataFrame) -> str:
    data = curves.dropna(subset=["heldout_perplexity", "tokens"])
    if data.empty:
        return ""
    last = {
        label: (over_seeds(own, "heldout_perplexity").iloc[-1], own.seed.nunique())
        for label, own in data.groupby("label", sort=False)
    }
    best = min(last, key=lambda label: float(last[label][0]["mean"]))
    text = (
        f"Line charts, one panel for each of {len(last)} variants: perplexity against training characters seen. "
        f"Held out at the last evaluation: "
        + "; ".join(f"{label} {ppl(row['mean'])} (n = {n})" for label, (row, n) in last.items())
        + f". Lowest: {best}."
    )
    for name, value in _references(anchors):
        under = sum(float(row["mean"]) < value for row, _ in last.values())
        text += f" Reference line: {name} at {ppl(value)}; {under} of {len(last)} variants end below it."
    return text


def gate_effects(effects: pd.DataFrame, pairs: pd.DataFrame, width: float = WIDE) -> Figure | None:
    """What a change to the baseline costs, in nats a character of held-out text; right of zero is worse. Small
    points: every seed's difference to the baseline with the same seed. Large marker: their mean, with its
    interval; its shape is the verdict (right-pointing worse, left-pointing better, square equivalent, open circle
    undecided or none), its colour the gate that is fixed. Shaded: the margin, stated beforehand, inside which a
    difference counts as none."""
    data = effects.dropna(subset=["delta_nats"]).head(MOST)
    if data.empty:
        return None
    margin = stats.MARGIN_NATS
    reach = data[["delta_nats", "delta_low", "delta_high"]].abs().max().max()
    with _style() as ink:
        figure = Figure(figsize=(width, 0.9 + 0.36 * len(data)), layout="constrained")
        ax = figure.subplots()
        ax.axvspan(-margin, margin, color=ink["band"], lw=0, zorder=0)
        ax.axvline(0, color=ink["ink"], lw=1, zorder=1)
        for y, row in enumerate(data.itertuples()):
            own = pairs[pairs.label == row.label]
            ax.scatter(own.delta_nats, y + _spread(len(own)), s=9, color=ink["point"], lw=0, zorder=2,
                       rasterized=len(own) > MOST_POINTS)  # fmt: skip
            colour, marker = _family(row.label), VERDICT.get(str(row.verdict), "o")
            _hint(ax, own.delta_nats, y + _spread(len(own)),
                  [f"{row.label}, seed {count(s)}: {nats(d, sign=True)}"
                   for s, d in zip(own.seed, own.delta_nats, strict=True)])  # fmt: skip
            bounds = _space(format_interval(row.delta_low, row.delta_high, nats))
            said = f"{row.label}: {nats(row.delta_nats, sign=True)}{bounds}, n = {count(row.pairs)} {row.verdict}"
            _hint(ax, [row.delta_nats], [y], [said])
            if math.isfinite(row.delta_low) and math.isfinite(row.delta_high):
                ax.plot([row.delta_low, row.delta_high], [y, y], color=ink[colour], lw=2.2, zorder=3)
            ax.plot(row.delta_nats, y, marker=marker, ms=8, color=ink[colour], zorder=4, ls="",
                    mfc=ink["paper"] if marker == "o" else ink[colour], mew=1.6)  # fmt: skip
            if width > 5:
                said = f"{nats(row.delta_nats, sign=True)} {format_interval(row.delta_low, row.delta_high, nats)}"
                word = str(row.verdict) if row.verdict in (*VERDICT, "undecided") else ""
                for away, text, weight in ((8, said, "normal"), (124, word, "bold")):
                    ax.annotate(text, (1, y), xycoords=("axes fraction", "data"), xytext=(away, 0), va="center",
                                textcoords="offset points", fontsize=8, color=ink["ink"], weight=weight)  # fmt: skip
        ax.set_yticks(range(len(data)), [_short(label) for label in data.label])
        ax.set_ylim(len(data) - 0.5, -0.5)
        note = ""
        if reach > 8 * margin:  # else one hopeless variant would squeeze all others into one point
            ax.set_xscale("symlog", linthresh=margin, linscale=0.5)
            seen = pd.concat([data.delta_nats, data.delta_low, data.delta_high, pairs.delta_nats]).dropna()
            low, high = min(1.2 * seen.min(), -1.5 * margin), max(1.2 * seen.max(), 1.5 * margin)
            steps = [0.05, 0.1, 0.2, 0.5, 1, 2, 5] if width > 5 else [0.1, 1]
            ticks = [-margin, 0, margin, *steps, *(-s for s in steps)]
            ax.set_xticks([t for t in ticks if low <= t <= high])
            ax.set_xticks([], minor=True)
            ax.set_xlim(low, high)
            note = "logarithmic outside the shaded margin"
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:+g}".replace("-", "\u2212") if x else "0"))
        base = next((str(b) for b in data.baseline if b), "the baseline")
        unit = token_name(data.protocol, True)
        ax.set_xlabel(f"difference to {_short(base)}, held-out nats/{unit}" + (f"\n({note})" if note else ""))
        for side, text in ((-1, "\u2190 better"), (1, "worse \u2192")):
            ax.annotate(text, (0, 1), xycoords=("data", "axes fraction"), xytext=(side * 6, 3), fontsize=8,
                        textcoords="offset points", ha="right" if side < 0 else "left", color=ink["muted"])  # fmt: skip
        if width < 5:
            ax.tick_params(axis="x", labelsize=7)
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
        return figure


def gate_effects_alt(effects: pd.DataFrame, pairs: pd.DataFrame) -> str:
    data = effects.dropna(subset=["delta_nats"])
    if data.empty:
        return ""
    base = next((str(b) for b in data.baseline if b), "the baseline")
    parts = [
        f"{r.label} {nats(r.delta_nats, sign=True)}{_space(format_interval(r.delta_low, r.delta_high, nats))} "
        f"(n = {count(r.pairs)}{', ' + str(r.verdict) if r.verdict else ''})"
        for r in data.itertuples()
    ]
    worst, best = data.loc[data.delta_nats.idxmax()], data.loc[data.delta_nats.idxmin()]
    return (
        f"Dot plot: difference of held-out log-perplexity to {base} in nats a character, positive is worse, "
        f"for {len(data)} variants, {len(pairs)} paired seeds in all. {'; '.join(parts)}. "
        f"Largest: {worst.label}; smallest: {best.label}."
    )


def speed(samples: pd.DataFrame, summary: pd.DataFrame, width: float = WIDE) -> Figure | None:
    """Training speed of one seed alone on the machine, whole training steps; right is faster. Small points: one
    sample, a fresh process, each. Large marker: their median, with the interquartile range; a square where the
    variant is torch's own, a circle where it is written here."""
    low, mid, high = "tokens_per_sec_q1", "tokens_per_sec", "tokens_per_sec_q3"
    return _ranked(samples, summary, (low, mid, high), rate, "characters (tokens) a second", width)


def speed_alt(samples: pd.DataFrame, summary: pd.DataFrame) -> str:
    data = summary.dropna(subset=["tokens_per_sec"]).sort_values("tokens_per_sec", ascending=False, kind="stable")
    if data.empty:
        return ""
    parts = [
        f"{r.label} {rate(r.tokens_per_sec)}{_space(format_interval(r.tokens_per_sec_q1, r.tokens_per_sec_q3, rate))}"
        f"{f' (n = {count(r.speed_samples)})' if count(r.speed_samples) else ''}"
        for r in data.itertuples()
    ]
    return (
        f"Dot plot of training speed in tokens a second, median and quartiles over fresh processes, {len(samples)} "
        f"samples of {len(data)} variants, fastest first: {'; '.join(parts)}.{_times(data, 'tokens_per_sec')}"
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
        + f".{_times(data, 'peak_memory_mib')}"
    )


def limit(samples: pd.DataFrame, summary: pd.DataFrame, width: float = WIDE) -> Figure | None:
    """Of the arithmetic rate that a large matrix product reaches on this machine, in the same process: what the
    training step reaches, counting only what no method avoids (6 operations a character and weight that multiplies
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


def perplexity_speed(table: pd.DataFrame, anchors: pd.DataFrame, width: float = WIDE) -> Figure | None:
    """Held-out perplexity (mean over seeds, bar: 95 % interval) against training speed (median over fresh
    processes, bar: interquartile range). Down and right is better. Squares are torch's own, diamonds have a
    fixed gate, circles are the rest; an interval shorter than its marker is hidden by it."""
    data = table.dropna(subset=["heldout_perplexity", "tokens_per_sec"]).head(MOST)
    if data.empty:
        return None
    with _style() as ink:
        figure = Figure(figsize=(width, 4.1 if width > 5 else 3.6), layout="constrained")
        ax = figure.subplots()
        for r in data.itertuples():
            colour = ink[_family(r.label)]
            ax.plot([r.tokens_per_sec_q1, r.tokens_per_sec_q3], [r.heldout_perplexity] * 2, color=colour, lw=1.4)
            ax.plot([r.tokens_per_sec] * 2, [r.heldout_low, r.heldout_high], color=colour, lw=1.4)
            ax.plot(r.tokens_per_sec, r.heldout_perplexity, marker=_marker(r.label), ms=6.5, color=colour, ls="")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.margins(0.12)
        ax.autoscale_view()
        ax.set_xlim(_at_least(1.2, *ax.get_xlim()))
        ax.set_ylim(_at_least(1.2, *ax.get_ylim()))
        edge = _far(data.heldout_perplexity)
        if math.isfinite(edge):
            ax.set_ylim(top=edge)
        bottom, top = ax.get_ylim()
        for k, (name, value) in enumerate(_references(anchors)):
            inside = bottom < value < top
            if inside:
                ax.axhline(value, color=ink["ink"], lw=0.9, ls=":")
            where = "" if inside else " (below)" if value <= bottom else " (above)"
            ax.annotate(f"{name} {ppl(value)}{where}", (0.99, value if inside else 0.0), ha="right",
                        xycoords=("axes fraction", "data" if inside else "axes fraction"),
                        xytext=(0, 3 + 10 * k * (not inside)), textcoords="offset points", fontsize=8,
                        color=ink["muted"])  # fmt: skip
        _plain(ax, "x")
        _plain(ax, "y")
        ax.set_xlabel("tokens a second (log scale), faster \u2192")
        ax.set_ylabel("held-out perplexity (log scale), \u2190 better")
        across = zip(data.tokens_per_sec_q1, data.heldout_perplexity, data.tokens_per_sec_q3, strict=True)
        upright = zip(data.heldout_low, data.tokens_per_sec, data.heldout_high, strict=True)
        bars = [(x0, y, x1, y) for x0, y, x1 in across] + [(x, y0, x, y1) for y0, x, y1 in upright]
        xs, ys = data.tokens_per_sec.tolist(), [min(y, edge / 1.01) for y in data.heldout_perplexity]
        names = [
            f"{_short(r.label)} \u2191 {ppl(r.heldout_perplexity)}" if r.heldout_perplexity > edge else _short(r.label)
            for r in data.itertuples()
        ]
        for x, name in zip(xs, names, strict=True):
            if "\u2191" in name:
                ax.plot(x, edge / 1.005, marker="^", ms=6.5, color=ink[_family(name)], ls="", clip_on=False)
        colours = [ink[_family(label)] for label in data.label]
        _hint(ax, xs, ys, [
            f"{r.label}: perplexity {ppl(r.heldout_perplexity)}"
            f"{_space(format_interval(r.heldout_low, r.heldout_high, ppl))}, "
            f"{rate(r.tokens_per_sec)} tokens/s" for r in data.itertuples()
        ])  # fmt: skip
        _name_points(figure, ax, xs, ys, names, bars, colours)
        return figure


def perplexity_speed_alt(table: pd.DataFrame, anchors: pd.DataFrame) -> str:
    data = table.dropna(subset=["heldout_perplexity", "tokens_per_sec"])
    if data.empty:
        return ""
    points = [(float(r.heldout_perplexity), float(r.tokens_per_sec), str(r.label)) for r in data.itertuples()]
    front = [c for p, t, c in points if not any(q <= p and u >= t and (q, u) != (p, t) for q, u, _ in points)]
    text = (
        f"Scatter plot of held-out perplexity against tokens a second for {len(points)} variants: "
        + "; ".join(f"{label} {ppl(p)} at {rate(t)}" for p, t, label in points)
        + f". No other is both better and faster than: {', '.join(front)}."
    )
    return text + "".join(f" Reference line: {name} at {ppl(value)}." for name, value in _references(anchors))


def updates(tasks: pd.DataFrame, trained: pd.DataFrame, width: float = WIDE) -> Figure | None:
    """After how many updates each variant has solved a task, one panel a task, logarithmic; left is sooner. Small
    points: every seed that solved it. Bar: their median. At the right, past the end of the budget: how many seeds did
    not solve it. Colours and names as everywhere: a variant without a gate has that gate's colour."""
    if tasks.empty:
        return None
    tasks = tasks if "setting" in tasks else tasks.assign(setting="")
    panels = list(dict.fromkeys(zip(tasks.task, tasks.length, tasks.setting, strict=True)))
    columns = min(len(panels), 2 if width > 5 else 1)
    rows = math.ceil(len(panels) / columns)
    with _style() as ink:
        tall = 0.55 + 0.24 * tasks.variant.nunique()
        figure = Figure(figsize=(width, 0.3 + tall * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for panel, (task, length, setting) in zip(grid.flat, panels, strict=False):
            own = tasks[(tasks.task == task) & (tasks.length == length) & (tasks.setting == setting)]
            budget = float(own.budget.max())
            for y, r in enumerate(own.itertuples()):
                colour, _, marker = _look(r.variant)
                seeds = trained[(trained.task == task) & (trained.length == length) & (trained.variant == r.variant)
                                & (trained.protocol == r.protocol)].solved_after.dropna()  # fmt: skip
                panel.scatter(seeds, [y] * len(seeds), s=9, alpha=0.5, color=ink[colour], marker=marker, lw=0)
                _hint(panel, seeds, [y] * len(seeds),
                      [f"{r.variant}: one seed solves {task} after {count(x)} updates" for x in seeds])  # fmt: skip
                if r.solved:
                    _hint(panel, [r.updates_median], [y],
                          [f"{r.variant}: {count(r.solved)} of {count(r.seeds + r.failed)} seeds, median "
                           f"{count(r.updates_median)} updates"])  # fmt: skip
                    panel.vlines(r.updates_median, y - 0.3, y + 0.3, color=ink[colour], lw=2)
                missing = int(r.seeds + r.failed - r.solved)
                if missing:
                    panel.annotate(f"{missing} of {int(r.seeds + r.failed)} not", (budget * 1.12, y), va="center",
                                   fontsize=7.5, color=ink[colour])  # fmt: skip
            panel.axvline(budget, color=ink["muted"], lw=0.8, ls=":")
            panel.set_yticks(range(len(own)), [_short(name) for name in own.variant])
            panel.set_ylim(len(own) - 0.5, -0.5)
            panel.set_xscale("log")
            panel.set_xlim(80, budget * 2.6)
            ticks = [t for t in (100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000) if t <= budget]
            panel.set_xticks(ticks, [compact(t) for t in ticks])
            panel.xaxis.set_minor_locator(NullLocator())
            panel.set_title(
                f"{_short(str(task).replace('_', ' '))}, length {count(length)}"
                + f", {setting}" * (tasks.setting.nunique() > 1),
                loc="left",
                color=ink["ink"],
            )
        for panel in grid.flat[len(panels) :]:
            panel.set_visible(False)
        figure.supxlabel("updates until solved (\u2190 sooner; dotted: the budget)", fontsize=9)
        return figure


def updates_alt(tasks: pd.DataFrame, trained: pd.DataFrame) -> str:
    if tasks.empty:
        return ""
    said = []
    tasks = tasks if "setting" in tasks else tasks.assign(setting="")
    for (task, length, setting), own in tasks.groupby(["task", "length", "setting"], sort=False):
        each = ", ".join(
            f"{r.variant} {int(r.solved)} of {int(r.seeds + r.failed)}"
            + (f" after {count(r.updates_median)}" if r.solved else "")
            for r in own.itertuples()
        )
        said.append(f"{task}, length {count(length)}{_space(setting)}: {each}")
    return f"Dot charts of the updates until each seed solved a task, {len(said)} tasks. {'; '.join(said)}."


def positions(gates: pd.DataFrame, width: float = WIDE) -> Figure | None:
    """The mean of each gate by step relative to the one to remember, t'; Z = 1 keeps the state. Solid: over the units
    that carry the symbol, chosen by their later steps, mean over seeds and its interval. Dashed: over all units.
    Dotted: gates set by hand, which are exact."""
    data = gates.dropna(subset=["mean"])
    if data.empty:
        return None
    with _style() as ink:
        figure = Figure(figsize=(width, 2.9), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True, squeeze=False).flat
        for panel, (gate, colour) in zip(panels, (("Z", "blue"), ("R", "vermilion")), strict=True):
            own = data[(data.gate == gate) & (data.variant == BASELINE)]
            hand, trained = own[own.origin == "by hand"], own[own.origin == "trained"]
            for column, dash in (("carrying", "-"), ("mean", (0, (4, 2)))):
                line = trained.dropna(subset=[column]).groupby("position")[column]
                bounds = [stats.interval(values) for _, values in line]
                steps, width_of = line.mean().index, 1.8 if dash == "-" else 1.2
                panel.fill_between(steps, [max(b.low, 0.0) for b in bounds], [min(b.high, 1.0) for b in bounds],
                                   color=ink[colour], alpha=0.2, lw=0)  # fmt: skip
                panel.plot(steps, line.mean(), color=ink[colour], lw=width_of, ls=dash)
                over_units = "units that carry" if column == "carrying" else "all units"
                _hint(panel, steps, line.mean(), [f"{gate}, {over_units}, step {k:+g}: {v:.2f}"
                                                  for k, v in line.mean().items()])  # fmt: skip
            panel.plot(hand.position, hand["mean"], color=ink["muted"], lw=1, ls=":", marker=".", ms=4)
            panel.set_ylim(-0.05, 1.05)
            panel.set_title(f"{gate}: {'update' if gate == 'Z' else 'reset'} gate", loc="left", color=ink["ink"])
            panel.set_xlabel("steps after t'")
            panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        return figure


def positions_alt(gates: pd.DataFrame) -> str:
    data = gates.dropna(subset=["mean"])
    if data.empty:
        return ""
    said = []
    for (origin, gate), own in data[data.variant == BASELINE].groupby(["origin", "gate"], sort=False):
        at = own.groupby("position")[["mean", "carrying"]].mean()
        shown = [k for k in (-1, 0, 1, 2, 10) if k in at.index]
        each = ", ".join(f"{at['carrying'][k]:.2f} ({at['mean'][k]:.2f}) at {k:+.0f}" for k in shown)
        said.append(f"{gate} {origin} {each}")
    return ("Line charts of the gates around the step to remember, over units that carry the symbol (over all units): "
            f"{'; '.join(said)}.")  # fmt: skip


def along(axes: pd.DataFrame, width: float = WIDE) -> Figure | None:
    """The difference of each variant to the baseline, in nats a character of held-out text, at each value of the field;
    above zero is worse. Bars: intervals, paired by seed. Shaded: the margin, stated beforehand, inside which a
    difference counts as none. A variant without a gate has that gate's colour; its name stands at its last point."""
    data = axes.dropna(subset=["delta_nats"])
    if data.empty:
        return None
    settings = list(dict.fromkeys(data.setting))[:MOST]
    with _style() as ink:
        figure = Figure(figsize=(width, 0.4 + 3.0 * len(settings)), layout="constrained")
        for ax, setting in zip(figure.subplots(len(settings), 1, squeeze=False).flat, settings, strict=True):
            own = data[data.setting == setting]
            points = list(dict.fromkeys(own.point))
            ax.axhspan(-stats.MARGIN_NATS, stats.MARGIN_NATS, color=ink["band"], lw=0, zorder=0)
            ax.axhline(0, color=ink["ink"], lw=1, zorder=1)
            ends, names = [], list(dict.fromkeys(own.variant))[:MOST]
            for k, name in enumerate(names):
                line = own[own.variant == name]
                x = [points.index(p) + 0.05 * (k - (len(names) - 1) / 2) for p in line.point]
                colour, dash, marker = _look(name)
                ax.plot(x, line.delta_nats, color=ink[colour], lw=1.3, marker=marker, ms=5, ls=dash)
                ax.vlines(x, line.delta_low, line.delta_high, color=ink[colour], lw=1.6)
                _hint(ax, x, line.delta_nats, [
                    f"{name} at {r.point}: {nats(r.delta_nats, sign=True)}"
                    f"{_space(format_interval(r.delta_low, r.delta_high, nats))}, n = {count(r.pairs)}"
                    for r in line.itertuples()
                ])  # fmt: skip
                ends.append((float(line.delta_nats.iloc[-1]), _short(name), ink[colour]))
            ax.set_xticks(range(len(points)), [_short(point) for point in points])
            ax.set_xlabel(_short(str(own.axis.iloc[0]).replace("_", " ")))
            ax.set_title(_short(setting, 60), loc="left", color=ink["ink"])
            ax.set_ylabel(f"difference to {_short(own.baseline.iloc[0])}, nats/char\n(worse \u2191)")
            _name_lines(ax, ends, 72 * 2.4)
        return figure


def along_alt(axes: pd.DataFrame) -> str:
    data = axes.dropna(subset=["delta_nats"])
    if data.empty:
        return ""
    said = [
        f"{name}{_space(setting)}: "
        + ", ".join(f"{nats(r.delta_nats, sign=True)} at {r.point} (n = {count(r.pairs)})" for r in own.itertuples())
        for (setting, name), own in data.groupby(["setting", "variant"], sort=False)
    ]
    axis, base = data.axis.iloc[0], data.baseline.iloc[0]
    return f"Line chart of the difference of held-out log-perplexity to {base}, by {axis}: {'; '.join(said)}."


def reach(shares: pd.DataFrame, width: float = WIDE) -> Figure | None:
    """How large the gradient at a character is once it reaches the state some characters before it, relative to what it
    is at the character itself, logarithmic, one panel a variant, the same axes in all: geometric mean over seeds,
    band: its 95 % interval. Higher is a longer memory in training, above 1 the gradient grows; a straight line down
    forgets at one rate. Thin grey: the baseline, to compare with."""
    data = shares[(shares.gradient_share > 0) & (shares.characters_back > 0)]
    if data.empty:
        return None
    with _style() as ink:
        names = list(dict.fromkeys(data.label))[:MOST]
        columns = min(len(names), 4 if width > 5 else 2)
        rows = math.ceil(len(names) / columns)
        figure = Figure(figsize=(width, 0.45 + 1.35 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        lines = {name: over(data[data.label == name], "characters_back", "gradient_share") for name in names}
        for panel, (name, line) in zip(grid.flat, lines.items(), strict=False):
            colour = ink[_family(name)]
            if name != BASELINE and BASELINE in lines:
                panel.plot(lines[BASELINE].index, lines[BASELINE]["mean"], color=ink["muted"], lw=0.8)
            panel.fill_between(line.index, line.low, line.high, color=colour, alpha=0.25, lw=0)
            panel.plot(line.index, line["mean"], color=colour, lw=1.8)
            panel.set_title(_short(name), loc="left", color=colour)
            _hint(panel, line.index, line["mean"], [
                f"{name}, {k:g} back: {r['mean']:.2g}{_space(format_interval(r.low, r.high, lambda x: f'{x:.2g}'))}"
                for k, r in line.iterrows()
            ])  # fmt: skip
        for panel in grid.flat[len(names) :]:
            panel.set_visible(False)
        for index in range(len(names)):
            if index + columns >= len(names):
                grid.flat[index].tick_params(labelbottom=True)
        first: Axes = grid.flat[0]
        first.set_yscale("log")
        first.set_ylim(bottom=max(first.get_ylim()[0], 1e-6))
        first.yaxis.set_major_locator(LogLocator(10, numticks=4))
        first.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}" if y >= 0.01 else f"{y:.0e}"))
        first.yaxis.set_minor_locator(NullLocator())  # of no size: each would be made, placed and drawn all the same
        first.set_xlim(left=0)
        first.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        grey = f"   (grey: {BASELINE})" if BASELINE in lines and len(lines) > 1 else ""
        figure.supxlabel(f"characters back{grey}", fontsize=9)
        figure.supylabel("relative gradient, log scale (longer memory \u2192)", fontsize=9)
        return figure


def reach_alt(shares: pd.DataFrame) -> str:
    data = shares[(shares.gradient_share > 0) & (shares.characters_back > 0)]
    if data.empty:
        return ""
    said = []
    for name, own in data.groupby("label", sort=False):
        line = over(own, "characters_back", "gradient_share")
        at = [t for t in (4, 16, 64) if t in line.index]
        said.append(f"{name} " + ", ".join(f"{line['mean'][t]:.1e} at {t}" for t in at)
                    + f" (n = {own.seed.nunique()} seeds)")  # fmt: skip
    return (
        "Line chart of the gradient at a character, relative to itself, by the characters back at which it arrives, "
        f"{len(said)} variants: {'; '.join(said)}."
    )


def time_constants(gates: pd.DataFrame, width: float = WIDE) -> Figure | None:
    """Characters after which a unit has forgotten all but 1/e of its state, by its update gate: the median unit, and
    the range from the 10th to the 90th hundredth of units (thin) and from the 25th to the 75th (thick); medians over
    seeds. Only gates at which 1 keeps the state."""
    data = gates.dropna(subset=["tau_50"])
    if data.empty:
        return None
    with _style() as ink:
        names = list(dict.fromkeys(data.label))[:MOST]
        figure = Figure(figsize=(width, 0.9 + 0.36 * len(names)), layout="constrained")
        ax = figure.subplots()
        for y, name in enumerate(names):
            tau = data.loc[data.label == name, [f"tau_{q}" for q in (10, 25, 50, 75, 90)]].median()
            colour = ink[_family(name)]
            ax.plot([tau.tau_10, tau.tau_90], [y, y], color=colour, lw=1)
            ax.plot([tau.tau_25, tau.tau_75], [y, y], color=colour, lw=4, alpha=0.6)
            ax.plot(tau.tau_50, y, marker=_marker(name), ms=7, color=colour)
            _hint(ax, [tau.tau_50], [y], [f"{name}: median unit {tau.tau_50:.3g} characters; 10 to 90 % of units "
                                          f"{tau.tau_10:.3g} to {tau.tau_90:.3g}"])  # fmt: skip
        ax.set_xscale("log")
        ax.set_xlim(_at_least(3, *ax.get_xlim()))
        _plain(ax, "x")
        ax.set_yticks(range(len(names)), [_short(name) for name in names])
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_xlabel("time constant, characters (log scale), longer memory \u2192")
        return figure


def time_constants_alt(gates: pd.DataFrame) -> str:
    data = gates.dropna(subset=["tau_50"])
    if data.empty:
        return ""
    said = []
    for name, own in data.groupby("label", sort=False):
        tau = own[["tau_10", "tau_50", "tau_90"]].median()
        said.append(f"{name} {tau.tau_50:.3g} ({tau.tau_10:.3g} to {tau.tau_90:.3g}, n = {own.seed.nunique()} seeds)")
    return f"Dot plot of units' time constants in characters, median and 10 to 90 %: {'; '.join(said)}."


def gate_map(heat: pd.DataFrame, width: float = WIDE) -> Figure | None:
    """Gate values of one trained network over a sentence of held-out text, a column a character, a row a unit: 0,
    the colour of the page, is shut and 1 is open. The units are spread evenly from the one whose first gate is lowest
    on average to the one whose is highest, the same in every panel."""
    if heat.empty:
        return None
    run = heat.run.iloc[0]
    own = heat[heat.run == run]
    names = list(dict.fromkeys(own.gate))
    with _style() as ink:
        most = 60 if width > 5 else 24
        figure = Figure(figsize=(width, 0.3 + 1.7 * len(names)), layout="constrained")
        axes = figure.subplots(len(names), 1, squeeze=False)[:, 0]
        for ax, gate in zip(axes, names, strict=True):
            table = own[own.gate == gate].pivot_table(index="unit", columns="position", values="value").iloc[:, :most]
            letters = (
                own[own.gate == gate].drop_duplicates("position").sort_values("position").character.tolist()[:most]
            )
            mesh = ax.imshow(table.to_numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest",
                             origin="lower", extent=(0, table.shape[1], 0, table.shape[0]))  # fmt: skip
            shown = ["\u2423" if c == " " else _short(c) for c in letters]
            ax.set_xticks(np.arange(len(letters)) + 0.5, shown)
            upright = max(map(len, shown)) <= 2
            ax.tick_params(axis="x", labelsize=7 if upright else 5.5, length=0, labelrotation=0 if upright else 90)
            ax.set_yticks([])
            ax.set_title(f"gate {_short(gate)}, seed {count(own.seed.iloc[0])}", loc="left", color=ink["ink"])
            ax.grid(visible=False)
        figure.colorbar(mesh, ax=axes.tolist(), fraction=0.03, pad=0.01)
        return figure


def gate_map_alt(heat: pd.DataFrame) -> str:
    if heat.empty:
        return ""
    own = heat[heat.run == heat.run.iloc[0]]
    words = "tokens=words" in str(own.protocol.iloc[0])
    text = (" " if words else "").join(
        own[own.gate == own.gate.iloc[0]].drop_duplicates("position").sort_values("position").character
    )
    said = []
    for gate, rows in own.groupby("gate", sort=False):
        at = rows.groupby(["position", "character"]).value.mean()
        low, high = at.idxmin(), at.idxmax()
        said.append(f"gate {gate}, mean {rows.value.mean():.2f}, lowest at {low[1]!r} ({at.min():.2f}), highest at "
                    f"{high[1]!r} ({at.max():.2f})")  # fmt: skip
    return (
        f"Heat map of {own.unit.nunique()} units over the {own.position.nunique()} characters {text!r}, "
        f"{own.variant.iloc[0]}, one seed: {'; '.join(said)}."
    )


def over(data: pd.DataFrame, by: str, column: str) -> pd.DataFrame:
    """Geometric mean over seeds, and its 95 % t interval, by a column."""
    rows = {}
    for at, values in data.groupby(by)[column]:
        logs = np.log(values.to_numpy(dtype=float))
        bounds = stats.interval(logs)
        rows[float(str(at))] = np.exp([logs.mean(), bounds.low, bounds.high])
    return pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "low", "high"]).sort_index()


def svg(figure: Figure) -> str:
    """The figure as SVG text: no date, fixed ids, a transparent ground, letters as letters."""
    out = io.StringIO()
    with _style():
        figure.savefig(
            out, format="svg", dpi=150, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
        figure.set_layout_engine("none")  # its parts stay where they are now: to lay it out again as PNG takes long
    head, tags = f'<style type="text/css">text{{font-family:{FONT}}}', out.getvalue()
    tags = tags.replace("</svg>", _hits(figure) + "</svg>")
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), tags)  # a hundredth of a point will do
    text = re.sub(r" ?font-family: [^;\"]+;?", "", text)
    return text.replace('<style type="text/css">', head, 1)


def _hint(ax: Axes, xs: Iterable[float], ys: Iterable[float], texts: Sequence[str]) -> None:
    """What is said of some points of a chart where they are pointed at."""
    own = _hints.setdefault(ax.figure, [])
    own += [(ax, float(x), float(y), text) for x, y, text in zip(xs, ys, texts, strict=True)]


def _hits(figure: Figure) -> str:
    """The hints of a drawn figure as SVG: over each point inside its axes a circle of no colour, with a title."""
    out, (wide, tall) = [], figure.get_size_inches() * 72
    for ax, x, y, text in _hints.get(figure, []):
        across, up = ax.transData.transform((x, y)) / figure.dpi * 72
        box = ax.get_window_extent()
        left, low, right, high = (v / figure.dpi * 72 for v in (box.x0, box.y0, box.x1, box.y1))
        if left - 1 <= across <= right + 1 and low - 1 <= up <= high + 1 and across <= wide:
            said = escape("".join(map(_glyph, text)))
            out.append(f'<circle cx="{across:.1f}" cy="{tall - up:.1f}" r="4"><title>{said}</title></circle>')
    return f'<g class="hits" fill-opacity="0">{"".join(out)}</g>' if out else ""


def inline(drawn: str, key: str, alt: str) -> str:
    """An SVG as it can stand in a page: colours by the page's scheme, no style of its own, its names no other's.

    The page's policy forbids style attributes; those of matplotlib become attributes of SVG.
    """
    text = re.sub(
        r"<style.*?</style>|<!--.*?-->|<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.S
    )
    used = set(re.findall(r'(?:href="#|url\(#)([\w.]+)', text))

    def tag(hit: re.Match[str]) -> str:
        one = re.sub(r' style="([^"]*)"', lambda m: "".join(f' {k.strip()}="{v.strip()}"' for k, _, v in (
            part.partition(":") for part in m[1].split(";") if part.strip())), hit[0])  # fmt: skip
        one = re.sub(r' id="([^"]*)"', lambda m: f' id="{key}-{m[1]}"' if m[1] in used else "", one)
        one = re.sub(r'(?:xlink:)?href="#', f'href="#{key}-', one).replace("url(#", f"url(#{key}-")
        one = re.sub("|".join(LIGHT.values()), lambda m: f"var(--f-{NAMES[m[0]]})", one)
        return re.sub(r"\s+", " ", one.replace("xlink:href", "href"))

    body = re.sub(r">\s+<", "><", re.sub(r"<[^>]*>", tag, text))
    body = re.sub(r"(?:<g>)?<defs></defs>", "", body)
    size = re.search(r'viewBox="[^"]*"', body)
    head = f'<svg class="chart" role="img" tabindex="0" aria-label="{escape(alt)}" {size[0] if size else ""}>'
    return re.sub(r"<svg[^>]*>", lambda _: head, body, count=1).strip()


def png(figure: Figure) -> bytes:
    """The figure as PNG on white, 150 dots an inch."""
    out = io.BytesIO()
    with _style():
        figure.savefig(out, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return out.getvalue()


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
    with _style() as ink:
        figure = Figure(figsize=(width, 0.8 + 0.34 * len(data)), layout="constrained")
        ax = figure.subplots()
        for y, (_, row) in enumerate(data.iterrows()):
            own = samples.loc[samples.label == row.label, mid].dropna()
            colour = ink[_family(row.label)]
            ax.scatter(own, y + _spread(len(own)), s=9, color=ink["point"], lw=0, zorder=2,
                       rasterized=len(own) > MOST_POINTS)  # fmt: skip
            if low and math.isfinite(row[low]) and math.isfinite(row[high]):
                ax.plot([row[low], row[high]], [y, y], color=colour, lw=2.2, zorder=3)
            _hint(ax, own, y + _spread(len(own)), [f"{row.label}, one sample: {spell(v)}" for v in own])
            span = _space(format_interval(row[low], row[high], spell)) if low else ""
            _hint(ax, [row[mid]], [y], [f"{row.label}: {spell(row[mid])}{span}, n = {len(own)}"])
            ax.plot(row[mid], y, marker="s" if str(row.label).startswith("nn.") else "o", ms=7, color=colour, zorder=4)
            if width > 5:
                interval = format_interval(row[low], row[high], spell) if low else ""
                ax.annotate(f"{spell(row[mid])} {interval}", (1.015, y), xycoords=("axes fraction", "data"),
                            va="center", fontsize=8)  # fmt: skip
        everything = pd.concat([data[mid], samples[mid].dropna()])
        if everything.max() > 12 * everything.min() > 0:
            ax.set_xscale("log")
            _plain(ax, "x")
            unit += ", log scale"
        else:
            ax.set_xlim(0, everything.max() * 1.06)
            ax.xaxis.set_major_locator(MaxNLocator(5 if width > 5 else 4))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: compact(x)))
        ax.set_yticks(range(len(data)), [_short(label) for label in data.label])
        ax.set_ylim(len(data) - 0.5, -0.5)
        ax.set_xlabel(unit)
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
        return figure


def _percent(x: float) -> str:
    return f"{x:.0f}" if x >= 10 else f"{x:.2g}"


def _references(anchors: pd.DataFrame) -> list[tuple[str, float]]:
    best = best_ngram(anchors)
    floor = anchors.loc[anchors.model == "floor", "heldout_perplexity"].dropna()
    return ([best] if best else []) + ([("floor", float(floor.iloc[0]))] if len(floor) else [])


def _name_points(
    figure: Figure,
    ax: Axes,
    xs: Sequence[float],
    ys: Sequence[float],
    labels: Sequence[str],
    bars: Sequence[tuple[float, float, float, float]],
    colours: Sequence[str],
) -> None:
    """Each point's name beside it, at the first of some places that covers no point, bar (x0, y0, x1, y1) or name."""
    figure.draw_without_rendering()
    per_point = figure.dpi / 72
    at = ax.transData.transform(np.column_stack([xs, ys])) / per_point
    frame = ax.get_window_extent()
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in at]
    for bar in bars:
        if np.isfinite(bar).all():
            (left, low), (right, high) = ax.transData.transform(np.reshape(bar, (2, 2))) / per_point
            taken.append((left - 2, low - 2, right + 2, high + 2))
    for (x, y), point_x, point_y, text, colour in zip(at, xs, ys, labels, colours, strict=True):
        best = None
        wide, tall = 5.4 * len(text), 9.0
        for away in (8, 15, 24, 34, 46):
            for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
                left = x + dx * away - (wide if dx < 0 else wide / 2 if dx == 0 else 0)
                low = y + dy * away - tall / 2
                box = (left, low, left + wide, low + tall)
                inside = box[0] > frame.x0 / per_point and box[2] < frame.x1 / per_point
                if inside and not any(
                    box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken
                ):
                    best = (box, left - x, dy * away)
                    break
            if best:
                break
        if best is None:
            continue  # no room; the table below has its name
        taken.append(best[0])
        far = abs(best[2]) > 12 or best[1] > 12 or best[1] < -wide - 12
        leader = {"arrowstyle": "-", "lw": 0.6, "color": colour, "shrinkA": 0, "shrinkB": 4}
        ax.annotate(text, (point_x, point_y), xytext=(best[1], best[2]), textcoords="offset points", va="center",
                    fontsize=8, color=colour, arrowprops=leader if far else None)  # fmt: skip


def _name_lines(ax: Axes, ends: Sequence[tuple[float, str, str]], height: float) -> None:
    """Each line's name right of its last value (y, name, colour), moved apart where two would overlap.

    `height`: of the axes, in points, nearly.
    """
    low, high = ax.get_ylim()
    at = ax.transAxes.inverted().transform(ax.transData.transform([(0, y) for y, _, _ in ends]))[:, 1]
    at = np.clip(at, 0, 1)  # one that ends beyond the axis is named at its edge
    gap = 9.0 / height
    order = sorted(range(len(ends)), key=lambda k: (float(at[k]), ends[k][1]))
    places = np.array([float(at[k]) for k in order])
    for _ in range(1000):  # push neighbours apart, half each, until none overlap
        short = gap - np.diff(places)
        if (short < 1e-6).all():
            break
        for k in np.flatnonzero(short > 0).tolist():
            places[k] -= short[k] / 2
            places[k + 1] += short[k] / 2
    for k, place in zip(order, places, strict=True):
        _, name, colour = ends[k]
        ax.annotate(name, (1, float(at[k])), xycoords="axes fraction", xytext=(1.04, place), va="center",
                    textcoords="axes fraction", fontsize=8, color=colour,
                    arrowprops={"arrowstyle": "-", "lw": 0.5, "color": colour, "shrinkA": 0, "shrinkB": 0})  # fmt: skip
    ax.set_ylim(low, high)


def _far(values: pd.Series) -> float:
    """Where a logarithmic axis ends so that one point far above all others does not press those together; else inf."""
    logs = np.sort(np.log(values.dropna().to_numpy(dtype=float)))
    if len(logs) < 4 or logs[-1] - logs[-2] < FAR * (logs[-1] - logs[0]):
        return math.inf
    return float(np.exp(logs[-2] + 0.35 * (logs[-2] - logs[0])))


def _at_least(ratio: float, low: float, high: float) -> tuple[float, float]:
    """Ends of a log axis, that far apart: equal values would make labels of seven digits, and no room for the chart."""
    wider = max(1.0, math.sqrt(ratio * low / high))
    return low / wider, high * wider


def _plain(ax: Axes, which: str) -> None:
    axis = ax.yaxis if which == "y" else ax.xaxis
    low, high = ax.get_ylim() if which == "y" else ax.get_xlim()
    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if high > 30 * low else (1, 2, 3, 5, 7)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: compact(x)))
    axis.set_minor_locator(NullLocator())  # of no size: each would be made, placed and drawn all the same


def _spread(n: int) -> np.ndarray:
    """Offsets that keep equal values apart: golden-ratio steps, not random numbers."""
    return ((np.arange(n) * 0.6180339887 + 0.5) % 1 - 0.5) * 0.44


def _look(label: object) -> tuple[str, Dash, str]:
    """Colour, dash and marker of a variant: what is fixed in it first, then its cell."""
    name = str(label).split(" ")[0]
    cell, _, fixed = name.partition(":")
    gates = re.findall(r"(\w+)=", fixed)
    if len(gates) == 1 and gates[0] in HELD:
        return HELD[gates[0]]
    own = "s" if name.startswith("nn.") else "o"
    base = cell.removeprefix("nn.").removesuffix("_after")
    if gates:
        return "muted", (0, (1, 1.5)), "D"
    return FAMILY.get(base, "violet"), (0, (1, 1.5)) if base == "rnn" else "-", own


def _family(label: object) -> str:
    return _look(label)[0]


def _marker(label: object) -> str:
    return _look(label)[2]


@functools.cache
def _glyph(c: str) -> str:
    """A character as a figure can show it: itself, or its code point where the font has no picture of it."""
    signs = {"\n": "\u21b5", "\t": "\u21e5"}
    if c.isprintable() and _font().get_char_index(ord(c)):
        return c
    return signs.get(c, f"U+{ord(c):04X}")  # a control character would break the SVG


@functools.cache
def _font() -> FT2Font:
    return font_manager.get_font(font_manager.findfont("DejaVu Sans"))  # it comes with matplotlib


def _short(label: object, most: int = 22) -> str:
    parts = [_glyph(c) for c in str(label)]
    if sum(map(len, parts)) <= most:
        return "".join(parts)
    while sum(map(len, parts)) > most - 1:
        parts.pop()
    return "".join(parts) + "\u2026"


def _space(text: str) -> str:
    return f" {text}" if text else ""


def _times(data: pd.DataFrame, column: str) -> str:
    low, high = data[column].min(), data[column].max()
    return f" Largest over smallest: {high / low:.1f} times." if len(data) > 1 and low > 0 else ""


@contextmanager
def _style() -> Iterator[dict[str, str]]:
    """Colours by name, and matplotlib's own defaults with these settings for as long as the block lasts.

    Nothing of the user's matplotlibrc or style sheet is left: text.usetex alone would ask for a LaTeX.
    """
    ink = LIGHT
    settings = {
        "svg.fonttype": "none", "svg.hashsalt": "harness", "text.parse_math": False,  # a name may hold a $
        "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9,
        "axes.titlesize": 9, "axes.titleweight": "bold", "axes.labelsize": 9,
        "xtick.labelsize": 8, "ytick.labelsize": 8.5,
        "text.color": ink["ink"], "axes.labelcolor": ink["muted"], "axes.edgecolor": ink["grid"],
        "xtick.color": ink["muted"], "ytick.color": ink["ink"], "grid.color": ink["grid"], "grid.linewidth": 0.6,
        "axes.grid": True, "axes.axisbelow": True, "axes.facecolor": "none", "figure.facecolor": "none",
        "savefig.facecolor": "none", "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
        "xtick.major.size": 3, "ytick.major.size": 0, "xtick.minor.size": 0, "ytick.minor.size": 0,
        "axes.unicode_minus": True, "lines.solid_capstyle": "butt",
    }  # fmt: skip
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(settings)  # type: ignore[arg-type]
        yield ink
