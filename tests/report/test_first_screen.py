"""The first screen: its sentences from every combination of verdicts, how much it says, what its pictures show."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

import pandas as pd
import pytest
import synthetic

from harness.analysis import stats
from harness.record import tables
from harness.report import page, select
from harness.report.sections import answers, first_screen

ABLATE = ("gru", "gru:R=1", "gru:Z=0", "gru:Z=0,R=1")
GONE = {"R": "gru:R=1", "Z": "gru:Z=0"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tables.Results:
    folder = tmp_path_factory.mktemp("results")
    return synthetic.read(synthetic.write(folder, seeds=4, bench=("gru", "nn.gru", "lstm"), ablate=ABLATE))


def tasks_of(results: tables.Results, gate: str, verdict: str) -> pd.DataFrame:
    row = results.tasks.iloc[0].to_dict()
    solved = 0 if verdict == "fails" else 10
    return pd.DataFrame([
        {**row, "variant": "gru", "baseline": "", "verdict": "", "solved": 10},
        {**row, "variant": GONE[gate], "baseline": "gru", "verdict": verdict, "solved": solved, "updates_ratio": 2.5,
         "updates_median": row["updates_median"] if solved else None},
    ])  # fmt: skip


def verdicts(results: tables.Results, gate: str, text: str, task: str) -> tables.Results:
    """A gate whose text and whose task say so."""
    table = results.ablate.copy()
    at = table.variant == GONE[gate]
    size = {"worse": 0.04, "better": -0.02, "equivalent": 0.001, "undecided": 0.01}.get(text, math.nan)
    table.loc[at, ["verdict", "delta_nats"]] = [text, size]
    tasks = tasks_of(results, gate, task) if task else results.tasks.iloc[:0]
    return select.typed(dataclasses.replace(results, ablate=table, tasks=tasks))


def card(data: tables.Results, gate: str) -> str:
    (found,) = [c for c in first_screen.gate_cards(data) if c.symbol == gate]
    return f"{found.claim}: {found.proof}"


@pytest.mark.parametrize("gate", ["R", "Z"])
@pytest.mark.parametrize("task", ["fails", "undecided", "slower", ""])
@pytest.mark.parametrize("text", ["worse", "equivalent", "better", "undecided"])
def test_a_sentence_says_what_its_rows_say(results: tables.Results, text: str, task: str, gate: str) -> None:
    said = card(verdicts(results, gate, text, task), gate)
    assert {"worse": "4.1\u00a0% harder", "equivalent": "predicted as well", "better": "2.0\u00a0% easier",
            "undecided": "not decided yet"}[text] in said  # fmt: skip
    claim, _, proof = said.partition(": ")
    if task and text != "undecided":
        assert ("is for predicting this text" in claim) == (text == "worse")
    if task:
        assert ("is solved by no seed" in proof) == (task == "fails")
        assert ("2.5 times the updates" in proof) == (task == "slower")
    else:
        assert "make ablate" in proof
    if task == "fails" and text in ("equivalent", "better"):
        assert proof.index("solved by no seed") < proof.index("but the text")  # what is lost comes first
    assert len(said.split()) <= 90
    assert len(re.findall(r"\d[\d.,]*", said)) <= 12


def test_the_sentence_is_of_the_tasks_that_are_drawn(results: tables.Results) -> None:
    tasks = pd.concat(
        [tasks_of(results, "Z", "fails").assign(task=t, protocol=t) for t in ("adding", "delayed_recall")]
    )
    said = card(select.typed(dataclasses.replace(results, tasks=tasks)), "Z")
    assert "long memory" in said
    assert "delayed recall is solved by no seed" in said
    assert "numbers" not in said
    alone = card(select.typed(dataclasses.replace(results, tasks=tasks[tasks.task == "adding"])), "Z")
    assert "long memory of numbers" in alone


def test_a_gate_without_which_the_text_is_predicted_as_well_may_be_one_of_two(results: tables.Results) -> None:
    """Said where neither is worse than without the other alone, paired by seed, its interval above 0; else not."""
    data = verdicts(results, "Z", "equivalent", "")
    logs = data.runs.assign(log=data.runs.heldout_perplexity.map(math.log)).pivot_table("log", "seed", "variant")
    for apart, wanted in ((0.05, True), (-0.05, False), (0.0, None)):
        moved = logs["gru:R=1"] + apart + (0.001 * (-1.0) ** logs.index if apart else logs["gru"] * 0)
        runs = data.runs.copy()
        at = runs.variant == "gru:Z=0,R=1"
        runs.loc[at, "heldout_perplexity"] = runs[at].seed.map(moved.map(math.exp)).to_numpy()
        table = data.ablate.copy()
        table.loc[table.variant == "gru:Z=0,R=1", "delta_nats"] = float((moved - logs["gru"]).mean())
        both_gone = dataclasses.replace(data, runs=runs, ablate=table)
        # the row of Z keeps its own mean, of its own pairs
        own = table.variant == "gru:Z=0"
        table.loc[own, "delta_nats"] = float((logs["gru:Z=0"] - logs["gru"]).mean())
        table.loc[own, "verdict"] = "equivalent"
        said = first_screen.needed_alone(both_gone, "Z")
        assert bool(said) == bool(wanted), (apart, said)
    assert stats.ALPHA == 0.05


def test_a_speed_that_cannot_be_told_is_no_bold_figure(results: tables.Results) -> None:
    def said(verdict: str, ratio: float) -> tuple[str, str]:
        bench = results.bench.copy()
        at = bench.variant == "gru"
        bench.loc[at, ["speed_ratio", "speed_ratio_low", "speed_ratio_high"]] = [ratio, ratio * 0.95, ratio * 1.05]
        bench["speed_verdict"] = bench["speed_verdict"].astype(object)
        bench.loc[at, "speed_verdict"] = verdict
        (found,) = first_screen.speed_card(select.typed(dataclasses.replace(results, bench=bench)))
        return found.claim, found.picture

    claim, bars = said("faster", 2.31)
    assert claim == "Run step by step in torch, the book\u2019s GRU trains 2.3 times as fast as torch\u2019s nn.GRU."
    assert "2.3\u00d7" in bars
    claim, bars = said("cannot be told", 1.02)
    assert not re.search(r"\d", claim)
    assert "no difference" in claim
    assert "1.02" not in re.sub(r"<title>.*?</title>|aria-label=\"[^\"]*\"", "", bars)
    assert "no difference told" in bars


def test_each_row_of_the_picture_is_a_row_of_its_table(results: tables.Results) -> None:
    data = select.typed(results)
    names = first_screen.rows_of(data)
    (text,) = first_screen.text_panel(data, names)
    table = data.ablate.set_index("variant")
    for name, variant in (("without R", "gru:R=1"), ("without Z", "gru:Z=0"), ("neither", "gru:Z=0,R=1")):
        mark = text.rows[name]
        assert mark
        assert mark.value == table.delta_nats[variant]
        assert len(mark.seeds) == table.pairs[variant] == 4
    panels = first_screen.task_panels(data, names)
    assert [p.unit for p in panels] == ["s3", "table3"]
    lost = panels[1].rows["without R"]
    assert lost
    assert math.isnan(lost.value)
    assert lost.shown == "0 of 10"
    assert panels[0].rows["without Z"] is None  # nobody tried
    drawn = first_screen.screen(data).picture
    assert drawn.count("<path") == sum(m is not None and math.isnan(m.value) for p in panels for m in p.rows.values())


@pytest.mark.parametrize(
    "gone", ["", "bench", "ablate", "tasks", "speed", "probes", "runs", "bench tasks", "ablate tasks"]
)
def test_it_stands_on_whatever_tables_there_are(results: tables.Results, gone: str) -> None:
    data = select.typed(dataclasses.replace(results, **{n: getattr(results, n).iloc[:0] for n in gone.split()}))
    seen = first_screen.screen(data)
    kinds = [c.kind for c in seen.cards]
    assert ("R" in kinds) == (gone != "ablate tasks")
    assert ("text" in kinds) == (gone in ("ablate", "ablate tasks"))
    assert bool(seen.picture)
    assert "nan" not in seen.picture.lower().replace("nn.", "")
    assert not re.search(r"\bnan\b", " ".join(c.claim + c.proof for c in seen.cards))
    assert all(c.answer is None or isinstance(c.answer, answers.Answer) for c in seen.cards)


def test_made_up_names_are_escaped(results: tables.Results) -> None:
    data = select.typed(results)
    hostile = dataclasses.replace(
        data, ablate=data.ablate.iloc[:0], tasks=data.tasks.iloc[:0],
        bench=data.bench.assign(variant=[f"<script>{k}" for k in range(len(data.bench))]),
    )  # fmt: skip
    assert "<script" not in first_screen.screen(hostile).picture


def test_every_class_of_a_row_is_styled() -> None:
    style = page.SCRIPT.joinpath("page.css").read_text()
    for kind in itertools.chain(first_screen.HUES.values(), ("other",)):
        assert f".{kind}{{--hue" in style or f",.{kind}{{--hue" in style


def bench_alone(results: tables.Results, logs: dict[str, list[float]], verdicts: dict[str, str]) -> str:
    """What the first card says of a bench with these log-perplexities by seed and these verdicts against gru."""
    runs = pd.DataFrame([
        {**results.runs.iloc[0], "run": f"{v}-{k}", "variant": v, "seed": k, "error": "",
         "heldout_perplexity": math.exp(x)}
        for v, own in logs.items() for k, x in enumerate(own)
    ])  # fmt: skip
    bench = pd.DataFrame([
        {**results.bench.iloc[0], "variant": v, "baseline": "" if v == "gru" else "gru", "seeds": len(own),
         "heldout_perplexity": math.exp(sum(own) / len(own)), "verdict": verdicts.get(v, ""),
         "delta_nats": {"worse": 0.1, "better": -0.1}.get(verdicts.get(v, ""), 0.0)}
        for v, own in logs.items()
    ])  # fmt: skip
    alone = dataclasses.replace(results, runs=runs, bench=bench, ablate=results.ablate.iloc[:0])
    (found,) = answers.quality_answer(select.typed(alone))
    return str(found.finding)


def test_the_best_of_a_bench_is_named_alone_only_where_it_can_be_told(results: tables.Results) -> None:
    level = {"gru": [2.0, 2.02, 2.01], "gru_after": [2.01, 2.01, 2.02], "lstm": [2.3, 2.31, 2.29]}
    said = bench_alone(results, level, {"gru_after": "equivalent", "lstm": "worse"})
    assert said.startswith("No difference can be told between gru and gru_after: held-out perplexity 7.46, ")
    assert "lower than that of the other 1" in said
    assert "the lowest of 3" in bench_alone(results, level, {"gru_after": "worse", "lstm": "worse"})
    assert "between gru, gru_after and lstm" in bench_alone(results, level, {v: "undecided" for v in level})
    other = {"gru": [2.0, 2.1, 2.05], "lstm": [1.8, 1.79, 1.81], "mgu": [1.81, 1.8, 1.8], "rnn": [1.9, 1.91, 1.9]}
    said = bench_alone(results, other, {"lstm": "better", "mgu": "better", "rnn": "better"})
    assert "between lstm and mgu:" in said  # by seed: the table compares them with gru alone
    assert "the other 2" in said
