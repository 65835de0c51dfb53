"""Any cell whose `step` can be derived, by torch alone: no compiler needed, and one CUDA graph can hold it.

The program is interpreted, not emitted. Products are added to what was gathered of the input where a sum allows it.
Backwards, slopes are computed for every t at once, and the gradient of a weight is one product over all of time. In
time, tensors are (n, h) of one seed, whose products are then plain ones, else (S, n, h).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..cell import Cell, State
from . import derive
from .derive import UNARY, Node, Program, plain, scaled
from .family import table_gradient

Values = dict[Node, Any]
Parts = Sequence[Tensor]
Groups = Sequence[tuple[Node, list[Node]]]
OUT = ("sigmoid", "tanh", "exp", "log", "sqrt", "reciprocal", "abs", "erf")  # that torch writes where it is told to
# values so far, a step of columns of what was gathered, of places to be written, and weights by group
Step = Callable[[Values, Parts, Parts, list[Tensor]], None]


def unsupported_reason(variant: type[Cell], device: str = "cpu") -> str:
    return derive.unsupported_reason(variant)


def unroll(cell: Cell, X: Tensor, state: State) -> tuple[Tensor, State]:
    if reason := unsupported_reason(type(cell)):
        raise ValueError(reason)
    plan = derive.program(type(cell), cell.d, cell.h, cell.training)  # type: ignore[arg-type]
    table, at, matrices, rows = derive.prepare(plan, cell, X)
    H, *last = Recurrence.apply(plan, at, table, *state, *matrices, *rows)  # type: ignore[no-untyped-call]
    return H.transpose(0, 1), (H[:, -1], *last)


class Recurrence(torch.autograd.Function):
    """X (T, S, n), rows of a table (S, rows, columns), first states, matrices, rows -> H (S, T, n, h), last states."""

    @staticmethod
    def forward(ctx: Any, plan: Program, X: Tensor, table: Tensor, *tensors: Tensor) -> Any:
        (T, S, n), a, b, h = X.shape, len(plan.outs), len(plan.outs) + len(plan.matrices), plan.h
        ctx.plan, ctx.d = plan, table.shape[1]
        at = X.transpose(0, 1) + ctx.d * torch.arange(S, device=X.device)[:, None, None]
        A = functional.embedding(at, table.flatten(0, 1))  # and then, in place, what is made of it
        run = instructions(plan)
        W = [_one(w) for w in _joined(plan, run.groups, tensors[a:b])]
        rows = {x: _one(row) for x, row in zip(plan.rows, tensors[b:], strict=True)}
        states = [A.new_empty(S, T + 1, n, h) for _ in plan.outs]
        for whole, first in zip(states, tensors[:a], strict=True):
            whole[:, 0] = first
        others = [A.new_empty(S, T, n, 1 if x.narrow else h) for x in run.others]
        for x, row in run.filled.items():
            others[run.others.index(x)].copy_(rows[row].view(S, 1, 1, h))
        before = [_steps(whole[:, :-1]) for whole in states]
        places = [_steps(whole) for whole in (*(whole[:, 1:] for whole in states), *others)]
        for *parts, state, to in zip(
            *(_steps(A[..., columns]) for columns in run.columns), zip(*before, strict=True), zip(*places, strict=True),
            strict=True,
        ):  # fmt: skip
            v = rows | dict(zip(plan.states, state, strict=True))
            for step in run.steps:
                step(v, parts, to, W)
            for x, place in zip(run.written, to, strict=True):
                if v[x] is not place:
                    place.copy_(v[x])
        ctx.save_for_backward(at, A, *tensors[a:], *states, *others)
        return (states[0][:, 1:], *(x[:, -1] for x in states[1:]))

    @staticmethod
    def backward(ctx: Any, dHs: Tensor, *d_last: Tensor) -> Any:
        plan, (at, A, *rest) = ctx.plan, ctx.saved_tensors
        (S, T, n), h, a = at.shape, plan.h, len(plan.outs)
        b, c = len(plan.matrices), len(plan.matrices) + len(plan.rows)
        matrices, rows, states, others = rest[:b], rest[b:c], rest[c : c + a], rest[c + a :]
        run = instructions(plan)
        v: Values = {x: row.unsqueeze(1) for x, row in zip(plan.rows, rows, strict=True)}
        v |= {x: A[..., home] for x, home in run.homes.items()}
        v |= dict(zip(run.others, others, strict=True))
        v |= {x: whole[:, 1:] for x, whole in zip(plan.outs, states, strict=True)}
        v |= {x: whole[:, :-1] for x, whole in zip(plan.states, states, strict=True)}

        def slope(s: Any) -> list[Any]:
            """For every t at once: T numbers, or T tensors."""
            if not isinstance(s, Node):
                return [float(s)] * T
            value = _value(s, v)
            return list(_steps(value.expand(S, T, n, value.shape[-1])))

        Q = A.new_empty(S, T, n, len(plan.Qs) * h)  # slopes, and then, in place, what they multiply
        for (_, s), columns in zip(plan.Qs, Q.split(h, -1) if plan.Qs else (), strict=True):
            columns.copy_(_value(s, v) if isinstance(s, Node) else torch.full_like(columns, s))
        apart = Q.unflatten(-1, (-1, h))  # (S, T, n, slopes, h)
        asked = {u: [_steps(apart[..., some, :]) for some in _spaced(plan, u)] for u in plan.level}
        W, runs = (
            [_one(w.mT) for w in _joined(plan, plan.groups, matrices)],
            [derive.runs(plan, ps) for _, ps in plan.groups],
        )
        back = {
            ("E", E): [(_steps(Q[..., q * h : (q + c) * h]), w[..., i * h : (i + c) * h, :]) for i, q, c in some]
            for (E, _), w, some in zip(plan.groups, W, runs, strict=True)
        }
        times = [u for terms in (*plan.mixes.values(), *plan.sums.values(), *plan.carry.values()) for u in terms]
        late = {u for terms in plan.carry.values() for u, s in terms.items()
                if u[0] == "E" and s == 1 and times.count(u) == 1 and not asked[u]}  # fmt: skip
        sums = {u: [(w, slope(s)) for w, s in terms.items()] for u, terms in (plan.mixes | plan.sums).items()}
        carry = [[(w, slope(s)) for w, s in plan.carry[i].items() if w not in late] for i in range(a)]
        lately = [[pair for w in plan.carry[i] if w in late for pair in back[w]] for i in range(a)]
        order = sorted(plan.level, key=lambda u: (plan.level[u], u[0] == "M", u[1] if u[0] == "M" else 0))
        order = [u for u in order if u not in late]
        dH = _steps(dHs)
        D, (add, product) = [dH[T - 1], *map(_one, d_last)], _products(S)
        for t in range(T - 1, -1, -1):
            now: dict[Any, Any] = {("D", i): d for i, d in enumerate(D)}
            for u in order:
                if u[0] == "E":
                    for k, (given, w) in enumerate(back[u]):
                        now[u] = add(now[u], given[t], w) if k else product(given[t], w)
                elif u[0] != "D":
                    now[u] = _total(sums[u], now, t)
                    now[u] = now[u].expand_as(D[0]).sum(-1, keepdim=True) if u[0] == "R" else now[u]
                for place in asked[u]:
                    place[t].mul_(now[u].unsqueeze(-2))
            for i, terms in enumerate(carry):
                D[i] = _total(terms, now, t, dH[t - 1] if i == 0 and t else None)
                for given, w in lately[i]:
                    D[i] = product(given[t], w) if D[i] is None else add(D[i], given[t], w)
                D[i] = torch.zeros_like(dH[0]) if D[i] is None else D[i].expand_as(dH[0])
        gradients = [torch.zeros_like(x) for x in matrices]
        for g, (E, ps) in enumerate(plan.groups):
            for i, q, c in runs[g]:
                whole_ = v[E].reshape(S, T * n, h).mT @ Q[..., q * h : (q + c) * h].reshape(S, T * n, c * h)
                for p, part in zip(ps[i : i + c], whole_.split(h, -1), strict=True):
                    factor, matrix = scaled(p.args[1])
                    gradients[plan.matrices.index(matrix)] += factor * part
        at_Q = {x: plan.Qs.index(q) for x, q in plan.of.items()}

        def column(x: Node) -> Any:
            found = at_Q.get(x)
            return A.new_zeros(()).expand(S, T, n, h) if found is None else Q[..., found * h : (found + 1) * h]

        begin, count = at_Q.get(plan.inputs[0], 0) if plan.inputs else 0, len(plan.inputs)
        dA = Q[..., begin * h : (begin + count) * h]
        if [at_Q.get(x) for x in plan.inputs] != list(range(begin, begin + count)):
            dA = torch.cat([column(x) for x in plan.inputs], -1)
        dtable = table_gradient(at, dA, ctx.d) if plan.inputs else A.new_zeros(S, ctx.d, 0)
        gradients += [column(x).sum((1, 2)).unsqueeze(1) for x in plan.rows]
        d_first = [d.expand(*_one(Q[:, 0]).shape[:-1], h).reshape(S, n, h) for d in D]
        return None, None, dtable, *d_first, *gradients


def _one(x: Tensor) -> Tensor:
    """(S, ...), of one seed without S: on a CPU a batch of one product costs more than one."""
    return x[0] if len(x) == 1 else x


def _steps(x: Tensor) -> tuple[Tensor, ...]:
    return x[0].unbind(0) if len(x) == 1 else x.unbind(1)


def _spaced(plan: Program, u: Any) -> list[slice]:
    """Those slopes that a variable multiplies, as slices of all: evenly spaced ones are one."""
    left = [q for q, (w, _) in enumerate(plan.Qs) if w == u]
    found: list[slice] = []
    while left:
        step, count = left[1] - left[0] if len(left) > 1 else 1, 1
        while count < len(left) and left[count] == left[count - 1] + step:
            count += 1
        found.append(slice(left[0], left[count - 1] + 1, step))
        left = left[count:]
    return found


def _products(seeds: int) -> tuple[Any, Any]:
    return (torch.addmm, torch.mm) if seeds == 1 else (torch.baddbmm, torch.bmm)


def _joined(plan: Program, groups: Groups, matrices: Sequence[Tensor]) -> list[Tensor]:
    """The right side of each group, (S, h, its products * h)."""
    of = [[scaled(p.args[1]) for p in products] for _, products in groups]
    return [torch.cat([matrices[plan.matrices.index(W)] * k for k, W in group], -1) for group in of]


def _value(x: Node, v: Values) -> Any:
    if x not in v:
        v[x] = derive.apply(x, [_value(part, v) for part in x.parts], next(iter(v.values())))
    return v[x]


def _total(terms: list[tuple[Any, list[Any]]], now: dict[Any, Any], t: int, total: Any = None) -> Any:
    for u, slopes in terms:
        x, s = now[u], slopes[t]
        if isinstance(s, float):
            total = (x if s == 1 else x * s) if total is None else torch.add(total, x, alpha=s)
        else:
            total = x * s if total is None else torch.addcmul(total, x, s)
    return total


@dataclass
class Forward:
    """A step forward, as functions to be called one after the other.

    groups     products that are one: of plan.groups, those apart that can be added in place and those that cannot
    columns    of what was gathered: every function is given a step of each
    homes      what columns have become once all is done        others     stored values that have no such home
    written    what has a place of its own, where it is copied if it was not made there: states after, others
    filled     of others those that are added to what their place has from the beginning: a row
    """

    steps: list[Step]
    groups: list[tuple[Node, list[Node]]]
    columns: list[slice]
    homes: dict[Node, slice]
    others: list[Node]
    written: list[Node]
    filled: dict[Node, Node]

    def at(self, columns: slice) -> int:
        if columns not in self.columns:
            self.columns.append(columns)
        return self.columns.index(columns)


@functools.cache
def instructions(plan: Program) -> Forward:
    users: dict[Node, list[Node]] = {x: [] for x in (*plan.order, *plan.states)}
    for y in plan.order:
        for x in set(y.parts) & users.keys():
            users[x].append(y)
    alone = {x for x in plan.order if len(users[x]) == 1 and x not in plan.stored and x not in plan.outs}
    run = Forward([], [], [], {}, [], [], {})
    done, steps = set(plan.rows), dict[Node, Step]()  # of each group its first product's
    sums = dict[Node, Node]()  # product -> what is kept instead: its sum with a row
    for E, whole in plan.groups:
        for products, first in _beside(plan, whole, users, alone, done):
            run.groups.append((E, products))
            with_row = _with_row(plan, products, users) if first is None else None
            if first is not None:
                step = _in_place(plan, products, first, users, alone, run, done)
            elif with_row is None:
                step = _apart(products, run)
            else:
                sums[products[0]], row = with_row
                run.filled[sums[products[0]]] = row
                step = _apart([sums[products[0]]], run)
                done.add(sums[products[0]])
            steps[min(products, key=lambda p: p.index)] = step
            done |= set(products)
    run.homes |= {x: plan.columns(x) for x in plan.inputs if x not in done}
    run.steps += [functools.partial(_leaf, x, run.at(plan.columns(x))) for x in plan.inputs if x not in done]
    run.others = [sums.get(x, x) for x in plan.stored if x not in run.homes]
    run.written = [*plan.outs, *run.others]
    for x in plan.order:
        place = run.written.index(x) if x in run.written else None
        if x in steps:
            run.steps.append(steps[x])
        elif x in done or x.op in ("state", "leaf") or _closes(x, alone, users):
            continue
        elif x.op == "mul" and x in alone and users[x][0].op == "lin":
            continue  # it is made where it is added
        elif (mixed := _mixed(x, alone, users)) is not None:
            run.steps.append(functools.partial(_lerp, x, mixed, place))
        elif x.op == "lin":
            left = [(k, a) for k, a in x.args[1] if a.op != "leaf" or a in plan.rows or a not in done]
            terms = sorted(((k, a, a.op == "mul" and a in alone) for k, a in left), key=lambda term: term[2])
            run.steps.append(functools.partial(_lin, x, terms, place))
        else:
            run.steps.append(functools.partial(_mul if x.op == "mul" else _apply, x, place))
    return run


def _beside(
    plan: Program, products: list[Node], users: dict[Node, list[Node]], alone: set[Node], done: set[Node]
) -> list[tuple[list[Node], int | None]]:
    """Products whose sums take inputs that lie side by side, with the first of those; and the others, with None."""
    found: dict[int | None, list[Node]] = {}
    for p in products:
        u = users[p][0] if p in alone else p
        leaves = [
            plan.inputs.index(a) for k, a in (u.args[1] if u.op == "lin" and (1.0, p) in u.args[1] else ())
            if k == 1 and a in plan.inputs and a in alone and a not in plan.reads and a not in done
        ]  # fmt: skip
        taken = {k + i for k, ps in found.items() if k is not None for i in range(len(ps))}  # a sum of two products
        at = leaves[0] if len(leaves) == 1 and leaves[0] not in taken else None
        joins = next((k for k, ps in found.items() if None not in (k, at) and k + len(ps) == at), at)  # type: ignore[operator]
        found.setdefault(joins, []).append(p)
    return [(ps, first) for first, ps in found.items()]


def _in_place(
    plan: Program, products: list[Node], first: int, users: dict[Node, list[Node]], alone: set[Node], run: Forward,
    done: set[Node],
) -> Step:  # fmt: skip
    """Products added, and activated, where what they are added to was gathered."""
    E, g = run.groups[-1][0], len(run.groups) - 1
    sums = [users[p][0] for p in products]
    leaves = plan.inputs[first : first + len(products)]
    activated, made, ends = list[tuple[str, slice]](), dict[Node, slice](), list[tuple[Node, int]]()
    for u, p, leaf in zip(sums, products, leaves, strict=True):
        columns, x = plan.columns(leaf), p
        done.add(leaf)
        if not u.args[0] and len(u.args[1]) == 2:  # there is no more to be added
            x = u
            if u in alone and users[u][0].op in UNARY and hasattr(Tensor, f"{users[u][0].op}_"):
                done.add(u)
                x = users[u][0]
                if x in plan.outs and x.op in OUT:  # it is the state after: made where that is kept
                    ends.append((x, run.at(columns)))
                    done.add(x)
                    continue
                joins = activated and activated[-1][0] == x.op and activated[-1][1].stop == columns.start
                activated.append((x.op, slice(activated.pop()[1].start if joins else columns.start, columns.stop)))
            done.add(x)
        made[x] = columns
    run.homes |= {x: columns for x, columns in made.items() if x not in products}
    whole = run.at(slice(first * plan.h, (first + len(products)) * plan.h))
    active = [(getattr(Tensor, f"{op}_"), run.at(columns)) for op, columns in activated]
    places = [(x, run.at(columns)) for x, columns in made.items()]

    def step(v: Values, parts: Parts, to: Parts, W: list[Tensor]) -> None:
        part = parts[whole]
        (part.addmm_ if part.dim() == 2 else part.baddbmm_)(v[E], W[g])
        for function, at in active:
            function(parts[at])
        for x, at in places:
            v[x] = parts[at]
        for x, at in ends:
            v[x] = getattr(torch, x.op)(parts[at], out=to[run.written.index(x)])

    return step


def _apart(products: list[Node], run: Forward) -> Step:
    """Products in a place of their own; a single one added to the row that is there already."""
    E, g = run.groups[-1][0], len(run.groups) - 1

    def step(v: Values, parts: Parts, to: Parts, W: list[Tensor]) -> None:
        out = to[run.written.index(products[0])] if products[0] in run.written and len(products) == 1 else None
        if products[0] in run.filled and out is not None:
            v[products[0]] = (out.addmm_ if out.dim() == 2 else out.baddbmm_)(v[E], W[g])
            return
        whole = (torch.mm if v[E].dim() == 2 else torch.bmm)(v[E], W[g], out=out)
        v.update(zip(products, whole.chunk(len(products), -1), strict=True))

    return step


def _with_row(plan: Program, products: list[Node], users: dict[Node, list[Node]]) -> tuple[Node, Node] | None:
    """The sum of a single product and a row, through which alone the product is read, and the row; else None."""
    p = products[0]
    if len(products) > 1 or len(users[p]) != 1 or p not in plan.stored:
        return None
    [u] = users[p]
    row = next((a for a in u.parts if a in plan.rows), None)
    if row is None or u.op != "lin" or u.args[0] != 0 or [k for k, _ in u.args[1]] != [1, 1] or u in plan.stored:
        return None
    terms = (*plan.mixes.values(), *plan.sums.values(), *plan.carry.values())
    left = [s for s in (*(s for _, s in plan.Qs), *(s for some in terms for s in some.values())) if isinstance(s, Node)]
    seen = {u}
    while left:
        if (x := left.pop()) is p:
            return None
        left += [part for part in x.parts if part not in seen]
        seen.add(x)
    return u, row


def _leaf(x: Node, at: int, v: Values, parts: Parts, to: Parts, W: list[Tensor]) -> None:
    v[x] = parts[at]


def _apply(x: Node, place: int | None, v: Values, parts: Parts, to: Parts, W: list[Tensor]) -> None:
    if place is not None and x.op in OUT:
        v[x] = getattr(torch, x.op)(v[x.args[0]], out=to[place])
        return
    v[x] = derive.apply(x, [v[a] if a in v else plain(a) for a in x.parts], next(iter(v.values())))


def _mul(x: Node, place: int | None, v: Values, parts: Parts, to: Parts, W: list[Tensor]) -> None:
    v[x] = torch.mul(v[x.args[0]], v[x.args[1]], out=None if place is None else to[place])


def _mixed(x: Node, alone: set[Node], users: dict[Node, list[Node]]) -> tuple[Node, Node, Node] | None:
    """(a, b, z) of z ⊙ a + (1 - z) ⊙ b, which torch has as one function."""
    if x.op != "lin" or x.args[0] != 0 or [k for k, _ in x.args[1]] != [1, 1]:
        return None
    for m, other in (x.parts, x.parts[::-1]):
        if m.op == other.op == "mul" and m in alone and other in alone:
            for z, a in (m.args, m.args[::-1]):
                for w, b in (other.args, other.args[::-1]):
                    if w.op == "lin" and w.args == (1.0, ((-1.0, z),)) and w in alone:
                        return a, b, z
    return None


def _closes(x: Node, alone: set[Node], users: dict[Node, list[Node]]) -> bool:
    """Whether it is the 1 - z of such a sum, and nothing else."""
    if x not in alone or users[x][0] not in alone:
        return False
    found = _mixed(users[users[x][0]][0], alone, users)
    return found is not None and x.op == "lin" and x.args == (1.0, ((-1.0, found[2]),))


def _lerp(x: Node, of: tuple[Node, Node, Node], place: int | None, v: Values, parts: Parts, to: Parts, W: Any) -> None:
    a, b, z = (v[part] for part in of)
    v[x] = torch.lerp(b, a, z, out=None if place is None else to[place])


def _lin(
    x: Node, terms: list[tuple[float, Node, bool]], place: int | None, v: Values, parts: Parts, to: Parts, W: Any
) -> None:
    """A sum; a product of two that nothing else reads is added as it is made."""
    total: Any = x.args[0]
    for i, (k, a, made) in enumerate(terms):
        out = to[place] if place is not None and i == len(terms) - 1 else None
        if isinstance(total, Tensor) and made:
            total = torch.addcmul(total, v[a.args[0]], v[a.args[1]], value=k, out=out)
        elif isinstance(total, Tensor):
            total = torch.add(total, v[a], alpha=k, out=out)
        else:
            term = v[a.args[0]] * v[a.args[1]] if made else v[a]
            total = torch.rsub(term, total) if k == -1 else term * k + total if total else term if k == 1 else term * k
    v[x] = total if isinstance(total, Tensor) else next(iter(v.values())).new_full((), total)
