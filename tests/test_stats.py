"""Is the arithmetic right: known answers by hand, laws that hold for any data, error rates under simulated nulls."""

from __future__ import annotations

import io
import itertools
import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import stats
from harness.record import COLUMNS, TABLE

NAN = math.nan
few = settings(max_examples=30, deadline=None, derandomize=True)
values = st.lists(st.floats(-1e3, 1e3, allow_nan=False), min_size=1, max_size=9)
pairs_of_values = st.lists(st.integers(-50, 50).map(lambda i: i / 7), min_size=2, max_size=9)


# ---- interval ----


def test_interval_by_hand() -> None:
    # mean 2, sd 1, n 3: t(.975, 2) = 4.302653
    low, high, n, method = stats.interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), abs=1e-6)
    assert (n, method) == (3, "t")


def test_interval_is_scipys_at_any_confidence() -> None:
    x = np.random.default_rng(1).normal(size=8)
    for confidence in (0.5, 0.9, 0.99):
        theirs = scipy.stats.ttest_1samp(x, 0).confidence_interval(confidence)
        assert stats.interval(x, confidence)[:2] == pytest.approx((theirs.low, theirs.high))


@pytest.mark.parametrize("few_values", [[], [3.0]])
def test_interval_of_fewer_than_two_is_missing(few_values: list[float]) -> None:
    low, high, n, _ = stats.interval(few_values)
    assert math.isnan(low)
    assert math.isnan(high)
    assert n == len(few_values)


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3])
def test_interval_of_identical_values_is_that_value(value: float) -> None:
    assert stats.interval([value] * 7)[:3] == (value, value, 7)


@pytest.mark.parametrize("function", [stats.interval, stats.sign_flip, stats.p_better, stats.iqm])
@pytest.mark.parametrize("bad", [NAN, math.inf])
def test_a_failed_value_is_refused_not_averaged(function: Callable[[list[float]], object], bad: float) -> None:
    with pytest.raises(ValueError, match="1 of 3 are not"):
        function([1.0, bad, 2.0])


def test_confidence_outside_its_range() -> None:
    with pytest.raises(ValueError, match="95"):
        stats.interval([1.0, 2.0], confidence=95)


# the docstring's table, within its stated error plus that of 1,500 data sets here (3 standard errors)
@pytest.mark.parametrize(
    ("draw", "truth", "covered"),
    [("normal", 0.0, (0.953, 0.951, 0.947, 0.955)), ("lognormal", math.exp(0.125), (0.924, 0.911, 0.924, 0.932))],
)
def test_coverage_is_what_the_docstring_states(draw: str, truth: float, covered: tuple[float, ...]) -> None:
    for n, stated in zip((3, 5, 10, 20), covered, strict=True):
        data = getattr(np.random.default_rng(n), draw)(0.0, 1.0 if draw == "normal" else 0.5, size=(1500, n))
        bounds = [stats.interval(x)[:2] for x in data]
        assert np.mean([low <= truth <= high for low, high in bounds]) == pytest.approx(stated, abs=0.027)


@few
@given(values, st.floats(-100, 100), st.floats(0.1, 10))
def test_interval_moves_with_the_data(x: list[float], shift: float, scale: float) -> None:
    low, high, _, _ = stats.interval(x)
    moved = stats.interval(np.array(x) * scale + shift)
    assert moved[:2] == pytest.approx((low * scale + shift, high * scale + shift), abs=1e-6, nan_ok=True)
    assert len(x) < 2 or low - 1e-9 <= np.mean(x) <= high + 1e-9


# ---- sign_flip ----


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0], 1.0),
        ([1.0, 2.0, 3.0], 2 / 8),
        ([-1.0, -2.0, -3.0], 2 / 8),
        ([1.0, 1.0, 1.0, 1.0, 1.0], 2 / 32),
        ([-1.0, 2.0, 3.0], 4 / 8),  # |sum| 4 is reached by +-(6), +-(4)
        ([1.0, -1.0], 1.0),
        ([0.0, 0.0, 0.0], 1.0),
        ([0.0, 1.0], 1.0),
    ],
)
def test_sign_flip_by_hand(differences: list[float], p: float) -> None:
    assert stats.sign_flip(differences) == p


def test_sign_flip_of_nothing_is_missing() -> None:
    assert math.isnan(stats.sign_flip([]))


def test_sign_flip_is_scipys_permutation_test() -> None:
    d = np.random.default_rng(2).normal(0.4, 1.0, size=9)
    theirs = scipy.stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=10_000)
    assert stats.sign_flip(d) == pytest.approx(theirs.pvalue)


def test_sign_flip_does_not_see_rounding() -> None:
    exact = [1, 2, 3, -3, 1, 2]  # many ties
    assert stats.sign_flip([0.1 * x for x in exact]) == stats.sign_flip([float(x) for x in exact])
    assert 0.1 + 0.2 != 0.3
    assert stats.sign_flip([0.1, 0.2, -0.3]) == 1.0


def test_sign_flip_twenty_pairs_is_exact_and_more_is_close() -> None:
    assert stats.sign_flip(np.arange(1, 21)) == 2 / 2**20
    assert stats.sign_flip(np.arange(1, 31)) == 1 / 100_001  # counted, plus one: never 0
    d = np.random.default_rng(3).normal(0.35, 1.0, size=21)
    sampled = stats.sign_flip(d)
    sums = d[:1]
    for one in d[1:]:
        sums = np.concatenate([sums + one, sums - one])
    exact = float(np.mean(np.abs(sums) >= abs(d.sum()) - 1e-9))
    assert 0.005 < exact < 0.5
    assert sampled == pytest.approx(exact, abs=4 * math.sqrt(exact / 100_000))
    assert sampled == stats.sign_flip(d[::-1])  # the same twice, and in any order


@few
@given(pairs_of_values, st.floats(0.01, 100))
def test_sign_flip_laws(x: list[float], scale: float) -> None:
    d, p = np.array(x), stats.sign_flip(x)
    assert 2 / 2 ** len(d) <= p <= 1
    assert stats.sign_flip(-d) == p
    assert stats.sign_flip(d[::-1] * scale) == p
    sums = [abs(np.dot(signs, d)) for signs in itertools.product((1, -1), repeat=len(d))]  # all of them, no symmetry
    assert p == np.mean(np.array(sums) >= abs(d.sum()) - 1e-9)


@pytest.mark.parametrize(("n", "simulations"), [(5, 2000), (10, 2000), (20, 1000)])
def test_sign_flip_errs_no_more_than_stated(n: int, simulations: int) -> None:
    random = np.random.default_rng(n)
    p = np.array([stats.sign_flip(random.standard_t(3, size=n)) for _ in range(simulations)])  # heavy tails
    assert np.mean(p < 0.05) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / simulations)
    assert np.mean(p <= 0.5) == pytest.approx(0.5, abs=3 * math.sqrt(0.25 / simulations))  # nor is it merely timid


def test_sign_flip_finds_a_difference() -> None:
    random = np.random.default_rng(0)
    assert np.mean([stats.sign_flip(random.normal(2, 1, size=10)) < 0.05 for _ in range(200)]) > 0.95


# ---- holm ----


def test_holm_by_hand() -> None:
    # sorted .01 .02 .03 .04 -> x4 .04, x3 .06, x2 .06, x1 .04 raised to .06
    assert stats.holm([0.03, 0.01, 0.04, 0.02], 4).tolist() == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert stats.holm([0.5, 0.9], 2).tolist() == [1.0, 1.0]
    assert stats.holm([0.02], 1).tolist() == [0.02]
    assert stats.holm([], 3).tolist() == []


def test_holm_missing_stays_missing_and_does_not_shrink_the_family() -> None:
    adjusted = stats.holm([0.01, NAN, 0.02], 3)
    assert adjusted[[0, 2]].tolist() == pytest.approx([0.03, 0.04])
    assert math.isnan(adjusted[1])
    with pytest.raises(ValueError, match="family is 1 but 2"):
        stats.holm([0.01, NAN, 0.02], 1)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        stats.holm([1.5], 1)


@few
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(0, 5))
def test_holm_laws(ps: list[float], unseen: int) -> None:
    family = len(ps) + unseen
    adjusted = stats.holm(ps, family)
    order = np.argsort(ps, kind="stable")
    assert np.all(np.diff(adjusted[order]) >= 0)
    assert np.all((adjusted >= ps) & (adjusted <= 1) & (adjusted <= np.minimum(1, np.array(ps) * family)))
    assert stats.holm(ps[::-1], family).tolist() == adjusted[::-1].tolist()
    assert adjusted.min() == min(1, min(ps) * family)


def test_holm_keeps_the_familywise_error() -> None:
    p = np.random.default_rng(4).random((2000, 8))
    wrong = np.mean([stats.holm(row, 8).min() < 0.05 for row in p])
    assert 0.03 < wrong <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


# ---- p_better, iqm ----


def test_p_better_counts_the_negative_and_half_the_ties() -> None:
    assert stats.p_better([-1.0, -2.0, 3.0, 0.0])[0] == 2.5 / 4
    theirs = scipy.stats.binomtest(7, 10).proportion_ci(method="wilson")
    assert stats.p_better([-1.0] * 7 + [1.0] * 3) == pytest.approx((0.7, theirs.low, theirs.high))
    share, low, high = stats.p_better([-1.0] * 5)
    assert (share, high) == (1.0, 1.0)
    assert 0.5 < low < 1  # five of five is not certainty
    assert all(math.isnan(x) for x in stats.p_better([]))


def test_iqm_by_hand() -> None:
    assert stats.iqm([1.0, 2.0, 3.0, 1000.0]) == 2.5
    assert stats.iqm([5.0]) == 5.0
    assert math.isnan(stats.iqm([]))


@few
@given(values)
def test_iqm_is_scipys_trimmed_mean(x: list[float]) -> None:
    assert stats.iqm(x) == pytest.approx(scipy.stats.trim_mean(x, 0.25))


# ---- verdict ----


@pytest.mark.parametrize(
    ("delta", "low", "high", "p_holm", "word"),
    [
        (0.10, 0.05, 0.15, 0.01, "worse"),
        (-0.10, -0.15, -0.05, 0.01, "better"),
        (0.10, 0.05, 0.15, 0.05, "undecided"),  # p must be under .05
        (0.10, -0.01, 0.21, 0.01, "undecided"),  # the interval holds 0
        (0.00, -0.01, 0.01, 1.00, "equivalent"),
        (0.01, 0.005, 0.015, 0.01, "equivalent"),  # surely there and surely small
        (0.00, -0.03, 0.01, 0.90, "undecided"),  # a large p is not equivalence
        (0.00, -0.01, 0.03, 0.90, "undecided"),
        (0.00, -0.02, 0.01, 0.90, "undecided"),  # strictly inside
        (0.00, -0.01, 0.02, 0.90, "undecided"),
        (-0.10, -0.21, 0.01, 0.01, "undecided"),
        (NAN, NAN, NAN, NAN, ""),
        (0.10, NAN, NAN, 1.00, ""),  # one seed
        (0.10, 0.05, 0.15, NAN, ""),
    ],
)
def test_verdict(delta: float, low: float, high: float, p_holm: float, word: str) -> None:
    assert stats.verdict(delta, low, high, p_holm, margin=0.02) == word


def test_verdict_needs_enough_pairs() -> None:
    """Five clean pairs cannot be worse (p .0625); nine in a family of nine can (FACTS)."""

    def word(n: int, family: int) -> str:
        d = 0.1 + 0.001 * np.arange(n)
        low, high, _, _ = stats.interval(d)
        return stats.verdict(float(d.mean()), low, high, float(stats.holm([stats.sign_flip(d)], family)[0]))

    assert [word(5, 1), word(6, 1), word(8, 9), word(9, 9)] == ["undecided", "worse", "undecided", "worse"]


def test_seeds_to_decide() -> None:
    # sd sqrt(2), distance 1, (1.959964 + .841621)^2 * 2 = 15.70 -> 16 pairs, two are there
    assert stats.seeds_to_decide([0.0, 2.0], margin=0.5) == 14
    # mean 0, so only equivalence: sd sqrt(2), distance 1 -> the same 16
    assert stats.seeds_to_decide([-1.0, 1.0], margin=1.0) == 14
    assert stats.seeds_to_decide([1.0, 1.0, 1.0], margin=0.02, family=9) == 9 - 3  # no spread: the test's floor
    assert stats.seeds_to_decide([1.0] * 30) == 1
    assert stats.seeds_to_decide([1.0]) is None
    random = np.random.default_rng(5)
    d = random.normal(0.1, 0.1, size=5)
    alone, in_family = (stats.seeds_to_decide(d, family=family) for family in (1, 9))
    assert alone is not None
    assert in_family is not None
    assert in_family > alone


def test_as_many_seeds_as_said_do_decide() -> None:
    d = np.array([0.02, 0.10, 0.03, 0.11, 0.04])  # mean .06, sd .042
    more = stats.seeds_to_decide(d, margin=0.0)
    assert more is not None
    random = np.random.default_rng(6)
    decided = [
        stats.sign_flip(random.normal(d.mean(), d.std(ddof=1), size=5 + more)) < 0.05  # z for t: a little optimistic
        for _ in range(300)
    ]
    assert 0.6 < np.mean(decided) < 0.9


# ---- speed ----


def block(label: str, round_: int, rate: float, **more: object) -> dict[str, object]:
    row: dict[str, object] = dict.fromkeys(COLUMNS["speed"])
    row |= {
        "session": "s1", "round": round_, "label": label, "variant": label.split("#")[0], "engine": "loop",
        "capture": False, "precision": "ieee", "device": "cpu", "protocol": "quick", "hidden": 64, "seeds": 1,
        "block": 0, "tokens_per_sec": rate, "step_ms": 1e6 / rate, "peak_memory_mib": 10.0, "peak_reserved_mib": 20.0,
        "disturbed": False, "environment": "e1", "started": "2025-01-01T00:00:00", "error": "",
    }  # fmt: skip
    return row | more


def speed_frame(*rows: dict[str, object]) -> pd.DataFrame:
    return through_csv(pd.DataFrame(rows, columns=list(COLUMNS["speed"])))


def through_csv(frame: pd.DataFrame) -> pd.DataFrame:
    """As the caller has it: pandas has guessed every dtype from the text."""
    return pd.read_csv(io.StringIO(frame.to_csv(index=False)))


def test_speed_ratio_by_hand() -> None:
    speed = speed_frame(
        *(block("gru", r, base) for r, base in enumerate((100.0, 50.0, 200.0))),
        *(block("rnn", r, rate) for r, rate in enumerate((200.0, 100.0, 400.0))),
    )
    assert stats.speed_ratio(speed, "rnn", "gru") == pytest.approx((2.0, 2.0, 2.0, 3))  # weather cancels in a round
    assert stats.speed_ratio(speed, "gru", "rnn").ratio == pytest.approx(0.5)
    assert stats.speed_ratio(speed, "gru", "gru")[:3] == (1.0, 1.0, 1.0)


def test_speed_ratio_interval_is_t_on_logs() -> None:
    speed = speed_frame(
        *(block("gru", r, 100.0) for r in range(3)),
        *(block("rnn", r, 100.0 * math.exp(x)) for r, x in enumerate((1.0, 2.0, 3.0))),
    )
    half = 4.302653 / math.sqrt(3)
    assert stats.speed_ratio(speed, "rnn", "gru") == pytest.approx(
        (math.exp(2), math.exp(2 - half), math.exp(2 + half), 3), rel=1e-6
    )


def test_speed_pairs_only_what_is_comparable() -> None:
    gru = [block("gru", r, 100.0) for r in range(4)]
    odd = [
        block("rnn", 0, 300.0),
        block("rnn", 1, 300.0),
        block("rnn", 9, 999.0),  # no partner in its round
        block("rnn", 2, 999.0, error="RuntimeError: boom"),
        block("rnn", 3, 999.0, precision="tf32"),
    ]
    assert stats.speed_ratio(speed_frame(*gru, *odd), "rnn", "gru") == pytest.approx((3.0, 3.0, 3.0, 2))
    one = stats.speed_ratio(speed_frame(gru[0], odd[0]), "rnn", "gru")
    assert one == pytest.approx((3.0, NAN, NAN, 1), nan_ok=True)
    none = stats.speed_ratio(speed_frame(*gru), "rnn", "gru")
    assert math.isnan(none.ratio)
    assert none.rounds == 0


def test_disturbed_blocks_are_left_out_unless_all_are() -> None:
    speed = speed_frame(
        block("gru", 0, 100.0, block=0),
        block("gru", 0, 104.0, block=1),
        block("gru", 0, 5.0, block=2, disturbed=True),
        block("gru", 1, 6.0, block=0, disturbed=True),
        block("gru", 1, 8.0, block=1, disturbed=True),
        block("gru", 1, 999.0, block=2, error="boom"),
    )
    each = stats.speed_summary(speed, "gru")
    assert each[:3] == pytest.approx(((102 + 7) / 2, 7 + 95 / 4, 7 + 95 * 3 / 4))
    assert each.samples == 2


def test_speed_summary_medians_and_missing() -> None:
    rows = [block("gru", r, 100.0 + r, step_ms=float(r), peak_memory_mib=r * 10.0) for r in range(5)]
    rows.append(block("gru", 0, 100.0, block=1, step_ms=0.0, peak_memory_mib=35.0))  # sample 0 peaks later
    each = stats.speed_summary(speed_frame(*rows), "gru")
    assert each == pytest.approx((102.0, 101.0, 103.0, 2.0, 30.0, 20.0, 5))
    single = stats.speed_summary(speed_frame(rows[1]), "gru")
    assert single.median == 101.0
    assert math.isnan(single.q1)
    for missing in (speed_frame(rows[0]), pd.DataFrame(), pd.DataFrame(columns=list(COLUMNS["speed"]))):
        absent = stats.speed_summary(missing, "lstm")
        assert absent.samples == 0
        assert math.isnan(absent.median + absent.step_ms)


def test_a_sample_is_its_median_block_and_a_rate_of_nothing_is_none() -> None:
    rows = [block("gru", 0, rate, block=b) for b, rate in enumerate((100.0, 104.0, 180.0))]
    rows.append(block("gru", 1, 1.0, block=0) | {"tokens_per_sec": 0.0})
    each = stats.speed_summary(speed_frame(*rows), "gru")
    assert (each.median, each.samples) == (104.0, 1)


def test_sessions_and_environments_are_never_pooled() -> None:
    old = [block(v, r, x) for v, x in (("gru", 100.0), ("rnn", 900.0)) for r in range(3)]
    new = {"session": "s0", "started": "2025-02-01T00:00:00"}  # named before, started after
    fresh = [block(v, r, x, **new) for v, x in (("gru", 10.0), ("rnn", 20.0)) for r in range(2)]
    alone = [block("gru", r, 7.0, session="s9", started="2025-03-01T00:00:00") for r in range(2)]
    speed = speed_frame(*old, *fresh, *alone)
    assert stats.speed_ratio(speed, "rnn", "gru") == pytest.approx((2.0, 2.0, 2.0, 2))
    assert stats.speed_summary(speed, "gru")[:1] == (7.0,)
    assert stats.speed_summary(speed, "rnn").median == 20.0
    moved = [block("gru", r, 5.0, environment="e2", started="2025-01-02T00:00:00") for r in (3, 4)]
    assert stats.speed_summary(speed_frame(*old, *moved), "gru")[:1] == (5.0,)
    assert stats.speed_summary(speed_frame(*old, *moved), "gru").samples == 2


# ---- table ----

SHA = "ab" * 32


def run(variant: str, seed: int, heldout: float | None, **more: object) -> dict[str, object]:
    row: dict[str, object] = dict.fromkeys(COLUMNS["runs"])
    row |= {
        "run": f"{variant}-{seed}", "variant": variant, "engine": "loop", "capture": False, "precision": "ieee",
        "device": "cpu", "seed": seed, "protocol": "quick", "corpus": "time-machine", "corpus_sha256": SHA,
        "hidden": 64, "parameters": 1000 + len(variant), "train_perplexity": heldout and heldout / 2,
        "heldout_perplexity": heldout, "tokens": 600, "train_s": 3.0, "wall_s": 4.0, "together": 10,
        "environment": "e1", "started": "2025-01-01T00:00:00", "error": "",
    }  # fmt: skip
    return row | more


def runs_frame(*rows: dict[str, object]) -> pd.DataFrame:
    return through_csv(pd.DataFrame(rows, columns=list(COLUMNS["runs"])))


def make(runs: pd.DataFrame, speed: pd.DataFrame | None = None, *variants: str, **more: object) -> pd.DataFrame:
    names = list(variants) or ["gru", "rnn"]
    speed = speed_frame() if speed is None else speed
    return stats.table(runs, speed, names, "quick", SHA, "cpu", **more)  # type: ignore[arg-type]


GRU = [run("gru", k, math.exp(2.0 + 0.1 * k)) for k in range(3)]
RNN = [run("rnn", k, math.exp(2.0 + 0.1 * k + 0.2 + 0.1 * (k - 1))) for k in range(3)]  # +.1, +.2, +.3


def test_table_by_hand() -> None:
    out = make(runs_frame(*RNN, *GRU))
    assert tuple(out.columns) == TABLE
    gru, rnn = (row for _, row in out.iterrows())
    assert (gru["variant"], rnn["variant"]) == ("gru", "rnn")  # the order asked for
    assert (gru["seeds"], gru["failed"], gru["parameters"], gru["hidden"]) == (3, 0, 1003, 64)
    assert gru["heldout_perplexity"] == pytest.approx(math.exp(2.1))
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert (gru["heldout_low"], gru["heldout_high"]) == pytest.approx((math.exp(2.1 - half), math.exp(2.1 + half)))
    assert gru["train_perplexity"] == pytest.approx(math.exp(2.1) / 2)
    assert gru["train_sd"] == pytest.approx(np.std([math.exp(2 + 0.1 * k) / 2 for k in range(3)], ddof=1))
    assert (rnn["baseline"], rnn["pairs"]) == ("gru", 3)
    assert (rnn["delta_nats"], rnn["delta_low"], rnn["delta_high"]) == pytest.approx((0.2, 0.2 - half, 0.2 + half))
    assert (rnn["p_signflip"], rnn["p_holm"], rnn["p_better"]) == (0.25, 0.25, 0.0)
    assert rnn["verdict"] == "undecided"
    assert gru["tokens_per_sec_all_seeds"] == 600 / 3 * 10
    assert (gru["corpus"], gru["device"], gru["error"]) == ("time-machine", "cpu", "")
    own = gru[["pairs", "delta_nats", "delta_low", "p_signflip", "p_holm", "p_better", "tokens_per_sec", "step_ms"]]
    assert own.isna().all()
    assert (gru["baseline"], gru["verdict"]) == ("", "")
    assert out["seeds"].dtype == out["failed"].dtype == np.int64


def test_table_verdicts_and_their_family() -> None:
    def shifted(name: str, by: float, noise: float = 0.001) -> list[dict[str, object]]:
        return [run(name, k, math.exp(2 + 0.1 * k + by + noise * k)) for k in range(9)]

    runs = runs_frame(
        *shifted("gru", 0.0, 0.0), *shifted("rnn", 0.1), *shifted("lstm", -0.1), *shifted("gru:R=1", 0.001)
    )
    names = ("gru", "rnn", "lstm", "gru:R=1")
    out = make(runs, None, *names).set_index("variant")
    assert out["verdict"].tolist() == ["", "worse", "better", "equivalent"]
    assert out.loc["lstm", "p_better"] == 1.0
    assert out.loc["rnn", "p_holm"] == pytest.approx(3 * 2 / 2**9)
    # variants asked for and not there yet count: the family was stated before running
    absent = [f"nn.{i}" for i in range(11)]
    more = make(runs, None, *names, *absent).set_index("variant")
    assert more.loc["rnn", "p_holm"] == pytest.approx(14 * 2 / 2**9)
    assert more.loc["rnn", "verdict"] == "undecided"


@pytest.mark.parametrize(
    "lost",
    [
        {"error": "diverged: loss is nan"},
        {"error": "diverged: loss is nan", "heldout_perplexity": 1e6, "train_perplexity": 1e6},
        {"heldout_perplexity": NAN},
        {"heldout_perplexity": math.inf},
        {"train_perplexity": math.inf},
    ],
)
def test_a_failed_run_is_counted_and_in_no_mean(lost: dict[str, object]) -> None:
    want = make(runs_frame(*GRU[:2], *RNN))
    got = make(runs_frame(*GRU[:2], GRU[2] | lost, *RNN))
    assert got["failed"].tolist() == [1, 0]
    assert got["seeds"].tolist() == [2, 3]
    assert got["pairs"].tolist()[1] == 2
    assert got.loc[0, "error"].startswith("1 of 3 runs: ")
    assert str(lost.get("error", "perplexity is not")) in got.loc[0, "error"]
    shown = ["failed", "error"]
    pd.testing.assert_frame_equal(got.drop(columns=shown), want.drop(columns=shown))


def test_a_variant_that_only_failed_is_still_a_row() -> None:
    out = make(runs_frame(*GRU, *(row | {"error": "boom\nat line 3"} for row in RNN)))
    rnn = out.iloc[1]
    assert (rnn["seeds"], rnn["failed"], rnn["error"], rnn["verdict"]) == (0, 3, "3 of 3 runs: boom at line 3", "")
    assert rnn[["heldout_perplexity", "heldout_low", "train_sd", "delta_nats", "p_holm"]].isna().all()
    assert rnn["pairs"] == 0
    assert math.isnan(rnn["tokens_per_sec_all_seeds"])


def test_one_seed_has_a_mean_and_no_interval() -> None:
    rnn = make(runs_frame(GRU[0], RNN[0])).iloc[1]
    assert rnn["delta_nats"] == pytest.approx(0.1)
    assert rnn[["heldout_low", "delta_low", "delta_high", "train_sd"]].isna().all()
    assert rnn["verdict"] == ""


@pytest.mark.parametrize(
    "other", [{"protocol": "classic"}, {"corpus_sha256": "cd" * 32}, {"device": "cuda"}, {"variant": "lstm"}]
)
def test_other_protocols_corpora_and_devices_do_not_enter(other: dict[str, object]) -> None:
    foreign = [run("gru", k, 99.0, run="x") | other for k in range(5)]
    pd.testing.assert_frame_equal(make(runs_frame(*GRU, *RNN, *foreign)), make(runs_frame(*GRU, *RNN)))


def test_seeds_asked_for() -> None:
    out = make(runs_frame(*GRU, *RNN), seeds=range(2))
    assert out["seeds"].tolist() == [2, 2]
    assert out.loc[1, "delta_nats"] == pytest.approx(0.15)


def test_a_seed_run_twice_counts_once_and_the_later_holds() -> None:
    again = run("rnn", 0, math.exp(2.3), run="a", started="2025-06-01T00:00:00")
    out = make(runs_frame(again, *GRU, *RNN))
    assert out["seeds"].tolist() == [3, 3]
    assert out.loc[1, "delta_nats"] == pytest.approx((0.3 + 0.2 + 0.3) / 3)


def test_pairs_are_by_seed_not_by_position() -> None:
    out = make(runs_frame(*GRU[1:], *RNN[:2]))
    assert out.loc[1, "pairs"] == 1
    assert out.loc[1, "delta_nats"] == pytest.approx(0.2)


@pytest.mark.parametrize("variants", [("rnn",), ("rnn", "gru")])
def test_missing_baseline_leaves_the_difference_empty(variants: tuple[str, ...]) -> None:
    # gru was not asked for, or was and is not there yet
    out = make(runs_frame(*RNN, *(GRU if "gru" not in variants else [])), None, *variants)
    assert len(out) == 1
    assert (
        out[["pairs", "delta_nats", "delta_low", "delta_high", "p_signflip", "p_holm", "p_better"]]
        .isna()
        .all(axis=None)
    )
    assert (out.loc[0, "baseline"], out.loc[0, "verdict"]) == ("", "")
    assert out.loc[0, "heldout_perplexity"] > 1


def test_order_of_rows_changes_nothing() -> None:
    random = np.random.default_rng(7)
    runs = runs_frame(*(run(v, k, float(random.uniform(5, 9))) for v in ("gru", "rnn", "lstm") for k in range(25)))
    speed = speed_frame(
        *(block(v, r, float(random.uniform(5, 9)), block=b) for v in ("gru", "rnn") for r in range(5) for b in range(3))
    )
    want = make(runs, speed, "gru", "rnn", "lstm")
    for seed in range(3):
        mixed = [frame.sample(frac=1, random_state=seed) for frame in (runs, speed)]
        pd.testing.assert_frame_equal(make(*mixed, "gru", "rnn", "lstm"), want, check_exact=True)


def test_a_row_per_engine() -> None:
    speed = speed_frame(
        *(block("gru", r, 100.0) for r in range(3)),
        *(block("gru/fused", r, 300.0, variant="gru", engine="fused") for r in range(3)),
        *(block("nn.gru", r, 200.0, engine="library") for r in range(3)),
        *(block("nn.gru#2", r, 201.0, engine="library") for r in range(3)),
    )
    out = make(runs_frame(*GRU, *RNN), speed, "nn.gru", "rnn", "gru")
    assert list(zip(out["variant"], out["engine"], strict=True)) == [
        ("nn.gru", "library"), ("rnn", "loop"), ("gru", "loop"), ("gru", "fused"),
    ]  # fmt: skip
    assert out["seeds"].tolist() == [0, 3, 3, 0]
    assert out["heldout_perplexity"].isna().tolist() == [True, False, False, True]
    assert out["tokens_per_sec"].tolist() == pytest.approx([200.0, NAN, 100.0, 300.0], nan_ok=True)
    assert out["speed_baseline"].tolist() == ["nn.gru", "", "nn.gru", "nn.gru"]
    assert out["speed_ratio"].tolist() == pytest.approx([NAN, NAN, 0.5, 1.5], nan_ok=True)
    assert out["speed_samples"].isna().tolist() == [False, True, False, False]
    assert out.loc[3, "parameters"] == 1003  # of the variant, whatever executes it
    assert make(runs_frame(), speed, "gru")["parameters"].isna().all()


def test_speed_baseline_falls_back_and_stays_in_its_class() -> None:
    rows = [block(v, r, x) for v, x in (("gru", 100.0), ("rnn", 300.0)) for r in range(3)]
    out = make(runs_frame(*GRU, *RNN), speed_frame(*rows))
    assert out["speed_baseline"].tolist() == ["gru", "gru"]
    assert out.loc[1, "speed_ratio"] == pytest.approx(3.0)
    tf32 = [block("nn.gru/tf32", r, 900.0, variant="nn.gru", precision="tf32") for r in range(3)]
    assert make(runs_frame(*GRU, *RNN), speed_frame(*rows, *tf32))["speed_baseline"].tolist() == ["gru", "gru"]
    other = [block("nn.gru", r, 900.0, session="s2", started="2024-01-01T00:00:00") for r in range(3)]
    assert make(runs_frame(*GRU, *RNN), speed_frame(*rows, *other))["speed_baseline"].tolist() == ["gru", "gru"]


def test_captured_and_together_are_other_speeds() -> None:
    rows = [block("gru", r, 100.0) for r in range(2)]
    rows += [block("gru", r, 700.0, capture=True) for r in range(2)]
    rows += [block("gru", r, 9000.0, seeds=30) for r in range(2)]
    rows += [block("gru", r, 5.0, protocol="classic") for r in range(2)]
    rows += [block("gru", r, 5.0, device="cuda") for r in range(2)]
    out = make(runs_frame(*GRU), speed_frame(*rows), "gru")
    assert out["capture"].tolist() == [False, True]
    assert out["tokens_per_sec"].tolist() == [100.0, 700.0]
    assert out["speed_ratio"].tolist() == pytest.approx([NAN, 7.0], nan_ok=True)


def test_speed_errors_are_shown_and_runs_come_first() -> None:
    rows = [block("gru", 0, 100.0), block("gru", 1, NAN, error="disagrees with loop by 0.1")]
    runs = runs_frame(GRU[0], GRU[1] | {"error": "boom"})
    out = make(runs, speed_frame(*rows), "gru")
    assert out.loc[0, "error"] == "1 of 2 runs: boom; 1 of 2 timed blocks: disagrees with loop by 0.1"
    assert out.loc[0, "speed_samples"] == 1


def test_a_row_shows_its_last_session_alone() -> None:
    old = [block("gru", 0, 5.0, error="old trouble"), block("gru", 1, 900.0)]
    new = [block("gru", r, 100.0, session="s2", started="2025-02-01T00:00:00") for r in range(2)]
    out = make(runs_frame(), speed_frame(*old, *new), "gru")
    assert (out.loc[0, "tokens_per_sec"], out.loc[0, "speed_samples"], out.loc[0, "error"]) == (100.0, 2, "")


def test_the_plain_baseline_is_the_uncaptured_one() -> None:
    rows = [block("rnn", r, 100.0) for r in range(2)]
    rows += [block("nn.gru", r, 400.0, capture=True) for r in range(2)]
    rows += [block("nn.gru/plain", r, 200.0, variant="nn.gru") for r in range(2)]
    out = make(runs_frame(), speed_frame(*rows), "rnn")
    assert (out.loc[0, "speed_baseline"], out.loc[0, "speed_ratio"]) == ("nn.gru/plain", pytest.approx(0.5))


def test_the_first_error_is_that_of_the_first_seed() -> None:
    late = run("gru", 0, None, error="seed 0", started="2025-09-01T00:00:00")
    out = make(runs_frame(run("gru", 1, None, error="seed 1"), late), None, "gru")
    assert out.loc[0, "error"] == "2 of 2 runs: seed 0"


def test_variants_named_twice_are_one() -> None:
    runs = runs_frame(*GRU, *RNN)
    pd.testing.assert_frame_equal(make(runs, None, "gru", "rnn", "gru", "rnn"), make(runs))


def test_rates_of_two_machines_are_not_pooled() -> None:
    moved = run("gru", 3, 8.0, train_s=1.0, environment="e2", started="2025-02-01T00:00:00")
    assert make(runs_frame(*GRU, moved), None, "gru").loc[0, "tokens_per_sec_all_seeds"] == 6000.0


def test_another_engine_can_be_paired() -> None:
    fused = [row | {"engine": "fused"} for row in RNN]
    assert make(runs_frame(*GRU, *fused)).loc[1, "delta_nats"] == pytest.approx(0.2)
    both = [*fused, *(row | {"engine": "fused", "heldout_perplexity": math.exp(2.0)} for row in GRU[:2])]
    out = make(runs_frame(*GRU, *both)).set_index(["variant", "engine"])
    assert out.loc[("rnn", "fused"), "pairs"] == 2  # the baseline of the same engine comes first
    assert out.loc[("rnn", "fused"), "delta_nats"] == pytest.approx((0.1 + 0.3) / 2)
    broken = [*fused, *(row | {"engine": "fused", "error": "boom"} for row in GRU)]
    out = make(runs_frame(*GRU, *broken)).set_index(["variant", "engine"])
    assert out.loc[("rnn", "fused"), "pairs"] == 3  # none finished there: the engine that has some


@pytest.mark.parametrize("empty", [pd.DataFrame(), pd.DataFrame(columns=list(COLUMNS["runs"]))])
def test_no_results_is_a_table_with_no_rows(empty: pd.DataFrame) -> None:
    out = stats.table(empty, pd.DataFrame(), ["gru"], "quick", SHA, "cpu")
    assert tuple(out.columns) == TABLE
    assert out.empty


def test_missing_is_an_empty_cell_in_the_file() -> None:
    line = make(runs_frame(GRU[0]), None, "gru").to_csv(index=False).splitlines()[1]
    cells = dict(zip(TABLE, line.split(","), strict=True))
    assert [cells[c] for c in ("heldout_low", "pairs", "delta_nats", "verdict", "tokens_per_sec", "error")] == [""] * 6
    assert (cells["seeds"], cells["failed"], cells["hidden"], cells["capture"]) == ("1", "0", "64", "False")


def test_inputs_are_left_as_they_were() -> None:
    runs, speed = runs_frame(*GRU, *RNN), speed_frame(block("gru", 0, 100.0))
    before = runs.copy(), speed.copy()
    make(runs, speed)
    pd.testing.assert_frame_equal(runs, before[0])
    pd.testing.assert_frame_equal(speed, before[1])


def test_importing_costs_no_scipy_and_no_torch() -> None:
    code = "import sys, harness.stats; print([m for m in ('scipy', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
