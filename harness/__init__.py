"""Measure recurrent networks: train them, time them, compare them, and show the evidence."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

    from harness.analysis.history import Comparison
    from harness.notebook import Results

    Cells = str | Path | type  # a variant's name, a file with a cell, a class that inherits from Cell

__version__ = "0.2.0"


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
    from harness import notebook  # pandas takes a second: not before it is asked for

    folder = Path(os.path.expanduser(results))
    if not folder.is_dir():
        raise FileNotFoundError(f"no results folder {folder}: make bench and make ablate fill one")
    return notebook.read(folder)


class Options(TypedDict, total=False):
    """Options of the verbs, as on the command line: docs/commands.md. Each verb refuses what it does not take.

    `set` has fields of the protocol, like {"epochs": 3}; `protocol` is a name or a TOML file; a list is an axis.
    """

    protocol: str | Path
    corpus: str | Path
    seeds: int | str
    max: int
    set: Mapping[str, Any]
    device: str
    engine: str
    precision: str
    deterministic: bool
    no_timing: bool
    no_tasks: bool
    tasks: Iterable[str]
    lengths: Iterable[int]
    on: str
    shard: str
    mixed: bool
    results: str | os.PathLike[str]


def bench(*variants: Cells, **options: Unpack[Options]) -> Results:
    """Train and time variants: names, files, classes; the default grid where none is given. What is done is not redone.

    ValueError, in one line, for what cannot be asked. An interrupt keeps what is done, and the same call goes on.
    """
    from harness import notebook

    return notebook.ask("bench", variants, options)


def ablate(
    variant: Cells | None = None,
    gates: Iterable[str] | None = None,
    values: Iterable[float] = (0, 1),
    **options: Unpack[Options],
) -> Results:
    """Train a cell, and it with each of `gates` (all, where none are given) fixed at each of `values`.

    Without a cell it is what `make ablate` does. Differences are from the whole cell.
    Errors and interrupts as for `bench`.
    """
    from harness import notebook

    if variant is None:
        return notebook.ask("ablate", (), options)
    where = notebook.place(variant, Path(options.get("results", "results")).expanduser())
    return notebook.ask("ablate", notebook.gates_fixed(where, gates, values), options)


def probe(*variants: Cells, **options: Unpack[Options]) -> Results:
    """Train variants on `tasks` until they solve them. Errors and interrupts as for `bench`."""
    from harness import notebook

    return notebook.ask("probe", variants, options)


def latency(*variants: Cells, **options: Unpack[Options]) -> Results:
    """Time one step of one sequence, and the parts of a training step: `.latency`. Errors and interrupts as `bench`."""
    from harness import notebook

    return notebook.ask("latency", variants, options)


def compare(a: str | os.PathLike[str], b: str | os.PathLike[str], limit: float | str = "5%") -> Comparison:
    """Compare two results folders: `.rows`, `.differences`, `.notes`, `.status` (0 not worse, 1 worse, 3 cannot tell).

    `limit` is the share by which B may be worse than A. A notebook shows its table. ValueError for what is no folder.
    """
    from harness import notebook

    return notebook.compare(a, b, limit)


def load_weights(
    results: str | os.PathLike[str], variant: Cells = "gru", seed: int = 0, protocol: str = ""
) -> torch.nn.Module:
    """Load a trained network: a torch module in evaluation mode, with `.vocabulary`, that has the recorded perplexity.

    `model(X, model.cell.begin(n))` takes indices X (T, 1, n), gives logits (T, 1, n, vocabulary) and the state after.
    Seed 0 of every variant is kept. ValueError, in one line, for weights that are not.
    """
    from harness import notebook

    folder = Path(os.path.expanduser(results))
    if not folder.is_dir():
        raise ValueError(f"no results folder {str(folder)!r}: bench and ablate fill one")
    return notebook.load_weights(folder, variant, seed, protocol)
