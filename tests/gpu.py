"""Everything that needs a GPU, in calls of minutes: python3 -m tests.gpu --minutes 9 --out DIR [--text FILE]

Stages, the most worth first, each a process with a limit: one that fails is said, and the others go on. So it is within
a stage: what fails, hangs or takes its process with it is said, and the rest is measured by another process. What comes
is written as it comes: facts into DIR/gpu.jsonl and on the screen, all else that is printed into DIR/gpu.log, the
kernel's fastest tiles into DIR/tiles.json, which later stages read, the results of the harness packed into
DIR/results.tar.gz, in parts under 16 MiB. Another call goes on from there, or from a copy (--from COPY), and makes only
what is missing. --dry-run prints the plan: what is measured, in which order, how long it takes by stated costs.

--reference DIR makes results/reference/<card> of what calls have left in DIR, and the documents' figures from it.

Agreement comes first. Of variants whose resident kernel disagrees nothing of that kernel is timed; all else is.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import io
import itertools
import json
import math
import os
import re
import selectors
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

ROOT, MODULE = Path(__file__).parent.parent, "tests.gpu"
REFERENCE = ROOT / "results" / "reference"
PART = 15 * 2**20  # bytes of a packed file
END_S = 20.0  # before the call's end: to stop what runs, and to pack
SILENT_S = 90.0  # that one thing to measure may take: a kernel whose blocks wait for ever ends no other way
PACK_S = 60.0  # from one packing of what the harness has written to the next
UNFIT, HUNG = 3, 124  # status of a process whose GPU answers no more, or that does not: another goes on
FAMILY = ("gru_after", "gru", "rnn", "gru:R=1")
OTHERS = ("gru:Z=0.3", "gru_after:Z=0.3", "gru:R=0", "gru:Z=0,R=0")
TILES = ((32, 8), (32, 4), (32, 2), (16, 4), (16, 2))  # hidden units of a block, and its warps
SIZES = ((256, (1, 10, 30), TILES), *((h, (1, 30), TILES[1:]) for h in (128, 64, 32)))  # hidden, seeds, tiles
Fact = dict[str, Any]
Items = Iterator[tuple[str, Callable[[], Fact]]]  # the key of each thing to measure, by which it is known to be done


@dataclass(frozen=True)
class Stage:
    """`cost_s`: what it takes, stated beforehand; it is stopped after twice that. `words`: of its command."""

    name: str
    about: str
    cost_s: float
    words: tuple[str, ...] = ()


def stages(work: Path, text: str) -> list[Stage]:
    """In order of worth. Those with no words are functions of this file."""

    def harness(verb: str, precision: str, *more: str) -> tuple[str, ...]:
        how = ("--protocol", "classic", "--device", "cuda", "--corpus", text, "--precision", precision)
        return ("harness", verb, *how, "--results", str(work / precision), *more)

    files = ("tests/run/test_train.py", "tests/run/test_timing.py", "tests/variants/engines/test_engines.py")
    return [
        Stage("agree", "resident against the loop in float64: 8 kinds, hidden 32 to 256, 1 and 30 seeds", 70),
        Stage("gaps", "from node to node of a graph; a meeting of 8 and of 16 blocks", 15),
        Stage("tiles", "resident by (units, warps), both resets, rnn; hidden 32 to 256, 1 to 30 seeds", 70),
        Stage("speed", "nn.gru, nn.rnn, fused, loop, resident; eager and captured; ieee and tf32: a sample each", 150),
        Stage("seeds", "30 seeds side by side; nn.gru: 8 and 30 branches of a graph, 1 and 8 processes", 85),
        Stage("book", "an epoch of `book` captured (lstm, loop): seconds, memory", 35),
        Stage("ablate", "classic, 10 seeds, tf32: trained", 70, harness("ablate", "tf32", "--no-timing", "--no-tasks")),
        Stage("bench", "classic, 10 seeds, ieee: trained", 180, harness("bench", "ieee", "--no-timing")),
        Stage("tests", "the tests that skip where there is no GPU", 120, ("pytest", *files, "-k", "gpu or graph")),
        Stage("times-ablate", "classic, tf32: timed, 5 rounds", 420, harness("ablate", "tf32", "--no-tasks")),
        Stage("times-bench", "classic, ieee: timed, 5 rounds", 840, harness("bench", "ieee")),
        Stage("sweep", "tf32 by hidden size and number of seeds, 5 rounds", 2100, harness("sweep", "tf32")),
        Stage("tasks", "ablate's 4 tasks, 10 seeds, tf32: trained", 1200, harness("ablate", "tf32", "--no-timing")),
    ]


# ---- what a stage measures -------------------------------------------------------------------------------------------


def agree() -> Items:
    import torch

    sys.path[:0] = [str(ROOT / "tests" / "variants" / "engines"), str(ROOT / "tests" / "support")]
    from test_engines import results

    from harness.run.agreement import ROUNDED
    from harness.run.machine import environment
    from variants.engines import loop, resident

    yield "machine", functools.partial(environment, "cuda")
    sizes = [(h, S, "tf32", v) for h in (256, 32, 64, 128) for S in (1, 30) for v in FAMILY]
    sizes += [(256, S, "tf32", v) for S in (1, 30) for v in OTHERS] + [(256, 1, "bf16", v) for v in FAMILY[:2]]

    def compared(h: int, S: int, precision: str, variant: str) -> Fact:
        torch.set_float32_matmul_precision("highest")
        exact = results(variant, loop, S, torch.float64, 32, h, "cuda")
        torch.set_float32_matmul_precision({"tf32": "high", "bf16": "medium"}[precision])
        begun = time.monotonic()
        found = results(variant, resident, S, torch.float32, 32, h, "cuda")
        apart = {k: float((found[k] - exact[k]).norm() / (exact[k].norm() + 1e-12)) for k in exact}
        worst = max(apart, key=lambda k: (math.isnan(apart[k]), apart[k]))  # NaN is no less than any
        fine = apart[worst] <= ROUNDED[precision]
        return {"apart": apart[worst], "where": worst, "bound": ROUNDED[precision],
                "seconds": time.monotonic() - begun, **({} if fine else {"error": "disagrees"})}  # fmt: skip

    for h, S, precision, variant in sizes:
        yield f"{variant}, {h} x {S}, {precision}", functools.partial(compared, h, S, precision, variant)


def gaps() -> Items:
    import torch

    from harness.run.roofline import node_gap_us

    yield "node", lambda: {"us": node_gap_us()}
    times = 1_000
    for blocks in (8, 16):

        def meet(blocks: int = blocks) -> None:
            counters = torch.zeros(1, dtype=torch.int32, device="cuda")
            meetings()[(blocks, 1)](counters, times, C=blocks, num_warps=2, num_stages=1, launch_cooperative_grid=True)

        yield f"meeting of {blocks}", lambda meet=meet: {"us": 1000 * milliseconds(meet) / times}  # type: ignore[misc]


@functools.cache
def meetings() -> Any:
    """A kernel that does nothing but meet."""
    import triton
    import triton.language as tl

    from variants.engines.resident import _meet

    def kernel(counters, times, C: tl.constexpr):  # type: ignore[no-untyped-def]
        met = 0
        for _ in tl.range(times):
            met += C
            _meet(counters + tl.program_id(1), met, C)

    return triton.jit(kernel)


def milliseconds(work: Callable[[], object], times: int = 5) -> float:
    """The median of several, after one that warms up, by the device's own clock."""
    import torch

    work()
    taken: list[float] = []
    for _ in range(times):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        taken.append(begin.elapsed_time(end))
    return statistics.median(taken)


def tiles() -> Items:
    import torch

    import variants
    from harness.run.agreement import ROUNDED
    from variants.engines import resident

    torch.set_float32_matmul_precision("high")
    first: dict[tuple[int, int, str], list[torch.Tensor]] = {}

    def measured(h: int, S: int, variant: str, units: int, warps: int) -> Fact:
        asked: list[tuple[Any, ...]] = []

        def chosen(*sizes: Any) -> tuple[int, int]:
            asked.append(sizes)
            return units, warps

        resident.tile = chosen  # type: ignore[assignment]
        cell, rng = variants.get(variant)(28, h, S), torch.Generator().manual_seed(0)
        for weight in cell.parameters():
            torch.nn.init.normal_(weight, std=0.8 / h**0.5, generator=rng)
        cell, X = cell.cuda(), torch.randint(28, (35, S, 32), generator=rng).cuda()

        def step() -> torch.Tensor:
            return resident.unroll(cell, X, (torch.zeros(S, 32, h, device="cuda"),))[0]

        H = step()
        H.backward(torch.ones_like(H), retain_graph=True)
        made = [H.detach(), *(weight.grad for weight in cell.parameters() if weight.grad is not None)]
        made = [value.clone() for value in made]  # later ones add to the gradients
        pairs = zip(made, first.setdefault((h, S, variant), made), strict=True)  # each tile is another compiled kernel
        apart = float(torch.stack([(a - b).norm() / b.norm().clamp(min=1e-30) for a, b in pairs]).max())  # NaN is most
        forward, backward = milliseconds(step), milliseconds(lambda: H.backward(torch.ones_like(H), retain_graph=True))
        _, hidden, products, _, reset, card = asked[0]
        return {"card": card, "hidden": hidden, "products": products, "reset": reset, "seeds": S, "units": units,
                "warps": warps, "forward_ms": forward, "backward_ms": backward, "apart": apart,
                **({} if apart <= ROUNDED["tf32"] else {"error": "disagrees"})}  # fmt: skip

    for h, seeds, those in SIZES:
        for S, variant, tile in itertools.product(seeds, FAMILY[:3], those):
            key = f"{variant}, {h} x {S}, {tile[0]} units, {tile[1]} warps"
            yield key, functools.partial(measured, h, S, variant, *tile)


def latest(facts: Sequence[Fact]) -> list[Fact]:
    """Of each thing that was measured what was found last: what failed before may be mended by now."""
    return list({(fact["stage"], fact["key"]): fact for fact in facts if "key" in fact}.values())


def fastest(facts: Sequence[Fact]) -> dict[str, list[Fact]]:
    """Return card -> the fastest tile of each kind of kernel and number of seeds, for `resident.measured_tiles`."""
    of: dict[tuple[Any, ...], list[Fact]] = {}
    for fact in latest(facts):
        if "forward_ms" in fact and "error" not in fact:
            of.setdefault(tuple(fact[k] for k in ("card", "reset", "products", "hidden", "seeds")), []).append(fact)
    found: dict[str, list[Fact]] = {}
    for (card, reset, products, hidden, seeds), measured in of.items():
        ms, units, warps = min((f["forward_ms"] + f["backward_ms"], f["units"], f["warps"]) for f in measured)
        found.setdefault(card, []).append(
            {"reset": reset, "products": products, "hidden": hidden, "seeds": seeds, "units": units, "warps": warps,
             "ms": round(ms, 4), "of": len(measured)}
        )  # fmt: skip
    return found


def keep_tiles(found: dict[str, list[Fact]], path: Path) -> None:
    """Write measured tiles into a file; those of other cards in it stay."""
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError):
        before = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(json.dumps({**before, **found}, indent=1) + "\n")
    fresh.replace(path)


def timed(contenders: Sequence[tuple[str, str, bool, str, int]]) -> Items:
    """A sample each, in a fresh process: (variant, engine, captured, precision, seeds)."""
    from harness.experiments import protocols
    from harness.experiments.runs import Run
    from harness.run import timing
    from harness.run.executors.local import cores

    for variant, engine, capture, precision, seeds in contenders:
        run = Run(variant, 0, protocols.protocol("classic"), "", "cuda", engine, capture, precision)
        key = f"{variant} {engine}{' captured' * capture} {precision} x {seeds}"
        yield key, functools.partial(timing.sample, run, 28, cores(), seeds, SILENT_S - 20)


def speed() -> Items:
    rows = [
        ("nn.gru", "library", True, "tf32", 1), ("gru_after", "resident", True, "tf32", 1),
        ("gru", "resident", True, "tf32", 1), ("nn.gru", "library", True, "ieee", 1),
        ("gru_after", "fused", True, "ieee", 1), ("nn.gru", "library", False, "tf32", 1),
        ("gru", "loop", False, "ieee", 1), ("gru", "fused", True, "ieee", 1), ("gru", "loop", True, "ieee", 1),
        ("nn.gru", "library", False, "ieee", 1), ("gru_after", "resident", False, "tf32", 1),
        ("rnn", "resident", True, "tf32", 1), ("nn.rnn", "library", True, "tf32", 1),
        ("gru_after", "fused", True, "tf32", 1), ("gru:R=1", "resident", True, "tf32", 1),
        ("gru_after", "fused", False, "ieee", 1),
    ]  # fmt: skip
    yield from timed(rows)


def seeds() -> Items:
    from harness.run.executors.local import SHARING, cores

    rows = [
        ("gru_after", "resident", True, "tf32", 30), ("gru", "resident", True, "tf32", 30),
        ("gru", "fused", True, "ieee", 30), ("gru", "loop", True, "ieee", 30),
        ("gru_after", "resident", True, "tf32", 8), ("nn.gru", "library", True, "tf32", 8),
        ("nn.gru", "library", True, "tf32", 30),
    ]  # fmt: skip
    yield from timed(rows)
    child = (sys.executable, "-m", "tests.gpu", "--one")
    for count in (1, min(SHARING, cores())):
        yield f"nn.gru, {count} processes", functools.partial(beside, count, child)


def beside(count: int, command: Sequence[str]) -> Fact:
    """So many processes that train at the same time: none begins before all are warm."""
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(
                subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
            for _ in range(count)
        ]
        try:
            if [child.stdout.readline().strip() for child in children if child.stdout] != ["ready"] * count:
                raise RuntimeError("a process ended before it was warm: gpu.log has why")
            for child in children:
                assert child.stdin is not None
                child.stdin.write("go\n")
                child.stdin.flush()
            rates = [float(child.communicate()[0]) for child in children]
        finally:
            for child in children:
                child.kill()
    return {"tokens_per_sec": rates, "all": sum(rates)}


def one(seconds: float = 3.0) -> int:
    """Train nn.gru, captured, for a while once told to. Print characters a second."""
    import torch

    from harness.experiments import protocols
    from harness.run import timing, train
    from harness.run.machine import configure_process
    from variants.model import build

    configure_process(1, "tf32")
    protocol, windows = protocols.protocol("classic"), timing.WINDOWS
    model = build("nn.gru", 28, protocol.hidden, [0], protocol.init, device="cuda", engine="library")
    streams = torch.randint(28, (windows * protocol.num_steps + 1, 1, protocol.batch_size), device="cuda")
    graphs = train.graphs_of(model, streams, windows, protocol)
    epoch = functools.partial(train.epoch_of, model, streams, windows=windows, protocol=protocol, graphs=graphs)
    epoch()
    torch.cuda.synchronize()
    print("ready", flush=True)
    sys.stdin.readline()
    begun, count = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        epoch()
        torch.cuda.synchronize()
        count += windows
    print(count * protocol.num_steps * protocol.batch_size / (time.monotonic() - begun))
    return 0


def book() -> Items:
    """An epoch of `book`, as a training captures it and as one graph: what is one of all its windows worth?"""
    import torch

    from harness.data.batches import windows_per_epoch
    from harness.experiments import protocols
    from harness.run import train
    from variants.model import Model

    protocol = protocols.protocol("book")
    windows = windows_per_epoch(protocol.train_characters, protocol)

    def epochs(some: int) -> Fact:
        torch.cuda.init()
        train.GRAPH_WINDOWS = some
        model = Model("lstm", 28, protocol.hidden, [0], device="cuda", engine="loop")
        streams = torch.randint(28, (windows * protocol.num_steps + 1, 1, protocol.batch_size), device="cuda")
        before, begun = torch.cuda.mem_get_info()[0], time.monotonic()
        graphs = train.graphs_of(model, streams, windows, protocol)
        made_s = time.monotonic() - begun
        epoch = functools.partial(train.epoch_of, model, streams, windows=windows, protocol=protocol, graphs=graphs)
        those = dict.fromkeys(work for _, work in graphs.values())
        return {"windows": windows, "capture_s": made_s, "nodes": [getattr(graph, "nodes", None) for graph in those],
                "mib": (before - torch.cuda.mem_get_info()[0]) / 2**20, "epoch_ms": milliseconds(epoch)}  # fmt: skip

    for some in (train.GRAPH_WINDOWS, windows):
        yield f"book, graphs of {some} windows", functools.partial(epochs, some)


OWN: dict[str, Callable[[], Items]] = {
    "agree": agree, "gaps": gaps, "tiles": tiles, "speed": speed, "seeds": seeds, "book": book,
}  # fmt: skip


def measure(stage: str, done: set[str], last: set[str]) -> int:
    """All of a stage that is not done, what failed before last: a line of JSON before each and after. Exit status."""

    def left_out(key: str) -> bool:  # of a variant whose kernel disagrees, all of that kernel
        kernel = stage == "tiles" or key.split()[1:2] == ["resident"]
        return key in done or (kernel and f"{variant_of(key)} resident" in done)

    failed = 0
    todo = [item for item in OWN[stage]() if not left_out(item[0])]
    for key, work in sorted(todo, key=lambda item: item[0] in last):
        print(json.dumps({"trying": key}), flush=True)
        fact: Fact = {"key": key, "variant": variant_of(key)}
        fit = True
        try:
            fact |= work()
        except Exception as error:
            fact["error"] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            fit = answers()
        print(json.dumps(fact), flush=True)
        failed += "error" in fact
        if not fit:
            return UNFIT
    return 1 if failed else 0


def variant_of(key: str) -> str:
    return key.split(", ")[0].split()[0]


def answers() -> bool:
    """Whether the GPU still works for this process, whose memory is given back: a fault there stays for good."""
    import torch

    gc.collect()
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    except Exception:
        return False
    return True


# ---- one call --------------------------------------------------------------------------------------------------------


class Call:
    """All stages that are missing in `out`, until `minutes` are over."""

    def __init__(self, out: Path, work: Path, minutes: float) -> None:
        self.out, self.work, self.end = out, work, time.monotonic() + 60 * minutes
        self.facts_file, self.log_file = out / "gpu.jsonl", out / "gpu.log"
        self.said: list[Fact] = []  # by this call, also where the disk takes no more

    def unpack(self, before: Path) -> None:
        """Go on from what a call has left there: all of it is in `out` from here on."""
        parts = sorted(before.glob("results.tar.gz*"))
        parts = [part for part in parts if part.suffix != ".new"]
        try:
            if parts:
                with tarfile.open(fileobj=io.BytesIO(b"".join(p.read_bytes() for p in parts))) as packed:
                    packed.extractall(self.work, filter="data")
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            print(f"note: {before}: the packed results are damaged, and begun anew: {error}", flush=True)
        if before.resolve() != self.out.resolve():
            for path in (before / "gpu.jsonl", before / "gpu.log", before / "tiles.json", *parts):
                if path.exists():
                    (self.out / path.name).write_bytes(path.read_bytes())
        if self.facts_file.exists() and not self.facts_file.read_bytes().endswith(b"\n"):
            with self.facts_file.open("a") as facts:
                facts.write("\n")  # what was cut off there is none, and takes nothing with it

    def facts(self) -> list[Fact]:
        """All that is on file; a last line that was cut off is none."""
        found = []
        for line in self.facts_file.read_text().splitlines() if self.facts_file.exists() else ():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found + self.said

    def bad(self) -> set[str]:
        """Variants of which nothing is timed with `resident`: it disagrees, fails or hangs at the size that is."""
        found = [f for f in latest(self.facts()) if f["stage"] == "agree" and "error" in f]
        return {f["variant"] for f in found if re.search(", 256 x .*, tf32$", f["key"])}

    def done(self, stage: str) -> bool:
        """Whether there is nothing left of it: nothing failed, or was left out for a reason that has gone."""
        bad = self.bad()
        ended = [f for f in self.facts() if f["stage"] == stage and f.get("status") == 0]
        return any(set(f.get("left_out", ())) <= bad for f in ended)

    def run(self, stage: Stage, limit_s: float) -> int | None:
        """Its exit status, None where its time was over; each fact on file as it comes.

        What hangs, or takes the process with it, fails alone: another process goes on with the rest of the stage.
        """
        begun, bad, failed = time.monotonic(), self.bad(), 0
        earlier = [f for f in latest(self.facts()) if f["stage"] == stage.name]
        seen = {f["key"] for f in earlier if "error" not in f} | {f"{variant} resident" for variant in bad}
        last = {f["key"] for f in earlier if "error" in f}
        while True:
            words = stage.words or (MODULE, "--stage", stage.name, "--done", json.dumps(sorted(seen)),
                                    "--last", json.dumps(sorted(last)))  # fmt: skip
            words += ("--engine", "fused") if bad and words[0] == "harness" else ()
            with self.log_file.open("a") as log:
                child = subprocess.Popen(
                    [sys.executable, "-m", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=log,
                    start_new_session=True,
                    env={**os.environ, "PYTHONUNBUFFERED": "1", "TRITON_CACHE_DIR": str(self.work.parent / "triton"),
                         "RESIDENT_TILES": str((self.out / "tiles.json").resolve())},
                )  # fmt: skip
                status, tried, trying = self._listen(child, stage, begun + limit_s, log)
            if trying:
                why = f"its process ended with status {status}"
                why = f"no answer within {SILENT_S:g} s" if status == HUNG else why
                why = "it had not ended when the time was over" if status is None else why
                self._note({"stage": stage.name, "key": trying, "variant": variant_of(trying), "error": why})
                tried.add(trying)
            failed += status not in (0, None)
            again = status is not None and (trying or status == UNFIT) and tried and not stage.words
            if not again or time.monotonic() > begun + limit_s:
                break
            seen |= tried
        status = status or min(failed, 1) if status is not None else None
        ended: Fact = {"stage": stage.name, "status": status, "seconds": round(time.monotonic() - begun, 1)}
        self._note(ended | ({"left_out": sorted(bad)} if bad else {}))
        return status

    def _listen(
        self, child: subprocess.Popen[bytes], stage: Stage, end: float, log: TextIO
    ) -> tuple[int | None, set[str], str]:
        """Lines of JSON are facts, others are for the log, until it ends or is ended: asked first, then made to.

        Return its exit status, HUNG where one thing took too long, None where all did; what it has tried; and what it
        was trying then.
        """
        assert child.stdout is not None
        asked, line, tried, trying, hung = False, b"", set[str](), "", False
        heard = packed = time.monotonic()
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(child.stdout, selectors.EVENT_READ)
                while True:
                    until = min(end, packed + PACK_S, heard + SILENT_S if trying else end)
                    if selector.select(max(0.0, until - time.monotonic())):
                        if not (some := os.read(child.stdout.fileno(), 65_536)):
                            break
                        heard = time.monotonic()
                        *lines, line = (line + some).split(b"\n")
                        for text in lines:
                            fact = self._read(text, stage, log)
                            tried |= {trying} if fact.get("key") == trying and trying else set()
                            trying = fact.get("trying", "" if fact.get("key") == trying else trying)
                    elif time.monotonic() >= end and not asked:
                        asked, end = True, end + END_S / 4
                        _signal(child, signal.SIGINT)  # what is finished is kept
                    elif time.monotonic() >= end:
                        break
                    elif trying and time.monotonic() >= heard + SILENT_S:
                        hung = True
                        break
                    else:
                        packed = time.monotonic()
                        if stage.words:
                            self.pack()
            if not (hung or asked):
                child.wait(END_S / 2)  # it has said its last
        except subprocess.TimeoutExpired:
            hung = True
        finally:  # also where this process is stopped
            _signal(child, signal.SIGKILL)
            child.stdout.close()
            with contextlib.suppress(subprocess.TimeoutExpired):  # the driver may hold it
                child.wait(END_S / 4)
        status = child.returncode
        return None if asked else HUNG if hung or status is None else status, tried, trying

    def _read(self, text: bytes, stage: Stage, log: TextIO) -> Fact:
        """A line that a stage prints: the fact that it is, on file; {} where it is none."""
        try:
            fact = json.loads(text)
            if "trying" not in fact:
                self._note({"stage": stage.name, **fact})
        except (TypeError, ValueError):
            with contextlib.suppress(OSError):
                log.write(text.decode(errors="replace") + "\n")
                log.flush()
            return {}
        return dict(fact)

    def _note(self, fact: Fact) -> None:
        """On file, and in a few words on the screen: whole where the file takes no more."""
        try:
            with self.facts_file.open("a") as facts:
                facts.write(json.dumps(fact) + "\n")
        except OSError as error:
            self.said.append(fact)
            print(f"note: {self.facts_file}: {error.strerror}: {json.dumps(fact)}", flush=True)
            return
        if "key" in fact:
            print(f"  {fact['key']}: {brief(fact)}", flush=True)

    def pack(self) -> None:
        """The harness's results, all of them or what was packed before."""
        try:
            self._pack()
        except OSError as error:  # the next will do, or the call before
            print(f"note: {self.out}: the results could not be packed: {error}", flush=True)

    def _pack(self) -> None:
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w:gz") as packed:
            for path in sorted(p for p in self.work.rglob("*") if p.is_file() and "checkpoint" not in str(p)):
                with contextlib.suppress(FileNotFoundError):  # somebody is writing there
                    raw = path.read_bytes()
                    entry = tarfile.TarInfo(path.relative_to(self.work).as_posix())
                    entry.size = len(raw)
                    packed.addfile(entry, io.BytesIO(raw))
        whole = made.getvalue()
        parts = [whole[begin : begin + PART] for begin in range(0, len(whole), PART)]
        names = [f"results.tar.gz.{k:02}" if len(parts) > 1 else "results.tar.gz" for k in range(len(parts))]
        for name, part in zip(names, parts, strict=True):
            (self.out / f"{name}.new").write_bytes(part)
        for name in names:
            (self.out / f"{name}.new").replace(self.out / name)
        for old in self.out.glob("results.tar.gz*"):
            if old.name not in names:
                old.unlink()

    def tiles(self) -> None:
        """Write the fastest tiles to DIR/tiles.json, and to where `resident` looks for them from now on; print them."""
        from variants.engines import resident

        if not (found := fastest(self.facts())):
            return
        for path in (self.out / "tiles.json", resident.tiles_file()):
            try:
                if path:
                    keep_tiles(found, path)
            except OSError as error:
                print(f"note: {path}: {error.strerror}", flush=True)
        for name, rows in found.items():
            print(f"fastest tiles of {name}, in tiles.json:")
            for row in rows:
                print("  reset {reset}, {products} products, {hidden} x {seeds}: {units} units, {warps} warps "
                      "({ms:.3f} ms) of {of}".format(**row), flush=True)  # fmt: skip

    def all(self, planned: Sequence[Stage]) -> int:
        """Each stage that is missing and whose time is not over; how many failed."""
        failed = 0
        for stage in planned:
            left = self.end - END_S - time.monotonic()
            if self.done(stage.name) or left <= 0:
                continue
            try:
                status = self.run(stage, min(left, 2 * stage.cost_s))
            except OSError as error:
                print(f"note: {stage.name}: {error}", flush=True)
                status = 1
            except BaseException:  # Ctrl-C, SIGTERM
                self.pack()
                raise
            failed += status not in (0, None)
            said = "its time was over" if status is None else f"status {status}"
            print(f"{stage.name}: {said}; {self.end - time.monotonic():.0f} s left", flush=True)
            if stage.name == "tiles":
                self.tiles()
            self.pack()
        return failed

    def another(self, card: str) -> str:
        """The name of another card whose figures are on file here; '' where there is none. From now on it is this."""
        known = [f["name"] for f in self.facts() if f.get("key") == "card"]
        if not known and card:
            self._note({"stage": "call", "key": "card", "name": card})
        return next((name for name in known if card and name != card), "")


def reference(out: Path, into: Path) -> int:
    """Make a folder, named after the card, of all that was packed in `out`; then the documents, where it is theirs."""
    with tempfile.TemporaryDirectory() as folder:
        call = Call(out, Path(folder) / "results", 1)
        call.work.mkdir()
        card = next((f["name"] for f in call.facts() if f.get("key") == "card"), "")
        if not card:
            print(f"error: {out}: no gpu.jsonl of a call on a GPU: give the folder that --out named", file=sys.stderr)
            return 2
        call.unpack(out)
        target = into / "-".join(re.findall(r"[a-z0-9]+", card.lower().removeprefix("nvidia")))
        target.mkdir(parents=True, exist_ok=True)
        every = [str(path) for path in sorted(call.work.iterdir()) if (path / "grids").is_dir()]
        steps = [["harness", "merge", *every], ["harness", "pack"]] if every else []
        commands = [[*words, "--results", str(target)] for words in steps]
        commands += [["docs.splice"]] if into.resolve() == REFERENCE.resolve() else []
        for name in ("gpu.jsonl", "tiles.json"):
            if (out / name).exists():
                (target / name).write_bytes((out / name).read_bytes())
        for words in commands:
            if status := subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=False).returncode:
                return status
    shutil.rmtree(target / "figures", ignore_errors=True)  # the report has them
    print(f"reference: {target}, of {len(every)} results folders")
    return 0


def until_told() -> None:
    """Have SIGTERM end this process as Ctrl-C does: no stage outlives it, what there is is packed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def card_here() -> str:
    """The GPU's name, of the driver: this process asks nothing of it. '' where that is not to be had."""
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip().partition("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return ""


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def brief(fact: Fact) -> str:
    """What a fact says, in a few words: its error, or its numbers."""
    if "error" in fact:
        return f"FAILED: {fact['error']}"[:160]
    if blocks := fact.get("blocks"):
        return f"{statistics.median(block['tokens_per_sec'] for block in blocks):,.0f} tokens/sec"
    numbers = [f"{name} {value:.4g}" for name, value in fact.items() if isinstance(value, float)]
    return ", ".join(numbers)[:120]


def show(planned: Sequence[Stage], minutes: float, done: Callable[[str], bool]) -> int:
    """The plan, by stated costs."""
    spent, room = 0.0, 60 * minutes - END_S
    print("| stage | measures | s | by s | this call |\n| --- | --- | --- | --- | --- |")
    for stage in planned:
        begun = spent
        spent += 0 if done(stage.name) else stage.cost_s
        when = "done" if done(stage.name) else "whole" if spent <= room else "in part" if begun < room else "later"
        print(f"| {stage.name} | {stage.about} | {stage.cost_s:.0f} | {spent:.0f} | {when} |")
    print(f"{room:.0f} s of {60 * minutes:.0f} s are for stages, the rest to stop and to pack")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="after so many everything has ended and is packed")
    parser.add_argument("--out", type=Path, help="where the packed files go")
    parser.add_argument("--from", type=Path, dest="before", help="where those of the call before lie, if not in --out")
    parser.add_argument("--text", help="a UTF-8 file to train on; the embedded text if not given")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="make results/reference/<card> of calls in DIR")
    parser.add_argument("--into", type=Path, default=REFERENCE, help=argparse.SUPPRESS)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and measure nothing")
    parser.add_argument("--stage", choices=OWN, help=argparse.SUPPRESS)
    for name in ("--done", "--last"):
        parser.add_argument(name, default="[]", help=argparse.SUPPRESS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.stage:
        return measure(options.stage, set(json.loads(options.done)), set(json.loads(options.last)))
    if options.one:
        return one()
    if options.reference:
        return reference(options.reference, options.into)
    if wrong := refused(options):
        print(f"error: {wrong}", file=sys.stderr)
        return 2
    until_told()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "results"
        work.mkdir()
        planned = stages(work, str(Path(options.text).resolve()) if options.text else "embedded")
        call = Call(options.out or Path(folder), work, options.minutes)
        if options.dry_run:
            call.facts_file = (options.before or call.out) / "gpu.jsonl"
            return show(planned, options.minutes, call.done)
        call.unpack(options.before or call.out)
        if name := call.another(card := card_here()):
            print(f"error: {call.out} holds figures of {name}, and this is {card}: give another --out", file=sys.stderr)
            return 2
        show(planned, options.minutes, call.done)
        return min(1, call.all(planned))


def refused(options: argparse.Namespace) -> str:
    """Why a call cannot be made, '' where it can."""
    if not 0 < options.minutes < 24 * 60:
        return f"--minutes is a number of minutes, like 9, not {options.minutes:g}"
    if options.text and not Path(options.text).is_file():
        return f"--text: no file {options.text}"
    if options.before and not options.before.is_dir():
        return f"--from: no folder {options.before}"
    if options.dry_run:
        return ""
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU: --dry-run prints the plan"
    if options.out is None:
        return "--out names the folder that packed files go to"
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "gpu.jsonl").open("a").close()
    except OSError as error:
        return f"--out: {options.out}: {error.strerror}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
