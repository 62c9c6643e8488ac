"""Kernel calls one after another, each on pages of its own: ours or a peer's, as one CUDA graph where that can be."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from kvtool.machine.timers import Call, CallTimer, Contender, device_clock


@dataclass(frozen=True, slots=True)
class Pass:
    """`sweep` runs all of `num_calls`; `capture_s` is None where Python launches them."""

    sweep: Call
    num_calls: int
    capture_s: float | None

    def contender(self, flush: Call | None) -> Contender:
        return Contender(self.sweep, flush)


def make_pass(calls: Sequence[Call], device: torch.device, *, capture: bool) -> Pass:
    """A CUDA graph of the calls with `capture`. Raises what the capture raises."""
    if not capture:
        return Pass(partial(run_all, calls), len(calls), None)
    start = time.perf_counter()
    sweep = captured(calls, device)
    return Pass(sweep, len(calls), time.perf_counter() - start)


def run_all(calls: Sequence[Call]) -> None:
    """One pass through the working set."""
    for call in calls:
        call()


def captured(calls: Sequence[Call], device: torch.device) -> Call:
    """A pass as one CUDA graph: replaying it leaves the cost of launching from Python out."""
    with torch.cuda.device(device):
        run_all(calls)  # compiles what has not run yet, which a capture must not
        torch.cuda.synchronize()
        stream = torch.cuda.current_stream()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                run_all(calls)
        except BaseException:
            # A capture that fails to end leaves its own stream the current one.
            torch.cuda.set_stream(stream)
            raise
    return graph.replay


def within(seconds: float, calls: Sequence[Call], timer: CallTimer) -> Sequence[Call]:
    """As many of the calls, at least one, as take so long together."""
    spent_s = 0.0
    for count, call in enumerate(calls, 1):
        spent_s += timer(call)
        if spent_s >= seconds:
            return calls[:count]
    return calls


def first_call_s(call: Call, device: str) -> float:
    """Seconds on the wall of a call and all that it sets going: compiling, loading, allocating, then running."""
    now = device_clock(device)
    start = now()
    call()
    return now() - start


def cache_flush(device: str, num_bytes: int) -> Call:
    """Reads `num_bytes` of its own, so that nothing else is left in caches that are smaller. Leaves no dirty lines."""
    buffer = torch.zeros(num_bytes // 4, dtype=torch.float32, device=device)
    return buffer.sum
