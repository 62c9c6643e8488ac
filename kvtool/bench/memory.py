"""The most memory a case used, where the device tells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch


def peak_memory(device: torch.device, *, apart_bytes: int = 0) -> Callable[[], int | None]:
    """Start watching; the returned function gives the peak bytes since then, of the process on a CPU.

    `apart_bytes` are held all the time for the measurement's own sake, and do not count.
    """
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
