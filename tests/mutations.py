"""Does a test fail where the code is wrong? python -m tests.mutations COSMIC-RAY [PART ...]

COSMIC-RAY is that program (`pip install cosmic-ray`). Of all its mutations of a part a random sample, the same every
time, is tried in a clone of this checkout's last commit, each against the tests named for it. Survivors are shown as
diffs, on stderr. EACH=12 for another number of each part, which takes about an hour of one core. A part that wants
triton is left out where there is none.
"""

from __future__ import annotations

import importlib.util
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
EACH, SEED, PATIENCE_S = 25, 1895, 300
# what is wrong: what should notice, the quickest first
PARTS = {
    "harness/analysis/stats.py": "test_stats.py test_compare.py",
    "harness/record/store.py": "test_store.py test_compare.py test_properties.py test_faults.py",
    "harness/run/train.py harness/run/evaluate.py": "test_train.py test_protocols.py test_faults.py",
    "harness/data/batches.py": "test_train.py test_protocols.py",
    "variants/registry.py variants/__init__.py": "test_properties.py test_variants.py test_main.py",
    "variants/cell.py": "test_variants.py test_train.py",
    "variants/model.py": "test_properties.py test_train.py test_variants.py test_protocols.py test_faults.py",
    "variants/layers.py": "test_engines.py test_variants.py",
    "variants/engines/fused.py": "test_derive.py test_engines.py",
    "variants/engines/loop.py variants/engines/library.py variants/engines/native.py": (
        "test_engines.py test_variants.py"
    ),
    "variants/engines/derive.py variants/engines/emit.py": "test_derive.py test_engines.py",
    "variants/engines/resident.py": "test_engines.py -k resident",  # in an environment that has triton: no GPU
    "variants/gru.py variants/gru_after.py variants/lstm.py variants/ligru.py variants/mgu.py": "test_variants.py",
    "variants/rnn.py variants/cifg.py variants/gru1.py variants/gru2.py variants/gru3.py variants/indrnn.py "
    "variants/janet.py variants/lstm_peephole.py variants/mgu_keep.py variants/min_gru.py variants/min_lstm.py "
    "variants/min_gru_signed.py variants/gru_diag.py variants/ugrnn.py "
    "variants/library.py": "test_variants.py test_engines.py",
}


def survivors(cosmic_ray: str, part: str, tests: str, clone: Path) -> tuple[int, list[str]]:
    """How many of a sample of a part's mutations were tried, and the diffs of those that no test noticed."""
    config, session = clone / "part.toml", clone / "part.sqlite"
    paths = ", ".join(f"'{path}'" for path in part.split())
    named = (str(next(clone.rglob(word))) if word.endswith(".py") else word for word in tests.split())
    command = f"{sys.executable} -m pytest -x -q -p no:cacheprovider {' '.join(named)}"
    subprocess.run(command.split(), cwd=clone, check=True, stdout=subprocess.DEVNULL)  # unchanged, they all pass
    config.write_text(
        f"[cosmic-ray]\nmodule-path = [{paths}]\ntimeout = {PATIENCE_S}\nexcluded-modules = []\n"
        f"test-command = '{command}'\n[cosmic-ray.distributor]\nname = 'local'\n"
    )
    session.unlink(missing_ok=True)
    subprocess.run([cosmic_ray, "init", config.name, session.name], cwd=clone, check=True)
    with sqlite3.connect(session) as database:
        columns = "job_id, module_path, operator_name, start_pos_row"
        specs = database.execute(f"select {columns} from mutation_specs").fetchall()
        specs = [spec for spec in sorted(specs, key=lambda s: s[1:]) if not _annotation(clone, *spec[1:])]
        kept = random.Random(SEED).sample(specs, min(int(os.environ.get("EACH", EACH)), len(specs)))
        keep = [job for job, *_ in kept]
        for table in ("mutation_specs", "work_items"):
            database.execute(f"delete from {table} where job_id not in ({','.join('?' * len(keep))})", keep)
    subprocess.run([cosmic_ray, "exec", config.name, session.name], cwd=clone, check=True)
    with sqlite3.connect(session) as database:
        rows = database.execute("select test_outcome, diff from work_results").fetchall()
    return len(rows), [diff for outcome, diff in rows if "SURVIVED" in str(outcome).upper()]


def _annotation(clone: Path, file: str, operator: str, row: int) -> bool:
    """A `|` between two types: with annotations left as text it says the same whatever stands there."""
    line = (clone / file).read_text().splitlines()[row - 1]
    return "BitOr" in operator and ("None" in line or "->" in line or "ClassVar" in line)


def main() -> int:
    if len(sys.argv) < 2:
        print("error: give the cosmic-ray program: python -m tests.mutations PATH/TO/cosmic-ray", file=sys.stderr)
        return 2
    cosmic_ray, *wanted = sys.argv[1:]
    print("| part | tried | killed | survived |\n| --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        clone = Path(temporary) / "clone"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        for part, tests in PARTS.items():
            if wanted and not any(word in part for word in wanted):
                continue
            if "resident" in part and importlib.util.find_spec("triton") is None:
                print(f"| {part} | 0: no triton here | | |", flush=True)
                continue
            tried, lived = survivors(cosmic_ray, part, tests, clone)
            print(f"| {part} | {tried} | {tried - len(lived)} | {len(lived)} |", flush=True)
            print(*lived, sep="\n", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
