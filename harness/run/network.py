"""Export a trained network as data: its cell's program and its numbers, for what has no torch, such as the page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import variants
from harness.data.corpus import CHARACTERS
from harness.experiments.runs import Run
from variants.cell import Cell
from variants.engines.derive import Unsupported, as_data, last_of
from variants.layers import stack
from variants.library import Library
from variants.model import Model, SideBySide

TWINS: dict[type[nn.Module], str] = {nn.RNN: "rnn", nn.GRU: "gru_after", nn.LSTM: "lstm"}  # the same mathematics
MOST_NUMBERS = 500_000  # of one network: larger ones are not kept
EXCERPT = 600  # held-out symbols kept beside it, to be read with gates held


@torch.no_grad()
def network(
    model: Model, seed: int, vocabulary: Sequence[str], heldout: Sequence[int], unit: str = CHARACTERS
) -> dict[str, Any]:
    """One seed of a model, `seed` its place: `as_data`'s program, `weights` (base64 of float32, little-endian) in the
    order x, c, mm, W_hq, b_q, and `sizes`, how many x, c and mm there are. Or `why` there is none.

    And, of a text's, `state`, from which `restored` makes the model again: its state_dict, encoded as `weights` is, in
    its order. A task's network has no vocabulary.
    """
    if isinstance(model, SideBySide):
        return network(model.models[seed], 0, vocabulary, heldout, unit)
    state = [value[seed : seed + 1].detach().cpu().to(torch.float32).numpy().ravel() for value in _per_seed(model)]
    count = sum(map(len, state))
    if count > MOST_NUMBERS:
        return {"why": f"{count:,} numbers: larger than {MOST_NUMBERS:,}"}
    kept = {"state": _encoded(np.concatenate(state)), "vocabulary": list(vocabulary)} if vocabulary else {}
    if unit != CHARACTERS:
        return {"why": f"it reads {unit}, and the page is typed into by characters", **kept}
    try:
        cell = _one(model.cell, seed)
        program, constants = as_data(cell, None if model.E is None else model.E[seed : seed + 1].detach().cpu())
    except Unsupported as error:
        return {"why": str(error), **kept}
    arrays = [x for op in ("x", "c", "mm") for x in constants[op]] + [model.W_hq[seed], model.b_q[seed]]
    flat = np.concatenate([x.detach().cpu().to(torch.float32).numpy().ravel() for x in arrays])
    return {
        **kept, **program, "hidden": cell.h, "sizes": [len(constants[op]) for op in ("x", "c", "mm")],
        "keeps": cell.keeps.rpartition("_")[2][-1:].upper(),
        **({"heldout": [int(x) for x in heldout[:EXCERPT]]} if vocabulary else {}),
        "weights": _encoded(flat),
    }  # fmt: skip


def _encoded(numbers: npt.NDArray[np.float32]) -> str:
    return base64.b64encode(numbers.astype("<f4").tobytes()).decode()


def _per_seed(model: Model) -> list[Tensor]:
    """The values of a state_dict, each with the seeds first; torch's own modules are of one seed and lack that axis."""
    seeds = len(model.b_q)
    state: dict[str, Tensor] = model.state_dict()
    return [value if value.shape[:1] == (seeds,) and value.dim() > 2 else value[None] for value in state.values()]


def restored(run: Run, kept: Mapping[str, Any]) -> Model:
    """The trained network of a run, in evaluation mode, from what was kept of it. ValueError where it does not fit."""
    setting, letters = run.setting, kept["vocabulary"]
    model = Model(run.variant, len(letters), setting.hidden, [run.seed], setting.init, engine=run.engine,
                  layers=setting.layers, embedding=setting.embedding)  # fmt: skip
    numbers = torch.from_numpy(np.frombuffer(base64.b64decode(kept["state"]), "<f4").copy())
    state: dict[str, Tensor] = model.state_dict()
    if sum(value.numel() for value in state.values()) != len(numbers):
        raise ValueError(f"the weights kept of {run.variant} are not those of the cell as it is now: it was edited")
    values = zip(state.items(), numbers.split([value.numel() for value in state.values()]), strict=True)
    model.load_state_dict({name: value.view(like.shape).to(like.dtype) for (name, like), value in values})
    vars(model)["vocabulary"] = tuple(letters)  # not in Model: what is only read again is in no key
    return model.eval()


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
