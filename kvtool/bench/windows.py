"""How fast memory reads right beside each iteration of a case.

A virtual CPU moves: its host may run two of them on two chiplets, each with a link to memory of its own, on one, or on
the threads of one core, and for seconds on end the same machine reads twice as fast as before. A limit measured once
says nothing of the seconds in which a case ran, so reads take turns with its iterations.
"""

from __future__ import annotations

from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

from kvtool.bench.roofline import Ceiling, Kernel, best_rate, race, read_buffer, read_kernels
from kvtool.bench.timers import CallTimer, call_timer, is_cuda

if TYPE_CHECKING:
    import torch

FASTEST = 2  # kernels that take turns in a window


class ReadWindows:
    """Short races of the kernels that read fastest in `ceiling`. On a GPU, whose memory is its own, there are none."""

    def __init__(self, device: str, dtype: torch.dtype, ceiling: Ceiling) -> None:
        self._timer = call_timer(device)
        self._kernels: list[Kernel] = []
        self._rates: list[float] = []
        self.buffer_bytes = 0
        reads = {name: rate for name, rate in ceiling.kernels.items() if name.startswith("read")}
        if reads and not is_cuda(device):
            names = sorted(reads, key=reads.__getitem__)[-FASTEST:]
            buffer = read_buffer(device, dtype, ceiling.read_buffer_bytes)
            self._kernels = [kernel for kernel in read_kernels(buffer) if kernel.name in names]
            self.buffer_bytes = buffer.nbytes

    def measure(self) -> None:
        """One window, of a few reads."""
        if self._kernels:
            self._rates.append(window_rate(self._kernels, self._timer))

    def take(self) -> float | None:
        """The case's own limit in GB/s, None where there were no windows; the next case starts afresh."""
        rates, self._rates = self._rates, []
        return beside(rates) / 1e9 if rates else None


def window_rate(kernels: list[Kernel], timer: CallTimer) -> float:
    """Bytes per second of the best kernel, as the median of WINDOW turns."""
    return max(best_rate(rates) for rates in race(kernels, timer=timer, seconds=0.0).values())


def beside(rates: list[float]) -> float:
    """Of windows before, between and after iterations: the median over iterations of the better of its two neighbours.

    As a case's TPOT is a median, a change of speed half way through moves both alike.
    """
    return median(max(pair) for pair in pairwise(rates)) if len(rates) > 1 else rates[0]
