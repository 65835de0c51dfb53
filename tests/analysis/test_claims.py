"""Claims: each comparison decided by an interval and a margin that were fixed beforehand; none by a point."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from harness import __main__ as command
from harness import plan as planning
from harness.analysis import claims as analysis
from harness.analysis import stats
from harness.experiments import claims, protocols
from harness.experiments.claims import Arm, Claim, Comparison
from harness.experiments.tasks import TASKS
from harness.record import tables
from harness.report import select
from harness.report.sections import claims as claims_section
from variants import canonical

pytestmark = pytest.mark.usefixtures("in_process")

A, B = Arm("gru", "s3"), Arm("rnn", "s3")
P, Q = Arm("mgu"), Arm("gru")
LABELS = {A: "s3", B: "s3", P: "quick", Q: "quick"}


def trained(variant: str, updates: list[int | None], longer: float = 0.9, error: str = "") -> list[dict[str, object]]:
    return [
        {"run": f"{variant}-{k}", "variant": variant, "protocol": "s3", "seed": k, "solved_after": after,
         "score_longer": longer + k / 1000, "error": error if k == 0 else ""} for k, after in enumerate(updates)
    ]  # fmt: skip


def read(variant: str, nats: list[float]) -> list[dict[str, object]]:
    return [
        {"run": f"{variant}-{k}", "variant": variant, "protocol": "quick", "seed": k, "heldout_perplexity": math.exp(x),
         "error": ""} for k, x in enumerate(nats)
    ]  # fmt: skip


def decided(
    *comparisons: Comparison, tasks: Sequence[dict[str, object]] = (), texts: Sequence[dict[str, object]] = ()
) -> pd.DataFrame:
    claim = Claim("x", "someone", "https://example.org", "abstract", "It is so.", comparisons)
    return analysis.build(tables.frame("runs", texts), tables.frame("probes", tasks), LABELS, [claim])


def test_every_claim_can_be_run_and_says_what_was_read() -> None:
    assert len(claims.CLAIMS) >= 12
    assert len({claim.name for claim in claims.CLAIMS}) == len(claims.CLAIMS)
    assert stats.MARGIN_NATS == claims.MARGIN
    for claim in claims.CLAIMS:
        assert claim.comparisons
        assert claim.url.startswith("https://")
        assert claim.read
        for comparison in claim.comparisons:
            assert comparison.prediction
            assert (comparison.other is None) == (comparison.kind in ("solves", "fails", "generalizes"))
            on_text = comparison.kind in ("worse", "not_worse", "same")
            for arm in comparison.arms:
                assert canonical(arm.variant) == arm.variant
                assert (arm.task == "text") == on_text
                assert on_text or arm.task in TASKS
                base = protocols.protocol("quick") if on_text else protocols.task_protocol(arm.task)
                base.override(arm.settings)


@pytest.mark.parametrize(("kind", "solved", "outcome"), [
    ("solves", 10, "reproduced"), ("solves", 9, "reproduced"), ("solves", 5, "undecided"),
    ("solves", 0, "undecided"),
    ("fails", 0, "reproduced"), ("fails", 5, "undecided"), ("fails", 10, "contradicted"),
])  # fmt: skip
def test_a_share_is_decided_by_its_exact_interval(kind: str, solved: int, outcome: str) -> None:
    table = decided(Comparison(kind, A), tasks=trained("gru", [300] * solved + [None] * (10 - solved)))
    [row] = table.to_dict("records")
    assert (row["outcome"], row["verdict"], row["seeds"]) == (outcome, outcome, 10)
    assert (row["low"], row["high"]) == stats.share(solved, 10)


def test_better_is_more_seeds_or_sooner_and_nothing_where_neither_solves() -> None:
    def outcome(mine: list[int | None], other: list[int | None]) -> tuple[str, str]:
        [row] = decided(Comparison("better", A, B), tasks=trained("gru", mine) + trained("rnn", other)).to_dict(
            "records"
        )
        return row["outcome"], row["measure"]

    none: list[int | None] = [None] * 10
    slow: list[int | None] = [900 + 10 * k for k in range(10)]
    fast: list[int | None] = [300 + 10 * k for k in range(10)]
    assert outcome(fast, none) == ("reproduced", "difference of shares")
    assert outcome(none, fast) == ("contradicted", "difference of shares")
    assert outcome(none, none) == ("undecided", "difference of shares")
    assert outcome(fast, slow) == ("reproduced", "ratio of updates")
    assert outcome(slow, fast) == ("contradicted", "ratio of updates")
    assert outcome(fast, fast) == ("contradicted", "ratio of updates")  # as soon is not sooner
    assert outcome([*fast[:6], *none[6:]], fast)[0] == "undecided"


def test_an_undecided_difference_of_shares_has_its_interval() -> None:
    tasks = trained("gru", [300] * 10) + trained("rnn", [300] * 6 + [None] * 4)
    [row] = decided(Comparison("better", A, B), tasks=tasks).to_dict("records")
    assert (row["outcome"], row["measure"]) == ("undecided", "difference of shares")
    assert -1 <= row["low"] < row["estimate"] == pytest.approx(0.4)
    assert row["estimate"] < row["high"] <= 1


def test_a_failed_seed_is_not_solved() -> None:
    tasks = trained("gru", [300] * 10, error="diverged")
    [row] = decided(Comparison("solves", A), tasks=tasks).to_dict("records")
    assert (row["failed"], row["seeds"], row["estimate"]) == (1, 9, 0.9)


@pytest.mark.parametrize(("kind", "shift", "outcome"), [
    ("same", 0.0, "reproduced"), ("same", 0.1, "contradicted"), ("same", -0.1, "contradicted"),
    ("same", 0.02, "undecided"),
    ("worse", 0.1, "reproduced"), ("worse", 0.0, "contradicted"), ("worse", -0.1, "contradicted"),
    ("not_worse", 0.0, "reproduced"), ("not_worse", -0.1, "reproduced"), ("not_worse", 0.1, "contradicted"),
    ("not_worse", 0.02, "undecided"),
])  # fmt: skip
def test_a_loss_is_paired_by_seed_and_held_against_the_margin(kind: str, shift: float, outcome: str) -> None:
    base = [2 + 0.1 * k for k in range(10)]
    mine = [x + shift + 0.002 * (-1) ** k for k, x in enumerate(base)]
    [row] = decided(Comparison(kind, P, Q), texts=read("mgu", mine) + read("gru", base)).to_dict("records")
    assert row["outcome"] == outcome
    assert row["estimate"] == pytest.approx(shift, abs=1e-9)


def test_a_claim_is_what_all_of_its_comparisons_are() -> None:
    tasks = trained("gru", [300] * 10) + trained("rnn", [None] * 10)
    good, bad = Comparison("solves", A), Comparison("fails", A)
    open_ = Comparison("generalizes", A, margin=0.9045)
    for asked, verdict in (((good, Comparison("fails", B)), "reproduced"), ((good, bad), "contradicted"),
                           ((good, open_), "undecided"), ((bad, open_), "contradicted")):  # fmt: skip
        assert set(decided(*asked, tasks=tasks).verdict) == {verdict}
    assert set(decided(good, Comparison("fails", B), tasks=trained("gru", [300] * 10)).verdict) == {
        ""
    }  # rnn was not run


def test_claims_are_trained_tabulated_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("train_characters=400", "heldout_characters=200", "epochs=1", "evaluations=1", "batch_size=4", "hidden=4")
    monkeypatch.setattr(claims, "TEXT", small)
    arm = Arm("gru", "delayed_recall", ("epochs=1", "hidden=4"))
    monkeypatch.setattr(claims, "CLAIMS", (
        Claim("same", "A", "https://a.org", "abstract", "One.", (Comparison("same", Arm("mgu"), Arm("gru"), 5.0),)),
        Claim("long", "B", "https://b.org", "abstract", "Two.", (Comparison("solves", arm),)),
    ))  # fmt: skip
    monkeypatch.setattr(analysis.build, "__defaults__", (claims.CLAIMS,))
    monkeypatch.setitem(protocols.TASK_RATES, "adam", (0.01,))
    monkeypatch.setattr(planning, "_scored_apart", lambda plan: None)
    quick = protocols.protocol("quick")
    monkeypatch.setitem(protocols.PROTOCOLS, "quick", dataclasses.replace(quick, rate="given"))
    assert command.main(["claims", "--seeds", "2", "--results", str(tmp_path), "--device", "cpu"]) == 0
    table = tables.read(tmp_path).claims.set_index("claim")
    assert table.verdict.to_dict() == {"same": "reproduced", "long": "undecided"}
    assert table.loc["long", "evidence"] == "0 of 2 seeds"
    assert "reproduced: One. (A)" in capsys.readouterr().out
    section = claims_section.section(select.typed(tables.read(tmp_path)))
    assert section is not None
    assert "1 reproduced, 0 contradicted, 1 undecided" in section.said[0]
