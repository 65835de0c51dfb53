"""Show what gates do in trained networks: their values, time constants, gradients, and each one's lesion."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from harness.analysis import stats
from harness.experiments import grids
from harness.experiments.grids import BASELINE
from harness.experiments.protocols import OPEN, SHUT
from harness.formatting import compact, count, format_interval, nats, pct, percent, plain, pluralize
from harness.record import tables
from harness.report import select
from harness.report.drawing import MOST, WIDE, at_least, colour_of, hint, marker_of, plain_axis, short, spaced, style
from harness.report.sections import Cell, Numbers, Picture, Section, Table, strip

BACK = 16  # characters, of the sentence on gradients


def section(data: tables.Results) -> Section | None:
    """Show what gates of trained networks do, and how far back their gradient reaches."""
    own = select.inside(data, "gates")
    reached = select.inside(data, "reach")
    if own.empty and reached.empty:
        return None
    cells, said = [], []
    for (label, gate), rows in own.groupby(["label", "gate"], sort=False):
        taus = [float(rows[f"tau_{q}"].median()) for q in (10, 50, 90)]
        spread = f"10 to 90 % of units: {_time(taus[0])} to {_time(taus[2])}" if math.isfinite(taus[1]) else ""
        cells.append([
            Cell(f"{gate} of {label}", "", f"{label} {gate}"),
            _mean(rows["mean"]), *[_mean(rows[c], share=c != "sd") for c in ("sd", "shut", "open")],
            Cell(_time(taus[1]), spread, plain(taus[1])), Cell(str(rows.seed.nunique()), "", str(rows.seed.nunique())),
        ])  # fmt: skip
        if str(label) == grids.BASELINE and gate == "Z" and math.isfinite(taus[1]):
            said.append(
                Markup(
                    "Half of the units of <code>{}</code> forget all but 1/e of their state within <strong>{}</strong> "
                    "characters; the slowest tenth keeps it for {} or more (medians over {})."
                ).format(label, _time(taus[1]), _time(taus[2]), pluralize(rows.seed.nunique(), "seed"))
            )
    back = reached[reached.characters_back == BACK]
    shares, said_of = {}, {}
    for label, rows in back[back.gradient_share > 0].groupby("label", sort=False):
        line = over(rows, "characters_back", "gradient_share").iloc[0]
        shares[str(label)] = float(line["mean"])
        bounds = format_interval(line.low, line.high, _small) or "no interval"
        said_of[str(label)] = f"{_small(line['mean'])} {bounds}, n = {pluralize(rows.seed.nunique(), 'seed')}"
    if len(shares) > 1:
        most, least = max(shares, key=lambda k: shares[k]), min(shares, key=lambda k: shares[k])
        said.append(
            Markup(
                "A gradient that has gone back {} characters, relative to what it was: largest in <code>{}</code>, {}; "
                "smallest in <code>{}</code>, {} (geometric means, 95 % intervals; above 1 it has grown)."
            ).format(BACK, most, said_of[most], least, said_of[least])
        )
    setting = (
        f"Trained networks reading the held-out text. A gate is shut below {SHUT:g} and open above {OPEN:g} "
        "(an interval ends at 0, and at 1 or 100 %); the time constant of a unit is the characters after which its "
        "update gate has let all but 1/e of the state go."
    )
    heads = [
        ("gate", "of variant", False), ("mean", "[95 %]", True), ("sd", "of all values", True),
        ("shut", "% of values", True), ("open", "% of values", True),
        ("time constant", "characters, median unit", True), ("seeds", "n", True),
    ]  # fmt: skip
    table = Table("gates", "What the gates do over held-out text", heads, cells, cards=True) if cells else None
    seen = data.heat
    pictures = [
        Picture("reach", "How far back does the gradient reach?", reach, (reached,), reach_alt, _shares(reached)),
        Picture("times", "How long does a unit keep its state?", time_constants, (own,), time_constants_alt),
        Picture("heat", "What do the gates do, character by character?", gate_map, (seen,), gate_map_alt),
    ]
    return Section("gates", "Gates", "Inside the gates", setting, said, table, pictures)


def _shares(reached: pd.DataFrame) -> Numbers:
    """The numbers of the chart of reach: geometric means over seeds with their 95 % intervals."""
    rows = []
    for label, own in reached[reached.gradient_share > 0].groupby("label", sort=False):
        for t, r in over(own, "characters_back", "gradient_share").iterrows():
            bounds = format_interval(r.low, r.high, lambda x: f"{x:.2g}")
            n = str(own[own.characters_back == t].seed.nunique())
            rows.append([Cell(str(label)), Cell(f"{t:g}"), Cell(f"{r['mean']:.3g}"), Cell(bounds), Cell(n)])
    heads = [("variant", "", False), ("characters back", "", True),
             ("gradient", "relative to that at the character", True), ("95 % interval", "", True),
             ("seeds", "", True)]  # fmt: skip
    return "Gradient after so many characters back, geometric mean over seeds", heads, rows


def _mean(values: pd.Series, share: bool = False) -> Cell:
    x = values.dropna().to_numpy(dtype=float) * (100 if share and values.name != "mean" else 1)
    if not len(x):
        return Cell()
    bounds = stats.interval(x)
    digits = 1 if share else 3

    def spell(value: float) -> str:
        return f"{value:.{digits}f}"

    low, high = max(bounds.low, 0.0), min(bounds.high, 100.0 if share else 1.0)  # a gate is from 0 to 1
    return Cell(spell(float(x.mean())), format_interval(low, high, spell) if len(x) > 1 else "", plain(float(x.mean())))


def _time(x: float) -> str:
    return f"{x:.1f}" if x < 100 else compact(x) if math.isfinite(x) else ""


def _small(x: float) -> str:
    return f"{x:.2f}" if x >= 0.1 else f"{x:.4f}" if x >= 0.001 else f"{x:.0e}"


def reach(shares: pd.DataFrame, width: float = WIDE) -> Figure | None:
    """How large the gradient at a character is once it reaches the state some characters before it, relative to what it
    is at the character itself, logarithmic, one panel a variant, the same axes in all: geometric mean over seeds,
    band: its 95 % interval. Higher is a longer memory in training, above 1 the gradient grows; a straight line down
    forgets at one rate. Thin grey: the baseline, to compare with."""
    data = shares[(shares.gradient_share > 0) & (shares.characters_back > 0)]
    if data.empty:
        return None
    with style() as ink:
        names = list(dict.fromkeys(data.label))[:MOST]
        columns = min(len(names), 4 if width > 5 else 2)
        rows = math.ceil(len(names) / columns)
        figure = Figure(figsize=(width, 0.45 + 1.35 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        lines = {name: over(data[data.label == name], "characters_back", "gradient_share") for name in names}
        for panel, (name, line) in zip(grid.flat, lines.items(), strict=False):
            colour = ink[colour_of(name)]
            if name != BASELINE and BASELINE in lines:
                panel.plot(lines[BASELINE].index, lines[BASELINE]["mean"], color=ink["muted"], lw=0.8)
            panel.fill_between(line.index, line.low, line.high, color=colour, alpha=0.25, lw=0)
            panel.plot(line.index, line["mean"], color=colour, lw=1.8)
            panel.set_title(short(name), loc="left", color=colour)
            hint(panel, line.index, line["mean"], [
                f"{name}, {k:g} back: {r['mean']:.2g}{spaced(format_interval(r.low, r.high, lambda x: f'{x:.2g}'))}"
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


def over(data: pd.DataFrame, by: str, column: str) -> pd.DataFrame:
    """Geometric mean over seeds, and its 95 % t interval, by a column."""
    rows = {}
    for at, values in data.groupby(by)[column]:
        logs = np.log(values.to_numpy(dtype=float))
        bounds = stats.interval(logs)
        rows[float(str(at))] = np.exp([logs.mean(), bounds.low, bounds.high])
    return pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "low", "high"]).sort_index()


def time_constants(gates: pd.DataFrame, width: float = WIDE) -> Figure | None:
    """Characters after which a unit has forgotten all but 1/e of its state, by its update gate: the median unit, and
    the range from the 10th to the 90th hundredth of units (thin) and from the 25th to the 75th (thick); medians over
    seeds. Only gates at which 1 keeps the state."""
    data = gates.dropna(subset=["tau_50"])
    if data.empty:
        return None
    with style() as ink:
        names = list(dict.fromkeys(data.label))[:MOST]
        figure = Figure(figsize=(width, 0.9 + 0.36 * len(names)), layout="constrained")
        ax = figure.subplots()
        for y, name in enumerate(names):
            tau = data.loc[data.label == name, [f"tau_{q}" for q in (10, 25, 50, 75, 90)]].median()
            colour = ink[colour_of(name)]
            ax.plot([tau.tau_10, tau.tau_90], [y, y], color=colour, lw=1)
            ax.plot([tau.tau_25, tau.tau_75], [y, y], color=colour, lw=4, alpha=0.6)
            ax.plot(tau.tau_50, y, marker=marker_of(name), ms=7, color=colour)
            hint(ax, [tau.tau_50], [y], [f"{name}: median unit {tau.tau_50:.3g} characters; 10 to 90 % of units "
                                          f"{tau.tau_10:.3g} to {tau.tau_90:.3g}"])  # fmt: skip
        ax.set_xscale("log")
        ax.set_xlim(at_least(3, *ax.get_xlim()))
        plain_axis(ax, "x")
        ax.set_yticks(range(len(names)), [short(name) for name in names])
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
    with style() as ink:
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
            shown = ["\u2423" if c == " " else short(c) for c in letters]
            ax.set_xticks(np.arange(len(letters)) + 0.5, shown)
            upright = max(map(len, shown)) <= 2
            ax.tick_params(axis="x", labelsize=7 if upright else 5.5, length=0, labelrotation=0 if upright else 90)
            ax.set_yticks([])
            ax.set_title(f"gate {short(gate)}, seed {count(own.seed.iloc[0])}", loc="left", color=ink["ink"])
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


def lesions(data: tables.Results) -> Table | None:
    """A gate held only after training, beside the same gate held in training too, and what lies between."""
    rows, after = [], select.lesions(data).after.dropna()
    scale = (min(0.0, after.min()) - 0.02, after.max() + 0.02) if len(after) else (0.0, 1.0)
    for lesion, own in select.lesions(data).groupby("lesion", sort=False):
        values = {int(s): float(x) for s, x in zip(own.seed, own.after, strict=True) if math.isfinite(x)}
        bounds = stats.interval(list(values.values()))
        drawn = strip(values, (bounds.low, bounds.high), scale, 0.0, lambda x: f"{nats(x, sign=True)} nats/char")
        rows.append([Cell(str(lesion)), *map(_mean_difference, (own.after, own.trained, own.after - own.trained)),
                     Cell(picture=drawn, key=plain(float(own.after.mean())))])  # fmt: skip
    heads = [
        ("gate", f"of {grids.BASELINE}", False), ("held after training", "against whole, % [95 %], nats/char", True),
        ("held in training too", "against whole, % [95 %], nats/char", True),
        ("what training works around", "the first less the second", True),
        ("each seed", "held after training; line: whole", False),
    ]  # fmt: skip
    caption = "A gate held after training, and in training too"
    return Table("lesions", caption, heads, rows, cards=True) if rows else None


def _mean_difference(differences: pd.Series) -> Cell:
    values = differences.dropna().to_numpy(dtype=float)
    if not len(values):
        return Cell()
    bounds = stats.interval(values)
    said = format_interval(percent(bounds.low), percent(bounds.high), lambda x: pct(x, True)) or "no interval"
    middle = float(values.mean())
    note = f"{said}\n{nats(middle, sign=True)} nats, n = {len(values)}"
    return Cell(pct(percent(middle), True), note, plain(middle))
