"""Write a program as C: its segments, and the two passes that run them. What comes behind native.c for one cell.

Between two products lies a segment, one loop over the hidden units of a row; what a segment computes is what the
program says is known by then. Knows no cell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from .derive import COMPARE, OVER, Node, Program, last_of, plain, runs, scaled

LEAST = "-INFINITY"  # what the largest of the units starts from


class Segment:
    """One loop over the units of a row: what is loaded, computed once, stored."""

    def __init__(self, load: Callable[[Node], str | None]) -> None:
        self.load, self.names = load, dict[Any, str]()
        self.lines, self.stores = list[str](), list[str]()
        self.sums: list[tuple[str, str, str]] = []  # over the units: where to, what, starting from; LEAST: the largest

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
        body = [*self.lines, *self.stores]
        for i, (_, what, start) in enumerate(self.sums):
            body.append(f"sum{i} = sum{i} > {what} ? sum{i} : {what};" if start == LEAST else f"sum{i} += {what};")
        last = [f"{to} = sum{i};" for i, (to, *_) in enumerate(self.sums)]
        whole = "\n".join([*first, *body, *last])
        used = [k for k in pointers if re.search(rf"\b{k}\[", whole)]
        takes = [f"{'' if re.search(rf'^{k}.[^]]*. =', whole, re.M) else 'const '}REAL *restrict {k}" for k in used]
        if self.sums:
            kinds = [("max" if start == LEAST else "+", f"sum{i}") for i, (*_, start) in enumerate(self.sums)]
            clauses = [f"reduction({k} : {', '.join(name for kind, name in kinds if kind == k)})" for k in dict(kinds)]
            first.append(f"OMP(simd {' '.join(clauses)})")
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
    """Return what of a cell comes behind native.c: its segments, `forward` and `backward`."""
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
    return uses + _forward(plan, pointers) + _backward(plan, pointers) + _before(plan)


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
            return slot[x] if x.op == "matmul" else at(plan, x, x.stage < k or x.op in OVER)

        seg = Segment(load)
        for name, xs in (("v", plan.stored), ("o", plan.outs)):
            for i, x in enumerate(xs):
                if x.op in OVER and x.stage == k + 1:
                    share = f" * (REAL){1 / plan.h!r}" * (x.op == "mean")
                    seg.sums.append((f"{name}{i}[0]", seg.of(x.args[0]) + share, "0" if share else LEAST))
                elif x.stage == k and x.op not in OVER:
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


def _before(plan: Program) -> str:
    """Tables and rows, of the weights P in the order of `plan.weights`; and the gradients of those."""
    if plan.outside:
        return ""
    names, wide, leaves = list(plan.weights), len(plan.inputs), [*plan.inputs, *plan.rows]
    pointers, functions, calls = dict[str, str](), "", dict[str, list[str]](before=[], after=[])
    for i in range(len(names)):
        for name, of in (("w", "P"), ("z", "dP")):
            pointers[f"{name}{i}_"] = f"{of}[{i}].at + s * {of}[{i}].ld + r * h"
            pointers[f"{name}{i}"] = f"{of}[{i}].at + s * {of}[{i}].ld"
    for i, x in enumerate(leaves):
        row = i - wide
        for name, of in (("t", ""), ("g", "d")):
            table = f"c->{of}table + ((s * c->d + r) * {wide} + {i}) * h"
            pointers[f"{name}{i}"] = table if x in plan.inputs else f"c->{of}rows[{row}].at + s * c->{of}rows[{row}].ld"

    def load(x: Node) -> str | None:
        if x.op == "weight":
            return f"w{names.index(x.args[0])}[j]"
        if x.op != "matmul":
            return None
        k, W = scaled(x.args[1])
        return f"(REAL){k!r} * w{names.index(W.args[0])}_[j]"

    for kind, some, rows in (("table", plan.inputs, "c->d"), ("row", plan.rows, "1")):
        seg = Segment(load)
        seg.stores = [f"t{leaves.index(x)}[j] = {seg.of(x.args[0])};" for x in some]
        back = Segment(load)
        for i, terms in enumerate(plan.weights.values()):
            now = [
                (f"g{leaves.index(leaf)}[j]", s)
                for leaf, s in terms.items()
                if leaf in some and leaf in plan.of and s != 0
            ]
            if now:
                to = f"z{i}" + "_" * names_matrix(names[i])
                back.stores.append(f"{to}[j] = {to}[j] + {back.total(now)};")
        for name, segment in (("before", seg), ("after", back)):
            function, call = segment.loop(f"{name}_{kind}", pointers)
            functions += function
            calls[name] += [f"{{ const long rows = {rows}; {call} }}"] * bool(call)
    for name, extra in (("before", ""), ("after", ", const Part *dP")):
        lines = [f"void {name}(const Call *c, const Part *P{extra}) {{", "  const long S = c->S, h = c->h;",
                 "  OMP(parallel for num_threads(c->threads)) for (long s = 0; s < S; s++) {", "    (void)h;",
                 *("    " + line for line in calls[name]), "  }", "}\n\n"]  # fmt: skip
        functions += "\n".join(lines)
    return functions


def names_matrix(name: str) -> bool:
    return last_of(name).startswith("W_")
