"""Define the default grids: which variants, how many seeds, which differences are tested."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence

from harness.experiments.protocols import FIELDS, MAY_BE_ZERO

BASELINE = "gru"  # every difference is taken against it, paired by seed
SPEED_BASELINE = "nn.gru"  # what an engineer would otherwise use; absent from a grid, BASELINE serves
BENCH = ("rnn", "gru", "gru_after", "lstm", "nn.rnn", "nn.gru", "nn.lstm")
SWEEP = ("rnn", "gru", "gru_after", "gru:R=1", "gru:Z=0", "nn.rnn", "nn.gru")  # timed by size and number of seeds
ABLATE = (
    "gru",
    "gru:R=0",
    "gru:R=0.5",
    "gru:R=1",
    "gru:Z=0",
    "gru:Z=0.5",
    "gru:Z=1",
    "gru:Z=0,R=1",
    "rnn",
)
SEEDS = 10  # trainings a variant, if not asked for otherwise
ANSWERING = ("s3", "delayed_recall", "table3", "registers")  # tasks that tell the gates apart: of `ablate`
TASK_VARIANTS = ("gru", "gru:R=1", "gru:Z=0", "rnn", "nn.lstm")


def listed(setting: str) -> tuple[str, list[str]]:
    """The field of `field=value` and its values: several where they are a list like `16,32,64`, an axis of a grid.

    `10,000` and `0,5` are numbers misspelt, which `Protocol.override` says.
    """
    field, _, text = setting.partition("=")
    values = text.split(",")
    number = FIELDS.get(field) in (int, float)
    slip = any(
        not v or (number and re.match("0[0-9]|0$", v) and not (v == "0" and field in MAY_BE_ZERO)) for v in values
    )
    if len(values) < 2 or field not in FIELDS or slip or "=" in text:
        return field, [text]
    if len(set(values)) < len(values):
        raise ValueError(f"--set {setting} has {next(v for v in values if values.count(v) > 1)} twice")
    return field, values


def points(settings: Sequence[str]) -> list[list[str]]:
    """Every combination of the values of settings, the first field's slowest: one, where none of them is a list."""
    each = [[f"{field}={value}" for value in values] for field, values in map(listed, settings) if values != [""]]
    each += [[setting] for setting in settings if listed(setting)[1] == [""]]
    return [list(point) for point in itertools.product(*each)]


def axes_of(settings: Sequence[str]) -> tuple[str, ...]:
    """The fields that have a list."""
    return tuple(field for field, values in map(listed, settings) if len(values) > 1)


def seeds_needed(contrasts: int, alpha: float = 0.05) -> int:
    """Least seeds at which an exact paired sign-flip test, Holm over `contrasts`, can reach alpha.

    n pairs give no p under 2 / 2^n, and Holm asks alpha / contrasts of the smallest.
    """
    return max(2, math.ceil(math.log2(2 * max(contrasts, 1) / alpha)))


def interim_analyses(contrasts: int, most: int, count: int = 4) -> tuple[int, ...]:
    """At how many seeds a grid that runs until decided is looked at: fixed before running, `most` the last.

    The first is the least at which anything could be decided at alpha / count, the others evenly between.
    """
    first = max(SEEDS, seeds_needed(contrasts, 0.05 / count))
    if most <= first:
        return (most,)
    return tuple(dict.fromkeys(round(first + (most - first) * k / (count - 1)) for k in range(count)))


def baseline_of(variants: Iterable[str]) -> str:
    """Return what differences are taken against: BASELINE; where it is missing, the cell that all others are ablations
    of.
    """
    names = list(variants)
    cells = {name.partition(":")[0] for name in names}
    return min(cells) if BASELINE not in names and len(cells) == 1 and cells <= set(names) else BASELINE


def contrasts(variants: Sequence[str], baseline: str = "") -> int:
    """How many comparisons against the baseline a grid makes: the family Holm corrects over."""
    baseline = baseline or baseline_of(variants)
    return sum(v != baseline for v in variants) if baseline in variants else 0


def no_verdict(variants: Iterable[str], baseline: str = "") -> str:
    """Why a grid has no difference and no verdict, and what to do; '' where it has."""
    names = list(variants)
    baseline = baseline or baseline_of(names)
    if baseline not in names:
        return f"every difference is from {baseline}, which is not among the variants; add it to --variants"
    alone = f"every difference is from {baseline}, and there is no other variant; add one to --variants"
    return alone if set(names) == {baseline} else ""
