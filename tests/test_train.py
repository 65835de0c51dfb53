"""Is the training the book's, number for number, and is every seed on its own: against a second writing of its loop."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from harness import corpus as text
from harness import train as training
from harness.grid import PROTOCOLS, Protocol, Run
from harness.train import train
from variants.model import Model

pytestmark = pytest.mark.filterwarnings("error")

SMALL = Protocol(
    train_characters=400, heldout_characters=150, batch_size=4, num_steps=5, hidden=6, lr=2.0, epochs=3, init="torch"
)
Params = tuple[Tensor, ...]
Batches = list[tuple[Tensor, Tensor]]
Net = Callable[[Tensor, Params | None], tuple[Tensor, Params]]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def book() -> text.Corpus:
    return text.load("embedded")


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
        Watched.last = self

    def losses(self, X: Tensor, Y: Tensor, state: Params) -> tuple[Tensor, Params]:
        losses, state = super().losses(X, Y, state)
        if torch.is_grad_enabled():
            self.lost.append(losses.tolist())
            self.saw.append((X.clone(), Y.clone()))
        return losses, state


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "Model", Watched)


# ---- the book's loop, written a second time: nothing of variants/ or harness/train.py but the initial values ----


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
        ("gru", {"hidden": 256}),
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
