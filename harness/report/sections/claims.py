"""Compare with what others have published: the book's perplexities, and claims of the literature."""

from __future__ import annotations

import math
import shlex
from typing import Any

from markupsafe import Markup

from harness.formatting import count, format_interval, plain, pluralize, ppl
from harness.record import tables
from harness.report.sections import Cell, Section, Table


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
