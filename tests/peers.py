"""One training step by everything that can do it: python -m tests.peers [SIZE ...] >peers.csv

Forward, loss, backward, clip and SGD of one seed, characters of a vocabulary of 28, float32. Steps are interleaved in
one process, in random order; a ratio is the median of ratios of a round, to torch's module of the same kind. Time is
the processor's, so what else runs counts less; with more than one thread it is the wall's. PEERS="lstm jax" names
other cells, and peers that want an environment of their own: compile (minutes for the first step), jax (`pip install
jax` beside this package). THREADS=2 for another number.
"""

from __future__ import annotations

import csv
import functools
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import variants
from harness.run import machine
from variants.engines import loop
from variants.model import Model
from variants.outside import resolve

SIZES = {"classic": (32, 35, 256), "quick": (32, 16, 32), "book": (32, 64, 128)}  # n, T, h
NEWCOMER = "tests/support/newcomers.py:Highway"  # three gates, by somebody who knows nothing of engines
CELLS = ("gru", "lstm", "rnn", "gru_after", "mgu", "janet", "min_gru", "ligru", NEWCOMER)
COLUMNS = ("size", "cell", "peer", "threads", "clock", "step_ms", "first_step_s", "times_nn", "rounds", "torch")
VOCABULARY, LR, CLIP, ROUNDS = 28, 0.01, 1.0, 15
Step = Callable[[], object]


def trained(variant: str, engine: str, size: str, compiled: bool = False) -> Step:
    n, T, h = SIZES[size]
    model = Model(variant, VOCABULARY, h, [0], "torch", engine=engine)
    if compiled:
        model.unroll = torch.compile(loop.steps)
    data = torch.randint(VOCABULARY, (T + 1, 1, n), generator=torch.Generator().manual_seed(0))
    state = model.cell.begin(n)

    def step() -> None:
        nonlocal state
        _, _, state = model.learn(data[:-1], data[1:], state, LR, CLIP)

    return step


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

    run = jax.jit(train)
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


def main() -> int:
    sizes, named = sys.argv[1:] or ["quick", "classic"], os.environ.get("PEERS", "").split()
    threads = int(os.environ.get("THREADS", "1"))
    machine.configure_process(threads, "ieee")
    clock = time.process_time if threads == 1 else time.perf_counter
    out = csv.DictWriter(sys.stdout, COLUMNS)
    out.writeheader()
    newcomer = resolve([NEWCOMER])
    for size in sizes:
        for cell in resolve([name for name in named if name not in ("compile", "jax")] or CELLS):
            base = "nn.lstm" if variants.get(cell).states == 2 else "nn.gru"
            can = [engine for engine, refusal in variants.refusals(cell).items() if not refusal]
            makes: dict[str, Callable[[], Step]] = {base: functools.partial(trained, base, "library", size)}
            makes |= {engine: functools.partial(trained, cell, engine, size) for engine in can}
            if "compile" in named:
                makes["torch.compile"] = functools.partial(trained, cell, "loop", size, True)
            if "jax" in named:
                makes["jax lax.scan"] = functools.partial(by_jax, cell, size)
            steps, first = {}, {}
            for name, make in makes.items():
                begun = time.perf_counter()
                try:
                    steps[name] = make()
                    steps[name]()
                except (AttributeError, ImportError, TypeError) as error:  # a cell whose text JAX does not read
                    print(f"{cell}: {name}: {error}"[:200], file=sys.stderr)
                    steps.pop(name, None)
                first[name] = time.perf_counter() - begun
            taken: dict[str, list[float]] = {name: [] for name in steps}
            each = 20 if size == "quick" else 2
            for number in range(-1, ROUNDS):  # the first to warm up
                for name in random.Random(number).sample(list(steps), len(steps)):
                    begun = clock()
                    for _ in range(each):
                        steps[name]()
                    if number >= 0:
                        taken[name].append(1000 * (clock() - begun) / each)
            for name, times in taken.items():
                ratios = [a / b for a, b in zip(taken[base], times, strict=True)]
                out.writerow({
                    "size": size, "cell": "newcomer" if cell in newcomer else cell, "peer": name,
                    "threads": threads, "clock": clock.__name__,
                    "step_ms": f"{statistics.median(times):.4g}", "first_step_s": f"{first[name]:.3g}",
                    "rounds": ROUNDS, "times_nn": f"{statistics.median(ratios):.3g}",
                    "torch": torch.__version__,
                })  # fmt: skip
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
