"""Measure what the gates of a trained network do over held-out text, and how far back its gradient reaches.

Rule: it only looks: weights and states stay as they were. A seed's numbers do not depend on which others are beside it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from harness.data import corpus as text
from harness.experiments.protocols import OPEN, SHUT
from variants.engines import loop
from variants.library import Library
from variants.model import Model

REACHES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # characters back
REACH = REACHES[-1]
FAINTEST = 1e-30  # of a gradient: below it is what a float32 rounds away, here or there
SENTENCE, UNITS = 60, 16  # of the heat map: characters, and units evenly spread from the fastest to the slowest
ROUNDED = 1e-5  # by how much a gate's value may leave 0 to 1
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)

Facts = dict[str, Any]
Alive = Callable[[], None]  # to be called from time to time in what takes long


@torch.no_grad()
def gates(model: Model, streams: Tensor, alive: Alive = lambda: None) -> list[dict[str, Facts]]:
    """gate -> what its values are over streams (length, S, n), of every seed: {'Z': {'mean': .4, ...}, ...}.

    One value a step, unit and stream. Of a gate with values that no gate has, {'error': why} instead.
    mean, sd: over units, characters and streams. shut, open: share of values under SHUT, over OPEN. unit_sd: of the
    units' own means. tau_10 ... tau_90, of a gate whose 1 keeps the state: quantiles over units of the time in
    characters after which a unit has forgotten all but 1/e, -1 / mean(ln Z): what is left of a state is the product of
    all Z since.
    """
    S, h = len(model.b_q), model.cell.h
    sums: dict[str, Tensor] = {}
    ends: dict[str, Tensor] = {}  # the least and the largest value there was, (2, S)
    for seen in _gate_values(model, streams[:-1], alive):
        for gate, values in seen.items():
            v = values.double()
            shares = [(v < SHUT).double(), (v > OPEN).double()]
            part = torch.stack([x.mean(1).expand(S, h) for x in (v, v * v, *shares, v.clamp(min=1e-30).log())])
            sums[gate] = sums[gate] + part if gate in sums else part
            end = torch.stack([v.flatten(1).amin(1), -v.flatten(1).amax(1)])
            ends[gate] = torch.minimum(ends[gate], end) if gate in ends else end
    found: list[dict[str, Facts]] = [{} for _ in range(S)]
    keeps = model.cell.keeps.rpartition("_")[2][-1:].upper()
    for gate, total in sums.items():
        mean, square, shut, open_, log = total / (len(streams) - 1)
        for s, (least, most) in enumerate((ends[gate] * ends[gate].new_tensor([[1], [-1]])).T.tolist()):
            if not (least >= -ROUNDED and most <= 1 + ROUNDED):
                found[s][gate] = {"error": f"its values go from {least:.4g} to {most:.4g}: a gate's are from 0 to 1"}
                continue
            overall = mean[s].mean()
            facts = {
                "mean": overall, "sd": (square[s].mean() - overall**2).clamp(min=0).sqrt(),
                "shut": shut[s].mean(), "open": open_[s].mean(), "unit_sd": mean[s].std(correction=0),
            }  # fmt: skip
            if gate.partition(".")[0] == keeps:
                times = torch.quantile(-1 / log[s].clamp(max=-1e-9), log.new_tensor(QUANTILES))
                facts |= {f"tau_{100 * q:.0f}": tau for q, tau in zip(QUANTILES, times, strict=True)}
            found[s][gate] = {name: float(value) for name, value in facts.items()}
    return found


def reach(model: Model, streams: Tensor, alive: Alive = lambda: None) -> list[dict[int, float]]:
    """How much of the loss at a character reaches the state t characters before it: for t in REACHES, of every seed.

    The norm of the gradient with respect to that state (all of it), over the norm at t = 0; the mean over streams
    (length, S, n). Fewer t where the text is shorter. Nothing is truncated: this is the network's, not the training's.
    """
    back = min(REACH, len(streams) - 2)
    if back < 1:
        return [{} for _ in model.b_q]
    begin = max(0, len(streams) - 2 - back - REACH)  # a state that has read some text
    with torch.no_grad():
        _, state = model(streams[begin : len(streams) - 1 - back], model.cell.begin(streams.shape[2]))
    states = [tuple(s.detach().requires_grad_() for s in state)]
    with torch.backends.cudnn.flags(enabled=False):  # it has no backward pass of a module that is not training
        for t in range(len(streams) - 1 - back, len(streams) - 1):
            _, after = model(streams[t : t + 1], states[-1])
            states.append(
                tuple(s.clone() for s in after)
            )  # apart: of an LSTM, C is not to be counted through H as well
        # the states after each character; what is predicted last is known from the last of them
        logits = states[-1][0] @ model.W_hq + model.b_q
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), streams[-1].flatten(), reduction="sum")
        grads = torch.autograd.grad(loss, [s for state in states for s in state], allow_unused=True)
    each = len(state)
    norms = []
    for k in range(0, len(grads), each):
        parts = [g.double().square().sum(-1) for g in grads[k : k + each] if g is not None]  # float32 would underflow
        norms.append(torch.stack(parts).sum(0).sqrt() if parts else torch.zeros_like(states[0][0][..., 0]).double())
    shares = torch.stack(norms[::-1]) / norms[-1].clamp(min=1e-30)  # (t, S, n)
    shares = torch.where(shares > FAINTEST, shares, 0.0)
    return [{t: one[t] for t in REACHES if t < len(one)} for one in shares.mean(2).T.tolist()]


@torch.no_grad()
def heat(model: Model, corpus: text.Corpus, characters: Tensor, alive: Alive = lambda: None) -> list[Facts]:
    """Gate values of the first seed, character by character over the first SENTENCE of some characters (length,).

    One fact a gate, character and unit; the units are UNITS of them, from the one whose first gate is lowest on average
    to the one whose is highest. The state is that of having read the characters before them, if there are as many.
    """
    if len(characters) < 2 * SENTENCE:
        return []
    read = characters[: 2 * SENTENCE, None, None].expand(-1, len(model.b_q), 1)
    steps = [{g: v[0, 0].expand(model.cell.h) for g, v in seen.items()} for seen in _gate_values(model, read, alive)]
    names = [f"{gate}.{k}".removesuffix(".1") for k in range(1, model.layers + 1) for gate in model.cell.gates()]
    shown = [gate for gate in names if all(gate in seen for seen in steps)]
    if not shown:
        return []
    values = {gate: torch.stack([seen[gate] for seen in steps[SENTENCE:]]) for gate in shown}
    order = values[shown[0]].mean(0).argsort()
    units = order[torch.linspace(0, len(order) - 1, min(UNITS, len(order))).round().long()]
    letters = text.visible(corpus, characters[SENTENCE : 2 * SENTENCE].tolist())
    return [
        {"gate": gate, "position": t, "character": letter, "unit": u, "value": round(float(value), 4)}
        for gate in shown
        for t, letter in enumerate(letters)
        for u, value in enumerate(values[gate][t, units])
    ]


def _gate_values(model: Model, X: Tensor, alive: Alive) -> Iterator[dict[str, Tensor]]:
    """Read characters X (length, S, n) step by step: each gate's values (S, n or 1, h or 1) of a step, by symbol.

    One value a gate, however often it is computed in a step: the last. A gate that no weight is left of has none.
    """
    cell, seen = model.cell, dict[str, Tensor]()
    if isinstance(cell, Library) or not set(cell.gates()) - set(cell.fixed):
        return
    state = cell.begin(X.shape[2])
    for k, layer in enumerate(cell.each_layer(), 1):
        layer.on_gate = functools.partial(_note, seen, f".{k}".removesuffix(".1"))
    try:
        for characters in X:
            seen.clear()
            _, state = loop.steps(cell, model.embedded(characters[None]), state)
            yield {gate: values for gate, values in seen.items() if isinstance(values, Tensor)}
            alive()
    finally:
        for layer in cell.each_layer():
            layer.on_gate = None


def _note(seen: dict[str, Tensor], layer: str, gate: str, values: Tensor) -> None:
    seen[gate + layer] = values


BEFORE, AFTER = 5, 10  # steps before and after t' that are told
KEPT_FROM, KEEPS = 3, 0.9  # a unit carries the symbol where its update gate is above KEEPS on average, from there on


@torch.no_grad()
def by_position(model: Model, inputs: Tensor, at: Tensor, alive: Alive = lambda: None) -> list[Facts]:
    """Each gate's mean by position relative to the step `at` (n,) of each sequence of `inputs` (T, n): t - t'.

    `mean`: over sequences and all units. `carrying`: over those pairs of unit and sequence whose update gate Z is above
    KEEPS on average from KEPT_FROM steps after t' on, a choice that positions 0 to KEPT_FROM - 1 have no part in; None
    where there is none. Of the first seed; sequences whose t' is too near an end for all positions are left out.
    """
    S, steps = len(model.b_q), len(inputs)
    good = (at >= BEFORE) & (at + AFTER < steps - 1)
    inputs, at = inputs[:, good], at[good]
    seen = list(_gate_values(model, inputs[:, None].expand(-1, S, -1), alive))
    if not seen or not len(at):
        return []
    shape, columns = (len(at), model.cell.h), torch.arange(len(at), device=at.device)
    values = {gate: torch.stack([now[gate][0].expand(shape) for now in seen]) for gate in seen[0]}  # (T, n, h)
    near = {
        gate: torch.stack([v[at + k, columns] for k in range(-BEFORE, AFTER + 1)]).double()
        for gate, v in values.items()
    }
    carry = near["Z"][BEFORE + KEPT_FROM :].mean(0) > KEEPS if "Z" in near else torch.zeros(shape, dtype=torch.bool)
    return [
        {"gate": gate, "position": k - BEFORE, "mean": float(v.mean()),
         "carrying": float(v[carry].mean()) if carry.any() else None, "share": float(carry.double().mean())}
        for gate, own in near.items() for k, v in enumerate(own)
    ]  # fmt: skip
