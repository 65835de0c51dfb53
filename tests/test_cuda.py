"""What runs on a GPU, checked where there is none: what CUDA refuses, what a step asks of it, what is gone on from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from harness.data import corpus
from harness.experiments import grid, tasks
from harness.experiments.grid import Protocol, Run
from harness.run import progress as watch
from harness.run import timing as measure
from harness.run import train as training
from harness.run import train_task
from variants.engines import resident
from variants.model import Model

TINY = Protocol(
    train_characters=300, heldout_characters=100, batch_size=4, num_steps=5, hidden=4, epochs=2, init="torch"
)
LIBRARY = ("nn.rnn", "nn.gru", "nn.lstm")


class Rule(torch.autograd.Function):
    """cuDNN's: a module that is not training has no backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, refuses: bool) -> Tensor:
        ctx.refuses = refuses
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if ctx.refuses:
            raise RuntimeError("cudnn RNN backward can only be called in training mode")
        return gradient, None


@pytest.fixture
def cudnn_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (nn.RNN, nn.GRU, nn.LSTM):

        def forward(self: nn.RNNBase, x: Tensor, h: Any, real: Callable[..., Any] = module.forward) -> Any:
            y, after = real(self, x, h)
            refuses = torch.backends.cudnn.enabled and not self.training
            ruled = [Rule.apply(t, refuses) for t in (y, *(after if isinstance(after, tuple) else (after,)))]  # type: ignore[no-untyped-call]
            return ruled[0], tuple(ruled[1:]) if isinstance(after, tuple) else ruled[1]

        monkeypatch.setattr(module, "forward", forward)


@pytest.mark.usefixtures("cudnn_rule")
@pytest.mark.parametrize("variant", LIBRARY)
def test_no_verb_takes_a_gradient_that_cudnn_refuses(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """bench, ablate and reproduce train on text, probe on tasks, sweep times."""
    monkeypatch.setattr(measure, "BLOCK_S", 0.01)
    monkeypatch.setattr(measure, "WARM_S", 0.0)
    monkeypatch.setattr(measure, "ceiling", lambda *how: (1.0, 1.0))
    text = Run(variant, 0, TINY, "", "cpu", "library")
    for protocol in (TINY, dataclasses.replace(TINY, sampling="windows", train_characters=20, heldout_characters=10)):
        (outcome,) = training.train([dataclasses.replace(text, protocol=protocol)], corpus.embedded())
        assert outcome.error == ""
        assert outcome.reach
    task = dataclasses.replace(grid.task_protocol("adding"), num_steps=4, epochs=1, hidden=4)
    assert train_task.train([dataclasses.replace(text, protocol=task)])[0].error == ""
    assert "error" not in measure.time_steps(text, vocabulary=28)


@pytest.mark.usefixtures("cudnn_rule")
def test_the_rule_itself() -> None:
    module = nn.GRU(2, 3).eval()
    with pytest.raises(RuntimeError, match="training mode"):
        module(torch.randn(4, 1, 2), torch.zeros(1, 1, 3))[0].sum().backward()


class Calls(TorchDispatchMode):
    """The operations asked of a device, and the bytes of the largest result."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self.largest = 0
        self.mixed: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.names.append(function._schema.name.removeprefix("aten::"))
        results = [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor)]
        given = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        self.largest = max([self.largest, *(t.numel() * t.element_size() for t in results)])
        if {t.device.type for t in results + given} - {"meta"}:
            self.mixed.append(self.names[-1])
        return result


@pytest.fixture
def posing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor says that it lies on a GPU: what is written for one runs."""
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda self: True))


@pytest.mark.usefixtures("posing")
@pytest.mark.parametrize("numbers", [True, False])
def test_the_gradient_of_the_input_table_on_a_gpu(numbers: bool) -> None:
    """Of numbers as inputs no square of T n is made: each has one row, whose gradient is added to it."""
    T, S, n, d = 30, 2, 16, 4
    rng = torch.Generator().manual_seed(0)
    X = torch.randn(T, S, n, d, generator=rng) if numbers else torch.randint(d, (T, S, n), generator=rng)
    found = []
    for engine in ("loop", "fused"):
        model = Model("gru", d, 5, [0, 1], "torch", dtype=torch.float64, engine=engine, outputs=1)
        with Calls() as calls:
            model(X.double() if numbers else X, model.cell.begin(n))[0].square().sum().backward()
        found.append([w.grad for w in model.parameters() if w.grad is not None])
    assert max(float((a - b).abs().max()) for a, b in zip(*found, strict=True)) <= 1e-10
    assert calls.largest <= 8 * S * (T + 1) * n * 3 * 5 * 2  # twice the activations of all steps


@pytest.mark.parametrize("variant", LIBRARY)
def test_weights_that_cudnn_laid_out_stay_where_they_are_and_train_alike(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere it would copy them at every call, with a warning."""
    X = torch.randint(5, (7, 1, 3), generator=torch.Generator().manual_seed(0))
    trained = []
    for on_gpu in (False, True):
        monkeypatch.setattr(Tensor, "is_cuda", on_gpu)
        model = Model(variant, 5, 6, [0], "torch")
        places = [w.data_ptr() for w in model.parameters()]
        assert (model.values[0] is model.flat) != on_gpu
        for step in (model.update, model.adam):
            model.losses(X[:-1], X[1:], model.cell.begin(3))[0].sum().backward()
            step(0.1, 1.0)
        assert [w.data_ptr() for w in model.parameters()] == places
        trained.append([w.detach().clone() for w in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*trained, strict=True))


@pytest.mark.parametrize("task", ["adding", "s3", "counting"])
def test_a_probe_asks_nothing_of_an_engine_that_its_batch_size_does_not(
    task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`fits` is asked of the batch size before it starts: whatever is called later is no larger."""
    seen: list[int] = []
    real = Model.forward
    monkeypatch.setattr(Model, "forward", lambda m, X, state: seen.append(X.shape[2]) or real(m, X, state))  # type: ignore[func-returns-value]
    protocol = dataclasses.replace(grid.task_protocol(task), num_steps=4, epochs=1, hidden=4, batch_size=32)
    (outcome,) = train_task.train([Run("gru", 0, protocol, "", "cpu", "fused")])
    assert outcome.error == ""
    assert max(seen) <= 32
    assert resident.fits(32, max(seen), "tf32") == ""
    assert sum(seen) >= tasks.SCORED + 32


@pytest.mark.parametrize("sampling", ["sequential", "windows"])
def test_a_training_asks_nothing_of_an_engine_that_its_batch_size_does_not(
    sampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = Model.forward
    monkeypatch.setattr(Model, "forward", lambda m, X, state: seen.append(X.shape[2]) or real(m, X, state))  # type: ignore[func-returns-value]
    protocol = dataclasses.replace(TINY, sampling=sampling, train_characters=100, heldout_characters=50)
    (outcome,) = training.train([Run("gru", 0, protocol, "", "cpu", "fused")], corpus.embedded())
    assert outcome.error == ""
    assert max(seen) == TINY.batch_size


def test_a_score_is_the_same_in_parts() -> None:
    for task in tasks.TASKS.values():
        model = Model("gru", task.inputs, 8, [0, 1], "torch", outputs=task.outputs)
        whole, parts = (train_task.score(model, task, max(5, task.least), size) for size in (tasks.SCORED, 32))
        assert parts == pytest.approx(whole, rel=1e-5)


def test_kernels_of_a_gpu_are_named_by_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what ran there, not by what the host asked for, the longest first."""
    asked: dict[str, Any] = {}

    class Profiler:
        def __init__(self, **how: Any) -> None:
            asked.update(how)

        def __enter__(self) -> Profiler:
            return self

        def __exit__(self, *rest: object) -> None:
            pass

        def key_averages(self) -> list[SimpleNamespace]:
            cpu, gpu = SimpleNamespace(name="CPU"), SimpleNamespace(name="CUDA")
            return [
                SimpleNamespace(key=key, device_type=where, self_device_time_total=us)
                for key, where, us in [
                    ("aten::addmm", cpu, 900),
                    ("aten::copy_", cpu, 1),
                    ("_forward", gpu, 50),
                    ("void cutlass::Kernel2<cutlass_80_tensorop_s1688gemm_64x64_nn>(Params)", gpu, 30),
                    ("sm90_xmma_gemm_f32f32_tf32f32_f32_nn", gpu, 40),
                    ("void (anonymous namespace)::softmax<float, 4>(float*)", gpu, 5),
                    ("void at::native::elementwise_kernel<128, Add>(int, Add)", gpu, 10),
                    ("void at::native::elementwise_kernel<128, Mul>(int, Mul)", gpu, 9),
                ]
            ]

    monkeypatch.setattr("torch.autograd.profiler.profile", Profiler)
    assert measure._kernels(lambda: None, "cuda") == (
        "_forward sm90_xmma_gemm_f32f32_tf32f32_f32_nn cutlass_80_tensorop_s1688gemm_64x64_nn "
        "at::native::elementwise_kernel softmax"
    )
    assert asked == {"use_device": "cuda", "use_kineto": True}


# ---- going on from inside an epoch --------------------------------------------------------------------------------


class Stopped(Exception):
    pass


class Kept:
    """Keeps every step; ends the training after some of them. Or, with `arrays`, is gone on from."""

    def __init__(self, after: int = 0, arrays: dict[str, npt.NDArray[Any]] | None = None) -> None:
        self.left, self.arrays = after, arrays

    def load(self) -> dict[str, npt.NDArray[Any]] | None:
        return self.arrays

    def save(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        if self.left:
            self.arrays = {name: value.copy() for name, value in arrays.items()}
            self.left -= 1
            if not self.left:
                raise Stopped


def _fails(*rest: object) -> None:
    raise RuntimeError("operation not permitted when stream is capturing")


def _works(epoch: Callable[[Tensor], Tensor], example: Tensor, weights: Sequence[Tensor]) -> object:
    return epoch


@pytest.mark.parametrize("sampling", ["sequential", "windows"])
@pytest.mark.parametrize(("first", "then"), [(a, b) for a in (_fails, _works) for b in (_fails, _works)])
def test_a_training_stopped_inside_an_epoch_is_the_one_that_never_stopped(
    first: Callable[..., object], then: Callable[..., object], sampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether its epochs could be captured before, and whether they can be now: no window is trained twice."""
    monkeypatch.setattr(watch, "CHECKPOINT_S", 0.0)
    protocol = dataclasses.replace(TINY, sampling=sampling, train_characters=60, heldout_characters=50, epochs=3)
    run = Run("gru", 0, protocol, "", "cpu", "fused", capture=True)
    straight = training.train([dataclasses.replace(run, capture=False)], corpus.embedded())[0]
    kept = Kept(after=2 if first is _works else training.windows_of(60, protocol) + 1)
    monkeypatch.setattr(training, "captured", first)
    with pytest.raises(Stopped):
        training.train([run], corpus.embedded(), keep=kept)
    assert kept.arrays is not None
    assert bool(kept.arrays["window"]) == (first is _fails)
    monkeypatch.setattr(training, "captured", then)
    gone_on = training.train([run], corpus.embedded(), keep=Kept(arrays=kept.arrays))[0]
    same = {"train_s": 0.0, "uncaptured": ""}
    assert dataclasses.replace(gone_on, **same) == dataclasses.replace(straight, **same)  # type: ignore[arg-type]


# ---- a training step, as asked of a device -------------------------------------------------------------------------

VIEWS = {
    "view", "transpose", "slice", "select", "unsqueeze", "expand", "_unsafe_view", "detach", "alias", "as_strided", "t",
    "permute", "unbind", "split_with_sizes", "squeeze", "split", "empty", "new_empty", "empty_like", "empty_strided",
    "new_empty_strided",
}  # fmt: skip
# Operations of a step, each a kernel or more, resident's own kernels included: of 35 characters, `loop` 5. None more.
OPERATIONS = {
    ("gru", "resident"): 64, ("gru_after", "resident"): 65, ("rnn", "resident"): 55, ("gru:R=1", "resident"): 59,
    ("gru:Z=0,R=0", "resident"): 53, ("gru", "fused"): 545, ("gru_after", "fused"): 794, ("rnn", "fused"): 235,
    ("min_gru", "scan"): 188, ("min_lstm", "scan"): 211, ("gru", "loop"): 305, ("lstm", "loop"): 365,
    ("ligru", "loop"): 523, ("rnn", "loop"): 107, ("nn.gru", "library"): 1364,
}  # fmt: skip


class Silent:
    """A kernel that is launched and does nothing; how often it was."""

    def __init__(self) -> None:
        self.launched = 0

    def __getitem__(self, grid: object) -> Callable[..., None]:
        self.launched += 1
        return lambda *args, **how: None


@pytest.mark.usefixtures("posing")
@pytest.mark.parametrize(
    ("variant", "engine", "sampling"),
    [(*both, "sequential") for both in OPERATIONS] + [("gru", "resident", "windows"), ("min_gru", "scan", "windows")],
)
def test_nothing_of_a_step_crosses_to_the_host_and_its_operations_are_no_more(
    variant: str, engine: str, sampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a value that is read back nor a tensor of the host's: a step can be captured, and waits for nobody."""
    kernel = Silent()
    for name in ("_forward", "_backward"):
        monkeypatch.setattr(resident, name, kernel, raising=False)
    monkeypatch.setattr(resident, "triton", SimpleNamespace(next_power_of_2=lambda n: n))
    monkeypatch.setattr(resident, "processors", lambda device: 132)
    protocol = dataclasses.replace(grid.protocol("classic"), num_steps=5 if engine == "loop" else 35, sampling=sampling)
    S, T, n = 1 if engine == "library" else 3, protocol.num_steps, protocol.batch_size
    shape = (2 * T + 1, S, n) if sampling == "sequential" else (T + 1, S, 2 * n)
    model = Model(variant, 28, 256, list(range(S)), device="meta", engine=engine)
    streams = torch.zeros(shape, dtype=torch.long, device="meta")
    torch.set_float32_matmul_precision("high")
    try:  # a program is derived from a cell once, on the host: before anything is captured, by what warms up
        training.epoch_of(model, streams, windows=1, protocol=protocol)
        kernel.launched = 0
        with Calls() as calls:
            nats = training.epoch_of(model, streams, windows=2, protocol=protocol)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert nats.is_meta
    assert calls.mixed == []
    asked = sum(name not in VIEWS for name in calls.names) + kernel.launched
    assert asked / 2 <= OPERATIONS[variant, engine] + (sampling == "windows")


@pytest.mark.usefixtures("posing")
def test_what_crosses_to_the_host_is_seen() -> None:
    with Calls() as calls:
        torch.zeros(3, device="meta") + torch.ones(())
    assert calls.mixed == ["ones", "add"]
