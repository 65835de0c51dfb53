"""The report and its figures, from CSV files alone: what it says is what the tables hold, or it is not said."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import math
import os
import re
import shutil
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic
from matplotlib.text import Text

from harness import formatting
from harness.analysis import compare, stats
from harness.analysis import speed as speeds
from harness.experiments import grids, protocols
from harness.experiments.tasks import SCORED
from harness.record import schema, tables
from harness.record.schema import COLUMNS
from harness.report import drawing, sections, select
from harness.report import page as report
from harness.report.sections import answers, comparison, gates, methods, tasks
from harness.report.sections import speed as speed_section

BENCH, ABLATE = ("rnn", "gru", "gru_after", "nn.gru", "lstm", "nn.lstm"), ("gru", "gru:R=0", "gru:R=1", "gru:Z=0")
SECTIONS = ("found", "caveats", "bench", "ablate", "charts", "samples", "failures", "noise", "machine", "methods",
            "read", "limits", "data")  # fmt: skip
HOSTILE = """<script>alert(1)</script>"'&{{7*7}}{% x %}</style>$\\frac$ =1+1\u202e\x07"""


class Page(HTMLParser):
    """Tags with their attributes, and the text outside style and script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.raw: dict[str, str] = {}
        self._in = ""
        self.feed(text)
        self.text = re.sub(r"\s+", " ", "".join(self.words)).replace("\u00a0", " ").replace("\u2212", "-")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        self._in = tag if tag in ("style", "script") else ""

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in:
            self.raw[self._in] = self.raw.get(self._in, "") + data
        else:
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write(tmp_path_factory.mktemp("results"), bench=BENCH, ablate=ABLATE)


@pytest.fixture(scope="module")
def results(folder: Path) -> tables.Results:
    return synthetic.read(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tables.Results:
    own = dataclasses.replace(synthetic.QUICK, evaluations=2)
    bench, ablate = ("gru", "nn.gru", "nn.lstm"), ("gru", "gru:R=1")
    folder = tmp_path_factory.mktemp("small")
    return synthetic.read(synthetic.write(folder, seeds=2, rounds=2, protocol=own, bench=bench, ablate=ablate))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One seed, one round."""
    bench, ablate = ("gru", "rnn"), ("gru", "gru:R=1")
    folder = tmp_path_factory.mktemp("single")
    return synthetic.write(folder, seeds=1, rounds=1, bench=bench, ablate=ablate, failures=False)


def drawn(results: tables.Results, only: str) -> str:
    """The page with the charts of `bench`, of `ablate`, or of nothing: a chart costs as much as the rest of a page."""
    charts = sections.charts
    none = ("bench", "ablate") if only != "nothing" else ("bench", "ablate", "tasks", "gates", "axes", "exercises")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sections, "charts", lambda name, *more: [] if name in none and name != only else charts(name, *more)
        )
        return report.html(results)


@pytest.fixture(scope="module")
def raw(results: tables.Results) -> str:
    return drawn(results, "ablate")


@pytest.fixture(scope="module")
def page(raw: str) -> Page:
    return Page(raw)


@pytest.fixture(scope="module")
def raw_single(single: Path) -> str:
    return drawn(synthetic.read(single), "bench")


def text_of(results: tables.Results) -> str:
    return Page(drawn(results, "nothing")).text


def change(results: tables.Results, name: str, **values: object) -> tables.Results:
    return dataclasses.replace(results, **{name: getattr(results, name).assign(**values)})


# ---- the file ----


def test_same_bytes_elsewhere_without_torch(
    folder: Path, results: tables.Results, single: Path, raw_single: str, tmp_path: Path
) -> None:
    code = (
        "import sys, pathlib\n"
        "class NoTorch:\n"  # sys.modules['torch'] = None would break scipy, which looks for it there
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] == 'torch': raise ImportError(name)\n"
        "sys.meta_path.insert(0, NoTorch()); sys.path[:0] = sys.argv[1:3]\n"
        "import synthetic; from harness.report import page as report, sections\n"
        "charts = sections.charts\n"
        "for source, target, only in zip(*[iter(sys.argv[3:])] * 3):\n"
        "    none = set() if only == 'bench' else {'bench', 'tasks', 'gates', 'axes', 'exercises'}\n"
        "    sections.charts = lambda name, *more: [] if name in none | {'ablate'} else charts(name, *more)\n"
        "    print(report.write(synthetic.read(pathlib.Path(source)), pathlib.Path(target)))"
    )
    here = Path(__file__).parents[2] / "tests" / "support"
    asked: list[str | Path] = [
        single,
        tmp_path / "new" / "single",
        "bench",
        folder,
        tmp_path / "new" / "full",
        "nothing",
    ]
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code, here, here.parents[1], *asked],
        capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pages = {"single": raw_single, "full": drawn(results, "nothing")}
    assert done.stdout.split() == [str(tmp_path / "new" / name / "report.html") for name in pages]
    for name, text in pages.items():
        assert (tmp_path / "new" / name / "report.html").read_bytes() == text.encode()
        left = sorted(f.name for f in (tmp_path / "new" / name).iterdir())
        assert left == ["figures", "report.html"]  # nothing half written is left
        files = sorted(f.name for f in (tmp_path / "new" / name / "figures").iterdir())
        shown = re.findall(r'<h3 id="([\w-]+)">[^<]*</h3>\s*<figure>', text)
        assert files == sorted(f"{chart}.{kind}" for chart in shown for kind in ("png", "svg"))
        assert ("gates-reach.svg" in files) == (name == "single")


def test_a_failed_write_keeps_the_old_page(
    results: tables.Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "html", lambda results, *_: f"a page of {len(results.bench)} rows")
    path = report.write(results, tmp_path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        report.write(dataclasses.replace(results, bench=results.bench.iloc[:1]), tmp_path)
    assert path.read_bytes() == before == b"a page of 6 rows"
    assert sorted(tmp_path.iterdir()) == [tmp_path / "figures", path]


def test_a_page_of_the_same_tables_by_the_same_code_is_current(
    results: tables.Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = dataclasses.replace(results, bench=results.bench.iloc[:0], ablate=results.ablate.iloc[:0])
    assert not report.current(tmp_path)
    report.write(few, tmp_path)
    assert not report.current(tmp_path)  # of tables without their digests nobody knows
    tables.write(few, tmp_path)
    report.write(few, tmp_path)
    assert report.current(tmp_path)
    tables.write(dataclasses.replace(few, runs=few.runs.iloc[1:]), tmp_path)
    assert not report.current(tmp_path)
    tables.write(few, tmp_path)
    assert report.current(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("harness.report.page.metadata.version", lambda name: "another")
        assert not report.current(tmp_path)
    shutil.rmtree(tmp_path / "figures")
    assert not report.current(tmp_path)
    (tmp_path / "figures").mkdir()
    (tmp_path / report.NAME).write_text((tmp_path / report.NAME).read_text().replace('content="', 'content="0', 1))
    assert not report.current(tmp_path)


def test_fetches_nothing_and_is_small(raw: str, page: Page) -> None:
    assert len(raw.encode()) < 3_000_000
    for _, attrs in page.tags:
        assert "style" not in attrs  # the policy would block it
        for name in ("src", "srcset", "href", "action", "poster"):
            assert re.match(r"data:|#|$", attrs.get(name, ""), re.IGNORECASE), attrs
    assert "url(" not in page.raw["style"]
    assert "@import" not in page.raw["style"]
    assert "fetch(" not in page.raw["script"]
    assert len(page.raw["script"]) <= 16_000  # page.js; with the laboratory's, 60 kB at most


def test_policy_hashes_are_of_what_stands_there(page: Page) -> None:
    policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for kind in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.raw[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert len(page.all("style")) == len(page.all("script")) == 1


def test_every_chart_is_described_and_its_points_say_themselves(page: Page) -> None:
    charts = [c for c in page.all("svg") if c.get("class") == "chart"]
    assert len(charts) == 2 * (6 + 4 + 5)  # wide and narrow; of the tables; of tasks and gates; of axes and exercises
    for chart in charts:
        assert len(chart["aria-label"]) > 80
        assert re.search(r"\d", chart["aria-label"])
        assert chart["tabindex"] == "0"
    assert page.all("img") == []
    assert not [tag for tag, attrs in page.tags if "style" in attrs]  # the policy forbids it
    assert len([tag for tag, _ in page.tags if tag == "circle"]) > 100  # what is pointed at


def test_headings_language_and_links_lead_somewhere(page: Page) -> None:
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == 1
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")} <= set(ids)
    assert set(SECTIONS) <= set(ids)
    for region in [a for _, a in page.tags if a.get("role") == "region"]:
        assert region["tabindex"] == "0"
        assert region["aria-label"]


# ---- what it says ----


def test_numbers_of_a_sentence_are_the_table_s(results: tables.Results, page: Page) -> None:
    row = results.ablate.set_index("variant").loc["gru:R=0"]
    percent = [100 * math.expm1(row[c]) for c in ("delta_nats", "delta_low", "delta_high")]
    assert (
        f"Fixing the reset gate at 0 (gru:R=0) makes held-out perplexity worse by {percent[0]:.1f} % "
        f"[{percent[1]:.1f} %, {percent[2]:.1f} %] ({row.delta_nats:+.3f} nats/char, n = 10 pairs, "
        f"p = {row.p_holm:.3f} Holm over 3)."
    ) in page.text
    assert row.p_holm == pytest.approx(3 * row.p_signflip)
    bench = results.bench.set_index("variant")
    rate = float(f"{bench.tokens_per_sec['nn.gru']:.3g}")
    assert f"nn.gru ({rate:,.0f} tokens/s) is another GRU" in page.text
    speed = speeds.speed_ratio(results.speed, "nn.gru", "gru")
    assert (
        f"{speed.ratio:.2f}\u00d7 [{speed.low:.2f}, {speed.high:.2f}] the rate of gru (engine loop) (n = 5 rounds)"
        in page.text
    )


def test_better_is_said_with_positive_numbers_in_order() -> None:
    row = pd.Series({"variant": "gru:R=1", "baseline": "gru", "protocol": "quick", "delta_nats": -0.05,
                     "delta_low": -0.06, "delta_high": -0.04, "p_holm": 0.0004,
                     "pairs": 12, "verdict": "better"})  # fmt: skip
    said = Page(comparison.effect(row, 8)).text
    assert "better by 4.9 % [3.9 %, 5.8 %]" in said
    assert "p < 0.001 Holm over 8" in said
    assert "worse" not in said


@pytest.mark.parametrize(
    ("verdict", "delta", "said"),
    [
        ("worse", 0.05, "worse by"),
        ("worse", -0.05, "changes held-out perplexity by -4.9 %"),  # a word its own number contradicts is not repeated
        ("equivalent", 0.001, "equivalent, inside \u00b10.02 nats/char"),
        ("undecided", 0.03, "changes held-out perplexity by +3.0 % [+2.0 %, +4.1 %]: undecided"),
        ("<b>", 0.05, "changes held-out perplexity by +5.1 %"),
        ("", math.nan, ""),
    ],
)
def test_a_verdict_is_said_only_where_its_numbers_are(verdict: str, delta: float, said: str) -> None:
    row = pd.Series({"variant": "gru:R=1", "baseline": "gru", "protocol": "quick", "delta_nats": delta,
                     "delta_low": delta - 0.01, "delta_high": delta + 0.01, "p_holm": 0.5,
                     "pairs": 5, "verdict": verdict})  # fmt: skip
    text = Page(comparison.effect(row, 8)).text
    assert said in text if said else text == ""
    if verdict == "<b>" or (verdict == "worse" and delta < 0):
        assert verdict not in text


@pytest.mark.parametrize(
    ("verdicts", "start"),
    [
        ({"0": "worse", "1": "worse"}, "Needed on this text: each of the 2 fixed values is worse."),
        ({"1": "worse"}, "Needed on this text: the one fixed value is worse."),
        (
            {"0": "worse", "1": "equivalent"},
            "Not needed on this text: fixed at 1 the network does as well. Fixed at 0 it does w",
        ),
        ({"0": "undecided", "1": "worse"}, "Undecided: fixed at 0, these seeds cannot tell. Fixed at 1 it does worse."),
        ({"0": "better"}, "Not needed on this text: fixed at 0 the network does better."),
        ({"0": "", "1": "worse"}, "Nothing can be said yet"),
        ({"0": ""}, "Nothing can be said yet"),
    ],
)
def test_a_gate_is_needed_only_if_all_its_values_say_so(verdicts: dict[str, str], start: str) -> None:
    sign = {"worse": 1.0, "better": -1.0}
    rows = [
        pd.Series({"variant": f"gru:R={v}", "verdict": w, "delta_nats": sign.get(w, 0.0)}) for v, w in verdicts.items()
    ]
    assert answers.needed(rows).startswith(start)


def tasks_of(results: tables.Results, gate: str, verdicts: dict[str, str]) -> pd.DataFrame:
    """Rows of tasks.csv of gru, and of gru without a gate with these verdicts."""
    row = results.tasks[results.tasks.variant == "gru"].iloc[0].to_dict()
    gone = {"R": "gru:R=1", "Z": "gru:Z=0"}[gate]
    return pd.DataFrame([
        {**row, "task": task, "protocol": task, "variant": variant, "baseline": "gru" if variant == gone else "",
         "verdict": verdict if variant == gone else "", "solved": 0 if (variant, verdict) == (gone, "fails") else 10}
        for task, verdict in verdicts.items() for variant in ("gru", gone)
    ])  # fmt: skip


def test_a_gate_is_needed_for_the_tasks_that_fail_without_it(results: tables.Results) -> None:
    tasks = tasks_of(results, "Z", {"s3": "undecided", "delayed_recall": "fails", "lag": "faster", "copy": "fails"})
    data = select.typed(dataclasses.replace(results, tasks=tasks))
    said = " Without it delayed recall and copy are not solved within 2,000 updates."
    assert answers.needed_for(data, "Z") == said
    assert answers.needed_for(data, "R") == ""  # nobody tried
    (update,) = [a for a in answers.gate_answers(data) if a.question == "What is the update gate for?"]
    assert update.finding.endswith(said)
    points = Page(" ".join(update.points)).text
    assert "Delayed recall, length 32: gru:Z=0 is solved by 0 of 10 seeds" in points
    assert "gru by 10 of 10 seeds [0.69, 1.00] after 450 updates (fails)." in points
    none = dataclasses.replace(data, tasks=data.tasks[data.tasks.task == "s3"])
    assert answers.needed_for(none, "Z") == " No task here shows a need for it."


def test_first_screen_answers_both_gates_with_their_cost(results: tables.Results, raw: str) -> None:
    cards = [Page(c).text for c in re.findall(r"<article.*?</article>", raw, re.DOTALL)]
    table = results.ablate.set_index("variant")
    for card, gate, row in zip(cards[:2], ("reset", "update"), ("gru:R=1", "gru:Z=0"), strict=True):
        assert f"What is the {gate} gate for?" in card
        assert f"{table.parameters['gru']:,} with the {gate} gate, {table.parameters[row]:,} without" in card
        assert f"trains at {table.speed_ratio[row]:.2f}\u00d7 [{table.speed_ratio_low[row]:.2f}, " in card
    assert "Fixing the update" not in cards[0]
    assert "Fixing the reset" not in cards[1]


def test_cell_and_loop_beside_the_whole(results: tables.Results, page: Page) -> None:
    ratio = {(a, b): speeds.speed_ratio(results.speed, a, b).ratio
             for a, b in (("nn.gru", "gru"), ("gru_after", "gru"), ("nn.gru", "gru_after"))}  # fmt: skip
    whole, cell, loop = ratio.values()
    assert (
        f"It trains at {whole:.2f}\u00d7 the speed of gru (engine loop): {cell:.2f}\u00d7 for its equations, "
        f"{loop:.2f}\u00d7 for the way they are run." in page.text
    )


def test_no_loop_answer_without_its_rows(results: tables.Results) -> None:
    data = select.typed(results)
    assert "for its equations" in answers.loop_answer(data)[0].finding
    assert not answers.loop_answer(dataclasses.replace(data, bench=data.bench[data.bench.variant != "nn.gru"]))
    lost = dataclasses.replace(data, speed=data.speed[data.speed.label != "gru_after"])
    assert "for its equations" not in answers.loop_answer(lost)[0].finding


def test_anchor_stands_beside_held_out_perplexity(results: tables.Results, page: Page) -> None:
    assert (
        "On the same split a 4-gram, which only counts characters, reaches 5.31: every network here is worse"
        in page.text
    )
    assert "1-gram 16.66" in page.text
    assert "4-gram counting, no network" in page.text.replace("4-gramcounting", "4-gram counting")
    better = change(results, "anchors", heldout_perplexity=results.bench.heldout_perplexity.median() + 1e-6)
    known = results.bench.heldout_perplexity.dropna()
    below = int((known < results.bench.heldout_perplexity.median() + 1e-6).sum())
    said = Page(comparison.anchor_sentence(select.typed(better), select.typed(better).bench)).text
    assert f": {below} of {len(known)} networks are below it." in said


def test_anchors_of_another_split_are_not_shown(small: tables.Results) -> None:
    text = text_of(change(small, "anchors", corpus_sha256="another"))
    assert "which only counts characters" not in text
    assert "No n-gram anchor for this split" in text


def test_embedded_text_and_its_floor_are_said(tmp_path: Path, page: Page) -> None:
    synthetic.write(tmp_path, corpus="embedded", seeds=2, bench=("gru",), ablate=(), failures=False)
    text = text_of(synthetic.read(tmp_path))
    assert "Not The Time Machine but the embedded text" in text
    assert "floor is 4.02" in text
    assert "Not The Time Machine" not in page.text
    assert "floor is" not in page.text


def test_too_few_seeds_are_a_caveat_with_the_remedy(tmp_path: Path, page: Page) -> None:
    synthetic.write(tmp_path, seeds=3, rounds=1, bench=(), ablate=grids.ABLATE, failures=False)
    text = text_of(synthetic.read(tmp_path))
    least = grids.seeds_needed(8)
    assert f"3 pairs give no p below 0.25, and Holm over 8 comparisons needs {least} before" in text
    assert f"python -m harness ablate --protocol quick --corpus time-machine --device cpu --seeds {least} adds" in text
    assert "Needed here" not in text
    assert "Too few seeds" not in page.text


def test_learned_by_heart_is_said(results: tables.Results, page: Page) -> None:
    assert "Learned by heart" not in page.text
    table, anchors = results.bench.copy(), results.anchors.copy()
    anchors.loc[anchors.model == "1-gram", "heldout_perplexity"] = 17.0
    table["heldout_perplexity"], table["train_perplexity"] = 16.0, 1.5
    table.loc[table.variant.isin(["rnn", "gru"]), "heldout_perplexity"] = 80.0
    table.loc[table.variant == "rnn", "train_perplexity"] = 1.02
    table.loc[table.variant == "lstm", ["heldout_perplexity", "train_perplexity"]] = 18.0  # bad, but not by heart
    text = text_of(dataclasses.replace(results, bench=table, anchors=anchors))
    assert f"Learned by heart: 2 of {len(table)} variants do worse on held-out text than counting" in text
    assert "(1-gram, 17.00), with a mean training perplexity of 1.02 to 1.50." in text


def test_quick_is_labelled_and_classic_is_not(tmp_path: Path, page: Page) -> None:
    assert "Bench and ablation. The quick protocol" in page.text
    own = dataclasses.replace(protocols.PROTOCOLS["classic"], hidden=32)
    synthetic.write(tmp_path, protocol=own, seeds=2, bench=("rnn", "gru"), ablate=(), failures=False)
    text = text_of(synthetic.read(tmp_path))
    assert "The quick protocol" not in text
    assert "A changed protocol: classic,hidden=32" in text
    assert "python -m harness bench --protocol classic --set hidden=32 --corpus time-machine --device cpu" in text
    assert "Not measured yet: what the update gate is for (make ablate)" in text


def test_command_quotes_what_a_shell_would_read() -> None:
    row = pd.Series({"variant": "gru:R=1", "baseline": "gru", "protocol": "quick", "corpus": "my text; rm.txt",
                     "device": "cpu", "seeds": 9.0, "failed": 1.0})  # fmt: skip
    assert methods.command("ablate", row) == (
        "python -m harness ablate --protocol quick --corpus 'my text; rm.txt' --device cpu --seeds 10 "
        "--variants gru gru:R=1"
    )


def test_failures_are_listed_whole_and_in_no_mean(page: Page, results: tables.Results) -> None:
    assert "diverged: loss is nan after 12,320 tokens" in page.text
    assert "seed 9;" in page.text
    assert "seed 0, 1, 2, 3, 4, 5, 6, 7, 8, 9;" in page.text  # nn.lstm, which has nothing but failures
    assert "RuntimeError: out of memory" in page.text  # a failed timing
    assert "probe, counting,num_steps=20, seed 2" in page.text
    assert "diverged: the gradient is not a number" in page.text
    lstm = results.runs[(results.runs.variant == "lstm") & results.runs.error.isna()]
    mean = math.exp(np.log(lstm.heldout_perplexity).mean())
    assert f"lstmloop {mean:.2f}" in re.sub(r"\s+", " ", page.text)


def test_noise_is_that_of_the_twin(page: Page, results: tables.Results) -> None:
    ratio = speeds.speed_ratio(results.speed, "nn.gru#2", "nn.gru")
    said = f"the second is {ratio.ratio:.2f}\u00d7 [{ratio.low:.2f}, {ratio.high:.2f}] the first (n = 5 rounds)"
    assert said in page.text
    assert "nn.gru#2" not in page.text.replace(said, "")  # it is no variant: in no table and no chart


def test_whether_the_same_seed_gives_the_same_bits_is_said_as_measured(results: tables.Results) -> None:
    def said(again: float | None, **by_label: float) -> str:
        speed = results.speed.assign(repeat_difference=again)
        for label, value in by_label.items():
            speed.loc[(speed.label == label) & (speed["round"] == 1), "repeat_difference"] = value
        return " ".join(map(str, speed_section.noise(select.typed(dataclasses.replace(results, speed=speed)))))

    assert "Trained twice" not in said(None)  # it was not measured
    assert "end at the same weights, bit for bit" in said(0.0)
    assert "differ by up to 0.002 after a few steps (<code>gru</code>)" in said(0.0, gru=0.002, rnn=0.001)
    assert "bit for bit" not in said(0.002)


def test_downloads_are_the_tables(page: Page, folder: Path) -> None:
    links = {a["download"]: a["href"] for a in page.all("a") if "download" in a}
    assert set(links) == {f"{name}.csv" for name in COLUMNS}
    for name in ("bench", "ablate"):
        again = pd.read_csv(pd.io.common.BytesIO(base64.b64decode(links[f"{name}.csv"].partition(",")[2])))
        pd.testing.assert_frame_equal(again, pd.read_csv(folder / f"{name}.csv"))


def test_large_tables_are_left_beside_the_page(results: tables.Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MOST_CSV", 5_000)
    inside = {name: bool(uri) for name, _, uri in report.downloads(results)}
    assert inside["anchors.csv"]
    assert not inside["curves.csv"]


def test_sort_keys_are_plain_numbers(page: Page) -> None:
    keys = [a["data-v"] for a in page.all("td") if a["data-l"] in ("held-out perplexity", "tokens/s") and a["data-v"]]
    assert len(keys) > 10
    assert all(float(k) > 0 for k in keys)


# ---- what may go wrong ----


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    synthetic.write(tmp_path, seeds=2, bench=("gru", "rnn"), ablate=("gru", "gru:R=1"), failures=False, rounds=2)
    results = synthetic.read(tmp_path)
    bad = {
        name: frame.assign(**{
            c: [HOSTILE if v not in ("gru", "gru:R=1", "quick", synthetic.SHA) else v for v in frame[c].astype(object)]
            for c in frame.columns if schema.column(name, c).type is str
        })
        for name in COLUMNS if len(frame := getattr(results, name))
    }  # fmt: skip
    bad["runs"]["run"] = results.runs.run
    raw = drawn(dataclasses.replace(results, **bad), "bench")
    assert "alert(1)</script>" not in re.sub(r"data:[^\"]*", "", raw)
    page = Page(raw)
    assert len(page.all("script")) == 1
    assert "<script>alert(1)" in page.text
    assert "{{7*7}}" in page.text
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on")]


@pytest.mark.parametrize(
    ("gone", "how"),
    [(name, "no rows") for name in COLUMNS]
    + [(name, "all missing") for name in ("bench", "ablate", "runs", "speed", "everything")]
    + [("everything", "no rows"), ("everything", "no columns")],
)
def test_every_section_survives(small: tables.Results, gone: str, how: str) -> None:
    results = small
    for name in COLUMNS if gone == "everything" else [gone]:
        frame = getattr(results, name)
        missing = frame.assign(**dict.fromkeys(frame.columns[1:], math.nan))
        frame = {"no rows": frame.iloc[:0], "all missing": missing, "no columns": pd.DataFrame()}[how]
        results = dataclasses.replace(results, **{name: frame})
    page = Page(drawn(results, "nothing"))
    drawn_ = {a["id"] for a in page.all("section") if "id" in a}
    assert {"found", "caveats", "read", "limits"} <= drawn_
    drawn_ |= {a["id"] for kind in ("dt", "article") for a in page.all(kind) if "id" in a}  # definitions, equations
    assert {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")} <= drawn_
    if gone in ("bench", "ablate") and how == "no rows":
        assert gone not in drawn_
        assert f"make {gone}" in page.text.partition("Before you believe it")[0]
    assert not re.search(r"\bnan\b|\bNone\b|\bNaT\b|\[, \]|<NA>", page.text.replace("loss is nan", ""))
    if gone in ("ablate", "everything"):
        assert "Fixing" not in page.text.split("How to read it")[0].replace("Fixing a", "")
        assert "Needed here" not in page.text
    if gone == "speed":
        assert "timed under two names" not in page.text
        assert "rounds)" not in page.text.split("Methods")[0]
    if gone == "bench" and how != "all missing":
        assert "make bench" in page.text


def test_what_has_no_data_is_not_drawn_and_a_line_names_its_command(results: tables.Results) -> None:
    page = Page(report.html(tables.Results(**{name: pd.DataFrame() for name in COLUMNS})))
    assert [a["id"] for a in page.all("section")] == ["found", "caveats", "read", "limits"]
    assert "make bench and make ablate make them" in page.text
    data = select.typed(dataclasses.replace(results, bench=results.bench.iloc[:0]))
    said = "the variants side by side, and their speed (make bench); charts: How fast does each train?."
    assert Page(answers.absent(data, ["How fast does each train?"])).text == f"Not measured yet: {said}"


def test_one_seed_has_no_interval_and_no_verdict(raw_single: str) -> None:
    page = Page(raw_single)
    assert "n = 1 pair, " in page.text
    assert "no interval" in page.text
    assert "Nothing can be said yet" in page.text
    for word in ("worse by", "better by", ": equivalent, inside"):
        assert word not in page.text
    assert len([c for c in page.all("svg") if c.get("class") == "chart"]) == 2 * (6 + 4 + 5)


def test_numbers_nobody_should_believe_are_missing(results: tables.Results) -> None:
    bad = results.bench.assign(heldout_perplexity=[math.inf, 0.0, -1.0, "text", None, math.nan])
    table = select.typed(dataclasses.replace(results, bench=bad)).bench
    assert table.heldout_perplexity.isna().all()


def test_points_are_drawn_only_where_their_mean_is_the_table_s(results: tables.Results) -> None:
    data = select.typed(results)
    points = select.differences(data, data.ablate)
    means = points.groupby("label").delta_nats.mean()
    table = data.ablate.set_index("variant").delta_nats.dropna()
    assert means[table.index].to_numpy() == pytest.approx(table.to_numpy())
    other = data.ablate.assign(delta_nats=data.ablate.delta_nats + 0.01)
    assert select.differences(data, other).empty
    assert select.speed_samples(data, data.bench.assign(tokens_per_sec=1.0)).empty


def test_lesions_stand_beside_what_was_trained_so(results: tables.Results) -> None:
    none = dataclasses.replace(results, lesions=results.lesions[:0])
    assert gates.lesions(select.typed(none)) is None
    assert 'id="lesions"' not in drawn(none, "nothing")
    gru = results.runs[results.runs.variant == "gru"]
    held = gru.assign(lesion="R=1", heldout_perplexity=gru.heldout_perplexity * np.exp(0.3 + gru.seed / 1000))
    data = dataclasses.replace(results, lesions=held.reindex(columns=list(COLUMNS["lesions"])))
    table = gates.lesions(select.typed(data))
    assert table is not None
    ((name, after, trained, between, dots),) = table.rows
    assert dots.picture.count("<circle") == len(gru)
    assert name.text == "R=1"
    assert float(after.key) == pytest.approx(0.3 + gru.seed.mean() / 1000)
    answer = results.ablate.set_index("variant").delta_nats["gru:R=1"]
    assert float(trained.key) == pytest.approx(answer)
    assert float(between.key) == pytest.approx(float(after.key) - answer)
    assert f"n = {len(gru)}" in after.note
    page, pct = drawn(data, "nothing"), after.text.replace("\u00a0", " ")
    assert 'id="lesions"' in page
    assert f"Held at 1 only after training: held-out perplexity {pct} [" in Page(page).text
    assert f"(n = {len(gru)} pairs, no test)" in Page(page).text
    assert "Held at 0 only after" not in page


def test_sweep_is_a_table_by_size_with_its_ratios(results: tables.Results, raw: str) -> None:
    assert speed_section.sweep(select.typed(results)) is None
    assert 'id="sweep"' not in raw
    rows = results.speed[results.speed.label.isin(["gru", "nn.gru"]) & (results.speed.session == "bench-s1")]
    parts = [
        rows.assign(
            session="sweep-s1",
            verb="sweep",
            hidden=h,
            seeds=s,
            protocol=f"classic,hidden={h}",
            label=rows.label + f", {h} x {s}",
        )
        for h, s in ((128, 1), (256, 1), (256, 8))
    ]
    several = parts[2][parts[2].variant == "gru"].assign(tokens_per_sec=lambda f: 8 * f.tokens_per_sec)
    data = dataclasses.replace(results, speed=pd.concat([results.speed, *parts[:2], several]))
    table = speed_section.sweep(select.typed(data))
    assert table is not None
    assert [[cell.text for cell in row[:3]] for row in table.rows] == [
        ["gru", "128", "1"], ["nn.gru", "128", "1"], ["gru", "256", "1"], ["nn.gru", "256", "1"], ["gru", "256", "8"],
    ]  # fmt: skip
    one, other, eight = (float(table.rows[k][4].key) for k in (0, 2, 4))
    assert one == other == pytest.approx(speeds.speed_ratio(results.speed, "gru", "nn.gru").ratio)
    assert eight == pytest.approx(8 * one)
    assert table.rows[1][4].text == ""  # to itself
    assert 'id="sweep"' in drawn(data, "nothing")


def test_a_cell_and_a_gate_nobody_named_read_well(tmp_path: Path) -> None:
    synthetic.write(tmp_path, seeds=2, rounds=1, bench=("gru", "mgu", "mgu:F=1"), ablate=("gru", "gru:K=1"))
    text = text_of(synthetic.read(tmp_path))
    assert "mgu:F=1 against gru: held-out perplexity differs by" in text
    assert "mgu trains" not in text
    assert "What is gate K for?" in text  # one more gate of the baseline
    assert "Fixing gate K at 1 (gru:K=1) changes held-out perplexity by" in text
    assert re.search(r"[\d,]+ with gate K, [\d,]+ without", text)
    row = pd.Series({"variant": "mgu:F=1", "baseline": "mgu", "protocol": "quick", "delta_nats": 0.05,
                     "delta_low": 0.04, "delta_high": 0.06, "p_holm": 0.01,
                     "pairs": 9, "verdict": "worse"})  # fmt: skip
    assert Page(comparison.effect(row, 1)).text.startswith("Fixing gate F at 1 (mgu:F=1) makes held-out perplexity wo")


# ---- figures ----


def test_no_data_draws_nothing() -> None:
    empty = {name: pd.DataFrame(columns=[*columns, "label"], dtype=float) for name, columns in COLUMNS.items()}
    frames = {
        (comparison, "learning_curves"): (empty["curves"], empty["anchors"]),
        (comparison, "gate_effects"): (empty["ablate"], empty["runs"]),
        (comparison, "perplexity_speed"): (empty["bench"], empty["anchors"]),
        **{(speed_section, name): (empty["speed"], empty["bench"]) for name in ("throughput", "limit", "memory")},
    }  # fmt: skip
    for (module, name), pair in frames.items():
        assert getattr(module, name)(*pair) is None
        assert getattr(module, f"{name}_alt")(*pair) == ""
        assert len(getattr(module, name).__doc__) > 100  # its caption


def test_a_chart_is_one_function_its_caption_its_docstring_its_description_what_its_points_say() -> None:
    def chart(rows: pd.DataFrame, width: float = drawing.WIDE) -> drawing.Figure | None:
        """Dots, right is more."""
        if rows.empty:
            return None
        figure = drawing.Figure(figsize=(width, 2))
        ax = figure.subplots()
        ax.scatter(rows.x, rows.y)
        drawing.hint(ax, rows.x, rows.y, [f"{label}: {x:g}" for label, x in zip(rows.label, rows.x, strict=True)])
        return figure

    rows, figures = pd.DataFrame({"label": ["gru", "rnn"], "x": [1.0, 2.0], "y": [0, 1]}), sections.Figures()
    pictures = [sections.Picture("one", "How many?", chart, (rows,)),
                sections.Picture("none", "None?", chart, (rows.iloc[:0],), missing="no rows")]  # fmt: skip
    one, none = sections.charts("mine", pictures, figures)
    assert (one.id, one.alt, one.caption) == ("mine-one", "How many? gru: 1; rnn: 2", "Dots, right is more.")
    assert (none.missing, none.images, list(figures)) == ("no rows", (), ["mine-one"])


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW])
@pytest.mark.parametrize("factor", [0.1, 0.8, 1.3, 10.0])
def test_all_references_may_lie_on_one_side_of_all_models(results: tables.Results, factor: float, width: float) -> None:
    table = results.bench.assign(label=results.bench.variant)
    edge = table.heldout_perplexity.min() if factor < 1 else table.heldout_perplexity.max()
    anchors = pd.DataFrame({"model": ["3-gram", "2-gram", "floor"], "heldout_perplexity": edge * factor})
    figure = comparison.perplexity_speed(table, anchors, width=width)  # a warning would be an error
    assert figure is not None
    bottom, top = figure.axes[0].get_ylim()
    assert bottom < table.heldout_perplexity.min() < table.heldout_perplexity.max() < top
    lines = [np.asarray(line.get_ydata(), float)[0] for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert all(bottom < y < top for y in lines)
    said = [note.get_text() for note in figure.axes[0].texts if "gram" in note.get_text() or "floor" in note.get_text()]
    assert len(said) == 2  # one outside is said, not drawn: it would leave the models no room
    assert len(lines) == sum("(" not in text for text in said)


def test_drawing_leaves_no_style_behind(results: tables.Results) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    table = results.bench.assign(label=results.bench.variant)
    drawing.svg(comparison.perplexity_speed(table, results.anchors) or pytest.fail("nothing drawn"))
    assert dict(mpl.rcParams) == before
    assert mpl.rcParams["svg.hashsalt"] is None  # nor by whatever was drawn before this test


FOREIGN = """text.usetex: True
font.family: No Such Font
svg.fonttype: path
savefig.dpi: 33
savefig.bbox: tight
lines.linewidth: 7
axes.prop_cycle: cycler("color", ["k"])
backend: nonsense
"""


def test_figures_are_the_same_whatever_backend_and_style_a_user_has(single: Path, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, hashlib, warnings; warnings.simplefilter('error'); sys.path[:0] = sys.argv[1:3]\n"
        "import synthetic; from harness.report import drawing, select\n"
        "from harness.report.sections import gates, tasks\n"
        "data = select.typed(synthetic.read(pathlib.Path(sys.argv[3])))\n"
        "for figure in tasks.updates(data.tasks, data.probes), gates.gate_map(data.heat):\n"
        "    print(hashlib.sha256(drawing.svg(figure).encode() + drawing.png(figure)).hexdigest())"
    )
    (tmp_path / "matplotlibrc").write_text(FOREIGN, encoding="utf-8")
    (tmp_path / "plain").mkdir()
    here = Path(__file__).parents[2] / "tests" / "support"
    seen = []
    for folder, backend in (("plain", {}), (".", {"MPLBACKEND": "module://matplotlib_inline.backend_inline"})):
        done = subprocess.run(
            [sys.executable, "-c", code, here, here.parents[1], single], cwd=tmp_path / folder, text=True, check=False,
            capture_output=True, env={**os.environ, "MPLCONFIGDIR": str(tmp_path), **backend},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        seen.append(done.stdout)
    assert seen[0] == seen[1]


def test_a_caller_s_own_backend_stays_his() -> None:
    code = "import os, harness.report.drawing, matplotlib as m; print(os.environ['MPLBACKEND'], m.rcParams['backend'])"
    told = {**os.environ, "MPLBACKEND": "svg", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["svg", "svg"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [("\u4e2d", "U+4E2D"), ("\n", "\u21b5"), ("\x07", "U+0007"), ("\u202e", "U+202E"), ("\u00e9$", "\u00e9$"),
     ("gru", "gru"), ("x" * 30, "x" * 21 + "\u2026"), ("\u4e2d" * 30, "U+4E2D" * 3 + "\u2026")],
)  # fmt: skip
def test_a_sign_the_font_lacks_is_shown_by_its_code_point(text: str, shown: str) -> None:
    assert drawing.short(text) == shown


def test_a_heat_map_of_another_script_has_no_empty_boxes(results: tables.Results) -> None:
    heat = results.heat.assign(character=results.heat.character.map(lambda c: chr(0x4E00 + ord(c))), gate="\u95e8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a glyph that is missing
        figure = gates.gate_map(heat)
        assert figure
        drawing.png(figure)
    assert "U+4E68" in drawing.svg(figure)


def test_every_gate_has_a_colour_a_dash_and_a_marker_of_its_own(results: tables.Results) -> None:
    looks = {name: drawing.look(name) for name in ("gru", "gru:R=1", "gru:Z=0", "rnn", "lstm")}
    for k in range(3):
        assert len({str(looks[name][k]) for name in ("gru", "gru:R=1", "gru:Z=0")}) == 3
    assert len({look[0] for look in looks.values()}) == 5
    assert drawing.look("gru:R=0.5 native") == looks["gru:R=1"]
    figure = tasks.updates(results.tasks, results.probes)
    assert figure
    assert not figure.legends
    for panel, (_, own) in zip(figure.axes, results.tasks.groupby("task", sort=False), strict=True):
        assert [label.get_text() for label in panel.get_yticklabels()] == own.variant.tolist()
        failing = [f"{int(r.seeds - r.solved)} of {int(r.seeds)} not" for r in own.itertuples() if r.solved < r.seeds]
        assert [note.get_text() for note in panel.texts] == failing


def test_a_line_that_ends_below_the_axis_is_drawn_without_a_warning() -> None:
    """As a gradient does that vanishes within a few characters."""
    back = range(1, 6)
    shares = pd.DataFrame({"label": "rnn native", "seed": 0, "characters_back": back,
                           "gradient_share": [1e-3**k for k in range(3, 28, 5)]})  # fmt: skip
    figure = gates.reach(shares)
    assert figure
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawing.svg(figure)


def test_names_at_lines_do_not_overlap() -> None:
    figure = drawing.Figure(figsize=(4, 3))
    ax = figure.subplots()
    drawing.name_lines(ax, [(0.5 + k / 1000, f"line {k}", "k") for k in range(20)], 200)
    figure.draw_without_rendering()
    boxes = sorted(Text.get_window_extent(note).y0 for note in ax.texts)  # without its line
    assert min(np.diff(boxes)) > 7


def test_an_inline_chart_has_the_page_s_colours_and_names_of_its_own(results: tables.Results) -> None:
    table = results.bench.assign(label=[f'{v}"><b id="x" style="color: red">' for v in results.bench.variant])
    figure = comparison.perplexity_speed(table, results.anchors)
    assert figure is not None
    text = drawing.inline(drawing.svg(figure), "k", 'said <"&')
    assert not re.search("|".join([*drawing.LIGHT.values(), *drawing.DARK.values()]), text)
    assert "var(--f-ink)" in text
    assert "<b" not in text
    tags = re.findall(r"<[^>]*>", text)
    assert not [tag for tag in tags if re.search(r"\sstyle=", tag)]
    names = re.findall(r'\sid="([^"]*)"', "".join(tags))
    assert names
    assert all(name.startswith("k-") for name in names)
    used = re.findall(r'(?:href="#|url\(#)([\w.-]+)', "".join(tags))
    assert set(used) == set(names)
    titles = re.findall("<title>(.*?)</title>", text)
    assert len(titles) == table[["heldout_perplexity", "tokens_per_sec"]].dropna().shape[0]
    assert re.search(r"perplexity \d", titles[0])


def test_points_outside_a_chart_say_nothing(results: tables.Results) -> None:
    """A gradient of 1e-12 lies under the lowest value that is drawn."""
    back = range(1, 6)
    shares = pd.DataFrame({"label": "rnn", "seed": 0, "characters_back": back,
                           "gradient_share": [10.0**-k for k in (1, 2, 3, 9, 12)]})  # fmt: skip
    figure = gates.reach(shares)
    assert figure
    assert drawing.svg(figure).count("<title>") == 3


@pytest.mark.parametrize(("theme", "least"), [(drawing.LIGHT, 4.5), (drawing.DARK, 4.5)])
def test_colours_can_be_read(theme: dict[str, str], least: float) -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for name in ("ink", "muted", "blue", "vermilion", "green"):
        high, low = sorted([luminance(theme[name]), luminance(theme["paper"])], reverse=True)
        assert (high + 0.05) / (low + 0.05) >= least, name


def test_alt_text_says_the_table_s_numbers(results: tables.Results) -> None:
    table = results.ablate.assign(label=results.ablate.variant, verdict=results.ablate.verdict.fillna(""),
                                  baseline=results.ablate.baseline.fillna(""))  # fmt: skip
    text = comparison.gate_effects_alt(table, pd.DataFrame(columns=["label", "delta_nats"]))
    worst = table.loc[table.delta_nats.idxmax()]
    assert (
        f"{worst.label} {worst.delta_nats:+.3f} [{worst.delta_low:.3f}, {worst.delta_high:.3f}] (n = 10, worse)" in text
    )
    assert f"Largest: {worst.label};" in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not on PATH")
def test_opens_without_a_word_on_the_console(raw_single: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(raw_single, encoding="utf-8")
    try:
        done = subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
             f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        pytest.skip("chromium did not answer in 30 s: the machine is busy")
    assert "CONSOLE" not in done.stderr
    assert "Refused" not in done.stderr
    heads = re.findall(r'<table[^>]* class="main".*?</thead>', raw_single, re.DOTALL)
    assert done.stdout.count('<button type="button">') == sum(head.count('<th scope="col"') for head in heads) > 20


def test_the_loop_is_answered_where_every_engine_was_timed(results: tables.Results) -> None:
    """Of each variant the engine that trained it counts, its first row; others only add rows."""
    alone = answers.loop_answer(select.typed(results))[0].finding
    slow = results.bench[results.bench.variant == "gru"].assign(engine="loop", tokens_per_sec=9.0)
    first = results.bench.assign(engine=results.bench.engine.where(results.bench.variant != "gru", "native"))
    speed = results.speed.assign(engine=results.speed.engine.where(results.speed.variant != "gru", "native"))
    extra = speed[speed.label == "gru"].assign(label="gru (loop)", engine="loop", tokens_per_sec=9.0)
    several = dataclasses.replace(
        results, bench=pd.concat([first, slow], ignore_index=True), speed=pd.concat([speed, extra], ignore_index=True)
    )
    answer = answers.loop_answer(select.typed(several))
    assert answer[0].finding == alone.replace("engine loop", "engine native")
    assert any("engine native" in point for point in answer[0].points)


def of_speeds(results: tables.Results, times: object = 1.0) -> tables.Results:
    """The same, its timed rates so many times what they were, both tables built from them."""
    speed = results.speed.assign(tokens_per_sec=results.speed.tokens_per_sec * times)
    tables_of = {
        verb: compare.build(results.runs, speed[speed.session == f"{verb}-s1"], list(dict.fromkeys(own.variant)),
                          own.protocol.iloc[0], own.corpus_sha256.iloc[0], "cpu")
        for verb, own in (("bench", results.bench), ("ablate", results.ablate))
    }  # fmt: skip
    return select.typed(dataclasses.replace(results, speed=speed, **tables_of))


def test_where_a_speed_cannot_be_told_no_figure_stands_out(results: tables.Results) -> None:
    """One machine that was busy in every second round: the same of everything there is."""
    noisy = of_speeds(results, np.exp(np.random.default_rng(0).normal(0, 1.0, len(results.speed))))
    said = [*answers.gate_answers(noisy), *answers.loop_answer(noisy)]
    faster = [text for a in said for text in (*a.points, *a.cost) if "rounds)" in text]
    assert len(faster) == 5  # two gates; the whole, the cell and the way it is run
    assert all("which trains faster cannot be told" in text for text in faster)
    assert not [text for text in faster if "<strong>" in text]
    assert said[-1].finding == "Whether it or gru (engine loop) trains faster cannot be told from these rounds."
    assert said[-1].question == "How fast is nn.gru?"
    for verb, own in (("bench", noisy.bench), ("ablate", noisy.ablate)):
        shown = comparison.main_table(noisy, verb, own)
        column = next(k for k, head in enumerate(shown.heads) if head[0].startswith("speed vs"))
        for row, kept in zip(shown.rows, own.itertuples(), strict=True):
            told = kept.speed_verdict != speeds.UNTOLD
            assert (row[column].text == speeds.UNTOLD) != told
            assert told or row[column].note.startswith(f"{kept.speed_ratio:.2f}\u00d7 [")
        assert (own.speed_verdict == speeds.UNTOLD).sum() > 1


def test_a_told_speed_and_the_rates_beside_it_say_the_same(results: tables.Results) -> None:
    """Whatever the noise: no row is called faster, or given a ratio, that its own tokens/s contradict."""
    told = 0
    for seed in (1, 2, 4, 7):
        noise = np.exp(np.random.default_rng(seed).normal(0, 0.1 * seed, len(results.speed)))
        made = of_speeds(results, noise)
        for own in (made.bench, made.ablate):
            base = own.set_index("variant").tokens_per_sec[own.speed_baseline.iloc[0]]
            for row in own[own.speed_verdict.isin(["faster", "slower"])].itertuples():
                told += 1
                assert (row.tokens_per_sec > base) == (row.speed_ratio > 1) == (row.speed_verdict == "faster")
                assert row.speed_ratio_low <= row.tokens_per_sec / base * 1.000001
                assert row.tokens_per_sec / base <= row.speed_ratio_high * 1.000001
    assert told > 9


def test_samples_that_were_disturbed_throughout_are_said_beside_their_figures(results: tables.Results) -> None:
    busy = results.speed.label.isin(["gru"]) & results.speed["round"].isin([1, 3])
    speed = results.speed.assign(disturbed=results.speed.disturbed.astype(bool) | busy)
    data = of_speeds(dataclasses.replace(results, speed=speed))
    assert data.bench.set_index("variant").speed_disturbed["gru"] == 2
    shown = {row[0].text: row for row in comparison.main_table(data, "bench", data.bench).rows}
    assert any("n = 5, 2 disturbed" in cell.note for cell in shown["gru"])
    assert not any("disturbed" in cell.note for cell in shown["nn.gru"])
    (update,) = [a for a in answers.gate_answers(data) if a.question == "What is the update gate for?"]
    assert any("(n = 5 rounds, 2 rounds of them disturbed throughout)" in text for text in update.cost)
    assert any("whose speed is of a busy machine: gru (4 of 10)." in text for text in methods.caveats(data))


def test_the_book_s_own_code_stands_beside_torch_s(results: tables.Results) -> None:
    data = select.typed(results)
    assert not any("book" in point for point in answers.loop_answer(data)[0].points)
    book = data.speed[data.speed.label == "gru"].assign(label="gru (book)", engine="book")
    data = dataclasses.replace(data, speed=pd.concat([data.speed, book], ignore_index=True))
    (point,) = [point for point in answers.loop_answer(data)[0].points if "book" in point]
    assert "the rate of the book\u2019s own code of <code>gru</code> (n = 5 rounds)" in point


def test_a_rate_that_was_chosen_and_a_size_that_was_matched_are_said(tmp_path: Path) -> None:
    protocol = dataclasses.replace(protocols.PROTOCOLS["book"], match="parameters")
    made = synthetic.read(synthetic.write(tmp_path, protocol=protocol, bench=("gru", "rnn"), ablate=("gru", "gru:R=1")))
    table = made.ablate.assign(hidden=[128, 153], lr=[1.0, 4.0])
    data = select.typed(dataclasses.replace(made, ablate=table))
    said = methods.setting(data, data.ablate)
    assert "a learning rate chosen for each variant" in said
    assert "SGD at learning rate" not in said
    other = synthetic.read(synthetic.write(tmp_path / "adam", bench=(), protocol=protocols.PROTOCOLS["quick"].override(
        ["optimizer=adamw", "weight_decay=0.1", "schedule=cosine", "warmup=10"])))  # fmt: skip
    assert (
        "AdamW with weight decay 0.1 at learning rate 0.003 that rises over 10 updates and falls along a cosine"
        in methods.setting(select.typed(other), other.ablate)
    )
    held_out = "the next 8,529 held out (the whole text, cut by position: 90, 5 and 5 %);"
    assert f"153,522 characters to learn from, the next 8,529 to validate on, {held_out}" in said
    limit, _state = [text for text in methods.limits(data) if text.startswith("book")]
    assert "one learning rate" not in limit
    assert "one number of parameters" in limit
    shown = comparison.main_table(data, "ablate", data.ablate)
    heads = [head[0] for head in shown.heads]
    assert [row[heads.index("hidden units")].text for row in shown.rows] == ["128", "153"]
    assert [row[heads.index("learning rate")].text for row in shown.rows] == ["1", "4"]
    plain = select.typed(synthetic.read(synthetic.write(tmp_path / "plain", bench=("gru",), ablate=("gru", "rnn"))))
    assert "learning rate" not in [head[0] for head in comparison.main_table(plain, "ablate", plain.ablate).heads]
    assert any("one learning rate" in text for text in methods.limits(plain))


def test_a_variant_past_its_best_is_said(tmp_path: Path) -> None:
    made = synthetic.read(
        synthetic.write(tmp_path, protocol=protocols.PROTOCOLS["book"], bench=("gru",), ablate=("gru", "rnn"))
    )
    assert methods._past_their_best(select.typed(made), made.ablate) == ""  # made-up curves only fall
    last = made.curves.epoch == made.curves.epoch.max()
    worse = made.curves.heldout_perplexity.where(~(last & (made.curves.variant == "rnn")), 9.0)
    data = select.typed(dataclasses.replace(made, curves=made.curves.assign(heldout_perplexity=worse)))
    said = methods._past_their_best(data, data.ablate)
    assert "rnn (lowest at epoch" in said
    assert "at the end, 9.00; n = 10 seeds)" in said
    assert "gru (" not in said
    assert said in methods.caveats(data)[-1] or any(said in line for line in methods.caveats(data))


def test_what_a_protocol_of_windows_is_is_said(tmp_path: Path) -> None:
    v1 = synthetic.read(
        synthetic.write(tmp_path, protocol=protocols.PROTOCOLS["v1"], bench=("gru", "rnn"), ablate=("gru",))
    )
    data = select.typed(v1)
    assert "10,000 windows to learn from, the next 5,000 held out" in methods.setting(data, data.bench)
    said = " ".join(methods.limits(data))
    assert "beyond 32 characters" in said
    assert "the first 32 held-out characters also lie in the last training windows" in said
    assert "carried over the whole text" not in said
    quick = select.typed(synthetic.read(synthetic.write(tmp_path / "quick", bench=("gru", "rnn"), ablate=("gru",))))
    assert "characters to learn from" in methods.setting(quick, quick.bench)
    assert "carried over the whole text" in " ".join(methods.limits(quick))


def test_a_number_written_into_the_page_is_that_of_the_data(results: tables.Results, page: Page) -> None:
    assert "symbols." in page.text  # an older folder does not say how many
    assert "28" not in re.findall(r"1 is perfect.{0,120}", page.text)[0]
    uniform = results.anchors.iloc[:1].assign(model="uniform", heldout_perplexity=65.0)
    other = uniform.assign(corpus="shakespeare", heldout_perplexity=300.0, protocol="x")
    told = dataclasses.replace(results, anchors=pd.concat([results.anchors, uniform, other]))
    text = text_of(told)
    assert "as many as the text has symbols (time-machine: 65, shakespeare: 300)." in text
    assert f"p after Holm is under {stats.ALPHA}." in text
    assert f"{SCORED:,} sequences never" in tasks.section(select.typed(results)).setting  # type: ignore[union-attr]


def test_the_level_of_an_interval_is_the_one_it_was_computed_at(results: tables.Results) -> None:
    data = select.typed(results)
    heads = [head[:2] for head in comparison.main_table(data, "ablate", data.ablate).heads]
    assert ("difference to gru", "% [95 %], nats/char") in heads
    looked = data.ablate.assign(looks=4.0)
    heads = [head[:2] for head in comparison.main_table(data, "ablate", looked).heads]
    assert ("difference to gru", "% [98.75 %], nats/char") in heads
    assert (
        comparison.effects_table(looked.assign(label=looked.variant), select.differences(data, data.ablate))[1][2][0]
        == "98.75 % interval"
    )
    said = methods.methods(dataclasses.replace(data, ablate=looked))[-1]
    assert "with a 98.75 % t interval" in said


def test_each_text_has_its_own_samples_and_its_own_baseline(results: tables.Results) -> None:
    """The ablation on another text: its gru and rnn stand there, and not under the bench's."""
    moved = "0" * 64
    runs = results.runs[results.runs.variant.isin(ABLATE)].assign(
        corpus="shakespeare", corpus_sha256=moved, sample="the king of whom it is said", run=lambda d: "x" + d.run
    )
    ablate = results.ablate.assign(corpus="shakespeare", corpus_sha256=moved)
    data = select.typed(
        dataclasses.replace(results, ablate=ablate, runs=pd.concat([results.runs, runs], ignore_index=True))
    )
    (first, bench), (second, ablation) = comparison.samples(data)
    assert (first, second) == ("time-machine", "shakespeare")
    assert [row[0] for row in ablation] == list(ABLATE)
    assert {row[2:] for row in ablation} == {("", "the king of whom it is said")}
    assert {row[2] for row in bench} == {"time traveller"}
    assert len({row[0] for row in bench}) == len(bench)
    same = select.typed(results)  # one text: a variant of both tables once
    ((_, rows),) = comparison.samples(same)
    assert [row[0] for row in rows].count("gru") == 1
    edited = dataclasses.replace(data, runs=data.runs.assign(corpus="time-machine"))
    assert [name[:22] for name, _ in comparison.samples(edited)] == ["time-machine (SHA-256 "] * 2


@pytest.mark.parametrize(
    ("x", "text"),
    [(7.456, "7.46"), (999.994, "999.99"), (1234.5, "1,230"), (7.32e5, "732,000"), (7.32e8, "> 10,000,000"),
     (1e300, "> 10,000,000"), (math.inf, ""), (math.nan, "")],
)  # fmt: skip
def test_a_large_perplexity_is_spelt_in_digits(x: float, text: str) -> None:
    assert formatting.ppl(x) == text
    assert "e+" not in formatting.score(x) + formatting.pct(x) + formatting.nats(x) + formatting.rate(
        x
    ) + formatting.mib(x)


def test_no_interval_of_a_perplexity_is_below_one(results: tables.Results) -> None:
    runs = results.runs[results.runs.error.isna()].assign(heldout_perplexity=lambda d: 1.5 + 5000.0 * (d.seed == 0))
    built = compare.build(runs[runs.seed < 2], results.speed.iloc[:0], ["gru", "rnn"], "quick", synthetic.SHA, "cpu")
    assert (built.heldout_low == 1.0).all()
    assert (built.heldout_high > built.heldout_perplexity).all()
    one = compare.build(runs[runs.seed < 1], results.speed.iloc[:0], ["gru"], "quick", synthetic.SHA, "cpu")
    assert one.heldout_low.isna().all()
    curve = pd.DataFrame({"tokens": [1, 1], "heldout_perplexity": [1.5, 5000.0]})
    assert select.over_seeds(curve, "heldout_perplexity").low.tolist() == [1.0]
    assert "ends at perplexity 1" in " ".join(methods.methods(select.typed(results)))


def test_a_gradient_that_grew_is_no_share_of_it(results: tables.Results) -> None:
    reach = results.reach[results.reach.characters_back == 16].assign(gradient_share=1.1)
    reach = pd.concat([reach[reach.variant == v] for v in ("gru", "gru:R=1")])
    reach.loc[reach.variant == "gru", "gradient_share"] = 0.004
    section = gates.section(select.typed(dataclasses.replace(results, reach=reach)))
    assert section
    said = " ".join(section.said)
    assert "back 16 characters, relative to what it was: largest in <code>gru:R=1</code>, 1.10 [1.10, 1.10]" in said
    assert "smallest in <code>gru</code>, 0.0040 [" in said
    assert "110" not in said


def test_after_bench_alone_the_page_opens_with_what_was_measured(results: tables.Results) -> None:
    page = drawn(dataclasses.replace(results, ablate=results.ablate.iloc[:0], tasks=results.tasks.iloc[:0]), "nothing")
    cards = re.findall(r'<article class="answer.*?</article>', page, re.DOTALL)
    assert ["Which predicts this text best?" in c for c in cards] == [True, False]
    assert "Not measured" not in "".join(cards)
    best = results.bench.loc[results.bench.heldout_perplexity.idxmin()]
    assert f"{best.variant}: held-out perplexity {best.heldout_perplexity:.2f} [" in cards[0]
    text = Page(page).text
    assert "Not measured yet: what the reset gate and the update gate are for (make ablate)." in text


def test_a_heading_answers_what_a_gate_is_for_where_a_task_of_memory_was_tried(results: tables.Results) -> None:
    def answer(verdict: str, recall: str) -> str:
        """Of the update gate: its verdict on the text, and without it on delayed recall."""
        sign = {"worse": 1.0, "better": -1.0}.get(verdict, 0.001)
        ablate = results.ablate[results.ablate.variant.isin(["gru", "gru:Z=0"])].assign(
            verdict=verdict, delta_nats=sign
        )
        tasks = tasks_of(results, "Z", {"delayed_recall": recall})
        data = select.typed(dataclasses.replace(results, ablate=ablate, tasks=tasks))
        (found,) = [a for a in answers.gate_answers(data) if a.question == "What is the update gate for?"]
        return found.claim

    assert answer("worse", "fails") == "The update gate is for predicting this text, and for long memory"
    assert answer("worse", "slower") == "The update gate is for predicting this text; no task here shows a need for it"
    assert answer("equivalent", "fails") == "The update gate is for long memory, not for predicting this text"
    assert answer("better", "fails") == "The update gate is for long memory, not for predicting this text"
    assert answer("better", "undecided") == "The update gate is needed neither for this text nor for a task here"
    assert answer("undecided", "fails") == "The update gate is for long memory"
    assert answer("undecided", "undecided") == ""


def test_trainings_of_uncommitted_code_are_counted(results: tables.Results) -> None:
    runs = results.runs.assign(environment=results.runs.environment.where(results.runs.seed > 2, "e2"))
    machines = pd.concat([results.environments, results.environments.assign(environment="e2", dirty=True, cpu="other")])
    data = select.typed(dataclasses.replace(results, runs=runs, environments=machines))
    said = " ".join(methods.caveats(data))
    assert f"<b>Ablation.</b> 12 of {len(ABLATE) * 10} trainings ran code with changes that were not committed" in said
    assert "Measured on 2 machines (made-up CPU and other)." in said
    assert "not committed" not in " ".join(methods.caveats(select.typed(results)))
    assert "cross machines" not in said  # nothing is known of their bits
    runs = results.runs.assign(bits=["b" * 8 if seed == 3 and v != "gru" else "a" * 8 for seed, v in
                                     zip(results.runs.seed, results.runs.variant, strict=True)])  # fmt: skip
    said = " ".join(methods.caveats(select.typed(dataclasses.replace(results, runs=runs))))
    many = len(set(ABLATE)) - 1
    assert f"{many} of {10 * many} pairs cross machines of two classes of bits" in said


def test_past_its_best_is_judged_by_the_mean_curve(tmp_path: Path) -> None:
    """Every seed has its least somewhere else, and loses 3 % from there; their mean falls to the end."""
    made = synthetic.read(
        synthetic.write(tmp_path, protocol=protocols.PROTOCOLS["book"], bench=("gru",), ablate=("gru", "rnn"))
    )
    mean = made.curves.groupby("epoch").heldout_perplexity.transform("mean")
    dip = made.curves.epoch.rank(method="dense") == made.curves.seed + 8
    lucky = dataclasses.replace(made, curves=made.curves.assign(heldout_perplexity=mean.where(~dip, mean.min() * 0.97)))
    assert methods._past_their_best(select.typed(lucky), lucky.ablate) == ""


def test_figures_for_a_paper_have_its_column_s_width_and_their_fonts_inside(
    small: tables.Results, tmp_path: Path
) -> None:
    """Each that the report draws, once, as wide as was asked for; letters can be read; bytes are the same again."""
    few = dataclasses.replace(small, **{name: getattr(small, name).iloc[:0] for name in (
        "bench", "curves", "gates", "reach", "heat", "positions", "probes", "tasks", "axes", "reproduce", "claims",
        "learning_rates")})  # fmt: skip
    written = report.write_figures(few, tmp_path / "figs", "8.255cm")
    assert {path.name for path in written} >= {"ablate-effects.pdf", "ablate-trade.pdf"}
    for path in written:
        whole = path.read_bytes()
        [box] = re.findall(rb"/MediaBox \[ ?([\d. ]+?) ?\]", whole)
        assert float(box.split()[2]) == pytest.approx(3.25 * 72, abs=0.1)
        assert b"/FontFile2" in whole
        assert b"/Type3" not in whole
        assert b"/CreationDate" not in whole
    figure = comparison.pictures(select.typed(few), "ablate")[0]
    drawn = figure.draw(*figure.frames, width=3.25)
    assert drawn is not None
    assert min(float(t.get_fontsize()) for t in drawn.findobj(Text) if isinstance(t, Text) and t.get_text()) >= 6
    assert drawing.pdf(drawn) == drawing.pdf(drawn)


def test_a_width_is_read_in_the_units_of_papers_and_a_slip_is_one_line() -> None:
    for width in ("3.25in", "8.255cm", "82.55 mm", 3.25, "3.25"):
        assert drawing.inches(width) == pytest.approx(3.25)
    assert drawing.inches("240pt") == pytest.approx(3.321, abs=1e-3)
    for width, said in (
        ("3em", "no width: give one like 3.25in"),
        ("40in", "from 2.5 to 12 inches wide, not 40"),
        ("", "no width"),
    ):
        with pytest.raises(ValueError, match=said):
            drawing.inches(width)
