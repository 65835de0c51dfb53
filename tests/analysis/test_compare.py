"""Is bench.csv what its runs and samples say: rows by hand, what enters a mean, what is paired with what."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from test_speed import block, speed_frame, through_csv

from harness.analysis import compare
from harness.record.schema import COLUMNS
from harness.report.sections import methods

NAN = math.nan
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
    return compare.build(runs, speed, names, "quick", SHA, "cpu", **more)  # type: ignore[arg-type]


GRU = [run("gru", k, math.exp(2.0 + 0.1 * k)) for k in range(3)]
RNN = [run("rnn", k, math.exp(2.0 + 0.1 * k + 0.2 + 0.1 * (k - 1))) for k in range(3)]  # +.1, +.2, +.3


def test_table_by_hand() -> None:
    out = make(runs_frame(*RNN, *GRU))
    assert tuple(out.columns) == COLUMNS["bench"]
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


def test_the_best_epoch_is_compared_as_the_last_is_and_a_changed_verdict_is_said() -> None:
    """At the end rnn is worse by 0.2 nats; each at its best epoch they are equal to 0.001."""
    rows = [
        run(v, k, math.exp(2 + 0.1 * k + (0.2 if v == "rnn" else 0)), best_epoch=4 + k,
            best_perplexity=math.exp(1.9 + 0.1 * k + (0.001 * (-1) ** k if v == "rnn" else 0)))
        for v in ("gru", "rnn") for k in range(10)
    ]  # fmt: skip
    gru, rnn = (row for _, row in make(runs_frame(*rows)).iterrows())
    assert gru["best_perplexity"] == pytest.approx(math.exp(1.9 + 0.45))
    assert gru["best_epoch"] == 8.5
    assert rnn["best_delta_nats"] == pytest.approx(0.0, abs=1e-12)
    assert (rnn["verdict"], rnn["best_verdict"]) == ("worse", "equivalent")
    assert (
        "changes 1 of 1 verdict: rnn is worse at the end (+22.1\u00a0%) and equivalent there"
        in methods.early_stopping(make(runs_frame(*rows)))
    )
    assert methods.early_stopping(make(runs_frame(*GRU, *RNN))) == ""  # nothing was validated


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
    cluster = [{**row, "together": None} for row in GRU]
    assert math.isnan(make(runs_frame(*cluster), None, "gru").loc[0, "tokens_per_sec_all_seeds"])


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
    out = compare.build(empty, pd.DataFrame(), ["gru"], "quick", SHA, "cpu")
    assert tuple(out.columns) == COLUMNS["bench"]
    assert out.empty


def test_missing_is_an_empty_cell_in_the_file() -> None:
    line = make(runs_frame(GRU[0]), None, "gru").to_csv(index=False).splitlines()[1]
    cells = dict(zip(COLUMNS["bench"], line.split(","), strict=True))
    assert [cells[c] for c in ("heldout_low", "pairs", "delta_nats", "verdict", "tokens_per_sec", "error")] == [""] * 6
    assert (cells["seeds"], cells["failed"], cells["hidden"], cells["capture"]) == ("1", "0", "64", "False")


def test_inputs_are_left_as_they_were() -> None:
    runs, speed = runs_frame(*GRU, *RNN), speed_frame(block("gru", 0, 100.0))
    before = runs.copy(), speed.copy()
    make(runs, speed)
    pd.testing.assert_frame_equal(runs, before[0])
    pd.testing.assert_frame_equal(speed, before[1])
