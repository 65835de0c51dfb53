"""PUBLISHED: the perplexities of the book's own notebooks, the settings they were had with, and ours beside them.

Rule: frames in, a frame out; no torch. Source: the outputs of the notebooks in the builds of d2l.ai's PyTorch edition,
counted over builds; no seed was set in any of them. `classic`: training perplexity of the last epoch. `v1`, the later
edition: held-out perplexity of the last epoch, the mean over minibatches of exp(loss).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from harness.record.tables import frame


class Figure(NamedTuple):
    """A published perplexity: mean and standard deviation over `builds` (fewest, most) of the book."""

    mean: float
    sd: float
    builds: tuple[int, int]


Setting = tuple[str, tuple[str, ...]]  # a protocol's name, and what is set in it

_OLD, _NEW = (87, 101), (11, 11)
PUBLISHED: dict[tuple[Setting, str], Figure] = {
    (("classic", ("hidden=512",)), "rnn"): Figure(1.02, 0.05, _OLD),
    (("classic", ()), "nn.rnn"): Figure(1.31, 0.03, _OLD),
    (("classic", ()), "gru"): Figure(1.11, 0.06, _OLD),
    (("classic", ()), "nn.gru"): Figure(1.02, 0.05, _OLD),
    (("classic", ()), "lstm"): Figure(1.16, 0.09, _OLD),
    (("classic", ()), "nn.lstm"): Figure(1.05, 0.06, _OLD),
    (("v1", ("lr=1", "epochs=100")), "rnn"): Figure(7.32, 0.10, _NEW),
    (("v1", ("lr=1", "epochs=100")), "nn.rnn"): Figure(7.27, 0.09, _NEW),
    (("v1", ()), "gru"): Figure(6.83, 0.09, _NEW),
    (("v1", ()), "nn.gru"): Figure(6.61, 0.13, _NEW),
    (("v1", ()), "lstm"): Figure(7.46, 0.11, _NEW),
    (("v1", ()), "nn.lstm"): Figure(6.86, 0.10, _NEW),
}
SETTINGS: dict[Setting, list[str]] = {}
for (_setting, _variant), _ in PUBLISHED.items():
    SETTINGS.setdefault(_setting, []).append(_variant)


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
