"""One self-contained HTML file that answers, from the tables and nothing else.

Rule: it only reads. Every sentence is computed from rows that are shown below it, or left out; a number
carries its n, its interval and its unit; what is missing is said with the command that makes it. The same
tables give the same bytes. Every text from a file is escaped. No torch, no address, no clock.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from harness import draw, grid, record, stats
from harness.draw import bracket, count, mib, nats, ppl, rate

NAME = "report.html"
MOST_CSV = 900_000  # bytes of tables put inside the page, which is to stay under 3 MB; the smallest go first
LONGEST_ERROR = 2_000  # characters shown of one error
GATES = {
    "gru": {"R": "reset gate", "Z": "update gate"},
    "gru_after": {"R": "reset gate", "Z": "update gate"},
    "lstm": {"F": "forget gate", "I": "input gate", "O": "output gate"},
    "mgu": {"F": "forget gate"},
}
ROLES = {  # what the equations say, not what was found
    ("gru", "R"): "decides how much of the old state the new candidate may see",
    ("gru", "Z"): "decides how much of the old state is kept; Z = 1 keeps all of it",
}
VERDICTS = {"worse": "\u25b2", "better": "\u25bc", "equivalent": "=", "undecided": "?"}
ROW = ["variant", "engine", "capture", "precision", "device", "protocol"]
TEXTS = {
    "run", "variant", "engine", "precision", "device", "protocol", "corpus", "corpus_sha256", "baseline", "verdict",
    "speed_baseline", "error", "sample", "environment", "started", "session", "label", "model", "name", "init",
    "kernels",
}  # fmt: skip
X, DASH, MINUS, NBSP = "\u00d7", "\u2013", "\u2212", "\u00a0"


Frames = tuple[pd.DataFrame, pd.DataFrame]
Draw = Callable[..., Figure | None]
Describe = Callable[[pd.DataFrame, pd.DataFrame], str]


@dataclass(frozen=True)
class Cell:
    """`text` is read, `note` stands small under it, `key` sorts (a plain number where it is one)."""

    text: str = ""
    note: str = ""
    key: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """`heads` are (name, unit, numeric). The first cell of a row names it."""

    id: str
    caption: str
    heads: Sequence[tuple[str, str, bool]]
    rows: Sequence[Sequence[Cell]]
    foot: Sequence[Sequence[Cell]] = ()
    cards: bool = False


Numbers = tuple[str, Sequence[tuple[str, str, bool]], Sequence[Sequence[Cell]]]  # caption, heads, rows


@dataclass(frozen=True)
class Chart:
    """`images` are SVG data URIs: wide, wide dark, narrow, narrow dark. `missing` replaces them all."""

    id: str
    heading: str
    images: Sequence[str] = ()
    alt: str = ""
    caption: str = ""
    table: Table | None = None
    missing: str = ""


@dataclass(frozen=True)
class Answer:
    """A question of the first screen: the finding in a sentence, then what supports it."""

    question: str
    role: str
    finding: str
    points: Sequence[Markup]
    cost: Sequence[Markup]


def write(results: record.Results, folder: Path) -> Path:
    """The report as `folder/report.html`, whole or not at all. Returns its path."""
    path = Path(folder) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{NAME}.{os.getpid()}.tmp")
    try:
        part.write_bytes(html(results).encode("utf-8", "replace"))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def html(results: record.Results) -> str:
    """The whole page. Works for any tables missing, empty or half filled."""
    data = _typed(results)
    verbs = [(verb, table) for verb, table in (("bench", data.bench), ("ablate", data.ablate)) if len(table)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # by name it would not be: the template ends in .jinja
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["csp"] = _csp
    answers = [*gate_answers(data), *loop_answer(data)]
    return environment.get_template(f"{NAME}.jinja").render(
        title="What each gate is for, and what it costs" if len(data.ablate) else "Recurrent networks, measured",
        settings=[
            (word, brief(table)) for word, table in (("Bench", data.bench), ("Ablation", data.ablate)) if len(table)
        ],
        answers=answers,
        findings={verb: findings(data, table) for verb, table in verbs},
        caveats=caveats(data),
        sections=[_section(data, verb) for verb in ("bench", "ablate")],
        charts=[chart for verb in ("bench", "ablate") for chart in charts(data, verb)],
        samples=samples(data),
        failures=failures(data),
        noise=noise(data),
        machine=machine(data),
        methods=methods(data),
        margin=stats.MARGIN_NATS,
        limits=limits(data),
        downloads=downloads(results),
    )


# ---- sentences: each from rows, or none ----


def effect(row: pd.Series, family: int) -> Markup:
    """One row's difference to its baseline in words; nothing where there is none."""
    d, low, high = float(row.delta_nats), float(row.delta_low), float(row.delta_high)
    if not math.isfinite(d):
        return Markup("")
    bounded = math.isfinite(low) and math.isfinite(high)
    base, word = str(row.baseline) or grid.BASELINE, _verdict(row)
    cell, fixed = _fixed(row.variant)
    named = bool(fixed) and cell == base
    subject = Markup("<code>{}</code> against <code>{}</code>:").format(row.variant, base)
    if named:
        gates = " and ".join(f"the {gate_name(cell, gate)} at {value}" for gate, value in fixed)
        subject = Markup("Fixing {} (<code>{}</code>)").format(gates, row.variant)
    if word in ("worse", "better"):
        sign = 1 if word == "worse" else -1
        ends = sorted((sign * _percent(low), sign * _percent(high)))
        said = Markup("makes held-out perplexity" if named else "held-out perplexity is") + Markup(
            " <strong>{} by {}</strong> {}"
        ).format(word, pct(sign * _percent(d)), bracket(ends[0], ends[1], pct))
    else:
        size = f"{pct(_percent(d), True)} {bracket(_percent(low), _percent(high), lambda x: pct(x, True))}".strip()
        said = Markup("changes held-out perplexity by {}" if named else "held-out perplexity differs by {}").format(
            size
        )
        if word:
            said += Markup(": <strong>{}</strong>").format(word)
        if word == "equivalent":
            said += f", inside \u00b1{stats.MARGIN_NATS} nats/char"
    parts = [f"{nats(d, sign=True)} nats/char", f"n = {_n(row.pairs, 'pair')}"]
    if math.isfinite(row.p_holm):
        parts.append(f"p {p_value(row.p_holm)} Holm over {family}")
    if not bounded:
        parts.append("no interval")
    return subject + " " + said + Markup(" <span>({})</span>.").format(", ".join(parts))


def gate_answers(data: record.Results) -> list[Answer]:
    """For each gate of the baseline that was fixed: what that did, and what the gate costs."""
    table = data.ablate
    answers = []
    asked = dict.fromkeys([*GATES["gru"], *(g for v in table.variant for g, _ in _fixed(v)[1])])
    for gate in asked:
        name = gate_name(grid.BASELINE, gate)
        rows = [r for _, r in table.iterrows() if _fixed(r.variant)[0] == grid.BASELINE
                and [g for g, _ in _fixed(r.variant)[1]] == [gate]]  # fmt: skip
        if not rows and gate not in GATES["gru"]:
            continue
        answers.append(
            Answer(
                question=f"What is the {name} for?",
                role=f"{gate} {ROLES[grid.BASELINE, gate]}." if (grid.BASELINE, gate) in ROLES else "",
                finding=needed(rows) if rows else "Not measured yet: make ablate runs it.",
                points=[s for r in rows if (s := effect(r, family(table)))],
                cost=gate_cost(data, rows, gate, name),
            )
        )
    return answers


def needed(rows: Sequence[pd.Series]) -> str:
    """What the verdicts on a gate's fixed values say together, and no more than they say."""
    by: dict[str, list[str]] = {}
    for row in rows:
        by.setdefault(_verdict(row), []).append(_fixed(row.variant)[1][0][1])
    tried = sum(len(v) for v in by.values())
    worse = f" Fixed at {_or(by['worse'])} it does worse." if "worse" in by else ""
    if "better" in by:
        return f"Not needed here: fixed at {_or(by['better'])} the network does better.{worse}"
    if "equivalent" in by:
        return f"Not needed here: fixed at {_or(by['equivalent'])} the network does as well.{worse}"
    if len(by.get("worse", [])) == tried:
        return f"Needed here: {'the one fixed value' if tried == 1 else f'each of the {tried} fixed values'} is worse."
    if "undecided" in by:
        return f"Undecided: fixed at {_or(by['undecided'])}, these seeds cannot tell.{worse}"
    return f"Nothing can be said yet: too few seeds have finished.{worse}"


def gate_cost(data: record.Results, rows: Sequence[pd.Series], gate: str, name: str) -> list[Markup]:
    """What having the gate costs: parameters, speed and memory of the baseline beside the row without it."""
    own = data.ablate[data.ablate.variant == grid.BASELINE]
    usual = {"R": "1", "Z": "0"}.get(gate)  # the value at which the equations simply lose the gate
    rows = sorted(rows, key=lambda r: _fixed(r.variant)[1][0][1] != usual)
    if own.empty or not rows:
        return []
    base, row = own.iloc[0], rows[0]
    said = []
    if base.parameters > 0 and row.parameters > 0:
        said.append(
            Markup("Parameters: {} with the {}, {} without (<code>{}</code>), {} as many.").format(
                count(base.parameters),
                name,
                count(row.parameters),
                row.variant,
                times(base.parameters / row.parameters),
            )
        )
    ratio = _speed_ratio(data, data.ablate, str(row.variant), grid.BASELINE)
    if ratio:
        said.append(
            Markup("Speed: <code>{}</code> trains at <strong>{}</strong> the rate of <code>{}</code>{}.").format(
                row.variant, _times(ratio), grid.BASELINE, _rounds(ratio)
            )
        )
    if base.peak_memory_mib > 0 and row.peak_memory_mib > 0:
        n = f" (n = {_span(pd.Series([base.speed_samples, row.speed_samples]).dropna())} samples each)"
        said.append(
            Markup("Peak memory: {} MiB with, {} MiB without{}.").format(
                mib(base.peak_memory_mib), mib(row.peak_memory_mib), n if base.speed_samples > 0 else ""
            )
        )
    return said


def loop_answer(data: record.Results) -> list[Answer]:
    """How much of nn.gru's speed is the cell and how much the way it is run."""
    table = data.bench
    if table.empty:
        return []
    fast, slow, twin = grid.SPEED_BASELINE, grid.BASELINE, "gru_after"
    rows = {str(r.variant): r for _, r in table.iterrows()}
    whole = _speed_ratio(data, table, fast, slow)
    if not whole:
        return []
    engine = str(rows[slow].engine) or "loop"
    speed = f"{rate(rows[fast].tokens_per_sec)} tokens/s, " if rows[fast].tokens_per_sec > 0 else ""
    points = [
        Markup(
            "<code>{}</code> reaches {}<strong>{}</strong> the scratch <code>{}</code>{}. It is another GRU: it resets "
            "after the product and has a second bias."
        ).format(fast, speed, _times(whole), slow, _rounds(whole))
    ]
    cell, loop = _speed_ratio(data, table, twin, slow), _speed_ratio(data, table, fast, twin)
    finding = f"It trains at {times(whole.ratio)} the speed of the scratch {slow}."
    if cell and loop:
        shares = f"the cell makes {times(cell.ratio)} and the way it is run {times(loop.ratio)}"
        finding = f"Of its {times(whole.ratio)}, {shares}."
        points += [
            Markup(
                "The cell: <code>{}</code>, the same equations as <code>{}</code> run like <code>{}</code> "
                "(engine {}), reaches {} the rate of <code>{}</code>{}."
            ).format(twin, fast, slow, engine, _times(cell), slow, _rounds(cell)),
            Markup("The way it is run: <code>{}</code> reaches {} the rate of <code>{}</code>{}.").format(
                fast, _times(loop), twin, _rounds(loop)
            ),
        ]
    quality = effect(rows[fast], family(table)) if str(rows[fast].baseline) == slow else Markup("")
    return [
        Answer(
            question=f"Why is {fast} faster?" if whole.low > 1 else f"How fast is {fast}?",
            role="Torch\u2019s own GRU beside the one written from its equations.",
            finding=finding, points=[*points, *([quality] if quality else [])], cost=[],
        )
    ]  # fmt: skip


def findings(data: record.Results, table: pd.DataFrame) -> list[Markup]:
    """Every comparison of a table, after its best variant and what counting characters achieves."""
    said = []
    known = table.dropna(subset=["heldout_perplexity"])
    if len(known):
        best = known.loc[known.heldout_perplexity.idxmin()]
        said.append(
            Markup("Lowest held-out perplexity: <code>{}</code>, <strong>{}</strong> {} (n = {}).").format(
                best.variant, ppl(best.heldout_perplexity), bracket(best.heldout_low, best.heldout_high, ppl),
                _n(best.seeds, "seed"),
            )
        )  # fmt: skip
    if anchor := anchor_sentence(data, table):
        said.append(anchor)
    said += [s for _, row in table.iterrows() if (s := effect(row, family(table)))]
    return said


def anchor_sentence(data: record.Results, table: pd.DataFrame) -> Markup:
    """What an n-gram reaches on the split of this table, and how many variants are below it."""
    anchors = _anchors(data, table)
    best = draw.best_ngram(anchors)
    if not best:
        return Markup("")
    known = table.heldout_perplexity.dropna()
    below = int((known < best[1]).sum())
    said = Markup("On the same split a {}, which only counts characters, reaches <strong>{}</strong>").format(
        best[0], ppl(best[1])
    )
    if len(known) and not below:
        said += Markup(": every network here is worse than it")
    elif len(known):
        said += Markup(": {} of {} networks are below it").format(below, len(known))
    floor = anchors.loc[anchors.model == "floor", "heldout_perplexity"].dropna()
    if len(floor):
        said += Markup(". The source\u2019s floor is {}: no model can go lower").format(ppl(float(floor.iloc[0])))
    return said + Markup(".")


def brief(table: pd.DataFrame) -> str:
    """The setting in a line."""
    parts = [f"protocol {' and '.join(_unique(table.protocol))}", *_unique(table.corpus), *_unique(table.device)]
    return ", ".join([*parts, _seeds(table)])


def setting(data: record.Results, table: pd.DataFrame) -> str:
    """What was run: protocol, text, device, seeds."""
    parts = []
    for label in _unique(table.protocol):
        known = data.protocols[data.protocols.protocol == label]
        text = f"Protocol {label}"
        if len(known):
            p = known.iloc[0]
            text += (
                f": {count(p.train_characters)} characters to learn from, the next {count(p.heldout_characters)} held "
                f"out; {count(p.hidden)} hidden units, {count(p.epochs)} epochs, batch {count(p.batch_size)}, "
                f"{count(p.num_steps)} steps, SGD at learning rate {_g(p.lr)}, gradient norm at most {_g(p['clip'])}, "
                f"initial values \u201c{p.init}\u201d"
            )
        parts.append(text)
    shas = _unique(table.corpus_sha256)
    parts.append("Text: " + ", ".join(_unique(table.corpus)) + (f" (SHA-256 {shas[0][:12]})" if len(shas) == 1 else ""))
    parts.append("Device: " + ", ".join(_unique(table.device)))
    parts.append(_seeds(table))
    return ". ".join(p for p in parts if not p.endswith(": ")) + "."


def caveats(data: record.Results) -> list[Markup]:
    """What a reader must know before believing the above; one line for both tables where both share it."""
    found: dict[Markup, list[str]] = {}
    for verb, title, table in (("bench", "Bench", data.bench), ("ablate", "Ablation", data.ablate)):
        for text in _caveats(data, verb, table):
            found.setdefault(text, []).append(title)
    said = [Markup("<b>{}.</b> {}").format(" and ".join(titles).capitalize(), text) for text, titles in found.items()]
    both = [t for t in (data.bench, data.ablate) if len(t)]
    if len(both) == 2 and any(set(both[0][c]) != set(both[1][c]) for c in ("protocol", "corpus_sha256", "device")):
        said.append(Markup("Bench and ablation differ in protocol, text or device: compare only within a table."))
    if "true" in set(data.environments.dirty.str.lower()):
        said.append(Markup("The code had changes that were not committed: the commit does not say all that ran."))
    blocks = data.speed[data.speed.error == ""]
    if blocks.disturbed.any():
        said.append(
            Markup(
                "{} of {} timed blocks were disturbed by other processes; left out where a clean one exists."
            ).format(int(blocks.disturbed.sum()), len(blocks))
        )
    return said


def _caveats(data: record.Results, verb: str, table: pd.DataFrame) -> list[Markup]:
    """Those of one table."""
    if table.empty:
        return [Markup("Not run, or its table is missing: <code>make {}</code> makes it.").format(verb)]
    said = []
    for label in _unique(table.protocol):
        if label.split(",")[0] == "quick":
            said.append(
                Markup(
                    "The <strong>quick</strong> protocol, sized for minutes on two CPU cores: it shows which way "
                    "things lean. It is not the chapter\u2019s protocol (classic)."
                )
            )
        if "," in label:
            said.append(Markup("A changed protocol: <code>{}</code>.").format(label))
    if len(_unique(table.protocol)) > 1 or len(_unique(table.corpus_sha256)) > 1:
        said.append(Markup("Protocols or texts are mixed: compare only rows that agree in both."))
    if any(c.startswith("embedded") for c in _unique(table.corpus)):
        said.append(
            Markup(
                "<strong>Not The Time Machine</strong> but the embedded text, which the package generates: it was "
                "asked for, or the book was neither in the cache nor to be had from the network."
            )
        )
    many, pairs = family(table), table.pairs.dropna()
    least = grid.seeds_needed(many)
    if many and len(pairs) and pairs.max() < least:
        said.append(
            Markup(
                "<strong>Too few seeds</strong>: {} give no p below {}, and Holm over {} needs {} before any "
                "difference can count. <code>python -m harness {} --seeds {}</code> adds what is missing."
            ).format(_n(pairs.max(), "pair"), f"{min(1.0, 2 / 2 ** pairs.max()):.3g}", _n(many, "comparison"), least,
                     verb, least)
        )  # fmt: skip
    names, points = [], differences(data, table)
    for _, row in table.iterrows():
        if _verdict(row) == "undecided":
            own = points.loc[points.label == _label(row, table), "delta_nats"]
            more = stats.seeds_to_decide(own.to_numpy(), family=many) if len(own) > 1 else None
            names.append(f"{row.variant}{f' (about {more:,} more seeds would decide)' if more else ''}")
    if names:
        said.append(Markup("Undecided, which is not \u201cno difference\u201d: {}.").format("; ".join(names)))
    if failed := int(table.failed.fillna(0).sum()):
        text = Markup("{} failed. Failures are counted, <a href='#failures'>listed</a>, and in no mean.")
        said.append(text.format(_n(failed, "training")))
    return said


def noise(data: record.Results) -> list[Markup]:
    """What two equal things differ by here: the same model timed twice, and one model with other seeds."""
    said = []
    for session in _unique(data.speed.session):
        here = data.speed[data.speed.session == session]
        for twin in [label for label in _unique(here.label) if "#" in label]:
            base = twin.rpartition("#")[0]
            ratio = stats.speed_ratio(here, twin, base)
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
    for title, table in (("bench", data.bench), ("ablation", data.ablate)):
        own = _finished(data, table)
        logs = np.log(own.loc[own.variant == grid.BASELINE, "heldout_perplexity"].to_numpy(dtype=float))
        if len(logs) > 1:
            said.append(
                Markup(
                    "Between seeds, the log of the held-out perplexity of <code>{}</code> has a standard deviation "
                    "of {} nats/char (n = {} seeds, {})."
                ).format(grid.BASELINE, nats(float(logs.std(ddof=1))), len(logs), title)
            )
    return said


def methods(data: record.Results) -> list[str]:
    """The paragraph to cite: what was done, with the n of this report."""
    said = []
    for title, table in (("bench", data.bench), ("ablation", data.ablate)):
        if table.empty:
            continue
        said.append(f"The {title}. {setting(data, table)}")
        text = (
            "A perplexity is exp of the mean loss a character; over seeds it is the geometric mean, with the 95 % "
            "Student t interval of the mean log-perplexity."
        )
        if table.delta_nats.notna().any():
            base = next(iter(_unique(table.baseline)), grid.BASELINE)
            n, many = _span(table.pairs.dropna()), _n(family(table), "comparison")
            text += (
                f" Differences to {base} are of log-perplexity, paired by seed (n = {n}), with a 95 % t interval; p "
                f"is the exact paired sign-flip test (sampled above {stats.EXACT_UP_TO} pairs), adjusted by Holm over "
                f"{many}. Equivalent means that the whole interval lies inside \u00b1{stats.MARGIN_NATS} nats/char, a "
                f"margin stated before running; worse and better need p under {stats.ALPHA} after Holm and an interval "
                "that excludes 0; everything else is undecided."
            )
        rounds = table.speed_samples.dropna()
        if len(rounds):
            text += (
                f" Speed is of one seed alone, whole training steps, {_span(rounds)} samples a variant, each a fresh "
                "process, every contender once a round in random order; median and quartiles, ratios paired by round "
                "(geometric mean, 95 % t interval)."
            )
        said.append(text)
    return said


def limits(data: record.Results) -> list[str]:
    """What the report does not show."""
    said = []
    names = _unique(pd.concat([data.bench.corpus, data.ablate.corpus]))
    if len(names) == 1:
        said.append(
            f"One text ({names[0]}), read character by character. Other texts and tasks may order variants otherwise."
        )
    for label in _unique(pd.concat([data.bench.protocol, data.ablate.protocol])):
        known = data.protocols[data.protocols.protocol == label]
        if len(known):
            p = known.iloc[0]
            said.append(
                f"{label}: one learning rate ({_g(p.lr)}) and one size ({count(p.hidden)} hidden units) for every "
                "variant. One that another rate would suit better is shown at a disadvantage, and variants differ in "
                "parameters."
            )
    return said


# ---- tables ----


def _section(data: record.Results, verb: str) -> dict[str, object]:
    table = data.bench if verb == "bench" else data.ablate
    title = {"bench": "Bench: the variants side by side", "ablate": "Ablation: one gate held fixed at a time"}[verb]
    if table.empty:
        missing = f"There is no {verb}.csv here, or it has no rows. make {verb} runs it and draws this page again."
        return {"verb": verb, "title": title, "missing": missing}
    return {
        "verb": verb, "title": title, "missing": "", "setting": setting(data, table),
        "table": main_table(data, verb, table),
        "anchors": anchor_line(data, table), "sentence": anchor_sentence(data, table),
        "commands": [(_label(row, table), command(verb, row)) for _, row in table.iterrows()],
    }  # fmt: skip


def main_table(data: record.Results, verb: str, table: pd.DataFrame) -> Table:
    """The table that answers; a column that no row fills and that is not of its core is left out."""
    word = "bench" if verb == "bench" else "ablation"
    base = next(iter(_unique(table.baseline)), grid.BASELINE)
    fast = next(iter(_unique(table.speed_baseline)), grid.SPEED_BASELINE)
    columns: list[tuple[str, str, bool, bool, Callable[[pd.Series], Cell]]] = [
        ("variant", "engine", False, True, lambda r: Cell(r.variant, _how(r), f"{r.variant} {_how(r)}")),
        ("held-out perplexity", "mean [95 %]", True, True, _heldout),
        (f"difference to {base}", "% [95 %], nats/char", True, True, _delta),
        ("verdict", "p after Holm", False, True, _verdict_cell),
        ("training perplexity", "mean, sd", True, True, _train),
        ("parameters", "", True, True, lambda r: _plain(r.parameters, count)),
        ("tokens/s", "median [quartiles]", True, True, _rate),
        (f"speed vs {fast}", "ratio [95 %]", True, False, _ratio),
        ("step (ms)", "median", True, True, lambda r: _plain(r.step_ms, lambda x: f"{x:.2f}" if x < 10 else mib(x))),
        ("peak memory (MiB)", "one seed", True, True, _memory),
        ("all seeds, tokens/s", "sum of all trained together", True, False,
         lambda r: _plain(r.tokens_per_sec_all_seeds, rate)),
        ("failed", "of those started", True, False, _failed),
    ]  # fmt: skip
    built = [[make(row) for *_, make in columns] for _, row in table.iterrows()]
    keep = [i for i, (*_, core, _make) in enumerate(columns) if core or any(row[i].text for row in built)]
    anchors = _anchors(data, table)
    best, foot = draw.best_ngram(anchors), []
    if best:
        foot.append((best[0], "counting, no network", best[1]))
    foot += [("floor", "no model can go lower", float(v)) for v in
             anchors.loc[anchors.model == "floor", "heldout_perplexity"].dropna()]  # fmt: skip
    return Table(
        id=verb, cards=True, heads=[(columns[i][0], columns[i][1], columns[i][2]) for i in keep],
        caption=f"The {word}, a row a variant: {_seeds(table)}.", rows=[[row[i] for i in keep] for row in built],
        foot=[[Cell(name, note), Cell(ppl(v), "same split"), *[Cell()] * (len(keep) - 2)] for name, note, v in foot],
    )  # fmt: skip


def _heldout(r: pd.Series) -> Cell:
    if not math.isfinite(r.heldout_perplexity):
        return Cell("failed" if r.failed > 0 else "", f"{count(r.failed)} of {count(r.failed)}" if r.failed > 0 else "")
    bounds = bracket(r.heldout_low, r.heldout_high, ppl) or "no interval"
    return Cell(ppl(r.heldout_perplexity), f"{bounds}\nn = {count(r.seeds)}", _g(r.heldout_perplexity))


def _delta(r: pd.Series) -> Cell:
    if not math.isfinite(r.delta_nats):
        return Cell()
    bounds = bracket(_percent(r.delta_low), _percent(r.delta_high), lambda x: pct(x, True)) or "no interval"
    note = f"{bounds}\n{nats(r.delta_nats, sign=True)} nats, n = {count(r.pairs)}"
    return Cell(pct(_percent(r.delta_nats), True), note, _g(r.delta_nats))


def _verdict_cell(r: pd.Series) -> Cell:
    word = _verdict(r)
    p = f"p {p_value(r.p_holm)}" if math.isfinite(r.p_holm) else ""
    return Cell(f"{VERDICTS[word]} {word}" if word else "", p, word, word)


def _train(r: pd.Series) -> Cell:
    if not math.isfinite(r.train_perplexity):
        return Cell()
    sd = f"sd {_sd(r.train_sd)}\n" if math.isfinite(r.train_sd) else ""
    return Cell(ppl(r.train_perplexity), f"{sd}n = {count(r.seeds)}", _g(r.train_perplexity))


def _rate(r: pd.Series) -> Cell:
    if not math.isfinite(r.tokens_per_sec):
        return Cell()
    bounds = bracket(r.tokens_per_sec_q1, r.tokens_per_sec_q3, rate) or "no quartiles"
    n = f"\nn = {count(r.speed_samples)}" if math.isfinite(r.speed_samples) else ""
    return Cell(rate(r.tokens_per_sec), bounds + n, _g(r.tokens_per_sec))


def _ratio(r: pd.Series) -> Cell:
    if not math.isfinite(r.speed_ratio):
        return Cell()
    bounds = bracket(r.speed_ratio_low, r.speed_ratio_high, lambda x: f"{x:.2f}") or "no interval"
    return Cell(times(r.speed_ratio), bounds, _g(r.speed_ratio))


def _memory(r: pd.Series) -> Cell:
    note = f"reserved {mib(r.peak_reserved_mib)}" if math.isfinite(r.peak_reserved_mib) else ""
    return Cell(mib(r.peak_memory_mib), note, _g(r.peak_memory_mib))


def _failed(r: pd.Series) -> Cell:
    if not r.failed > 0:
        return Cell("", "", "0")
    return Cell(f"{count(r.failed)} of {count(r.failed + np.nan_to_num(r.seeds))}", "", _g(r.failed))


def _plain(value: float, spell: Callable[[float], str]) -> Cell:
    return Cell(spell(value), "", _g(value)) if math.isfinite(value) else Cell()


def anchor_line(data: record.Results, table: pd.DataFrame) -> str:
    """Every anchor of the split of this table."""
    rows = _anchors(data, table).dropna(subset=["heldout_perplexity"])
    return ", ".join(f"{r.model} {ppl(float(r.heldout_perplexity))}" for _, r in rows.iterrows())


def command(verb: str, row: pd.Series) -> str:
    """What makes this row again, its baseline included, to be typed at a shell."""
    name, *changes = str(row.protocol).split(",")
    words = ["python", "-m", "harness", verb]
    words += ["--protocol", name] if name else []
    for change in changes:
        words += ["--set", change]
    words += ["--corpus", str(row.corpus).split(" ")[0] if str(row.corpus).startswith("embedded") else str(row.corpus)]
    words += ["--device", str(row.device)] if row.device else []
    total = np.nan_to_num(row.seeds) + np.nan_to_num(row.failed)
    words += ["--seeds", str(int(total))] if total else []
    return shlex.join([*words, "--variants", *dict.fromkeys([*([row.baseline] if row.baseline else []), row.variant])])


# ---- charts ----


def charts(data: record.Results, verb: str) -> list[Chart]:
    """Those of one table. What has no data says which command makes it."""
    table = data.bench if verb == "bench" else data.ablate
    word = "bench" if verb == "bench" else "ablation"
    if table.empty:
        missing = f"No {verb}.csv, so no charts of the {word}: make {verb} runs it."
        return [Chart(f"{verb}-charts", f"Charts of the {word}", missing=missing)]
    labelled = table.assign(label=[_label(row, table) for _, row in table.iterrows()])
    anchors, own, timed = _anchors(data, table), _finished(data, table), speed_samples(data, table)
    names = own[["run", "label"]].drop_duplicates("run")
    curves = data.curves[data.curves.run != ""].drop(columns=["variant"]).merge(names, on="run")
    curves = curves.assign(order=curves.label.map({x: i for i, x in enumerate(dict.fromkeys(labelled.label))}))
    curves = curves.sort_values(["order", "seed", "tokens"], kind="stable")
    points = differences(data, table)
    effects = "What does fixing a gate do to held-out perplexity" if verb == "ablate" else "How far is each from gru"
    rates, peaks = _samples_table(timed, "tokens_per_sec", rate), _samples_table(timed, "peak_memory_mib", mib)
    made: list[tuple[str, str, Draw, Describe, Frames, Numbers, str]] = [
        ("effects", effects, draw.gate_effects, draw.gate_effects_alt, (labelled, points),
         _effects_table(labelled, points), "no difference to the baseline is known"),
        ("curves", "How does perplexity fall in training", draw.learning_curves, draw.learning_curves_alt,
         (curves, anchors), _curves_table(curves), "curves.csv has no evaluation of a finished training of this table"),
        ("trade", "Which variants are both good and fast", draw.perplexity_speed, draw.perplexity_speed_alt,
         (labelled, anchors), _trade_table(labelled), "no variant has both a perplexity and a speed"),
        ("speed", "How fast does each train", draw.speed, draw.speed_alt, (timed, labelled), rates,
         "no variant has been timed"),
        ("memory", "How much memory does each need", draw.memory, draw.memory_alt, (timed, labelled), peaks,
         "no variant has a memory figure"),
    ]  # fmt: skip
    out = []
    for name, question, figure, alt, frames, numbers, lack in made:
        heading = f"{question}? ({word})"
        text = alt(*frames)
        if not text:
            out.append(Chart(f"{verb}-{name}", heading, missing=f"Nothing to draw: {lack}. make {verb} measures it."))
            continue
        images = []
        for width in (draw.WIDE, draw.NARROW):
            picture = figure(*frames, width=width)
            drawn = draw.svg(picture) if picture else ""
            images += [_svg_uri(drawn), _svg_uri(draw.darken(drawn))]
        caption = " ".join((figure.__doc__ or "").split())
        cut = f" The first {draw.MOST} of {len(table)} are drawn." if len(table) > draw.MOST else ""
        out.append(
            Chart(f"{verb}-{name}", heading, images, text, caption + cut, Table(f"{verb}-{name}-data", *numbers))
        )
    return out


def _effects_table(table: pd.DataFrame, points: pd.DataFrame) -> Numbers:
    rows = []
    for _, r in table.dropna(subset=["delta_nats"]).iterrows():
        own = points[points.label == r.label].sort_values("seed")
        each = ", ".join(f"{count(s)}: {nats(d, sign=True)}" for s, d in zip(own.seed, own.delta_nats, strict=True))
        bounds = bracket(r.delta_low, r.delta_high, nats)
        rows.append([Cell(r.label), Cell(nats(r.delta_nats, sign=True)), Cell(bounds), Cell(count(r.pairs)),
                     Cell(_verdict(r)), Cell(each)])  # fmt: skip
    heads = [("variant", "", False), ("difference", "nats/char", True), ("95 % interval", "", True),
             ("pairs", "", True), ("verdict", "", False), ("each seed", "seed: nats/char", False)]  # fmt: skip
    return "Difference to the baseline", heads, rows


def _curves_table(curves: pd.DataFrame) -> Numbers:
    rows = []
    for label, own in curves.dropna(subset=["heldout_perplexity"]).groupby("label", sort=False):
        held, train = draw.over_seeds(own, "heldout_perplexity"), draw.over_seeds(own, "train_perplexity")
        n = own.groupby("tokens").seed.nunique()
        for tokens, r in held.iterrows():
            seen = float(str(tokens))
            rows.append([Cell(str(label)), Cell(count(seen)), Cell(ppl(r["mean"])), Cell(bracket(r.low, r.high, ppl)),
                         Cell(ppl(train["mean"].get(seen, math.nan))), Cell(count(n[seen]))])  # fmt: skip
    heads = [("variant", "", False), ("characters seen", "", True), ("held-out perplexity", "", True),
             ("95 % interval", "", True), ("training perplexity", "", True), ("seeds", "", True)]  # fmt: skip
    return "Perplexity at each evaluation, mean over seeds", heads, rows


def _trade_table(table: pd.DataFrame) -> Numbers:
    rows = [
        [Cell(r.label), Cell(ppl(r.heldout_perplexity)), Cell(bracket(r.heldout_low, r.heldout_high, ppl)),
         Cell(rate(r.tokens_per_sec)), Cell(bracket(r.tokens_per_sec_q1, r.tokens_per_sec_q3, rate))]
        for _, r in table.dropna(subset=["heldout_perplexity", "tokens_per_sec"]).iterrows()
    ]  # fmt: skip
    heads = [("variant", "", False), ("held-out perplexity", "", True), ("95 % interval", "", True),
             ("tokens/s", "median", True), ("quartiles", "", True)]  # fmt: skip
    return "Perplexity and speed", heads, rows


def _samples_table(timed: pd.DataFrame, column: str, spell: Callable[[float], str]) -> Numbers:
    rows, unit = [], {"tokens_per_sec": "tokens/s", "peak_memory_mib": "MiB"}[column]
    for label, own in timed.dropna(subset=[column]).groupby("label", sort=False):
        each = ", ".join(spell(float(v)) for v in own.sort_values("round")[column])
        rows.append([Cell(str(label)), Cell(str(len(own))), Cell(each)])
    return f"Every sample, {unit}", [("variant", "", False), ("n", "", True), ("each sample", unit, False)], rows


def differences(data: record.Results, table: pd.DataFrame) -> pd.DataFrame:
    """label, seed, delta_nats: each pair behind a row of the table.

    Only where their mean is the table's: points of other runs beside a mean would be worse than none.
    """
    own = _finished(data, table)
    own = own.assign(logs=np.log(own.heldout_perplexity.to_numpy(dtype=float)))
    found = []
    for _, row in table.dropna(subset=["delta_nats"]).iterrows():
        mine = own[own.label == _label(row, table)].set_index("seed").logs
        for _, group in own[own.variant == row.baseline].groupby("label"):
            pairs = (mine - group.set_index("seed").logs).dropna()
            if len(pairs) == row.pairs and abs(float(pairs.mean()) - row.delta_nats) < 1e-6:
                found.append(
                    pd.DataFrame({"label": _label(row, table), "seed": pairs.index, "delta_nats": pairs.values})
                )
                break
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["label", "seed", "delta_nats"])


def speed_samples(data: record.Results, table: pd.DataFrame) -> pd.DataFrame:
    """label, round, tokens_per_sec, peak_memory_mib: a row a fresh process, of the session the table was made from."""
    speed = data.speed[(data.speed.error == "") & ~data.speed.label.str.contains("#") & ~(data.speed.seeds > 1)]
    found = []
    for _, row in table.dropna(subset=["tokens_per_sec"]).iterrows():
        mine = speed[np.logical_and.reduce([speed[c] == row[c] for c in ROW])]
        for _, session in mine.groupby(["session", "environment", "label"]):
            clean = session.groupby("round").disturbed.transform(lambda d: d.all() | ~d)
            each = session[clean].groupby("round").agg(
                tokens_per_sec=("tokens_per_sec", "median"), peak_memory_mib=("peak_memory_mib", "max")
            )  # fmt: skip
            if math.isclose(each.tokens_per_sec.median(), row.tokens_per_sec, rel_tol=1e-6):
                found.append(each.reset_index().assign(label=_label(row, table)))
                break
    columns = ["label", "round", "tokens_per_sec", "peak_memory_mib"]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns, dtype=float)


# ---- the rest of the page ----


def samples(data: record.Results) -> list[tuple[str, str, str]]:
    """(label, what, 50 characters after `time traveller`): of each variant's lowest finished seed."""
    out: dict[tuple[str, str], tuple[str, str, str]] = {}
    for table in (data.bench, data.ablate):
        own = _finished(data, table)
        for label, rows in own[own["sample"] != ""].sort_values("seed").groupby("label", sort=False):
            row = rows.iloc[0]
            text = str(row["sample"])
            text = text.removeprefix("time traveller")
            out.setdefault(
                (str(label), str(row.protocol)), (str(label), f"seed {count(row.seed)}, {row.protocol}", text[:60])
            )
    return list(out.values())


def failures(data: record.Results) -> list[tuple[str, str, str]]:
    """(what, where, error): every failed training and timing, equal errors of one variant together."""
    out = []
    runs = data.runs[data.runs.error != ""]
    for (variant, engine, label, error), rows in runs.groupby(["variant", "engine", "protocol", "error"], sort=False):
        seeds = ", ".join(count(s) for s in sorted(rows.seed.dropna()))
        keys = ", ".join(_unique(rows.run))
        out.append(
            (
                f"{variant} ({engine or 'no engine'})",
                f"training, {label}, seed {seeds or 'unknown'}; {keys}",
                _cut(error),
            )
        )
    timed = data.speed[data.speed.error != ""]
    for (label, session, error), rows in timed.groupby(["label", "session", "error"], sort=False):
        out.append((str(label), f"timing, session {session}, {_n(len(rows), 'block')}", _cut(error)))
    named = set(runs.variant) | set(timed.variant)
    for table in (data.bench, data.ablate):
        for _, row in table[(table.error != "") & ~table.variant.isin(named)].iterrows():
            out.append((str(row.variant), f"{count(row.failed)} failed", _cut(row.error)))
    return out


def machine(data: record.Results) -> Table | None:
    """environments.csv on its side: a line a fact, a column a machine."""
    rows = data.environments
    if rows.empty:
        return None
    facts = [c for c in rows if c != "environment" and (rows[c].astype(str) != "").any()]
    heads = [("", "", False), *[(str(e) or "unnamed", "", False) for e in rows.environment]]
    return Table("machine", "Where it ran", heads, [[Cell(c), *[Cell(str(v)) for v in rows[c]]] for c in facts])


def downloads(results: record.Results) -> list[tuple[str, int, str]]:
    """(file, rows, data URI): the tables as they were read; without a URI where too large for one page."""
    raw = {}
    for name in record.COLUMNS:
        frame = getattr(results, name)
        if len(frame):
            raw[name] = (len(frame), frame.to_csv(index=False, lineterminator="\n").encode("utf-8", "replace"))
    inside, room = set(), MOST_CSV
    for name, (_, text) in sorted(raw.items(), key=lambda item: len(item[1][1])):
        if len(text) <= room:
            inside.add(name)
            room -= len(text)
    head = "data:text/csv;charset=utf-8;base64,"
    return [
        (f"{name}.csv", rows, head + base64.b64encode(text).decode() if name in inside else "")
        for name, (rows, text) in raw.items()
    ]


# ---- small parts ----


def family(table: pd.DataFrame) -> int:
    """How many comparisons Holm counted: read off the smallest p where it can be, else every other variant."""
    both = table.dropna(subset=["p_holm", "p_signflip"])
    if len(both):
        least = both.loc[both.p_signflip.idxmin()]
        if least.p_signflip > 0 and least.p_holm < 1:
            return round(float(least.p_holm) / float(least.p_signflip))
    return max(len(set(table.variant) - {grid.BASELINE}), len(both))


def gate_name(cell: str, gate: str) -> str:
    return GATES.get(cell, {}).get(gate, f"gate {gate}")


def pct(x: float, sign: bool = False) -> str:
    if not math.isfinite(x):
        return ""
    digits = 1 if abs(x) < 99.95 else 0
    text = f"{x:{'+' if sign else ''},.{digits}f}".replace("-", MINUS)
    return f"{text}{NBSP}%"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"


def times(x: float) -> str:
    return f"{x:.2f}{X}" if x < 99.5 else f"{x:,.0f}{X}"


def _times(ratio: stats.SpeedRatio) -> str:
    return f"{times(ratio.ratio)} {bracket(ratio.low, ratio.high, lambda x: f'{x:.2f}')}".strip()


def _rounds(ratio: stats.SpeedRatio) -> str:
    return f" (n = {_n(ratio.rounds, 'round')})"


def _speed_ratio(data: record.Results, table: pd.DataFrame, one: str, other: str) -> stats.SpeedRatio | None:
    """Of two variants of a table with one row each, in one precision, in a session that holds both."""
    rows = table[table.variant.isin([one, other])].dropna(subset=["tokens_per_sec"])
    if sorted(rows.variant) != sorted([one, other]) or rows.precision.nunique() > 1:
        return None
    speed = data.speed[data.speed.protocol.isin(rows.protocol) & data.speed.device.isin(rows.device)]
    if not {one, other} <= set(speed.label):
        return None
    ratio = stats.speed_ratio(speed[~(speed.seeds > 1)], one, other)
    return ratio if ratio.rounds else None


def _fixed(variant: object) -> tuple[str, list[tuple[str, str]]]:
    """`gru:R=1,Z=0` -> ("gru", [("R", "1"), ("Z", "0")])."""
    cell, _, rest = str(variant).partition(":")
    return cell, re.findall(r"(\w+)=([^,]+)", rest)


def _verdict(row: pd.Series) -> str:
    """The table's word, if it is one, and if the sign of its own difference agrees."""
    word, d = str(row.verdict), float(row.delta_nats)
    if word not in VERDICTS or not math.isfinite(d) or (word == "worse" and d <= 0) or (word == "better" and d >= 0):
        return ""
    return word


def _finished(data: record.Results, table: pd.DataFrame) -> pd.DataFrame:
    """Trainings behind the rows of a table that ended well, one a row and seed, with that row's `label`."""
    keys = [*ROW, "corpus_sha256"]
    names = table.assign(label=[_label(row, table) for _, row in table.iterrows()])[[*keys, "label"]]
    runs = data.runs[(data.runs.error == "") & (data.runs.heldout_perplexity > 0)].merge(names, on=keys)
    return runs.sort_values(["started", "run"], kind="stable").drop_duplicates(["label", "seed"], keep="last")


def _label(row: pd.Series, table: pd.DataFrame) -> str:
    """The variant, and how it was run where the table has it more than once."""
    return str(row.variant) if (table.variant == row.variant).sum() == 1 else f"{row.variant} {_how(row)}"


def _how(row: pd.Series) -> str:
    parts = [str(row.engine), "captured" if row.capture else "", str(row.precision) if row.precision != "ieee" else ""]
    return ", ".join(p for p in parts if p)


def _anchors(data: record.Results, table: pd.DataFrame) -> pd.DataFrame:
    if table.empty:
        return data.anchors.iloc[:0]
    first = table.iloc[0]
    return data.anchors[(data.anchors.protocol == first.protocol) & (data.anchors.corpus_sha256 == first.corpus_sha256)]


def _seeds(table: pd.DataFrame) -> str:
    text = f"{_span(table.seeds[table.seeds > 0])} finished seeds a variant"
    failed = int(table.failed.fillna(0).sum())
    return text + (f", {_n(failed, 'training')} failed" if failed else "")


def _n(n: float, noun: str) -> str:
    return f"{count(n)} {noun}{'' if n == 1 else 's'}"


def _span(values: pd.Series) -> str:
    if values.empty:
        return "0"
    low, high = count(values.min()), count(values.max())
    return low if low == high else f"{low} to {high}"


def _unique(values: Iterable[object]) -> list[str]:
    return [text for text in dict.fromkeys(str(v) for v in values) if text]


def _or(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else ", ".join(values[:-1]) + " or " + values[-1]


def _percent(delta: float) -> float:
    return 100 * math.expm1(min(delta, 50.0))


def _g(x: float) -> str:
    return f"{x:.10g}" if math.isfinite(x) else ""


def _sd(x: float) -> str:
    return f"{x:.2f}" if x >= 0.1 or x == 0 else f"{x:.1g}"


def _cut(error: object) -> str:
    text = str(error)
    more = len(text) - LONGEST_ERROR
    return text if more <= 0 else f"{text[:LONGEST_ERROR]} ... ({more:,} more characters in the CSV)"


def _svg_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode("utf-8", "replace")).decode()


def _csp(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode()


def _typed(results: record.Results) -> record.Results:
    """Every column there, texts as text ('' for missing), numbers finite or NaN: pandas guesses from what it sees."""
    frames = {}
    for name, columns in record.COLUMNS.items():
        frame = getattr(results, name).reindex(columns=list(columns))
        for column in columns:
            values = frame[column]
            if column in {"capture", "disturbed"}:
                frame[column] = values.astype(str).str.lower().isin(["true", "1", "1.0"])
            elif column in TEXTS or name == "environments":
                frame[column] = values.astype(object).where(values.notna(), "").astype(str)
            else:
                numbers = pd.to_numeric(values.astype(object), errors="coerce").astype(np.float64)
                frame[column] = numbers.where(np.isfinite(numbers))
        for column in {"train_perplexity", "heldout_perplexity", "tokens_per_sec", "peak_memory_mib"} & set(columns):
            frame[column] = frame[column].where(frame[column] > 0)  # all are drawn or divided by
        frames[name] = frame.reset_index(drop=True)
    return record.Results(**frames)
