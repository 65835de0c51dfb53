"""Evaluate a trained network: perplexity, lesions, a sample of text. Nothing here trains."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

import variants
from harness.data import corpus as text
from harness.data.batches import Part
from harness.experiments.protocols import PROMPT, Protocol
from harness.run.diagnostics import Alive
from harness.run.outcome import perplexity
from harness.run.process import describe
from variants.model import Model

HELD = (0.0, 0.5, 1.0)  # what a lesion holds a gate at
SAMPLED = 50  # characters of a sample, as in the book
SAMPLED_WORDS = 12
AT_ONCE = 32  # steps of a stream between two signs of life


def score(model: Model, held: Part, protocol: Protocol, alive: Alive = lambda: None) -> tuple[Tensor, Tensor]:
    """(S,) mean loss in nats a character of a part; and of windows the mean over minibatches of exp(loss), else NaN."""
    if protocol.sampling == "sequential":
        nats = evaluate(model, held, alive)
        return nats, torch.full_like(nats, math.nan)
    return evaluate_windows(model, held.tokens, protocol.batch_size, alive)


@torch.no_grad()
def evaluate(model: Model, held: Part, alive: Alive = lambda: None) -> Tensor:
    """(S,) mean loss in nats of the characters of streams that count, the state carried from the first to the last."""
    length, S, n = held.tokens.shape
    state = model.cell.begin(n)
    total = torch.zeros(S, device=held.tokens.device, dtype=torch.float64)
    for begin in range(0, length - 1, AT_ONCE):
        end = min(begin + AT_ONCE, length - 1)
        nats, state = model.nats(held.tokens[begin:end], held.tokens[begin + 1 : end + 1], state)
        counts = torch.arange(begin, end, device=held.skip.device)[:, None] >= held.skip
        total += torch.where(counts, nats, 0.0).sum((1, 2), dtype=torch.float64)
        alive()
    return (total / ((length - 1) * n - held.skip.sum())).to(model.b_q.dtype)


@torch.no_grad()
def evaluate_windows(
    model: Model, windows: Tensor, batch_size: int, alive: Alive = lambda: None
) -> tuple[Tensor, Tensor]:
    """Score windows (num_steps + 1, S, N) as `score` does, each read from a zero state, minibatches as in training."""
    total, exps = (torch.zeros(windows.shape[1], device=windows.device, dtype=model.b_q.dtype) for _ in "ab")
    batches = windows.split(batch_size, dim=2)
    for part in batches:
        losses, _ = model.losses(part[:-1], part[1:], model.cell.begin(part.shape[2]))
        total += losses * part.shape[2]
        exps += losses.exp()
        alive()
    return total / windows.shape[2], exps / len(batches)


def lesions(
    model: Model,
    variant: str,
    part: Part,
    protocol: Protocol,
    alive: Alive = lambda: None,
    unseen: dict[str, str] | None = None,
) -> list[dict[str, float | None]]:
    """Held-out perplexity of a trained model with one of its gates held only now, of every seed: {'R=0': 12.3, ...}.

    Against the same gate held in training too, it tells what training works around. `part` as for `score`. Of one that
    cannot be computed None, and `unseen` is told why.
    """
    base, fixed = variants.parse(variant)
    S, h, d = model.W_hq.shape
    embedding = 0 if model.E is None else model.E.shape[2]
    trained = model.state_dict()
    found: list[dict[str, float | None]] = [{} for _ in range(S)]
    for gate in [g for g in variants.catalog()[base].gates if g not in fixed]:
        for value in HELD:
            lesion = f"{gate}={value:g}"
            name = f"{base}:" + ",".join(f"{g}={v}" for g, v in {**fixed, gate: value}.items())
            try:
                held = Model(name, d, h, range(S), dtype=model.b_q.dtype, device=str(model.b_q.device),
                             layers=model.layers, embedding=embedding).eval()  # fmt: skip
                held.unknown_nats = model.unknown_nats
                for key, weight in held.state_dict().items():
                    weight.copy_(trained[key])
                nats = score(held, part, protocol, alive)[0].tolist()
            except Exception as error:
                nats = [math.nan] * S
                if unseen is not None:
                    unseen[f"lesion {lesion}"] = describe(error)
            for seed, one in enumerate(nats):
                found[seed][lesion] = perplexity(one)
    return found


@torch.no_grad()
def generate(model: Model, corpus: text.Corpus, heldout: Tensor, characters: int = 0) -> list[str]:
    """The prompt and what each seed's network writes after it, always the likeliest token, as the book does.

    The prompt is the book's, or the first tokens held out where the vocabulary lacks one of the book's.
    """
    characters = characters or (SAMPLED_WORDS if corpus.unit == text.WORDS else SAMPLED)
    start = torch.from_numpy(text.encode(corpus, PROMPT).astype(np.int64)).to(model.b_q.device)
    if not start.all():  # index 0 is <unk>
        start = heldout[: 2 if corpus.unit == text.WORDS else len(PROMPT)]
    seeds = len(model.b_q)
    logits, state = model(start[:, None, None].expand(-1, seeds, 1), model.cell.begin(1))
    written = [logits[-1].argmax(-1)]
    for _ in range(characters - 1):
        logits, state = model(written[-1][None], state)
        written.append(logits[-1].argmax(-1))
    whole = torch.cat([start[:, None].expand(-1, seeds), torch.stack(written)[:, :, 0]])
    return [text.printable(text.decode(corpus, whole[:, s].tolist())) for s in range(seeds)]


def evaluation_epochs(protocol: Protocol) -> set[int]:
    """About `evaluations` epochs spread evenly, the last always among them."""
    points = min(protocol.evaluations, protocol.epochs)
    return {math.ceil(protocol.epochs * (k + 1) / points) for k in range(points)}
