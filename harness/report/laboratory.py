"""The laboratory's data: the trained networks that the page runs, from what a training kept of itself.

Rule: as page.py. It reads what is on file; the networks are those of the rows of a table, of one text and protocol.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from harness.record import tables
from harness.report import elements, first_screen, select
from variants import registry

MOST_WEIGHTS = 1_700_000  # characters of weights in the page, which is to stay under 3 MB
MOST = 12
SHOWN = ("gru", "gru:R=1", "gru:Z=0", "gru:Z=0,R=1")  # at first; of those that are there
START = "the time traveller for so it will be convenient to speak of him"
PROGRAM = ("hidden", "states", "code", "out", "gates", "keeps", "sizes", "weights")


def data(results: tables.Results, networks: Sequence[Mapping[str, Any]]) -> tuple[Markup, list[str]]:
    """JSON for the page's script, safe inside its element, '' where there is nothing; and what is left out, and why."""
    found, why = chosen(results, networks)
    if not found:
        return Markup(""), why
    first = found[0][1]
    letters = first["vocabulary"]
    nets = [
        {**{name: net[name] for name in PROGRAM}, "name": str(row.variant), "about": select.picture_name(row.variant),
         "hue": first_screen.hue(select.picture_name(row.variant) or str(row.variant)), "lesions": held(results, row)}
        for row, net in found
    ]  # fmt: skip
    names = [net["name"] for net in nets]
    start = START if set(START) <= set(letters) else "".join(letters[i] for i in first["heldout"][:60])
    whole = {"letters": letters, "start": start, "heldout": first["heldout"], "nets": nets,
             "shown": [n for n in (*SHOWN, "rnn", *names) if n in names][:4]}  # fmt: skip
    text = json.dumps(whole, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")
    return Markup(text), why


def chosen(
    results: tables.Results, networks: Sequence[Mapping[str, Any]]
) -> tuple[list[tuple[pd.Series, Mapping[str, Any]]], list[str]]:
    """(row of runs.csv, network): those of the ablation first, then of the bench, all of one text and protocol."""
    kept = {str(net["run"]): net for net in networks}
    found: list[tuple[pd.Series, Mapping[str, Any]]] = []
    why, room = [], MOST_WEIGHTS
    for table in (results.ablate, results.bench):
        for _, row in select.finished(results, table).sort_values("label", kind="stable").iterrows():
            net = kept.get(str(row.run))
            if net is None or any(row.variant == other.variant for other, _ in found):
                continue
            if found and (row.protocol, row.corpus_sha256) != (found[0][0].protocol, found[0][0].corpus_sha256):
                continue
            reason = str(net.get("why", "")) or ("no room in one page" if len(net["weights"]) > room else "")
            if reason or len(found) == MOST:
                why.append(f"{row.variant} ({reason or 'no room in one page'})")
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
        source = kept.get(name) or _source(name)
        if source:
            found.append((elements.equation_id(name), name, source))
    return found


def _source(name: str) -> str:
    """The text of a cell's file, less what it imports; '' where there is none by this name."""
    entry = registry.catalog().get(name)
    if entry is None:
        return ""
    if entry.library:
        return f"{entry.about}."
    try:
        text = (Path(entry.path) if entry.path else registry.HERE / f"{entry.file}.py").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    text = re.sub(r"^(from|import) .*\n", "", text, flags=re.MULTILINE).replace('"""\n', "\n").strip().strip('"')
    return re.sub(r"\n{3,}", "\n\n", text)
