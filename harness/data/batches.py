"""Arrange a text for training and for scoring: its parts, an epoch's minibatches, streams side by side.

Tensors are on the device of the characters given; S is seeds, n sequences of a minibatch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harness.data import corpus as text
from harness.experiments.protocols import Protocol

# Of what is scored, whatever the training's batch: characters of a stream, characters it reads before, streams at most.
STREAM, WARM, STREAMS = 256, 128, 256


def split_text(corpus: text.Corpus, protocol: Protocol) -> tuple[text.Tokens, text.Tokens, text.Tokens]:
    """Characters to learn from, to validate on (perhaps none), held out. By windows, a part is where they begin:

    it runs on to the end of its last window, one character past it.
    """
    train, held, between = text.part_sizes(
        corpus, protocol.train_characters, protocol.heldout_characters, protocol.validation_characters
    )
    tail = protocol.num_steps if protocol.sampling == "windows" else 0
    _, heldout = text.split(corpus, train, held + tail, between)
    tokens = corpus.tokens
    return tokens[: train + tail], tokens[train : train + between + tail * (between > 0)], heldout


def characters_per_token(corpus: text.Corpus, protocol: Protocol) -> float:
    """Mean characters of a token that is scored: what bits per character are computed with."""
    if corpus.lengths is None:
        return 1.0
    train, held, between = text.part_sizes(
        corpus, protocol.train_characters, protocol.heldout_characters, protocol.validation_characters
    )
    return float(corpus.lengths[train + between + 1 : train + between + held].mean())


@dataclass(frozen=True)
class TextData:
    """A text as one training uses it, on its device, the same for each seed."""

    train: Tensor  # (length,)
    heldout_text: Tensor  # (length,)
    windows: int  # minibatches in an epoch
    curve: Part  # scored during the training: the validation part, or where there is none what is held out
    heldout: Part  # scored after it

    @property
    def validated(self) -> bool:
        """Whether there is a validation part."""
        return self.curve is not self.heldout


def arrange(corpus: text.Corpus, protocol: Protocol, seeds: int, device: str) -> TextData:
    """Split a text and lay its parts out as the protocol says. ValueError for a text that is too short."""
    train, validation, heldout = (
        torch.from_numpy(part.astype(np.int64)).to(device) for part in split_text(corpus, protocol)
    )
    scored = eval_batches(heldout, protocol, seeds)
    curve = eval_batches(validation, protocol, seeds) if len(validation) else scored
    return TextData(train, heldout, windows_per_epoch(len(train), protocol), curve, scored)


def windows_per_epoch(characters: int, protocol: Protocol) -> int:
    """Minibatches in an epoch."""
    if protocol.sampling == "windows":
        return math.ceil((characters - protocol.num_steps) / protocol.batch_size)
    return text.windows(characters, protocol.batch_size, protocol.num_steps, protocol.tokens)


def sample_epoch(characters: Tensor, protocol: Protocol, rngs: Sequence[random.Random]) -> Tensor:
    """Sample one epoch's data of every seed by its generator, as `train.epoch_of` reads them."""
    if protocol.sampling == "sequential":
        return sequential(characters, protocol, [rng.randint(0, protocol.num_steps) for rng in rngs])
    rows = []
    for rng in rngs:
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        rows.append(torch.randperm(len(characters) - protocol.num_steps, generator=generator))
    return gather_windows(characters, protocol.num_steps, torch.stack(rows).to(characters.device))


def gather_windows(characters: Tensor, num_steps: int, starts: Tensor) -> Tensor:
    """Windows that begin at starts (S, N), a column each, and the character after them: (num_steps + 1, S, N)."""
    steps = torch.arange(num_steps + 1, device=characters.device)
    return characters[steps[:, None, None] + starts]


@dataclass(frozen=True)
class Part:
    """A part to be scored: tokens (length, S, n), a column a sequence, each read from a zero state.

    `skip` (n,): how many of its first targets are not counted.
    """

    tokens: Tensor
    skip: Tensor


def eval_batches(characters: Tensor, protocol: Protocol, seeds: int) -> Part:
    """A part to be scored, as `score` reads it: as streams, or as all its windows."""
    if protocol.sampling == "sequential":
        return split_streams(characters, seeds)
    starts = torch.arange(len(characters) - protocol.num_steps, device=characters.device)
    return Part(
        gather_windows(characters, protocol.num_steps, starts[None]).expand(-1, seeds, -1), torch.zeros_like(starts)
    )


def split_streams(characters: Tensor, seeds: int) -> Part:
    """Text (length,) as streams side by side, the same for each seed. Every character but the first counts once.

    A stream begins WARM characters before what counts of it, so that it is as if the text were read in one piece: the
    perplexities of trained networks differ by less than 0.001 %.
    """
    targets = len(characters) - 1
    n = min(STREAMS, max(1, (targets - WARM) // STREAM))
    warm = WARM if n > 1 else 0
    own = -(-(targets - warm) // n)
    begins = own * torch.arange(n, device=characters.device)
    skip = torch.full_like(begins, warm)
    over = warm + n * own - targets  # the last stream begins earlier, to end with the text
    begins[-1] -= over
    skip[-1] += over
    skip[0] = 0
    steps = torch.arange(warm + own + 1, device=characters.device)
    return Part(characters[steps[:, None] + begins][:, None].expand(-1, seeds, -1), skip)


def sequential(characters: Tensor, protocol: Protocol, offsets: Sequence[int]) -> Tensor:
    """The book's sequential partition of one epoch, a column a stream: (length, S, n).

    From a seed's random offset the text is cut into `batch_size` streams of equal length, read side by side.
    """
    n = protocol.batch_size
    each = [(len(characters) - offset - 1) // n for offset in offsets]
    first, apart = torch.tensor([offsets, each], device=characters.device)[..., None]
    starts = first + apart * torch.arange(n, device=characters.device)
    length = (len(characters) - protocol.num_steps - 1) // n + 1  # the same for every offset, targets included
    steps = torch.arange(length, device=characters.device)
    return characters[steps[:, None, None] + starts]
