"""RUN IT: the runs of one variant, as many seeds at once as it can take, to their perplexities.

Rule: a seed's numbers do not depend on which other seeds train beside it. Perplexity is exp(mean loss in nats
a character); evaluation happens off the clock.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import variants
from harness.data import corpus as text
from harness.experiments.grid import BASELINE, PROMPT, Protocol, Run
from harness.run import diagnostics as inside
from harness.run.cuda_graph import Work, captured
from harness.run.diagnostics import Alive
from harness.run.network import network
from harness.run.process import describe
from harness.run.progress import Arrays, Keep, Progress, Watch, set_words, words_of
from variants.cell import State
from variants.model import Model

HELD = (0.0, 0.5, 1.0)  # what a lesion holds a gate at
SAMPLED = 50  # characters of a sample, as in the book
# Of what is scored, whatever the training's batch: characters of a stream, characters it reads before, streams at most.
STREAM, WARM, STREAMS = 256, 128, 256
AT_ONCE = 32  # steps of a stream between two signs of life
GRAPH_WINDOWS = 8  # of one CUDA graph, which is replayed: an epoch of `book` has 149, of a thousand kernels and more


@dataclass(frozen=True)
class Point:
    """One evaluation. `train_perplexity` is the book's number: over the epoch, while the weights move."""

    epoch: int
    tokens: int
    train_perplexity: float | None
    heldout_perplexity: float | None


@dataclass(frozen=True)
class Outcome:
    """What a training gave. A value that is not finite is None; then `error` says since when."""

    train_perplexity: float | None = None
    heldout_perplexity: float | None = None
    parameters: int | None = None
    tokens: int | None = None
    train_s: float | None = None
    sample: str = ""
    error: str = ""
    curve: tuple[Point, ...] = field(default=())
    lesions: dict[str, float | None] = field(default_factory=dict)  # 'R=0' -> held-out perplexity
    score: float | None = None  # of a task, at the trained length
    score_longer: float | None = None  # at the longer one
    solved_after: int | None = None  # updates; None where the task was not solved
    checks: tuple[float, ...] = ()  # the score every 100 updates
    gates: dict[str, dict[str, Any]] = field(default_factory=dict)  # of diagnostics.py, over the held-out text
    reach: dict[int, float] = field(default_factory=dict)
    heat: tuple[dict[str, object], ...] = ()
    network: dict[str, object] | None = None  # of seed 0: see run/network.py
    unseen: dict[str, str] = field(default_factory=dict)  # what could not be looked at ('reach', 'lesion R=0') -> why
    uncaptured: str = ""  # why it was trained step by step, where a CUDA graph was asked for
    heldout_mean_exp: float | None = None  # the mean of exp(loss) over minibatches, as the book's later edition has it


@dataclass(frozen=True)
class Position:
    """Within an epoch: minibatches done, the state carried on (none by windows), the sum of their mean losses (S,)."""

    window: int
    state: State
    total: Tensor


def train(
    runs: Sequence[Run],
    corpus: text.Corpus,
    progress: Progress = lambda share, perplexity: None,
    keep: Keep | None = None,
) -> list[Outcome]:
    """Train runs that differ in their seed alone, side by side. One `Outcome` a run, in their order.

    With `keep` it is saved from time to time, and goes on from what is found there.
    """
    protocol, device = runs[0].setting, runs[0].device
    vocabulary = len(corpus.vocabulary)
    model = Model(
        runs[0].variant, vocabulary, protocol.hidden, [run.seed for run in runs], protocol.init, device=device,
        engine=runs[0].engine, update_bias=protocol.update_bias, horizon=protocol.num_steps,
    )  # fmt: skip
    model.unknown_nats = corpus.unknown_nats
    characters, validation, heldout = (
        torch.from_numpy(part.astype(np.int64)).to(device) for part in parts(corpus, protocol)
    )
    windows = windows_of(len(characters), protocol)
    scored = laid_out(heldout, protocol, len(runs))
    curve_on = laid_out(validation, protocol, len(runs)) if len(validation) else scored
    orders = [random.Random(run.seed) for run in runs]
    looks = evaluation_epochs(protocol)
    looked: dict[int, list[list[float]]] = {}  # epoch -> nats in training, on what is held out, of each seed
    lost = torch.zeros(len(runs), device=device, dtype=torch.bool)  # for good: its later epochs are not its own
    begin, at = 1, start_of(model, protocol, len(runs))
    watch = Watch(device, progress, keep)
    if found := watch.load():
        begin, at, lost, looked = resume(found, model, orders)
    graphs: dict[int, tuple[int, Work]] = {}
    uncaptured = ""
    if runs[0].capture:
        example = drawn(characters, protocol, [random.Random(0) for _ in runs])
        try:
            graphs = graphs_of(model, example, windows, protocol)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # the same steps, one by one, are the same numbers, only later
            uncaptured = " ".join(str(error).split())[:200] or "it cannot be captured"
    for epoch in range(begin, protocol.epochs + 1):
        model.train()
        states = [order.getstate() for order in orders]
        watch.start()

        def between(done: Position, epoch: int = epoch, states: list[tuple[Any, ...]] = states) -> None:
            share = (epoch - 1 + done.window / windows) / protocol.epochs
            watch.between(share, lambda: standing(model, epoch, words_of(states), done, lost, looked))

        data = drawn(characters, protocol, orders)
        between(at)
        nats = epoch_of(model, data, windows=windows, protocol=protocol, at=at, between=between, graphs=graphs)
        lost.logical_or_(~nats.isfinite())
        watch.stop()
        model.eval()
        at = start_of(model, protocol, len(runs))
        if epoch in looks:
            held, mean_exp = score(model, curve_on, protocol, watch.alive)
            looked[epoch] = torch.where(lost, math.nan, torch.stack([nats, held])).tolist()
            watch.sign(epoch / protocol.epochs, perplexity(looked[epoch][1][0]))
            if all(perplexity(a) is None or perplexity(b) is None for a, b in zip(*looked[epoch], strict=True)):
                break  # every seed has diverged
    each = protocol.num_steps * (
        protocol.train_characters if protocol.sampling == "windows" else windows * protocol.batch_size
    )
    curves = [
        [Point(k, k * each, perplexity(nats[0][s]), perplexity(nats[1][s])) for k, nats in looked.items()]
        for s in range(len(runs))
    ]
    final = held
    if len(validation):
        final, mean_exp = score(model, scored, protocol, watch.alive)
    # from here on the network is only looked at, and nothing of that can lose these
    scores, mean_exps = final.tolist(), mean_exp.tolist()
    unseen: dict[str, str] = {}

    def look(what: str, at_it: Callable[[], list[Any]], count: int = len(runs)) -> list[Any]:
        watch.alive()
        try:
            return at_it()
        except Exception as error:
            unseen[what] = describe(error)
            return [None] * count

    samples = look("sample", lambda: generate(model, corpus, heldout))
    broken = look("lesions", lambda: lesions(model, runs[0].variant, scored, protocol, watch.alive, unseen))
    text_on = streams(heldout, len(runs)).tokens
    values = look("gates", lambda: inside.gates(model, text_on, watch.alive))
    reaches = look("reach", lambda: inside.reach(model, text_on, watch.alive))
    shown: list[Any] = []
    if runs[0].variant == BASELINE:
        shown = look("heat", lambda: inside.heat(model, corpus, heldout, watch.alive), 0)
    kept: list[Any] = []
    if runs[0].seed == 0:
        kept = look("network", lambda: [network(model, 0, corpus.vocabulary, heldout.tolist())], 0)
    return [
        Outcome(
            train_perplexity=None if error else curve[-1].train_perplexity,
            heldout_perplexity=None if error else perplexity(nats_held),
            parameters=model.parameters_per_seed,
            tokens=epoch * each,
            train_s=watch.seconds,
            sample="" if error else sample or "",
            error=error,
            curve=tuple(curve),
            lesions={} if error else lesion or {},
            gates={} if error else values[k] or {},
            reach={} if error else reaches[k] or {},
            heat=tuple(shown) if k == 0 and runs[0].seed == 0 and not error else (),
            network=kept[0] if k == 0 and kept and not error else None,
            uncaptured=uncaptured,
            heldout_mean_exp=mean if not error and math.isfinite(mean) else None,
            unseen={} if error else unseen,
        )
        for k, (curve, sample, lesion, nats_held, mean) in enumerate(
            zip(curves, samples, broken, scores, mean_exps, strict=True)
        )
        for error in [
            divergence(curve) or ("" if perplexity(nats_held) else "diverged: the held-out loss is no number")
        ]
    ]


def parts(corpus: text.Corpus, protocol: Protocol) -> tuple[text.Tokens, text.Tokens, text.Tokens]:
    """Characters to learn from, to validate on (perhaps none), held out. By windows, a part is where they begin:

    it runs on to the end of its last window, one character past it.
    """
    train, between = protocol.train_characters, protocol.validation_characters
    tail = protocol.num_steps if protocol.sampling == "windows" else 0
    _, heldout = text.split(corpus, train, protocol.heldout_characters + tail, between)
    tokens = corpus.tokens
    return tokens[: train + tail], tokens[train : train + between + tail * (between > 0)], heldout


def windows_of(characters: int, protocol: Protocol) -> int:
    """Minibatches in an epoch."""
    if protocol.sampling == "windows":
        return math.ceil(protocol.train_characters / protocol.batch_size)
    return text.windows(characters, protocol.batch_size, protocol.num_steps)


def drawn(characters: Tensor, protocol: Protocol, orders: Sequence[random.Random]) -> Tensor:
    """One epoch's data of every seed, in the order that each seed's generator says."""
    if protocol.sampling == "sequential":
        return sequential(characters, protocol, [order.randint(0, protocol.num_steps) for order in orders])
    rows = []
    for order in orders:
        rng = torch.Generator().manual_seed(order.getrandbits(63))
        rows.append(torch.randperm(len(characters) - protocol.num_steps, generator=rng))
    return windowed(characters, protocol.num_steps, torch.stack(rows).to(characters.device))


def windowed(characters: Tensor, num_steps: int, starts: Tensor) -> Tensor:
    """Windows that begin at starts (S, N), a column each, and the character after them: (num_steps + 1, S, N)."""
    steps = torch.arange(num_steps + 1, device=characters.device)
    return characters[steps[:, None, None] + starts]


@dataclass(frozen=True)
class Part:
    """What is to be scored: tokens (length, S, n), a column a sequence, each read from a zero state.

    `skip` (n,): how many of its first targets are not counted.
    """

    tokens: Tensor
    skip: Tensor


def laid_out(characters: Tensor, protocol: Protocol, seeds: int) -> Part:
    """A part to be scored, as `score` reads it: as streams, or as all its windows."""
    if protocol.sampling == "sequential":
        return streams(characters, seeds)
    starts = torch.arange(len(characters) - protocol.num_steps, device=characters.device)
    return Part(windowed(characters, protocol.num_steps, starts[None]).expand(-1, seeds, -1), torch.zeros_like(starts))


def streams(characters: Tensor, seeds: int) -> Part:
    """Text (length,) as streams side by side, the same for each seed. Every character but the first counts once.

    A stream begins WARM characters before what counts of it, so that it is as if the text were read in one piece: the
    perplexities of trained networks differ by less than 0.001 %.
    """
    targets = len(characters) - 1
    n = min(STREAMS, max(1, (targets - WARM) // STREAM))
    warm = WARM if n > 1 else 0
    own = -(-(targets - warm) // n)
    begins = own * torch.arange(n, device=characters.device)
    skip = torch.full_like(begins, warm)
    over = warm + n * own - targets  # the last stream begins earlier, to end with the text
    begins[-1] -= over
    skip[-1] += over
    skip[0] = 0
    steps = torch.arange(warm + own + 1, device=characters.device)
    return Part(characters[steps[:, None] + begins][:, None].expand(-1, seeds, -1), skip)


def score(model: Model, held: Part, protocol: Protocol, alive: Alive = lambda: None) -> tuple[Tensor, Tensor]:
    """(S,) mean loss in nats a character of a part; and of windows the mean over minibatches of exp(loss), else NaN."""
    if protocol.sampling == "sequential":
        nats = evaluate(model, held, alive)
        return nats, torch.full_like(nats, math.nan)
    return evaluate_windows(model, held.tokens, protocol.batch_size, alive)


def sequential(characters: Tensor, protocol: Protocol, offsets: Sequence[int]) -> Tensor:
    """The book's sequential partition of one epoch, a column a stream: (length, S, n).

    From a seed's random offset the text is cut into `batch_size` streams of equal length, read side by side.
    """
    n = protocol.batch_size
    each = [(len(characters) - offset - 1) // n for offset in offsets]
    first, apart = torch.tensor([offsets, each], device=characters.device)[..., None]
    starts = first + apart * torch.arange(n, device=characters.device)
    length = (len(characters) - protocol.num_steps - 1) // n + 1  # the same for every offset, targets included
    steps = torch.arange(length, device=characters.device)
    return characters[steps[:, None, None] + starts]


def start_of(model: Model, protocol: Protocol, seeds: int) -> Position:
    """Before an epoch's first minibatch: a zero state where one is carried, nothing lost."""
    total = torch.zeros(seeds, device=model.b_q.device, dtype=model.b_q.dtype)
    return Position(0, model.cell.begin(protocol.batch_size) if protocol.sampling == "sequential" else (), total)


def epoch_of(
    model: Model,
    streams: Tensor,
    *,
    windows: int,
    protocol: Protocol,
    at: Position | None = None,
    between: Callable[[Position], None] = lambda done: None,
    graphs: Mapping[int, tuple[int, Work]] | None = None,
) -> Tensor:
    """Train over one epoch's streams (length, S, n), state carried and detached. Mean loss (S,) in nats.

    Or over its windows (num_steps + 1, S, N), `batch_size` at a time, each from a zero state. From where it stands,
    `at`, on; `between` is told where after each minibatch but the last, or after each of `graphs` (see `graphs_of`).

    NaN for a seed that had a loss or a gradient that is not finite: the epoch's mean is not its either.
    """
    at = at or start_of(model, protocol, streams.shape[1])
    while at.window < windows:
        end, work = (graphs or {}).get(at.window) or (at.window + 1, functools.partial(steps, model, protocol))
        total, *state = work(part_of(streams, at.window, end, protocol), at.total, *at.state)
        at = Position(end, tuple(state), total)
        if end < windows:
            between(at)
    return at.total / windows


def part_of(streams: Tensor, begin: int, end: int, protocol: Protocol) -> Tensor:
    """Windows `begin` to `end` of an epoch's data, as it is laid out."""
    if protocol.sampling == "sequential":
        return streams[begin * protocol.num_steps : end * protocol.num_steps + 1]
    return streams[:, :, begin * protocol.batch_size : end * protocol.batch_size]


def steps(model: Model, protocol: Protocol, part: Tensor, total: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
    """Train over some windows, laid out as an epoch's: the sum of mean losses (S,) so far, and the state after them."""
    T, n, carried = protocol.num_steps, protocol.batch_size, protocol.sampling == "sequential"
    for w in range((len(part) - 1) // T if carried else math.ceil(part.shape[2] / n)):
        window = part_of(part, w, w + 1, protocol)
        if not carried:
            state = model.cell.begin(window.shape[2])
        losses, norms, state = model.learn(window[:-1], window[1:], state, protocol.lr, protocol.clip)
        total = total + torch.where(norms.isfinite(), losses, math.nan)
    return (total, *(state if carried else ()))


def graphs_of(model: Model, example: Tensor, windows: int, protocol: Protocol) -> dict[int, tuple[int, Work]]:
    """An epoch as CUDA graphs: first window -> (window after the last, graph).

    A graph has GRAPH_WINDOWS windows at most, whatever an epoch has: one is replayed again and again. What an epoch
    ends with is another.
    """
    weights, at = [*model.parameters(), *model.buffers()], start_of(model, protocol, example.shape[1])
    made: dict[tuple[int, ...], Work] = {}
    graphs: dict[int, tuple[int, Work]] = {}
    for begin in range(0, windows, GRAPH_WINDOWS):
        end = min(begin + GRAPH_WINDOWS, windows)
        part = part_of(example, begin, end, protocol)
        if part.shape not in made:
            made[part.shape] = captured(functools.partial(steps, model, protocol), (part, at.total, *at.state), weights)
        graphs[begin] = end, made[part.shape]
    return graphs


def standing(
    model: Model, epoch: int, words: npt.NDArray[Any], at: Position, lost: Tensor, looked: dict[int, list[list[float]]]
) -> Arrays:
    """All that a training's further course follows from. `words`: the generators, before this epoch was drawn."""
    return {
        **model.snapshot(),
        **{f"state/{k}": part.cpu().numpy() for k, part in enumerate(at.state)},
        "total": at.total.cpu().numpy(), "window": np.array(at.window), "epoch": np.array(epoch), "words": words,
        "lost": lost.cpu().numpy(), "looked_at": np.array(list(looked)),
        "looked": np.array(list(looked.values())).reshape(len(looked), 2, len(lost)),
    }  # fmt: skip


def resume(
    found: Arrays, model: Model, orders: Sequence[random.Random]
) -> tuple[int, Position, Tensor, dict[int, list[list[float]]]]:
    """The epoch, and where in it, at which a training stood; model and generators are made to stand there too."""
    device = model.b_q.device
    model.restore(found)
    set_words(orders, found["words"])
    parts = sum(name.startswith("state/") for name in found)
    state = tuple(torch.from_numpy(found[f"state/{k}"]).to(device) for k in range(parts))
    at = Position(int(found["window"]), state, torch.from_numpy(found["total"]).to(device))
    looked = dict(zip(found["looked_at"].tolist(), found["looked"].tolist(), strict=True))
    return int(found["epoch"]), at, torch.from_numpy(found["lost"]).to(device), looked


@torch.no_grad()
def evaluate(model: Model, held: Part, alive: Alive = lambda: None) -> Tensor:
    """(S,) mean loss in nats of the characters of streams that count, the state carried from the first to the last."""
    length, S, n = held.tokens.shape
    state = model.cell.begin(n)
    total = torch.zeros(S, device=held.tokens.device, dtype=torch.float64)
    for begin in range(0, length - 1, AT_ONCE):
        end = min(begin + AT_ONCE, length - 1)
        nats, state = model.nats(held.tokens[begin:end], held.tokens[begin + 1 : end + 1], state)
        counts = torch.arange(begin, end, device=held.skip.device)[:, None] >= held.skip
        total += torch.where(counts, nats, 0.0).sum((1, 2), dtype=torch.float64)
        alive()
    return (total / ((length - 1) * n - held.skip.sum())).to(model.b_q.dtype)


@torch.no_grad()
def evaluate_windows(
    model: Model, windows: Tensor, batch_size: int, alive: Alive = lambda: None
) -> tuple[Tensor, Tensor]:
    """As `score`, over windows (num_steps + 1, S, N), each read from a zero state, minibatches as in training."""
    total, exps = (torch.zeros(windows.shape[1], device=windows.device, dtype=model.b_q.dtype) for _ in "ab")
    batches = windows.split(batch_size, dim=2)
    for part in batches:
        losses, _ = model.losses(part[:-1], part[1:], model.cell.begin(part.shape[2]))
        total += losses * part.shape[2]
        exps += losses.exp()
        alive()
    return total / windows.shape[2], exps / len(batches)


def lesions(
    model: Model,
    variant: str,
    part: Part,
    protocol: Protocol,
    alive: Alive = lambda: None,
    unseen: dict[str, str] | None = None,
) -> list[dict[str, float | None]]:
    """Held-out perplexity of a trained model with one of its gates held only now, of every seed: {'R=0': 12.3, ...}.

    Against the same gate held in training too, it tells what training works around. `part` as for `score`. Of one that
    cannot be computed None, and `unseen` is told why.
    """
    base, fixed = variants.parse(variant)
    S, h, d = model.W_hq.shape
    trained = model.state_dict()
    found: list[dict[str, float | None]] = [{} for _ in range(S)]
    for gate in [g for g in variants.found()[base].gates if g not in fixed]:
        for value in HELD:
            lesion = f"{gate}={value:g}"
            name = f"{base}:" + ",".join(f"{g}={v}" for g, v in {**fixed, gate: value}.items())
            try:
                held = Model(name, d, h, range(S), dtype=model.b_q.dtype, device=str(model.b_q.device)).eval()
                held.unknown_nats = model.unknown_nats
                for key, weight in held.state_dict().items():
                    weight.copy_(trained[key])
                nats = score(held, part, protocol, alive)[0].tolist()
            except Exception as error:
                nats = [math.nan] * S
                if unseen is not None:
                    unseen[f"lesion {lesion}"] = describe(error)
            for seed, one in enumerate(nats):
                found[seed][lesion] = perplexity(one)
    return found


@torch.no_grad()
def generate(model: Model, corpus: text.Corpus, heldout: Tensor, characters: int = SAMPLED) -> list[str]:
    """The prompt and what each seed's network writes after it, always the likeliest character, as the book does.

    The prompt is the book's, or the first characters held out where the vocabulary lacks one of the book's.
    """
    start = torch.from_numpy(text.encode(corpus, PROMPT).astype(np.int64)).to(model.b_q.device)
    if not start.all():  # index 0 is <unk>
        start = heldout[: len(PROMPT)]
    seeds = len(model.b_q)
    logits, state = model(start[:, None, None].expand(-1, seeds, 1), model.cell.begin(1))
    written = [logits[-1].argmax(-1)]
    for _ in range(characters - 1):
        logits, state = model(written[-1][None], state)
        written.append(logits[-1].argmax(-1))
    whole = torch.cat([start[:, None].expand(-1, seeds), torch.stack(written)[:, :, 0]])
    return ["".join(text.visible(corpus, whole[:, s].tolist())) for s in range(seeds)]


def evaluation_epochs(protocol: Protocol) -> set[int]:
    """About `evaluations` epochs spread evenly, the last always among them."""
    points = min(protocol.evaluations, protocol.epochs)
    return {math.ceil(protocol.epochs * (k + 1) / points) for k in range(points)}


def perplexity(nats: float) -> float | None:
    """exp of a mean loss in nats; None where that is no finite number."""
    return math.exp(nats) if nats < 700 else None  # NaN fails the comparison too


def divergence(curve: Sequence[Point]) -> str:
    for point in curve:
        if point.train_perplexity is None or point.heldout_perplexity is None:
            return f"diverged: the loss is not a number by epoch {point.epoch}"
    return ""


def packs(runs: Sequence[Run]) -> Iterator[list[Run]]:
    """Runs that can train side by side: on CUDA all seeds of one scratch variant, else one by one."""
    groups: dict[Run, list[Run]] = {}
    for run in runs:
        alone = run.device == "cpu" or run.engine == "library"
        groups.setdefault(run if alone else replace(run, seed=0), []).append(run)
    yield from groups.values()
