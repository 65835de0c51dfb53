"""Write weights by hand that solve the book's exercise 1 exactly: use the input at t' to predict at a later t.

The task is `delayed_recall`: one of the symbols is marked, at t', and asked for at the last step. One unit stands for
each symbol. The update gate is 0 at the marked step, so that the state becomes the candidate, and 1 at every other, so
that it stays; the reset gate is 0 at the marked step, so that the candidate sees the input alone, and free elsewhere.
"""

from __future__ import annotations

import torch

from harness.experiments.tasks import SYMBOLS, TASKS
from variants.model import Model

LARGE = 200.0  # in float32 sigmoid and tanh of it are 0, 1 and -1 exactly


@torch.no_grad()
def delayed_recall(engine: str = "loop") -> Model:
    """Return a GRU of one unit a symbol, its gates set: the marked symbol's unit is 1, the others are -1, for good."""
    task = TASKS["delayed_recall"]
    model = Model("gru", task.inputs, SYMBOLS, [0], "torch", engine=engine, outputs=task.outputs)
    for weight in model.parameters():
        weight.zero_()
    eye, marked = torch.eye(SYMBOLS), slice(SYMBOLS, 2 * SYMBOLS)
    cell = model.cell
    for gate in (cell.W_xz, cell.W_xr):
        gate[0] = LARGE
        gate[0, marked] = -LARGE
    cell.W_xh[0, marked] = LARGE * (2 * eye - 1)
    # whatever the candidate makes of the past: R = 0 at t' keeps it out
    cell.W_hh[0] = 1000 * torch.randn(SYMBOLS, SYMBOLS, generator=torch.Generator().manual_seed(1))
    model.W_hq[0] = LARGE * eye
    return model.eval()
