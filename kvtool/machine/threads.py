"""Which processors this process may use, how many threads of it, and that each thread keeps its own."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path

import psutil

from kvtool.system.errors import KvtoolError

BUSY_CORES = 0.5  # of others, from which fewer threads may be faster
MASK = "KVTOOL_CPUS"
"""In the environment, the CPUs that this process might use before its first thread was bound to one: children inherit
that thread's mask, and this beside it."""

_OPENMP = ("OMP_", "GOMP_", "KMP_")
_NVIDIA = Path("/proc/driver/nvidia/version")
_TURNS = 9


def usable_cpus(environ: MutableMapping[str, str] = os.environ) -> set[int]:
    """The logical CPUs this process may run on, which is fewer than the machine has under taskset or in a container.

    Raises KvtoolError for a list in the environment that no kvtool wrote.
    """
    if MASK in environ:
        cpus = environ[MASK].split(",")
        if not all(cpu.isascii() and cpu.isdigit() and len(cpu) < 6 for cpu in cpus):
            raise KvtoolError(f"{MASK}={environ[MASK]!r} lists no CPUs: kvtool sets it for its children, so unset it")
        return set(map(int, cpus))
    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):
        return set(process.cpu_affinity())
    return set(range(psutil.cpu_count() or 1))


def bind_threads(
    threads: int | None, device: str, *, environ: MutableMapping[str, str] = os.environ, gpu: bool | None = None
) -> None:
    """Have OpenMP bind each thread to a core of its own; call it before torch is imported, later it does nothing.

    Beside a busy process, threads that may move share a core, and one spins through the time of the other. Bound are
    only threads that fill all CPUs: fewer of them, in two processes, would be bound to the same first cores. What the
    user says of OpenMP stays; the CPUs are then counted here, as it may bind the first thread. On a GPU nothing is
    bound.
    """
    if not hasattr(os, "sched_setaffinity") or "torch" in sys.modules:
        return
    if MASK in environ:  # of a parent whose first thread was bound
        set_mask(usable_cpus(environ))
        return
    on_gpu = device.startswith("cuda") or (device == "auto" and (_NVIDIA.exists() if gpu is None else gpu))
    cpus = usable_cpus(environ)
    fills = len(cpus) > 1 and (threads is None or threads >= len(cpus))
    before = {MASK: ",".join(map(str, sorted(cpus)))}
    if any(name.startswith(_OPENMP) for name in environ):
        environ.update(before)
    elif fills and not on_gpu:
        environ.update({**before, "OMP_PROC_BIND": "true", "OMP_PLACES": "cores"})


def set_mask(cpus: set[int]) -> None:
    """Let this thread, and processes that it starts, run on these CPUs; those that are gone meanwhile are left out."""
    try:
        os.sched_setaffinity(0, cpus)
    except OSError:
        return


def check_threads(threads: int | None) -> None:
    """Raises KvtoolError for more threads than CPUs: they would wait for each other, and thousands halt a machine."""
    cpus = len(usable_cpus())
    if threads is not None and not 1 <= threads <= cpus:
        may = "one CPU, so write 1" if cpus == 1 else f"{cpus} CPUs, so write 1 to {cpus}"
        raise KvtoolError(f"--threads {threads}: this process may use {may}")


def default_threads(cores: int, cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """`cores` (torch's own choice: the physical ones this process may run on), or as many as a container's CPU quota
    pays for in whole: threads wait for each other, so one that is held back holds back all."""
    return max(1, min([cores, *_quota_cpus(cgroup)]))


def threads_beside(
    other_cores: float | None, threads: int, seconds_of: Callable[[int], float] | None = None
) -> tuple[int, str | None]:
    """How many of `threads` to use where others keep `other_cores` busy, and in words why they are fewer: of all, of
    those that are left, and of one, the number that is fastest in short turns. `seconds_of` times one turn.
    """
    if other_cores is None or other_cores < BUSY_CORES or threads == 1:
        return threads, None
    choices = sorted({threads, max(1, threads - math.ceil(other_cores)), 1})
    best = _fastest(choices, seconds_of or _products_s)
    if best == 1:
        set_mask(usable_cpus())  # alone, it may go where the others are not
    measured = f"others keep {other_cores:.1f} cores busy: {best} of {threads} threads were fastest beside them"
    return best, f"{measured} (--threads N sets it)"


def _fastest(choices: Sequence[int], seconds_of: Callable[[int], float]) -> int:
    """The choice whose turns took the least time in all, turns interleaved; the fewest threads where two are equal.

    In all, not in the median: beside busy others most turns of several threads are short, and a few, in which one
    thread waits for its core and all others for it, are ten times as long.
    """
    turns = [[seconds_of(count) for count in choices] for _ in range(_TURNS)]
    return min(choices, key=lambda count: sum(turn[choices.index(count)] for turn in turns))


def _products_s(threads: int) -> float:
    """Seconds of 30 small products in a row, which all threads must end before the next begins, as in decoding."""
    import torch

    torch.set_num_threads(threads)
    weight, row = torch.ones(1024, 2048), torch.ones(1, 2048)
    start_s = time.perf_counter()
    for _ in range(30):
        torch.nn.functional.linear(row, weight)
    return time.perf_counter() - start_s


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
