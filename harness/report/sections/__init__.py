"""Define what a section of the page is made of, and draw its charts. A module here is a section: rows, words, figures.

Rule: a section only reads, and one whose tables have no rows is None, '' or empty. Every sentence is computed from rows
that stand on the page, or left out; a number carries its n, its interval and its unit. `Markup` is safe: every value
went in through `format`, which escapes it. A cell of a table says its n and its interval, and sorts by a plain number;
what is missing is an empty cell.

A chart is a function of tidy frames (their column `label` names a variant) and a `width` in inches that returns a
matplotlib Figure, or None where there is nothing to draw. Its docstring is its caption.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
from markupsafe import Markup

from harness.formatting import plain
from harness.report.drawing import NARROW, WIDE, Draw, Figure, hinted, inline, svg

Numbers = tuple[str, Sequence[tuple[str, str, bool]], Sequence[Sequence["Cell"]]]  # caption, heads, rows


@dataclass(frozen=True)
class Cell:
    """`text` is read, `note` stands small under it, `key` sorts (a plain number where it is one).

    `picture`: of its seeds; `link`: the id of what the page says of it.
    """

    text: str = ""
    note: str = ""
    key: str = ""
    kind: str = ""
    picture: str = ""
    link: str = ""


@dataclass(frozen=True)
class Table:
    """`heads` are (name, unit, numeric). The first cell of a row names it.

    For the page's script: `facts` of the table, `row_facts` of each row, and `about` a column by its name: its `kind`,
    its `column` in the file; `term`, the id of its definition.
    """

    id: str
    caption: str
    heads: Sequence[tuple[str, str, bool]]
    rows: Sequence[Sequence[Cell]]
    foot: Sequence[Sequence[Cell]] = ()
    cards: bool = False
    facts: Mapping[str, str] = field(default_factory=dict)
    row_facts: Sequence[Mapping[str, str]] = ()
    about: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def number(value: float, spell: Callable[[float], str]) -> Cell:
    return Cell(spell(value), "", plain(value)) if math.isfinite(value) else Cell()


MOST_DOTS = 200  # of a row


def strip(
    values: Mapping[int, float],
    interval: tuple[float, float],
    scale: tuple[float, float],
    base: float,
    spell: Callable[[float], str],
) -> Markup:
    """Each seed as a dot, the interval of their mean as a band, on an axis that all rows of a column share.

    Where there are more than MOST_DOTS, so many evenly spread by rank.
    """
    low, high = scale

    def x(value: float) -> str:
        return f"{100 * (min(max(value, low), high) - low) / (high - low):.2f}%"

    parts = []
    if math.isfinite(base):
        parts.append(Markup('<line class="base" x1="{0}" x2="{0}" y1="0" y2="26"/>').format(x(base)))
    if interval[0] < interval[1] and interval[0] < high:
        parts.append(Markup('<line class="interval" x1="{}" x2="{}" y1="13" y2="13"/>').format(*map(x, interval)))
    said = "; ".join(f"seed {seed}: {spell(value)}" for seed, value in values.items())
    if len(values) > MOST_DOTS:
        ranked = sorted(values.items(), key=lambda item: item[1])
        said = f"{len(values):,} seeds: {spell(ranked[0][1])} to {spell(ranked[-1][1])}"
        values = dict(ranked[k * (len(ranked) - 1) // (MOST_DOTS - 1)] for k in range(MOST_DOTS))
    for seed, value in values.items():
        beyond = value > high
        mark = Markup('<circle class="{}" cx="{}" cy="13" r="3"><title>{}</title></circle>')
        parts.append(mark.format("seed beyond" if beyond else "seed", x(value), f"seed {seed}: {spell(value)}"))
    return Markup('<svg class="track dots" width="100%" height="26" role="img" aria-label="{}">{}</svg>').format(
        said, Markup("").join(parts))  # fmt: skip


def equation_id(variant: object) -> str:
    """The id of the equations of a variant's cell."""
    return "eq-" + re.sub(r"[^\w.-]", "_", str(variant).partition(":")[0])


Figures = dict[str, tuple[Figure, str]]  # by the chart's id: the figure, and as SVG


@dataclass(frozen=True)
class Picture:
    """A chart yet to be drawn: `draw(*frames, width=)`.

    `describe(*frames)` is the figure in words, '' where there is no data; without it, what its points say. `numbers`: a
    table of them, where the section's own has them not. `missing`: what the page says where there is no data. `note` is
    added to the caption.
    """

    name: str
    heading: str
    draw: Draw
    frames: tuple[pd.DataFrame, ...]
    describe: Callable[..., str] | None = None
    numbers: Numbers | None = None
    missing: str = ""
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A section of the page with its own heading. `command` makes its table again."""

    id: str
    word: str  # in the list of contents
    title: str
    setting: str
    said: Sequence[Markup]
    table: Table | None
    pictures: Sequence[Picture] = field(default=())
    command: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart as the page shows it. `images` are SVG, wide and narrow. `missing`: why there are none."""

    id: str
    heading: str
    images: Sequence[Markup] = ()
    alt: str = ""
    caption: str = ""
    table: Table | None = None
    missing: str = ""


def charts(section: str, pictures: Iterable[Picture], figures: Figures) -> list[Chart]:
    """Draw the pictures of a section, by its id. Each that is drawn is added to `figures`."""
    drawn = []
    for p in pictures:
        key = f"{section}-{p.name}"
        alt = p.describe(*p.frames) if p.describe else _said_by_its_points(p)
        if not alt:
            drawn.append(Chart(key, p.heading, missing=p.missing or "no data"))
            continue
        table = Table(f"{key}-data", *p.numbers) if p.numbers else None
        caption = " ".join((p.draw.__doc__ or "").split()) + p.note
        drawn.append(Chart(key, p.heading, _images(key, p, figures, alt), alt, caption, table))
    return drawn


def _said_by_its_points(p: Picture) -> str:
    figure = p.draw(*p.frames, width=WIDE)
    return f"{p.heading} {'; '.join(hinted(figure))}".strip() if figure else ""


def _images(key: str, p: Picture, figures: Figures, alt: str) -> list[Markup]:
    """Return the picture as SVG, wide and narrow; the wide one is added to `figures`."""
    images = []
    for width, short in ((WIDE, "w"), (NARROW, "n")):
        figure = p.draw(*p.frames, width=width)
        text = svg(figure) if figure else ""
        images.append(Markup(inline(text, f"{key}-{short}", alt) if text else ""))
        if figure and width == WIDE:
            figures[key] = figure, text
    return images
