"""Show progress and the table at the end: a bar with the time left, or a line a run where there is no terminal.

Rule: nothing redraws by itself. A bar that did would slow what is being timed.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tqdm import tqdm

from harness.experiments.grids import BASELINE, no_verdict

if TYPE_CHECKING:
    import pandas as pd

    from harness.analysis.history import Comparison
    from harness.experiments.runs import Run
    from harness.run.executors.local import InProgress


NARROW = 60  # columns: under that a bar has no room beside its numbers
COLOURS = {"worse": 31, "fails": 31, "slower": 31, "failed": 31, "better": 32, "faster": 32, "done": 32}


def coloured(word: str, code: int | None = None) -> str:
    """A word in the colour of what it says, or of `code`; plain where stdout is no terminal, or none is wanted."""
    code = COLOURS.get(word.strip()) if code is None else code
    plain = not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", None)
    return word if plain or code is None else f"\033[{code}m{word}\033[0m"


def say(text: str, indent: int = 0) -> None:
    """Print a paragraph, folded to the terminal, all lines but the first indented; in one line where there is none."""
    if sys.stdout.isatty():
        width = max(shutil.get_terminal_size().columns - 1, indent + 20)
        text = textwrap.fill(text, width, subsequent_indent=" " * indent, break_long_words=False,
                             break_on_hyphens=False, drop_whitespace=True) or text  # fmt: skip
    print(text)


class Bar:
    """`total` things to do, one of them a `unit`. On a terminal two lines: the whole with time left, and what runs."""

    def __init__(self, total: int, about: str, unit: str) -> None:
        tqdm.monitor_interval = 0  # no thread of its own beside a clock
        notebook = "ipykernel" in sys.modules
        self.terminal = sys.stderr.isatty() or notebook
        self.total, self.unit, self.ended = total, unit, 0
        self.shares: dict[Run, float] = {}  # of those underway
        hidden = not self.terminal or not total
        layout = "{desc} {percentage:3.0f}%|{bar}| {n:.1f}/{total} {unit}s [{elapsed}, {remaining} left]"
        if shutil.get_terminal_size().columns < NARROW:  # the time left is the last thing to be cut
            layout = "{percentage:3.0f}% {n:.0f}/{total} {unit}s, {remaining} left"
        self.whole = (_in_notebook() if notebook else tqdm)(
            total=total, desc=about, unit=unit, disable=hidden, dynamic_ncols=True, bar_format=layout
        )
        self.now = tqdm(total=0, disable=hidden or notebook, bar_format="{desc}", position=1, leave=False)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *what: object) -> None:
        self.now.close()
        self.whole.close()

    def more(self) -> None:
        """One more to do than was known: something is done again."""
        self.total += 1
        self.whole.total = self.total

    def underway(self, sign: InProgress) -> None:
        """A sign of life of runs that have not ended: their share of the whole, and their perplexity."""
        self.shares |= dict.fromkeys(sign.runs, sign.share)
        self._show()
        seeds = ", ".join(str(run.seed) for run in sign.runs)
        perplexity = f", held-out perplexity {sign.perplexity:.2f}" if sign.perplexity else ""
        self.now.set_description_str(f"  {sign.runs[0].variant} seed {seeds}: {sign.share:.0%}{perplexity}")

    def finished(self, line: str, error: str, run: Run | None = None) -> None:
        """One more of the whole has ended. A failure is always said."""
        self.ended += 1
        if run is not None:
            self.shares.pop(run, None)
        self._show()
        if not self.terminal:
            print(f"[{self.ended}/{self.total}] {line}", flush=True)
        elif error:
            tqdm.write(line, file=sys.stderr)
        else:
            self.now.set_description_str(f"  {line}")

    def _show(self) -> None:
        self.whole.n = min(self.ended + sum(self.shares.values()), self.total)
        self.whole.refresh()


def _in_notebook() -> type[tqdm]:
    """A bar of widgets, or of text where a notebook has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm as bar

    return bar  # type: ignore[no-any-return]


def answer_rows(table: pd.DataFrame) -> list[tuple[str, ...]]:
    """The answer as texts, its heads first; the files and the report have more columns."""
    # here: they are slow to import, and last to be needed
    import pandas as pd

    from harness.analysis.speed import UNTOLD
    from harness.formatting import count, format_interval, mib, nats, ppl, rate, token_name
    from harness.report import select

    base = next((str(b) for b in table["baseline"] if b and b == b), BASELINE)
    unit = token_name(table["protocol"], True)
    heads = ("variant", "engine", "parameters", "seeds", "held-out perplexity [95%]", f"nats/{unit} vs {base} [95%]",
             "p (Holm)", "verdict", "tokens/sec", "ratio", "MiB")  # fmt: skip
    rows: list[tuple[str, ...]] = [heads]
    for r in table.to_dict("records"):
        rows.append((
            str(r["variant"]), select.how(pd.Series(r)), _some(r["parameters"], count),
            f"{r['seeds']} of {r['seeds'] + r['failed']}" if r["failed"] else str(r["seeds"]),
            f"{ppl(r['heldout_perplexity'])} {format_interval(r['heldout_low'], r['heldout_high'], ppl)}".strip(),
            f"{nats(r['delta_nats'], sign=True)} {format_interval(r['delta_low'], r['delta_high'], nats)}".strip(),
            _some(r["p_holm"], lambda p: f"{p:.3f}"), _text(r["verdict"]),
            rate(r["tokens_per_sec"]),
            UNTOLD if r["speed_verdict"] == UNTOLD else _some(r["speed_ratio"], lambda x: f"{x:.2f}x"),
            mib(r["peak_memory_mib"]),
        ))  # fmt: skip
    return rows


def print_table(table: pd.DataFrame) -> None:
    """The answer on the screen, and how to read it."""
    from harness.analysis.speed import UNTOLD
    from harness.formatting import token_name

    rows = answer_rows(table)
    _print(rows, {"variant", "engine", "verdict"})
    timed = sorted({str(b) for b in table["speed_baseline"] if b and b == b})
    unit = token_name(table["protocol"], True)
    meaning = f"on text never trained on. nats/{unit}: paired by seed, less is better."
    print()
    say(f"perplexity: geometric mean over seeds, {meaning}")
    bits = table["bits_per_character"].dropna()
    if unit != "char" and len(bits):
        say(f"bits per character, which compare with those of other tokens: {_span(bits.round(3))}")
    if why := no_verdict(table["variant"]):
        say(f"no verdict: {why}.")
    if timed:
        samples, base = _span(table["speed_samples"].dropna()), ", ".join(timed)
        say(f"tokens/sec: one seed, median of {samples} fresh processes. ratio: to {base}, median of the rounds'.")
        noise = table["speed_noise"].max()
        told = (
            f", or is below the {100 * (noise - 1):.1f} % by which one of them differs from itself" if noise > 1 else ""
        )
        if (table["speed_verdict"] == UNTOLD).any():
            say(f"{UNTOLD}: the 94% interval of the ratio holds 1 (under 5 rounds there is none){told}.")
        busy = table[table["speed_disturbed"].fillna(0) > 0]
        if len(busy):
            each = (f"{r['variant']} ({r['engine']}) {r['speed_disturbed']} of {r['speed_samples']}"
                    for r in busy.to_dict("records"))  # fmt: skip
            say(f"disturbed by other processes in every block, so slower than it is: {', '.join(each)} samples.")


def _text(value: object) -> str:
    return str(value) if value == value else ""  # NaN is missing


def _some(value: float, spell: Callable[[float], str]) -> str:
    return "" if value is None or value != value or not math.isfinite(value) else spell(value)


def _span(counts: pd.Series) -> str:
    low, high = counts.min(), counts.max()
    return f"{low}" if low == high else f"{low} to {high}"


def latency_rows(table: pd.DataFrame) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Two tables as texts, heads first: one step of one sequence; and where a training step goes."""
    from harness.analysis.speed import PARTS, latencies
    from harness.formatting import format_interval, rate

    steps: list[tuple[str, ...]] = [
        ("candidate", "engine", "p50 us [range]", "p99 us [range]", "tokens/s, 1 sequence", "tokens/s, batch")
    ]  # fmt: skip
    parts: list[tuple[str, ...]] = [("candidate", "engine", "step ms", *(f"{part} %" for part in PARTS))]
    for r in latencies(table).to_dict("records"):
        name = (str(r["label"]), str(r["engine"]))
        spans = (f"{rate(r[f'{q}_us'])} {format_interval(r[f'{q}_min'], r[f'{q}_max'], rate)}" for q in ("p50", "p99"))
        steps.append((*name, *spans, rate(1e6 / r["mean_us"]), rate(r["tokens_per_sec_batch"])))
        shares = (_some(r[f"{part}_percent"], lambda x: f"{x:.0f}") for part in PARTS)
        parts.append((*name, f"{r['step_ms']:.3g}", *shares))
    return steps, parts


def print_latency(table: pd.DataFrame) -> None:
    """Print what `latency_rows` has, and how to read it."""
    from harness.analysis.speed import latencies

    steps, parts = latency_rows(table)
    if len(steps) == 1:
        return
    _print(steps, {"candidate", "engine"})
    samples = _span(latencies(table)["samples"])
    print(f"\none step of one sequence, no training; medians over {samples} fresh processes, the least and the most.")
    _print(parts, {"candidate", "engine"})
    print("\nshares of a training step; recurrence: products and the rest in one call. #2: one candidate timed twice.")


def print_reproduce(table: pd.DataFrame) -> None:
    """Print what was published and what came here, side by side."""
    from harness.formatting import count, ppl

    rows = [("protocol", "variant", "published", "here", "seeds", "within 2 sd")]
    for r in table.to_dict("records"):
        here = f"{ppl(r['perplexity'])} +- {_some(r['sd'], lambda x: f'{x:.3f}')}" if r["seeds"] else ""
        rows.append((str(r["protocol"]), str(r["variant"]), f"{r['published']:.2f} +- {r['published_sd']:.2f}", here,
                     count(r["seeds"]), str(r["within_2sd"])))  # fmt: skip
    _print(rows, {"protocol", "variant"})
    print("\nperplexity, mean +- sd over builds and over seeds; classic: training, v1: held out, mean of exp(loss).")


def print_axes(table: pd.DataFrame) -> None:
    """Each variant's difference to the baseline at each value of the field."""
    rows = [("field", "value", "setting", "variant", "seeds", "difference, nats/char", "verdict")]
    for r in table.to_dict("records"):
        known = r["delta_nats"] == r["delta_nats"]  # not NaN
        bounds = f"{r['delta_nats']:+.3f} [{r['delta_low']:+.3f}, {r['delta_high']:+.3f}]" if known else ""
        rows.append((str(r["axis"]), str(r["point"]), str(r["setting"]), str(r["variant"]), str(r["seeds"]), bounds,
                     str(r["verdict"])))  # fmt: skip
    _print(rows, {"field", "value", "setting", "variant", "verdict"})


def print_claims(table: pd.DataFrame) -> None:
    """Each claim's verdict, and under it its comparisons."""
    for _, own in table.groupby("claim", sort=False):
        print(f"\n{own.verdict.iloc[0] or 'not run'}: {own.sentence.iloc[0]} ({own.source.iloc[0]})")
        for r in own.to_dict("records"):
            r = {name: None if value != value else value for name, value in r.items()}  # NaN: a comparison not run
            known = r["estimate"] is not None and r["low"] is not None
            number = f"{r['estimate']:.3g} {r['measure']} [{r['low']:.3g}, {r['high']:.3g}]" if known else ""
            facts = "; ".join(filter(None, (str(r["evidence"] or ""), number, f"n = {r['seeds']}")))
            print(f"  {r['outcome'] or 'not run'}: {r['prediction']}: {facts}")


def print_questions(table: pd.DataFrame) -> None:
    """Each question of a reviewer, and under it the difference of each variant."""
    for _, own in table.groupby("question", sort=False):
        print(f"\n{own.asks.iloc[0]}  {own.setting.iloc[0]}")
        for r in own[own.baseline.fillna("").astype(bool) | (own.seeds + own.failed == 0)].to_dict("records"):
            known = r["delta_nats"] == r["delta_nats"]
            number = f"{r['delta_nats']:+.3f} nats/char [{r['delta_low']:.3f}, {r['delta_high']:.3f}]" if known else ""
            print(f"  {r['variant']}: {'; '.join(filter(None, (r['verdict'], number))) or 'not run'}")


def task_rows(table: pd.DataFrame) -> list[tuple[str, ...]]:
    """How many seeds of each variant solve each task, and after how many updates, as texts, their heads first."""
    heads = ("task", "length", "variant", "solved", "updates [least, most]", "score", "longer", "against gru")
    rows: list[tuple[str, ...]] = [heads]
    for r in table.to_dict("records"):
        updates = f"{r['updates_median']:,.0f} [{r['updates_least']:,.0f}, {r['updates_most']:,.0f}]"
        rows.append((
            str(r["task"]), str(r["length"]), str(r["variant"]), f"{r['solved']}/{r['seeds'] + r['failed']}",
            updates if r["solved"] else "", _some(r["score"], lambda x: f"{x:.3f}"),
            _some(r["score_longer"], lambda x: f"{x:.3f}"), str(r["verdict"] or ""),
        ))  # fmt: skip
    return rows


def print_tasks(table: pd.DataFrame) -> None:
    """Print what `task_rows` has."""
    rows = task_rows(table)
    _print(rows, {"task", "variant", "against gru"})
    for budget in sorted(set(table["budget"])):
        print()
        say(f"solved: the threshold reached at two checks in a row, within {budget:,.0f} updates (median). "
            "longer: the score on longer sequences")  # fmt: skip


def print_comparison(rows: Sequence[Sequence[str]], found: Comparison) -> None:
    """Print what two folders differ by, what of their settings and machines does, and the answer."""
    _print(rows, {"measure", "variant", "verdict"})
    if len(found.differences):
        print("\nwhat differs, A -> B:")
        for r in found.differences.to_dict("records"):
            print(f"  {r['kind']} {r['what']}: {r['a'] or '(none)'} -> {r['b'] or '(none)'}")
    for note in [*found.notes, *dict.fromkeys(note for note in found.rows["note"].fillna("") if note)]:
        print(f"note: {note}")
    print(f"\nA {found.a}, B {found.b}: {found.answer}")


def _print(rows: Sequence[Sequence[str]], texts: set[str]) -> None:
    """Rows in columns, the first their heads; `texts` to the left, all others to the right."""
    encoding = sys.stdout.encoding or "utf-8"
    rows = [
        # a minus that every terminal has; what it lacks is escaped before columns are laid out
        [c.replace("\u2212", "-").encode(encoding, "backslashreplace").decode(encoding) for c in row]
        for row in rows
    ]
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for block in _folded(wide, shutil.get_terminal_size().columns if sys.stdout.isatty() else sum(wide) * 2):
        print()
        for row in rows:
            cells = [row[i].ljust(wide[i]) if rows[0][i] in texts else row[i].rjust(wide[i]) for i in block]
            cells[-1] = cells[-1].rstrip()
            print("  ".join(coloured(cell, 1 if row is rows[0] else None) for cell in cells).rstrip())


def _folded(wide: Sequence[int], room: int) -> list[list[int]]:
    """Columns of these widths as blocks that fit the room where they can; each begins with the first, a row's name."""
    blocks = [[0]]
    for i in range(1, len(wide)):
        if len(blocks[-1]) > 1 and sum(wide[k] + 2 for k in [*blocks[-1], i]) - 2 > room:
            blocks.append([0])
        blocks[-1].append(i)
    return blocks
