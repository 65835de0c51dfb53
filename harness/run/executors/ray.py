"""Train on Ray: an actor a processor, which keeps one worker of the local executor and is fed groups of runs.

Rule: only the driver writes, and it alone decides what is tried again. A run whose node ends is handed out again, at
most three times; a run whose process ends is one row, as on one machine. Ray is imported where it is asked for.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import functools
import itertools
import os
import platform
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.data.corpus import Corpus
from harness.experiments.runs import Run
from harness.files import now, write
from harness.formatting import pluralize
from harness.run import machine
from harness.run.executors import TRIES, Checkpoints, Finished, InProgress, OnProgress, group_batchable, local
from harness.run.machine import Fact
from harness.run.outcome import Outcome
from variants import registry

if TYPE_CHECKING:
    from harness.plan import Where

VERSION = "2.60"  # of Ray: nodes and driver must have the same one
AHEAD = 2  # groups that a processor has: the next is there before the last has ended
LOOK_S = 1.0  # between two looks at the nodes and the mailbox
JOIN_S = 60.0  # how long the first training waits for a node whose processors are taken by others
HEAD_S = 20.0  # a first node that does not answer for so long is gone
ALONE_S = 120.0  # without a node for so long the driver ends
TWICE = 10  # with --mixed every tenth training is trained on another class too


@dataclass(frozen=True)
class Ready:
    """A processor can train: its machine, and what of the users' own cells it cannot find."""

    place: int
    facts: dict[str, Fact]
    missing: str = ""


@dataclass(frozen=True)
class Kept:
    """The checkpoint of a group that is being trained, as bytes."""

    job: int
    whole: bytes


@dataclass(frozen=True)
class Sign:
    """A sign of life of a group."""

    job: int
    underway: InProgress


@dataclass(frozen=True)
class Answered:
    """All that a group gave."""

    job: int
    finished: tuple[Finished, ...]


@dataclass(frozen=True)
class Lost:
    """A processor is gone, with its node or alone: why. `oom`: it was ended for want of memory."""

    place: int
    why: str
    oom: bool = False


Event = Ready | Kept | Sign | Answered | Lost


class Link(Protocol):
    """The part of a cluster that the driver needs."""

    def nodes(self) -> dict[str, int]:
        """The nodes that are alive, and how many processors (or GPUs) each has."""

    def start(self, place: int, node: str) -> None:
        """Have a processor of a node made ready; `Ready` says when it is."""

    def train(self, place: int, job: int, group: Sequence[Run], standing: bytes | None) -> None:
        """Have a group trained there, after what it has already, from its checkpoint."""

    def events(self, seconds: float) -> list[Event]:
        """Return what has come since, after at most that time."""

    def stop(self, place: int) -> None:
        """End a processor, whatever it does."""


# ---- the driver ---------------------------------------------------------------------------------


@dataclass
class Job:
    """A group that was handed out, or is to be again."""

    number: int
    group: list[Run]
    tries: int = 0
    heard: float = 0.0
    avoid: str = ""  # a class of bits that is not to train it
    first: Finished | None = None  # what another class gave: it is trained for the difference alone


@dataclass
class Place:
    """A processor: its node, its machine once it is ready, the jobs it has, the first of them underway."""

    node: str
    facts: dict[str, Fact] | None = None
    jobs: list[Job] = field(default_factory=list)

    @property
    def bits(self) -> str:
        return str((self.facts or {}).get("bits"))


class Driver:
    """Hands groups out to whatever processors there are, and takes what comes back."""

    def __init__(
        self, link: Link, name: str, groups: Iterable[list[Run]], where: Where, folder: Path, on_progress: OnProgress,
        checkpoints: Checkpoints,
    ) -> None:  # fmt: skip
        self.link, self.name, self.groups, self.where = link, name, iter(groups), where
        self.folder, self.on_progress, self.checkpoints = folder, on_progress, checkpoints
        self.numbers = itertools.count()
        self.queue: collections.deque[Job] = collections.deque()
        self.places: dict[int, Place] = {}
        self.left_out: set[str] = set()  # nodes
        self.apart: list[float] = []  # nats between two classes
        self.begun = False
        self.alive: dict[str, int] = {}
        self.commit = {name: fact for name, fact in machine._commit().items()}

    def results(self) -> Iterator[Finished]:
        """Every run, as it ends. ValueError before the first, for nodes that cannot train together."""
        looked, since, ready_at, told = -LOOK_S, time.monotonic(), 0.0, False
        try:
            while True:
                if time.monotonic() - looked >= LOOK_S:
                    looked = time.monotonic()
                    yield from self.look()
                    since = looked if self.places else since
                    if looked - since > ALONE_S:
                        raise OSError(errno.EHOSTDOWN, f"no node for {ALONE_S:g} s; what is finished is kept, and the "
                                      "same command goes on", self.name)  # fmt: skip
                ready = [place for place in self.places.values() if place.facts]
                if ready and not self.begun:
                    ready_at = ready_at or time.monotonic()
                    waiting = {p.node for p in self.places.values()} - {p.node for p in ready}
                    self.begun = not waiting or time.monotonic() - ready_at > JOIN_S
                    if self.begun:
                        self.together(ready)
                if self.begun:
                    self.hand_out()
                    if not told and (told := True):
                        print(self.described(), flush=True)
                if self.begun and not self.queue and not any(place.jobs for place in self.places.values()):
                    break
                for event in self.link.events(LOOK_S / 2):
                    yield from self.take(event)
        finally:
            for number in self.places:
                self.link.stop(number)
        if self.apart:
            print(f"mixed: {pluralize(len(self.apart), 'training')} ran on two classes of bits; largest difference "
                  f"{max(self.apart):.2g} nats/character (equivalent: within {self.where.margin:g})")  # fmt: skip

    def look(self) -> Iterator[Finished]:
        """Take on the processors of nodes that have come, and give up those of nodes that are gone."""
        self.alive = alive = self.link.nodes()
        for number, place in list(self.places.items()):
            if place.node not in alive:  # Ray itself leaves what it gave to a node that was cut off pending
                yield from self.lose(number, "its node is gone")
        self.fill(sum(alive.values()))
        for node, processors in alive.items():
            have = sum(place.node == node for place in self.places.values())
            wanted = len(self.queue) + sum(len(place.jobs) for place in self.places.values()) - len(self.places)
            for _ in range(min(processors - have, wanted) if node not in self.left_out else 0):
                number = next(self.numbers)
                self.places[number] = Place(node)
                self.link.start(number, node)

    def fill(self, most: int) -> None:
        """Take groups from their iterator until so many wait: a plan of a million is never a list."""
        for group in itertools.islice(self.groups, max(0, most - len(self.queue))):
            self.queue.append(Job(next(self.numbers), list(group)))

    def together(self, ready: Sequence[Place]) -> None:
        """ValueError for nodes of several classes of bits, unless that was asked for, or of another torch."""
        for place in ready:
            self.same_torch(place)
        classes = sorted({place.bits for place in ready})
        if len(classes) > 1 and not self.where.mixed:
            sizes = ", ".join(f"{sum(p.bits == c for p in ready)} of {c}" for c in classes)
            raise ValueError(f"{self.name} has processors of {len(classes)} classes of bits ({sizes}): one training "
                             "differs between them; take nodes of one class, or give --mixed (MIXED=1)")  # fmt: skip

    def same_torch(self, place: Place) -> None:
        import torch

        facts = place.facts or {}
        for what, here in (("torch", torch.__version__), ("python", platform.python_version())):
            there = facts.get(what, here)
            if there != here:
                raise ValueError(f"{self.name}: {facts.get('host')} has {what} {there}, this machine {here}: "
                                 "install the same on both")  # fmt: skip

    def described(self) -> str:
        import torch

        ready = [place for place in self.places.values() if place.facts]
        nodes, processors, classes = len(self.alive), sum(self.alive.values()), len({place.bits for place in ready})
        many = f"{nodes} node{'s' * (nodes != 1)}, {processors} processor{'s' * (processors != 1)}"
        kinds = "one class" if classes == 1 else f"{classes} classes"
        return f"{self.name}: {many}, {kinds} of bits, torch {torch.__version__} on all"

    def hand_out(self) -> None:
        """Give groups to the processors that are ready, a second one only where more wait than processors."""
        ready = [(number, place) for number, place in self.places.items() if place.facts]
        self.fill(AHEAD * len(ready))
        for depth in range(AHEAD):
            for number, place in ready:
                if len(place.jobs) > depth or (depth and len(self.queue) <= len(ready)):
                    continue
                job = next((job for job in self.queue if job.avoid != place.bits), None)
                if job is None:
                    continue
                self.queue.remove(job)
                job.heard = time.monotonic()
                place.jobs.append(job)
                standing = None
                with contextlib.suppress(FileNotFoundError):
                    standing = None if job.first else self.checkpoints(self.folder, job.group, {}).path.read_bytes()
                self.link.train(number, job.number, job.group, standing)

    def take(self, event: Event) -> Iterator[Finished]:
        """Take what came: of a job that is no longer out nothing counts, so what comes twice counts once."""
        if isinstance(event, Ready):
            if event.place in self.places:
                self.joined(event)
        elif isinstance(event, Lost):
            yield from self.lose(event.place, event.why, event.oom)
        else:
            found = [(place, job) for place in self.places.values() for job in place.jobs if job.number == event.job]
            for place, job in found:
                job.heard = time.monotonic()
                if isinstance(event, Answered):
                    place.jobs.remove(job)
                    yield from self.answered(place, job, event.finished)
                elif job.first is None and isinstance(event, Sign):
                    self.on_progress(event.underway)
                elif job.first is None and isinstance(event, Kept):
                    write(self.checkpoints(self.folder, job.group, {}).path, event.whole)

    def joined(self, event: Ready) -> None:
        """A processor is ready: left out, with its node, where it came late and cannot train with the others."""
        place = self.places[event.place]
        if event.missing:
            raise ValueError(f"{self.name}: {event.facts.get('host')} {event.missing}")
        place.facts = event.facts
        if not self.begun:
            return
        try:
            others = [p for n, p in self.places.items() if p.facts and n != event.place]
            self.together([*others, place])
        except ValueError as error:
            print(f"note: {event.facts.get('host')} is left out: {error}", file=sys.stderr)
            self.left_out.add(place.node)
            for number in [number for number, other in self.places.items() if other.node == place.node]:
                self.link.stop(number)
                del self.places[number]

    def answered(self, place: Place, job: Job, answers: Sequence[Finished]) -> Iterator[Finished]:
        """The rows of a group; or, of one that was trained twice, the difference."""
        if job.first is not None:
            self.apart += [
                apart for one in answers if (apart := difference(job.first.outcome, one.outcome)) is not None
            ]
            return
        given = {finished.run: finished for finished in answers}
        for run in job.group:
            done = given.get(run) or row(run, "crashed: its node answered with something else")
            facts = {**done.environment, **self.commit} if done.environment else {}
            facts.pop("host", None)
            yield dataclasses.replace(done, together=None, environment=facts)
            classes = {other.bits for other in self.places.values() if other.facts}
            if self.where.mixed and len(classes) > 1 and run.seed % TWICE == 0 and not done.outcome.error:
                self.queue.append(Job(next(self.numbers), [run], avoid=place.bits, first=done))

    def lose(self, number: int, why: str, oom: bool = False) -> Iterator[Finished]:
        """A processor is gone: what it had is handed out again, what was underway at most so many times."""
        place = self.places.pop(number, None)
        if place is None:
            return
        self.link.stop(number)
        for k, job in reversed(list(enumerate(place.jobs))):
            tries = job.tries + (k == 0)
            if k == 0 and (oom or tries > TRIES) and job.first is None:
                reason = (
                    "oom: the system ended its process, which had no memory left"
                    if oom
                    else f"crashed: {tries} times its node or its Ray process ended under it: {why}"
                )
                yield from (row(run, reason) for run in job.group)
                continue
            if k == 0 and job.first is None:
                print(f"note: {job.group[0].key} is handed out again: {why}", file=sys.stderr)
            # under a new number: what still comes under the old one is nobody's
            self.queue.appendleft(dataclasses.replace(job, number=next(self.numbers), tries=tries))


def row(run: Run, error: str) -> Finished:
    """A run of which nothing is known but that it failed."""
    return Finished(run, Outcome(error=error), 0.0, None, None, now(), {})


def difference(one: Outcome, other: Outcome) -> float | None:
    """Nats a character between two trainings of one run; None where one of them has no perplexity."""
    import math

    if not one.heldout_perplexity or not other.heldout_perplexity:
        return None
    return abs(math.log(one.heldout_perplexity / other.heldout_perplexity))


# ---- on a node ------------------------------------------------------------------------------------


class Processor:
    """One worker of the local executor, kept between groups. `cells`: the users' own, as `registry.tell` takes them."""

    def __init__(self, cells: dict[str, tuple[Any, ...]], device: str, checkpoints: Checkpoints, box: Any) -> None:
        registry.tell(cells)
        self.device, self.checkpoints, self.box = device, checkpoints, box
        self.place = tempfile.TemporaryDirectory(prefix="gru-bench-")
        self.pool: local.Pool | None = None
        self.text = ""

    def ready(self) -> tuple[dict[str, Fact], str]:
        """The machine, and what is missing on it."""
        machine.configure_process(1, "ieee")
        paths = [entry.path for entry in registry.OUTSIDE.values() if entry.path]
        missing = [path for path in paths if not os.path.exists(path)]
        why = f"does not see {missing[0]}: put the cell where every node sees it" if missing else ""
        return {**machine.training_facts(self.device), "host": platform.node()}, why

    def train(self, job: int, group: list[Run], standing: bytes | None, text: str, corpus: list[Any]) -> list[Finished]:
        """Train a group, telling the mailbox of signs and checkpoints. All its runs, finished.

        `text` names the corpus, which `corpus` refers to: it is fetched once.
        """
        folder = Path(self.place.name)
        path = self.checkpoints(folder, group, {}).path
        if standing is not None:
            write(path, standing)
        seen = path.stat().st_mtime_ns if standing is not None else 0

        def on_progress(sign: InProgress) -> None:
            nonlocal seen
            words: list[Event] = [Sign(job, sign)]
            with contextlib.suppress(FileNotFoundError):
                if seen != (at := path.stat().st_mtime_ns):
                    seen = at
                    words.append(Kept(job, path.read_bytes()))
            self.box.put.remote(words)

        done: list[Finished] = []
        left, feed = set(group), [group]
        if self.pool is None or self.text != text:
            import ray

            self.text, self.corpus = text, ray.get(corpus[0])
            self.renew(feed)
        assert self.pool is not None
        self.feed, self.pool.on_progress = feed, on_progress
        while left:
            finished = next(self.results, None)
            if finished is None:  # it had no worker left when its groups ended
                self.renew(self.feed)
                self.pool.on_progress = on_progress
                continue
            done.append(finished)
            left.discard(finished.run)
        path.unlink(missing_ok=True)
        return done

    def renew(self, feed: list[list[Run]]) -> None:
        """Another pool, with a worker of its own, for the groups of `feed`; the one before it ends."""
        if self.pool is not None:
            self.results.close()
        self.feed = feed
        groups = iter(lambda: self.feed.pop() if self.feed else [], None)
        open_checkpoint = functools.partial(self.checkpoints, Path(self.place.name))
        self.pool = local.Pool(groups, self.corpus, 1, lambda sign: None, open_checkpoint)
        self.results: Generator[Finished] = self.pool.results()  # type: ignore[assignment]


class Mailbox:
    """Keep what processors say while they train, until the driver asks: the latest word of each kind of each job."""

    def __init__(self) -> None:
        self.latest: dict[tuple[int, str], Event] = {}

    def put(self, words: Sequence[Kept | Sign]) -> None:
        for word in words:
            self.latest[word.job, type(word).__name__] = word

    def take(self) -> list[Event]:
        words, self.latest = list(self.latest.values()), {}
        return words


# ---- Ray itself -----------------------------------------------------------------------------------


class RayLink:
    """A Ray cluster as the driver sees it. `device` is what a processor is: a core, or a GPU."""

    gone = False  # the cluster's first node: nothing more is asked of Ray, which would wait a minute and end us

    def __init__(self, address: str, corpus: Corpus, device: str, checkpoints: Checkpoints) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        self.ray, self.on = ray, On
        self.kind = "GPU" if device == "cuda" else "CPU"
        self.corpus, self.text = [ray.put(corpus)], f"{corpus.name} {corpus.tokens_sha256}"
        here = On(ray.get_runtime_context().get_node_id(), soft=False)
        self.box = ray.remote(num_cpus=0)(Mailbox).options(scheduling_strategy=here).remote()
        self.address, self.silent, self.known = address, 0.0, dict[str, int]()
        self.actors: dict[int, Any] = {}
        self.asked: dict[Any, int] = {}  # what is awaited -> the place that is getting ready
        self.out: dict[Any, tuple[int, int]] = {}  # -> the place and the job
        self.mail: Any = None
        self.mailed = 0.0
        cells = {name: dataclasses.astuple(entry) for name, entry in registry.OUTSIDE.items()}
        share = {"num_gpus": 1, "num_cpus": 0} if device == "cuda" else {"num_cpus": 1}
        self.make = functools.partial(
            lambda node, cls: cls.options(scheduling_strategy=On(node, soft=False)).remote(
                cells, device, checkpoints, self.box
            ),
            cls=ray.remote(max_restarts=0, max_task_retries=0, **share)(Processor),
        )

    def nodes(self) -> dict[str, int]:
        """Return the nodes, as `Link` says. OSError where the first node of the cluster has not answered for HEAD_S."""
        if self.address and not _answers(self.address):
            self.silent = self.silent or time.monotonic()
            if time.monotonic() - self.silent < HEAD_S:
                return self.known
            RayLink.gone = True
            raise OSError(errno.EHOSTDOWN, f"its first node has not answered for {HEAD_S:g} s; what is finished is "
                          "kept, and the same command goes on", f"ray at {self.address}")  # fmt: skip
        self.silent = 0.0
        found = {node["NodeID"]: int(node["Resources"].get(self.kind, 0)) for node in self.ray.nodes() if node["Alive"]}
        self.known = {node: processors for node, processors in found.items() if processors}
        return self.known

    def start(self, place: int, node: str) -> None:
        self.actors[place] = self.make(node)
        self.asked[self.actors[place].ready.remote()] = place

    def train(self, place: int, job: int, group: Sequence[Run], standing: bytes | None) -> None:
        self.out[self.actors[place].train.remote(job, list(group), standing, self.text, self.corpus)] = (place, job)

    def events(self, seconds: float) -> list[Event]:
        events: list[Event] = []
        now_ = time.monotonic()
        if self.mail is None and now_ - self.mailed >= LOOK_S:
            self.mail, self.mailed = self.box.take.remote(), now_
        refs = [*self.asked, *self.out, *([self.mail] if self.mail is not None else [])]
        if not refs:
            time.sleep(seconds)
            return events
        ended, _ = self.ray.wait(refs, num_returns=1, timeout=seconds)
        if ended:
            ended, _ = self.ray.wait(refs, num_returns=len(refs), timeout=0)
        for ref in ended:
            try:
                answer = self.ray.get(ref)
            except self.ray.exceptions.RayError as error:
                if ref is self.mail:
                    self.mail = None
                    continue
                place = self.asked.pop(ref) if ref in self.asked else self.out.pop(ref)[0]
                oom = isinstance(error, self.ray.exceptions.OutOfMemoryError) or "low on memory" in str(error)
                events.append(Lost(place, type(error).__name__, oom))
                continue
            if ref is self.mail:
                self.mail = None
                events += answer
            elif ref in self.asked:
                events.append(Ready(self.asked.pop(ref), *answer))
            else:
                events.append(Answered(self.out.pop(ref)[1], tuple(answer)))
        return events

    def stop(self, place: int) -> None:
        self.asked = {ref: at for ref, at in self.asked.items() if at != place}
        self.out = {ref: at for ref, at in self.out.items() if at[0] != place}
        if (actor := self.actors.pop(place, None)) is not None and not self.gone:
            with contextlib.suppress(Exception):
                self.ray.kill(actor)


def execute(
    runs: Iterable[Run], corpus: Corpus, where: Where, folder: Path, on_progress: OnProgress, checkpoints: Checkpoints
) -> Iterator[Finished]:
    """Train every run on a Ray cluster, yielded as it ends. ValueError, in one line, where that cannot be."""
    groups = group_batchable(runs)
    if (first := next(groups, None)) is None:
        return
    address = where.on.partition(":")[2]
    connect(address)
    link = RayLink(address, corpus, first[0].device, checkpoints)
    name = f"ray at {address}" if address else "ray on this machine"
    yield from Driver(link, name, itertools.chain([first], groups), where, folder, on_progress, checkpoints).results()


def connect(address: str) -> None:
    """Be a driver of the cluster at HOST:PORT, or of one of this machine alone. Signals stay as they were."""
    if address:
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray's own default for a cluster, read when it is imported
    try:
        import ray
        from ray._private import worker
    except ImportError:
        raise ValueError("--on ray needs Ray: pip install 'gru-bench[ray]'") from None
    if ray.is_initialized():
        return
    if not ray.__version__.startswith(VERSION):
        raise ValueError(f"--on ray is written for Ray {VERSION}, here is {ray.__version__}: "
                         "pip install 'gru-bench[ray]'")  # fmt: skip
    if address:
        _reachable(address)
    print(f"ray: {'connecting' if address else 'starting a cluster of this machine'}; "
          "the first training ends in 20 s or more", flush=True)  # fmt: skip
    held = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    hook = sys.excepthook
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # else lines like "(raylet) ..." about each node that ends: the driver says so itself
    vars(worker)["listen_error_messages"] = lambda *_: None
    root = Path(__file__).parents[3]
    kept = {name: value for name, value in os.environ.items() if name in ("CHECKPOINT_S", "OMP_WAIT_POLICY")}
    env: dict[str, Any] = {"py_modules": [str(root / "harness"), str(root / "variants")], "env_vars": kept}
    size = {} if address else {"num_cpus": local.cores()}
    try:
        with _quiet():
            ray.init(address=address or "local", log_to_driver=False, include_dashboard=False if not address else None,
                     logging_level="ERROR", runtime_env=env, configure_logging=False, **size)  # fmt: skip
    except (RuntimeError, ConnectionError, ValueError, OSError) as error:
        raise ValueError(f"no Ray at {address or 'this machine'}: {_said(str(error))}") from None
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
        sys.excepthook = hook


def disconnect() -> None:
    """Leave the cluster; one of this machine alone ends with it."""
    if (ray := sys.modules.get("ray")) is not None and ray.is_initialized() and not RayLink.gone:
        held = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        with _quiet():
            ray.shutdown()
        for number, handler in held.items():
            signal.signal(number, handler)


def _answers(address: str) -> bool:
    """Whether somebody listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 3).close()
    except OSError:
        return False
    return True


def _reachable(address: str) -> None:
    """ValueError, in one line, where nobody listens at HOST:PORT, or no token is at hand."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 3).close()
    except OSError as error:
        raise ValueError(f"no Ray at {address}: {error.strerror or error}; on its first node: "
                         f"ray start --head --port={port}") from None  # fmt: skip
    token: object = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if os.environ.get("RAY_AUTH_MODE") == "token" and not token and not Path("~/.ray/auth_token").expanduser().exists():
        raise ValueError("no token for the Ray cluster: copy ~/.ray/auth_token from its first node to this machine, or "
                         "set RAY_AUTH_TOKEN (RAY_AUTH_MODE=disabled, where the cluster has none)")  # fmt: skip


def _said(error: str) -> str:
    """The part of Ray's paragraphs that says what to do."""
    if "token" in error.lower() or "auth" in error.lower():
        return "it wants another token: copy ~/.ray/auth_token from its first node, or set RAY_AUTH_TOKEN"
    if "Version mismatch" in error:
        return f"another Ray or Python there; {' '.join(error.split())[:200]}"
    if "Failed to connect" in error:
        return "it does not answer: is its token, ~/.ray/auth_token of its first node, that of this machine?"
    if "running raylet" in error or "raylet" in error:
        return "this machine is no node of it: ray start --address=HOST:PORT --num-cpus=0, then again"
    return " ".join(error.split())[:200]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop what is written to stderr and stdout meanwhile, by Ray's C++ too."""
    sys.stderr.flush()
    sys.stdout.flush()
    kept = [os.dup(handle) for handle in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for handle in (1, 2):
            os.dup2(nowhere, handle)
        yield
    finally:
        sys.stderr.flush()
        sys.stdout.flush()
        for handle, old in zip((1, 2), kept, strict=True):
            os.dup2(old, handle)
            os.close(old)
        os.close(nowhere)
