"""The tables of the page and their cells (bench.csv and ablate.csv themselves are built in table.py).

Rule: a cell says its n and its interval, and sorts by a plain number; what is missing is an empty cell.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from markupsafe import Markup

from harness.analysis import speed as speeds
from harness.analysis import stats
from harness.experiments import grids
from harness.formatting import (
    count,
    format_interval,
    mib,
    nats,
    p_value,
    pct,
    percent,
    plain,
    ppl,
    rate,
    sd,
    times,
    token_name,
    unique,
)
from harness.record import tables
from harness.report import select
from harness.report.sentences import command, seeds

Numbers = tuple[str, Sequence[tuple[str, str, bool]], Sequence[Sequence["Cell"]]]  # caption, heads, rows


@dataclass(frozen=True)
class Cell:
    """`text` is read, `note` stands small under it, `key` sorts (a plain number where it is one).

    `picture`: of its seeds; `link`: the id of what the page says of it.
    """

    text: str = ""
    note: str = ""
    key: str = ""
    kind: str = ""
    picture: str = ""
    link: str = ""


@dataclass(frozen=True)
class Table:
    """`heads` are (name, unit, numeric). The first cell of a row names it.

    For the page's script: `facts` of the table, `row_facts` of each row, and `about` a column by its name: its `kind`,
    its `column` in the file; `term`, the id of its definition.
    """

    id: str
    caption: str
    heads: Sequence[tuple[str, str, bool]]
    rows: Sequence[Sequence[Cell]]
    foot: Sequence[Sequence[Cell]] = ()
    cards: bool = False
    facts: Mapping[str, str] = field(default_factory=dict)
    row_facts: Sequence[Mapping[str, str]] = ()
    about: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


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
        ("parameters", "", True, True, lambda r: _plain(r.parameters, count)),
        ("hidden units", "same parameters", True, False,
         lambda r: _plain(r.hidden, count) if table.hidden.nunique() > 1 else Cell()),
        ("learning rate", "chosen", True, False, lambda r: _plain(r.lr, plain) if table.lr.nunique() > 1 else Cell()),
        ("tokens/s", "median [quartiles]", True, True, _rate),
        (f"speed vs {fast}", "median ratio [94 %]", True, False, _ratio),
        ("step (ms)", "median", True, True, lambda r: _plain(r.step_ms, lambda x: f"{x:.2f}" if x < 10 else mib(x))),
        ("of peak (%)", "see the chart", True, False, lambda r: _plain(r.percent_of_peak, lambda x: f"{x:.0f}")),
        ("peak memory (MiB)", "one seed", True, True, _memory),
        ("all seeds, tokens/s", "sum of all trained together", True, False,
         lambda r: _plain(r.tokens_per_sec_all_seeds, rate)),
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
        caption=f"The {word}, a row a variant: {seeds(table)}.", rows=[[row[i] for i in keep] for row in built],
        foot=[[Cell(name, note), Cell(ppl(v), "same split"), *[Cell()] * (len(keep) - 2)] for name, note, v in foot],
        facts={"file": f"{verb}.csv", "planned": planned, "low": plain(scale[0]), "high": plain(scale[1]),
               "t": json.dumps(stats.quantiles(most, float(select.level(table))))},
        row_facts=[{"command": command(verb, row), "logs": json.dumps(seeds_of.get(labels[k], {}))}
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


def strip(
    values: Mapping[int, float],
    interval: tuple[float, float],
    scale: tuple[float, float],
    base: float,
    spell: Callable[[float], str],
) -> Markup:
    """Each seed as a dot, the interval of their mean as a band, on an axis that all rows of a column share."""
    low, high = scale

    def x(value: float) -> str:
        return f"{100 * (min(max(value, low), high) - low) / (high - low):.2f}%"

    parts = []
    if math.isfinite(base):
        parts.append(Markup('<line class="base" x1="{0}" x2="{0}" y1="0" y2="26"/>').format(x(base)))
    if interval[0] < interval[1] and interval[0] < high:
        parts.append(Markup('<line class="interval" x1="{}" x2="{}" y1="13" y2="13"/>').format(*map(x, interval)))
    for seed, value in values.items():
        beyond = value > high
        mark = Markup('<circle class="{}" cx="{}" cy="13" r="3"><title>{}</title></circle>')
        parts.append(mark.format("seed beyond" if beyond else "seed", x(value), f"seed {seed}: {spell(value)}"))
    said = "; ".join(f"seed {seed}: {spell(value)}" for seed, value in values.items())
    return Markup('<svg class="track dots" width="100%" height="26" role="img" aria-label="{}">{}</svg>').format(
        said, Markup("").join(parts))  # fmt: skip


def _name(r: pd.Series) -> Cell:
    note = "\n".join(filter(None, (select.picture_name(r.variant), select.how(r))))
    return Cell(r.variant, note, f"{r.variant} {select.how(r)}", link=equation_id(r.variant))


def equation_id(variant: object) -> str:
    """The id of the equations of a variant's cell."""
    return "eq-" + re.sub(r"[^\w.-]", "_", str(variant).partition(":")[0])


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
    return _speed_cell(ratio)


def _speed_cell(ratio: speeds.SpeedRatio, n: str = "") -> Cell:
    """A ratio with its interval; where it cannot be told, that, and the figures small."""
    if not math.isfinite(ratio.ratio):
        return Cell()
    bounds = format_interval(ratio.low, ratio.high, lambda x: f"{x:.2f}") or "no interval"
    if ratio.verdict == speeds.UNTOLD:
        return Cell(speeds.UNTOLD, f"{times(ratio.ratio)} {bounds}{n}", plain(ratio.ratio))
    return Cell(times(ratio.ratio), bounds + n, plain(ratio.ratio))


def _memory(r: pd.Series) -> Cell:
    note = f"reserved {mib(r.peak_reserved_mib)}" if math.isfinite(r.peak_reserved_mib) else ""
    return Cell(mib(r.peak_memory_mib), note, plain(r.peak_memory_mib))


def _failed(r: pd.Series) -> Cell:
    if not r.failed > 0:
        return Cell("", "", "0")
    return Cell(f"{count(r.failed)} of {count(r.failed + np.nan_to_num(r.seeds))}", "", plain(r.failed))


def _plain(value: float, spell: Callable[[float], str]) -> Cell:
    return Cell(spell(value), "", plain(value)) if math.isfinite(value) else Cell()


def lesions(data: tables.Results) -> Table | None:
    """A gate held only after training, beside the same gate held in training too, and what lies between."""
    rows, after = [], select.lesions(data).after.dropna()
    scale = (min(0.0, after.min()) - 0.02, after.max() + 0.02) if len(after) else (0.0, 1.0)
    for lesion, own in select.lesions(data).groupby("lesion", sort=False):
        values = {int(s): float(x) for s, x in zip(own.seed, own.after, strict=True) if math.isfinite(x)}
        bounds = stats.interval(list(values.values()))
        drawn = strip(values, (bounds.low, bounds.high), scale, 0.0, lambda x: f"{nats(x, sign=True)} nats/char")
        rows.append([Cell(str(lesion)), *[_mean(x) for x in (own.after, own.trained, own.after - own.trained)],
                     Cell(picture=drawn, key=plain(float(own.after.mean())))])  # fmt: skip
    heads = [
        ("gate", f"of {grids.BASELINE}", False), ("held after training", "against whole, % [95 %], nats/char", True),
        ("held in training too", "against whole, % [95 %], nats/char", True),
        ("what training works around", "the first less the second", True),
        ("each seed", "held after training; line: whole", False),
    ]  # fmt: skip
    caption = "A gate held after training, and in training too"
    return Table("lesions", caption, heads, rows, cards=True) if rows else None


def _mean(differences: pd.Series) -> Cell:
    values = differences.dropna().to_numpy(dtype=float)
    if not len(values):
        return Cell()
    bounds = stats.interval(values)
    said = format_interval(percent(bounds.low), percent(bounds.high), lambda x: pct(x, True)) or "no interval"
    middle = float(values.mean())
    note = f"{said}\n{nats(middle, sign=True)} nats, n = {len(values)}"
    return Cell(pct(percent(middle), True), note, plain(middle))


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
        against = Cell() if first.variant == grids.SPEED_BASELINE else _speed_cell(ratio, f"\nn = {ratio.rounds}")
        quartiles = format_interval(each.q1, each.q3, rate) or "no quartiles"
        disturbed = f", {each.disturbed} disturbed" if each.disturbed else ""
        rows.append([
            Cell(first.variant, select.how(first), first.label),
            _plain(first.hidden, count), _plain(first.seeds, count),
            Cell(rate(each.median), f"{quartiles}\nn = {each.samples}{disturbed}", plain(each.median)), against,
            _plain(each.step_ms, lambda x: f"{x:.2f}" if x < 10 else mib(x)),
            _plain(each.percent_of_peak, lambda x: f"{x:.0f}"), _plain(each.peak_memory_mib, mib),
        ])  # fmt: skip
    heads = [
        ("variant", "engine", False), ("hidden units", "", True), ("seeds together", "", True),
        ("tokens/s", "all seeds, median [quartiles]", True),
        (f"speed vs {grids.SPEED_BASELINE}", "one seed of it, same size, median ratio [94 %]", True),
        ("step (ms)", "median", True), ("of peak (%)", "", True), ("peak memory (MiB)", "", True),
    ]  # fmt: skip
    rows.sort(key=lambda row: (float(row[1].key), float(row[2].key)))
    return Table("sweep", "Speed by hidden size and number of seeds", heads, rows, cards=True) if rows else None


def anchor_line(data: tables.Results, table: pd.DataFrame) -> str:
    """Every anchor of the split of this table."""
    rows = select.anchors(data, table).dropna(subset=["heldout_perplexity"])
    return ", ".join(f"{r.model} {ppl(float(r.heldout_perplexity))}" for _, r in rows.iterrows())


def machine(data: tables.Results) -> Table | None:
    """environments.csv on its side: a line a fact, a column a machine."""
    rows = data.environments
    if rows.empty:
        return None
    facts = [c for c in rows if c != "environment" and (rows[c].astype(str) != "").any()]
    heads = [("", "", False), *[(str(e) or "unnamed", "", False) for e in rows.environment]]
    return Table("machine", "Where it ran", heads, [[Cell(c), *[Cell(str(v)) for v in rows[c]]] for c in facts])


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


def trade_table(table: pd.DataFrame) -> Numbers:
    rows = [
        [Cell(r.label), Cell(ppl(r.heldout_perplexity)), Cell(format_interval(r.heldout_low, r.heldout_high, ppl)),
         Cell(rate(r.tokens_per_sec)), Cell(format_interval(r.tokens_per_sec_q1, r.tokens_per_sec_q3, rate))]
        for _, r in table.dropna(subset=["heldout_perplexity", "tokens_per_sec"]).iterrows()
    ]  # fmt: skip
    heads = [("variant", "", False), ("held-out perplexity", "", True), ("95 % interval", "", True),
             ("tokens/s", "median", True), ("quartiles", "", True)]  # fmt: skip
    return "Perplexity and speed", heads, rows


def samples_table(timed: pd.DataFrame, column: str, spell: Callable[[float], str]) -> Numbers:
    rows, unit = [], {"tokens_per_sec": "tokens/s", "peak_memory_mib": "MiB", "percent_of_peak": "%"}[column]
    for label, own in timed.dropna(subset=[column]).groupby("label", sort=False):
        each = ", ".join(spell(float(v)) for v in own.sort_values("round")[column])
        rows.append([Cell(str(label)), Cell(str(len(own))), Cell(each)])
    return f"Every sample, {unit}", [("variant", "", False), ("n", "", True), ("each sample", unit, False)], rows
