"""Build bench.csv and ablate.csv, a row a variant, from trainings and timed blocks. Frames in, a frame out.

Rule: as stats.py, whose numbers it puts side by side: no disk, no clock, no device; what cannot be computed
is missing, never 0; a failed run is counted and enters no mean; the order of the rows never matters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis import speed as speeds
from harness.analysis.stats import ALPHA, holm, interval, iqm, p_better, sign_flip, verdict
from harness.experiments import protocols
from harness.experiments.grids import BASELINE, SPEED_BASELINE
from harness.experiments.questions import PROTOCOL as QUESTION_PROTOCOL
from harness.experiments.questions import QUESTIONS
from harness.experiments.questions import VARIANTS as QUESTION_VARIANTS
from harness.record import schema
from harness.record.schema import COLUMNS
from harness.record.tables import typed

_ROW = ("variant", "engine", "capture", "precision")
_DELTA = ("delta_nats", "delta_low", "delta_high")


def build(
    runs: pd.DataFrame,
    speed: pd.DataFrame,
    variants: Sequence[str],
    protocol: str,
    corpus_sha256: str,
    device: str,
    baseline: str = BASELINE,
    speed_baseline: str = SPEED_BASELINE,
    seeds: Iterable[int] | None = None,
    looks: int = 1,
) -> pd.DataFrame:
    """bench.csv or ablate.csv: the columns of the schema, a row a variant x engine (x capture x precision).

    Only runs of this protocol label, corpus, device and (if given) these seeds count; of two runs of one
    row and seed, the one started last. A run is failed if it has an error or a perplexity that is not
    finite; `seeds` are those that finished, and all else is of them: perplexities are geometric means over
    seeds (an interval ends at 1), `train_sd` is the ordinary sd. A variant that loses seeds is judged on the
    rest: read `failed` too.

    Differences are paired by seed with the baseline (its run in the same engine, else in the engine with
    most pairs) if `variants` names it. Holm's family is every other variant asked for. The speed baseline
    is looked for in the row's own session: `speed_baseline`, else `baseline`, of the same precision.

    `looks`: how often, stated before running, the differences may be looked at with the right to stop: each look then
    is at alpha / looks (Bonferroni), p_holm and the interval of a difference widened by as much.
    """
    runs = _quality(runs, variants, protocol, corpus_sha256, device, seeds)
    speed = speeds.blocks(speed)
    speed = speed[(speed["protocol"] == protocol) & (speed["device"] == device) & ~(speed["seeds"] > 1)]
    trained = {key: group for key, group in runs.groupby(list(_ROW))}
    timed = {key: group for key, group in speed[speed["variant"].isin(variants)].groupby(list(_ROW))}
    references = {key[1:]: _log_perplexity(group) for key, group in trained.items() if key[0] == baseline}
    best = {key[1:]: _log_perplexity(group, "best_perplexity") for key, group in trained.items() if key[0] == baseline}
    corpora = sorted(set(runs["corpus"].dropna()))
    rows: list[dict[str, object]] = []
    for key in sorted({*trained, *timed}, key=lambda k: (variants.index(k[0]), k not in trained, k)):
        mine, clocked = trained.get(key), timed.get(key)
        row: dict[str, object] = dict(zip(_ROW, key, strict=True))
        row |= {"device": device, "protocol": protocol, "corpus_sha256": corpus_sha256, "seeds": 0, "failed": 0}
        row |= {"corpus": corpora[0] if corpora else "", "hidden": _first(mine, clocked, column="hidden")}
        row["cell"] = "" if mine is None else next((str(place) for place in mine["cell"] if place), "")
        row["lr"], row["unknown_share"] = _first(mine, column="lr"), _first(mine, column="unknown_share")
        row["characters_per_token"] = _first(mine, column="characters_per_token")
        row["parameters"] = _first(mine, runs[runs["variant"] == key[0]], column="parameters")
        errors = []
        if mine is not None:
            row |= _perplexities(mine)
            errors.append(_short(mine["error"], "run"))
            if key[0] != baseline and references:
                row |= {"baseline": baseline} | _difference(_log_perplexity(mine), key[1:], references, looks)
                early = _difference(_log_perplexity(mine, "best_perplexity"), key[1:], best, looks)
                row |= {f"best_{name}": early.get(name) for name in (*_DELTA, "p_signflip")}
        if clocked is not None:
            clocked = speeds.latest(clocked, ())
            row |= _speeds(speed, clocked, (speed_baseline, baseline))
            errors.append(_short(clocked["error"], "timed block"))
        rows.append(row | {"error": "; ".join(filter(None, errors))})
    early_ps = np.array([row.get("best_p_signflip", math.nan) for row in rows], dtype=np.float64)
    frame = pd.DataFrame(rows, columns=list(COLUMNS["bench"]))
    _set_types(frame)
    ps = frame["p_signflip"].to_numpy()
    family = max(len(set(variants) - {baseline}), int(np.sum(~np.isnan(ps))))  # two engines of one variant are two
    frame["comparisons"] = pd.Series(family, frame.index, dtype="Int64").where(frame["baseline"] != "")
    frame["p_holm"] = np.minimum(looks * holm(ps, family), 1.0)
    numbers = zip(*(frame[c] for c in ("delta_nats", "delta_low", "delta_high", "p_holm")), strict=True)
    frame["verdict"] = [verdict(*four) for four in numbers]
    frame["best_p_holm"] = np.minimum(looks * holm(early_ps, family), 1.0)  # another analysis, a family of its own
    numbers = zip(*(frame[f"best_{c}"] for c in (*_DELTA, "p_holm")), strict=True)
    frame["best_verdict"] = [verdict(*four) for four in numbers]
    return frame


def questions(runs: pd.DataFrame, parts: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """questions.csv: a row a question of a reviewer and variant, of those that are not run without a number.

    `parts`: of each set of trainings what its grid says. Holm's family is the differences of one question.
    """
    asked = []
    base = protocols.protocol(QUESTION_PROTOCOL)
    for question in QUESTIONS:
        label = base.override(question.settings).label
        facts = {"question": question.name, "asks": question.asks, "setting": " ".join(question.settings),
                 "score_at": "best epoch" if question.early else "end"}  # fmt: skip
        part = next((p for p in parts if _answers(p, question.corpus, label)), None)
        table = pd.DataFrame({"variant": list(QUESTION_VARIANTS), "seeds": 0, "failed": 0})
        if part is not None:
            own = runs[runs["run"].isin(part["runs"])]
            found = build(own, own.iloc[:0].reindex(columns=list(COLUMNS["speed"])), part["variants"],
                          part["protocol"]["label"], part["corpus_sha256"], part["device"])  # fmt: skip
            if question.early:
                names = {"best_perplexity": "heldout_perplexity", "best_low": "heldout_low",
                         "best_high": "heldout_high", "best_p_holm": "p_holm", "best_verdict": "verdict"}  # fmt: skip
                names |= {f"best_{name}": name for name in _DELTA}
                found = found.drop(columns=list(names.values())).rename(columns=names)
            table = table[~table["variant"].isin(found["variant"])]
            table = pd.concat([found, table], ignore_index=True) if len(table) else found
        asked.append(table.assign(**facts))
    return typed(pd.concat(asked, ignore_index=True).reindex(columns=list(COLUMNS["questions"])), "questions")


def _answers(part: Mapping[str, Any], corpus: str, label: str) -> bool:
    """Whether trainings are those of a question: of its text, under its label but for what was done to the text."""
    own = [field for field in part["protocol"]["label"].split(",") if not field.startswith("text=")]
    return part["corpus"] == corpus and ",".join(own) == label


def _set_types(frame: pd.DataFrame) -> None:
    """Give each column the type that the schema says; a whole number may be missing."""
    for column in COLUMNS["bench"]:
        kind = schema.column("bench", column).type
        if kind is str:
            frame[column] = frame[column].astype(object).where(frame[column].notna(), "")
        elif kind is int:  # whole numbers that may be missing
            whole = np.int64 if column in ("seeds", "failed") else "Int64"  # how many, which may truly be 0
            frame[column] = pd.to_numeric(frame[column]).astype(whole)
        else:
            frame[column] = frame[column].astype(kind)


def _quality(
    runs: pd.DataFrame,
    variants: Sequence[str],
    protocol: str,
    corpus_sha256: str,
    device: str,
    seeds: Iterable[int] | None,
) -> pd.DataFrame:
    """The runs that count, one a row and seed, by seed; `error` set wherever a perplexity is not finite."""
    runs = typed(runs, "runs")
    wanted = (runs["protocol"] == protocol) & (runs["corpus_sha256"] == corpus_sha256) & (runs["device"] == device)
    wanted &= runs["variant"].isin(variants)
    if seeds is not None:
        wanted &= runs["seed"].isin(list(seeds))
    runs = runs[wanted].sort_values([*_ROW, "seed", "started", "run"])
    runs = runs.drop_duplicates([*_ROW, "seed"], keep="last")
    perplexities = runs[["train_perplexity", "heldout_perplexity"]]
    lost = (runs["error"] == "") & ~(np.isfinite(perplexities) & (perplexities > 0)).all(axis=1)
    return runs.assign(error=runs["error"].mask(lost, "perplexity is not a finite number"))


def _log_perplexity(runs: pd.DataFrame, column: str = "heldout_perplexity") -> pd.Series:
    """Held-out nats a character of the runs that finished, by seed; those that have none are left out."""
    done = runs[(runs["error"] == "") & runs[column].notna()]
    return pd.Series(np.log(done[column].to_numpy(dtype=np.float64)), index=done["seed"].to_numpy())


def _perplexities(runs: pd.DataFrame) -> dict[str, object]:
    done = runs[runs["error"] == ""]
    row: dict[str, object] = {"seeds": len(done), "failed": len(runs) - len(done)}
    if not len(done):
        return row
    heldout = _log_perplexity(runs).to_numpy()
    low, high, _, _ = interval(heldout)
    low = np.maximum(low, 0.0)  # no perplexity is below 1: an interval ends there; NaN stays NaN
    row |= {"heldout_perplexity": np.exp(heldout.mean()), "heldout_low": np.exp(low), "heldout_high": np.exp(high)}
    row["heldout_iqm"] = np.exp(iqm(heldout))
    row["bits_per_character"] = done["bits_per_character"].mean()
    row |= {"train_perplexity": np.exp(np.log(done["train_perplexity"]).mean())}
    row |= {"train_sd": done["train_perplexity"].std(ddof=1)}
    best = _log_perplexity(runs, "best_perplexity").to_numpy()
    if len(best):
        low, high, _, _ = interval(best)
        row |= {"best_perplexity": np.exp(best.mean()), "best_low": np.exp(np.maximum(low, 0.0)),
                "best_high": np.exp(high), "best_epoch": done["best_epoch"].median()}  # fmt: skip
    # a speed: of the machine used last, never of two machines together
    done = done[done["environment"] == done.sort_values(["started", "run"])["environment"].iloc[-1]]
    # of a cluster no number says how many were trained side by side: then there is no rate
    rate = done["tokens"] / done["train_s"].where(done["train_s"] > 0) * done["together"].astype(float)
    return row | {"tokens_per_sec_all_seeds": rate.median()}


def _difference(
    mine: pd.Series, how: tuple[str, ...], references: Mapping[tuple[str, ...], pd.Series], looks: int
) -> dict[str, object]:
    """Paired by seed with the baseline run the same way (`how`: engine, capture, precision) where it finished any,
    else with the one of `references` that has most pairs."""
    pairs = {other: (mine - logs).dropna() for other, logs in references.items()}  # aligned on seed
    against = how if len(pairs.get(how, ())) else max(pairs, key=lambda other: len(pairs[other]))
    d = pairs[against].sort_index().to_numpy(dtype=np.float64)
    if not len(d):
        return {"pairs": 0}
    low, high, _, _ = interval(d, 1 - ALPHA / looks)
    share, least, most = p_better(d)
    return {
        "baseline_engine": against[0],
        "pairs": len(d), "delta_nats": d.mean(), "delta_low": low, "delta_high": high, "looks": looks,
        "p_signflip": sign_flip(d), "p_better": share, "p_better_low": least, "p_better_high": most,
    }  # fmt: skip


def _speeds(speed: pd.DataFrame, mine: pd.DataFrame, baselines: Sequence[str]) -> dict[str, object]:
    """Speed cells of one row, whose blocks of its last session are `mine`; the baseline from that session too."""
    mine = _plain(mine)
    each = speeds.summary(mine)
    row: dict[str, object] = {
        "speed_session": mine["session"].iloc[0],
        "tokens_per_sec": each.median, "tokens_per_sec_q1": each.q1, "tokens_per_sec_q3": each.q3,
        "speed_samples": each.samples, "speed_disturbed": each.disturbed, "step_ms": each.step_ms,
        "percent_of_peak": each.percent_of_peak, "peak_memory_mib": each.peak_memory_mib,
        "peak_reserved_mib": each.peak_reserved_mib,
    }  # fmt: skip
    same = ["session", "environment", "precision"]
    here = speed[(speed[same] == mine[same].iloc[0]).all(axis=1)]
    present = [name for name in baselines if (here["variant"] == name).any()]
    if present:
        other = _plain(here[here["variant"] == present[0]])
        row["speed_baseline"] = other["label"].iloc[0]
        if not other.index.equals(mine.index):  # its own ratio is 1 by definition, not by measurement
            noise = speeds.noise(here)
            ratio = speeds.ratio(mine, other, noise)
            row |= {"speed_ratio": ratio.ratio, "speed_ratio_low": ratio.low, "speed_ratio_high": ratio.high,
                    "speed_verdict": ratio.verdict, "speed_noise": math.exp(noise)}  # fmt: skip
    return row


def _plain(speed: pd.DataFrame) -> pd.DataFrame:
    """The rows of one contender, the plainest: not captured, and not one run again to show the noise."""
    named = set(speed["variant"])
    contenders = [(key, group) for key, group in speed.groupby(["capture", "control_of", "label", "engine"])]
    return min(contenders, key=lambda c: (c[0][0], c[0][1] != "", c[0][2] not in named, len(c[0][2]), c[0]))[1]


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
