"""Everything that needs a GPU, in one call: python3 -m tests.gpu [RESULTS [CORPUS]]

Agree first: the tests that skip where there is no CUDA. Then measure: the whole bench and ablation at the book's
protocol, and the sweep, into RESULTS (results/gpu; the sweep in tf32 beside it). It goes on where it stopped.
"""

from __future__ import annotations

import subprocess
import sys
import time

TESTS = ["tests/test_engines.py", "tests/test_train.py", "tests/test_measure.py", "-k", "gpu or graph or resident"]


def main() -> int:
    import torch

    if not torch.cuda.is_available():
        print(f"error: torch {torch.__version__} sees no GPU: this measures nothing else", file=sys.stderr)
        return 2
    results = sys.argv[1] if len(sys.argv) > 1 else "results/gpu"
    text = ["--corpus", sys.argv[2]] if len(sys.argv) > 2 else []
    where = ["--protocol", "classic", "--device", "cuda", *text]
    here = [*where, "--results", results]
    stages = [
        ["pytest", *TESTS],
        ["harness", "bench", *here, "--seeds", "10"],
        ["harness", "ablate", *here, "--seeds", "10"],
        ["harness", "sweep", *here],
        ["harness", "sweep", *where, "--results", f"{results}-tf32", "--precision", "tf32"],
    ]
    for words in stages:
        begun = time.monotonic()
        status = subprocess.run([sys.executable, "-m", *words]).returncode
        print(f"== {' '.join(words)}: status {status}, {time.monotonic() - begun:.0f} s", flush=True)
        if status and words[0] == "pytest":
            return status  # what does not agree is not timed
    return 0


if __name__ == "__main__":
    sys.exit(main())
