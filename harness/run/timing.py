"""Time training steps, each sample in a fresh process that runs alone.

A block of whole training steps is timed with everything asked of the device done at both ends, and whatever disturbed
it is recorded beside it. `main` is that process: a JSON request on stdin, a JSON answer on stdout.
"""

from __future__ import annotations

import functools
import json
import math
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from harness.experiments.protocols import Protocol
from harness.experiments.runs import Candidate, Run
from harness.run.agreement import check_agreement, max_abs_error
from harness.run.machine import Fact, configure_process, environment
from harness.run.process import command, describe, ended, leave, memory_kills
from harness.run.roofline import FED, gflop_per_step, lower_bound_ms, measure_peaks, node_gap_us

if TYPE_CHECKING:
    from torch import Tensor

    from harness.run.train import Graphs


ROUNDS, BLOCKS = 5, 3
WINDOWS = 4  # training steps between two looks at the clock
WARM_S, BLOCK_S = 0.3, 0.25  # before the clock; and the least a block lasts
SWITCHES_PER_S = 300.0  # involuntary context switches: quiet blocks have tens a second, disturbed ones hundreds
LONGEST_S = 10.0  # of all blocks together, where neighbours disturb every one
PATIENCE_S = 600.0  # a sample that takes longer is an error row
SAMPLE_S = 30.0  # a comparison ends within as much for each of its samples: where it is quiet one takes a few seconds
REPEATS = 2  # of a sample all of whose blocks were disturbed, after the others
OTHERS = 0.3  # processors' worth of work by others, beyond what our threads leave free
Answer = dict[str, Any]  # {blocks: [...], ...} or {error: ...}: what a sample says, as JSON


def compare(
    contenders: Sequence[Candidate],
    vocabulary: int,
    threads: int,
    rounds: Sequence[int] = range(ROUNDS),
    program: str = "timing",
) -> Iterator[tuple[int, Candidate, list[Answer]]]:
    """Time every candidate once a round, in random order, each in a fresh process.

    Yield (round, candidate, its answers so far). Up to REPEATS times, after the others, a sample all of whose blocks
    were disturbed is repeated and yielded again, with one answer more. It ends within `limit_s`: what is not timed by
    then is an error, and what is disturbed stays so.
    """
    todo = []
    for number in rounds:
        order = list(contenders)
        random.Random(number).shuffle(order)
        todo += [(number, contender) for contender in order]
    end = time.monotonic() + limit_s(len(todo))
    busy = []
    for number, contender in todo:
        left_s = end - time.monotonic()
        answer: Answer = {"error": f"timeout: the {math.ceil(limit_s(len(todo)) / 60)} minutes for timing were over"}
        if left_s > 0:
            answer = sample(contender.run, vocabulary, threads, contender.seeds, min(left_s, PATIENCE_S), program)
        yield number, contender, [answer]
        if disturbed(answer):
            busy.append((number, contender, [answer]))
    for _ in range(REPEATS):
        for number, contender, answers in [one for one in busy if disturbed(settled(one[2]))]:
            left_s = end - time.monotonic()
            if left_s <= 0:
                return
            patience_s = min(left_s, PATIENCE_S)
            answers.append(sample(contender.run, vocabulary, threads, contender.seeds, patience_s, program))
            yield number, contender, list(answers)


def settled(answers: Sequence[Answer]) -> Answer:
    """Return the answer of a sample that counts: the last where that was left alone, else the first."""
    last = answers[-1]
    return answers[0] if "error" in last or disturbed(last) else last


def limit_s(samples: int) -> float:
    """The most a comparison of so many samples takes, repeats included."""
    return max(PATIENCE_S, SAMPLE_S * samples)


def disturbed(answer: Answer) -> bool:
    """Whether other processes disturbed every block of a sample."""
    blocks = answer.get("blocks", [])
    return bool(blocks) and all(block["disturbed"] for block in blocks)


def sample(
    run: Run, vocabulary: int, threads: int, seeds: int = 1, patience_s: float = PATIENCE_S, program: str = "timing"
) -> Answer:
    """One fresh process, one answer: {blocks: [...], ...} or {error: ...}. The parent waits and does nothing else.

    `program`: the module of this package whose `main` it runs.
    """
    request = json.dumps({"run": asdict(run), "vocabulary": vocabulary, "threads": threads, "seeds": seeds})
    kills = memory_kills()
    settings = {k: str(threads) for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    try:
        child = subprocess.run(
            command(f"from harness.run.{program} import main; main()", follow=True),
            input=request,
            capture_output=True,
            text=True,
            timeout=patience_s,
            env={**os.environ, **settings},
        )
    except subprocess.TimeoutExpired:
        return {"error": f"timeout: no answer within {patience_s:g} s"}
    last = (child.stdout.strip().splitlines() or [""])[-1]
    try:
        answer = json.loads(last)
    except ValueError:
        answer = None
    if child.returncode or not isinstance(answer, dict) or not {"blocks", "error"} & set(answer):
        reason = (child.stderr.strip().splitlines() or ["no word why"])[-1]
        return {"error": f"{ended(child.returncode, kills)}: {reason}"}
    return answer


def time_steps(run: Run, vocabulary: int, seeds: int = 1) -> Answer:
    """Blocks of whole training steps (forward, loss, backward, clip, update) on data that is on the device."""
    import torch

    from harness.run.progress import clock
    from harness.run.train import epoch_of, graphs_of, start_of
    from variants import registry
    from variants.model import build

    protocol, device = run.setting, run.device
    registry.get(run.variant)  # checks its contract once, which imports 100 MiB that are not the step's
    base = _status_mib("VmRSS")
    resettable = _reset_high_water()
    apart, workspace = None, 0
    if device == "cuda":
        apart = max_abs_error(run, vocabulary)  # compiles all that will run: the first step is none of a compiler
        if reason := check_agreement(run, apart):
            return {"error": reason}
        torch.mm(*torch.ones(2, 64, 64, device=device))
        torch.cuda.empty_cache()
        workspace = torch.cuda.memory_allocated()  # cuBLAS', kept for good, one for each stream it is used on
        torch.cuda.reset_peak_memory_stats()
    many = list(range(run.seed, run.seed + seeds))
    model = build(
        run.variant, vocabulary, protocol.hidden, many, protocol.init, device=device, engine=run.engine,
        layers=protocol.layers, dropout=protocol.dropout, embedding=protocol.embedding,
    )  # fmt: skip
    rng = torch.Generator().manual_seed(run.seed)
    steps, n = protocol.num_steps, protocol.batch_size
    shape = (WINDOWS * steps + 1, seeds, n) if protocol.sampling == "sequential" else (steps + 1, seeds, WINDOWS * n)
    streams = torch.randint(vocabulary, shape, generator=rng).to(device)
    at = start_of(model, protocol, seeds)
    epoch = functools.partial(epoch_of, model, windows=WINDOWS, protocol=protocol, at=at)

    def timed(count: int) -> float:
        begun = clock(device)
        for _ in range(count):
            epoch(streams)
        return clock(device) - begun

    begun, graph_mib, graph_nodes = clock(device), None, None
    if run.capture:
        taken = _outside_mib()
        graphs = graphs_of(model, streams, WINDOWS, protocol)
        epoch = functools.partial(epoch, graphs=graphs)
        graph_mib = _outside_mib() - taken
        graph_nodes = _nodes_per_step(graphs)
    else:
        epoch_of(model, streams[: steps + 1], windows=1, protocol=protocol)
    first_s = clock(device) - begun
    warm_until = clock(device) + WARM_S
    while clock(device) < warm_until:
        timed(1)
    blocks = _blocks(timed, device, n * steps * seeds)
    allocated = device == "cuda"
    high = _status_mib("VmHWM") if resettable else None
    peak = high - base if high and base else None
    if allocated:
        peak = (torch.cuda.max_memory_allocated() - workspace * (1 + run.capture + model.branches)) / 2**20
    reserved = torch.cuda.max_memory_reserved() / 2**20 if allocated else None
    unseen: dict[str, str] = {}

    def beside(what: str, look: Callable[[], Any]) -> Any:
        """Record facts beside the times, which cost none of them: where one fails it is missing, and why is on file."""
        try:
            return look()
        except Exception as error:
            unseen[what] = describe(error)
            return None

    kernels = beside("kernels", lambda: _kernels(lambda: timed(1), device)) or ""
    work = gflop_per_step(model, n * steps)
    # after the memory was read: its own would be counted
    peak_gflops, copied = beside("peaks", lambda: measure_peaks(device)) or (None, None)
    peak_gflops = _shares_of_peak(blocks, work, peak_gflops)
    gap_us = beside("node gap", node_gap_us) if device == "cuda" else None
    again = beside("repetition", lambda: repeat_difference(run, vocabulary, streams))
    floor_ms = lower_bound_ms(work, peak_gflops, steps if run.engine in FED else 1, gap_us) if peak_gflops else None
    if apart is None:
        apart = max_abs_error(run, vocabulary)
        if reason := check_agreement(run, apart):
            return {"error": reason}
    return {
        "blocks": blocks, "first_step_ms": 1000 * first_s, "peak_memory_mib": peak, "peak_reserved_mib": reserved,
        "graph_mib": graph_mib, "graph_nodes": graph_nodes, "seeds": seeds, "kernels": kernels,
        "disagreement": apart, "repeat_difference": again, "gflop": work, "peak_gflops": peak_gflops,
        "copy_gib_per_s": copied, "node_gap_us": gap_us, "floor_ms": floor_ms, "load": os.getloadavg()[0],
        "environment": environment(device), **({"unseen": unseen} if unseen else {}),
    }  # fmt: skip


def _blocks(timed: Callable[[int], float], device: str, tokens: int) -> list[dict[str, Fact]]:
    """Time BLOCKS undisturbed blocks. Disturbed ones are followed by others, for a while, and stay among them.

    `timed(count)`: seconds of `count` times WINDOWS training steps, of `tokens` tokens each.
    """
    from harness.run.progress import clock

    each = statistics.median(timed(1) for _ in range(3))
    count = max(1, round(BLOCK_S / each))
    blocks: list[dict[str, Fact]] = []
    end = clock(device) + LONGEST_S
    for attempt in range(2 * BLOCKS):
        blocks.append({"block": attempt, **_block(timed, count, tokens)})
        if sum(not b["disturbed"] for b in blocks) == BLOCKS or clock(device) > end:
            break
    return blocks


def _block(timed: Callable[[int], float], count: int, tokens: int) -> dict[str, Fact]:
    """Time one block, and record what else ran meanwhile."""
    seconds, facts = watched(functools.partial(timed, count))
    return {
        "steps": count * WINDOWS,
        "tokens_per_sec": count * WINDOWS * tokens / seconds,
        "step_ms": 1000 * seconds / (count * WINDOWS),
        **facts,
    }


def watched(work: Callable[[], Any]) -> tuple[Any, dict[str, Fact]]:
    """Return what some work returns, and what else ran meanwhile."""
    import torch

    begun = time.perf_counter()
    before, busy_before = resource.getrusage(resource.RUSAGE_SELF), _busy_s()
    found = work()
    seconds = time.perf_counter() - begun
    after, busy_after = resource.getrusage(resource.RUSAGE_SELF), _busy_s()
    switches = after.ru_nivcsw - before.ru_nivcsw
    own_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    others = None
    if busy_before is not None and busy_after is not None:
        others = max(0.0, busy_after - busy_before - own_s) / seconds
    free = max(0, (os.cpu_count() or 1) - torch.get_num_threads())
    return found, {
        "context_switches": switches,
        "cpu_per_wall": own_s / seconds,
        "others_cpu": others,
        "disturbed": switches / seconds > SWITCHES_PER_S or (others is not None and others > free + OTHERS),
    }


def _shares_of_peak(blocks: list[dict[str, Fact]], work: float, peak_gflops: float | None) -> float | None:
    """Write into each block its share of the peak, and return the peak, which is no less than what a step reached."""
    if peak_gflops is None:
        for block in blocks:
            block["percent_of_peak"] = None
        return None
    reached = [1000 * work / float(block["step_ms"]) for block in blocks]  # type: ignore[arg-type]
    peak_gflops = max(peak_gflops, *reached)
    for block, gflops in zip(blocks, reached, strict=True):
        block["percent_of_peak"] = 100 * gflops / peak_gflops
    return peak_gflops


def _nodes_per_step(graphs: Graphs) -> float | None:
    """Return nodes a training step of what WINDOWS steps are replayed as; None where the driver does not say."""
    nodes: list[Any] = [getattr(graph, "nodes", None) for _, graph in graphs.values()]
    return None if None in nodes else sum(nodes) / WINDOWS


def repeat_difference(run: Run, vocabulary: int, streams: Tensor) -> float:
    """How far two trainings from one start on the same streams end apart: the largest difference of a weight.

    0 where the same seed gives the same bits, as on every CPU.
    """
    from harness.run.train import epoch_of
    from variants.model import build

    protocol, weights = run.setting, []
    for _ in range(2):
        many = list(range(run.seed, run.seed + streams.shape[1]))
        model = build(
            run.variant, vocabulary, protocol.hidden, many, protocol.init, device=run.device, engine=run.engine,
            layers=protocol.layers, dropout=protocol.dropout, embedding=protocol.embedding,
        )  # fmt: skip
        epoch_of(model, streams, windows=WINDOWS, protocol=protocol)
        weights.append([w.detach() for w in model.parameters()])
    return max(float((a - b).abs().max()) for a, b in zip(*weights, strict=True))


def _kernels(step: Callable[[], object], device: str) -> str:
    """The recurrence that really ran, by the profiler's names: one untimed step. On CUDA all kernels, longest first.

    Autograd's profiler: torch.profiler is the same one, and imports the compiler first, for seconds.
    """
    from torch.autograd.profiler import profile as profiler

    cuda = device == "cuda"
    with profiler(use_device="cuda" if cuda else None, use_kineto=cuda) as profile:
        step()
    events = profile.key_averages()
    if cuda:  # what the host asked for is among the events too; a graph's kernels are the device's alone
        ran = sorted((e for e in events if e.device_type.name == "CUDA"), key=lambda e: -e.self_device_time_total)
        names = [e.key for e in ran]
    else:
        words = ("rnn", "gru", "lstm", "bmm", "addmm", "mkldnn")
        names = sorted(e.key for e in events if any(w in e.key.lower() for w in words) and "Backward" not in e.key)
    return " ".join(dict.fromkeys(_short(name) for name in names))[:300]


def _short(kernel: str) -> str:
    """A kernel's name without its arguments and its templates; of cutlass' the template that says which one it is."""
    name = kernel.removeprefix("void ").replace("(anonymous namespace)::", "")
    if name.startswith("cutlass::Kernel"):
        name = name.partition("<")[2]
    return re.split(r"[(<>]", name)[0].strip().replace(" ", "_")


def _outside_mib() -> float:
    """Memory of the GPU that is taken and not torch's to give: contexts, modules, graphs."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return (total - free - torch.cuda.memory_reserved()) / 2**20


def _status_mib(key: str) -> float | None:
    """A line of /proc/self/status in MiB; None where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(key + ":")), None)


def _busy_s() -> float | None:
    """Processor seconds that all processes together have used since the start; None where that is not to be had."""
    try:
        ticks = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")  # but idle and waiting for a disk


def _reset_high_water() -> bool:
    """The high-water mark belongs to all the process ever did: start it anew (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def main() -> NoReturn:
    answer(lambda run, request: time_steps(run, request["vocabulary"], request["seeds"]))


def answer(measure: Callable[[Run, dict[str, Any]], Answer]) -> NoReturn:
    """Read a request from stdin, measure what it asks for, print the answer, and end this process."""
    request = json.loads(sys.stdin.read())
    fields = request["run"]
    run = Run(**{**fields, "protocol": Protocol(**fields["protocol"])})
    configure_process(request["threads"], run.precision, run.deterministic)
    try:
        said = measure(run, request)
    except Exception as error:  # the parent records it as a row
        said = {"error": describe(error)}
    print(json.dumps(said))
    leave(0)
