"""How much of this machine's processors others used while we measured.

Two threads beside another busy process wait for each other at every barrier, so that a step takes many times as long.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
IDLE_FIELDS = (3, 4)  # of a processor's line: idle, and idle while waiting for a disk
COUNTED_FIELDS = 8  # guests' time, which follows, is in user's already


@dataclass(frozen=True, slots=True)
class Usage:
    """Seconds so far: on the wall, of all processors that we may use, and of this process and its children."""

    wall_s: float
    busy_s: float
    own_s: float


Reader = Callable[[], Usage | None]


class LoadMeter:
    """Counts from the moment it is made. `read` answers None where the system does not tell."""

    def __init__(self, read: Reader | None = None) -> None:
        self._read = read or read_usage
        self._start = self._read()

    def other_cores(self) -> float | None:
        """Processors that others kept busy since then, on average, a hypervisor's other guests included."""
        now = self._read()
        if self._start is None or now is None or now.wall_s <= self._start.wall_s:
            return None
        others_s = (now.busy_s - self._start.busy_s) - (now.own_s - self._start.own_s)
        return round(max(0.0, others_s) / (now.wall_s - self._start.wall_s), 2)


def read_usage() -> Usage | None:
    """As of now; None where there is no /proc/stat."""
    try:
        text = STAT.read_text()
    except OSError:
        return None
    if not hasattr(os, "sched_getaffinity"):
        return None
    times = os.times()
    ticks = busy_ticks(text, set(os.sched_getaffinity(0)))
    return Usage(
        wall_s=time.monotonic(),
        busy_s=ticks / os.sysconf("SC_CLK_TCK"),
        own_s=times.user + times.system + times.children_user + times.children_system,
    )


def busy_ticks(stat: str, cpus: set[int]) -> int:
    """Ticks in which these logical CPUs did anything, or were taken from this machine, as /proc/stat counts them."""
    total = 0
    for line in stat.splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cpus:
            counted = [int(field) for field in fields[:COUNTED_FIELDS]]
            total += sum(ticks for index, ticks in enumerate(counted) if index not in IDLE_FIELDS)
    return total
