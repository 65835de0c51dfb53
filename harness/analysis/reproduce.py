"""Compare trained perplexities with the published ones. Frames in, a frame out; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from harness.experiments.published import PUBLISHED
from harness.record.tables import frame


def compare(runs: pd.DataFrame, asked: Mapping[str, Any]) -> pd.DataFrame:
    """reproduce.csv: a row a published figure, with ours over the runs that the grid file `asked` for.

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
