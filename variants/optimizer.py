"""Define how an update follows from a gradient: SGD, Adam or AdamW, and the learning rate's schedule.

Rule: the numbers are those of torch.optim and torch.optim.lr_scheduler, which a test shows. Kingma and Ba 2015,
https://arxiv.org/abs/1412.6980; Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101 (AdamW).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # of Adam


@dataclass(frozen=True)
class Optimizer:
    """How weights are updated. `updates`: how many a training has, which `schedule` cosine needs.

    kind            sgd, adam or adamw
    momentum        of SGD: what is subtracted is the sum of all gradients so far, each update back by this factor less
    weight_decay    times the weights: added to the gradient, or by AdamW to the update, times the learning rate
    schedule        of the learning rate: constant; warmup: rising linearly over the first `warmup` updates; cosine:
                    after such a rise, if there is one, falling along half a cosine to 0 after the last update
    """

    kind: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup: int = 0
    updates: int = 0

    @property
    def moments(self) -> int:
        """How many running averages of the weights' size it keeps."""
        return 2 if self.kind != "sgd" else int(self.momentum > 0)

    def factor(self, done: Any) -> Any:
        """Factor of the learning rate after `done` updates, a number or a tensor of one on the device."""
        if self.schedule == "constant":
            return 1.0
        rise = _clamped((done + 1) / max(self.warmup, 1))
        if self.schedule == "warmup":
            return rise
        share = _clamped((done - self.warmup) / max(self.updates - self.warmup, 1))
        return rise * (1 + (torch.cos if isinstance(share, Tensor) else math.cos)(math.pi * share)) / 2

    def change(
        self, weights: Tensor, gradient: Tensor, moments: tuple[Tensor, ...], lr: float, done: Any, fine: Tensor
    ) -> Tensor:
        """Return what to subtract from the weights (S, P), and write the moments of seeds that are `fine` (S, 1)."""
        rate: Tensor = lr * self.factor(done)  # a number too
        decay = self.weight_decay
        g = gradient + decay * weights if decay and self.kind != "adamw" else gradient
        if self.kind == "sgd" and not moments:
            return rate * g
        if self.kind == "sgd":
            [m] = moments
            m.copy_(torch.where(fine, self.momentum * m + g, m))
            return rate * m
        m, v = moments
        m.copy_(torch.where(fine, BETA1 * m + (1 - BETA1) * g, m))
        v.copy_(torch.where(fine, BETA2 * v + (1 - BETA2) * g * g, v))
        size: Tensor = rate * (m / (1 - BETA1 ** (done + 1))) / ((v / (1 - BETA2 ** (done + 1))).sqrt() + EPS)
        return size + rate * decay * weights if decay and self.kind == "adamw" else size


def _clamped(share: Any) -> Any:
    return share.clamp(0, 1) if isinstance(share, Tensor) else min(max(share, 0.0), 1.0)


def of(settings: Any, updates: int) -> Optimizer:
    """Return the optimizer that settings with fields of these names ask for, a protocol for one."""
    named = (settings.optimizer, settings.momentum, settings.weight_decay, settings.schedule, settings.warmup)
    return Optimizer(*named, updates if settings.schedule == "cosine" else 0)


SGD, ADAM = Optimizer(), Optimizer("adam")
