"""A trained network as data: its cell's program and the numbers it runs on, for what has no torch, such as the page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import variants
from variants.cell import Cell
from variants.engines.derive import Unsupported, as_data, last_of
from variants.layers import stack
from variants.library import Library
from variants.model import Model

TWINS: dict[type[nn.Module], str] = {nn.RNN: "rnn", nn.GRU: "gru_after", nn.LSTM: "lstm"}  # the same mathematics
MOST_NUMBERS = 500_000  # of one network: larger ones are not kept
EXCERPT = 600  # held-out symbols kept beside it, to be read with gates held


@torch.no_grad()
def network(model: Model, seed: int, vocabulary: Sequence[str], heldout: Sequence[int]) -> dict[str, Any]:
    """One seed of a model, `seed` its place: `as_data`'s program, `weights` (base64 of float32, little-endian) in the
    order x, c, mm, W_hq, b_q, and `sizes`, how many x, c and mm there are. Or `why` there is none.
    """
    try:
        cell = _one(model.cell, seed)
        program, constants = as_data(cell)
    except Unsupported as error:
        return {"why": str(error)}
    arrays = [x for op in ("x", "c", "mm") for x in constants[op]] + [model.W_hq[seed], model.b_q[seed]]
    flat = np.concatenate([x.detach().cpu().to(torch.float32).numpy().ravel() for x in arrays])
    if len(flat) > MOST_NUMBERS:
        return {"why": f"{len(flat):,} numbers: larger than {MOST_NUMBERS:,}"}
    return {
        **program, "hidden": cell.h, "sizes": [len(constants[op]) for op in ("x", "c", "mm")],
        "keeps": cell.keeps.rpartition("_")[2][-1:].upper(), "vocabulary": list(vocabulary),
        "heldout": [int(x) for x in heldout[:EXCERPT]],
        "weights": base64.b64encode(flat.astype("<f4").tobytes()).decode(),
    }  # fmt: skip


def _one(cell: Cell, seed: int) -> Cell:
    """One seed's cell on the CPU; torch's own as the cell written here that computes the same."""
    if isinstance(cell, Library):
        parts = dict(cell.named_parts())
        twin = stack(variants.get(TWINS[cell.module]), cell.layers)(cell.d, cell.h)
        twin.to(next(iter(parts.values())).dtype)
        for name, weight in twin.named_parameters():
            layer, symbol = name[: -len(last_of(name))], name.rpartition("_")[2]
            both = None if name in parts else parts[f"{layer}b_x{symbol}"] + parts[f"{layer}b_h{symbol}"]
            weight.copy_(parts[name] if both is None else both)
        return twin.eval()
    one = type(cell)(cell.d, cell.h).to(cell.zero.dtype).eval()
    trained: dict[str, Tensor] = cell.state_dict()
    one.load_state_dict({name: value[seed : seed + 1].cpu() for name, value in trained.items()})
    return one
