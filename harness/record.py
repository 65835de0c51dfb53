"""RECORD: one file per training and per timed sample, written atomically; tables are derived from them.

Rule: this file and only this file knows where results lie and how they are spelt. No torch.

    results/runs/KEY.json     one training, whole: its run, its environment, its curve, or its error
    results/speed/KEY/N.json  one timed sample (a fresh process); KEY names the comparison
    results/grids/NAME.json   what `bench` or `ablate` last asked for
    results/*.csv             the tables people read, rebuilt from the above whenever asked

A missing value is an empty cell. A failed run is a row whose `error` says why.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

COLUMNS: dict[str, tuple[str, ...]] = {
    # one row a training
    "runs": (
        "run", "variant", "engine", "capture", "precision", "device", "seed", "protocol", "corpus",
        "corpus_sha256", "hidden", "parameters", "train_perplexity", "heldout_perplexity", "tokens",
        "train_s", "wall_s", "together", "sample", "environment", "started", "load", "error",
    ),
    # one row an evaluation of a training
    "curves": ("run", "variant", "engine", "protocol", "corpus_sha256", "seed", "epoch", "tokens",
               "train_perplexity", "heldout_perplexity"),
    # one row a timed block; a sample (fresh process) has several blocks
    "speed": (
        "session", "round", "label", "variant", "engine", "capture", "precision", "device", "protocol",
        "hidden", "seeds", "block", "steps", "tokens_per_sec", "step_ms", "first_step_ms",
        "peak_memory_mib", "peak_reserved_mib", "context_switches", "cpu_per_wall", "load", "disturbed",
        "kernels", "environment", "started", "error",
    ),
    # one row an order: what counting characters achieves on the same split; `floor` is the exact
    # perplexity of the source, where it is known (embedded text only)
    "anchors": ("protocol", "corpus", "corpus_sha256", "model", "heldout_perplexity"),
    # one row a protocol as it was run
    "protocols": (
        "protocol", "name", "train_characters", "heldout_characters", "batch_size", "num_steps",
        "hidden", "lr", "clip", "epochs", "init", "evaluations",
    ),
    # one row a machine and software state
    "environments": (
        "environment", "torch", "cuda", "driver", "device", "device_name", "cpu", "cores", "threads",
        "workers", "memory_gib", "matmul_precision", "cudnn_rnn_tf32", "cublas_workspace", "flush_denormal",
        "python", "platform", "package", "commit", "dirty",
    ),
}  # fmt: skip
TABLE = (
    "variant", "engine", "capture", "precision", "device", "protocol", "corpus", "corpus_sha256",
    "hidden", "parameters", "seeds", "failed", "train_perplexity", "train_sd", "heldout_perplexity",
    "heldout_low", "heldout_high", "baseline", "pairs", "delta_nats", "delta_low", "delta_high",
    "p_signflip", "p_holm", "p_better", "verdict", "tokens_per_sec", "tokens_per_sec_q1",
    "tokens_per_sec_q3", "speed_samples", "speed_baseline", "speed_ratio", "speed_ratio_low",
    "speed_ratio_high", "tokens_per_sec_all_seeds", "step_ms", "peak_memory_mib",
    "peak_reserved_mib", "error",
)  # fmt: skip
COLUMNS["bench"] = COLUMNS["ablate"] = TABLE


@dataclass(frozen=True)
class Results:
    """Every table of a results folder. A file that is not there is a frame with no rows."""

    bench: pd.DataFrame
    ablate: pd.DataFrame
    runs: pd.DataFrame
    curves: pd.DataFrame
    speed: pd.DataFrame
    anchors: pd.DataFrame
    protocols: pd.DataFrame
    environments: pd.DataFrame
