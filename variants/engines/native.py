"""The recurrence of fused.py compiled from native.c, on the CPU, where there is a C compiler.

Compiled once a machine, a second each for float32 and float64, into the platform's cache folder, under a name that is
a hash of all it depends on. Linked with the OpenMP that torch has loaded, so that both use one set of threads. What
does not depend on time (input product, weight gradients) is fused.py's, and torch's.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cell import Cell, State
from . import fused

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC")
REALS = {torch.float32: "float", torch.float64: "double"}
PATIENCE_S = 300.0  # with a compiler: it takes seconds
RESETS = ("none", "before", "after")


class Shape(ctypes.Structure):
    """As in native.c."""

    _fields_ = [
        *((name, ctypes.c_long) for name in ("S", "T", "n", "h", "k", "cols")),
        *((name, ctypes.c_int) for name in ("reset", "held")),
        ("z", ctypes.c_double),
    ]


def refuses(variant: type[Cell], device: str = "cpu") -> str:
    if reason := fused.refuses(variant, device):
        return reason
    if device != "cpu":
        return "it runs on the CPU"
    try:
        for dtype in REALS:
            library(dtype)
    except OSError as error:
        return str(error)
    return ""


def unroll(cell: Cell, X: Tensor, state: State) -> tuple[Tensor, State]:
    return fused.unroll(cell, X, state, Recurrence)


class Recurrence(torch.autograd.Function):
    """As fused.Recurrence, number for number but for rounding."""

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
        G = table.new_empty(S, T, n, columns)
        W = G.new_empty(S, h, 0) if W is None else W.contiguous()
        b_n = None if b_n is None else b_n.contiguous()
        Hs = G.new_empty(S, T + 1, n, h)
        Hs[:, 0] = H0
        U = None if reset == "none" else G.new_empty(S, T, n, h)
        ctx.shape = Shape(
            S, T, n, h, columns - h, W.shape[-1], RESETS.index(reset), z is not None, 0.0 if z is None else z
        )
        _call("forward", ctx.shape, table, X, W, b_n, G, Hs, U)
        ctx.save_for_backward(X, G, Hs, U, W)
        ctx.d = table.shape[1]
        return Hs[:, 1:]

    @staticmethod
    def backward(ctx: Any, dHs: Tensor) -> Any:
        X, G, Hs, U, W = ctx.saved_tensors
        dA, d = torch.empty_like(G), torch.zeros_like(Hs[:, 0])
        dN = torch.empty_like(U) if RESETS[ctx.shape.reset] == "after" else None
        dW = torch.empty_like(W)
        _call("backward", ctx.shape, G, Hs, U, W, dHs.contiguous(), dA, dN, d, dW)
        db = None if dN is None else dN.sum((1, 2)).unsqueeze(1)
        return fused.table_gradient(X, dA, ctx.d), None, d, dW if W.numel() else None, db, None, None


def _call(name: str, shape: Shape, *tensors: Tensor | None) -> None:
    pointers = [None if t is None else ctypes.c_void_p(t.data_ptr()) for t in tensors]
    dtype = next(t.dtype for t in tensors if t is not None)
    if getattr(library(dtype), name)(ctypes.byref(shape), torch.get_num_threads(), *pointers):
        raise MemoryError(f"native: no memory for the packed weights of {shape.S} networks of {shape.h} units")


def arithmetic(times: int) -> float:
    """Do nothing but float32 multiply-adds, on every thread of torch's. How many operations; 0 without a compiler."""
    try:
        compiled = library(torch.float32).arithmetic
    except OSError:
        return 0.0
    compiled.restype, compiled.argtypes = ctypes.c_double, (ctypes.c_int, ctypes.c_long)
    return float(compiled(torch.get_num_threads(), times))


@functools.cache
def library(dtype: torch.dtype) -> ctypes.CDLL:
    """The compiled recurrence for a dtype. OSError says why there is none."""
    if dtype not in REALS:
        raise OSError(f"it is compiled for float32 and float64, not {dtype}")
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise OSError("no C compiler here (cc, gcc, clang, or CC)")
    openmp = _openmp()
    flags = [*FLAGS, f"-DREAL={REALS[dtype]}", *(["-fopenmp"] if openmp else [])]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    depends = [SOURCE.read_text(encoding="utf-8"), compiler, version, *flags, openmp, _processor()]
    path = cache() / f"native-{hashlib.sha256(chr(0).join(depends).encode()).hexdigest()[:16]}.so"
    if not path.exists():
        _compile([compiler, *flags], openmp, path)
    return ctypes.CDLL(str(path))


def cache() -> Path:
    try:
        import platformdirs
    except ModuleNotFoundError:  # a machine's own python, used as it is
        raise OSError("the package platformdirs is not installed: no folder to keep what is compiled") from None

    return Path(platformdirs.user_cache_dir("recurrent-harness", appauthor=False))


def _compile(command: list[str], openmp: str, path: Path) -> None:
    """Whole or not at all, however many processes do it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built, made = f"{folder}/native.o", f"{folder}/native.so"
        for words in (
            [*command, "-c", str(SOURCE), "-o", built],
            [command[0], "-shared", built, *([openmp] if openmp else []), "-o", made],
        ):
            try:
                done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                raise OSError(f"{words[0]} has not compiled native.c within {PATIENCE_S:g} s") from None
            if done.returncode:
                said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
                raise OSError(f"{words[0]} could not compile native.c: {said.strip()}")
        os.replace(made, path)


def _openmp() -> str:
    """The OpenMP library this process has loaded (torch's); '' where it cannot be told: then one thread."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:
        return ""
    return next(iter(re.findall(r"/\S*lib(?:gomp|iomp5|omp)\b\S*", maps)), "")


def _processor() -> str:
    """What -march=native stands for."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return "\n".join([platform.machine(), *next(([f] for f in lines if f.startswith(("flags", "Features"))), [])])
