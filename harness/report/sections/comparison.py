"""Compare the variants of the bench and of the ablation: main table, every comparison in words, charts, samples."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from harness.analysis import speed as speeds
from harness.analysis import stats
from harness.experiments import grids, protocols
from harness.experiments.grids import BASELINE
from harness.formatting import (
    compact,
    count,
    format_interval,
    mib,
    nats,
    p_value,
    pct,
    percent,
    plain,
    pluralize,
    ppl,
    rate,
    sd,
    token_name,
    unique,
)
from harness.record import tables
from harness.record import tables as record_tables
from harness.report import select
from harness.report.drawing import (
    MOST,
    MOST_POINTS,
    WIDE,
    at_least,
    colour_of,
    far_edge,
    hint,
    jitter,
    marker_of,
    name_points,
    plain_axis,
    short,
    spaced,
    style,
)
from harness.report.sections import Cell, Numbers, Picture, Table, equation_id, methods, number, speed, strip


def section(data: record_tables.Results, verb: str) -> dict[str, object]:
    table = data.bench if verb == "bench" else data.ablate
    title = {"bench": "Bench: the variants side by side", "ablate": "Ablation: one gate held fixed at a time"}[verb]
    return {
        "verb": verb, "title": title, "setting": methods.setting(data, table),
        "table": main_table(data, verb, table),
        "anchors": anchor_line(data, table), "sentence": anchor_sentence(data, table),
        "commands": [(select.label(row, table), methods.command(verb, row)) for _, row in table.iterrows()],
    }  # fmt: skip


def pictures(data: tables.Results, verb: str) -> list[Picture]:
    """The charts of one table."""
    table = data.bench if verb == "bench" else data.ablate
    word = "bench" if verb == "bench" else "ablation"
    shown, anchors, own = labelled(table), select.anchors(data, table), select.finished(data, table)
    names = own[["run", "label"]].drop_duplicates("run")
    curves = data.curves[data.curves.run != ""].drop(columns=["variant"]).merge(names, on="run")
    curves = curves.assign(order=curves.label.map({x: i for i, x in enumerate(dict.fromkeys(shown.label))}))
    curves = curves.sort_values(["order", "seed", "tokens"], kind="stable")
    points = select.differences(data, table)
    base = next(iter(unique(table.baseline)), grids.BASELINE)
    effects = (
        "What does fixing a gate do to held-out perplexity" if verb == "ablate" else f"How far is each from {base}"
    )
    cut = f" The first {MOST} of {len(table)} are drawn." if len(table) > MOST else ""
    return [
        Picture("effects", f"{effects}? ({word})", gate_effects, (shown, points), gate_effects_alt,
                effects_table(shown, points), "no difference to the baseline is known", cut),
        Picture("curves", f"How does perplexity fall in training? ({word})", learning_curves, (curves, anchors),
                learning_curves_alt, curves_table(curves),
                "curves.csv has no evaluation of a finished training of this table", cut),
        Picture("trade", f"Which variants are both good and fast? ({word})", perplexity_speed, (shown, anchors),
                perplexity_speed_alt, trade_table(shown), "no variant has both a perplexity and a speed", cut),
        *speed.pictures(select.speed_samples(data, table), shown, word, cut),
    ]  # fmt: skip


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the column `label` that its charts are drawn by."""
    return table.assign(label=[select.label(row, table) for _, row in table.iterrows()])


def findings(data: tables.Results, table: pd.DataFrame) -> list[Markup]:
    """Every comparison of a table, after its best variant and what counting characters achieves."""
    said = []
    known = table.dropna(subset=["heldout_perplexity"])
    if len(known):
        best = known.loc[known.heldout_perplexity.idxmin()]
        said.append(
            Markup("Lowest held-out perplexity: <code>{}</code>, <strong>{}</strong> {} (n = {}).").format(
                best.variant, ppl(best.heldout_perplexity), format_interval(best.heldout_low, best.heldout_high, ppl),
                pluralize(best.seeds, "seed"),
            )
        )  # fmt: skip
    if anchor := anchor_sentence(data, table):
        said.append(anchor)
    said += [s for _, row in table.iterrows() if (s := effect(row, select.family(table)))]
    return said


def effect(row: pd.Series, family: int) -> Markup:
    """One row's difference to its baseline in words; nothing where there is none."""
    d, low, high = float(row.delta_nats), float(row.delta_low), float(row.delta_high)
    if not math.isfinite(d):
        return Markup("")
    bounded = math.isfinite(low) and math.isfinite(high)
    base, word = str(row.baseline) or grids.BASELINE, select.verdict(row)
    cell, fixed = select.fixed(row.variant)
    named = bool(fixed) and cell == base
    subject = Markup("<code>{}</code> against <code>{}</code>:").format(row.variant, base)
    if named:
        gates = " and ".join(f"{select.gate_name(cell, gate)} at {value}" for gate, value in fixed)
        subject = Markup("Fixing {} (<code>{}</code>)").format(gates, row.variant)
    if word in ("worse", "better"):
        sign = 1 if word == "worse" else -1
        ends = sorted((sign * percent(low), sign * percent(high)))
        said = Markup("makes held-out perplexity" if named else "held-out perplexity is") + Markup(
            " <strong>{} by {}</strong> {}"
        ).format(word, pct(sign * percent(d)), format_interval(ends[0], ends[1], pct))
    else:
        size = f"{pct(percent(d), True)} {format_interval(percent(low), percent(high), lambda x: pct(x, True))}".strip()
        said = Markup("changes held-out perplexity by {}" if named else "held-out perplexity differs by {}").format(
            size
        )
        if word:
            said += Markup(": <strong>{}</strong>").format(word)
        if word == "equivalent":
            said += f", inside \u00b1{stats.MARGIN_NATS} nats/{token_name([row.protocol], True)}"
    parts = [f"{nats(d, sign=True)} nats/{token_name([row.protocol], True)}", f"n = {pluralize(row.pairs, 'pair')}"]
    if math.isfinite(row.p_holm):
        parts.append(f"p {p_value(row.p_holm)} Holm over {family}")
    if not bounded:
        parts.append("no interval")
    return subject + " " + said + Markup(" <span>({})</span>.").format(", ".join(parts))


def anchor_sentence(data: tables.Results, table: pd.DataFrame) -> Markup:
    """Say what an n-gram reaches on the split of this table, and how many variants are below it."""
    anchors = select.anchors(data, table)
    best = select.best_ngram(anchors)
    if not best:
        return Markup("")
    known = table.heldout_perplexity.dropna()
    below = int((known < best[1]).sum())
    said = Markup("On the same split a {}, which only counts {}s, reaches <strong>{}</strong>").format(
        best[0], token_name(table.protocol), ppl(best[1])
    )
    if len(known) and not below:
        said += Markup(": every network here is worse than it")
    elif len(known):
        said += Markup(": {} of {} networks are below it").format(below, len(known))
    floor = anchors.loc[anchors.model == "floor", "heldout_perplexity"].dropna()
    if len(floor):
        said += Markup(". The source\u2019s floor is {}: no model can go lower").format(ppl(float(floor.iloc[0])))
    return said + Markup(".")


def main_table(data: tables.Results, verb: str, table: pd.DataFrame) -> Table:
    """The table that answers; a column that no row fills and that is not of its core is left out."""
    word = "bench" if verb == "bench" else "ablation"
    base = next(iter(unique(table.baseline)), grids.BASELINE)
    fast = next(iter(unique(table.speed_baseline)), grids.SPEED_BASELINE)
    unit = token_name(table.protocol, True)
    own = select.finished(data, table)
    seeds_of = {
        str(label): {int(s): math.log(x) for s, x in zip(rows.seed, rows.heldout_perplexity, strict=True)}
        for label, rows in own.groupby("label", sort=False)
    }
    labels = {k: select.label(row, table) for k, row in table.iterrows()}
    scale = _scale(list(seeds_of.values()))
    of_base = seeds_of.get(next((v for k, v in labels.items() if table.variant[k] == base), ""), {})
    most = max(map(len, seeds_of.values()), default=0)
    planned = next((_name(row).key for _, row in table.iterrows() if row.variant == base), "")
    middle = sum(of_base.values()) / len(of_base) if of_base else math.nan

    def dots(row: pd.Series) -> Cell:
        values = seeds_of.get(labels[row.name], {})
        ends = [math.log(x) if x > 0 else math.nan for x in (row.heldout_low, row.heldout_high)]
        drawn = strip(values, (ends[0], ends[1]), scale, middle, lambda x: ppl(math.exp(x)))
        return Cell(picture=drawn, key=plain(row.heldout_perplexity)) if values else Cell()

    columns: list[tuple[str, str, bool, bool, Callable[[pd.Series], Cell]]] = [
        ("variant", "engine", False, True, _name),
        ("held-out perplexity", "mean [95 %]", True, True, _heldout),
        ("each seed", _ends(scale), False, False, dots),
        (f"difference to {base}", f"% [{select.level(table)} %], nats/{unit}", True, True, _delta),
        ("bits per character", f"{token_name(table.protocol)}s of mean length", True, False, _bits),
        ("verdict", "p after Holm, share of seeds", False, True, _verdict_cell),
        ("at the best epoch", "held-out; epoch by validation", True, False, _best),
        (f"difference to {base} there", "% [interval], verdict", True, False, _best_delta),
        ("training perplexity", "mean, sd", True, True, _train),
        ("parameters", "", True, True, lambda r: number(r.parameters, count)),
        ("hidden units", "same parameters", True, False,
         lambda r: number(r.hidden, count) if table.hidden.nunique() > 1 else Cell()),
        ("learning rate", "chosen", True, False, lambda r: number(r.lr, plain) if table.lr.nunique() > 1 else Cell()),
        ("tokens/s", "median [quartiles]", True, True, _rate),
        (f"speed vs {fast}", "median ratio [94 %]", True, False, _ratio),
        ("step (ms)", "median", True, True, lambda r: number(r.step_ms, lambda x: f"{x:.2f}" if x < 10 else mib(x))),
        ("of peak (%)", "see the chart", True, False, lambda r: number(r.percent_of_peak, lambda x: f"{x:.0f}")),
        ("peak memory (MiB)", "one seed", True, True, _memory),
        ("all seeds, tokens/s", "sum of all trained together", True, False,
         lambda r: number(r.tokens_per_sec_all_seeds, rate)),
        ("failed", "of those started", True, False, _failed),
    ]  # fmt: skip
    built = [[make(row) for *_, make in columns] for _, row in table.iterrows()]
    keep = [
        i for i, (*_, core, _make) in enumerate(columns) if core or any(row[i].text or row[i].picture for row in built)
    ]
    anchors = select.anchors(data, table)
    best, foot = select.best_ngram(anchors), []
    if best:
        foot.append((best[0], "counting, no network", best[1]))
    foot += [("floor", "no model can go lower", float(v)) for v in
             anchors.loc[anchors.model == "floor", "heldout_perplexity"].dropna()]  # fmt: skip
    return Table(
        id=verb, cards=True, heads=[(columns[i][0], columns[i][1], columns[i][2]) for i in keep],
        caption=f"The {word}, a row a variant: {methods.seeds(table)}.", rows=[[row[i] for i in keep] for row in built],
        foot=[[Cell(name, note), Cell(ppl(v), "same split"), *[Cell()] * (len(keep) - 2)] for name, note, v in foot],
        facts={"file": f"{verb}.csv", "planned": planned, "low": plain(scale[0]), "high": plain(scale[1]),
               "t": json.dumps(stats.quantiles(most, float(select.level(table))))},
        row_facts=[{"command": methods.command(verb, row), "logs": json.dumps(seeds_of.get(labels[k], {}))}
                   for k, row in table.iterrows()],
        about={"variant": {"term": "term-variant"}, "each seed": {"kind": "dots", "term": "term-seeds"},
               f"difference to {base}": {"kind": "delta", "column": "delta_nats", "term": "term-difference"},
               f"speed vs {fast}": {"column": "speed_ratio", "term": "term-ratio"}, **ABOUT},
    )  # fmt: skip


ABOUT = {  # of a column: where it is on file, and what it means
    "held-out perplexity": {"column": "heldout_perplexity", "term": "term-perplexity"},
    "verdict": {"kind": "verdict", "column": "verdict", "term": "term-verdict"},
    "bits per character": {"column": "bits_per_character"},
    "training perplexity": {"column": "train_perplexity", "term": "term-train"},
    "parameters": {"column": "parameters", "term": "term-parameters"},
    "hidden units": {"column": "hidden"}, "learning rate": {"column": "lr"},
    "tokens/s": {"column": "tokens_per_sec", "term": "term-tokens"},
    "step (ms)": {"column": "step_ms", "term": "term-step"},
    "of peak (%)": {"column": "percent_of_peak"},
    "peak memory (MiB)": {"column": "peak_memory_mib", "term": "term-memory"},
    "all seeds, tokens/s": {"column": "tokens_per_sec_all_seeds", "term": "term-all"},
    "failed": {"column": "failed", "term": "term-failed"},
}  # fmt: skip


def _scale(rows: Sequence[Mapping[int, float]]) -> tuple[float, float]:
    """Ends of the axis of a column of dots; one row far above all others does not press those together."""
    known = [list(values.values()) for values in rows if values]
    if not known:
        return 0.0, 1.0
    low = min(map(min, known))
    tops = sorted(max(values) for values in known)
    high = tops[-1]
    if len(tops) > 3 and high - tops[-2] > 0.5 * (high - low):
        high = tops[-2] + 0.15 * (tops[-2] - low)
    room = 0.04 * (high - low) or 0.01
    return low - room, high + room


def _ends(scale: tuple[float, float]) -> str:
    return f"{ppl(math.exp(scale[0]))} to {ppl(math.exp(scale[1]))}, log"


def _name(r: pd.Series) -> Cell:
    note = "\n".join(filter(None, (select.picture_name(r.variant), select.how(r))))
    return Cell(r.variant, note, f"{r.variant} {select.how(r)}", link=equation_id(r.variant))


def _heldout(r: pd.Series) -> Cell:
    if not math.isfinite(r.heldout_perplexity):
        return Cell("failed" if r.failed > 0 else "", f"{count(r.failed)} of {count(r.failed)}" if r.failed > 0 else "")
    bounds = format_interval(r.heldout_low, r.heldout_high, ppl) or "no interval"
    middle = f", IQM {ppl(r.heldout_iqm)}" if r.seeds >= 4 and math.isfinite(r.heldout_iqm) else ""
    return Cell(ppl(r.heldout_perplexity), f"{bounds}\nn = {count(r.seeds)}{middle}", plain(r.heldout_perplexity))


def _delta(r: pd.Series) -> Cell:
    if not math.isfinite(r.delta_nats):
        return Cell()
    bounds = format_interval(percent(r.delta_low), percent(r.delta_high), lambda x: pct(x, True)) or "no interval"
    note = f"{bounds}\n{nats(r.delta_nats, sign=True)} nats, n = {count(r.pairs)}"
    return Cell(pct(percent(r.delta_nats), True), note, plain(r.delta_nats))


def _bits(r: pd.Series) -> Cell:
    """Bits per character, where tokens are not characters: they compare with those of any other tokens."""
    if not math.isfinite(r.bits_per_character) or token_name([r.protocol]) == "character":
        return Cell()
    return Cell(f"{r.bits_per_character:.3f}", f"{r.characters_per_token:.2f}", plain(r.bits_per_character))


def _best(r: pd.Series) -> Cell:
    """Held-out perplexity with each seed's weights of its lowest validation loss."""
    if not math.isfinite(r.best_perplexity):
        return Cell()
    bounds = format_interval(r.best_low, r.best_high, ppl) or "no interval"
    return Cell(ppl(r.best_perplexity), f"{bounds}\nepoch {r.best_epoch:g}", plain(r.best_perplexity))


def _best_delta(r: pd.Series) -> Cell:
    if not math.isfinite(r.best_delta_nats):
        return Cell()
    bounds = (
        format_interval(percent(r.best_delta_low), percent(r.best_delta_high), lambda x: pct(x, True)) or "no interval"
    )
    word = f"\n{r.best_verdict}" if r.best_verdict else ""
    return Cell(pct(percent(r.best_delta_nats), True), bounds + word, plain(r.best_delta_nats))


def _verdict_cell(r: pd.Series) -> Cell:
    word = select.verdict(r)
    p = f"p {p_value(r.p_holm)}" if math.isfinite(r.p_holm) else ""
    bounds = format_interval(100 * r.p_better_low, 100 * r.p_better_high, lambda x: f"{x:.0f}")
    if bounds:
        p += f"\nbetter in {100 * r.p_better:.0f} % {bounds}"
    return Cell(f"{select.VERDICTS[word]} {word}" if word else "", p, word, word)


def _train(r: pd.Series) -> Cell:
    if not math.isfinite(r.train_perplexity):
        return Cell()
    spread = f"sd {sd(r.train_sd)}\n" if math.isfinite(r.train_sd) else ""
    return Cell(ppl(r.train_perplexity), f"{spread}n = {count(r.seeds)}", plain(r.train_perplexity))


def _rate(r: pd.Series) -> Cell:
    if not math.isfinite(r.tokens_per_sec):
        return Cell()
    bounds = format_interval(r.tokens_per_sec_q1, r.tokens_per_sec_q3, rate) or "no quartiles"
    n = f"\nn = {count(r.speed_samples)}" if math.isfinite(r.speed_samples) else ""
    n += f", {count(r.speed_disturbed)} disturbed" if r.speed_disturbed > 0 else ""
    return Cell(rate(r.tokens_per_sec), bounds + n, plain(r.tokens_per_sec))


def _ratio(r: pd.Series) -> Cell:
    ratio = speeds.SpeedRatio(
        r.speed_ratio, r.speed_ratio_low, r.speed_ratio_high, r.speed_samples, select.speed_verdict(r)
    )
    return speed.ratio_cell(ratio)


def _memory(r: pd.Series) -> Cell:
    note = f"reserved {mib(r.peak_reserved_mib)}" if math.isfinite(r.peak_reserved_mib) else ""
    return Cell(mib(r.peak_memory_mib), note, plain(r.peak_memory_mib))


def _failed(r: pd.Series) -> Cell:
    if not r.failed > 0:
        return Cell("", "", "0")
    return Cell(f"{count(r.failed)} of {count(r.failed + np.nan_to_num(r.seeds))}", "", plain(r.failed))


def anchor_line(data: tables.Results, table: pd.DataFrame) -> str:
    """Every anchor of the split of this table."""
    rows = select.anchors(data, table).dropna(subset=["heldout_perplexity"])
    return ", ".join(f"{r.model} {ppl(float(r.heldout_perplexity))}" for _, r in rows.iterrows())


VERDICT = {"worse": ">", "better": "<", "equivalent": "s"}  # a shape: colours are the gates'


def gate_effects(effects: pd.DataFrame, pairs: pd.DataFrame, width: float = WIDE) -> Figure | None:
    """The cost of a change to the baseline, in nats a character of held-out text; right of zero is worse. Small
    points: every seed's difference to the baseline with the same seed. Large marker: their mean, with its
    interval; its shape is the verdict (right-pointing worse, left-pointing better, square equivalent, open circle
    undecided or none), its colour the gate that is fixed. Shaded: the margin, stated beforehand, inside which a
    difference counts as none."""
    data = effects.dropna(subset=["delta_nats"]).head(MOST)
    if data.empty:
        return None
    margin = stats.MARGIN_NATS
    reach = data[["delta_nats", "delta_low", "delta_high"]].abs().max().max()
    with style() as ink:
        figure = Figure(figsize=(width, 0.9 + 0.36 * len(data)), layout="constrained")
        ax = figure.subplots()
        ax.axvspan(-margin, margin, color=ink["band"], lw=0, zorder=0)
        ax.axvline(0, color=ink["ink"], lw=1, zorder=1)
        for y, row in enumerate(data.itertuples()):
            own = pairs[pairs.label == row.label]
            ax.scatter(own.delta_nats, y + jitter(len(own)), s=9, color=ink["point"], lw=0, zorder=2,
                       rasterized=len(own) > MOST_POINTS)  # fmt: skip
            colour, marker = colour_of(row.label), VERDICT.get(str(row.verdict), "o")
            hint(ax, own.delta_nats, y + jitter(len(own)),
                  [f"{row.label}, seed {count(s)}: {nats(d, sign=True)}"
                   for s, d in zip(own.seed, own.delta_nats, strict=True)])  # fmt: skip
            bounds = spaced(format_interval(row.delta_low, row.delta_high, nats))
            said = f"{row.label}: {nats(row.delta_nats, sign=True)}{bounds}, n = {count(row.pairs)} {row.verdict}"
            hint(ax, [row.delta_nats], [y], [said])
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
        ax.set_yticks(range(len(data)), [short(label) for label in data.label])
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
            note = "logarithmic outside the shaded margin" if width > 3.5 else "logarithmic outside the margin"
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:+g}".replace("-", "\u2212") if x else "0"))
        base = next((str(b) for b in data.baseline if b), "the baseline")
        unit = token_name(data.protocol, True)
        ax.set_xlabel(f"difference to {short(base)}, held-out nats/{unit}" + (f"\n({note})" if note else ""))
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
        f"{r.label} {nats(r.delta_nats, sign=True)}{spaced(format_interval(r.delta_low, r.delta_high, nats))} "
        f"(n = {count(r.pairs)}{', ' + str(r.verdict) if r.verdict else ''})"
        for r in data.itertuples()
    ]
    worst, best = data.loc[data.delta_nats.idxmax()], data.loc[data.delta_nats.idxmin()]
    return (
        f"Dot plot: difference of held-out log-perplexity to {base} in nats a character, positive is worse, "
        f"for {len(data)} variants, {len(pairs)} paired seeds in all. {'; '.join(parts)}. "
        f"Largest: {worst.label}; smallest: {best.label}."
    )


def effects_table(table: pd.DataFrame, points: pd.DataFrame) -> Numbers:
    rows = []
    for _, r in table.dropna(subset=["delta_nats"]).iterrows():
        own = points[points.label == r.label].sort_values("seed")
        each = ", ".join(f"{count(s)}: {nats(d, sign=True)}" for s, d in zip(own.seed, own.delta_nats, strict=True))
        bounds = format_interval(r.delta_low, r.delta_high, nats)
        rows.append([Cell(r.label), Cell(nats(r.delta_nats, sign=True)), Cell(bounds), Cell(count(r.pairs)),
                     Cell(select.verdict(r)), Cell(each)])  # fmt: skip
    heads = [("variant", "", False), ("difference", f"nats/{token_name(table.protocol, True)}", True),
             (f"{select.level(table)} % interval", "", True), ("pairs", "", True), ("verdict", "", False),
             ("each seed", f"seed: nats/{token_name(table.protocol, True)}", False)]  # fmt: skip
    return "Difference to the baseline", heads, rows


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
    with style() as ink:
        figure = Figure(figsize=(width, 0.45 + 1.75 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        reference = select.over_seeds(data[data.label == BASELINE], "heldout_perplexity")
        for panel, label in zip(grid.flat, labels, strict=False):
            own = data[data.label == label]
            colour = ink[colour_of(label)]
            if label != BASELINE and len(reference):
                panel.plot(reference.index, reference["mean"], color=ink["muted"], lw=0.8)
            held, train = (select.over_seeds(own, "heldout_perplexity"), select.over_seeds(own, "train_perplexity"))
            panel.fill_between(held.index, held.low, held.high, color=colour, alpha=0.3, lw=0)
            panel.plot(held.index, held["mean"], color=colour, lw=1.8)
            if len(train):
                panel.plot(train.index, train["mean"], color=colour, lw=1.2, dashes=(3, 2))
            hint(panel, held.index, held["mean"], [
                f"{label}, {count(tokens)} characters: held out {ppl(r['mean'])}"
                f"{spaced(format_interval(r.low, r.high, ppl))}"
                for tokens, r in held.iterrows()
            ])  # fmt: skip
            hint(panel, train.index, train["mean"],
                  [f"{label}, {count(x)} characters: training {ppl(y)}" for x, y in train["mean"].items()])  # fmt: skip
            title = f"{short(label)}  (n = {own.seed.nunique()})"
            panel.set_title(title, loc="left", color=ink["ink"], fontsize=9 * min(1, 22 / len(title)))
            panel.set(xlabel="", ylabel="")
        for panel in grid.flat[len(labels) :]:
            panel.set_visible(False)
        first: Axes = grid.flat[0]
        first.set_yscale("log")
        plain_axis(first, "y")
        first.set_xlim(left=0)
        first.xaxis.set_major_locator(MaxNLocator(3))
        first.xaxis.set_major_formatter(FuncFormatter(lambda x, _: compact(x)))
        for name, value in _references(anchors):
            for panel in grid.flat[: len(labels)]:
                panel.axhline(value, color=ink["ink"], lw=0.9, ls=":")
                panel.annotate(f"{name} {ppl(value)}", (0.02, value), xycoords=("axes fraction", "data"),
                               xytext=(0, -2 if width > 5 else 2), textcoords="offset points",
                               va="top" if width > 5 else "bottom", fontsize=7,
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
        label: (select.over_seeds(own, "heldout_perplexity").iloc[-1], own.seed.nunique())
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


def curves_table(curves: pd.DataFrame) -> Numbers:
    rows = []
    for label, own in curves.dropna(subset=["heldout_perplexity"]).groupby("label", sort=False):
        held, train = select.over_seeds(own, "heldout_perplexity"), select.over_seeds(own, "train_perplexity")
        n = own.groupby("tokens").seed.nunique()
        for tokens, r in held.iterrows():
            seen = float(str(tokens))
            rows.append([Cell(str(label)), Cell(count(seen)), Cell(ppl(r["mean"])),
                         Cell(format_interval(r.low, r.high, ppl)),
                         Cell(ppl(train["mean"].get(seen, math.nan))), Cell(count(n[seen]))])  # fmt: skip
    heads = [("variant", "", False), ("characters seen", "", True), ("held-out perplexity", "", True),
             ("95 % interval", "", True), ("training perplexity", "", True), ("seeds", "", True)]  # fmt: skip
    return "Perplexity at each evaluation, mean over seeds", heads, rows


def perplexity_speed(table: pd.DataFrame, anchors: pd.DataFrame, width: float = WIDE) -> Figure | None:
    """Held-out perplexity (mean over seeds, bar: 95 % interval) against training speed (median over fresh
    processes, bar: interquartile range). Down and right is better. Squares are torch's own, diamonds have a
    fixed gate, circles are the rest; an interval shorter than its marker is hidden by it."""
    data = table.dropna(subset=["heldout_perplexity", "tokens_per_sec"]).head(MOST)
    if data.empty:
        return None
    with style() as ink:
        figure = Figure(figsize=(width, 4.1 if width > 5 else 3.6), layout="constrained")
        ax = figure.subplots()
        for r in data.itertuples():
            colour = ink[colour_of(r.label)]
            ax.plot([r.tokens_per_sec_q1, r.tokens_per_sec_q3], [r.heldout_perplexity] * 2, color=colour, lw=1.4)
            ax.plot([r.tokens_per_sec] * 2, [r.heldout_low, r.heldout_high], color=colour, lw=1.4)
            ax.plot(r.tokens_per_sec, r.heldout_perplexity, marker=marker_of(r.label), ms=6.5, color=colour, ls="")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.margins(0.12)
        ax.autoscale_view()
        ax.set_xlim(at_least(1.2, *ax.get_xlim()))
        ax.set_ylim(at_least(1.2, *ax.get_ylim()))
        edge = far_edge(data.heldout_perplexity)
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
        plain_axis(ax, "x")
        plain_axis(ax, "y")
        ax.set_xlabel("tokens a second (log scale), faster \u2192")
        ax.set_ylabel("held-out perplexity (log scale), \u2190 better")
        across = zip(data.tokens_per_sec_q1, data.heldout_perplexity, data.tokens_per_sec_q3, strict=True)
        upright = zip(data.heldout_low, data.tokens_per_sec, data.heldout_high, strict=True)
        bars = [(x0, y, x1, y) for x0, y, x1 in across] + [(x, y0, x, y1) for y0, x, y1 in upright]
        xs, ys = data.tokens_per_sec.tolist(), [min(y, edge / 1.01) for y in data.heldout_perplexity]
        names = [
            f"{short(r.label)} \u2191 {ppl(r.heldout_perplexity)}" if r.heldout_perplexity > edge else short(r.label)
            for r in data.itertuples()
        ]
        for x, name in zip(xs, names, strict=True):
            if "\u2191" in name:
                ax.plot(x, edge / 1.005, marker="^", ms=6.5, color=ink[colour_of(name)], ls="", clip_on=False)
        colours = [ink[colour_of(label)] for label in data.label]
        hint(ax, xs, ys, [
            f"{r.label}: perplexity {ppl(r.heldout_perplexity)}"
            f"{spaced(format_interval(r.heldout_low, r.heldout_high, ppl))}, "
            f"{rate(r.tokens_per_sec)} tokens/s" for r in data.itertuples()
        ])  # fmt: skip
        name_points(figure, ax, xs, ys, names, bars, colours)
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


def trade_table(table: pd.DataFrame) -> Numbers:
    rows = [
        [Cell(r.label), Cell(ppl(r.heldout_perplexity)), Cell(format_interval(r.heldout_low, r.heldout_high, ppl)),
         Cell(rate(r.tokens_per_sec)), Cell(format_interval(r.tokens_per_sec_q1, r.tokens_per_sec_q3, rate))]
        for _, r in table.dropna(subset=["heldout_perplexity", "tokens_per_sec"]).iterrows()
    ]  # fmt: skip
    heads = [("variant", "", False), ("held-out perplexity", "", True), ("95 % interval", "", True),
             ("tokens/s", "median", True), ("quartiles", "", True)]  # fmt: skip
    return "Perplexity and speed", heads, rows


def _references(anchors: pd.DataFrame) -> list[tuple[str, float]]:
    best = select.best_ngram(anchors)
    floor = anchors.loc[anchors.model == "floor", "heldout_perplexity"].dropna()
    return ([best] if best else []) + ([("floor", float(floor.iloc[0]))] if len(floor) else [])


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
