"""Compile resident.py's kernels for an H100, with Triton and without a GPU, as they would be launched there."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engines import results

from variants.engines import resident

MULTIPROCESSORS = 132
TYPES = {torch.float32: "*fp32", torch.int64: "*i64", torch.int32: "*i32"}


@dataclass(frozen=True)
class Compiled:
    """The machine code of one kernel. `needed`: tensor-core instructions a warp, of a step, that its shape asks for."""

    name: str
    spilled: int  # bytes
    shared: int  # bytes
    asynchronous: int  # copies that are not waited for
    rounded: int  # roundings to tf32
    products: int  # tensor-core instructions a warp, of a step, that it has
    needed: int
    cooperative: bool
    stages: int  # more than one: a load may be moved to a step before
    constants: frozenset[str]  # with another value it would be another kernel


Launch = tuple[str, Any, tuple[Any, ...], dict[str, Any]]


def launches(variant: str, seeds: int, h: int, n: int, precision: str) -> list[Launch]:
    """(name, kernel, arguments, named arguments) of each launch of a training step on an H100."""
    seen: list[Launch] = []

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name, self.kernel = name, getattr(resident, name)

        def __getitem__(self, grid: tuple[int, int]) -> Callable[..., None]:
            return lambda *args, **named: seen.append((self.name, self.kernel, args, named))

    before = torch.get_float32_matmul_precision()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_forward", "_backward"):
            patch.setattr(resident, name, Recorder(name))
        patch.setattr(resident, "processors", lambda device: MULTIPROCESSORS)
        torch.set_float32_matmul_precision({"tf32": "high", "bf16": "medium"}[precision])
        try:
            results(variant, resident, seeds, torch.float32, n, h, "meta")
        finally:
            torch.set_float32_matmul_precision(before)
    return seen


def compiled(variant: str, seeds: int, h: int, n: int, precision: str) -> list[Compiled]:
    """Forward and backward, of the first launch."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    found: dict[str, Compiled] = {}
    for name, kernel, args, named in launches(variant, seeds, h, n, precision):
        if name in found:
            continue
        how = {key: named.pop(key) for key in ("num_warps", "num_stages", "launch_cooperative_grid")}
        values = dict(zip(kernel.arg_names, args, strict=False)) | named
        constants = {p.name: values[p.name] for p in kernel.params if p.is_constexpr}
        signature = {
            key: "constexpr" if key in constants
            else TYPES[value.dtype] if isinstance(value, torch.Tensor)
            else "i32" if isinstance(value, int) else "fp32"
            for key, value in ((key, values[key]) for key in kernel.arg_names)
        }  # fmt: skip
        aligned = {
            (p.num,): [["tt.divisibility", 16]] for p in kernel.params
            if signature[p.name][0] == "*"
            or (signature[p.name] == "i32" and not p.do_not_specialize and values[p.name] % 16 == 0)
        }  # fmt: skip
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=how)
        with tempfile.TemporaryDirectory() as folder:
            ptx, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
            ptx.write_text(made.asm["ptx"])
            cubin.write_bytes(made.asm["cubin"])
            assemble = [f"{tools}/ptxas", "-v", "--gpu-name", "sm_90a", f"{ptx}", "-o", f"{folder}/again"]
            said = subprocess.run(assemble, capture_output=True, text=True, check=True).stderr
            show = [f"{tools}/cuobjdump", "-sass", f"{cubin}"]
            code = subprocess.run(show, capture_output=True, text=True, check=True)
        spilled = re.search(r"(\d+) bytes spill stores", said)
        assert spilled, said
        units, deep = h // constants["C"], 8 if precision == "tf32" else 16
        tiles = constants["N"] // 16 * units // 8 * h // deep * (constants["cols"] // h)
        found[name] = Compiled(
            name, int(spilled[1]), made.metadata.shared, made.asm["ptx"].count("cp.async.c"),
            made.asm["ptx"].count("cvt.rna.tf32"), len(re.findall(r"\bHG?MMA\b", code.stdout)),
            tiles // how["num_warps"], bool(made.metadata.launch_cooperative_grid),
            made.metadata.num_stages, frozenset(constants),
        )  # fmt: skip
    return list(found.values())
