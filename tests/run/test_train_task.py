"""tasks.csv: shares with exact intervals, updates paired by seed, and a learning rate that no scored seed chose."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from harness import __main__ as command
from harness import pipeline
from harness import plan as planning
from harness.analysis import stats, tasks
from harness.experiments import protocols
from harness.experiments.protocols import RATE_SEEDS
from harness.record import store, tables
from harness.report import page, select

pytestmark = pytest.mark.usefixtures("in_process")


def rows(variant: str, updates: list[float | None], error: str = "", task: str = "s3") -> list[dict[str, object]]:
    return [
        {"run": f"{variant}-{k}", "variant": variant, "engine": "loop", "precision": "ieee", "device": "cpu", "seed": k,
         "protocol": task, "task": task, "length": 32, "hidden": 32, "lr": 0.01, "parameters": 4000,
         "score": None if error and k == 0 else 0.2 if after is None else 0.995, "score_is": "share", "trivial": 0.19,
         "optimal": 1.0, "threshold": 0.99, "budget": 2000, "solved_after": after, "length_longer": 64,
         "score_longer": 0.9, "trivial_longer": 0.18, "error": error if k == 0 else ""}
        for k, after in enumerate(updates)
    ]  # fmt: skip


def built(*groups: list[dict[str, object]], rates: list[dict[str, object]] | None = None) -> pd.DataFrame:
    trained = tables.frame("probes", [row for group in groups for row in group])
    return tasks.build(trained, tables.frame("learning_rates", rates or [])).set_index("variant")


def chances(n: int, p: float, successes: range) -> float:
    """The binomial probability of so many successes."""
    return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in successes)


def test_a_share_has_the_exact_interval() -> None:
    for k, n in ((0, 10), (10, 10), (5, 10), (1, 3)):
        low, high = stats.share(k, n)
        assert k == 0 or chances(n, low, range(k, n + 1)) == pytest.approx(0.025)
        assert k == n or chances(n, high, range(k + 1)) == pytest.approx(0.025)
        assert (low == 0) == (k == 0)
        assert (high == 1) == (k == n)
    assert all(math.isnan(x) for x in stats.share(0, 0))


def test_shares_apart_fail_and_updates_are_paired_by_seed() -> None:
    whole = [300.0 + 10 * k for k in range(10)]
    table = built(
        rows("gru", list(whole)), rows("rnn", [None] * 10), rows("gru:R=1", [2 * u for u in whole]),
        rows("gru:Z=0", [*whole[:5], *[u + (-1) ** k for k, u in enumerate(whole[5:])]]),
    )  # fmt: skip
    assert table.solved.to_dict() == {"gru": 10, "rnn": 0, "gru:R=1": 10, "gru:Z=0": 10}
    assert table.verdict.to_dict() == {"gru": "", "rnn": "fails", "gru:R=1": "slower", "gru:Z=0": "undecided"}
    assert table.loc["gru:R=1", "updates_ratio"] == pytest.approx(2)
    assert table.loc["gru:R=1", "p_holm"] == pytest.approx(2 / 2**10 * 3)  # three contrasts
    more = built(*(rows(v, list(whole), task=task) for v in ("gru", "rnn") for task in ("s3", "lag", "copy")),
                 rows("gru:R=1", [2 * u for u in whole]))  # fmt: skip
    assert more.loc["gru:R=1", "p_holm"] == pytest.approx(2 / 2**10 * 2)  # two contrasts of its task
    assert table.loc["gru", "updates_median"] == 345
    assert pd.isna(table.loc["rnn", "updates_median"])  # missing, not 0
    assert pd.isna(table.loc["rnn", "updates_ratio"])
    assert table.loc["rnn", "solved_high"] < table.loc["gru", "solved_low"]


def test_a_failed_seed_is_counted_does_not_count_as_solved_and_enters_no_mean() -> None:
    table = built(rows("gru", [400.0, 500.0, 700.0], error="diverged: no number"))
    own = table.loc["gru"]
    assert (own.seeds, own.failed, own.solved) == (2, 1, 2)
    assert own.solved_share == pytest.approx(2 / 3)
    assert own.updates_median == 600
    assert own.score == pytest.approx(0.995)
    assert own.error == "1 of 3: diverged: no number"


def test_tasks_stand_in_the_order_of_their_file_and_variants_as_ablate_has_them() -> None:
    groups = [rows(variant, [400.0, 500.0], task=task)
              for task in ("lag", "s3") for variant in ("rnn", "gru1", "gru:Z=0", "gru")]  # fmt: skip
    table = built(*groups).reset_index()
    assert list(zip(table.task, table.variant, strict=True)) == [
        (task, variant) for task in ("s3", "lag") for variant in ("gru", "gru:Z=0", "rnn", "gru1")
    ]


def test_the_window_of_rates_is_how_many_solve_for_all_that_choose() -> None:
    tried = [
        {"protocol": "s3", "variant": "gru", "lr": lr, "seeds": 2, "failed": 0, "solved": k, "chosen": lr == 0.01}
        for lr, k in ((0.001, 0), (0.003, 1), (0.01, 2))
    ]
    own = built(rows("gru", [400.0, 500.0]), rates=tried).loc["gru"]
    assert (own.rates_tried, own.rates_that_solve, own.rate_at_edge) == (3, 1, True)


def test_tasks_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(protocols.TASK_RATES, "adam", protocols.TASK_RATES["adam"][:2])
    words = ["probe", "--device", "cpu", "--seeds", "2", "--tasks", "s3", "adding", "--lengths", "3", "4",
             "--variants", "gru", "rnn", "--set", "epochs=1", "hidden=4", "--results", str(tmp_path)]  # fmt: skip
    assert command.main(words) == 0
    results = tables.read(tmp_path)
    assert results.runs.empty
    scored = results.probes[~results.probes.seed.isin(RATE_SEEDS)]
    assert len(scored) == 2 * 2 * 2 * 2
    assert len(results.probes) == len(scored) + 2 * 2 * 2 * len(protocols.TASK_RATES["adam"]) * len(RATE_SEEDS)
    assert len(results.tasks) == 2 * 2 * 2
    assert set(results.tasks.length) == {3, 4}
    assert set(results.tasks.seeds) == {2}
    for r in results.tasks.itertuples():
        own = scored[(scored.task == r.task) & (scored.length == r.length) & (scored.variant == r.variant)]
        assert r.score == pytest.approx(own.score.mean())
        assert set(own.lr) == {r.lr}
        tried = results.learning_rates[
            (results.learning_rates.protocol == r.protocol) & (results.learning_rates.variant == r.variant)
        ]
        assert sorted(tried.lr) == sorted(protocols.TASK_RATES["adam"])
        assert tried[tried.chosen].lr.tolist() == [r.lr]
    said = capsys.readouterr().out
    assert "not solved, score" in said
    assert "within 100 updates" in said
    assert command.main(words) == 0
    assert "16 done already" in capsys.readouterr().out
    (section,) = [s for s in page.further(select.typed(results)) if s.id == "tasks"]
    assert not [s for s in page.further(select.typed(results)) if s.id == "rates"]  # of a text alone
    assert "of 2 rates" in " ".join(cell.note for row in section.table.rows for cell in row)  # type: ignore[union-attr]
    again = command.parser().read(section.command.split()[3:])
    keys = [
        {run.key for plan in planning.on_tasks(asked) for run in plan.runs}
        for asked in (again, command.parser().read(words))
    ]
    assert keys[0] == keys[1]  # typed again, it would train the same


def test_the_rate_of_a_task_is_what_solves_it_for_most_then_soonest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "train", lambda *rest, **engine: None)
    found = {0.001: (None, None, 0.98), 0.003: (900, None, 0.99), 0.01: (900, 700, 0.99), 0.03: (500, 1000, 0.99)}
    monkeypatch.setattr(
        store, "outcome",
        lambda folder, run: {
            "solved_after": found[run.setting.lr][run.seed - min(RATE_SEEDS)], "score": found[run.setting.lr][2]
        },
    )  # fmt: skip
    words = ["probe", "--device", "cpu", "--tasks", "s3", "--variants", "gru"]
    [plan], table = pipeline.choose(planning.on_tasks(command.parser().read(words)), tmp_path)
    assert plan.rates == {"gru": 0.03}  # 750 updates in the middle; 800 at .01
    assert [row["solved"] for row in table] == [0, 1, 2, 2]
    found[0.03] = (500, None, 0.999)
    [plan], _ = pipeline.choose(planning.on_tasks(command.parser().read(words)), tmp_path)
    assert plan.rates == {"gru": 0.01}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "coppy"], "Did you mean 'copy'?"),
        (["--lengths", "1"], "from 2 to"),
        (["--lengths", "x"], "whole number"),
        (["--protocol", "quick"], "no --protocol"),
        (["--set", "num_steps=4"], "num_steps"),
        (["--tasks", "pair_recall", "--lengths", "9"], "from 2 to 8"),
        (["--seeds", "1001"], "choose the learning rate"),
        (["--variants", "grru"], "Did you mean 'gru'?"),
        (["--precision", "tf32"], "needs CUDA"),
        (["--engine", "naitive"], "Did you mean 'native'?"),
    ],
)
def test_a_bad_probe_is_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["probe", "--device", "cpu", "--results", str(tmp_path), *words]) == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1
