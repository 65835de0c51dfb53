"""Build claims.csv and reproduce.csv: what the trainings say of what others have published.

One rule, that of stats.py: frames in, a frame out; what cannot be computed is missing, never 0; a failed run counts as
not solved, and enters no mean. Every verdict is by an interval and a margin fixed in experiments/claims.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis.stats import interval, share
from harness.experiments.claims import CLAIMS, PUBLISHED, SOONER, Arm, Claim, Comparison
from harness.record.schema import COLUMNS
from harness.record.tables import frame

HALF = 0.5  # of the seeds: most solve a task where the interval of their share is above it
Fact = dict[str, object]


def build(
    runs: pd.DataFrame, probes: pd.DataFrame, labels: Mapping[Arm, str], claims: Sequence[Claim] = CLAIMS
) -> pd.DataFrame:
    """Rows of runs.csv and probes.csv as claims.csv, a row a comparison. `labels`: the protocol of each arm."""
    rows: list[Fact] = []
    for claim in claims:
        found = [_compared(c, [_rows(arm, labels, runs, probes) for arm in c.arms]) for c in claim.comparisons]
        verdict = _whole([str(fact["outcome"]) for fact in found])
        about = {name: getattr(claim, name) for name in ("source", "url", "read", "sentence")}
        rows += [
            {"claim": claim.name, **about, "prediction": c.prediction, "kind": c.kind, "task": c.arm.task,
             "variant": c.arm.label, "other": c.other.label if c.other else "", "verdict": verdict, **fact}
            for c, fact in zip(claim.comparisons, found, strict=True)
        ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS["claims"]))


def reproduced(runs: pd.DataFrame, asked: Mapping[str, Any]) -> pd.DataFrame:
    """Return reproduce.csv: a row a published perplexity, with ours over the runs that the grid file `asked` for.

    `within_2sd`: whether our mean lies within two of the published standard deviations of the published mean;
    'yes', 'no', or '' where we have none. `exp_of_mean` is of the same held-out text, the unbiased one, on v1 alone.
    """
    rows = []
    for (setting, variant), figure in PUBLISHED.items():
        part = next((p for p in asked["parts"] if p["setting"] == [setting[0], list(setting[1])]), None)
        if part is None:
            continue
        name = setting[0]
        own = runs[runs.run.isin(part["runs"]) & (runs.variant == variant)]
        done = own[own.error.astype(object).where(own.error.notna(), "") == ""]
        column = "train_perplexity" if name == "classic" else "heldout_mean_exp"
        ours = pd.to_numeric(done[column]).dropna().to_numpy(dtype=float)
        held = np.log(pd.to_numeric(done.heldout_perplexity).dropna().to_numpy(dtype=float))
        rows.append({
            "protocol": part["protocol"]["label"], "variant": variant, "engine": next(iter(own.engine), ""),
            "quantity": "training, last epoch" if name == "classic" else "held out, mean of exp",
            "published": figure.mean, "published_sd": figure.sd,
            "builds_least": figure.builds[0], "builds_most": figure.builds[1],
            "perplexity": ours.mean() if len(ours) else None, "sd": ours.std(ddof=1) if len(ours) > 1 else None,
            "seeds": len(ours), "failed": len(own) - len(done),
            "within_2sd": ("yes" if abs(ours.mean() - figure.mean) <= 2 * figure.sd else "no") if len(ours) else "",
            "exp_of_mean": float(np.exp(held.mean())) if name == "v1" and len(held) else None,
            "corpus": part["corpus"],
        })  # fmt: skip
    return frame("reproduce", rows)


def _whole(outcomes: Sequence[str]) -> str:
    """A claim is what all of its comparisons are; contradicted where one is; nothing where one was not run."""
    if "" in outcomes:
        return ""
    if "contradicted" in outcomes:
        return "contradicted"
    return "reproduced" if set(outcomes) == {"reproduced"} else "undecided"


def _rows(arm: Arm, labels: Mapping[Arm, str], runs: pd.DataFrame, probes: pd.DataFrame) -> pd.DataFrame:
    own = runs if arm.task == "text" else probes
    own = own[(own["variant"] == arm.variant) & (own["protocol"] == labels.get(arm, ""))]
    return own.assign(error=own["error"].fillna("").astype(str)).set_index("seed")


def _compared(comparison: Comparison, groups: Sequence[pd.DataFrame]) -> Fact:
    """Estimate, interval, n and outcome of one comparison; no outcome where an arm has no trainings."""
    fact: Fact = {"seeds": min(int((g["error"] == "").sum()) for g in groups), "outcome": "",
                  "failed": sum(int((g["error"] != "").sum()) for g in groups)}  # fmt: skip
    if any(g.empty for g in groups):
        return fact
    if comparison.kind in ("solves", "fails"):
        return fact | _share(groups[0], comparison.kind == "solves")
    if comparison.kind == "better":
        return fact | _better(groups[0], groups[1])
    if comparison.kind == "generalizes":
        scores = pd.to_numeric(groups[0]["score_longer"]).dropna().to_numpy(float)
        low, high, _, _ = interval(scores)
        fact |= {"measure": "score", "estimate": scores.mean() if len(scores) else None, "low": low, "high": high}
        return fact | {
            "outcome": _word(low >= comparison.margin, high < comparison.margin),
            "margin": comparison.margin,
        }
    logs = [np.log(pd.to_numeric(g[g["error"] == ""]["heldout_perplexity"])) for g in groups]
    return fact | _loss(comparison, (logs[0] - logs[1]).dropna().to_numpy(float))


def _solved(own: pd.DataFrame) -> tuple[int, int, float, float]:
    """Seeds that solve the task, of how many, and the exact interval of their share."""
    good = int((own["solved_after"].notna() & (own["error"] == "")).sum())
    return good, len(own), *share(good, len(own))


def _share(own: pd.DataFrame, solves: bool) -> Fact:
    good, n, low, high = _solved(own)
    words = _word(low > HALF, False) if solves else _word(high < HALF, low > HALF)  # a budget contradicts nothing
    return {"measure": "share", "estimate": good / n, "low": low, "high": high, "outcome": words,
            "evidence": f"{good} of {n} seeds"}  # fmt: skip


def _better(own: pd.DataFrame, other: pd.DataFrame) -> Fact:
    (good, n, low, high), (others, of, other_low, other_high) = _solved(own), _solved(other)
    said = f"{good} of {n} seeds against {others} of {of}"
    apart = low > other_high or high < other_low
    if apart or not (low > HALF and other_low > HALF):
        # the interval of a difference of shares, from those of both (Newcombe 1998)
        mine, its = good / n, others / of
        below, above = math.hypot(mine - low, other_high - its), math.hypot(high - mine, its - other_low)
        return {"measure": "difference of shares", "estimate": mine - its, "low": mine - its - below,
                "high": mine - its + above, "outcome": _word(low > other_high, apart), "evidence": said}  # fmt: skip
    logs = np.log(_updates(own) / _updates(other)).dropna().to_numpy(float)
    low, high = (math.exp(x) for x in interval(logs)[:2])
    return {"measure": "ratio of updates", "estimate": math.exp(logs.mean()), "low": low, "high": high,
            "margin": SOONER, "outcome": _word(high < SOONER, low > SOONER), "evidence": said}  # fmt: skip


def _updates(own: pd.DataFrame) -> pd.Series:
    return pd.to_numeric(own[own["error"] == ""]["solved_after"]).dropna()


def _loss(comparison: Comparison, differences: np.ndarray[Any, np.dtype[np.float64]]) -> Fact:
    """Held-out loss of the arm less the other's, in nats a character."""
    low, high, n, _ = interval(differences)
    margin = comparison.margin
    fact: Fact = {"measure": "nats/char", "estimate": differences.mean() if n else None, "low": low, "high": high,
                  "margin": margin, "seeds": n}  # fmt: skip
    yes, no = {
        "worse": (low > 0 and high >= margin, high < margin),
        "not_worse": (high < margin, low > margin),
        "same": (-margin < low and high < margin, low > margin or high < -margin),
    }[comparison.kind]
    return fact | {"outcome": _word(yes, no)}


def _word(yes: bool, no: bool) -> str:
    return "reproduced" if yes else "contradicted" if no else "undecided"
