"""A synthetic but plausible results folder, for tests of what only reads results.

Rule: the same arguments give the same bytes; no number here was measured.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from harness.analysis import compare
from harness.experiments import grids, protocols
from harness.experiments.protocols import Protocol
from harness.experiments.tasks import TASKS
from harness.record import tables
from harness.record.schema import COLUMNS

HELDOUT = {  # perplexities to scatter around
    "rnn": 7.30, "gru": 6.83, "gru_after": 6.78, "lstm": 7.20,
    "nn.rnn": 7.27, "nn.gru": 6.74, "nn.lstm": 7.12,
    "gru:R=0": 7.05, "gru:R=0.5": 6.85, "gru:R=1": 6.84,
    "gru:Z=0": 7.24, "gru:Z=0.5": 7.06, "gru:Z=1": 16.7, "gru:Z=0,R=1": 7.30,
}  # fmt: skip
SPEED = {
    "rnn": 121e3, "gru": 48.8e3, "gru_after": 52.1e3, "lstm": 39.4e3,
    "nn.rnn": 148e3, "nn.gru": 56.4e3, "nn.lstm": 47.2e3,
    "gru:R=0": 101e3, "gru:R=0.5": 73e3, "gru:R=1": 75e3,
    "gru:Z=0": 74e3, "gru:Z=0.5": 72e3, "gru:Z=1": 300e3, "gru:Z=0,R=1": 120e3,
}  # fmt: skip
QUICK = protocols.PROTOCOLS["quick"]
SHA = "090b5e7e70c2" + "0" * 52


def write(
    folder: Path,
    seed: int = 0,
    *,
    protocol: Protocol = QUICK,
    corpus: str = "time-machine",
    seeds: int = 10,
    bench: Sequence[str] = grids.BENCH,
    ablate: Sequence[str] = grids.ABLATE,
    failures: bool = True,
    rounds: int = 5,
) -> Path:
    """Every CSV of `COLUMNS` in `folder`. With `failures`, lstm's last seed diverges and nn.lstm never runs."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = list(dict.fromkeys([*bench, *ablate]))
    own = protocol
    shared = random.normal(0, 0.008, seeds)
    runs, curves, lesions = [], [], []
    for variant in wanted:
        target = math.log(HELDOUT.get(variant, 7.0))
        noise = random.normal(0, 0.006, seeds) * (0.0 if variant == "gru:Z=1" else 1.0)
        for k in range(seeds):
            heldout = math.exp(target + shared[k] + noise[k])
            train = heldout * (0.62 if heldout < 10 else 0.99)
            error = ""
            if failures and variant == "lstm" and k == seeds - 1:
                error = "diverged: loss is nan after 12,320 tokens (epoch 0.6)"
            if failures and variant == "nn.lstm":
                error = "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB"
            run = f"{variant.replace(':', '.')}-{k}-{hash_of(variant, k):016x}"
            runs.append({
                "run": run, "variant": variant, "engine": engine_of(variant), "capture": False, "precision": "ieee",
                "device": "cpu", "seed": k, "protocol": own.label, "corpus": corpus, "corpus_sha256": SHA,
                "hidden": own.hidden, "parameters": parameters(variant, own.hidden),
                "train_perplexity": None if error else train, "heldout_perplexity": None if error else heldout,
                "tokens": own.epochs * own.train_characters, "train_s": 21.5, "wall_s": 24.2, "together": seeds,
                "sample": "" if error else "time traveller for so it will be convenient to speak of him was",
                "environment": "e1", "started": f"2025-11-{k + 1:02d}T08:00:00+00:00", "load": 0.3, "error": error,
            })  # fmt: skip
            if variant == "gru":
                lesions += [{**runs[-1], "lesion": f"{g}=1", "heldout_perplexity": heldout * 1.3} for g in "ZR"]
            for i in range(own.evaluations if not error else 0):
                passed = math.exp(-4.5 * i / (own.evaluations - 1))
                wobble = random.normal(0, 0.004)
                curves.append({
                    "run": run, "variant": variant, "engine": engine_of(variant), "protocol": own.label,
                    "corpus_sha256": SHA, "seed": k, "epoch": own.epochs * i / (own.evaluations - 1),
                    "tokens": own.epochs * own.train_characters * i // (own.evaluations - 1),
                    "train_perplexity": math.exp(math.log(train) + (math.log(28) - math.log(train)) * passed + wobble),
                    "heldout_perplexity": math.exp(
                        math.log(heldout) + (math.log(28) - math.log(heldout)) * passed + wobble
                    ),
                })  # fmt: skip
    run_frame = frame("runs", runs)
    speed_frame = frame("speed", [
        row for verb, variants in (("bench", bench), ("ablate", ablate))
        for row in timed(verb, variants, random, own, rounds, failures)
    ])  # fmt: skip
    tables = {
        verb: compare.build(
            run_frame, speed_frame[speed_frame.session == f"{verb}-s1"], variants, own.label, SHA, "cpu"
        )
        for verb, variants in (("bench", bench), ("ablate", ablate))
    }
    out = {
        **tables, "runs": run_frame, "curves": frame("curves", curves), "speed": speed_frame,
        "lesions": frame("lesions", lesions),
        "anchors": frame("anchors", [
            {"protocol": own.label, "corpus": corpus, "corpus_sha256": SHA, "model": m, "heldout_perplexity": p}
            for m, p in [("1-gram", 16.66), ("2-gram", 9.53), ("3-gram", 6.47), ("4-gram", 5.31), ("5-gram", 5.36)]
            + ([("floor", 4.02)] if corpus.startswith("embedded") else [])
        ]),
        "protocols": frame("protocols", [
            {"protocol": own.label, "name": own.name,
             **{c: getattr(own, c) for c in COLUMNS["protocols"][2:]}}
        ]),
        "environments": frame("environments", [{
            "environment": "e1", "torch": "2.13.0+cpu", "device": "cpu", "device_name": "cpu", "cpu": "made-up CPU",
            "cores": 2, "threads": 1, "workers": 2, "memory_gib": 7.8, "matmul_precision": "highest",
            "flush_denormal": True, "python": "3.11.9", "platform": "Linux", "package": "0.1.0",
            "commit": "abc1234", "dirty": False,
        }]),
    }  # fmt: skip
    out |= {name: frame(name, rows) for name, rows in looked_into(runs, own, random).items()}
    for name, rows in out.items():
        rows.to_csv(folder / f"{name}.csv", index=False)
    return folder


def looked_into(
    runs: list[dict[str, object]], own: Protocol, random: np.random.Generator
) -> dict[str, list[dict[str, object]]]:
    """What the further sections read: published figures, learning rates, probes, gates, gradients, a heat map."""
    done = [r for r in runs if not r["error"]]
    learned = [
        (r, g) for r in done if str(r["variant"]).startswith("gru") for g in "ZR" if f"{g}=" not in str(r["variant"])
    ]
    heat = next((r for r in done if r["variant"] == "gru"), None)
    return {
        "reproduce": [
            {"protocol": "classic", "variant": "gru", "engine": "native", "quantity": "training, last epoch",
             "published": 1.11, "published_sd": 0.06, "builds_least": 87, "builds_most": 101, "perplexity": 1.06,
             "sd": 0.01, "seeds": 10, "failed": 0, "within_2sd": "yes", "corpus": "time-machine"},
            {"protocol": "v1", "variant": "nn.rnn", "engine": "library", "quantity": "held out, mean of exp",
             "published": 7.27, "published_sd": 0.09, "builds_least": 11, "builds_most": 11, "perplexity": 7.55,
             "sd": 0.1, "seeds": 3, "failed": 1, "within_2sd": "no", "exp_of_mean": 7.5, "corpus": "time-machine"},
        ],
        "learning_rates": [
            {"protocol": "book", "corpus_sha256": SHA, "variant": variant, "lr": lr, "seeds": 2 * (lr < 16),
             "failed": 2 * (lr >= 4), "validation_perplexity": None if lr >= 4 else 6 + abs(lr - best) / 10,
             "chosen": lr == best}
            for variant, best in (("gru", 2.0), ("rnn", 1.0)) for lr in protocols.RATES["sgd"]
        ],
        "probes": [
            {"run": f"{variant}-{name}-{length}-{k}", "variant": variant, "engine": "loop", "capture": False,
             "precision": "ieee", "device": "cpu", "seed": k, "protocol": f"{name},num_steps={length}", "task": name,
             "length": length, "hidden": 32, "parameters": 4000, "tokens": 1000, "train_s": 1.0, "wall_s": 1.0,
             "score": None if (variant, k) == ("rnn", 2) else chance + (task.optimum - chance) * share,
             "score_is": task.score_is, "trivial": chance, "optimal": task.optimum,
             "environment": "e1", "started": "2025-11-01T09:00:00+00:00", "load": 0.1, "together": 2,
             "error": "diverged: the gradient is not a number" if (variant, k) == ("rnn", 2) else ""}
            for name in ("adding", "copy", "selective_copy", "counting") for length in (5, 20)
            for task in [TASKS[name]] for chance in [task.chance(length)]
            for variant, best in (("gru", 0.99), ("rnn", 0.0)) for k in range(3)
            for share in [best + float(random.normal(0, 0.002))]
        ],
        "tasks": [
            {"task": name, "length": 32, "variant": variant, "engine": "native", "precision": "ieee", "device": "cpu",
             "protocol": name, "hidden": 32, "parameters": 4000, "lr": 0.01, "rates_tried": 4, "rates_that_solve": 2,
             "rate_at_edge": variant == "rnn", "seeds": 10, "failed": 0, "solved": solved, "solved_share": solved / 10,
             "solved_low": 0.6915 if solved else 0.0, "solved_high": 1.0 if solved else 0.3085,
             "updates_median": 450 if solved else None, "updates_least": 300 if solved else None,
             "updates_most": 800 if solved else None, "budget": 2000, "threshold": 0.99, "score_is": "share",
             "score": 0.995 if solved else 0.22, "score_low": 0.99 if solved else 0.2,
             "score_high": 1.0 if solved else 0.24, "trivial": 0.19, "optimal": 1.0, "length_longer": 64,
             "score_longer": 0.99 if solved else 0.2, "score_longer_low": 0.98 if solved else 0.19,
             "score_longer_high": 1.0 if solved else 0.21, "trivial_longer": 0.18,
             "baseline": "" if variant == "gru" else "gru",
             "updates_ratio": 1.2 if variant == "gru:R=1" and solved else None,
             "updates_ratio_low": 0.9 if variant == "gru:R=1" and solved else None,
             "updates_ratio_high": 1.5 if variant == "gru:R=1" and solved else None,
             "p_holm": 0.3 if variant == "gru:R=1" and solved else None,
             "verdict": "" if variant == "gru" else "undecided" if solved else "fails", "error": ""}
            for name, fails in (("s3", {"rnn"}), ("table3", {"gru:R=1", "rnn"}))
            for variant in ("gru", "gru:R=1", "rnn") for solved in [0 if variant in fails else 10]
        ],
        "positions": [
            {"run": "", "variant": "gru", "engine": "loop", "device": "cpu", "protocol": "delayed_recall", "seed": seed,
             "origin": origin, "length": 64, "gate": gate, "position": k, "mean": float(k != 0) * most,
             "carrying": float(k != 0), "share": 0.25, "score": most}
            for origin, most, seeds in (("by hand", 1.0, 1), ("trained", 0.995, 3)) for seed in range(seeds)
            for gate in "ZR" for k in range(-5, 11)
        ],
        "claims": [
            {"claim": "one_gate", "source": "Zhou <et al.>", "url": "https://arxiv.org/abs/1603.09420",
             "read": "abstract", "sentence": "One gate is enough.", "verdict": "undecided",
             "prediction": f"mgu and {other} alike", "kind": "same", "task": "text", "variant": "mgu", "other": other,
             "outcome": "undecided", "evidence": evidence,
             "measure": "nats/char", "estimate": -0.01, "low": -0.03, "high": 0.01, "margin": 0.02, "seeds": 10,
             "failed": 0}
            for other, evidence in (("gru", ""), ("gru:R=1", "10 of 10 seeds against 0 of 10"),
                                    ("gru:Z=0", "10 of 10 seeds against 10 of 10, 450 updates against 800"))
        ],
        "axes": [
            {"axis": "hidden", "point": str(h), "setting": "", "variant": variant, "engine": "native", "device": "cpu",
             "protocol": f"quick,hidden={h}", "corpus": "time-machine", "corpus_sha256": SHA, "hidden": h, "lr": 2.0,
             "parameters": 40 * h, "seeds": 10, "failed": 0, "heldout_perplexity": 7.0, "heldout_low": 6.9,
             "heldout_high": 7.1, "family": 3, **({} if variant == "gru" else {
                 "baseline": "gru", "pairs": 10, "delta_nats": h / 1000, "delta_low": h / 1000 - 0.005,
                 "delta_high": h / 1000 + 0.005, "p_signflip": 2 / 1024, "p_holm": 6 / 1024,
                 "verdict": "equivalent" if h == 8 else "worse"}),
             **({"change_nats": 0.024, "change_low": 0.02, "change_high": 0.028, "change_p_holm": 6 / 1024}
                if variant == "rnn" and h == 32 else {})}
            for h in (8, 32) for variant in ("gru", "rnn")
        ],
        "questions": [
            {"question": question, "asks": asks, "setting": setting, "score_at": at, "variant": variant,
             "engine": "native", "device": "cpu", "protocol": "book", "corpus": "time-machine", "corpus_sha256": SHA,
             "hidden": 256, "lr": 4.0, "parameters": 225_000, "seeds": 10, "failed": 0, "heldout_perplexity": 7.0,
             "heldout_low": 6.9, "heldout_high": 7.1,
             **({} if variant == "gru" else {
                 "baseline": "gru", "pairs": 10, "delta_nats": delta, "delta_low": delta - 0.005,
                 "delta_high": delta + 0.005, "comparisons": 3, "p_holm": 6 / 1024,
                 "verdict": "worse" if delta > 0.02 else "equivalent"})}
            for question, asks, setting, at in (
                ("tuned", "Learning rates chosen", "rate=chosen", "end"),
                ("stopped_early", "Each at its best epoch", "rate=chosen", "best epoch"),
            )
            for variant, delta in (("gru", 0.0), ("gru:R=1", 0.001), ("gru:Z=0", 0.03), ("gru:Z=0,R=1", 0.05))
        ],
        "latency": [
            {"session": "latency-s1", "round": r, "label": variant, "variant": variant, "engine": engine_of(variant),
             "capture": False, "precision": "ieee", "device": "cpu", "protocol": own.label, "hidden": own.hidden,
             "block": block, "steps": 2000, "p50_us": us * (1 + r / 100), "p99_us": 2 * us * (1 + r / 100),
             "mean_us": 1.1 * us, "tokens_per_sec_batch": 5e6 / us, "step_ms": us / 3, "products_percent": 40.0,
             "pointwise_percent": 25.0, "head_percent": 15.0, "update_percent": 5.0, "python_percent": 15.0,
             "context_switches": 0, "cpu_per_wall": 1.0, "others_cpu": 0.0, "disturbed": False, "environment": "e1",
             "started": "2025-11-01T09:00:00+00:00"}
            for variant, us in (("rnn", 12.0), ("gru", 31.0)) for r in range(3) for block in range(2)
        ],
        "gates": [
            {**r, "gate": gate, "mean": 0.4 + k / 1000, "sd": 0.2, "shut": 0.1, "open": 0.05, "unit_sd": 0.1,
             **({"tau_10": 0.5, "tau_25": 1.0, "tau_50": 2.0, "tau_75": 4.0, "tau_90": 9.0} if gate == "Z" else {})}
            for k, (r, gate) in enumerate(learned)
        ],
        "reach": [
            {**r, "characters_back": t, "gradient_share": math.exp(-t / 4)} for r in done for t in (0, 1, 4, 16, 64)
        ],
        "heat": [
            {**heat, "gate": gate, "position": t, "character": letter, "unit": u, "value": (t + u) % 7 / 7}
            for gate in "ZR" for t, letter in enumerate("he said <b>") for u in range(3)
        ] if heat else [],
    }  # fmt: skip


def read(folder: Path) -> tables.Results:
    """The frames of a folder; a file that is not there, or holds nothing, is a frame with no rows."""

    def one(name: str) -> pd.DataFrame:
        path = folder / f"{name}.csv"
        if not path.exists() or not path.stat().st_size:
            return pd.DataFrame(columns=list(COLUMNS[name]))
        return pd.read_csv(path)

    return tables.Results(**{name: one(name) for name in COLUMNS})


def timed(
    verb: str, variants: Sequence[str], random: np.random.Generator, own: Protocol, rounds: int, failures: bool
) -> list[dict[str, object]]:
    """Three blocks a sample, every label once a round, the speed baseline a second time as `#2`."""
    fast = grids.SPEED_BASELINE if grids.SPEED_BASELINE in variants else grids.BASELINE
    weather = random.normal(0, 0.03, rounds)  # what all labels of a round share
    rows: list[dict[str, object]] = []
    for label in [*variants, f"{fast}#2"]:
        variant = label.split("#")[0]
        common = {"session": f"{verb}-s1", "verb": verb, "label": label, "control_of": fast if "#" in label else "",
                  "variant": variant, "engine": engine_of(variant),
                  "capture": False, "precision": "ieee", "device": "cpu", "protocol": own.label, "hidden": own.hidden,
                  "seeds": 1, "environment": "e1", "started": "2025-11-01T09:00:00+00:00"}  # fmt: skip
        if failures and variant == "nn.lstm":
            rows.append(common | {"round": 0, "error": "RuntimeError: out of memory"})
            continue
        for r in range(rounds):
            rate = SPEED.get(variant, 5e4) * math.exp(weather[r] + random.normal(0, 0.015))
            for block in range(3):
                block_rate = rate * math.exp([-0.01, 0.0, 0.01][block])
                rows.append(common | {
                    "round": r, "block": block, "steps": 20, "tokens_per_sec": block_rate, "first_step_ms": 80.0,
                    "step_ms": 1e3 * own.batch_size * own.num_steps / block_rate, "cpu_per_wall": 0.99, "load": 0.3,
                    "gflop": 1.4, "peak_gflops": 300.0, "copy_gib_per_s": 20.0, "percent_of_peak": block_rate / 3e3,
                    "peak_memory_mib": 40 + parameters(variant, own.hidden) / 1e4 + r / 10, "context_switches": 20,
                    "disturbed": r == 0 and block == 0,
                })  # fmt: skip
    return rows


def engine_of(variant: str) -> str:
    return "library" if variant.startswith("nn.") else "loop"


def parameters(variant: str, h: int, v: int = 28) -> int:
    """Of the whole network, output layer included."""
    block, head = v * h + h * h + h, h * v + v
    base, _, fixed = variant.partition(":")
    blocks = {"rnn": 1, "gru": 3, "gru_after": 3, "lstm": 4}.get(base.removeprefix("nn."), 3)
    extra = {"gru_after": h, "nn.gru": 3 * h, "nn.rnn": h, "nn.lstm": 4 * h}.get(base, 0)
    return (blocks - len([f for f in fixed.split(",") if f])) * block + extra + head


def frame(name: str, rows: list[dict[str, object]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(COLUMNS[name]))


def hash_of(variant: str, k: int) -> int:
    return zlib.crc32(f"{variant}-{k}".encode())
