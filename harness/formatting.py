"""Format numbers, intervals and lists of words: once, for the page, its figures and the terminal.

Rule: numbers in, text out, '' for one that is not finite; a missing number never becomes a 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def ppl(x: float) -> str:
    """A perplexity: two decimals, from 1,000 on three digits; of a network that went astray only that it did."""
    if not math.isfinite(x):
        return ""
    return f"{x:.2f}" if x < 1000 else rate(x) if x < 1e7 else "> 10,000,000"


def token_name(labels: Iterable[object], short: bool = False) -> str:
    """Name one token under protocols of these labels: character (char), byte, word; token where they differ."""
    found = {(re.findall(r",tokens=([a-z]+)s", str(label)) or ["character"])[0] for label in labels}
    name = found.pop() if len(found) == 1 else "token" if found else "character"
    return "char" if short and name == "character" else name


def nats(x: float, sign: bool = False) -> str:
    return "" if not math.isfinite(x) else f"{x:{'+' if sign else ''}.3f}".replace("-", "\u2212")


def rate(x: float) -> str:
    """Three significant digits: more would be noise."""
    if not math.isfinite(x):
        return ""
    return f"{float(f'{x:.3g}'):,.0f}" if abs(x) >= 100 else f"{x:.3g}"


def mib(x: float) -> str:
    return "" if not math.isfinite(x) else f"{x:,.1f}" if abs(x) < 100 else f"{x:,.0f}"


def score(x: float) -> str:
    """Format the score of a probe: a share or an error, from 0 up."""
    if not math.isfinite(x):
        return ""
    if abs(x) >= 1000:
        return ppl(x)
    digits = 3 if abs(x) >= 0.001 or x == 0 else min(6, -math.floor(math.log10(abs(x))))
    return f"{x:.{digits}f}"


def compact(x: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return f"{x / size:.3g}{unit}"
    return f"{x:.3g}"


def count(x: float) -> str:
    return f"{x:,.0f}" if math.isfinite(x) else ""


def format_interval(low: float, high: float, fmt: Callable[[float], str]) -> str:
    """`[low, high]`, or nothing where either end is missing."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"[{fmt(low)}, {fmt(high)}]"


def pct(x: float, sign: bool = False) -> str:
    if not math.isfinite(x):
        return ""
    if x > 1e6:
        return "> 1,000,000\u00a0%"
    digits = 1 if abs(x) < 99.95 else 0
    text = f"{x:{'+' if sign else ''},.{digits}f}".replace("-", "\u2212")
    return f"{text}\u00a0%"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"


def times(x: float) -> str:
    return f"{x:.2f}\u00d7" if x < 99.5 else f"{x:,.0f}\u00d7"


def percent(delta: float) -> float:
    """A difference in nats/char as percent of perplexity."""
    return 100 * math.expm1(min(delta, 50.0))


def plain(x: float) -> str:
    """Return what a program reads: no thousands separator, ten digits."""
    return f"{x:.10g}" if math.isfinite(x) else ""


def sd(x: float) -> str:
    return f"{x:.2f}" if x >= 0.1 or x == 0 else f"{x:.1g}"


def pluralize(n: float, noun: str) -> str:
    """`1 seed`, `3 seeds`, `2 processes`."""
    return f"{count(n)} {noun}{'' if n == 1 else 'es' if noun.endswith('s') else 's'}"


def format_range(values: pd.Series) -> str:
    """`10`, or `9 to 10` where they differ."""
    if values.empty:
        return "0"
    low, high = count(values.min()), count(values.max())
    return low if low == high else f"{low} to {high}"


def join_or(values: Sequence[str], word: str = "or") -> str:
    """`a`, `a or b`, `a, b or c`."""
    return values[0] if len(values) == 1 else f"{', '.join(values[:-1])} {word} {values[-1]}"


def join_and(values: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return join_or(values, "and")


def unique(values: Iterable[object]) -> list[str]:
    """Each text once, in order, without the empty one."""
    return [text for text in dict.fromkeys(str(v) for v in values) if text]
