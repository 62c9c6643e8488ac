"""The time of a call on a GPU whose second-level cache holds nothing of what it reads."""

from __future__ import annotations

from collections.abc import Callable

import torch

LEAST_FLUSH_BYTES = 64 << 20
HOLD_CYCLES = 1_000_000  # half a millisecond, in which the host submits any call


def cold_time_ms(call: Callable[[], object], device: torch.device) -> float:
    """Once, after the cache was filled by a read, which leaves nothing to be written back. The call is submitted behind
    a kernel that waits, so that the time is the device's and not the host's."""
    with torch.cuda.device(device):
        torch.empty(_flush_bytes(device) // 4, device=device).sum()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(HOLD_CYCLES)
        start.record()
        call()
        end.record()
        end.synchronize()
    return float(start.elapsed_time(end))


def _flush_bytes(device: torch.device) -> int:
    return max(LEAST_FLUSH_BYTES, 3 * int(torch.cuda.get_device_properties(device).L2_cache_size))
