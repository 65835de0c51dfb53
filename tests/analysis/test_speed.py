"""Is a speed that of fresh, undisturbed processes of one session, and a ratio that of pairs; by hand."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import pandas as pd
import pytest

from harness.analysis import speed as speeds
from harness.record.schema import COLUMNS

NAN = math.nan


def block(label: str, round_: int, rate: float, **more: object) -> dict[str, object]:
    row: dict[str, object] = dict.fromkeys(COLUMNS["speed"])
    row |= {
        "session": "s1", "round": round_, "label": label, "control_of": label.partition("#")[0] * ("#" in label),
         "variant": label.split("#")[0], "engine": "loop",
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
        *(block("gru", r, base) for r, base in enumerate((100.0, 50.0, 200.0, 25.0, 100.0))),
        *(block("rnn", r, rate) for r, rate in enumerate((200.0, 100.0, 400.0, 50.0, 200.0))),
    )
    assert speeds.speed_ratio(speed, "rnn", "gru") == (2.0, 2.0, 2.0, 5, "faster", 0)  # weather cancels
    assert speeds.speed_ratio(speed, "gru", "rnn") == (0.5, 0.5, 0.5, 5, "slower", 0)
    assert speeds.speed_ratio(speed, "gru", "gru") == (1.0, 1.0, 1.0, 5, speeds.UNTOLD, 0)


def beside(ratios: Sequence[float], *more: dict[str, object]) -> speeds.SpeedRatio:
    """Of rnn to gru, which is at 100 in every round."""
    speed = [block(v, r, 100.0 * (x if v == "rnn" else 1)) for v in ("gru", "rnn") for r, x in enumerate(ratios)]
    return speeds.speed_ratio(speed_frame(*speed, *more), "rnn", "gru")


def test_a_ratio_is_the_median_of_the_rounds_and_five_bound_it() -> None:
    """One round in which a neighbour woke up moves neither far."""
    assert beside([1.5, 1.4, 1.6, 1.5, 0.2])[:4] == pytest.approx((1.5, 0.2, 1.6, 5))
    assert beside([1.5, 1.4, 1.6, 1.5, 1.3])[:4] == pytest.approx((1.5, 1.3, 1.6, 5))
    assert beside([1.5, 1.4, 1.6, 1.55])[:4] == pytest.approx((math.sqrt(1.5 * 1.55), NAN, NAN, 4), nan_ok=True)


@pytest.mark.parametrize(
    ("ratios", "again", "verdict"),
    [
        ([1.5, 1.4, 1.6, 1.5, 1.3], [1.0, 1.01, 0.99, 1.02, 0.98], "faster"),
        ([0.5, 0.4, 0.6, 0.5, 0.7], [1.0, 1.01, 0.99, 1.02, 0.98], "slower"),
        ([1.5, 1.4, 1.6, 1.5, 0.2], [1.0, 1.01, 0.99, 1.02, 0.98], speeds.UNTOLD),  # the interval holds 1
        ([1.06, 1.05, 1.04, 1.05, 1.05], [1.0, 1.01, 0.99, 1.1, 0.98], speeds.UNTOLD),  # within the noise, above
        ([1.06, 1.05, 1.04, 1.05, 1.05], [1.0, 1.01, 0.99, 1.0, 0.9], speeds.UNTOLD),  # and below
        ([0.96, 0.95, 0.94, 0.95, 0.95], [1.0, 1.01, 0.99, 1.1, 0.98], speeds.UNTOLD),
        ([1.5, 1.4, 1.6, 1.5], [1.0] * 4, speeds.UNTOLD),  # four rounds bound no median
        ([1.5, 1.4, 1.6, 1.5, 1.3], [], "faster"),  # nothing was timed twice
    ],
)
def test_when_a_speed_is_told(ratios: Sequence[float], again: Sequence[float], verdict: str) -> None:
    twin = [block("gru#2", r, 100.0 * x) for r, x in enumerate(again)]
    assert beside(ratios, *twin).verdict == verdict


def test_a_ratio_that_contradicts_the_rates_beside_it_is_not_told() -> None:
    """Where rounds failed, medians may be of other rounds than the pairs."""
    lone = [block("gru", 10 + r, 900.0) for r in range(7)]
    assert beside([1.5, 1.4, 1.6, 1.5, 1.3], *lone).verdict == speeds.UNTOLD


def test_noise_is_the_end_farthest_from_one_of_any_pair() -> None:
    rows = [block("gru", r, 100.0) for r in range(5)] + [block("rnn", r, 100.0) for r in range(5)]
    rows += [block("gru#2", r, 100.0 * x) for r, x in enumerate((1.0, 1.05, 0.9, 1.02, 1.0))]
    assert speeds.noise(speeds.blocks(speed_frame(*rows))) == pytest.approx(-math.log(0.9))
    rows += [block("rnn#2", r, 100.0 * x) for r, x in enumerate((1.0, 1.25, 0.9, 1.02, 1.0))]
    assert speeds.noise(speeds.blocks(speed_frame(*rows))) == pytest.approx(math.log(1.25))
    assert math.isnan(speeds.noise(speeds.blocks(speed_frame(*rows[:10]))))


def test_speed_pairs_only_what_is_comparable() -> None:
    gru = [block("gru", r, 100.0) for r in range(4)]
    odd = [
        block("rnn", 0, 300.0),
        block("rnn", 1, 300.0),
        block("rnn", 9, 999.0),  # no partner in its round
        block("rnn", 2, 999.0, error="RuntimeError: boom"),
        block("rnn", 3, 999.0, precision="tf32"),
    ]
    assert speeds.speed_ratio(speed_frame(*gru, *odd), "rnn", "gru")[:4] == pytest.approx(
        (3.0, NAN, NAN, 2), nan_ok=True
    )
    one = speeds.speed_ratio(speed_frame(gru[0], odd[0]), "rnn", "gru")
    assert one[:4] == pytest.approx((3.0, NAN, NAN, 1), nan_ok=True)
    assert one.verdict == speeds.UNTOLD
    none = speeds.speed_ratio(speed_frame(*gru), "rnn", "gru")
    assert math.isnan(none.ratio)
    assert (none.rounds, none.verdict) == (0, "")


def test_disturbed_blocks_are_left_out_unless_all_are() -> None:
    speed = speed_frame(
        block("gru", 0, 100.0, block=0),
        block("gru", 0, 104.0, block=1),
        block("gru", 0, 5.0, block=2, disturbed=True),
        block("gru", 1, 6.0, block=0, disturbed=True),
        block("gru", 1, 8.0, block=1, disturbed=True),
        block("gru", 1, 999.0, block=2, error="boom"),
    )
    each = speeds.speed_summary(speed, "gru")
    assert each[:3] == pytest.approx(((102 + 7) / 2, 7 + 95 / 4, 7 + 95 * 3 / 4))
    assert (each.samples, each.disturbed) == (2, 1)
    other = [block("rnn", r, 100.0) for r in range(2)]
    ratio = speeds.speed_ratio(pd.concat([speed, speed_frame(*other)]), "rnn", "gru")
    assert (ratio.rounds, ratio.disturbed) == (2, 1)


def test_speed_summary_medians_and_missing() -> None:
    rows = [
        block("gru", r, 100.0 + r, step_ms=float(r), percent_of_peak=50.0 + r, peak_memory_mib=r * 10.0)
        for r in range(5)
    ]
    rows.append(
        block("gru", 0, 100.0, block=1, step_ms=0.0, percent_of_peak=50.0, peak_memory_mib=35.0)
    )  # a later peak
    each = speeds.speed_summary(speed_frame(*rows), "gru")
    assert each == pytest.approx((102.0, 101.0, 103.0, 2.0, 52.0, 30.0, 20.0, 5, 0))
    single = speeds.speed_summary(speed_frame(rows[1]), "gru")
    assert single.median == 101.0
    assert math.isnan(single.q1)
    for missing in (speed_frame(rows[0]), pd.DataFrame(), pd.DataFrame(columns=list(COLUMNS["speed"]))):
        absent = speeds.speed_summary(missing, "lstm")
        assert absent.samples == 0
        assert math.isnan(absent.median + absent.step_ms)


def test_a_sample_is_its_median_block_and_a_rate_of_nothing_is_none() -> None:
    rows = [block("gru", 0, rate, block=b) for b, rate in enumerate((100.0, 104.0, 180.0))]
    rows.append(block("gru", 1, 1.0, block=0) | {"tokens_per_sec": 0.0})
    each = speeds.speed_summary(speed_frame(*rows), "gru")
    assert (each.median, each.samples) == (104.0, 1)


def test_sessions_and_environments_are_never_pooled() -> None:
    old = [block(v, r, x) for v, x in (("gru", 100.0), ("rnn", 900.0)) for r in range(3)]
    new = {"session": "s0", "started": "2025-02-01T00:00:00"}  # named before, started after
    fresh = [block(v, r, x, **new) for v, x in (("gru", 10.0), ("rnn", 20.0)) for r in range(2)]
    alone = [block("gru", r, 7.0, session="s9", started="2025-03-01T00:00:00") for r in range(2)]
    speed = speed_frame(*old, *fresh, *alone)
    assert speeds.speed_ratio(speed, "rnn", "gru")[:4] == pytest.approx((2.0, NAN, NAN, 2), nan_ok=True)
    assert speeds.speed_summary(speed, "gru")[:1] == (7.0,)
    assert speeds.speed_summary(speed, "rnn").median == 20.0
    moved = [block("gru", r, 5.0, environment="e2", started="2025-01-02T00:00:00") for r in (3, 4)]
    assert speeds.speed_summary(speed_frame(*old, *moved), "gru")[:1] == (5.0,)
    assert speeds.speed_summary(speed_frame(*old, *moved), "gru").samples == 2
