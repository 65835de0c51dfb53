"""Count a training's seconds, give signs of life, and save and load its checkpoints.

Rule: nothing here is on the clock, and nothing decides a number. A checkpoint is arrays by name and no code; a training
that goes on from one is, on a CPU, bit for bit the one that never stopped.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

# Between two checkpoints: a training that is killed loses less than a minute.
CHECKPOINT_S = float(os.environ.get("CHECKPOINT_S", "30"))
SIGN_S = 1.0  # between two signs of life

Arrays = dict[str, npt.NDArray[Any]]
Progress = Callable[[float, float | None], None]  # share done, held-out perplexity of the first seed


class CheckpointStore(Protocol):
    """Where the checkpoint of a training that has not ended is kept."""

    def load(self) -> Arrays | None:
        """Return the arrays last saved; None where that is nothing, or cannot be gone on from here."""

    def save(self, arrays: Arrays) -> None:
        """Instead of what was saved before, whole or not at all. OSError where that cannot be."""


class Monitor:
    """Watch one training: `seconds` it has trained, in all its sittings."""

    def __init__(self, device: str, progress: Progress, keep: CheckpointStore | None) -> None:
        self.device, self.progress, self.keep = device, progress, keep
        self.seconds, self.begun = 0.0, 0.0
        self.told = self.saved = time.monotonic()
        self.share = 0.0
        self.perplexity: float | None = None

    def load(self) -> Arrays | None:
        """Return what the training goes on from."""
        found = self.keep.load() if self.keep else None
        if found is not None:
            self.seconds = float(found["train_s"])
        return found

    def start(self) -> None:
        self.begun = clock(self.device)

    def stop(self) -> None:
        self.seconds += clock(self.device) - self.begun

    def sign(self, share: float, perplexity: float | None) -> None:
        """A sign of life, and the latest held-out perplexity of the first seed."""
        self.told, self.share, self.perplexity = time.monotonic(), share, perplexity
        self.progress(share, perplexity)

    def alive(self) -> None:
        """In what takes long between two epochs: a sign of life, where it is time for one."""
        if time.monotonic() - self.told >= SIGN_S:
            self.sign(self.share, self.perplexity)

    def between(self, share: float, state_dict: Callable[[], Arrays]) -> None:
        """Between two steps, the clock running: a sign of life and a checkpoint, each where it is time for one."""
        self.share = share
        self.alive()
        if self.keep is not None and time.monotonic() - self.saved >= CHECKPOINT_S:
            self.stop()
            try:
                self.keep.save({**state_dict(), "train_s": np.array(self.seconds)})
            except OSError as error:  # the training itself can go on
                print(f"note: no checkpoint, {error.filename or 'system'}: {error.strerror or error}", file=sys.stderr)
            self.saved = time.monotonic()
            self.start()


def clock(device: str) -> float:
    """Seconds, after everything asked of the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def get_rng_state(rngs: Sequence[random.Random]) -> npt.NDArray[Any]:
    """Return the generators' states, (S, 625) whole numbers."""
    return np.array([rng.getstate()[1] for rng in rngs], dtype=np.uint32)


def set_rng_state(rngs: Sequence[random.Random], state: npt.NDArray[Any]) -> None:
    """Set the generators to states that `get_rng_state` returned."""
    for rng, row in zip(rngs, state.tolist(), strict=True):
        rng.setstate((random.Random.VERSION, tuple(row), None))
