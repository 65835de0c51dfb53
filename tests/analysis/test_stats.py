"""Is the arithmetic right: known answers by hand, laws that hold for any data, error rates under simulated nulls."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.analysis import stats

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


def test_importing_costs_no_scipy_and_no_torch() -> None:
    code = "import sys, harness.analysis.compare; print([m for m in ('scipy', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_looking_four_times_keeps_the_error_rate() -> None:
    """600 simulated nulls, stopped at the first look that says worse or better: at most 5 %, within chance."""
    random = np.random.default_rng(5)
    looks, wrong = (8, 10, 12, 14), 0
    for _ in range(600):
        d = random.normal(0, 0.1, looks[-1])
        for n in looks:
            low, high, _, _ = stats.interval(d[:n], 1 - stats.ALPHA / len(looks))
            p = min(1.0, len(looks) * stats.sign_flip(d[:n]))
            if stats.verdict(float(d[:n].mean()), low, high, p) in ("worse", "better"):
                wrong += 1
                break
    assert wrong / 600 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 600)
    assert wrong > 0


@pytest.mark.parametrize(
    ("n", "low", "high"),
    [(0, math.nan, math.nan), (4, math.nan, math.nan), (5, 0, 4), (8, 0, 7), (9, 1, 7), (20, 5, 14)],
)
def test_median_interval_by_the_binomial(n: int, low: float, high: float) -> None:
    """Of 20 the 6th and 15th: 1 - 2 P(Bin(20, 1/2) <= 5) = 95.9 %; the 7th and 14th have 88.5 %."""
    values = np.random.default_rng(n).permutation(n)
    assert stats.median_interval(values) == pytest.approx((low, high), nan_ok=True)
    assert stats.median_interval([2.0] * 5) == (2.0, 2.0)
