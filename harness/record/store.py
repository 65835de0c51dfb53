"""RECORD: one file per training and per timed sample, written atomically; tables are derived from them.

Rule: this file and only this file knows where results lie and how they are spelt. No torch.

    results/runs/KEY.json     one training, whole: its run, its environment, its curve, or its error
    results/networks/         seed 0 of each of them, trained: its program and weights, which the page runs
    results/checkpoints/      trainings that have not ended, as arrays (NumPy's npz, no pickle)
    results/speed/S/N-L.json  one timed sample, a fresh process: session S, round N, label L
    results/grids/NAME.json   what `bench`, `ablate` or another verb that trains or times last asked for
    results/*.csv             the tables people read, rebuilt from the above whenever asked

A missing value is an empty cell. A failed run is a row whose `error` says why.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from harness.experiments.grid import MISSING, Protocol, Run
from harness.experiments.tasks import TASKS
from harness.files import digest, now, sealed, unsealed, write
from harness.files import writing as writing

VERSION = 1  # of the JSON files
COLUMNS: dict[str, tuple[str, ...]] = {
    # one row a training
    "runs": (
        "run", "variant", "engine", "capture", "precision", "device", "seed", "protocol", "corpus",
        "corpus_sha256", "unknown_share", "hidden", "lr", "parameters", "train_perplexity", "heldout_perplexity",
        "heldout_mean_exp",
        "tokens", "train_s", "wall_s", "together", "sample", "environment", "started", "load", "unseen",
        "error",
    ),
    # one row an evaluation of a training
    "curves": ("run", "variant", "engine", "protocol", "corpus_sha256", "seed", "epoch", "tokens",
               "train_perplexity", "heldout_perplexity"),
    # one row a trained network and one of its gates, held at a constant only after training
    "lesions": ("run", "variant", "engine", "capture", "precision", "device", "protocol", "corpus_sha256", "seed",
                "lesion", "heldout_perplexity", "error"),
    # one row a trained network and one of its gates: what it does over held-out text; `tau`: see inside.py
    "gates": ("run", "variant", "engine", "capture", "precision", "device", "protocol", "corpus_sha256", "seed", "gate",
              "mean", "sd", "shut", "open", "unit_sd", "tau_10", "tau_25", "tau_50", "tau_75", "tau_90", "error"),
    # one row a trained network and t: the share of the gradient at a character that reaches the state t before it
    "reach": ("run", "variant", "engine", "protocol", "corpus_sha256", "seed", "characters_back", "gradient_share"),
    # one row a gate, character and unit of one trained network, over a sentence of held-out text
    "heat": ("run", "variant", "protocol", "corpus_sha256", "seed", "gate", "position", "character", "unit", "value"),
    # one row a timed block; a sample (fresh process) has several blocks
    "speed": (
        "session", "round", "label", "variant", "engine", "capture", "precision", "device", "protocol",
        "hidden", "seeds", "block", "steps", "tokens_per_sec", "step_ms", "first_step_ms",
        "peak_memory_mib", "peak_reserved_mib", "graph_mib", "context_switches", "cpu_per_wall", "others_cpu", "load",
        "disturbed",
        "kernels", "disagreement", "repeat_difference", "gflop", "peak_gflops", "copy_gib_per_s",
        "node_gap_us", "floor_ms", "percent_of_peak",
        "environment", "started", "error",
    ),
    # one row an order: what counting characters achieves on the same split; `floor` is the exact
    # perplexity of the source, where it is known (embedded text only); `uniform` is of guessing evenly
    "anchors": ("protocol", "corpus", "corpus_sha256", "model", "heldout_perplexity"),
    # one row a protocol as it was run
    "protocols": (
        "protocol", "name", "train_characters", "heldout_characters", "batch_size", "num_steps",
        "hidden", "lr", "clip", "epochs", "init", "evaluations", "text", "sampling", "validation_characters", "rate",
        "match", "update_bias", "max_vocabulary", "task", "stop",
    ),
    # one row a published perplexity, with ours beside it
    "reproduce": (
        "protocol", "variant", "engine", "quantity", "published", "published_sd", "builds_least", "builds_most",
        "perplexity", "sd", "seeds", "failed", "within_2sd", "exp_of_mean", "corpus",
    ),
    # one row a point of the lists in --set and a variant; `change`: of the effect, first point of the axis to last
    "axes": (
        "axis", "point", "setting", "variant", "engine", "device", "protocol", "corpus", "corpus_sha256", "hidden",
        "lr", "parameters", "seeds", "failed", "heldout_perplexity", "heldout_low", "heldout_high", "baseline", "pairs",
        "delta_nats", "delta_low", "delta_high", "p_signflip", "p_holm", "family", "verdict", "change_nats",
        "change_low", "change_high", "change_p_holm", "error",
    ),
    # one row a training on a task; `solved_after`: updates, empty where it was not solved within `budget`
    "probes": (
        "run", "variant", "engine", "capture", "precision", "device", "seed", "protocol", "task", "length", "hidden",
        "lr", "parameters", "score", "score_is", "trivial", "optimal", "threshold", "budget", "solved_after",
        "length_longer", "score_longer", "trivial_longer", "tokens", "train_s", "wall_s", "together",
        "environment", "started", "load", "error",
    ),
    # one row a task and variant: the answer. Shares with exact intervals, updates of those that solved it
    "tasks": (
        "task", "length", "variant", "engine", "precision", "device", "protocol", "hidden", "parameters", "lr",
        "rates_tried", "rates_that_solve", "rate_at_edge", "seeds", "failed", "solved", "solved_share", "solved_low",
        "solved_high", "updates_median", "updates_least", "updates_most", "budget", "threshold", "score_is", "score",
        "score_low", "score_high", "trivial", "optimal", "length_longer", "score_longer", "score_longer_low",
        "score_longer_high", "trivial_longer", "baseline", "updates_ratio", "updates_ratio_low", "updates_ratio_high",
        "p_holm", "verdict", "error",
    ),
    # one row a variant and a learning rate that was tried for it: of a text by perplexity, of a task by what solves it
    "learning_rates": (
        "protocol", "corpus_sha256", "variant", "lr", "seeds", "failed", "validation_perplexity", "solved",
        "updates_median", "score", "chosen",
    ),
    # one row a machine and software state
    "environments": (
        "environment", "torch", "cuda", "driver", "device", "device_name", "cpu", "cores", "threads",
        "memory_gib", "matmul_precision", "cudnn_rnn_tf32", "cublas_workspace", "flush_denormal",
        "keeps_pages", "deterministic", "python", "platform", "package", "commit", "dirty",
    ),
}  # fmt: skip
TABLE = (
    "variant", "engine", "capture", "precision", "device", "protocol", "corpus", "corpus_sha256",
    "unknown_share", "hidden", "lr", "parameters", "seeds", "failed", "train_perplexity", "train_sd",
    "heldout_perplexity",
    "heldout_low", "heldout_high", "heldout_iqm", "baseline", "pairs", "delta_nats", "delta_low", "delta_high",
    "looks", "p_signflip", "p_holm", "p_better", "p_better_low", "p_better_high", "verdict",
    "tokens_per_sec", "tokens_per_sec_q1", "tokens_per_sec_q3", "speed_samples", "speed_baseline",
    "speed_ratio", "speed_ratio_low", "speed_ratio_high", "speed_verdict", "speed_noise", "speed_disturbed",
    "tokens_per_sec_all_seeds", "step_ms", "percent_of_peak",
    "peak_memory_mib", "peak_reserved_mib", "error",
)  # fmt: skip
COLUMNS["bench"] = COLUMNS["ablate"] = TABLE
LOGICAL = {"capture", "disturbed", "chosen", "rate_at_edge"}
TEXTS = {
    "run",
    "variant",
    "engine",
    "precision",
    "device",
    "protocol",
    "corpus",
    "corpus_sha256",
    "baseline",
    "verdict",
    "speed_baseline",
    "speed_verdict",
    "error",
    "unseen",
    "sample",
    "environment",
    "started",
    "session",
    "label",
    "model",
    "name",
    "init",
    "kernels",
    "lesion",
    "quantity",
    "within_2sd",
    "gate",
    "character",
    "task",
    "score_is",
    "text",
    "sampling",
    "rate",
    "match",
    "update_bias",
    "stop",
    "axis",
    "point",
    "setting",
}  # all other columns are numbers
HEAD = f'{{\n "version": {VERSION},\n'  # how a file of this version begins
WELL = '\n  "error": "",\n'  # the line in it, at the depth of an outcome's fields alone, of a training that ended well
SUMS = "SHA256SUMS"  # of the tables, as `sha256sum -c` reads it


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
    axes: pd.DataFrame
    probes: pd.DataFrame
    tasks: pd.DataFrame
    learning_rates: pd.DataFrame
    anchors: pd.DataFrame
    protocols: pd.DataFrame
    environments: pd.DataFrame


# ---- a training that has not ended ------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """Where the training of some runs is kept until it ends: as harness/run/progress.py says of `Keep`.

    `of` is what it may be gone on from: the same runs, the same machine and software.
    """

    path: Path
    of: str

    def load(self) -> dict[str, npt.NDArray[Any]] | None:
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
            return None  # it is not there, or was not written here: the training begins anew
        return found if str(found.pop("of", "")) == self.of else None

    def save(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        whole = io.BytesIO()
        np.savez(whole, **{**arrays, "of": np.array(self.of)})  # type: ignore[arg-type]  # numpy's own types say bool
        write(self.path, whole.getvalue())


def checkpoint(folder: Path, runs: Sequence[Run], machine: Mapping[str, object]) -> Checkpoint:
    """Of runs that train side by side, on a machine in this state."""
    facts = {name: value for name, value in machine.items() if name not in ("commit", "dirty")}
    whole = json.dumps([[run.key for run in runs], facts], sort_keys=True)
    return Checkpoint(_checkpoint_path(folder, runs[-1].key), hashlib.sha256(whole.encode()).hexdigest())


# ---- one training -----------------------------------------------------------------------------


def write_run(folder: Path, run: Run, fact: dict[str, object]) -> None:
    """One training that ended. `fact`: corpus, outcome (curve in it), environment, started, wall_s, together, load."""
    outcome = fact["outcome"]
    network = outcome.pop("network", None) if isinstance(outcome, dict) else None
    if network:  # first: were it the other way round, a run could be done and have none
        _dump(folder / "networks" / f"{run.key}.json", {"run": run.key, "variant": run.variant, **network})
    _dump(_run_path(folder, run.key), {"run": run.fields, **fact})
    _checkpoint_path(folder, run.key).unlink(missing_ok=True)  # of all that trained beside it this run was the last


def networks(folder: Path) -> list[Loaded]:
    """The trained networks that were kept, one seed of a variant, as run/network.py makes them."""
    return [_load(path) for path in sorted((folder / "networks").glob("[!.]*.json"))]


def done(folder: Path, run: Run) -> bool:
    """Whether this run has ended well. One that failed, or whose file is torn, is to be tried again."""
    return _ended(_run_path(folder, run.key)) == ""


def failed(folder: Path, run: Run) -> str:
    """Why this run failed when it was last tried; '' where it did not, or was never tried."""
    return _ended(_run_path(folder, run.key)) or ""


def outcome(folder: Path, run: Run) -> Loaded | None:
    """What a run gave that ended well; None where there is none."""
    return dict(_load(_run_path(folder, run.key))["outcome"]) if done(folder, run) else None


def _ended(path: Path) -> str | None:
    """The error of a run on file, '' where it ended well; None where it is not there, or cannot be read."""
    try:
        found = os.stat(path)
        return _error(path, found.st_mtime_ns, found.st_size, found.st_ino)
    except (ValueError, KeyError, TypeError, FileNotFoundError):
        return None


@functools.lru_cache(maxsize=200_000)
def _error(path: Path, *stamp: int) -> str:
    """Asked for several times of the same file: by the plan, by the resumed grid, by the last lines."""
    text, as_written = unsealed(path)
    if as_written and text.startswith(HEAD) and WELL in text:
        return ""  # nearly all of a long night's: to read each as JSON takes three times as long
    return str(_load(path)["outcome"]["error"])


# ---- one timed sample -------------------------------------------------------------------------


def write_sample(folder: Path, session: str, number: int, label: str, run: Run, answer: dict[str, object]) -> None:
    """One fresh process's answer, {blocks, ..., environment} or {error}."""
    whole = {"session": session, "round": number, "label": label, "run": run.fields}
    _dump(_sample_path(folder, session, number, label), {**whole, "started": now(), "answer": answer})


def round_done(folder: Path, session: str, number: int, labels: Sequence[str]) -> bool:
    """Whether every label of a round has answered. Ratios are paired by round: a part of one is worth nothing."""
    try:
        answers = [_load(_sample_path(folder, session, number, label))["answer"] for label in labels]
    except (ValueError, KeyError, TypeError, FileNotFoundError):
        return False
    return not any(a.get("error") for a in answers)


# ---- what was asked for -----------------------------------------------------------------------


def write_grid(folder: Path, verb: str, fact: dict[str, object]) -> None:
    """What `bench` or `ablate` was last asked for, so that its tables can be built again without the text."""
    _dump(folder / "grids" / f"{verb}.json", fact)


def grids(folder: Path) -> dict[str, Loaded]:
    """verb -> what it was last asked for. Empty where nothing was."""
    return {p.stem: _load(p) for p in sorted((folder / "grids").glob("*.json"))}


# ---- tables -----------------------------------------------------------------------------------


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
    held: dict[str, Loaded] = {}  # their outcomes
    for path in sorted((folder / "runs").glob("[!.]*.json"), key=str):
        whole = _load(path)
        with _as_written(path):
            run, outcome = _as_run(whole["run"]), whole["outcome"]
            key = path.stem  # what it was when it was written: a field that was added since has changed `run.key`
            row = _common(run) | {
                "run": key, "seed": run.seed, "corpus": whole["corpus"], "corpus_sha256": run.corpus_sha256,
                "unknown_share": whole.get("unknown_share"),
                "sample": outcome["sample"], "error": outcome["error"], "started": whole["started"],
                "unseen": "; ".join(f"{what}: {why}" for what, why in outcome.get("unseen", {}).items()),
                **_numbers(outcome, "parameters", "train_perplexity", "heldout_perplexity", "tokens", "train_s"),
                "lr": run.lr or run.protocol.lr, "heldout_mean_exp": outcome.get("heldout_mean_exp"),
                **_numbers(whole, "wall_s", "together", "load"),
            } | _probe(run, outcome) | ({"capture": False} if outcome.get("uncaptured") else {})  # fmt: skip
            same = json.dumps({**run.fields, "source": "", "tokens": ""}, sort_keys=True)
            for facts in WITHIN.values():
                facts(outcome)
            protocols[run.protocol.label] = run.protocol
            machine = whole["environment"]  # none, of one whose worker ended before it had said it
            row["environment"] = _environment(environments, machine) if machine else None
        if same in rows and (rows[same]["run"] in named, rows[same]["started"]) > (key in named, row["started"]):
            continue
        rows[same], held[same] = row, outcome
    blocks = []
    sessions = sorted({grid["session"] for grid in asked.values()} - {""})  # earlier ones stay on file, untold
    for path in (p for s in sessions for p in sorted((folder / "speed" / s).glob("[!.]*.json"))):
        whole = _load(path)
        with _as_written(path):
            run, answer = _as_run(whole["run"]), whole["answer"]
            protocols[run.protocol.label] = run.protocol
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
    order = sorted(rows, key=lambda k: tuple(rows[k][c] for c in ("protocol", "variant", "engine", "seed", "run")))
    trained, outcomes = [rows[k] for k in order], [held[k] for k in order]
    return Results(
        **{name: frame(name, []) for name in ("bench", "ablate", "reproduce", "axes", "tasks")},
        runs=frame("runs", [row for row in trained if "task" not in row]),
        probes=frame("probes", [row for row in trained if "task" in row]),
        **{name: _of_each(name, trained, [facts(o) for o in outcomes]) for name, facts in WITHIN.items()},
        speed=frame("speed", blocks),
        learning_rates=frame("learning_rates", [
            {"corpus_sha256": g.get("corpus_sha256", ""), **row}
            for g in asked.values() for row in g.get("learning_rates", [])
        ]),
        anchors=frame("anchors", [
            dict(zip(COLUMNS["anchors"], (*key, perplexity), strict=True)) for key, perplexity in anchors.items()
        ]),
        protocols=frame("protocols", [{"protocol": label, **vars(protocols[label])} for label in sorted(protocols)]),
        environments=frame("environments", list(environments.values())),
    )  # fmt: skip


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
}


def _of_each(name: str, trained: Sequence[Loaded], facts: Sequence[list[Loaded]]) -> pd.DataFrame:
    """The table of that name: a training's own columns beside each of its facts."""
    own = [fact for some in facts for fact in some]
    if not own:
        return frame(name, [])
    beside = pd.DataFrame(own)
    times = np.repeat(np.arange(len(facts)), [len(some) for some in facts])
    whole = pd.DataFrame(trained, dtype=object).reindex(columns=[c for c in COLUMNS[name] if c not in beside])
    whole = whole.loc[times].set_index(beside.index)
    return pd.concat([whole, beside], axis=1)[list(COLUMNS[name])]


def frame(name: str, rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Rows as the table of that name; what a row lacks is empty."""
    return pd.DataFrame({c: [row.get(c) for row in rows] for c in COLUMNS[name]}, columns=list(COLUMNS[name]))


def write_tables(results: Results, folder: Path) -> None:
    """Every table as CSV, and SUMS."""
    # first: were this to end before the last line, no table would be said to be edited
    (folder / SUMS).unlink(missing_ok=True)
    digests = []
    for field in dataclasses.fields(results):
        text = spelt(getattr(results, field.name))
        write(folder / f"{field.name}.csv", text)
        digests.append(f"{digest(text)}  {field.name}.csv\n")
    write(folder / SUMS, "".join(digests))


def read(folder: Path) -> Results:
    """The tables of a folder. ValueError names the file and, where it can be told, the line that is not as written."""
    lines = (line.partition("  ") for line in sums(folder).splitlines())
    written = {name: hexadecimal for hexadecimal, _, name in lines}
    return Results(**{name: _read(folder / f"{name}.csv", name, written.get(f"{name}.csv")) for name in COLUMNS})


def sums(folder: Path) -> str:
    """The digests of a folder's tables, as they were written; '' where there are none, as of an older version."""
    try:
        return (folder / SUMS).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def spelt(table: pd.DataFrame) -> str:
    """A table as CSV. Floats at full length: what is read back is what was measured.

    A text that pandas would read as missing, NA or null, has `./` before it.
    """
    table = table.assign(
        **{
            c: table[c].map(lambda x: f"./{x}" if isinstance(x, str) and x in MISSING and x else x)
            for c in table.columns
            if table[c].dtype.kind == "O" and table[c].isin(MISSING - {""}).any()
        }
    )
    text: str = table.to_csv(index=False, lineterminator="\n")
    return text


# ---- from here on: the parts of the above -----------------------------------------------------

Loaded = dict[str, Any]  # what a JSON file holds


def _run_path(folder: Path, key: str) -> Path:
    return folder / "runs" / f"{key}.json"


def _checkpoint_path(folder: Path, key: str) -> Path:
    return folder / "checkpoints" / f"{key}.npz"


def _sample_path(folder: Path, session: str, number: int, label: str) -> Path:
    safe = "".join(c if c.isalnum() or c in "._=,#" else "." for c in label)
    return folder / "speed" / session / f"{number}-{safe}.json"


def _dump(path: Path, fact: Mapping[str, object]) -> None:
    write(path, sealed(json.dumps({"version": VERSION, **fact}, indent=1)))


def _load(path: Path) -> Loaded:
    try:
        whole = json.loads(unsealed(path)[0])
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{path} cannot be read as JSON: delete it, and run again what it held") from None
    if not isinstance(whole, dict) or whole.get("version") != VERSION:
        raise ValueError(f"{path} is not of this version ({VERSION}): give another --results, or delete it")
    return whole


@contextlib.contextmanager
def _as_written(path: Path) -> Iterator[None]:
    """What a file of another make holds is an error that names it."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} is not as this version writes it ({error!r:.200}): delete it, and run again what it held"
        ) from None


def _numbers(facts: Loaded, *names: str) -> Loaded:
    """Those of them by name; TypeError for one that is there and no finite number."""
    for name in names:
        value = facts[name]
        if value is not None and not (type(value) in (int, float) and math.isfinite(value)):
            raise TypeError(f"{name} is {value!r}")
    return {name: facts[name] for name in names}


def _as_run(fields: Loaded) -> Run:
    return Run(**{**fields, "protocol": _protocol(*fields["protocol"].items())})


@functools.lru_cache
def _protocol(*fields: tuple[str, object]) -> Protocol:
    """One for all runs that have it: its label takes long to spell."""
    return Protocol(**dict(fields))  # type: ignore[arg-type]


def _common(run: Run) -> Loaded:
    fields = ("variant", "engine", "capture", "precision", "device")
    return {f: getattr(run, f) for f in fields} | {
        "protocol": run.protocol.label,
        "hidden": run.hidden or run.protocol.hidden,
    }


def _probe(run: Run, outcome: Loaded) -> Loaded:
    """What a training on a task has besides."""
    protocol = run.protocol
    if protocol.task == "text":
        return {}
    task, length = TASKS[protocol.task], protocol.num_steps
    longer = task.longer * length
    return {
        "task": task.name, "length": length, "score": outcome["score"], "score_is": task.score_is,
        "trivial": task.chance(length), "optimal": task.optimum, "threshold": task.solved,
        "budget": 100 * protocol.epochs, "solved_after": outcome.get("solved_after"), "length_longer": longer,
        "score_longer": outcome.get("score_longer"), "trivial_longer": task.chance(longer),
    }  # fmt: skip


def _environment(known: dict[str, Loaded], facts: Loaded) -> str:
    """The name of a machine and software state, the same wherever the same facts hold."""
    # a letter first: a name of digits alone would be read back from CSV as a number
    name = "e" + hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    known[name] = {"environment": name, **facts}
    return name


def _read(path: Path, name: str, written: str | None) -> pd.DataFrame:
    """One table, `written` its digest. Edited by hand, half a line, another version: each a ValueError."""
    again = "`report` makes it again from the files of single runs"
    try:
        text = path.read_bytes().decode().removeprefix("\ufeff").replace("\r\n", "\n")  # as a spreadsheet may save it
    except FileNotFoundError:
        if written is not None:
            raise ValueError(f"{path} is gone, and {SUMS} has it: {again}") from None
        return frame(name, [])
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a table (no UTF-8, byte {error.start:,}): {again}") from None
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    seen: set[str] = set()
    try:
        head = next(lines, [])
        wrong = [f"no column {c!r}" for c in COLUMNS[name] if c not in head]
        wrong += [f"a column {c!r}, which is none of ours" for c in head if c not in COLUMNS[name]]
        wrong += ["a column twice"] * (len(set(head)) < len(head))
        if wrong:
            raise ValueError(f"{path}, line 1 has {wrong[0]}: it is of another version, or was edited; {again}")
        as_written = written is not None and written == digest(text)  # then each of its lines is
        for row in () if as_written else lines:
            if problem := _problem(name, head, row, seen):
                raise ValueError(f"{path}, line {lines.line_num}: {problem}; {again}")
    except csv.Error as error:
        raise ValueError(f"{path}, line {lines.line_num} is cut off or no table ({error}): {again}") from None
    if written is not None and not as_written:
        raise ValueError(f"{path} was changed after it was written ({SUMS} has another digest): {again}")
    # only what is empty is missing: a text may be called NA, or 12
    texts = {column: str for column in head if column in TEXTS}
    return pd.read_csv(io.StringIO(text, newline=""), keep_default_na=False, na_values=[""], dtype=texts)


def _problem(name: str, head: Sequence[str], row: Sequence[str], seen: set[str]) -> str:
    """What is wrong with a line of a table; '' for nothing. `seen`: the runs of the lines before it."""
    if len(row) != len(head):
        return f"{len(row)} cells under {len(head)} heads"
    for column, cell in zip(head, row, strict=True):
        if not cell or column in TEXTS or name == "environments":
            continue
        if column in LOGICAL:
            fine = cell in ("True", "False")
        else:
            try:
                fine = math.isfinite(float(cell)) and (float(cell) >= 1 or not column.endswith("perplexity"))
            except ValueError:
                fine = False
        if not fine:
            return f"{column} is {cell!r:.60}"
    if name in ("runs", "probes"):
        key = row[head.index("run")]
        if key in seen:
            return f"the run {key!r} once more"
        seen.add(key)
    return ""
