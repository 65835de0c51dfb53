"""Is the training the book's, number for number, and is every seed on its own: against a second writing of its loop."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from harness.data import batches, ngrams
from harness.data import corpus as text
from harness.data import load as loading
from harness.experiments.protocols import PROMPT, PROTOCOLS, Protocol
from harness.experiments.runs import Run
from harness.record import store, tables
from harness.run import diagnostics, evaluate
from harness.run import train as training
from harness.run.executors import group_batchable
from harness.run.outcome import Outcome, perplexity
from harness.run.train import train
from variants.model import Model

pytestmark = pytest.mark.filterwarnings("error")

SMALL = Protocol(
    train_characters=400, heldout_characters=150, batch_size=4, num_steps=5, hidden=6, lr=2.0, epochs=3, init="torch"
)
Params = tuple[Tensor, ...]
Batches = list[tuple[Tensor, Tensor]]
Net = Callable[[Tensor, Params | None], tuple[Tensor, Params]]


@functools.cache
def book() -> text.Corpus:
    return loading.load("embedded")


def run(variant: str = "gru", seed: int = 0, protocol: Protocol = SMALL) -> Run:
    engine = "library" if variant.startswith("nn.") else "loop"
    return Run(variant, seed, protocol, book().sha256, "cpu", engine)


class Watched(Model):
    """A float64 model that notes its initial values and what every training step saw and lost."""

    last: Watched

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **(kwargs | {"dtype": torch.float64}))  # type: ignore[arg-type]
        self.start = {name: value.detach().clone() for name, value in self.named_parameters()}
        self.lost: list[list[float]] = []
        self.saw: list[tuple[Tensor, Tensor]] = []

    def losses(self, X: Tensor, Y: Tensor, state: Params) -> tuple[Tensor, Params]:
        losses, state = super().losses(X, Y, state)
        if torch.is_grad_enabled():
            Watched.last = self  # the one that trains: lesions of it are models too
            self.lost.append(losses.tolist())
            self.saw.append((X.clone(), Y.clone()))
        return losses, state


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "build", Watched)


# ---- the book's loop, written a second time: nothing of variants/ or harness/run/train.py but the initial values ----


def seq_data_iter_sequential(corpus: list[int], batch_size: int, num_steps: int, offsets: random.Random) -> Batches:
    offset = offsets.randint(0, num_steps)
    num_tokens = ((len(corpus) - offset - 1) // batch_size) * batch_size
    Xs = torch.tensor(corpus[offset : offset + num_tokens]).reshape(batch_size, -1)
    Ys = torch.tensor(corpus[offset + 1 : offset + 1 + num_tokens]).reshape(batch_size, -1)
    num_batches = Xs.shape[1] // num_steps
    return [(Xs[:, i : i + num_steps], Ys[:, i : i + num_steps]) for i in range(0, num_steps * num_batches, num_steps)]


def grad_clipping(params: Sequence[Tensor], theta: float) -> None:
    norm = torch.sqrt(sum((torch.sum(gradient(p) ** 2) for p in params), torch.zeros((), dtype=torch.float64)))
    if norm > theta:
        for p in params:
            gradient(p)[:] *= theta / norm


def gradient(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


def sgd(params: Sequence[Tensor], lr: float, batch_size: int) -> None:
    with torch.no_grad():
        for p in params:
            p -= lr * gradient(p) / batch_size
            gradient(p).zero_()


def gru(inputs: Tensor, H: Tensor, params: Params) -> tuple[Tensor, Tensor]:
    W_xz, W_hz, b_z, W_xr, W_hr, b_r, W_xh, W_hh, b_h, W_hq, b_q = params
    outputs = []
    for X in inputs:
        Z = torch.sigmoid((X @ W_xz) + (H @ W_hz) + b_z)
        R = torch.sigmoid((X @ W_xr) + (H @ W_hr) + b_r)
        H_tilda = torch.tanh((X @ W_xh) + ((R * H) @ W_hh) + b_h)
        H = Z * H + (1 - Z) * H_tilda
        outputs.append(H @ W_hq + b_q)
    return torch.cat(outputs, dim=0), H


def scratch(start: dict[str, Tensor], protocol: Protocol, vocabulary: int) -> tuple[Net, list[Tensor]]:
    names = [f"cell.{n}" for k in "zrh" for n in (f"W_x{k}", f"W_h{k}", f"b_{k}")] + ["W_hq", "b_q"]
    params = [start[n][0].clone().requires_grad_() for n in names]

    def net(X: Tensor, state: Params | None) -> tuple[Tensor, Params]:
        H = torch.zeros(len(X), protocol.hidden, dtype=torch.float64) if state is None else state[0]
        Y, H = gru(nn.functional.one_hot(X.T, vocabulary).double(), H, tuple(params))
        return Y, (H,)

    return net, params


def concise(start: dict[str, Tensor], protocol: Protocol, vocabulary: int) -> tuple[Net, list[Tensor]]:
    rnn, linear = nn.GRU(vocabulary, protocol.hidden).double(), nn.Linear(protocol.hidden, vocabulary).double()
    with torch.no_grad():
        for name, p in rnn.named_parameters():
            p.copy_(start[f"cell.rnn.{name}"])
        linear.weight.copy_(start["W_hq"][0].T)
        linear.bias.copy_(start["b_q"][0, 0])

    def net(X: Tensor, state: Params | None) -> tuple[Tensor, Params]:
        Y, H = rnn(nn.functional.one_hot(X.T, vocabulary).double(), None if state is None else state[0])
        return linear(Y.reshape(-1, Y.shape[-1])), (H,)

    return net, [*rnn.parameters(), *linear.parameters()]


def train_ch8(
    net: Net, params: list[Tensor], corpus: list[int], protocol: Protocol, offsets: random.Random
) -> tuple[list[float], list[float]]:
    """The loss of every update, and the perplexity of every epoch as the book prints it."""
    loss = nn.CrossEntropyLoss(reduction="none")
    each, perplexities = [], []
    for _ in range(protocol.epochs):
        state, total, count = None, 0.0, 0
        for X, Y in seq_data_iter_sequential(corpus, protocol.batch_size, protocol.num_steps, offsets):
            state = None if state is None else tuple(s.detach() for s in state)
            y = Y.T.reshape(-1)
            y_hat, state = net(X, state)
            value = loss(y_hat, y).mean()
            value.backward()
            grad_clipping(params, protocol.clip)
            sgd(params, protocol.lr, batch_size=1)
            each.append(value.item())
            total, count = total + value.item() * y.numel(), count + y.numel()
        perplexities.append(math.exp(total / count))
    return each, perplexities


CLASSIC = PROTOCOLS["classic"]


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("gru", {"hidden": 128}),
        ("gru", {"hidden": 24, "num_steps": 3, "epochs": 1}),
        ("gru", {"hidden": 24, "init": "torch", "clip": 0.1, "lr": 4.0}),  # where the clip bites
        ("nn.gru", {"hidden": 64}),
        ("nn.gru", {"hidden": 64, "init": "book"}),
    ],
)
def test_the_first_updates_are_the_books_number_for_number(variant: str, changes: dict[str, int]) -> None:
    # 10,000 characters, 32 streams, 35 steps: 8 windows an epoch, so 7 epochs are 56 updates (104 windows at 3 steps)
    protocol = dataclasses.replace(CLASSIC, **({"epochs": 7, "evaluations": 7, "heldout_characters": 200} | changes))  # type: ignore[arg-type]
    seed = 11
    [outcome] = train([run(variant, seed, protocol)], book())
    ours = Watched.last
    second = concise if variant == "nn.gru" else scratch
    net, params = second(ours.start, protocol, len(book().vocabulary))
    each, perplexities = train_ch8(net, params, book().tokens[:10_000].tolist(), protocol, random.Random(seed))
    assert len(each) == len(ours.lost) >= 50
    assert abs(each[0] - each[-1]) > 1e-3  # something was learnt: equal numbers are not equal by standing still
    assert [x for (x,) in ours.lost] == pytest.approx(each, abs=1e-10, rel=0)
    assert [p.train_perplexity for p in outcome.curve] == pytest.approx(perplexities, abs=1e-8, rel=0)
    assert outcome.train_perplexity == pytest.approx(perplexities[-1], abs=1e-8, rel=0)
    assert outcome.tokens == len(each) * protocol.batch_size * protocol.num_steps
    end, theirs = dict(ours.named_parameters()), scratch_names(variant, params)
    assert set(end) == set(theirs)
    for name, value in theirs.items():
        assert (end[name].detach() - value.view_as(end[name])).abs().max() <= 1e-10, name
        assert not torch.equal(end[name].detach(), ours.start[name]), f"{name} never moved"


def scratch_names(variant: str, params: list[Tensor]) -> dict[str, Tensor]:
    if variant == "nn.gru":
        names = [f"cell.rnn.{n}" for n in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")]
        values = [*params[:4], params[4].T.contiguous(), params[5]]
    else:
        names = [f"cell.{n}" for k in "zrh" for n in (f"W_x{k}", f"W_h{k}", f"b_{k}")]
        values = params
    return dict(zip([*names, "W_hq", "b_q"], (v.detach() for v in values), strict=True))


# ---- what a training is, beside its numbers ---------------------------------------------------------------------


def many(seeds: Sequence[int], **changes: object) -> list[Run]:
    protocol = dataclasses.replace(SMALL, **changes)  # type: ignore[arg-type]
    return [run(seed=seed, protocol=protocol) for seed in seeds]


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("num_steps", [5, 3])
def test_the_data_of_a_seed_is_its_own(num_steps: int) -> None:
    """The same windows alone and among others, shifted by one for the targets, all from the part to learn from."""
    alone: Batches = []
    beside: Batches = []
    for seeds, kept in (([1], alone), ([0, 1, 2], beside)):
        train(many(seeds, num_steps=num_steps), book())
        kept += Watched.last.saw
    assert len(alone) == len(beside)
    for (X, Y), (XX, YY) in zip(alone, beside, strict=True):
        assert torch.equal(X[:, 0], XX[:, 1])
        assert torch.equal(Y[:, 0], YY[:, 1])
        assert X.shape == (num_steps, 1, SMALL.batch_size)
    learn, _ = text.split(book(), SMALL.train_characters, SMALL.heldout_characters)
    string = "".join(map(chr, learn.astype(int)))
    starts = set()
    for X, Y in alone:
        for k in range(SMALL.batch_size):
            window = "".join(map(chr, [*X[:, 0, k].tolist(), int(Y[-1, 0, k])]))
            assert window in string
            assert "".join(map(chr, Y[:, 0, k].tolist())) == window[1:]
        starts.add(string.index("".join(map(chr, X[:, 0, 0].tolist()))))
    assert len(starts) > len(alone) // SMALL.epochs  # another offset each epoch


@pytest.mark.parametrize("length", [2, 3, 150, 511, 642, 643, 1000, 10_000, 70_001])
def test_every_held_out_character_but_the_first_counts_once(length: int) -> None:
    held = batches.split_streams(torch.arange(length), 2)
    _, seeds, n = held.tokens.shape
    assert seeds == 2
    counted = [c for k in range(n) for c in held.tokens[1 + int(held.skip[k]) :, 1, k].tolist()]
    assert sorted(counted) == list(range(1, length))
    assert n <= batches.STREAMS
    assert not held.skip[0]
    assert all(skip >= batches.WARM for skip in held.skip[1:])
    assert (held.tokens[1:] - held.tokens[:-1] == 1).all()


def test_held_out_perplexity_is_that_of_one_stream_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read once more character by character, in one piece from a zero state: under 0.1 % apart, and far under it."""
    made: list[Model] = []
    real = Model
    monkeypatch.setattr(training, "build", lambda *a, **k: made.append(real(*a, **k)) or made[-1])  # type: ignore[func-returns-value]
    monkeypatch.setattr(training, "lesions", lambda model, *rest: [{}])
    protocol = dataclasses.replace(SMALL, train_characters=20_000, heldout_characters=3_000, hidden=16, batch_size=16,
                                   num_steps=16, epochs=2)  # fmt: skip
    outcome = train([Run("gru", 0, protocol, book().sha256, "cpu", "fused")], book())[0]
    [model] = made
    held = torch.from_numpy(book().tokens[20_000:23_000].astype("int64"))
    with torch.no_grad():
        logits, _ = model(held[:-1, None, None], model.cell.begin(1))
        one = nn.functional.cross_entropy(logits[:, 0, 0], held[1:]).exp().item()
    assert one < 12  # it has learnt something: an untrained network forgets nothing
    assert outcome.heldout_perplexity == pytest.approx(one, rel=1e-5)
    for size in (1, 8, 128, 512):
        other = dataclasses.replace(protocol, batch_size=size)
        nats, _ = evaluate.score(model, batches.eval_batches(held, other, 1), other)
        assert math.exp(nats.item()) == pytest.approx(one, rel=1e-5)
    alone = torch.zeros(1, dtype=torch.int64)
    cut = held[: 3_000 // 24 * 24].view(24, -1).T[:, None]  # as 24 streams from a zero state it is not
    bare = evaluate.evaluate(model, batches.Part(cut, alone.expand(24))).exp().item()
    assert abs(bare / one - 1) > 1e-4


def test_offsets_are_the_books_and_do_not_change_the_number_of_windows() -> None:
    protocol = dataclasses.replace(SMALL, num_steps=5)
    characters = torch.arange(SMALL.train_characters)
    windows = text.windows(len(characters), protocol.batch_size, protocol.num_steps)
    for offset in range(protocol.num_steps + 1):
        streams = batches.sequential(characters, protocol, [offset])
        assert streams[0, 0, 0] == offset
        length = (len(characters) - offset - 1) // protocol.batch_size
        assert streams[0, 0].tolist() == [offset + k * length for k in range(protocol.batch_size)]
        assert len(streams) > windows * protocol.num_steps  # the last target is there too
        assert streams.max() < len(characters)
    drawn = {random.Random(seed).randint(0, protocol.num_steps) for seed in range(50)}
    assert drawn == set(range(protocol.num_steps + 1))


def test_a_training_twice_is_the_same_and_another_seed_is_another() -> None:
    one, two = (train([run()], book())[0] for _ in range(2))
    assert dataclasses.replace(one, train_s=0) == dataclasses.replace(two, train_s=0)
    other = train([run(seed=1)], book())[0]
    assert other.heldout_perplexity != one.heldout_perplexity


def test_seeds_alone_are_the_seeds_together() -> None:
    """In float32 the products of a batch are summed in another order: 1e-4 of a perplexity is 100 roundings of 1e-6."""
    together = train(many([0, 1, 2]), book())
    for seed, beside in enumerate(together):
        alone = train(many([seed]), book())[0]
        assert alone.heldout_perplexity == pytest.approx(beside.heldout_perplexity, rel=1e-4)
        assert alone.train_perplexity == pytest.approx(beside.train_perplexity, rel=1e-4)
        assert [p.epoch for p in alone.curve] == [p.epoch for p in beside.curve]


def test_heldout_perplexity_is_the_text_that_follows_read_once_with_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once more, character by character."""
    made: list[Model] = []
    real = Model
    monkeypatch.setattr(training, "build", lambda *a, **k: made.append(real(*a, **k)) or made[-1])  # type: ignore[func-returns-value]
    outcome = train([run()], book())[0]
    held = book().tokens[SMALL.train_characters : SMALL.train_characters + SMALL.heldout_characters].astype(int)
    nats, state = [], made[0].cell.begin(1)
    with torch.no_grad():
        for now, after in itertools.pairwise(held.tolist()):
            logits, state = made[0](torch.tensor([[[now]]]), state)
            nats.append(-logits.log_softmax(-1).flatten()[after].item())
    assert outcome.heldout_perplexity == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-5)


def test_a_lesion_holds_one_gate_of_the_trained_network() -> None:
    model = Model("gru", 5, 4, [3, 7], init="torch", dtype=torch.float64)
    stream = torch.randint(5, (20, 1, 3), generator=torch.Generator().manual_seed(1)).expand(20, 2, 3)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    for name in ("W_xr", "W_hr", "b_r"):
        getattr(model.cell, name).data.zero_()  # then R is 1/2 of its own accord
    six = dataclasses.replace(SMALL, num_steps=6)
    part = batches.Part(stream, torch.zeros(3, dtype=torch.int64))
    whole = evaluate.evaluate(model, part).exp()
    found = evaluate.lesions(model, "gru", part, six)
    for seed, one in enumerate(found):
        assert list(one) == ["Z=0", "Z=0.5", "Z=1", "R=0", "R=0.5", "R=1"]
        blind = -model.b_q[seed, 0].log_softmax(-1)[stream[1:, seed]].mean()  # Z = 1 leaves the zero state
        assert one["Z=1"] == pytest.approx(blind.exp().item(), rel=1e-12)
        assert one["R=0.5"] == pytest.approx(whole[seed].item(), rel=1e-12)
        assert len({round(p or 0, 6) for p in one.values()}) == 6
    assert all(torch.equal(w, before[n]) for n, w in model.named_parameters() if not n.endswith("r"))
    assert list(evaluate.lesions(model, "gru:Z=0.5", part, six)[0]) == ["R=0", "R=0.5", "R=1"]
    cell = Model("min_lstm:F=0", 5, 4, [3, 7], init="torch", dtype=torch.float64)  # I = 0 beside it divides by 0
    unseen: dict[str, str] = {}
    one = evaluate.lesions(cell, "min_lstm:F=0", part, six, unseen=unseen)[1]
    assert [lesion for lesion, p in one.items() if p is None] == ["I=0"] == [what.split()[1] for what in unseen]
    assert "divide by 0" in unseen["lesion I=0"]
    assert evaluate.lesions(Model("nn.gru", 5, 4, [3]), "nn.gru", batches.Part(stream[:, :1], part.skip), six) == [{}]


@pytest.mark.parametrize(("epochs", "points"), [(500, 20), (20, 20), (7, 7), (30, 20), (1, 1)])
def test_looks_about_twenty_times_and_at_the_end(epochs: int, points: int) -> None:
    looks = evaluate.evaluation_epochs(dataclasses.replace(SMALL, epochs=epochs))
    assert len(looks) == points
    assert max(looks) == epochs
    assert min(looks) >= 1


def test_perplexity() -> None:
    assert perplexity(math.log(7.5)) == pytest.approx(7.5)
    assert [perplexity(x) for x in (math.nan, math.inf, 1e4)] == [None] * 3


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_seed_that_diverges_between_two_looks_is_its_own_row(poison: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One number that is none, once, in the first of three epochs of which only the last is looked at."""
    well = train(many([0, 1, 2], evaluations=1), book())

    class Poisoned(Model):
        calls = 0

        def losses(self, X: Tensor, Y: Tensor, state: Params) -> tuple[Tensor, Params]:
            losses, state = super().losses(X, Y, state)
            self.calls += torch.is_grad_enabled()
            if self.calls == 2 and torch.is_grad_enabled():
                bad = torch.zeros_like(losses)
                bad[1] = math.nan if poison == "loss" else 0
                losses = losses + bad
                if poison == "gradient":
                    losses = losses + 0 * (self.b_q[1].sum() - self.b_q[1].detach().sum() + 0).sqrt()
            return losses, state

    monkeypatch.setattr(training, "build", Poisoned)
    ill = train(many([0, 1, 2], evaluations=1), book())
    assert ill[1].error == "diverged: the loss is not a number by epoch 3"
    assert ill[1].heldout_perplexity is ill[1].train_perplexity is None
    assert ill[1].curve[-1].heldout_perplexity is None
    assert ill[1].sample == ""
    for k in (0, 2):
        assert dataclasses.replace(ill[k], train_s=0) == dataclasses.replace(well[k], train_s=0)


def test_a_learning_rate_that_explodes_is_a_row() -> None:
    (outcome,) = train(many([0], lr=1e30, clip=1e30), book())
    assert outcome.error.startswith("diverged: ")
    assert outcome.heldout_perplexity is None
    assert outcome.parameters


def test_the_sample_is_the_likeliest_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "PROMPT", "time")
    model = Model("gru", len(book().vocabulary), 6, [0, 1], init="torch")
    said = evaluate.generate(model, book(), torch.zeros(9), characters=9)
    for seed, sample in enumerate(said):
        assert len(sample.replace("<unk>", "?")) == 4 + 9
        tokens = text.encode(book(), "time").astype(int).tolist()
        for _ in range(9):
            logits, _ = model(torch.tensor(tokens)[:, None, None].expand(-1, 2, 1), model.cell.begin(1))
            tokens.append(int(logits[-1, seed, 0].argmax()))
        assert sample == "time" + text.decode(book(), tokens[4:])
    monkeypatch.undo()
    assert len(train([run()], book())[0].sample.replace("<unk>", "?")) == len(PROMPT) + 50


def test_a_network_that_does_not_know_the_books_prompt_starts_with_the_text_held_out() -> None:
    chinese = loading._file(
        Path("made.txt"), ("\u6625\u7720\u4e0d\u89c9\u6653\n\u5904\u5904\u95fb\u557c\u9e1f" * 60).encode()
    )
    protocol = dataclasses.replace(SMALL, epochs=1)
    [outcome] = train([Run("gru", 0, protocol, chinese.sha256, "cpu")], chinese)
    heldout = chinese.tokens[400:414]
    assert outcome.sample.startswith(text.decode(chinese, heldout))
    assert "<unk>" not in outcome.sample
    assert [fact["character"] for fact in outcome.heat[:: diagnostics.UNITS // 2]][:3]  # drawn, not crashed


def test_a_state_that_never_changes_learns_the_frequencies_of_characters() -> None:
    protocol = dataclasses.replace(
        SMALL, epochs=30, lr=2.0, train_characters=2000, batch_size=20, heldout_characters=500
    )
    outcome = train([run("gru:Z=1", protocol=protocol)], book())[0]
    learn, held = text.split(book(), 2000, 500)
    unigram = ngrams.ngram_baselines(book(), learn, held)["1-gram"]
    assert outcome.heldout_perplexity == pytest.approx(unigram, rel=0.02)


def test_a_heat_map_is_of_one_network_alone() -> None:
    """Of the baseline's first seed: it is an example, and large."""
    protocol = dataclasses.replace(SMALL, epochs=1)
    shown = {
        (variant, seed): bool(train([run(variant, seed, protocol)], book())[0].heat)
        for variant in ("gru", "gru:R=1") for seed in (0, 1)
    }  # fmt: skip
    assert shown == {("gru", 0): True, ("gru", 1): False, ("gru:R=1", 0): False, ("gru:R=1", 1): False}


@pytest.mark.parametrize("variant", ["gru", "ligru"])
def test_a_graph_that_cannot_be_had_is_said_and_the_training_is_the_same(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warming up has trained it by then: `captured` undoes that, and here it is undone in its stead."""
    plain, asked = run(variant), dataclasses.replace(run(variant), capture=True)
    seen: list[Tensor] = []

    def fails(work: object, example: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        seen.extend(weights)
        raise RuntimeError("operation not permitted when\nstream is capturing")

    monkeypatch.setattr(training, "captured", fails)
    eager, fell = train([plain], book())[0], train([asked], book())[0]
    assert fell.uncaptured == "operation not permitted when stream is capturing"
    assert eager.uncaptured == ""
    same = {"uncaptured": "", "train_s": 0.0}
    assert dataclasses.replace(eager, **same) == dataclasses.replace(fell, **same)  # type: ignore[arg-type]
    others = 4 * (variant == "ligru") + 2  # averages; the cell's zero, and how many steps the optimizer has taken
    assert sum(not weight.requires_grad for weight in seen) == others

    monkeypatch.setattr(training, "captured", lambda work, example, weights: work)
    caught = train([asked], book())[0]
    assert caught.uncaptured == ""
    assert dataclasses.replace(caught, **same) == dataclasses.replace(eager, **same)  # type: ignore[arg-type]

    def no_memory(*rest: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training, "captured", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        train([asked], book())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
@pytest.mark.parametrize(
    ("variant", "engine"), [("gru", "loop"), ("gru", "fused"), ("gru:Z=0", "fused"), ("ligru", "loop"),
                            ("nn.gru", "library"), ("nn.lstm", "library")],
)  # fmt: skip
def test_a_graph_on_a_gpu_trains_as_step_by_step(variant: str, engine: str) -> None:
    """The same kernels in the same order; where torch's own module takes another way, within what float32 rounds."""
    here = [dataclasses.replace(run(variant, s), device="cuda", engine=engine) for s in (0, 1)]
    eager = train(here, book())
    graph = train([dataclasses.replace(r, capture=True) for r in here], book())
    for one, other in zip(eager, graph, strict=True):
        assert other.uncaptured == ""
        assert other.train_perplexity == pytest.approx(one.train_perplexity, rel=1e-4)
        assert other.heldout_perplexity == pytest.approx(one.heldout_perplexity, rel=1e-4)
    [alone] = train(here[1:], book())
    assert alone.heldout_perplexity == pytest.approx(eager[1].heldout_perplexity, rel=1e-4)


def test_who_trains_beside_whom() -> None:
    cuda = [dataclasses.replace(r, device="cuda") for r in many([0, 1])]
    captured = [dataclasses.replace(r, capture=True) for r in cuda]
    library = [dataclasses.replace(run("nn.gru", seed=s), device="cuda") for s in (0, 1)]  # step by step
    assert list(group_batchable(many([0, 1]))) == [[r] for r in many([0, 1])]
    assert list(group_batchable([*cuda, *captured])) == [cuda, captured]
    assert list(group_batchable(library)) == [[r] for r in library]


def test_an_unknown_symbol_is_not_scored_as_if_it_were_known() -> None:
    """By hand from the logits: p(<unk>) is shared by all symbols that a limit on the vocabulary leaves out."""
    made = loading._file(Path("made.txt"), "".join(chr(97 + k * k % 23) for k in range(600)).encode(), most=5)
    assert made.left_out > 1
    protocol = dataclasses.replace(SMALL, epochs=1)
    [outcome] = train([Run("nn.gru", 0, protocol, made.sha256, "cpu", "library")], made)
    [known] = train([Run("nn.gru", 0, protocol, made.sha256, "cpu", "library")], dataclasses.replace(made, left_out=0))
    held = batches.split_streams(torch.from_numpy(made.tokens[400:550].astype("int64")), 1).tokens[1:]
    beyond = math.log(made.left_out) * float((held == 0).double().mean())
    assert beyond > 0.1
    found, without = (o.heldout_perplexity or math.nan for o in (outcome, known))
    assert found == pytest.approx(without * math.exp(beyond), rel=1e-6)
    assert (outcome.train_perplexity or math.nan) > (known.train_perplexity or math.nan) * 1.1


# ---- what only looks --------------------------------------------------------------------------------


def _fails(*args: object, **kwargs: object) -> None:
    raise TypeError("it cannot be seen")


@pytest.mark.parametrize(
    ("place", "name", "what"),
    [
        (training, "generate", "sample"),
        (training, "lesions", "lesions"),
        (diagnostics, "gates", "gates"),
        (diagnostics, "reach", "reach"),
        (diagnostics, "heat", "heat"),
    ],
)
def test_what_only_looks_at_a_trained_network_loses_nothing_of_it(
    place: ModuleType, name: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [run(seed=seed) for seed in (0, 1)]
    sound = train(runs, book())
    assert not any(outcome.unseen for outcome in sound)
    monkeypatch.setattr(place, name, _fails)
    for seen, outcome in zip(sound, train(runs, book()), strict=True):
        assert outcome.unseen == {what: "crashed: TypeError: it cannot be seen"}
        assert outcome.error == ""
        for field in ("curve", "train_perplexity", "heldout_perplexity", "parameters", "tokens"):
            assert getattr(outcome, field) == getattr(seen, field), field


def test_one_lesion_that_cannot_be_computed_is_an_empty_cell_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = Model

    def model(name: str, *args: object, **kwargs: object) -> Model:
        if name == "gru:Z=1.0":
            raise TypeError("layer_norm(): argument 'input' must be Tensor")
        return whole(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluate, "Model", model)
    (outcome,) = train([run()], book())
    assert outcome.error == ""
    assert [lesion for lesion, p in outcome.lesions.items() if p is None] == ["Z=1"]
    fact = {"corpus": "own", "outcome": dataclasses.asdict(outcome), "environment": {}, "started": "", "wall_s": 1.0,
            "together": 1, "load": 0.0}  # fmt: skip
    store.write_run(tmp_path, run(), fact)
    results = tables.gather(tmp_path)
    rows = results.lesions.set_index("lesion")
    assert "layer_norm" in rows.error["Z=1"]
    assert rows.heldout_perplexity.isna().to_dict() == {lesion: lesion == "Z=1" for lesion in outcome.lesions}
    assert "lesion Z=1: crashed: TypeError: layer_norm()" in results.runs.unseen[0]
    assert results.runs.error[0] == ""


VALIDATED = dataclasses.replace(SMALL, validation_characters=120, epochs=40, hidden=16)


@functools.cache
def validated() -> list[Outcome]:
    return train([run(seed=seed, protocol=VALIDATED) for seed in range(3)], book())


def test_each_seed_is_scored_where_its_validation_loss_was_lowest_and_at_the_end() -> None:
    """The best weights are those of a training that stops there; of seeds side by side each has its own."""
    outcomes = validated()
    for seed, outcome in enumerate(outcomes):
        lowest = min(outcome.curve, key=lambda point: point.heldout_perplexity or math.inf)
        assert outcome.best_epoch == lowest.epoch
        assert outcome.best_epoch is not None
        short = dataclasses.replace(VALIDATED, epochs=outcome.best_epoch)
        alone = train([run(seed=seed, protocol=short)], book())[0]
        assert outcome.best_perplexity == pytest.approx(alone.heldout_perplexity, rel=1e-4)
    assert {outcome.best_epoch for outcome in outcomes} - {VALIDATED.epochs}  # one, at least, was past its best
    assert any(outcome.best_perplexity != outcome.heldout_perplexity for outcome in outcomes)


def test_a_best_epoch_that_cannot_be_scored_costs_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = validated()
    put, calls = Model.put, iter(range(9))

    def fails_once(model: Model, weights: dict[str, Tensor]) -> None:
        if next(calls) == 0:
            raise MemoryError("no memory left")
        put(model, weights)

    monkeypatch.setattr(Model, "put", fails_once)
    for outcome, other in zip(
        train([run(seed=seed, protocol=VALIDATED) for seed in range(3)], book()), whole, strict=True
    ):
        assert outcome.error == ""
        assert outcome.heldout_perplexity == other.heldout_perplexity
        assert (outcome.best_epoch, outcome.best_perplexity) == (None, None)
        assert "best epoch" in outcome.unseen


def test_where_nothing_is_validated_there_is_no_best_epoch() -> None:
    outcome = train([run()], book())[0]
    assert (outcome.best_epoch, outcome.best_perplexity) == (None, None)
