"""Too little memory for one variant: a row that says so, the others go on, the next time tries it again."""

from __future__ import annotations

import functools
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from . import TEXT, Tally, ask

# Of 4,000 units the RNN's weights take 64 MB and the LSTM's 256 MB: each is there some times over in a training.
SIZE = ["train_characters=80", "heldout_characters=40", "hidden=4000", "epochs=1", "num_steps=4", "batch_size=2",
        "evaluations=1"]  # fmt: skip
WORDS = ["bench", *TEXT, "--engine", "loop", "--seeds", "1", "--variants", "rnn", "lstm", "nn.lstm", "--set", *SIZE]
ROOM = 500 << 20  # beside what the libraries take of the address space
LIBRARIES = "import torch, seaborn, scipy.stats, harness.analysis.compare; torch.ones(900, 900) @ torch.ones(900, 900)"


def faults() -> Iterator[Tally]:
    tally = Tally("no memory left for a variant")
    peak = "print(open('/proc/self/status').read().split('VmPeak:')[1].split()[0])"
    taken = subprocess.run([sys.executable, "-c", f"{LIBRARIES}; {peak}"], capture_output=True, text=True, check=True)
    most = 1024 * int(taken.stdout) + ROOM
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_AS, (most, most))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for _ in range(2):  # the second time tries those that failed, and them alone
            tally.tried += 1
            status, said = ask(*WORDS, "--results", temporary, prepare=limit)
            rows = pd.read_csv(folder / "runs.csv").fillna({"error": ""}).set_index("variant")
            kinds = {variant: error.partition(":")[0] for variant, error in rows["error"].items()}
            tally.check(status == 1, f"status {status}: {said[-500:]}")
            tally.check(kinds == {"rnn": "", "lstm": "oom", "nn.lstm": "oom"}, f"rows: {rows['error'].to_dict()}")
            page = (folder / "report.html").read_text()
            tally.check("oom: " in page and "Traceback" not in said, f"not in the report; said {said[-500:]!r}")
            begun = tally.note or str(rows["started"]["rnn"])
            tally.check(begun == rows["started"]["rnn"], "what was finished was trained again")
            tally.note = begun
        status, said = ask(*WORDS, "--results", temporary)
        tally.check(status == 0, f"without the limit: status {status}, {said[-500:]}")
    tally.note = f"address space of {most / 2**30:.1f} GiB; without that limit all three are trained"
    yield tally
