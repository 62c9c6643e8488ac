"""Clocks that wait for the device, warm-up until steady, repeated timing of one call. Knows no engine and no case."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

Call = Callable[[], object]
CallTimer = Callable[[Call], float]
"""Runs a call once and returns the seconds it took on the device."""

STEADY_CV = 0.05
STEADY_WINDOW = 4
STEADY_AT_MOST = 2 * STEADY_WINDOW  # calls to wait for a steady window, at least
HOLD_CYCLES = 1_000_000  # of a GPU: half a millisecond, in which a CPU submits a graph or some hundred kernels


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
            torch.cuda._sleep(HOLD_CYCLES)  # the call is submitted behind it, so that none of that is in the time
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


@dataclass(frozen=True, slots=True)
class Contender:
    """A call to time. `flush` runs untimed before each measured call, to empty the caches."""

    call: Call
    flush: Call | None = None


@dataclass(frozen=True, slots=True)
class Timed:
    """`seconds` of each measured call of one contender, after its warm-up."""

    seconds: list[float]
    warm_up: WarmUp


def time_in_turns(
    contenders: Sequence[Contender],
    *,
    device: str,
    warmup: int,
    iterations: int,
    timer: CallTimer | None = None,
) -> list[Timed]:
    """Each contender warmed up for `warmup` calls or more (until steady), then `iterations` rounds of all of them.

    Every second round goes backwards: a burst of the neighbours hits all alike, and nobody always comes first.
    `timer` defaults to the device's own.
    """
    timer = timer or call_timer(device)
    at_most = max(4 * warmup, STEADY_AT_MOST) if warmup else 0
    timed = [Timed([], warm_up(each.call, timer=timer, at_least=warmup, at_most=at_most)) for each in contenders]
    entered = list(zip(contenders, timed, strict=True))
    for turn in range(iterations):
        for contender, result in entered if turn % 2 == 0 else reversed(entered):
            if contender.flush is not None:
                contender.flush()
            result.seconds.append(timer(contender.call))
    return timed
