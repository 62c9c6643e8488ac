"""A plugin of pytest that tells a journal of every test, bounds its time, and ends a process that has lost its card."""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Iterator
from typing import IO, Any

import pytest

from tools.gpu.cases import CUDA_LOST, text_is_cuda_error
from tools.gpu.journal import DONE, FAILED, SKIPPED, STARTED, Event, Journal

TEST_S = 60.0


class Watch:
    """Of a process that runs each `of`-th test, from `number` on, but for those that its journal knows the end of."""

    def __init__(self, journal: Journal, stacks: IO[str], number: int = 0, of: int = 1) -> None:
        self.journal, self.stacks, self.number, self.of = journal, stacks, number, of
        self.reports: list[pytest.TestReport] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Of those that are left once pytest has chosen by marks."""
        behind = self.journal.ended()
        mine = [item for item in items[self.number :: self.of] if item.nodeid not in behind]
        config.hook.pytest_deselected(items=[item for item in items if item not in mine])
        items[:] = mine

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
                sys.stdout.flush()
                os._exit(CUDA_LOST)

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


def error_line(text: str) -> str:
    """Of a traceback, the line that says what went wrong: pytest marks it with an E."""
    marked = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return marked[0] if marked else text.strip().rpartition("\n")[2]
