"""Make the tables from the files of single runs and samples, and write and read them as CSV.

A missing value is an empty cell. A failed run is a row whose `error` says why.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from harness import files
from harness.experiments.protocols import UPDATES, Protocol
from harness.experiments.runs import Run
from harness.experiments.tasks import TASKS, Task
from harness.files import digest
from harness.record import csv_files, pack, schema
from harness.record.csv_files import SUMS
from harness.record.schema import COLUMNS
from harness.record.store import INDEXED, Loaded, as_run, as_written, grids, runs, samples, stamped

MADE = ".tables"  # of a large folder: what its tables were made from


@dataclass(frozen=True)
class Results:
    """Every table of a results folder. A file that is not there is a frame with no rows."""

    bench: pd.DataFrame
    ablate: pd.DataFrame
    runs: pd.DataFrame
    curves: pd.DataFrame
    lesions: pd.DataFrame
    gates: pd.DataFrame
    reach: pd.DataFrame
    heat: pd.DataFrame
    positions: pd.DataFrame
    speed: pd.DataFrame
    latency: pd.DataFrame
    reproduce: pd.DataFrame
    axes: pd.DataFrame
    claims: pd.DataFrame
    questions: pd.DataFrame
    probes: pd.DataFrame
    tasks: pd.DataFrame
    learning_rates: pd.DataFrame
    anchors: pd.DataFrame
    protocols: pd.DataFrame
    environments: pd.DataFrame


def gather(folder: Path) -> Results:
    """Every table but the answers, from the files of single runs and samples. ValueError names a file that is torn.

    A run that differs from another only in its source, or in its tokens, is one of before an edit: the one a grid names
    stands for both, else the later.
    """
    asked = grids(folder)
    named = {key for grid in asked.values() for key in grid["runs"]}
    environments: dict[str, Loaded] = {}
    protocols: dict[str, Protocol] = {}
    rows: dict[str, Loaded] = {}  # by the whole run but its source and tokens
    held: dict[str, tuple[Facts, ...]] = {}  # what their outcomes hold by the table: an outcome is ten times as large
    for path, key, whole in runs(folder):
        with as_written(path):
            run, outcome = as_run(whole["run"]), whole["outcome"]
            # the key is what it was when it was written: a field that was added since has changed `run.key`
            row = _common(run) | {
                "run": key, "seed": run.seed, "corpus": whole["corpus"], "corpus_sha256": run.corpus_sha256,
                "unknown_share": whole.get("unknown_share"), "cell": whole.get("cell", ""),
                "sample": outcome["sample"], "error": outcome["error"], "started": whole["started"],
                "unseen": "; ".join(f"{what}: {why}" for what, why in outcome.get("unseen", {}).items()),
                **_numbers(outcome, "parameters", "train_perplexity", "heldout_perplexity", "tokens", "train_s"),
                "lr": run.lr or run.protocol.lr, **{c: outcome.get(c) for c in SINCE},
                **_numbers(whole, "wall_s", "together", "load"),
            } | _probe(run, outcome, whole.get("task"))  # fmt: skip
            row |= {"capture": False} if outcome.get("uncaptured") else {}
            row |= _by_character(run, row["heldout_perplexity"], whole.get("characters_per_token"))
            same = json.dumps({**run.fields, "source": "", "tokens": ""}, sort_keys=True)
            within = tuple(_facts(facts(outcome)) for facts in WITHIN.values())
            protocols[run.protocol.label] = run.protocol
            machine = whole["environment"]  # none, of one whose worker ended before it had said it
            row["environment"] = _environment(environments, machine) if machine else None
            row["bits"] = machine.get("bits")
        if same in rows and (rows[same]["run"] in named, rows[same]["started"]) > (key in named, row["started"]):
            continue
        rows[same], held[same] = row, within
    blocks = _timed_blocks(folder, asked, environments, protocols)
    order = sorted(rows, key=lambda k: tuple(rows[k][c] for c in ("protocol", "variant", "engine", "seed", "run")))
    trained = [rows[k] for k in order]
    return Results(
        **{name: frame(name, []) for name in ("bench", "ablate", "reproduce", "axes", "claims", "questions", "tasks")},
        runs=frame("runs", [row for row in trained if "task" not in row]),
        probes=frame("probes", [row for row in trained if "task" in row]),
        **{name: _of_each(name, trained, [held[k][n] for k in order]) for n, name in enumerate(WITHIN)},
        speed=frame("speed", [row for row in blocks if row["verb"] != "latency"]),
        latency=frame("latency", [row for row in blocks if row["verb"] == "latency"]),
        learning_rates=frame("learning_rates", [
            {"corpus_sha256": g.get("corpus_sha256", ""), **row}
            for g in asked.values() for row in g.get("learning_rates", [])
        ]).drop_duplicates(ignore_index=True),
        anchors=frame("anchors", _anchors(asked)),
        protocols=frame("protocols", [{"protocol": label, **vars(protocols[label])} for label in sorted(protocols)]),
        environments=frame("environments", list(environments.values())),
    )  # fmt: skip


def _anchors(asked: Mapping[str, Loaded]) -> list[Loaded]:
    """Return the rows of anchors.csv: what n-grams reach on each text that a grid was trained on, by each protocol."""
    anchors = {
        (g["protocol"]["label"], g["corpus"], g["corpus_sha256"], model): perplexity
        for grid in asked.values()
        for g in grid.get("parts", [grid])
        for model, perplexity in g["anchors"].items()
    }
    return [dict(zip(COLUMNS["anchors"], (*key, perplexity), strict=True)) for key, perplexity in anchors.items()]


def _timed_blocks(
    folder: Path, asked: Mapping[str, Loaded], environments: dict[str, Loaded], protocols: dict[str, Protocol]
) -> list[Loaded]:
    """Return the rows of speed.csv: the timed blocks of the sessions that grids name, those of a sample together.

    Environments and protocols that are met are added to theirs.
    """
    blocks = []
    sessions = {grid["session"]: verb for verb, grid in asked.items()}  # earlier ones stay on file, untold
    for path, whole in (one for session in sorted(set(sessions) - {""}) for one in samples(folder, session)):
        with as_written(path):
            run, answer = as_run(whole["run"]), whole["answer"]
            protocols[run.protocol.label] = run.protocol
            row = _common(run) | {c: whole[c] for c in ("session", "round", "label", "started")} | {"seeds": 1}
            # files of before `control_of` say it by the end of the label
            again = whole["label"].removesuffix("#2") if whole["label"].endswith("#2") else ""
            row |= {"verb": sessions[whole["session"]], "control_of": whole.get("control_of", again)}
            count = 0  # of its blocks; those of a process that was repeated, because disturbed, come last
            for one in [answer, *(one for one in whole.get("disturbed", ()) if "blocks" in one)]:
                said = {k: v for k, v in one.items() if k not in ("blocks", "environment")}
                said["environment"] = _environment(environments, one["environment"]) if "environment" in one else None
                own = one.get("blocks", [{}])
                blocks += [
                    {**row, **said, **block, **({"block": count + k} if block else {})} for k, block in enumerate(own)
                ]
                count += len(own)
    return blocks


# What a training's outcome holds by the table, a row each. Results of before there was one have none of it.
WITHIN: dict[str, Callable[[Loaded], list[Loaded]]] = {
    "curves": lambda o: o["curve"],
    "lesions": lambda o: [
        {"lesion": name, "heldout_perplexity": p, "error": o.get("unseen", {}).get(f"lesion {name}", "")}
        for name, p in o.get("lesions", {}).items()
    ],
    "gates": lambda o: [{"gate": gate, "error": "", **facts} for gate, facts in o.get("gates", {}).items()],
    "reach": lambda o: [{"characters_back": int(t), "gradient_share": s} for t, s in o.get("reach", {}).items()],
    "heat": lambda o: o.get("heat", []),
    "positions": lambda o: [
        {**facts, "origin": "trained", "score": o.get("score")} for facts in o.get("positions", [])
    ],
}


SINCE = ("heldout_mean_exp", "best_epoch", "best_perplexity")  # which an older version did not record


Facts = tuple[tuple[str, ...], tuple[tuple[object, ...], ...]]  # columns, and a row a fact


def _facts(rows: Sequence[Loaded]) -> Facts:
    """The same facts in a tenth of the memory: their columns are named once."""
    names = tuple(rows[0]) if rows else ()
    if all(tuple(row) == names for row in rows):
        return _interned(names), tuple(tuple(row.values()) for row in rows)
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    return _interned(names), tuple(tuple(row.get(name) for name in names) for row in rows)


@functools.cache
def _interned(names: tuple[str, ...]) -> tuple[str, ...]:
    return names


def _of_each(name: str, trained: Sequence[Loaded], facts: Sequence[Facts]) -> pd.DataFrame:
    """The table of that name: a training's own columns beside each of its facts."""
    times = np.repeat(np.arange(len(facts)), [len(rows) for _, rows in facts])
    if not len(times):
        return frame(name, [])
    beside = {column for names in {names for names, _ in facts} for column in names}
    columns = {}
    for column in COLUMNS[name]:
        if column in beside:
            at = {names: names.index(column) if column in names else -1 for names in {names for names, _ in facts}}
            columns[column] = pd.Series([row[at[n]] if at[n] >= 0 else None for n, rows in facts for row in rows])
        else:
            own = np.empty(len(trained), dtype=object)
            own[:] = [row.get(column) for row in trained]
            columns[column] = pd.Series(own[times], dtype=object)
    return pd.DataFrame(columns)


def frame(name: str, rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Rows as the table of that name; what a row lacks is empty."""
    return pd.DataFrame({c: [row.get(c) for row in rows] for c in COLUMNS[name]}, columns=list(COLUMNS[name]))


def typed(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """A table with the types of the schema, whatever pandas guessed: texts as str ('' for missing), bool (missing is
    False), and numbers as finite floats or NaN. Columns that it lacks are missing throughout."""
    table = table.reindex(columns=list(COLUMNS[name]))
    for column in COLUMNS[name]:
        values = table[column]
        kind = schema.column(name, column).type
        if kind is bool:
            table[column] = values.astype(str).str.lower().isin(["true", "1", "1.0"])
        elif kind is str:
            table[column] = values.astype(object).where(values.notna(), "").astype(str)
        else:
            known = values.dtype in (np.float64, np.int64)  # then nothing has to be guessed
            numbers = (values if known else pd.to_numeric(values.astype(object), errors="coerce")).astype(np.float64)
            table[column] = numbers.where(np.isfinite(numbers))
    return table


def write(results: Results, folder: Path) -> None:
    """Every table that has rows as CSV, and SUMS. The file of one that has none is deleted."""
    # first: were this to end before the last line, no table would be said to be edited
    (folder / SUMS).unlink(missing_ok=True)
    digests = []
    for field in dataclasses.fields(results):
        table = getattr(results, field.name)
        if table.empty:
            (folder / f"{field.name}.csv").unlink(missing_ok=True)
            continue
        text = csv_files.to_text(table)
        files.write(folder / f"{field.name}.csv", text)
        digests.append(f"{digest(text)}  {field.name}.csv\n")
    files.write(folder / SUMS, "".join(digests))


def read(folder: Path) -> Results:
    """The tables of a folder. ValueError names the file and, where it can be told, the line that is not as written."""
    lines = (line.partition("  ") for line in sums(folder).splitlines())
    written = {name: hexadecimal for hexadecimal, _, name in lines}

    def table(name: str) -> pd.DataFrame:
        file = f"{name}.csv"
        return csv_files.load(folder / file, name, written.get(file), lambda: pack.table(folder, file))

    return Results(**{name: table(name) for name in COLUMNS})


def mark(folder: Path) -> None:
    """Leave a note of what the tables were just made from, where that is much."""
    if made := _made(folder):
        files.write(folder / MADE, made)


def unchanged(folder: Path, *names: str) -> Results | None:
    """These tables, the others empty, where all would come out again as they are: of the same files, by the same code.

    None where that is not so, or not known.
    """
    try:
        if not (known := _made(folder)) or (folder / MADE).read_text(encoding="utf-8", errors="replace") != known:
            return None
        written = {name: hexadecimal for hexadecimal, _, name in (x.partition("  ") for x in sums(folder).splitlines())}
        some = {n: csv_files.load(folder / f"{n}.csv", n, written.get(f"{n}.csv"), lambda: None) for n in names}
    except (OSError, ValueError):
        return None
    return Results(**{name: some[name] if name in some else frame(name, []) for name in COLUMNS})


def _made(folder: Path) -> str:
    """A digest of all that tables are made from and of the tables as they lie there; '' where that is little."""
    stamps = [f"{name} {stamp}" for name, stamp in stamped(folder)]
    if len(stamps) < INDEXED:
        return ""
    others = sorted([*(folder / "speed").rglob("*.json"), *folder.glob("*.csv"), folder / SUMS])
    for path in others:
        at = path.stat()
        stamps.append(f"{path} {at.st_mtime_ns} {at.st_ctime_ns} {at.st_size} {at.st_ino}")
    asked = [path.read_text(encoding="utf-8") for path in sorted((folder / "grids").glob("[!.]*.json"))]
    code = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parents[1].rglob("*.py"))]
    return digest("\n".join([*sorted(stamps), *asked, *code]))


def sums(folder: Path) -> str:
    """The digests of a folder's tables, as they were written; '' where there are none, as of an older version."""
    try:
        return (folder / SUMS).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


# ---- from here on: the parts of the above -----------------------------------------------------


def _numbers(facts: Loaded, *names: str) -> Loaded:
    """Those of them by name; TypeError for one that is there and no finite number."""
    for name in names:
        value = facts[name]
        if value is not None and not (type(value) in (int, float) and math.isfinite(value)):
            raise TypeError(f"{name} is {value!r}")
    return {name: facts[name] for name in names}


def _common(run: Run) -> Loaded:
    fields = ("variant", "engine", "capture", "precision", "device")
    return {f: getattr(run, f) for f in fields} | {
        "protocol": run.protocol.label,
        "hidden": run.hidden or run.protocol.hidden,
    }


def _by_character(run: Run, perplexity: float | None, length: float | None) -> Loaded:
    """Return the bits a character of a training on text, and the mean length of its held-out tokens."""
    if run.protocol.task != "text":
        return {}
    length = 1.0 if run.protocol.tokens == "characters" else length
    bits = math.log2(perplexity) / length if perplexity and length else None
    return {"bits_per_character": bits, "characters_per_token": length}


def facts_of(task: Task, length: int) -> Loaded:
    """Return what a table says of a task at a length."""
    longer = task.longer * length if task.longer > 1 else None
    return {
        "task": task.name, "score_is": task.score_is, "trivial": task.chance(length), "optimal": task.optimum,
        "threshold": task.solved, "length_longer": longer, "trivial_longer": task.chance(longer) if longer else None,
        "linear": task.linear,
    }  # fmt: skip


def _probe(run: Run, outcome: Loaded, declared: Loaded | None) -> Loaded:
    """Return what a training on a task has besides."""
    protocol = run.protocol
    if protocol.task == "text":
        return {}
    task, length = TASKS.get(protocol.task), protocol.num_steps
    if declared is None and task is not None:
        declared = facts_of(task, length)
    if declared is None:
        raise ValueError(f"no task {protocol.task!r}")
    return {
        **declared, "length": length, "score": outcome["score"], "budget": UPDATES * protocol.epochs,
        "solved_after": outcome.get("solved_after"), "score_longer": outcome.get("score_longer"),
    }  # fmt: skip


def _environment(known: dict[str, Loaded], facts: Loaded) -> str:
    """The name of a machine and software state, the same wherever the same facts hold."""
    # a letter first: a name of digits alone would be read back from CSV as a number
    name = "e" + hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    known[name] = {"environment": name, **facts}
    return name
