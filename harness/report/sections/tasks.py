"""Show which variants solve each memory task, and after how many updates."""

from __future__ import annotations

import math
import shlex
from typing import Any

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure as Figure
from matplotlib.ticker import NullLocator

from harness.experiments import grids
from harness.experiments.protocols import RATE_SEEDS
from harness.experiments.tasks import SCORED, TASKS
from harness.formatting import compact, count, format_interval, format_range, join_and, plain, pluralize, score
from harness.record import tables
from harness.report.drawing import WIDE, hint, look, short, spaced, style
from harness.report.sections import Cell, Picture, Section, Table, methods


def section(data: tables.Results) -> Section | None:
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
    used = join_and([methods.OPTIMIZERS[name] for name in known.unique() if name in methods.OPTIMIZERS] or ["Adam"])
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
    picture = Picture("tasks", "How soon is each task solved?", updates, (table, data.probes), updates_alt)
    said = [Markup("<b>{}</b>: {}.").format(str(task).replace("_", " ").capitalize(), told(own))
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
    """Say what stands beside a task that is not made up: guessing, and a linear model of all its inputs."""
    linear = own.linear.dropna()
    return f"a linear model: {score(linear.iloc[0])}, guessing: {score(own.trivial.iloc[0])}" if len(linear) else ""


def setting_of(label: str) -> str:
    """Return what a protocol's label says beside its name and its length."""
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


def told(own: pd.DataFrame) -> str:
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


def updates(tasks: pd.DataFrame, trained: pd.DataFrame, width: float = WIDE) -> Figure | None:
    """After how many updates each variant has solved a task, one panel a task, logarithmic; left is sooner. Small
    points: every seed that solved it. Bar: their median. At the right, past the end of the budget: how many seeds did
    not solve it. Colours and names as everywhere: a variant without a gate has that gate's colour."""
    if tasks.empty:
        return None
    tasks = tasks if "setting" in tasks else tasks.assign(setting="")
    panels = list(dict.fromkeys(zip(tasks.task, tasks.length, tasks.setting, strict=True)))
    columns = min(len(panels), 2 if width > 5 else 1)
    rows = math.ceil(len(panels) / columns)
    with style() as ink:
        tall = 0.55 + 0.24 * tasks.variant.nunique()
        figure = Figure(figsize=(width, 0.3 + tall * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for panel, (task, length, setting) in zip(grid.flat, panels, strict=False):
            own = tasks[(tasks.task == task) & (tasks.length == length) & (tasks.setting == setting)]
            budget = float(own.budget.max())
            for y, r in enumerate(own.itertuples()):
                colour, _, marker = look(r.variant)
                seeds = trained[(trained.task == task) & (trained.length == length) & (trained.variant == r.variant)
                                & (trained.protocol == r.protocol)].solved_after.dropna()  # fmt: skip
                panel.scatter(seeds, [y] * len(seeds), s=9, alpha=0.5, color=ink[colour], marker=marker, lw=0)
                hint(panel, seeds, [y] * len(seeds),
                      [f"{r.variant}: one seed solves {task} after {count(x)} updates" for x in seeds])  # fmt: skip
                if r.solved:
                    hint(panel, [r.updates_median], [y],
                          [f"{r.variant}: {count(r.solved)} of {count(r.seeds + r.failed)} seeds, median "
                           f"{count(r.updates_median)} updates"])  # fmt: skip
                    panel.vlines(r.updates_median, y - 0.3, y + 0.3, color=ink[colour], lw=2)
                missing = int(r.seeds + r.failed - r.solved)
                if missing:
                    panel.annotate(f"{missing} of {int(r.seeds + r.failed)} not", (budget * 1.12, y), va="center",
                                   fontsize=7.5, color=ink[colour])  # fmt: skip
            panel.axvline(budget, color=ink["muted"], lw=0.8, ls=":")
            panel.set_yticks(range(len(own)), [short(name) for name in own.variant])
            panel.set_ylim(len(own) - 0.5, -0.5)
            panel.set_xscale("log")
            panel.set_xlim(80, budget * 2.6)
            ticks = [t for t in (100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000) if t <= budget]
            panel.set_xticks(ticks, [compact(t) for t in ticks])
            panel.xaxis.set_minor_locator(NullLocator())
            panel.set_title(
                f"{short(str(task).replace('_', ' '))}, length {count(length)}"
                + f", {setting}" * (tasks.setting.nunique() > 1),
                loc="left",
                color=ink["ink"],
            )
        for panel in grid.flat[len(panels) :]:
            panel.set_visible(False)
        figure.supxlabel("updates until solved (\u2190 sooner; dotted: the budget)", fontsize=9)
        return figure


def updates_alt(tasks: pd.DataFrame, trained: pd.DataFrame) -> str:
    if tasks.empty:
        return ""
    said = []
    tasks = tasks if "setting" in tasks else tasks.assign(setting="")
    for (task, length, setting), own in tasks.groupby(["task", "length", "setting"], sort=False):
        each = ", ".join(
            f"{r.variant} {int(r.solved)} of {int(r.seeds + r.failed)}"
            + (f" after {count(r.updates_median)}" if r.solved else "")
            for r in own.itertuples()
        )
        said.append(f"{task}, length {count(length)}{spaced(setting)}: {each}")
    return f"Dot charts of the updates until each seed solved a task, {len(said)} tasks. {'; '.join(said)}."
