"""How much of this machine's processors others used while we measured.

Two threads beside another busy process wait for each other at every barrier, so that a step takes many times as long.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from kvtool.machine.threads import usable_cpus

# Of a processor's times: idle, idle while waiting for a disk, and the guests', which are in user's already.
NOT_COUNTED = ("idle", "iowait", "guest", "guest_nice")


@dataclass(frozen=True, slots=True)
class Usage:
    """Seconds so far: on the wall, of all processors that we may use, and of this process and its children, such as
    ranks that live on."""

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
    """As of now; None where the system does not tell each processor's times."""
    busy = busy_s(psutil.cpu_times(percpu=True), usable_cpus())
    times = os.times()
    own_s = times.user + times.system + times.children_user + times.children_system + _living_children_s()
    return None if busy is None else Usage(wall_s=time.monotonic(), busy_s=busy, own_s=own_s)


def _living_children_s() -> float:
    """What children use that nobody has waited for yet: only then do a process's own times have theirs."""
    total_s = 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:  # gone meanwhile
            continue
        total_s += times.user + times.system
    return total_s


def busy_s(times: Sequence[Any], cpus: set[int]) -> float | None:
    """Seconds in which these logical CPUs did anything, or were taken from this machine. `times` are psutil's, one
    entry a processor that is online; None where a CPU has no entry."""
    if not cpus or max(cpus) >= len(times):
        return None
    return sum(
        sum(seconds for kind, seconds in times[cpu]._asdict().items() if kind not in NOT_COUNTED) for cpu in cpus
    )
