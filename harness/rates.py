"""RATES: timed blocks in, speeds and their ratios out.

Rule: as stats.py. A sample is a fresh process, of several blocks; only samples of one round are paired, and two
sessions or two machines are never pooled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from harness.record import COLUMNS
from harness.stats import interval


class SpeedRatio(NamedTuple):
    """How many times the tokens/sec of the baseline, with the interval over `rounds` pairs."""

    ratio: float
    low: float
    high: float
    rounds: int


class SpeedSummary(NamedTuple):
    """Tokens/sec over fresh processes, and the medians of what else a process measured."""

    median: float
    q1: float
    q3: float
    step_ms: float
    percent_of_peak: float
    peak_memory_mib: float
    peak_reserved_mib: float
    samples: int


def speed_ratio(speed: pd.DataFrame, label: str, baseline_label: str) -> SpeedRatio:
    """Tokens/sec of one label over another's: geometric mean of the ratios within each round, t interval.

    From the latest session (by `started`) that holds both; only samples of the same round, protocol,
    device, precision and number of seeds are paired. NaN bounds under 2 rounds, NaN ratio under 1.
    """
    speed = latest(blocks(speed), (label, baseline_label))
    return ratio(speed[speed["label"] == label], speed[speed["label"] == baseline_label])


def speed_summary(speed: pd.DataFrame, label: str) -> SpeedSummary:
    """Median and quartiles over samples (fresh processes) of a label, from the latest session that holds it.

    A sample's value is the median of its undisturbed blocks without error (of all its blocks without
    error, if every one was disturbed); its peak is the highest of them. Quartiles need 2 samples.
    """
    speed = latest(blocks(speed), (label,))
    return summary(speed[speed["label"] == label])


def blocks(speed: pd.DataFrame) -> pd.DataFrame:
    """Timed blocks, typed and in one order; a block without a usable rate has its `error` set."""
    numbers = (
        "round", "hidden", "seeds", "block", "tokens_per_sec", "step_ms", "percent_of_peak",
        "peak_memory_mib", "peak_reserved_mib",
    )  # fmt: skip
    speed = typed(speed, "speed", numbers, ("session", "label", "variant", "protocol", "device"))
    rate = speed["tokens_per_sec"]
    lost = (speed["error"] == "") & ~(np.isfinite(rate) & (rate > 0))
    speed = speed.assign(error=speed["error"].mask(lost, "no tokens_per_sec"))
    return speed.sort_values(["session", "environment", "label", "round", "block"], kind="stable")


def latest(speed: pd.DataFrame, labels: Iterable[str]) -> pd.DataFrame:
    """The rows of the session and environment, started last, that holds every label: two are never pooled."""
    asked = set(labels)
    held = [group for _, group in speed.groupby(["session", "environment"]) if asked <= set(group["label"])]
    return max(held, key=lambda group: str(group["started"].max()), default=speed.iloc[:0])


def _samples(speed: pd.DataFrame) -> pd.DataFrame:
    """A row a fresh process: medians over its undisturbed blocks (all, if none is), and its highest peaks."""
    process = ["session", "environment", "label", "round", "protocol", "device", "precision", "seeds"]
    good = speed[speed["error"] == ""]
    clean = (~good["disturbed"]).groupby([good[c] for c in process], dropna=False).transform("any")
    good = good[~good["disturbed"] | ~clean.astype(bool)]
    kinds = dict.fromkeys(("tokens_per_sec", "step_ms", "percent_of_peak"), "median")
    kinds |= dict.fromkeys(("peak_memory_mib", "peak_reserved_mib"), "max")
    return good.groupby(process, dropna=False, as_index=False).agg(kinds)


def summary(speed: pd.DataFrame) -> SpeedSummary:
    each = _samples(speed)
    rates = each["tokens_per_sec"].to_numpy(dtype=np.float64)
    others = ("step_ms", "percent_of_peak", "peak_memory_mib", "peak_reserved_mib")
    middle = {c: float(each[c].median()) for c in others}
    q1, median, q3 = np.percentile(rates, [25, 50, 75]).tolist() if len(rates) else [math.nan] * 3
    if len(rates) < 2:
        q1 = q3 = math.nan  # one sample has no spread, which is not a spread of 0
    return SpeedSummary(median, q1, q3, **middle, samples=len(rates))


def ratio(mine: pd.DataFrame, other: pd.DataFrame) -> SpeedRatio:
    same = ["round", "protocol", "device", "precision", "seeds"]
    one, two = (_samples(f).groupby(same, dropna=False)["tokens_per_sec"].median() for f in (mine, other))
    logs = np.log((one / two).dropna().to_numpy(dtype=np.float64))  # aligned on `same`: an unpaired round is NaN
    if not len(logs):
        return SpeedRatio(math.nan, math.nan, math.nan, 0)
    low, high, rounds, _ = interval(logs)
    return SpeedRatio(math.exp(logs.mean()), math.exp(low), math.exp(high), rounds)


def typed(frame: pd.DataFrame, name: str, numbers: Sequence[str], keys: Sequence[str]) -> pd.DataFrame:
    """A frame read from CSV, or with no rows, made safe: pandas guesses a dtype from what a column holds."""
    frame = frame.reindex(columns=list(COLUMNS[name]))
    for column in numbers:
        frame[column] = pd.to_numeric(frame[column], errors="coerce").astype(np.float64)
    for column in (*keys, "engine", "precision", "error", "started", "environment"):
        frame[column] = frame[column].astype(object).where(frame[column].notna(), "").astype(str)
    for column in {"capture", "disturbed"} & set(frame):
        frame[column] = frame[column].astype(str).str.lower().isin(["true", "1", "1.0"])
    return frame
