"""Write and read one table as CSV, and name what is wrong with a file that was not written here."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from harness.experiments.runs import MISSING
from harness.files import digest
from harness.record.schema import COLUMNS, Column, column, names

SUMS = "SHA256SUMS"  # of the tables, as `sha256sum -c` reads it


def to_text(table: pd.DataFrame) -> str:
    """A table as CSV. Floats at full length: what is read back is what was measured.

    A text that pandas would read as missing, NA or null, has `./` before it.
    """
    table = table.assign(
        **{
            c: table[c].map(lambda x: f"./{x}" if isinstance(x, str) and x in MISSING and x else x)
            for c in table.columns
            if table[c].dtype.kind == "O" and table[c].isin(MISSING - {""}).any()
        }
    )
    text: str = table.to_csv(index=False, lineterminator="\n")
    return text


def load(path: Path, name: str, written: str | None, packed: Callable[[], bytes | None]) -> pd.DataFrame:
    """One table, from its file or else as `packed`, `written` its digest.

    Edited by hand, half a line, another version: each a ValueError.
    """
    again = "`report` makes it again from the files of single runs"
    try:
        raw = path.read_bytes() if path.exists() else packed() if written is not None else None
        if raw is None:
            if written is not None:
                raise ValueError(f"{path} is gone, and {SUMS} has it: {again}")
            return pd.DataFrame(columns=list(COLUMNS[name]), dtype=object)
        text = raw.decode().removeprefix("\ufeff").replace("\r\n", "\n")  # as a spreadsheet may save it
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a table (no UTF-8, byte {error.start:,}): {again}") from None
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    seen: set[str] = set()
    try:
        head = next(lines, [])
        as_written = written is not None and written == digest(text)  # then each of its lines is
        # a column that has been added since is missing from what an older version wrote
        wrong = [f"no column {c!r}" for c in COLUMNS[name] if c not in head and not as_written]
        wrong += [f"a column {c!r}, which is none of ours" for c in head if c not in COLUMNS[name]]
        wrong += ["a column twice"] * (len(set(head)) < len(head))
        if wrong:
            raise ValueError(f"{path}, line 1 has {wrong[0]}: it is of another version, or was edited; {again}")
        for row in () if as_written else lines:
            if problem := _problem(name, head, row, seen):
                raise ValueError(f"{path}, line {lines.line_num}: {problem}; {again}")
    except csv.Error as error:
        raise ValueError(f"{path}, line {lines.line_num} is cut off or no table ({error}): {again}") from None
    if written is not None and not as_written:
        raise ValueError(f"{path} was changed after it was written ({SUMS} has another digest): {again}")
    # only what is empty is missing: a text may be called NA, or 12
    texts = dict.fromkeys(names(name, str), str)
    table = pd.read_csv(io.StringIO(text, newline=""), keep_default_na=False, na_values=[""], dtype=texts)
    return table.reindex(columns=list(COLUMNS[name]))


def _fits(column: Column, cell: str) -> bool:
    """Whether a cell is of its column's type: a perplexity is at least 1."""
    if column.type is str:
        return True
    if column.type is bool:
        return cell in ("True", "False")
    try:
        number = float(cell)
    except ValueError:
        return False
    whole = column.type is float or number.is_integer()
    return math.isfinite(number) and whole and (number >= 1 or not column.name.endswith("perplexity"))


def _problem(name: str, head: Sequence[str], row: Sequence[str], seen: set[str]) -> str:
    """Return what is wrong with a line of a table; '' for nothing. `seen`: the runs of the lines before it."""
    if len(row) != len(head):
        return f"{len(row)} cells under {len(head)} heads"
    for title, cell in zip(head, row, strict=True):
        if cell and not _fits(column(name, title), cell):
            return f"{title} is {cell!r:.60}"
    if name in ("runs", "probes"):
        key = row[head.index("run")]
        if key in seen:
            return f"the run {key!r} once more"
        seen.add(key)
    return ""
