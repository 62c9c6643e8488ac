"""Short measurements of the CPU that take turns with the iterations of a case.

The speed of a virtual CPU changes while a case runs: the host moves it between chiplets, and for seconds it reads or
multiplies half as fast as before. A limit that was measured once therefore says nothing about a given iteration. The
limit of an iteration is measured just before it and just after it.

How much of a last-level cache is left by neighbours of the same host changes too, and sets how fast a step finds its
weights, though memory is as fast as before. So the weights themselves are read as well, at the ends of a window that
touch an iteration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod, sqrt
from typing import TYPE_CHECKING

from kvtool.machine.roofline import (
    CPU_PRODUCTS,
    Ceiling,
    Kernel,
    best_rate,
    matmul_kernel,
    product_name,
    race,
    read_buffer,
    read_kernels,
    weights_kernels,
)
from kvtool.machine.timers import CallTimer, call_timer, is_cuda

if TYPE_CHECKING:
    import torch

FASTEST = 2  # read kernels that take turns in a window
LONGEST_PRODUCT_S = 0.02


@dataclass(frozen=True, slots=True)
class Beside:
    """What the device did around an iteration: its limit, the better of both windows, and how fast the weights of a
    step were read, the geometric mean of both; None where nothing can read them."""

    limit: Ceiling
    weights_gbps: float | None


class Windows:
    """Short races of the kernels that were fastest in `ceiling`. On a GPU, whose memory is its own, there are none."""

    def __init__(self, device: str, dtype: torch.dtype, ceiling: Ceiling, weights: Sequence[torch.Tensor] = ()) -> None:
        """`weights` are what a step reads, in its order."""
        self._timer = call_timer(device)
        self._ceiling = ceiling
        self._reads: list[Kernel] = []
        self._products: list[Kernel] = []
        self._weights: list[Kernel] = []
        self._found: list[_Window] = []
        self.buffer_bytes = 0
        if ceiling.kernels and not is_cuda(device):
            buffer = read_buffer(device, dtype, ceiling.read_buffer_bytes)
            self.buffer_bytes = buffer.nbytes
            self._reads = fastest(read_kernels(buffer), ceiling, FASTEST)
            self._products = fastest(short_products(device, dtype, ceiling), ceiling, 1)
            self._weights = weights_kernels(weights)

    def measure(self) -> None:
        """One window, of a few reads and products."""
        if self._reads:
            first = self._weights_gbps()
            read, product = (race_rate(kernels, self._timer) for kernels in (self._reads, self._products))
            limit = replace(self._ceiling, read_gbps=read / 1e9, tflops=product / 1e12)
            self._found.append(_Window(first, limit, self._weights_gbps()))

    def take(self) -> list[Beside]:
        """What was found beside each iteration of the case that ended. The next case starts afresh."""
        found, self._found = self._found, []
        return [before.beside(after) for before, after in pairwise(found)]

    def _weights_gbps(self) -> float | None:
        return race_rate(self._weights, self._timer) / 1e9 if self._weights else None


@dataclass(frozen=True, slots=True)
class _Window:
    """The limit, between the weights' first reads and the last ones."""

    first_gbps: float | None
    limit: Ceiling
    last_gbps: float | None

    def beside(self, after: _Window) -> Beside:
        """The iteration between this one and that `after` it."""
        limit = self.limit.best_of(after.limit)
        if self.last_gbps is None or after.first_gbps is None:
            return Beside(limit, None)
        return Beside(limit, sqrt(self.last_gbps * after.first_gbps))


def fastest(kernels: list[Kernel], ceiling: Ceiling, count: int) -> list[Kernel]:
    """The `count` kernels that have the highest rates in `ceiling`."""
    return sorted(kernels, key=lambda kernel: ceiling.kernels.get(kernel.name, 0.0))[-count:]


def short_products(device: str, dtype: torch.dtype, ceiling: Ceiling) -> list[Kernel]:
    """The matrix products of `ceiling` that are over soon, at least the smallest."""
    known = [shape for shape in CPU_PRODUCTS if product_name(shape) in ceiling.kernels]
    short = [s for s in known if 2e-12 * prod(s) / ceiling.kernels[product_name(s)] < LONGEST_PRODUCT_S]
    return [matmul_kernel(device, dtype, shape) for shape in short or known[:1]]


def race_rate(kernels: list[Kernel], timer: CallTimer) -> float:
    """Work per second of the best kernel, as the median of WINDOW turns."""
    return max(best_rate(rates) for rates in race(kernels, timer=timer, seconds=0.0).values())
