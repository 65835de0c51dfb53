"""What to run: every field decides the key, every override is checked, and the seeds that an answer needs."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest

from harness.experiments import grids, protocols
from harness.experiments.protocols import CHOICES, Protocol
from harness.experiments.runs import RUN_UNSAID, Run, Runs, with_seed

RUN = Run("gru", 0, Protocol(), "sha", "cpu")
OTHER: dict[str, Any] = {
    "variant": "gru:R=1", "seed": 1, "corpus_sha256": "other", "device": "cuda", "engine": "fused", "capture": True,
    "deterministic": True, "precision": "tf32", "source": "edited", "hidden": 3, "lr": 0.5,
    "tokens": "other",
}  # fmt: skip
OTHER_PROTOCOL: dict[str, Any] = {field: choices[-1] for field, choices in CHOICES.items()}
OTHER_PROTOCOL |= {"name": "quick", "task": "s3"}


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Run) if f.name != "protocol"])
def test_key_changes_with_every_field(field: str) -> None:
    assert dataclasses.replace(RUN, **{field: OTHER[field]}).key != RUN.key


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Protocol)])
def test_key_changes_with_every_field_of_the_protocol(field: str) -> None:
    value = OTHER_PROTOCOL.get(field) or getattr(RUN.protocol, field) + 1
    other = dataclasses.replace(RUN, protocol=dataclasses.replace(RUN.protocol, **{field: value}))
    assert other.key != RUN.key


def test_a_grid_of_a_million_is_gone_through_without_a_list_and_its_keys_are_those_of_its_runs() -> None:
    made = with_seed(dataclasses.replace(RUN, **OTHER))
    for seed in (0, 1, 7, 123_456):
        alone = dataclasses.replace(RUN, **OTHER | {"seed": seed})
        assert (made(seed), made(seed).key, hash(made(seed))) == (alone, alone.key, hash(alone))
        assert made(seed).fields == alone.fields
    every = Runs(lambda: map(made, range(10**9)), 10**9)
    assert len(every) == 10**9
    assert next(iter(every)) == next(iter(every)) == made(0)
    assert made(3) in every
    assert len(Runs(lambda: filter(lambda run: run.seed % 2 == 0, map(made, range(10))))) == 5


def test_a_field_that_is_added_changes_no_key_until_it_is_used() -> None:
    @dataclasses.dataclass(frozen=True)
    class Later(Protocol):
        warmth: float = 0.0

    def key(protocol: Protocol) -> str:
        return dataclasses.replace(RUN, protocol=protocol).key

    assert key(Later()) == RUN.key
    assert key(Later(warmth=0.1)) != RUN.key
    assert key(Later(epochs=1)) == key(Protocol(epochs=1)) != RUN.key


def test_a_default_that_changes_changes_keys() -> None:
    """What is left out of a key is what is written down, not what is the default now."""
    for own, unsaid in ((Run, RUN_UNSAID), (Protocol, protocols.UNSAID)):
        defaults = {f.name: f.default for f in dataclasses.fields(own) if f.default is not dataclasses.MISSING}
        assert unsaid == defaults  # a new field is to be added there, once and for all


def test_a_variants_own_rate_and_size_are_what_it_trains_with() -> None:
    own = dataclasses.replace(RUN, lr=0.25, hidden=7).setting
    assert (own.lr, own.hidden) == (0.25, 7)
    assert (RUN.setting.lr, RUN.setting.hidden) == (1.0, 256)
    assert dataclasses.replace(own, lr=1.0, hidden=256) == RUN.protocol


def test_key_is_the_same_in_another_process() -> None:
    code = "from harness.experiments.runs import *; print(Run('gru', 0, Protocol(), 'sha', 'cpu').key)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert said == RUN.key


@pytest.mark.parametrize("variant", ["gru:Z=0,R=1", "../../etc/passwd", "a/b", "x\0y", "nn.gru"])
def test_key_is_one_plain_file_name(variant: str) -> None:
    key = dataclasses.replace(RUN, variant=variant).key
    assert not set(key) & set('/\\:\0*?"<>|')
    assert not key.startswith(".") or len(key) > 16


def test_classic_is_the_chapter() -> None:
    p = protocols.PROTOCOLS["classic"]
    assert (p.train_characters, p.batch_size, p.num_steps, p.hidden) == (10_000, 32, 35, 256)
    assert (p.lr, p.clip, p.epochs, p.evaluations, p.init) == (1.0, 1.0, 500, 20, "own")
    assert p.label == "classic"


def test_label_says_what_was_overridden() -> None:
    p = protocols.protocol("quick").override(["hidden=64", "lr=0.5"])
    assert (p.hidden, p.lr, p.label) == (64, 0.5, "quick,hidden=64,lr=0.5")
    assert protocols.protocol("quick").override(["hidden=32"]).label == "quick"  # its own value


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("epoch=3", "Did you mean 'epochs'"),
        ("epochs", "field=value"),
        ("epochs=", "whole number"),
        ("epochs=2.5", "whole number"),
        ("epochs=0", "above 0"),
        ("lr=nan", "above 0"),
        ("lr=inf", "above 0"),
        ("lr=-1", "above 0"),
        ("clip=zero", "number"),
        ("init=xavier", "own, book, torch"),
        ("name=mine", "no protocol field"),
        ("hidden=99999999999", "at most"),
    ],
)
def test_override_refuses_in_one_line(setting: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as error:
        Protocol().override([setting])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_override_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        Protocol().override(["epochs=1", "epochs=2"])


def test_protocol_misspelt() -> None:
    with pytest.raises(ValueError, match="Did you mean 'classic'"):
        protocols.protocol("clasic")


@pytest.mark.parametrize(("contrasts", "seeds"), [(1, 6), (2, 7), (6, 8), (8, 9), (9, 9), (10, 9), (0, 6)])
def test_seeds_needed(contrasts: int, seeds: int) -> None:
    """The least n with contrasts * 2 / 2^n <= 0.05, counted by hand."""
    assert grids.seeds_needed(contrasts) == seeds
    assert max(contrasts, 1) * 2 / 2**seeds <= 0.05 < max(contrasts, 1) * 2 / 2 ** (seeds - 1)


def test_contrasts() -> None:
    assert grids.contrasts(grids.ABLATE) == 8
    assert grids.contrasts(grids.BENCH) == 6
    assert grids.contrasts(["rnn", "lstm"]) == 0
