"""The time of a call on a GPU whose second-level cache holds nothing of what it reads."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch

CALLS = 15
FILLS = 4  # about 200 us in all: no launch takes a host as long
LEAST_FLUSH_BYTES = 64 << 20


def cold_time_ms(call: Callable[[], object], device: torch.device) -> float:
    """Median over CALLS. Before each the cache is filled by reads, which leave nothing to be written back, and take the
    device longer than the host takes to ask for the call: so what is timed is the device."""
    with torch.cuda.device(device):
        filler = torch.zeros(_flush_bytes(device) // 4, device=device)
        call()  # compiles
        call()
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(CALLS)]
        for start, end in events:
            for _ in range(FILLS):
                filler.sum()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize(device)
    return float(median(start.elapsed_time(end) for start, end in events))


def _flush_bytes(device: torch.device) -> int:
    return max(LEAST_FLUSH_BYTES, 3 * int(torch.cuda.get_device_properties(device).L2_cache_size))
