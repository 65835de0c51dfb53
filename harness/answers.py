"""Answer another program: two folders compared, a verb's answer as one JSON document, the files of other tools.

Rule: as the report: it reads what is on file, and computes no statistic of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import html
import importlib
import io
import json
import math
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

import harness
from harness.analysis import history
from harness.analysis.history import Comparison
from harness.formatting import pluralize
from harness.record import schema, store, tables
from variants.registry import unknown

# ---- two folders ----------------------------------------------------------------------------------


def compare(a: str, b: str, limit: float) -> Comparison:
    """Compare two results folders, packed or not, or `REVISION:FOLDER` of git. ValueError names what is none."""
    with opened(a) as first, opened(b) as second:
        return history.compare(load(first, a), load(second, b), limit, (a, b))


@contextlib.contextmanager
def opened(word: str) -> Iterator[Path]:
    """The folder of that name, or of a git revision, unpacked for as long as it is looked at."""
    folder = Path(word).expanduser()
    revision, colon, inside = word.partition(":")
    if folder.is_dir() or not colon or not revision:
        yield folder
        return
    try:
        ask = ["git", "archive", "--format=tar", f"{revision}:{inside.rstrip('/')}"]
        done = subprocess.run(ask, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise ValueError(f"{word!r} is no folder, and git cannot be asked for it: {error}") from None
    if done.returncode:
        why = " ".join(done.stderr.decode(errors="replace").split())
        raise ValueError(f"{word!r} is no folder, and git knows no such REVISION:FOLDER here: {why}")
    with tempfile.TemporaryDirectory() as temporary, tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(temporary, filter="data")
        yield Path(temporary)


def load(folder: Path, word: str) -> tables.Results:
    """The tables of a folder: from its single runs where it has any, of what its commands last asked for."""
    if not word or not folder.is_dir():
        raise ValueError(f"no results folder {word!r}: give two that bench or ablate has filled")
    asked = store.grids(folder)
    results = tables.gather(folder) if asked else tables.read(folder)
    if asked:
        keys = {key for grid in asked.values() for key in grid["runs"]}
        results = dataclasses.replace(
            results, runs=results.runs[results.runs["run"].isin(keys)],
            probes=results.probes[results.probes["run"].isin(keys)],
        )  # fmt: skip
    if results.runs.empty and results.probes.empty and results.speed.empty:
        raise ValueError(f"no results in {word!r}: run bench or ablate with --results {word} first")
    return results


def share(text: str) -> float:
    """0.05 of '5%', '5 %' or '0.05'. ValueError otherwise."""
    number, percent, rest = text.strip().partition("%")
    with contextlib.suppress(ValueError):
        value = float(number) / (100 if percent else 1)
        if not rest and 0 < value < 1:
            return value
    raise ValueError(f"--limit is a share above 0 and below 1, like 5% or 0.05, not {text!r}")


def comparison_rows(found: Comparison) -> list[tuple[str, ...]]:
    """A comparison as texts, its heads first."""
    rows: list[tuple[str, ...]] = [("measure", "variant", "A", "B", "B worse by [95%]", "n", "p (Holm)", "verdict")]
    settings = found.rows["setting"].nunique() > 1
    for r in found.rows.to_dict("records"):
        places = ".2f" if r["measure"] == "held-out perplexity" else ",.0f"
        a, b, change, low, high, p = (
            math.nan if r[name] is None else float(r[name]) for name in ("a", "b", "change", "low", "high", "p_holm")
        )
        bounds = f" [{100 * low:+.1f}, {100 * high:+.1f}]" if math.isfinite(low + high) else ""
        rows.append((
            str(r["measure"]), str(r["variant"]) + f" ({r['setting']})" * settings,
            *(format(x, places) if math.isfinite(x) else "" for x in (a, b)),
            f"{100 * change:+.1f} %{bounds}" if math.isfinite(change) else "", str(r["n"]),
            f"{p:.3f}" if math.isfinite(p) else "", str(r["verdict"]),
        ))  # fmt: skip
    return rows


def page(found: Comparison) -> str:
    """A comparison as one self-contained HTML file."""
    head, *rows = comparison_rows(found)
    shown = pd.DataFrame([(*row, note or "") for row, note in zip(rows, found.rows["note"].fillna(""), strict=True)],
                         columns=[*head, "note"])  # fmt: skip
    differences = found.differences.rename(columns={"a": "A", "b": "B"})
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in found.notes)
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(found.a)} and {html.escape(found.b)} compared</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }}
div {{ overflow-x: auto; }} table {{ border-collapse: collapse; margin: 1rem 0; }}
th, td {{ text-align: left; padding: .3rem .8rem; border-bottom: 1px solid #8888; border-width: 0 0 1px; }}
table {{ border: 0; font-variant-numeric: tabular-nums; }}
</style>
<h1>{html.escape(found.answer[:1].upper() + found.answer[1:])}</h1>
<p>A is <code>{html.escape(found.a)}</code>, B is <code>{html.escape(found.b)}</code>. Perplexities are paired by
seed; speeds are compared where one machine timed both. An interval is 95 %; a verdict asks on which side of
{100 * found.limit:g} % the whole interval lies.</p>
<div>{shown.to_html(index=False, na_rep="", border=0)}</div>
{f"<ul>{notes}</ul>" if notes else ""}
<h2>What differs</h2>
{f"<div>{differences.to_html(index=False, border=0)}</div>" if len(differences) else "<p>No setting, no version.</p>"}
</html>
"""


# ---- one JSON document -----------------------------------------------------------------------------

ANSWERS = {"probe": ("tasks",), "claims": ("claims",), "questions": ("questions",),
           "reproduce": ("reproduce",), "sweep": ("speed",),
           "exercises": ("positions", "axes", "bench", "ablate"), "ablate": ("ablate", "tasks"), "bench": ("bench",),
           "report": ("bench", "ablate", "tasks", "axes", "claims", "questions", "reproduce"),
           "latency": ("latency",)}  # fmt: skip


def document(verb: str, folder: Path, status: int, found: object = None, error: str = "") -> dict[str, Any]:
    """Return a verb's answer as plain data: its tables as lists of rows, its failures, where its report is."""
    whole: dict[str, Any] = {"verb": verb, "status": status, "error": error}
    if isinstance(found, Comparison):
        return whole | history.records(found)
    if found is not None:
        return whole | {"answer": found}
    if error or verb not in ANSWERS:
        return whole
    results = tables.read(folder)
    names = [*ANSWERS[verb], *["axes"] * (verb in ("bench", "ablate"))]
    whole |= {name: rows(getattr(results, name)) for name in dict.fromkeys(names) if len(getattr(results, name))}
    failed = [r for table in (results.runs, results.probes) for r in rows(table[table["error"].fillna("") != ""])]
    page_there = (folder / "report.html").exists()
    return whole | {
        "results": str(folder), "report": str(folder / "report.html") if page_there else None,
        "failed": [{name: r[name] for name in ("run", "variant", "seed", "error")} for r in failed],
    }  # fmt: skip


def rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table as plain data; what is missing is None."""
    return [{str(k): _plain(v) for k, v in row.items()} for row in table.to_dict("records")]


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    missing = value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value))
    return None if missing else value


def said(whole: dict[str, Any]) -> str:
    """A document as text."""
    return json.dumps(whole, indent=1, ensure_ascii=False, default=_plain)


# ---- other tools -----------------------------------------------------------------------------------

KINDS = ("bibtex", "parquet", "mlflow", "wandb")
NEEDS = {"parquet": "pyarrow", "mlflow": "mlflow", "wandb": "wandb"}  # what is imported then, and only then
SCORES = ("train_perplexity", "heldout_perplexity", "bits_per_character", "best_perplexity", "score", "score_longer",
          "solved_after", "tokens", "train_s", "wall_s")  # fmt: skip
SETTINGS = ("variant", "engine", "capture", "precision", "device", "seed", "protocol", "corpus", "corpus_sha256",
            "task", "length", "hidden", "lr", "parameters")  # fmt: skip


def export(folder: Path, kind: str) -> str:
    """Write a results folder for another tool, below the folder, and return what to say. ValueError in one line.

    bibtex is the entry itself. A folder that is there already is not written again.
    """
    if kind not in KINDS:
        raise ValueError(unknown("export", kind, KINDS))
    results = load(folder, str(folder))
    if kind == "bibtex":
        return bibtex(results, folder)
    try:
        importlib.import_module(NEEDS[kind])
    except ImportError:
        raise ValueError(
            f"export --to {kind} needs the package {NEEDS[kind]}: pip install 'gru-bench[{kind}]'"
        ) from None
    target = folder / kind
    if target.exists():
        raise ValueError(f"{str(target)!r} is there already: delete it to have it written again")
    made = folder / f".{kind}"
    shutil.rmtree(made, ignore_errors=True)
    count = {"parquet": _parquet, "mlflow": _mlflow, "wandb": _wandb}[kind](results, made)
    made.rename(target)
    hints = {"mlflow": f"; MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {target}",
             "wandb": f"; wandb sync {target}/wandb/offline-run-*"}  # fmt: skip
    return f"{target}: {count}{hints.get(kind, '')}"


def bibtex(results: tables.Results, folder: Path) -> str:
    """A BibTeX entry of a folder: version, commit, machine, date."""
    machines, trained = results.environments, pd.concat([results.runs, results.probes, results.speed])
    ended = sorted(str(day)[:10] for day in trained["started"].dropna())
    facts = {name: [str(x) for x in dict.fromkeys(machines[name].dropna())] for name in ("commit", "torch", "package")}
    of = machines["device_name"].where(machines["device"] == "cuda", machines["cpu"])
    changed = ", with changes that were not committed" * bool(
        machines["dirty"].astype(str).str.lower().eq("true").any()
    )
    notes = [
        f"commit {' and '.join(x[:12] for x in facts['commit'])}{changed}" if facts["commit"] else "",
        f"{len(results.runs) + len(results.probes)} trainings",
        f"torch {' and '.join(facts['torch'])}" if facts["torch"] else "",
        f"on {' and '.join(dict.fromkeys(str(x) for x in of.dropna()))}" if of.notna().any() else "",
        f"protocols {', '.join(map(str, results.protocols['protocol']))}",
    ]  # fmt: skip
    day = ended[-1] if ended else ""
    fields = {
        "title": "gru-bench: recurrent networks, measured", "author": "{the gru-bench authors}",
        "version": harness.__version__, "year": day[:4], "month": day[5:7].lstrip("0"), "date": day,
        "note": f"Results {folder.name}: {'; '.join(note for note in notes if note)}",
    }  # fmt: skip
    key = "-".join(filter(None, ("gru-bench", day, facts["commit"][0][:7] if facts["commit"] else "")))
    lines = [f"  {name} = {{{value if name == 'author' else _tex(value)}}}" for name, value in fields.items() if value]
    return f"@software{{{key},\n" + ",\n".join(lines) + "\n}"


def _tex(text: str) -> str:
    marks = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(marks.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def _parquet(results: tables.Results, target: Path) -> str:
    """Every table that has rows, with the schema's types."""
    target.mkdir(parents=True)
    names = [name for name in schema.COLUMNS if len(getattr(results, name))]
    for name in names:
        tables.typed(getattr(results, name), name).to_parquet(target / f"{name}.parquet", index=False)
    return pluralize(len(names), "table")


def trainings(results: tables.Results) -> Iterator[tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]]:
    """Return each training: its settings with those of its protocol and machine; its scores; its curve."""
    known = {row["protocol"]: row for row in rows(results.protocols)}
    machines = {row["environment"]: row for row in rows(results.environments)}
    for row in [*rows(results.runs), *rows(results.probes)]:
        settings = {**known.get(row["protocol"], {}), **machines.get(row["environment"], {})}
        settings |= {name: row.get(name) for name in (*SETTINGS, "run", "started", "error", "sample")}
        scores = {name: float(row[name]) for name in SCORES if row.get(name) is not None}
        own = results.curves[results.curves["run"] == row["run"]]
        yield {k: v for k, v in settings.items() if v not in (None, "")}, scores, rows(own)


def _mlflow(results: tables.Results, target: Path) -> str:
    """MLflow's own file store: an experiment, a run a training."""
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.tracking import MlflowClient

    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    target.mkdir(parents=True)
    client = MlflowClient(tracking_uri=target.resolve().as_uri())
    folder = target.resolve().parent
    experiment, count = client.create_experiment(folder.name, (folder / "mlflow" / "artifacts").as_uri()), 0
    for settings, scores, curve in trainings(results):
        began = int(1000 * pd.Timestamp(settings["started"]).timestamp())
        run = client.create_run(experiment, began, run_name=settings["run"]).info.run_id
        metrics = [Metric(name, value, began, 0) for name, value in scores.items()]
        metrics += [
            Metric(f"curve_{name}", float(point[name]), began, int(point["tokens"]))
            for point in curve for name in ("train_perplexity", "heldout_perplexity") if point[name] is not None
        ]  # fmt: skip
        tags = [RunTag(name, str(settings[name])) for name in ("error", "sample") if name in settings]
        params = [Param(name, str(value)[:500]) for name, value in settings.items() if name not in ("error", "sample")]
        for begin in range(0, max(len(metrics), len(params)), 100):  # the most that MLflow takes in one call
            client.log_batch(run, metrics[begin : begin + 100], params[begin : begin + 100], tags if not begin else ())
        ended = began + int(1000 * scores.get("wall_s", 0.0))
        client.set_terminated(run, "FAILED" if "error" in settings else "FINISHED", ended)
        count += 1
    return pluralize(count, "run")


def _wandb(results: tables.Results, target: Path) -> str:
    """Weights & Biases' offline files: a run a training; nothing leaves this machine."""
    import wandb

    target.mkdir(parents=True)
    count = 0
    quiet = wandb.Settings(console="off", silent=True, disable_git=True, save_code=False, x_disable_stats=True)
    for settings, scores, curve in trainings(results):
        run = wandb.init(
            project=target.resolve().parent.name, name=settings["run"], group=settings["variant"], config=settings,
            dir=str(target), mode="offline", settings=quiet, reinit="finish_previous",
        )  # fmt: skip
        for point in curve:
            shown = {f"curve/{k}": point[k] for k in ("train_perplexity", "heldout_perplexity") if point[k] is not None}
            run.log(shown, step=int(point["tokens"]))
        run.summary.update(scores)
        run.finish(exit_code=int("error" in settings))
        count += 1
    return pluralize(count, "run")
