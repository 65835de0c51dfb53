"""Build tasks.csv: for each task and variant how many seeds solve it, after how many updates, and beyond the length.

One rule, that of stats.py: frames in, a frame out; what cannot be computed is missing, never 0; a failed run is
counted, does not count as solved, and enters no mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from harness.analysis.stats import ALPHA, holm, interval, share, sign_flip
from harness.experiments.grids import BASELINE, TASK_VARIANTS
from harness.experiments.tasks import TASKS
from harness.record.schema import COLUMNS

GROUP = ["protocol", "task", "length", "variant", "engine", "precision", "device"]
SAME = ("hidden", "parameters", "lr", "budget", "threshold", "score_is", "trivial", "optimal", "length_longer",
        "trivial_longer", "linear")  # fmt: skip


def build(trained: pd.DataFrame, rates: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """Rows of probes.csv, and of learning_rates.csv, as tasks.csv: a row a task, length and variant.

    A share of seeds has its exact (Clopper-Pearson) 95 % interval; updates are of the seeds that solved; scores have t
    intervals. Against the baseline on the same task: `fails` and `succeeds` where the intervals of the two shares are
    apart; else, where both solved it, `slower` and `faster` by an exact sign-flip test of the log ratio of updates,
    paired by seed, Holm over the contrasts of the task; else `undecided`.
    """
    trained = trained.assign(error=trained["error"].fillna("").astype(str))
    groups = {key: own for key, own in trained.groupby(GROUP, sort=False)}
    rows: list[dict[str, object]] = []
    ps: list[float] = []
    for key, own in groups.items():
        row: dict[str, object] = dict(zip(GROUP, key, strict=True)) | _facts(own)
        tried = rates[(rates["protocol"] == row["protocol"]) & (rates["variant"] == row["variant"])]
        if len(tried):
            solving = pd.to_numeric(tried["solved"]) == tried["seeds"] + tried["failed"]
            row |= {"rates_tried": len(tried), "rates_that_solve": int(solving.sum()),
                    "rate_at_edge": row["lr"] in (tried["lr"].min(), tried["lr"].max())}  # fmt: skip
        other = next((g for k, g in groups.items() if k[:3] == key[:3] and k[3] == baseline and k[5:] == key[5:]), None)
        p = math.nan
        if other is not None and row["variant"] != baseline:
            row |= {"baseline": baseline}
            against, p = _against(own, other)
            row.update(against)
        rows.append(row)
        ps.append(p)
    order = sorted(range(len(rows)), key=lambda k: _place(rows[k]))
    frame = pd.DataFrame([rows[k] for k in order], columns=list(COLUMNS["tasks"]))
    ps = [ps[k] for k in order]
    frame["p_holm"] = np.array(ps, dtype=float)
    for _, own in frame.groupby("protocol"):  # a task is a question, and its contrasts a family
        frame.loc[own.index, "p_holm"] = holm(own["p_holm"], max(int(own["baseline"].notna().sum()), 1))
    frame["verdict"] = [
        said or _by_updates(ratio, p) if isinstance(base, str) else ""
        for said, base, ratio, p in zip(
            frame["verdict"], frame["baseline"], frame["updates_ratio"], frame["p_holm"], strict=True
        )
    ]
    return frame


def _place(row: dict[str, object]) -> tuple[object, ...]:
    """Tasks in the order of their file, the variants that ablate trains first."""
    tasks, usual = list(TASKS), list(TASK_VARIANTS)
    task, variant = str(row["task"]), str(row["variant"])
    return (
        tasks.index(task) if task in tasks else len(tasks), task, row["length"], row["protocol"],
        usual.index(variant) if variant in usual else len(usual), variant, row["engine"],
    )  # fmt: skip


def _by_updates(ratio: float, p: float) -> str:
    if not p <= ALPHA:  # NaN where no seed of one of them solved it
        return "undecided"
    return "slower" if ratio > 1 else "faster"


def _solved(own: pd.DataFrame) -> pd.Series:
    """Updates of the seeds that solved the task, by seed."""
    solved = own[own["solved_after"].notna() & (own["error"] == "")]
    return pd.Series(pd.to_numeric(solved["solved_after"]).to_numpy(float), index=solved["seed"].to_numpy())


def _facts(own: pd.DataFrame) -> dict[str, object]:
    good, updates = own[own["error"] == ""], _solved(own)
    low, high = share(len(updates), len(own))
    facts: dict[str, object] = {name: _first(own[name]) for name in SAME}
    facts |= {"seeds": len(good), "failed": len(own) - len(good), "solved": len(updates),
              "solved_share": len(updates) / len(own), "solved_low": low, "solved_high": high}  # fmt: skip
    if len(updates):
        facts |= {"updates_median": updates.median(), "updates_least": updates.min(), "updates_most": updates.max()}
    most = 1.0 if facts["optimal"] == 1 else math.inf  # a share; an error has no end
    for name in ("score", "score_longer"):
        values = pd.to_numeric(good[name]).dropna().to_numpy(float)
        bounds = interval(values)
        facts |= {name: values.mean() if len(values) else None, f"{name}_low": max(bounds.low, 0.0),
                  f"{name}_high": min(bounds.high, most)}  # fmt: skip
    failures = sorted(set(own["error"]) - {""})
    return facts | {"error": f"{len(own) - len(good)} of {len(own)}: {failures[0]}" if failures else ""}


def _against(own: pd.DataFrame, other: pd.DataFrame) -> tuple[dict[str, object], float]:
    """Compare a variant's seeds with the baseline's: verdict, and the p value of its updates (NaN if none)."""
    mine, whole = _solved(own), _solved(other)
    (low, high), (base_low, base_high) = share(len(mine), len(own)), share(len(whole), len(other))
    verdict = "fails" if high < base_low else "succeeds" if low > base_high else ""
    pairs = mine.index.intersection(whole.index)
    if not len(pairs):
        return {"verdict": verdict}, math.nan
    logs = np.log(mine[pairs].to_numpy() / whole[pairs].to_numpy())
    bounds = interval(logs)
    return {
        "verdict": verdict, "updates_ratio": math.exp(logs.mean()), "updates_ratio_low": math.exp(bounds.low),
        "updates_ratio_high": math.exp(bounds.high),
    }, sign_flip(logs)  # fmt: skip


def _first(values: pd.Series) -> object:
    known: Sequence[object] = values.dropna().tolist()
    return known[0] if known else None
