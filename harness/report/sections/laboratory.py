"""The laboratory's data: the trained networks that the page runs, from what a training kept of itself.

Rule: as page.py. It reads what is on file; the networks are those of the rows of a table, of one text and protocol.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from harness.experiments import grids
from harness.experiments.tasks import PLACES, QUESTIONS, SCORED, TASKS, symbols
from harness.formatting import count
from harness.record import tables
from harness.report import select
from harness.report.sections import equation_id, first_screen
from variants import registry

MOST_WEIGHTS = 1_700_000  # characters of weights in the page, which is to stay under 3 MB
MOST_TASK_WEIGHTS = 500_000  # of them of the networks that were trained on tasks
EXAMPLES = 20  # of a task
MOST = 16
SHOWN = ("gru", "gru:R=1", "gru:Z=0", "gru:Z=0,R=1")  # at first; of those that are there
START = "the time traveller for so it will be convenient to speak of him"
PROGRAM = ("hidden", "states", "code", "out", "gates", "keeps", "sizes", "weights")


def data(results: tables.Results, networks: Sequence[Mapping[str, Any]]) -> tuple[Markup, list[str]]:
    """JSON for the page's script, safe inside its element, '' where there is nothing; and what is left out, and why."""
    tasks, used = task_examples(results, networks)
    found, why = chosen(results, networks, MOST_WEIGHTS - used)
    if not found and not tasks:
        return Markup(""), why
    whole = {**(_played(results, found) if found else {}), "tasks": tasks}
    text = json.dumps(whole, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")
    return Markup(text), why


def _played(results: tables.Results, found: Sequence[tuple[pd.Series, Mapping[str, Any]]]) -> dict[str, Any]:
    """The networks that read a text, and what they are shown with."""
    first = found[0][1]
    letters = first["vocabulary"]
    nets = [_spec(str(row.variant), net) | {"lesions": held(results, row)} for row, net in found]
    names = [net["name"] for net in nets]
    start = START if set(START) <= set(letters) else "".join(letters[i] for i in first["heldout"][:60])
    return {"letters": letters, "start": start, "heldout": first["heldout"], "nets": nets,
            "shown": [n for n in (*SHOWN, "rnn", *names) if n in names][:4]}  # fmt: skip


def task_examples(results: tables.Results, networks: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """Each task with examples of its scored sequences and the networks that were trained on it; the weights' size."""
    kept = {
        str(net["run"]): net
        for net in networks
        if net.get("weights") and net.get("task") in TASKS and net["task"] not in PLACES
    }
    trained = results.probes[results.probes.run.isin(list(kept))]
    order = {name: k for k, name in enumerate((*SHOWN, "rnn"))}
    found, used = list[dict[str, Any]](), 0
    for task in dict.fromkeys([t for t in (*grids.ANSWERING, *TASKS) if t in set(trained.task)]):
        own = trained[trained.task == task]
        base = own[own.variant == grids.BASELINE]
        longest = (own if base.empty else base).sort_values("length", kind="stable").iloc[-1]
        own = own[(own.protocol == longest.protocol) & (own.length == longest.length)].drop_duplicates("variant")
        own = own.assign(place=[order.get(str(v), len(order)) for v in own.variant]).sort_values("place", kind="stable")
        nets = []
        for row in own.itertuples():
            net = kept[str(row.run)]
            if used + len(net["weights"]) > MOST_TASK_WEIGHTS:
                continue
            used += len(net["weights"])
            nets.append(_spec(str(row.variant), net) | {"solved": _solved(results, row)})
        if nets:
            found.append(_examples(task, int(longest.length)) | {"nets": nets})
    return found, used


def _solved(results: tables.Results, row: Any) -> str:
    """How many seeds of a training's variant solve its task: one of them need not stand for all."""
    own = results.tasks
    own = own[(own.protocol == row.protocol) & (own.variant == row.variant) & (own.length == row.length)]
    score = f"{100 * row.score:.1f} % of {SCORED:,} sequences\u2019 answers" if math.isfinite(row.score) else ""
    if TASKS[row.task].whole:
        score = score.replace("sequences\u2019 answers", "sequences")
    if own.empty or not math.isfinite(own.solved.iloc[0]):
        return score
    seeds = f"{count(own.solved.iloc[0])} of {count(own.seeds.iloc[0] + own.failed.iloc[0])} seeds"
    return f"{score}; {seeds} reach {100 * TASKS[row.task].solved:.0f} %"


def _spec(variant: str, net: Mapping[str, Any]) -> dict[str, Any]:
    about = select.picture_name(variant)
    return {**{name: net[name] for name in PROGRAM}, "name": variant, "about": about,
            "hue": first_screen.hue(about or variant)}  # fmt: skip


def _examples(name: str, length: int) -> dict[str, Any]:
    """Sequences of a task up to the last step that is asked; every second to another where all would be alike."""
    task = TASKS[name]
    inputs, answers, counts = (part[:, :EXAMPLES] for part in task.fresh(length))
    shown, examples = symbols(name), []
    alike = len({int(answers[counts[:, k].nonzero()[0][-1], k]) for k in range(inputs.shape[1])}) == 1
    for k in range(inputs.shape[1]):
        asked = counts[:, k].nonzero()[0]
        asked = asked[: 1 + 7 * k % len(asked)] if alike and k % 2 else asked
        examples.append({"inputs": inputs[: asked[-1] + 1, k].tolist(), "asked": asked.tolist(),
                         "answers": answers[asked, k].tolist()})  # fmt: skip
    about = QUESTIONS.get(name) or (task.make.__doc__ or "").partition(". ")[0]
    return {"name": name, "asks": task.asks, "about": about, "inputs": shown[0], "answers": shown[1],
            "examples": examples}  # fmt: skip


def chosen(
    results: tables.Results, networks: Sequence[Mapping[str, Any]], room: int = MOST_WEIGHTS
) -> tuple[list[tuple[pd.Series, Mapping[str, Any]]], list[str]]:
    """(row of runs.csv, network): those of the ablation first, then of the bench, all of one text and protocol."""
    kept = {str(net["run"]): net for net in networks}
    found: list[tuple[pd.Series, Mapping[str, Any]]] = []
    why = list[str]()
    for table in (results.ablate, results.bench):
        own = select.finished(results, table)
        for _, row in own[own.run.isin(list(kept))].sort_values("label", kind="stable").iterrows():
            net = kept[str(row.run)]
            if any(row.variant == other.variant for other, _ in found):
                continue
            if found and (row.protocol, row.corpus_sha256) != (found[0][0].protocol, found[0][0].corpus_sha256):
                continue
            reason = str(net.get("why", "")) or ("no room in one page" if len(net["weights"]) > room else "")
            if reason or len(found) == MOST:
                why.append(f"{row.variant} ({reason or f'{MOST} networks are'})")
                continue
            room -= len(net["weights"])
            found.append((row, net))
    order = {name: k for k, name in enumerate((*SHOWN, "rnn"))}
    return sorted(found, key=lambda pair: order.get(str(pair[0].variant), len(order))), list(dict.fromkeys(why))


def held(results: tables.Results, row: pd.Series) -> dict[str, list[float]]:
    """'R=0' -> [held-out perplexity of the networks of this variant with it held after training, how many]."""
    own = results.lesions
    own = own[(own.variant == row.variant) & (own.protocol == row.protocol) & (own.corpus_sha256 == row.corpus_sha256)]
    own = own.dropna(subset=["heldout_perplexity"])
    return {
        str(lesion): [round(math.exp(float(np.log(rows.heldout_perplexity).mean())), 3), len(rows)]
        for lesion, rows in own.groupby("lesion")
    }


def equations(results: tables.Results, networks: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """(id, cell, its source): of every cell of a table; as it was trained where that is kept, else as it stands now."""
    kept = {str(net["variant"]).partition(":")[0]: str(net["source"]) for net in networks if net.get("source")}
    names = [
        str(v).partition(":")[0] for table in (results.ablate, results.bench, results.tasks) for v in table.variant
    ]
    found = []
    for name in dict.fromkeys(names):
        source = kept.get(name) or registry.source(name)
        if source:
            found.append((equation_id(name), name, source))
    return found
