"""Training steps as one CUDA graph: every window's forward, loss, backward, clip and update, launched at once.

Rule: it knows no cell and no engine. What it captures must never read a value back from the device.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Work = Callable[..., Sequence[Tensor]]  # of tensors; trains the weights it closes over
Result = TypeVar("Result")


def captured(work: Work, example: Sequence[Tensor], weights: Sequence[Tensor]) -> Graph:
    """`work`, to be replayed on tensors shaped as `example`. Warming up trains the `weights`, and is undone.

    RuntimeError from torch where something in it cannot be captured; the weights are then as they were.
    """
    inputs = [tensor.clone() for tensor in example]
    before = [weight.detach().clone() for weight in weights]
    side, current = torch.cuda.Stream(), torch.cuda.current_stream()
    side.wait_stream(current)
    graph = torch.cuda.CUDAGraph(keep_graph=True)  # to count its nodes
    try:
        with torch.cuda.stream(side):  # libraries set themselves up, each for its stream, which a graph cannot hold
            for _ in range(2):
                work(*inputs)
        current.wait_stream(side)
        with torch.cuda.graph(graph, stream=side):
            outputs = work(*inputs)
    finally:
        torch.cuda.set_stream(current)  # where capturing fails torch leaves the other
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)
                weight.grad = None

    graph.instantiate()
    return Graph(graph, inputs, outputs)


class Graph:
    """A captured graph. Called with tensors, it replays on them, on the current stream. `nodes`: how many it has."""

    def __init__(self, graph: torch.cuda.CUDAGraph, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        self.graph, self.inputs, self.outputs, self.nodes = graph, inputs, outputs, nodes(graph)

    def __call__(self, *fresh: Tensor) -> tuple[Tensor, ...]:
        for old, new in zip(self.inputs, fresh, strict=True):
            old.copy_(new)
        self.graph.replay()
        return tuple(output.clone() for output in self.outputs)


def branches(works: Sequence[Callable[[], Result]], device: torch.device) -> list[Result]:
    """Call each, on a GPU on a stream of its own: captured, they are parallel branches of one graph.

    All begin after what the current stream was asked for before, and it goes on after the last of them has ended. What
    one allocates on its stream is given back to that stream, so nothing of it is overwritten while it is still read.
    """
    if device.type != "cuda":
        return [work() for work in works]
    current, found = torch.cuda.current_stream(), list[Result]()
    for k, work in enumerate(works):
        stream = _stream(k)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            found.append(work())
    for k in range(len(works)):
        current.wait_stream(_stream(k))
    return found


@functools.cache
def _stream(k: int) -> torch.cuda.Stream:
    """The same for a branch at every call: libraries keep memory for each stream they have run on."""
    return torch.cuda.Stream()


def nodes(graph: torch.cuda.CUDAGraph) -> int | None:
    """Return how many nodes a kept graph has; None where the driver does not say."""
    count = ctypes.c_size_t()
    try:
        ask = ctypes.CDLL("libcuda.so.1").cuGraphGetNodes
        failed = ask(ctypes.c_void_p(graph.raw_cuda_graph()), None, ctypes.byref(count))
    except (OSError, AttributeError, RuntimeError):
        return None
    return None if failed else count.value
