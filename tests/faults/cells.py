"""Cells at random, compiled with every address looked at: results are the loop's, nothing outside an array is touched.

CELLS=1000 for another number of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

from . import ROOT, Tally

TRIED = int(os.environ.get("CELLS", "200"))
LOOK = """
import sys, torch, hypothesis, newcomers
from test_derive import agrees, cells, derived
from test_engines import learned
from variants.engines import native
native.FLAGS = [*(f.replace("-O3", "-O1") for f in native.FLAGS), "-g", "-fsanitize=address"]
tried = 0
@hypothesis.settings(max_examples=int(sys.argv[1]), deadline=None, derandomize=False, database=None)
@hypothesis.given(cells())
def look(cell):
    global tried
    tried += 1
    agrees(cell, native)
    if derived(cell):
        learned(cell, "native", [0, 1], counts=True)
torch.set_num_threads(2)
for cell in newcomers.ALL:
    agrees(cell, native)
look()
print("tried", tried)
"""


def faults() -> Iterator[Tally]:
    tally = Tally("a cell at random, compiled")
    found = [  # what throws must be there before what watches it
        subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=False).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("", "tests/support", "tests/variants/engines"))
    environment = {**os.environ, "LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(TRIED)], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    words = done.stdout.split()
    tally.tried = int(words[-1]) if words[-2:-1] == ["tried"] else 1
    said = done.stderr[max(done.stderr.find("ERROR: AddressSanitizer"), 0) :]
    tally.check(done.returncode == 0, said[:800] + said[-800:])
    yield tally
