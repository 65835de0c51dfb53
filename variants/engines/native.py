"""Any cell whose `step` can be derived, compiled to C, on the CPU, where there is a C compiler.

Behind native.c, which knows no cell, comes what is emitted here: between two products lies a segment, one loop over the
hidden units of a row; what a segment computes is what the program says is known by then. A cell is compiled once a
machine, in less than a second, into the platform's cache folder, under a name that is a hash of all it depends on.
Linked with the OpenMP that torch has loaded, so that both use one set of threads.
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
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..cell import Cell, State
from ..optimizer import BETA1, BETA2, EPS, SGD, Optimizer
from . import derive, emit
from .derive import Program

if TYPE_CHECKING:
    from ..model import Model

KERNELS = Path(__file__).with_suffix(".c")
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC")
REALS = {torch.float32: "float", torch.float64: "double"}
KINDS = ("sgd", "adam", "adamw")  # as native.c counts optimizers
PATIENCE_S = 300.0  # with a compiler: it takes seconds


def unsupported_reason(variant: type[Cell], device: str = "cpu") -> str:
    if device != "cpu":
        return "it runs on the CPU"
    if reason := derive.unsupported_reason(variant):
        return reason
    try:
        for dtype in REALS:
            library("", dtype)  # what every cell is compiled with
    except OSError as error:
        return str(error)
    return ""


def structure(name: str, **kinds: Any) -> Any:
    """A struct of native.c as ctypes has it; `kinds`: what is a struct itself among its fields."""
    text = re.sub(r"/\*.*?\*/", "", KERNELS.read_text(encoding="utf-8"), flags=re.DOTALL)
    [body] = re.findall(rf"typedef struct {{([^}}]*)}} {name};", text)
    kinds, fields = {"long": ctypes.c_long, "double": ctypes.c_double, **kinds}, list[tuple[str, Any]]()
    for line in body.split(";")[:-1]:
        kind, names = re.fullmatch(r"\s*(?:const )?(\w+) (.*)", line).groups()  # type: ignore[union-attr]
        for field in names.split(", "):
            of = ctypes.c_void_p if "*" in field else kinds[kind]
            fields.append((field.strip("*"), of))
    return type(name, (ctypes.Structure,), {"_fields_": fields})


Part = structure("Part")
Call, Head, Update = (structure(name, Part=Part) for name in ("Call", "Head", "Update"))


def unroll(cell: Cell, X: Tensor, state: State) -> tuple[Tensor, State]:
    if reason := unsupported_reason(type(cell)):
        raise ValueError(reason)
    plan = derive.program(type(cell), cell.d, cell.h, cell.training)  # type: ignore[arg-type]
    table, at_, matrices, rows = derive.prepare(plan, cell, X)
    H, *last = Recurrence.apply(plan, at_, table, *state, *matrices, *rows)  # type: ignore[no-untyped-call]
    return H.transpose(0, 1), (H[:, -1], *last)


class Recurrence(torch.autograd.Function):
    """X (T, S, n), rows of a table (S, rows, columns), first states, matrices, rows -> H (S, T, n, h), last states."""

    @staticmethod
    def forward(ctx: Any, plan: Program, X: Tensor, table: Tensor, *tensors: Tensor) -> Any:
        first, matrices, rows = _split(plan, [x.contiguous() for x in tensors])
        (T, S, n), h, table = X.shape, first[0].shape[-1], table.contiguous()
        X = X if X.stride(2) == 1 or n == 1 else X.contiguous()
        states = [x.new_empty(S, T + 1, n, h) for x in first]
        for x, begin in zip(states, first, strict=True):
            x[:, 0] = begin
        V = [table.new_empty(S, T, n, 1 if x.narrow else h) for x in plan.stored]
        ctx.plan = plan
        ctx.save_for_backward(X, table, *states, *matrices, *rows, *V)
        _call(plan, "forward", X, table, states, matrices, rows, V)
        return (states[0][:, 1:], *(x[:, -1] for x in states[1:]))

    @staticmethod
    def backward(ctx: Any, dHs: Tensor, *d_last: Tensor) -> Any:
        plan, (X, table, *rest) = ctx.plan, ctx.saved_tensors
        states, matrices, others = _split(plan, rest)
        rows, V = others[: len(plan.rows)], others[len(plan.rows) :]
        (T, S, n), ldq = X.shape, q_columns(plan, table)
        D = [torch.zeros_like(dHs[:, 0]), *(x.clone(memory_format=torch.contiguous_format) for x in d_last)]
        grads = [torch.zeros_like(x) for x in (table, *matrices, *rows)]
        dtable, dW, drows = grads[0], grads[1 : 1 + len(matrices)], grads[1 + len(matrices) :]
        _call(plan, "backward", X, table, states, matrices, rows, V, dtable=dtable, dHs=dHs.contiguous(), D=D,
              Q=table.new_empty(S, T, n, ldq), dW=dW, drows=drows, ldq=ldq)  # fmt: skip
        return None, None, dtable, *D, *dW, *drows


def _split(plan: Program, tensors: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    a, b = len(plan.outs), len(plan.outs) + len(plan.matrices)
    return tensors[:a], tensors[a:b], tensors[b:]


def q_columns(plan: Program, like: Tensor) -> int:
    """Return the columns of a row of Q. Rows a page apart would share the same lines of the cache."""
    columns = len(plan.Qs) * plan.h
    return columns + 16 * (columns * like.element_size() % 2048 == 0)


def many(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * max(1, len(tensors)))(*(t.data_ptr() for t in tensors))


def parts(tensors: Sequence[Tensor]) -> Any:
    return (Part * max(1, len(tensors)))(*(Part(t.data_ptr(), t.stride(0)) for t in tensors))


def _call(plan: Program, name: str, X: Tensor, table: Tensor, states: list[Tensor], W: list[Tensor], rows: list[Tensor],
          V: list[Tensor], ldq: int = 0, **more: Any) -> None:  # fmt: skip
    (T, S, n), h = X.shape, plan.h
    arrays = {"states": many(states), "V": many(V), "W": parts(W), "rows": parts(rows)}
    arrays |= {k: many(v) if k == "D" else parts(v) for k, v in more.items() if isinstance(v, list)}
    call = Call(
        S, T, n, h, table.shape[1], torch.get_num_threads(), X.stride(0), X.stride(1), ldq,
        X=X.data_ptr(), table=table.data_ptr(),
        **{k: ctypes.cast(v, ctypes.c_void_p) for k, v in arrays.items()},
        **{k: v.data_ptr() for k, v in more.items() if not isinstance(v, list)},
    )  # fmt: skip
    if getattr(compiled(plan, table.dtype), name)(ctypes.byref(call)):
        raise MemoryError(f"native: no memory for the packed weights of {S} networks of {h} units")


def arithmetic(times: int) -> float:
    """Do nothing but float32 multiply-adds, on every thread of torch's. How many operations; 0 without a compiler."""
    try:
        run = library("", torch.float32).arithmetic
    except OSError:
        return 0.0
    run.restype, run.argtypes = ctypes.c_double, (ctypes.c_int, ctypes.c_long)
    return float(run(torch.get_num_threads(), times))


@functools.cache
def compiled(plan: Program, dtype: torch.dtype) -> ctypes.CDLL:
    return library(emit.source(plan), dtype)


@functools.cache
def library(text: str, dtype: torch.dtype) -> ctypes.CDLL:
    """native.c and what comes behind it, compiled for a dtype. OSError says why there is none."""
    if dtype not in REALS:
        raise OSError(f"it is compiled for float32 and float64, not {dtype}")
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise OSError("no C compiler here (cc, gcc, clang, or CC)")
    openmp = _openmp()
    flags = [*FLAGS, f"-DREAL={REALS[dtype]}", *(["-DCELL"] if text else []), *(["-fopenmp"] if openmp else [])]
    text = KERNELS.read_text(encoding="utf-8") + text
    depends = [text, compiler, _version(compiler), *flags, openmp, _processor()]
    path = cache() / f"native-{hashlib.sha256(chr(0).join(depends).encode()).hexdigest()[:16]}.so"
    if not path.exists():
        _compile([compiler, *flags], text, openmp, path)
    return ctypes.CDLL(str(path))


@functools.cache
def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout


def cache() -> Path:
    try:
        import platformdirs
    except ModuleNotFoundError:  # a machine's own python, used as it is
        raise OSError("the package platformdirs is not installed: no folder to keep what is compiled") from None

    return Path(platformdirs.user_cache_dir("recurrent-harness", appauthor=False))


def _compile(command: list[str], text: str, openmp: str, path: Path) -> None:
    """Whole or not at all, however many processes do it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        Path(folder, "native.c").write_text(text, encoding="utf-8")
        built, made = f"{folder}/native.o", f"{folder}/native.so"
        for words in (
            [*command, "-c", f"{folder}/native.c", "-o", built],
            [command[0], "-shared", built, *([openmp] if openmp else []), "-lm", "-o", made],
        ):
            try:
                done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                raise OSError(f"{words[0]} has not compiled native.c within {PATIENCE_S:g} s") from None
            if done.returncode:
                said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
                raise OSError(f"{words[0]} could not compile native.c: {said.strip()}")
        os.replace(made, path)


@functools.cache
def _openmp() -> str:
    """The OpenMP library this process has loaded (torch's); '' where it cannot be told: then one thread."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:
        return ""
    return next(iter(re.findall(r"/\S*lib(?:gomp|iomp5|omp)\b\S*", maps)), "")


@functools.cache
def _processor() -> str:
    """Return what -march=native stands for."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return "\n".join([platform.machine(), *next(([f] for f in lines if f.startswith(("flags", "Features"))), [])])


class Trainer:
    """Whole training steps of a model in C, no graph of autograd's: what `Model.learn` does, but for rounding.

    `serves` says whether it can; the room that a step needs is kept from one to the next of the same shape.
    """

    def __init__(self, model: Model) -> None:
        cell = model.cell
        self.plan, self.model, self.shape, self.dtype = None, model, (0, 0), model.flat.dtype
        named = dict(cell.named_parameters())
        try:
            plan = derive.program(type(cell), cell.d, cell.h, True)  # type: ignore[arg-type]
        except derive.Unsupported:
            return
        if plan.outside or not set(plan.weights) <= set(named) or model.flat.is_cuda or self.dtype not in REALS:
            return
        self.plan, self.cell, self.kernels = plan, compiled(plan, self.dtype), library("", self.dtype)
        starts, at = {}, 0
        for name, weight in model.named_parameters():
            starts[name] = at
            at += weight[0].numel()
        S, size = model.flat.shape[0], model.flat.element_size()

        def found(names: list[str], flat: Tensor) -> Any:
            return (Part * max(1, len(names)))(*(Part(flat.data_ptr() + size * starts[n], at) for n in names))

        matrices = [f"cell.{W.args[0]}" for W in plan.matrices]
        weights = [f"cell.{name}" for name in plan.weights]
        self.W, self.dW, self.P, self.dP = (
            found(names, flat) for names in (matrices, weights) for flat in (model.flat, model.gradient)
        )
        self.out = [found([name], flat)[0] for flat in (model.flat, model.gradient) for name in ("W_hq", "b_q")]
        some = model.flat.new_empty(S * (at // 8192 + 1), dtype=torch.float64)
        self.keep = [some]
        self.change = Update(S, at, w=model.flat.data_ptr(), g=model.gradient.data_ptr(), some=some.data_ptr())

    def serves(self, X: Tensor) -> bool:
        return self.plan is not None and self.model.cell.training and not X.is_floating_point()

    def room(self, T: int, n: int) -> None:
        """Everything a step of this shape writes."""
        plan, model = self.plan, self.model
        assert plan is not None
        (S, h, V), d, new = model.W_hq.shape, model.cell.d, model.flat.new_empty
        self.states = [new(S, T + 1, n, h) for _ in plan.outs]
        self.D = new(len(plan.outs), S, n, h)
        stored = [new(S, T, n, 1 if x.narrow else h) for x in plan.stored]
        rows = new(2, len(plan.rows), S, h)
        tables = new(2, S, d, len(plan.inputs) * h)
        ldq = q_columns(plan, model.flat)
        Q, dH, logits, each = new(S, T, n, ldq), new(S, T, n, h), new(S, T * n, V + 96), new(S, T * n)
        self.gradients = [rows[1], tables[1], self.D, model.gradient]  # added to: zeros before every step
        self.arrays = {
            "W": self.W, "dW": self.dW, "rows": parts(list(rows[0])), "drows": parts(list(rows[1])),
            "states": many(self.states), "V": many(stored), "D": many(list(self.D)),
        }  # fmt: skip
        pointers = {name: ctypes.cast(array, ctypes.c_void_p) for name, array in self.arrays.items()}
        self.call = Call(S, T, n, h, d, ldq=ldq, table=tables[0].data_ptr(), dtable=tables[1].data_ptr(),
                         Q=Q.data_ptr(), dHs=dH.data_ptr(), **pointers)  # fmt: skip
        self.head = Head(S, T, n, h, V, 0, 0, 0, None, None, self.states[0].data_ptr(), *self.out, dH.data_ptr(),
                         logits.data_ptr(), each.data_ptr())  # fmt: skip
        self.keep = [self.keep[0], rows, tables, Q, dH, logits, each, *stored]
        self.shape = (T, n)

    def step(
        self, X: Tensor, Y: Tensor, state: State, lr: float, clip: float, optimizer: Optimizer, counts: Tensor | None
    ) -> tuple[Tensor, Tensor, State]:
        """Take a training step, as `Model.learn` does."""
        model, (T, S, n) = self.model, X.shape
        if (T, n) != self.shape:
            self.room(T, n)
        X, Y = (x if x.stride(2) == 1 else x.contiguous() for x in (X, Y))
        losses, norms = model.flat.new_empty(2, S)
        for mine, given in zip(self.states, state, strict=True):
            mine[:, 0] = given
        for x in self.gradients:
            x.zero_()
        call, head, change, threads = self.call, self.head, self.change, torch.get_num_threads()
        call.threads, call.X, call.xt, call.xs = threads, X.data_ptr(), X.stride(0), X.stride(1)
        head.threads, head.Y, head.yt, head.ys = threads, Y.data_ptr(), Y.stride(0), Y.stride(1)
        head.losses, change.norms, change.threads = losses.data_ptr(), norms.data_ptr(), threads
        if counts is not None:
            counts = counts.expand_as(Y).contiguous()
            Y = Y.contiguous()
            head.counts, head.Y, head.yt, head.ys = counts.data_ptr(), Y.data_ptr(), Y.stride(0), Y.stride(1)
        change.lr, change.clip, change.kind = lr, clip, KINDS.index(optimizer.kind)
        if optimizer != SGD:
            done = int(model.steps)
            model.prepare(optimizer)
            model.steps += 1
            change.m, change.v = (x.data_ptr() for x in (*model.moments, model.flat, model.flat)[:2])
            change.lr, change.momentum = lr * optimizer.factor(done), optimizer.momentum
            change.decay, change.beta1, change.beta2, change.eps = optimizer.weight_decay, BETA1, BETA2, EPS
            change.unbias1, change.unbias2 = 1 - BETA1 ** (done + 1), 1 - BETA2 ** (done + 1)
        at = ctypes.byref(call)
        self.cell.before(at, self.P)
        if self.cell.forward(at) or self.kernels.head(ctypes.byref(head)) or self.cell.backward(at):
            raise MemoryError(f"native: no memory for the packed weights of {S} networks of {call.h} units")
        self.cell.after(at, self.P, self.dP)
        self.kernels.update(ctypes.byref(change))
        return losses, norms, tuple(x[:, -1].clone() for x in self.states)
