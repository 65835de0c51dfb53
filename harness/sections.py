"""The further sections of the page: what was published, learning rates, probes, inside the gates.

Rule: as report.py. A section whose table has no rows is left out; every sentence is computed from the rows below it.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
from markupsafe import Markup

from harness import draw, evidence, grid, record, stats
from harness.spell import bracket, compact, count, plain, ppl, score, several, span
from harness.tables import Cell, Numbers, Table

BACK = 16  # characters, of the sentence on gradients

# id, heading, figure, its words, frames, and its numbers where the section's own table has them not
Picture = tuple[str, str, draw.Draw, draw.Describe, tuple[pd.DataFrame, ...], Numbers | None]


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


def sections(data: record.Results) -> list[Section]:
    """Those that have something to show."""
    return [s for s in (published(data), rates(data), probes(data), gates(data)) if s]


def published(data: record.Results) -> Section | None:
    """The book's own figures beside ours."""
    rows = data.reproduce
    if rows.empty:
        return None
    cells, outside = [], []
    for r in rows.itertuples():
        ours = Cell()
        if math.isfinite(r.perplexity):
            spread = f"sd {r.sd:.3f}\n" if math.isfinite(r.sd) else ""
            ours = Cell(ppl(r.perplexity), f"{spread}n = {several(r.seeds, 'seed')}", plain(r.perplexity))
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
            ).format(f"{ratio:.1f}", several(len(spread), "row"))
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


def rates(data: record.Results) -> Section | None:
    """How each variant's learning rate was chosen."""
    rows = data.learning_rates
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
            note = f"n = {several(r.seeds, 'seed')}" + (f", {count(r.failed)} failed" if r.failed > 0 else "")
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


def probes(data: record.Results) -> Section | None:
    """Scores of the memory tasks."""
    scores = evidence.probe_scores(data.probes)
    if scores.empty:
        return None
    names = list(dict.fromkeys(scores.variant))
    cells: list[list[Cell]] = []
    said = []
    for (task, length), own in scores.groupby(["task", "length"], sort=False):
        first = own.iloc[0]
        row: list[Cell] = []
        by = {r.variant: r for r in own.itertuples()}
        for name in names:
            r = by.get(name)
            if r is None or not math.isfinite(r.score):
                row.append(Cell("failed" if r is not None and r.failed else ""))
                continue
            bounds = bracket(r.low, r.high, score) or "no interval"
            row.append(Cell(score(r.score), f"{bounds}\nn = {r.n}", plain(r.score)))
        ends = Cell(f"{score(first.trivial)} / {score(first.optimal)}", str(first.score_is), plain(first.trivial))
        cells.append([Cell(str(task).replace("_", " "), f"length {length}", f"{task} {length:06d}"), ends, *row])
    for task, own in scores.groupby("task", sort=False):
        hardest = own[own.length == own.length.max()]
        solved, lost = [], []
        for r in hardest.itertuples():
            near = abs(r.score - r.optimal) <= 0.1 * abs(r.optimal - r.trivial)
            if (
                near
                and r.n > 1
                and max(abs(r.low - r.optimal), abs(r.high - r.optimal)) <= 0.2 * abs(r.optimal - r.trivial)
            ):
                solved.append(r.variant)
            elif r.n > 1 and r.low <= r.trivial <= r.high:
                lost.append(r.variant)
        parts = []
        if solved:
            parts.append(f"{', '.join(solved)} within a tenth of the way to perfect")
        if lost:
            parts.append(f"{', '.join(lost)} cannot be told from having no memory")
        if parts:
            said.append(
                Markup("<b>{}</b>, length {}: {}.").format(
                    str(task).replace("_", " ").capitalize(), int(hardest.length.iloc[0]), "; ".join(parts)
                )
            )
    one = data.probes.iloc[0]
    setting = (
        f"Tasks that ask for memory and nothing else; difficulty is the length. {count(one.hidden)} hidden units, "
        f"{span(scores.n[scores.n > 0])} seeds, Adam; the score is of {count(grid.SCORED)} sequences never trained "
        "on, the same for every network. Means over seeds with 95 % t intervals, which end where a score does (at 0, "
        "a share at 1 too); no test is made, and no learning rate was searched."
    )
    heads = [
        ("task", "length", False),
        ("trivial / optimal", "", True),
        *((name, "mean [95 %]", True) for name in names),
    ]
    table = Table("probes", "Scores on tasks of memory", heads, cells, cards=True)
    picture = ("probes", "How far does each remember?", draw.probe_curves, draw.probe_curves_alt, (scores,), None)
    lengths = {tuple(sorted(set(own.length))) for _, own in scores.groupby("task")}
    words = ["python", "-m", "harness", "probe", "--device", str(one.device), "--seeds", count(scores.n.max()),
             "--tasks", *dict.fromkeys(scores.task), "--variants", *names]  # fmt: skip
    if len(lengths) == 1:
        words += ["--lengths", *(str(length) for length in next(iter(lengths)))]
    changed = [part for part in str(one.protocol).split(",")[1:] if not part.startswith("num_steps=")]
    words += ["--set", *changed] if changed else []
    title = "Probes: memory and nothing else"
    return Section("probes", "Probes", title, setting, said, table, [picture], shlex.join(words))


def gates(data: record.Results) -> Section | None:
    """What gates of trained networks do, and how far back their gradient reaches."""
    own = evidence.inside(data, "gates")
    reached = evidence.inside(data, "reach")
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
        if str(label) == grid.BASELINE and gate == "Z" and math.isfinite(taus[1]):
            said.append(
                Markup(
                    "Half of the units of <code>{}</code> forget all but 1/e of their state within <strong>{}</strong> "
                    "characters; the slowest tenth keeps it for {} or more (medians over {})."
                ).format(label, _time(taus[1]), _time(taus[2]), several(rows.seed.nunique(), "seed"))
            )
    back = reached[reached.characters_back == BACK]
    shares, said_of = {}, {}
    for label, rows in back[back.gradient_share > 0].groupby("label", sort=False):
        line = draw.over(rows, "characters_back", "gradient_share").iloc[0]
        shares[str(label)] = float(line["mean"])
        bounds = bracket(line.low, line.high, _small) or "no interval"
        said_of[str(label)] = f"{_small(line['mean'])} {bounds}, n = {several(rows.seed.nunique(), 'seed')}"
    if len(shares) > 1:
        most, least = max(shares, key=lambda k: shares[k]), min(shares, key=lambda k: shares[k])
        said.append(
            Markup(
                "A gradient that has gone back {} characters, relative to what it was: largest in <code>{}</code>, {}; "
                "smallest in <code>{}</code>, {} (geometric means, 95 % intervals; above 1 it has grown)."
            ).format(BACK, most, said_of[most], least, said_of[least])
        )
    setting = (
        f"Trained networks reading the held-out text. A gate is shut below {grid.SHUT:g} and open above {grid.OPEN:g} "
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
        ("reach", "How far back does the gradient reach?", draw.reach, draw.reach_alt, (reached,), _shares(reached)),
        ("times", "How long does a unit keep its state?", draw.time_constants, draw.time_constants_alt, (own,), None),
        ("heat", "What do the gates do, character by character?", draw.gate_map, draw.gate_map_alt, (seen,), None),
    ]
    return Section("gates", "Gates", "Inside the gates", setting, said, table, pictures)


def _shares(reached: pd.DataFrame) -> Numbers:
    """The numbers of the chart of reach: geometric means over seeds with their 95 % intervals."""
    rows = []
    for label, own in reached[reached.gradient_share > 0].groupby("label", sort=False):
        for t, r in draw.over(own, "characters_back", "gradient_share").iterrows():
            bounds = bracket(r.low, r.high, lambda x: f"{x:.2g}")
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
    return Cell(spell(float(x.mean())), bracket(low, high, spell) if len(x) > 1 else "", plain(float(x.mean())))


def _time(x: float) -> str:
    return f"{x:.1f}" if x < 100 else compact(x) if math.isfinite(x) else ""


def _small(x: float) -> str:
    return f"{x:.2f}" if x >= 0.1 else f"{x:.4f}" if x >= 0.001 else f"{x:.0e}"
