"""RECORD: one file per training and per timed sample, written atomically; tables are derived from them.

Rule: this file and only this file knows where results lie and how they are spelt. No torch.

    results/runs/KEY.json     one training, whole: its run, its environment, its curve, or its error
    results/speed/S/N-L.json  one timed sample, a fresh process: session S, round N, label L
    results/grids/NAME.json   what `bench`, `ablate` or another verb that trains or times last asked for
    results/*.csv             the tables people read, rebuilt from the above whenever asked

A missing value is an empty cell. A failed run is a row whose `error` says why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness.grid import SCORES, Protocol, Run
from harness.measure import now

VERSION = 1  # of the JSON files
COLUMNS: dict[str, tuple[str, ...]] = {
    # one row a training
    "runs": (
        "run", "variant", "engine", "capture", "precision", "device", "seed", "protocol", "corpus",
        "corpus_sha256", "hidden", "lr", "parameters", "train_perplexity", "heldout_perplexity", "heldout_mean_exp",
        "tokens", "train_s", "wall_s", "together", "sample", "environment", "started", "load", "error",
    ),
    # one row an evaluation of a training
    "curves": ("run", "variant", "engine", "protocol", "corpus_sha256", "seed", "epoch", "tokens",
               "train_perplexity", "heldout_perplexity"),
    # one row a trained network and one of its gates, held at a constant only after training
    "lesions": ("run", "variant", "engine", "capture", "precision", "device", "protocol", "corpus_sha256", "seed",
                "lesion", "heldout_perplexity"),
    # one row a trained network and one of its gates: what it does over held-out text; `tau`: see inside.py
    "gates": ("run", "variant", "engine", "capture", "precision", "device", "protocol", "corpus_sha256", "seed", "gate",
              "mean", "sd", "shut", "open", "unit_sd", "tau_10", "tau_25", "tau_50", "tau_75", "tau_90"),
    # one row a trained network and t: the share of the gradient at a character that reaches the state t before it
    "reach": ("run", "variant", "engine", "protocol", "corpus_sha256", "seed", "characters_back", "gradient_share"),
    # one row a gate, character and unit of one trained network, over a sentence of held-out text
    "heat": ("run", "variant", "protocol", "corpus_sha256", "seed", "gate", "position", "character", "unit", "value"),
    # one row a timed block; a sample (fresh process) has several blocks
    "speed": (
        "session", "round", "label", "variant", "engine", "capture", "precision", "device", "protocol",
        "hidden", "seeds", "block", "steps", "tokens_per_sec", "step_ms", "first_step_ms",
        "peak_memory_mib", "peak_reserved_mib", "context_switches", "cpu_per_wall", "others_cpu", "load", "disturbed",
        "kernels", "disagreement", "gflop", "peak_gflops", "copy_gib_per_s", "percent_of_peak",
        "environment", "started", "error",
    ),
    # one row an order: what counting characters achieves on the same split; `floor` is the exact
    # perplexity of the source, where it is known (embedded text only)
    "anchors": ("protocol", "corpus", "corpus_sha256", "model", "heldout_perplexity"),
    # one row a protocol as it was run
    "protocols": (
        "protocol", "name", "train_characters", "heldout_characters", "batch_size", "num_steps",
        "hidden", "lr", "clip", "epochs", "init", "evaluations", "text", "sampling", "validation_characters", "rate",
        "match", "update_bias",
    ),
    # one row a published perplexity, with ours beside it
    "reproduce": (
        "protocol", "variant", "engine", "quantity", "published", "published_sd", "builds_least", "builds_most",
        "perplexity", "sd", "seeds", "failed", "within_2sd", "exp_of_mean", "corpus",
    ),
    # one row a training on a probe: a task that asks for memory
    "probes": (
        "run", "variant", "engine", "capture", "precision", "device", "seed", "protocol", "task", "length", "hidden",
        "parameters", "score", "score_is", "trivial", "optimal", "tokens", "train_s", "wall_s", "together",
        "environment", "started", "load", "error",
    ),
    # one row a variant and a learning rate that was tried for it
    "learning_rates": (
        "protocol", "corpus_sha256", "variant", "lr", "seeds", "failed", "validation_perplexity", "chosen",
    ),
    # one row a machine and software state
    "environments": (
        "environment", "torch", "cuda", "driver", "device", "device_name", "cpu", "cores", "threads",
        "memory_gib", "matmul_precision", "cudnn_rnn_tf32", "cublas_workspace", "flush_denormal",
        "keeps_pages", "python", "platform", "package", "commit", "dirty",
    ),
}  # fmt: skip
TABLE = (
    "variant", "engine", "capture", "precision", "device", "protocol", "corpus", "corpus_sha256",
    "hidden", "lr", "parameters", "seeds", "failed", "train_perplexity", "train_sd", "heldout_perplexity",
    "heldout_low", "heldout_high", "heldout_iqm", "baseline", "pairs", "delta_nats", "delta_low", "delta_high",
    "looks", "p_signflip", "p_holm", "p_better", "p_better_low", "p_better_high", "verdict",
    "tokens_per_sec", "tokens_per_sec_q1", "tokens_per_sec_q3", "speed_samples", "speed_baseline",
    "speed_ratio", "speed_ratio_low", "speed_ratio_high", "tokens_per_sec_all_seeds", "step_ms", "percent_of_peak",
    "peak_memory_mib", "peak_reserved_mib", "error",
)  # fmt: skip
COLUMNS["bench"] = COLUMNS["ablate"] = TABLE


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
    speed: pd.DataFrame
    reproduce: pd.DataFrame
    probes: pd.DataFrame
    learning_rates: pd.DataFrame
    anchors: pd.DataFrame
    protocols: pd.DataFrame
    environments: pd.DataFrame


def write(path: Path, text: str) -> None:
    """The text as a file, whole or not at all, whatever happens at any instant: a part beside it, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:  # a full disk names no file of its own accord
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Be the folder's one writer. ValueError says who is; a lock falls with the process that held it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            who = lock.read().strip() or "another process"
            raise ValueError(f"{folder} is being written by {who}: wait for it, or give --results") from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        yield
        lock.truncate(0)


# ---- one training -----------------------------------------------------------------------------


def write_run(folder: Path, run: Run, fact: dict[str, object]) -> None:
    """One training that ended. `fact`: corpus, outcome (curve in it), environment, started, wall_s, together, load."""
    write(
        _run_path(folder, run.key), json.dumps({"version": VERSION, "run": dataclasses.asdict(run), **fact}, indent=1)
    )


def done(folder: Path, run: Run) -> bool:
    """Whether this run has ended well. One that failed, or whose file is torn, is to be tried again."""
    try:
        return not _load(_run_path(folder, run.key))["outcome"]["error"]
    except (ValueError, FileNotFoundError):
        return False


def heldout(folder: Path, run: Run) -> float | None:
    """The held-out perplexity of a run that ended well; None where there is none."""
    try:
        outcome = _load(_run_path(folder, run.key))["outcome"]
    except (ValueError, FileNotFoundError):
        return None
    return None if outcome["error"] else outcome["heldout_perplexity"]


def failed(folder: Path, run: Run) -> str:
    """Why this run failed when it was last tried; '' where it did not, or was never tried."""
    try:
        return str(_load(_run_path(folder, run.key))["outcome"]["error"])
    except (ValueError, FileNotFoundError):
        return ""


# ---- one timed sample -------------------------------------------------------------------------


def write_sample(folder: Path, session: str, number: int, label: str, run: Run, answer: dict[str, object]) -> None:
    """One fresh process's answer, {blocks, ..., environment} or {error}."""
    whole = {"version": VERSION, "session": session, "round": number, "label": label, "run": dataclasses.asdict(run)}
    write(
        _sample_path(folder, session, number, label),
        json.dumps({**whole, "started": now(), "answer": answer}, indent=1),
    )


def round_done(folder: Path, session: str, number: int, labels: Sequence[str]) -> bool:
    """Whether every label of a round has answered. Ratios are paired by round: a part of one is worth nothing."""
    try:
        answers = [_load(_sample_path(folder, session, number, label))["answer"] for label in labels]
    except (ValueError, FileNotFoundError):
        return False
    return not any(a.get("error") for a in answers)


# ---- what was asked for -----------------------------------------------------------------------


def write_grid(folder: Path, verb: str, fact: dict[str, object]) -> None:
    """What `bench` or `ablate` was last asked for, so that its tables can be built again without the text."""
    write(folder / "grids" / f"{verb}.json", json.dumps({"version": VERSION, **fact}, indent=1))


def grids(folder: Path) -> dict[str, Loaded]:
    """verb -> what it was last asked for. Empty where nothing was."""
    return {p.stem: _load(p) for p in sorted((folder / "grids").glob("*.json"))}


# ---- tables -----------------------------------------------------------------------------------


def gather(folder: Path) -> Results:
    """Every table but the answers, from the files of single runs and samples. ValueError names a file that is torn.

    A run that differs from another in its source alone is one that was edited since: the one a grid names
    stands for both, else the later.
    """
    asked = grids(folder)
    named = {key for grid in asked.values() for key in grid["runs"]}
    environments: dict[str, Loaded] = {}
    protocols: dict[str, Loaded] = {}
    rows: dict[Run, Loaded] = {}
    points: dict[Run, list[Loaded]] = {}
    inside: dict[str, dict[Run, list[Loaded]]] = {"lesions": {}, "gates": {}, "reach": {}, "heat": {}}
    for path in sorted((folder / "runs").glob("[!.]*.json")):
        whole = _load(path)
        run, outcome = _as_run(whole["run"]), whole["outcome"]
        key = path.stem  # what it was when it was written: a field that was added since has changed `run.key`
        protocols[run.protocol.label] = dataclasses.asdict(run.protocol)
        row = _common(run) | {
            "run": key, "seed": run.seed, "corpus": whole["corpus"], "corpus_sha256": run.corpus_sha256,
            "environment": _environment(environments, whole["environment"]),
            **{c: outcome[c] for c in ("parameters", "train_perplexity", "heldout_perplexity", "tokens", "train_s",
                                       "sample", "error")},
            "lr": run.setting.lr, "heldout_mean_exp": outcome.get("heldout_mean_exp"),
            **{c: whole[c] for c in ("wall_s", "together", "started", "load")},
        }  # fmt: skip
        same = dataclasses.replace(run, source="")
        if same in rows and (rows[same]["run"] in named, rows[same]["started"]) > (key in named, row["started"]):
            continue
        rows[same] = row | _probe(run, outcome)
        points[same] = [{**row, **point} for point in outcome["curve"]]
        held = outcome.get("lesions", {})  # results of before there were any have none
        inside["lesions"][same] = [{**row, "lesion": name, "heldout_perplexity": held[name]} for name in held]
        inside["gates"][same] = [{**row, "gate": gate, **facts} for gate, facts in outcome.get("gates", {}).items()]
        inside["reach"][same] = [  # by character
            {**row, "characters_back": int(t), "gradient_share": share} for t, share in outcome.get("reach", {}).items()
        ]
        inside["heat"][same] = [{**row, **fact} for fact in outcome.get("heat", [])]
    blocks = []
    sessions = sorted({grid["session"] for grid in asked.values()} - {""})  # earlier ones stay on file, untold
    for path in (p for s in sessions for p in sorted((folder / "speed" / s).glob("[!.]*.json"))):
        whole = _load(path)
        run, answer = _as_run(whole["run"]), whole["answer"]
        protocols[run.protocol.label] = dataclasses.asdict(run.protocol)
        row = _common(run) | {c: whole[c] for c in ("session", "round", "label", "started")} | {"seeds": 1}
        row["environment"] = _environment(environments, answer["environment"]) if "environment" in answer else None
        row |= {k: v for k, v in answer.items() if k not in ("blocks", "environment")}
        blocks += [{**row, **block} for block in answer.get("blocks", [{}])]
    anchors = {
        (g["protocol"]["label"], g["corpus"], g["corpus_sha256"], model): perplexity
        for grid in asked.values()
        for g in grid.get("parts", [grid])
        for model, perplexity in g["anchors"].items()
    }
    trained = sorted(rows, key=lambda r: (r.protocol.label, r.variant, r.engine, r.seed, rows[r]["run"]))
    empty = {name: frame(name, []) for name in ("bench", "ablate", "reproduce")}
    return Results(
        **empty,
        runs=frame("runs", [rows[r] for r in trained if r.protocol.task == "text"]),
        probes=frame("probes", [rows[r] for r in trained if r.protocol.task != "text"]),
        curves=frame("curves", [point for r in trained for point in points[r]]),
        **{name: frame(name, [row for r in trained for row in rows[r]]) for name, rows in inside.items()},
        speed=frame("speed", blocks),
        learning_rates=frame("learning_rates", [
            {**row, "corpus_sha256": g["corpus_sha256"]} for g in asked.values() for row in g.get("learning_rates", [])
        ]),
        anchors=frame("anchors", [
            dict(zip(COLUMNS["anchors"], (*key, perplexity), strict=True)) for key, perplexity in anchors.items()
        ]),
        protocols=frame("protocols", [{"protocol": label, **protocols[label]} for label in sorted(protocols)]),
        environments=frame("environments", list(environments.values())),
    )  # fmt: skip


def frame(name: str, rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Rows as the table of that name; what a row lacks is empty."""
    return pd.DataFrame([[row.get(c) for c in COLUMNS[name]] for row in rows], columns=list(COLUMNS[name]))


def write_tables(results: Results, folder: Path) -> None:
    """Every table as CSV. Floats at full length: what is read back is what was measured."""
    for field in dataclasses.fields(results):
        text = getattr(results, field.name).to_csv(index=False, lineterminator="\n")
        write(folder / f"{field.name}.csv", text)


def read(folder: Path) -> Results:
    """The tables of a folder. ValueError, in one line, for a table that is none of ours."""
    return Results(**{name: _read(folder / f"{name}.csv", name) for name in COLUMNS})


# ---- from here on: the parts of the above -----------------------------------------------------

Loaded = dict[str, Any]  # what a JSON file holds


def _run_path(folder: Path, key: str) -> Path:
    return folder / "runs" / f"{key}.json"


def _sample_path(folder: Path, session: str, number: int, label: str) -> Path:
    safe = "".join(c if c.isalnum() or c in "._=,#" else "." for c in label)
    return folder / "speed" / session / f"{number}-{safe}.json"


def _load(path: Path) -> Loaded:
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # UnicodeDecodeError is one too
        raise ValueError(f"{path} cannot be read as JSON: delete it, and run again what it held") from None
    if not isinstance(whole, dict) or whole.get("version") != VERSION:
        raise ValueError(f"{path} is not of this version ({VERSION}): give another --results, or delete it")
    return whole


def _as_run(fields: Loaded) -> Run:
    return Run(**{**fields, "protocol": Protocol(**fields["protocol"])})


def _common(run: Run) -> Loaded:
    fields = ("variant", "engine", "capture", "precision", "device")
    return {f: getattr(run, f) for f in fields} | {"protocol": run.protocol.label, "hidden": run.setting.hidden}


def _probe(run: Run, outcome: Loaded) -> Loaded:
    """What a training on a probe has besides."""
    if run.protocol.task == "text":
        return {}
    probe = SCORES[run.protocol.task]
    return {"task": run.protocol.task, "length": run.protocol.num_steps, "score": outcome["score"], **probe._asdict()}


def _environment(known: dict[str, Loaded], facts: Loaded) -> str:
    """The name of a machine and software state, the same wherever the same facts hold."""
    # a letter first: a name of digits alone would be read back from CSV as a number
    name = "e" + hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    known[name] = {"environment": name, **facts}
    return name


def _read(path: Path, name: str) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, keep_default_na=True)
    except FileNotFoundError:
        return frame(name, [])
    except (ValueError, pd.errors.ParserError) as error:
        raise ValueError(f"{path} is not a table ({' '.join(str(error).split())}): `report` makes it again") from None
    absent = [c for c in COLUMNS[name] if c not in table]
    if absent:
        raise ValueError(f"{path} has no column {absent[0]!r}: it is not of this version, or was edited")
    return table
