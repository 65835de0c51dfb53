"""How long do forward, forward and backward, and a whole training step take? `make speed`; no part of `make test`.

Rule: the clock sees the work alone. Model and data are there before it starts, CUDA is synchronised at both ends.
One process times everything in turn, so this finds what a change made slower; ratios to publish are `make bench`'s.
VARIANTS, PROTOCOL, DEVICE, SET and INIT choose, from the environment, as for `make bench`; one seed.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import variants
from harness.experiments import grids, protocols
from harness.experiments.protocols import Protocol
from harness.run.executors.local import cores
from harness.run.machine import configure_process
from harness.run.progress import clock
from variants import registry
from variants.model import Model

ROUNDS, ROUND_S, WARM_ROUNDS = 20, 0.05, 2
VOCABULARY = 28  # the book's
PARTS = ("forward", "forward+backward", "step")


def asked() -> tuple[list[str], Protocol, str]:
    """Variants, protocol and device of the environment. ValueError, in one line, names what is wrong with them."""
    names = [variants.canonical(v) for v in os.environ.get("VARIANTS", "").split() or grids.BENCH]
    init = os.environ.get("INIT")
    settings = [*os.environ.get("SET", "").split(), *([f"init={init}"] if init else [])]
    device = os.environ.get("DEVICE") or "auto"
    if device not in ("cpu", "cuda", "auto"):
        raise ValueError(registry.unknown("device", device, ("cpu", "cuda", "auto")))
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"no device 'cuda': torch {torch.__version__} sees no GPU; give cpu or auto")
    device = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    return (
        list(dict.fromkeys(names)),
        protocols.protocol(os.environ.get("PROTOCOL") or "classic").override(settings),
        device,
    )


try:
    VARIANTS, PROTOCOL, DEVICE = asked()
except ValueError as error:
    if __name__ != "__main__":
        raise
    print(f"error: {error}", file=sys.stderr)  # one line, before pytest has a say
    sys.exit(2)


CASES = [
    (variant, engine)
    for variant in VARIANTS
    for engine, refusal in variants.refusals(variant, DEVICE, PROTOCOL.hidden, PROTOCOL.batch_size).items()
    if not refusal
]


@pytest.fixture(scope="module", autouse=True)
def _settled() -> None:
    configure_process(cores(), "ieee")


def work(variant: str, engine: str, part: str) -> Callable[[], None]:
    """One `part` of PARTS of a training step, ready to be called again and again."""
    model = Model(variant, VOCABULARY, PROTOCOL.hidden, [0], PROTOCOL.init, device=DEVICE, engine=engine)
    shape = (PROTOCOL.num_steps + 1, 1, PROTOCOL.batch_size)
    window = torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    state = model.cell.begin(PROTOCOL.batch_size)

    def forward() -> None:
        model.losses(window[:-1], window[1:], state)

    def backward() -> None:
        losses, _ = model.losses(window[:-1], window[1:], state)
        losses.sum().backward()

    def step() -> None:
        nonlocal state
        losses, after = model.losses(window[:-1], window[1:], state)
        losses.sum().backward()
        model.update(PROTOCOL.lr, PROTOCOL.clip)
        state = tuple(s.detach() for s in after)

    return dict(zip(PARTS, (forward, backward, step), strict=True))[part]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("variant", "engine"), CASES)
def test_speed(benchmark: BenchmarkFixture, variant: str, engine: str, part: str) -> None:
    """Milliseconds of a part, the fastest, the middle and the spread of 20 rounds of some 50 ms each."""
    once = work(variant, engine, part)

    def timed(count: int) -> float:
        begun = clock(DEVICE)
        for _ in range(count):
            once()
        return clock(DEVICE) - begun

    timed(2)
    count = max(1, round(ROUND_S / statistics.median(timed(1) for _ in range(3))))
    benchmark.group = f"{variant}, {PROTOCOL.label}, {DEVICE}"
    benchmark.extra_info["tokens"] = PROTOCOL.batch_size * PROTOCOL.num_steps

    def synchronised() -> None:
        once()
        clock(DEVICE)

    benchmark.pedantic(synchronised, rounds=ROUNDS, iterations=count, warmup_rounds=WARM_ROUNDS)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, *sys.argv[1:]]))
