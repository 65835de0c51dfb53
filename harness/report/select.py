"""The rows that count: every table made safe, and the trainings, pairs and samples behind a row of one.

Rule: frames in, rows of them out. Beside a row of bench.csv or ablate.csv stand only points that give its own
numbers; a word that its own number contradicts is not repeated.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np
import pandas as pd

from harness.analysis import speed as speeds
from harness.analysis import stats
from harness.experiments import grids
from harness.record import tables
from harness.record.schema import COLUMNS

VERDICTS = {"worse": "\u25b2", "better": "\u25bc", "equivalent": "=", "undecided": "?"}
ROW = ["variant", "engine", "capture", "precision", "device", "protocol"]


def typed(results: tables.Results) -> tables.Results:
    """Every table with the types of the schema; what is drawn or divided by is above 0, or missing."""
    frames = {}
    for name, columns in COLUMNS.items():
        frame = tables.typed(getattr(results, name), name)
        for column in {"train_perplexity", "heldout_perplexity", "tokens_per_sec", "peak_memory_mib"} & set(columns):
            frame[column] = frame[column].where(frame[column] > 0)
        frames[name] = frame.reset_index(drop=True)
    return tables.Results(**frames)


def finished(data: tables.Results, table: pd.DataFrame) -> pd.DataFrame:
    """Trainings behind the rows of a table that ended well, one a row and seed, with that row's `label`."""
    keys = [*ROW, "corpus_sha256"]
    names = table.assign(label=[label(row, table) for _, row in table.iterrows()])[[*keys, "label"]]
    runs = data.runs[(data.runs.error == "") & (data.runs.heldout_perplexity > 0)].merge(names, on=keys)
    return runs.sort_values(["started", "run"], kind="stable").drop_duplicates(["label", "seed"], keep="last")


def differences(data: tables.Results, table: pd.DataFrame) -> pd.DataFrame:
    """label, seed, delta_nats: each pair behind a row of the table, from the trainings that the row names.

    Only where they are as many as the row says, and their mean is its: points of other runs would be worse than none.
    """
    own = finished(data, table)
    own = own.assign(logs=np.log(own.heldout_perplexity.to_numpy(dtype=float)))
    found = []
    for _, row in table.dropna(subset=["delta_nats"]).iterrows():
        mine = own[own.label == label(row, table)].set_index("seed").logs
        base = own[(own.variant == row.baseline) & (own.engine == row.baseline_engine)]
        same = base[(base.capture == row.capture) & (base.precision == row.precision)]
        groups = [group.set_index("seed").logs for _, group in (base if same.empty else same).groupby("label")]
        pairs = max(((mine - logs).dropna() for logs in groups), key=len, default=mine.iloc[:0])
        if len(pairs) == row.pairs and np.isclose(pairs.mean(), row.delta_nats):
            found.append(pd.DataFrame({"label": label(row, table), "seed": pairs.index, "delta_nats": pairs.values}))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["label", "seed", "delta_nats"])


def crossing(trained: pd.DataFrame, table: pd.DataFrame) -> tuple[int, int]:
    """How many pairs of a table's trainings have machines of two classes of bits, of how many where both are known."""
    known = trained[trained.bits != ""].drop_duplicates(["variant", "seed"])
    bits = known.pivot(index="seed", columns="variant", values="bits")
    found = total = 0
    for variant, base in table[["variant", "baseline"]].drop_duplicates().itertuples(index=False):
        if {variant, base} <= set(bits) and variant != base:
            both = bits[[variant, base]].dropna()
            found, total = found + int((both[variant] != both[base]).sum()), total + len(both)
    return found, total


def lesions(data: tables.Results) -> pd.DataFrame:
    """Return, for the ablation's baseline, seed, lesion, and in nats/char, against the same seed's network left whole:

    `after`, its gate held only after training; `trained`, the network trained with the gate held so.
    """
    own = finished(data, data.ablate)
    own = own.assign(logs=np.log(own.heldout_perplexity.to_numpy(dtype=float)))
    whole = own[own.variant == grids.BASELINE]
    whole = whole[whole.label == next(iter(whole.label), "")]
    rows = data.lesions.dropna(subset=["heldout_perplexity"]).merge(whole[["run", "logs"]], on="run")
    held = own.assign(lesion=own.variant.astype(str).str.replace(r"^[^:]*:?", "", regex=True))
    held = held[held.variant.str.startswith(grids.BASELINE + ":")].drop_duplicates(["lesion", "seed"])
    rows = rows.merge(held[["lesion", "seed", "logs"]], on=["lesion", "seed"], how="left", suffixes=("", "_held"))
    after = np.log(rows.heldout_perplexity.to_numpy(dtype=float)) - rows.logs
    trained = rows.logs_held - rows.logs
    return pd.DataFrame({"seed": rows.seed, "lesion": rows.lesion, "after": after, "trained": trained})


def inside(data: tables.Results, name: str) -> pd.DataFrame:
    """Rows of gates.csv or reach.csv, of trainings behind the rows of the ablation, else of the bench; with `label`."""
    rows = getattr(data, name)
    rows = rows.dropna(subset=["mean"]) if name == "gates" else rows  # one that could not be looked at has none
    for table in (data.ablate, data.bench):
        own = finished(data, table)
        order = {name: k for k, name in enumerate(label(row, table) for _, row in table.iterrows())}
        found = rows.merge(own[["run", "label"]], on="run")
        if len(found):
            return (
                found.assign(_order=found.label.map(order))
                .sort_values(["_order", "seed"], kind="stable")
                .drop(columns="_order")
            )
    return rows.iloc[:0].assign(label="")


def speed_samples(data: tables.Results, table: pd.DataFrame) -> pd.DataFrame:
    """A row a fresh process, of the session that a row of the table names: label, round, and what it measured."""
    speed = data.speed[(data.speed.error == "") & (data.speed.control_of == "") & ~(data.speed.seeds > 1)]
    found = []
    for _, row in table.dropna(subset=["tokens_per_sec"]).iterrows():
        mine = speed[(speed.session == row.speed_session) & np.logical_and.reduce([speed[c] == row[c] for c in ROW])]
        if mine.empty:
            continue
        mine = mine[mine.environment == mine.environment[mine.started == mine.started.max()].max()]
        clean = mine.groupby("round").disturbed.transform(lambda d: d.all() | ~d).astype(bool)
        each = mine[clean].groupby("round").agg(
            tokens_per_sec=("tokens_per_sec", "median"), percent_of_peak=("percent_of_peak", "median"),
            peak_memory_mib=("peak_memory_mib", "max"),
        )  # fmt: skip
        if np.isclose(each.tokens_per_sec.median(), row.tokens_per_sec):  # else they are of another session
            found.append(each.reset_index().assign(label=label(row, table)))
    columns = ["label", "round", "tokens_per_sec", "percent_of_peak", "peak_memory_mib"]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns, dtype=float)


def speed_verdict(row: pd.Series) -> str:
    """faster, slower or cannot be told, '' without a ratio. Of a table made before it was said: by the interval."""
    if not math.isfinite(row.speed_ratio):
        return ""
    if row.speed_verdict:
        return str(row.speed_verdict)
    told = row.speed_ratio_low > 1 or row.speed_ratio_high < 1
    return speeds.UNTOLD if not told else "faster" if row.speed_ratio > 1 else "slower"


def speed_ratio(
    data: tables.Results, table: pd.DataFrame, one: str, other: str, engine: str = ""
) -> speeds.SpeedRatio | None:
    """Return the speed ratio of two variants of a table, in one precision, in a session that holds both.

    Each is taken as it was trained: the first of its rows, where it was timed in several engines; `other` in `engine`,
    if given.
    """
    rows = table[table.variant.isin([one, other])].dropna(subset=["tokens_per_sec"])
    rows = rows.drop_duplicates("variant")
    if sorted(rows.variant) != sorted([one, other]) or rows.precision.nunique() > 1:
        return None
    speed = data.speed[data.speed.protocol.isin(rows.protocol) & data.speed.device.isin(rows.device)]
    label = f"{other} ({engine})" if engine else other
    if not {one, label} <= set(speed.label):
        return None
    ratio = speeds.speed_ratio(speed[~(speed.seeds > 1)], one, label)
    return ratio if ratio.rounds else None


def anchors(data: tables.Results, table: pd.DataFrame) -> pd.DataFrame:
    """Return what counting characters achieves on the split of this table."""
    if table.empty:
        return data.anchors.iloc[:0]
    first = table.iloc[0]
    return data.anchors[(data.anchors.protocol == first.protocol) & (data.anchors.corpus_sha256 == first.corpus_sha256)]


def best_ngram(anchors: pd.DataFrame) -> tuple[str, float] | None:
    """The n-gram with the lowest held-out perplexity, and that perplexity."""
    data = anchors[anchors.model.astype(str).str.fullmatch(r"\d+-gram")].dropna(subset=["heldout_perplexity"])
    if data.empty:
        return None
    row = data.loc[data.heldout_perplexity.idxmin()]
    return str(row.model), float(row.heldout_perplexity)


def over_seeds(data: pd.DataFrame, column: str) -> pd.DataFrame:
    """By tokens: mean over seeds of log-perplexity and its 95 % t interval, as perplexities: from 1 up."""
    rows = {}
    for tokens, values in data[data[column] > 0].groupby("tokens")[column]:
        logs = np.log(values.to_numpy(dtype=float))
        bounds = stats.interval(logs)
        rows[float(str(tokens))] = np.exp([logs.mean(), np.maximum(bounds.low, 0.0), bounds.high])
    return pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "low", "high"]).sort_index()


def family(table: pd.DataFrame) -> int:
    """How many comparisons Holm counted."""
    return int(table.comparisons.max()) if table.comparisons.notna().any() else 0


def symbols(data: tables.Results) -> list[tuple[str, int]]:
    """(text, how many symbols its networks choose among): the perplexity of guessing evenly. Older folders lack it."""
    rows = data.anchors[data.anchors.model == "uniform"].dropna(subset=["heldout_perplexity"])
    pairs = zip(rows.corpus, rows.heldout_perplexity, strict=True)
    return list(dict.fromkeys((str(text), round(float(n))) for text, n in pairs))


def level(table: pd.DataFrame) -> str:
    """Return the level of the intervals of a table's differences, in percent: wider where seeds were looked at several
    times.
    """
    looks = table.looks.max()
    return f"{100 * (1 - stats.ALPHA / (looks if looks > 1 else 1)):.4g}"


def verdict(row: pd.Series) -> str:
    """The table's word, if it is one, and if the sign of its own difference agrees."""
    word, d = str(row.verdict), float(row.delta_nats)
    if word not in VERDICTS or not math.isfinite(d) or (word == "worse" and d <= 0) or (word == "better" and d >= 0):
        return ""
    return word


def fixed(variant: object) -> tuple[str, list[tuple[str, str]]]:
    """`gru:R=1,Z=0` -> ("gru", [("R", "1"), ("Z", "0")])."""
    cell, _, rest = str(variant).partition(":")
    return cell, re.findall(r"(\w+)=([^,]+)", rest)


def label(row: pd.Series, table: pd.DataFrame) -> str:
    """The variant, and how it was run where the table has it more than once."""
    return str(row.variant) if (table.variant == row.variant).sum() == 1 else f"{row.variant} {how(row)}"


def how(row: pd.Series) -> str:
    """How a row was run, where it is not the usual way: engine, capture, precision."""
    parts = [str(row.engine), "captured" if row.capture else "", str(row.precision) if row.precision != "ieee" else ""]
    return ", ".join(p for p in parts if p)


NEITHER = (f"{grids.BASELINE}:Z=0,R=1", "rnn")
PICTURE_NAMES = {
    grids.BASELINE: "both gates", f"{grids.BASELINE}:R=1": "without R", f"{grids.BASELINE}:Z=0": "without Z",
    **dict.fromkeys(NEITHER, "neither"),
}  # fmt: skip


def picture_name(variant: object) -> str:
    """Return what the page calls a variant: 'without R'; '' for one that the first screen does not show."""
    return PICTURE_NAMES.get(str(variant), "")


class Gate(NamedTuple):
    """A gate as its equations have it, not what was found. At `gone` they simply lose it."""

    name: str
    role: str
    gone: str


GATES = {  # of the baseline; another's are called by their letter
    "R": Gate("the reset gate", "R decides how much of the old state the new candidate may see.", "1"),
    "Z": Gate("the update gate", "Z decides how much of the old state is kept; Z = 1 keeps all of it.", "0"),
}


def gate_name(cell: str, gate: str) -> str:
    return GATES[gate].name if cell == grids.BASELINE and gate in GATES else f"gate {gate}"
