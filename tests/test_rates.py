"""Is a speed that of fresh, undisturbed processes of one session, and a ratio that of pairs; by hand."""

from __future__ import annotations

import io
import math

import pandas as pd
import pytest

from harness import rates
from harness.record import COLUMNS

NAN = math.nan


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
    assert rates.speed_ratio(speed, "rnn", "gru") == pytest.approx((2.0, 2.0, 2.0, 3))  # weather cancels in a round
    assert rates.speed_ratio(speed, "gru", "rnn").ratio == pytest.approx(0.5)
    assert rates.speed_ratio(speed, "gru", "gru")[:3] == (1.0, 1.0, 1.0)


def test_speed_ratio_interval_is_t_on_logs() -> None:
    speed = speed_frame(
        *(block("gru", r, 100.0) for r in range(3)),
        *(block("rnn", r, 100.0 * math.exp(x)) for r, x in enumerate((1.0, 2.0, 3.0))),
    )
    half = 4.302653 / math.sqrt(3)
    assert rates.speed_ratio(speed, "rnn", "gru") == pytest.approx(
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
    assert rates.speed_ratio(speed_frame(*gru, *odd), "rnn", "gru") == pytest.approx((3.0, 3.0, 3.0, 2))
    one = rates.speed_ratio(speed_frame(gru[0], odd[0]), "rnn", "gru")
    assert one == pytest.approx((3.0, NAN, NAN, 1), nan_ok=True)
    none = rates.speed_ratio(speed_frame(*gru), "rnn", "gru")
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
    each = rates.speed_summary(speed, "gru")
    assert each[:3] == pytest.approx(((102 + 7) / 2, 7 + 95 / 4, 7 + 95 * 3 / 4))
    assert each.samples == 2


def test_speed_summary_medians_and_missing() -> None:
    rows = [
        block("gru", r, 100.0 + r, step_ms=float(r), percent_of_peak=50.0 + r, peak_memory_mib=r * 10.0)
        for r in range(5)
    ]
    rows.append(
        block("gru", 0, 100.0, block=1, step_ms=0.0, percent_of_peak=50.0, peak_memory_mib=35.0)
    )  # a later peak
    each = rates.speed_summary(speed_frame(*rows), "gru")
    assert each == pytest.approx((102.0, 101.0, 103.0, 2.0, 52.0, 30.0, 20.0, 5))
    single = rates.speed_summary(speed_frame(rows[1]), "gru")
    assert single.median == 101.0
    assert math.isnan(single.q1)
    for missing in (speed_frame(rows[0]), pd.DataFrame(), pd.DataFrame(columns=list(COLUMNS["speed"]))):
        absent = rates.speed_summary(missing, "lstm")
        assert absent.samples == 0
        assert math.isnan(absent.median + absent.step_ms)


def test_a_sample_is_its_median_block_and_a_rate_of_nothing_is_none() -> None:
    rows = [block("gru", 0, rate, block=b) for b, rate in enumerate((100.0, 104.0, 180.0))]
    rows.append(block("gru", 1, 1.0, block=0) | {"tokens_per_sec": 0.0})
    each = rates.speed_summary(speed_frame(*rows), "gru")
    assert (each.median, each.samples) == (104.0, 1)


def test_sessions_and_environments_are_never_pooled() -> None:
    old = [block(v, r, x) for v, x in (("gru", 100.0), ("rnn", 900.0)) for r in range(3)]
    new = {"session": "s0", "started": "2025-02-01T00:00:00"}  # named before, started after
    fresh = [block(v, r, x, **new) for v, x in (("gru", 10.0), ("rnn", 20.0)) for r in range(2)]
    alone = [block("gru", r, 7.0, session="s9", started="2025-03-01T00:00:00") for r in range(2)]
    speed = speed_frame(*old, *fresh, *alone)
    assert rates.speed_ratio(speed, "rnn", "gru") == pytest.approx((2.0, 2.0, 2.0, 2))
    assert rates.speed_summary(speed, "gru")[:1] == (7.0,)
    assert rates.speed_summary(speed, "rnn").median == 20.0
    moved = [block("gru", r, 5.0, environment="e2", started="2025-01-02T00:00:00") for r in (3, 4)]
    assert rates.speed_summary(speed_frame(*old, *moved), "gru")[:1] == (5.0,)
    assert rates.speed_summary(speed_frame(*old, *moved), "gru").samples == 2
