"""A call of minutes on a GPU: what fails or hangs costs its own stage alone, and another call goes on."""

from __future__ import annotations

import json
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

from harness.run import machine
from variants.engines import resident


def stage(name: str, code: str, cost_s: float = 30.0) -> gpu.Stage:
    """A process that runs a line of Python: without torch it takes a moment."""
    return gpu.Stage(name, "", cost_s, ("timeit", "-n1", "-r1", code))


def fact(**fact: object) -> str:
    return f"print({json.dumps(fact)!r})"


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
    said = capsys.readouterr().out.splitlines()
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
    assert [line.partition(";")[0] for line in capsys.readouterr().out.splitlines()] == [
        "fails: status 0", "hangs: status 0"
    ]  # fmt: skip


def test_no_stage_begins_when_the_time_is_over(tmp_path: Path) -> None:
    late = call(tmp_path, "late", minutes=gpu.END_S / 60)
    assert late.all([stage("works", "pass")]) == 0
    assert late.facts() == []


def test_where_resident_disagrees_it_alone_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.run.timing.sample", lambda run, *rest: {"engine_timed": run.engine})
    rows = [
        ("gru", "resident", True, "tf32", 1),
        ("gru", "fused", True, "ieee", 1),
        ("rnn", "resident", True, "tf32", 1),
    ]
    timed = [
        (f["variant"], f["engine_timed"]) for f in gpu.timed(rows, {"gru resident", "gru fused captured tf32 x 1"})
    ]
    assert timed == [("gru", "fused"), ("rnn", "resident")]
    here = call(tmp_path, "here")
    here.all([gpu.Stage("agree", "", 30.0, ("timeit", "-n1", "-r1", fact(key="x", variant="gru", error="disagrees")))])
    words: list[list[str]] = []
    monkeypatch.setattr("gpu.subprocess.Popen", lambda command, **how: words.append(command))
    for one in gpu.stages(tmp_path, "embedded"):
        if one.name in ("speed", "ablate", "tests"):
            with pytest.raises(AttributeError):  # no process was started
                here.run(one, 1.0)
    assert json.loads(words[0][-1]) == ["gru resident"]
    assert words[1][-2:] == ["--engine", "fused"]
    assert "--engine" not in words[2]


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


def test_each_stage_of_its_own_runs_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
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
    few = {f"{v} x {S}, {u} units, {w} warps" for S in (10, 30) for v in gpu.FAMILY for u, w in gpu.TILES}
    few |= {"nn.gru, processes"}
    try:
        with Here():
            found = {name: list(stage(few)) for name, stage in gpu.OWN.items()}
    finally:
        torch.set_float32_matmul_precision("highest")
    assert {f["variant"] for f in found["agree"] if "error" in f} == {"rnn"}
    assert len(found["agree"]) == 1 + 4 * 2 * 4 + 2 * 4 + 2
    assert [f["key"] for f in found["gaps"]] == ["node", "meeting of 8", "meeting of 16"]
    assert len(found["tiles"]) == 3 * len(gpu.TILES)
    assert {how["num_warps"] for how in kernel.launches} == {2, 4, 8}
    assert len(found["speed"]) == 16
    assert {(f["reset"], f["products"], f["card"]) for f in found["tiles"]} == {
        ("after", 3, "a card"), ("before", 3, "a card"), ("none", 1, "a card")
    }  # fmt: skip
    assert not any("error" in f for f in found["tiles"])
    assert [f["key"] for f in found["seeds"] if "nn.gru" in f["key"]] == [
        "nn.gru library captured tf32 x 8", "nn.gru library captured tf32 x 30"
    ]  # fmt: skip
    assert len(found["seeds"]) == 7
    assert [(f["key"], len(f["nodes"])) for f in found["book"]] == [
        ("book, graphs of 8 windows", 2), ("book, graphs of 149 windows", 1)
    ]  # fmt: skip
    keys = [(name, fact["key"]) for name, facts in found.items() for fact in facts]
    assert len(set(keys)) == len(keys)
    assert json.loads(json.dumps(found)) == found
    done = {key for _, key in keys} | few
    with Here():
        assert all(len(list(stage(done))) <= (name == "agree") for name, stage in gpu.OWN.items())


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
    assert capsys.readouterr().out.splitlines()[1:] == [
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    assert "sees no GPU: --dry-run prints the plan" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert gpu.main(["--dry-run", "--text", str(tmp_path / "none.txt")]) == 2
    assert "no file" in capsys.readouterr().err
