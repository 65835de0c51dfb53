"""Draw with matplotlib: style, colours, marks, names at points and lines, SVG and PNG; the figures are the sections'.

Rule: nothing global. No pyplot, no style left behind, none taken from the user (matplotlibrc, MPLBACKEND), no random
number: the same frame gives the same bytes. A gate has one colour in every figure, that of the variant without it;
colour is never alone: a marker, a dash or a name goes with it.
"""

# ruff: noqa: E402  (matplotlib reads MPLBACKEND when it is imported)
from __future__ import annotations

import functools
import io
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from html import escape
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd

_backend = os.environ.pop("MPLBACKEND", None)  # matplotlib cannot be imported where it names one that is not installed
import matplotlib as mpl

if _backend is not None:
    os.environ["MPLBACKEND"] = _backend
    with suppress(ValueError):  # as matplotlib itself would have: the caller's own figures are drawn with it
        mpl.rcParams["backend"] = _backend
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Figure
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from harness.formatting import compact

WIDE, NARROW = 7.6, 3.7  # inches: a page, and a phone
MOST_POINTS = 200  # of one row as shapes; more are drawn as dots of a picture
MOST = 24  # rows or panels a figure can hold and be read; the tables have them all
LIGHT = {"ink": "#1c2126", "muted": "#59636e", "grid": "#dde2e7", "point": "#8a949e", "band": "#e9edf1",
         "blue": "#1d4ed8", "vermilion": "#c2410c", "green": "#02805d", "violet": "#7a3e9d",
         "paper": "#fdfdfb"}  # fmt: skip
DARK = {"ink": "#e6e9ec", "muted": "#a3adb8", "grid": "#343c45", "point": "#77828d", "band": "#262d35",
        "blue": "#7fb0ff", "vermilion": "#ff9a5c", "green": "#3fd0a2", "violet": "#c79bf0",
        "paper": "#15191e"}  # fmt: skip
NAMES = {light: name for name, light in LIGHT.items()}
FAMILY = {"gru": "ink", "lstm": "green", "rnn": "muted"}  # with every gate it has; all other cells are violet
HELD = {"R": ("vermilion", (0, (4, 2)), "^"), "Z": ("blue", (0, (5, 1.5, 1, 1.5)), "v")}  # that gate fixed, no other
FAR = 0.55  # of the height of a chart: a point alone beyond so much of it is put at its edge, and its value said
Dash = str | tuple[float, tuple[float, ...]]
Draw = Callable[..., Figure | None]
Hint = tuple[Axes, float, float, str]
_hints: WeakKeyDictionary[object, list[Hint]] = WeakKeyDictionary()  # figure -> what is said of its points
FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif"


@contextmanager
def style() -> Iterator[dict[str, str]]:
    """Colours by name, and matplotlib's own defaults with these settings for as long as the block lasts.

    Nothing of the user's matplotlibrc or style sheet is left: text.usetex alone would ask for a LaTeX.
    """
    ink = LIGHT
    settings = {
        "svg.fonttype": "none", "svg.hashsalt": "harness", "text.parse_math": False,  # a name may hold a $
        "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9,
        "axes.titlesize": 9, "axes.titleweight": "bold", "axes.labelsize": 9,
        "xtick.labelsize": 8, "ytick.labelsize": 8.5,
        "text.color": ink["ink"], "axes.labelcolor": ink["muted"], "axes.edgecolor": ink["grid"],
        "xtick.color": ink["muted"], "ytick.color": ink["ink"], "grid.color": ink["grid"], "grid.linewidth": 0.6,
        "axes.grid": True, "axes.axisbelow": True, "axes.facecolor": "none", "figure.facecolor": "none",
        "savefig.facecolor": "none", "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
        "xtick.major.size": 3, "ytick.major.size": 0, "xtick.minor.size": 0, "ytick.minor.size": 0,
        "axes.unicode_minus": True, "lines.solid_capstyle": "butt",
    }  # fmt: skip
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(settings)  # type: ignore[arg-type]
        yield ink


def svg(figure: Figure) -> str:
    """The figure as SVG text: no date, fixed ids, a transparent ground, letters as letters."""
    out = io.StringIO()
    with style():
        figure.savefig(
            out, format="svg", dpi=150, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
        figure.set_layout_engine("none")  # its parts stay where they are now: to lay it out again as PNG takes long
    head, tags = f'<style type="text/css">text{{font-family:{FONT}}}', out.getvalue()
    tags = tags.replace("</svg>", _hits(figure) + "</svg>")
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), tags)  # a hundredth of a point will do
    text = re.sub(r" ?font-family: [^;\"]+;?", "", text)
    return text.replace('<style type="text/css">', head, 1)


def png(figure: Figure) -> bytes:
    """The figure as PNG on white, 150 dots an inch."""
    out = io.BytesIO()
    with style():
        figure.savefig(out, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def pdf(figure: Figure) -> bytes:
    """The figure as PDF, its fonts inside (TrueType); the same figure gives the same bytes."""
    out = io.BytesIO()
    with style(), mpl.rc_context({"pdf.fonttype": 42, "pdf.compression": 9}):
        figure.savefig(out, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return out.getvalue()


UNITS = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "pt": 1 / 72.27}  # of LaTeX's points
NARROWEST, WIDEST = 2.5, 12.0  # inches: between them the letters of a figure, of 7 to 9 points, have room


def inches(width: str | float) -> float:
    """3.25 of '3.25in', '8.255cm', '82.55mm', '234.9pt' or a number of inches. ValueError, in one line, for another."""
    hit = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(in|cm|mm|pt)?\s*", str(width))
    if not hit:
        raise ValueError(f"{str(width)!r} is no width: give one like 3.25in, 8.3cm, 83mm or 240pt")
    found = float(hit[1]) * UNITS[hit[2] or "in"]
    if not NARROWEST <= found <= WIDEST:
        raise ValueError(f"a figure is from {NARROWEST} to {WIDEST:g} inches wide, not {found:.3g} ({width})")
    return found


def inline(drawn: str, key: str, alt: str) -> str:
    """An SVG as it can stand in a page: colours by the page's scheme, no style of its own, its names no other's.

    The page's policy forbids style attributes; those of matplotlib become attributes of SVG.
    """
    text = re.sub(
        r"<style.*?</style>|<!--.*?-->|<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.S
    )
    used = set(re.findall(r'(?:href="#|url\(#)([\w.]+)', text))

    def tag(hit: re.Match[str]) -> str:
        one = re.sub(r' style="([^"]*)"', lambda m: "".join(f' {k.strip()}="{v.strip()}"' for k, _, v in (
            part.partition(":") for part in m[1].split(";") if part.strip())), hit[0])  # fmt: skip
        one = re.sub(r' id="([^"]*)"', lambda m: f' id="{key}-{m[1]}"' if m[1] in used else "", one)
        one = re.sub(r'(?:xlink:)?href="#', f'href="#{key}-', one).replace("url(#", f"url(#{key}-")
        one = re.sub("|".join(LIGHT.values()), lambda m: f"var(--f-{NAMES[m[0]]})", one)
        return re.sub(r"\s+", " ", one.replace("xlink:href", "href"))

    body = re.sub(r">\s+<", "><", re.sub(r"<[^>]*>", tag, text))
    body = re.sub(r"(?:<g>)?<defs></defs>", "", body)
    size = re.search(r'viewBox="[^"]*"', body)
    head = f'<svg class="chart" role="img" tabindex="0" aria-label="{escape(alt)}" {size[0] if size else ""}>'
    return re.sub(r"<svg[^>]*>", lambda _: head, body, count=1).strip()


def hinted(figure: Figure) -> list[str]:
    """Return what is said of the points of a figure."""
    return [text for *_, text in _hints.get(figure, [])]


def hint(ax: Axes, xs: Iterable[float], ys: Iterable[float], texts: Sequence[str]) -> None:
    """Attach what is said of some points where they are pointed at; nothing where they are a picture."""
    if len(texts) > MOST_POINTS:
        return
    own = _hints.setdefault(ax.figure, [])
    own += [(ax, float(x), float(y), text) for x, y, text in zip(xs, ys, texts, strict=True)]


def _hits(figure: Figure) -> str:
    """The hints of a drawn figure as SVG: over each point inside its axes a circle of no colour, with a title."""
    out, (wide, tall) = [], figure.get_size_inches() * 72
    for ax, x, y, text in _hints.get(figure, []):
        across, up = ax.transData.transform((x, y)) / figure.dpi * 72
        box = ax.get_window_extent()
        left, low, right, high = (v / figure.dpi * 72 for v in (box.x0, box.y0, box.x1, box.y1))
        if left - 1 <= across <= right + 1 and low - 1 <= up <= high + 1 and across <= wide:
            said = escape("".join(map(glyph, text)))
            out.append(f'<circle cx="{across:.1f}" cy="{tall - up:.1f}" r="4"><title>{said}</title></circle>')
    return f'<g class="hits" fill-opacity="0">{"".join(out)}</g>' if out else ""


def look(label: object) -> tuple[str, Dash, str]:
    """Colour, dash and marker of a variant: what is fixed in it first, then its cell."""
    name = str(label).split(" ")[0]
    cell, _, fixed = name.partition(":")
    gates = re.findall(r"(\w+)=", fixed)
    if len(gates) == 1 and gates[0] in HELD:
        return HELD[gates[0]]
    own = "s" if name.startswith("nn.") else "o"
    base = cell.removeprefix("nn.").removesuffix("_after")
    if gates:
        return "muted", (0, (1, 1.5)), "D"
    return FAMILY.get(base, "violet"), (0, (1, 1.5)) if base == "rnn" else "-", own


def colour_of(label: object) -> str:
    return look(label)[0]


def marker_of(label: object) -> str:
    return look(label)[2]


def name_points(
    figure: Figure,
    ax: Axes,
    xs: Sequence[float],
    ys: Sequence[float],
    labels: Sequence[str],
    bars: Sequence[tuple[float, float, float, float]],
    colours: Sequence[str],
) -> None:
    """Each point's name beside it, at the first of some places that covers no point, bar (x0, y0, x1, y1) or name."""
    figure.draw_without_rendering()
    per_point = figure.dpi / 72
    at = ax.transData.transform(np.column_stack([xs, ys])) / per_point
    frame = ax.get_window_extent()
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in at]
    for bar in bars:
        if np.isfinite(bar).all():
            (left, low), (right, high) = ax.transData.transform(np.reshape(bar, (2, 2))) / per_point
            taken.append((left - 2, low - 2, right + 2, high + 2))
    for (x, y), point_x, point_y, text, colour in zip(at, xs, ys, labels, colours, strict=True):
        best = None
        wide, tall = 5.4 * len(text), 9.0
        for away in (8, 15, 24, 34, 46):
            for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
                left = x + dx * away - (wide if dx < 0 else wide / 2 if dx == 0 else 0)
                low = y + dy * away - tall / 2
                box = (left, low, left + wide, low + tall)
                inside = box[0] > frame.x0 / per_point and box[2] < frame.x1 / per_point
                if inside and not any(
                    box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken
                ):
                    best = (box, left - x, dy * away)
                    break
            if best:
                break
        if best is None:
            continue  # no room; the table below has its name
        taken.append(best[0])
        far = abs(best[2]) > 12 or best[1] > 12 or best[1] < -wide - 12
        leader = {"arrowstyle": "-", "lw": 0.6, "color": colour, "shrinkA": 0, "shrinkB": 4}
        ax.annotate(text, (point_x, point_y), xytext=(best[1], best[2]), textcoords="offset points", va="center",
                    fontsize=8, color=colour, arrowprops=leader if far else None)  # fmt: skip


def name_lines(ax: Axes, ends: Sequence[tuple[float, str, str]], height: float) -> None:
    """Each line's name right of its last value (y, name, colour), moved apart where two would overlap.

    `height`: of the axes, in points, nearly.
    """
    low, high = ax.get_ylim()
    at = ax.transAxes.inverted().transform(ax.transData.transform([(0, y) for y, _, _ in ends]))[:, 1]
    at = np.clip(at, 0, 1)  # one that ends beyond the axis is named at its edge
    gap = 9.0 / height
    order = sorted(range(len(ends)), key=lambda k: (float(at[k]), ends[k][1]))
    places = np.array([float(at[k]) for k in order])
    for _ in range(1000):  # push neighbours apart, half each, until none overlap
        short = gap - np.diff(places)
        if (short < 1e-6).all():
            break
        for k in np.flatnonzero(short > 0).tolist():
            places[k] -= short[k] / 2
            places[k + 1] += short[k] / 2
    for k, place in zip(order, places, strict=True):
        _, name, colour = ends[k]
        ax.annotate(name, (1, float(at[k])), xycoords="axes fraction", xytext=(1.04, place), va="center",
                    textcoords="axes fraction", fontsize=8, color=colour,
                    arrowprops={"arrowstyle": "-", "lw": 0.5, "color": colour, "shrinkA": 0, "shrinkB": 0})  # fmt: skip
    ax.set_ylim(low, high)


def far_edge(values: pd.Series) -> float:
    """Where a logarithmic axis ends so that one point far above all others does not press those together; else inf."""
    logs = np.sort(np.log(values.dropna().to_numpy(dtype=float)))
    if len(logs) < 4 or logs[-1] - logs[-2] < FAR * (logs[-1] - logs[0]):
        return math.inf
    return float(np.exp(logs[-2] + 0.35 * (logs[-2] - logs[0])))


def at_least(ratio: float, low: float, high: float) -> tuple[float, float]:
    """Ends of a log axis, that far apart: equal values would make labels of seven digits, and no room for the chart."""
    wider = max(1.0, math.sqrt(ratio * low / high))
    return low / wider, high * wider


def plain_axis(ax: Axes, which: str) -> None:
    axis = ax.yaxis if which == "y" else ax.xaxis
    low, high = ax.get_ylim() if which == "y" else ax.get_xlim()
    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if high > 30 * low else (1, 2, 3, 5, 7)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: compact(x)))
    axis.set_minor_locator(NullLocator())  # of no size: each would be made, placed and drawn all the same


def jitter(n: int) -> np.ndarray:
    """Offsets that keep equal values apart: golden-ratio steps, not random numbers."""
    return ((np.arange(n) * 0.6180339887 + 0.5) % 1 - 0.5) * 0.44


def short(label: object, most: int = 22) -> str:
    parts = [glyph(c) for c in str(label)]
    if sum(map(len, parts)) <= most:
        return "".join(parts)
    while sum(map(len, parts)) > most - 1:
        parts.pop()
    return "".join(parts) + "\u2026"


def spaced(text: str) -> str:
    return f" {text}" if text else ""


@functools.cache
def glyph(c: str) -> str:
    """A character as a figure can show it: itself, or its code point where the font has no picture of it."""
    signs = {"\n": "\u21b5", "\t": "\u21e5"}
    if c.isprintable() and _font().get_char_index(ord(c)):
        return c
    return signs.get(c, f"U+{ord(c):04X}")  # a control character would break the SVG


@functools.cache
def _font() -> FT2Font:
    return font_manager.get_font(font_manager.findfont("DejaVu Sans"))  # it comes with matplotlib
