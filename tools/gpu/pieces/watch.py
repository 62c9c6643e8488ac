"""A plugin of pytest that tells a journal of every test, bounds its time, and ends a process that has lost its card.

pytest-xdist puts another process in the place of one that ended; without it the run starts pytest again.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from tools.gpu.cases import CUDA_LOST, text_is_cuda_error
from tools.gpu.journal import DONE, FAILED, SKIPPED, STARTED, Event, Journal
from tools.gpu.store import Store

TEST_S = 60.0


class Watch:
    """Of one process that runs tests."""

    def __init__(self, journal: Journal, stacks: IO[str], behind: frozenset[str]) -> None:
        """`behind`: tests that ended before this session, the same for all its processes, which must collect alike."""
        self.journal, self.stacks, self.behind = journal, stacks, behind
        self.reports: list[pytest.TestReport] = []

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Tests that ended in an earlier process stay ended."""
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in self.behind])
        items[:] = [item for item in items if item.nodeid not in self.behind]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be imported is a case that failed."""
        if report.failed:
            self.journal.tell(Event(report.nodeid, FAILED, None, error_line(report.longreprtext), report.longreprtext))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Around a test with its fixtures."""
        self.reports = []
        self.journal.tell(Event(item.nodeid, STARTED))
        faulthandler.dump_traceback_later(TEST_S, exit=True, file=self.stacks)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()
            event = self.event(item.nodeid)
            self.journal.tell(event)
            if event.state == FAILED and text_is_cuda_error(str(event.traceback)):
                self.end()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Iterator[Any]:
        """What became of setup, call and teardown."""
        report = yield
        self.reports.append(report)
        return report

    def event(self, name: str) -> Event:
        """Of a test: the first of its phases that failed says why."""
        seconds = sum(report.duration for report in self.reports)
        failed = next((report for report in self.reports if report.failed), None)
        if failed is not None:
            text = failed.longreprtext
            return Event(name, FAILED, seconds, error_line(text), text)
        skipped = next((report for report in self.reports if report.skipped), None)
        if skipped is not None:
            return Event(name, SKIPPED, seconds, str(skipped.longrepr))
        return Event(name, DONE, seconds)

    def end(self) -> None:
        """Everybody else has been told of the test."""
        sys.stdout.flush()
        os._exit(CUDA_LOST)

    def pytest_unconfigure(self) -> None:
        self.stacks.close()


def error_line(text: str) -> str:
    """Of a traceback, the line that says what went wrong: pytest marks it with an E."""
    marked = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return marked[0] if marked else text.strip().rpartition("\n")[2]


def pytest_configure(config: pytest.Config) -> None:
    """Not in the process that only hands tests out."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        return
    folder, piece = Path(os.environ["KVTOOL_GPU_FOLDER"]), os.environ["KVTOOL_GPU_PIECE"]
    journal = Journal(Store(folder, Path(os.environ["KVTOOL_GPU_SPARE"])), piece)
    (folder / piece).mkdir(parents=True, exist_ok=True)
    stacks = (folder / piece / f"stacks-{os.getpid()}.txt").open("w")
    behind = frozenset(json.loads(Path(os.environ["KVTOOL_GPU_BEHIND"]).read_bytes()))
    config.pluginmanager.register(Watch(journal, stacks, behind), "watch of a run")
