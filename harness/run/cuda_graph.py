"""A training epoch as one CUDA graph: every window's forward, loss, backward, clip and update, launched at once.

Rule: it knows no cell and no engine. What it captures must never read a value back from the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Epoch = Callable[
    [Tensor], Tensor
]  # streams (length, S, n) -> mean loss (S,) in nats; trains the weights it closes over


def captured(epoch: Epoch, example: Tensor, weights: Sequence[Tensor]) -> Epoch:
    """`epoch`, to be replayed on streams shaped as `example`. Warming up trains the `weights`, and is undone.

    RuntimeError from torch where something in it cannot be captured; the weights are then as they were.
    """
    streams = example.clone()
    before = [weight.detach().clone() for weight in weights]
    side, current = torch.cuda.Stream(), torch.cuda.current_stream()
    side.wait_stream(current)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.stream(side):  # libraries set themselves up, each for its stream, which a graph cannot hold
            for _ in range(2):
                epoch(streams)
        current.wait_stream(side)
        with torch.cuda.graph(graph, stream=side):
            nats = epoch(streams)
    finally:
        torch.cuda.set_stream(current)  # where capturing fails torch leaves the other
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)
                weight.grad = None

    def replay(fresh: Tensor) -> Tensor:
        streams.copy_(fresh)
        graph.replay()
        return nats.clone()

    return replay
