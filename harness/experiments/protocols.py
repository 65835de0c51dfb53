"""Define the protocols: everything about a training but its variant, seed, text and machine.

Plain data: no disk, no clock, no device, no torch.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from variants.registry import foreign, unknown

CHOICES = {
    "init": ("own", "book", "torch"),
    "text": ("lines", "whole", "spaces", "raw"),
    "sampling": ("sequential", "windows"),
    "rate": ("given", "chosen"),
    "match": ("hidden", "parameters"),
    "update_bias": ("own", "0", "1", "chrono"),
    "stop": ("end", "solved"),
    "tokens": ("characters", "bytes", "words"),
    "case": ("own", "keep", "lower"),
    "punctuation": ("own", "keep", "drop"),
    "optimizer": ("sgd", "adam", "adamw"),
    "schedule": ("constant", "cosine", "warmup"),
}
PROMPT = "time traveller"  # of a sample, the book's
SHUT, OPEN = 0.1, 0.9  # a gate's value below and above which it counts as saturated
MAY_BE_ZERO = {"validation_characters", "max_vocabulary", "dropout", "embedding", "momentum", "weight_decay",
               "warmup"}  # fmt: skip
# What rate=chosen chooses from, the same for every variant: as many rates of each optimizer, AdamW's those of Adam.
RATES = {"sgd": (0.25, 0.5, 1.0, 2.0, 4.0), "adam": (0.0003, 0.001, 0.003, 0.01, 0.03)}
TASK_RATES = {"sgd": (0.1, 0.3, 1.0, 3.0), "adam": (0.001, 0.003, 0.01, 0.03)}
USUAL_LR = {"sgd": 1.0, "adam": 0.003, "adamw": 0.003}  # where an optimizer is set and no rate
RATE_SEEDS = (1000, 1001)  # that choose it: none of them is scored
LARGEST = 10**9  # of any count: a typing slip becomes an error, not a week of work


@dataclass(frozen=True)
class Protocol:
    """All that makes two perplexities comparable. Defaults are the book's chapter, `classic`.

    The text is cut by position: `train_characters` to learn from, then `heldout_characters` never
    trained on. `epochs` passes over the first part, by sequential sampling of `batch_size` streams in
    windows of `num_steps` characters; `optimizer` at `lr`, gradient norm clipped to `clip` (per seed, over
    all parameters). `init`: `book` N(0, 0.01^2) with zero biases, `torch` U(-1/sqrt(h), 1/sqrt(h)),
    `own` the book's for cells written here and torch's for nn.*. `evaluations`: points on the curve.

    `text`: the chapter's preprocessing by `lines`, or the later edition's of the `whole` text (both: letters alone,
    in lower case), white space to single `spaces` (any text but the book, unless asked for otherwise), or `raw`.
    `case` and `punctuation`, digits too: own is as `text` has them. `tokens`: characters, the bytes of UTF-8, or words
    (runs of letters and digits; every other character but white space is one of its own). Parts are cut by characters
    whatever the tokens are; `num_steps` and windows count tokens.
    `max_vocabulary`: the most frequent tokens that are kept, 0 is all; see `corpus.Corpus.unknown_nats`.
    `embedding`: a token is read as so many trained numbers, 0 as one-hot.

    `sampling`: `windows` draws every window of the training part once an epoch in random order, from a zero state, as
    the later edition does; `train_characters` and `heldout_characters` then count windows by where they begin, and
    `overlap` of the held-out characters lie in the last training windows, as they do there.
    `validation_characters` lie between the two parts: curves are of them, and the held-out part is read at the end
    alone. `rate` chosen: `lr` is what does best there of RATES, for each variant, by trainings of RATE_SEEDS, and then
    means nothing here.
    `match` parameters: each variant has the hidden size that gives it the parameters of BASELINE with `hidden`.
    `update_bias`: initial bias of a GRU's update gate, where Z = 1 keeps: as `init` has it, 0, 1, or log U(1,
    num_steps - 1) (chrono, Tallec and Ollivier 2018).

    `layers` of the cell, each reading the outputs of the one below (variants/layers.py). `dropout`: the probability
    that such an output is 0, in training; the other outputs are scaled by 1 / (1 - dropout).

    `optimizer`, `momentum` (of sgd), `weight_decay`, `schedule` of the learning rate and its `warmup` in updates: as
    variants/optimizer.py defines them. An optimizer that is set without `lr` has that of USUAL_LR.

    `task`: the text, or a task of tasks.py: then `num_steps` is its length, an epoch UPDATES updates, Adam unless
    `optimizer` says otherwise, and `rate` chosen is what solves it for most of RATE_SEEDS, then soonest, of
    TASK_RATES. `stop` solved ends a training on a task once it is solved; the end is `epochs`.
    """

    name: str = "classic"
    train_characters: int = 10_000
    heldout_characters: int = 10_000
    batch_size: int = 32
    num_steps: int = 35
    hidden: int = 256
    lr: float = 1.0
    clip: float = 1.0
    epochs: int = 500
    init: str = "own"
    evaluations: int = 20
    text: str = "lines"
    sampling: str = "sequential"
    validation_characters: int = 0
    rate: str = "given"
    match: str = "hidden"
    update_bias: str = "own"
    task: str = "text"
    max_vocabulary: int = 0
    stop: str = "end"
    layers: int = 1
    dropout: float = 0.0
    tokens: str = "characters"
    case: str = "own"
    punctuation: str = "own"
    embedding: int = 0
    optimizer: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup: int = 0

    @property
    def label(self) -> str:
        """Its name, with every field that was overridden: `classic,hidden=64`."""
        return _label(self)

    @property
    def overlap(self) -> int:
        """Held-out characters that are trained on too: by windows, those that the last training windows run into."""
        return max(0, self.num_steps - self.validation_characters) if self.sampling == "windows" else 0

    def override(self, settings: Iterable[str]) -> Protocol:
        """A copy with `field=value` texts applied. ValueError names the field, the choices, the value."""
        changes: dict[str, int | float | str] = {}
        for setting in settings:
            field, equals, text = setting.partition("=")
            if not equals:
                raise ValueError(f"--set needs field=value, not {setting!r}{foreign(setting, ': ')}")
            if field not in FIELDS:
                raise ValueError(unknown("protocol field", field, FIELDS))
            if field in changes:
                raise ValueError(f"--set gives {field} twice")
            if re.search(rf"[,;]\s*({'|'.join(FIELDS)})=", text):
                raise ValueError(f"spaces separate fields, not commas: --set {' '.join(re.split('[,;] *', setting))}")
            changes[field] = _parse(field, text)
        if "lr" in changes:
            changes.setdefault("rate", "given")
            if changes["rate"] == "chosen":
                raise ValueError("--set gives lr, and rate=chosen, which chooses it: give one of them")
        if changes.get("optimizer", self.optimizer) != self.optimizer:
            changes.setdefault("lr", USUAL_LR[str(changes["optimizer"])])
        changed = dataclasses.replace(self, **changes)  # type: ignore[arg-type]
        if changed.layers > MOST_LAYERS:
            raise ValueError(f"layers is at most {MOST_LAYERS}, not {changed.layers}")
        if not 0 <= changed.dropout < 1:
            raise ValueError(f"dropout is a probability from 0 to below 1, not {changed.dropout:g}")
        if changed.dropout and changed.layers == 1:
            raise ValueError("dropout is between layers, and there is one: add layers=2")
        if not 0 <= changed.momentum < 1:
            raise ValueError(f"momentum is from 0 to below 1, not {changed.momentum:g}")
        if changed.momentum and changed.optimizer != "sgd":
            raise ValueError(
                f"momentum is of sgd: {changed.optimizer} has its own; leave momentum out, or optimizer=sgd"
            )
        if changed.schedule == "warmup" and not changed.warmup:
            raise ValueError("schedule=warmup rises over `warmup` updates: add warmup=100, or another number of them")
        if changed.warmup and changed.schedule == "constant":
            raise ValueError(f"warmup={changed.warmup} needs a schedule: add schedule=warmup, or schedule=cosine")
        return changed


# Each field's default as keys know it. No entry is ever changed: where a default is, the keys of its runs must be too.
# On a task Adam is the default, see `unsaid`.
UNSAID: dict[str, object] = {
    "name": "classic", "train_characters": 10_000, "heldout_characters": 10_000, "batch_size": 32, "num_steps": 35,
    "hidden": 256, "lr": 1.0, "clip": 1.0, "epochs": 500, "init": "own", "evaluations": 20, "text": "lines",
    "sampling": "sequential", "validation_characters": 0, "rate": "given", "match": "hidden", "update_bias": "own",
    "task": "text", "max_vocabulary": 0, "stop": "end", "layers": 1, "dropout": 0.0,
    "tokens": "characters", "case": "own", "punctuation": "own", "embedding": 0,
    "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "warmup": 0,
}  # fmt: skip
FIELDS: dict[str, Any] = {
    f.name: type(f.default) for f in dataclasses.fields(Protocol) if f.name not in ("name", "task")
}  # of --set
# `quick` is for two CPU cores, minutes: more text and fewer passes, 32 units, 16 steps, torch's initial values and a
# larger step, so that its variants differ (with the book's they are still at perplexity 15 after 20 epochs). lr 2: at
# 3 a seed of nn.rnn in two blew up, at 2 none in twenty of rnn and nn.rnn did. `v1` is the chapter's later edition (its
# RNN at lr 1, 100 epochs). `book` is the whole text, 90/5/5 by position.
PROTOCOLS = {
    p.name: p
    for p in (
        Protocol(),
        Protocol(name="quick", train_characters=80_000, num_steps=16, hidden=32, lr=2.0, epochs=5, init="torch"),
        Protocol(
            name="v1",
            heldout_characters=5_000,
            batch_size=1024,
            num_steps=32,
            hidden=32,
            lr=4.0,
            epochs=50,
            text="whole",
            sampling="windows",
        ),
        Protocol(
            name="book",
            train_characters=153_522,
            validation_characters=8_529,
            heldout_characters=8_529,
            num_steps=32,
            hidden=128,
            epochs=30,
            init="torch",
            rate="chosen",
        ),
    )
}
SHORT = ("quick",)  # protocols made for minutes: they show which way things lean
TASK_FIELDS = ("batch_size", "hidden", "lr", "clip", "epochs", "init", "update_bias", "rate", "stop", "match", "layers",
               "dropout", "optimizer", "momentum", "weight_decay", "schedule", "warmup")  # fmt: skip
UPDATES = 100  # in an epoch of a task: between two checks
MOST_LAYERS = 16


def rates(protocol: Protocol) -> tuple[float, ...]:
    """Return what the learning rate is chosen from: with momentum less by what momentum adds up to."""
    grid = RATES if protocol.task == "text" else TASK_RATES
    return tuple(float(f"{lr * (1 - protocol.momentum):.6g}") for lr in grid[protocol.optimizer.removesuffix("w")])


def unsaid(task: str) -> dict[str, object]:
    """Return each field's default as keys know it, of a text or a task."""
    return UNSAID if task == "text" else UNSAID | {"optimizer": "adam"}


@functools.cache
def task_protocol(name: str) -> Protocol:
    """How a network is trained on the task of that name. One that lies in a user's file has no length of its own:

    a label is read where that file may not be.
    """
    from harness.experiments.tasks import PLACES, TASKS  # here: it imports NumPy, which --help does without

    length = 0 if name in PLACES or name not in TASKS else TASKS[name].length
    return Protocol(name=name, task=name, num_steps=length, hidden=32, lr=0.01, epochs=20, init="torch",
                    rate="chosen", stop="solved", optimizer="adam")  # fmt: skip


def protocol(name: str) -> Protocol:
    """The protocol of that name; ValueError with the nearest one otherwise."""
    if name not in PROTOCOLS:
        raise ValueError(unknown("protocol", name, PROTOCOLS))
    return PROTOCOLS[name]


@functools.lru_cache
def _label(protocol: Protocol) -> str:
    base = PROTOCOLS.get(protocol.name, Protocol()) if protocol.task == "text" else task_protocol(protocol.task)
    changed = [
        f"{f.name}={_spell(getattr(protocol, f.name))}"
        for f in dataclasses.fields(protocol)
        if f.name != "name"
        and getattr(protocol, f.name) != getattr(base, f.name)
        and not (f.name == "lr" and protocol.rate == "chosen")
    ]
    return ",".join([protocol.name, *changed])


def _spell(value: int | float | str) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _parse(field: str, text: str) -> int | float | str:
    kind = FIELDS[field]
    if kind is str:
        if text not in CHOICES[field]:
            raise ValueError(unknown(field, text, CHOICES[field]))
        return text
    try:
        value: int | float = kind(text)
    except ValueError:
        raise ValueError(
            f"{field} is {'a whole' if kind is int else 'a'} number, not {text!r}{meant(text, kind)}"
        ) from None
    if value == 0 and field in MAY_BE_ZERO:
        return value
    if not 0 < value <= LARGEST:  # NaN fails this too
        raise ValueError(f"{field} must be above 0 and at most {LARGEST:g}, not {text}")
    return value


def meant(text: str, kind: type = int) -> str:
    """Return what to write instead of a number with commas in it; '' where there is none."""
    if re.fullmatch(r"\d{1,3}([,'_ ]\d{3})+", text):
        return ": write " + re.sub(r"\D", "", text)
    if re.fullmatch(r"\d*(,\d+)+", text):
        return f": write {text.replace(',', '.')}" if kind is float else f": write {text.replace(',', ' ')}"
    return ""
