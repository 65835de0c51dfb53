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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cell import Cell, State
from . import derive
from .derive import COMPARE, Node, Program, plain, scaled

KERNELS = Path(__file__).with_suffix(".c")
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC")
REALS = {torch.float32: "float", torch.float64: "double"}
PATIENCE_S = 300.0  # with a compiler: it takes seconds


def refuses(variant: type[Cell], device: str = "cpu") -> str:
    if device != "cpu":
        return "it runs on the CPU"
    if reason := derive.refuses(variant):
        return reason
    try:
        for dtype in REALS:
            library("", dtype)  # what every cell is compiled with
    except OSError as error:
        return str(error)
    return ""


# ---- the source


class Segment:
    """One loop over the units of a row: what is loaded, computed once, stored."""

    def __init__(self, load: Callable[[Node], str | None]) -> None:
        self.load, self.names = load, dict[Any, str]()
        self.lines, self.stores = list[str](), list[str]()
        self.sums: list[tuple[str, str, str]] = []  # over the units: where to, what, starting from

    def of(self, x: Any) -> str:
        x = plain(x)
        if not isinstance(x, Node):
            return f"(REAL){float(x)!r}"
        if x not in self.names:
            text = self.load(x) or self.made(x)
            self.names[x] = f"x{len(self.names)}"
            self.lines.append(f"const REAL {self.names[x]} = {text};")
        return self.names[x]

    def made(self, x: Node) -> str:
        if x.op == "lin":
            c, terms = x.args
            text = "".join(f" {'-' if k < 0 else '+'} {self.times(abs(k), self.of(a))}" for k, a in terms)
            return f"(REAL){c!r}{text}" if c else text.removeprefix(" + ").removeprefix(" ")
        if x.op == "mul":
            return " * ".join(self.of(a) for a in x.args)
        if x.op == "where":
            return "{} ? {} : {}".format(*(self.of(a) for a in x.args))
        if x.op in COMPARE:
            return f"{self.of(x.args[0])} {'>' if x.op == 'positive' else '>='} 0"
        return f"{x.op}_({self.of(x.args[0])})"

    def times(self, s: Any, v: str) -> str:
        return v if not isinstance(s, Node) and s == 1 else f"{self.of(s)} * {v}"

    def total(self, terms: Sequence[tuple[str, Any]], before: str = "") -> str:
        return " + ".join([before] * bool(before) + [self.times(s, v) for v, s in terms]) or "0"

    def loop(self, name: str, pointers: dict[str, str]) -> tuple[str, str]:
        """The loop as a function, whose `restrict` compilers believe (of a local they do not), and its call."""
        if not self.stores and not self.sums:
            return "", ""
        first = [f"REAL sum{i} = {start};" for i, (*_, start) in enumerate(self.sums)]
        body = [*self.lines, *self.stores, *(f"sum{i} += {what};" for i, (_, what, _) in enumerate(self.sums))]
        last = [f"{to} = sum{i};" for i, (to, *_) in enumerate(self.sums)]
        whole = "\n".join([*first, *body, *last])
        used = [k for k in pointers if re.search(rf"\b{k}\[", whole)]
        takes = [f"{'' if re.search(rf'^{k}.[^]]*. =', whole, re.M) else 'const '}REAL *restrict {k}" for k in used]
        if self.sums:
            first.append(f"OMP(simd reduction(+ : {', '.join(f'sum{i}' for i in range(len(self.sums)))}))")
        inner = ["for (long j = 0; j < h; j++) {", *("  " + line for line in body), "}"]
        lines = [
            f"static void {name}({', '.join(['long h', *takes])}) {{",
            *("  " + x for x in [*first, *inner, *last]),
            "}\n\n",
        ]
        return "\n".join(
            lines
        ), f"for (long r = 0; r < rows; r++) {name}({', '.join(['h', *(pointers[k] for k in used)])});"


def source(plan: Program) -> str:
    """What of a cell comes behind native.c: its segments, `forward` and `backward`."""
    wide, groups, mixes = len(plan.inputs), plan.groups, list(plan.mixes)
    pointers = {
        "a": f"c->table + (s * c->d + c->X[t * c->xt + s * c->xs + row + r]) * {wide} * h",
        "p": "p + r * ld", "q": "c->Q + (one + r) * c->ldq", "g": "c->dHs + (one + r) * h",
        **{f"s{i}": f"c->states[{i}] + now + r * h" for i in range(len(plan.outs))},
        **{f"o{i}": f"c->states[{i}] + now + (n + r) * h" for i in range(len(plan.outs))},
        **{f"v{i}": f"c->V[{i}] + (one + r)" + " * h" * (not x.narrow) for i, x in enumerate(plan.stored)},
        **{f"w{i}": f"c->rows[{i}].at + s * c->rows[{i}].ld" for i in range(len(plan.rows))},
        **{f"d{i}": f"c->D[{i}] + (s * n + row + r) * h" for i in range(len(plan.outs))},
        **{f"e{i}": f"p + r * ld + {i} * padded(h)" for i in range(len(groups))},
        **{f"m{i}": f"p + r * ld + {len(groups) + i} * padded(h)" for i in range(len(mixes))},
        **{f"r{i}": f"p + r * ld + {len(groups) + len(mixes)} * padded(h) + {i}" for i in range(len(plan.sums))},
    }  # fmt: skip
    uses = ""
    for g, (_, products) in enumerate(groups):
        each = [(plan.matrices.index(W), k) for k, W in (scaled(p.args[1]) for p in products)]
        uses += f"static const Use use{g}[] = {{{', '.join(f'{{{W}, {k!r}}}' for W, k in each)}}};\n"
    return uses + _forward(plan, pointers) + _backward(plan, pointers)


def at(plan: Program, x: Node, next_: bool = True) -> str | None:
    """Where a value of one unit is on file; `next_`: what the step computes too."""
    if x.op == "state":
        return f"s{x.args[0]}[j]"
    if x.op == "leaf":
        return f"a[{plan.inputs.index(x)} * h + j]" if x in plan.inputs else f"w{plan.rows.index(x)}[j]"
    if next_ and x in plan.outs:
        return f"o{plan.outs.index(x)}[j]"
    return f"v{plan.stored.index(x)}[{'0' if x.narrow else 'j'}]" if next_ and x in plan.stored else None


def block(plan: Program, E: Node, whole: bool = False) -> str:
    """Where the rows of a left operand lie: of a step, or of all of time."""
    if E.op == "state":
        return f"c->states[{E.args[0]}] + " + ("s * (T + 1) * n * h" if whole else "now")
    if E in plan.outs:
        return f"c->states[{plan.outs.index(E)}] + " + ("(s * (T + 1) + 1) * n * h" if whole else "now + n * h")
    return f"c->V[{plan.stored.index(E)}] + " + ("s * T * n * h" if whole else "one * h")


def runs(plan: Program, products: list[Node]) -> list[tuple[int, int, int]]:
    """Products of a group that lie side by side among the Qs: (first of the group, its Q, how many)."""
    out: list[tuple[int, int, int]] = []
    for i, p in enumerate(products):
        if p not in plan.of:  # nothing asks for its gradient
            continue
        q = plan.Qs.index(plan.of[p])
        if out and sum(out[-1][1:]) == q and out[-1][0] + out[-1][2] == i:
            out[-1] = (*out[-1][:2], out[-1][2] + 1)
        else:
            out.append((i, q, 1))
    return out


def _forward(plan: Program, pointers: dict[str, str]) -> str:
    sizes = [f"padded({len(products)} * h)" for _, products in plan.groups]
    start = [" + ".join(["0", *sizes[:g]]) for g in range(len(sizes) + 1)]
    slot = {p: f"p[{start[g]} + {i} * h + j]" for g, (_, ps) in enumerate(plan.groups) for i, p in enumerate(ps)}
    functions, steps, packs = "", [], []
    for k in range(plan.stages + 1):
        for g, (E, ps) in enumerate(plan.groups):
            if ps[0].stage == k:
                W, to = f"panels + s * size + ({start[g]}) * h", f"p + {start[g]}"
                steps.append(f"multiply({block(plan, E)}, h, rows, h, {W}, {len(ps)} * h, {to}, ld, 0);")

        def load(x: Node, k: int = k) -> str | None:
            return slot[x] if x.op == "matmul" else at(plan, x, x.stage < k or x.op == "mean")

        seg = Segment(load)
        for name, xs in (("v", plan.stored), ("o", plan.outs)):
            for i, x in enumerate(xs):
                if x.op == "mean" and x.stage == k + 1:
                    seg.sums.append((f"{name}{i}[0]", f"{seg.of(x.args[0])} * (REAL){1 / plan.h!r}", "0"))
                elif x.stage == k and x.op != "mean":
                    seg.stores.append(f"{name}{i}[{'0' if x.narrow else 'j'}] = {seg.of(x)};")
        function, call = seg.loop(f"forward_{k}", pointers)
        functions, steps = functions + function, [*steps, call]
    for g, (_, ps) in enumerate(plan.groups):
        to = f"panels + s * size + ({start[g]}) * h"
        packs.append(f"PANELS({len(ps)} * h) pack_all(c->W, s, use{g}, {len(ps)}, h, h, 0, {to}, i);")
    order = "long t = 0; t < T; t++"
    return functions + frame("forward", f"({start[-1]}) * h", f"{start[-1]} + WIDE", "0", packs, order, steps, [])


def _backward(plan: Program, pointers: dict[str, str]) -> str:
    functions, steps, packs, after, taken = "", [], [], [], ["0"]
    place = {}
    Q = "c->Q + s * T * n * c->ldq + "
    for g, (E, ps) in enumerate(plan.groups):
        for first, q, count in runs(plan, ps):
            place[g, first] = f"panels + s * size + {' + '.join(taken)}"
            taken.append(f"{count} * h * padded(h)")
            packs.append(f"PANELS(h) pack_all(c->W, s, use{g} + {first}, {count}, h, h, 1, {place[g, first]}, i);")
            after += [f"PANELS({count} * h) {{",
                      f"  outer({block(plan, E, True)}, h, {Q}{q} * h, c->ldq, T * n, {count} * h, i, p);",
                      f"  spread(c->dW, s, use{g} + {first}, {count}, h, h, i, p);", "}"]  # fmt: skip
    wide = f"{len(plan.inputs)} * h"
    leaves = [(x, 0, f"c->dtable + (s * c->d * {len(plan.inputs)} + {i}) * h", wide) for i, x in enumerate(plan.inputs)]
    leaves += [(x, 1, f"c->drows[{i}].at + s * c->drows[{i}].ld", "0") for i, x in enumerate(plan.rows)]
    for x, all_, to, stride in leaves:
        if x in plan.of:
            from_ = f"{Q}{plan.Qs.index(plan.of[x])} * h + j"
            after.append(f"CHUNKS collect(c, s, {from_}, {all_}, least(CHUNK, h - j), {to} + j, {stride});")
    number = {E: g for g, (E, _) in enumerate(plan.groups)}
    for k in range(plan.levels + 1):
        for g, (E, ps) in enumerate(plan.groups):
            if plan.level.get(("E", E)) == k:
                for i, (first, q, count) in enumerate(runs(plan, ps)):
                    from_, to = f"c->Q + one * c->ldq + {q} * h", f"p + {g} * padded(h)"
                    how = f"rows, {count} * h, {place[g, first]}, h, {to}, ld, {int(i > 0)}"
                    steps.append(f"multiply({from_}, c->ldq, {how});")
        seg = Segment(lambda x: at(plan, x))
        names: dict[Any, str] = {}
        for v in plan.level:
            if plan.level[v] == k and v[0] != "M":
                i = v[1] if v[0] == "D" else number[v[1]] if v[0] == "E" else list(plan.sums).index(v)
                text = {"D": f"d{i}[j]" + " + g[j]" * (i == 0), "E": f"e{i}[j]", "R": f"r{i}[0]"}[v[0]]
                names[v] = f"{v[0]}{i}"
                seg.lines.append(f"const REAL {names[v]} = {text};")
        for v, terms in plan.mixes.items():
            now = [(names[u], s) for u, s in terms.items() if plan.level[u] == k]
            before = f"m{v[1]}[j]" if any(plan.level[u] < k for u in terms) else ""
            if plan.level[v] == k:
                total = seg.total(now, before)
                names[v] = f"M{v[1]}"
                seg.lines.append(f"const REAL {names[v]} = {total};")
            elif now:
                seg.stores.append(f"m{v[1]}[j] = {seg.total(now, before)};")
        for i, terms in enumerate(plan.sums.values()):
            now = [(names[u], s) for u, s in terms.items() if plan.level[u] == k]
            if now:
                seg.sums.append(
                    (f"r{i}[0]", seg.total(now), f"r{i}[0]" if any(plan.level[u] < k for u in terms) else "0")
                )
        for i, terms in plan.carry.items():
            now = [(names[u], s) for u, s in terms.items() if plan.level[u] == k]
            if now or k == 0:
                seg.stores.append(f"d{i}[j] = {seg.total(now, f'd{i}[j]' if k else '')};")
        seg.stores += [f"q[{i} * h + j] = {seg.times(s, names[v])};" for i, (v, s) in enumerate(plan.Qs) if v in names]
        function, call = seg.loop(f"backward_{k}", pointers)
        functions, steps = functions + function, [*steps, call]
    room = f"{len(plan.groups) + len(plan.mixes)} * padded(h) + {len(plan.sums)} + WIDE"
    return functions + frame(
        "backward",
        " + ".join(taken),
        room,
        "(h + MR + CHUNK) * WIDE",
        packs,
        "long t = T - 1; t >= 0; t--",
        steps,
        after,
    )


def frame(
    name: str, size: str, ld: str, some: str, packs: list[str], order: str, steps: list[str], after: list[str]
) -> str:
    lines = [
        f"int {name}(const Call *c) {{",
        "  const long S = c->S, T = c->T, n = c->n, h = c->h;",
        f"  long size = {size}, ld = {ld}, blocks = (n + MR - 1) / MR, failed = 0;",
        "  REAL *panels = aligned_alloc(64, (S * size + WIDE) * sizeof(REAL) / 64 * 64 + 64);",
        "  if (!panels) return 1;",
        "  OMP(parallel num_threads(c->threads) reduction(+ : failed)) {",
        f"    REAL *p = calloc(MR * ld + {some}, sizeof(REAL));",
        "    failed += !p;",
        *("    " + line for line in packs),
        f"    BLOCKS for ({order}) {{",
        "      const long row = b * MR, rows = least(MR, n - row), one = (s * T + t) * n + row;",
        "      const long now = (s * (T + 1) + t) * n * h + row * h;",
        "      (void)one, (void)now;",
        *("      " + line for line in steps if line),
        "    }",
        *("    " + line for line in after),
        "    free(p);",
        "  }",
        "  free(panels);",
        "  return failed != 0;",
        "}\n\n",
    ]
    return "\n".join(lines)


# ---- from source to numbers


class Part(ctypes.Structure):
    """As in native.c."""

    _fields_ = [("at", ctypes.c_void_p), ("ld", ctypes.c_long)]


class Call(ctypes.Structure):
    """As in native.c."""

    _fields_ = [
        *((name, ctypes.c_long) for name in ("S", "T", "n", "h", "d", "threads", "xt", "xs", "ldq")),
        *((name, ctypes.c_void_p) for name in (
            "X", "table", "dtable", "Q", "dHs", "W", "dW", "rows", "drows", "states", "V", "D",
        )),
    ]  # fmt: skip


def unroll(cell: Cell, X: Tensor, state: State) -> tuple[Tensor, State]:
    if reason := refuses(type(cell)):
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
    """Of a row of Q. Rows a page apart would share the same lines of the cache."""
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
    return library(source(plan), dtype)


@functools.cache
def library(text: str, dtype: torch.dtype) -> ctypes.CDLL:
    """native.c and what comes behind it, compiled for a dtype. OSError says why there is none."""
    if dtype not in REALS:
        raise OSError(f"it is compiled for float32 and float64, not {dtype}")
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise OSError("no C compiler here (cc, gcc, clang, or CC)")
    openmp, text = _openmp(), KERNELS.read_text(encoding="utf-8") + text
    flags = [*FLAGS, f"-DREAL={REALS[dtype]}", *(["-fopenmp"] if openmp else [])]
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
    """What -march=native stands for."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return "\n".join([platform.machine(), *next(([f] for f in lines if f.startswith(("flags", "Features"))), [])])
