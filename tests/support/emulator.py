"""Run resident.py's own kernels without Triton and without a GPU: thread blocks as threads, over numpy.

Schedule: one block at a time runs; at every memory operation a random one, of a seeded generator, goes on. Memory is as
weak as a GPU's: a store is seen by other blocks from the block's next release on, and a load that is not `.cg` may be
answered by what the block loaded before, until its next acquire. Whatever the schedule was, two accesses of an address
by two blocks, one of them a write, are a race unless a release and an acquire order them: a vector clock a block, as
FastTrack (Flanagan and Freund 2009). Within a block, what was stored is loaded only after a barrier: its threads are
many too. What it cannot see: timing, the layout of threads in a block, and what a compiler does.
"""

from __future__ import annotations

import ast
import inspect
import random
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from variants.engines import resident

LONGEST = 20_000  # memory operations of a launch: beyond it, blocks wait for ever


class Wrong(Exception):
    """A race, a wait without end, an address outside: what the emulated kernel does wrong."""


class Memory:
    """One tensor, flat; who wrote and read each address last, and what each of C blocks sees of it."""

    def __init__(self, tensor: torch.Tensor, C: int) -> None:
        self.data: Any = tensor.detach().numpy().reshape(-1)
        size = self.data.size
        self.writer, self.written = np.full(size, -1), np.zeros(size, int)
        self.read = np.zeros((C, size), int)
        self.buffer, self.dirty = np.zeros((C, size), self.data.dtype), np.zeros((C, size), bool)
        self.cached, self.valid = np.zeros((C, size), self.data.dtype), np.zeros((C, size), bool)
        self.stored = np.zeros((C, size), bool)  # since the block's last barrier


class Pointer:
    def __init__(self, memory: Memory, offset: Any = 0) -> None:
        self.memory, self.offset = memory, offset

    def __add__(self, other: Any) -> Pointer:
        return Pointer(self.memory, self.offset + other)

    def where(self, mask: Any) -> tuple[Any, Any, Any]:
        """Offsets and mask of one shape, and the addresses under the mask."""
        offset, mask = np.broadcast_arrays(self.offset, True if mask is None else mask)
        flat = offset[mask]
        if flat.size and not 0 <= flat.min() <= flat.max() < self.memory.data.size:
            raise Wrong("an address outside of its tensor")
        return offset, mask, flat


class Machine:
    """C blocks that run the same kernel, and the part of triton.language that it uses."""

    float32, constexpr = np.float32, int

    def __init__(self, C: int, seed: int, memories: list[Memory], program: int) -> None:
        self.C, self.rng, self.memories, self.program = C, random.Random(seed), memories, program
        self.turn, self.lock, self.alive = 0, threading.Condition(), set(range(C))
        self.clocks = np.eye(C, dtype=int)
        self.released: dict[tuple[int, int], Any] = {}
        self.steps = 0
        self.failed: BaseException | None = None
        self.here = threading.local()

    def go(self, kernel: Callable[[], None]) -> None:
        def block(k: int) -> None:
            self.here.block = k
            try:
                with self.lock:
                    self.lock.wait_for(lambda: self.turn == k or self.failed)
                kernel()
            except BaseException as error:
                self.failed = self.failed or error
            with self.lock:
                self.flush(k)
                self.alive.discard(k)
                self.turn = self.rng.choice(sorted(self.alive)) if self.alive else -1
                self.lock.notify_all()

        threads = [threading.Thread(target=block, args=(k,)) for k in range(self.C)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.failed:
            raise self.failed

    def step(self) -> int:
        """Before a memory operation: another block may go on. The block that asks."""
        k: int = self.here.block
        with self.lock:
            self.steps += 1
            if self.failed or self.steps > LONGEST:
                raise Wrong("blocks wait for ever")
            self.turn = self.rng.choice(sorted(self.alive))
            if self.turn != k:
                self.lock.notify_all()
                self.lock.wait_for(lambda: self.turn == k or self.failed)
        return k

    def flush(self, k: int) -> None:
        for m in self.memories:
            m.data[m.dirty[k]] = m.buffer[k][m.dirty[k]]
            m.dirty[k] = False

    def ordered(self, k: int, m: Memory, flat: Any) -> None:
        """The last write of these addresses was here, or is ordered before."""
        writer = m.writer[flat]
        if ((writer >= 0) & (writer != k) & (m.written[flat] > self.clocks[k, writer])).any():
            raise Wrong("a race with a write of another block")

    # ---- triton.language --------------------------------------------------------------------------------------

    def program_id(self, axis: int) -> int:
        return self.program if axis else self.here.block

    def load(self, pointer: Pointer, mask: Any = None, other: float = 0.0, cache_modifier: str = "") -> Any:
        k, m = self.step(), pointer.memory
        offset, mask, flat = pointer.where(mask)
        self.ordered(k, m, flat)
        if m.stored[k, flat].any():
            raise Wrong("loaded what other threads of the block have stored, with no barrier between")
        m.read[k, flat] = self.clocks[k, k]
        values = m.data[flat]
        if cache_modifier != ".cg":
            values = np.where(m.valid[k, flat], m.cached[k, flat], values)
            m.cached[k, flat], m.valid[k, flat] = values, True
        values = np.where(m.dirty[k, flat], m.buffer[k, flat], values)
        found = np.full(offset.shape, other, m.data.dtype)
        found[mask] = values
        return found

    def store(self, pointer: Pointer, value: Any, mask: Any = None) -> None:
        k, m = self.step(), pointer.memory
        offset, mask, flat = pointer.where(mask)
        self.ordered(k, m, flat)
        if any((m.read[c, flat] > self.clocks[k, c]).any() for c in range(self.C) if c != k):
            raise Wrong("a race with a read of another block")
        m.writer[flat], m.written[flat] = k, self.clocks[k, k]
        m.buffer[k, flat], m.dirty[k, flat] = np.broadcast_to(value, offset.shape)[mask], True
        m.valid[k, flat], m.stored[k, flat] = False, True

    def debug_barrier(self) -> None:
        for m in self.memories:
            m.stored[self.here.block] = False

    def atomic_add(self, pointer: Pointer, value: int, sem: str, scope: str) -> int:
        k, m, at = self.step(), pointer.memory, int(pointer.offset)
        clock = self.released.setdefault((id(m), at), np.zeros(self.C, int))
        if sem in ("release", "acq_rel"):
            self.flush(k)
            np.maximum(clock, self.clocks[k], out=clock)
            self.clocks[k, k] += 1
        before = int(m.data[at])
        m.data[at] += value
        if sem in ("acquire", "acq_rel"):
            self.clocks[k] = np.maximum(self.clocks[k], clock)
            for memory in self.memories:
                memory.valid[k] = False
        return before

    range = staticmethod(range)
    arange = staticmethod(np.arange)
    zeros = staticmethod(np.zeros)

    @staticmethod
    def sigmoid(x: Any) -> Any:
        return 1 / (1 + np.exp(-x))

    @staticmethod
    def dot(a: Any, b: Any, input_precision: str) -> Any:
        return (a.astype(np.float64) @ b).astype(np.float32)

    @staticmethod
    def inline_asm_elementwise(code: str, registers: str, args: Any, dtype: Any, is_pure: bool, pack: int) -> Any:
        """The one that there is rounds a factor; here products stay exact, so that what else is wrong is seen."""
        assert code.startswith("cvt.rna.tf32.f32")
        return args[0]


class Kernel:
    """A kernel of resident.py, launched as Triton's are. `edit` changes its source before."""

    def __init__(self, name: str, seed: int, edit: Callable[[str], str] = lambda code: code) -> None:
        self.name, self.seed = name, seed
        tree = ast.parse(inspect.getsource(resident))
        under = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "triton").body
        for function in under:
            assert isinstance(function, ast.FunctionDef)
            function.decorator_list = []
        self.code = compile(edit(ast.unparse(ast.Module(under, []))), "resident.py", "exec")

    def __getitem__(self, grid: tuple[int, int]) -> Callable[..., None]:
        def launch(*args: Any, num_warps: int, num_stages: int, launch_cooperative_grid: bool, **named: Any) -> None:
            C, seeds = grid
            tensors = {a.data_ptr(): a for a in args if isinstance(a, torch.Tensor)}
            for program in range(seeds):  # they share nothing
                memories = {at: Memory(tensor, C) for at, tensor in tensors.items()}
                machine = Machine(C, self.seed + program, list(memories.values()), program)
                space: dict[str, Any] = {"tl": machine}
                exec(self.code, space)
                given = [Pointer(memories[a.data_ptr()]) if isinstance(a, torch.Tensor) else a for a in args]
                machine.go(lambda space=space, given=given: space[self.name](*given, **named))  # type: ignore[misc]

        return launch


TRITON = SimpleNamespace(next_power_of_2=lambda n: 1 << (n - 1).bit_length())
