"""The recurrence of family.py as one kernel for the whole sequence, its weights held on chip (CUDA, Triton).

A seed has `blocks` thread blocks. Each keeps the columns of W of its own hidden units in registers or shared memory
from the first step to the last, computes those units for every row of the batch, writes them to device memory, and
meets the seed's other blocks at a counter before it reads the whole state for the next step. A learned reset gate
before the product needs a second meeting a step. What is absent (a gate held, no reset, no history) is not compiled.
Weight gradients are family.py's: one product over all of time. No seed's arithmetic depends on another's.
"""

from __future__ import annotations

import functools
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cell import Cell, State
from . import family, native

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for the CPU comes without it
    triton = None

NONE, BEFORE, AFTER = 0, 1, 2
RESETS = ("none", "before", "after")
PRECISIONS = {"highest": "ieee", "high": "tf32", "medium": "bf16"}  # as torch names what a float32 product may round to
LEAST, LARGEST, BATCH = 32, 256, 32  # hidden sizes, powers of two, and sequences, that fit on chip


def unsupported_reason(variant: type[Cell], device: str = "cpu") -> str:
    if reason := family.unsupported_reason(variant, device):
        return reason
    if device != "cuda":
        return "it runs on CUDA"
    return "" if triton else "triton is not installed"


def unsupported_size(hidden: int, batch: int, precision: str) -> str:
    """Why a size does not fit on chip, '' where it does."""
    if precision not in PRECISIONS.values() or precision == "ieee":
        return "its products are tf32 or bf16: in ieee the weights do not stay in registers"
    if hidden & (hidden - 1) or not LEAST <= hidden <= LARGEST:
        return f"its hidden size is a power of two from {LEAST} to {LARGEST}, not {hidden}"
    return "" if batch <= BATCH else f"its batch is at most {BATCH}, not {batch}"


def tile(
    seeds: int, hidden: int, products: int, multiprocessors: int, reset: str = "none", card: str = ""
) -> tuple[int, int]:
    """Return hidden units of a thread block and its warps: the fastest measured on this card, see `measured_tiles`.

    A hidden size that was not measured takes that of the nearest, of 32 units at most, which fit every size. Without a
    measurement the least work a step by the compiled code. 16 units halve what a multiprocessor does, and
    twice as many of them serve a seed: while all seeds fit at once. With more warps than a product of 32 rows fills,
    each would read all weights again; one product alone spills with 2.
    """
    near = {
        h: by for (h, *kind), by in measured_tiles(card).items()
        if kind == [products, reset] and (h == hidden or all(units <= 32 for units, _ in by.values()))
    }  # fmt: skip
    if near:
        found = near[min(near, key=lambda h: abs(math.log(h / hidden)))]
        return found[min(found, key=lambda count: abs(math.log(count / seeds)))]
    units = 16 if seeds * hidden <= 16 * multiprocessors else 32
    return units, 4 if products == 1 else 2


def tiles_file() -> Path | None:
    """Return the file of measured tiles: RESIDENT_TILES, else tiles.json in the cache folder; None without one."""
    if named := os.environ.get("RESIDENT_TILES"):
        return Path(named)
    try:
        return native.cache() / "tiles.json"
    except OSError:
        return None


@functools.cache
def measured_tiles(card: str) -> dict[tuple[int, int, str], dict[int, tuple[int, int]]]:
    """Return (hidden size, products, reset) -> seeds -> (units, warps) as measured on a card of that name.

    `python3 -m tests.gpu` writes the file, a JSON object of lists by the card's name; read once a process. Empty where
    nothing was measured. ValueError for a file with anything else in it.
    """
    found: dict[tuple[int, int, str], dict[int, tuple[int, int]]] = {}
    path = tiles_file() if card else None
    if path is None or not path.is_file():
        return found
    try:
        for row in json.loads(path.read_text(encoding="utf-8")).get(card, []):
            h, units, warps = row["hidden"], row["units"], row["warps"]
            if h % units or units & (units - 1) or units < 16 or warps not in (1, 2, 4, 8) or row["seeds"] < 1:
                raise ValueError(f"{units} units with {warps} warps is no tile of {h}")
            found.setdefault((h, row["products"], row["reset"]), {})[row["seeds"]] = units, warps
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no file of measured tiles ({error}): delete it, or measure again with python3 -m tests.gpu"
        ) from None
    return found


def unroll(cell: Cell, X: Tensor, state: State) -> tuple[Tensor, State]:
    return family.unroll(cell, X, state, Recurrence)


class Recurrence(torch.autograd.Function):
    """Forward and backward of all of time, float32."""

    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        X: Tensor,
        H0: Tensor,
        W: Tensor | None,
        b_n: Tensor | None,
        reset: str,
        z: float | None,
    ) -> Tensor:
        X, table = X.contiguous(), table.contiguous()
        S, T, n = X.shape
        columns, h = table.shape[-1], H0.shape[-1]
        if reason := unsupported_size(h, n, PRECISIONS[torch.get_float32_matmul_precision()]):
            raise ValueError(f"resident: {reason}")
        if S * T * n * columns >= 2**31:
            raise ValueError(
                f"resident: {S} seeds of {T} steps are beyond its addresses of 32 bits: train fewer at once"
            )
        G, Hs = table.new_empty(S, T, n, columns), table.new_empty(S, T + 1, n, h)
        Hs[:, 0] = H0
        U = table.new_empty(S, T, n, h) if reset != "none" else Hs
        ctx.d, ctx.reset, ctx.z = table.shape[1], reset, z
        whole = Hs if W is None else W.contiguous()  # a pointer there must be
        held = {"h": h, "k": columns - h, "cols": 0 if W is None else W.shape[-1]}
        for first, counters, grid, how in _launches(S, T, h, n, held["cols"], reset, z, table.device):
            _forward[grid](table, X, whole, b_n if b_n is not None else Hs, G, Hs, U, counters, first, n, z or 0.0,
                           **held, **how)  # fmt: skip
        ctx.save_for_backward(X, G, Hs, U, W)
        return Hs[:, 1:]

    @staticmethod
    def backward(ctx: Any, dHs: Tensor) -> Any:
        X, G, Hs, U, W = ctx.saved_tensors
        reset = ctx.reset
        S, T, n, columns = G.shape
        h = Hs.shape[-1]
        dA, d = torch.empty_like(G), torch.empty_like(Hs[:, 0])
        dN = torch.empty_like(U) if reset == "after" else dA
        whole, dHs = Hs if W is None else W.contiguous(), dHs.contiguous()
        held = {"h": h, "k": columns - h, "cols": 0 if W is None else W.shape[-1]}
        for first, counters, grid, how in _launches(S, T, h, n, held["cols"], reset, ctx.z, G.device):
            _backward[grid](whole, G, Hs, U, dHs, dA, dN, d, counters, first, n, ctx.z or 0.0, **held, **how)
        seen = torch.cat([dA[..., : columns - h], dN], -1) if reset == "after" else dA
        dW, db = family.weight_gradients(Hs, U, seen, reset, held["cols"])
        return family.table_gradient(X, dA, ctx.d), None, d, dW, db, None, None


def _launches(S: int, T: int, h: int, n: int, columns: int, reset: str, z: float | None, device: torch.device) -> Any:
    """(first seed, counters, grid, constants) of each launch: blocks that wait for one another must all be resident."""
    on_gpu = processors(device)
    units, warps = tile(S, h, columns // h, on_gpu, reset, card(device))
    blocks = h // units if on_gpu else 1  # the interpreter runs them one after another
    wave = max(1, on_gpu // blocks)
    how = {
        "T": T if on_gpu else tl.constexpr(T),  # the interpreter makes arrays of numbers, which no range takes
        "RESET": RESETS.index(reset), "HELD": z is not None, "C": blocks, "N": max(16, triton.next_power_of_2(n)),
        "PRECISION": PRECISIONS[torch.get_float32_matmul_precision()] if on_gpu else "ieee", "num_warps": warps,
        "num_stages": 1,  # no load may be moved before the meeting that makes its value
        "launch_cooperative_grid": True,  # refuses what cannot all be resident, instead of waiting for ever
    }  # fmt: skip
    for first in range(0, S, wave):
        some = min(wave, S - first)
        yield first, torch.zeros(some, dtype=torch.int32, device=device), (blocks, some), how


@functools.cache
def processors(device: torch.device) -> int:
    """Return how many blocks run at once, one a multiprocessor: 0 of a CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 0


@functools.cache
def card(device: torch.device) -> str:
    """Return the GPU's name: '' of a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


if triton:

    @triton.jit
    def _meet(counter, target, C: tl.constexpr):
        """Wait until the seed's C blocks have all come: what they wrote before is seen after."""
        tl.debug_barrier()
        if C > 1:
            tl.atomic_add(counter, 1, sem="release", scope="gpu")
            while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < target:
                pass
            tl.debug_barrier()

    @triton.jit
    def _product(a, b, PRECISION: tl.constexpr):
        return tl.dot(_rounded(a, PRECISION), b, input_precision="ieee" if PRECISION == "bf16" else PRECISION)

    @triton.jit
    def _rounded(x, PRECISION: tl.constexpr):
        """Round a factor: a tensor core drops the bits of a float32 that it does not read, so they are rounded away."""
        if PRECISION == "bf16":
            return x.to(tl.bfloat16)
        elif PRECISION == "tf32":
            return tl.inline_asm_elementwise("cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], tl.float32, is_pure=True, pack=1)
        else:
            return x

    @triton.jit
    def _keep(W, PRECISION: tl.constexpr):
        """A block's part of the weights, on chip from here on."""
        return _rounded(tl.load(W), PRECISION)

    @triton.jit
    def _tanh(x):
        return 2 * tl.sigmoid(2 * x) - 1

    @triton.jit(do_not_specialize=["first", "T"])  # one compilation for texts of every length
    def _forward(
        table, X, W, b, G, Hs, U, counters, first, n, z,
        T, h: tl.constexpr, k: tl.constexpr, cols: tl.constexpr, RESET: tl.constexpr, HELD: tl.constexpr,
        C: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        D: tl.constexpr = h // C
        wide: tl.constexpr = k + h
        s, counter = first + tl.program_id(1), counters + tl.program_id(1)
        own, every, rows = tl.program_id(0) * D + tl.arange(0, D), tl.arange(0, h), tl.arange(0, N)
        inside = rows[:, None] < n
        W_own = W + s * h * cols + every[:, None] * cols + own[None, :]
        if not HELD:
            W_z = _keep(W_own, PRECISION)
        if RESET != 0:
            W_r = _keep(W_own + (k - h), PRECISION)
            W_n = _keep(W_own + k, PRECISION)
        elif cols > k:
            W_n = _keep(W_own + k, PRECISION)
        if RESET == 2:
            b_n = tl.load(b + s * h + own)[None, :]
        H_own = tl.load(Hs + (s * (T + 1) * n + rows[:, None]) * h + own[None, :], mask=inside, other=0.0)
        met = 0
        for t in tl.range(T):
            H_t, row = Hs + ((s * (T + 1) + t) * n + rows[:, None]) * h, (s * T + t) * n + rows[:, None]
            x = tl.load(X + row, mask=inside, other=0)
            a, g = table + x * wide + own[None, :], G + row * wide + own[None, :]
            if cols > 0:
                H = tl.load(H_t + every[None, :], mask=inside, other=0.0, cache_modifier=".cg")
            if not HELD:
                Z = tl.sigmoid(tl.load(a, mask=inside, other=0.0) + _product(H, W_z, PRECISION))
                tl.store(g, Z, mask=inside)
            else:
                Z = z
            N_t = tl.load(a + k, mask=inside, other=0.0)
            if RESET != 0:
                R = tl.sigmoid(tl.load(a + (k - h), mask=inside, other=0.0) + _product(H, W_r, PRECISION))
                tl.store(g + (k - h), R, mask=inside)
            if RESET == 2:
                seen = _product(H, W_n, PRECISION) + b_n
                tl.store(U + row * h + own[None, :], seen, mask=inside)
                N_t += R * seen
            elif RESET == 1:
                tl.store(U + row * h + own[None, :], R * H_own, mask=inside)
                met += C
                _meet(counter, met, C)
                seen = tl.load(U + row * h + every[None, :], mask=inside, other=0.0, cache_modifier=".cg")
                N_t += _product(seen, W_n, PRECISION)
            elif cols > k:
                N_t += _product(H, W_n, PRECISION)
            N_t = _tanh(N_t)
            tl.store(g + k, N_t, mask=inside)
            H_own = N_t + Z * (H_own - N_t)
            tl.store(H_t + n * h + own[None, :], H_own, mask=inside)
            if cols > 0:
                met += C
                _meet(counter, met, C)

    @triton.jit(do_not_specialize=["first", "T"])
    def _backward(
        W, G, Hs, U, dHs, dA, dN, dH0, counters, first, n, z,
        T, h: tl.constexpr, k: tl.constexpr, cols: tl.constexpr, RESET: tl.constexpr, HELD: tl.constexpr,
        C: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        D: tl.constexpr = h // C
        wide: tl.constexpr = k + h
        s, counter = first + tl.program_id(1), counters + tl.program_id(1)
        own, every, rows = tl.program_id(0) * D + tl.arange(0, D), tl.arange(0, h), tl.arange(0, N)
        inside = rows[:, None] < n
        W_own = W + s * h * cols + own[None, :] * cols + every[:, None]  # transposed
        if not HELD:
            W_z = _keep(W_own, PRECISION)
        if RESET != 0:
            W_r = _keep(W_own + (k - h), PRECISION)
            W_n = _keep(W_own + k, PRECISION)
        elif cols > k:
            W_n = _keep(W_own + k, PRECISION)
        d = tl.zeros((N, D), dtype=tl.float32)
        met = 0
        for back in tl.range(T):
            t = T - 1 - back
            row = (s * T + t) * n + rows[:, None]
            mine, g = row * h + own[None, :], row * wide + own[None, :]
            d += tl.load(dHs + mine, mask=inside, other=0.0)
            H = tl.load(Hs + ((s * (T + 1) + t) * n + rows[:, None]) * h + own[None, :], mask=inside, other=0.0)
            N_t = tl.load(G + g + k, mask=inside, other=0.0)
            if not HELD:
                Z = tl.load(G + g, mask=inside, other=0.0)
                tl.store(dA + g, d * (H - N_t) * Z * (1 - Z), mask=inside)
            else:
                Z = z
            d_n = d * (1 - Z) * (1 - N_t * N_t)
            tl.store(dA + g + k, d_n, mask=inside)
            d = d * Z
            if RESET != 0:
                R = tl.load(G + g + (k - h), mask=inside, other=0.0)
            if RESET == 2:
                seen = tl.load(U + mine, mask=inside, other=0.0)
                tl.store(dN + mine, d_n * R, mask=inside)
                tl.store(dA + g + (k - h), d_n * seen * R * (1 - R), mask=inside)
            if cols > 0:
                met += C
                _meet(counter, met, C)
                whole = row * wide + every[None, :]
                if RESET == 1:
                    all_n = tl.load(dA + whole + k, mask=inside, other=0.0, cache_modifier=".cg")
                    dU = _product(all_n, W_n, PRECISION)
                    tl.store(dA + g + (k - h), dU * H * R * (1 - R), mask=inside)
                    d += dU * R
                    met += C
                    _meet(counter, met, C)
                if not HELD:
                    all_z = tl.load(dA + whole, mask=inside, other=0.0, cache_modifier=".cg")
                    d += _product(all_z, W_z, PRECISION)
                if RESET != 0:
                    all_r = tl.load(dA + whole + (k - h), mask=inside, other=0.0, cache_modifier=".cg")
                    d += _product(all_r, W_r, PRECISION)
                if RESET == 2:
                    all_n = tl.load(dN + row * h + every[None, :], mask=inside, other=0.0, cache_modifier=".cg")
                    d += _product(all_n, W_n, PRECISION)
                elif RESET == 0 and cols > k:
                    all_n = tl.load(dA + whole + k, mask=inside, other=0.0, cache_modifier=".cg")
                    d += _product(all_n, W_n, PRECISION)
        tl.store(dH0 + (s * n + rows[:, None]) * h + own[None, :], d, mask=inside)
