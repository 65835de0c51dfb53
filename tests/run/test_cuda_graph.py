"""What runs on a GPU, checked where there is none: what CUDA refuses, what a step asks of it, what is gone on from."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from harness import __main__ as program
from harness import pipeline
from harness import plan as planning
from harness.data import embedded
from harness.data.batches import arrange, sample_epoch
from harness.experiments import protocols, tasks
from harness.experiments.protocols import Protocol
from harness.experiments.runs import Run
from harness.record import store, tables
from harness.run import cuda_graph, machine, progress, roofline, timing, train_task
from harness.run import train as training
from harness.run.agreement import check_agreement
from harness.run.cuda_graph import Work, branches, captured
from harness.run.executors import group_batchable, local
from harness.run.outcome import Outcome
from variants.engines import fused, resident
from variants.model import Model
from variants.optimizer import ADAM, SGD, Optimizer

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
    monkeypatch.setattr(timing, "BLOCK_S", 0.01)
    monkeypatch.setattr(timing, "WARM_S", 0.0)
    monkeypatch.setattr(timing, "measure_peaks", lambda *how: (1.0, 1.0))
    text = Run(variant, 0, TINY, "", "cpu", "library")
    for protocol in (TINY, dataclasses.replace(TINY, sampling="windows", train_characters=20, heldout_characters=10)):
        (outcome,) = training.train([dataclasses.replace(text, protocol=protocol)], embedded.embedded())
        assert outcome.error == ""
        assert outcome.reach
    task = dataclasses.replace(protocols.task_protocol("adding"), num_steps=4, epochs=1, hidden=4)
    assert train_task.train([dataclasses.replace(text, protocol=task)])[0].error == ""
    assert "error" not in timing.time_steps(text, vocabulary=28)


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
        for optimizer in (SGD, ADAM, Optimizer("adamw", weight_decay=0.1)):
            model.losses(X[:-1], X[1:], model.cell.begin(3))[0].sum().backward()
            model.update(0.1, 1.0, optimizer)
        assert [w.data_ptr() for w in model.parameters()] == places
        trained.append([w.detach().clone() for w in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*trained, strict=True))


@pytest.mark.parametrize("task", ["adding", "s3", "counting"])
def test_a_probe_asks_nothing_of_an_engine_that_its_batch_size_does_not(
    task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`unsupported_size` is asked of the batch size before it starts: whatever is called later is no larger."""
    seen: list[int] = []
    real = Model.forward
    monkeypatch.setattr(Model, "forward", lambda m, X, state: seen.append(X.shape[2]) or real(m, X, state))  # type: ignore[func-returns-value]
    protocol = dataclasses.replace(protocols.task_protocol(task), num_steps=4, epochs=1, hidden=4, batch_size=32)
    (outcome,) = train_task.train([Run("gru", 0, protocol, "", "cpu", "fused")])
    assert outcome.error == ""
    assert max(seen) <= 32
    assert resident.unsupported_size(32, max(seen), "tf32") == ""
    assert sum(seen) >= tasks.SCORED + 32


@pytest.mark.parametrize("sampling", ["sequential", "windows"])
def test_a_training_asks_nothing_of_an_engine_that_its_batch_size_does_not(
    sampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = Model.forward
    monkeypatch.setattr(Model, "forward", lambda m, X, state: seen.append(X.shape[2]) or real(m, X, state))  # type: ignore[func-returns-value]
    protocol = dataclasses.replace(TINY, sampling=sampling, train_characters=100, heldout_characters=50)
    (outcome,) = training.train([Run("gru", 0, protocol, "", "cpu", "fused")], embedded.embedded())
    assert outcome.error == ""
    assert max(seen) == TINY.batch_size


def test_a_score_is_the_same_in_parts() -> None:
    for task in [task for task in tasks.TASKS.values() if not task.needs]:
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
    assert timing._kernels(lambda: None, "cuda") == (
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


class Replayed:
    """A graph that is none: its tensors stay where they are, and fresh ones are copied into them, shaped as they are.

    `windows`: of each that was made, how many it holds, which its nodes are as many times as.
    """

    windows: ClassVar[list[int]] = []

    def __init__(self, work: Work, example: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        self.work, self.inputs = work, [tensor.clone() for tensor in example]
        before, learnt = [w.detach().clone() for w in weights], 0
        real = Model.learn

        def learn(*args: Any, **how: Any) -> Any:
            nonlocal learnt
            learnt += 1
            return real(*args, **how)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Model, "learn", learn)
            self.outputs = work(*self.inputs)
        self.windows.append(learnt)
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)

    def __call__(self, *fresh: Tensor) -> tuple[Tensor, ...]:
        for old, new in zip(self.inputs, fresh, strict=True):
            assert old.shape == new.shape
            old.copy_(new)
        for old, new in zip(self.outputs, self.work(*self.inputs), strict=True):
            old.copy_(new)
        return tuple(output.clone() for output in self.outputs)


ADAM_COSINE: dict[str, Any] = {"optimizer": "adam", "lr": 0.01, "schedule": "cosine", "warmup": 5}


@pytest.mark.parametrize("graph", [2, 8])
@pytest.mark.parametrize(
    ("sampling", "characters", "how"),
    [
        ("sequential", 240, {}),
        ("windows", 42, {}),
        ("sequential", 240, ADAM_COSINE),
        ("windows", 42, {"momentum": 0.5}),
    ],
)
@pytest.mark.parametrize(("first", "then"), [(a, b) for a in (_fails, Replayed) for b in (_fails, Replayed)])
def test_a_training_stopped_inside_an_epoch_is_the_one_that_never_stopped(
    first: Callable[..., object], then: Callable[..., object], sampling: str, characters: int, graph: int,
    how: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Whether its epochs could be captured before, and whether they can be now: no window is trained twice."""
    monkeypatch.setattr(progress, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(training, "GRAPH_WINDOWS", graph)
    protocol = dataclasses.replace(
        TINY, sampling=sampling, train_characters=characters, heldout_characters=50, epochs=3, **how
    )
    run = Run("gru", 0, protocol, "", "cpu", "fused", capture=True)
    straight = training.train([dataclasses.replace(run, capture=False)], embedded.embedded())[0]
    kept = Kept(after=4)
    monkeypatch.setattr(training, "captured", first)
    with pytest.raises(Stopped):
        training.train([run], embedded.embedded(), keep=kept)
    assert kept.arrays is not None
    assert int(kept.arrays["window"]) == {_fails: 3, Replayed: {2: 6, 8: 8}[graph]}[first]
    monkeypatch.setattr(training, "captured", then)
    gone_on = training.train([run], embedded.embedded(), keep=Kept(arrays=kept.arrays))[0]
    same = {"train_s": 0.0, "uncaptured": ""}
    assert dataclasses.replace(gone_on, **same) == dataclasses.replace(straight, **same)  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", ["lstm", "nn.gru"])
@pytest.mark.parametrize(("sampling", "characters", "windows"), [("sequential", 410, 20), ("windows", 75, 19)])
def test_an_epoch_of_many_windows_is_a_short_graph_replayed(
    sampling: str, characters: int, windows: int, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same numbers as one graph of the whole epoch and as step by step; of what is left over another is made."""
    protocol = dataclasses.replace(TINY, sampling=sampling, train_characters=characters, heldout_characters=50)
    run = Run(variant, 0, protocol, "", "cpu", "library" if variant == "nn.gru" else "loop")
    assert arrange(embedded.embedded(), protocol, 1, "cpu").windows == windows
    monkeypatch.setattr(training, "captured", Replayed)
    found = [training.train([run], embedded.embedded())[0]]
    for most, made in ((8, [8, windows - 16]), (windows, [windows]), (4, [4] if windows == 20 else [4, 3])):
        monkeypatch.setattr(training, "GRAPH_WINDOWS", most)
        monkeypatch.setattr(Replayed, "windows", [])
        found.append(training.train([dataclasses.replace(run, capture=True)], embedded.embedded())[0])
        assert Replayed.windows == made
    assert len({repr(dataclasses.replace(outcome, train_s=0.0)) for outcome in found}) == 1


def test_what_an_epoch_costs_beside_its_steps_does_not_grow_with_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its data is laid out by as many operations; the generators' states, for a checkpoint, are not on the clock."""
    counts = []
    for S in (1, 30):
        with Calls() as calls:
            sample_epoch(torch.arange(60), TINY, [random.Random(seed) for seed in range(S)])
        counts.append(len(calls.names))
    assert counts[0] == counts[1]
    said: list[str] = []
    real = progress.get_rng_state
    monkeypatch.setattr(training, "get_rng_state", lambda rngs: said.append("states") or real(rngs))  # type: ignore[func-returns-value]
    for name in ("start", "stop"):
        monkeypatch.setattr(progress.Monitor, name, lambda monitor, name=name: said.append(name))
    training.train([Run("gru", 0, TINY, "", "cpu", "fused")], embedded.embedded())
    assert said == ["states", *["states", "start", "stop"] * TINY.epochs]


class Streams:
    """As much of torch.cuda as a capture and a sample ask of it; `fails`: what capturing raises. `said`: in order."""

    def __init__(self, patch: pytest.MonkeyPatch, fails: str = "") -> None:
        self.said: list[str] = []
        self.current = self.main = SimpleNamespace(name="main", wait_stream=lambda other: None)
        side = SimpleNamespace(name="side", wait_stream=lambda other: None)

        @contextlib.contextmanager
        def on(stream: SimpleNamespace) -> Iterator[None]:
            before, self.current = self.current, stream
            yield
            self.current = before

        @contextlib.contextmanager
        def capturing(graph: object, stream: SimpleNamespace) -> Iterator[None]:
            self.current = stream  # as torch, it leaves it so where capturing fails
            self.said.append("capture")
            yield
            if fails:
                raise RuntimeError(fails)
            self.current = self.main

        graph = SimpleNamespace(replay=lambda: self.said.append("replay"), instantiate=lambda: None)
        for name, value in {
            "Stream": lambda: side, "current_stream": lambda: self.current, "stream": on, "graph": capturing,
            "CUDAGraph": lambda keep_graph: graph, "set_stream": lambda stream: setattr(self, "current", stream),
            "synchronize": lambda: self.said.append("wait"), "empty_cache": lambda: None,
            "memory_allocated": lambda: 32 * 2**20, "max_memory_allocated": lambda: 100 * 2**20,
            "max_memory_reserved": lambda: 0, "memory_reserved": lambda: 0, "mem_get_info": self.free,
            "reset_peak_memory_stats": lambda: self.said.append("reset"),
        }.items():  # fmt: skip
            patch.setattr(torch.cuda, name, value)

    def free(self) -> tuple[int, int]:
        """7 MiB less once something was captured."""
        return (80 - 7 * ("capture" in self.said)) * 2**20, 90 * 2**20


@pytest.mark.parametrize("fails", ["", "operation not permitted when stream is capturing"])
def test_after_a_capture_the_stream_and_the_weights_are_what_they_were(
    fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda, weight = Streams(monkeypatch, fails), torch.ones(2)

    def work(x: Tensor) -> tuple[Tensor]:
        assert cuda.current.name == "side"
        cuda.said.append("work")
        return (weight.add_(x).clone(),)

    if fails:
        with pytest.raises(RuntimeError, match="not permitted"):
            captured(work, [torch.ones(2)], [weight])
    else:
        graph = captured(work, [torch.ones(2)], [weight])
        (out,) = graph(torch.full((2,), 5.0))
        assert cuda.said[-1] == "replay"
        assert graph.inputs[0].tolist() == [5, 5]
        assert out.tolist() == [4, 4]  # warmed up twice, captured once
        assert getattr(graph, "nodes", 0) is None
    assert cuda.said[:4] == ["work", "work", "capture", "work"]
    assert cuda.current is cuda.main
    assert weight.tolist() == [1, 1]


class Order:
    """As much of torch.cuda's streams as branches ask for: what each operation happens after."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.streams = 0
        self.current = self.stream()

        @contextlib.contextmanager
        def on(stream: SimpleNamespace) -> Iterator[None]:
            before, self.current = self.current, stream
            yield
            self.current = before

        patch.setattr(torch.cuda, "Stream", self.stream)
        patch.setattr(torch.cuda, "current_stream", lambda: self.current)
        patch.setattr(torch.cuda, "stream", on)
        cuda_graph._stream.cache_clear()

    def stream(self) -> SimpleNamespace:
        one = SimpleNamespace(after=set(), number=self.streams)
        one.wait_stream = lambda other: one.after.update(other.after)
        self.streams += 1
        return one

    def work(self, name: str) -> set[str]:
        """An operation on the current stream: which others it happens after."""
        before = set(self.current.after)
        self.current.after.add(name)
        return before


def test_branches_of_a_graph_wait_for_what_was_before_and_not_for_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what comes after waits for all of them. Their streams are the same ones each time."""
    order = Order(monkeypatch)
    order.work("data")
    try:
        for time in ("first", "second"):
            before = set(order.current.after)
            names = [f"{time} {k}" for k in range(3)]
            found = branches([lambda name=name: (name, order.work(name)) for name in names], torch.device("cuda"))  # type: ignore[misc]
            assert found == [(name, before) for name in names]
            assert order.current.number == 0
            assert order.work(f"after {time}") == {*before, *names}
        assert order.streams == 1 + 3
    finally:
        cuda_graph._stream.cache_clear()
    assert branches([lambda: order.streams], torch.device("cpu")) == [4]


@pytest.mark.parametrize(
    ("variant", "sampling", "how"),
    [
        ("nn.rnn", "sequential", {}),
        ("nn.gru", "windows", {}),
        ("nn.lstm", "sequential", {}),
        ("nn.gru", "sequential", {"validation_characters": 50, "lr": 20.0}),  # of epochs the best is not each the last
        ("nn.rnn", "sequential", {"embedding": 3, "layers": 2}),
    ],
)
def test_seeds_of_torch_s_own_modules_as_branches_are_each_alone(
    variant: str, sampling: str, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, captured or not, also gone on from a checkpoint: curve, perplexities, sample, reach, network."""
    characters = 240 if sampling == "sequential" else 42
    protocol = dataclasses.replace(TINY, sampling=sampling, train_characters=characters, heldout_characters=50, **how)
    runs = [Run(variant, seed, protocol, "", "cpu", "library", capture=True) for seed in (0, 1, 5)]
    monkeypatch.setattr(progress, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(training, "captured", Replayed)
    alone = [training.train([run], embedded.embedded())[0] for run in runs]
    if protocol.validation_characters:
        assert {outcome.best_epoch for outcome in alone} == {1, 2}
    works: list[int] = []

    def counted(those: Sequence[Callable[[], Any]], device: torch.device) -> list[Any]:
        works.append(len(those))
        return branches(those, device)

    monkeypatch.setattr(training, "branches", counted)
    kept = Kept(after=3)
    with pytest.raises(Stopped):
        training.train(runs, embedded.embedded(), keep=kept)
    for capture in (Replayed, _fails):
        monkeypatch.setattr(training, "captured", capture)
        for keep in [None, Kept(arrays=kept.arrays)][capture is _fails :]:
            together = training.train(runs, embedded.embedded(), keep=keep)
            assert all(outcome.unseen == {} for outcome in together)
            same = {"train_s": 0.0, "uncaptured": ""}
            for one, other in zip(alone, together, strict=True):
                assert dataclasses.replace(other, **same) == dataclasses.replace(one, **same)  # type: ignore[arg-type]
    assert set(works) == {3}


def test_on_a_gpu_seeds_of_torch_s_own_modules_train_together_where_they_are_captured() -> None:
    runs = [Run("nn.gru", seed, TINY, "", "cuda", "library", capture=True) for seed in range(3)]
    steps = [dataclasses.replace(run, capture=False) for run in runs]
    assert list(group_batchable([*runs, *steps])) == [runs, *([run] for run in steps)]


@pytest.mark.parametrize("fault", ["disagrees", "fails"])
def test_where_resident_disagrees_on_a_gpu_fused_trains_that_variant_and_says_so(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The variant alone; what else resident trains stays its own, and who asks for resident by name is told."""
    monkeypatch.setattr(resident, "triton", object())
    size = dataclasses.replace(protocols.protocol("classic"), hidden=32, epochs=1)
    plan = planning.Plan("ablate", ("gru", "rnn"), size, 1, embedded.embedded(), "cuda", precision="tf32")
    trained: list[tuple[str, str]] = []

    def execute(runs: Sequence[Run], *rest: object) -> Iterator[local.Finished]:
        for run in runs:
            trained.append((run.variant, run.engine))
            wrong = trained[-1] == ("gru", "resident")
            why = check_agreement(run, 0.5) if fault == "disagrees" else "cannot run: resident fails, no compiler"
            error = f"{why}: --engine names another" if wrong else ""
            outcome = Outcome(error=error, heldout_perplexity=None if wrong else 2.0)
            yield local.Finished(run, outcome, 0.1, 1, 0.0, "", {"device": "cuda"})

    def verb(plans: list[planning.Plan]) -> int:
        todo = [run for run in plans[0].runs if not store.done(tmp_path, run)]
        pipeline.train(todo, plans[0].corpus, "embedded", tmp_path, plan=plans[0])
        return 0

    monkeypatch.setattr(local, "execute", execute)
    assert pipeline.with_others(verb, [plan], tmp_path) == 0
    assert trained == [("gru", "resident"), ("rnn", "resident"), ("gru", "fused")]
    said = {"disagrees": "differs from the reference engine by 0.5, over 0.002", "fails": "fails, no compiler"}[fault]
    assert f"note: gru: resident {said}; fused trains it instead" in capsys.readouterr().err
    asked = dataclasses.replace(plan, engine="resident")
    assert verb([asked]) == 0
    assert trained[3:] == [("gru", "resident")]


class OnCPU(TorchFunctionMode):
    """What is asked of a GPU is done on the CPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = ["cpu" if isinstance(a, str) and a == "cuda" else a for a in args]
        return function(*args, **{k: "cpu" if k == "device" else v for k, v in (kwargs or {}).items()})


@pytest.mark.parametrize("apart", [0.0, 1.0])
def test_a_sample_on_a_gpu_agrees_before_its_first_step_and_tells_memory_apart(
    apart: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a compiler takes is in no clock, and cuBLAS' workspaces, one a stream, in no peak; a graph's is told."""
    cuda = Streams(monkeypatch)
    monkeypatch.setattr("harness.run.cuda_graph.nodes", lambda graph: 120)
    monkeypatch.setattr(timing, "BLOCK_S", 0.0)
    monkeypatch.setattr(timing, "WARM_S", 0.0)
    for name, value in {
        "max_abs_error": lambda *of: (cuda.said.__iadd__(["agree"]), apart)[1], "environment": lambda device: {},
        "measure_peaks": lambda device: (1e9, 1.0), "node_gap_us": lambda: 1.5, "_kernels": lambda *of: "",
        "repeat_difference": lambda *of: 0.0,
    }.items():  # fmt: skip
        monkeypatch.setattr(timing, name, value)
    found = {}
    for capture in (False, True):
        cuda.said.clear()
        with OnCPU():
            found[capture] = timing.time_steps(Run("gru", 0, TINY, "", "cuda", "fused", capture), 28)
        assert cuda.said[0] == "agree"
        assert cuda.said.count("agree") == 1
        assert ("wait" in cuda.said) == (apart == 0)  # the clock is not asked for anything that does not count
    if apart:
        assert all("disagrees" in answer["error"] for answer in found.values())
        return
    graph = [(a["peak_memory_mib"], a["graph_mib"], a["graph_nodes"]) for a in found.values()]
    assert graph == [(68, None, None), (36, 7, 120 / timing.WINDOWS)]
    monkeypatch.setattr("harness.run.cuda_graph.nodes", lambda graph: None)  # a driver that does not say
    with OnCPU():
        assert timing.time_steps(Run("gru", 0, TINY, "", "cuda", "fused", True), 28)["graph_nodes"] is None
    for engine, kernels in (("fused", 2 * TINY.num_steps), ("loop", 2 * TINY.num_steps), ("resident", 2)):
        with OnCPU():
            monkeypatch.setattr(resident, "unroll", fused.unroll)
            answer = timing.time_steps(Run("gru", 0, TINY, "", "cuda", engine), 28)
        assert answer["floor_ms"] == pytest.approx(max(1e3 * answer["gflop"] / 1e9, kernels * 1.5 / 1000)), engine


def test_what_fails_beside_the_times_costs_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A profiler that is not allowed, no memory for the peak: the blocks stay, what is not known is empty."""

    def fails(*of: object) -> Any:
        raise RuntimeError("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES")

    Streams(monkeypatch)
    monkeypatch.setattr(timing, "BLOCK_S", 0.0)
    monkeypatch.setattr(timing, "WARM_S", 0.0)
    for name in ("measure_peaks", "node_gap_us", "_kernels", "repeat_difference"):
        monkeypatch.setattr(timing, name, fails)
    monkeypatch.setattr(timing, "max_abs_error", lambda *of: 0.0)
    monkeypatch.setattr(timing, "environment", lambda device: {})
    with OnCPU():
        answer = timing.time_steps(Run("gru", 0, TINY, "", "cuda", "fused"), 28)
    assert all(block["tokens_per_sec"] > 0 and block["percent_of_peak"] is None for block in answer["blocks"])
    missing = ("peak_gflops", "copy_gib_per_s", "node_gap_us", "floor_ms", "repeat_difference")
    assert {answer[name] for name in missing} == {None}
    assert answer["kernels"] == ""
    assert set(answer["unseen"]) == {"kernels", "peaks", "node gap", "repetition"}


@pytest.mark.parametrize(("precision", "kind"), [("highest", torch.float32), ("medium", torch.bfloat16)])
def test_the_peak_is_that_of_the_precision(precision: str, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch multiplies float32 as tf32 where bf16 is asked for: the peak would be another class's."""
    multiplied: set[torch.dtype] = set()
    Streams(monkeypatch)
    monkeypatch.setattr(torch, "mm", lambda A, B, out: multiplied.add(A.dtype))
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: precision)
    real = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *size, device, **how: real([min(64, n) for n in size], **how))
    roofline.measure_peaks("cuda")
    assert multiplied == {kind}


def test_deterministic_fills_no_tensor_with_what_is_not_a_number() -> None:
    """All of it is written anyway: on a GPU it would be a kernel for each new tensor."""
    code = (
        "import torch; from harness.run.machine import configure_process; configure_process(1, 'ieee', True); "
        "print(torch.are_deterministic_algorithms_enabled(), torch.empty(10_000).isnan().all().item())"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.split() == ["True", "False"]


@pytest.fixture
def machine_with_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All that a verb asks of CUDA is answered, its work done on the CPU, in this process; `resident` is `fused`."""

    class Here(local.Pool):
        def results(self) -> Iterator[local.Finished]:
            for group in self.groups:
                yield from local._one(group, self.corpus, self.size, lambda sign: None, self.open_checkpoint)

    def sample(run: Run, vocabulary: int, threads: int, seeds: int, *patience_s: float) -> timing.Answer:
        answer: timing.Answer = json.loads(json.dumps(timing.time_steps(run, vocabulary, seeds)))
        return answer

    Streams(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "a card")
    monkeypatch.setattr(training, "captured", Replayed)
    monkeypatch.setattr(resident, "triton", object())
    monkeypatch.setattr(resident, "unroll", fused.unroll)
    monkeypatch.setattr(local, "Pool", Here)
    here = machine.environment("cuda")
    for name, value in {
        "sample": sample, "ROUNDS": 1, "REPEATS": 0, "BLOCKS": 1, "BLOCK_S": 0.0, "WARM_S": 0.0, "OTHERS": 1e9,
        "SWITCHES_PER_S": 1e9, "node_gap_us": lambda: 1.5, "measure_peaks": lambda device: (1e9, 1.0),
        "_kernels": lambda *of: "a kernel", "environment": lambda device: here,
    }.items():  # fmt: skip
        monkeypatch.setattr(timing, name, value)
    monkeypatch.setattr(machine, "environment", lambda device: here)
    monkeypatch.setattr(pipeline, "draw", lambda folder, results=None: 0)
    monkeypatch.setattr(training, "_inspect", lambda *of: ({}, {}))
    local._disagrees.cache_clear()
    with OnCPU():
        yield
    local._disagrees.cache_clear()


SMALL = [f"--set={setting}" for setting in (
    "hidden=32", "num_steps=4", "batch_size=4", "epochs=1", "train_characters=80", "heldout_characters=40",
)]  # fmt: skip


@pytest.mark.usefixtures("machine_with_gpu")
def test_the_whole_bench_on_a_machine_with_a_gpu(tmp_path: Path) -> None:
    """As one who knows of no option gets it: engines, captured and step by step, each class with its own nn.GRU."""
    words = ["bench", "--device", "cuda", "--seeds", "1", *SMALL, "--results", str(tmp_path), "--deterministic"]
    assert program.main([*words, "--variants", "gru", "nn.gru"]) == 0
    runs, speed = (tables.read(tmp_path).runs, tables.read(tmp_path).speed)
    assert set(runs.error.fillna("")) == {""}
    assert dict(zip(runs.variant, runs.engine, strict=True)) == {"gru": "fused", "nn.gru": "library"}
    assert set(runs.capture) == {True}
    assert set(speed.error.fillna("")) == {""}
    told = ["tokens_per_sec", "percent_of_peak", "peak_memory_mib", "peak_reserved_mib", "first_step_ms", "kernels",
            "disagreement", "floor_ms", "node_gap_us", "repeat_difference"]  # fmt: skip
    assert not speed[told].isna().any().any()
    assert (speed.graph_mib.notna() == speed.capture).all()
    by = speed.groupby("precision").variant.unique()
    assert set(by["ieee"]) == set(by["tf32"]) == {"gru", "nn.gru"}
    assert set(speed[speed.precision == "tf32"].engine) == {"resident", "library"}
    assert set(speed[speed.variant == "gru"].engine) == {"fused", "loop", "book", "resident"}
    assert set(speed[speed.variant == "gru"].capture) == {True, False}
    environment = tables.read(tmp_path).environments
    assert set(environment.device_name) == {"a card"}


@pytest.mark.usefixtures("machine_with_gpu")
def test_the_whole_ablation_on_a_machine_with_a_gpu(tmp_path: Path) -> None:
    words = ["ablate", "--device", "cuda", "--seeds", "1", *SMALL, "--results", str(tmp_path), "--precision", "tf32"]
    assert program.main([*words, "--no-tasks", "--no-timing"]) == 0
    assert program.main([*words, "--no-tasks", "--no-timing"]) == 0  # nothing is left to do
    found = tables.read(tmp_path)
    assert set(found.runs.error.fillna("")) == {""}
    assert set(found.runs.precision) == {"tf32"}
    assert set(found.runs[found.runs.engine == "fused"].variant) == {"gru:Z=1"}
    assert set(found.runs.engine) == {"resident", "fused"}


# ---- a training step, as asked of a device -------------------------------------------------------------------------

VIEWS = {
    "view", "transpose", "slice", "select", "unsqueeze", "expand", "_unsafe_view", "detach", "alias", "as_strided", "t",
    "permute", "unbind", "split_with_sizes", "squeeze", "split", "empty", "new_empty", "empty_like", "empty_strided",
    "new_empty_strided",
}  # fmt: skip
# Operations of a step, each a kernel or more, resident's own kernels included: of 35 characters, `loop` 5. None more.
OPERATIONS = {
    ("gru", "resident"): 64, ("gru_after", "resident"): 65, ("rnn", "resident"): 55, ("gru:R=1", "resident"): 59,
    ("gru:Z=0,R=0", "resident"): 53, ("gru", "fused"): 510, ("gru_after", "fused"): 410, ("rnn", "fused"): 200,
    ("min_gru", "fused"): 167, ("min_lstm", "fused"): 182, ("lstm", "fused"): 558, ("gru", "loop"): 305,
    ("lstm", "loop"): 365, ("ligru", "loop"): 523, ("rnn", "loop"): 107, ("nn.gru", "library"): 1364,
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
    [(*both, "sequential") for both in OPERATIONS] + [("gru", "resident", "windows"), ("min_gru", "fused", "windows")],
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
    protocol = dataclasses.replace(
        protocols.protocol("classic"), num_steps=5 if engine == "loop" else 35, sampling=sampling
    )
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
