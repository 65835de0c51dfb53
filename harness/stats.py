"""ANALYSE: intervals, paired tests, and the table that answers. Arrays and frames in, numbers out.

Rule: no disk, no clock, no device, no torch. What cannot be computed is NaN, never 0; a failed run is
counted and enters no mean; the order of the rows never matters. A difference is in nats a character
(variant minus baseline, of log perplexity), so negative is better.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from harness.grid import BASELINE, SPEED_BASELINE, seeds_needed
from harness.record import COLUMNS, TABLE

ALPHA = 0.05
# Nats a character. Two variants nearer than this are called equivalent: it is 2 % in perplexity, about the
# standard deviation one published model shows from build to build (1.2 to 2 %). Stated before any run.
MARGIN_NATS = 0.02
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
    peak_memory_mib: float
    peak_reserved_mib: float
    samples: int


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
    generator = np.random.default_rng(0)
    count = 0
    for _ in range(100):  # in parts, to hold megabytes and not gigabytes
        signs = generator.integers(0, 2, size=(RESAMPLES // 100, len(d)), dtype=np.int8) * 2 - 1
        count += int(np.sum(np.abs(signs @ d) >= reached))
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


def speed_ratio(speed: pd.DataFrame, label: str, baseline_label: str) -> SpeedRatio:
    """Tokens/sec of one label over another's: geometric mean of the ratios within each round, t interval.

    From the latest session (by `started`) that holds both; only samples of the same round, protocol,
    device, precision and number of seeds are paired. NaN bounds under 2 rounds, NaN ratio under 1.
    """
    speed = _latest(_speed(speed), (label, baseline_label))
    return _ratio(speed[speed["label"] == label], speed[speed["label"] == baseline_label])


def speed_summary(speed: pd.DataFrame, label: str) -> SpeedSummary:
    """Median and quartiles over samples (fresh processes) of a label, from the latest session that holds it.

    A sample's value is the median of its undisturbed blocks without error (of all its blocks without
    error, if every one was disturbed); its peak is the highest of them. Quartiles need 2 samples.
    """
    speed = _latest(_speed(speed), (label,))
    return _summary(speed[speed["label"] == label])


def table(
    runs: pd.DataFrame,
    speed: pd.DataFrame,
    variants: Sequence[str],
    protocol: str,
    corpus_sha256: str,
    device: str,
    baseline: str = BASELINE,
    speed_baseline: str = SPEED_BASELINE,
    seeds: Iterable[int] | None = None,
) -> pd.DataFrame:
    """bench.csv or ablate.csv: columns record.TABLE, a row a variant x engine (x capture x precision).

    Only runs of this protocol label, corpus, device and (if given) these seeds count; of two runs of one
    row and seed, the one started last. A run is failed if it has an error or a perplexity that is not
    finite; `seeds` are those that finished, and all else is of them: perplexities are geometric means over
    seeds, `train_sd` is the ordinary sd. A variant that loses seeds is judged on the rest: read `failed` too.

    Differences are paired by seed with the baseline (its run in the same engine, else in the engine with
    most pairs) if `variants` names it. Holm's family is every other variant asked for. The speed baseline
    is looked for in the row's own session: `speed_baseline`, else `baseline`, of the same precision.
    """
    runs = _quality(runs, variants, protocol, corpus_sha256, device, seeds)
    speed = _speed(speed)
    speed = speed[(speed["protocol"] == protocol) & (speed["device"] == device) & ~(speed["seeds"] > 1)]
    trained = {key: group for key, group in runs.groupby(list(_ROW))}
    timed = {key: group for key, group in speed[speed["variant"].isin(variants)].groupby(list(_ROW))}
    references = [_log_perplexity(group) for key, group in trained.items() if key[0] == baseline]
    corpora = sorted(set(runs["corpus"].dropna()))
    rows: list[dict[str, object]] = []
    for key in sorted({*trained, *timed}, key=lambda k: (variants.index(k[0]), k not in trained, k)):
        mine, clocked = trained.get(key), timed.get(key)
        row: dict[str, object] = dict(zip(_ROW, key, strict=True))
        row |= {"device": device, "protocol": protocol, "corpus_sha256": corpus_sha256, "seeds": 0, "failed": 0}
        row |= {"corpus": corpora[0] if corpora else "", "hidden": _first(mine, clocked, column="hidden")}
        row["parameters"] = _first(mine, runs[runs["variant"] == key[0]], column="parameters")
        errors = []
        if mine is not None:
            row |= _perplexities(mine)
            errors.append(_short(mine["error"], "run"))
            if key[0] != baseline and references:
                same = _log_perplexity(trained[baseline, *key[1:]]) if (baseline, *key[1:]) in trained else None
                row |= {"baseline": baseline} | _difference(_log_perplexity(mine), same, references)
        if clocked is not None:
            clocked = _latest(clocked, ())
            row |= _speeds(speed, clocked, (speed_baseline, baseline))
            errors.append(_short(clocked["error"], "timed block"))
        rows.append(row | {"error": "; ".join(filter(None, errors))})
    frame = pd.DataFrame(rows, columns=list(TABLE))
    for column in TABLE:
        if column in _TEXTS:
            frame[column] = frame[column].astype(object).where(frame[column].notna(), "")
        elif column in _COUNTS:  # whole numbers that may be missing
            frame[column] = pd.to_numeric(frame[column]).astype("Int64")
        elif column in ("seeds", "failed"):  # how many, which may truly be 0
            frame[column] = frame[column].astype(np.int64)
        else:
            frame[column] = frame[column].astype(bool if column == "capture" else np.float64)
    ps = frame["p_signflip"].to_numpy()
    family = max(len(set(variants) - {baseline}), int(np.sum(~np.isnan(ps))))  # two engines of one variant are two
    frame["p_holm"] = holm(ps, family)
    numbers = zip(*(frame[c] for c in ("delta_nats", "delta_low", "delta_high", "p_holm")), strict=True)
    frame["verdict"] = [verdict(*four) for four in numbers]
    return frame


# ---- from here on: the parts of the above ----

_ROW = ("variant", "engine", "capture", "precision")
_COUNTS = ("hidden", "parameters", "pairs", "speed_samples")
_TEXTS = (
    "variant", "engine", "precision", "device", "protocol", "corpus", "corpus_sha256", "baseline",
    "verdict", "speed_baseline", "error",
)  # fmt: skip


def _finite(values: ArrayLike, name: str) -> Floats:
    x = np.asarray(values, dtype=np.float64).ravel()
    if not np.isfinite(x).all():
        raise ValueError(f"{name} must be finite, {int(np.sum(~np.isfinite(x)))} of {len(x)} are not: drop failed runs")
    return x


def _typed(frame: pd.DataFrame, name: str, numbers: Sequence[str], keys: Sequence[str]) -> pd.DataFrame:
    """A frame read from CSV, or with no rows, made safe: pandas guesses a dtype from what a column holds."""
    frame = frame.reindex(columns=list(COLUMNS[name]))
    for column in numbers:
        frame[column] = pd.to_numeric(frame[column], errors="coerce").astype(np.float64)
    for column in (*keys, "engine", "precision", "error", "started", "environment"):
        frame[column] = frame[column].astype(object).where(frame[column].notna(), "").astype(str)
    for column in {"capture", "disturbed"} & set(frame):
        frame[column] = frame[column].astype(str).str.lower().isin(["true", "1", "1.0"])
    return frame


def _quality(
    runs: pd.DataFrame,
    variants: Sequence[str],
    protocol: str,
    corpus_sha256: str,
    device: str,
    seeds: Iterable[int] | None,
) -> pd.DataFrame:
    """The runs that count, one a row and seed, by seed; `error` set wherever a perplexity is not finite."""
    numbers = (
        "seed", "hidden", "parameters", "train_perplexity", "heldout_perplexity", "tokens", "train_s", "together",
    )  # fmt: skip
    runs = _typed(runs, "runs", numbers, ("run", "variant", "protocol", "corpus_sha256", "device"))
    wanted = (runs["protocol"] == protocol) & (runs["corpus_sha256"] == corpus_sha256) & (runs["device"] == device)
    wanted &= runs["variant"].isin(variants)
    if seeds is not None:
        wanted &= runs["seed"].isin(list(seeds))
    runs = runs[wanted].sort_values([*_ROW, "seed", "started", "run"])
    runs = runs.drop_duplicates([*_ROW, "seed"], keep="last")
    perplexities = runs[["train_perplexity", "heldout_perplexity"]]
    lost = (runs["error"] == "") & ~(np.isfinite(perplexities) & (perplexities > 0)).all(axis=1)
    return runs.assign(error=runs["error"].mask(lost, "perplexity is not a finite number"))


def _log_perplexity(runs: pd.DataFrame) -> pd.Series:
    """Held-out nats a character of the runs that finished, by seed."""
    done = runs[runs["error"] == ""]
    return pd.Series(np.log(done["heldout_perplexity"].to_numpy()), index=done["seed"].to_numpy())


def _perplexities(runs: pd.DataFrame) -> dict[str, object]:
    done = runs[runs["error"] == ""]
    row: dict[str, object] = {"seeds": len(done), "failed": len(runs) - len(done)}
    if not len(done):
        return row
    heldout = _log_perplexity(runs).to_numpy()
    low, high, _, _ = interval(heldout)
    row |= {"heldout_perplexity": np.exp(heldout.mean()), "heldout_low": np.exp(low), "heldout_high": np.exp(high)}
    row |= {"train_perplexity": np.exp(np.log(done["train_perplexity"]).mean())}
    row |= {"train_sd": done["train_perplexity"].std(ddof=1)}
    # a speed: of the machine used last, never of two machines together
    done = done[done["environment"] == done.sort_values(["started", "run"])["environment"].iloc[-1]]
    rate = done["tokens"] / done["train_s"].where(done["train_s"] > 0) * done["together"]
    return row | {"tokens_per_sec_all_seeds": rate.median()}


def _difference(mine: pd.Series, same: pd.Series | None, references: Sequence[pd.Series]) -> dict[str, object]:
    """Paired by seed with the baseline: `same` engine where it finished any, else the one with most pairs."""
    pairs = [] if same is None else [(mine - same).dropna()]  # aligned on seed
    if not pairs or pairs[0].empty:
        pairs = [(mine - other).dropna() for other in references]
    d = max(pairs, key=len).sort_index().to_numpy(dtype=np.float64)
    if not len(d):
        return {"pairs": 0}
    low, high, _, _ = interval(d)
    return {
        "pairs": len(d), "delta_nats": d.mean(), "delta_low": low, "delta_high": high,
        "p_signflip": sign_flip(d), "p_better": p_better(d)[0],
    }  # fmt: skip


def _speed(speed: pd.DataFrame) -> pd.DataFrame:
    """Timed blocks, typed and in one order; a block without a usable rate has its `error` set."""
    numbers = (
        "round", "hidden", "seeds", "block", "tokens_per_sec", "step_ms", "peak_memory_mib", "peak_reserved_mib",
    )  # fmt: skip
    speed = _typed(speed, "speed", numbers, ("session", "label", "variant", "protocol", "device"))
    rate = speed["tokens_per_sec"]
    lost = (speed["error"] == "") & ~(np.isfinite(rate) & (rate > 0))
    speed = speed.assign(error=speed["error"].mask(lost, "no tokens_per_sec"))
    return speed.sort_values(["session", "environment", "label", "round", "block"], kind="stable")


def _latest(speed: pd.DataFrame, labels: Iterable[str]) -> pd.DataFrame:
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
    kinds = {"tokens_per_sec": "median", "step_ms": "median", "peak_memory_mib": "max", "peak_reserved_mib": "max"}
    return good.groupby(process, dropna=False, as_index=False).agg(kinds)


def _summary(speed: pd.DataFrame) -> SpeedSummary:
    each = _samples(speed)
    rates = each["tokens_per_sec"].to_numpy(dtype=np.float64)
    middle = {c: float(each[c].median()) for c in ("step_ms", "peak_memory_mib", "peak_reserved_mib")}
    q1, median, q3 = np.percentile(rates, [25, 50, 75]).tolist() if len(rates) else [math.nan] * 3
    if len(rates) < 2:
        q1 = q3 = math.nan  # one sample has no spread, which is not a spread of 0
    return SpeedSummary(median, q1, q3, **middle, samples=len(rates))


def _ratio(mine: pd.DataFrame, other: pd.DataFrame) -> SpeedRatio:
    same = ["round", "protocol", "device", "precision", "seeds"]
    one, two = (_samples(f).groupby(same, dropna=False)["tokens_per_sec"].median() for f in (mine, other))
    logs = np.log((one / two).dropna().to_numpy(dtype=np.float64))  # aligned on `same`: an unpaired round is NaN
    if not len(logs):
        return SpeedRatio(math.nan, math.nan, math.nan, 0)
    low, high, rounds, _ = interval(logs)
    return SpeedRatio(math.exp(logs.mean()), math.exp(low), math.exp(high), rounds)


def _speeds(speed: pd.DataFrame, mine: pd.DataFrame, baselines: Sequence[str]) -> dict[str, object]:
    """Speed cells of one row, whose blocks of its last session are `mine`; the baseline from that session too."""
    mine = _plain(mine)
    each = _summary(mine)
    row: dict[str, object] = {
        "tokens_per_sec": each.median, "tokens_per_sec_q1": each.q1, "tokens_per_sec_q3": each.q3,
        "speed_samples": each.samples, "step_ms": each.step_ms, "peak_memory_mib": each.peak_memory_mib,
        "peak_reserved_mib": each.peak_reserved_mib,
    }  # fmt: skip
    same = ["session", "environment", "precision"]
    here = speed[(speed[same] == mine[same].iloc[0]).all(axis=1)]
    present = [name for name in baselines if (here["variant"] == name).any()]
    if present:
        other = _plain(here[here["variant"] == present[0]])
        row["speed_baseline"] = other["label"].iloc[0]
        if not other.index.equals(mine.index):  # its own ratio is 1 by definition, not by measurement
            ratio = _ratio(mine, other)
            row |= {"speed_ratio": ratio.ratio, "speed_ratio_low": ratio.low, "speed_ratio_high": ratio.high}
    return row


def _plain(speed: pd.DataFrame) -> pd.DataFrame:
    """The rows of one contender, the plainest: not captured, and not one run again to show the noise."""
    who = ["label", "engine", "capture"]
    named = set(speed["variant"])
    contenders = [(key, group) for key, group in speed.groupby(who)]
    return min(contenders, key=lambda c: (c[0][2], c[0][0] not in named, len(c[0][0]), c[0]))[1]


def _first(*frames: pd.DataFrame | None, column: str) -> float:
    """The first value present, frame by frame."""
    found = itertools.chain.from_iterable(f[column].dropna() for f in frames if f is not None)
    return float(next(found, math.nan))


def _short(errors: pd.Series, noun: str) -> str:
    """`3 of 10 runs: what the first one said`; '' where none failed."""
    said = errors[errors != ""]
    if said.empty:
        return ""
    message = " ".join(str(said.iloc[0]).split())  # on one line
    return f"{len(said)} of {len(errors)} {noun}{'s' * (len(errors) > 1)}: {message[:160]}"
