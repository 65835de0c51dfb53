"""Is every equation what it says: scalar twins, torch's own modules, laws that hold for any cell, names and counts."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from variants import catalog, get, parse, reference_engine, registry
from variants.cell import Cell, State
from variants.layers import stack
from variants.library import Library
from variants.model import Model

pytestmark = pytest.mark.filterwarnings("error")

SCRATCH = [name for name, entry in catalog().items() if not entry.library]
TORCH = [name for name, entry in catalog().items() if entry.library]


NO_NUMBER = ["min_lstm:F=0,I=0"]  # nothing kept and nothing let in, scaled to add up to one


def fixings(name: str) -> list[str]:
    """Every gate of a cell at 0, 1/2, 1, and every two of its gates at each of those."""
    gates = catalog()[name].gates
    ones = [f"{name}:{g}={v}" for g in gates for v in (0, 0.5, 1)]
    twos = [
        f"{name}:{g}={v},{k}={w}"
        for g, k in itertools.combinations(gates, 2)
        for v, w in itertools.product((0, 0.5, 1), repeat=2)
    ]
    return [fixed for fixed in ones + twos if fixed not in NO_NUMBER]


FIXED = [name for cell in SCRATCH for name in fixings(cell)]
ALL = [*SCRATCH, *FIXED, *TORCH]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def distinct(cell: Cell, seed: int = 0) -> dict[str, Tensor]:
    """float64, every parameter set to another value, none of them 0: a term left out or swapped changes a result.

    So is every running average, which is used then, as after a training.
    """
    cell.double().eval()
    averages = [average for name, average in cell.named_buffers() if name != "zero"]
    for k, average in enumerate(averages):
        average.copy_(torch.linspace(0.3, 0.9, average.numel(), dtype=torch.float64).view(average.shape) + k / 10)
    count = sum(p.numel() for p in cell.parameters())
    values = (torch.randperm(2 * count, generator=rng(seed)) - count + 0.5)[:count].double() / count
    for p, part in zip(cell.parameters(), values.split([p.numel() for p in cell.parameters()]), strict=True):
        p.data = part.view(p.shape).clone()
    return cell.state_dict()


def unroll(name: str, cell: Cell, X: Tensor, state: State) -> tuple[Tensor, State]:
    outputs, state = importlib.import_module(f"variants.engines.{reference_engine(name)}").unroll(cell, X, state)
    return outputs, state


# ---- scalar twins: each equation once more, one number at a time ----

Matrix = list[list[float]]
Weights = dict[str, Matrix]
Held = dict[str, float]
Twin = Callable[[Weights, Held, list[float], list[list[float]]], list[list[float]]]


def times(x: list[float], W: Matrix, j: int) -> float:
    total = 0.0
    for i in range(len(x)):
        total += x[i] * W[i][j]
    return total


def sigma(a: float) -> float:
    return 1 / (1 + math.exp(-a))


def rnn(w: Weights, held: Held, x: list[float], state: list[list[float]]) -> list[list[float]]:
    (h,) = state
    new = []
    for j in range(len(h)):
        new.append(math.tanh(times(x, w["W_xh"], j) + times(h, w["W_hh"], j) + w["b_h"][0][j]))
    return [new]


def gru(w: Weights, held: Held, x: list[float], state: list[list[float]]) -> list[list[float]]:
    (h,) = state
    units = range(len(h))
    z = [held.get("Z", sigma(times(x, w["W_xz"], j) + times(h, w["W_hz"], j) + w["b_z"][0][j])) for j in units]
    r = [held.get("R", sigma(times(x, w["W_xr"], j) + times(h, w["W_hr"], j) + w["b_r"][0][j])) for j in units]
    reset = [r[i] * h[i] for i in units]
    new = []
    for j in units:
        candidate = math.tanh(times(x, w["W_xh"], j) + times(reset, w["W_hh"], j) + w["b_h"][0][j])
        new.append(z[j] * h[j] + (1 - z[j]) * candidate)
    return [new]


def gru_after(w: Weights, held: Held, x: list[float], state: list[list[float]]) -> list[list[float]]:
    (h,) = state
    new = []
    for j in range(len(h)):
        z = sigma(times(x, w["W_xz"], j) + w["b_xz"][0][j] + times(h, w["W_hz"], j) + w["b_hz"][0][j])
        r = sigma(times(x, w["W_xr"], j) + w["b_xr"][0][j] + times(h, w["W_hr"], j) + w["b_hr"][0][j])
        z, r = held.get("Z", z), held.get("R", r)
        past = r * (times(h, w["W_hh"], j) + w["b_hh"][0][j])
        new.append(z * h[j] + (1 - z) * math.tanh(times(x, w["W_xh"], j) + w["b_xh"][0][j] + past))
    return [new]


def lstm(w: Weights, held: Held, x: list[float], state: list[list[float]]) -> list[list[float]]:
    h, c = state
    new, memory = [], []
    for j in range(len(h)):
        i = held.get("I", sigma(times(x, w["W_xi"], j) + times(h, w["W_hi"], j) + w["b_i"][0][j]))
        f = held.get("F", sigma(times(x, w["W_xf"], j) + times(h, w["W_hf"], j) + w["b_f"][0][j]))
        o = held.get("O", sigma(times(x, w["W_xo"], j) + times(h, w["W_ho"], j) + w["b_o"][0][j]))
        candidate = math.tanh(times(x, w["W_xc"], j) + times(h, w["W_hc"], j) + w["b_c"][0][j])
        memory.append(f * c[j] + i * candidate)
        new.append(o * math.tanh(memory[j]))
    return [new, memory]


def mgu(keeps: bool) -> Twin:
    """mgu, whose gate replaces the state, and mgu_keep, whose gate keeps it."""

    def twin(w: Weights, held: Held, x: list[float], state: list[list[float]]) -> list[list[float]]:
        (h,) = state
        units = range(len(h))
        f = [held.get("F", sigma(times(x, w["W_xf"], j) + times(h, w["W_hf"], j) + w["b_f"][0][j])) for j in units]
        seen = [f[i] * h[i] for i in units]
        new = []
        for j in units:
            candidate = math.tanh(times(x, w["W_xh"], j) + times(seen, w["W_hh"], j) + w["b_h"][0][j])
            old, fresh = (f[j], 1 - f[j]) if keeps else (1 - f[j], f[j])
            new.append(old * h[j] + fresh * candidate)
        return [new]

    return twin


def simpler_gru(sees: str) -> Twin:
    """gru1, gru2, gru3: what their gates add up, of the state and a bias."""

    def twin(w: Weights, held: Held, x: list[float], state: list[list[float]]) -> list[list[float]]:
        (h,) = state
        units = range(len(h))
        gates = {}
        for symbol in "ZR":
            k = symbol.lower()
            sums = [0.0] * len(h)
            for j in units:
                if "H" in sees:
                    sums[j] += times(h, w[f"W_h{k}"], j)
                if "b" in sees:
                    sums[j] += w[f"b_{k}"][0][j]
            gates[symbol] = [held.get(symbol, sigma(a)) for a in sums]
        reset = [gates["R"][i] * h[i] for i in units]
        new = []
        for j in units:
            candidate = math.tanh(times(x, w["W_xh"], j) + times(reset, w["W_hh"], j) + w["b_h"][0][j])
            new.append(gates["Z"][j] * h[j] + (1 - gates["Z"][j]) * candidate)
        return [new]

    return twin


def janet(w: Weights, held: Held, x: list[float], state: list[list[float]]) -> list[list[float]]:
    (h,) = state
    new = []
    for j in range(len(h)):
        s = times(x, w["W_xf"], j) + times(h, w["W_hf"], j) + w["b_f"][0][j]
        candidate = math.tanh(times(x, w["W_xc"], j) + times(h, w["W_hc"], j) + w["b_c"][0][j])
        new.append(held.get("F", sigma(s)) * h[j] + held.get("I", sigma(1 - s)) * candidate)
    return [new]


def cifg(w: Weights, held: Held, x: list[float], state: list[list[float]]) -> list[list[float]]:
    h, c = state
    new, memory = [], []
    for j in range(len(h)):
        f = held.get("F", sigma(times(x, w["W_xf"], j) + times(h, w["W_hf"], j) + w["b_f"][0][j]))
        o = held.get("O", sigma(times(x, w["W_xo"], j) + times(h, w["W_ho"], j) + w["b_o"][0][j]))
        candidate = math.tanh(times(x, w["W_xc"], j) + times(h, w["W_hc"], j) + w["b_c"][0][j])
        memory.append(candidate + f * (c[j] - candidate))
        new.append(o * math.tanh(memory[j]))
    return [new, memory]


def lstm_peephole(w: Weights, held: Held, x: list[float], state: list[list[float]]) -> list[list[float]]:
    h, c = state
    new, memory = [], []
    for j in range(len(h)):
        i = times(x, w["W_xi"], j) + times(h, w["W_hi"], j) + w["w_ci"][0][j] * c[j] + w["b_i"][0][j]
        f = times(x, w["W_xf"], j) + times(h, w["W_hf"], j) + w["w_cf"][0][j] * c[j] + w["b_f"][0][j]
        candidate = math.tanh(times(x, w["W_xc"], j) + times(h, w["W_hc"], j) + w["b_c"][0][j])
        memory.append(held.get("F", sigma(f)) * c[j] + held.get("I", sigma(i)) * candidate)
        o = times(x, w["W_xo"], j) + times(h, w["W_ho"], j) + w["w_co"][0][j] * memory[j] + w["b_o"][0][j]
        new.append(held.get("O", sigma(o)) * math.tanh(memory[j]))
    return [new, memory]


def indrnn(w: Weights, held: Held, x: list[float], state: list[list[float]]) -> list[list[float]]:
    (h,) = state
    return [[max(0.0, times(x, w["W_xh"], j) + w["w_hh"][0][j] * h[j] + w["b_h"][0][j]) for j in range(len(h))]]


def min_gru(w: Weights, held: Held, x: list[float], state: list[list[float]]) -> list[list[float]]:
    (h,) = state
    new = []
    for j in range(len(h)):
        z = held.get("Z", sigma(times(x, w["W_xz"], j) + w["b_z"][0][j]))
        new.append(h[j] + z * (times(x, w["W_xh"], j) + w["b_h"][0][j] - h[j]))
    return [new]


def min_gru_signed(w: Weights, held: Held, x: list[float], state: list[list[float]]) -> list[list[float]]:
    (h,) = state
    new = []
    for j in range(len(h)):
        z = held.get("Z", sigma(times(x, w["W_xz"], j) + w["b_z"][0][j]))
        new.append(h[j] - 2 * z * h[j] + z * (times(x, w["W_xh"], j) + w["b_h"][0][j]))
    return [new]


def gru_diag(w: Weights, held: Held, x: list[float], state: list[list[float]]) -> list[list[float]]:
    (h,) = state
    new = []
    for j in range(len(h)):
        z = held.get("Z", sigma(times(x, w["W_xz"], j) + w["w_hz"][0][j] * h[j] + w["b_z"][0][j]))
        r = held.get("R", sigma(times(x, w["W_xr"], j) + w["w_hr"][0][j] * h[j] + w["b_r"][0][j]))
        candidate = math.tanh(times(x, w["W_xh"], j) + w["w_hh"][0][j] * r * h[j] + w["b_h"][0][j])
        new.append(candidate + z * (h[j] - candidate))
    return [new]


def ugrnn(w: Weights, held: Held, x: list[float], state: list[list[float]]) -> list[list[float]]:
    (h,) = state
    new = []
    for j in range(len(h)):
        z = held.get("Z", sigma(times(x, w["W_xz"], j) + times(h, w["W_hz"], j) + w["b_z"][0][j]))
        candidate = math.tanh(times(x, w["W_xh"], j) + times(h, w["W_hh"], j) + w["b_h"][0][j])
        new.append(candidate + z * (h[j] - candidate))
    return [new]


def min_lstm(w: Weights, held: Held, x: list[float], state: list[list[float]]) -> list[list[float]]:
    (h,) = state
    new = []
    for j in range(len(h)):
        f = held.get("F", sigma(times(x, w["W_xf"], j) + w["b_f"][0][j]))
        i = held.get("I", sigma(times(x, w["W_xi"], j) + w["b_i"][0][j]))
        candidate = times(x, w["W_xh"], j) + w["b_h"][0][j]
        new.append(candidate + f / (f + i) * (h[j] - candidate))
    return [new]


def ligru(w: Weights, held: Held, x: list[float], state: list[list[float]]) -> list[list[float]]:
    (h,) = state
    new = []

    def normal(k: str, j: int) -> float:
        spread = math.sqrt(w[f"v_{k}"][0][j] + 1e-5)
        return w[f"g_{k}"][0][j] * (times(x, w[f"W_x{k}"], j) - w[f"m_{k}"][0][j]) / spread + w[f"b_{k}"][0][j]

    for j in range(len(h)):
        z = held.get("Z", sigma(normal("z", j) + times(h, w["W_hz"], j)))
        new.append(z * h[j] + (1 - z) * max(0.0, normal("h", j) + times(h, w["W_hh"], j)))
    return [new]


# A cell written here: itself once more, and its weights by hidden units h, with 28 characters, no output layer.
CELLS: dict[str, tuple[Twin, Callable[[int], int]]] = {
    "rnn": (rnn, lambda h: h * (28 + h + 1)),
    "gru": (gru, lambda h: 3 * h * (28 + h + 1)),
    "gru_after": (gru_after, lambda h: 3 * h * (28 + h + 2)),
    "lstm": (lstm, lambda h: 4 * h * (28 + h + 1)),
    "mgu": (mgu(keeps=False), lambda h: 2 * h * (28 + h + 1)),
    "mgu_keep": (mgu(keeps=True), lambda h: 2 * h * (28 + h + 1)),
    "gru1": (simpler_gru("Hb"), lambda h: 3 * h * (28 + h + 1) - 2 * h * 28),
    "gru2": (simpler_gru("H"), lambda h: 3 * h * (28 + h + 1) - 2 * h * (28 + 1)),
    "gru3": (simpler_gru("b"), lambda h: 3 * h * (28 + h + 1) - 2 * h * (28 + h)),
    "janet": (janet, lambda h: 2 * h * (28 + h + 1)),
    "cifg": (cifg, lambda h: 3 * h * (28 + h + 1)),
    "lstm_peephole": (lstm_peephole, lambda h: 4 * h * (28 + h + 1) + 3 * h),
    "indrnn": (indrnn, lambda h: h * (28 + 2)),
    "min_gru": (min_gru, lambda h: 2 * h * (28 + 1)),
    "min_gru_signed": (min_gru_signed, lambda h: 2 * h * (28 + 1)),
    "gru_diag": (gru_diag, lambda h: 3 * h * (28 + 2)),
    "ugrnn": (ugrnn, lambda h: 2 * h * (28 + h + 1)),
    "min_lstm": (min_lstm, lambda h: 3 * h * (28 + 1)),
    "ligru": (ligru, lambda h: 2 * h * (28 + h + 2)),
}


def test_every_cell_written_here_is_written_once_more() -> None:
    assert set(SCRATCH) == set(CELLS), "write the scalar twin and the count of weights into CELLS, in this file"


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_has_the_weights_its_paper_counts(name: str) -> None:
    for h in (3, 32):
        assert sum(w.numel() for w in get(name)(28, h).parameters()) == CELLS[name][1](h)


@pytest.mark.parametrize("name", [name for name in [*SCRATCH, *FIXED] if parse(name)[0] in CELLS])
def test_a_cell_is_its_scalar_twin(name: str) -> None:
    base, held = parse(name)
    S, n, T, d, h = 2, 3, 5, 4, 3
    full = get(base)(d, h, S)
    weights = distinct(full)
    cell = get(name)(d, h, S).double().eval()
    for key, value in cell.state_dict().items():  # a fixed gate's weights are gone; the twin keeps them, held apart
        value.copy_(weights[key])
    X = normal(T, S, n, d)
    # a dead weight is dead from the zero state, where every training starts
    begin = full.begin(n) if held else tuple(normal(S, n, h, seed=k) for k in range(full.states))
    outputs, state = unroll(name, cell, X, begin)
    assert len(state) == full.states
    twin, _ = CELLS[base]
    for s, i in itertools.product(range(S), range(n)):
        w = {key: value[s].tolist() for key, value in weights.items()}
        now = [part[s, i].tolist() for part in begin]
        for t in range(T):
            now = twin(w, held, X[t, s, i].tolist(), now)
            assert outputs[t, s, i].tolist() == pytest.approx(now[0], abs=1e-12, rel=0)
        shown = 1 if held.get("O") == 0 else len(now)  # a memory that no output shows has no weights left
        for part, value in zip(state[:shown], now[:shown], strict=True):
            assert part[s, i].tolist() == pytest.approx(value, abs=1e-12, rel=0)


@pytest.mark.parametrize("name", NO_NUMBER)
def test_what_gives_no_number_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=r"^with F=0, I=0 its equations divide by 0"):
        get(name)


# ---- torch's own modules ----

# (torch's, ours, torch's documented order of blocks, has ours the second bias)
PAIRS = [("nn.rnn", "rnn", "h", False), ("nn.gru", "gru_after", "rzh", True), ("nn.lstm", "lstm", "ifco", False)]


def test_every_module_of_torch_has_its_cell() -> None:
    assert {theirs for theirs, *_ in PAIRS} == set(TORCH)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("theirs", "ours", "blocks", "second"), PAIRS)
def test_torchs_modules_are_the_cells_written_here(
    theirs: str, ours: str, blocks: str, second: bool, layers: int
) -> None:
    """Stacked too: `num_layers` of torch's."""
    d, h, n, T = 5, 4, 3, 6
    library, cell = stack(get(theirs), layers)(d, h), stack(get(ours), layers)(d, h).double()
    assert isinstance(library, Library)
    distinct(library)
    parts = dict(library.named_parts())
    for name, p in cell.named_parameters():
        kind, layer = name[-1], name.rpartition(".")[0] + "." * ("." in name)
        p.data = (parts[name] if name in parts else parts[f"{layer}b_x{kind}"] + parts[f"{layer}b_h{kind}"]).clone()

    states = cell.states
    assert states == library.states == layers * get(ours).states
    X = [normal(T, 1, n, d).requires_grad_() for _ in range(2)]
    begin = [tuple(normal(1, n, h, seed=k + 1).requires_grad_() for k in range(states)) for _ in range(2)]
    weigh = normal(T, 1, n, h, seed=7)
    results = []
    for name, module, x, state in ((theirs, library, X[0], begin[0]), (ours, cell, X[1], begin[1])):
        outputs, after = unroll(name, module, x, state)
        results.append((outputs, after))
        ((outputs * weigh).sum() + sum((k + 2) * (a * weigh[k]).sum() for k, a in enumerate(after))).backward()

    close(results[0][0], results[1][0], "outputs")
    for k in range(states):
        close(results[0][1][k], results[1][1][k], f"final state {k}")
        close(begin[0][k].grad, begin[1][k].grad, f"gradient of state {k}")
    close(X[0].grad, X[1].grad, "gradient of X")
    seen = set()
    kinds = (("W_x", "weight_ih"), ("W_h", "weight_hh"), ("b_x", "bias_ih"), ("b_h", "bias_hh"))
    for level, (prefix, tensor) in itertools.product(range(layers), kinds):
        whole = getattr(library.rnn, f"{tensor}_l{level}").grad
        for k, kind in enumerate(blocks):
            part = whole[k * h : (k + 1) * h]
            mine = f"b_{kind}" if prefix.startswith("b") and not second else prefix + kind
            mine = f"above.{level - 1}." * (level > 0) + mine
            gradient = cell.get_parameter(mine).grad
            assert gradient is not None
            close(
                part.T if part.dim() == 2 else part,
                gradient.view(part.T.shape if part.dim() == 2 else part.shape),
                mine,
            )
            seen.add(mine)
    assert seen == {name for name, _ in cell.named_parameters()}


def close(a: Tensor | None, b: Tensor | None, what: str) -> None:
    assert a is not None
    assert b is not None
    assert a.shape == b.shape, what
    assert (a - b).abs().max() <= 1e-10, what
    assert a.abs().max() > 1e-6, f"{what} is 0: nothing was compared"


# ---- laws of every cell ----


@pytest.mark.parametrize("name", [*SCRATCH, *[n for n in FIXED if "," not in n]])
def test_gradients_are_the_slopes(name: str) -> None:
    cell = get(name)(2, 2)
    distinct(cell)
    X = normal(3, 1, 1, 2).requires_grad_()
    begin = tuple(normal(1, 1, 2, seed=k + 1).requires_grad_() for k in range(cell.states))

    def outputs(X: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:  # gradcheck moves the weights in place
        Y, state = unroll(name, cell, X, rest[: cell.states])
        return Y, *state

    assert torch.autograd.gradcheck(outputs, (X, *begin, *cell.parameters()))


@pytest.mark.parametrize("name", ALL)
def test_one_pass_is_two_passes(name: str) -> None:
    seeds = [4] if name in TORCH else [4, 5]
    model = Model(name, 5, 6, seeds, init="torch", dtype=torch.float64)
    X = torch.randint(5, (9, len(seeds), 3), generator=rng())
    whole, end = model(X, model.cell.begin(3))
    first, state = model(X[:4], model.cell.begin(3))
    second, after = model(X[4:], state)
    assert (torch.cat([first, second]) - whole).abs().max() <= 1e-12
    assert all((a - b).abs().max() <= 1e-12 for a, b in zip(end, after, strict=True))
    if name in (*SCRATCH, *TORCH):  # the state matters: carrying nothing is seen
        assert (model(X[4:], model.cell.begin(3))[0] - second).abs().max() > 1e-3


@pytest.mark.parametrize("name", ALL)
def test_no_output_knows_a_later_input(name: str) -> None:
    S = 1 if name in TORCH else 2
    cell = get(name)(4, 3, S)
    distinct(cell)
    X = normal(6, S, 2, 4).requires_grad_()
    outputs, _ = unroll(name, cell, X, cell.begin(2))
    later = X.detach().clone()
    later[3:] = normal(3, S, 2, 4, seed=9)
    changed, _ = unroll(name, cell, later, cell.begin(2))
    assert torch.equal(outputs[:3], changed[:3])
    if name in (*SCRATCH, *TORCH):
        assert not torch.equal(outputs[3], changed[3])
        outputs[:3].sum().backward()
        assert X.grad is not None
        assert not X.grad[3:].any()
        reached = X.grad[:3].flatten(1) != 0
        off = name in SCRATCH and "relu" in (registry.HERE / f"{catalog()[name].file}.py").read_text(encoding="utf-8")
        assert (reached.any(1) if off else reached).all()  # a ReLU that is off passes nothing


@pytest.mark.parametrize("name", SCRATCH)
def test_after_training_no_sequence_knows_the_one_beside_it(name: str) -> None:
    model = Model(name, 5, 6, [4, 5], init="torch", dtype=torch.float64)
    X = torch.randint(5, (9, 2, 3), generator=rng())
    model(X, model.cell.begin(3))  # in training: what is averaged is averaged
    model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    together, _ = model(X, model.cell.begin(3))
    for i in range(3):
        alone, _ = model(X[:, :, i : i + 1], model.cell.begin(1))
        assert (alone[:, :, 0] - together[:, :, i]).abs().max() <= 1e-12
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_ligru_normalises_as_torch_does() -> None:
    """In training over the minibatch of each step; the averages are what is left of each step's mean and variance."""
    cell = get("ligru")(4, 3, 2)
    weights = distinct(cell)
    cell.train()
    X, H = normal(5, 2, 6, 4), normal(2, 6, 3, seed=1).abs()
    means, spreads = weights["m_h"].clone(), weights["v_h"].clone()
    for X_t in X:
        after = cell.step(X_t, H)
        for s in range(2):
            parts = {}
            for k in "zh":
                A, g, b = X_t[s] @ weights[f"W_x{k}"][s], weights[f"g_{k}"][s, 0], weights[f"b_{k}"][s, 0]
                parts[k] = (
                    torch.nn.functional.batch_norm(A, None, None, g, b, True, 0.0, 1e-5) + H[s] @ weights[f"W_h{k}"][s]
                )
            Z, candidate = parts["z"].sigmoid(), parts["h"].relu()
            assert isinstance(after, Tensor)
            assert (Z * H[s] + (1 - Z) * candidate - after[s]).abs().max() <= 1e-12
            A = X_t[s] @ weights["W_xh"][s]
            means[s] += 0.01 * (A.mean(0) - means[s])
            spreads[s] += 0.01 * (A.var(0, correction=0) - spreads[s])
    assert (cell.m_h - means).abs().max() <= 1e-12
    assert (cell.v_h - spreads).abs().max() <= 1e-12


def trained(name: str, seeds: Sequence[int], poison: int | None = None, steps: int = 5) -> tuple[Model, list[Tensor]]:
    """A float64 model after some steps, each seed on its own data, and each step's losses."""
    model = Model(name, 5, 6, seeds, init="torch", dtype=torch.float64)
    if poison is not None:
        model.b_q.data[seeds.index(poison), 0, 2] = math.nan
    lost = []
    data = [torch.randint(5, (steps, 7, 3), generator=rng(seed)) for seed in seeds]
    state = model.cell.begin(3)
    for k in range(steps):
        X = torch.stack([d[k] for d in data], 1)
        losses, state = model.losses(X[:-1], X[1:], state)
        losses.sum().backward()
        model.update(lr=2.0, clip=0.3)
        state = tuple(s.detach() for s in state)
        lost.append(losses.detach())
    return model, lost


@pytest.mark.parametrize("name", [*SCRATCH, *[n for n in FIXED if n.startswith("gru:")]])
def test_a_seed_alone_is_the_seed_among_many(name: str) -> None:
    many, lost = trained(name, [3, 7, 11])
    one, alone = trained(name, [7])
    start = dict(Model(name, 5, 6, [7], init="torch", dtype=torch.float64).named_parameters())
    for key, value in one.named_parameters():
        assert (value[0] - dict(many.named_parameters())[key][1]).abs().max() <= 1e-12, key
        if name in SCRATCH:  # Z = 1 leaves the output layer nothing but its bias to learn
            assert not torch.equal(value, start[key]), f"{key} never moved"
    for a, b in zip(alone, lost, strict=True):
        assert abs(a[0] - b[1]) <= 1e-12
        assert len(set(b.tolist())) == 3


@pytest.mark.parametrize("name", SCRATCH)
def test_a_seed_that_is_not_a_number_leaves_the_others_to_the_last_bit(name: str) -> None:
    healthy, lost = trained(name, [3, 7, 11])
    sick, sick_lost = trained(name, [3, 7, 11], poison=7)
    for (key, a), (_, b) in zip(healthy.named_parameters(), sick.named_parameters(), strict=True):
        assert torch.equal(a[[0, 2]], b[[0, 2]]), key
    for before, after in zip(lost, sick_lost, strict=True):
        assert torch.equal(before[[0, 2]], after[[0, 2]])
        assert after[1].isnan()
