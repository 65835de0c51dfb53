"""Compare two results folders: paired by seed where both have it, speeds where one machine timed both.

Rule: as stats.py. One rule for every verdict: the whole 95 % interval of the change lies beyond the limit (worse,
better), within it (equivalent, not worse), or neither (undecided).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.analysis import speed as speeds
from harness.analysis.stats import Floats, holm, interval, sign_flip, welch
from harness.experiments import protocols
from harness.experiments.grids import SPEED_BASELINE
from harness.record.tables import Results, typed

LIMIT = 0.05  # the change that counts, as a share
LEAST_ROUNDS = 3  # of a speed on each side: fewer cannot be told
MOST_NAMED = 6
SAME, WORSE, UNTOLD = 0, 1, 3  # exit statuses; 2 is bad input
GOOD = ("identical", "equivalent", "not worse", "better")
MACHINE = ("device", "device_name", "cpu", "cores", "threads", "memory_gib", "platform")
TEXT = (
    "train_characters",
    "heldout_characters",
    "validation_characters",
    "text",
    "sampling",
    "max_vocabulary",
    "tokens",
)
HIDDEN = ("protocol", "name", "environment", "dirty")  # columns that no difference is said of

COLUMNS = ("measure", "variant", "setting", "n", "a", "b", "change", "low", "high", "p_holm", "verdict", "note")


@dataclass(frozen=True)
class Comparison:
    """The differences of two folders, `a` and `b`.

    `rows`: a row a measure and variant. `a`, `b`: geometric means over the pairs (perplexity), seeds that solve (task),
    medians over rounds (tokens/sec). `change`: share by which b is worse, above 0, with its interval; `n` pairs or
    rounds.
    `differences`: only the settings, machine facts and versions that differ. `notes`: what was left out, and why.
    """

    a: str
    b: str
    limit: float
    rows: pd.DataFrame
    differences: pd.DataFrame
    notes: tuple[str, ...]

    @property
    def status(self) -> int:
        """0: nothing is worse; 1: something is worse beyond the limit; 3: too noisy or too few to tell."""
        verdicts = [v for v in self.rows["verdict"] if v != "control"]
        if "worse" in verdicts:
            return WORSE
        return SAME if verdicts and all(v in GOOD for v in verdicts) else UNTOLD

    @property
    def answer(self) -> str:
        """The outcome in a sentence."""
        by = {v: list(own["variant"]) for v, own in self.rows.groupby("verdict", sort=False)}
        share = f"{100 * self.limit:g} %"
        if self.status == WORSE:
            return f"worse by more than {share}: {', '.join(dict.fromkeys(by['worse']))}"
        if self.status == SAME:
            return f"nothing is worse by more than {share}"
        left = list(dict.fromkeys(v for verdict, own in by.items() if verdict not in (*GOOD, "control") for v in own))
        more = f" and {len(left) - MOST_NAMED} more" if len(left) > MOST_NAMED else ""
        named = ", ".join(left[:MOST_NAMED]) + more if left else "nothing is in both"
        return f"too noisy or too few to tell at {share}: {named}"

    def _repr_html_(self) -> str:
        shown: str = self.rows.drop(columns="note").to_html(index=False, na_rep="", float_format=lambda x: f"{x:.4g}")
        return f"<p>{self.answer}</p>" + shown


def compare(a: Results, b: Results, limit: float = LIMIT, names: tuple[str, str] = ("A", "B")) -> Comparison:
    """Compare two sets of tables; `limit` is the share by which something may be worse."""
    notes: list[str] = []
    differences = _environments(a, b)
    rows, differing = _trained(a, b, limit, notes)
    timed = _timed(a, b, limit, notes)
    frame = pd.DataFrame([*rows, *timed], columns=list(COLUMNS))
    ps = frame["p_holm"].astype(float).to_numpy()
    frame["p_holm"] = holm(ps, max(1, int(np.sum(~np.isnan(ps)))))
    whole = pd.DataFrame([*differing, *differences], columns=["kind", "what", "a", "b"]).drop_duplicates()
    return Comparison(*names, limit, frame, whole.reset_index(drop=True), tuple(dict.fromkeys(notes)))


def decide(low: float, high: float, limit: float) -> str:
    """One word for the interval of a change in logarithms, above 0 is worse."""
    edge = math.log1p(limit)
    if math.isnan(low + high):
        return "too few"
    if low == high == 0:
        return "identical"
    if low > edge:
        return "worse"
    if high < -edge:
        return "better"
    if high < edge:
        return "equivalent" if low > -edge else "not worse"
    return "undecided"


# ---- trainings ------------------------------------------------------------------------------------

_TRAINED = ("variant", "task", "length", "engine", "precision", "device", "protocol", "corpus_sha256")
_LOOSER: tuple[tuple[str, ...], ...] = (  # what is paired: first what is the same in all, then what is in fewer
    _TRAINED,
    ("variant", "task", "length", "protocol", "corpus_sha256"),
    ("variant", "task", "length", "corpus_sha256"),
)


def _trained(
    a: Results, b: Results, limit: float, notes: list[str]
) -> tuple[list[dict[str, object]], list[tuple[str, str, str, str]]]:
    """A row a variant that both trained, and the settings in which the trainings of a pair differ."""
    groups = [_groups(results) for results in (a, b)]
    rows: list[dict[str, object]] = []
    differing: list[tuple[str, str, str, str]] = []
    settings = [{r["protocol"]: r for r in results.protocols.to_dict("records")} for results in (a, b)]
    for one, two in _matched(*groups):
        first, second = one.iloc[0], two.iloc[0]
        of = [_facts(settings[k], row) for k, row in enumerate((first, second))]
        changed = [
            ("setting", name, _said(of[0].get(name)), _said(of[1].get(name)))
            for name in dict.fromkeys([*of[0], *of[1]]) if _said(of[0].get(name)) != _said(of[1].get(name))
        ]  # fmt: skip
        differing += changed
        if other := [name for _, name, *_ in changed if name in TEXT]:
            notes.append(f"{first.variant}: no difference of perplexities, the text differs: {', '.join(other)}")
            continue
        row = {
            "variant": first.variant,
            "setting": str(first.protocol if not first.task else f"{first.task} {first.length}"),
        }
        row["note"] = "; ".join(f"{name} {x} -> {y}" for _, name, x, y in changed)
        rows.append(row | (_solved(one, two, limit) if first.task else _perplexity(one, two, limit)))
    for where, present, absent in (("B", *groups), ("A", *reversed(groups))):
        have = {key[:2] for key in absent}
        lacking = sorted({f"{key[0]}{f' on {key[1]}' * bool(key[1])}" for key in present if key[:2] not in have})
        if lacking:
            notes.append(f"not in {where}: {', '.join(lacking)}")
    return rows, differing


def _groups(results: Results) -> dict[tuple[object, ...], pd.DataFrame]:
    """Trainings by all that they are trained as."""
    runs, probes = typed(results.runs, "runs").assign(task="", length=0), typed(results.probes, "probes")
    whole = pd.concat([runs, probes.assign(corpus_sha256="")], ignore_index=True)
    whole = whole[~whole["seed"].isin(protocols.RATE_SEEDS)]  # those only choose a learning rate
    whole = whole.sort_values(["seed", "started"]).drop_duplicates([*_TRAINED, "seed"], keep="last")
    return {tuple(key): group for key, group in whole.groupby(list(_TRAINED), sort=True)}


def _matched(
    a: dict[tuple[object, ...], pd.DataFrame], b: dict[tuple[object, ...], pd.DataFrame]
) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """The groups that belong together: alike in everything, else the only ones on both sides that are alike in less."""
    a, b = dict(a), dict(b)
    found = []
    for level in _LOOSER:
        at = [_TRAINED.index(name) for name in level]
        for key in list(a):
            short = tuple(key[k] for k in at)
            mine, other = ([k for k in side if tuple(k[i] for i in at) == short] for side in (a, b))
            if key in a and len(mine) == len(other) == 1:
                found.append((a.pop(key), b.pop(other[0])))
    return found


def _facts(settings: Mapping[object, Mapping[object, object]], row: pd.Series) -> dict[str, object]:
    """The settings of a group of trainings by name."""
    protocol = {str(name): value for name, value in settings.get(row["protocol"], {}).items() if name not in HIDDEN}
    return protocol | {"engine": row["engine"], "precision": row["precision"], "lr": row["lr"], "hidden": row["hidden"]}


def _said(value: object) -> str:
    if value is None or value != value:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _pairs(one: pd.DataFrame, two: pd.DataFrame, column: str) -> tuple[pd.Series, pd.Series]:
    """A column of the seeds that both finished."""
    both = []
    for group in (one, two):
        done = group[(group["error"] == "") & group[column].notna()]
        both.append(pd.Series(done[column].to_numpy(float), index=done["seed"].to_numpy()))
    seeds = sorted(set(both[0].index) & set(both[1].index))
    return both[0].loc[seeds], both[1].loc[seeds]


def _lost(one: pd.DataFrame, two: pd.DataFrame) -> list[int]:
    """Seeds that a finished and that failed in b."""
    good = set(one[one["error"] == ""]["seed"])
    return sorted(int(seed) for seed in two[two["error"] != ""]["seed"] if seed in good)


def _bounds(d: Floats) -> tuple[float, float]:
    """The 95 % interval of a mean; of a single pair only where it is exactly alike."""
    if len(d) and not d.any():
        return 0.0, 0.0
    return interval(d)[:2] if len(d) > 1 else (math.nan, math.nan)


def _perplexity(one: pd.DataFrame, two: pd.DataFrame, limit: float) -> dict[str, object]:
    x, y = (np.log(side.to_numpy()) for side in _pairs(one, two, "heldout_perplexity"))
    d = y - x
    low, high = _bounds(d)
    row: dict[str, object] = {
        "measure": "held-out perplexity", "n": len(d), "p_holm": sign_flip(d), "verdict": decide(low, high, limit),
    }  # fmt: skip
    if len(d):
        row |= {"a": math.exp(x.mean()), "b": math.exp(y.mean()), "change": math.expm1(d.mean())}
        row |= {"low": math.expm1(low), "high": math.expm1(high)}
    if lost := _lost(one, two):
        row |= {"verdict": "worse", "note": f"failed in B, not in A: seed {', '.join(map(str, lost))}"}
    return row


def _solved(one: pd.DataFrame, two: pd.DataFrame, limit: float) -> dict[str, object]:
    """Compare a task: how many seeds solve it, a pair being seed by seed; where as many do, after how many updates."""
    good = [group[group["error"] == ""] for group in (one, two)]
    solved = [pd.Series(g["solved_after"].notna().to_numpy(float), index=g["seed"].to_numpy()) for g in good]
    seeds = sorted(set(solved[0].index) & set(solved[1].index))
    x, y = (side.loc[seeds].to_numpy() for side in solved)
    p = sign_flip(x - y)
    row: dict[str, object] = {"measure": "seeds that solve", "n": len(seeds), "a": x.sum(), "b": y.sum(), "p_holm": p}
    if len(seeds):
        row["change"] = float((x - y).mean())
    updates = [np.log(side.to_numpy()) for side in _pairs(one, two, "solved_after")]
    low, high = _bounds(updates[1] - updates[0])
    verdict = "too few" if not seeds else "identical"
    if (x != y).any():
        verdict = "undecided" if not p < 0.05 else "worse" if y.sum() < x.sum() else "better"
    elif len(updates[0]):
        verdict = decide(low, high, limit)
        change = math.expm1(float((updates[1] - updates[0]).mean()))
        row |= {"measure": "updates to solve", "a": math.exp(updates[0].mean()), "b": math.exp(updates[1].mean()),
                "n": len(updates[0]), "change": change, "low": math.expm1(low), "high": math.expm1(high)}  # fmt: skip
    if lost := _lost(one, two):
        verdict, row["note"] = "worse", f"failed in B, not in A: seed {', '.join(map(str, lost))}"
    return row | {"verdict": verdict}


# ---- speeds ---------------------------------------------------------------------------------------

_TIMED = ("label", "protocol", "device", "precision", "seeds")


def _timed(a: Results, b: Results, limit: float, notes: list[str]) -> list[dict[str, object]]:
    """A row for each label that both timed on one machine.

    Where torch's own module, the same version of it, was timed in the same rounds of both, a speed is taken relative to
    it: what the machine did between the two sessions is not the code's.
    """
    rows: list[dict[str, object]] = []
    timed = [speeds.blocks(results.speed) for results in (a, b)]
    for verb in dict.fromkeys(timed[0]["verb"]):
        tables = [speeds.latest(table[table["verb"] == verb], ()) for table in timed]
        if any(table.empty for table in tables):
            continue
        machines = [_machine(results, table) for results, table in zip((a, b), tables, strict=True)]
        if other := [fact for fact in MACHINE if machines[0].get(fact) != machines[1].get(fact)]:
            facts = "; ".join(f"{fact}: {machines[0].get(fact)}, {machines[1].get(fact)}" for fact in other)
            notes.append(f"speeds of {verb} are left out: not of one machine ({facts})")
            continue
        rows += _session(tables, limit, machines[0].get("torch") == machines[1].get("torch"))
    return rows


def _session(tables: Sequence[pd.DataFrame], limit: float, controlled: bool) -> list[dict[str, object]]:
    """The rows of two sessions; `controlled`: torch's own module is the same code in both."""
    rates = [_rates(table) for table in tables]
    both = [key for key in rates[0] if key in rates[1]]
    noise = float(np.nanmax([0.0, *(speeds.noise(table) for table in tables)]))
    rows: list[dict[str, object]] = []
    for key in both:
        alike = [k for k in both if k[1:] == key[1:]]
        controls = [k for k in alike if str(k[0]).startswith(SPEED_BASELINE)] if controlled and len(alike) > 1 else []
        logs = [np.log(side[key]) for side in rates]
        row: dict[str, object] = {"measure": "tokens/sec", "variant": key[0], "setting": key[1]}
        row |= {"a": rates[0][key].median(), "b": rates[1][key].median()}
        if controls and key not in controls:
            logs = [(log - np.log(side[controls[0]])).dropna() for side, log in zip(rates, logs, strict=True)]
            row["note"] = f"relative to {controls[0][0]}, timed in the same rounds"
        elif not controls:
            row["note"] = "no nn.gru was timed in the same rounds: what the machine did meanwhile is part of the change"
        n = row["n"] = min(map(len, logs))
        change, low, high = welch(logs[0].to_numpy(), logs[1].to_numpy())  # above 0: b is slower
        if logs[0].equals(logs[1]):
            low = high = 0.0  # one measurement, twice
        row |= {"change": math.expm1(change), "low": math.expm1(low), "high": math.expm1(high)}
        row["verdict"] = decide(low, high, limit) if n >= LEAST_ROUNDS else "too few"
        if key in controls:
            row |= {
                "verdict": "control",
                "note": "the same code in both: its change is the machine's, taken out of the others",
            }
        elif noise >= math.log1p(limit) and row["verdict"] not in ("too few", "identical"):
            told = f"one contender, timed twice, differs from itself by up to {100 * math.expm1(noise):.1f} %"
            row |= {"verdict": "undecided", "note": told}
        rows.append(row)
    return rows


def _machine(results: Results, table: pd.DataFrame) -> dict[str, str]:
    """The facts of the machine that timed a table."""
    names = [name for name in table["environment"] if name]
    known = results.environments[results.environments["environment"] == names[0]] if names else results.environments[:0]
    return {str(k): _said(v) for k, v in known.to_dict("records")[0].items()} if len(known) else {}


def _rates(table: pd.DataFrame) -> dict[tuple[object, ...], pd.Series]:
    """(label, protocol, device, precision, seeds) -> tokens/sec by round; controls (A/A) left out."""
    samples = speeds.samples(table[table["control_of"] == ""])
    return {
        tuple(key): pd.Series(group["tokens_per_sec"].to_numpy(float), index=group["round"].to_numpy())
        for key, group in samples.groupby(list(_TIMED), dropna=False, sort=False)
    }


def _environments(a: Results, b: Results) -> list[tuple[str, str, str, str]]:
    """The facts of machine and software that differ: each side's values."""
    found = []
    for column in a.environments.columns:
        if column in HIDDEN:
            continue
        said: Sequence[str] = [
            ", ".join(sorted({_said(v) for v in side.environments[column] if v == v and v is not None}))
            for side in (a, b)
        ]
        if said[0] != said[1]:
            kind = "machine" if column in MACHINE else "version"
            found.append((kind, str(column), *said))
    return found  # type: ignore[return-value]


def records(comparison: Comparison) -> dict[str, object]:
    """A comparison as plain data; what is missing is None."""
    rows, differences = (
        [{k: None if v != v or v is None else v for k, v in row.items()} for row in frame.to_dict("records")]
        for frame in (comparison.rows, comparison.differences)
    )
    plain = {f.name: getattr(comparison, f.name) for f in dataclasses.fields(comparison)}
    return plain | {"status": comparison.status, "answer": comparison.answer, "rows": rows, "differences": differences}
