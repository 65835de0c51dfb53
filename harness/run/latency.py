"""Time one step of one sequence, and find where the time of a training step goes, in a fresh process that runs alone.

Rule: as timing.py, which starts the processes: every round has every candidate once, in random order, and what
disturbed a block is recorded beside it.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from harness.experiments.runs import Run
from harness.run import timing
from harness.run.agreement import check_agreement, max_abs_error
from harness.run.machine import environment

if TYPE_CHECKING:
    from torch import Tensor

    from harness.experiments.protocols import Protocol
    from variants.cell import State
    from variants.model import Model

STEPS = 500  # a block: 99 % of them are 495
PROFILED = 30  # training steps of which the parts' medians are taken
REPEATED = 7  # the same of the operators, where the profiler slows them
PARTS = ("products", "pointwise", "recurrence", "head", "update", "python")
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "addmv", "mv", "dot", "linear", "mkldnn_linear")
WHOLE = ("mkldnn_rnn_layer", "mkldnn_rnn_layer_backward", "_cudnn_rnn", "_cudnn_rnn_backward")  # torch's, in one call


def measure(run: Run, vocabulary: int) -> timing.Answer:
    """Blocks of single steps at batch 1, the throughput of reading a whole batch, and the shares of a training step.

    A step reads one token and gives the logits of the next and the state, which the next step begins from.
    """
    import torch

    from variants.model import Model

    protocol, device = run.setting, run.device
    if reason := check_agreement(run, max_abs_error(run, vocabulary)):
        return {"error": reason}
    make = functools.partial(
        Model, run.variant, vocabulary, protocol.hidden, [run.seed], protocol.init, device=device, engine=run.engine,
        layers=protocol.layers, embedding=protocol.embedding,
    )  # fmt: skip
    model = make().eval()
    rng = torch.Generator().manual_seed(run.seed)
    tokens = torch.randint(vocabulary, (64, 1, 1, 1), generator=rng).to(device)
    n, T = protocol.batch_size, protocol.num_steps
    batch = torch.randint(vocabulary, (T + 1, 1, n), generator=rng).to(device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    with torch.no_grad():
        state = _warm(model, tokens, wait)
        blocks = []
        for number in range(timing.BLOCKS):
            taken, block = timing.watched(functools.partial(_steps, model, tokens, state, wait))
            blocks.append({
                "block": number, "steps": STEPS, "p50_us": taken[STEPS // 2] / 1000,
                "p99_us": taken[int(0.99 * STEPS)] / 1000, "mean_us": statistics.fmean(taken) / 1000, **block,
            })  # fmt: skip
        batched = statistics.median(_seconds(lambda: model(batch[:-1], model.cell.begin(n)), wait) for _ in range(10))
    whole, parts = profile(make(dropout=protocol.dropout), batch, protocol, wait)
    return {
        "blocks": blocks, "tokens_per_sec_batch": n * T / batched, "step_ms": whole,
        **{f"{part}_percent": share for part, share in parts.items()}, "environment": environment(device),
    }  # fmt: skip


def _warm(model: Model, tokens: Tensor, wait: Callable[[], None]) -> State:
    """The state after as many steps as WARM_S has room for: what is compiled or allocated once is none of a block's."""
    state = model.cell.begin(1)
    until = time.perf_counter() + timing.WARM_S
    while time.perf_counter() < until:
        for token in tokens:
            _, state = model(token, state)
        wait()
    return state


def _steps(model: Model, tokens: Tensor, state: State, wait: Callable[[], None]) -> list[int]:
    """Nanoseconds of STEPS steps, sorted."""
    taken = []
    for k in range(STEPS):
        begun = time.perf_counter_ns()
        _, state = model(tokens[k % len(tokens)], state)
        wait()
        taken.append(time.perf_counter_ns() - begun)
    return sorted(taken)


def _seconds(work: Callable[[], object], wait: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - begun


def profile(
    model: Model, batch: Tensor, protocol: Protocol, wait: Callable[[], None] = lambda: None
) -> tuple[float, dict[str, float | None]]:
    """Milliseconds of a training step, and its shares in per cent by part; None for a part that cannot be told.

    recurrence: in time, what does products and pointwise operations in one call, so that they cannot be told apart.
    products, pointwise: its operators one by one, of torch's. head: output layer, loss, their gradients. update: clip
    and step. python: what is left between the calls.
    """
    model.train()
    X, Y = batch[:-1], batch[1:]
    state = model.cell.begin(batch.shape[2])
    step = functools.partial(model.learn, X, Y, state, 0.01, 1.0)
    for _ in range(3):
        step()
    whole = 1000 * statistics.median(_seconds(step, wait) for _ in range(PROFILED))
    if model.trainer is not None and model.trainer.serves(X):
        return whole, _shares(_of_calls(model, step))
    each = [_in_parts(model, X, Y, state, wait) for _ in range(PROFILED)]
    recurrence, head, update = (statistics.median(times) for times in zip(*each, strict=True))
    found: dict[str, float | None] = dict.fromkeys(PARTS)
    if batch.is_cuda:
        found |= {"recurrence": recurrence}
    else:
        compiled = model.engine.__name__.endswith(".native")
        runs = [_operators(lambda: _in_parts(model, X, Y, state, wait, head=False), compiled) for _ in range(REPEATED)]
        by = {part: statistics.median(one.get(part, 0.0) for one in runs) for part in runs[0]}
        total = sum(by.values())
        # the profiler makes operators slower: their sum can be no more than the time without it
        scale = min(1.0, recurrence / total) if total else 0.0
        found |= {name: scale * seconds for name, seconds in by.items()}
        found["python"] = recurrence - scale * total
    return whole, _shares(found | {"head": head, "update": update})


def _shares(seconds: dict[str, float | None]) -> dict[str, float | None]:
    total = sum(s for s in seconds.values() if s is not None)
    return {part: None if seconds.get(part) is None else 100 * seconds[part] / total for part in PARTS}  # type: ignore[operator]


class _Timed:
    """A compiled library whose calls are timed: name -> seconds."""

    def __init__(self, library: Any, taken: dict[str, float]) -> None:
        self.library, self.taken = library, taken

    def __getattr__(self, name: str) -> Callable[..., object]:
        call = getattr(self.library, name)

        def timed(*args: object) -> object:
            begun = time.perf_counter()
            result: object = call(*args)
            self.taken[name] = self.taken.get(name, 0.0) + time.perf_counter() - begun
            return result

        return timed


def _of_calls(model: Model, step: Callable[[], object]) -> dict[str, float | None]:
    """Seconds of the parts of a training step that is a few calls of C."""
    trainer, every = model.trainer, []
    cell, kernels = trainer.cell, trainer.kernels
    try:
        for _ in range(PROFILED):
            taken: dict[str, float] = {}
            trainer.cell, trainer.kernels = _Timed(cell, taken), _Timed(kernels, taken)
            whole = _seconds(step, lambda: None)
            every.append({
                "recurrence": sum(taken[name] for name in ("before", "forward", "backward", "after")),
                "head": taken["head"], "update": taken["update"], "python": whole - sum(taken.values()),
            })  # fmt: skip
    finally:
        trainer.cell, trainer.kernels = cell, kernels
    return {part: statistics.median(one[part] for one in every) for part in every[0]}


def _in_parts(
    model: Model, X: Tensor, Y: Tensor, state: State, wait: Callable[[], None], head: bool = True
) -> tuple[float, float, float]:
    """Seconds of one training step by autograd: in time forward and back, the head forward and back, the update."""
    import torch
    from torch import nn

    clock = [time.perf_counter()]

    def passed() -> float:
        wait()
        clock.append(time.perf_counter())
        return clock[-1] - clock[-2]

    inputs = model.embedded(X)
    if model.rngs and not hasattr(model.cell, "module"):
        inputs = model._with_factors(inputs)
    H, _ = model.unroll(model.cell, inputs, state)
    recurrence = passed()
    T, S, n, h = H.shape
    outputs, answers = H.detach().requires_grad_(), Y.transpose(0, 1).flatten()
    made, ends = 0.0, torch.ones_like(H)
    if head:
        logits = torch.baddbmm(model.b_q, outputs.transpose(0, 1).reshape(S, T * n, h), model.W_hq)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), answers, reduction="none").view(S, -1).mean(1).sum()
        ends, model.W_hq.grad, model.b_q.grad = torch.autograd.grad(loss, [outputs, model.W_hq, model.b_q])
        made = passed()
    weights = [w for w in model.parameters() if w is not model.W_hq and w is not model.b_q]
    if H.requires_grad:
        for w, gradient in zip(weights, torch.autograd.grad(H, weights, ends, materialize_grads=True), strict=True):
            w.grad = gradient
    recurrence += passed()
    if head:
        model.update(0.01, 1.0)
        return recurrence, made, passed()
    return recurrence, 0.0, 0.0


def _operators(work: Callable[[], object], compiled: bool) -> dict[str, float]:
    """Seconds of torch's operators on this processor, by part, less what each of them calls; and of `compiled` C."""
    from torch.autograd.profiler import profile as profiler

    with profiler() as seen:
        work()
    found = {"products": 0.0, "pointwise": 0.0}
    for event in seen.key_averages():
        name = event.key.rpartition("::")[2]
        if not event.key.startswith(("aten::", "mkldnn::")):
            if compiled and event.key in ("Recurrence", "RecurrenceBackward"):
                found["recurrence"] = found.get("recurrence", 0.0) + event.self_cpu_time_total / 1e6
            continue
        part = "recurrence" if name in WHOLE else "products" if name.rstrip("_") in PRODUCTS else "pointwise"
        found[part] = found.get(part, 0.0) + event.self_cpu_time_total / 1e6
    return found


def main() -> NoReturn:
    timing.answer(lambda run, request: measure(run, request["vocabulary"]))
