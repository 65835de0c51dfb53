"""A call of minutes on a GPU: what fails or hangs costs its own stage alone, and another call goes on."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu
import pytest
import torch
from torch.overrides import TorchFunctionMode

from docs import splice
from harness.run import machine
from variants.engines import resident


def stage(name: str, code: str, cost_s: float = 30.0) -> gpu.Stage:
    """A process that runs a line of Python: without torch it takes a moment."""
    return gpu.Stage(name, "", cost_s, ("timeit", "-n1", "-r1", code))


def fact(**fact: object) -> str:
    return f"print({json.dumps(fact)!r})"


def stages_said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if not line.startswith("  ")]


def call(tmp_path: Path, name: str, minutes: float = 2.0) -> gpu.Call:
    out, work = tmp_path / name, tmp_path / f"{name}-work" / "results"
    for folder in (out, work):
        folder.mkdir(parents=True)
    return gpu.Call(out, work, minutes)


def test_what_fails_or_hangs_costs_its_own_stage_and_another_call_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "PART", 100)
    first = call(tmp_path, "one")
    written = first.work / "tf32" / "runs" / "gru.json"
    kept = "import pathlib, os; p = pathlib.Path({!r}); p.parent.mkdir(parents=True); p.write_bytes(os.urandom(300))"
    planned = [
        stage("fails", f"{fact(key='a', us=1)}; 1 / 0"),
        stage("hangs", f"{fact(key='b', us=2)}; import time; time.sleep(60)", cost_s=0.5),
        stage("works", f"{fact(key='c', us=3)}; {kept.format(str(written))}"),
    ]
    begun = time.monotonic()
    assert first.all(planned) == 1
    assert time.monotonic() - begun < 30
    said = stages_said(capsys)
    assert [line.partition(";")[0] for line in said] == [
        "fails: status 1", "hangs: its time was over", "works: status 0"
    ]  # fmt: skip
    found = first.facts()
    assert [(f["stage"], f["key"]) for f in found if "key" in f] == [("fails", "a"), ("hangs", "b"), ("works", "c")]
    assert [f["status"] for f in found if "status" in f] == [1, None, 0]
    assert "ZeroDivisionError" in (first.out / "gpu.log").read_text()
    files = sorted(path.name for path in first.out.iterdir())
    parts = [name for name in files if name.startswith("results")]
    assert len(parts) > 2  # each no larger than a part
    assert files == ["gpu.jsonl", "gpu.log", *parts]
    assert all((first.out / name).stat().st_size <= gpu.PART for name in parts)

    second = call(tmp_path, "two")
    second.unpack(first.out)
    assert (second.work / "tf32" / "runs" / "gru.json").read_bytes() == written.read_bytes()
    assert [s.name for s in planned if not second.done(s.name)] == ["fails", "hangs"]
    assert second.all([stage("fails", "pass"), stage("hangs", "pass"), planned[2]]) == 0
    assert [s.name for s in planned if not second.done(s.name)] == []
    assert [line.partition(";")[0] for line in stages_said(capsys)] == [
        "fails: status 0", "hangs: status 0"
    ]  # fmt: skip


def test_no_stage_begins_when_the_time_is_over(tmp_path: Path) -> None:
    late = call(tmp_path, "late", minutes=gpu.END_S / 60)
    assert late.all([stage("works", "pass")]) == 0
    assert late.facts() == []


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_where_resident_disagrees_it_alone_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("harness.run.timing.sample", lambda run, *rest: {"engine_timed": run.engine})
    rows = [
        ("gru", "resident", True, "tf32", 1), ("gru", "fused", True, "ieee", 1), ("rnn", "resident", True, "tf32", 1),
        ("gru:Z=0,R=0", "resident", True, "tf32", 1),
    ]  # fmt: skip
    monkeypatch.setitem(gpu.OWN, "speed", lambda: gpu.timed(rows))
    assert gpu.measure("speed", {"gru resident", "gru:Z=0,R=0 resident"}, set()) == 0
    timed = [(f["variant"], f["engine_timed"]) for f in lines(capsys.readouterr().out) if "key" in f]
    assert timed == [("gru", "fused"), ("rnn", "resident")]
    monkeypatch.setitem(gpu.OWN, "tiles", lambda: iter([("gru, 256 x 1", dict), ("rnn, 256 x 1", dict)]))
    assert gpu.measure("tiles", {"gru resident"}, set()) == 0
    assert [f["key"] for f in lines(capsys.readouterr().out) if "key" in f] == ["rnn, 256 x 1"]
    here = call(tmp_path, "here")
    wrong = fact(key="gru, 256 x 1, tf32", variant="gru", error="disagrees")
    small = fact(key="rnn, 32 x 1, tf32", variant="rnn", error="disagrees")  # nothing of that size is timed
    failing = gpu.Stage("agree", "", 30.0, ("timeit", "-n1", "-r1", f"{wrong}; {small}; 1 / 0"))
    here.all([failing, stage("speed", "pass")])
    assert here.done("speed")
    words: list[list[str]] = []
    with monkeypatch.context() as patch:
        patch.setattr("gpu.subprocess.Popen", lambda command, **how: words.append(command))
        for one in gpu.stages(tmp_path, "embedded"):
            if one.name in ("seeds", "ablate", "tests"):
                with pytest.raises(AttributeError):  # no process was started
                    here.run(one, 1.0)
    assert json.loads(words[0][words[0].index("--done") + 1]) == ["gru resident"]
    assert words[1][-2:] == ["--engine", "fused"]
    assert "--engine" not in words[2]
    mended = gpu.Stage("agree", "", 30.0, ("timeit", "-n1", "-r1", fact(key="gru, 256 x 1, tf32", variant="gru")))
    here.all([mended])
    assert here.bad() == set()
    assert not here.done("speed")  # what was left out of it is not


OWN_STAGE = """
import os, signal, sys, time
sys.path.insert(0, {tests!r})
import gpu
def fails(): raise ValueError("no such kernel")
def hangs(): time.sleep(60)
def dies(): os.kill(os.getpid(), signal.SIGSEGV)
gpu.answers = lambda: os.environ.get("UNFIT") is None
gpu.OWN["own"] = lambda: iter([("a, 1", lambda: {{"us": 1.0}}), ("hangs, 1", hangs), ("fails, 1", fails),
                               ("dies, 1", dies), ("b, 1", lambda: {{"us": 2.0}})])
sys.exit(gpu.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("unfit", [False, True])
def test_what_fails_or_hangs_within_a_stage_costs_itself_alone(
    unfit: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the GPU answers its process no more: another one goes on. What failed is tried again, last."""
    monkeypatch.setattr(gpu, "SILENT_S", 0.6)
    monkeypatch.setattr(gpu, "MODULE", "own_stage")
    (tmp_path / "own_stage.py").write_text(OWN_STAGE.format(tests=str(Path(gpu.__file__).parent)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if unfit:
        monkeypatch.setenv("UNFIT", "1")
    here = call(tmp_path, "here")
    found = []
    for _ in range(1 if unfit else 2):
        assert here.all([gpu.Stage("own", "", 30.0)]) == 1
        found.append([(f["key"], f.get("us"), f.get("error")) for f in here.facts() if "key" in f])
        here.facts_file.write_text("".join(json.dumps(f) + "\n" for f in gpu.latest(here.facts()) if "us" in f))
    failures = [
        ("hangs, 1", None, "no answer within 0.6 s"), ("fails, 1", None, "ValueError: no such kernel"),
        ("dies, 1", None, "its process ended with status -11"),
    ]  # fmt: skip
    assert found[0] == [("a, 1", 1.0, None), *failures, ("b, 1", 2.0, None)]
    assert unfit or found[1] == [("a, 1", 1.0, None), ("b, 1", 2.0, None), *failures]
    assert "  fails, 1: FAILED: ValueError: no such kernel\n" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["", "CUDA error: an illegal memory access was encountered"])
def test_a_process_whose_gpu_answers_goes_on_after_what_failed(
    fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Out of memory, say: what it holds is given back before the next. What failed in another call comes last."""
    did: list[str] = []

    def full() -> dict[str, Any]:
        did.append("full")
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    def synchronize() -> None:
        if fault:
            raise RuntimeError(fault)

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: did.append("given back"))
    monkeypatch.setitem(
        gpu.OWN, "gaps", lambda: iter([("earlier", dict), ("full", full), ("done", dict), ("on", dict)])
    )
    assert gpu.measure("gaps", {"done"}, {"earlier"}) == (gpu.UNFIT if fault else 1)
    said = [f["key"] for f in lines(capsys.readouterr().out) if "key" in f]
    assert said == (["full"] if fault else ["full", "on", "earlier"])
    assert did == ["full"] + ["given back"] * (not fault)


def test_a_disk_that_is_full_loses_nothing_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = call(tmp_path, "here")
    here.facts_file = Path("/dev/full")
    monkeypatch.setattr(Path, "exists", lambda path: path != here.facts_file and path.is_dir())

    def no_room(path: Path, raw: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", no_room)
    planned = [stage("one", fact(key="a", us=1)), stage("two", fact(key="b", us=2))]
    assert here.all(planned) == 0
    said = capsys.readouterr().out
    assert 'No space left on device: {"stage": "one", "key": "a", "us": 1}' in said
    assert "two: status 0" in said
    assert "could not be packed" in said
    assert here.done("one")


def test_a_call_that_is_ended_takes_its_stage_with_it_and_another_goes_on(tmp_path: Path) -> None:
    here = call(tmp_path, "here")
    pid = tmp_path / "pid"
    code = f"import os, pathlib, time; pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); "
    code += f"pathlib.Path({str(here.work / 'kept')!r}).write_text('kept'); {fact(key='a', us=1)}; time.sleep(60)"
    parent = (
        f"import sys, pathlib; sys.path.insert(0, {str(Path(gpu.__file__).parent)!r}); import gpu; gpu.until_told(); "
        f"one = gpu.Stage('one', '', 30.0, ('timeit', '-n1', '-r1', {code!r})); "
        f"gpu.Call(*map(pathlib.Path, {[str(here.out), str(here.work)]!r}), 2.0).all([one])"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "  a: \n"
        running.terminate()
        assert running.wait(20) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    with here.facts_file.open("a") as facts:
        facts.write('{"stage": "one", "key": "b", "us')  # as a kill may leave it
    second = call(tmp_path, "second")
    second.unpack(here.out)
    assert (second.work / "kept").read_text() == "kept"
    assert second.all([stage("one", fact(key="c", us=3))]) == 0
    assert [f["key"] for f in second.facts() if "key" in f] == ["a", "c"]


def test_packed_parts_are_of_one_call_and_damaged_ones_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "PART", 100)
    here = call(tmp_path, "here")
    for size in (2_000, 250, 0):
        (here.work / "tf32").mkdir(exist_ok=True)
        (here.work / "tf32" / "run.json").write_bytes(os.urandom(size))
        here.pack()
        again = call(tmp_path, f"again {size}")
        again.unpack(here.out)
        assert (again.work / "tf32" / "run.json").stat().st_size == size
    next(here.out.glob("results*")).write_bytes(b"torn")
    torn = call(tmp_path, "torn")
    torn.unpack(here.out)
    assert "the packed results are damaged, and begun anew" in capsys.readouterr().out


def test_figures_of_two_cards_are_not_mixed(tmp_path: Path) -> None:
    here = call(tmp_path, "here")
    assert here.another("") == ""
    assert here.another("NVIDIA H100") == ""
    assert here.another("NVIDIA H100") == ""
    assert here.another("NVIDIA H200") == "NVIDIA H100"
    assert here.another("") == ""


def test_processes_are_measured_at_the_same_time(tmp_path: Path) -> None:
    """None begins before all are warm, so that none has the GPU for itself."""
    code = (
        "import os, pathlib, sys; p = pathlib.Path(sys.argv[1]); (p / str(os.getpid())).touch(); print('ready', "
        "flush=True); sys.stdin.readline(); print(len(list(p.iterdir())))"
    )
    assert gpu.beside(3, [sys.executable, "-c", code, str(tmp_path)]) == {"tokens_per_sec": [3, 3, 3], "all": 9}
    with pytest.raises(RuntimeError, match="ended before it was warm"):
        gpu.beside(2, [sys.executable, "-c", "1 / 0"])


class Here(TorchFunctionMode):
    """What is asked of a GPU is done on the CPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.cuda:
            return args[0]
        return function(*args, **{k: "cpu" if k == "device" else v for k, v in (kwargs or {}).items()})


class Event:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        return 1000 * (end.at - self.at)


class Silent:
    """A kernel that does nothing; how it was launched."""

    def __init__(self) -> None:
        self.launches: list[dict[str, Any]] = []

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *args, **how: self.launches.append(how)


def test_each_stage_of_its_own_runs_to_its_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its every line, with kernels that do nothing: what is measured here is nothing."""
    kernel = Silent()
    for name in ("_forward", "_backward"):
        monkeypatch.setattr(resident, name, kernel, raising=False)
    monkeypatch.setattr(resident, "triton", SimpleNamespace(next_power_of_2=lambda n: n))
    monkeypatch.setattr(resident, "processors", lambda device: 132)
    monkeypatch.setattr(resident, "tile", resident.tile)  # the stage puts another in its place
    monkeypatch.setattr(resident, "card", lambda device: "a card")
    monkeypatch.setitem(sys.modules, "platformdirs", None)  # a machine's own python does without it
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)  # what no kernel writes
    monkeypatch.setattr(torch, "empty_like", torch.zeros_like)
    monkeypatch.setattr(gpu, "meetings", lambda: kernel)
    monkeypatch.setattr(gpu, "milliseconds", functools.partial(gpu.milliseconds, times=1))
    monkeypatch.setattr("harness.run.roofline.node_gap_us", lambda: 1.3)
    monkeypatch.setattr("harness.run.machine.environment", lambda device: {"device": device})
    monkeypatch.setattr("harness.run.timing.sample", lambda run, *rest: {"blocks": [], "key_of": run.key})
    monkeypatch.setattr("harness.run.train.captured", lambda work, example, weights: lambda *fresh: fresh[1:])
    monkeypatch.setattr("harness.run.train.GRAPH_WINDOWS", 8)  # the stage puts another in its place
    for name, value in {"Event": Event, "synchronize": lambda: None, "init": lambda: None,
                        "mem_get_info": lambda: (1, 2)}.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    made = {"H": torch.ones(3), "last": torch.ones(2)}
    monkeypatch.setattr("test_engines.results", lambda variant, engine, *sizes: {
        k: v + 0.1 * (engine is resident and variant == "rnn") for k, v in made.items()
    })  # fmt: skip
    every = {key for key, _ in gpu.tiles()}
    assert len(every) == 3 * (3 * 5 + 3 * 2 * 4)
    few = {key for key in every if " x 1, " not in key or ("256" not in key and "rnn" not in key)} | {
        f"nn.gru, {n} processes" for n in range(1, 9)
    }
    found = {}
    try:
        with Here():
            for name in gpu.OWN:
                assert gpu.measure(name, few, set()) == (name == "agree")
                found[name] = [f for f in lines(capsys.readouterr().out) if "key" in f]
    finally:
        torch.set_float32_matmul_precision("highest")
    assert {f["variant"] for f in found["agree"] if "error" in f} == {"rnn"}
    assert len(found["agree"]) == 1 + 4 * 2 * 4 + 2 * 4 + 2
    assert [f["key"] for f in found["gaps"]] == ["node", "meeting of 8", "meeting of 16"]
    assert len(found["tiles"]) == 3 * 5 + 3 * 4
    assert {f["hidden"] for f in found["tiles"][:15]} == {256}
    assert {f["hidden"] for f in found["tiles"]} == {256, 128, 64, 32}
    assert {how["num_warps"] for how in kernel.launches} == {2, 4, 8}
    assert len(found["speed"]) == 16
    assert {(f["reset"], f["products"], f["card"]) for f in found["tiles"]} == {
        ("after", 3, "a card"), ("before", 3, "a card"), ("none", 1, "a card")
    }  # fmt: skip
    assert not any("error" in f for name in found for f in found[name] if name != "agree")
    assert [f["key"] for f in found["seeds"] if "nn.gru" in f["key"]] == [
        "nn.gru library captured tf32 x 8", "nn.gru library captured tf32 x 30"
    ]  # fmt: skip
    assert len(found["seeds"]) == 7
    assert [(f["key"], len(f["nodes"])) for f in found["book"]] == [
        ("book, graphs of 8 windows", 2), ("book, graphs of 149 windows", 1)
    ]  # fmt: skip
    keys = [(name, fact["key"]) for name, facts in found.items() for fact in facts]
    assert len(set(keys)) == len(keys)
    assert all(gpu.brief(fact) for name in ("agree", "gaps", "tiles", "book") for fact in found[name][1:])
    done = {key for _, key in keys} | few
    with Here():
        assert all(gpu.measure(name, done, set()) == 0 for name in gpu.OWN)
    assert capsys.readouterr().out == ""


def test_a_process_that_is_one_of_several_waits_until_it_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("harness.run.train.captured", lambda work, example, weights: lambda *fresh: fresh[1:])
    monkeypatch.setattr("harness.run.machine.configure_process", lambda *how: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(readline=lambda: print("told")))
    with Here():
        assert gpu.one(0.01) == 0
    ready, told, rate = capsys.readouterr().out.split()
    assert (ready, told) == ("ready", "told")
    assert float(rate) > 0


def test_the_fastest_tiles_are_what_the_kernel_is_launched_with_from_then_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a card of that name, forward and back together; one that gave other numbers is none. Elsewhere as before."""
    cache = tmp_path / "cache" / "tiles.json"
    gpu.keep_tiles(
        {"other": [{"reset": "none", "products": 1, "hidden": 64, "seeds": 1, "units": 16, "warps": 1}]}, cache
    )
    monkeypatch.setenv("RESIDENT_TILES", str(cache))
    gru, rnn = {"reset": "before", "products": 3, "hidden": 256}, {"reset": "none", "products": 1, "hidden": 256}
    measured = [
        {**gru, "seeds": 1, "units": 16, "warps": 2, "forward_ms": 1.0, "backward_ms": 4.0},
        {**gru, "seeds": 1, "units": 32, "warps": 8, "forward_ms": 2.0, "backward_ms": 2.5},
        {**gru, "seeds": 1, "units": 32, "warps": 4, "forward_ms": 0.1, "backward_ms": 0.1, "error": "other numbers"},
        {**gru, "seeds": 30, "units": 16, "warps": 4, "forward_ms": 1.0, "backward_ms": 2.0},
        {**rnn, "seeds": 30, "units": 64, "warps": 8, "forward_ms": 0.5, "backward_ms": 0.25},
    ]
    code = "; ".join(fact(key=f"{k}", variant="x", card="a card", **one) for k, one in enumerate(measured))
    one = call(tmp_path, "one")
    assert one.all([stage("tiles", code)]) == 0
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "fastest tiles of a card, in tiles.json:",
        "  reset before, 3 products, 256 x 1: 32 units, 8 warps (4.500 ms) of 2",
        "  reset before, 3 products, 256 x 30: 16 units, 4 warps (3.000 ms) of 1",
        "  reset none, 1 products, 256 x 30: 64 units, 8 warps (0.750 ms) of 1",
    ]
    assert set(json.loads(cache.read_text())) == {"other", "a card"}
    assert set(json.loads((one.out / "tiles.json").read_text())) == {"a card"}
    resident.measured_tiles.cache_clear()
    monkeypatch.setattr(resident, "card", lambda device: "a card")
    monkeypatch.setattr(resident, "triton", SimpleNamespace(next_power_of_2=lambda n: n))
    monkeypatch.setattr(resident, "processors", lambda device: 132)
    here = torch.device("cpu")
    for seeds, columns, reset, chosen in ((1, 3, "before", (32, 8)), (4, 3, "before", (32, 8)),
                                          (8, 3, "before", (16, 4)), (1, 1, "none", (64, 8)),
                                          (1, 3, "after", (16, 2)), (30, 3, "after", (32, 2))):  # fmt: skip
        *_, how = next(resident._launches(seeds, 5, 256, 32, 256 * columns, reset, None, here))
        assert (256 // how["C"], how["num_warps"]) == chosen, (seeds, columns, reset)
    assert resident.tile(1, 256, 3, 132, "before", "a third card") == (16, 2)
    assert resident.tile(1, 128, 3, 132, "before", "a card") == (32, 8)  # of the nearest size that was measured
    assert resident.tile(30, 128, 3, 132, "before", "a card") == (16, 4)
    assert resident.tile(30, 128, 1, 132, "none", "a card") == (32, 4)  # 64 units are for 256 alone
    assert resident.tile(1, 32, 1, 132, "none", "other") == (16, 1)
    digits = [machine._tiles(name) for name in ("a card", "other", "a third card")]  # each environment says which
    assert [len(text) for text in digits] == [8, 8, 0]
    assert digits[0] != digits[1]
    assert resident.tile(1, 256, 3, 132, "before") == (16, 2)
    for wrong in ("no JSON", '{"a card": [{"hidden": 256}]}', '{"a card": [7]}', "[]",
                  cache.read_text().replace('"units": 16', '"units": 24')):  # fmt: skip
        cache.write_text(wrong)
        resident.measured_tiles.cache_clear()
        with pytest.raises(
            ValueError, match=r"cache/tiles\.json is no file of measured tiles .*: delete it, or measure"
        ):
            resident.tile(1, 256, 3, 132, "before", "a card")
    monkeypatch.delenv("RESIDENT_TILES")
    monkeypatch.setitem(sys.modules, "platformdirs", None)  # as on a machine whose python is used as it is
    resident.measured_tiles.cache_clear()
    assert resident.tile(1, 256, 3, 132, "before", "a card") == (16, 2)
    resident.measured_tiles.cache_clear()


def test_what_calls_have_left_becomes_a_reference_and_the_documents_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One command: every results folder merged and packed, the facts beside it, the documents written from them."""
    here, into = call(tmp_path, "here"), tmp_path / "reference"
    assert gpu.main(["--reference", str(here.out)]) == 2
    assert "no gpu.jsonl of a call on a GPU" in capsys.readouterr().err
    for name in ("tf32", "ieee"):
        (here.work / name / "grids").mkdir(parents=True)
        (here.work / name / "grids" / "bench.json").write_text("{}")
    here.pack()
    here.another("NVIDIA H100 80GB HBM3")
    for stage_, one in (
        ("agree", {"key": "machine", "device_name": "NVIDIA H100 80GB HBM3", "driver": "580.1", "torch": "2.11.0"}),
        ("gaps", {"key": "node", "us": 1.25}), ("gaps", {"key": "meeting of 8", "error": "RuntimeError: a|b"}),
        ("speed", {"key": "nn.gru library tf32 x 1", "blocks": [{"tokens_per_sec": 1e6, "step_ms": 1.12}]}),
        ("speed", {"key": "gru:Z=0,R=0 resident captured tf32 x 30", "error": "timeout"}),
        ("speed", {"key": "gru:Z=0,R=0 resident captured tf32 x 30", "graph_nodes": 60, "peak_memory_mib": None,
                   "blocks": [{"tokens_per_sec": r, "step_ms": 0.5} for r in (1e6, 3e6, 2.5e6)]}),
    ):  # fmt: skip
        here._note({"stage": stage_, **one})
    ran: list[list[str]] = []

    def run(command: list[str], **how: object) -> SimpleNamespace:
        ran.append([word.rpartition("/")[2] for word in command[2:]])
        (into / "h100-80gb-hbm3" / "figures").mkdir(exist_ok=True)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr("gpu.subprocess.run", run)
    monkeypatch.setattr(gpu, "REFERENCE", into)
    assert gpu.main(["--reference", str(here.out), "--into", str(into)]) == 0
    named = ["--results", "h100-80gb-hbm3"]
    assert ran == [["harness", "merge", "ieee", "tf32", *named], ["harness", "pack", *named], ["docs.splice"]]
    assert [path.name for path in (into / "h100-80gb-hbm3").iterdir()] == ["gpu.jsonl"]
    monkeypatch.setattr(splice, "REFERENCE", into)
    head, rows, beside, failed = splice.reach().split("\n\n")
    assert head.startswith("NVIDIA H100 80GB HBM3, driver 580.1, torch 2.11.0 ([gpu.jsonl]")
    assert rows.splitlines()[2:] == [
        "| `nn.gru` library | step by step | tf32 | 1 | 1,120 | 1.00 | 1.00 |  |  |  |  |",
        "| `gru:Z=0,R=0` resident | captured | tf32 | 30 | 500 | 2.50 | 2.50 |  | 60 |  |  |",
    ]
    assert beside.endswith("node: 1.25 us.")
    assert failed == "Failed: `meeting of 8: RuntimeError: a|b`."
    monkeypatch.setattr(splice, "REFERENCE", tmp_path / "none")
    assert splice.reach() == "None of this has been run on a GPU yet."


def test_the_plan_fits_a_call(capsys: pytest.CaptureFixture[str]) -> None:
    """Agreement first; all that FACTS asks of one card within the first nine minutes, by stated costs."""
    assert gpu.main(["--dry-run", "--minutes", "9"]) == 0
    *rows, last = capsys.readouterr().out.splitlines()[2:]
    planned = {words[1]: (float(words[3]), words[5]) for words in ([w.strip() for w in r.split("|")] for r in rows)}
    whole = [name for name, (_, when) in planned.items() if when == "whole"]
    assert whole == ["agree", "gaps", "tiles", "speed", "seeds", "book", "ablate"]
    assert sum(planned[name][0] for name in whole) <= 9 * 60 - gpu.END_S
    assert last.startswith("520 s of 540 s are for stages")
    assert all(seconds > 0 for seconds, _ in planned.values())
    assert gpu.main(["--dry-run", "--minutes", "1"]) == 0
    assert "| in part |" in capsys.readouterr().out.splitlines()[2]
    assert gpu.main(["--dry-run", "--minutes", "3"]) == 0
    whens = [row.split("|")[5].strip() for row in capsys.readouterr().out.splitlines()[2:-1]]
    assert whens == ["whole", "whole", "whole", "in part"] + ["later"] * 9


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_without_a_gpu_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    assert "sees no GPU: --dry-run prints the plan" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    for words, said in (
        (["--text", str(tmp_path / "none.txt")], "--text: no file"),
        (["--from", str(tmp_path / "none")], "--from: no folder"),
        (["--minutes", "0"], "--minutes is a number of minutes, like 9, not 0"),
        (["--minutes", "nan"], "not nan"),
    ):
        assert gpu.main(["--dry-run", *words]) == 2
        assert said in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu.main([]) == 2
    assert "--out names the folder" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert gpu.main(["--out", str(tmp_path / "file")]) == 2
    assert "file: File exists" in capsys.readouterr().err
