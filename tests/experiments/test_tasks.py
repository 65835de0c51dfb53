"""Tasks against independent writings: solvers of plain lists, and the best guess without memory."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import harness
from harness import __main__ as command
from harness import pipeline
from harness import plan as planning
from harness.data import load
from harness.experiments import tasks
from harness.experiments.protocols import UPDATES, Protocol
from harness.experiments.runs import Run
from harness.experiments.tasks import PLACES, TASKS
from harness.options import parser
from harness.plan import on_tasks
from harness.record import tables
from harness.report import select
from harness.report.sections import tasks as task_section
from harness.run import train_task
from harness.run.progress import Arrays

Symbols = Sequence[int]


def permuted(things: int, even: bool) -> Callable[[Symbols], list[int]]:
    """Solve a word problem by moving things, not by a table."""
    group = [g for g in itertools.permutations(range(things)) if not even or sign(g) == 1]

    def solve(inputs: Symbols) -> list[int]:
        total, answers = tuple(range(things)), []
        for symbol in inputs:
            total = tuple(total[i] for i in group[symbol])
            answers.append(group.index(total))
        return answers

    return solve


def sign(order: Sequence[int]) -> int:
    """+1 for an even permutation, by its cycles."""
    seen: set[int] = set()
    result = 1
    for start in range(len(order)):
        length, at = 0, start
        while at not in seen:
            seen.add(at)
            at, length = order[at], length + 1
        result *= -1 if length and length % 2 == 0 else 1
    return result


def recall_marked(inputs: Symbols) -> list[int]:
    return [next(x - 8 for x in inputs if 8 <= x < 16)] * len(inputs)


def look_up(inputs: Symbols) -> list[int]:
    padded = [0, 0, *inputs]
    return [int(tasks.LOOKED_UP[padded[t], padded[t + 1], padded[t + 2]]) for t in range(len(inputs))]


def run_registers(inputs: Symbols) -> list[int]:
    held: dict[str, int] = {}
    answers = []
    for x in inputs:
        if x < 6:
            to, other = [("a", "b"), ("a", "c"), ("b", "c"), ("b", "a"), ("c", "a"), ("c", "b")][x]
            held[to] = held.get(other, -1)
        elif x >= 9:
            held["abc"[(x - 9) // 4]] = (x - 9) % 4
        answers.append(held["abc"[x - 6]] if 6 <= x < 9 else 0)
    return answers


def again_in_order(inputs: Symbols) -> list[int]:
    shown = [x for x in inputs if x < 8]
    return [0] * (len(inputs) - len(shown)) + shown


def count_down(inputs: Symbols) -> list[int]:
    k = list(inputs).count(1)
    return ([1] * k + [2] * k + [0] * len(inputs))[: len(inputs)]


def running_sum(modulus: int) -> Callable[[Symbols], list[int]]:
    return lambda inputs: [sum(inputs[: t + 1]) % modulus for t in range(len(inputs))]


def since_reset(inputs: Symbols) -> list[int]:
    answers, ones = [], 0
    for x in inputs:
        ones = 0 if x == 2 else ones + x
        answers.append(ones % 2)
    return answers


def look_back(inputs: Symbols) -> list[int]:
    return [inputs[max(0, t - 1 - x // 8)] % 8 for t, x in enumerate(inputs)]


def latch(inputs: Symbols) -> list[int]:
    answers, bit = [], 0
    for x in inputs:
        bit = x if x < 2 else bit
        answers.append(bit)
    return answers


def by_key(inputs: Symbols) -> list[int]:
    known = {key: value - 16 for key, value in itertools.pairwise(inputs) if key < 16 <= value}
    return [known.get(x, 0) for x in inputs]


def brackets(inputs: Symbols) -> list[int]:
    answers, stack = [], []
    for x in inputs:
        if x < 2:
            stack.append(x)
        else:
            assert stack.pop() == x - 2
        assert len(stack) <= 4
        answers.append(1 + stack[-1] if stack else 0)
    return answers


SOLVERS: dict[str, Callable[[Symbols], list[int]]] = {
    "s3": permuted(3, even=False), "a5": permuted(5, even=True), "delayed_recall": recall_marked, "table3": look_up,
    "registers": run_registers, "copy": again_in_order, "selective_copy": again_in_order, "counting": count_down,
    "sum_mod": running_sum(5), "parity": running_sum(2), "parity_reset": since_reset, "lag": look_back,
    "flip_flop": latch, "pair_recall": by_key, "dyck2": brackets,
}  # fmt: skip
SYMBOLIC = [name for name, task in TASKS.items() if task.outputs > 1 and not task.needs]


class Answers(torch.nn.Module):
    """A network that gives the answers it was made of."""

    def __init__(self, answers: torch.Tensor) -> None:
        super().__init__()
        self.answers, self.cell, self.b_q, self.at = answers, self, torch.zeros(1), 0

    def begin(self, n: int) -> tuple[()]:
        return ()

    def __call__(self, X: torch.Tensor, state: object) -> tuple[torch.Tensor, object]:
        self.at += X.shape[2]
        return self.answers[:, self.at - X.shape[2] : self.at][:, None], state


def scored(name: str, length: int, answers: np.ndarray) -> float:
    task = TASKS[name]
    given = torch.from_numpy(np.ascontiguousarray(answers))
    outputs = given[..., None].float() if task.outputs == 1 else torch.nn.functional.one_hot(given, task.outputs)
    return float(train_task.score(Answers(outputs), task, length, 32)[0])  # type: ignore[arg-type]


def test_the_names_in_the_help_are_those_declared() -> None:
    assert planning.task_names() == list(TASKS)


@pytest.mark.parametrize("name", list(TASKS))
def test_each_task_says_what_it_is_expected_to_tell_and_what_was_found(name: str) -> None:
    said = TASKS[name].make.__doc__ or ""
    assert "Expected to" in said
    assert "Found:" in said or TASKS[name].needs  # of the real ones nothing is on file yet


def test_every_task_has_an_independent_solver() -> None:
    assert set(SOLVERS) == set(SYMBOLIC), "write its solver in SOLVERS, from the docstring"


@pytest.mark.parametrize("name", SYMBOLIC)
@pytest.mark.parametrize("longer", [False, True])
def test_a_perfect_solver_scores_the_optimum(name: str, longer: bool) -> None:
    task = TASKS[name]
    length = task.length * (task.longer if longer else 1)
    X, _, _ = task.fresh(length)
    answers = np.array([SOLVERS[name](column) for column in X.T.tolist()]).T
    assert scored(name, length, answers) == task.optimum == 1.0
    assert task.is_solved(1.0)


@pytest.mark.parametrize("name", [name for name in SYMBOLIC if not TASKS[name].whole])
def test_the_best_guess_without_memory_scores_the_chance(name: str) -> None:
    task = TASKS[name]
    length = task.length
    X, Y, counts = task.make(length, 20_000, np.random.default_rng(1))
    seen: defaultdict[int, Counter[int]] = defaultdict(Counter)
    for x, y in zip(X[counts].tolist(), Y[counts].tolist(), strict=True):
        seen[x][y] += 1
    best = sum(most.most_common(1)[0][1] for most in seen.values()) / counts.sum()
    # chosen on the data it is scored on: above the chance by about sqrt(answers x inputs / counted)
    spare = math.sqrt(task.inputs * math.log(task.outputs) / counts.sum())
    assert task.chance(length) - 0.01 < best < task.chance(length) + spare + 0.005


def test_adding_asks_for_the_sum_of_the_two_that_are_marked() -> None:
    X, Y, counts = tasks.adding(7, 500, np.random.default_rng(0))
    numbers, marks = X[..., 0], X[..., 1]
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert (marks[:3].sum(0) == 1).all()
    assert (marks[3:].sum(0) == 1).all()
    assert counts.any(1).tolist() == [False] * 6 + [True]
    for column in range(500):
        assert Y[-1, column] == pytest.approx(
            sum(x for x, m in zip(numbers[:, column], marks[:, column], strict=True) if m)
        )
    assert scored("adding", 10, TASKS["adding"].fresh(10)[1]) == pytest.approx(0, abs=1e-12)  # float32 of a sum
    assert scored("adding", 10, np.ones((10, 1000))) == pytest.approx(TASKS["adding"].chance(10), abs=0.02)  # 3 s.e.
    assert TASKS["adding"].lower_is_better
    assert TASKS["adding"].is_solved(0.0009)
    assert not TASKS["adding"].is_solved(0.0011)
    assert not TASKS["adding"].is_solved(math.nan)


def test_always_b_counts_no_string() -> None:
    assert scored("counting", 5, np.full_like(TASKS["counting"].fresh(5)[1], 2)) == TASKS["counting"].chance(5) == 0.0


def test_one_wrong_answer_makes_a_string_wrong_and_what_is_not_asked_counts_nothing() -> None:
    _, Y, counts = TASKS["counting"].fresh(5)
    wrong = Y.copy()
    wrong[~counts] = 0
    assert scored("counting", 5, wrong) == 1.0
    t = int(counts[:, 0].nonzero()[0][0])
    wrong[t, 0] = (wrong[t, 0] + 1) % 3
    assert scored("counting", 5, wrong) == 1 - 1 / tasks.SCORED


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if not task.needs])
def test_a_task_is_a_function_of_its_generator_and_keeps_its_declaration(name: str) -> None:
    task = TASKS[name]
    for length in {task.length, task.least if name != "counting" else 2}:
        first, again, other = (task.make(length, 50, np.random.default_rng(seed)) for seed in (0, 0, 1))
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        assert not np.array_equal(first[0], other[0])
        X, Y, counts = first
        assert X.shape[:2] == Y.shape == counts.shape
        assert counts.dtype == bool
        assert counts.any(0).all()  # each sequence is asked something
        if task.outputs > 1:
            assert X.min() >= 0 and X.max() < task.inputs and Y.min() >= 0 and Y.max() < task.outputs  # noqa: PT018


def test_solved_is_the_first_of_two_checks_in_a_row() -> None:
    task = TASKS["s3"]
    assert train_task.solved(task, [0.5, 0.99, 0.98, 0.995, 0.99]) == 4
    assert train_task.solved(task, [0.99, 0.98, 0.99]) == 0
    assert train_task.solved(task, [0.5, math.nan]) == 0
    assert train_task.solved(TASKS["adding"], [0.0011, 0.001, 0.0005]) == 2


def run(task: str, seed: int = 0, variant: str = "gru", engine: str = "fused", **changes: object) -> Run:
    small = {
        "num_steps": 6,
        "hidden": 16,
        "epochs": 2,
        "init": "torch",
        "lr": 0.01,
        "stop": "solved",
        "optimizer": "adam",
    } | changes
    return Run(variant, seed, Protocol(name=task, task=task, **small), "", "cpu", engine)  # type: ignore[arg-type]


def test_a_task_is_learned_and_a_seed_is_its_own() -> None:
    pair = train_task.train([run("delayed_recall", seed, num_steps=12, epochs=10) for seed in (0, 1)])
    alone = train_task.train([run("delayed_recall", 1, num_steps=12, epochs=10)])[0]
    assert alone.checks == pytest.approx(pair[1].checks, abs=0.02)  # float32, summed in another order
    assert alone.checks != pytest.approx(pair[0].checks, abs=1e-4)
    assert alone.solved_after == pair[1].solved_after
    assert alone.solved_after is not None
    assert len(alone.checks) == alone.solved_after // UPDATES + train_task.HELD - 1
    assert alone.score is not None
    assert alone.score >= 0.99
    assert alone.score_longer is not None
    assert train_task.train([run("delayed_recall", 1, num_steps=12, epochs=10)])[0].checks == alone.checks


def test_what_is_not_solved_has_no_updates_and_the_whole_budget() -> None:
    outcome = train_task.train([run("a5", epochs=1)])[0]
    assert outcome.solved_after is None
    assert len(outcome.checks) == 1
    assert outcome.tokens == UPDATES * 32 * 6
    assert outcome.score == outcome.checks[-1]
    assert outcome.error == ""


def test_a_seed_that_diverges_is_a_row_and_the_other_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    real = tasks.adding

    def poisoned(length: int, n: int, rng: np.random.Generator) -> tasks.Batch:
        X, Y, counts = real(length, n, rng)
        seed_of = rng.bit_generator.seed_seq
        return (X * math.nan if getattr(seed_of, "entropy", [0])[0] == 1 else X), Y, counts

    monkeypatch.setitem(TASKS, "adding", dataclasses.replace(TASKS["adding"], make=poisoned, scored=real))
    good, bad = train_task.train([run("adding", seed) for seed in (0, 1)])
    assert "diverged" in bad.error
    assert bad.score is bad.score_longer is bad.solved_after is None
    assert good.error == ""
    assert (good.score or 1) < 0.2


def test_a_training_goes_on_from_between_two_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.run.progress.CHECKPOINT_S", 0.0)

    saved: list[Arrays] = []

    class Kept:
        def load(self) -> Arrays | None:
            return saved[0] if saved else None

        def save(self, arrays: Arrays) -> None:
            saved.append({name: np.array(value) for name, value in arrays.items()})

    straight = train_task.train([run("s3", epochs=3)], keep=Kept())
    assert int(saved[0]["epoch"]) == 1
    resumed = train_task.train([run("s3", epochs=3)], keep=Kept())
    assert resumed[0].checks == straight[0].checks
    assert resumed[0].score_longer == straight[0].score_longer


def test_each_input_and_answer_of_a_task_has_a_sign_that_says_it() -> None:
    """Read from its signs alone, a sequence gives the answers of the task."""
    for name, task in TASKS.items():
        if task.needs:
            continue
        signs, answers = tasks.symbols(name)
        if task.outputs > 1:
            assert (len(set(signs)), len(set(answers))) == (task.inputs, task.outputs), name
            assert name in tasks.QUESTIONS
    X, Y, counts = TASKS["registers"].fresh(24)
    signs, answers = tasks.symbols("registers")
    for n in range(20):
        held: dict[str, str] = {}
        for x, y, asked in zip(X[:, n], Y[:, n], counts[:, n], strict=True):
            if asked:
                assert held[signs[x].removeprefix("read ")] == answers[y]
            else:
                to, value = signs[x].split(":=")
                held[to] = held.get(value, value)
    X, Y, counts = TASKS["lag"].fresh(16)
    signs, answers = tasks.symbols("lag")
    assert all(answers[Y[t, 0]] == signs[X[t - int(signs[X[t, 0]][1]), 0]][0] for t in range(4, 16))


@pytest.mark.parametrize("engine", ["fused", "library"])
def test_seed_0_of_a_task_is_kept_as_it_was_when_its_training_ended(engine: str) -> None:
    variant = "nn.gru" if engine == "library" else "gru"
    seeds = (0,) if engine == "library" else (1, 0)
    outcomes = train_task.train([run("delayed_recall", seed, variant, engine, num_steps=4) for seed in seeds])
    assert [outcome.network is None for outcome in outcomes] == [seed != 0 for seed in seeds]
    kept = outcomes[-1].network
    assert kept is not None
    assert (kept["task"], kept["inputs"], kept["outputs"], kept["hidden"]) == ("delayed_recall", 17, 8, 16)
    assert "state" not in kept
    numbers = train_task.train([run("adding", variant=variant, engine=engine, epochs=1)])[0].network
    assert numbers is not None
    assert numbers["why"] == "its inputs are numbers"


@pytest.fixture
def made_digits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ten digits as dark as they are large, in as many copies as scikit-learn's file has digits."""
    classes = np.arange(1797) % 10
    pixels = np.broadcast_to(classes[:, None, None] / 10, (1797, 8, 8)).copy()
    monkeypatch.setattr(tasks, "digits", lambda: (pixels, classes))
    train_task.fresh.cache_clear()
    yield
    train_task.fresh.cache_clear()


@pytest.mark.usefixtures("made_digits", "in_process")
def test_digits_are_read_by_row_or_pixel_and_others_are_scored(tmp_path: Path) -> None:
    pixels, classes = tasks.digits()
    for name, steps in (("digits_rows", 8), ("digits_pixels", 64)):
        task = TASKS[name]
        X, Y, counts = task.fresh(steps)
        assert X.shape == (steps, 500, 64 // steps)
        assert np.array_equal(X.transpose(1, 0, 2).reshape(500, 8, 8), pixels[-500:])
        assert np.array_equal(Y[-1], classes[-500:])
        assert counts.sum() == counts[-1].sum() == 500
        assert task.make(steps, 40, np.random.default_rng(0))[0].shape == (steps, 40, 64 // steps)
    ask = ["probe", "--device", "cpu", "--seeds", "2", "--variants", "gru", "rnn", "--set", "epochs=1", "hidden=4",
           "rate=given", "lr=0.03", "--tasks", "digits_rows", "--results", str(tmp_path)]  # fmt: skip
    assert command.main(ask) == 0
    data = tables.read(tmp_path)
    assert set(data.tasks.linear) == {0.866}
    assert set(data.tasks.trivial) == {0.102}
    assert data.tasks.length_longer.isna().all()
    assert data.tasks.score_longer.isna().all()
    section = task_section.section(select.typed(data))
    assert section is not None
    assert section.table is not None
    assert "a linear model: 0.866, guessing: 0.102" in section.table.rows[0][0].note


def test_digits_are_asked_for_and_without_scikit_learn_a_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    tasks.digits.cache_clear()
    options = command.parser().read(["probe", "--device", "cpu"])
    assert not {plan.protocol.task for plan in planning.on_tasks(options)} & {"digits_rows", "digits_pixels"}
    assert command.main(["probe", "--tasks", "digits_rows", "--results", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said == "error: the tasks on digits need scikit-learn's file: pip install 'gru-bench[digits]'\n"


def test_what_stands_beside_the_digits_is_what_they_give() -> None:
    """Least squares on all pixels, and the commonest digit, of the file itself."""
    tasks.digits.cache_clear()
    try:
        pixels, classes = tasks.digits()
    except ValueError:
        pytest.skip("scikit-learn is not installed")
    known = len(classes) - tasks.DIGITS_SCORED
    X = np.c_[pixels.reshape(-1, 64), np.ones(len(pixels))]
    weights = np.linalg.lstsq(X[:known], np.eye(10)[classes[:known]], rcond=None)[0]
    right = (X[known:] @ weights).argmax(1) == classes[known:]
    assert {TASKS[name].linear for name in ("digits_rows", "digits_pixels")} == {right.mean()}
    commonest = np.bincount(classes[known:]).max() / tasks.DIGITS_SCORED
    assert {TASKS[name].chance(8) for name in ("digits_rows", "digits_pixels")} == {commonest}


# ---- a task in a file of the user's

OWN = """
import numpy as np
from harness.experiments.tasks import task

SIZE = 2

@task(3, SIZE, 4, 8, 0.5, "remembering the first symbol")
def first_one(length, n, rng):
    inputs = rng.integers(0, SIZE, size=(length, n))
    inputs[-1] = 2
    answers = np.zeros((length, n), dtype=int)
    answers[-1] = inputs[0]
    counts = np.zeros((length, n), dtype=bool)
    counts[-1] = True
    return inputs, answers, counts
"""


@pytest.fixture
def _own_tasks_forgotten() -> Iterator[None]:
    known = dict(TASKS)
    yield
    TASKS.clear()
    TASKS.update(known)
    PLACES.clear()


@pytest.mark.usefixtures("in_process", "elsewhere", "_own_tasks_forgotten")
def test_a_task_in_a_file_is_trained_on_and_read_without_it_and_its_key_is_of_its_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(OWN, encoding="utf-8")
    words = ["probe", "--tasks", "./mine.py", "s3", "--lengths", "3", "--variants", "gru", "--seeds", "1", "--set",
             "epochs=1", "hidden=3", "lr=0.01", "batch_size=3"]  # fmt: skip
    assert command.main(words) == 0
    capsys.readouterr()

    def keys() -> list[str]:
        [plan] = on_tasks(parser().read(["probe", "--tasks", "mine.py:first_one", *words[4:]]))
        return [run.key for run in plan.runs]

    [before] = keys()
    assert "first_one,batch_size=3,num_steps=3,hidden=3,epochs=1,rate=given" in harness.read().probes.protocol.tolist()
    TASKS.pop("first_one")
    PLACES.clear()
    found = harness.read()  # another process, without the file
    pipeline.tabulate(tmp_path / "results")
    again = harness.read()
    assert again.probes.equals(found.probes)
    own = again.tasks[again.tasks.task == "first_one"].iloc[0]
    assert (own.length, own.trivial, own.optimal, own.threshold, own.length_longer) == (3, 0.5, 1, 0.99, 6)
    assert before in again.probes.run.tolist()
    (tmp_path / "mine.py").write_text(OWN + "\n# a word\n", encoding="utf-8")
    assert keys() == [before]
    (tmp_path / "mine.py").write_text(OWN.replace("SIZE = 2", "SIZE = 2 * 1"), encoding="utf-8")
    assert keys() != [before]


@pytest.mark.usefixtures("elsewhere", "_own_tasks_forgotten")
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("def first_one", "def s3"), "task 's3' is there already"),
        (("@task(3, SIZE, 4, 8, 0.5,", "@task(3, SIZE, 4, 8, 0.1,"), "a guess from the current input alone scores 0.5"),
        (("0.5,", "0.995,"), "not between chance, 0.995, and optimum, 1"),
        (("task(3,", "task(2,"), "its inputs are symbols from 0 to 2"),
        (("size=(length, n))", "size=(n, length))"), "of 4 sequences it gives|first_one|could not broadcast"),
        (("counts[-1] = True", "pass"), "a sequence asks nothing"),
        (("rng.integers(0", "np.random.default_rng().integers(0"), "the same generator gives other sequences"),
        (("@task", "#"), "declares no task"),
        (("import numpy", "import nummpy"), "No module named 'nummpy'"),
    ],
)
def test_a_task_that_is_not_as_it_declares_is_one_line(
    change: tuple[str, str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = dict(TASKS)
    text = OWN.replace(*change)
    assert text != OWN
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    assert command.main(["probe", "--tasks", "./mine.py"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(why, line), line
    assert known == TASKS
    assert not PLACES


@pytest.mark.usefixtures("elsewhere", "_own_tasks_forgotten")
def test_new_task_writes_one_that_can_be_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command.main(["new", "task", "recall_it"]) == 0
    assert "probe --tasks ./recall_it.py" in capsys.readouterr().out
    assert load.own_tasks("recall_it.py") == ["recall_it"]
    assert command.main(["new", "task", "recall_it"]) == 2
    assert command.main(["new", "task", "s3"]) == 2
    assert command.main(["probe", "--tasks", "./none.py"]) == 2
    assert command.main(["probe", "--tasks", "recall_it.py:other"]) == 2
    assert command.main(["probe", "--tasks", "./here"]) == 2
    said = capsys.readouterr().err.splitlines()[-3:]
    for part, line in zip(("no file", "no task in recall_it.py 'other'", "is no Python file"), said, strict=True):
        assert part in line
