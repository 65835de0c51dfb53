"""The GPU's kernel, checked without a GPU: its blocks one beside another, and what is compiled for one."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from typing import Any

import emulator
import pytest
import torch
from compiled import compiled
from test_engines import results
from torch.utils._python_dispatch import TorchDispatchMode

from harness.run import agreement
from variants.engines import fused, loop, resident

# one of each kind of kernel: reset none, before, after, none and no state in the candidate; Z learned and held
KINDS = ["gru:R=1", "rnn", "gru", "gru:Z=0.3", "gru_after", "gru_after:Z=0.3", "gru:R=0", "gru:Z=0,R=0"]


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., float]]:
    """The largest difference of anything that the kernels give from what the loop gives, relative to its norm."""

    def run(
        variant: str, h: int, blocks: int, edit: Callable[[str], str] = lambda code: code, numbers: bool = False
    ) -> float:
        for name in ("_forward", "_backward"):
            monkeypatch.setattr(resident, name, emulator.Kernel(name, 0, edit), raising=False)
        monkeypatch.setattr(resident, "triton", emulator.TRITON)
        monkeypatch.setattr(resident, "processors", lambda device: 2 * blocks - 1)  # one seed a launch
        monkeypatch.setattr(resident, "tile", lambda *sizes: (h // blocks, 2))
        exact = results(variant, loop, 2, torch.float64, 3, h, numbers=numbers)
        found = results(variant, resident, 2, torch.float32, 3, h, numbers=numbers)
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


def test_of_numbers_too(emulated: Callable[..., float]) -> None:
    for variant in ("gru", "gru_after"):
        assert emulated(variant, 32, 2, numbers=True) < 1e-5


def test_addresses_of_more_than_32_bits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would wrap round, and be somebody else's."""
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    S, T, n, h = 150, 600, 32, 256
    table, X, H0 = (torch.empty(*shape, device="meta") for shape in ((S, 28, 3 * h), (S, T, n), (S, n, h)))
    with pytest.raises(ValueError, match="150 seeds of 600 steps are beyond its addresses of 32 bits"):
        resident.Recurrence.apply(table, X.long(), H0, None, None, "none", None)  # type: ignore[no-untyped-call]


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


# ---- products as a tensor core rounds them ---------------------------------------------------------------------------


class Rounded(TorchDispatchMode):
    """Both factors of every float32 product with so many bits of their mantissas, rounded or cut off."""

    def __init__(self, bits: int, cut: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drop, self.cut = 23 - bits, cut

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.removeprefix("aten::").rstrip("_")
        first = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}.get(name)
        if first is not None and args[first].dtype == torch.float32:
            half = 0 if self.cut else 1 << (self.drop - 1)
            factors = [x.contiguous().view(torch.int32) + half & -(1 << self.drop) for x in args[first : first + 2]]
            args = (*args[:first], *(x.view(torch.float32) for x in factors), *args[first + 2 :])
        return function(*args, **(kwargs or {}))


def apart(variant: str, bits: int, cut: bool = False) -> float:
    """As test_resident_on_a_gpu_is_near_the_loop, its products done here by `fused`."""
    exact = results(variant, loop, 2, torch.float64, 32, 256)
    with Rounded(bits, cut):
        found = results(variant, fused, 2, torch.float32, 32, 256)
    return max(float((found[k] - exact[k]).detach().norm() / (exact[k].detach().norm() + 1e-12)) for k in exact)


@pytest.mark.parametrize("variant", ["rnn", "gru", "gru_after"])
def test_rounded_products_are_within_half_of_what_is_allowed(variant: str) -> None:
    assert apart(variant, 10) <= agreement.ROUNDED["tf32"] / 2
    assert apart(variant, 7) <= agreement.ROUNDED["bf16"] / 2


def test_products_cut_off_are_not() -> None:
    assert apart("rnn", 10, cut=True) > agreement.ROUNDED["tf32"] / 2


# ---- the machine code ------------------------------------------------------------------------------------------------

SIZES = [  # hidden units, seeds, precision, variants
    (256, 1, "tf32", ["rnn", "gru:R=1", "gru", "gru_after"]),
    (256, 30, "tf32", ["gru"]),
    (256, 1, "bf16", ["gru_after"]),
    (32, 1, "tf32", ["rnn", "gru_after"]),
]


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="triton is not installed: requirements/triton.txt")
@pytest.mark.parametrize(
    ("variant", "h", "seeds", "precision"),
    [(variant, h, seeds, precision) for h, seeds, precision, those in SIZES for variant in those],
)
def test_what_is_compiled_for_an_h100(variant: str, h: int, seeds: int, precision: str) -> None:
    """It does no product twice, keeps all it works on in a multiprocessor, and reads no state before it is there."""
    for kernel in compiled(variant, seeds, h, resident.BATCH, precision):
        assert kernel.spilled <= 16
        assert kernel.shared <= 227 * 1024
        assert kernel.asynchronous == 0
        assert kernel.products <= kernel.needed
        assert kernel.cooperative
        assert kernel.stages == 1
        assert "T" not in kernel.constants  # else each length of text would be compiled
        assert bool(kernel.rounded) == (precision == "tf32" and kernel.needed > 0)
