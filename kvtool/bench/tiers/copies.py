"""Host memory's rows: one copy or many, gathered pages or page by page, both ways at once, beside a matrix product."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from statistics import median
from typing import Any

import msgspec
import torch

from kvtool.bench.session import Step
from kvtool.bench.tiers.options import TiersOptions
from kvtool.bench.tiers.rows import What, tier_row
from kvtool.engine.offload.copies import PageCopies
from kvtool.engine.pool import KvPool
from kvtool.machine.device import device_errors
from kvtool.machine.roofline import matmul_kernel
from kvtool.machine.timers import Call, call_timer, is_cuda
from kvtool.results import TierRow
from kvtool.sizing.specs import CacheSpec
from kvtool.units import GIB, MIB, ceil_div, format_bytes

CPU_BYTES, GPU_BYTES = 256 * MIB, GIB  # on either side: more than caches hold
CALL_BYTES = 64 * MIB  # that many copies of a call move together
PAGES_A_CALL = 32
WINDOWS = 5
CPU_PRODUCT, GPU_PRODUCT = (1024, 1024, 1024), (8192, 8192, 8192)
NO_GPU = "from host memory to host memory: no GPU is measured"


class Sides:
    """A block pool on the device and slots in host memory, and plain buffers on both sides for copies of any size."""

    def __init__(self, specs: tuple[CacheSpec, ...], options: TiersOptions, device: torch.device) -> None:
        """Raises DeviceError where there is no memory."""
        cuda = device.type == "cuda"
        total = GPU_BYTES if cuda else CPU_BYTES
        page_bytes = sum(spec.page_bytes(options.block_size) for spec in specs)
        self.num_pages = max(PAGES_A_CALL, ceil_div(total, page_bytes))
        self.device = device
        with device_errors("allocating the memory to copy"):
            self.pool = KvPool(specs, self.num_pages, options.block_size, device)
            self.slots = torch.empty(self.num_pages, page_bytes, dtype=torch.uint8, pin_memory=cuda).fill_(1)
            self.copies = PageCopies(self.pool.layers, self.slots)
            self.near = torch.ones(total, dtype=torch.uint8, device=device)
        self.pinned = self.slots.view(-1)[:total]
        self.pageable = torch.ones(total, dtype=torch.uint8) if cuda else None
        self._places = count()

    def copy(self, size_bytes: int, depth: int, *, up: bool, pageable: bool = False) -> Call:
        """`depth` copies of one size, from and to places that move on."""
        far = self.pageable if pageable and self.pageable is not None else self.pinned
        source, target = (far, self.near) if up else (self.near, far)
        places = min(len(source), len(target)) // size_bytes

        def call() -> None:
            for place, _ in zip(self._places, range(depth), strict=False):
                start = place % places * size_bytes
                target[start : start + size_bytes].copy_(source[start : start + size_bytes], non_blocking=True)

        return call

    def gathered(self, *, up: bool) -> Call:
        """PAGES_A_CALL pages of the pool as the tiers move them."""

        def call() -> None:
            pages, slots = self._pages(), self._pages()
            if up:
                self.copies.up(slots, pages).finish()
            else:
                self.copies.down(pages, slots)()

        return call

    def page_by_page(self, *, up: bool) -> Call:
        """The same pages, each tensor of each page a copy of its own."""
        tensors = [
            tensor.view(self.num_pages, -1).view(torch.uint8) for part in self.pool.layers for tensor in part.tensors
        ]

        def call() -> None:
            for page, slot in zip(self._pages(), self._pages(), strict=True):
                start = 0
                for tensor in tensors:
                    row, block = tensor[page], self.slots[slot, start : start + tensor.shape[1]]
                    (row if up else block).copy_(block if up else row, non_blocking=True)
                    start += tensor.shape[1]

        return call

    def _pages(self) -> list[int]:
        """Every third page from somewhere on: few of them are neighbours, as in a pool that has been used."""
        start = next(self._places) * PAGES_A_CALL
        return [(start + 3 * page) % self.num_pages for page in range(PAGES_A_CALL)]


def copy_steps(options: TiersOptions, sizes: dict[str, int], sides: Sides) -> Iterator[Step[TierRow]]:
    """A step a row."""
    cuda = sides.device.type == "cuda"
    remark = "pinned" if cuda else NO_GPU
    for direction in ("down", "up") if cuda else ("up",):
        up, copies = direction == "up", partial(What, tier="dram", direction=direction)
        for size, size_bytes in [*sizes.items(), *(("chunk", chunk) for chunk in options.chunks)]:
            plain = partial(copies, method="copies", size=size, size_bytes=size_bytes, remark=remark)
            for depth in dict.fromkeys((1, max(1, CALL_BYTES // size_bytes))):
                yield _timed_step(plain(queue_depth=depth), sides.copy(size_bytes, depth, up=up), sides, options)
        if cuda:
            what = copies(method="pageable copies", size="chunk", size_bytes=CALL_BYTES, remark="not pinned")
            yield _timed_step(what, sides.copy(CALL_BYTES, 1, up=up, pageable=True), sides, options)
    yield from _page_steps(options, sizes["full block"], sides, remark)


def _page_steps(options: TiersOptions, page_bytes: int, sides: Sides, remark: str) -> Iterator[Step[TierRow]]:
    """Whole pages: gathered and one by one, both ways at once, beside a product."""
    many = PAGES_A_CALL
    pages = partial(What, tier="dram", size="full block", size_bytes=page_bytes, queue_depth=many, remark=remark)
    for direction in ("down", "up"):
        for method, call in (("gathered pages", sides.gathered), ("page by page", sides.page_by_page)):
            yield _timed_step(pages(direction=direction, method=method), call(up=direction == "up"), sides, options)
    both = pages(direction="both", method="gathered pages", streams=2)
    yield Step("dram, both ways at once", partial(_both_ways, both, sides, options))
    for direction in ("down", "up"):
        what = pages(direction=direction, method="beside a product")
        yield Step(f"dram {direction}, beside a product", partial(_beside_product, what, sides, options))


def _timed_step(what: What, call: Call, sides: Sides, options: TiersOptions) -> Step[TierRow]:
    title = f"{what.tier} {what.direction}, {what.method}, {format_bytes(what.size_bytes)} x {what.queue_depth}"
    return Step(title, partial(_timed, what, call, sides, options))


def _timed(what: What, call: Call, sides: Sides, options: TiersOptions) -> TierRow:
    """The call again and again: the device's time of each, and what the host spent on submitting it."""
    timer = call_timer(str(sides.device))
    timer(call)
    seconds: list[float] = []
    host_s, deadline = 0.0, time.perf_counter() + options.point_s
    while len(seconds) < WINDOWS or time.perf_counter() < deadline:
        began_s = time.process_time()
        seconds.append(timer(call))
        host_s += time.process_time() - began_s
    moved = what.size_bytes * what.queue_depth
    return tier_row(
        what,
        [moved / each for each in seconds],
        latency_s=seconds,
        device_s=sum(seconds) / len(seconds) / what.queue_depth,
        host_s=host_s / len(seconds) / what.queue_depth,
    )


@dataclass(slots=True)
class Together:
    """How often two calls ran in one window of time, and the seconds of this process's processors in it."""

    first: int
    second: int
    window_s: float
    cpu_s: float


def together(first: Call, second: Call, device: torch.device, seconds: float) -> Together:
    """`second` again and again in a thread, on its own stream, while `first` does the same here; each at least once."""
    over, counted = threading.Event(), 0

    def beside() -> None:
        nonlocal counted
        with _own_stream(device):
            while not (counted and over.is_set()):
                second()
                _settle(device)
                counted += 1

    thread = threading.Thread(target=beside)
    began_s, began_cpu_s, done = time.perf_counter(), time.process_time(), 0
    thread.start()
    while not done or time.perf_counter() - began_s < seconds:
        first()
        _settle(device)
        done += 1
    over.set()
    thread.join()
    return Together(done, counted, time.perf_counter() - began_s, time.process_time() - began_cpu_s)


@dataclass(frozen=True, slots=True)
class Alone:
    """Of one call: how many ran a second, and seconds of this process's processors each."""

    calls_per_s: float
    cpu_s: float


def alone(call: Call, device: torch.device, seconds: float) -> Alone:
    """The call again and again, at least once."""
    began_s, began_cpu_s, done = time.perf_counter(), time.process_time(), 0
    while not done or time.perf_counter() - began_s < seconds:
        call()
        _settle(device)
        done += 1
    return Alone(done / (time.perf_counter() - began_s), (time.process_time() - began_cpu_s) / done)


def _own_stream(device: torch.device) -> Any:
    return torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _both_ways(what: What, sides: Sides, options: TiersOptions) -> TierRow:
    window_s = options.point_s / WINDOWS
    down, up = sides.gathered(up=False), sides.gathered(up=True)
    windows = [together(down, up, sides.device, window_s) for _ in range(WINDOWS)]
    cpu_s = sum(each.cpu_s for each in windows)
    return _windows_row(what, [(each.first + each.second, each.window_s) for each in windows], cpu_s)


def _beside_product(what: What, sides: Sides, options: TiersOptions) -> TierRow:
    """Copies while a matrix product runs, and how much longer either takes for the other's sake."""
    window_s = options.point_s / WINDOWS
    cuda = is_cuda(str(sides.device))
    dtype = torch.bfloat16 if cuda else torch.float32
    product = matmul_kernel(str(sides.device), dtype, GPU_PRODUCT if cuda else CPU_PRODUCT).call
    copies = sides.gathered(up=what.direction == "up")
    product()
    lone: list[tuple[Alone, Alone]] = []
    windows: list[Together] = []
    for _ in range(WINDOWS):  # in turns, so that a neighbour's burst hits both
        lone.append((alone(copies, sides.device, window_s), alone(product, sides.device, window_s)))
        windows.append(together(copies, product, sides.device, window_s))
    copied_alone, multiplied_alone = (median(each[side].calls_per_s for each in lone) for side in (0, 1))
    product_cpu_s = median(multiplied.cpu_s for _, multiplied in lone)
    copied = median(each.first / each.window_s for each in windows)
    multiplied = median(each.second / each.window_s for each in windows)
    slower = multiplied_alone / multiplied
    remark = f"copies take {copied_alone / copied:.2f}x, the product {slower:.2f}x of their time alone"
    copies_cpu_s = sum(each.cpu_s - each.second * product_cpu_s for each in windows)
    row = _windows_row(replace(what, remark=remark), [(each.first, each.window_s) for each in windows], copies_cpu_s)
    return msgspec.structs.replace(row, product_slowdown=slower)


def _windows_row(what: What, windows: list[tuple[int, float]], cpu_s: float) -> TierRow:
    """Of calls and seconds of each window, and of all processor seconds that the calls took."""
    calls = sum(each for each, _ in windows)
    wall_s = sum(seconds for _, seconds in windows)
    moved = what.size_bytes * what.queue_depth
    return tier_row(
        what,
        [done * moved / seconds for done, seconds in windows],
        latency_s=[seconds / max(1, done) for done, seconds in windows],
        device_s=wall_s / max(1, calls) / what.queue_depth,
        host_s=max(0.0, cpu_s) / max(1, calls) / what.queue_depth,
    )
