"""Run a plan: plan -> run -> record -> analysis -> report, for the command line and a notebook.

Rule: a run that failed is a row, and the exit status 1. An interrupt is raised as `Interrupted`; what ended is on file.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.experiments import grids, protocols
from harness.experiments.grids import baseline_of
from harness.experiments.protocols import Protocol
from harness.experiments.runs import Run, Runs
from harness.formatting import pluralize
from harness.plan import (
    GRIDS,
    SIZES,
    Plan,
    Where,
    along,
    described,
    on_claims,
    on_questions,
    on_tasks,
    planned,
    reproductions,
    sizes,
    tasks_of,
)

if TYPE_CHECKING:
    from harness.data.corpus import Corpus
    from harness.experiments.runs import Candidate
    from harness.record.tables import Results
    from harness.run.executors import Finished, OnProgress


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while `runs` were trained; those that ended are on file. None: while something was timed."""

    def __init__(self, runs: Collection[Run]) -> None:
        super().__init__()
        self.runs = runs


def run(options: argparse.Namespace) -> int:
    """A verb that trains or times. Its exit status. ValueError, in one line, for what cannot be asked."""
    folder = Path(options.results)
    try:
        return _verb(options, folder)
    except ToMerge as part:
        print(f"shard {options.shard}: {part}")
        return 0
    finally:
        leave()


def _verb(options: argparse.Namespace, folder: Path) -> int:
    """Plan and run a verb. Return its exit status."""
    if options.verb == "reproduce":
        published, parts = reproductions(options)
        return with_others(lambda plans: reproduce(plans, parts, folder), published, folder)
    if options.verb == "exercises":
        return exercises(options, folder)
    if options.verb == "claims":
        texts, tasks, labels = on_claims(options)
        return with_others(lambda plans: claims(plans, labels, folder), [*texts, *tasks], folder)
    if options.verb == "questions":
        return with_others(lambda plans: questions(plans, folder), on_questions(options), folder)
    if options.verb == "probe":
        return with_others(lambda plans: probe(plans, folder), on_tasks(options), folder)
    if options.verb == "sweep":
        options.protocol = "classic" if options.protocol is None else options.protocol
        settings = [[*options.settings, f"hidden={h}"] for h in ((256, 128, 192, 512) if options.full else SIZES)]
        plans = [planned("sweep", argparse.Namespace(**{**vars(options), "settings": s})) for s in settings]
        return sweep(plans, options.full, folder)
    if options.verb == "latency":
        return latency(planned("latency", options), folder)
    if options.verb in GRIDS and grids.axes_of(options.settings):
        return with_others(lambda plans: axes(plans, options.settings, folder), along(options.verb, options), folder)
    with_tasks = options.verb == "ablate" and not options.no_tasks and options.variants is None
    tasks = on_tasks(tasks_of(options)) if with_tasks else []
    wanted = [planned(options.verb, options), *tasks]
    return with_others(lambda plans: go(plans[0], folder, not options.no_timing, plans[1:]), wanted, folder)


def choose(plans: Sequence[Plan], folder: Path) -> tuple[list[Plan], list[dict[str, object]]]:
    """The plans with a learning rate for each variant, and how each was chosen: by as many trainings for every one.

    Of seeds that are not scored: of a text on the validation part, which is where their held-out part lies, behind the
    training; of a task by how many solve it, then how soon, then by the score.
    """
    import math
    import statistics

    from harness.experiments.tasks import TASKS
    from harness.record import store

    at = {
        (k, variant, lr): [
            dataclasses.replace(plan, protocol=choosing(plan.protocol, lr)).run(variant, seed)
            for seed in protocols.RATE_SEEDS
        ]
        for k, plan in enumerate(plans)
        for lr in protocols.rates(plan.protocol)
        for variant in plan.variants
    }
    todo = unfinished([run for runs in at.values() for run in runs], folder)
    trials = pluralize(sum(map(len, at.values())), "training")
    print(f"{plans[0].verb}: to choose learning rates, {trials} of seeds that are not scored, {len(todo)} to do")
    train(todo, plans[0].corpus, plans[0].corpus.name, folder, "choosing", plan=plans[0])
    if any(not store.done(folder, run) for runs in at.values() for run in runs if not plans[0].where.owns(run)):
        raise ToMerge("its part of what chooses the learning rates is trained. Merge the shards, and give the same "
                      "command the merged folder (--results), or each shard a copy of it")  # fmt: skip
    rows: list[dict[str, object]] = []
    chosen = []
    for k, plan in enumerate(plans):
        rates = {}
        task = TASKS.get(plan.protocol.task)
        for variant in plan.variants:
            merits = {}
            for lr in protocols.rates(plan.protocol):
                found = [store.outcome(folder, run) for run in at[k, variant, lr]]
                good = [one for one in found if one]
                row: dict[str, object] = {
                    "protocol": plan.protocol.label, "corpus_sha256": plan.corpus.sha256, "variant": variant, "lr": lr,
                    "seeds": len(good), "failed": len(found) - len(good),
                }  # fmt: skip
                if task is None:
                    nats = [math.log(one["heldout_perplexity"]) for one in good]
                    mean = sum(nats) / len(nats) if len(good) == len(found) else math.inf  # one diverged: no choice
                    row["validation_perplexity"] = math.exp(mean) if mean < math.inf else None
                    merits[lr] = (mean, 0.0, 0.0)
                else:
                    updates = [one["solved_after"] for one in good if one["solved_after"]]
                    score = statistics.fmean(one["score"] for one in good) if good else None
                    middle = statistics.median(updates) if updates else None
                    row |= {"solved": len(updates), "updates_median": middle, "score": score}
                    worst = math.inf if score is None else score if task.lower_is_better else -score
                    merits[lr] = (float(-len(updates)), middle or math.inf, worst)
                rows.append(row)
            rates[variant] = min(merits, key=lambda lr: (merits[lr], lr))
            for row in rows[-len(merits) :]:
                row["chosen"] = row["lr"] == rates[variant]
        chosen.append(dataclasses.replace(plan, rates=rates))
    return chosen, rows


def choosing(protocol: Protocol, lr: float) -> Protocol:
    """How a learning rate is tried: as it will be trained, a text's validation part as what is held out."""
    if protocol.task != "text":
        return dataclasses.replace(protocol, rate="given", lr=lr)
    return dataclasses.replace(
        protocol, heldout_characters=protocol.validation_characters, validation_characters=0, rate="given", lr=lr,
        evaluations=min(protocol.evaluations, 4),
    )  # fmt: skip


class ToMerge(Exception):
    """A shard has trained its part of what chooses the learning rates: the other parts are in other folders."""


class EngineDisagrees(Exception):
    """Raised where the engine that trained these variants is wrong here: (variant, engine) -> why. What it trained is
    on file as failed.
    """


def with_others(verb: Callable[[list[Plan]], int], plans: list[Plan], folder: Path) -> int:
    """Run a verb; again with another engine where the one that was chosen for a variant disagrees. The exit status."""
    known: dict[tuple[str, str], str] = {}
    for k, plan in enumerate(plans):
        plans[k], reasons = remembered(plan, folder)
        known |= reasons
    _say_other(plans, {pair: f"{why} (found earlier on this machine)" for pair, why in known.items()})
    while True:
        try:
            return verb(plans)
        except EngineDisagrees as error:
            reasons = error.args[0]
            plans = [dataclasses.replace(plan, barred=plan.barred | set(reasons)) for plan in plans]
            _say_other(plans, reasons)


def remembered(plan: Plan, folder: Path) -> tuple[Plan, dict[tuple[str, str], str]]:
    """Bar each engine whose training of a variant is on file as wrong. Return the plan and (variant, engine) -> why.

    A file is of the same code, as its key says; on another machine or other software the engine is tried again, and so
    it is where `--engine` names it.
    """
    from harness.record import store
    from harness.run.agreement import UNFIT
    from harness.run.machine import SETTLED, environment

    reasons: dict[tuple[str, str], str] = {}
    changing = (*SETTLED, "commit", "dirty", "thread_settings")
    while plan.engine == "auto":
        trial = plan
        if plan.protocol.rate == "chosen":
            trial = dataclasses.replace(plan, protocol=choosing(plan.protocol, protocols.rates(plan.protocol)[0]))
        seed = protocols.RATE_SEEDS[0] if plan.protocol.rate == "chosen" else 0
        new: dict[tuple[str, str], str] = {}
        for run in (trial.run(variant, seed) for variant in plan.variants):
            if not (error := store.failed(folder, run)).startswith(UNFIT):
                continue
            machines = (store.machine_of(folder, run), environment(plan.device))
            then, here = ({fact: m[fact] for fact in m if fact not in changing} for m in machines)
            if then == here:
                new[run.variant, run.engine] = _disagreement(error)
        if not new:
            break
        reasons |= new
        plan = dataclasses.replace(plan, barred=plan.barred | set(new))
    return plan, reasons


def _disagreement(error: str) -> str:
    return error.removeprefix("disagrees: ").removeprefix("cannot run: ").removesuffix(": --engine names another")


def _say_other(plans: Sequence[Plan], reasons: Mapping[tuple[str, str], str]) -> None:
    for (variant, _), why in reasons.items():
        other = next(plan for plan in plans if variant in plan.variants).engines(variant)[0]
        print(f"note: {variant}: {why}; {other} trains it instead", file=sys.stderr)


def unfinished(runs: Collection[Run], folder: Path) -> Runs:
    """Those that are to be trained: never, or without success so far."""
    from harness.record import store

    states = store.states(folder)
    return Runs(lambda: (run for run in runs if states.get(run.key) != ""))


def train(
    todo: Collection[Run], corpus: Corpus, name: str, folder: Path, word: str = "training", *, plan: Plan
) -> None:
    """Train runs on one text where the plan says, each on file as it ends. In a shard only those that are its own.

    EngineDisagrees, at the end, where no engine was asked for.
    """
    from harness import terminal
    from harness.data import batches
    from harness.record import store
    from harness.run.agreement import UNFIT
    from harness.run.executors.local import cores
    from variants.outside import placed

    todo = plan.where.own(todo)
    workers = min(cores(), len(todo)) if todo and next(iter(todo)).device == "cpu" else 1
    lengths = functools.cache(functools.partial(batches.characters_per_token, corpus))
    wrong: dict[tuple[str, str], str] = {}
    with terminal.Bar(len(todo), word, "run") as bar:
        for finished in executed(todo, corpus, plan.where, workers, folder, bar.underway):
            outcome = finished.outcome
            store.write_run(folder, finished.run, {
                "corpus": name, "cell": placed(finished.run.variant),
                "unknown_share": None if corpus.tokens is None else corpus.unknown_share,
                **task_facts(finished.run.protocol),
                "characters_per_token": None if corpus.tokens is None else lengths(finished.run.protocol),
                "outcome": dataclasses.asdict(outcome),
                "environment": finished.environment, "started": finished.started, "wall_s": finished.wall_s,
                "together": finished.together, "load": finished.load,
            })  # fmt: skip
            if outcome.error.startswith(UNFIT):
                wrong[finished.run.variant, finished.run.engine] = _disagreement(outcome.error)
            good = outcome.heldout_perplexity
            said = outcome.error or (
                f"held-out perplexity {good:.2f}"
                if good is not None
                else f"solved after {outcome.solved_after:,} updates"
                if outcome.solved_after
                else f"not solved, score {outcome.score:.4f}"
            )
            task = finished.run.protocol
            what = "" if task.task == "text" else f" {task.task} {task.num_steps}"
            line = f"{finished.run.variant}{what} seed {finished.run.seed}: {said} ({finished.wall_s:.1f} s)"
            line += f"; step by step, no CUDA graph: {outcome.uncaptured}" if outcome.uncaptured else ""
            bar.finished(line, outcome.error, finished.run)
    if wrong and plan.engine == "auto":
        raise EngineDisagrees(wrong)


def task_facts(protocol: Protocol) -> dict[str, object]:
    """Return what is written beside a training on a task of a user's file, which may not be there when it is read."""
    from harness.experiments.tasks import PLACES, TASKS

    if protocol.task not in PLACES:
        return {}
    from harness.record.tables import facts_of

    return {"task": facts_of(TASKS[protocol.task], protocol.num_steps), "task_file": PLACES[protocol.task]}


def executed(
    todo: Collection[Run], corpus: Corpus, where: Where, workers: int, folder: Path, on_progress: OnProgress
) -> Iterator[Finished]:
    """Every run, trained where the plan says, as it ends."""
    from harness.record import store

    if where.on.startswith("ray"):
        from harness.analysis import stats
        from harness.run.executors import ray

        where = dataclasses.replace(where, margin=stats.MARGIN_NATS)
        return ray.execute(todo, corpus, where, folder, on_progress, store.checkpoint)
    if where.on:
        from harness.run.executors import slurm

        return slurm.execute(todo, corpus, where, folder, on_progress, store.checkpoint)
    from harness.run.executors import local

    return local.execute(todo, corpus, workers, on_progress, functools.partial(store.checkpoint, folder))


def go(plan: Plan, folder: Path, with_timing: bool = True, tasks: Sequence[Plan] = ()) -> int:
    """Train what is not done, on text and on `tasks`, time what is not timed, write every table and the report.

    The exit status.
    """
    from harness import terminal
    from harness.record import store, tables
    from harness.run.executors.local import cores

    where, with_timing = plan.where, with_timing and not plan.where.sharded
    with store.writing(folder):
        choices: list[dict[str, object]] = []
        if plan.protocol.rate == "chosen":
            [plan], choices = choose([plan], folder)
        runs: Collection[Run] = plan.runs
        todo = unfinished(runs, folder)
        announce(plan, len(where.own(todo)), min(cores(), len(todo)) if plan.device == "cpu" else 1)
        # of a shard nothing is timed, and its grid is that of every other shard
        session = "" if where.sharded else _session(plan.verb, plan.contenders, plan.device)
        whole = plan
        try:
            for seeds in plan.looks or (plan.seeds,):
                plan = dataclasses.replace(whole, seeds=seeds)
                store.write_grid(folder, plan.verb, {
                    **described(plan), "session": session, "speed_baseline": plan.speed_baseline,
                    "learning_rates": choices, "looks": plan.looks,
                })  # fmt: skip
                if plan.looks:
                    runs = plan.runs
                    todo = unfinished(runs, folder)
                train(todo, plan.corpus, plan.corpus.name, folder, plan=plan)
                if plan.looks and _decided(plan, folder):
                    break
            if tasks:
                runs = [*runs, *train_tasks(tasks, folder, "tasks")]
            if with_timing:
                if where.on:
                    leave()
                    print(f"trained on {where.on}; what follows is timed on this machine")
                _time(plan.contenders, len(plan.corpus.vocabulary), folder, session)
        except KeyboardInterrupt:
            raise Interrupted(where.own(runs)) from None
        known = tables.unchanged(folder, plan.verb, "tasks", "speed")
        results = known or tabulate(folder)
        terminal.print_table(getattr(results, plan.verb))
        if tasks:
            terminal.print_tasks(results.tasks)
        mine = results.speed[(results.speed["session"] == session) & results.speed["error"].fillna("").astype(bool)]
        timings = [f"timing {r['label']}, round {r['round'] + 1}: {r['error']}" for r in mine.to_dict("records")]
        return _ended(runs, folder, timings, where, None if known else results)


def leave() -> None:
    """Leave a Ray cluster, where this process is part of one: nothing of it disturbs a timing, or outlives a verb."""
    if "harness.run.executors.ray" in sys.modules:
        from harness.run.executors import ray

        ray.disconnect()


def _decided(plan: Plan, folder: Path) -> bool:
    """Whether every verdict of a grid is more than 'undecided', which is said."""
    table = getattr(tabulate(folder), plan.verb)
    open_ = table[table.baseline.astype(bool) & ~table.verdict.isin(["worse", "better", "equivalent"])]
    left = f"undecided: {', '.join(open_.variant)}" if len(open_) else "all decided"
    print(f"looked at {pluralize(plan.seeds, 'seed')} (of at most {plan.looks[-1]}; looks at {plan.looks}): {left}")
    return len(open_) == 0


def _ended(runs: Collection[Run], folder: Path, failed: list[str], where: Where, results: Results | None) -> int:
    """The last lines of a verb that trains, and its exit status."""
    from harness.record import store

    runs = where.own(runs)
    states = store.states(folder)
    bad = {run: states.get(run.key) or "its file was taken away" for run in runs if states.get(run.key) != ""}
    failed = [f"{run.variant} seed {run.seed}: {why}" for run, why in bad.items()] + failed
    for line in failed[:5]:
        print(f"failed: {line}", file=sys.stderr)
    if where.sharded:
        print(f"shard {where.shard[0]}/{where.shard[1]}: nothing is timed. When every shard is trained: "
              f"{os.path.basename(sys.executable)} -m harness merge FOLDER ... --results DIR")  # fmt: skip
    if failed:
        print(f"{len(failed)} failed, each a row of the tables; the same command tries them again", file=sys.stderr)
    return draw(folder, results) or int(bool(failed))


def reproduce(plans: Sequence[Plan], settings: Sequence[tuple[str, Sequence[str]]], folder: Path) -> int:
    """Train what was published, on each of its protocols, and set both side by side. The exit status."""
    from harness import terminal
    from harness.record import store

    where = plans[0].where
    with store.writing(folder):
        todo = {k: unfinished(plan.runs, folder) for k, plan in enumerate(plans)}
        total, left = sum(plan.size for plan in plans), sum(map(len, todo.values()))
        print(f"reproduce: {pluralize(total, 'training')}{f', {total - left} done already' * (left < total)}; "
              f"{', '.join(plan.protocol.label for plan in plans)}; text {plans[0].corpus.name}")  # fmt: skip
        if plans[0].corpus.note:
            print(f"note: {plans[0].corpus.note}", file=sys.stderr)
        store.write_grid(folder, "reproduce", {
            "runs": [run.key for plan in plans for run in plan.runs], "session": "", "anchors": {},
            "parts": [{**described(plan), "setting": setting} for plan, setting in zip(plans, settings, strict=True)],
        })  # fmt: skip
        runs = [run for plan in plans for run in plan.runs]
        try:
            for k, plan in enumerate(plans):
                train(todo[k], plan.corpus, plan.corpus.name, folder, plan.protocol.label, plan=plan)
        except KeyboardInterrupt:
            raise Interrupted(where.own(runs)) from None
        results = tabulate(folder)
        terminal.print_reproduce(results.reproduce)
        return _ended(runs, folder, [], where, results)


EXERCISE_SIZES = (16, 32, 64, 128)  # hidden units of exercise 2


SCORED_AT_ONCE = 100  # sequences


def exercises(options: argparse.Namespace, folder: Path) -> int:
    """Train and time what the four exercises of the book's chapter ask for. The exit status."""
    from harness.experiments.tasks import TASKS
    from harness.record import store
    from harness.run import by_hand, train_task

    task, base = TASKS["delayed_recall"], {"corpus": None, "protocol": "quick", "max": None}
    ask = argparse.Namespace(**{**vars(options), **base, "variants": None, "settings": []})
    sizes = [f"hidden={','.join(map(str, EXERCISE_SIZES))}"]
    sized = argparse.Namespace(**{**vars(ask), "variants": [grids.BASELINE, "rnn"], "settings": sizes})
    kinds = argparse.Namespace(**{**vars(ask), "variants": [grids.BASELINE, "nn.rnn", "nn.gru"]})
    solution = by_hand.delayed_recall()
    rows = [
        {**fact, "variant": grids.BASELINE, "engine": "loop", "device": "cpu", "protocol": task.name, "seed": 0,
         "origin": "by hand", "length": task.length,
         "score": float(train_task.score(solution, task, task.length, SCORED_AT_ONCE)[0])}
        for fact in train_task.looked_into(solution, task, task.length)
    ]  # fmt: skip
    with store.writing(folder):
        store.write_grid(folder, "exercises", {"runs": [], "session": "", "anchors": {}, "by_hand": rows})
    with_timing, wanted = not options.no_timing, [planned("ablate", ask), *on_tasks(tasks_of(ask))]
    return max(
        with_others(lambda plans: axes(plans, sizes, folder), along("bench", sized), folder),
        with_others(lambda plans: go(plans[0], folder, with_timing), [planned("bench", kinds)], folder),
        with_others(lambda plans: go(plans[0], folder, with_timing, plans[1:]), wanted, folder),
    )


def axes(plans: Sequence[Plan], settings: Sequence[str], folder: Path) -> int:
    """Train every variant at every point of the lists in `settings`, and follow each effect. The exit status."""
    from harness import terminal
    from harness.record import store

    fields, where = grids.axes_of(settings), plans[0].where
    with store.writing(folder):
        size = sum(plan.size for plan in plans)
        grid = {"point": len(plans), "variant": len(plans[0].variants), "seed": plans[0].seeds}
        product = " x ".join(pluralize(n, noun) for noun, n in grid.items())
        print(f"axes: {' x '.join(fields)}, {product} = {pluralize(size, 'training')}; nothing is timed")  # fmt: skip
        choices: list[dict[str, object]] = []
        runs: list[Run] = []
        try:
            chosen = []
            for plan in plans:
                if plan.protocol.rate == "chosen":
                    [plan], rows = choose([plan], folder)
                    choices += rows
                chosen.append(plan)
            runs = [run for plan in chosen for run in plan.runs]
            store.write_grid(folder, "axes", {
                "runs": [run.key for run in runs], "session": "", "anchors": {}, "fields": fields,
                "learning_rates": choices,
                "parts": [
                    {**described(plan), "point": [str(getattr(plan.protocol, f)) for f in fields]} for plan in chosen
                ],
            })  # fmt: skip
            for plan in chosen:
                train(
                    unfinished(plan.runs, folder), plan.corpus, plan.corpus.name, folder, plan.protocol.label, plan=plan
                )
        except KeyboardInterrupt:
            raise Interrupted(where.own(runs)) from None
        results = tabulate(folder)
        terminal.print_axes(results.axes)
        return _ended(runs, folder, [], where, results)


def claims(plans: Sequence[Plan], labels: Mapping[str, str], folder: Path) -> int:
    """Train what the claims of the literature are about, and give each its verdict. The exit status.

    `labels`: as `plan.on_claims` gives them.
    """
    from harness import terminal
    from harness.record import store

    texts = [plan for plan in plans if plan.protocol.task == "text"]
    tasks = [plan for plan in plans if plan.protocol.task != "text"]
    where = plans[0].where
    with store.writing(folder):
        runs: list[Run] = []
        choices: list[dict[str, object]] = []
        print(f"claims: {sum(plan.size for plan in plans)} trainings that are scored, and those that choose their "
              "learning rates")  # fmt: skip
        try:
            for some, name in ((tasks, ""), (texts, texts[0].corpus.name)):
                chosen, rows = choose(some, folder)
                choices += rows
                runs += [run for plan in chosen for run in plan.runs]
                store.write_grid(folder, "claims", {
                    "runs": [run.key for run in runs], "session": "", "anchors": {}, "learning_rates": choices,
                    "tasks": True, "labels": labels,
                })  # fmt: skip
                todo = unfinished([run for plan in chosen for run in plan.runs], folder)
                train(todo, some[0].corpus, name, folder, plan=some[0])
        except KeyboardInterrupt:
            raise Interrupted(where.own(runs)) from None
        results = tabulate(folder)
        terminal.print_claims(results.claims)
        return _ended(runs, folder, [], where, results)


def questions(plans: Sequence[Plan], folder: Path) -> int:
    """Train what a reviewer asks for, and say of each difference whether it stands. The exit status."""
    from harness import terminal
    from harness.record import store

    where = plans[0].where
    with store.writing(folder):
        print(f"questions: {sum(plan.size for plan in plans)} trainings that are scored, and those that choose their "
              "learning rates")  # fmt: skip
        choices: list[dict[str, object]] = []
        parts: list[dict[str, object]] = []
        runs: list[Run] = []
        try:
            for plan in plans:
                if plan.protocol.rate == "chosen":
                    [plan], rows = choose([plan], folder)
                    choices += rows
                runs += plan.runs
                parts.append({**described(plan), "anchors": {}})
                store.write_grid(folder, "questions", {
                    "runs": [run.key for run in runs], "session": "", "anchors": {}, "learning_rates": choices,
                    "parts": parts,
                })  # fmt: skip
                train(
                    unfinished(plan.runs, folder), plan.corpus, plan.corpus.name, folder, plan.protocol.label, plan=plan
                )
        except KeyboardInterrupt:
            raise Interrupted(where.own(runs)) from None
        results = tabulate(folder)
        terminal.print_questions(results.questions)
        return _ended(runs, folder, [], where, results)


def probe(plans: Sequence[Plan], folder: Path) -> int:
    """Train on every task, length and variant, and set what solves them side by side. The exit status."""
    from harness import terminal
    from harness.record import store

    where = plans[0].where
    with store.writing(folder):
        runs: list[Run] = []
        try:
            runs = train_tasks(plans, folder, "probe")
        except KeyboardInterrupt:
            raise Interrupted(where.own(runs)) from None
        results = tabulate(folder)
        terminal.print_tasks(results.tasks)
        return _ended(runs, folder, [], where, results)


def train_tasks(plans: Sequence[Plan], folder: Path, name: str) -> list[Run]:
    """Choose the learning rates, train what is not done, and put on file what was asked. The scored runs."""
    from harness.record import store

    choices: list[dict[str, object]] = []
    chosen = list(plans)
    if to_choose := [plan for plan in plans if plan.protocol.rate == "chosen"]:
        with_rates, choices = choose(to_choose, folder)
        chosen = [*with_rates, *(plan for plan in plans if plan.protocol.rate != "chosen")]
    seeds = range(plans[0].seeds)
    runs = [plan.run(variant, seed) for seed in seeds for plan in chosen for variant in plan.variants]
    todo = unfinished(runs, folder)
    ended = len(runs) - len(todo)
    print(f"{name}: {pluralize(len(runs), 'training')}{f', {ended} done already' * bool(ended)}; "
          f"tasks {', '.join(dict.fromkeys(plan.protocol.task for plan in plans))}; {plans[0].device}")  # fmt: skip
    store.write_grid(folder, name, {
        "runs": [run.key for run in runs], "session": "", "anchors": {}, "learning_rates": choices, "tasks": True,
    })  # fmt: skip
    train(todo, plans[0].corpus, "", folder, plan=plans[0])
    return runs


def announce(plan: Plan, todo: int, workers: int) -> None:
    """Before anything runs: what, on what, and what this grid cannot answer."""
    if plan.corpus.note:
        print(f"note: {plan.corpus.note}", file=sys.stderr)
    where = "the GPU" if plan.device == "cuda" else pluralize(workers, "worker process")
    where = where if todo else "nothing to train"
    where = plan.where.on or where
    part, parts = plan.where.shard
    own = len(plan.where.own(plan.runs)) if plan.where.sharded else plan.size
    print(
        f"{plan.verb}: {pluralize(len(plan.variants), 'variant')} x {pluralize(plan.seeds, 'seed')} = "
        f"{pluralize(plan.size, 'training')}"
        f"{f', of them {own} in shard {part}/{parts}' * plan.where.sharded}"
        f"{f', {own - todo} done already' * (todo < own)}; "
        f"protocol {plan.protocol.label}, text {plan.corpus.name}, {where}"
    )
    if plan.protocol.overlap:
        overlap = f"the first {plan.protocol.overlap} held-out characters also lie in the last training windows"
        print(f"note: {overlap}, as in the book", file=sys.stderr)
    for variant in plan.variants:
        if plan.engine not in ("auto", plan.engines(variant)[0]):
            print(f"note: {variant} is trained by {plan.engines(variant)[0]}: {plan.engine} cannot run it, "
                  f"{plan.refusals(variant)[plan.engine]}", file=sys.stderr)  # fmt: skip
        elif (why := plan.refusals(variant).get("fused", "")).startswith("step of") and plan.engine == "auto":
            print(f"note: {variant} is trained by the loop, which is slow: {why}; "
                  "docs/engines.md says what a step may use", file=sys.stderr)  # fmt: skip
    if why := grids.no_verdict(plan.variants):
        print(f"note: no verdict can be had: {why}")
    contrasts = grids.contrasts(plan.variants)
    need = grids.seeds_needed(contrasts)
    if contrasts and plan.seeds < need:
        print(
            f"warning: {pluralize(plan.seeds, 'seed')} cannot tell a difference from "
            f"{baseline_of(plan.variants)} from chance: an exact paired test of "
            f"{pluralize(contrasts, 'comparison')} needs {need} "
            f"(SEEDS={need}). Intervals are shown, no verdict but 'undecided' or 'equivalent' can be had",
            file=sys.stderr,
        )


def sweep(plans: Sequence[Plan], full: bool, folder: Path) -> int:
    """Time plans that differ in their size alone, as one comparison. The exit status."""
    from harness.record import store

    with store.writing(folder):
        contenders = sizes(plans, full)
        first = plans[0]
        print(f"sweep: {pluralize(len(contenders), 'candidate')}, protocol {first.protocol.name}, {first.device}")
        session = _session("sweep", contenders, first.device)
        store.write_grid(folder, "sweep", {
            "protocol": {**dataclasses.asdict(first.protocol), "label": first.protocol.label}, "runs": [],
            "variants": first.variants, "device": first.device, "session": session, "corpus": first.corpus.name,
            "corpus_sha256": first.corpus.sha256, "anchors": {},
        })  # fmt: skip
        try:
            _time(contenders, len(first.corpus.vocabulary), folder, session)
        except KeyboardInterrupt:
            raise Interrupted([]) from None
        results = tabulate(folder)
        timed = results.speed[results.speed["session"] == session]
        failed = timed[timed["error"].fillna("") != ""]["label"].unique()
        for label in failed:
            print(f"failed: {label}: {timed[timed['label'] == label]['error'].dropna().iloc[0]}", file=sys.stderr)
        return draw(folder, results) or int(len(failed) > 0)


def latency(plan: Plan, folder: Path) -> int:
    """Time single steps of every variant and engine, and the parts of its training step. The exit status."""
    from harness import terminal
    from harness.experiments.runs import CONTROL_SUFFIX, Candidate
    from harness.record import store

    with store.writing(folder):
        contenders = [
            Candidate(variant + f" ({engine})" * (k > 0), plan.run(variant, 0, engine, False))
            for variant in plan.variants
            for k, engine in enumerate(plan.engines(variant)[: None if plan.engine == "auto" else 1])
        ]
        base = next((c for c in contenders if c.label == plan.speed_baseline), contenders[0])
        contenders.append(Candidate(base.label + CONTROL_SUFFIX, base.run, control_of=base.label))
        protocol = plan.protocol
        print(f"latency: {pluralize(len(contenders), 'candidate')}, protocol {protocol.label}, {plan.device}")
        session = _session("latency", contenders, plan.device)
        store.write_grid(folder, "latency", {
            "protocol": {**dataclasses.asdict(protocol), "label": protocol.label}, "runs": [],
            "variants": plan.variants, "device": plan.device, "session": session,
            "corpus": plan.corpus.name, "corpus_sha256": plan.corpus.sha256, "anchors": {},
        })  # fmt: skip
        try:
            _time(contenders, len(plan.corpus.vocabulary), folder, session, "latency")
        except KeyboardInterrupt:
            raise Interrupted([]) from None
        results = tabulate(folder)
        terminal.print_latency(results.latency)
        failed = results.latency[results.latency["error"].fillna("") != ""].drop_duplicates("label")
        for row in failed.itertuples():
            print(f"failed: {row.label}: {row.error}", file=sys.stderr)
        return draw(folder, results) or int(len(failed) > 0)


def _session(verb: str, contenders: Sequence[Candidate], device: str) -> str:
    """The name of this speed comparison: the same contenders, timed by the same code on the same machine."""
    import hashlib
    import json

    from harness.plan import LATENCY, NO_NUMBERS, TIMED
    from harness.run.machine import SETTLED, environment, thread_settings
    from variants.fingerprint import code

    timed = LATENCY if verb == "latency" else TIMED
    keys = [(contender.label, contender.run.key) for contender in contenders]
    machine = {fact: value for fact, value in environment(device).items() if fact not in SETTLED}
    # how many threads there are is set for each sample
    machine["thread_settings"] = str({k: v for k, v in thread_settings().items() if not k.endswith("NUM_THREADS")})
    whole = json.dumps([keys, machine, code(timed, NO_NUMBERS)], sort_keys=True)
    return f"{verb}-{hashlib.sha256(whole.encode()).hexdigest()[:12]}"


def _time(
    contenders: Sequence[Candidate], vocabulary: int, folder: Path, session: str, program: str = "timing"
) -> None:
    """Every round of the session that is not on file; `program` takes a sample."""
    from harness import terminal
    from harness.record import store
    from harness.run import timing
    from harness.run.executors.local import cores
    from harness.run.machine import slow_waiting

    labels = [contender.label for contender in contenders]
    rounds = [n for n in range(timing.ROUNDS) if not store.round_done(folder, session, n, labels)]
    if rounds:
        total = len(rounds) * len(labels)
        limit = pluralize(math.ceil(timing.limit_s(total) / 60), "minute")
        print(f"timing: {pluralize(total, 'sample')}, for at most {limit}")
        if (setting := slow_waiting()) and cores() > 1 and any(one.run.device == "cpu" for one in contenders):
            print(f"note: {setting} makes threads sleep between two operations: steps of small networks are timed "
                  "several times slower than without it; to time them as usual, unset it", file=sys.stderr)  # fmt: skip
    busy: dict[str, set[int]] = {}
    with terminal.Bar(len(rounds) * len(labels), "timing", "sample") as bar:
        for number, contender, answers in timing.compare(contenders, vocabulary, cores(), rounds, program):
            answer, last = timing.settled(answers), answers[-1]
            others = [one for one in answers if one is not answer]
            store.write_sample(
                folder, session, number, contender.label, contender.run, answer, contender.control_of, others
            )
            blocks = last.get("blocks", [])
            clean = [b for b in blocks if not b["disturbed"]]
            fact, unit = ("p50_us", "us a step") if program == "latency" else ("tokens_per_sec", "tokens/sec")
            values = sorted(b[fact] for b in clean or blocks)
            error = last.get("error", "")
            said = error or f"{values[len(values) // 2]:,.0f} {unit}"
            said += ", disturbed by other processes" * timing.disturbed(last)
            if len(answers) > 1:
                said += f", attempt {len(answers)}"
                bar.more()
            busy.setdefault(contender.label, set()).discard(number)
            if timing.disturbed(answer):
                busy[contender.label].add(number)
            bar.finished(f"round {number + 1} {contender.label}: {said}", error)
    left = [f"{label} ({len(numbers)} of {timing.ROUNDS} rounds)" for label, numbers in busy.items() if numbers]
    if left:
        print(f"warning: never left alone by other processes while it was timed: {', '.join(left)}", file=sys.stderr)


def tabulate(folder: Path) -> Results:
    """Every table again, from the files of single runs and samples. It imports nothing to draw with."""
    import pandas as pd

    from harness.analysis import compare
    from harness.analysis import tasks as task_table
    from harness.record import store, tables

    results = tables.gather(folder)
    answers = {}
    grids = store.grids(folder)
    for verb, asked in grids.items():
        if verb not in GRIDS:
            continue
        runs = results.runs[results.runs["run"].isin(asked["runs"])]
        speed = results.speed[results.speed["session"] == asked["session"]]
        answers[verb] = compare.build(
            runs, speed, asked["variants"], asked["protocol"]["label"], asked["corpus_sha256"], asked["device"],
            baseline_of(asked["variants"]),
            speed_baseline=asked["speed_baseline"], looks=max(1, len(asked.get("looks", ()))),
        )  # fmt: skip
    if "reproduce" in grids:
        from harness.analysis.claims import reproduced

        answers["reproduce"] = reproduced(results.runs, grids["reproduce"])
    answers["axes"] = tables.frame("axes", [])
    if "axes" in grids:
        from harness.analysis import axes as effects

        answers["axes"] = effects.build(results.runs, grids["axes"])
    answers["questions"] = tables.frame("questions", [])
    if "questions" in grids:
        answers["questions"] = compare.questions(results.runs, grids["questions"]["parts"])
    answers["claims"] = tables.frame("claims", [])
    if "claims" in grids:
        from harness.analysis import claims as claim_table
        from harness.experiments.claims import arms

        keys, labels = grids["claims"]["runs"], grids["claims"]["labels"]
        answers["claims"] = claim_table.build(
            results.runs[results.runs["run"].isin(keys)], results.probes[results.probes["run"].isin(keys)],
            {arm: labels.get(f"{arm.variant} {' '.join(arm.settings)} {arm.task}", "") for arm in arms()},
        )  # fmt: skip
    keys = [key for asked in grids.values() if asked.get("tasks") for key in asked["runs"]]
    by_hand = [tables.frame("positions", grids["exercises"]["by_hand"])] if "exercises" in grids else []
    trained = results.positions[results.positions["run"].isin(keys)]  # not those that chose a rate
    answers["positions"] = pd.concat([*by_hand, trained], ignore_index=True) if by_hand else trained
    answers["tasks"] = tables.frame("tasks", []) if not keys else task_table.build(
        results.probes[results.probes["run"].isin(keys)], results.learning_rates
    )  # fmt: skip
    results = dataclasses.replace(results, **answers)
    tables.write(results, folder)
    tables.mark(folder)
    return results


def draw(folder: Path, results: Results | None = None, anew: bool = False) -> int:
    """The report from the tables: last of all, so that nothing of it can undo them. 1 where it cannot be had, and why.

    `results`: the tables as they were just written; else they are read.

    One of the same tables by the same code is left as it is, unless it is to be made `anew`.
    """
    from harness.record import tables

    try:
        from harness.report import page as report

        if anew or not report.current(folder):
            report.write(tables.read(folder) if results is None else results, folder)
    except OSError:
        raise
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        print(f"failed: no report, {why}; the tables are whole, and `report` draws them", file=sys.stderr)
        return 1
    print(f"\nreport: {folder / report.NAME}")
    return 0
