"""Clocks that wait for the device, warm-up until steady, repeated timing of one call. Knows no engine and no case."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

Call = Callable[[], object]
CallTimer = Callable[[Call], float]
"""Runs a call once and returns the seconds it took on the device."""

STEADY_CV = 0.05
STEADY_WINDOW = 4


@dataclass(frozen=True)
class WarmUp:
    """What was thrown away before measuring. `first_s` is the cold call: compilation, allocation, page faults."""

    first_s: float | None
    calls: int
    steady: bool


def is_cuda(device: str) -> bool:
    """Whether `device` (`cuda`, `cuda:1`, `cpu`) is a CUDA one."""
    return device.partition(":")[0] == "cuda"


def device_clock(device: str) -> Callable[[], float]:
    """Seconds on the wall, read after all work submitted to `device` has finished."""
    if not is_cuda(device):
        return time.perf_counter
    import torch

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def call_timer(device: str) -> CallTimer:
    """Times one call: CUDA events on a GPU (no launch latency in the figure), the wall clock elsewhere."""
    return _cuda_event_timer(device) if is_cuda(device) else _wall_timer


def _wall_timer(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _cuda_event_timer(device: str) -> CallTimer:
    import torch

    new_event: Callable[..., Any] = torch.cuda.Event

    def timer(call: Call) -> float:
        with torch.cuda.device(device):
            start, stop = new_event(enable_timing=True), new_event(enable_timing=True)
            start.record()
            call()
            stop.record()
            stop.synchronize()
        return float(start.elapsed_time(stop)) / 1e3

    return timer


def coefficient_of_variation(seconds: list[float]) -> float:
    """Standard deviation over mean; 0 for fewer than two samples or a zero mean."""
    mean = fmean(seconds) if len(seconds) > 1 else 0.0
    return pstdev(seconds) / mean if mean > 0 else 0.0


def warm_up(call: Call, *, timer: CallTimer, at_least: int, at_most: int | None = None) -> WarmUp:
    """Call until the last STEADY_WINDOW calls vary by less than STEADY_CV, between `at_least` and `at_most` times.

    The cold first call never counts towards steadiness. `at_most` defaults to `at_least`: exactly that many calls.
    """
    limit = at_least if at_most is None else max(at_least, at_most)
    seconds: list[float] = []
    steady = False
    while len(seconds) < limit and not (steady and len(seconds) >= at_least):
        seconds.append(timer(call))
        warm = seconds[1:][-STEADY_WINDOW:]
        steady = len(warm) == STEADY_WINDOW and coefficient_of_variation(warm) < STEADY_CV
    return WarmUp(first_s=seconds[0] if seconds else None, calls=len(seconds), steady=steady)


def time_samples(
    call: Call,
    *,
    device: str,
    warmup: int,
    iterations: int,
    flush: Call | None = None,
    timer: CallTimer | None = None,
) -> list[float]:
    """Seconds of each of `iterations` calls, after `warmup` to 4 x `warmup` calls (until steady).

    `flush` runs untimed before every measured call, to empty the caches. `timer` defaults to the device's own.
    """
    timer = timer or call_timer(device)
    warm_up(call, timer=timer, at_least=warmup, at_most=4 * warmup)
    seconds = []
    for _ in range(iterations):
        if flush is not None:
            flush()
        seconds.append(timer(call))
    return seconds
