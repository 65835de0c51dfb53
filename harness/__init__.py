"""Measure recurrent networks: train them, time them, compare them, and show the evidence."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.record.tables import Results

__version__ = "0.1.0"


def _find_variants() -> None:
    """Have `import variants` mean the folder beside this one, whatever of that name lies where the user stands."""
    here = Path(__file__).resolve().parent.parent
    sys.path.insert(0, str(here))
    try:
        import variants
    finally:
        sys.path.remove(str(here))
    found = Path(variants.__file__ or next(iter(variants.__path__))).resolve()
    if not found.is_relative_to(here):
        raise ImportError(f"another module 'variants' ({found}) was imported before harness, which has one: rename it")


_find_variants()


def read(results: str | os.PathLike[str] = "results") -> Results:
    """Every table of a results folder as a tidy DataFrame: `.bench`, `.ablate`, `.runs`, `.lesions` and the rest.

    A table that is not there has no rows. ValueError for a file that is none of ours, FileNotFoundError for no folder.
    """
    from harness.record import tables  # pandas takes a second: not before it is asked for

    folder = Path(os.path.expanduser(results))
    if not folder.is_dir():
        raise FileNotFoundError(f"no results folder {folder}: make bench and make ablate fill one")
    return tables.read(folder)
