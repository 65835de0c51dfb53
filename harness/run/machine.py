"""Set up a process for numbers, and record the machine, the software and the commit they were measured with."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass

# facts that `configure_process` decides
SETTLED = ("threads", "matmul_precision", "cudnn_rnn_tf32", "flush_denormal", "keeps_pages", "deterministic",
           "cublas_workspace")  # fmt: skip
THREADING = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_")  # variables that thread libraries read
_keeps_pages = False
Fact = str | int | float | bool | None


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
        "thread_settings": " ".join(f"{name}={value}" for name, value in thread_settings().items()),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_rnn_tf32": torch.backends.cudnn.allow_tf32 if cuda else None,
        "tiles": _tiles(torch.cuda.get_device_name()) if cuda else None,
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


def thread_settings() -> dict[str, str]:
    """Return what the environment tells thread libraries: how many threads, and how one waits for another."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(THREADING)}


def slow_waiting() -> str:
    """Return the setting by which a thread that waits for another sleeps at once, which slows short steps; '' if none.

    That is OMP_WAIT_POLICY=PASSIVE; of GNU's library also a spin count, of Intel's and LLVM's a block time, of 0.
    """
    for name, value in thread_settings().items():
        sleeps = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}.get(name)
        if sleeps and value.strip().lower().removesuffix("ms").removesuffix("us") == sleeps:
            return f"{name}={value}"
    return ""


def _tiles(card: str) -> str:
    """Return 8 digits of the tiles of the GPU kernel that were measured on such a card; '' where none were."""
    from variants.engines import resident

    found = sorted(resident.measured_tiles(card).items())
    return hashlib.sha256(repr(found).encode()).hexdigest()[:8] if found else ""


def training_facts(device: str) -> dict[str, Fact]:
    """`environment` of a process that trains, and its class of bits."""
    return {**environment(device), "bits": bits(device)}


PROBED = ("gru", "nn.gru")  # what the class of bits is found with: a cell written here and torch's own
PROBE_STEPS, PROBE_SIZE = 8, 16  # training steps; hidden units, characters of a window, sequences


@functools.cache
def bits(device: str) -> str:
    """The machine's class of bits, 8 hexadecimal digits: two machines of one class train to the same bits.

    On a CPU the digest of a short training by each engine that can run here, from a fixed seed. A process asks once,
    after `configure_process`. A GPU trains no two times to the same bits, unless asked to: there it is the digest of
    its name and of the versions of torch, CUDA and driver.
    """
    import torch

    import variants
    from variants.model import Model

    found = hashlib.sha256(torch.__version__.encode())
    if device == "cuda":
        facts = (torch.cuda.get_device_name(), torch.version.cuda, _driver())
        return hashlib.sha256(repr(facts).encode() + found.digest()).hexdigest()[:8]
    n = PROBE_SIZE
    X = torch.randint(n, (n + 1, 1, n), generator=torch.Generator().manual_seed(0))
    for name in PROBED:
        for engine, refusal in variants.refusals(name, device, n, n, "ieee").items():
            if refusal or engine == "loop":  # slow, and torch's operations as those of fused are
                continue
            model = Model(name, n, n, [0], "torch", device=device, engine=engine)
            model.gather()
            state = model.cell.begin(n)
            for _ in range(PROBE_STEPS):
                _, _, state = model.learn(X[:-1], X[1:], state, 1.0, 1.0)
            found.update(engine.encode())
            for weight in model.parameters():
                found.update(weight.detach().numpy().tobytes())
    return found.hexdigest()[:8]


def configure_process(threads: int, precision: str, deterministic: bool = False) -> None:
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
