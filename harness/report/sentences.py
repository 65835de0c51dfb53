"""What the page says in words: findings, answers, caveats, methods, limits, noise.

Rule: every sentence is computed from rows that are shown below it, or left out; a number carries its n, its
interval and its unit. What is `Markup` here is safe: every value went in through `format`, which escapes it.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup

from harness.analysis import speed as speeds
from harness.analysis import stats
from harness.experiments import grids, protocols
from harness.experiments.questions import PROTOCOL as QUESTIONED
from harness.experiments.tasks import TASKS
from harness.formatting import (
    count,
    format_interval,
    format_range,
    join_and,
    join_or,
    mib,
    nats,
    p_value,
    pct,
    percent,
    plain,
    pluralize,
    ppl,
    rate,
    times,
    token_name,
    unique,
)
from harness.record import tables
from harness.report import select


class Gate(NamedTuple):
    """What its equations say of a gate, not what was found. At `gone` they simply lose it."""

    name: str
    role: str
    gone: str


PAST = 1.01  # times the lowest of the mean curve: from here on training went past its best
GATES = {  # of the baseline; another's are called by their letter
    "R": Gate("the reset gate", "R decides how much of the old state the new candidate may see.", "1"),
    "Z": Gate("the update gate", "Z decides how much of the old state is kept; Z = 1 keeps all of it.", "0"),
}


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
        gates = " and ".join(f"{gate_name(cell, gate)} at {value}" for gate, value in fixed)
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


def gate_answers(data: tables.Results) -> list[Answer]:
    """For each gate of the baseline that was fixed or is missing in a task of memory: what for, and what it costs."""
    table = data.ablate
    answers = []
    asked = dict.fromkeys([*GATES, *(g for v in table.variant for g, _ in select.fixed(v)[1])])
    for gate in asked:
        name = gate_name(grids.BASELINE, gate)
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
                role=GATES[gate].role if gate in GATES else "",
                finding=here + (tasks or " What else it is for is told by tasks: make probe."),
                points=[
                    *(s for r in rows if (s := effect(r, select.family(table)))),
                    *lesion(data, gate),
                    *remembered(data, gate),
                ],
                cost=gate_cost(data, rows, gate, name),
                gate=gate,
            )
        )
    return answers


def absent(data: tables.Results, charts: Sequence[str]) -> Markup:
    """What is not on the page for want of data, charts among it, and which command makes it."""
    said = []
    answered = [a.gate for a in gate_answers(data)]
    names = [gate.name for symbol, gate in GATES.items() if symbol not in answered]
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
    """What a gate is for in a few words, of the text and of the tasks; '' where there are no tasks."""
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
    """What the tasks of some rows ask for, each once."""
    return list(dict.fromkeys(TASKS[task].asks for task in tasks.task if task in TASKS))


def on_tasks(data: tables.Results, gate: str) -> pd.DataFrame:
    """Rows of tasks.csv of the baseline without this gate, beside the baseline itself."""
    without = f"{grids.BASELINE}:{gate}={GATES[gate].gone}" if gate in GATES else ""
    known = data.tasks.dropna(subset=["solved", "budget"])
    return known[(known.variant == without) & (known.baseline == grids.BASELINE)]


def lesion(data: tables.Results, gate: str) -> list[Markup]:
    """What taking the gate from the trained network does, where it is known of two seeds or more."""
    gone = GATES[gate].gone if gate in GATES else ""
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
    """What the verdicts on a gate's fixed values say together, and no more than they say."""
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
    """What having the gate costs: parameters, speed and memory of the baseline beside the row without it."""
    own = data.ablate[data.ablate.variant == grids.BASELINE]
    usual = GATES[gate].gone if gate in GATES else None
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
        one, other = (Markup("<code>{}</code>{}").format(r.variant, _engine(r)) for r in (row, base))
        said.append(Markup("Speed: {}.").format(_faster(one, other, ratio)))
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
    speed = f" ({rate(rows[fast].tokens_per_sec)} tokens/s)" if rows[fast].tokens_per_sec > 0 else ""
    named = {name: Markup("<code>{}</code>{}").format(name, _engine(rows[name])) for name in rows}
    points = [
        Markup("{}. <code>{}</code>{} is another GRU: it resets after the product and has a second bias.").format(
            _faster(named[fast], named[slow], whole), fast, speed
        )
    ]
    own = f"{slow}{_engine(rows[slow])}"  # a scratch network is as fast as what runs it
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
                twin, fast, _faster(named[twin], named[slow], cell)
            ),
            Markup("The way it is run: {}.").format(_faster(named[fast], named[twin], loop)),
        ]
    if book := select.speed_ratio(data, table, fast, slow, "book"):
        theirs = Markup("the book\u2019s own code of <code>{}</code>").format(slow)
        points.append(Markup("{}.").format(_faster(named[fast], theirs, book)))
    quality = effect(rows[fast], select.family(table)) if str(rows[fast].baseline) == slow else Markup("")
    return [
        Answer(
            claim="",
            question=f"Why is {fast} faster?" if whole.verdict == "faster" else f"How fast is {fast}?",
            role="Torch\u2019s own GRU beside the one written from its equations.",
            finding=finding, points=[*points, *([quality] if quality else [])], cost=[],
        )
    ]  # fmt: skip


def quality_answer(data: tables.Results) -> list[Answer]:
    """Which variant of the bench predicts the text best: the first question while no gate has been fixed."""
    known = data.bench.dropna(subset=["heldout_perplexity"])
    if len(data.ablate) or known.variant.nunique() < 2:
        return []
    best = known.loc[known.heldout_perplexity.idxmin()]
    bounds = format_interval(best.heldout_low, best.heldout_high, ppl)
    finding = f"{best.variant}: held-out perplexity {ppl(best.heldout_perplexity)} {bounds}".strip()
    points = [effect(row, select.family(data.bench)) for _, row in known.iterrows()]
    anchor = anchor_sentence(data, data.bench)
    return [
        Answer(
            question="Which predicts this text best?", claim="", role="Text never trained on; lower is better.",
            finding=f"{finding}, the lowest of {known.variant.nunique()} (n = {pluralize(best.seeds, 'seed')}).",
            points=[*([anchor] if anchor else []), *(p for p in points if p)], cost=[],
        )
    ]  # fmt: skip


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


def anchor_sentence(data: tables.Results, table: pd.DataFrame) -> Markup:
    """What an n-gram reaches on the split of this table, and how many variants are below it."""
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


def command(verb: str, row: pd.Series) -> str:
    """What makes this row again, its baseline included, to be typed at a shell."""
    total = np.nan_to_num(row.seeds) + np.nan_to_num(row.failed)
    words = _ask(verb, row, int(total))
    baseline, place, variant = row.baseline, str(row.get("cell") or ""), str(row.variant)
    if place:  # known by its name only once its file is given; so is the cell that it is an ablation of
        base, _, fixed = variant.partition(":")
        variant = f"{place}:{fixed}" if fixed else place
        baseline = place if baseline == base else baseline
    return shlex.join([*words, "--variants", *dict.fromkeys([*([baseline] if baseline else []), variant])])


def _ask(verb: str, row: pd.Series, seeds: int) -> list[str]:
    """The command line of a row's protocol, text and device."""
    name, *changes = str(row.protocol).split(",")
    words = ["python", "-m", "harness", verb]
    words += ["--protocol", name] if name else []
    for change in changes:
        words += ["--set", change]
    words += ["--corpus", str(row.corpus).split(" ")[0] if str(row.corpus).startswith("embedded") else str(row.corpus)]
    words += ["--device", str(row.device)] if row.device else []
    return words + (["--seeds", str(seeds)] if seeds else [])


def brief(table: pd.DataFrame) -> str:
    """The setting in a line."""
    parts = [
        f"protocol {' and '.join(unique(table.protocol))}",
        *unique(table.corpus),
        *unique(table.device),
    ]
    return ", ".join([*parts, seeds(table)])


TREATED = {  # what is trained on: corpus._prepared
    "lines": "letters alone, in lower case, line by line, the lines joined with nothing between them, as in the book",
    "whole": "letters alone, in lower case, one space for all else, as in the book\u2019s later edition",
    "spaces": "case and punctuation are kept, and each run of white space, line ends too, is one space",
    "raw": "everything is kept as it is, lines and all",
}


OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}


def setting(data: tables.Results, table: pd.DataFrame) -> str:
    """What was run: protocol, text, device, seeds."""
    parts = []
    for label in unique(table.protocol):
        known = data.protocols[data.protocols.protocol == label]
        text = f"Protocol {label}"
        if len(known):
            p = known.iloc[0]
            unit = "windows" if p.sampling == "windows" else "characters"
            rest = f"the next {count(p.heldout_characters)} held out"
            if p.validation_characters > 0:
                rest = f"the next {count(p.validation_characters)} to validate on, {rest}"
            if shares_of_whole(p):
                rest += " (the whole text, cut by position: 90, 5 and 5 %)"
            text += (
                f": {count(p.train_characters)} {unit} to learn from, {rest}; "
                f"{count(p.hidden)} hidden units, {count(p.epochs)} epochs, batch {count(p.batch_size)}, "
                f"{count(p.num_steps)} steps, {optimizer(p)}, gradient norm at most "
                f"{plain(p['clip'])}, initial values \u201c{p.init}\u201d"
            )
            if p.match == "parameters":
                text += f"; hidden units such that each variant has as many parameters as {grids.BASELINE} has"
        parts.append(text)
    words = token_name(table.protocol) == "word"  # which never meet
    for how in unique(data.protocols.text[data.protocols.protocol.isin(table.protocol)]):
        how = "whole" if words and how == "lines" else how
        parts += [f"Of the text, {TREATED[how]}"] if how in TREATED else []
    parts += [_tokens(p) for _, p in data.protocols[data.protocols.protocol.isin(table.protocol)].iterrows()]
    parts = [part for part in dict.fromkeys(parts) if part]
    shas = unique(table.corpus_sha256)
    parts.append("Text: " + ", ".join(unique(table.corpus)) + (f" (SHA-256 {shas[0][:12]})" if len(shas) == 1 else ""))
    parts.append("Device: " + ", ".join(unique(table.device)))
    parts.append(seeds(table))
    return ". ".join(p for p in parts if not p.endswith(": ")) + "."


def shares_of_whole(p: pd.Series) -> bool:
    """Whether the parts are the shares in which `book` cuts a text, whatever its length."""
    rest = p.heldout_characters
    return bool(
        str(p["name"]) == "book"
        and p.validation_characters == rest
        and 18 * rest <= p.train_characters < 18 * rest + 20
    )


def _tokens(p: pd.Series) -> str:
    """What else is done to a text, and what its tokens are read as; '' of characters as `text` has them, one-hot."""
    said = []
    if p.get("case") in ("keep", "lower") or p.get("punctuation") in ("keep", "drop"):
        kept = {"keep": "kept", "lower": "lowered", "drop": "dropped"}
        said += [f"{what} is {kept[p[what]]}" for what in ("case", "punctuation") if p[what] in kept]
    if p.get("tokens") in ("bytes", "words"):
        most = f", the {count(p.max_vocabulary)} most frequent known" if p.max_vocabulary > 0 else ""
        said.append(
            f"its tokens are {p.tokens}{most}; steps are {p.tokens}, while parts are cut by characters, so that bits "
            "per character compare with those of other tokens"
        )
    if p.get("embedding", 0) > 0:
        said.append(f"each token is read as {count(p.embedding)} trained numbers, not as one-hot")
    return f"Also, {'; '.join(said)}" if said else ""


def optimizer(p: pd.Series) -> str:
    """How a protocol updates weights: `Adam at learning rate 0.003 that falls along a cosine`."""
    decay = f"weight decay {plain(p.weight_decay)}" if p.weight_decay > 0 else ""
    extra = [f"momentum {plain(p.momentum)}"] * int(p.momentum > 0) + [decay] * bool(decay)
    name = OPTIMIZERS.get(str(p.optimizer), "SGD")
    name += f" with {join_and(extra)}" if extra else ""
    rate = (
        "a learning rate chosen for each variant (see below)" if p.rate == "chosen" else f"learning rate {plain(p.lr)}"
    )
    how = [f"rises over {count(p.warmup)} updates"] * int(p.warmup > 0)
    how += ["falls along a cosine"] * int(p.schedule == "cosine")
    return f"{name} at {rate}{f' that {join_and(how)}' if how else ''}"


def seeds(table: pd.DataFrame) -> str:
    text = f"{format_range(table.seeds[table.seeds > 0])} finished seeds a variant"
    failed = int(table.failed.fillna(0).sum())
    return text + (f", {pluralize(failed, 'training')} failed" if failed else "")


def caveats(data: tables.Results) -> list[Markup]:
    """What a reader must know before believing the above; one line for both tables where both share it."""
    found: dict[Markup, list[str]] = {}
    for verb, title, table in (("bench", "Bench", data.bench), ("ablate", "Ablation", data.ablate)):
        for text in _caveats(data, verb, table):
            found.setdefault(text, []).append(title)
    said = [Markup("<b>{}.</b> {}").format(" and ".join(titles).capitalize(), text) for text, titles in found.items()]
    two = [t for t in (data.bench, data.ablate) if len(t)]
    if len(two) == 2 and any(set(two[0][c]) != set(two[1][c]) for c in ("protocol", "corpus_sha256", "device")):
        said.append(Markup("Bench and ablation differ in protocol, text or device: compare only within a table."))
    machines = unique(data.environments.cpu.where(data.environments.device == "cpu", data.environments.device_name))
    if len(machines) > 1:
        said.append(Markup("Measured on {} machines ({}).").format(len(machines), join_and(machines)))
    if "true" in set(data.environments.dirty.str.lower()) and not any("not committed" in text for text in found):
        said.append(Markup("Some code had changes that were not committed: the commit does not say all that ran."))
    blocks = data.speed[data.speed.error == ""]
    if blocks.disturbed.any():
        said.append(
            Markup(
                "{} of {} timed blocks were disturbed by other processes; left out where a clean one exists.{}"
            ).format(int(blocks.disturbed.sum()), len(blocks), _disturbed(blocks))
        )
    return said


def _disturbed(blocks: pd.DataFrame) -> str:
    """Which contenders have samples without an undisturbed block: their speeds are too low, and uncertain."""
    samples = blocks.groupby(["session", "label", "round"], sort=False).disturbed.all().groupby("label", sort=False)
    found = [f"{label} ({int(all_of.sum())} of {len(all_of)})" for label, all_of in samples if all_of.any()]
    return f" Samples with none, whose speed is of a busy machine: {', '.join(found)}." if found else ""


def _crossing(crossing: int, pairs: int) -> list[Markup]:
    said = "{} of {} pairs cross machines of two classes of bits: their difference is also that of the machines."
    return [Markup(said).format(count(crossing), count(pairs))] * bool(crossing)


def _caveats(data: tables.Results, verb: str, table: pd.DataFrame) -> list[Markup]:
    """Those of one table."""
    if table.empty:
        return []
    trained = select.finished(data, table)
    said = _crossing(*select.crossing(trained, table))
    dirty = set(data.environments.environment[data.environments.dirty.str.lower() == "true"])
    if changed := int(trained.environment.isin(dirty).sum()):
        said.append(
            Markup(
                "{} of {} trainings ran code with changes that were not committed: the commit does not say all that "
                "ran."
            ).format(count(changed), count(len(trained)))
        )
    base = dict(zip(data.protocols.protocol, data.protocols.name, strict=True))
    for label in unique(table.protocol):
        if base.get(label) in protocols.SHORT:
            said.append(
                Markup(
                    "The <strong>{}</strong> protocol, sized for minutes on two CPU cores: it shows which way "
                    "things lean. It is not the chapter\u2019s protocol (classic)."
                ).format(base[label])
            )
        if "," in label:
            said.append(Markup("A changed protocol: <code>{}</code>.").format(label))
    if len(unique(table.protocol)) > 1 or len(unique(table.corpus_sha256)) > 1:
        said.append(Markup("Protocols or texts are mixed: compare only rows that agree in both."))
    if any(c.startswith("embedded") for c in unique(table.corpus)):
        said.append(
            Markup(
                "<strong>Not The Time Machine</strong> but the embedded text, which the package generates for tests."
            )
        )
    if (share := table.unknown_share.max()) > 0:
        said.append(
            Markup(
                "<strong>Not every symbol is known</strong>: {} of the text are symbols that the limit on the "
                "vocabulary leaves out. Each is predicted as one unknown symbol and scored as one of all that were "
                "left out, equally likely, so that perplexities are of the whole alphabet."
            ).format(pct(100 * share))
        )
    many, pairs = select.family(table), table.pairs.dropna()
    least = grids.seeds_needed(many)
    if many and len(pairs) and pairs.max() < least:
        said.append(
            Markup(
                "<strong>Too few seeds</strong>: {} give no p below {}, and Holm over {} needs {} before any "
                "difference can count. <code>{}</code> adds what is missing."
            ).format(pluralize(pairs.max(), "pair"), f"{min(1.0, 2 / 2 ** pairs.max()):.3g}",
                     pluralize(many, "comparison"), least, shlex.join(_ask(verb, table.iloc[0], least)))
        )  # fmt: skip
    names, points = [], select.differences(data, table)
    for _, row in table.iterrows():
        if select.verdict(row) == "undecided":
            own = points.loc[points.label == select.label(row, table), "delta_nats"]
            more = stats.seeds_to_decide(own.to_numpy(), family=many) if len(own) > 1 else None
            names.append(f"{row.variant}{f' (about {more:,} more seeds would decide)' if more else ''}")
    if names:
        said.append(Markup("Undecided, which is not \u201cno difference\u201d: {}.").format("; ".join(names)))
    said += [Markup.escape(x) for x in (_past_their_best(data, table), early_stopping(table)) if x]
    counted = select.anchors(data, table).query("model == '1-gram'").heldout_perplexity
    worse = table[(table.heldout_perplexity > counted.max()) & (table.train_perplexity < counted.max())]
    if len(worse):
        said.append(
            Markup(
                "<strong>Learned by heart</strong>: {} of {} variants do worse on held-out text than counting single "
                "characters (1-gram, {}), with a mean training perplexity of {}. Held-out differences between "
                "networks that have memorised their text say little of what a gate is for."
            ).format(len(worse), int(table.heldout_perplexity.notna().sum()), ppl(float(counted.max())),
                     " to ".join(dict.fromkeys(map(ppl, (worse.train_perplexity.min(), worse.train_perplexity.max())))))
        )  # fmt: skip
    if failed := int(table.failed.fillna(0).sum()):
        text = Markup("{} failed. Failures are counted, <a href='#failures'>listed</a>, and in no mean.")
        said.append(text.format(pluralize(failed, "training")))
    return said


def _past_their_best(data: tables.Results, table: pd.DataFrame) -> Markup:
    """Variants that were better on the validation part before the last epoch, by the mean curve over seeds."""
    own = select.finished(data, table)
    known = data.protocols[data.protocols.protocol.isin(table.protocol)]
    if not (known.validation_characters > 0).any() or table.best_perplexity.notna().any():
        return Markup("")  # nothing to judge by; or the table scores each variant where it was best as well
    curves = data.curves[["run", "epoch", "heldout_perplexity"]].merge(own[["run", "label"]], on="run")
    curves = curves.dropna(subset=["heldout_perplexity"]).sort_values("epoch", kind="stable")
    found = []
    for label, rows in curves.groupby("label", sort=False):
        mean = np.exp(np.log(rows.heldout_perplexity).groupby(rows.epoch).mean())  # the least of each seed is luck too
        if mean.iloc[-1] > PAST * mean.min():
            found.append(
                f"{label} (lowest at epoch {mean.idxmin():g}, {ppl(mean.min())}; at the end, {ppl(mean.iloc[-1])}; "
                f"n = {pluralize(rows.run.nunique(), 'seed')})"
            )
    if not found:
        return Markup("")
    return Markup(
        "Past their best on the validation part by more than {} when training ended, by the mean curve: {}. Every "
        "variant was trained for as many epochs; none was stopped early."
    ).format(f"{100 * (PAST - 1):g}\u00a0%", "; ".join(found))


def early_stopping(table: pd.DataFrame) -> str:
    """Whether scoring each training where its validation loss was lowest changes a verdict; '' where nothing was."""
    known = table[table.best_perplexity.notna()]
    if known.empty:
        return ""
    compared = known[(known.verdict != "") & (known.best_verdict != "")]
    moved = compared[compared.verdict != compared.best_verdict]
    text = (
        "Each training is also scored with the weights of the epoch at which its validation loss was lowest, of fixed "
        "epochs that are the same for all. "
    )
    if compared.empty:
        return text + "There is no comparison to change."
    if moved.empty:
        return text + f"That changes none of {pluralize(len(compared), 'verdict')}."
    words = [
        f"{r.variant} is {r.verdict} at the end ({pct(percent(r.delta_nats), True)}) and {r.best_verdict} there "
        f"({pct(percent(r.best_delta_nats), True)})"
        for r in moved.itertuples()
    ]
    return text + f"That changes {len(moved)} of {pluralize(len(compared), 'verdict')}: {'; '.join(words)}."


def noise(data: tables.Results) -> list[Markup]:
    """What two equal things differ by here: the same model timed twice, and one model with other seeds."""
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
            ).format(base, session, _times(ratio), _rounds(ratio))
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


def methods(data: tables.Results) -> list[str]:
    """The paragraph to cite: what was done, with the n of this report."""
    said = []
    for title, table in (("bench", data.bench), ("ablation", data.ablate)):
        if table.empty:
            continue
        said.append(f"The {title}. {setting(data, table)}")
        text = (
            f"A perplexity is exp of the mean loss a {token_name(table.protocol)}; over seeds it is the geometric "
            "mean, with the 95 % Student t interval of the mean log-perplexity, which ends at perplexity 1, the least "
            "there is."
        )
        if table.delta_nats.notna().any():
            base, level = next(iter(unique(table.baseline)), grids.BASELINE), select.level(table)
            n, many = format_range(table.pairs.dropna()), pluralize(select.family(table), "comparison")
            text += (
                f" Differences to {base} are of log-perplexity, paired by seed (n = {n}), with a {level} % t "
                f"interval; p is the exact paired sign-flip test (sampled above {stats.EXACT_UP_TO} pairs), adjusted "
                f"by Holm over {many}. Equivalent means that the whole interval lies inside \u00b1{stats.MARGIN_NATS} "
                f"nats/{token_name(table.protocol, True)}, a margin stated before running; worse and better need p "
                f"under {stats.ALPHA} after Holm and an interval that excludes 0; everything else is undecided. The t "
                "interval and not the BCa "
                "bootstrap: for 3 to 20 "
                "seeds the latter covers 72 to 93 % where it says 95, measured (stats.py)."
            )
            looks = table.looks.max()
            if looks > 1:
                text += (
                    f" The seeds were looked at up to {count(looks)} times, at numbers fixed beforehand, and no more "
                    f"were trained once every verdict was decided: each p is multiplied by {count(looks)} and the "
                    f"intervals of differences are {select.level(table)} % ones."
                )
        rounds = table.speed_samples.dropna()
        if len(rounds):
            text += (
                f" Speed is of one seed alone, whole training steps, {format_range(rounds)} samples a variant, each a "
                "fresh process, every contender once a round in random order; median and quartiles. A ratio is the "
                "median of the rounds\u2019 ratios, with the exact interval of a median between order statistics (at "
                "least 94 %: the range of 5 to 8 rounds). Which of two is faster cannot be told where that interval "
                "holds 1, or where the median is no farther from 1 than one contender timed twice is from itself."
            )
        said.append(text)
    return said


def limits(data: tables.Results) -> list[str]:
    """What the report does not show."""
    said = []
    names = unique(pd.concat([data.bench.corpus, data.ablate.corpus]))
    unit = token_name([*data.bench.protocol, *data.ablate.protocol])
    if len(names) == 1:
        said.append(
            f"One text ({names[0]}), read {unit} by {unit}. Other texts and tasks may order variants otherwise."
        )
    for label in unique(pd.concat([data.bench.protocol, data.ablate.protocol])):
        known = data.protocols[data.protocols.protocol == label]
        if len(known):
            p = known.iloc[0]
            if p.rate == "chosen":
                rate, unfair = "a learning rate chosen for each variant from one grid", ""
            else:
                rate = f"one learning rate ({plain(p.lr)}) for every variant"
                unfair = " One that another rate would suit better is shown at a disadvantage."
                if data.questions.empty and label == QUESTIONED:
                    unfair += " `make questions` has each difference with rates chosen, two layers, another text."
            if p.match == "parameters":
                size = "one number of parameters for every variant, which then differ in hidden units"
            else:
                size = f"one size ({count(p.hidden)} hidden units), so that variants differ in parameters"
            said.append(f"{label}: {rate}, and {size}.{unfair}")
            if p.sampling == "windows":
                said.append(
                    f"{label}: every window begins from a zero state, so no gate can be of use beyond "
                    f"{count(p.num_steps)} characters."
                )
                if overlap := max(0, int(p.num_steps - p.validation_characters)):
                    said.append(
                        f"{label}: the first {count(overlap)} held-out characters also lie in the last training "
                        "windows, as in the book. The n-grams are counted and scored on the same characters."
                    )
            else:
                said.append(
                    f"{label}: the state is carried over the whole text but gradients stop at a window, so a gate that "
                    "matters over longer distances than a window can look useless here."
                )
    return said


def gate_name(cell: str, gate: str) -> str:
    return GATES[gate].name if cell == grids.BASELINE and gate in GATES else f"gate {gate}"


def _faster(one: Markup, other: Markup, ratio: speeds.SpeedRatio) -> Markup:
    """At how many times the rate of `other` `one` trains; where that cannot be told, no figure stands out."""
    if ratio.verdict == speeds.UNTOLD:
        return Markup("{} against {}: which trains faster cannot be told, {}{}").format(
            one, other, _times(ratio), _rounds(ratio)
        )
    return Markup("{} trains at <strong>{}</strong> the rate of {}{}").format(one, _times(ratio), other, _rounds(ratio))


def _engine(row: pd.Series) -> str:
    """` (engine native)` of what was written here; torch's own has no other."""
    return f" (engine {row.engine})" if row.engine and row.engine != "library" else ""


def _times(ratio: speeds.SpeedRatio) -> str:
    return f"{times(ratio.ratio)} {format_interval(ratio.low, ratio.high, lambda x: f'{x:.2f}')}".strip()


def _rounds(ratio: speeds.SpeedRatio) -> str:
    disturbed = f", {pluralize(ratio.disturbed, 'round')} of them disturbed throughout" if ratio.disturbed else ""
    return f" (n = {pluralize(ratio.rounds, 'round')}{disturbed})"
