"""One training step by everything that can do it: python -m tests.peers FILE.csv [SIZE ...], drawn as FILE.svg

Forward, loss, backward, clip and SGD of one seed, characters of a vocabulary of 28, float32. Steps are interleaved in
one process, in random order; a ratio is the median of ratios of a round, to torch's module of the same kind. Time is
the processor's, so what else runs counts less; with more than one thread it is the wall's. `compile_s` is the first
step's, of all processors and of compilers too, from empty caches. What FILE has is not run again. PEERS="lstm jax"
names other cells, and peers that cost more: compile (minutes for the first step, PATIENCE=600 at most), jax (`pip
install jax` beside this package). THREADS=2 for another number.
"""

from __future__ import annotations

import csv
import functools
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import variants
from harness.run import machine
from variants.cell import Cell, State
from variants.engines import loop
from variants.model import Model
from variants.outside import resolve

SIZES = {"quick": (32, 16, 32), "classic": (32, 35, 256), "book": (32, 64, 128)}  # n, T, h
NEWCOMER = "tests/support/newcomers.py:Highway"  # three gates, by somebody who knows nothing of engines
CELLS = ("gru", "lstm", "rnn", "gru_after", "mgu", "janet", "min_gru", "ligru", NEWCOMER)
COMPILED = ("gru", "lstm", NEWCOMER)  # by torch.compile: each takes minutes
COLUMNS = ("size", "cell", "peer", "threads", "clock", "step_ms", "compile_s", "times_nn", "rounds", "torch", "note")
VOCABULARY, LR, CLIP, ROUNDS = 28, 0.01, 1.0, 15
PATIENCE_S = int(os.environ.get("PATIENCE", "600"))
ONEDNN = {"nn.rnn": 1, "nn.lstm": 2, "nn.gru": 3}  # as aten::mkldnn_rnn_layer numbers them
Step = Callable[[], object]


def trained(variant: str, engine: str, size: str, change: Callable[[Model], None] = lambda model: None) -> Step:
    n, T, h = SIZES[size]
    model = Model(variant, VOCABULARY, h, [0], "torch", engine=engine)
    change(model)
    data = torch.randint(VOCABULARY, (T + 1, 1, n), generator=torch.Generator().manual_seed(0))
    state = model.cell.begin(n)

    def step() -> None:
        nonlocal state
        _, _, state = model.learn(data[:-1], data[1:], state, LR, CLIP)

    return step


def compile_loop(model: Model) -> None:
    """All characters one graph."""
    model.unroll = torch.compile(loop.steps)


def compile_step(model: Model) -> None:
    """One character a graph, called T times from Python: what can be compiled in a minute at any T."""
    model.unroll, model.cell.step = loop.steps, torch.compile(model.cell.step)


def use_onednn(model: Model) -> None:
    """oneDNN's layer, by torch's only way to it: nn.LSTM takes it by itself."""
    mode = ONEDNN[vars(type(model.cell))["name"]]

    def unroll(cell: Cell, X: Tensor, state: State) -> tuple[Tensor, State]:
        hot, (H, C) = cell.one_hot(X)[:, 0], (state[0][0], state[-1][0])
        weights = cell.parameters()  # of the input, of the state, and both biases
        h, how = cell.h, (1, True, False, False, True)
        Y, *after, _ = torch.ops.aten.mkldnn_rnn_layer(hot, *weights, H, C, False, [], mode, h, *how)
        return Y[:, None], tuple(x.view(1, -1, h) for x in after[: cell.states])

    model.unroll = unroll


def by_jax(variant: str, size: str) -> Step:
    """`lax.scan` over the very text of `step`: jax.numpy has the operators, and is given torch's names."""
    import jax
    import jax.numpy as jnp

    n, T, h = SIZES[size]
    cell = variants.get(variant)(VOCABULARY, h, 1)
    functions = {"sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh, "relu": jax.nn.relu}
    module = sys.modules[type(cell).__module__]
    torchs = {name: vars(module)[name] for name in functions.keys() & vars(module).keys()}
    names = [name for name, _ in cell.named_parameters()]
    weights = {name: jnp.asarray(w.detach()[0].numpy() * 0 + 0.01) for name, w in cell.named_parameters()}
    weights |= {"W_hq": jnp.zeros((h, VOCABULARY)), "b_q": jnp.zeros((1, VOCABULARY))}
    X = jax.random.randint(jax.random.key(0), (T + 1, n), 0, VOCABULARY)

    def loss(weights: Any, state: Any) -> Any:
        for name in names:
            cell.__dict__[name] = weights[name]

        def one(state: Any, X_t: Any) -> Any:
            after = cell.step(jax.nn.one_hot(X_t, VOCABULARY), *state)
            after = after if isinstance(after, tuple) else (after,)
            return after, after[0]

        state, H = jax.lax.scan(one, state, X[:-1])
        logits = jax.nn.log_softmax(H @ weights["W_hq"] + weights["b_q"])
        return -jnp.take_along_axis(logits, X[1:, :, None], -1).mean(), state

    def train(weights: Any, state: Any) -> Any:
        gradients, state = jax.grad(loss, has_aux=True)(weights, state)
        norm = jnp.sqrt(sum((g * g).sum() for g in gradients.values()))
        step = LR * jnp.minimum(1, CLIP / norm)
        return {k: w - step * gradients[k] for k, w in weights.items()}, state

    run = jax.jit(train, donate_argnums=(0, 1))
    held: list[Any] = [weights, tuple(jnp.zeros((n, h)) for _ in range(cell.states))]

    def step() -> None:
        held[:] = run(*held)
        jax.block_until_ready(held)

    vars(module).update({name: functions[name] for name in torchs})
    try:
        step()  # here alone `step` is run, on JAX's symbols
    finally:
        vars(module).update(torchs)
    return step


def patient(make: Callable[[], Step]) -> tuple[Step, float]:
    """A step that has been made once, and what that took of all processors, compilers included. TimeoutError: long."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"no first step within {PATIENCE_S} s of the processor")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, PATIENCE_S)
    begun = sum(os.times()[:4])
    try:
        step = make()
        step()
        return step, sum(os.times()[:4]) - begun
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def peers(cell: str, size: str, more: set[str]) -> dict[str, Callable[[], Step]]:
    """The ways to do a step of `cell`, torch's module first."""
    base = "nn.lstm" if variants.get(cell).states == 2 else "nn.gru"
    can = [engine for engine, refusal in variants.refusals(cell).items() if not refusal]
    makes: dict[str, Callable[[], Step]] = {base: functools.partial(trained, base, "library", size)}
    makes |= {engine: functools.partial(trained, cell, engine, size) for engine in can}
    if f"nn.{cell}" in ONEDNN:
        makes["onednn"] = functools.partial(trained, f"nn.{cell}", "library", size, use_onednn)
    if "compile" in more:
        makes["torch.compile"] = functools.partial(trained, cell, "loop", size, compile_loop)
        makes["torch.compile, step"] = functools.partial(trained, cell, "loop", size, compile_step)
    if "jax" in more:
        makes["jax lax.scan"] = functools.partial(by_jax, cell, size)
    return makes


def timed(makes: dict[str, Callable[[], Step]], each: int, clock: Callable[[], float]) -> list[dict[str, Any]]:
    """A row a peer: `each` steps a round."""
    steps, first, notes = dict[str, Step](), dict[str, float](), dict[str, str]()
    for name, make in makes.items():
        if name.startswith("torch.compile"):
            torch._dynamo.reset()
        try:
            steps[name], first[name] = patient(make)
        except Exception as error:  # a peer that cannot is a row that says so
            notes[name] = " ".join(f"{type(error).__name__}: {error}".split())[:160]
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(-1, ROUNDS):  # the first to warm up
        for name in random.Random(number).sample(list(steps), len(steps)):
            begun = clock()
            for _ in range(each):
                steps[name]()
            if number >= 0:
                taken[name].append(1000 * (clock() - begun) / each)
    base, rows = next(iter(makes)), list[dict[str, Any]]()
    for name in makes:
        row = dict.fromkeys(COLUMNS, "") | {"peer": name, "clock": clock.__name__, "torch": torch.__version__}
        row["note"] = notes.get(name, "")
        if name in steps:
            ratios = [a / b for a, b in zip(taken[base], taken[name], strict=True)]
            row |= {"step_ms": f"{statistics.median(taken[name]):.4g}", "compile_s": f"{first[name]:.3g}",
                    "rounds": str(ROUNDS), "times_nn": f"{statistics.median(ratios):.3g}"}  # fmt: skip
        rows.append(row)
    return rows


def place(row: dict[str, Any]) -> tuple[int, int, int]:
    cell = row["cell"]
    return int(row["threads"]), [*SIZES].index(row["size"]), CELLS.index(cell) if cell in CELLS else len(CELLS)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Times as fast as torch's module, a panel a size, a line a cell, a mark a peer; one thread."""
    from matplotlib import pyplot as plt

    mine = [row for row in rows if row["threads"] == "1" and row["times_nn"] and not row["peer"].startswith("nn.")]
    kinds = list(dict.fromkeys(row["peer"] for row in mine))
    cells = list(dict.fromkeys(row["cell"] for row in sorted(mine, key=place)))
    sizes = [size for size in SIZES if any(row["size"] == size for row in mine)]
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "peers", "font.size": 9}):
        figure, panels = plt.subplots(1, len(sizes), figsize=(9.5, 3.4), sharey=True, squeeze=False)
        for panel, size in zip(panels[0], sizes, strict=True):
            for kind, mark in zip(kinds, "os^vDP*X", strict=False):
                some = [row for row in mine if (row["size"], row["peer"]) == (size, kind)]
                at = [cells.index(row["cell"]) for row in some]
                panel.plot([float(row["times_nn"]) for row in some], at, mark, label=kind, markersize=5, alpha=0.8)
            panel.axvline(1, color="0.6", linewidth=0.8)
            panel.set(xscale="log", title="{}: n {}, T {}, h {}".format(size, *SIZES[size]))
            panel.set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
            panel.grid(axis="both", color="0.9")
        panels[0][0].set_yticks(range(len(cells)), cells)
        panels[0][0].invert_yaxis()
        figure.supxlabel("a training step, times as fast as torch's module (1)", y=0.1)
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc="lower center", ncols=len(kinds), frameon=False)
        figure.tight_layout(rect=(0, 0.06, 1, 1))
        figure.savefig(path, metadata={"Date": None})


def main() -> int:
    if len(sys.argv) < 2:
        print("error: name the file: python -m tests.peers peers.csv", file=sys.stderr)
        return 2
    path, sizes = Path(sys.argv[1]), sys.argv[2:] or list(SIZES)
    named, threads = os.environ.get("PEERS", "").split(), int(os.environ.get("THREADS", "1"))
    machine.configure_process(threads, "ieee")
    clock = time.process_time if threads == 1 else time.perf_counter
    rows: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    newcomer, more = resolve([NEWCOMER]), {name for name in named if name in ("compile", "jax")}
    compiled = resolve(COMPILED)
    with tempfile.TemporaryDirectory() as caches:
        os.environ |= {"XDG_CACHE_HOME": caches, "TORCHINDUCTOR_CACHE_DIR": f"{caches}/inductor"}
        for size in sizes:
            for cell in resolve([name for name in named if name not in more] or CELLS):
                label = "newcomer" if cell in newcomer else cell
                own = {"size": size, "cell": label, "threads": str(threads)}
                makes = peers(cell, size, more if cell in compiled else more - {"compile"})
                for row in rows:  # what took too long on one thread does on two
                    if row["size"] == size and row["cell"] == label and row["note"].startswith("TimeoutError"):
                        makes.pop(row["peer"], None)
                mine = [row for row in rows if all(row[key] == value for key, value in own.items())]
                if makes.keys() <= {row["peer"] for row in mine}:
                    continue
                found = [row | own for row in timed(makes, 20 if size == "quick" else 2, clock)]
                rows = [row for row in rows if row not in mine or row["peer"] not in makes] + found
                rows.sort(key=place)
                with path.with_suffix(".new").open("w", newline="") as file:
                    out = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                    out.writeheader()
                    out.writerows(rows)
                path.with_suffix(".new").replace(path)
    draw(rows, path.with_suffix(".svg"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
