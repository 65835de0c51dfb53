"""The GPU's kernel, checked without a GPU: its blocks one beside another, and what is compiled for one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import emulator
import pytest
import torch
from test_engines import results

from variants.engines import loop, resident

# one of each kind of kernel: reset none, before, after, none and no state in the candidate; Z learned and held
KINDS = ["gru:R=1", "rnn", "gru", "gru:Z=0.3", "gru_after", "gru_after:Z=0.3", "gru:R=0", "gru:Z=0,R=0"]


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., float]]:
    """The largest difference of anything that the kernels give from what the loop gives, relative to its norm."""

    def run(variant: str, h: int, blocks: int, edit: Callable[[str], str] = lambda code: code, seed: int = 0) -> float:
        for name in ("_forward", "_backward"):
            monkeypatch.setattr(resident, name, emulator.Kernel(name, seed, edit), raising=False)
        monkeypatch.setattr(resident, "triton", emulator.TRITON)
        monkeypatch.setattr(resident, "processors", lambda device: 2 * blocks - 1)  # one seed a launch
        monkeypatch.setattr(resident, "tile", lambda *sizes: (h // blocks, 2))
        exact = results(variant, loop, 2, torch.float64, 3, h)
        found = results(variant, resident, 2, torch.float32, 3, h)
        return max(float((found[k] - exact[k]).detach().norm() / (exact[k].detach().norm() + 1e-12)) for k in exact)

    torch.set_float32_matmul_precision("high")
    torch._C._set_deterministic_algorithms(True)  # what is not written is not a number
    yield run
    torch._C._set_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(("h", "blocks"), [(32, 1), (32, 2), (64, 4)])
@pytest.mark.parametrize("variant", KINDS)
def test_blocks_side_by_side_are_the_loop(variant: str, h: int, blocks: int, emulated: Callable[..., float]) -> None:
    assert emulated(variant, h, blocks) < 1e-5


def nth(pattern: str, n: int, by: str) -> Callable[[str], str]:
    """Replace the n-th place where a pattern is found."""

    def edit(code: str) -> str:
        place = list(re.finditer(pattern, code))[n]
        return code[: place.start()] + by + code[place.end() :]

    return edit


MEET = r"_meet\(counter, met, C\)"
EDITS = {
    "no meeting after R * H": ("gru", 2, nth(MEET, 0, "pass")),
    "no meeting at the end of a step": ("gru_after", 2, nth(MEET, 1, "pass")),
    "no first meeting back": ("gru_after", 2, nth(MEET, 2, "pass")),
    "no second meeting back": ("gru", 2, nth(MEET, 3, "pass")),
    "it waits for one too few": ("gru_after", 2, nth("< target", 0, "< target - 1")),
    "it waits for one too many": ("gru_after", 2, nth("< target", 0, "<= target")),
    "what was written before is not seen after": ("gru_after", 2, nth("sem='release'", 0, "sem='relaxed'")),
    "what was read before is seen after": ("gru_after", 2, nth("sem='acquire'", 0, "sem='relaxed'")),
    "another block's columns": ("gru_after", 2, nth(r"tl\.program_id\(0\) \* D", 0, "0 * D")),
    "one block needs no barrier": ("rnn", 1, nth(r"tl\.debug_barrier\(\)", 0, "pass")),
}


@pytest.mark.parametrize("what", EDITS)
def test_blocks_that_do_not_wait_are_found_out(what: str, emulated: Callable[..., float]) -> None:
    variant, blocks, edit = EDITS[what]
    with pytest.raises(emulator.Wrong):
        emulated(variant, 32, blocks, edit)
