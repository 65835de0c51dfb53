"""Check what was asked for, whole, before anything runs.

Rule: it trains, times and writes nothing. What cannot be is a ValueError of one line that names it, the choices and the
next step.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.experiments import grids, protocols
from harness.experiments.protocols import Protocol
from harness.experiments.runs import Run, Runs, with_seed
from variants import registry

if TYPE_CHECKING:
    from harness.data.corpus import Corpus
    from harness.experiments.runs import Candidate

SIZES = (256, 128, 512)  # hidden units of a sweep; the first is the book's
PRECISIONS = ("ieee", "tf32", "bf16")
DEVICES = ("auto", "cpu", "cuda")
UNTIL = "until-decided"
MOST_POINTS = 100  # of a grid of lists in --set

# The code that the numbers of a training follow from, where it begins; all that it refers to is found from there
# (variants/fingerprint.py). Its equations, its engine and the model are among it anyway; the loop is, as it scores a
# trained network with a gate held, whatever engine trained it. By whether it is of text:
_BOTH = ("harness.experiments.runs.Run.setting", "harness.run.machine.configure_process")
NUMBERS = {
    True: (
        "harness.run.train.train",
        "harness.data.corpus.Corpus.unknown_nats",
        "variants.engines.loop.unroll",
        *_BOTH,
    ),
    False: ("harness.run.train_task.train", *_BOTH),
}
TIMED = ("harness.run.timing.time_steps",)  # the same of speeds, beside the key of what is timed
LATENCY = ("harness.run.latency.measure",)
CAPTURE = "harness.run.cuda_graph.captured"  # only where it is asked for
# What that refers to and no number follows from: how packages and cells are found, how often something is said or
# saved, what results are put into, how an error is told.
NO_NUMBERS = ("harness", "variants.registry", CAPTURE, "harness.run.progress.CHECKPOINT_S",
              "harness.run.progress.SIGN_S",
              "harness.run.machine._keep_pages", "harness.run.process.describe", "harness.experiments.tasks.TASKS",
              "harness.run.network.network", "harness.run.outcome.Outcome", "harness.run.outcome.Point")  # fmt: skip
GRIDS = {"bench": grids.BENCH, "ablate": grids.ABLATE}


ON = ("ray", "ray:HOST:PORT", "slurm", "slurm:PARTITION")


@dataclass(frozen=True)
class Where:
    """Where runs are trained: `on` a cluster, '' for this machine; of shard i of n the seeds that are its own alone.

    A seed is in one shard with every variant, so that no pair of trainings crosses machines. `mixed`: nodes of several
    classes of bits may train.
    """

    on: str = ""
    mixed: bool = False
    shard: tuple[int, int] = (1, 1)
    margin: float = 0.0  # nats a character within which variants are equivalent: what classes of bits are held against

    def owns(self, run: Run) -> bool:
        """Whether this shard trains that run."""
        part, parts = self.shard
        return run.seed % parts == part - 1

    def own(self, runs: Collection[Run]) -> Collection[Run]:
        """Those of some runs that this shard trains: all, where there are no shards."""
        return Runs(lambda: filter(self.owns, runs)) if self.sharded else runs

    @property
    def sharded(self) -> bool:
        return self.shard[1] > 1


def where(options: argparse.Namespace) -> Where:
    """Return what `--on`, `--shard` and `--mixed` say. ValueError, in one line, for what they cannot."""
    on, mixed, shard = (getattr(options, name, None) for name in ("on", "mixed", "shard"))
    kind, _, place = (on or "").partition(":")
    wrong = kind not in ("", "ray", "slurm") or (place and kind == "ray" and not re.fullmatch(r".+:\d+", place))
    if wrong or (on and on.endswith(":")) or on == "":
        raise ValueError(registry.unknown("cluster", str(on), ON))
    if mixed and kind != "ray":
        raise ValueError("--mixed lets nodes of several classes of bits train: give it with --on ray")
    return Where(on or "", bool(mixed), _shard(shard) if shard else (1, 1))


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text)
    part, parts = map(int, found.groups()) if found else (0, 0)
    if not 1 <= part <= parts:
        raise ValueError(f"--shard is a part of so many, like 1/4 to 4/4, not {text!r}")
    return part, parts


@dataclass(frozen=True)
class Plan:
    """All that a verb needs to know of what to run. `seeds` trainings of every variant, on one text, on one device."""

    verb: str
    variants: tuple[str, ...]
    protocol: Protocol
    seeds: int
    corpus: Corpus
    device: str
    engine: str = "auto"
    precision: str = "ieee"
    deterministic: bool = False
    rates: Mapping[str, float] = field(default_factory=dict)  # variant -> learning rate, where they are chosen
    barred: frozenset[tuple[str, str]] = frozenset()  # (variant, engine) found to disagree here: another is used
    looks: tuple[int, ...] = ()  # numbers of seeds at which to stop if all is decided; none: train them all
    where: Where = field(default_factory=Where)

    @property
    def size(self) -> int:
        """How many trainings it is."""
        return len(self.variants) * self.seeds

    @functools.cached_property
    def runs(self) -> Runs:
        """Seed by seed, so that a grid that was stopped has the same seeds of every variant. No list: see `Runs`."""
        first = [with_seed(self.run(variant, 0)) for variant in self.variants]
        return Runs(lambda: (make(seed) for seed in range(self.seeds) for make in first), self.size)

    @property
    def captures(self) -> bool:
        """Whether an epoch is trained as one CUDA graph: of text, on CUDA, where nothing random is drawn."""
        return self.device == "cuda" and self.protocol.task == "text" and not self.protocol.dropout

    def run(self, variant: str, seed: int, engine: str = "", capture: bool | None = None) -> Run:
        engine = engine or self.engines(variant)[0]
        capture = self.captures if capture is None else capture
        how = {"engine": engine, "capture": capture, "tokens": self.corpus.tokens_sha256,
               "precision": self.precision,
               "deterministic": self.deterministic and self.device == "cuda",
               "hidden": self.units.get(variant, 0), "lr": self.rates.get(variant, 0.0)}  # fmt: skip
        run = Run(variant, seed, self.protocol, self.corpus.sha256, self.device, **how)  # type: ignore[arg-type]
        return dataclasses.replace(run, source=source(run))

    def engines(self, variant: str) -> list[str]:
        """Those that can run it: the one it is trained with, then the others, the fastest first."""
        refusals = self.refusals(variant)
        can = [engine for engine, refusal in refusals.items() if not refusal]
        if not can:
            raise ValueError(
                f"no engine runs {variant} in {self.precision}: resident: {refusals['resident']}; leave it out of "
                "--variants, or give --precision tf32"
            )
        return sorted(can, key=lambda engine: engine != self.engine)

    def refusals(self, variant: str) -> dict[str, str]:
        """engine -> why it cannot run this variant here, at this size; '' where it can."""
        import variants

        hidden = self.units.get(variant, self.protocol.hidden)
        size = self.protocol
        found = variants.refusals(
            variant, self.device, hidden, size.batch_size, self.precision, size.layers, size.dropout > 0
        )
        wrong = "it disagrees with the reference engine here"
        return {e: why or wrong * ((variant, e) in self.barred) for e, why in found.items()}

    @functools.cached_property
    def units(self) -> dict[str, int]:
        """variant -> hidden size with the parameters of the baseline, where the protocol matches parameters."""
        from variants.model import matched

        if self.protocol.match != "parameters":
            return {}
        inputs, outputs = self.ends
        size = self.protocol
        return {
            v: matched(v, grids.BASELINE, inputs, size.hidden, outputs, size.layers, size.embedding)
            for v in self.variants
        }

    @property
    def ends(self) -> tuple[int, int]:
        """How many inputs and outputs a network has: of a text its symbols, both."""
        from harness.experiments.tasks import TASKS

        if self.protocol.task == "text":
            return len(self.corpus.vocabulary), len(self.corpus.vocabulary)
        task = TASKS[self.protocol.task]
        return task.inputs, task.outputs

    @property
    def contenders(self) -> list[Candidate]:
        """All that is timed, one of them twice (A/A): what trains; in a bench every engine that can, also uncaptured.

        Under a protocol made for minutes only what trains, and the baseline as the book writes it: the rest doubles its
        time (`sweep` has it).
        """
        from harness.experiments.runs import CONTROL_SUFFIX, Candidate

        every = self.verb == "bench" and self.protocol.name not in protocols.SHORT
        timed = [
            Candidate(variant + f" ({', '.join(how)})" * bool(how), self.run(variant, 0, engine, capture))
            for variant in self.variants
            for k, engine in enumerate(self.engines(variant))
            if k == 0 or every or (self.verb, variant, engine) == ("bench", grids.BASELINE, "book")
            for capture in (self.captures, False)[: 1 + (every and self.captures)]
            for how in [[engine] * bool(k) + ["step by step"] * (capture != self.captures)]
        ]
        if every and self.captures and self.precision == "ieee":  # resident knows no ieee: in tf32, beside torch's own
            rounded = dataclasses.replace(self, precision="tf32")
            first = {variant: rounded.engines(variant)[0] for variant in self.variants}
            timed += [Candidate(f"{v} (tf32)", rounded.run(v, 0)) for v in first if first[v] in ("resident", "library")]
        base = next(c for c in timed if c.label == self.speed_baseline)
        return [*timed, Candidate(base.label + CONTROL_SUFFIX, base.run, control_of=base.label)]

    @property
    def speed_baseline(self) -> str:
        return next((v for v in (grids.SPEED_BASELINE, grids.BASELINE) if v in self.variants), self.variants[0])


def source(run: Run) -> str:
    """The fingerprint of the code that a run's numbers follow from, as it lies on this machine now."""
    from variants.fingerprint import fingerprint

    text = run.protocol.task == "text"
    roots: list[str | tuple[Path, str]] = [*NUMBERS[text], *[CAPTURE] * run.capture]
    if not text:
        from harness.experiments.tasks import PLACES

        task = run.protocol.task
        roots.append((Path(PLACES[task]), task) if task in PLACES else f"harness.experiments.tasks.{task}")
    return fingerprint(run.variant, run.engine, tuple(roots), NO_NUMBERS)


def planned(verb: str, options: argparse.Namespace) -> Plan:
    """Return the plan that the options ask for, checked. ValueError, in one line, names what is wrong with them."""
    from harness.data import load as loading
    from variants.outside import resolve

    names = resolve(options.variants or GRIDS.get(verb, grids.SWEEP))
    if options.max is not None and options.seeds != UNTIL:
        raise ValueError(f"--max is the end of --seeds {UNTIL}: give that too, or leave --max out")
    most = _count("max", options.max or "30")
    if options.seeds == UNTIL and (why := grids.no_verdict(names)):
        raise ValueError(f"--seeds {UNTIL} decides differences: {why}")
    looks = grids.interim_analyses(grids.contrasts(names), most) if options.seeds == UNTIL and verb in GRIDS else ()
    seeds = looks[-1] if looks else grids.SEEDS if options.seeds is None else _count("seeds", options.seeds)
    own, given = (
        (None, []) if options.protocol is None else _protocol(options.protocol)
    )  # a slip is said before anything slow
    device = _how(options)
    own = own or protocols.protocol("classic" if device == "cuda" else "quick")
    name, given = own.name, [*given, *options.settings]
    protocol = own.override(options.settings)
    other = protocol.text if any(s.startswith("text=") for s in given) else "spaces"
    text = loading.load(
        options.corpus, text=protocol.text, other=other, most=protocol.max_vocabulary, unit=protocol.tokens,
        case=protocol.case, punctuation=protocol.punctuation,
    )  # fmt: skip
    protocol = dataclasses.replace(protocol, text=text.text)
    if name == "book" and not any(s.split("=")[0].endswith("_characters") for s in given):
        rest = max(1, text.characters // 20)  # by position, whatever the text's length
        protocol = dataclasses.replace(
            protocol, train_characters=text.characters - 2 * rest, validation_characters=rest, heldout_characters=rest
        )
    check(text, protocol)
    how = (options.engine, options.precision, options.deterministic)
    plan = Plan(verb, names, protocol, seeds, text, device, *how, looks=looks, where=where(options))
    _scored_apart(plan)
    return plan


def _protocol(asked: str) -> tuple[Protocol, list[str]]:
    """A protocol by its name, or as a TOML file has it, and the fields that the file gives.

    In the file: `base`, the protocol that it differs from (classic if not given), `name`, any field of a protocol.
    """
    if not asked.endswith(".toml"):
        return protocols.protocol(asked), []
    path = Path(asked).expanduser()
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
        base, name = given.pop("base", "classic"), given.pop("name", path.stem)
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name) or name in protocols.PROTOCOLS:
            raise ValueError(f"its name is {name!r}: give it a line name = \"...\", of letters, digits, _, - and ., "
                             f"that is none of {', '.join(protocols.PROTOCOLS)}")  # fmt: skip
        for field, value in given.items():
            if not isinstance(value, int | float | str) or isinstance(value, bool):
                raise ValueError(f"{field} is a number or a text, not {value!r}; a list is an axis, of --set alone")
        settings = [f"{field}={value}" for field, value in given.items()]
        return dataclasses.replace(protocols.protocol(str(base)).override(settings), name=name), settings
    except FileNotFoundError:
        raise ValueError(f"no file {asked!r}: a protocol is {', '.join(protocols.PROTOCOLS)}, or a TOML file") from None
    except (ValueError, OSError) as error:  # a TOML error and a wrong encoding are ValueErrors too
        raise ValueError(f"{asked}: {getattr(error, 'strerror', None) or error}") from None


def reproductions(options: argparse.Namespace) -> tuple[list[Plan], list[tuple[str, Sequence[str]]]]:
    """A plan for each setting in which something was published, and those settings."""
    from harness.experiments.claims import SETTINGS

    plans: list[Plan] = []
    settings: list[tuple[str, Sequence[str]]] = []
    for (name, changes), variants in SETTINGS.items():
        if options.protocol in (None, name):
            given = {setting.partition("=")[0] for setting in options.settings}
            kept = [change for change in changes if change.partition("=")[0] not in given]
            own = {**vars(options), "protocol": name, "settings": [*kept, *options.settings], "variants": variants}
            plans.append(planned("reproduce", argparse.Namespace(**own)))
            settings.append((name, changes))
    if not plans:
        raise ValueError(
            registry.unknown("published protocol", options.protocol, dict.fromkeys(s[0] for s in SETTINGS))
        )
    return plans, settings


def along(verb: str, options: argparse.Namespace) -> list[Plan]:
    """A plan for each point of the grid that lists in `--set` make, the same variants, seeds and device in all."""
    if options.seeds == UNTIL:
        raise ValueError(f"--seeds {UNTIL} is of one comparison: give --seeds N with the list in --set")
    every = grids.points(options.settings)
    if len(every) > MOST_POINTS:
        raise ValueError(f"the lists in --set make {len(every):,} points: at most {MOST_POINTS}")
    plans = [planned(verb, argparse.Namespace(**{**vars(options), "settings": point})) for point in every]
    if why := grids.no_verdict(plans[0].variants):
        raise ValueError(f"an effect along an axis is a difference: {why}")
    return plans


def on_claims(options: argparse.Namespace) -> tuple[list[Plan], list[Plan], dict[str, str]]:
    """Plans of text, plans of tasks, and the protocol's label of each arm of every claim, by the arm's own words."""
    from harness.experiments.claims import TEXT, arms

    by: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for arm in arms():
        by.setdefault((arm.task, arm.settings), []).append(arm.variant)
    texts: list[Plan] = []
    tasks: list[Plan] = []
    labels: dict[str, str] = {}
    for (task, settings), names in by.items():
        own = {**vars(options), "variants": names, "max": None, "lengths": (), "settings": settings}
        if task == "text":
            own |= {"protocol": "quick", "corpus": None, "settings": [*TEXT, *settings]}
            plan = planned("claims", argparse.Namespace(**own))
            texts.append(plan)
        else:
            [plan] = on_tasks(argparse.Namespace(**own | {"tasks": [task]}))
            tasks.append(plan)
        labels |= {f"{name} {' '.join(settings)} {task}": plan.protocol.label for name in names}
    return texts, tasks, labels


def on_questions(options: argparse.Namespace) -> list[Plan]:
    """A plan for each question of a reviewer that has trainings of its own, in their order."""
    from harness.experiments import questions

    asked = {(q.corpus, q.settings): q for q in questions.QUESTIONS}
    own = {**vars(options), "variants": list(questions.VARIANTS), "protocol": questions.PROTOCOL, "max": None}
    return [
        planned("questions", argparse.Namespace(**own | {"corpus": corpus, "settings": list(settings)}))
        for corpus, settings in asked
    ]


def on_tasks(options: argparse.Namespace) -> list[Plan]:
    """A plan a task, length and point of the lists in `--set`. ValueError for what cannot be asked of a task."""
    plans = [_on_tasks(argparse.Namespace(**{**vars(options), "settings": s})) for s in grids.points(options.settings)]
    return [plan for some in plans for plan in some]


def _on_tasks(options: argparse.Namespace) -> list[Plan]:
    from harness.data import load as loading
    from harness.data.corpus import NOTHING
    from harness.experiments.tasks import PLACES, TASKS, digits
    from variants.outside import resolve

    for setting in options.settings:
        if setting.partition("=")[0] not in protocols.TASK_FIELDS:
            raise ValueError(registry.unknown("field of a task", setting.partition("=")[0], protocols.TASK_FIELDS))
    names = resolve(options.variants or grids.TASK_VARIANTS)
    asked_for: list[str] = []
    for name in options.tasks or ():
        if own := loading.task_file(name):
            if where(options).on:
                raise ValueError(f"{name} lies on this machine, and --on trains on others: leave one of them out")
            asked_for += loading.own_tasks(*own)
        elif name not in TASKS:
            raise ValueError(f"{registry.unknown('task', name, TASKS)}; one of your own is a file, like ./my_task.py")
        else:
            if TASKS[name].needs:
                digits()  # it is there, or a line says what to install
            asked_for.append(name)
    seeds = grids.SEEDS if options.seeds is None else _count("seeds", options.seeds)
    device = _how(options)
    asked = [_count("length", length) for length in options.lengths or ()]
    plans = []
    installed = [name for name, task in TASKS.items() if not task.needs and name not in PLACES]
    for task in (TASKS[name] for name in dict.fromkeys(asked_for or installed)):
        for length in dict.fromkeys(asked or [task.published if device == "cuda" else task.length]):
            if not task.least <= length <= task.most // task.longer:
                known = f"lengths from {task.least} to {task.most // task.longer}"
                known = f"length {task.least}" if task.least == task.most else known
                raise ValueError(f"task {task.name} has {known}, not {length}")
            protocol = protocols.task_protocol(task.name).override(options.settings)
            protocol = dataclasses.replace(protocol, num_steps=length)
            _rises_within(protocol, protocols.UPDATES * protocol.epochs)
            how = (options.engine, options.precision, options.deterministic)
            plans.append(Plan("probe", names, protocol, seeds, NOTHING, device, *how, where=where(options)))
            _scored_apart(plans[-1])
    return plans


def tasks_of(options: argparse.Namespace) -> argparse.Namespace:
    """Return the options of the tasks that `ablate` adds: those that tell the gates apart, as many seeds.

    Matched as the text is; all other settings are the text's.
    """
    seeds = None if options.seeds == UNTIL else options.seeds
    own = {"tasks": grids.ANSWERING, "lengths": (), "seeds": seeds,
           "settings": [setting for setting in options.settings if setting.startswith("match=")]}  # fmt: skip
    return argparse.Namespace(**{**vars(options), **own})


def task_names() -> list[str]:
    """The tasks by name, read from their file as text: --help needs no NumPy."""
    module = ast.parse((Path(__file__).parent / "experiments" / "tasks.py").read_text(encoding="utf-8"))
    declared = [f for f in module.body if isinstance(f, ast.FunctionDef) and f.decorator_list]
    return [f.name for f in declared if ast.unparse(f.decorator_list[0]).startswith("task(")]


def _scored_apart(plan: Plan) -> None:
    """ValueError where the seeds that choose a learning rate would be scored as well, or are fewer than the shards."""
    if plan.protocol.rate == "chosen" and plan.seeds > min(protocols.RATE_SEEDS):
        raise ValueError(
            f"seeds from {min(protocols.RATE_SEEDS):,} on choose the learning rate: at most as many can be scored"
            + "; --no-tasks leaves the tasks out" * (plan.protocol.task != "text")
        )
    if plan.where.shard[1] > plan.seeds:
        raise ValueError(f"--shard divides seeds, of which there are {plan.seeds}: at most {plan.seeds} shards")
    if plan.where.sharded and plan.looks:
        raise ValueError(f"--seeds {UNTIL} looks at all seeds: give --seeds N with --shard")


def sizes(plans: Sequence[Plan], full: bool) -> list[Candidate]:
    """Return what a sweep times: each variant by hidden size; engines and seeds side by side of all (full), or of the
    GRU.
    """
    from harness.experiments.runs import CONTROL_SUFFIX, Candidate

    timed = []
    for plan in plans:
        for variant in plan.variants:
            engines, whole = plan.engines(variant), full or (variant == grids.BASELINE and plan is plans[0])
            for engine in engines if whole else engines[:1]:
                for seeds in (1, 8, 30)[: 3 if full else 1 + whole] if engine != "library" else (1,):
                    for capture in (False, True)[: 1 + (plan.device == "cuda")]:
                        label = f"{variant} {engine}{' captured' * capture}, {plan.protocol.hidden} x {seeds}"
                        timed.append(Candidate(label, plan.run(variant, 0, engine, capture), seeds))
    twin = next((c for c in timed if c.run.variant == grids.SPEED_BASELINE), timed[0])
    return [*timed, Candidate(twin.label + CONTROL_SUFFIX, twin.run, twin.seeds, twin.label)]


def described(plan: Plan) -> dict[str, object]:
    """Return what a grid's file says of a plan."""
    from harness.data import batches, ngrams

    size = plan.protocol
    learnt, _, heldout = batches.split_text(plan.corpus, size)
    anchors = ngrams.ngram_baselines(plan.corpus, learnt, heldout) | {"uniform": float(len(plan.corpus.vocabulary))}
    if plan.corpus.floor is not None:
        anchors["floor"] = plan.corpus.floor
    return {
        "protocol": {**dataclasses.asdict(size), "label": size.label},
        "variants": plan.variants, "runs": [run.key for run in plan.runs], "device": plan.device,
        "corpus": plan.corpus.name, "corpus_sha256": plan.corpus.sha256, "anchors": anchors,
    }  # fmt: skip


def check(text: Corpus, protocol: Protocol) -> None:
    """ValueError where a text is too short for a protocol, a size is too small, or the protocol contradicts itself."""
    from harness.data import batches

    for part in ("heldout_characters", "validation_characters"):
        if getattr(protocol, part) == 1 and protocol.sampling == "sequential":
            raise ValueError(f"{part} is at least 2, not 1: a character is predicted from the one before it")
    if protocol.max_vocabulary == 1:
        raise ValueError("max_vocabulary is at least 2, or 0 for all: one symbol is nothing to predict")
    if protocol.update_bias == "chrono" and protocol.num_steps < 3:
        raise ValueError(
            f"update_bias=chrono is log U(1, num_steps - 1): num_steps is at least 3, not {protocol.num_steps}"
        )
    train_part, validation, _ = batches.split_text(text, protocol)
    _rises_within(protocol, batches.windows_per_epoch(len(train_part), protocol) * protocol.epochs)
    if protocol.rate == "chosen" and not len(validation):
        raise ValueError("rate=chosen chooses on the validation part: --set validation_characters=N, or give lr")


def _rises_within(protocol: Protocol, updates: int) -> None:
    """ValueError where the learning rate's rise does not end before the training does."""
    if protocol.warmup >= updates:
        raise ValueError(f"warmup={protocol.warmup} is not below the {updates:,} updates of a training: give fewer")


def _count(what: str, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 0 < number <= 10_000:
        raise ValueError(f"{what} is a whole number from 1 to 10,000, not {text!r}{protocols.meant(text)}")
    return number


def _how(options: argparse.Namespace) -> str:
    """The device, once it, the engine and the precision are known to be there, and to go together."""
    import variants

    if options.engine not in ("auto", *variants.ENGINES):
        raise ValueError(registry.unknown("engine", options.engine, ("auto", *variants.ENGINES)))
    if options.precision not in PRECISIONS:
        raise ValueError(registry.unknown("precision", options.precision, PRECISIONS))
    device = _device(options.device)
    if options.precision != "ieee" and device == "cpu":
        raise ValueError(f"precision {options.precision} needs CUDA: on a CPU every product is ieee")
    return device


def _device(asked: str) -> str:
    """`auto` made cuda or cpu. ValueError where cuda is asked for and cannot be had."""
    import torch

    if asked not in DEVICES:
        raise ValueError(registry.unknown("device", asked, DEVICES))
    have = torch.cuda.is_available()
    if asked == "cuda" and not have:
        raise ValueError(f"no device 'cuda': torch {torch.__version__} sees no GPU; give cpu or auto")
    return "cuda" if have and asked != "cpu" else "cpu"
