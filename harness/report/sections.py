"""The further sections of the page: what was published, learning rates, probes, inside the gates.

Rule: as report.py. A section whose table has no rows is left out; every sentence is computed from the rows below it.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from markupsafe import Markup

from harness.analysis import speed as speeds
from harness.analysis import stats
from harness.analysis.axes import trend
from harness.experiments import grids
from harness.experiments.protocols import OPEN, RATE_SEEDS, SHUT
from harness.experiments.questions import PROTOCOL
from harness.experiments.tasks import SCORED, TASKS
from harness.formatting import (
    compact,
    count,
    format_interval,
    format_range,
    join_and,
    nats,
    plain,
    pluralize,
    ppl,
    rate,
    score,
    unique,
)
from harness.record import tables
from harness.report import figures, select
from harness.report.elements import Cell, Numbers, Table
from harness.report.sentences import OPTIMIZERS

LATENCY_STEPS = 500  # as run.latency takes
BACK = 16  # characters, of the sentence on gradients

# id, heading, figure, its words, frames, and its numbers where the section's own table has them not
Picture = tuple[str, str, figures.Draw, figures.Describe, tuple[pd.DataFrame, ...], Numbers | None]


@dataclass(frozen=True)
class Section:
    """`pictures` are yet to be drawn."""

    id: str
    word: str  # in the list of contents
    title: str
    setting: str
    said: Sequence[Markup]
    table: Table | None
    pictures: Sequence[Picture] = field(default=())
    command: str = ""  # that makes it again


def sections(data: tables.Results) -> list[Section]:
    """Those that have something to show."""
    return [
        s
        for s in (
            published(data),
            rates(data),
            exercises(data),
            questions(data),
            axes(data),
            claims(data),
            tasks(data),
            gates(data),
            latency(data),
        )
        if s
    ]


def published(data: tables.Results) -> Section | None:
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


def rates(data: tables.Results) -> Section | None:
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


def axes(data: tables.Results) -> Section | None:
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
    picture = (
        "axes",
        f"Does the effect depend on {axis.replace('_', ' ')}?",
        figures.along,
        figures.along_alt,
        (rows,),
        None,
    )
    return Section("axes", "Axes", f"Effects by {axis.replace('_', ' ')}", setting, said, table, [picture])


def _effect(r: Any) -> Cell:
    if r is None or not math.isfinite(r.delta_nats):
        return Cell()
    bounds = format_interval(r.delta_low, r.delta_high, nats)
    return Cell(nats(r.delta_nats, sign=True), f"{r.verdict}\n{bounds}\nn = {count(r.pairs)}", plain(r.delta_nats))


def questions(data: tables.Results) -> Section | None:
    """What a reviewer asks of the ablation: whether each difference stands where one thing is changed."""
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


def claims(data: tables.Results) -> Section | None:
    """What the literature claims, and what came here."""
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


def exercises(data: tables.Results) -> Section | None:
    """The four exercises of the book's chapter, from the rows that are here; only where gates were set by hand."""
    hand = data.positions[data.positions.origin == "by hand"]
    if hand.empty:
        return None
    answers = [_best_gates(data), _sizes(data), _rnn_or_gru(data), _parts(data)]
    pictures: list[Picture] = [
        ("gates", "1: What do the gates do around the step to remember?", figures.positions, figures.positions_alt,
         (data.positions,), None),
        ("sizes", "2: Does the difference depend on the size?", figures.along, figures.along_alt,
         (data.axes[data.axes.baseline != ""],), None),
    ]  # fmt: skip
    for k, table, name in (
        (3, data.bench, "Which is better, which faster?"),
        (4, data.ablate, "What does a part cost?"),
    ):
        labelled = table.assign(label=[select.label(row, table) for _, row in table.iterrows()])
        if k == 3:
            frames = (labelled, select.anchors(data, table))
            pictures.append(
                ("kinds", f"3: {name}", figures.perplexity_speed, figures.perplexity_speed_alt, frames, None)
            )
        else:
            pairs = (labelled, select.differences(data, table))
            pictures.append(("parts", f"4: {name}", figures.gate_effects, figures.gate_effects_alt, pairs, None))
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
    told = [f"{str(task).replace('_', ' ')}: {_told(own)}" for task, own in data.tasks.groupby("task", sort=False)]
    on_tasks = f" On tasks: {'. '.join(told)}." if told else ""
    return asked, f"On text {join_and(said)} (n = {count(by['gru:R=1'].pairs)}).{on_tasks}"


def tasks(data: tables.Results) -> Section | None:
    """Which variants solve each task, and after how many updates."""
    table = data.tasks[data.tasks.seeds + data.tasks.failed > 0].dropna(subset=["solved", "budget", "length"])
    if table.empty:
        return None
    names = list(dict.fromkeys(table.variant))
    cells = []
    table = table.assign(setting=[setting_of(label) for label in table.protocol])
    for (task, length, changed), own in table.groupby(["task", "length", "setting"], sort=False):
        by = {r.variant: r for r in own.itertuples()}
        about = TASKS[task].asks if task in TASKS else ""
        note = "\n".join(
            filter(None, (f"length {count(length)}", changed if table.setting.nunique() > 1 else "", about, _real(own)))
        )
        name = Cell(str(task).replace("_", " "), note, f"{task} {length:06.0f} {changed}")
        cells.append([name, *(_solved(by.get(variant)) for variant in names)])
    one = table.iloc[0]
    known = data.protocols[data.protocols.protocol.isin(table.protocol)].optimizer
    used = join_and([OPTIMIZERS[name] for name in known.unique() if name in OPTIMIZERS] or ["Adam"])
    trained = (
        pluralize(table.seeds.iloc[0], "seed") if table.seeds.nunique() == 1 else f"{format_range(table.seeds)} seeds"
    )
    setting = (
        f"Solved: {plain(one.threshold)} of the answers right (an error at most as small as its own threshold) on "
        f"{count(SCORED)} sequences never trained on, at two checks in a row, within {format_range(table.budget)} "
        f"updates. {format_range(table.hidden)} hidden units, {used}, {trained} a cell; each learning rate was chosen "
        f"by {len(RATE_SEEDS)} other seeds from {count(table.rates_tried.max()) or 'one'}. Shares have exact 95 % "
        f"intervals; a variant fails where its interval and that of {grids.BASELINE} are apart, is slower or faster "
        "by an exact sign-flip test of updates paired by seed, Holm over the contrasts of the task. What "
        "is not solved within the budget may be solved after it."
    )
    heads = [("task", "length, what it asks for", False), *((name, "solved, updates", True) for name in names)]
    grid_table = Table("tasks", "Seeds that solve each task", heads, cells, cards=True)
    picture = (
        "tasks",
        "How soon is each task solved?",
        figures.updates,
        figures.updates_alt,
        (table, data.probes),
        None,
    )
    said = [Markup("<b>{}</b>: {}.").format(str(task).replace("_", " ").capitalize(), _told(own))
            for task, own in table.groupby("task", sort=False)]  # fmt: skip
    lengths = {task: tuple(dict.fromkeys(own.length)) for task, own in table.groupby("task", sort=False)}
    words = ["python", "-m", "harness", "probe", "--device", str(one.device), "--seeds", count(table.seeds.max()),
             "--tasks", *lengths, "--variants", *names]  # fmt: skip
    if len(set(lengths.values())) == 1:
        words += ["--lengths", *(str(int(length)) for length in next(iter(lengths.values())))]
    lists: dict[str, list[str]] = {}
    for name, _, value in (part.partition("=") for setting in dict.fromkeys(table.setting) for part in setting.split()):
        lists.setdefault(name, []).append(value)
    changed = [f"{name}={','.join(dict.fromkeys(values))}" for name, values in lists.items()]
    words += ["--set", *changed] if changed and "" not in set(table.setting) else []
    title = "Tasks: what each gate is for"
    return Section("tasks", "Tasks", title, setting, said, grid_table, [picture], shlex.join(words))


def _real(own: pd.DataFrame) -> str:
    """What stands beside a task that is not made up: guessing, and a linear model of all its inputs."""
    linear = own.linear.dropna()
    return f"a linear model: {score(linear.iloc[0])}, guessing: {score(own.trivial.iloc[0])}" if len(linear) else ""


def setting_of(label: str) -> str:
    """What a protocol's label says beside its name and its length."""
    return " ".join(part for part in str(label).split(",")[1:] if not part.startswith("num_steps="))


def _solved(r: Any) -> Cell:
    """One variant on one task: seeds that solve it, after how many updates, else its score."""
    if r is None:
        return Cell()
    n = int(r.seeds + r.failed)
    bounds = format_interval(r.solved_low, r.solved_high, lambda x: f"{x:.2f}")
    if r.solved:
        after = f"after {count(r.updates_median)} [{count(r.updates_least)} to {count(r.updates_most)}]"
    else:
        after = f"score {score(r.score)}, guessing {score(r.trivial)}"
    window = f"\nsolved at {count(r.rates_that_solve)} of {count(r.rates_tried)} rates" if r.rates_tried > 0 else ""
    edge = ", the chosen at the grid\u2019s edge" if r.rate_at_edge else ""
    verdict = f"{r.verdict}\n" if r.verdict else ""
    return Cell(f"{count(r.solved)}/{n}", f"{verdict}{after}\nshare {bounds}{window}{edge}", f"{r.solved / n:.4f}")


def _told(own: pd.DataFrame) -> str:
    """Who solves a task and who does not, in words."""
    shares = {str(r.variant): (int(r.solved), int(r.seeds + r.failed)) for r in own.itertuples()}
    every = [name for name, (k, n) in shares.items() if k == n]
    never = [name for name, (k, _) in shares.items() if k == 0]
    parts = [f"{join_and(every)} solve{'s' * (len(every) == 1)} it with every seed"] if every else []
    parts += [f"{name} with {k} of {n}" for name, (k, n) in shares.items() if 0 < k < n]
    parts += [f"{join_and(never)} did not within {count(own.budget.max())} updates"] if never else []
    slower = [
        f"{r.variant} takes {r.updates_ratio:.1f}\u00d7 the updates of {r.baseline} "
        f"{format_interval(r.updates_ratio_low, r.updates_ratio_high, lambda x: f'{x:.1f}')}"
        for r in own.itertuples() if r.verdict in ("slower", "faster")
    ]  # fmt: skip
    return "; ".join([*parts, *slower])


def gates(data: tables.Results) -> Section | None:
    """What gates of trained networks do, and how far back their gradient reaches."""
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
        line = figures.over(rows, "characters_back", "gradient_share").iloc[0]
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
    pictures: list[Picture] = [
        (
            "reach",
            "How far back does the gradient reach?",
            figures.reach,
            figures.reach_alt,
            (reached,),
            _shares(reached),
        ),
        (
            "times",
            "How long does a unit keep its state?",
            figures.time_constants,
            figures.time_constants_alt,
            (own,),
            None,
        ),
        (
            "heat",
            "What do the gates do, character by character?",
            figures.gate_map,
            figures.gate_map_alt,
            (seen,),
            None,
        ),
    ]
    return Section("gates", "Gates", "Inside the gates", setting, said, table, pictures)


def _shares(reached: pd.DataFrame) -> Numbers:
    """The numbers of the chart of reach: geometric means over seeds with their 95 % intervals."""
    rows = []
    for label, own in reached[reached.gradient_share > 0].groupby("label", sort=False):
        for t, r in figures.over(own, "characters_back", "gradient_share").iterrows():
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
