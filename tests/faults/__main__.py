"""python -m tests.faults [NAME ...]: every fault, or those of some files here; a table; status 1 if some were lost."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

NAMES = ("kill", "born", "stop", "disk", "memory", "shared", "load", "cells", "cluster")


def main() -> int:
    names = sys.argv[1:] or list(NAMES)
    rows, lost = [("fault", "tried", "survived", "lost")], []
    notes = []
    for name in names:
        if name not in NAMES:
            print(f"error: no faults {name!r}. There are: {', '.join(NAMES)}", file=sys.stderr)
            return 2
        begun = time.monotonic()
        for tally in importlib.import_module(f"{__package__}.{name}").faults():
            bad = min(len(tally.lost), tally.tried)
            rows.append((tally.fault, str(tally.tried), str(tally.tried - bad), str(len(tally.lost))))
            lost += [f"{tally.fault}: {what}" for what in tally.lost]
            notes += [f"{tally.fault}: {tally.note}"] * bool(tally.note)
            print(f"{tally.fault}: {tally.tried} tried, {len(tally.lost)} lost", flush=True)
        print(f"({Path(name).stem}: {time.monotonic() - begun:.0f} s)", flush=True)
    wide = [max(len(row[i]) for row in rows) for i in range(4)]
    print()
    for row in rows:
        print("  ".join([row[0].ljust(wide[0]), *(c.rjust(w) for c, w in zip(row[1:], wide[1:], strict=True))]))
    print(*["", *notes], sep="\n")
    for line in lost[:20]:
        print(f"LOST {line}", file=sys.stderr)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
