"""The report in a real browser: nothing asked for, nothing said, readable at every width, by keyboard, and by everyone.

Chromium is spoken to through its own pipe (--remote-debugging-pipe): no driver to install. tests/vendor has axe-core,
the accessibility checker, as published (MPL 2.0).
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import synthetic

from harness.experiments.tasks import TASKS
from harness.record import tables
from harness.report import page as report
from harness.report import sections
from harness.run import network, train_task
from variants.model import Model

CHROMIUM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
AXE = Path(__file__).parents[1] / "vendor" / "axe-core-4.14.1.min.js"
PATIENCE_S = 60.0
WIRE = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]]  # out of the way of 3 and 4
for fd, end in zip((3, 4), ends):  # it reads commands on 3 and writes on 4
    os.dup2(end, fd)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """Chromium with one page, by the DevTools protocol. `heard`: every event so far."""

    def __init__(self, profile: Path) -> None:
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()

        words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                 "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
                 f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-c", WIRE, str(theirs_in), str(theirs_out), *map(str, words)],
            pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        os.set_blocking(ours_in, False)
        self.reader, self.writer = ours_in, ours_out
        self.number, self.rest, self.heard, self.session = 0, b"", list[dict[str, Any]](), ""
        targets = self.ask("Target.getTargets")["targetInfos"]
        page = next(t["targetId"] for t in targets if t["type"] == "page")
        self.session = self.ask("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: object) -> dict[str, Any]:
        """The answer of a command."""
        self.number += 1
        message: dict[str, object] = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writer, json.dumps(message).encode() + b"\0")
        return self._hear(lambda m: m.get("id") == self.number)

    def wait(self, event: str) -> None:
        self._hear(lambda m: m.get("method") == event)

    def js(self, code: str) -> Any:
        """The value of a piece of script, awaited."""
        said = self.ask("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def key(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more)

    def look(self, width: int, scheme: str = "light") -> None:
        """The page at a width, in a colour scheme."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, path: Path) -> None:
        self.heard.clear()
        self.ask("Page.navigate", url=path.as_uri())
        self.wait("Page.loadEventFired")

    def _hear(self, wanted: Any) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            while b"\0" in self.rest:
                one, _, self.rest = self.rest.partition(b"\0")
                message = json.loads(one)
                if "method" in message:
                    self.heard.append(message)
                if wanted(message):
                    assert "error" not in message, message
                    result: dict[str, Any] = message.get("result", {})
                    return result
            try:
                part = os.read(self.reader, 2**20)
                assert part, "the browser has gone"
                self.rest += part
            except BlockingIOError:
                time.sleep(0.005)
        raise TimeoutError("the browser did not answer")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.reader)
        os.close(self.writer)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not os.access("/dev/null", os.R_OK):
        pytest.skip("no /dev/null")
    one = Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = synthetic.write(tmp_path_factory.mktemp("results"), seeds=3, bench=("rnn", "gru", "nn.gru", "lstm"),
                           ablate=("gru", "gru:R=1", "gru:Z=0", "gru:Z=0,R=1"))  # fmt: skip
    (folder / report.NAME).write_text(report.html(tables.read(folder)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every column that a table can have is filled."""
    folder = synthetic.write(tmp_path_factory.mktemp("wide"), ablate=("gru", "gru:R=1", "gru:Z=0,R=1"))
    results = tables.read(folder)
    full = {"hidden": range(100, 100 + len(results.bench)), "lr": 0.25, "peak_reserved_mib": 1234.5,
            "tokens_per_sec": 12_345_678.0, "tokens_per_sec_all_seeds": 123_456_789.0}  # fmt: skip
    bench = results.bench.assign(**full).assign(lr=[0.25, *[16.0] * (len(results.bench) - 1)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sections, "charts", lambda *_: [])
        page = report.html(dataclasses.replace(results, bench=bench))
    (folder / report.NAME).write_text(page, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page in which nine networks of random weights, of 32 hidden units, read what is typed."""
    names = ("gru", "gru:R=1", "gru:Z=0", "gru:Z=0,R=1", "rnn", "lstm", "mgu", "nn.gru", "nn.rnn")
    folder = synthetic.write(tmp_path_factory.mktemp("laboratory"), seeds=2, bench=names, ablate=names, failures=False)
    results, letters = tables.read(folder), ["<unk>", *" etaoinshrdlucmfwypvbgkjqxz"]
    runs = results.runs[results.runs.seed == 0]
    networks = [
        {"run": run, **network.network(Model(name, len(letters), 32, [0], "torch"), 0, letters, list(range(1, 27)) * 9)}
        for run, name in zip(runs.run, runs.variant, strict=True)
    ]  # fmt: skip
    results, networks = answering(results, networks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sections, "charts", lambda *_: [])
        (folder / report.NAME).write_text(report.html(results, networks=networks), encoding="utf-8")
    return folder


def answering(results: tables.Results, networks: list[dict[str, Any]]) -> tuple[tables.Results, list[dict[str, Any]]]:
    """With trainings on two tasks beside them, of random weights."""
    rows, own = list[dict[str, Any]](), list[dict[str, Any]]()
    for name, task in ((name, TASKS[name]) for name in ("s3", "delayed_recall")):
        for variant in ("gru", "gru:R=1", "rnn"):
            run = f"{variant} {name}"
            model = Model(variant, task.inputs, 16, [0], "torch", outputs=task.outputs)
            own.append({"run": run, "variant": variant, **json.loads(train_task.kept(model, 0, task))})
            rows.append({"run": run, "variant": variant, "task": name, "protocol": name, "seed": 0, "score": 0.5,
                         "length": task.length, "error": ""})  # fmt: skip
    return dataclasses.replace(results, probes=tables.frame("probes", rows)), [*networks, *own]


@pytest.fixture
def page(browser: Browser, folder: Path) -> Browser:
    browser.look(1200)
    browser.open(folder / report.NAME)
    return browser


def test_nothing_is_asked_for_and_nothing_said(page: Browser) -> None:
    page.js("new Promise(done => requestAnimationFrame(() => setTimeout(done, 100)))")
    asked = [e["params"]["request"]["url"] for e in page.heard if e["method"] == "Network.requestWillBeSent"]
    assert [url.split(":")[0] for url in asked][:1] == ["file"]
    assert {url.split(":")[0] for url in asked[1:]} <= {"data"}
    said = [
        e
        for e in page.heard
        if e["method"] in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    ]
    assert said == []
    assert page.js("[...document.querySelectorAll('.chart image')].every(i => i.href.baseVal.startsWith('data:'))")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1440])
def test_no_width_makes_the_page_scroll_sideways(page: Browser, width: int, scheme: str) -> None:
    page.look(width, scheme)
    assert page.js("document.documentElement.scrollWidth") <= width
    assert page.js("innerWidth") == width
    dark = page.js("getComputedStyle(document.body).backgroundColor") == "rgb(21, 25, 30)"
    assert dark == (scheme == "dark")
    shown = page.js("[...document.querySelector('figure:has(.chart)').querySelectorAll('.chart')]"
                    ".map(c => c.getBoundingClientRect().width > 0)")  # fmt: skip
    assert shown == [width > 640, width <= 640]  # another drawing on a phone
    colour = page.js("getComputedStyle(document.querySelector('.chart text')).fill")
    assert (colour == "rgb(89, 99, 110)" or colour == "rgb(28, 33, 38)") == (scheme == "light")


@pytest.mark.parametrize("width", [1280, 1440, 1920])
def test_no_table_of_answers_is_cut_on_a_desk(browser: Browser, wide: Path, width: int) -> None:
    browser.look(width)
    browser.open(wide / report.NAME)
    tables = "[...document.querySelectorAll('main > section > .scroll')]"
    seen = {name.removesuffix("-table") for name in browser.js(f"{tables}.map(t => t.firstElementChild.id)")}
    assert seen >= {"bench", "ablate", "lesions", "reproduce", "rates", "questions", "axes", "claims", "tasks", "gates",
                    "latency", "machine"}  # fmt: skip
    assert (
        browser.js(f"{tables}.filter(t => t.scrollWidth > t.clientWidth + 1).map(t => t.firstElementChild.id).join()")
        == ""
    )


def test_a_table_is_sorted_by_keyboard(page: Browser) -> None:
    heads = "[...document.querySelectorAll('#ablate-table thead th')]"
    column = page.js(f"{heads}.findIndex(th => th.dataset.name.startsWith('held-out'))")
    values = f"[...document.querySelectorAll('#ablate-table tbody tr')].map(r => +r.cells[{column}].dataset.v)"
    before = page.js(values)
    page.js("document.querySelector('.skip').focus()")
    for _ in range(200):  # by Tab alone, from the first link of the page
        page.key("Tab", 9)
        if page.js(f"document.activeElement.closest('th') === {heads}[{column}]"):
            break
    else:
        raise AssertionError("Tab never came to the column's button")
    assert page.js("getComputedStyle(document.activeElement).outlineStyle") != "none"
    for pressed, order, said in (("Enter", sorted(before), "ascending"), (" ", sorted(before)[::-1], "descending")):
        page.key(pressed, 13 if pressed == "Enter" else 32, "\r" if pressed == "Enter" else " ")
        assert page.js(values) == order
        assert page.js(f"{heads}[{column}].getAttribute('aria-sort')") == said
        assert page.js(f"{heads}.filter(th => th.hasAttribute('aria-sort')).length") == 1
        assert said in page.js("document.querySelector('#ablate-table-live').textContent")
    assert len(before) == 4


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_accessibility_checker_finds_nothing_serious(page: Browser, scheme: str) -> None:
    page.look(1200, scheme)
    page.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.js(AXE.read_text(encoding="utf-8") + "; 0")
    found = page.js(
        "axe.run(document).then(r => r.violations.map(v => [v.impact, v.id, v.nodes.length, v.nodes[0].html]))"
    )
    assert page.js("axe.run(document).then(r => r.passes.length)") > 20
    assert [v for v in found if v[0] in ("serious", "critical")] == []


def test_it_prints(page: Browser) -> None:
    pdf = base64.b64decode(
        page.ask("Page.printToPDF", printBackground=False, paperWidth=8.27, paperHeight=11.69)["data"]
    )
    assert pdf.startswith(b"%PDF-")
    pages = pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ")
    assert 3 <= pages <= 8
    assert len(pdf) > 50_000


def test_complete_without_its_script(browser: Browser, folder: Path) -> None:
    browser.ask("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.look(1200)
        browser.open(folder / report.NAME)
    finally:
        browser.ask("Emulation.setScriptExecutionDisabled", value=False)
    assert browser.js("document.querySelectorAll('#ablate-table tbody tr').length") == 4
    assert browser.js("document.querySelectorAll('th button').length") == 0


BAD = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\"'=cmd|' /C calc'!A0"


def test_text_from_a_file_never_runs(browser: Browser, tmp_path: Path) -> None:
    """In every text column of every table: the page shows it, the policy would refuse it, and nothing has run."""
    folder = synthetic.write(tmp_path, seeds=2, bench=("rnn", "gru"), ablate=("gru", "gru:R=1"))
    results = tables.read(folder)
    for name in ("runs", "ablate", "environments", "probes", "reproduce", "heat", "learning_rates"):
        frame = getattr(results, name)
        for column in frame.select_dtypes(["object", "str"]):
            if column not in ("run", "environment", "corpus_sha256", "variant", "protocol", "task", "within_2sd",
                              "engine", "device", "precision", "gate"):  # fmt: skip
                frame[column] = BAD
    path = tmp_path / "report.html"
    path.write_text(report.html(results), encoding="utf-8")
    browser.look(1200)
    browser.open(path)
    browser.js("new Promise(done => setTimeout(done, 200))")
    assert browser.js("window.hacked === undefined")
    assert browser.js("document.body.innerText.includes('<script>window.hacked=1</script>')")
    assert not [e for e in browser.heard if e["method"] == "Log.entryAdded"]
    assert browser.js("document.querySelectorAll('img[src=x]').length") == 0


def test_differences_to_another_baseline_are_computed_again_from_the_seeds(page: Browser, folder: Path) -> None:
    """To four digits as in Python; p stays with the planned baseline; the view comes back from the address."""
    shown = (
        "[...document.querySelectorAll('#ablate-table tbody tr')]"
        ".map(r => [r.cells[0].querySelector('a').textContent, r])"
    )
    delta = "[...document.querySelectorAll('#ablate-table th')].findIndex(th => th.dataset.kind === 'delta')"
    value = f"Object.fromEntries({shown}.map(([n, r]) => [n, r.cells[{delta}].dataset.v]))"
    before = page.js(value)
    choose = """(name => { const s = [...document.querySelectorAll('#ablate select')].at(-1);
        s.value = [...s.options].find(o => o.textContent.startsWith(name)).value;
        s.dispatchEvent(new Event('change')); })"""
    page.js(f"{choose}('gru:R=1')")
    after = page.js(value)
    whole = {"gru": 0.0, **{name: float(x) for name, x in before.items() if x}}
    for name, x in after.items():
        if name != "gru:R=1":
            assert abs(float(x) - (whole[name] - whole["gru:R=1"])) < 1e-4
    words = page.js("document.querySelector('#ablate-table tbody').textContent")
    assert "no p: not planned" in words
    assert "worse" not in words
    page.js("(i => { i.value = 'gru:Z'; i.dispatchEvent(new Event('input')); })"
            "(document.querySelector('#ablate input[type=search]'))")  # fmt: skip
    left = "[...document.querySelectorAll('#ablate-table tbody tr')].filter(r => r.offsetHeight).length"
    assert page.js(left) == 2
    address = page.js("location.href")
    assert "ablate.filter=gru%3AZ" in address
    page.ask("Page.navigate", url="about:blank")
    page.ask("Page.navigate", url=address)
    page.wait("Page.loadEventFired")
    assert page.js(left) == 2
    assert page.js("document.querySelector('#ablate-table').textContent.includes('difference to gru:R=1')")


def test_names_terms_numbers_and_points_say_themselves(page: Browser) -> None:
    """By click and by keys: equations, a definition, the command that makes a number, a point of a chart."""
    said = "document.querySelector('#about:popover-open')?.textContent ?? ''"
    page.js("document.querySelector('#ablate a.variant[href=\"#eq-gru\"]').click()")
    assert "H_tilde = tanh(" in page.js(said)
    page.key("Escape", 27)
    assert page.js(said) == ""
    page.js("document.querySelector('#ablate th[data-kind=verdict] a.term').click()")
    assert "undecided: neither" in page.js(said)
    page.key("Escape", 27)
    page.js("document.querySelector('#ablate-table td[tabindex=\"0\"]').focus()")
    page.key("ArrowDown", 40)
    page.key("Enter", 13, "\r")
    assert "python -m harness ablate" in page.js(said)
    assert "column heldout_perplexity" in page.js(said)
    page.key("Escape", 27)
    page.js("document.querySelector('.chart').focus()")
    page.key("ArrowRight", 39)
    assert page.js("!document.getElementById('hint').hidden")
    assert page.js("/[0-9]/.test(document.getElementById('hint').textContent)")
    page.key("Escape", 27)
    assert page.js("document.getElementById('hint').hidden")


ROWS = "[...document.querySelectorAll('#lab-rows .net')]"
PERPLEXITY = f"{ROWS}.map(r => +r.querySelector('strong').dataset.value)"
TYPE = """(text => { const box = document.getElementById('lab-text'); box.value = text;
box.dispatchEvent(new Event('input', { bubbles: true })); })"""
SETTLED = "new Promise(done => setTimeout(done, 400))"


@pytest.fixture
def lab(browser: Browser, laboratory: Path) -> Browser:
    browser.look(1440)
    browser.open(laboratory / report.NAME)
    return browser


def quiet(browser: Browser) -> bool:
    """Nothing was asked for but the page, nothing said."""
    browser.js(SETTLED)
    bad = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    asked = [e for e in browser.heard if e["method"] == "Network.requestWillBeSent"]
    return not [e for e in browser.heard if e["method"] in bad] and len(asked) == 1


def test_networks_read_what_is_typed(lab: Browser) -> None:
    before = lab.js(PERPLEXITY)
    assert len(before) == 4
    # no row is in the way of the letter typed: they come in the frames after
    assert lab.js(f"(() => {{ {TYPE}('The Morlocks, <b>12'); return {PERPLEXITY}; }})()") == before
    lab.js(SETTLED)
    after = lab.js(PERPLEXITY)
    assert all(a != b and 1 < a < 1000 for a, b in zip(after, before, strict=True))
    letters = lab.js(f"{ROWS}[0].querySelector('.letters').textContent")
    assert letters[:-1] == "the\u2423morlocks\u2423b\u2423"  # as the text was read; the last is its own guess
    assert lab.js(f"{ROWS}[0].querySelectorAll('.letters span[data-bits]').length") == len(letters)
    lab.js(f"{TYPE}('')")
    lab.js(f"{TYPE}('<script>window.hacked=1</script>')")
    assert lab.js("window.hacked === undefined")
    assert quiet(lab)


@pytest.mark.parametrize(
    "text",
    [
        "</script><script>hacked=1</script>",
        "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
        "the \U0001f600 time",
        "e\u0301\u0301\u0301a\u0308 z\u0338",
    ],
)
def test_hostile_and_foreign_texts_are_read_as_the_vocabulary_has_them(lab: Browser, text: str) -> None:
    lab.js(f"{TYPE}({json.dumps(text)})")
    lab.js(SETTLED)
    shown = lab.js(f"{ROWS}[0].querySelector('.letters').textContent")
    assert set(shown) <= set("\u2423 etaoinshrdlucmfwypvbgkjqxz")
    assert lab.js("window.hacked === undefined")
    assert lab.js("document.documentElement.scrollWidth <= innerWidth")
    assert quiet(lab)


def test_a_variant_of_a_hostile_name_is_text_in_the_laboratory(
    browser: Browser, laboratory: Path, tmp_path: Path
) -> None:
    name = "<img src=x onerror=hacked=1></script>"
    results, networks = answering(tables.read(laboratory), [])
    probes = results.probes.assign(variant=results.probes.variant.replace("rnn", name))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sections, "charts", lambda *_: [])
        page = report.html(dataclasses.replace(results, probes=probes), networks=networks)
    (tmp_path / report.NAME).write_text(page, encoding="utf-8")
    browser.look(360)
    browser.open(tmp_path / report.NAME)
    browser.js("document.querySelector('#lab-answers button').click()")
    assert name in browser.js("document.getElementById('lab-solvers').textContent")
    assert browser.js("document.querySelectorAll('img').length") == 0
    assert browser.js("document.documentElement.scrollWidth <= innerWidth")
    assert browser.js("document.getElementById('lab-play').hidden")  # no network reads text here: tasks alone
    assert browser.js("window.hacked === undefined")
    assert quiet(browser)


def test_a_gate_is_held_by_its_slider_and_freed(lab: Browser) -> None:
    free = lab.js(PERPLEXITY)
    lab.js("document.querySelector('#lab-holds input[data-gate=Z]').focus()")
    lab.key("ArrowRight", 39)
    held = lab.js(PERPLEXITY)
    assert held[0] != free[0]
    assert held[1:] == free[1:]
    assert "held: Z=0.51" in lab.js(f"{ROWS}[0].textContent")
    lab.js(SETTLED)
    assert "Z%3D0.51" in lab.js("location.hash")
    said = "document.querySelector('#lab-holds input[data-gate=Z]').getAttribute('aria-valuetext')"
    assert re.fullmatch(r"Z held at 0\.51: perplexity [\d.e+]+ on held-out text", lab.js(said))
    assert lab.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    lab.js("document.querySelector('#lab-holds .hold:has([data-gate=Z]) input[type=checkbox]').click()")
    assert "free" in lab.js(said)
    assert lab.js(PERPLEXITY) == free
    assert lab.js("[...document.querySelectorAll('#lab-which option')].length") == 6
    assert quiet(lab)


def test_a_ring_is_taken_up_by_keys(lab: Browser) -> None:
    """Arrows go to the measured lesions, which say themselves; Enter holds the gate there."""
    lab.js("document.querySelector('#lab-holds .hold:has([data-gate=Z]) svg').focus()")
    lab.key("Home", 36)
    hint = lab.js("document.getElementById('hint').textContent")
    value = re.findall(r"measured: Z held at ([\d.]+) after", hint)[0]
    lab.key("Enter", 13, "\r")
    assert f"held: Z={value}" in lab.js(f"{ROWS}[0].textContent")
    assert lab.js("document.querySelector('#lab-holds input[data-gate=Z]').value") == value
    assert lab.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert quiet(lab)


def test_a_letter_is_looked_at_by_mouse_and_by_keys(lab: Browser) -> None:
    spot = lab.js(f"""(() => {{ const r = {ROWS}[1].querySelectorAll('.letters span')[20];
        r.scrollIntoView({{ behavior: 'instant', block: 'center' }});
        const b = r.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})()""")
    lab.ask("Input.dispatchMouseEvent", type="mouseMoved", x=spot[0], y=spot[1])
    chosen = f"{ROWS}.map(r => [...r.querySelectorAll('.letters span')].findIndex(s => s.classList.contains('on')))"
    assert lab.js(chosen) == [20] * 4
    lab.js(SETTLED)
    assert lab.js(f"[...{ROWS}[1].querySelectorAll('[data-share]')].filter(s => s.dataset.share !== '0').length") > 0
    lab.js("document.getElementById('lab-rows').focus()")
    lab.key("ArrowLeft", 37)
    assert lab.js(chosen) == [19] * 4
    lab.js(SETTLED)
    assert "letter 20" in lab.js("document.getElementById('lab-rows').getAttribute('aria-valuetext')")
    assert "looks back" in lab.js(f"{ROWS}[0].textContent")


def test_a_task_is_answered_by_the_reader_and_by_each_network(lab: Browser) -> None:
    """By click and by key; right and wrong are said, not only coloured; the next example; the task in the address."""
    rows = "[...document.querySelectorAll('#lab-solvers .solver')]"
    told = "document.getElementById('lab-told').textContent"
    assert lab.js(f"{rows}.map(r => r.querySelector('.who').firstChild.textContent)") == [
        "you", "both gates", "without R", "neither"
    ]  # fmt: skip
    assert "right" not in lab.js(f"{rows}.map(r => r.textContent).join()")
    buttons = "document.querySelectorAll('#lab-answers button')"
    lab.js(f"{buttons}[0].focus(); {buttons}[0].click()")
    assert lab.js(f"{rows}.every(r => /right|wrong/.test(r.querySelector('b').textContent))")
    assert lab.js(f"{rows}[1].querySelectorAll('.every i').length") == 32  # each step of s3 is asked
    assert lab.js(told).split(":")[0] in ("Right", "Wrong")
    assert lab.js("document.activeElement.id") == "lab-next"
    lab.key("Enter", 13, "\r")
    assert lab.js(told) == ""
    assert "example=1" in lab.js("location.hash")
    lab.key("2", 50, "2")  # by its key
    assert lab.js(f"[...{buttons}].findIndex(b => b.matches('.right, .wrong'))") >= 0
    assert "of 2 right" in lab.js(f"{rows}[0].textContent")
    lab.js("""(s => { s.value = '1'; s.dispatchEvent(new Event('change')); })(document.getElementById('lab-task'))""")
    assert "task=delayed_recall" in lab.js("location.hash")
    assert lab.js("document.querySelectorAll('#lab-cells .marked').length") == 1
    assert lab.js("document.querySelectorAll('#lab-cells .cell').length") == 65
    assert lab.js(f"{buttons}[7].getAttribute('aria-keyshortcuts')") == "h"
    assert quiet(lab)


def test_the_view_is_in_the_address(lab: Browser, laboratory: Path) -> None:
    view = "#text=a+sentence+of+hers&show=gru+lstm&of=lstm&hold=F%3D0.25&at=5"
    lab.ask("Page.navigate", url="about:blank")
    lab.ask("Page.navigate", url=(laboratory / report.NAME).as_uri() + view)
    lab.wait("Page.loadEventFired")
    lab.js(SETTLED)
    assert lab.js("document.getElementById('lab-text').value") == "a sentence of hers"
    assert lab.js(f"{ROWS}.length") == 2
    assert "held: F=0.25" in lab.js(f"{ROWS}[1].textContent")
    assert lab.js("location.hash") == view


@pytest.mark.parametrize("width", [360, 768, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_laboratory_fits_and_is_accessible(lab: Browser, width: int, scheme: str) -> None:
    lab.look(width, scheme)
    lab.js(SETTLED)
    assert lab.js("document.documentElement.scrollWidth <= innerWidth")
    lab.js(AXE.read_text(encoding="utf-8") + "; 0")
    found = lab.js(
        "axe.run(document.querySelector('main')).then(r => r.violations.map(v => [v.impact, v.id, v.nodes[0].html]))"
    )
    assert [v for v in found if v[0] in ("serious", "critical")] == []


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_the_picture_is_above_the_fold(lab: Browser, width: int, height: int) -> None:
    lab.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
    assert lab.js("document.querySelector('.panels').getBoundingClientRect().bottom") <= height
    counts = lab.js(WORDS)
    assert len(counts) == 3
    assert all(words <= 90 and numbers <= 12 for words, numbers in counts)


ALONE = {  # what is on file -> the tables that are not
    "bench": ("ablate", "tasks", "probes", "lesions"), "ablate": ("bench", "speed", "tasks", "probes"), "both": (),
    "tasks": ("bench", "ablate", "speed", "lesions"),
}  # fmt: skip


@pytest.mark.parametrize("there", ALONE)
def test_the_first_screen_is_short_whatever_is_on_file(
    browser: Browser, laboratory: Path, tmp_path: Path, there: str
) -> None:
    """At most 90 words and 12 numbers a card, the picture above the fold of desk and phone, no label under a line."""
    results = tables.read(laboratory)
    less = dataclasses.replace(results, **{name: getattr(results, name).iloc[:0] for name in ALONE[there]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sections, "charts", lambda *_: [])
        (tmp_path / report.NAME).write_text(report.html(less), encoding="utf-8")
    for width, height in ((1440, 900), (390, 844)):
        browser.look(width)
        browser.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        browser.open(tmp_path / report.NAME)
        assert browser.js("document.querySelector('.panels').getBoundingClientRect().bottom") <= height, there
        counts = browser.js(WORDS)
        assert counts, there
        assert all(words <= 90 and numbers <= 12 for words, numbers in counts), (there, counts)
        assert browser.js(STRUCK) == [], there
        assert browser.js("document.documentElement.scrollWidth") <= width


WORDS = """[...document.querySelectorAll('.answer')].map(card => {
    const seen = card.innerText;
    return [seen.split(/\\s+/).length, (seen.match(/\\d[\\d.,]*/g) || []).length]; })"""
# Labels of the picture that a stem or an interval of their row goes through.
STRUCK = """[...document.querySelectorAll('.track')].flatMap(svg => {
    const label = svg.querySelector('.value')?.getBoundingClientRect();
    return !label ? [] : [...svg.querySelectorAll('.stem, .interval, .point')].map(e => e.getBoundingClientRect())
        .filter(r => r.width && r.left < label.right - 1 && r.right > label.left + 1)
        .map(() => svg.getAttribute('aria-label')); })"""


def test_the_laboratory_is_small(laboratory: Path) -> None:
    assert (laboratory / report.NAME).stat().st_size < 3_000_000
    assert sum(report.SCRIPT.joinpath(name).stat().st_size for name in ("page.js", "net.js", "lab.js")) < 60_000


def test_without_script_there_is_no_laboratory_and_a_line_says_so(browser: Browser, laboratory: Path) -> None:
    browser.ask("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.look(1200)
        browser.open(laboratory / report.NAME)
    finally:
        browser.ask("Emulation.setScriptExecutionDisabled", value=False)
    assert browser.js("document.getElementById('lab').hidden")
    assert "needs script" in browser.js("document.body.innerText")
    assert browser.js("document.querySelectorAll('.panels .point').length") > 2
