"""Writes every figure of README.md and docs/*.md from the files of results/reference: `make docs`.

Rule: between `<!-- splice NAME -->` and `<!-- end -->` stands what the function of that name returns, and nothing else
does. `python -m docs.splice --check` changes nothing; exit status 1 where a figure is stale. No torch.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import html
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness import files, options
from harness.analysis import stats
from harness.experiments import grids, protocols
from harness.experiments.protocols import Protocol
from harness.experiments.tasks import TASKS
from harness.formatting import count, format_interval, format_range, pct, percent, plain, ppl, sd, unique
from harness.record import pack, schema
from harness.record import tables as record_tables
from harness.record.schema import COLUMNS
from harness.report import select
from harness.report.sections import Section, answers, axes, gates, methods
from harness.report.sections import claims as claimed
from harness.report.sections import comparison as compared
from harness.report.sections import tasks as remembered
from variants import registry

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "results" / "reference"
BLOCK = re.compile(r"(<!-- splice ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
Block = Callable[[], str]
BLOCKS: dict[str, Block] = {}


def block(name: str) -> Callable[[Block], Block]:
    def add(make: Block) -> Block:
        BLOCKS[name] = make
        return make

    return add


def spliced(text: str) -> str:
    """The text with every block written anew. ValueError names one that is not known."""

    def one(found: re.Match[str]) -> str:
        if found[2] not in BLOCKS:
            raise ValueError(registry.unknown("block", found[2], BLOCKS))
        return f"{found[1]}{BLOCKS[found[2]]().strip()}\n{found[4]}"

    return BLOCK.sub(one, text)


def documents() -> Iterator[Path]:
    yield ROOT / "Makefile"  # before what is made from it
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").glob("*.md"))


def main(words: Sequence[str]) -> int:
    stale = []
    for path in documents():
        text = path.read_text(encoding="utf-8")
        if (new := helped(text) if path.name == "Makefile" else spliced(text)) != text:
            stale.append(path.relative_to(ROOT))
            if "--check" not in words:
                files.write(path, new)
    for path in stale:
        print(f"{path}: {'a figure is stale, make docs writes it anew' if '--check' in words else 'written'}")
    return int(bool(stale) and "--check" in words)


# ---- what is on file ------------------------------------------------------------------------------------------------


@functools.cache
def results(folder: str) -> record_tables.Results:
    """A folder of results/reference, every table typed; a table that is not there has no rows.

    Read as anyone would: a folder may be of an earlier version, whose tables lack a column.
    """

    def table(name: str) -> pd.DataFrame:
        path = REFERENCE / folder / f"{name}.csv"
        raw = path.read_bytes() if path.exists() else pack.table(path.parent, path.name)
        return record_tables.frame(name, []) if raw is None else pd.read_csv(io.BytesIO(raw))

    return select.typed(record_tables.Results(**{name: table(name) for name in COLUMNS}))


def absent(folder: str, command: str) -> str:
    return f"*Not on file: `{command} RESULTS=results/reference/{folder}` makes it.*"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


def markdown(text: object) -> str:
    """A sentence of the report: its <code> and <strong> as Markdown, every other tag gone."""
    said = re.sub(r"</?code>", "`", re.sub(r"</?(strong|b)>", "**", str(text)))
    return html.unescape(re.sub(r"<[^>]+>", "", said)).replace("\u00a0", " ")


def bullets(lines: Sequence[object]) -> str:
    return "\n".join(f"- {markdown(line)}" for line in lines)


def ranged(value: float, low: float, high: float, spell: Callable[[float], str]) -> str:
    return f"{spell(value)} {format_interval(low, high, spell)}".strip()


def signed(delta: float, low: float, high: float) -> str:
    """A difference in nats a character as percent of perplexity."""
    return ranged(percent(delta), percent(low), percent(high), lambda x: pct(x, True)) if np.isfinite(delta) else ""


def paragraph(*lines: object) -> str:
    return " ".join(markdown(line) for line in lines if line)


GIVEN = {"gru:R=1": "reset gate off, ", "gru:Z=0": "update gate off, ", "gru:Z=0,R=1": "both gates off, ",
         "gru:R=0": "candidate blind to the past, ", "gru:Z=1": "state never replaced, "}  # fmt: skip


def comparison(data: record_tables.Results, own: pd.DataFrame, ascending: bool = False) -> str:
    """A row a variant: its perplexity, its difference to the baseline, p after Holm, verdict."""
    own = own.sort_values("heldout_perplexity", kind="stable") if ascending else own
    base = own.variant == grids.BASELINE
    own = pd.concat([own[base], own[~base]])
    edges = rate_edges(data)
    rows = []
    for _, r in own.iterrows():
        p, word = r.p_holm, select.verdict(r)
        rows.append([
            f"{GIVEN.get(r.variant, '')}`{r.variant}`", count(r.hidden), count(r.parameters),
            plain(r.lr) + (" (end of the grid)" if r.variant in edges else ""),
            ranged(r.heldout_perplexity, r.heldout_low, r.heldout_high, ppl),
            signed(r.delta_nats, r.delta_low, r.delta_high),
            ("< .001" if p < 0.001 else f"{p:.3f}".lstrip("0")) if np.isfinite(p) and p < 1 else "1" * (p == 1), word,
        ])  # fmt: skip
    level = select.level(own)
    heads = ["variant", "hidden", "parameters", "rate", "held-out perplexity", f"difference from `{grids.BASELINE}`",
             f"p, Holm over {select.family(own)}", "verdict"]  # fmt: skip
    kept = [
        k
        for k, name in enumerate(heads)
        if name not in ("hidden", "rate") or own[{"rate": "lr"}.get(name, name)].nunique() > 1
    ]
    n = format_range(own.seeds[own.seeds > 0])
    note = f"n = {n} seeds a variant; intervals 95 %, of differences {level} %, paired by seed."
    return (
        table([heads[k] for k in kept], [[row[k] for k in kept] for row in rows]) + "\n\n" + note.replace("\u00a0", " ")
    )


def rate_edges(data: record_tables.Results) -> set[str]:
    """Variants whose learning rate was chosen at an end of the grid that was tried for them."""
    rows = data.learning_rates
    ends = rows.groupby("variant").lr.agg(["min", "max"])
    chosen = rows[rows.chosen]
    return {r.variant for r in chosen.itertuples() if r.lr in ends.loc[r.variant].tolist()}


# ---- README ---------------------------------------------------------------------------------------------------------


@block("main")
def main_table() -> str:
    data = with_tasks()
    said = [
        f"**{a.claim or a.question}{'.' * bool(a.claim)}** {a.points[0]}"
        for a in answers.gate_answers(data)
        if a.points
    ]
    anchor = compared.anchor_sentence(data, data.ablate)
    return comparison(data, data.ablate) + "\n\n" + bullets([*said, anchor, *_stands()])


def _stands() -> list[str]:
    """How often each verdict comes out where one thing about the training is changed."""
    rows = results("questions").questions
    told = rows[rows.verdict.fillna("") != ""]
    if told.empty:
        return []
    counts = [
        f"`{name}` {', '.join(f'{verdict} in {n}' for verdict, n in own.verdict.value_counts().items())}"
        for name, own in told.groupby("variant", sort=False)
    ]
    return [
        f"**Effects on text depend on the training.** Of {told.question.nunique()} changes to `quick` (rates chosen, "
        f"two layers, Adam ...): {'; '.join(counts)} (n = {format_range(told.pairs)} each; "
        "[all](docs/results.md#what-a-reviewer-asks))."
    ]


# ---- docs/gpu.md ----------------------------------------------------------------------------------------------------


@block("reach")
def reach() -> str:
    """A classic training step on each card that was measured, by engine, precision and number of seeds."""
    found = sorted(REFERENCE.glob("*/gpu.jsonl"))
    return "\n\n".join(map(_reach, found)) or "None of this has been run on a GPU yet."


def _reach(path: Path) -> str:
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    facts = {fact["key"]: fact for fact in lines if "key" in fact}
    machine = facts.get("machine", {})
    timed = {key: fact for key, fact in facts.items() if fact.get("blocks")}

    def each(key: str, column: str) -> float | None:
        values = [block[column] for block in timed[key]["blocks"]] if key in timed else []
        return float(np.median(values)) if values else None

    rows = []
    for key, fact in timed.items():
        variant, engine, *how = key.split()  # as tests/gpu.py names it
        rate, precision, step = each(key, "tokens_per_sec"), how[-3], each(key, "step_ms")
        plain_ = [
            each(f"nn.gru library{' captured' * captured} {precision} x 1", "tokens_per_sec") for captured in (0, 1)
        ]
        ratios = [f"{rate / one:.2f}" if rate and one else "" for one in plain_]
        memory = [fact.get(name) for name in ("graph_nodes", "peak_memory_mib", "graph_mib")]
        rows.append([
            f"`{variant}` {engine}", "captured" if "captured" in how else "step by step", precision, how[-1],
            f"{1000 * step:,.0f}" if step else "", f"{rate / 1e6:.2f}" if rate else "", *ratios,
            *(f"{x:,.0f}" if x is not None else "" for x in memory),
        ])  # fmt: skip
    heads = ["cell, engine", "graph", "precision", "seeds", "step (us)", "M characters/s", "x nn.gru step by step",
             "x nn.gru captured", "nodes a step", "peak MiB", "graph MiB"]  # fmt: skip
    beside = [f"{key}: {facts[key]['us']:.2f} us" for key in ("node", "meeting of 8", "meeting of 16")
              if "us" in facts.get(key, {})]  # fmt: skip
    card = machine.get("device_name") or facts["card"]["name"]
    head = f"{card}, driver {machine.get('driver')}, torch {machine.get('torch')}"
    failed = [f"{key}: {fact['error']}" for key, fact in facts.items() if "error" in fact]
    said = [f"From node to node of a graph, and a meeting of blocks: {', '.join(beside)}."] if beside else []
    said += [f"Failed: {'; '.join(f'`{one}`' for one in failed)}."] if failed else []
    source_ = f"[gpu.jsonl](../results/reference/{path.parent.name}/gpu.jsonl)"
    return "\n\n".join([f"{head} ({source_}):", table(heads, rows), *said])


# ---- docs/results.md ------------------------------------------------------------------------------------------------


@block("folders")
def folders() -> str:
    """What each folder holds, and of which machine and state of the code."""
    rows = []
    for path in sorted(p for p in REFERENCE.iterdir() if (p / "environments.csv").exists()):
        data = results(path.name)
        done = pd.concat([d[d.error == ""][["environment"]] for d in (data.runs, data.probes)])
        holds = [
            f"{verb} of {' and '.join(f'`{p}`' for p in unique(own.protocol))} "
            f"(n = {format_range(own.seeds[own.seeds > 0])})"
            for verb, own in (("bench", data.bench), ("ablation", data.ablate)) if len(own)
        ]  # fmt: skip
        holds += [f"reproduction (n = {format_range(data.reproduce.seeds)})"] if len(data.reproduce) else []
        scored = data.tasks
        holds += [f"{scored.task.nunique()} tasks (n = {format_range(scored.seeds)})"] if len(scored) else []
        asked = data.questions[data.questions.seeds > 0]
        if len(asked):
            holds.append(f"{asked.question.nunique()} questions of a reviewer (n = {format_range(asked.seeds)})")
        holds += ["speed by size"] if (data.speed.verb == "sweep").any() else []
        machines = data.environments
        dirty = set(machines.environment[machines.dirty.str.lower() == "true"])
        changed = int(done.environment.isin(dirty).sum())
        names = machines.device_name.where(machines.device == "cuda", machines.cpu)
        rows.append([
            f"[{path.name}](../results/reference/{path.name})", "; ".join(holds), count(len(done)),
            f"{', '.join(unique(names))} ({', '.join(f'{c} cores' for c in unique(machines.cores.map(str)))})",
            ", ".join(f"`{c[:7]}`" for c in unique(machines.commit)),
            f"{changed} of {len(done)}" if changed else "none",
        ])  # fmt: skip
    heads = ["folder", "holds", "trainings", "machine", "commits", "trained on uncommitted code"]
    return table(heads, rows)


@block("book")
def book() -> str:
    return comparison(results("evidence"), results("evidence").ablate)


@block("book-caveats")
def book_caveats() -> str:
    """What the page says before it is believed, and what counting reaches."""
    data = results("evidence")
    said = [*methods.of_table(data, "ablate", data.ablate), compared.anchor_sentence(data, data.ablate)]
    if rates := axes.learning_rates(data):
        said += rates.said
    return bullets([line for line in said if line])


@block("book-curve")
def book_curve() -> str:
    """The validation curve of each variant: the lowest mean over seeds, and the last."""
    data = results("evidence")
    own = select.finished(data, data.ablate)
    curves = data.curves[["run", "epoch", "heldout_perplexity"]].merge(own[["run", "label"]], on="run")
    rows = []
    for name, each in curves.groupby("label", sort=False):
        mean = np.exp(np.log(each.heldout_perplexity).groupby(each.epoch).mean())
        rows.append([f"`{name}`", ppl(mean.min()), f"{mean.idxmin():g}", ppl(mean.iloc[-1]), f"{mean.index[-1]:g}"])
    return table(["variant", "lowest mean over seeds", "at epoch", "at the end", "epoch"], rows)


@block("tree")
def tree() -> str:
    """Every Python file of the product, and the first sentence of its docstring."""
    rows = []
    for package in ("variants", "harness"):
        for path in sorted((ROOT / package).rglob("*.py"), key=lambda p: (str(p.parent), p.name)):
            said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            name = path.relative_to(ROOT).as_posix().removesuffix("__init__.py")
            rows.append([f"[{name}](../{name})", " ".join(said.split("\n\n")[0].split())])
    return table(["file", "is"], rows)


@block("tasks")
def tasks() -> str:
    """Every task: how many seeds of each variant solve it, and after how many updates."""
    own = results("tasks").tasks
    if own.empty:
        return absent("tasks", "make probe")
    names = unique(own.variant)
    rows = []
    for (task, length), each in own.groupby(["task", "length"], sort=False):
        by = {r.variant: r for r in each.itertuples()}
        asks = TASKS[task].asks if task in TASKS else ""
        cells = [_solved(by[name]) if name in by else "" for name in names]
        rows.append([f"`{task}`, length {count(length)}: {asks}", *cells])
    note = (
        f"Seeds that solve it (of n = {format_range(own.seeds + own.failed)}), and their median updates; F: fails, its "
        f"exact 95 % interval of the share apart from that of `{grids.BASELINE}`; S: slower, updates paired by seed, "
        "Holm over the contrasts of the task. "
        f"{format_range(own.hidden)} hidden units, at most {format_range(own.budget)} updates, the learning rate "
        f"chosen from {format_range(own.rates_tried)} by {len(protocols.RATE_SEEDS)} seeds that are not scored."
    )
    return table(["task", *(f"`{name}`" for name in names)], rows) + "\n\n" + note


def _solved(r: Any) -> str:
    mark = {"fails": " F", "slower": " S"}.get(r.verdict, "")
    return (
        f"{count(r.solved)}/{count(r.seeds + r.failed)}" + (f", {count(r.updates_median)}" if r.solved else "") + mark
    )


@block("tasks-said")
def tasks_said() -> str:
    return bullets([*(f"{a.claim}." for a in answers.gate_answers(with_tasks()) if a.claim),
                    *_said(remembered.section(results("tasks")))])  # fmt: skip


def with_tasks() -> record_tables.Results:
    """The comparison on the whole book, and the tasks beside it."""
    return dataclasses.replace(results("evidence"), tasks=results("tasks").tasks, probes=results("tasks").probes)


@block("inside")
def inside() -> str:
    data = results("evidence")
    return bullets(_said(gates.section(data)))


def _said(section: Section | None) -> Sequence[object]:
    return section.said if section else []


def held_after(folder: str) -> str:
    data = results(folder)
    return bullets([f"`{g}`: {line}" for g in select.GATES for line in answers.lesion(data, g)])


@block("book-held")
def book_held() -> str:
    return held_after("evidence")


@block("quick")
def quick() -> str:
    data = results("quick")
    if data.ablate.empty and data.bench.empty:
        return absent("quick", "make bench ablate")
    both = (("Ablation", data.ablate), ("Bench", data.bench))
    parts = [f"**{word}.**\n\n{comparison(data, own)}" for word, own in both if len(own)]
    anchor = compared.anchor_sentence(data, data.ablate if len(data.ablate) else data.bench)
    return "\n\n".join([*parts, paragraph(anchor), held_after("quick")])


@block("matched")
def matched() -> str:
    return comparison(results("matched"), results("matched").ablate)


@block("update-bias")
def update_bias() -> str:
    """The GRU with its update gate's bias starting elsewhere, beside the baseline of the same folder."""
    runs = results("matched").runs
    runs = runs[(runs.error == "") & (runs.variant == grids.BASELINE)]
    logs = {label: np.log(own.set_index("seed").heldout_perplexity) for label, own in runs.groupby("protocol")}
    base = logs.get("quick,match=parameters")  # of gru alone the same trainings: it is what the others are matched to
    rows = []
    for label, own in logs.items():
        change = (own - base).dropna()
        low, high, n, _ = stats.interval(change)
        bounds = stats.interval(own)
        mine = ranged(np.exp(own.mean()), np.exp(max(bounds.low, 0)), np.exp(bounds.high), ppl)
        gap = signed(change.mean(), low, high)
        rows.append([f"`{label}`", mine, "" if own is base else gap, count(n)])
    return (
        table([f"`{grids.BASELINE}` under protocol", "held-out perplexity", "difference", "pairs"], rows)
        + "\n\nNo test."
    )


@block("literature")
def literature() -> str:
    return comparison(results("literature"), results("literature").bench, ascending=True)


@block("reproduce")
def reproduce() -> str:
    rows, within, total = [], 0, 0
    for folder, protocol in (("cpu", "classic"), ("evidence", "v1")):
        data = results(folder).reproduce
        for r in data[data.protocol.str.split(",").str[0] == protocol].itertuples():
            total, within = total + 1, within + (r.within_2sd == "yes")
            builds = count(r.builds_least) + (f" to {count(r.builds_most)}" if r.builds_most != r.builds_least else "")
            rows.append([f"`{r.variant}`, `{r.protocol}`", f"{ppl(r.published)} ± {sd(r.published_sd)}", builds,
                         f"{ppl(r.perplexity)} ± {sd(r.sd)}", count(r.seeds), r.within_2sd])  # fmt: skip
    heads = ["variant, protocol", "published", "builds", "here", "seeds", "within 2 sd"]
    return table(heads, rows) + f"\n\n{within} of {total} are within two published standard deviations."


@block("classic")
def classic() -> str:
    data = results("cpu")
    heart = [line for line in methods.of_table(data, "bench", data.bench) if "Learned by heart" in line]
    rows = [
        [f"`{r.variant}`", r.engine, ppl(r.train_perplexity),
         ranged(r.heldout_perplexity, r.heldout_low, r.heldout_high, ppl), count(r.seeds)]
        for r in data.bench.dropna(subset=["heldout_perplexity"]).itertuples()
    ]  # fmt: skip
    shown = table(["variant", "engine", "training perplexity", "held-out perplexity [95 %]", "seeds"], rows)
    return shown + "\n\n" + paragraph(*heart)


PEERS = ("native", "fused", "loop", "torch.compile", "jax lax.scan")  # columns of a table, as peers.csv names them
SHAPES = {"quick": "32 sequences, 16 steps, 32 units", "classic": "32, 35, 256", "book": "32, 64, 128"}


@block("peers")
def peers() -> str:
    """Times as fast as torch's module, by size, cell and peer: results/reference/peers/peers.csv."""
    own = pd.read_csv(REFERENCE / "peers" / "peers.csv")
    grids_ = own[own.cell.str.startswith("bench and ablate")].set_index(["cell", "peer"])
    one = own[(own.threads == 1) & ~own.cell.str.startswith("bench and ablate")].set_index(["size", "cell", "peer"])
    shown = []
    for size, shape in SHAPES.items():
        mine = one.loc[size]
        rows = [
            [f"`{cell}`", next(peer for peer in mine.loc[cell].index if peer.startswith("nn.")),
             *(f"{x:.3g}" if x > 0 else "" for x in (mine.times_nn.get((cell, peer), np.nan) for peer in PEERS))]
            for cell in dict.fromkeys(mine.index.get_level_values(0))
        ]  # fmt: skip
        shown.append(f"**{size}**: {shape}\n\n" + table(["cell", "to", *PEERS], rows))
    scan = one.times_nn.xs("native", level=2) / one.times_nn.xs("jax lax.scan", level=2)
    compiled = one[one.times_nn.notna()].compile_s
    seconds = {peer: compiled.xs(peer, level=2) for peer in ("torch.compile", "jax lax.scan")}
    compiles = compiled.xs("native", level=2)["quick"]
    cannot = own[own.note.notna() & (own.peer == "torch.compile")]
    late = ", ".join(f"`{row.cell}` {row.size}" for row in cannot.itertuples())
    note = (
        f"A whole training step, times as fast as torch's module, in processor time, 1 thread, medians of "
        f"{format_range(one.rounds.dropna().astype(int))} interleaved rounds; two cores that other work shared; no "
        f"interval was taken. `native` is {scan.min():.2g} to {scan.max():.2g} times as fast as JAX. The first step, "
        f"in seconds of all processors: `native` {compiles.min():.2g} to {compiles.max():.2g}, once for all sizes; "
        f"JAX {seconds['jax lax.scan'].min():.2g} to {seconds['jax lax.scan'].max():.2g}; torch.compile of the loop "
        f"{seconds['torch.compile'].min():.2g} to {seconds['torch.compile'].max():.2g}"
        f"{f'; none within some minutes: {late}' * bool(late)}."
    )
    onednn = one.times_nn.xs("onednn", level=2).dropna()
    note += (
        f" nn.LSTM is oneDNN's ({onednn.min():.2f} to {onednn.max():.2f} times as fast, called by hand); oneDNN's GRU "
        f"cannot be called from torch, whose layer makes the LSTM's alone: a row says so."
    )
    two = own[(own.threads == 2) & (own.peer == "native")]
    wall = ", ".join(f"`{row.cell}` {row.size} {row.times_nn:.3g}" for row in two.itertuples())
    note += f" `native` on 2 threads, wall time, the same load: {wall}." * bool(wall)
    took = grids_.step_ms.xs("now", level=1) / grids_.step_ms.xs("before derived engines", level=1)
    share = (
        f"The training of `make bench` and `make ablate` at quick size takes {took['bench and ablate']:.2f} of what it "
        f"took before engines were derived ({grids_.note.iloc[0].split('commit ')[1]}), torch's own modules, which no "
        f"engine here runs, among it; of the cells written here {took['bench and ablate, cells written here']:.2f}. "
        f"Processor time of the training steps, {format_range(grids_.rounds)} interleaved rounds of 10 seeds each."
    )
    return "\n\n".join([*shown, note, share, "![The same as a chart](../results/reference/peers/peers.svg)"])


@block("claims")
def claims() -> str:
    """The verdict on each claim of the literature, and its numbers."""
    section = claimed.section(results("claims"))
    if section is None or section.table is None:
        return "*Not on file: `make claims RESULTS=results/reference/claims` makes it.*"
    rows = [
        [f"{row[0].text.rstrip(chr(46))} ({source(row[0].note)})", *(cell.text for cell in row[1:])]
        for row in section.table.rows
    ]
    heads = ["claim", "verdict", "evidence, 95 % intervals", "least n"]
    return paragraph(*section.said) + "\n\n" + table(heads, rows) + "\n\n" + paragraph(section.setting)


def source(note: str) -> str:
    """The source of a claim, and how much of it was read."""
    return note.splitlines()[0].replace(" (read:", "; read:").removesuffix(")")


@block("questions")
def questions() -> str:
    """Whether each difference stands where one thing is changed."""
    section = axes.questions(results("questions"))
    if section is None or section.table is None:
        return "*Not on file: `make questions RESULTS=results/reference/questions` makes it.*"
    rows = [[row[0].text, *(" ".join([cell.text, *cell.note.split(chr(10))[:2]]) for cell in row[1:])]
            for row in section.table.rows]  # fmt: skip
    heads = ["question", *(f"`{head[0]}`, nats/char" for head in section.table.heads[1:])]
    return table(heads, rows) + "\n\n" + paragraph(*section.said) + "\n\n" + paragraph(section.setting)


@block("exercises")
def exercises() -> str:
    """The book's four exercises, each answered in two sentences."""
    section = claimed.exercises(results("exercises"))
    if section is None or section.table is None:
        return "*Not on file: `make exercises RESULTS=results/reference/exercises` makes it.*"
    return table(
        ["exercise, in our words", "answer, from the rows"], [[cell.text for cell in row] for row in section.table.rows]
    )


@block("protocols")
def protocol_fields() -> str:
    """A row a field that any protocol has otherwise than another."""
    names = list(protocols.PROTOCOLS)
    fields = [f for f in vars(protocols.PROTOCOLS[names[0]]) if f not in ("name", "task")]
    shown = [[f"`{f}`", *(_setting(protocols.PROTOCOLS[n], f) for n in names)] for f in fields]
    return table(["field", *(f"`{n}`" for n in names)], [row for row in shown if len(set(row[1:])) > 1])


def _setting(protocol: Protocol, field: str) -> str:
    value = getattr(protocol, field)
    if field == "lr" and protocol.rate == "chosen":
        return "chosen from " + ", ".join(plain(r) for r in protocols.rates(protocol))
    return count(value) if isinstance(value, int) else plain(value) if isinstance(value, float) else str(value)


@block("tables")
def tables() -> str:
    rows = [[f"`{name}.csv`", each.row] for name, each in schema.TABLES.items() if name != "ablate"]
    rows[0][0] = "`bench.csv`, `ablate.csv`"
    return table(["file", "a row is"], rows)


@block("verbs")
def verbs() -> str:
    return table(["verb", "does", "for example"], [
        [f"`{verb}`", about, f"`python -m harness {options.EXAMPLES[verb]}`"] for verb, about in options.VERBS.items()
    ])  # fmt: skip


@block("options")
def every_option() -> str:
    """Every option: its NAME= of make where it has one, the verbs that take it, what it says in their help."""
    made = (ROOT / "Makefile").read_text(encoding="utf-8").partition("NAMES := ")[2].partition("\n")[0].split()
    rows = []
    for action in options.parser()._actions:
        flag = action.option_strings[-1]
        takes = [verb for verb, own in options.TAKES.items() if action.dest in own]
        left = [verb for verb in options.TAKES if verb not in takes]
        of = ", ".join(takes) if len(takes) <= len(left) else f"all but {', '.join(left)}"
        name = flag.lstrip("-").replace("-", "_").upper()
        if flag not in ("--help", "--json"):
            typed = f"`{flag}`" if action.nargs == 0 else f"`{flag} {action.metavar}`"
            rows.append([typed, f"`{name}=`" if name in made else "", of, str(action.help).replace("%%", "%")])
    return table(["option", "make", "of", "meaning"], rows)


@block("targets")
def targets() -> str:
    """What make has beside the verbs, from its own help."""
    said = re.findall(r"^# make (\w+) +(.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    return table(["command", "does"], [[f"`make {name}`", about] for name, about in said if name not in options.VERBS])


def helped(makefile: str) -> str:
    """A Makefile whose help says of each verb what the command line says, its options by their NAME=."""

    def named(about: str) -> str:
        return re.sub(r"--(\w+)", lambda option: f"{option[1].upper()}=", about)

    return re.sub(
        r"^# make (\w+) .*$",
        lambda line: f"# make {line[1]:<10} {named(options.VERBS[line[1]])}" if line[1] in options.VERBS else line[0],
        makefile, flags=re.MULTILINE,
    )  # fmt: skip


@block("columns")
def columns() -> str:
    return "\n".join(f"- `{name}.csv`: {', '.join(own)}" for name, own in COLUMNS.items() if name != "ablate")


@block("glossary")
def glossary() -> str:
    """Every column once, in the order of the schema: where one means something else in a table, that table is named."""
    types = {str: "text", int: "whole number", float: "number", bool: "True or False"}
    rows: dict[tuple[str, str], list[str]] = {}
    for name, own in COLUMNS.items():
        for column in (schema.column(name, c) for c in own):
            rows.setdefault((column.name.rpartition(".")[2], column.meaning), [types[column.type], column.unit]).append(
                name
            )
    names = [name for name, _ in rows]
    return table(["column", "type", "unit", "meaning"], [
        [f"`{name}`" + (f" of {' and '.join(own[2:])}" if names.count(name) > 1 else ""), *own[:2], meaning]
        for (name, meaning), own in rows.items()
    ])  # fmt: skip


@block("faults")
def faults() -> str:
    """What `make faults` printed when it was last run whole."""
    path = REFERENCE / "faults" / "faults.csv"
    if not path.exists():
        return "*Not on file: `make faults` tries each and prints the table.*"
    own = pd.read_csv(path)
    return table(list(own.columns), [[str(v) for v in row] for row in own.itertuples(index=False)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
