"""Compute speeds and their ratios from timed blocks.

Rule: as stats.py. A sample is a fresh process, of several blocks; only samples of one round are paired, and two
sessions or two machines are never pooled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from harness.analysis.stats import median_interval
from harness.record.tables import typed

UNTOLD = "cannot be told"


class SpeedRatio(NamedTuple):
    """How many times the tokens/sec of the baseline: median and 94 % interval over `rounds` pairs, and what that says.

    `verdict`: faster, slower, or UNTOLD; '' without a pair. `disturbed`: pairs with a sample disturbed in every block.
    """

    ratio: float
    low: float
    high: float
    rounds: int
    verdict: str = ""
    disturbed: int = 0


class SpeedSummary(NamedTuple):
    """Tokens/sec over fresh processes, and the medians of what else a process measured.

    `disturbed`: how many of the samples have no block that other processes left alone.
    """

    median: float
    q1: float
    q3: float
    step_ms: float
    percent_of_peak: float
    peak_memory_mib: float
    peak_reserved_mib: float
    samples: int
    disturbed: int


def speed_ratio(speed: pd.DataFrame, label: str, baseline_label: str) -> SpeedRatio:
    """Tokens/sec of one label over another's: median of the ratios within each round, and its interval.

    From the latest session (by `started`) that holds both; only samples of the same round, protocol,
    device, precision and number of seeds are paired. NaN bounds under 5 rounds, NaN ratio under 1.
    """
    speed = latest(blocks(speed), (label, baseline_label))
    return ratio(speed[speed["label"] == label], speed[speed["label"] == baseline_label], noise(speed))


def noise(speed: pd.DataFrame) -> float:
    """Return the most by which a contender timed under two names (A/A control) differs from itself: log of a ratio.

    The end of the interval that is farther from 1; of several the largest. NaN where nothing was timed twice, or in
    fewer than 5 rounds. `speed` is of one session.
    """
    found = [math.nan]
    for label, control in speed[speed["control_of"] != ""].groupby("control_of", sort=False):
        again = ratio(control, speed[speed["label"] == label])
        found += [abs(math.log(end)) for end in (again.low, again.high) if math.isfinite(end)]
    return max(found[1:], default=math.nan)


def speed_summary(speed: pd.DataFrame, label: str) -> SpeedSummary:
    """Median and quartiles over samples (fresh processes) of a label, from the latest session that holds it.

    A sample's value is the median of its undisturbed blocks without error (of all its blocks without
    error, if every one was disturbed); its peak is the highest of them. Quartiles need 2 samples.
    """
    speed = latest(blocks(speed), (label,))
    return summary(speed[speed["label"] == label])


def blocks(speed: pd.DataFrame) -> pd.DataFrame:
    """Timed blocks, typed and in one order; a block without a usable rate has its `error` set."""
    speed = typed(speed, "speed")
    rate = speed["tokens_per_sec"]
    lost = (speed["error"] == "") & ~(np.isfinite(rate) & (rate > 0))
    speed = speed.assign(error=speed["error"].mask(lost, "no tokens_per_sec"))
    return speed.sort_values(["session", "environment", "label", "round", "block"], kind="stable")


def latest(speed: pd.DataFrame, labels: Iterable[str]) -> pd.DataFrame:
    """The rows of the session and environment, started last, that holds every label: two are never pooled."""
    asked = set(labels)
    held = [group for _, group in speed.groupby(["session", "environment"]) if asked <= set(group["label"])]
    return max(held, key=lambda group: str(group["started"].max()), default=speed.iloc[:0])


def samples(speed: pd.DataFrame) -> pd.DataFrame:
    """A row a sample: medians over its undisturbed blocks (all, if none is), and its highest peaks.

    A sample is a fresh process; where it was repeated because disturbed in every block, the blocks of all attempts.
    """
    process = ["session", "environment", "label", "round", "protocol", "device", "precision", "seeds"]
    good = speed[speed["error"] == ""]
    clean = (~good["disturbed"]).groupby([good[c] for c in process], dropna=False).transform("any")
    good = good[~good["disturbed"] | ~clean.astype(bool)]
    kinds = dict.fromkeys(("tokens_per_sec", "step_ms", "percent_of_peak"), "median")
    kinds |= dict.fromkeys(("peak_memory_mib", "peak_reserved_mib", "disturbed"), "max")
    good = good.assign(
        disturbed=good["disturbed"].astype(float)
    )  # of what is left here: all blocks of a sample or none
    return good.groupby(process, dropna=False, as_index=False).agg(kinds)


def summary(speed: pd.DataFrame) -> SpeedSummary:
    each = samples(speed)
    rates = each["tokens_per_sec"].to_numpy(dtype=np.float64)
    others = ("step_ms", "percent_of_peak", "peak_memory_mib", "peak_reserved_mib")
    middle = {c: float(each[c].median()) for c in others}
    q1, median, q3 = np.percentile(rates, [25, 50, 75]).tolist() if len(rates) else [math.nan] * 3
    if len(rates) < 2:
        q1 = q3 = math.nan  # one sample has no spread, which is not a spread of 0
    return SpeedSummary(median, q1, q3, **middle, samples=len(rates), disturbed=int(each["disturbed"].sum()))


def ratio(mine: pd.DataFrame, other: pd.DataFrame, noise: float = math.nan) -> SpeedRatio:
    """Return the speed ratio of two contenders of one session.

    A difference is told where the interval excludes 1, the median lies beyond what a contender differs by from itself
    (`noise`), and the medians of both, which stand beside it, do not contradict it.
    """
    same = ["round", "protocol", "device", "precision", "seeds"]
    both = [samples(f).groupby(same, dropna=False)[["tokens_per_sec", "disturbed"]].median() for f in (mine, other)]
    one, two = (each["tokens_per_sec"] for each in both)
    logs = np.log((one / two).dropna().to_numpy(dtype=np.float64))  # aligned on `same`: an unpaired round is NaN
    if not len(logs):
        return SpeedRatio(math.nan, math.nan, math.nan, 0)
    middle, (low, high) = float(np.median(logs)), median_interval(logs)
    shown = math.log(one.median() / two.median())
    told = low * high > 0 and not abs(middle) <= noise and low - 1e-9 <= shown <= high + 1e-9
    verdict = UNTOLD if not told else "faster" if middle > 0 else "slower"
    disturbed = int(((both[0]["disturbed"] + both[1]["disturbed"]).dropna() > 0).sum())
    return SpeedRatio(math.exp(middle), math.exp(low), math.exp(high), len(logs), verdict, disturbed)


LATENCY = ("p50_us", "p99_us", "mean_us", "tokens_per_sec_batch", "step_ms")
PARTS = ("products", "pointwise", "recurrence", "head", "update", "python")


def latencies(table: pd.DataFrame) -> pd.DataFrame:
    """A row a candidate of latency.csv, lowest p50 first: medians over its samples, and p50's and p99's least and most.

    A sample is the median of its undisturbed blocks, or of all where every one was disturbed. `samples`: how many;
    `disturbed`: how many of these were disturbed in every block. Of parts, shares of a training step in per cent.
    """
    good = table[(table["error"].fillna("") == "") & table["p50_us"].notna()]
    rows = []
    for label, own in good.groupby("label", sort=True):
        each = []
        for _, sample in own.groupby("round"):
            clean = sample[~sample["disturbed"].astype(bool)]
            kept = clean if len(clean) else sample
            names = [*LATENCY, *(f"{part}_percent" for part in PARTS)]
            each.append({**kept[names].astype(float).median().to_dict(), "disturbed": not len(clean)})
        found = pd.DataFrame(each)
        facts = {
            name: own[name].iloc[0] for name in ("variant", "engine", "control_of", "protocol", "device", "hidden")
        }
        ends = {f"{q}_{end}": getattr(found[f"{q}_us"], end)() for q in ("p50", "p99") for end in ("min", "max")}
        middle = found.drop(columns="disturbed").median().to_dict()
        rows.append({"label": str(label), **facts, **middle, **ends, "samples": len(found),
                     "disturbed": int(found["disturbed"].sum())})  # fmt: skip
    return pd.DataFrame(rows).sort_values("p50_us", ignore_index=True) if rows else pd.DataFrame()
