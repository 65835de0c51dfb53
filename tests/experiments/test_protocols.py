"""Are the further protocols what they say: v1's windows, a rate chosen on validation, matched sizes, biases, Adam."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import variants
from harness import __main__ as command
from harness import pipeline
from harness import plan as planning
from harness.analysis.claims import reproduced
from harness.data import batches, ngrams
from harness.data import corpus as text
from harness.data import load as loading
from harness.experiments import claims, grids, protocols
from harness.experiments.protocols import Protocol
from harness.experiments.runs import Run
from harness.record import store, tables
from harness.report import select
from harness.report.sections import methods
from harness.run import evaluate, outcome
from harness.run import train as training
from harness.run.train import train
from variants import optimizer
from variants.library import Library
from variants.model import Model, kept, matched
from variants.optimizer import ADAM, SGD, Optimizer

V1 = Protocol(
    name="v1", train_characters=50, heldout_characters=30, batch_size=16, num_steps=6, hidden=5, lr=2.0, epochs=3,
    evaluations=3, init="torch", text="whole", sampling="windows",
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("in_process")


@functools.cache
def embedded() -> text.Corpus:
    return loading.load("embedded")


def run(protocol: Protocol, variant: str = "gru", seed: int = 0, **how: object) -> Run:
    return Run(variant, seed, protocol, embedded().sha256, "cpu", **how)  # type: ignore[arg-type]


class Noting(Model):
    """Notes what every update saw, and every state it began from."""

    saw: list[tuple[torch.Tensor, torch.Tensor]]
    last: Noting

    def losses(self, X, Y, state):  # type: ignore[no-untyped-def]
        if torch.is_grad_enabled():
            Noting.last = self
            self.saw = [*getattr(self, "saw", []), (X, Y)]
            assert not any(s.any() for s in state)
        return super().losses(X, Y, state)


def test_windows_are_drawn_each_once_an_epoch_in_another_order_from_a_zero_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "build", Noting)
    [outcome] = train([run(V1)], embedded())
    saw = Noting.last.saw
    sizes = [16, 16, 16, 2]  # 50 windows, the last batch what is left
    assert [x.shape for x, _ in saw] == [(6, 1, n) for n in sizes] * 3
    tokens = embedded().tokens.astype(int).tolist()
    known = {tuple(tokens[k : k + 7]): k for k in range(50)}
    orders = []
    for epoch in range(3):
        here = saw[4 * epoch : 4 * epoch + 4]
        windows = [(*x[:, 0, k].tolist(), int(y[-1, 0, k])) for x, y in here for k in range(x.shape[2])]
        assert all(torch.equal(y[:-1], x[1:]) for x, y in here)
        orders.append([known[w] for w in windows])
        assert sorted(windows) == sorted(tuple(tokens[k : k + 7]) for k in range(50))
    assert orders[0] != orders[1] != orders[2]
    assert outcome.tokens == 3 * 50 * 6


def test_n_grams_count_and_score_the_characters_that_networks_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of both samplings, with a validation part and without: every character trained on, every target scored."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        ngrams, "ngram_baselines", lambda corpus, learnt, heldout: seen.update(learnt=learnt, held=heldout) or {}
    )
    plain = dataclasses.replace(V1, sampling="sequential", train_characters=200, heldout_characters=60)
    for protocol in (V1, plain, *(dataclasses.replace(p, validation_characters=20) for p in (V1, plain))):
        planning.described(planning.Plan("bench", ("rnn",), protocol, 1, embedded(), "cpu"))
        whole = dataclasses.replace(
            embedded(), tokens=np.arange(len(embedded().tokens), dtype=np.int32)
        )  # each character is its place
        learnt, _, heldout = (torch.from_numpy(part) for part in batches.split_text(whole, protocol))
        drawn = [batches.sample_epoch(learnt, protocol, [random.Random(seed)]) for seed in range(20)]
        left = set(range(len(seen["learnt"]))) - {c for epoch in drawn for c in epoch.flatten().tolist()}
        assert len(left) < (protocol.batch_size if protocol.sampling == "sequential" else 1)  # its streams are equal
        part = batches.eval_batches(heldout, protocol, 1)
        targets = set(part.tokens[1:].flatten().tolist())
        assert sorted(targets) == heldout[1:].tolist()
        assert len(targets) == len(seen["held"]) - 1
        assert seen["held"].tolist() == embedded().tokens[heldout[0] : heldout[-1] + 1].tolist()
        both = set(range(len(seen["learnt"]))) & {*targets, int(heldout[0])}
        assert len(both) == protocol.overlap
    assert V1.overlap == 6


def test_v1_scores_each_window_from_a_zero_state_in_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once more, window by window: exp of the mean loss, and the mean over minibatches of exp(loss)."""
    monkeypatch.setattr(training, "build", Noting)
    [outcome] = train([run(V1)], embedded())
    tokens = torch.from_numpy(embedded().tokens.astype("int64"))
    losses = []
    with torch.no_grad():
        for k in range(50, 80):
            logits, _ = Noting.last(tokens[k : k + 6, None, None], Noting.last.cell.begin(1))
            losses.append(nn.functional.cross_entropy(logits[:, 0, 0], tokens[k + 1 : k + 7]).item())
    batches = [sum(part) / len(part) for part in (losses[:16], losses[16:])]
    assert outcome.heldout_perplexity == pytest.approx(math.exp(sum(losses) / 30), rel=1e-5)
    assert outcome.heldout_mean_exp == pytest.approx(sum(map(math.exp, batches)) / 2, rel=1e-5)
    assert (outcome.heldout_mean_exp or 0) > (outcome.heldout_perplexity or 9e9)


def test_a_window_seed_alone_is_the_seed_together() -> None:
    together = train([run(V1, seed=seed) for seed in (3, 4)], embedded())
    alone = train([run(V1, seed=4)], embedded())[0]
    assert alone.heldout_perplexity == pytest.approx(together[1].heldout_perplexity, rel=1e-4)
    assert alone.heldout_perplexity != together[0].heldout_perplexity


def test_the_later_edition_reads_the_text_whole() -> None:
    data = b"A b-c\n\n  D! e1f\n"
    lines, whole = (loading._file(Path("made"), data, how) for how in ("lines", "whole"))
    assert text.decode(lines, lines.tokens) == "a b cd e f"
    assert text.decode(whole, whole.tokens) == "a b c d e f "


def test_curves_are_of_validation_and_the_held_out_part_lies_behind_it() -> None:
    plain = dataclasses.replace(V1, sampling="sequential", train_characters=300, heldout_characters=60)
    apart = dataclasses.replace(plain, validation_characters=60)
    [one], [other] = (train([run(p)], embedded()) for p in (plain, apart))
    assert other.curve == one.curve  # the same 60 characters, behind the training part
    assert other.heldout_perplexity != one.heldout_perplexity
    _, validation, heldout = batches.split_text(embedded(), apart)
    assert heldout.tolist() == embedded().tokens[360:420].tolist()
    assert validation.tolist() == embedded().tokens[300:360].tolist()


TINY = ["train_characters=400", "validation_characters=60", "heldout_characters=60", "batch_size=4", "num_steps=5",
        "hidden=4", "epochs=2"]  # fmt: skip


def test_each_variant_gets_the_rate_that_validates_best_of_an_equal_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(protocols.RATES, "sgd", (0.01, 0.5, 3.0))
    words = ["ablate", "--protocol", "book", "--corpus", "embedded", "--device", "cpu", "--seeds", "2", "--no-timing",
             "--variants", "gru", "rnn", "--results", str(tmp_path), "--set", *TINY]  # fmt: skip
    assert command.main(words) == 0
    results = tables.read(tmp_path)
    tried = results.learning_rates
    assert sorted(zip(tried.variant, tried.lr, strict=True)) == sorted(
        (v, r) for v in ("gru", "rnn") for r in protocols.RATES["sgd"]
    )
    assert set(tried.seeds) == {len(protocols.RATE_SEEDS)}
    for _, own in tried.groupby("variant"):
        assert own[own.chosen].lr.tolist() == [own.loc[own.validation_perplexity.idxmin(), "lr"]]
    chosen = tried[tried.chosen].set_index("variant").lr
    final = results.runs[results.runs.seed < 1000]
    assert len(final) == 4
    assert all(row.lr == chosen[row.variant] for row in final.itertuples())
    assert not set(final.seed) & set(protocols.RATE_SEEDS)
    assert results.ablate.set_index("variant").lr.to_dict() == chosen.to_dict()
    choosing = results.runs[results.runs.seed >= 1000]
    assert choosing.protocol.str.contains("validation_characters=0").all()  # what they score is the validation part
    best = choosing[(choosing.variant == "gru") & (choosing.lr == chosen["gru"])].heldout_perplexity
    said = tried[(tried.variant == "gru") & tried.chosen].validation_perplexity.iloc[0]
    assert said == pytest.approx(math.exp(sum(map(math.log, best)) / 2))
    capsys.readouterr()
    assert command.main(words) == 0
    assert "4 done already" in capsys.readouterr().out
    assert command.main(["list", "--keys", *[w for w in words[1:] if w != "--no-timing"]]) == 0
    assert capsys.readouterr().out.count("  done ") == 4


def test_a_rate_that_diverges_for_a_seed_is_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(protocols.RATES, "sgd", (0.5, 1.0))
    monkeypatch.setattr(pipeline, "train", lambda *rest, **engine: None)
    scores = {(0.5, 1000): 9.0, (0.5, 1001): 9.0, (1.0, 1000): 2.0, (1.0, 1001): None}
    found = {key: {"heldout_perplexity": value} if value else None for key, value in scores.items()}
    monkeypatch.setattr(store, "outcome", lambda folder, run: found[run.setting.lr, run.seed])
    options = command.parser().read(
        ["ablate", "--protocol", "book", "--corpus", "embedded", "--variants", "gru", "--device", "cpu"]
    )
    [plan], rows = pipeline.choose([planning.planned("ablate", options)], tmp_path)
    assert plan.rates == {"gru": 0.5}
    assert [(r["lr"], r["failed"], r["validation_perplexity"]) for r in rows][1] == (1.0, 1, None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["rate=chosen"], "chooses on the validation part"),
        (["rate=chosen", "lr=1"], "gives lr, and rate=chosen"),
        (["match=size"], "no match 'size'"),
        (["update_bias=2"], "no update_bias '2'"),
        (["validation_characters=-1"], "validation_characters must be"),
    ],
)
def test_what_contradicts_itself_is_one_line(
    settings: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "--corpus", "embedded", "--device", "cpu", "--results", str(tmp_path), "--set", *settings]
    assert command.main(words) == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1


def test_a_seed_that_chooses_a_rate_is_not_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ablate", "--protocol", "book", "--corpus", "embedded", "--device", "cpu", "--results", str(tmp_path)]
    assert command.main([*words, "--seeds", "1001"]) == 2
    assert "choose the learning rate" in capsys.readouterr().err
    assert planning.planned("ablate", command.parser().read([*words, "--seeds", "1000"])).seeds == 1000


def test_book_is_cut_by_position_whatever_the_text() -> None:
    options = command.parser().read(["ablate", "--protocol", "book", "--corpus", "embedded", "--device", "cpu"])
    p = planning.planned("ablate", options).protocol
    assert (p.train_characters, p.validation_characters, p.heldout_characters) == (90_000, 5_000, 5_000)
    fixed = command.parser().read(
        ["ablate", "--protocol", "book", "--corpus", "embedded", "--device", "cpu", "--set", "lr=1"]
    )
    label = planning.planned("ablate", fixed).protocol.label
    assert "rate=given" in label
    assert not planning.planned("ablate", fixed).rates


def parameters(variant: str, hidden: int) -> int:
    return Model(variant, 28, hidden, [0]).parameters_per_seed


@pytest.mark.parametrize("variant", ["rnn", "gru:R=1", "gru:Z=0", "lstm", "nn.gru", "gru3", "gru"])
def test_matched_sizes_are_within_a_hundredth(variant: str) -> None:
    hidden = matched(variant, "gru", 28, 256, 28)
    want = parameters("gru", 256)
    assert abs(parameters(variant, hidden) - want) <= 0.01 * want
    for beside in (hidden - 1, hidden + 1):
        assert abs(parameters(variant, beside) - want) >= abs(parameters(variant, hidden) - want)


@pytest.mark.parametrize(
    ("said", "characters"),
    [
        ("The parrot, the pilot and the portrait: a page of plain prose.\n", 20_000),
        ("天地玄黃。宇宙洪荒。日月盈昃。辰宿列張。", 7_000),
    ],
)
def test_the_protocol_book_cuts_any_text_into_shares_of_its_own_length(
    said: str, characters: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: None
) -> None:
    monkeypatch.setitem(protocols.RATES, "sgd", (0.5, 4.0))
    file = tmp_path / "text.txt"
    file.write_text((said * characters)[:characters], encoding="utf-8")
    ask = ["ablate", "--protocol", "book", "--corpus", str(file), "--variants", "gru", "rnn", "--seeds", "2", "--set",
           "epochs=1", "hidden=4", "--no-timing", "--device", "cpu", "--results", str(tmp_path / "out")]  # fmt: skip
    assert command.main(ask) == 0
    data = tables.read(tmp_path / "out")
    assert set(data.ablate.seeds) == {2}
    assert set(data.ablate.best_epoch) == {1}
    [label] = set(data.ablate.protocol)
    p = data.protocols.set_index("protocol").loc[label]
    rest = p.heldout_characters
    assert rest == p.validation_characters == characters // 20
    whole = loading.load(str(file)).characters
    assert p.train_characters + 2 * rest == whole
    page = methods.setting(select.typed(data), select.typed(data).ablate)
    assert f"the next {rest:,} held out (the whole text, cut by position: 90, 5 and 5 %)" in page
    assert "a learning rate chosen for each variant" in page


def test_an_ablation_at_equal_parameters_has_its_tasks_at_equal_parameters() -> None:
    for given, larger in (["match=parameters", "epochs=2"], True), ([], False):
        options = command.parser().read(["ablate", "--device", "cpu", *(["--set", *given] if given else [])])
        plans = planning.on_tasks(planning.tasks_of(options))
        assert [plan.protocol.task for plan in plans] == list(grids.ANSWERING)
        assert {plan.protocol.epochs for plan in plans} == {20}  # the text's settings are not the tasks'
        assert {plan.run("gru", 0).setting.hidden for plan in plans} == {32}
        assert {plan.run("gru:R=1", 0).setting.hidden > 32 for plan in plans} == {larger}


def test_matching_parameters_trains_each_at_its_size(tmp_path: Path) -> None:
    words = ["ablate", "--corpus", "embedded", "--device", "cpu", "--seeds", "1", "--no-timing", "--variants", "gru",
             "rnn", "nn.gru", "--results", str(tmp_path), "--set", "match=parameters", "train_characters=300",
             "heldout_characters=100", "batch_size=4", "num_steps=5", "epochs=1", "hidden=24"]  # fmt: skip
    assert command.main(words) == 0
    table = tables.read(tmp_path).ablate.set_index("variant")
    assert table.hidden["gru"] == 24
    assert table.hidden["rnn"] > 35
    assert (abs(table.parameters / table.parameters["gru"] - 1) < 0.05).all()
    assert table.protocol.nunique() == 1


@pytest.mark.parametrize("variant", ["gru", "gru_after", "nn.gru", "gru1", "gru3"])
def test_the_update_gate_s_bias_starts_where_it_is_asked_to(variant: str) -> None:
    def bias(**how: object) -> torch.Tensor:
        cell = Model(variant, 5, 400, [7], "torch", **how).cell  # type: ignore[arg-type]
        values = dict(cell.named_parts())["b_xz"] if isinstance(cell, Library) else getattr(cell, cell.keeps)
        return torch.as_tensor(values).detach().flatten()

    assert bias().std() > 0
    assert (bias(update_bias="1") == 1).all()
    assert not bias(update_bias="0").any()
    spread = bias(update_bias="chrono", horizon=100).exp()  # uniform from 1 to 99
    assert 1 <= spread.min() < 3
    assert 97 < spread.max() <= 99
    assert spread.mean().item() == pytest.approx(50, abs=5)
    alone, beside = kept("chrono", (1, 4), 7, 100), kept("chrono", (1, 4), 8, 100)
    assert not torch.equal(alone, beside)


def test_a_larger_update_bias_keeps_longer() -> None:
    """Z = 1 keeps: after a bias of 1 more of the first state is left, in every cell that names its bias."""
    for variant in ("gru", "gru_after", "nn.gru", "gru1", "gru3"):
        left = []
        for bias in ("0", "1"):
            model = Model(variant, 5, 8, [1], "book", update_bias=bias)
            state = (torch.ones(1, 1, 8),)
            _, (after,) = model(torch.zeros(3, 1, 1, dtype=torch.long), state)
            left.append(after.mean().item())
        assert left[1] > left[0] + 0.1, variant


def test_adam_is_torch_s_adam_for_each_seed_on_its_own() -> None:
    both, alone = Model("gru", 5, 4, [3, 4], "torch"), Model("gru", 5, 4, [4], "torch")
    twin = [w.detach()[1:].clone().requires_grad_() for w in both.parameters()]
    adam = torch.optim.Adam(twin, lr=0.05)
    rng = torch.Generator().manual_seed(0)
    for step in range(6):
        grads = [torch.randn(w.shape, generator=rng) * 10 ** (step - 3) for w in both.parameters()]
        for w, g in zip(both.parameters(), grads, strict=True):
            w.grad = g.clone()
        for model, cut in ((alone, grads),):
            for w, g in zip(model.parameters(), cut, strict=True):
                w.grad = g[1:].clone()
        for t, g in zip(twin, grads, strict=True):
            t.grad = g[1:].clone()
        norm = nn.utils.clip_grad_norm_(twin, 1.0)
        found = both.update(0.05, 1.0, ADAM)
        assert found[1] == pytest.approx(norm.item(), rel=1e-5)
        alone.update(0.05, 1.0, ADAM)
        adam.step()
    for ours, own, theirs in zip(both.parameters(), alone.parameters(), twin, strict=True):
        assert (ours[1:] - theirs).abs().max() < 1e-5  # float32: the clip's scale is rounded otherwise
        assert (ours[1:] - own).abs().max() < 1e-5
    before = [w.detach().clone() for w in both.parameters()]
    first = next(both.parameters())
    first.grad = torch.zeros_like(first)
    first.grad[0, 0, 0] = math.nan
    both.update(0.05, 1.0, ADAM)
    assert all(torch.equal(w[0], b[0]) for w, b in zip(both.parameters(), before, strict=True))


RISE_AND_FALL = {"schedule": "cosine", "warmup": 10, "updates": 50}


@pytest.mark.parametrize("engine", ["loop", "native"])
@pytest.mark.parametrize(
    "how",
    [
        {}, {"momentum": 0.9}, {"weight_decay": 0.01}, {"momentum": 0.9, "weight_decay": 0.01, **RISE_AND_FALL},
        {"kind": "adam"}, {"kind": "adam", "weight_decay": 0.01, "schedule": "cosine", "updates": 50},
        {"kind": "adamw", "weight_decay": 0.1, "schedule": "warmup", "warmup": 20},
        {"kind": "adamw", "weight_decay": 0.1, **RISE_AND_FALL},
    ],
)  # fmt: skip
def test_fifty_updates_are_those_of_torch_s_optimizers_and_schedulers(how: dict[str, Any], engine: str) -> None:
    """Float64, within 1e-10: of each of two seeds as of one alone; every engine's gradients are the loop's."""
    if variants.refusals("gru")[engine]:
        pytest.skip(variants.refusals("gru")[engine])
    ours = Model("gru", 5, 4, [0, 1], "torch", torch.float64, engine=engine)
    twin = Model("gru", 5, 4, [1], "torch", torch.float64)
    optimizer, lr, weights = Optimizer(**how), 0.03, list(twin.parameters())
    decay = optimizer.weight_decay
    torchs: torch.optim.Optimizer = {
        "sgd": torch.optim.SGD(weights, lr, optimizer.momentum, weight_decay=decay),
        "adam": torch.optim.Adam(weights, lr, weight_decay=decay),
        "adamw": torch.optim.AdamW(weights, lr, weight_decay=decay),
    }[optimizer.kind]
    schedules = torch.optim.lr_scheduler
    rise: Any = schedules.LinearLR(torchs, 1 / max(optimizer.warmup, 1), 1.0, max(optimizer.warmup - 1, 1))
    if optimizer.schedule == "constant":
        rise = schedules.LambdaLR(torchs, lambda done: 1.0)
    elif optimizer.schedule == "cosine":
        fall = schedules.CosineAnnealingLR(torchs, 50 - optimizer.warmup)
        rise = schedules.SequentialLR(torchs, [rise, fall], [optimizer.warmup]) if optimizer.warmup else fall
    rng = torch.Generator().manual_seed(0)
    for _ in range(50):
        data = torch.randint(5, (4, 2, 3), generator=rng)
        ours.learn(data[:-1], data[1:], ours.cell.begin(3), lr, 0.2, optimizer)
        torchs.zero_grad()
        twin.losses(data[:-1, 1:], data[1:, 1:], twin.cell.begin(3))[0].sum().backward()
        norm = torch.cat([w.grad.flatten() for w in weights if w.grad is not None]).norm()
        for w in weights:
            w.grad *= (0.2 / norm).clamp(max=1)
        torchs.step()
        rise.step()
    for mine, theirs in zip(ours.parameters(), twin.parameters(), strict=True):
        assert (mine[1:] - theirs).abs().max() <= 1e-10


def test_an_optimizer_leaves_other_keys_as_they_are_and_has_its_own_grid_of_as_many_rates() -> None:
    """The keys are those from before there was the field."""
    quick, s3 = protocols.PROTOCOLS["quick"], protocols.task_protocol("s3")
    assert Run("gru", 0, quick, "sha", "cpu").key == "gru-0-28bca2ef21137128"
    assert Run("gru", 0, s3, "sha", "cpu").key == "gru-0-bc298aff1dcd7912"
    assert (quick.override(["optimizer=sgd"]), s3.override(["optimizer=adam"])) == (quick, s3)
    fields = {name: value for name, value in vars(s3).items() if name != "optimizer"}  # as an older file has them
    assert store.as_run({**Run("gru", 0, s3, "sha", "cpu").fields, "protocol": fields}).protocol == s3
    adam = quick.override(["optimizer=adam"])
    assert (adam.label, adam.lr) == ("quick,lr=0.003,optimizer=adam", 0.003)
    assert quick.override(["optimizer=adamw", "lr=0.01"]).lr == 0.01
    for p in (quick, s3):
        given = [p.override([f"optimizer={kind}", "rate=chosen"]) for kind in protocols.CHOICES["optimizer"]]
        assert len({len(protocols.rates(q)) for q in given}) == 1
        assert protocols.rates(given[1]) == protocols.rates(given[2]) != protocols.rates(given[0])
    assert optimizer.of(quick, 780) == SGD  # whose step is the one without any running average
    heavy = quick.override(["momentum=0.9"])
    assert protocols.rates(heavy) == pytest.approx([lr / 10 for lr in protocols.rates(quick)])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("optimizer=adagrad", "no optimizer 'adagrad'. There are: sgd, adam, adamw"),
        ("momentum=1", "momentum is from 0 to below 1, not 1"),
        ("optimizer=adam momentum=0.9", "momentum is of sgd: adam has its own"),
        ("weight_decay=-1", "weight_decay must be above 0"),
        ("schedule=step", "no schedule 'step'. There are: constant, cosine, warmup"),
        ("schedule=warmup", "add warmup=100"),
        ("warmup=10", "add schedule=warmup, or schedule=cosine"),
        ("schedule=warmup warmup=1.5", "warmup is a whole number"),
        ("schedule=warmup warmup=900", "warmup=900 is not below the 780 updates of a training: give fewer"),
    ],
)
def test_a_bad_optimizer_is_one_line(settings: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["bench", "--protocol", "quick", "--device", "cpu", "--set", *settings.split()]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("engine", ["fused", "native"])
def test_numbers_as_inputs_are_the_loop_s(engine: str) -> None:
    """(T, S, n, d) instead of characters, as the adding task has them: outputs and every gradient."""
    if variants.refusals("gru")[engine]:
        pytest.skip(variants.refusals("gru")[engine])
    X = torch.randn(7, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for variant in ("gru", "rnn", "gru_after", "gru:Z=0.5,R=0"):
        found = []
        for name in ("loop", engine):
            model = Model(variant, 4, 5, [0, 1], "torch", dtype=torch.float64, engine=name, outputs=1)
            outputs, _ = model(X, model.cell.begin(3))
            (outputs * torch.arange(7.0, dtype=torch.float64).view(7, 1, 1, 1)).sum().backward()
            found.append([outputs, *(w.grad for w in model.parameters())])
        assert max((a - b).abs().max().item() for a, b in zip(*found, strict=True)) <= 1e-10


# ---- what was published ----------------------------------------------------------------------------------------


def test_reproduce_sets_ours_beside_what_was_published(tmp_path: Path) -> None:
    words = ["reproduce", "--corpus", "embedded", "--device", "cpu", "--seeds", "2", "--results", str(tmp_path),
             "--set", "epochs=1", "hidden=4", "train_characters=300", "heldout_characters=100", "batch_size=8",
             "num_steps=5", "evaluations=1"]  # fmt: skip
    assert command.main(words) == 0
    table = tables.read(tmp_path).reproduce
    assert list(zip(table.variant, table.published, strict=True)) == [
        (variant, figure.mean) for (_, variant), figure in claims.PUBLISHED.items()
    ]
    runs = tables.read(tmp_path).runs
    for row in table.itertuples():
        own = runs[(runs.variant == row.variant) & (runs.protocol == row.protocol)]
        column = own.train_perplexity if row.protocol.startswith("classic") else own.heldout_mean_exp
        assert row.seeds == len(own) == 2
        assert row.perplexity == pytest.approx(column.mean())
        assert row.within_2sd == ("yes" if abs(column.mean() - row.published) <= 2 * row.published_sd else "no")
    assert table[table.protocol.str.startswith("v1")].exp_of_mean.notna().all()
    lr = runs[runs.protocol.str.startswith("v1")].groupby("variant").lr.first()
    assert (lr["rnn"], lr["gru"]) == (1.0, 4.0)


@pytest.mark.parametrize(("ours", "said"), [(1.22, "yes"), (1.24, "no"), (0.98, "no")])
def test_within_two_published_standard_deviations(ours: float, said: str) -> None:
    runs = pd.DataFrame([{"run": f"r{k}", "variant": "gru", "engine": "native", "train_perplexity": ours + d,
                          "heldout_perplexity": 9.0, "heldout_mean_exp": None, "error": ""}
                         for k, d in enumerate((-0.01, 0.01))])  # fmt: skip
    part = {"setting": ["classic", []], "runs": ["r0", "r1"], "protocol": {"label": "classic"}, "corpus": "x"}
    row = reproduced(runs, {"parts": [part]}).set_index("variant").loc["gru"]
    assert (row["within_2sd"], row["seeds"], row["published"]) == (said, 2, 1.11)
    failed = runs.assign(error="diverged")
    row = reproduced(failed, {"parts": [part]}).set_index("variant").loc["gru"]
    assert (row["within_2sd"], row["seeds"], row["failed"]) == ("", 0, 2)
    assert row["perplexity"] is None


def test_reproduce_knows_only_what_was_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--protocol", "quick"], ["--variants", "gru"]):
        assert command.main(["reproduce", "--results", str(tmp_path), *words]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_a_run_file_of_before_a_field_was_there_is_still_told(tmp_path: Path) -> None:
    store.write_run(tmp_path, run(V1), {
        "corpus": "embedded", "outcome": dataclasses.asdict(outcome.Outcome(2.0, 3.0)), "environment": {}, "load": 0.1,
        "started": "2025-11-01T00:00:00+00:00", "wall_s": 1.0, "together": 1,
    })  # fmt: skip
    [path] = (tmp_path / "runs").glob("*.json")
    whole = json.loads(path.read_text())
    for field in ("task", "match", "rate", "update_bias"):
        del whole["run"]["protocol"][field]
    for field in ("gates", "reach", "heat", "score", "heldout_mean_exp", "lesions"):
        del whole["outcome"][field]
    path.write_text(json.dumps(whole))
    [row] = tables.gather(tmp_path).runs.to_dict("records")
    assert row["run"] == path.stem
    assert row["heldout_perplexity"] == 3.0


def test_a_held_out_loss_that_is_no_number_is_a_failure_though_validation_was_fine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The curve is of the validation part: only the last look, at the held-out part, can tell."""
    apart = dataclasses.replace(
        V1, sampling="sequential", train_characters=300, heldout_characters=60, validation_characters=90
    )
    real = evaluate.score

    def score(model: Model, held: batches.Part, protocol: Protocol, *alive: Any) -> tuple[torch.Tensor, torch.Tensor]:
        nats, mean = real(model, held, protocol, *alive)
        return (nats, mean) if len(held.tokens) == 90 else (nats * math.inf, mean)

    monkeypatch.setattr(training, "score", score)
    [outcome] = train([run(apart)], embedded())
    assert all(point.heldout_perplexity for point in outcome.curve)
    assert outcome.error.startswith("diverged: the held-out loss")
    assert outcome.heldout_perplexity is None
