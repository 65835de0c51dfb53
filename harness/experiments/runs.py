"""Define a run, one training of one seed, and its key.

Everything that decides the outcome of a training is a field of `Run`, and `Run.key` changes when any of them does.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from harness.experiments.protocols import Protocol, unsaid

# What pandas.read_csv takes for a missing value unless told otherwise: no name of ours.
MISSING = frozenset((
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
))  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One training: one variant, one seed, and everything else that decides its outcome."""

    variant: str
    seed: int
    protocol: Protocol
    corpus_sha256: str
    device: str
    engine: str = "loop"
    capture: bool = False
    precision: str = "ieee"
    deterministic: bool = False  # on CUDA, where it costs; on a CPU every run is
    source: str = ""  # fingerprint of the equations and of the code that executes them
    hidden: int = 0  # of this variant, where the protocol matches parameters; 0 is the protocol's
    lr: float = 0.0  # of this variant, where the protocol leaves it to be chosen; 0 is the protocol's
    tokens: str = ""  # digest of the text as trained on, after all preprocessing

    @property
    def setting(self) -> Protocol:
        """The protocol with what it leaves to the variant filled in: what is trained."""
        protocol = self.protocol
        return dataclasses.replace(protocol, hidden=self.hidden or protocol.hidden, lr=self.lr or protocol.lr)

    @property
    def fields(self) -> dict[str, object]:
        """Every field by its name, those of the protocol too: as `dataclasses.asdict`, which copies each value."""
        fields = {**vars(self), "protocol": vars(self.protocol)}
        fields.pop("key", None)  # once asked for it stands beside them
        return fields

    @functools.cached_property
    def key(self) -> str:
        """A name for files: readable in front, and behind it a hash of every field that is not at its default."""
        return f"{_safe(self.variant)}-{self.seed}-{hashlib.sha256(_whole(self).encode()).hexdigest()[:16]}"


# Each field's default as keys know it. No entry is ever changed: where a default is, the keys of its runs must be too.
RUN_UNSAID: dict[str, object] = {
    "engine": "loop", "capture": False, "precision": "ieee", "deterministic": False, "source": "", "hidden": 0,
    "lr": 0.0, "tokens": "",
}  # fmt: skip


def _said(part: Run | Protocol, unsaid: Mapping[str, object]) -> dict[str, object]:
    """The fields that differ from their default: one that is added later changes no key until it is used."""
    own = [field for field in dataclasses.fields(part) if field.name != "protocol"]
    values = {field.name: getattr(part, field.name) for field in own}
    return {f.name: values[f.name] for f in own if values[f.name] != unsaid.get(f.name, f.default)}


def _whole(run: Run) -> str:
    """All that a key is a hash of."""
    return json.dumps(
        {"run": _said(run, RUN_UNSAID), "protocol": _said(run.protocol, unsaid(run.protocol.task))}, sort_keys=True
    )


def _safe(variant: str) -> str:
    return "".join(c if c.isalnum() or c in "._=," else "." for c in variant)


def with_seed(run: Run) -> Callable[[int], Run]:
    """Return what makes the run of another seed, its key known: the hash of all before the seed is taken once."""
    own = {name: value for name, value in vars(run).items() if name != "key"}
    head, seed, tail = _whole(run).partition(f'"seed": {run.seed}')
    before = hashlib.sha256(f"{head}{seed.removesuffix(str(run.seed))}".encode())
    name, end = _safe(run.variant), tail.encode()

    def other(seed: int) -> Run:
        made, digest = object.__new__(Run), before.copy()
        digest.update(b"%d%s" % (seed, end))
        vars(made).update(own, seed=seed, key=f"{name}-{seed}-{digest.hexdigest()[:16]}")
        return made

    return other


class Runs(Collection[Run]):
    """Runs in order, made anew whenever they are gone through: of a million none is held. `make` begins from the first.

    They are counted when that is first asked for.
    """

    def __init__(self, make: Callable[[], Iterator[Run]], size: int | None = None) -> None:
        self._make, self._size = make, size

    def __iter__(self) -> Iterator[Run]:
        return self._make()

    def __len__(self) -> int:
        if self._size is None:
            self._size = sum(1 for _ in self)
        return self._size

    def __contains__(self, run: object) -> bool:
        return any(run == own for own in self)


CONTROL_SUFFIX = "#2"  # the label of the baseline's second self (A/A)


@dataclass(frozen=True)
class Candidate:
    """One thing to be timed. Two labels may name the same run: that pair measures the noise."""

    label: str
    run: Run
    seeds: int = 1  # side by side in one tensor program
    control_of: str = ""  # label of what this times again (A/A control)
