"""The most memory a case used, where the device tells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch


def peak_memory(device: torch.device) -> Callable[[], int | None]:
    """Start watching; the returned function gives the peak bytes since then, of the process on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: torch.cuda.max_memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark of resident memory
    except OSError:
        return lambda: None
    return _resident_peak


def _resident_peak() -> int | None:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
