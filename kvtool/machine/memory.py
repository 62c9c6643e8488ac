"""The memory that a device has left, and the most that a case used of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch


def peak_memory(device: torch.device, *, apart_bytes: int = 0) -> Callable[[], int | None]:
    """Start watching; the returned function gives the peak bytes since then, of the process on a CPU.

    `apart_bytes` are held all the time for the measurement's own sake, and do not count.
    """
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: torch.cuda.max_memory_allocated(device) - apart_bytes
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark of resident memory
    except OSError:
        return lambda: None
    return lambda: _resident_peak(apart_bytes)


def _resident_peak(apart_bytes: int) -> int | None:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 - apart_bytes
    return None


def available_bytes(device: torch.device) -> int:
    """Memory that can still be had on the device."""
    import torch

    if device.type == "cuda":
        held_for_reuse = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held_for_reuse
    return min(int(psutil.virtual_memory().available), *_container_bytes(Path("/sys/fs/cgroup")))


def _container_bytes(cgroup: Path) -> list[int]:
    """What a container's memory limit leaves, by cgroup version 2 or 1; empty where there is no limit ("max"). File
    pages that nobody reads any more can be had too.
    """
    left = []
    for limit, used, statistics in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:
            fields = dict(line.split() for line in (cgroup / statistics).read_text().splitlines())
            held = int((cgroup / used).read_text()) - int(fields["inactive_file"])
            left.append(max(0, int((cgroup / limit).read_text()) - held))
        except (OSError, KeyError, ValueError):
            continue
    return left
