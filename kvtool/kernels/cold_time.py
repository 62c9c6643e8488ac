"""The time of a call on a GPU whose second-level cache holds nothing of what it reads."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch

CALLS = 15
LEAST_FLUSH_BYTES = 64 << 20


def cold_time_ms(call: Callable[[], object], device: torch.device) -> float:
    """Median over CALLS. Before each the cache is filled by a read, which leaves nothing to be written back, and takes
    longer than it takes to ask for the call: so the time is the device's, not the host's."""
    with torch.cuda.device(device):
        filler = torch.zeros(_flush_bytes(device) // 4, device=device)
        call()  # compiles
        call()
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(CALLS)]
        for start, end in events:
            filler.sum()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize(device)
    return float(median(start.elapsed_time(end) for start, end in events))


def _flush_bytes(device: torch.device) -> int:
    return max(LEAST_FLUSH_BYTES, 3 * int(torch.cuda.get_device_properties(device).L2_cache_size))
