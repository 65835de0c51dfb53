"""Everything that needs a GPU, in calls of minutes: python3 -m tests.gpu --minutes 9 --out DIR [--text FILE]

Stages, the most worth first, each a process with a limit: one that fails is said, and the others go on. What comes is
written as it comes: facts into DIR/gpu.jsonl, all that is printed into DIR/gpu.log, the kernel's fastest tiles into
DIR/tiles.json, which later stages read, the results of the harness packed into DIR/results.tar.gz, in parts under
16 MiB. Another call goes on from there, or from a copy (--from COPY), and makes only what is missing. --dry-run prints
the plan: what is measured, in which order, how long it takes by stated costs.

Agreement comes first. Of variants whose resident kernel disagrees nothing of that kernel is timed; all else is.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import itertools
import json
import os
import selectors
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).parent.parent
PART = 15 * 2**20  # bytes of a packed file
END_S = 20.0  # before the call's end: to stop what runs, and to pack
FAMILY = ("gru_after", "gru", "rnn", "gru:R=1")
OTHERS = ("gru:Z=0.3", "gru_after:Z=0.3", "gru:R=0", "gru:Z=0,R=0")
TILES = ((32, 8), (32, 4), (32, 2), (16, 4), (16, 2))  # hidden units of a block, and its warps
Fact = dict[str, Any]


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
        Stage("tiles", "resident forward and backward by (units, warps), both resets, rnn; 1, 10 and 30 seeds", 70),
        Stage("speed", "nn.gru, nn.rnn, fused, loop, resident; eager and captured; ieee and tf32: a sample each", 150),
        Stage("seeds", "30 seeds side by side; nn.gru: 8 and 30 branches of a graph, 1 and 8 processes", 85),
        Stage("book", "an epoch of `book` captured (lstm, loop): seconds, memory", 35),
        Stage("ablate", "classic, 10 seeds, tf32: trained", 70, harness("ablate", "tf32", "--no-timing")),
        Stage("bench", "classic, 10 seeds, ieee: trained", 180, harness("bench", "ieee", "--no-timing")),
        Stage("tests", "the tests that skip where there is no GPU", 120, ("pytest", *files, "-k", "gpu or graph")),
        Stage("times-ablate", "classic, tf32: timed, 5 rounds", 420, harness("ablate", "tf32")),
        Stage("times-bench", "classic, ieee: timed, 5 rounds", 840, harness("bench", "ieee")),
        Stage("sweep", "tf32 by hidden size and number of seeds, 5 rounds", 2100, harness("sweep", "tf32")),
    ]


# ---- what a stage measures: facts, each with the key by which it is known to be done ---------------------------------


def agree(done: set[str]) -> Iterator[Fact]:
    import torch

    sys.path[:0] = [str(ROOT / "tests" / "variants" / "engines"), str(ROOT / "tests" / "support")]
    from test_engines import results

    from harness.run.agreement import ROUNDED
    from harness.run.machine import environment
    from variants.engines import loop, resident

    yield {"key": "machine", **environment("cuda")}
    sizes = [(h, S, "tf32", v) for h in (256, 32, 64, 128) for S in (1, 30) for v in FAMILY]
    sizes += [(256, S, "tf32", v) for S in (1, 30) for v in OTHERS] + [(256, 1, "bf16", v) for v in FAMILY[:2]]
    for h, S, precision, variant in sizes:
        key = f"{variant}, {h} x {S}, {precision}"
        if key in done:
            continue
        torch.set_float32_matmul_precision("highest")
        exact = results(variant, loop, S, torch.float64, 32, h, "cuda")
        torch.set_float32_matmul_precision({"tf32": "high", "bf16": "medium"}[precision])
        apart = {}
        try:
            begun = time.monotonic()
            found = results(variant, resident, S, torch.float32, 32, h, "cuda")
            apart = {k: float((found[k] - exact[k]).norm() / (exact[k].norm() + 1e-12)) for k in exact}
        except Exception as error:
            yield {"key": key, "variant": variant, "error": " ".join(str(error).split())[:300]}
            if "CUDA error" in str(error):
                return  # nothing more can be had of this process
            continue
        worst = max(apart, key=lambda k: apart[k])
        fine = apart[worst] <= ROUNDED[precision]
        yield {"key": key, "variant": variant, "apart": apart[worst], "where": worst, "bound": ROUNDED[precision],
               "seconds": time.monotonic() - begun, **({} if fine else {"error": "disagrees"})}  # fmt: skip


def gaps(done: set[str]) -> Iterator[Fact]:
    import torch

    from harness.run.roofline import node_gap_us

    if "node" not in done:
        yield {"key": "node", "us": node_gap_us()}
    times = 1_000
    for blocks in (8, 16):

        def meet(blocks: int = blocks) -> None:
            counters = torch.zeros(1, dtype=torch.int32, device="cuda")
            meetings()[(blocks, 1)](counters, times, C=blocks, num_warps=2, num_stages=1, launch_cooperative_grid=True)

        if f"meeting of {blocks}" not in done:
            yield {"key": f"meeting of {blocks}", "us": 1000 * milliseconds(meet) / times}


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


def tiles(done: set[str]) -> Iterator[Fact]:
    import torch

    import variants
    from harness.run.agreement import ROUNDED
    from variants.engines import resident

    torch.set_float32_matmul_precision("high")
    first: dict[tuple[int, str], list[torch.Tensor]] = {}
    for S, variant, (units, warps) in itertools.product((1, 10, 30), FAMILY[:3], TILES):
        key = f"{variant} x {S}, {units} units, {warps} warps"
        if key in done:
            continue
        asked: list[tuple[Any, ...]] = []
        resident.tile = lambda *sizes, asked=asked, chosen=(units, warps): (asked.append(sizes), chosen)[1]
        cell, rng = variants.get(variant)(28, 256, S), torch.Generator().manual_seed(0)
        for weight in cell.parameters():
            torch.nn.init.normal_(weight, std=0.05, generator=rng)
        cell, X = cell.cuda(), torch.randint(28, (35, S, 32), generator=rng).cuda()

        def step(cell: Any = cell, X: Any = X, S: int = S) -> Any:
            H, _ = resident.unroll(cell, X, (torch.zeros(S, 32, 256, device="cuda"),))
            return H

        H = step()
        forward = milliseconds(step)
        backward = milliseconds(lambda: H.backward(torch.ones_like(H), retain_graph=True))  # noqa: B023
        made = [H.detach(), *(weight.grad for weight in cell.parameters() if weight.grad is not None)]
        pairs = zip(made, first.setdefault((S, variant), made), strict=True)  # each tile is another compiled kernel
        apart = max(float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in pairs)
        _, hidden, products, _, reset, card = asked[0]
        yield {"key": key, "variant": variant, "card": card, "hidden": hidden, "products": products, "reset": reset,
               "seeds": S, "units": units, "warps": warps, "forward_ms": forward, "backward_ms": backward,
               "apart": apart, **({} if apart <= ROUNDED["tf32"] else {"error": "disagrees"})}  # fmt: skip


def fastest(facts: Sequence[Fact]) -> dict[str, list[Fact]]:
    """Return card -> the fastest tile of each kind of kernel and number of seeds, for `resident.measured_tiles`."""
    of: dict[tuple[Any, ...], list[Fact]] = {}
    for fact in facts:
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


def timed(contenders: Sequence[tuple[str, str, bool, str, int]], done: set[str]) -> Iterator[Fact]:
    """A sample each, in a fresh process: (variant, engine, captured, precision, seeds)."""
    from harness.experiments import protocols
    from harness.experiments.runs import Run
    from harness.run import timing
    from harness.run.executors.local import cores

    for variant, engine, capture, precision, seeds in contenders:
        key = f"{variant} {engine}{' captured' * capture} {precision} x {seeds}"
        if key not in done and f"{variant} {engine}" not in done:
            run = Run(variant, 0, protocols.protocol("classic"), "", "cuda", engine, capture, precision)
            yield {"key": key, "variant": variant, "engine": engine, **timing.sample(run, 28, cores(), seeds, 60.0)}


def speed(done: set[str]) -> Iterator[Fact]:
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
    yield from timed(rows, done)


def seeds(done: set[str]) -> Iterator[Fact]:
    from harness.experiments import protocols
    from harness.experiments.runs import Run
    from harness.run.executors.local import SHARING, cores

    rows = [
        ("gru_after", "resident", True, "tf32", 30), ("gru", "resident", True, "tf32", 30),
        ("gru", "fused", True, "ieee", 30), ("gru", "loop", True, "ieee", 30),
        ("gru_after", "resident", True, "tf32", 8), ("nn.gru", "library", True, "tf32", 8),
        ("nn.gru", "library", True, "tf32", 30),
    ]  # fmt: skip
    yield from timed(rows, done)
    if "nn.gru, processes" not in done:
        run = Run("nn.gru", 0, protocols.protocol("classic"), "", "cuda", "library", True, "tf32")
        request = json.dumps({"run": dataclasses.asdict(run), "vocabulary": 28, "threads": 1, "seeds": 1})
        found = {}
        for count in (1, min(SHARING, cores())):
            children = [
                subprocess.Popen([sys.executable, "-m", "harness.run.timing"], cwd=ROOT, text=True,
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                for _ in range(count)
            ]  # fmt: skip
            answers = [json.loads(child.communicate(request, timeout=90)[0].splitlines()[-1]) for child in children]
            found[str(count)] = [block["tokens_per_sec"] for a in answers for block in a.get("blocks", [])[:1]]
        yield {"key": "nn.gru, processes", "tokens_per_sec": found}


def book(done: set[str]) -> Iterator[Fact]:
    """An epoch of `book`, as a training captures it and as one graph: what is one of all its windows worth?"""
    import torch

    from harness.data.batches import windows_per_epoch
    from harness.experiments import protocols
    from harness.run import train
    from variants.model import Model

    protocol = protocols.protocol("book")
    windows = windows_per_epoch(protocol.train_characters, protocol)
    torch.cuda.init()
    for some in (train.GRAPH_WINDOWS, windows):
        key = f"book, graphs of {some} windows"
        if key in done:
            continue
        train.GRAPH_WINDOWS = some
        model = Model("lstm", 28, protocol.hidden, [0], device="cuda", engine="loop")
        streams = torch.randint(28, (windows * protocol.num_steps + 1, 1, protocol.batch_size), device="cuda")
        before, begun = torch.cuda.mem_get_info()[0], time.monotonic()
        graphs = train.graphs_of(model, streams, windows, protocol)
        made_s = time.monotonic() - begun
        epoch = functools.partial(train.epoch_of, model, streams, windows=windows, protocol=protocol, graphs=graphs)
        yield {"key": key, "windows": windows, "capture_s": made_s,
               "nodes": [getattr(graph, "nodes", None) for graph in dict.fromkeys(work for _, work in graphs.values())],
               "mib": (before - torch.cuda.mem_get_info()[0]) / 2**20, "epoch_ms": milliseconds(epoch, 3)}  # fmt: skip


OWN: dict[str, Callable[[set[str]], Iterator[Fact]]] = {
    "agree": agree, "gaps": gaps, "tiles": tiles, "speed": speed, "seeds": seeds, "book": book,
}  # fmt: skip


# ---- one call --------------------------------------------------------------------------------------------------------


class Call:
    """All stages that are missing in `out`, until `minutes` are over."""

    def __init__(self, out: Path, work: Path, minutes: float) -> None:
        self.out, self.work, self.end = out, work, time.monotonic() + 60 * minutes
        self.facts_file, self.log_file = out / "gpu.jsonl", out / "gpu.log"

    def unpack(self, before: Path) -> None:
        """Go on from what a call has left there: all of it is in `out` from here on."""
        parts = sorted(before.glob("results.tar.gz*"))
        if parts:
            with tarfile.open(fileobj=io.BytesIO(b"".join(p.read_bytes() for p in parts))) as packed:
                packed.extractall(self.work, filter="data")
        if before != self.out:
            for path in (before / "gpu.jsonl", before / "gpu.log", before / "tiles.json", *parts):
                if path.exists():
                    (self.out / path.name).write_bytes(path.read_bytes())

    def facts(self) -> list[Fact]:
        """All that is on file; a last line that was cut off is none."""
        found = []
        for line in self.facts_file.read_text().splitlines() if self.facts_file.exists() else ():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def done(self, stage: str) -> bool:
        return any(f["stage"] == stage and f.get("status") == 0 for f in self.facts())

    def run(self, stage: Stage, limit_s: float) -> int | None:
        """Its exit status, None where its time was over; each fact on file as it comes."""
        seen = {f["key"] for f in self.facts() if f["stage"] == stage.name and "key" in f and "error" not in f}
        bad = {f["variant"] for f in self.facts() if f["stage"] == "agree" and "error" in f}
        seen |= {f"{variant} resident" for variant in bad}
        words = stage.words or ("tests.gpu", "--stage", stage.name, "--done", json.dumps(sorted(seen)))
        words += ("--engine", "fused") if bad and words[0] == "harness" else ()
        begun = time.monotonic()
        with self.log_file.open("a") as log, self.facts_file.open("a") as facts:
            child = subprocess.Popen(
                [sys.executable, "-m", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "TRITON_CACHE_DIR": str(self.work.parent / "triton"),
                     "RESIDENT_TILES": str((self.out / "tiles.json").resolve())},
            )  # fmt: skip
            status = self._listen(child, stage, begun + limit_s, log, facts)
            took = time.monotonic() - begun
            self._note(facts, {"stage": stage.name, "status": status, "seconds": round(took, 1)})
        return status

    def _listen(
        self, child: subprocess.Popen[bytes], stage: Stage, end: float, log: TextIO, facts: TextIO
    ) -> int | None:
        """Lines of JSON are facts, others are for the log, until it ends or is ended: asked first, then made to."""
        assert child.stdout is not None
        asked, line = False, b""
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while True:
                if selector.select(max(0.0, end - time.monotonic())):
                    if not (some := os.read(child.stdout.fileno(), 65_536)):
                        break
                    *lines, line = (line + some).split(b"\n")
                    for text in lines:
                        try:
                            fact = json.loads(text)
                            self._note(facts, {"stage": stage.name, **fact})
                        except (TypeError, ValueError):
                            log.write(text.decode(errors="replace") + "\n")
                elif not asked:
                    asked, end = True, end + END_S / 4
                    os.killpg(child.pid, signal.SIGINT)  # what is finished is kept
                else:
                    os.killpg(child.pid, signal.SIGKILL)
                    break
        child.stdout.close()
        status = child.wait()
        return None if asked else status

    def _note(self, facts: TextIO, fact: Fact) -> None:
        facts.write(json.dumps(fact) + "\n")
        facts.flush()

    def pack(self) -> None:
        """The harness's results, all of them or what was packed before."""
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w:gz") as packed:
            packed.add(self.work, ".", filter=lambda info: None if "checkpoint" in info.name else info)
        whole = made.getvalue()
        parts = [whole[begin : begin + PART] for begin in range(0, len(whole), PART)]
        for k, part in enumerate(parts):
            name = "results.tar.gz" + f".{k}" * (len(parts) > 1)
            fresh = self.out / f"{name}.new"
            fresh.write_bytes(part)
            fresh.replace(self.out / name)
        if len(parts) > 1:
            (self.out / "results.tar.gz").unlink(missing_ok=True)

    def tiles(self) -> None:
        """Write the fastest tiles to DIR/tiles.json, and to where `resident` looks for them from now on; print them."""
        from variants.engines import resident

        if not (found := fastest(self.facts())):
            return
        keep_tiles(found, self.out / "tiles.json")
        if everywhere := resident.tiles_file():
            keep_tiles(found, everywhere)
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
            status = self.run(stage, min(left, 2 * stage.cost_s))
            failed += status not in (0, None)
            said = "its time was over" if status is None else f"status {status}"
            print(f"{stage.name}: {said}; {self.end - time.monotonic():.0f} s left", flush=True)
            if stage.name == "tiles":
                self.tiles()
            self.pack()
        return failed


def show(planned: Sequence[Stage], minutes: float, done: Callable[[str], bool]) -> None:
    """The plan, by stated costs."""
    spent, room = 0.0, 60 * minutes - END_S
    print("| stage | measures | s | by s | this call |\n| --- | --- | --- | --- | --- |")
    for stage in planned:
        begun = spent
        spent += 0 if done(stage.name) else stage.cost_s
        when = "done" if done(stage.name) else "whole" if spent <= room else "in part" if begun < room else "later"
        print(f"| {stage.name} | {stage.about} | {stage.cost_s:.0f} | {spent:.0f} | {when} |")
    print(f"{room:.0f} s of {60 * minutes:.0f} s are for stages, the rest to stop and to pack")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="after so many everything has ended and is packed")
    parser.add_argument("--out", type=Path, help="where the packed files go")
    parser.add_argument("--from", type=Path, dest="before", help="where those of the call before lie, if not in --out")
    parser.add_argument("--text", help="a UTF-8 file to train on; the embedded text if not given")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and measure nothing")
    parser.add_argument("--stage", choices=OWN, help=argparse.SUPPRESS)
    parser.add_argument("--done", type=json.loads, default=[], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.stage:
        failed = 0
        for fact in OWN[options.stage](set(options.done)):
            print(json.dumps(fact), flush=True)
            failed += "error" in fact
        return 1 if failed else 0
    if not options.dry_run:
        import torch

        if not torch.cuda.is_available():
            print(f"error: torch {torch.__version__} sees no GPU: --dry-run prints the plan", file=sys.stderr)
            return 2
        if options.out is None:
            print("error: --out names the folder that packed files go to", file=sys.stderr)
            return 2
    if options.text and not Path(options.text).is_file():
        print(f"error: --text: no file {options.text}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "results"
        work.mkdir()
        planned = stages(work, str(Path(options.text).resolve()) if options.text else "embedded")
        out = options.out or Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        call = Call(out, work, options.minutes)
        call.unpack(options.before or out)
        show(planned, options.minutes, call.done)
        return 0 if options.dry_run else min(1, call.all(planned))


if __name__ == "__main__":
    sys.exit(main())
