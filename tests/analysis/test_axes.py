"""Lists in --set: a grid of points, effects paired by seed along it, one family over all of it."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from synthetic import SHA

from harness import __main__ as command
from harness.analysis import axes
from harness.experiments import grids
from harness.record import tables
from harness.report import select
from harness.report.sections import axes as axes_section

pytestmark = pytest.mark.usefixtures("in_process")

GRU, RNN = "gru", "rnn"


def test_a_list_is_an_axis_and_a_misspelt_number_is_none() -> None:
    assert grids.points(["hidden=16,32", "epochs=2"]) == [["hidden=16", "epochs=2"], ["hidden=32", "epochs=2"]]
    assert grids.points(["hidden=8,16", "lr=0.5,1"])[1] == ["hidden=8", "lr=1"]
    assert grids.points(["update_bias=own,1,chrono"]) == [
        ["update_bias=own"],
        ["update_bias=1"],
        ["update_bias=chrono"],
    ]
    assert grids.points(["max_vocabulary=0,20"]) == [["max_vocabulary=0"], ["max_vocabulary=20"]]
    assert grids.points([]) == [[]]
    for slip in ("train_characters=80,000", "lr=0,5", "hidden=16,", "nonsense=1,2", "epochs=20,hidden=64"):
        assert grids.points([slip]) == [[slip]]  # `override` says what is wrong with it
    with pytest.raises(ValueError, match="has 16 twice"):
        grids.points(["hidden=16,32,16"])


def made(sizes: dict[int, float], seeds: int = 6) -> tuple[pd.DataFrame, dict[str, object]]:
    """Runs of which rnn is worse than gru by so many nats at each size, give or take the seed's own."""
    rows, parts = [], []
    for hidden, worse in sizes.items():
        label = f"quick,hidden={hidden}"
        keys = []
        for variant in (GRU, RNN):
            for seed in range(seeds):
                keys.append(f"{variant}-{hidden}-{seed}")
                nats = 2 + 0.1 * seed + (worse * (1 + 0.01 * seed) if variant == RNN else 0)
                rows.append({
                    "run": keys[-1], "variant": variant, "engine": "native", "capture": False, "precision": "ieee",
                    "device": "cpu", "seed": seed, "protocol": label, "corpus": "text", "corpus_sha256": SHA,
                    "hidden": hidden, "heldout_perplexity": math.exp(nats), "train_perplexity": 5.0, "error": "",
                    "started": "2026", "environment": "e1", "tokens": 1.0, "train_s": 1.0, "together": 1,
                })  # fmt: skip
        parts.append({"protocol": {"label": label}, "variants": [GRU, RNN], "corpus_sha256": SHA, "device": "cpu",
                      "runs": keys, "point": [str(hidden)]})  # fmt: skip
    return tables.frame("runs", rows), {"fields": ["hidden"], "parts": parts}


def test_effects_and_their_change_are_paired_and_of_one_family() -> None:
    runs, asked = made({8: 0.0, 16: 0.1, 32: 0.3})
    table = axes.build(runs, asked)
    own = table[table.variant == RNN].set_index("point")
    assert list(own.index) == ["8", "16", "32"]
    assert own.delta_nats.tolist() == pytest.approx([0, 0.1025, 0.3075])
    assert set(table.comparisons) == {4}  # three differences, one change
    assert own.loc["32", "p_signflip"] == pytest.approx(2 / 2**6)
    assert own.loc["32", "p_holm"] == pytest.approx(4 * 2 / 2**6)
    assert own.loc["32", "change_nats"] == pytest.approx(0.3075)
    assert own.loc["32", "change_p_holm"] == pytest.approx(4 * 2 / 2**6)
    assert own[["change_nats", "change_p_holm"]].iloc[:2].isna().all(axis=None)
    assert own.loc["8", "verdict"] == "equivalent"
    assert own.loc["32", "verdict"] == "undecided"  # six seeds cannot, four comparisons
    assert axes.trend(own.loc["32"]) == "undecided"
    more = axes.build(*made({8: 0.0, 32: 0.3}, seeds=10)).query("variant == 'rnn' and point == '32'").iloc[0]
    assert (more.verdict, axes.trend(more)) == ("worse", "grows")
    fewer = axes.build(*made({8: 0.3, 32: 0.1}, seeds=10)).query("variant == 'rnn' and point == '32'").iloc[0]
    assert axes.trend(fewer) == "shrinks"


def test_a_lost_seed_is_left_out_of_the_change_alone() -> None:
    runs, asked = made({8: 0.0, 32: 0.3}, seeds=5)
    runs.loc[(runs.run == "rnn-8-2"), ["error", "heldout_perplexity"]] = ["diverged", None]
    own = axes.build(runs, asked).query("variant == 'rnn'").set_index("point")
    assert own.pairs.tolist() == [4, 5]
    assert own.loc["8", "failed"] == 1
    assert own.loc["32", "change_nats"] == pytest.approx(0.3 * (1 + 0.01 * (0 + 1 + 3 + 4) / 4))


def test_a_list_trains_every_point_and_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["train_characters=400", "heldout_characters=200", "epochs=1", "evaluations=1", "batch_size=4"]
    ask = ["ablate", "--variants", GRU, RNN, "--seeds", "2", "--results", str(tmp_path), "--device", "cpu",
           "--protocol", "quick", "--set", "hidden=4,8", *small]  # fmt: skip
    assert command.main(ask) == 0
    assert "axes: hidden, 2 points x 2 variants x 2 seeds = 8 trainings" in capsys.readouterr().out
    table = tables.read(tmp_path).axes
    assert table[["point", "variant", "hidden", "seeds"]].values.tolist() == [
        ["4", GRU, 4, 2], ["4", RNN, 4, 2], ["8", GRU, 8, 2], ["8", RNN, 8, 2]]  # fmt: skip
    section = axes_section.section(select.typed(tables.read(tmp_path)))
    assert section is not None
    assert section.title == "Effects by hidden"
    [picture] = section.pictures
    assert picture.describe is not None
    assert "rnn: " in picture.describe(*picture.frames)
    assert picture.draw(*picture.frames) is not None
    assert command.main(["report", "--results", str(tmp_path)]) == 0
    pd.testing.assert_frame_equal(tables.read(tmp_path).axes, table)


@pytest.mark.parametrize(("ask", "says"), [
    (["--seeds", "until-decided", "--set", "hidden=4,8"], "is of one comparison"),
    (["--variants", RNN, "--set", "hidden=4,8"], "an effect along an axis is a difference"),
    (["--set", "hidden=4,8,4"], "has 4 twice"),
    (["--set", "hidden=4,x"], "hidden is a whole number"),
    (["--set", "train_characters=80,000"], "write 80000"),
])  # fmt: skip
def test_a_list_that_cannot_be_is_one_line(
    ask: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["ablate", "--device", "cpu", "--results", str(tmp_path), *ask]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_values_that_are_words_are_not_joined_by_a_line() -> None:
    table = axes.build(*made({16: 0.1, 32: 0.2}))
    for names, joined in ((("16", "32"), True), (("sgd", "adam"), False)):
        own = table.assign(point=table.point.map(dict(zip(("16", "32"), names, strict=True))))
        figure = axes_section.along(own)
        assert figure is not None
        [line] = [line for line in figure.axes[0].lines if line.get_marker() not in ("None", None, "")]
        assert (line.get_linestyle() != "None") == joined
