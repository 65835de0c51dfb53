"""Answer the questions of the first screen: what each gate is for, which variant is best, why torch's is faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from markupsafe import Markup

from harness.analysis import speed as speeds
from harness.analysis import stats
from harness.experiments import grids
from harness.experiments.tasks import TASKS
from harness.formatting import (
    count,
    format_interval,
    format_range,
    join_and,
    join_or,
    mib,
    pct,
    percent,
    pluralize,
    ppl,
    rate,
    times,
)
from harness.record import tables
from harness.report import select
from harness.report.sections import comparison, speed


@dataclass(frozen=True)
class Answer:
    """A question of the first screen: its answer in a few words where there is one, the finding, what supports it."""

    question: str
    claim: str
    role: str
    finding: str
    points: Sequence[Markup]
    cost: Sequence[Markup]
    gate: str = ""


def gate_answers(data: tables.Results) -> list[Answer]:
    """For each gate of the baseline that was fixed or is missing in a task of memory: what for, and what it costs."""
    table = data.ablate
    answers = []
    asked = dict.fromkeys([*select.GATES, *(g for v in table.variant for g, _ in select.fixed(v)[1])])
    for gate in asked:
        name = select.gate_name(grids.BASELINE, gate)
        rows = [r for _, r in table.iterrows() if select.fixed(r.variant)[0] == grids.BASELINE
                and [g for g, _ in select.fixed(r.variant)[1]] == [gate]]  # fmt: skip
        tasks = needed_for(data, gate)
        if not rows and not tasks:
            continue
        here = needed(rows) if rows else "Not measured on text: make ablate does."
        claim = purpose(data, rows, gate, name)
        answers.append(
            Answer(
                question=f"What is {name} for?",
                claim=claim,
                role=select.GATES[gate].role if gate in select.GATES else "",
                finding=here + (tasks or " What else it is for is told by tasks: make probe."),
                points=[
                    *(s for r in rows if (s := comparison.effect(r, select.family(table)))),
                    *lesion(data, gate),
                    *remembered(data, gate),
                ],
                cost=gate_cost(data, rows, gate, name),
                gate=gate,
            )
        )
    return answers


def absent(data: tables.Results, charts: Sequence[str]) -> Markup:
    """Say what is not on the page for want of data, charts among it, and which command makes it."""
    said = []
    answered = [a.gate for a in gate_answers(data)]
    names = [gate.name for symbol, gate in select.GATES.items() if symbol not in answered]
    if names:
        said.append(
            Markup("what {} {} for (<code>make ablate</code>)").format(
                join_and(names), "are" if len(names) > 1 else "is"
            )
        )
    elif data.ablate.empty:
        said.append(Markup("the ablation (<code>make ablate</code>)"))
    if data.bench.empty:
        said.append(Markup("the variants side by side, and their speed (<code>make bench</code>)"))
    if charts:
        said.append(Markup("charts: {}").format("; ".join(charts)))
    return Markup("Not measured yet: {}.").format(Markup("; ").join(said)) if said else Markup("")


def purpose(data: tables.Results, rows: Sequence[pd.Series], gate: str, name: str) -> str:
    """Say what a gate is for in a few words, of the text and of the tasks; '' where there are no tasks."""
    without = on_tasks(data, gate)
    if without.empty:
        return ""
    without = answering(without)
    subject, lost = name[0].upper() + name[1:], asked_of(without[without.verdict == "fails"])
    text = needed(rows).split(" on this text")[0] if rows else ""
    if text == "Needed":
        rest = f", and for {join_and(lost)}" if lost else "; no task here shows a need for it"
        return f"{subject} is for predicting this text{rest}"
    if text == "Not needed":
        if lost:
            return f"{subject} is for {join_and(lost)}, not for predicting this text"
        return f"{subject} is needed neither for this text nor for a task here"
    return f"{subject} is for {join_and(lost)}" if lost else ""


def answering(tasks: pd.DataFrame) -> pd.DataFrame:
    """Those of the tasks that are chosen to tell the gates apart, which the first screen draws; all, where none is."""
    chosen = tasks[tasks.task.isin(grids.ANSWERING)]
    return chosen if len(chosen) else tasks


def asked_of(tasks: pd.DataFrame) -> list[str]:
    """Return what the tasks of some rows ask for, each once."""
    return list(dict.fromkeys(TASKS[task].asks for task in tasks.task if task in TASKS))


def on_tasks(data: tables.Results, gate: str) -> pd.DataFrame:
    """Rows of tasks.csv of the baseline without this gate, beside the baseline itself."""
    without = f"{grids.BASELINE}:{gate}={select.GATES[gate].gone}" if gate in select.GATES else ""
    known = data.tasks.dropna(subset=["solved", "budget"])
    return known[(known.variant == without) & (known.baseline == grids.BASELINE)]


def lesion(data: tables.Results, gate: str) -> list[Markup]:
    """Say what taking the gate from the trained network does, where it is known of two seeds or more."""
    gone = select.GATES[gate].gone if gate in select.GATES else ""
    rows = select.lesions(data)
    after = rows[rows.lesion == f"{gate}={gone}"].after.dropna()
    if len(after) < 2:
        return []
    bounds = stats.interval(after)
    low, high = percent(bounds.low), percent(bounds.high)
    return [
        Markup(
            "Held at {} only after training: held-out perplexity {} {} <span>(n = {} pairs, no test)</span>."
        ).format(
            gone,
            pct(percent(float(after.mean())), True),
            format_interval(low, high, lambda x: pct(x, True)),
            len(after),
        )
    ]


def remembered(data: tables.Results, gate: str) -> list[Markup]:
    """How many seeds solve each task without the gate, and with it."""
    said = []
    for _, r in on_tasks(data, gate).iterrows():
        whole = data.tasks[(data.tasks.variant == grids.BASELINE) & (data.tasks.protocol == r.protocol)].iloc[0]
        said.append(
            Markup("<b>{}</b>, length {}: <code>{}</code> is solved by {}, <code>{}</code> by {}{}.").format(
                str(r.task).replace("_", " ").capitalize(), count(r.length), r.variant, solved(r), grids.BASELINE,
                solved(whole), f" ({r.verdict})" if r.verdict else "",
            )
        )  # fmt: skip
    return said


def solved(r: pd.Series) -> str:
    """Seeds that solve a task, the exact interval of their share, and after how many updates."""
    n = int(r.seeds + r.failed)
    share = f"{int(r.solved)} of {n} seeds {format_interval(r.solved_low, r.solved_high, lambda x: f'{x:.2f}')}"
    return f"{share} after {count(r.updates_median)} updates" if r.solved else f"{share} within {count(r.budget)}"


def needed_for(data: tables.Results, gate: str) -> str:
    """The tasks that the baseline solves and does not without this gate; '' where no task was tried."""
    without = on_tasks(data, gate)
    if without.empty:
        return ""
    lost = without[without.verdict == "fails"]
    if lost.empty:
        return " No task here shows a need for it."
    names = join_and([str(task).replace("_", " ") for task in lost.task])
    verb = "are" if len(lost) > 1 else "is"
    return f" Without it {names} {verb} not solved within {count(lost.budget.max())} updates."


def needed(rows: Sequence[pd.Series]) -> str:
    """Say what the verdicts on a gate's fixed values say together, and no more than they say."""
    by: dict[str, list[str]] = {}
    for row in rows:
        by.setdefault(select.verdict(row), []).append(select.fixed(row.variant)[1][0][1])
    tried = sum(len(v) for v in by.values())
    worse = f" Fixed at {join_or(by['worse'])} it does worse." if "worse" in by else ""
    if "better" in by:
        return f"Not needed on this text: fixed at {join_or(by['better'])} the network does better.{worse}"
    if "equivalent" in by:
        return f"Not needed on this text: fixed at {join_or(by['equivalent'])} the network does as well.{worse}"
    if len(by.get("worse", [])) == tried:
        each = "the one fixed value" if tried == 1 else f"each of the {tried} fixed values"
        return f"Needed on this text: {each} is worse."
    if "undecided" in by:
        return f"Undecided: fixed at {join_or(by['undecided'])}, these seeds cannot tell.{worse}"
    return f"Nothing can be said yet: too few seeds have finished.{worse}"


def gate_cost(data: tables.Results, rows: Sequence[pd.Series], gate: str, name: str) -> list[Markup]:
    """Say what having the gate costs: parameters, speed and memory of the baseline beside the row without it."""
    own = data.ablate[data.ablate.variant == grids.BASELINE]
    usual = select.GATES[gate].gone if gate in select.GATES else None
    rows = sorted(rows, key=lambda r: select.fixed(r.variant)[1][0][1] != usual)
    if own.empty or not rows:
        return []
    base, row = own.iloc[0], rows[0]
    said = []
    if base.parameters > 0 and row.parameters > 0:
        said.append(
            Markup("Parameters: {} with {}, {} without (<code>{}</code>), {} as many.").format(
                count(base.parameters),
                name,
                count(row.parameters),
                row.variant,
                times(base.parameters / row.parameters),
            )
        )
    ratio = select.speed_ratio(data, data.ablate, str(row.variant), grids.BASELINE)
    if ratio:
        one, other = (Markup("<code>{}</code>{}").format(r.variant, speed.engine_note(r)) for r in (row, base))
        said.append(Markup("Speed: {}.").format(speed.faster(one, other, ratio)))
    if base.peak_memory_mib > 0 and row.peak_memory_mib > 0:
        n = f" (n = {format_range(pd.Series([base.speed_samples, row.speed_samples]).dropna())} samples each)"
        said.append(
            Markup("Peak memory: {} MiB with, {} MiB without{}.").format(
                mib(base.peak_memory_mib), mib(row.peak_memory_mib), n if base.speed_samples > 0 else ""
            )
        )
    return said


def loop_answer(data: tables.Results) -> list[Answer]:
    """How much of nn.gru's speed is the cell and how much the way it is run."""
    table = data.bench
    if table.empty:
        return []
    fast, slow, twin = grids.SPEED_BASELINE, grids.BASELINE, "gru_after"
    rows = {str(r.variant): r for _, r in table[::-1].iterrows()}  # of several engines the first, which trained it
    whole = select.speed_ratio(data, table, fast, slow)
    if not whole:
        return []
    at = f" ({rate(rows[fast].tokens_per_sec)} tokens/s)" if rows[fast].tokens_per_sec > 0 else ""
    named = {name: Markup("<code>{}</code>{}").format(name, speed.engine_note(rows[name])) for name in rows}
    points = [
        Markup("{}. <code>{}</code>{} is another GRU: it resets after the product and has a second bias.").format(
            speed.faster(named[fast], named[slow], whole), fast, at
        )
    ]
    own = f"{slow}{speed.engine_note(rows[slow])}"  # a scratch network is as fast as what runs it
    finding = f"Whether it or {own} trains faster cannot be told from these rounds."
    if whole.verdict != speeds.UNTOLD:
        finding = f"It trains at {times(whole.ratio)} the speed of {own}."
    cell, loop = select.speed_ratio(data, table, twin, slow), select.speed_ratio(data, table, fast, twin)
    if cell and loop:
        if speeds.UNTOLD not in (whole.verdict, cell.verdict, loop.verdict):
            shares = f"{times(cell.ratio)} for its equations, {times(loop.ratio)} for the way they are run"
            finding = f"It trains at {times(whole.ratio)} the speed of {own}: {shares}."
        points += [
            Markup("The cell: <code>{}</code> has the equations of <code>{}</code>. {}.").format(
                twin, fast, speed.faster(named[twin], named[slow], cell)
            ),
            Markup("The way it is run: {}.").format(speed.faster(named[fast], named[twin], loop)),
        ]
    if book := select.speed_ratio(data, table, fast, slow, "book"):
        theirs = Markup("the book\u2019s own code of <code>{}</code>").format(slow)
        points.append(Markup("{}.").format(speed.faster(named[fast], theirs, book)))
    quality = comparison.effect(rows[fast], select.family(table)) if str(rows[fast].baseline) == slow else Markup("")
    return [
        Answer(
            claim="",
            question=f"Why is {fast} faster?" if whole.verdict == "faster" else f"How fast is {fast}?",
            role="Torch\u2019s own GRU beside the one written from its equations.",
            finding=finding, points=[*points, *([quality] if quality else [])], cost=[],
        )
    ]  # fmt: skip


def not_told_apart(data: tables.Results, best: str) -> list[str]:
    """The variants of the bench whose held-out perplexity cannot be told from the best's.

    Where the table compares the two, by its verdict; else by the 95 % interval of the difference by seed.
    """
    table = data.bench.dropna(subset=["heldout_perplexity"]).drop_duplicates("variant").set_index("variant")
    own = select.finished(data, data.bench)
    logs = {str(v): np.log(rows.set_index("seed").heldout_perplexity) for v, rows in own.groupby("variant", sort=False)}
    alike = []
    for name, row in table.sort_values("heldout_perplexity", kind="stable").iterrows():
        pair = {str(name), best}
        planned = row if row.baseline == best else table.loc[best] if table.loc[best].baseline == name else None
        if len(pair) == 1:
            continue
        if planned is not None and select.verdict(planned):
            apart = select.verdict(planned) in ("worse", "better")
        else:
            both = (logs.get(str(name), pd.Series()) - logs.get(best, pd.Series())).dropna().to_numpy(dtype=float)
            bounds = stats.interval(both) if len(both) > 1 else None
            apart = bounds is not None and not bounds.low <= 0 <= bounds.high
        if not apart:
            alike.append(str(name))
    return alike


def quality_answer(data: tables.Results) -> list[Answer]:
    """Which variant of the bench predicts the text best: the first question while no gate has been fixed."""
    known = data.bench.dropna(subset=["heldout_perplexity"])
    if len(data.ablate) or known.variant.nunique() < 2:
        return []
    best = known.loc[known.heldout_perplexity.idxmin()]
    bounds = format_interval(best.heldout_low, best.heldout_high, ppl)
    finding = f"{best.variant}: held-out perplexity {ppl(best.heldout_perplexity)} {bounds}".strip()
    finding = f"{finding}, the lowest of {known.variant.nunique()}"
    alike = not_told_apart(data, str(best.variant))
    if alike:
        others = known.variant.nunique() - len(alike) - 1
        some = join_and([str(best.variant), *alike]) if len(alike) < 4 else f"{best.variant} and {len(alike)} others"
        finding = f"No difference can be told between {some}: held-out perplexity {ppl(best.heldout_perplexity)}"
        finding += f", lower than that of the other {others}" if others else " and more"
    points = [comparison.effect(row, select.family(data.bench)) for _, row in known.iterrows()]
    anchor = comparison.anchor_sentence(data, data.bench)
    return [
        Answer(
            question="Which predicts this text best?", claim="", role="Text never trained on; lower is better.",
            finding=f"{finding} (n = {pluralize(best.seeds, 'seed')}).",
            points=[*([anchor] if anchor else []), *(p for p in points if p)], cost=[],
        )
    ]  # fmt: skip
