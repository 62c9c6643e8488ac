"""The load of others: what is busy on our processors, less what this process used."""

from __future__ import annotations

import time
from collections import namedtuple

import pytest

from kvtool.machine.other_load import LoadMeter, Usage, busy_s, read_usage
from kvtool.results.warnings import load_warnings

# As psutil tells them on Linux, in seconds; the guests' time is in user's already.
Times = namedtuple("Times", "user nice system idle iowait irq softirq steal guest guest_nice")
TIMES = [Times(100, 2, 20, 3000, 30, 0, 2, 10, 9, 9), Times(110, 3, 30, 2900, 20, 0, 3, 20, 0, 0)]


def test_seconds_of_our_processors_without_idle_and_guests() -> None:
    assert busy_s(TIMES, {0}) == 100 + 2 + 20 + 2 + 10
    assert busy_s(TIMES, {0, 1}) == 134 + 110 + 3 + 30 + 3 + 20
    assert busy_s(TIMES, {0, 2}) is busy_s([], {0}) is None, "a processor whose times are not told"


def meter(*readings: Usage | None) -> LoadMeter:
    return LoadMeter(iter(readings).__next__)


def test_others_are_what_is_busy_and_not_ours() -> None:
    start = Usage(wall_s=100.0, busy_s=1000.0, own_s=50.0)
    assert meter(start, Usage(wall_s=110.0, busy_s=1019.0, own_s=60.0)).other_cores() == 0.9
    assert meter(start, Usage(wall_s=110.0, busy_s=1019.0, own_s=69.0)).other_cores() == 0.0


def test_rounding_of_ticks_is_not_a_load() -> None:
    start = Usage(wall_s=0.0, busy_s=0.0, own_s=0.0)
    assert meter(start, Usage(wall_s=1.0, busy_s=0.99, own_s=1.0)).other_cores() == 0.0


def test_where_the_system_does_not_tell_nothing_is_said() -> None:
    known = Usage(wall_s=1.0, busy_s=0.0, own_s=0.0)
    assert meter(None, known).other_cores() is None
    assert meter(known, None).other_cores() is None
    assert meter(known, known).other_cores() is None
    assert load_warnings({"other_load_cores": None}) == load_warnings({}) == []


def test_a_warning_from_a_quarter_of_a_core() -> None:
    assert load_warnings({"other_load_cores": 0.24}) == []
    (line,) = load_warnings({"other_load_cores": 0.9})
    assert line.startswith("another process used 0.9 cores while this ran: ")


def test_our_own_work_is_not_another_s() -> None:
    """For real: what this process burns counts as its own, within what others do at the moment."""
    before = read_usage()
    if before is None:
        pytest.skip("the system does not tell")
    enough_s = time.process_time() + 0.3
    while time.process_time() < enough_s:
        pass
    after = read_usage()
    assert after is not None
    own_s = after.own_s - before.own_s
    assert own_s > 0.2
    assert after.busy_s - before.busy_s >= own_s - 0.05
