"""What several test files share."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from harness.report import page as report
from harness.run import process
from harness.run.executors import local
from variants import outside, registry

# The same examples every time; `pytest --hypothesis-profile=default` looks for others.
settings.register_profile("the same", derandomize=True, deadline=None)
settings.load_profile("the same")


# ---- `pytest --halves`, as `make test` has it: two processes, each file in one of them --------


class Halves:
    """Run the files that nobody has taken, the longest first, beside another process that does the same.

    A file is taken by creating one of its number in a folder of both. The second process writes its reports there, and
    the first tells pytest of them as of its own: one count, one closing line.
    """

    def __init__(self, config: pytest.Config, folder: Path, first: bool) -> None:
        self.config, self.folder, self.first, self.read = config, folder, first, 0
        self.other: subprocess.Popen[bytes] | None = None
        (folder / "reports").touch()

    def taken(self, session: pytest.Session) -> Iterator[pytest.Item]:
        """Items of the files that are taken here, one file after the other."""
        files: dict[Path, list[pytest.Item]] = {}
        for item in session.items:
            files.setdefault(item.path, []).append(item)
        for k, path in enumerate(sorted(files, key=lambda path: (-path.stat().st_size, path))):
            with contextlib.suppress(FileExistsError):
                (self.folder / str(k)).touch(exist_ok=False)
                yield from files[path]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if self.first:
            words = [*sys.argv[1:], "-p", "no:cacheprovider"]
            with (self.folder / "output").open("wb") as output:
                self.other = subprocess.Popen(
                    process.command(f"import sys, pytest; sys.exit(pytest.main({words!r}))", follow=True),
                    stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    env={**os.environ, "TESTS_HALVES": str(self.folder)},
                )  # fmt: skip
        items = self.taken(session)
        item = next(items, None)
        while item is not None:
            following = next(items, None)
            self.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            self.tell()
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
            item = following
        if self.other is not None:
            status = self.other.wait()
            self.tell()
            if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
                raise RuntimeError(f"the second process: {(self.folder / 'output').read_text()[-3000:]}")
        return True

    def tell(self) -> None:
        """Report what the second process has reported since."""
        if self.first:
            with (self.folder / "reports").open(encoding="utf-8") as lines:
                lines.seek(self.read)
                whole = lines.read().rpartition("\n")[0]
            self.read += len(whole.encode()) + bool(whole)
            for line in whole.splitlines():
                data = json.loads(line)
                if isinstance(data["longrepr"], list):
                    data["longrepr"] = tuple(data["longrepr"])  # of a test that was skipped: JSON knows no tuple
                report = self.config.hook.pytest_report_from_serializable(config=self.config, data=data)
                self.config.hook.pytest_runtest_logreport(report=report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not self.first:
            data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
            with (self.folder / "reports").open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(data) + "\n")

    def pytest_unconfigure(self) -> None:
        if self.other is not None:
            self.other.kill()
            self.other.wait()
        if self.first:
            shutil.rmtree(self.folder, ignore_errors=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--halves", action="store_true", help="run in two processes, each file in one of them")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.halves and not config.option.collectonly:
        of_first = os.environ.pop("TESTS_HALVES", "")
        folder = Path(of_first or tempfile.mkdtemp(prefix="halves-"))
        config.pluginmanager.register(Halves(config, folder, first=not of_first), "halves")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small products on several threads wait for one another: minutes of a suite, where something else runs too."""
    torch.set_num_threads(1)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stand in the empty folder `tmp_path`; afterwards no cell that lies outside the package is known."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    registry.use({})
    outside._forget()


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings in this process, no page drawn: starting workers and drawing are tested elsewhere."""

    def results(pool: local.Pool) -> Iterator[local.Finished]:
        for group in pool.groups:
            yield from local._one(group, pool.corpus, 1, lambda sign: None, pool.open_checkpoint)

    monkeypatch.setattr(local.Pool, "results", results)
    monkeypatch.setattr(report, "write", lambda results, folder: folder)
