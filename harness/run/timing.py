"""THE CLOCK: tokens/sec, memory, and the machine they were had on.

Rule: one sample is one fresh process, alone on the machine; a block of whole training steps is timed with
everything asked of the device done at both ends, and whatever disturbed it is written beside it.
`main` is that process: a JSON request on stdin, a JSON answer on stdout.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import platform
import random
import re
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.experiments.grid import Protocol, Run
from harness.run.process import command

if TYPE_CHECKING:
    from torch import Tensor

    from variants.model import Model

ROUNDS, BLOCKS = 5, 3
WINDOWS = 4  # training steps between two looks at the clock
WARM_S, BLOCK_S = 0.3, 0.25  # before the clock; and the least a block lasts
SWITCHES_PER_S = 300.0  # involuntary context switches: quiet blocks have tens a second, disturbed ones hundreds
LONGEST_S = 10.0  # of all blocks together, where neighbours disturb every one
PATIENCE_S = 600.0  # a sample that takes longer is an error row
SAMPLE_S = 30.0  # a comparison ends within as much for each of its samples: where it is quiet one takes a few seconds
REPEATS = 2  # of a sample all of whose blocks were disturbed, after the others
OTHERS = 0.3  # processors' worth of work by others, beyond what our threads leave free
AGREE = 1e-10  # the most an engine may differ from the loop, in float64, before it counts
# The most an engine for float32 alone may, of the norm: what rounding every product to 11 or 8 bits gives, and some.
ROUNDED = {"ieee": 1e-5, "tf32": 2e-3, "bf16": 2e-2}
# facts that `settle` decides
SETTLED = ("threads", "matmul_precision", "cudnn_rnn_tf32", "flush_denormal", "keeps_pages", "deterministic",
           "cublas_workspace")  # fmt: skip
_keeps_pages = False
FLOAT32 = ("resident",)  # engines that know no float64
FED = ("loop", "fused")  # engines that a GPU is fed kernel by kernel: one waits for another at each character
AGAIN = "#2"  # the label of the baseline's second self (A/A)

Fact = str | int | float | bool | None
Answer = dict[str, Any]  # {blocks: [...], ...} or {error: ...}: what a sample says, as JSON


@dataclass(frozen=True)
class Contender:
    """One thing to be timed. Two labels may name the same run: that pair measures the noise."""

    label: str
    run: Run
    seeds: int = 1  # side by side in one tensor program


def environment(device: str) -> dict[str, Fact]:
    """Everything about machine and software that a number may depend on; '' or None where not to be had."""
    import torch

    cuda = device == "cuda"
    facts: dict[str, Fact] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "driver": _driver() if cuda else None,
        "device": device,
        "device_name": torch.cuda.get_device_name() if cuda else _cpu(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_rnn_tf32": torch.backends.cudnn.allow_tf32 if cuda else None,
        "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG", ""),
        "keeps_pages": _keeps_pages,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "flush_denormal": bool((torch.tensor([1e-40]) * 1 == 0).item()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "package": metadata_version(),
        **_commit(),
    }
    return facts


def settle(threads: int, precision: str, deterministic: bool = False) -> None:
    """Set what must be set before a process's first parallel operation, and is recorded afterwards.

    `deterministic`: on CUDA the same bits twice, or RuntimeError where torch has no such way.
    """
    import torch

    if deterministic:  # before cuBLAS has its first workspace
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        # a kernel for each new tensor, all of which is written anyway
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # denormals slow a CPU step 32 times, for some variants and not for others
    torch.set_float32_matmul_precision({"ieee": "highest", "tf32": "high", "bf16": "medium"}[precision])
    torch.backends.cudnn.allow_tf32 = precision != "ieee"  # cudnn.rnn does unless told not to, a written cell does not
    _keep_pages()


def _keep_pages() -> None:
    """Have glibc keep the memory that is freed: else each step asks the system for the same pages again.

    That is a fifth of a step of some variants and nothing of others, so it would be a bias and not only a cost.
    """
    global _keeps_pages
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # another allocator
    trim, pad, mapped = -1, -2, -3  # from malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD
    _keeps_pages = all([mallopt(trim, 2**30), mallopt(pad, 2**26), mallopt(mapped, 2**25)])


def compare(
    contenders: Sequence[Contender], vocabulary: int, threads: int, rounds: Sequence[int] = range(ROUNDS)
) -> Iterator[tuple[int, Contender, Answer]]:
    """Every contender once a round, in random order, each in a fresh process: (round, contender, answer).

    Then, up to REPEATS times, those again all of whose blocks were disturbed: given again where that went better. It
    ends within `limit_s`: what is not timed by then is an error, and what is disturbed stays so.
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
        answer: Answer = {"error": f"timeout: the {limit_s(len(todo)) / 60:.0f} minutes for timing were over"}
        if left_s > 0:
            answer = sample(contender.run, vocabulary, threads, contender.seeds, min(left_s, PATIENCE_S))
        yield number, contender, answer
        if disturbed(answer):
            busy.append((number, contender))
    for _ in range(REPEATS):
        for number, contender in list(busy):
            left_s = end - time.monotonic()
            if left_s <= 0:
                return
            answer = sample(contender.run, vocabulary, threads, contender.seeds, min(left_s, PATIENCE_S))
            if "error" not in answer and not disturbed(answer):
                busy.remove((number, contender))
                yield number, contender, answer


def limit_s(samples: int) -> float:
    """The most a comparison of so many samples takes, repeats included."""
    return max(PATIENCE_S, SAMPLE_S * samples)


def disturbed(answer: Answer) -> bool:
    """Whether other processes disturbed every block of a sample."""
    blocks = answer.get("blocks", [])
    return bool(blocks) and all(block["disturbed"] for block in blocks)


def sample(run: Run, vocabulary: int, threads: int, seeds: int = 1, patience_s: float = PATIENCE_S) -> Answer:
    """One fresh process, one answer: {blocks: [...], ...} or {error: ...}. The parent waits and does nothing else."""
    request = json.dumps({"run": asdict(run), "vocabulary": vocabulary, "threads": threads, "seeds": seeds})
    kills = memory_kills()
    settings = {k: str(threads) for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    try:
        child = subprocess.run(
            command("from harness.run.timing import main; main()"),
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

    from harness.run.cuda_graph import Epoch, captured
    from harness.run.progress import clock
    from harness.run.train import epoch_of
    from variants.model import Model

    protocol, device = run.setting, run.device
    base = _status_mib("VmRSS")
    resettable = _reset_high_water()
    apart, workspace = None, 0
    if device == "cuda":
        apart = disagreement(run, vocabulary)  # compiles all that will run: the first step is none of a compiler
        if reason := disagrees(run, apart):
            return {"error": reason}
        torch.mm(*torch.ones(2, 64, 64, device=device))
        torch.cuda.empty_cache()
        workspace = torch.cuda.memory_allocated()  # cuBLAS', kept for good, one for each stream it is used on
        torch.cuda.reset_peak_memory_stats()
    many = list(range(run.seed, run.seed + seeds))
    model = Model(run.variant, vocabulary, protocol.hidden, many, protocol.init, device=device, engine=run.engine)
    rng = torch.Generator().manual_seed(run.seed)
    steps, n = protocol.num_steps, protocol.batch_size
    shape = (WINDOWS * steps + 1, seeds, n) if protocol.sampling == "sequential" else (steps + 1, seeds, WINDOWS * n)
    streams = torch.randint(vocabulary, shape, generator=rng).to(device)
    epoch: Epoch = functools.partial(epoch_of, model, windows=WINDOWS, protocol=protocol)

    def timed(count: int) -> float:
        begun = clock(device)
        for _ in range(count):
            epoch(streams)
        return clock(device) - begun

    begun, graph_mib = clock(device), None
    if run.capture:
        taken = _outside_mib()
        epoch = captured(epoch, streams, [*model.parameters(), *model.buffers()])
        graph_mib = _outside_mib() - taken
    else:
        epoch_of(model, streams[: steps + 1], windows=1, protocol=protocol)
    first_s = clock(device) - begun
    warm_until = clock(device) + WARM_S
    while clock(device) < warm_until:
        timed(1)
    each = statistics.median(timed(1) for _ in range(3))
    count = max(1, round(BLOCK_S / each))
    blocks: list[dict[str, Fact]] = []
    end = clock(device) + LONGEST_S
    for attempt in range(2 * BLOCKS):
        before, busy_before = resource.getrusage(resource.RUSAGE_SELF), _busy_s()
        seconds = timed(count)
        after, busy_after = resource.getrusage(resource.RUSAGE_SELF), _busy_s()
        switches = after.ru_nivcsw - before.ru_nivcsw
        own_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        others = None
        if busy_before is not None and busy_after is not None:
            others = max(0.0, busy_after - busy_before - own_s) / seconds
        free = max(0, (os.cpu_count() or 1) - torch.get_num_threads())
        blocks.append(
            {
                "block": attempt,
                "steps": count * WINDOWS,
                "tokens_per_sec": count * WINDOWS * n * steps * seeds / seconds,
                "step_ms": 1000 * seconds / (count * WINDOWS),
                "context_switches": switches,
                "cpu_per_wall": own_s / seconds,
                "others_cpu": others,
                "disturbed": switches / seconds > SWITCHES_PER_S or (others is not None and others > free + OTHERS),
            }
        )
        clean = sum(not b["disturbed"] for b in blocks)
        if clean == BLOCKS or clock(device) > end:  # disturbed blocks run again, for a while; both stay on file
            break
    allocated = device == "cuda"
    high = _status_mib("VmHWM") if resettable else None
    peak = high - base if high and base else None
    if allocated:
        peak = (torch.cuda.max_memory_allocated() - workspace * (1 + run.capture)) / 2**20
    reserved = torch.cuda.max_memory_reserved() / 2**20 if allocated else None
    kernels = _kernels(lambda: timed(1), device)
    work = gflop(model, n * steps)
    peak_gflops, copied = ceiling(device)  # after the memory was read: its own would be counted
    # what a step reached can be reached, whatever the machine was busy with since
    peak_gflops = max(peak_gflops, *(1000 * work / float(block["step_ms"]) for block in blocks))  # type: ignore[arg-type]
    gap_us = node_gap_us() if device == "cuda" else None
    for block in blocks:
        block["percent_of_peak"] = 100 * work / (float(block["step_ms"]) / 1000) / peak_gflops  # type: ignore[arg-type]
    again = repeat_difference(run, vocabulary, streams)
    if apart is None:
        apart = disagreement(run, vocabulary)
        if reason := disagrees(run, apart):
            return {"error": reason}
    return {
        "blocks": blocks,
        "first_step_ms": 1000 * first_s,
        "peak_memory_mib": peak,
        "peak_reserved_mib": reserved,
        "graph_mib": graph_mib,
        "seeds": seeds,
        "kernels": kernels,
        "disagreement": apart,
        "repeat_difference": again,
        "gflop": work,
        "peak_gflops": peak_gflops,
        "copy_gib_per_s": copied,
        "node_gap_us": gap_us,
        "floor_ms": floor_ms(work, peak_gflops, steps if run.engine in FED else 1, gap_us),
        "load": os.getloadavg()[0],
        "environment": environment(device),
    }


def disagreement(run: Run, vocabulary: int) -> float:
    """The largest difference from the plainest engine in float64: of the losses, the last state, every gradient, and

    of all that a training step leaves.

    At the size that is to be timed, from a state that is not zero, every weight random. 0 for the plainest itself.
    Of an engine that knows no float64, the norm of the difference over that of the plainest's, the largest.
    """
    import torch

    import variants
    from variants.model import Model

    plain = variants.plainest(run.variant)
    if run.engine == plain:
        return 0.0
    size, device = run.setting, run.device
    found = []
    for engine in (plain, run.engine):
        rng = torch.Generator().manual_seed(0)
        dtype = torch.float32 if engine in FLOAT32 else torch.float64
        model = Model(run.variant, vocabulary, size.hidden, [0], "torch", dtype=dtype, device=device, engine=engine)
        X = torch.randint(vocabulary, (size.num_steps + 1, 1, size.batch_size), generator=rng).to(device)
        state = tuple(
            torch.randn(s.shape, generator=rng, dtype=torch.float64).to(device, dtype)
            for s in model.cell.begin(size.batch_size)
        )
        losses, after = model.losses(X[:-1], X[1:], state)
        torch.autograd.backward([losses, *after], [torch.ones_like(losses), *(torch.ones_like(s) for s in after)])
        results = [losses, *after, *(torch.zeros_like(w) if w.grad is None else w.grad for w in model.parameters())]
        results = [value.detach() for value in results]
        model.gather()
        losses, norms, after = model.learn(X[:-1], X[1:], state, 1.0, 1.0)  # whole steps may be another code
        found.append([*results, losses, norms, *after, *model.parameters()])
    if run.engine in FLOAT32:
        return float(max((a - b).norm() / a.norm() for a, b in zip(*found, strict=True)))
    return float(max((a - b).abs().max() for a, b in zip(*found, strict=True)))


def disagrees(run: Run, apart: float) -> str:
    """'' where so large a difference is within what this engine may round, else why nothing it gives counts."""
    most = ROUNDED[run.precision] if run.engine in FLOAT32 else AGREE
    if apart <= most:
        return ""
    return f"disagrees: {run.engine} differs from the plainest engine by {apart:.2g}, over {most:g}"


def repeat_difference(run: Run, vocabulary: int, streams: Tensor) -> float:
    """How far two trainings from one start on the same streams end apart: the largest difference of a weight.

    0 where the same seed gives the same bits, as on every CPU.
    """
    from harness.run.train import epoch_of
    from variants.model import Model

    protocol, weights = run.setting, []
    for _ in range(2):
        many = list(range(run.seed, run.seed + streams.shape[1]))
        model = Model(
            run.variant, vocabulary, protocol.hidden, many, protocol.init, device=run.device, engine=run.engine
        )
        epoch_of(model, streams, windows=WINDOWS, protocol=protocol)
        weights.append([w.detach() for w in model.parameters()])
    return max(float((a - b).abs().max()) for a, b in zip(*weights, strict=True))


def ceiling(device: str) -> tuple[float, float]:
    """What this machine reaches at best: GFLOP/s of float32, GiB/s of a large copy, read and written.

    At the precision that `settle` set, with its threads. Of a large product of torch's and, on a CPU with a compiler,
    of the micro-kernel of native.c the faster one: torch's own product (MKL) uses a fraction of an AMD processor.
    """
    import torch

    from harness.run.progress import clock
    from variants.engines import native

    def best_s(work: Callable[[], object], times: int) -> float:
        work()
        taken = []
        for _ in range(times):
            begun = clock(device)
            work()
            taken.append(clock(device) - begun)
        return min(taken)

    rates = []
    bf16 = device == "cuda" and torch.get_float32_matmul_precision() == "medium"
    kind = torch.bfloat16 if bf16 else torch.float32  # of float32 it would be tf32's
    for n in (1024, 2048) if device == "cpu" else (4096, 8192):
        A, B, C = (torch.ones(n, n, device=device, dtype=kind).normal_() for _ in range(3))
        rates.append(2 * n**3 / best_s(functools.partial(torch.mm, A, B, out=C), 3) / 1e9)
    times = 10_000  # a few ms
    if device == "cpu" and (operations := native.arithmetic(times)):
        rates.append(operations / best_s(functools.partial(native.arithmetic, times), 20) / 1e9)
    source = torch.ones(2**24 if device == "cpu" else 2**28, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size() / 2**30
    return max(rates), moved / best_s(lambda: target.copy_(source), 3)


def node_gap_us(nodes: int = 1000) -> float:
    """Microseconds from one kernel of a CUDA graph to the next that waits for it: a dependent step takes no less."""
    import torch

    from harness.run.progress import clock

    counter = torch.zeros(1, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(nodes):
            counter.add_(1)
    graph.replay()
    taken = []
    for _ in range(5):
        begun = clock("cuda")
        graph.replay()
        taken.append(clock("cuda") - begun)
    return 1e6 * min(taken) / nodes


def floor_ms(work: float, peak_gflops: float, steps: int, gap_us: float | None) -> float:
    """What no training step of so many GFLOP can be faster than here: all of it at the peak rate, or, of a GPU that is

    fed kernel by kernel, one after the other forward and back through all steps, whichever is longer.
    """
    return max(1000 * work / peak_gflops, 2 * steps * (gap_us or 0.0) / 1000)


def gflop(model: Model, tokens: int) -> float:
    """Of a training step, what no method avoids: 6 operations a character and weight that multiplies a state.

    Two forward, two for the gradient of the state, two for that of the weight; the output layer's weights too.
    """
    names = ("W_h", "weight_hh")  # ours, torch's
    weights = sum(w.numel() for name, w in model.named_parameters() if any(n in name for n in names))
    return 6 * tokens * weights / 1e9


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


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _driver() -> str:
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip().splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return ""


def _commit() -> dict[str, Fact]:
    """The commit of this code and whether it was changed since; None where it is no checkout."""
    here = Path(__file__).parents[2]
    if not (here / ".git").exists():
        return {"commit": None, "dirty": None}
    # a git hook's GIT_DIR and the like name another repository
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    how: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 20, "env": own}
    try:
        ask = ["git", "-C", str(here)]
        commit = subprocess.run([*ask, "rev-parse", "HEAD"], **how)
        code = ["harness", "variants"]
        changed = subprocess.run([*ask, "status", "--porcelain", "--untracked-files=normal", "--", *code], **how)
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    if commit.returncode or changed.returncode:
        return {"commit": None, "dirty": None}
    return {"commit": commit.stdout.strip(), "dirty": bool(changed.stdout.strip())}


def metadata_version() -> str:
    from harness import __version__

    versions = [f"harness {__version__}"]
    for name in ("numpy", "scipy", "pandas", "seaborn"):
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(versions)


def now() -> str:
    """This instant in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def main() -> None:
    follow_parent()
    request = json.loads(sys.stdin.read())
    fields = request["run"]
    run = Run(**{**fields, "protocol": Protocol(**fields["protocol"])})
    settle(request["threads"], run.precision, run.deterministic)
    try:
        answer = time_steps(run, request["vocabulary"], request["seeds"])
    except Exception as error:  # the parent records it as a row
        answer = {"error": describe(error)}
    print(json.dumps(answer))


def describe(error: BaseException) -> str:
    """One line for a row: a word for the kind, then the reason."""
    said = str(error).lower()
    no_memory = isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said
    reason = " ".join(str(error).split())[:300]
    return f"{'oom' if no_memory else 'crashed'}: {type(error).__name__}: {reason}"


def ended(status: int | None, kills: int | None) -> str:
    """One line for a row: a process that ended without an answer. `kills`: `memory_kills` before it began."""
    after = memory_kills()
    if status == -signal.SIGKILL and kills is not None and after is not None and after > kills:
        return "oom: the system ended its process, which had no memory left"
    if status is not None and status < 0:
        with contextlib.suppress(ValueError):
            return f"crashed: its process was ended by {signal.Signals(-status).name}"
    return f"crashed: its process ended with status {status}"


def memory_kills() -> int | None:
    """Processes that the system has ended since it started, to have memory again; None where that is not to be had."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def follow_parent(parent: int | None = None) -> None:
    """End this process when the one that started it ends, however that does (Linux; elsewhere at its next answer)."""
    parent, follow = parent or os.getppid(), 1  # from prctl.h: PR_SET_PDEATHSIG
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).prctl(follow, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)  # it ended before this was said
