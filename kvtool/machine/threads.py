"""Which processors this process may use, and how many threads of it."""

from __future__ import annotations

from pathlib import Path

import psutil

from kvtool.errors import KvtoolError


def usable_cpus() -> set[int]:
    """The logical CPUs this process may run on, which is fewer than the machine has under taskset or in a container."""
    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):
        return set(process.cpu_affinity())
    return set(range(psutil.cpu_count() or 1))


def check_threads(threads: int | None) -> None:
    """Raises KvtoolError for more threads than CPUs: they would wait for each other, and thousands halt a machine."""
    cpus = len(usable_cpus())
    if threads is not None and not 1 <= threads <= cpus:
        raise KvtoolError(f"--threads {threads}: this process may use {cpus} CPUs, so write 1 to {cpus}")


def default_threads(cores: int, cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """`cores` (torch's own choice: the physical ones this process may run on), or as many as a container's CPU quota
    pays for in whole: threads wait for each other, so one that is held back holds back all."""
    return max(1, min([cores, *_quota_cpus(cgroup)]))


def _quota_cpus(cgroup: Path) -> list[int]:
    """Whole CPUs of the quota by cgroup version 2 or 1; empty where there is none ("max", -1)."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((cgroup / f"cpu/cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return []
    return [int(quota) // int(period)] if quota.strip().isdigit() and int(period) > 0 else []
