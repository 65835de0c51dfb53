"""Build axes.csv: the effect of each variant along a field of the protocol, paired by seed, corrected over all points.

One rule, that of stats.py: frames in, a frame out; what cannot be computed is missing, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis import compare
from harness.analysis.stats import holm, interval, sign_flip, verdict
from harness.experiments import grids
from harness.record.schema import COLUMNS


def build(runs: pd.DataFrame, asked: Mapping[str, Any]) -> pd.DataFrame:
    """Rows of runs.csv as axes.csv: a row a point and variant, in the order asked for.

    The axis is the first field that was given a list; other lists are its `setting`. `change` stands on the last point
    of an axis: the variant's effect there less its effect at the first point, paired by seed, in nats a character.
    Holm's family: every effect at every point and every change.
    """
    fields, parts = list(asked["fields"]), list(asked["parts"])
    axis, others = fields[0], fields[1:]
    pieces = []
    for part in parts:
        own = runs[runs["run"].isin(part["runs"])]
        table = compare.build(own, own.iloc[:0], part["variants"], part["protocol"]["label"], part["corpus_sha256"],
                              part["device"], grids.baseline_of(part["variants"]))  # fmt: skip
        setting = " ".join(f"{f}={v}" for f, v in zip(others, part["point"][1:], strict=True))
        pieces.append(table.assign(axis=axis, point=part["point"][0], setting=setting))
    frame = pd.concat(pieces, ignore_index=True).reindex(columns=list(COLUMNS["axes"]))
    logs = {part["protocol"]["label"]: _logs(runs[runs["run"].isin(part["runs"])]) for part in parts}
    changes: dict[int, float] = {}
    for (_, variant), own in frame[frame["baseline"] != ""].groupby(["setting", "variant"], sort=False):
        first, last = own.iloc[0], own.iloc[-1]
        none = pd.Series(dtype=float)
        effects_at = [
            logs[row["protocol"]].get(variant, none) - logs[row["protocol"]].get(row["baseline"], none)
            for row in (first, last)
        ]
        change = (effects_at[1] - effects_at[0]).dropna().to_numpy(float)
        if len(change) and len(own) > 1:
            bounds = interval(change)
            at = int(own.index[-1])
            frame.loc[at, ["change_nats", "change_low", "change_high"]] = [change.mean(), bounds.low, bounds.high]
            changes[at] = sign_flip(change)
    settings = len(set(frame["setting"]))
    family = sum(grids.contrasts(part["variants"]) for part in parts)
    family += settings * grids.contrasts(parts[0]["variants"]) * (len(parts) > settings)
    effects = frame["p_signflip"].to_numpy(float)
    adjusted = holm([*effects, *changes.values()], max(family, 1))
    frame["p_holm"], frame["comparisons"] = adjusted[: len(frame)], family
    for at, p in zip(changes, adjusted[len(frame) :], strict=True):
        frame.loc[at, "change_p_holm"] = p
    numbers = zip(*(frame[c].astype(float) for c in ("delta_nats", "delta_low", "delta_high", "p_holm")), strict=True)
    frame["verdict"] = [verdict(*four) for four in numbers]
    return frame


def trend(row: Any) -> str:
    """One word for a change of an effect: grows, shrinks or undecided; '' where there is none."""
    if not math.isfinite(row.change_nats):
        return ""
    sure = row.change_p_holm < 0.05 and (row.change_low > 0 or row.change_high < 0)
    return "undecided" if not sure else "grows" if row.change_nats > 0 else "shrinks"


def _logs(runs: pd.DataFrame) -> dict[str, pd.Series]:
    """variant -> held-out nats a character of the trainings that ended well, by seed."""
    good = runs[(runs["error"].fillna("") == "") & np.isfinite(pd.to_numeric(runs["heldout_perplexity"]))]
    return {
        str(variant): pd.Series(np.log(own["heldout_perplexity"].to_numpy(float)), index=own["seed"].to_numpy())
        for variant, own in good.groupby("variant")
    }
