"""What must hold of every variant by its name: its size, its spelling, its identity, its initial values, its hash."""

from __future__ import annotations

import ast
import importlib
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import variants
from variants import canonical, catalog, parse
from variants.cell import Cell
from variants.library import Library
from variants.model import Model, initial, kept
from variants.optimizer import ADAM, SGD

ROOT = Path(__file__).parents[2]
PARAMETERS = {  # of the chapter's size, output layer included
    "rnn": 80_156, "gru": 226_076, "gru_after": 226_844, "lstm": 299_036,
    "nn.rnn": 80_412, "nn.gru": 226_844, "nn.lstm": 300_060,
    "gru:R=1": 153_116, "gru:R=0.5": 153_116, "gru:Z=0": 153_116, "gru:Z=0.5": 153_116,
    "gru:R=0": 87_580, "gru:Z=0,R=1": 80_156, "gru:Z=1": 7_196, "gru:Z=0,R=0": 14_620,
    "mgu": 153_116, "mgu_keep": 153_116, "janet": 153_116, "gru1": 211_740, "gru2": 211_228, "gru3": 80_668,
}  # fmt: skip


# ---- size ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "count"), PARAMETERS.items())
def test_parameters_at_the_chapters_size(variant: str, count: int) -> None:
    assert Model(variant, 28, 256, [0]).parameters_per_seed == count


@pytest.mark.parametrize(("v", "h"), [(5, 7), (28, 32)])
def test_parameters_by_formula(v: int, h: int) -> None:
    block, head = v * h + h * h + h, h * v + v
    expected = {
        "rnn": block, "gru": 3 * block, "lstm": 4 * block, "gru_after": 3 * block + 3 * h,
        "nn.rnn": block + h, "nn.gru": 3 * block + 3 * h, "nn.lstm": 4 * block + 4 * h,
        "gru:R=0": block + v * h + h,  # the candidate sees no state: its product with it is gone
        "gru:R=0.25": 2 * block, "gru:Z=0": 2 * block, "gru:Z=1": 0, "gru:Z=0,R=0": v * h + h,
        "gru_after:R=1": 2 * (block + h), "gru_after:R=0": block + h + v * h + h, "lstm:F=1": 3 * block,
    }  # fmt: skip
    for variant, count in expected.items():
        assert Model(variant, v, h, [0, 1] if "nn." not in variant else [0]).parameters_per_seed == count + head, (
            variant
        )


# ---- identity -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [[0], [3, 4]])
def test_both_gates_off_is_rnn_to_the_last_bit_over_100_steps(seeds: list[int]) -> None:
    models = [Model(variant, 11, 16, seeds, init="torch") for variant in ("gru:Z=0,R=1", "rnn")]
    rng = torch.Generator().manual_seed(5)
    states = [model.cell.begin(4) for model in models]
    for step in range(100):
        data = torch.randint(11, (8, len(seeds), 4), generator=rng)
        lost = []
        for k, model in enumerate(models):
            losses, state = model.losses(data[:-1], data[1:], states[k])
            losses.sum().backward()
            model.update(2.0, 1.0)
            states[k] = tuple(s.detach() for s in state)
            lost.append(losses)
        assert torch.equal(*lost), step
    for (name, one), (_, other) in zip(models[0].named_parameters(), models[1].named_parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_update_gate_of_1_never_leaves_its_initial_state(dtype: torch.dtype) -> None:
    model = Model("gru:Z=1", 5, 6, [0, 1], dtype=dtype)
    _, (H,) = model(torch.randint(5, (7, 2, 3)), model.cell.begin(3))
    assert torch.equal(H, torch.zeros(2, 3, 6, dtype=dtype))
    start = torch.randn(2, 3, 6, dtype=dtype)
    assert torch.equal(model(torch.randint(5, (7, 2, 3)), (start,))[1][0], start)


def test_an_update_is_clipped_and_a_seed_with_any_gradient_that_is_no_number_stays() -> None:
    model = Model("gru", 5, 6, [0, 1, 2], init="torch")
    before = [weight.detach().clone() for weight in model.parameters()]
    for weight in model.parameters():
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
        weight.grad[1] *= 1e-3  # under the clip
    assert model.b_q.grad is not None
    model.b_q.grad[2, 0, 0] = math.nan  # one number of one weight of seed 2
    gradients = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    norms = model.update(lr=0.5, clip=0.25)
    moves = [(was - now.detach()) for was, now in zip(before, model.parameters(), strict=True)]
    for k, scale in ((0, 0.5 * 0.25 / norms[0]), (1, 0.5 * (0.25 / norms[1]).clamp(max=1))):
        norm = torch.stack([g[k].square().sum() for g in gradients]).sum().sqrt()
        torch.testing.assert_close(norms[k], norm)
        for move, g in zip(moves, gradients, strict=True):
            torch.testing.assert_close(move[k], g[k] * scale, rtol=1e-4, atol=1e-6)  # a float32 difference of weights
    assert norms[1] < 0.25 < norms[0]
    assert norms[2].isnan()
    assert all(not move[2].any() for move in moves)
    assert all(w.grad is None for w in model.parameters())


@pytest.mark.parametrize(("variant", "seeds"), [("gru", 3), ("nn.gru", 1)])
def test_weights_are_views_of_one_buffer_and_stay_so(variant: str, seeds: int) -> None:
    """In the order of `parameters()`, a row a seed: clip and update are a few operations on all of them at once."""
    model = Model(variant, 5, 6, list(range(seeds)), init="torch")
    X = torch.randint(5, (7, seeds, 3), generator=torch.Generator().manual_seed(0))
    for optimizer in (SGD, ADAM):
        model.losses(X[:-1], X[1:], model.cell.begin(3))[0].sum().backward()
        gradients = torch.cat([g.grad.reshape(seeds, -1) for g in model.parameters() if g.grad is not None], 1)
        model.update(0.1, 1.0, optimizer)
        assert torch.equal(model.gradient, gradients)
        assert torch.equal(model.flat, torch.cat([w.detach().reshape(seeds, -1) for w in model.parameters()], 1))
        assert {w.untyped_storage().data_ptr() for w in model.parameters()} == {model.flat.untyped_storage().data_ptr()}
    assert model.flat.is_contiguous()
    assert model.flat.shape == (seeds, model.parameters_per_seed)


def test_many_seeds_train_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    model = Model("gru", 5, 6, [0, 1])
    losses, _ = model.losses(torch.zeros(3, 2, 4, dtype=torch.int64), torch.zeros(3, 2, 4, dtype=torch.int64),
                             model.cell.begin(4))  # fmt: skip
    losses.sum().backward()
    assert not recwarn.list


# ---- initial values -----------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["book", "torch"])
def test_weights_of_one_name_start_equal_in_every_variant(init: str) -> None:
    for pair in (("gru", "gru:R=1"), ("gru", "rnn"), ("gru", "gru_after"), ("gru", "lstm"), ("gru", "gru:Z=0.5")):
        one, other = (dict(Model(v, 5, 6, [3], init=init).named_parameters()) for v in pair)
        shared = one.keys() & other.keys()
        assert {"W_hq", "b_q"} <= shared
        for name in shared:
            assert torch.equal(one[name], other[name]), (pair, name)


@pytest.mark.parametrize("init", ["book", "torch"])
def test_torchs_modules_start_where_their_cells_start(init: str) -> None:
    for theirs, ours in (("nn.rnn", "rnn"), ("nn.gru", "gru_after"), ("nn.lstm", "lstm")):
        library, cell = (Model(v, 5, 6, [3], init=init).cell for v in (theirs, ours))
        assert isinstance(library, Library)
        parts, weights = dict(library.named_parts()), dict(cell.named_parameters())
        shared = parts.keys() & weights.keys()
        assert len(shared) >= 2
        for name in shared:
            assert torch.equal(parts[name], weights[name]), (theirs, name)


@pytest.mark.parametrize("init", ["book", "torch"])
@pytest.mark.parametrize("variant", catalog())
def test_every_tensor_starts_from_its_seed_and_its_name(variant: str, init: str) -> None:
    """Of every cell, and of the output layer: none ignores its seed, none repeats another's numbers."""
    seeds = [3, 7]
    if catalog()[variant].library:
        models = [Model(variant, 5, 6, [seed], init=init) for seed in seeds]
        cells = [dict(model.cell.named_parts()) for model in models if isinstance(model.cell, Library)]
        starts = {name: torch.cat([cell[name] for cell in cells]) for name in cells[0]}
        starts |= {name: torch.cat([getattr(model, name) for model in models]) for name in ("W_hq", "b_q")}
    else:
        model = Model(variant, 5, 6, seeds, init=init)
        starts = {**dict(model.cell.named_parameters()), "W_hq": model.W_hq, "b_q": model.b_q}
    drawn: list[tuple[float, ...]] = []
    for name, values in starts.items():
        for k, seed in enumerate(seeds):
            assert torch.equal(values[k], initial(name, values.shape[1:], seed, init, 6)), name
        if name.startswith("g_") or (init == "book" and name.startswith("b_")):
            assert torch.equal(values, torch.full_like(values, float(name.startswith("g_")))), name
        else:
            drawn += [tuple(part.flatten()[:5].tolist()) for part in values.detach()]
    assert len(set(drawn)) == len(drawn)


def test_own_is_the_books_for_cells_and_torchs_for_modules() -> None:
    for variant, init in (("gru", "book"), ("nn.gru", "torch")):
        own, named = (Model(variant, 5, 6, [0], init=i).state_dict() for i in ("own", init))
        assert all(torch.equal(own[k], named[k]) for k in own)
    assert not torch.equal(Model("gru", 5, 6, [0]).W_hq, Model("gru", 5, 6, [0], init="torch").W_hq)


def test_initial_values_are_what_they_are_called() -> None:
    W = initial("W_xz", (300, 300), 0, "book", 256)
    assert 0.0099 < W.std() < 0.0101
    assert abs(W.mean()) < 1e-4
    assert not initial("b_z", (1, 300), 0, "book", 256).any()
    for name in ("W_xz", "b_z"):
        U = initial(name, (300, 300), 0, "torch", 256)
        assert U.abs().max() <= 1 / 16
        assert 0.99 / 16 / math.sqrt(3) < U.std() < 1.01 / 16 / math.sqrt(3)
    assert not torch.equal(W, initial("W_xz", (300, 300), 1, "book", 256))
    assert not torch.equal(W, initial("W_xr", (300, 300), 0, "book", 256))
    assert torch.equal(W, initial("W_xz", (300, 300), 0, "book", 256))


def test_a_seed_is_the_same_network_in_every_version() -> None:
    """Of this code and of torch: 2.11, 2.13 and 2.15 gave these. Were they to change, so would every result on file."""
    for values, known in (
        (initial("W_xz", (3,), 0, "book", 4), [-0.0169971, 0.0092029, 0.0139619]),
        (initial("W_xz", (3,), 1895, "torch", 4), [0.1255404, 0.3249104, 0.4104604]),
        (kept("chrono", (3,), 2, 32), [2.9673767, 2.520144, 3.0013878]),
    ):
        torch.testing.assert_close(values, torch.tensor(known), rtol=0, atol=1e-7)  # as many digits as are written


# ---- spelling -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "spelt"),
    [
        ("gru:R=1.0,Z=0", "gru:Z=0,R=1"),
        ("gru:Z=0,R=1", "gru:Z=0,R=1"),
        ("gru:R=-0", "gru:R=0"),
        ("gru:R=1e-1", "gru:R=0.1"),
        ("gru:R=.5", "gru:R=0.5"),
        ("gru:R=0.1234567890123", "gru:R=0.1234567890123"),
        ("lstm:O=1,I=0.5", "lstm:I=0.5,O=1"),
        ("nn.gru", "nn.gru"),
    ],
)
def test_one_spelling(typed: str, spelt: str) -> None:
    assert canonical(typed) == spelt
    assert variants.get(spelt) is variants.get(typed)


GATED = [name for name, entry in catalog().items() if entry.gates]


@given(st.data())
def test_spelling_keeps_the_values(data: st.DataObject) -> None:
    base = data.draw(st.sampled_from(GATED))
    values = data.draw(st.dictionaries(st.sampled_from(catalog()[base].gates), st.floats(0, 1), min_size=1))
    typed = base + ":" + ",".join(f"{gate}={value!r}" for gate, value in values.items())
    assert parse(canonical(typed)) == parse(typed) == (base, values)
    assert canonical(canonical(typed)) == canonical(typed)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("ltsm", "Did you mean 'lstm'"),
        ("", "no variant ''"),
        ("gru:", "no gate ''"),
        ("gru:Q=1", "no gate 'Q'"),
        ("gru:R", "not ''"),
        ("gru:R=", "from 0 to 1"),
        ("gru:R=1.01", "from 0 to 1"),
        ("gru:R=-0.1", "from 0 to 1"),
        ("gru:R=nan", "from 0 to 1"),
        ("gru:R=inf", "from 0 to 1"),
        ("gru:R=1,R=1", "twice"),
        ("rnn:R=1", "no gate that can be fixed"),
        ("nn.gru:R=1", "no gate that can be fixed"),
        ("GRU", "Did you mean 'gru'"),
        ("gru:r=1", "Did you mean 'R'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(typed: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as error:
        canonical(typed)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


# ---- found, not listed --------------------------------------------------------------------------


def test_what_is_read_in_the_files_is_what_python_makes_of_them() -> None:
    classes: set[tuple[str, str]] = set()
    for path in (ROOT / "variants").glob("[!_]*.py"):
        module = importlib.import_module(f"variants.{path.stem}")
        for name, thing in vars(module).items():
            base = (
                isinstance(thing, type) and issubclass(thing, Cell) and thing not in (Cell, Library) and name[0] != "_"
            )
            if base and thing.__module__ == module.__name__:
                classes.add((path.stem, name))
    assert {(entry.file, entry.cls) for entry in catalog().values()} == classes
    for name, entry in catalog().items():
        assert variants.get(name).gates() == list(entry.gates)
    assert catalog()["gru"].gates == ("Z", "R")  # as they are defined, not as they are sorted
    assert catalog()["lstm"].gates == ("I", "F", "O")


def test_torchs_own_come_after_those_written_here() -> None:
    names = list(variants.catalog())
    here = [name for name in names if not name.startswith("nn.")]
    assert names == [*sorted(here), "nn.rnn", "nn.gru", "nn.lstm"]
    assert len(here) >= 16


def test_names_need_no_torch() -> None:
    code = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "numpy"):
            raise ImportError(name)
sys.meta_path.insert(0, Hidden())
import variants
from variants.fingerprint import fingerprint
print(variants.canonical("gru:R=1.0,Z=0"), variants.reference_engine("nn.gru"), len(fingerprint("lstm")))
print(*variants.catalog())
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert said.split() == ["gru:Z=0,R=1", "library", "16", *catalog()]


def test_variants_imports_nothing_of_harness() -> None:
    for path in (ROOT / "variants").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.partition(".")[0] == "harness"], path.name


def test_a_file_outside_the_tree_writes_a_cell_with_what_variants_offers() -> None:
    namespace: dict[str, object] = {}
    exec("from variants import Absent, Cell, State, Tensor, gate, relu, sigmoid, tanh", namespace)
    assert namespace["Cell"] is Cell
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = variants.absent
