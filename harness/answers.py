"""Answer another program: two folders compared, a verb's answer as one JSON document, the files of other tools.

Rule: as the report: it reads what is on file, and computes no statistic of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import html
import io
import json
import math
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from harness.analysis import history
from harness.analysis.history import Comparison
from harness.record import store, tables

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
    """What a verb answers as plain data: its tables as lists of rows, its failures, where its report is."""
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
