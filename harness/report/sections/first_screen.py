"""The first screen: what each gate is for in a sentence, one picture of panels, and speed as a small picture.

Rule: as sentences.py. A picture is SVG with x in per cent and y in pixels and no viewBox, so that one markup fits every
screen and its text is never scaled. In every panel left is better. No style attribute: the page's policy forbids it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from markupsafe import Markup

from harness.analysis import speed, stats
from harness.experiments import grids
from harness.experiments.tasks import TASKS
from harness.formatting import count, format_range, join_and, pct, percent, pluralize, ppl
from harness.record import tables
from harness.report import select
from harness.report.sections import answers

ENGINES = {  # how a variant is executed, as a reader would say it
    "book": ("the book\u2019s own loop", "Run as the book\u2019s own loop"),
    "loop": ("step by step", "Run step by step in torch"), "fused": ("fused in torch", "Fused in torch"),
    "native": ("compiled to C", "Compiled to C"), "resident": ("one GPU kernel", "As one GPU kernel"),
    "library": ("torch\u2019s own", "As torch runs it"),
}  # fmt: skip
MOST_BARS, MOST_TASKS, MOST_ROWS = 5, 4, 8
HEIGHT = 34  # pixels, of a row of a panel


@dataclass(frozen=True)
class Card:
    """`claim` and `proof` are one sentence. `answer`: what is folded away."""

    kind: str  # R, Z, other, speed, text: its colour
    symbol: str
    label: str
    claim: str
    proof: str
    answer: answers.Answer | None = None
    picture: str = ""
    note: str = ""


@dataclass(frozen=True)
class Mark:
    """One row of a panel: a point, its interval or range, each seed. `value` NaN: it never got there, a cross."""

    value: float
    low: float = math.nan
    high: float = math.nan
    seeds: Mapping[int, float] = field(default_factory=dict)
    shown: str = ""  # beside the point
    more: str = ""  # beside that, where it is pointed at
    said: str = ""  # in words


@dataclass(frozen=True)
class Panel:
    """`rows`: what a row is called -> its mark; None where it was not measured."""

    head: str
    unit: str
    n: str
    rows: Mapping[str, Mark | None]
    scale: tuple[float, float]
    zero: float = math.nan
    kind: str = ""
    spell: Callable[[float], str] = str  # a value of its axis


@dataclass(frozen=True)
class Screen:
    """The first screen as the template fills it in. `legend`: what the marks of the picture mean."""

    cards: Sequence[Card]
    picture: str
    legend: str


def screen(data: tables.Results) -> Screen:
    """Build the first screen from the tables there are; empty where nothing can."""
    cards = [*gate_cards(data), *quality_card(data), *speed_card(data)]
    names = rows_of(data)
    panels = [*text_panel(data, names), *task_panels(data, names)] if any(c.kind in "RZ" for c in cards) else []
    if not panels:
        names, panels = bench_panel(data)
    return Screen(cards, picture(names, panels) if panels else "", legend(data, panels))


def gate_cards(data: tables.Results) -> list[Card]:
    """A card a gate: what it is for, and what is lost without it."""
    cards = []
    for answer in answers.gate_answers(data):
        gate = answer.gate
        name = select.gate_name(grids.BASELINE, gate)
        text, harmed = on_text(data, gate)
        tasks, lost = lost_tasks(data, gate)
        claim = answer.claim or (f"What {name} is for cannot be told yet" if text or tasks else "")
        parts = [tasks, text] if lost and not harmed else [text, tasks]
        word = ", and " if harmed == lost or not tasks else ", but "
        proof = f"without it {word.join(part for part in parts if part)}." + needed_alone(data, gate)
        if not tasks:
            proof += " What else it is for, tasks tell: make ablate trains them."
        cards.append(Card(gate if gate in "RZ" else "other", gate, name.removeprefix("the "), claim, proof, answer))
    return cards


def on_text(data: tables.Results, gate: str) -> tuple[str, bool]:
    """How well the text is predicted without a gate, and whether that is worse; '' where nobody tried.

    As `sentences.needed`: a gate is not needed where any fixed value of it does as well; that value is then named.
    """
    rows = [r for _, r in data.ablate.iterrows() if select.fixed(r.variant)[0] == grids.BASELINE
            and [g for g, _ in select.fixed(r.variant)[1]] == [gate]]  # fmt: skip
    gone = select.GATES[gate].gone if gate in select.GATES else ""
    rows.sort(key=lambda r: select.fixed(r.variant)[1][0][1] != gone)
    for word in ("better", "equivalent", "undecided", "worse"):
        for row in rows:
            value = select.fixed(row.variant)[1][0][1]
            if select.verdict(row) == word and (word != "undecided" or value == gone):
                held = "" if value == gone else f" if it is held at {value}"
                size = percent(float(row.delta_nats))
                said = {"worse": f"the text is {pct(size)} harder to predict{held}",
                        "better": f"the text is {pct(-size)} easier to predict{held}",
                        "equivalent": f"the text is predicted as well{held}",
                        "undecided": "how well the text is predicted is not decided yet"}  # fmt: skip
                return said[word], word == "worse"
    return ("how well the text is predicted cannot be told from so few seeds" if rows else ""), False


def lost_tasks(data: tables.Results, gate: str) -> tuple[str, bool]:
    """Which tasks are no longer solved without a gate, and whether there are any; '' where nobody tried."""
    without = answers.answering(answers.on_tasks(data, gate))
    if without.empty:
        return "", False
    lost = without[without.verdict == "fails"]
    if len(lost):
        solved, n = int(lost.solved.max()), int((lost.seeds + lost.failed).max())
        names = join_and([str(task).replace("_", " ") for task in lost.task])
        who = "no seed" if not solved else f"at most {solved} of {n} seeds"
        return f"{names} {'is' if len(lost) == 1 else 'are'} solved by {who}", True
    slow = without[without.verdict == "slower"]
    if len(slow):
        row = slow.loc[slow.updates_ratio.idxmax()]
        return f"{str(row.task).replace('_', ' ')} takes {row.updates_ratio:.1f} times the updates", False
    told = without[without.solved == without.seeds + without.failed]
    return ("every task here is still solved" if len(told) == len(without) else "no task is told to be lost"), False


def needed_alone(data: tables.Results, gate: str) -> str:
    """That a gate the network does well without is missed where the other is gone too; '' where that is not so.

    Tested: perplexity with neither against that without the other alone, paired by seed, its t interval above 0.
    """
    if on_text(data, gate)[1] or gate not in select.GATES:
        return ""
    other = next(g for g in select.GATES if g != gate)
    found = select.differences(data, data.ablate)
    by = {name: rows.set_index("seed").delta_nats for name, rows in found.groupby("label")}
    alone = by.get(f"{grids.BASELINE}:{other}={select.GATES[other].gone}")
    neither = next((by[name] for name in select.NEITHER if name in by), None)
    if alone is None or neither is None:
        return ""
    pairs = (neither - alone).dropna()
    if len(pairs) < 2 or not stats.interval(pairs.to_numpy(dtype=float)).low > 0:
        return ""
    return f" One of the two is needed: with neither, the text is {pct(percent(float(neither.mean())))} harder."


def quality_card(data: tables.Results) -> list[Card]:
    """Answer, of the bench alone, which variant predicts the text best."""
    return [Card("text", "", a.question, a.finding.partition(" (n =")[0].rstrip(".") + ".", a.role, a)
            for a in answers.quality_answer(data)]  # fmt: skip


def speed_card(data: tables.Results) -> list[Card]:
    """The baseline in each engine beside what an engineer would otherwise use, named by engine."""
    rows = data.bench[(data.bench.variant == grids.BASELINE) & data.bench.speed_ratio.notna()]
    rows = rows[rows.speed_baseline != grids.BASELINE].drop_duplicates("engine")
    if rows.empty:
        return []
    base = str(rows.speed_baseline.iloc[0])
    torchs = "torch\u2019s nn.GRU" if base == "nn.gru" else base
    first, slowest = rows.iloc[0], rows.loc[rows.speed_ratio.idxmin()]  # what trained it, and the slowest
    how, told = ENGINES.get(str(first.engine), ("", f"Run by {first.engine}"))[1], _told(first)
    claim = f"{how}, the book\u2019s GRU trains {_fold(first.speed_ratio)} times as fast as {torchs}"
    if not told:
        claim = f"{how}, no difference between the book\u2019s GRU and {torchs} can be told here today"
    proof = ""
    if slowest.engine != first.engine:
        how = ENGINES.get(str(slowest.engine), ("", f"Run by {slowest.engine}"))[1]
        fold = f"{_fold(slowest.speed_ratio)} times" if _told(slowest) else "no difference can be told"
        proof = f"{how[0].lower()}{how[1:]}, {fold}."
    fact = data.bench[data.bench.variant == grids.BASELINE].iloc[0]
    rounds = f"{format_range(rows.speed_samples.dropna())} " * bool(rows.speed_samples.notna().any())
    note = f"Tokens a second in training, {pluralize(fact.hidden, 'hidden unit')}, {fact.device}; longer is faster; " \
           f"median of {rounds}rounds, line: its interval."  # fmt: skip
    loop = answers.loop_answer(data)
    claim += ";" if proof else "."
    answer = loop[0] if loop else None
    return [Card("speed", "", "Speed", claim, proof, answer, bars(rows, torchs), note)]


def _told(row: pd.Series) -> bool:
    return select.speed_verdict(row) != speed.UNTOLD


def _fold(x: float) -> str:
    return f"{x:.2g}" if x < 10 else count(x)


def rows_of(data: tables.Results) -> dict[str, tuple[str, ...]]:
    """Return what a row of the picture is called -> the variants that can stand in it."""
    base = grids.BASELINE
    single = {f"without {g}": (f"{base}:{g}={gate.gone}",) for g, gate in select.GATES.items()}
    return {"both gates": (base,), **single, "neither": select.NEITHER}


def text_panel(data: tables.Results, names: Mapping[str, tuple[str, ...]]) -> list[Panel]:
    """How much harder the text is to predict, in nats a character; what is shown is per cent of perplexity."""
    table = data.ablate.drop_duplicates("variant").set_index("variant")
    if grids.BASELINE not in table.index or table.delta_nats.notna().sum() == 0:
        return []
    points = select.differences(data, data.ablate)
    marks: dict[str, Mark | None] = {}
    for name, variants in names.items():
        found = [v for v in variants if v in table.index and math.isfinite(table.delta_nats[v])]
        marks[name] = None
        if name == "both gates":
            whole = ppl(table.heldout_perplexity[grids.BASELINE])
            marks[name] = Mark(0.0, shown=f"perplexity {whole}", said=f"perplexity {whole}")
        elif found:
            r = table.loc[found[0]]
            own = points[points.label == found[0]]
            low, high = (pct(percent(x), True) for x in (r.delta_low, r.delta_high))
            word = select.verdict(r)
            marks[name] = Mark(
                float(r.delta_nats), float(r.delta_low), float(r.delta_high),
                {int(s): float(x) for s, x in zip(own.seed, own.delta_nats, strict=True)},
                pct(percent(float(r.delta_nats)), True), f"[{low}, {high}] {word}" if low else word,
                f"perplexity {pct(percent(float(r.delta_nats)), True)}, {select.level(data.ablate)} % interval {low} "
                f"to {high}, n = {count(r.pairs)}; {word or 'not decided'}",
            )  # fmt: skip
    every = [x for m in marks.values() if m for x in _reached(m)]
    least, most = min(0.0, *every), max(0.0, *every)
    span = (most - least) or 0.1
    scale = (least - 0.07 * span, least + span / 0.6)  # what is right of the points is for their labels
    n = count(data.ablate.pairs.max())
    return [Panel("Predicting the text", "perplexity added by removing it", n, marks, scale, 0.0, "text",
                  lambda v: f"perplexity {pct(percent(v), True)}")]  # fmt: skip


def task_panels(data: tables.Results, names: Mapping[str, tuple[str, ...]]) -> list[Panel]:
    """For each task after how many updates it is solved, on one logarithmic axis for all."""
    table = data.tasks[data.tasks.seeds + data.tasks.failed > 0].dropna(subset=["solved", "budget"])
    whole = table[table.variant == grids.BASELINE]
    wanted = [t for t in (*grids.ANSWERING, *whole.task) if t in set(whole.task)]
    wanted = list(dict.fromkeys(wanted))[:MOST_TASKS]
    if not wanted:
        return []
    known = pd.concat([table.updates_least, table.updates_median]).dropna()
    scale = (math.log(known.min() / 1.35) if len(known) else 0.0, math.log(table.budget.max() * 1.35))
    panels = []
    for task in wanted:
        base = whole[whole.task == task].sort_values("length").iloc[-1]
        own = table[table.protocol == base.protocol].drop_duplicates("variant").set_index("variant")
        marks: dict[str, Mark | None] = {}
        for name, variants in names.items():
            found = [v for v in variants if v in own.index]
            marks[name] = _task_mark(data, own.loc[found[0]], found[0]) if found else None
        about = TASKS[task].asks if task in TASKS else str(task)
        head, n = about[0].upper() + about[1:], count(base.seeds + base.failed)
        panels.append(Panel(head, str(task).replace("_", " "), n, marks, scale, kind="task",
                            spell=lambda v: f"{count(round(math.exp(v)))} updates"))  # fmt: skip
    return panels


def _task_mark(data: tables.Results, r: pd.Series, variant: str) -> Mark:
    n, solved = int(r.seeds + r.failed), int(r.solved)
    some = f"{solved} of {n}"
    if not solved:
        return Mark(math.nan, shown=some, said=f"solved by none of {n} seeds within {count(r.budget)} updates")
    seeds = data.probes[(data.probes.protocol == r.protocol) & (data.probes.variant == variant)]
    seeds = seeds[seeds.solved_after > 0]
    of = {int(s): math.log(x) for s, x in zip(seeds.seed, seeds.solved_after, strict=True)}
    low, high = (math.log(x) for x in (r.updates_least, r.updates_most))
    updates = f"{count(r.updates_least)} to {count(r.updates_most)}"
    shown = count(r.updates_median) if solved == n else some
    said = f"solved by {some} seeds after {count(r.updates_median)} updates, {updates}"
    return Mark(math.log(r.updates_median), low, high, of, shown, updates, said)


def bench_panel(data: tables.Results) -> tuple[dict[str, tuple[str, ...]], list[Panel]]:
    """Where no gate was fixed: held-out perplexity of every variant, on a logarithmic axis."""
    table = data.bench.dropna(subset=["heldout_perplexity"]).drop_duplicates("variant")
    table = table.sort_values("heldout_perplexity", kind="stable").head(MOST_ROWS)
    if len(table) < 2:
        return {}, []
    own = select.finished(data, data.bench)
    marks: dict[str, Mark | None] = {}
    for _, r in table.iterrows():
        seeds = own[(own.variant == r.variant) & (own.protocol == r.protocol)]
        low, high = ppl(r.heldout_low), ppl(r.heldout_high)
        logs = [math.log(x) if x > 0 else math.nan for x in (r.heldout_perplexity, r.heldout_low, r.heldout_high)]
        interval = f"[{low}, {high}]" if low else ""
        marks[str(r.variant)] = Mark(
            logs[0], logs[1], logs[2],
            {int(s): math.log(x) for s, x in zip(seeds.seed, seeds.heldout_perplexity, strict=True)},
            ppl(r.heldout_perplexity), interval,
            f"held-out perplexity {ppl(r.heldout_perplexity)} {interval}, n = {count(r.seeds)}",
        )  # fmt: skip
    every = [x for m in marks.values() if m for x in _reached(m)]
    span = (max(every) - min(every)) or 0.1
    scale = (min(every) - 0.07 * span, min(every) + span / 0.72)
    n = count(table.seeds.max())
    head = Panel("Predicting text never trained on", "perplexity, lower is better", n, marks, scale, kind="text",
                 spell=lambda v: f"perplexity {ppl(math.exp(v))}")  # fmt: skip
    return {name: (name,) for name in marks}, [head]


def _reached(m: Mark) -> list[float]:
    return [x for x in (m.value, m.low, m.high, *m.seeds.values()) if math.isfinite(x)]


HUES = {"both gates": "both", "without R": "R", "without Z": "Z", "neither": "none"}


def hue(name: str) -> str:
    """The colour class of a row, by what it is called."""
    return HUES.get(name, {"gru": "both", "rnn": "none"}.get(name, "other"))


def picture(names: Mapping[str, tuple[str, ...]], panels: Sequence[Panel]) -> Markup:
    """Panels side by side, their rows in line."""
    shown = [name for name in names if any(p.rows.get(name) for p in panels)]
    out = []
    for p in panels:
        rows = Markup("").join(
            Markup('<div class="row {}"><span class="who">{}</span>{}</div>').format(
                hue(name), name, track(p.rows.get(name), p, name)
            )
            for name in shown
        )
        out.append(
            Markup(
                '<div class="panel {}"><div class="head"><h3>{}</h3><p>{}, n\u00a0=\u00a0{}</p></div>{}</div>'
            ).format(p.kind, p.head, p.unit, p.n, rows)
        )
    return Markup('<div class="panels count{} rows{}">{}</div>').format(len(panels), len(shown), Markup("").join(out))


def track(m: Mark | None, p: Panel, name: str) -> Markup:
    """One row of a panel as SVG; empty where it was not measured."""
    y, (low, high) = HEIGHT // 2, p.scale

    def x(value: float) -> str:
        return f"{100 * (min(max(value, low), high) - low) / (high - low):.2f}%"

    if m is None:
        return Markup('<svg class="track" width="100%" height="{}" aria-hidden="true"></svg>').format(HEIGHT)
    parts = []
    if math.isfinite(p.zero):
        parts.append(Markup('<line class="zero" x1="{0}" x2="{0}" y1="0" y2="{1}"/>').format(x(p.zero), HEIGHT))
    if not math.isfinite(m.value):  # it never got there: at the end of the axis
        parts.append(Markup('<svg class="never" x="100%" y="{}"><path d="M-10 -5L0 5M-10 5L0 -5"/></svg>').format(y))
        text = Markup('<text class="value" x="100%" dx="-19" y="{}" text-anchor="end">{}</text>')
        parts.append(text.format(y + 5, m.shown))
    else:
        if math.isfinite(p.zero):
            ends = x(p.zero), x(m.value)
            parts.append(Markup('<line class="stem" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(*ends, y=y))
        if m.low < m.high:
            parts.append(Markup('<line class="interval" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(
                x(m.low), x(m.high), y=y))  # fmt: skip
        parts += [
            Markup('<circle class="seed" cx="{}" cy="{}" r="2.5"><title>{}</title></circle>').format(
                x(v), y, f"{name}, seed {seed}: {p.spell(v)}"
            )
            for seed, v in m.seeds.items()
        ]
        parts.append(Markup('<circle class="point" cx="{}" cy="{}" r="6"><title>{}</title></circle>').format(
            x(m.value), y, f"{name}: {m.said}"))  # fmt: skip
        reached = [*_reached(m), *([p.zero] if math.isfinite(p.zero) else [])]  # the stem, too, has room from the label
        left, beyond = min(reached) - low, high - max(reached)
        right = beyond > 0.3 * (high - low) if p.kind == "text" else beyond >= left
        side = Markup('x="{}" dx="11"').format(x(max(reached))) if right else Markup(
            'x="{}" dx="-11" text-anchor="end"').format(x(min(reached)))  # fmt: skip
        more = Markup('<tspan class="more" dx="6">{}</tspan>').format(m.more) if m.more else ""
        parts.append(Markup('<text class="value" {} y="{}">{}{}</text>').format(side, y + 5, m.shown, more))
    return Markup(
        '<svg class="track" width="100%" height="{}" role="img" tabindex="0" aria-label="{}"><title>{}</title>{}</svg>'
    ).format(HEIGHT, f"{p.head}, {name}: {m.said}", f"{name}: {m.said}", Markup("").join(parts))


def bars(rows: pd.DataFrame, torchs: str) -> Markup:
    """Ratios of tokens a second to torch's own, a bar an engine; where nothing can be told, hollow and said."""
    one: list[tuple[str, float, float, float, str]] = [(torchs, 1.0, math.nan, math.nan, "")]
    for _, r in rows.iterrows():
        name = ENGINES.get(str(r.engine), (str(r.engine),))[0]
        verdict = select.speed_verdict(r)
        one.append((name, float(r.speed_ratio), float(r.speed_ratio_low), float(r.speed_ratio_high), verdict))
    one = sorted(one, key=lambda bar: bar[1])
    if len(one) > MOST_BARS:
        one = [b for b in one if b[0] == torchs or b in (one[0], one[-1])]
    top = max(np.nanmax([b[1], b[3]]) for b in one) * 1.02
    out = []
    for name, ratio, low, high, verdict in one:
        untold = verdict == speed.UNTOLD
        said = f"{name}: " + ("no difference can be told" if untold else f"{ratio:.2f} times {torchs}")
        said += f", {low:.2f} to {high:.2f}" if low < high else ""
        at: Callable[[float], str] = lambda v: f"{100 * v / top:.2f}%"  # noqa: E731
        parts = (("interval", low, min(ratio, high)), ("interval beyond", max(ratio, low), high)) if low < high else ()
        drawn = '<line class="{}" x1="{}" x2="{}" y1="12" y2="12"/>'  # within the bar and beyond it: two colours
        line = Markup("").join(Markup(drawn).format(kind, at(x1), at(x2)) for kind, x1, x2 in parts)
        out.append(Markup(
            '<div class="bar{}"><span>{}</span><b>{}</b><svg width="100%" height="24" role="img" aria-label="{}">'
            '<title>{}</title><rect x="0" y="4" width="{}" height="16" rx="2"/>{}'
            '<line class="one" x1="{}" x2="{}" y1="0" y2="24"/></svg></div>').format(
                " untold" if untold else " torch" if not verdict else "", name,
                "no difference told" if untold else f"{_fold(ratio)}\u00d7", said, said, at(ratio), line, at(1), at(1),
        ))  # fmt: skip
    return Markup('<div class="bars">{}</div>').format(Markup("").join(out))


def legend(data: tables.Results, panels: Sequence[Panel]) -> str:
    """Say what the marks mean."""
    if not panels:
        return ""
    said = "Left is better in every panel. Large dot: mean, band: its 95 % interval, small dots: each of the n seeds. "
    if any(p.kind == "task" for p in panels):
        budget = count(answers.answering(data.tasks).budget.max())
        said += "Tasks: updates until solved, median and range of the seeds that solve it (logarithmic); " \
                f"\u201c9 of 10\u201d: seeds that solve it; \u00d7: none does within {budget}. "  # fmt: skip
    if any("neither" in p.rows for p in panels):
        said += "Without R: R = 1. Without Z: Z = 0. Neither: both at once, which is a plain RNN. "
    return said.strip()
