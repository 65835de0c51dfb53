"""Compare with what others have published: the book's perplexities and exercises, and claims of the literature."""

from __future__ import annotations

import math
import shlex
from typing import Any

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure as Figure
from matplotlib.ticker import MaxNLocator

from harness.analysis import stats
from harness.experiments import grids
from harness.experiments.grids import BASELINE
from harness.formatting import count, format_interval, join_and, nats, plain, pluralize, ppl, score
from harness.record import tables
from harness.report import select
from harness.report.drawing import WIDE, hint, style
from harness.report.sections import Cell, Picture, Section, Table, axes, comparison, tasks


def reproduction(data: tables.Results) -> Section | None:
    """The book's own figures beside ours."""
    rows = data.reproduce
    if rows.empty:
        return None
    cells, outside = [], []
    for r in rows.itertuples():
        ours = Cell()
        if math.isfinite(r.perplexity):
            spread = f"sd {r.sd:.3f}\n" if math.isfinite(r.sd) else ""
            ours = Cell(ppl(r.perplexity), f"{spread}n = {pluralize(r.seeds, 'seed')}", plain(r.perplexity))
        away = (r.perplexity - r.published) / r.published_sd
        if r.within_2sd == "no":
            outside.append(f"{r.variant} on {r.protocol} ({away:+.1f} sd)".replace("-", "\u2212"))
        builds = count(r.builds_least) + (f" to {count(r.builds_most)}" if r.builds_most != r.builds_least else "")
        cells.append([
            Cell(r.variant, r.protocol, f"{r.protocol} {r.variant}"), Cell(r.quantity),
            Cell(ppl(r.published), f"sd {r.published_sd:.2f}\nn = {builds} builds", plain(r.published)), ours,
            Cell(f"{away:+.1f}".replace("-", "\u2212") if math.isfinite(away) else "", "", plain(away)),
            Cell({"yes": "within", "no": "outside"}.get(r.within_2sd, ""), "", r.within_2sd),
            Cell(ppl(r.exp_of_mean), "", plain(r.exp_of_mean)),
            Cell(count(r.failed) if r.failed > 0 else "", "", plain(r.failed)),
        ])  # fmt: skip
    known = rows[rows.within_2sd != ""]
    said = []
    if len(known):
        good = int((known.within_2sd == "yes").sum())
        said.append(
            Markup(
                "<strong>{} of {}</strong> published perplexities are reproduced: our mean lies within two of their "
                "own standard deviations."
            ).format(good, len(known))
        )
    if outside:
        said.append(Markup("Outside: {}.").format("; ".join(outside)))
    spread = known[(known.sd > 0) & (known.published_sd > 0) & (known.seeds > 2)]
    if len(spread):
        ratio = (spread.published_sd / spread.sd).median()
        said.append(
            Markup(
                "The published spread over builds is {} times ours over seeds (median of {}; no build set a seed)."
            ).format(f"{ratio:.1f}", pluralize(len(spread), "row"))
        )
    heads = [
        ("variant", "protocol", False), ("perplexity of", "", False), ("published", "mean, sd over builds", True),
        ("here", "mean, sd over seeds", True), ("distance", "in published sd", True), ("within 2 sd", "", False),
        ("exp of the mean loss", "same held-out text", True), ("failed", "trainings", True),
    ]  # fmt: skip
    setting = (
        "Dive into Deep Learning publishes the output of its notebooks at every build. classic: the training "
        "perplexity of the last epoch; v1, its later edition: held out, the mean over minibatches of exp(loss), which "
        "is above exp of the mean loss; both are given."
    )
    keep = [k for k in range(len(heads)) if any(row[k].text for row in cells)]
    shown = [[row[k] for k in keep] for row in cells]
    table = Table("reproduce", "Published perplexities and ours", [heads[k] for k in keep], shown, cards=True)
    words = ["python", "-m", "harness", "reproduce", "--seeds", count(rows.seeds.max())]
    return Section("reproduce", "Reproduction", "Is the book reproduced?", setting, said, table, (), shlex.join(words))


def section(data: tables.Results) -> Section | None:
    """Show what the literature claims, and what came here."""
    rows = data.claims[data.claims.verdict != ""]
    if rows.empty:
        return None
    cells = []
    for name, own in rows.groupby("claim", sort=False):
        one = own.iloc[0]
        about = f"{one.source} (read: {one['read']})\n{one.url}"
        found = "\n".join(f"{r.outcome}: {r.prediction}" for r in own.itertuples())
        cells.append([Cell(str(one.sentence), about, str(name)), Cell(str(one.verdict), "", str(one.verdict)),
                      Cell("; ".join(map(_measured, own.itertuples())), found, str(name)),
                      Cell(f"{count(own.seeds.min())}", "", plain(own.seeds.min()))])  # fmt: skip
    each = rows.drop_duplicates("claim").verdict.value_counts()
    words = ", ".join(f"{count(each.get(v, 0))} {v}" for v in ("reproduced", "contradicted", "undecided"))
    said = [Markup("Of {}: <strong>{}</strong>.").format(pluralize(rows.claim.nunique(), "claim"), words)]
    setting = (
        "Each claim's comparisons, margin and budget were written before the first training, from as much of its "
        "source as is said; what it was made of is mostly larger. On tasks: 32 hidden units, Adam, at most 2,000 "
        "updates; on text: the protocol quick with a rate chosen on a validation part. Learning rates are chosen by "
        "seeds that are not scored. A claim is reproduced where all of its comparisons are, contradicted where one "
        "is; each interval is of 95 %, and not corrected for the number of claims. That a task is not solved within "
        "the budget decides nothing against a claim: this rule was changed after the first whole run had been read. "
        "The tasks were chosen in an exploratory study, with other seeds."
    )
    heads = [("claim", "source", False), ("verdict", "", False), ("evidence", "95 % intervals", False),
             ("seeds", "least n", True)]  # fmt: skip
    table = Table("claims", "Claims of the literature", heads, cells, cards=True)
    command = shlex.join(["python", "-m", "harness", "claims", "--seeds", count(rows.seeds.max())])
    return Section("claims", "Claims", "What the literature claims, put to the test", setting, said, table, (), command)


def _measured(r: Any) -> str:
    """The number of one comparison, with its interval."""
    if not math.isfinite(r.estimate):
        return f"{r.variant}: {r.evidence}"
    number = f"{r.estimate:.3g} {r.measure} {format_interval(r.low, r.high, lambda x: f'{x:.3g}')}"
    return f"{r.variant}: {r.evidence + ', ' if r.evidence else ''}{number.replace('-', chr(0x2212))}"


def exercises(data: tables.Results) -> Section | None:
    """The four exercises of the book's chapter, from the rows that are here; only where gates were set by hand."""
    hand = data.positions[data.positions.origin == "by hand"]
    if hand.empty:
        return None
    answers = [_best_gates(data), _sizes(data), _rnn_or_gru(data), _parts(data)]
    bench, ablate = comparison.labelled(data.bench), comparison.labelled(data.ablate)
    pictures = [
        Picture("gates", "1: What do the gates do around the step to remember?", positions, (data.positions,),
                positions_alt),
        Picture("sizes", "2: Does the difference depend on the size?", axes.along,
                (data.axes[data.axes.baseline != ""],), axes.along_alt),
        Picture("kinds", "3: Which is better, which faster?", comparison.perplexity_speed,
                (bench, select.anchors(data, data.bench)), comparison.perplexity_speed_alt),
        Picture("parts", "4: What does a part cost?", comparison.gate_effects,
                (ablate, select.differences(data, data.ablate)), comparison.gate_effects_alt),
    ]  # fmt: skip
    cells = [[Cell(f"{k}. {asked}"), Cell(answer or "Not on file.")] for k, (asked, answer) in enumerate(answers, 1)]
    heads = [("exercise", "in our words", False), ("answer", "from the rows", False)]
    shown = Table("exercises", "The exercises, and what the rows say", heads, cells, cards=True)
    setting = "Every number is computed from the tables of this page; what it was measured on stands with them."
    return Section("exercises", "Exercises", "The book's exercises", setting, (), shown, pictures,
                   "python -m harness exercises")  # fmt: skip


def _best_gates(data: tables.Results) -> tuple[str, str]:
    asked = "Which gate values use the input at t' to predict at a later t, and no other?"
    rows = data.positions[data.positions.variant == grids.BASELINE]
    hand, own = rows[rows.origin == "by hand"], rows[rows.origin == "trained"]
    first = (
        f"By hand: Z = 0 and R = 0 at t', Z = 1 at every other step (there R is free), which scores "
        f"{score(hand.score.iloc[0])} at length {count(hand.length.iloc[0])}."
    )
    if own.empty:
        return asked, first
    z = own[own.gate == "Z"].groupby("position")[["carrying", "mean"]].mean()
    r = own[own.gate == "R"].groupby("position")["carrying"].mean()
    return asked, (
        f"{first} Trained ({pluralize(own.seed.nunique(), 'seed')}): on the units that carry the symbol Z is "
        f"{z.carrying[0]:.2f} at t', {z.carrying[1]:.2f} a step and {z.carrying[2]:.2f} two steps later, and R is "
        f"{r[0]:.2f} at t' and {r[2]:.2f} two steps later; over all units Z is {z['mean'][0]:.2f} and "
        f"{z['mean'][2]:.2f}."
    )


def _sizes(data: tables.Results) -> tuple[str, str]:
    asked = "What do hyperparameters do to running time, perplexity and output?"
    rows = data.axes[(data.axes.variant == grids.BASELINE) & data.axes.heldout_perplexity.notna()]
    if len(rows) < 2:
        return asked, ""
    own = data.runs[(data.runs.error == "") & (data.runs.variant == grids.BASELINE)]
    cost = {label: float(one.train_s.median()) for label, one in own.groupby("protocol")}
    first, last = rows.iloc[0], rows.iloc[-1]
    seconds = [cost.get(row.protocol, math.nan) for row in (first, last)]
    texts = [
        next(iter(own[own.protocol == row.protocol].sort_values("seed")["sample"]), "")[:60] for row in (first, last)
    ]
    shown = [f"\u201c{text.strip()}\u201d" for text in texts]
    timed = f", and the training time of one network from {seconds[0]:.1f} to {seconds[1]:.1f} s (median)"
    written = f" Seed 0 writes {shown[0]} at the first and {shown[1]} at the last."
    return asked, (
        f"From {first.axis} {first.point} to {last.point} the held-out perplexity of {grids.BASELINE} goes from "
        f"{ppl(first.heldout_perplexity)} {format_interval(first.heldout_low, first.heldout_high, ppl)} to "
        f"{ppl(last.heldout_perplexity)} {format_interval(last.heldout_low, last.heldout_high, ppl)} "
        f"(n = {count(last.seeds)}){timed * all(map(math.isfinite, seconds))}.{written * all(map(str.strip, texts))}"
    )


def _rnn_or_gru(data: tables.Results) -> tuple[str, str]:
    asked = "How do rnn.RNN and rnn.GRU compare in running time, perplexity and strings?"
    by = {r.variant: r for r in data.bench.itertuples()}
    if not {"nn.rnn", "nn.gru"} <= set(by):
        return asked, ""
    rnn, gru = by["nn.rnn"], by["nn.gru"]
    speed = f" and {rnn.tokens_per_sec / gru.tokens_per_sec:.1f} times its tokens a second" * (rnn.tokens_per_sec > 0)
    own = data.runs[(data.runs.error == "") & (data.runs.protocol == gru.protocol)].sort_values("seed")
    shown = [next(iter(own[own.variant == v]["sample"]), "")[:60].strip() for v in ("nn.rnn", "nn.gru")]
    return asked, (
        f"nn.RNN has held-out perplexity {ppl(rnn.heldout_perplexity)} "
        f"{format_interval(rnn.heldout_low, rnn.heldout_high, ppl)}"
        f"{speed}, against {ppl(gru.heldout_perplexity)} "
        f"{format_interval(gru.heldout_low, gru.heldout_high, ppl)} of nn.GRU "
        f"(n = {count(gru.seeds)}). Seed 0 of nn.RNN writes \u201c{shown[0]}\u201d, of nn.GRU \u201c{shown[1]}\u201d."
    )


def _parts(data: tables.Results) -> tuple[str, str]:
    asked = "What happens with parts of a GRU, a reset gate or an update gate alone?"
    by = {r.variant: r for r in data.ablate.itertuples()}
    if not {"gru:R=1", "gru:Z=0"} <= set(by) or not math.isfinite(by["gru:R=1"].delta_nats):
        return asked, ""
    said = [
        f"{words} ({v}) is {nats(by[v].delta_nats, sign=True)} nats/char from the whole "
        f"{format_interval(by[v].delta_low, by[v].delta_high, nats)}, {by[v].verdict}"
        for v, words in (("gru:R=1", "the update gate alone"), ("gru:Z=0", "the reset gate alone"))
    ]
    told = [f"{str(task).replace('_', ' ')}: {tasks.told(own)}" for task, own in data.tasks.groupby("task", sort=False)]
    on_tasks = f" On tasks: {'. '.join(told)}." if told else ""
    return asked, f"On text {join_and(said)} (n = {count(by['gru:R=1'].pairs)}).{on_tasks}"


def positions(gates: pd.DataFrame, width: float = WIDE) -> Figure | None:
    """The mean of each gate by step relative to the one to remember, t'; Z = 1 keeps the state. Solid: over the units
    that carry the symbol, chosen by their later steps, mean over seeds and its interval. Dashed: over all units.
    Dotted: gates set by hand, which are exact."""
    data = gates.dropna(subset=["mean"])
    if data.empty:
        return None
    with style() as ink:
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
                hint(panel, steps, line.mean(), [f"{gate}, {over_units}, step {k:+g}: {v:.2f}"
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
