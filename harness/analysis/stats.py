"""Compute intervals and paired tests. Arrays in, numbers out.

Rule: no disk, no clock, no device, no torch. What cannot be computed is NaN, never 0; a failed run is
counted and enters no mean; the order of the rows never matters. A difference is in nats a character
(variant minus baseline, of log perplexity), so negative is better.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.experiments.grids import seeds_needed

ALPHA = 0.05
# Nats a character. Two variants nearer than this are called equivalent: it is 2 % in perplexity, about the
# standard deviation one published model shows from build to build (1.2 to 2 %). Stated before any run.
MARGIN_NATS = 0.02
MEDIAN_CONFIDENCE = 0.9375  # what the range of five values holds their median with, to be called 94 %
EXACT_UP_TO = 20  # pairs; 2^19 sums take about 10 ms, each further pair doubles that
RESAMPLES = 100_000  # above it: the standard error of p near .05 is 0.0007

Verdict = Literal["worse", "better", "equivalent", "undecided", ""]
Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """Bounds of a mean, in the unit of the values; NaN where there are none."""

    low: float
    high: float
    n: int
    method: str


def interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Student t interval of the mean of independent values, n >= 2; NaN bounds below that.

    One rule for every n, chosen by measured coverage against scipy's BCa bootstrap (2,000 resamples;
    4,000 data sets a cell, so +-0.007; nominal 0.95). BCa is too narrow wherever seeds are few:

        values                                   n = 3        5         10        20
        normal                          t       0.953     0.951     0.947     0.955
                                        BCa     0.723     0.833     0.892     0.932
        lognormal, sigma 0.5            t       0.924     0.911     0.924     0.932
                                        BCa     0.694     0.809     0.883     0.914
        lognormal, sigma 1              t       0.847     0.836     0.842     0.869
                                        BCa     0.622     0.746     0.829     0.876
        normal, 1 in 10 shifted 10 sd   t       0.868     0.768     0.721     0.874
                                        BCa     0.516     0.600     0.675     0.853

    The last rows are the caveat: where one seed in ten goes astray, ten seeds cannot bound the mean by
    either; look at the points. Of paired differences (nearly symmetric), the first rows hold.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    x = _finite(values, "values")
    if len(x) < 2:
        return Interval(math.nan, math.nan, len(x), "t")
    if x.min() == x.max():  # exactly, where mean and sd would round
        return Interval(float(x[0]), float(x[0]), len(x), "t")
    from scipy.special import stdtrit  # imported here: 0.3 s that --help need not pay

    half = float(stdtrit(len(x) - 1, (1 + confidence) / 2) * x.std(ddof=1) / math.sqrt(len(x)))
    return Interval(float(x.mean()) - half, float(x.mean()) + half, len(x), "t")


def welch(one: ArrayLike, other: ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of `one` minus mean of `other`, independent, and its interval (Welch 1947); NaN bounds below 2 of each."""
    x, y = _finite(one, "values"), _finite(other, "values")
    if not len(x) or not len(y):
        return math.nan, math.nan, math.nan
    change = float(x.mean() - y.mean())
    if min(len(x), len(y)) < 2:
        return change, math.nan, math.nan
    u, v = x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)
    if u + v == 0:
        return change, change, change
    from scipy.special import stdtrit

    freedom = (u + v) ** 2 / (u**2 / (len(x) - 1) + v**2 / (len(y) - 1))
    half = float(stdtrit(freedom, (1 + confidence) / 2) * math.sqrt(u + v))
    return change, change - half, change + half


def quantiles(most: int, level: float) -> list[float]:
    """Student's t for `level` % intervals of 2, 3, ... `most` values."""
    from scipy.special import stdtrit

    return [round(float(stdtrit(n - 1, (1 + level / 100) / 2)), 6) for n in range(2, most + 1)]


def median_interval(values: ArrayLike) -> tuple[float, float]:
    """Interval of the median with no assumption of shape: the narrowest pair of order statistics, one as far from its

    end as the other, that holds it with at least MEDIAN_CONFIDENCE. Of 5 to 8 values it is their range. NaN below 5.
    """
    x = np.sort(_finite(values, "values"))
    n, outside = len(x), 0.0
    for k in range(n // 2 + 1):  # a median lies below the lowest k + 1, or above the highest, this often
        outside += 2 * math.comb(n, k) / 2**n
        if outside > 1 - MEDIAN_CONFIDENCE:
            return (float(x[k - 1]), float(x[-k])) if k else (math.nan, math.nan)
    return math.nan, math.nan


def sign_flip(differences: ArrayLike) -> float:
    """Two-sided p of the mean of paired differences, were each as likely to have the other sign.

    Exact up to 20 pairs, never under 2 / 2^n; above, 100,000 seeded sign patterns with (count + 1) / (100,000 + 1).
    NaN without pairs, 1 if all are zero. Sums that differ by rounding alone count as equal.
    """
    d = _finite(differences, "differences")
    if not len(d):
        return math.nan
    if not d.any():
        return 1.0
    d = np.sort(d) / np.abs(d).max()  # sorted: the order of the pairs must not reach the sampled p
    reached = abs(d.sum()) - 1e-9 * np.abs(d).sum()
    if len(d) <= EXACT_UP_TO:
        sums = d[:1]  # its sign stays: the other half of the patterns are mirror images
        for one in d[1:]:
            sums = np.concatenate([sums + one, sums - one])
        return float(np.mean(np.abs(sums) >= reached))
    eights = np.pad(d, (0, -len(d) % 8)).reshape(-1, 8)  # a random byte has the signs of eight: their sum is looked up
    signs = 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1) - 1.0
    sums_of = eights @ signs.T
    generator = np.random.default_rng(0)
    count = 0
    for _ in range(100):  # in parts, to hold megabytes and not gigabytes
        drawn = generator.integers(0, 256, size=(RESAMPLES // 100, len(eights)), dtype=np.uint8)
        sums = sums_of[np.arange(len(eights)), drawn].sum(axis=1)
        count += int(np.sum(np.abs(sums) >= reached))
    return (count + 1) / (RESAMPLES + 1)


def holm(ps: ArrayLike, family: int) -> Floats:
    """Holm's step-down adjusted p, in the order given, monotone and at most 1.

    `family` is the number of comparisons stated before running. NaN stays NaN and does not shrink it:
    a comparison that could not be made counts as one that showed nothing, so a failure in one variant
    never makes another significant. ValueError if more p are given than were stated.
    """
    p = np.asarray(ps, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(p))
    if len(known) > family:
        raise ValueError(f"family is {family} but {len(known)} p values are given: state every comparison beforehand")
    if np.any((p[known] < 0) | (p[known] > 1)):
        raise ValueError(f"a p value lies in [0, 1], not {p[known].min():g} to {p[known].max():g}")
    order = known[np.argsort(p[known], kind="stable")]
    adjusted = np.full(p.shape, math.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * (family - np.arange(len(order)))), 1.0)
    return adjusted


def p_better(differences: ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """(share, low, high): pairs in which the variant is better (negative), ties half; Wilson's interval.

    Written out because scipy's takes whole counts only and a tie is half a one. NaN without pairs.
    """
    d = _finite(differences, "differences")
    if not len(d):
        return math.nan, math.nan, math.nan
    from scipy.special import ndtri

    n, share = len(d), float(np.mean((d < 0) + 0.5 * (d == 0)))
    z2 = float(ndtri((1 + confidence) / 2)) ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return share, max(centre - half, 0.0), min(centre + half, 1.0)


def share(successes: int, of: int, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high): the exact interval of a share (Clopper and Pearson 1934). NaN of none."""
    if not of:
        return math.nan, math.nan
    from scipy.stats import binomtest

    bounds = binomtest(successes, of).proportion_ci(confidence, method="exact")
    return float(bounds.low), float(bounds.high)


def iqm(values: ArrayLike) -> float:
    """Mean of the middle half: n // 4 values cut at each end (scipy's trim_mean at 0.25). NaN of none."""
    x = np.sort(_finite(values, "values"))
    return float(x[len(x) // 4 : len(x) - len(x) // 4].mean()) if len(x) else math.nan


def equivalent(low: float, high: float, margin: float = MARGIN_NATS) -> bool:
    """Whether the whole interval lies strictly inside +-margin; no for NaN. Two one-sided tests at 2.5 %."""
    return -margin < low and high < margin


def verdict(delta: float, low: float, high: float, p_holm: float, margin: float = MARGIN_NATS) -> Verdict:
    """One word for a difference in nats/char (positive is worse); '' where any of its numbers is missing.

    `equivalent` comes first: with enough seeds any difference is significant, and one that is surely
    smaller than the margin stays small. `worse` and `better` need p_holm < .05 and an interval
    that excludes 0, on the same side. A large p alone is `undecided`, never "no difference".
    """
    if math.isnan(delta + low + high + p_holm):
        return ""
    if equivalent(low, high, margin):
        return "equivalent"
    if p_holm < ALPHA and low > 0:
        return "worse"
    if p_holm < ALPHA and high < 0:
        return "better"
    return "undecided"


def seeds_to_decide(differences: ArrayLike, margin: float = MARGIN_NATS, family: int = 1) -> int | None:
    """How many more seeds would probably decide an undecided row; at least 1. None below 2 pairs.

    Normal approximation, four times in five if the mean and sd seen so far are the true ones:
    n = ((z + z_.8) sd / distance)^2, where the distance is from the mean to 0 (a difference, at .05 / family)
    or to the margin (equivalence, at .05), whichever needs fewer. A difference also needs enough pairs for
    its exact p to pass Holm.
    """
    d = _finite(differences, "differences")
    if len(d) < 2:
        return None
    from scipy.special import ndtri

    def pairs(distance: float, alpha: float) -> float:
        if distance <= 0:
            return math.inf
        return float(((ndtri(1 - alpha / 2) + ndtri(0.8)) * d.std(ddof=1) / distance) ** 2)

    size = abs(float(d.mean()))
    least = min(max(pairs(size, ALPHA / family), seeds_needed(family)), pairs(margin - size, ALPHA))
    return max(1, math.ceil(least) - len(d)) if math.isfinite(least) else None


def _finite(values: ArrayLike, name: str) -> Floats:
    x = np.asarray(values, dtype=np.float64).ravel()
    if not np.isfinite(x).all():
        raise ValueError(f"{name} must be finite, {int(np.sum(~np.isfinite(x)))} of {len(x)} are not: drop failed runs")
    return x
