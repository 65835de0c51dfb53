"""Declare the tables and their columns once: name, type, unit, meaning.

CSV types, checks of files, docs/files.md and the types of analysis and report follow from this file. Pure data.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A column of a table. `type` is str, int, float or bool; `unit` is '' for texts, counts and ratios."""

    name: str
    type: type
    unit: str
    meaning: str


@dataclass(frozen=True)
class Table:
    """A CSV file: what one of its rows is, and its columns in order."""

    row: str
    columns: tuple[str, ...]


# A column has one meaning in every table, unless it is declared again as `table.column`.
_COLUMNS = (
    # what was trained or timed
    Column("run", str, "", "key of the training: hash of all that decides its outcome"),
    Column("variant", str, "", "cell, with the gates that are fixed: `gru:R=1`"),
    Column("engine", str, "", "implementation that ran it"),
    Column("capture", bool, "", "whether it ran as one CUDA graph"),
    Column("precision", str, "", "of float32 products: `ieee`, `tf32` or `bf16`"),
    Column("device", str, "", "`cpu` or `cuda`"),
    Column("cell", str, "", "place of a cell outside the package, as `--variants` takes it; else empty"),
    Column("seed", int, "", "seed of initial weights and of the order of the data"),
    Column("protocol", str, "", "name of the protocol with its changed fields, described in protocols.csv"),
    Column("corpus", str, "", "name of the text"),
    Column("corpus_sha256", str, "", "SHA-256 of the text"),
    Column("unknown_share", float, "", "share of the text's tokens outside the vocabulary"),
    Column("bits_per_character", float, "bits/character",
           "held-out loss by characters of the text, whatever its tokens are; a mean over seeds in bench.csv"),
    Column("characters_per_token", float, "characters", "mean length of a held-out token, white space before it too"),
    Column("hidden", int, "", "hidden units"),
    Column("lr", float, "", "learning rate"),
    Column("parameters", int, "", "trained numbers of the network, output layer included"),
    Column("environment", str, "", "machine and software, described in environments.csv"),
    Column("bits", str, "", "class of machine: two of one class train to the same bits; empty before it was recorded"),
    Column("started", str, "UTC", "when it began"),
    Column("load", float, "", "load average of the machine when it began"),
    Column("error", str, "", "why it failed; empty for success"),
    # a training
    Column("train_perplexity", float, "", "exp of the mean loss a token over the last training epoch"),
    Column("heldout_perplexity", float, "", "exp of the mean loss a token of held-out text"),
    Column("heldout_mean_exp", float, "", "mean over batches of exp of the loss, as the book's later edition reports"),
    Column("best_epoch", float, "", "epoch, of those evaluated, with the lowest validation loss (of a table: median)"),
    Column("best_perplexity", float, "", "held-out perplexity with the weights of that epoch (of a table: their mean)"),
    Column("tokens", int, "", "tokens trained on"),
    Column("train_s", float, "s", "time in training steps, shared by the seeds trained together"),
    Column("wall_s", float, "s", "time from start to end, shared by the seeds trained together"),
    Column("together", int, "", "how many seeds were trained side by side; empty on a cluster"),
    Column("sample", str, "", "text written by the trained network"),
    Column("unseen", str, "", "diagnostics that could not be had, and why"),
    Column("epoch", float, "", "passes over the training part so far"),
    Column("lesion", str, "", "gate held at a constant after training: `R=1`"),
    # gates of a trained network
    Column("gate", str, "", "name of the gate"),
    Column("mean", float, "", "mean value of the gate over held-out text"),
    Column("sd", float, "", "standard deviation over held-out text and units"),
    Column("shut", float, "", "share of values below 0.1"),
    Column("open", float, "", "share of values above 0.9"),
    Column("unit_sd", float, "", "standard deviation between the means of the units"),
    *(Column(f"tau_{q}", float, "characters", f"{q} % quantile over units of the time constant")
      for q in (10, 25, 50, 75, 90)),
    Column("characters_back", int, "characters", "distance between the loss and the state"),
    Column("gradient_share", float, "", "size of the gradient there, relative to that at the character of the loss"),
    Column("position", int, "characters", "place in the sentence"),
    Column("character", str, "", "the character read there"),
    Column("unit", int, "", "number of the hidden unit"),
    Column("value", float, "", "value of the gate"),
    # a timed block
    Column("session", str, "", "speed comparison: the same candidates, code and machine"),
    Column("verb", str, "", "command that timed it: `bench`, `ablate` or `sweep`"),
    Column("round", int, "", "number of the round; every candidate is timed once a round, in random order"),
    Column("label", str, "", "name of the candidate in its session"),
    Column("control_of", str, "", "candidate that this one repeats under another name (A/A control); empty for others"),
    Column("speed.seeds", int, "", "networks trained side by side in one program"),
    Column("block", int, "", "number of the block in its sample, a fresh process (of a repeated one, in all attempts)"),
    Column("steps", int, "", "training steps in the block"),
    Column("tokens_per_sec", float, "1/s", "characters trained on a second"),
    Column("step_ms", float, "ms", "time of a training step"),
    Column("first_step_ms", float, "ms", "time of the first step of the process"),
    Column("peak_memory_mib", float, "MiB", "peak of allocated memory"),
    Column("peak_reserved_mib", float, "MiB", "peak of memory reserved by torch's allocator (CUDA)"),
    Column("graph_mib", float, "MiB", "memory of the CUDA graph"),
    Column("graph_nodes", float, "", "nodes of the CUDA graph, kernels and copies, a training step"),
    Column("context_switches", int, "", "involuntary context switches"),
    Column("cpu_per_wall", float, "", "processor time of the process over elapsed time"),
    Column("others_cpu", float, "", "processors' worth of work by other processes"),
    Column("disturbed", bool, "", "whether other processes disturbed the block"),
    Column("kernels", str, "", "kernels that did the products"),
    Column("disagreement", float, "", "largest difference from the reference engine, in float64"),
    Column("repeat_difference", float, "", "largest difference between two runs of the same step"),
    # one step of one sequence, and the parts of a training step
    Column("p50_us", float, "us", "median time of one step of one sequence"),
    Column("p99_us", float, "us", "time within which 99 % of these steps end"),
    Column("mean_us", float, "us", "mean time of these steps"),
    Column("tokens_per_sec_batch", float, "1/s", "rate of reading a minibatch of the protocol, no training"),
    Column("latency.step_ms", float, "ms", "median time of a training step"),
    Column("products_percent", float, "%", "share of a training step in matrix products in time, one by one"),
    Column("pointwise_percent", float, "%", "share in all other operators in time"),
    Column("recurrence_percent", float, "%", "share in time where products and the rest are one call"),
    Column("head_percent", float, "%", "share in output layer, loss and their gradients"),
    Column("update_percent", float, "%", "share in clipping and the optimizer"),
    Column("python_percent", float, "%", "share between these, in Python and autograd"),
    Column("gflop", float, "GFLOP", "work of a training step"),
    Column("peak_gflops", float, "GFLOP/s", "rate of large products on the machine"),
    Column("copy_gib_per_s", float, "GiB/s", "rate of copies on the machine"),
    Column("node_gap_us", float, "us", "least time between two kernels of a CUDA graph"),
    Column("floor_ms", float, "ms", "lower bound on the time of a training step"),
    Column("percent_of_peak", float, "%", "rate of a step's arithmetic over that of large products"),
    # n-grams
    Column("model", str, "", "`k-gram`; `uniform`, guessing evenly; `floor`, the entropy of the source where known"),
    # a protocol
    Column("name", str, "", "name of the protocol before its fields were changed"),
    Column("train_characters", int, "characters", "length of the training part"),
    Column("heldout_characters", int, "characters", "length of the held-out part"),
    Column("batch_size", int, "", "sequences in a minibatch"),
    Column("num_steps", int, "characters", "length of a window, or of a task"),
    Column("clip", float, "", "norm at which gradients are clipped"),
    Column("epochs", int, "", "passes over the training part"),
    Column("init", str, "", "initial weights: `own`, `book` or `torch`"),
    Column("evaluations", int, "", "points of the curve"),
    Column("text", str, "", "preprocessing: `lines`, `whole`, `spaces` or `raw`"),
    Column("sampling", str, "", "`sequential` or random `windows`"),
    Column("validation_characters", int, "characters", "length of the validation part"),
    Column("rate", str, "", "learning rate: `given` or `chosen`"),
    Column("match", str, "", "what is equal between variants: `hidden` or `parameters`"),
    Column("update_bias", str, "", "initial bias of the update gate: `own`, `0`, `1` or `chrono`"),
    Column("max_vocabulary", int, "", "most tokens kept; 0 is all"),
    Column("protocols.tokens", str, "", "tokens of the text: `characters`, `bytes` of UTF-8 or `words`"),
    Column("case", str, "", "upper and lower case: `own` as `text` has it, `keep` or `lower`"),
    Column("punctuation", str, "", "all but letters and white space: `own` as `text` has it, `keep` or `drop`"),
    Column("embedding", int, "", "trained numbers that a token is read as; 0: one-hot"),
    Column("layers", int, "", "cells on top of each other"),
    Column("dropout", float, "", "share of the outputs between two layers that is set to 0 in training"),
    Column("optimizer", str, "", "`sgd`, `adam` or `adamw`"),
    Column("momentum", float, "", "of `sgd`: what is left of the gradients so far at each update"),
    Column("weight_decay", float, "", "times the weights: added to the gradient, or by `adamw` to the update"),
    Column("schedule", str, "", "of the learning rate: `constant`, `cosine` or `warmup`"),
    Column("warmup", int, "updates", "over which the learning rate rises at first"),
    Column("task", str, "", "name of the task; `text` for none"),
    Column("stop", str, "", "end of a training on a task: at the `end`, or once `solved`"),
    # a comparison
    Column("seeds", int, "", "trainings that ended well"),
    Column("failed", int, "", "trainings that failed; in no mean"),
    *(Column(f"{table}.train_perplexity", float, "", "geometric mean over seeds") for table in ("bench", "ablate")),
    *(Column(f"{table}.heldout_perplexity", float, "", "geometric mean over seeds") for table in ("bench", "ablate")),
    Column("train_sd", float, "", "standard deviation of the training perplexity over seeds"),
    Column("heldout_low", float, "", "lower end of the 95 % t interval of the held-out perplexity, at least 1"),
    Column("heldout_high", float, "", "upper end of it"),
    Column("heldout_iqm", float, "", "interquartile mean of the held-out perplexity"),
    Column("best_low", float, "", "lower end of the 95 % t interval of the perplexity at the best epoch, at least 1"),
    Column("best_high", float, "", "upper end of it"),
    Column("best_delta_nats", float, "nats/character", "as `delta_nats`, each seed's weights at its best epoch"),
    Column("best_delta_low", float, "nats/character", "lower end of its t interval"),
    Column("best_delta_high", float, "nats/character", "upper end of it"),
    Column("best_p_holm", float, "", "as `p_holm`, of `best_delta_nats`"),
    Column("best_verdict", str, "", "as `verdict`, of `best_delta_nats`; empty where nothing was validated"),
    Column("baseline", str, "", "variant that it is compared with; empty without a comparison"),
    Column("baseline_engine", str, "", "engine of the baseline's trainings in the pairs"),
    Column("pairs", int, "", "seeds that both have"),
    Column("delta_nats", float, "nats/character", "mean difference of log-perplexity by seed; above 0 is worse"),
    Column("delta_low", float, "nats/character", "lower end of the t interval of the difference"),
    Column("delta_high", float, "nats/character", "upper end of it"),
    Column("looks", int, "", "interim analyses planned; the level of each is divided by it"),
    Column("comparisons", int, "", "size of the Holm family"),
    Column("p_signflip", float, "", "p of the exact paired sign-flip test"),
    Column("p_holm", float, "", "p after Holm, and times `looks`"),
    Column("p_better", float, "", "share of pairs in which it is better than the baseline"),
    Column("p_better_low", float, "", "lower end of the exact 95 % interval of that share"),
    Column("p_better_high", float, "", "upper end of it"),
    Column("verdict", str, "", "`worse`, `better`, `equivalent` or `undecided`; of tasks also `fails`, `slower`, ..."),
    *(Column(f"{table}.tokens_per_sec", float, "1/s", "median over samples of one seed")
      for table in ("bench", "ablate")),
    Column("tokens_per_sec_q1", float, "1/s", "first quartile"),
    Column("tokens_per_sec_q3", float, "1/s", "third quartile"),
    Column("speed_session", str, "", "session that the speed is from"),
    Column("speed_samples", int, "", "fresh processes timed"),
    Column("speed_baseline", str, "", "label of the candidate that the speed is divided by"),
    Column("speed_ratio", float, "", "median of the rounds' ratios of tokens/sec"),
    Column("speed_ratio_low", float, "", "lower end of its interval, of at least 94 %"),
    Column("speed_ratio_high", float, "", "upper end of it"),
    Column("speed_verdict", str, "", "`faster`, `slower` or `cannot be told`"),
    Column("speed_noise", float, "", "ratio by which a candidate differs from its A/A control"),
    Column("speed_disturbed", int, "", "samples disturbed in every block"),
    Column("tokens_per_sec_all_seeds", float, "1/s", "rate of all seeds trained together; empty on a cluster"),
    # published perplexities
    Column("quantity", str, "", "what was published"),
    Column("published", float, "", "published perplexity, mean over builds"),
    Column("published_sd", float, "", "standard deviation over builds"),
    Column("builds_least", int, "", "fewest builds of the book that it is from"),
    Column("builds_most", int, "", "most builds"),
    Column("perplexity", float, "", "ours, mean over seeds"),
    Column("reproduce.sd", float, "", "standard deviation over seeds"),
    Column("within_2sd", str, "", "`yes` or `no`: within two published standard deviations"),
    Column("exp_of_mean", float, "", "ours as exp of the mean loss, where the published one is a mean of exp"),
    # a field that was given a list of values
    Column("axis", str, "", "field of the protocol that was given a list"),
    Column("point", str, "", "its value"),
    Column("setting", str, "", "values of the other fields that were given a list"),
    Column("origin", str, "", "`trained`, or `by hand`: weights that were written"),
    Column("positions.position", int, "steps", "steps after the marked one"),
    Column("positions.mean", float, "", "mean over units and sequences"),
    Column("carrying", float, "", "mean over those units and sequences that carry the symbol"),
    Column("share", float, "", "share of them"),
    Column("claim", str, "", "name of the claim"),
    Column("source", str, "", "who published it"),
    Column("url", str, "", "address of the source"),
    Column("read", str, "", "part of the source that the prediction was written from"),
    Column("sentence", str, "", "the claim in our words"),
    Column("claims.verdict", str, "", "of the whole claim: `reproduced`, `contradicted` or `undecided`"),
    Column("prediction", str, "", "outcome that the claim predicts, in words"),
    Column("kind", str, "", "kind of comparison, as experiments/claims.py has it"),
    Column("other", str, "", "variant it is compared with; empty where there is none"),
    Column("outcome", str, "", "of this comparison: `reproduced`, `contradicted` or `undecided`"),
    Column("evidence", str, "", "how many seeds solved the task"),
    Column("measure", str, "", "what the estimate is of"),
    Column("estimate", float, "", "what was found"),
    Column("low", float, "", "lower end of its 95 % interval"),
    Column("high", float, "", "upper end of its 95 % interval"),
    Column("margin", float, "", "bound that was fixed beforehand"),
    Column("question", str, "", "name of the question, as experiments/questions.py has it"),
    Column("asks", str, "", "the question in words"),
    Column("questions.setting", str, "", "fields of the protocol that differ from `quick`"),
    Column("score_at", str, "", "weights that are scored: at the `end`, or each training's at its `best epoch`"),
    *(Column(f"questions.{name}", float, "", meaning) for name, meaning in (
        ("heldout_perplexity", "geometric mean over seeds, of the weights that are scored"),
    )),
    Column("change_nats", float, "nats/character", "difference at the last point less that at the first, by seed"),
    Column("change_low", float, "nats/character", "lower end of its 95 % t interval"),
    Column("change_high", float, "nats/character", "upper end of it"),
    Column("change_p_holm", float, "", "p of that change after Holm"),
    # tasks
    Column("length", int, "steps", "length of the task"),
    Column("score", float, "", "on sequences never trained on; a mean over seeds in tasks.csv"),
    Column("score_is", str, "", "what the score is"),
    Column("trivial", float, "", "score without memory"),
    Column("optimal", float, "", "best possible score"),
    Column("threshold", float, "", "score at which the task counts as solved"),
    Column("budget", int, "updates", "most updates"),
    Column("solved_after", int, "updates", "when it was solved; empty where it was not"),
    Column("length_longer", int, "steps", "longer length that is only tested"),
    Column("score_longer", float, "", "score at that length"),
    Column("trivial_longer", float, "", "score without memory at that length"),
    Column("linear", float, "", "score of a linear model of all inputs; empty for tasks that are made up"),
    Column("rates_tried", int, "", "learning rates tried"),
    Column("rates_that_solve", int, "", "of these, how many solve the task with every seed"),
    Column("rate_at_edge", bool, "", "whether the chosen rate is the least or the largest tried"),
    Column("solved", int, "", "seeds that solved the task"),
    Column("solved_share", float, "", "share of all seeds that solved it"),
    Column("solved_low", float, "", "lower end of the exact 95 % interval of that share"),
    Column("solved_high", float, "", "upper end of it"),
    Column("updates_median", float, "updates", "median of the seeds that solved it"),
    Column("updates_least", float, "updates", "least of them"),
    Column("updates_most", float, "updates", "most of them"),
    Column("score_low", float, "", "lower end of the 95 % t interval of the score"),
    Column("score_high", float, "", "upper end of it"),
    Column("score_longer_low", float, "", "lower end of the 95 % t interval at the longer length"),
    Column("score_longer_high", float, "", "upper end of it"),
    Column("updates_ratio", float, "", "updates over the baseline's, geometric mean over pairs"),
    Column("updates_ratio_low", float, "", "lower end of its 95 % t interval"),
    Column("updates_ratio_high", float, "", "upper end of it"),
    # learning rates
    Column("validation_perplexity", float, "", "exp of the mean loss on that part; empty where a seed failed"),
    Column("chosen", bool, "", "whether this rate was chosen"),
    # a machine and its software, as texts
    *(Column(name, str, unit, meaning) for name, unit, meaning in (
        ("torch", "", "version"), ("cuda", "", "version"), ("driver", "", "version"),
        ("device_name", "", "name of the GPU or processor"), ("cpu", "", "name of the processor"),
        ("cores", "", "processors that may be used"), ("threads", "", "threads of torch"),
        ("thread_settings", "", "OMP_*, GOMP_*, KMP_*, MKL_* and OPENBLAS_* of the environment"),
        ("memory_gib", "GiB", "memory of the machine"), ("matmul_precision", "", "torch's setting"),
        ("cudnn_rnn_tf32", "", "torch's setting"),
        ("tiles", "", "digest of the GPU kernel's measured tiles; empty: chosen without"),
        ("cublas_workspace", "", "CUBLAS_WORKSPACE_CONFIG"),
        ("flush_denormal", "", "whether denormal numbers are taken as 0"),
        ("keeps_pages", "", "whether freed memory is kept by the process"),
        ("deterministic", "", "torch's setting"), ("python", "", "version"), ("platform", "", "operating system"),
        ("package", "", "versions of this package and its libraries"), ("commit", "", "of this repository"),
        ("dirty", "", "whether the code had changes that were not committed"),
    )),
)  # fmt: skip

_HOW = ("variant", "engine", "capture", "precision", "device")
_COMPARISON = Table(
    "variant x engine: the answer", (
        *_HOW, "protocol", "corpus", "corpus_sha256",
        "cell", "unknown_share", "hidden", "lr", "parameters", "seeds", "failed", "train_perplexity", "train_sd",
        "heldout_perplexity", "heldout_low", "heldout_high", "heldout_iqm", "bits_per_character",
        "characters_per_token", "baseline", "baseline_engine", "pairs",
        "delta_nats", "delta_low", "delta_high", "looks", "comparisons", "p_signflip", "p_holm",
        "p_better", "p_better_low", "p_better_high", "verdict",
        "best_epoch", "best_perplexity", "best_low", "best_high", "best_delta_nats", "best_delta_low",
        "best_delta_high", "best_p_holm", "best_verdict",
        "tokens_per_sec", "tokens_per_sec_q1", "tokens_per_sec_q3", "speed_session", "speed_samples", "speed_baseline",
        "speed_ratio", "speed_ratio_low", "speed_ratio_high", "speed_verdict", "speed_noise", "speed_disturbed",
        "tokens_per_sec_all_seeds", "step_ms", "percent_of_peak", "peak_memory_mib", "peak_reserved_mib", "error",
    ),
)  # fmt: skip
TABLES = {
    "bench": _COMPARISON,
    "ablate": _COMPARISON,
    "runs": Table("variant x seed: one training", (
        "run", *_HOW, "cell", "seed", "protocol", "corpus", "corpus_sha256",
        "unknown_share", "hidden", "lr", "parameters", "train_perplexity", "heldout_perplexity", "heldout_mean_exp",
        "bits_per_character", "characters_per_token", "best_epoch", "best_perplexity",
        "tokens", "train_s", "wall_s", "together",
        "sample", "environment", "bits", "started", "load", "unseen", "error",
    )),
    "curves": Table("variant x seed x evaluation, of the validation part where there is one", (
        "run", "variant", "engine", "protocol", "corpus_sha256", "seed", "epoch", "tokens",
        "train_perplexity", "heldout_perplexity",
    )),
    "lesions": Table("variant x seed x gate and value: a trained network, that gate held only after training", (
        "run", *_HOW, "protocol", "corpus_sha256", "seed", "lesion", "heldout_perplexity", "error",
    )),
    "gates": Table("variant x seed x gate: what it does over held-out text", (
        "run", *_HOW, "protocol", "corpus_sha256", "seed", "gate", "mean", "sd", "shut", "open", "unit_sd",
        "tau_10", "tau_25", "tau_50", "tau_75", "tau_90", "error",
    )),
    "reach": Table("variant x seed x characters back: how far gradients reach; above 1 one has grown", (
        "run", "variant", "engine", "protocol", "corpus_sha256", "seed", "characters_back", "gradient_share",
    )),
    "heat": Table("gate x character x unit: one network's gates over a sentence", (
        "run", "variant", "protocol", "corpus_sha256", "seed", "gate", "position", "character", "unit", "value",
    )),
    "positions": Table("network x gate x step relative to the one that delayed_recall marks: the gate's mean", (
        "run", "variant", "engine", "device", "protocol", "seed", "origin", "length", "gate", "position", "mean",
        "carrying", "share", "score",
    )),
    "speed": Table("one timed block; a sample (fresh process) has several", (
        "session", "verb", "round", "label", "control_of", *_HOW, "protocol", "hidden", "seeds", "block", "steps",
        "tokens_per_sec", "step_ms", "first_step_ms", "peak_memory_mib", "peak_reserved_mib", "graph_mib",
        "graph_nodes", "context_switches", "cpu_per_wall", "others_cpu", "load", "disturbed", "kernels", "disagreement",
        "repeat_difference", "gflop", "peak_gflops", "copy_gib_per_s", "node_gap_us", "floor_ms", "percent_of_peak",
        "environment", "started", "error",
    )),
    "latency": Table("one block of single steps at batch 1; a sample (fresh process) has several", (
        "session", "round", "label", "control_of", *_HOW, "protocol", "hidden", "block", "steps", "p50_us", "p99_us",
        "mean_us", "tokens_per_sec_batch", "step_ms", "products_percent", "pointwise_percent", "recurrence_percent",
        "head_percent", "update_percent", "python_percent", "context_switches", "cpu_per_wall", "others_cpu",
        "disturbed", "environment", "started", "error",
    )),
    "reproduce": Table("a published perplexity, and ours beside it", (
        "protocol", "variant", "engine", "quantity", "published", "published_sd", "builds_least", "builds_most",
        "perplexity", "sd", "seeds", "failed", "within_2sd", "exp_of_mean", "corpus",
    )),
    "axes": Table("value of a field that was given a list x variant: its difference to the baseline there", (
        "axis", "point", "setting", "variant", "engine", "device", "protocol", "corpus", "corpus_sha256", "hidden",
        "lr", "parameters", "seeds", "failed", "heldout_perplexity", "heldout_low", "heldout_high", "baseline", "pairs",
        "delta_nats", "delta_low", "delta_high", "p_signflip", "p_holm", "comparisons", "verdict", "change_nats",
        "change_low", "change_high", "change_p_holm", "error",
    )),
    "claims": Table("comparison that a claim of the literature predicts: what came of it", (
        "claim", "source", "url", "read", "sentence", "verdict", "prediction", "kind", "task", "variant", "other",
        "outcome", "evidence", "measure", "estimate", "low", "high", "margin", "seeds", "failed",
    )),
    "questions": Table("question of a reviewer x variant: whether the difference to the baseline stands", (
        "question", "asks", "setting", "score_at", "variant", "engine", "device", "protocol", "corpus", "corpus_sha256",
        "hidden", "lr", "parameters", "seeds", "failed", "heldout_perplexity", "heldout_low", "heldout_high",
        "baseline", "pairs", "delta_nats", "delta_low", "delta_high", "comparisons", "p_holm", "verdict", "error",
    )),
    "probes": Table("task x length x variant x seed: one training on a task", (
        "run", *_HOW, "seed", "protocol", "task", "length", "hidden", "lr", "parameters", "score", "score_is",
        "trivial", "optimal", "threshold", "budget", "solved_after", "length_longer", "score_longer",
        "trivial_longer", "linear", "tokens", "train_s", "wall_s", "together", "environment", "bits", "started", "load",
        "error",
    )),
    "tasks": Table("task x length x variant: how many seeds solve it, after how many updates", (
        "task", "length", "variant", "engine", "precision", "device", "protocol", "hidden", "parameters", "lr",
        "rates_tried", "rates_that_solve", "rate_at_edge", "seeds", "failed", "solved", "solved_share", "solved_low",
        "solved_high", "updates_median", "updates_least", "updates_most", "budget", "threshold", "score_is", "score",
        "score_low", "score_high", "trivial", "optimal", "length_longer", "score_longer", "score_longer_low",
        "score_longer_high", "trivial_longer", "linear", "baseline", "updates_ratio", "updates_ratio_low",
        "updates_ratio_high", "p_holm", "verdict", "error",
    )),
    "learning_rates": Table("variant x learning rate that was tried for it", (
        "protocol", "corpus_sha256", "variant", "lr", "seeds", "failed", "validation_perplexity", "solved",
        "updates_median", "score", "chosen",
    )),
    "anchors": Table("n-gram order: what counting characters achieves on the same split", (
        "protocol", "corpus", "corpus_sha256", "model", "heldout_perplexity",
    )),
    "protocols": Table("what a cell `protocol` of the others stands for", (
        "protocol", "name", "train_characters", "heldout_characters", "batch_size", "num_steps",
        "hidden", "lr", "clip", "epochs", "init", "evaluations", "text", "sampling", "validation_characters", "rate",
        "match", "update_bias", "max_vocabulary", "task", "stop", "layers", "dropout", "tokens", "case", "punctuation",
        "embedding",
        "optimizer", "momentum", "weight_decay", "schedule", "warmup",
    )),
    "environments": Table("what a cell `environment` of the others stands for, as texts", (
        "environment", "torch", "cuda", "driver", "device", "device_name", "cpu", "cores", "threads",
        "thread_settings", "memory_gib", "matmul_precision", "cudnn_rnn_tf32", "tiles", "cublas_workspace",
        "flush_denormal", "keeps_pages", "deterministic", "python", "platform", "package", "commit", "dirty", "bits",
    )),
}  # fmt: skip
COLUMNS = {name: table.columns for name, table in TABLES.items()}
_KNOWN = {column.name: column for column in _COLUMNS}


def column(table: str, name: str) -> Column:
    """The column of that name in that table."""
    return _KNOWN.get(f"{table}.{name}") or _KNOWN[name]


def names(table: str, *types: type) -> list[str]:
    """The columns of a table that have one of these types, in order."""
    return [name for name in COLUMNS[table] if column(table, name).type in types]
