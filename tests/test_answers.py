"""What a verb found, for another program: two folders compared, a gate, one JSON document, weights, exports."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import synthetic

import harness
from harness import answers
from harness.__main__ import main
from harness.analysis import history
from harness.analysis.stats import welch
from harness.record import tables

ROOT = Path(__file__).parent.parent
CELLS = ("rnn", "gru", "nn.gru")
SMALL = ["train_characters=300", "heldout_characters=100", "batch_size=4", "num_steps=5", "hidden=4", "epochs=2"]
ASK = ["--corpus", "embedded", "--device", "cpu", "--no-timing", "--set", *SMALL]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tables.Results:
    folder = tmp_path_factory.mktemp("a")
    made = synthetic.read(synthetic.write(folder, bench=CELLS, ablate=("gru", "gru:R=1"), failures=False))
    return dataclasses.replace(made, probes=made.probes[:0])


def changed(whole: tables.Results, perplexity: float = 1.0, speed: float = 1.0, drift: float = 1.0) -> tables.Results:
    """The same with gru's perplexities and speeds, and with all speeds (`drift`), changed by a factor."""
    runs, timed = whole.runs.copy(), whole.speed.copy()
    runs.loc[runs.variant == "gru", "heldout_perplexity"] *= perplexity
    timed["tokens_per_sec"] *= drift
    timed.loc[timed.variant == "gru", "tokens_per_sec"] *= speed
    return dataclasses.replace(whole, runs=runs, speed=timed)


def row(found: history.Comparison, measure: str, variant: str) -> dict[str, Any]:
    one = found.rows[(found.rows.measure == measure) & (found.rows.variant == variant)]
    return dict(one.to_dict("records")[0])


def test_welch_is_scipys() -> None:
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, 5), rng.normal(1, 3, 9)
    change, low, high = welch(x, y)
    bounds = ttest_ind(x, y, equal_var=False).confidence_interval()
    assert (change, low, high) == pytest.approx((x.mean() - y.mean(), bounds.low, bounds.high))
    assert math.isnan(welch([1.0], [2.0, 3.0])[1])


def test_a_folder_is_the_same_as_itself(whole: tables.Results) -> None:
    found = history.compare(whole, whole)
    assert found.status == history.SAME
    assert set(found.rows.verdict) == {"identical", "control"}
    assert found.differences.empty
    assert found.notes == ()
    assert row(found, "held-out perplexity", "gru")["n"] == 10


def test_what_is_worse_beyond_the_limit_is_status_1_and_within_it_0(whole: tables.Results) -> None:
    for factor, limit, status, word in (
        (1.10, 0.05, history.WORSE, "worse"), (1.02, 0.05, history.SAME, "equivalent"),
        (0.90, 0.05, history.SAME, "better"), (1.02, 0.01, history.WORSE, "worse"),
    ):  # fmt: skip
        found = history.compare(whole, changed(whole, perplexity=factor), limit)
        one = row(found, "held-out perplexity", "gru")
        assert (found.status, one["verdict"]) == (status, word)
        assert one["change"] == pytest.approx(factor - 1)
        assert one["low"] <= one["change"] + 1e-9
        assert one["change"] <= one["high"] + 1e-9


def test_what_is_too_noisy_or_too_few_is_status_3(whole: tables.Results) -> None:
    few = dataclasses.replace(whole, runs=whole.runs[whole.runs.seed == 0], speed=whole.speed[:0])
    assert history.compare(few, changed(few, perplexity=1.1)).status == history.UNTOLD
    assert history.compare(few, few).status == history.SAME  # alike to the last bit is alike
    noisy = changed(whole)
    noisy.runs["heldout_perplexity"] *= 1.2 ** (1 - 2 * (noisy.runs["seed"] % 2))
    found = history.compare(whole, noisy)
    assert row(found, "held-out perplexity", "gru")["verdict"] == "undecided"
    assert "too noisy or too few" in found.answer


def test_pairs_are_those_of_seeds_that_both_have(whole: tables.Results) -> None:
    some = dataclasses.replace(whole, runs=whole.runs[whole.runs.seed.isin([1, 3, 5])].sample(frac=1, random_state=0))
    found = history.compare(whole, some)
    one = row(found, "held-out perplexity", "rnn")
    assert (one["n"], one["change"], one["verdict"]) == (3, 0.0, "identical")


def test_a_seed_that_fails_only_in_b_is_worse(whole: tables.Results) -> None:
    broken = changed(whole)
    broken.runs["error"] = broken.runs["error"].astype(object)
    broken.runs.loc[(broken.runs.variant == "rnn") & (broken.runs.seed == 2), "error"] = "diverged: at once"
    found = history.compare(whole, broken)
    assert found.status == history.WORSE
    assert row(found, "held-out perplexity", "rnn")["note"] == "failed in B, not in A: seed 2"
    assert history.compare(broken, whole).status != history.WORSE


def test_a_slower_machine_is_taken_out_and_a_slower_cell_is_not(whole: tables.Results) -> None:
    alone = row(history.compare(whole, changed(whole, drift=0.7)), "tokens/sec", "gru:R=1")
    assert alone["verdict"] == "worse"
    assert "what the machine did meanwhile" in alone["note"]
    whole = dataclasses.replace(whole, speed=whole.speed[whole.speed.verb == "bench"])
    drifted = history.compare(whole, changed(whole, drift=0.7))
    assert drifted.status == history.SAME
    assert row(drifted, "tokens/sec", "nn.gru")["verdict"] == "control"
    assert row(drifted, "tokens/sec", "nn.gru")["change"] == pytest.approx(1 / 0.7 - 1)
    slower = history.compare(whole, changed(whole, drift=0.7, speed=0.8))
    assert slower.status == history.WORSE
    assert row(slower, "tokens/sec", "gru")["change"] == pytest.approx(0.25)


def test_speeds_of_two_machines_are_left_out_and_said(whole: tables.Results) -> None:
    other = dataclasses.replace(whole, environments=whole.environments.assign(cpu="another CPU", torch="9.9"))
    found = history.compare(whole, other)
    assert set(found.rows.measure) == {"held-out perplexity"}
    assert any("speeds of bench are left out" in note and "another CPU" in note for note in found.notes)
    assert {tuple(r) for r in found.differences.to_numpy()} == {
        ("machine", "cpu", "made-up CPU", "another CPU"), ("version", "torch", "2.13.0+cpu", "9.9"),
    }  # fmt: skip


def test_another_setting_is_paired_and_said_another_text_is_not_compared(whole: tables.Results) -> None:
    def relabelled(**fields: object) -> tables.Results:
        name = whole.runs.protocol.iloc[0] + "," + ",".join(f"{k}={v}" for k, v in fields.items())
        return dataclasses.replace(whole, runs=whole.runs.assign(protocol=name), speed=whole.speed[:0],
                                   protocols=whole.protocols.assign(protocol=name, **fields))  # fmt: skip

    found = history.compare(whole, relabelled(clip=3.0))
    assert row(found, "held-out perplexity", "gru")["note"] == "clip 1 -> 3"
    assert ("setting", "clip", "1", "3") in {tuple(r) for r in found.differences.to_numpy()}
    found = history.compare(whole, relabelled(heldout_characters=77))
    assert found.rows.empty
    assert found.status == history.UNTOLD
    assert any("the text differs: heldout_characters" in note for note in found.notes)


def test_tasks_are_compared_by_how_many_seeds_solve_them() -> None:
    def of(solved: list[float | None]) -> tables.Results:
        probes = tables.frame("probes", [
            {"variant": "gru", "engine": "loop", "task": "copy", "length": 8, "seed": s, "solved_after": after,
             "error": "", "protocol": "copy", "score": 1.0, "device": "cpu", "precision": "ieee"}
            for s, after in enumerate(solved)
        ])  # fmt: skip
        empty = {f.name: tables.frame(f.name, []) for f in dataclasses.fields(tables.Results)}
        return tables.Results(**{**empty, "probes": probes})

    ten = of([100.0] * 10)
    assert row(history.compare(ten, of([None] * 10)), "seeds that solve", "gru")["verdict"] == "worse"
    assert row(history.compare(ten, of([None, *[100.0] * 9])), "seeds that solve", "gru")["verdict"] == "undecided"
    later = row(history.compare(ten, of([300.0] * 10)), "updates to solve", "gru")
    assert (later["change"], later["verdict"]) == (pytest.approx(2.0), "worse")


# ---- the command -----------------------------------------------------------------------------------


def test_compare_says_and_writes_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a", 0), ("b<i>", 0)):
        synthetic.write(Path(name), seed=seed, bench=CELLS, ablate=("gru",), failures=False)
    runs = pd.read_csv("b<i>/runs.csv")
    runs.loc[runs.variant == "gru", "heldout_perplexity"] *= 1.2
    runs.to_csv("b<i>/runs.csv", index=False)
    assert main(["compare", "a", "b<i>", "--limit", "10%", "--to", "compare.html"]) == 1
    assert "worse by more than 10 %: gru" in capsys.readouterr().out
    page = Path("compare.html").read_text()
    assert "b&lt;i&gt;" in page
    assert "b<i>" not in page
    assert "http" not in page
    assert main(["compare", "a", "b<i>", "--limit=30%"]) == 0
    assert harness.compare("a", "b<i>", "10%").status == 1
    assert "worse" in harness.compare("a", "b<i>")._repr_html_()
    for words, why in (
        (["a"], "compare takes two results folders"), (["a", "none"], "no results folder 'none'"), (["a", ""], "''"),
        (["a", "b<i>", "--limit", "5"], "like 5% or 0.05"), (["a", "b<i>", "--seeds", "3"], "takes no --seeds"),
        (["a", "HEAD:nowhere"], "git"),
    ):  # fmt: skip
        capsys.readouterr()
        assert main(["compare", *words]) == 2
        said = capsys.readouterr().err
        assert why in said
        assert said.count("\n") == 1
    Path("empty").mkdir()
    assert main(["compare", "a", "empty"]) == 2


def test_compare_reads_a_folder_of_a_git_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    synthetic.write(tmp_path / "out", bench=CELLS, ablate=("gru",), failures=False)
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "a"]):
        subprocess.run(["git", *words], check=True)
    assert answers.compare("HEAD:out", "out", 0.05).status == 0


def test_a_gate_benches_and_compares(
    in_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ask = ["--variants", "rnn", "--seeds", "2", "--engine", "loop", *ASK]
    assert main(["bench", *ask, "--results", "base"]) == 0
    assert main(["gate", *ask, "--base", "base", "--results", "now"]) == 0
    assert "nothing is worse by more than 5 %" in capsys.readouterr().out
    assert main(["pack", "--results", "base"]) == 0
    assert main(["gate", *ask, "lr=0.000001", "--base", "base", "--results", "slow"]) == 1
    assert "setting lr: 2 -> 1e-06" in capsys.readouterr().out
    assert main(["gate", *ask, "--results", "now"]) == 2
    assert main(["gate", *ask, "--base", "now", "--results", "now"]) == 2
    assert main(["gate", *ask, "--base", "nowhere", "--results", "now"]) == 2


# ---- JSON ------------------------------------------------------------------------------------------


def spoken(*words: str) -> tuple[int, dict[str, Any]]:
    """The status and the document of a command, which has all of stdout."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = main(words)
    return status, json.loads(out.getvalue())


def test_every_verb_answers_as_one_json_document(
    in_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ask = ["--variants", "gru", "rnn", "--seeds", "2", "--engine", "loop", *ASK, "--results", "out", "--json"]
    status, found = spoken("bench", *ask)
    assert (status, found["status"], found["failed"], found["error"]) == (0, 0, [], "")
    assert [r["variant"] for r in found["bench"]] == ["gru", "rnn"]
    assert found["bench"][0]["tokens_per_sec"] is None  # missing, not 0 nor NaN
    assert [r["variant"] for r in spoken("report", "--results=out", "--json")[1]["bench"]] == ["gru", "rnn"]
    assert spoken("compare", "out", "out", "--json")[1]["rows"][0]["verdict"] == "identical"
    listed = spoken("list", *(word for word in ask if word != "--no-timing"))[1]["answer"]
    assert {r["state"] for r in listed["runs"]} == {"done"}
    assert len(listed["variants"]) > 10
    assert spoken("pack", "--results", "out", "--json")[0] == 0
    assert spoken("new", "cell", "mine", "--json")[0] == 0
    status, found = spoken("bench", "--variants", "gur", "--json")
    assert (status, found["status"]) == (2, 2)
    assert "Did you mean" in found["error"]
    assert spoken("compare", "out", "--json")[1]["status"] == 2


# ---- weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_loaded_weights_give_the_recorded_perplexity_again(
    packed: bool, in_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from harness.data import load
    from harness.data.batches import arrange
    from harness.record import store
    from harness.run.evaluate import score

    monkeypatch.chdir(tmp_path)
    names = ["gru:Z=0", "nn.gru", "ligru"] if packed else ["gru"]  # ligru: what it averages is loaded too
    assert main(["bench", "--variants", *names, "--seeds", "2", *ASK, "--results", "out"]) == 0
    if packed:
        assert main(["pack", "--results", "out"]) == 0
    [protocol] = {store.as_run(w["run"]).protocol for _, _, w in store.runs(Path("out"))}
    corpus = load.load("embedded")
    runs = harness.read("out").runs
    for name in names:
        model = harness.load_weights("out", name)
        part = arrange(corpus, protocol, 1, "cpu").heldout
        recorded = runs[(runs.variant == name) & (runs.seed == 0)].heldout_perplexity.iloc[0]
        assert math.exp(float(score(model, part, protocol)[0])) == pytest.approx(recorded, rel=1e-6)  # type: ignore[arg-type]
        assert model.vocabulary == corpus.vocabulary
    model = harness.load_weights("out", names[0])
    X = torch.zeros(3, 1, 2, dtype=torch.long)
    assert model(X, model.cell.begin(2))[0].shape == (3, 1, 2, len(corpus.vocabulary))  # type: ignore[union-attr,operator]
    for words, why in (((names[0], 1), "of its seeds are: 0"), (("lstm",), "no variant in that folder 'lstm'"),
                       ((names[0], 0, "classic"), "no weights of")):  # fmt: skip
        with pytest.raises(ValueError, match=why):
            harness.load_weights("out", *words)


# ---- other tools


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A folder that a bench has filled."""
    folder = tmp_path / "quick"
    synthetic.write(folder, bench=("gru", "rnn"), ablate=(), failures=False)
    return folder


def test_bibtex_says_version_commit_machine_and_date_and_is_escaped(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(finished), "--to", "bibtex"]) == 0
    entry = capsys.readouterr().out
    results = harness.read(finished)
    day = max(results.runs.started)[:10]
    commit = results.environments.commit.dropna().iloc[0]
    for said in (f"@software{{gru-bench-{day}-{commit[:7]},", f"year = {{{day[:4]}}}", f"date = {{{day}}}",
                 f"version = {{{harness.__version__}}}", f"commit {commit[:12]}", "author = {{the gru-bench authors}}",
                 str(results.environments.cpu.dropna().iloc[0]).split()[0]):  # fmt: skip
        assert said in entry, said
    assert entry.count("{") - entry.count(r"\{") == entry.count("}") - entry.count(r"\}")
    assert not re.search(r"(?<!\\)[&%$#_]", entry.partition("note = ")[2])


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["export", "FOLDER"], "export takes a folder and --to bibtex, parquet, mlflow, wandb"),
        (["export", "FOLDER", "--to", "bibtext"], "no export 'bibtext'. Did you mean"),
        (["export", "nowhere", "--to", "bibtex"], "no results folder 'nowhere'"),
        (["export", "FOLDER", "other", "--to", "bibtex"], "export takes a folder"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    words: list[str], why: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(finished) if word == "FOLDER" else word for word in words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert why in line


@pytest.mark.parametrize("kind", ["parquet", "mlflow", "wandb"])
def test_without_its_package_an_export_says_what_to_install(
    kind: str, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, answers.NEEDS[kind], None)
    assert main(["export", str(finished), "--to", kind]) == 2
    assert capsys.readouterr().err.endswith(f"pip install 'gru-bench[{kind}]'\n")
    assert not (finished / kind).exists()


def test_every_training_is_exported_with_its_settings_scores_and_curve(finished: Path) -> None:
    results = harness.read(finished)
    every = list(answers.trainings(results))
    assert len(every) == len(results.runs) + len(results.probes)
    settings, scores, curve = every[0]
    row = results.runs.iloc[0]
    assert (settings["run"], settings["seed"], settings["torch"]) == (row.run, row.seed, settings["torch"])
    assert settings["epochs"] == results.protocols.set_index("protocol").epochs[row.protocol]
    assert scores["heldout_perplexity"] == row.heldout_perplexity
    assert [point["tokens"] for point in curve] == list(results.curves[results.curves.run == row.run].tokens)


def test_parquet_has_every_table_with_its_types(finished: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: the extra parquet")
    answers.export(finished, "parquet")
    bench = pd.read_parquet(finished / "parquet" / "bench.parquet")
    assert bench.heldout_perplexity.tolist() == harness.read(finished).bench.heldout_perplexity.tolist()
    with pytest.raises(ValueError, match="is there already"):
        answers.export(finished, "parquet")


def test_mlflow_reads_every_training_from_its_own_store(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: the extra mlflow")
    runs = harness.read(finished).runs
    every = answers.trainings
    monkeypatch.setattr(answers, "trainings", lambda results: itertools.islice(every(results), 2))
    said = answers.export(finished, "mlflow")
    assert "2 runs" in said
    client = mlflow.tracking.MlflowClient(tracking_uri=(finished / "mlflow").as_uri())
    [experiment] = client.search_experiments()
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    for row in runs.head(2).itertuples():
        run = found[row.run]
        assert run.data.metrics["heldout_perplexity"] == row.heldout_perplexity
        assert run.data.params["variant"] == row.variant
        assert len(client.get_metric_history(run.info.run_id, "curve_heldout_perplexity")) > 1


def test_wandb_writes_offline_files_and_nothing_leaves(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: the extra wandb")
    every = answers.trainings
    monkeypatch.setattr(answers, "trainings", lambda results: itertools.islice(every(results), 1))
    assert "1 run" in answers.export(finished, "wandb")
    [folder] = (finished / "wandb" / "wandb").glob("offline-run-*")
    assert list(folder.glob("*.wandb"))
