"""Measure what the machine reaches at best, and from it the least time a training step can take."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from variants.model import Model

FED = ("loop", "fused")  # engines that a GPU is fed kernel by kernel: one waits for another at each character


def measure_peaks(device: str) -> tuple[float, float]:
    """Return what this machine reaches at best: GFLOP/s of float32, GiB/s of a large copy, read and written.

    At the precision that `configure_process` set, with its threads. Of a large product of torch's and, on a CPU with a
    compiler, of the micro-kernel of native.c the faster one: torch's own product (MKL) uses a fraction of an AMD
    processor.
    """
    import torch

    from harness.run.progress import clock
    from variants.engines import native

    def best_s(work: Callable[[], object], times: int) -> float:
        work()
        taken = []
        for _ in range(times):
            begun = clock(device)
            work()
            taken.append(clock(device) - begun)
        return min(taken)

    rates = []
    bf16 = device == "cuda" and torch.get_float32_matmul_precision() == "medium"
    kind = torch.bfloat16 if bf16 else torch.float32  # of float32 it would be tf32's
    for n in (1024, 2048) if device == "cpu" else (4096, 8192):
        A, B, C = (torch.ones(n, n, device=device, dtype=kind).normal_() for _ in range(3))
        rates.append(2 * n**3 / best_s(functools.partial(torch.mm, A, B, out=C), 3) / 1e9)
    times = 10_000  # a few ms
    if device == "cpu" and (operations := native.arithmetic(times)):
        rates.append(operations / best_s(functools.partial(native.arithmetic, times), 20) / 1e9)
    source = torch.ones(2**24 if device == "cpu" else 2**28, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size() / 2**30
    return max(rates), moved / best_s(lambda: target.copy_(source), 3)


def node_gap_us(nodes: int = 1000) -> float:
    """Microseconds from one kernel of a CUDA graph to the next that waits for it: a dependent step takes no less."""
    import torch

    from harness.run.progress import clock

    counter = torch.zeros(1, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(nodes):
            counter.add_(1)
    graph.replay()
    taken = []
    for _ in range(5):
        begun = clock("cuda")
        graph.replay()
        taken.append(clock("cuda") - begun)
    return 1e6 * min(taken) / nodes


def lower_bound_ms(work: float, peak_gflops: float, steps: int, gap_us: float | None) -> float:
    """Return the lower bound on the time of a training step of `work` GFLOP, in ms.

    The larger of the compute bound, all of it at the peak rate, and, on a GPU that is fed kernel by kernel, the
    launch-latency bound: one kernel after the other, forward and back through all steps.
    """
    return max(1000 * work / peak_gflops, 2 * steps * (gap_us or 0.0) / 1000)


def gflop_per_step(model: Model, tokens: int) -> float:
    """Return the GFLOP of a training step that no method avoids.

    6 operations a character and weight that multiplies a state: two forward, two for the gradient of the state, two
    for that of the weight; the output layer's weights too.
    """
    on_states = re.compile(r"W_h|above\.\d+\.W_x|weight_hh|weight_ih_l[1-9]")  # a layer above reads states
    weights = sum(w.numel() for name, w in model.named_parameters() if on_states.search(name))
    return 6 * tokens * weights / 1e9
