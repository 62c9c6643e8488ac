"""Whole pages between the block pool and slots, each page one contiguous block of all layers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, groupby, pairwise
from math import gcd

import torch
from torch import Tensor

from kvtool.engine.offload.arrival import Arrival
from kvtool.kernels.pages import Pages
from kvtool.units import KIB

WORDS = {8: torch.int64, 4: torch.int32, 1: torch.uint8}
LEAST_COPY_BYTES = 256 * KIB  # of a page to a GPU: smaller ones leave much of the link unused


class PageCopies:
    """Copies of many pages at once.

    Down: on a GPU pages are gathered on the stream that computes, so that they may be reused at once, and go down on a
    stream of their own while steps compute. Up: by a thread, layer after layer, on a GPU as many layers together as
    make a copy worth it, on a stream of their own; what computes waits for the layer that it needs.
    """

    def __init__(self, layers: Sequence[Pages], slots: Tensor, clock: Callable[[], float] = time.perf_counter) -> None:
        """`slots` uint8 [num_slots, page_bytes] lies in host memory, pinned where the pool is on a GPU; or there."""
        tensors = [tensor for layer in layers for tensor in layer.tensors]
        self.device = tensors[0].device
        self._slots = slots
        self._clock = clock
        widths = [tensor[0].numel() * tensor.element_size() for tensor in tensors]
        size = max(size for size in WORDS if gcd(*widths) % size == 0)
        self._word = WORDS[size]
        self._parts = [tensor.view(len(tensor), -1).view(self._word) for tensor in tensors]
        self._columns = list(pairwise(accumulate((width // size for width in widths), initial=0)))
        self.page_bytes = sum(widths)
        on_gpu = self.device.type == "cuda"
        self._down, self._up = (torch.cuda.Stream(self.device) if on_gpu else None for _ in range(2))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kvtool-up")
        layer_of = [index for index, layer in enumerate(layers) for _ in layer.tensors]
        self._group_of = grouped(layer_of, widths, LEAST_COPY_BYTES if on_gpu else 1)
        self._groups = [list(found) for _, found in groupby(range(len(tensors)), lambda p: self._group_of[layer_of[p]])]

    @torch.inference_mode()
    def down(self, pages: Sequence[int], slots: Sequence[int]) -> Callable[[], None]:
        """Begin to copy `pages` into `slots`, which `ready`, the function returned, waits for in any thread. The pages
        may be overwritten at once."""
        blocks = self._gather(pages)
        if self._down is None:
            self._to_slots(blocks, slots)
            return _nothing
        self._down.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._down):
            self._to_slots(blocks, slots)
            landed: torch.cuda.Event = self._down.record_event()
        blocks.record_stream(self._down)
        return lambda: landed.synchronize()

    def up(self, slots: Sequence[int], pages: Sequence[int]) -> Arrival:
        """Begin to copy `slots` into `pages`, different ones. Nobody may write to the slots before all has arrived, nor
        use the pages of a layer before that has."""
        pairs = sorted(zip(slots, pages, strict=True))
        slots, pages = [slot for slot, _ in pairs], [page for _, page in pairs]
        if self._up is not None and self._down is not None:
            self._up.wait_stream(torch.cuda.current_stream(self.device))  # nobody reads what the pages held
            self._up.wait_stream(self._down)
        move = self._move_on_host if self._up is None else self._move_to_device
        groups = [self._thread.submit(move, parts, slots, pages) for parts in self._groups]
        return Arrival(groups, self._group_of, self._clock)

    def _move_on_host(self, parts: Sequence[int], slots: Sequence[int], pages: Sequence[int]) -> None:
        """By numpy: torch would bring a second team of threads beside the one that computes."""
        words = self._slots.view(self._word).numpy()
        for part in parts:
            start, stop = self._columns[part]
            self._parts[part].numpy()[pages] = words[slots, start:stop]

    @torch.inference_mode()
    def _move_to_device(self, parts: Sequence[int], slots: Sequence[int], pages: Sequence[int]) -> torch.cuda.Event:
        """Page by page what stands side by side in the host's blocks, and from there into the pool's tensors."""
        words, start, stop = self._slots.view(self._word), self._columns[parts[0]][0], self._columns[parts[-1]][1]
        with torch.cuda.stream(self._up):
            blocks = torch.empty(len(slots), stop - start, dtype=self._word, device=self.device)
            whole = stop - start == words.shape[1]
            for first, last, slot in runs(slots) if whole else ((i, i + 1, slot) for i, slot in enumerate(slots)):
                blocks[first:last].copy_(words[slot : slot + last - first, start:stop], non_blocking=True)
            index = torch.tensor(pages, device=self.device)
            for part in parts:
                left, right = self._columns[part]
                self._parts[part].index_copy_(0, index, blocks[:, left - start : right - start])
            landed = torch.cuda.Event(enable_timing=True)
            landed.record(self._up)
        return landed

    def _gather(self, pages: Sequence[int]) -> Tensor:
        """[len(pages), page_bytes] on the pool's device."""
        index = torch.tensor(pages, device=self.device)
        blocks = torch.empty(len(pages), self.page_bytes, dtype=torch.uint8, device=self.device)
        words = blocks.view(self._word)
        for (start, stop), tensor in zip(self._columns, self._parts, strict=True):
            words[:, start:stop].copy_(tensor.index_select(0, index))
        return blocks

    def _to_slots(self, blocks: Tensor, slots: Sequence[int]) -> None:
        for start, stop, slot in runs(slots):
            self._slots[slot : slot + stop - start].copy_(blocks[start:stop], non_blocking=True)

    def close(self) -> None:
        """Nothing may be begun afterwards."""
        self._thread.shutdown()


def grouped(layer_of: Sequence[int], widths: Sequence[int], least_bytes: int) -> list[int]:
    """The group of each layer: neighbours, as few as make up `least_bytes` of a page; the last group may have fewer.
    `layer_of` each tensor, and its bytes in a page."""
    groups, group, held = [], 0, 0
    for layer in range(layer_of[-1] + 1):
        groups.append(group)
        held += sum(width for of, width in zip(layer_of, widths, strict=True) if of == layer)
        if held >= least_bytes:
            group, held = group + 1, 0
    return groups


def runs(slots: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Stretches of consecutive slots: where each starts and stops in the list, and its first slot."""
    start = 0
    for stop in range(1, len(slots) + 1):
        if stop == len(slots) or slots[stop] != slots[stop - 1] + 1:
            yield start, stop, slots[start]
            start = stop


def _nothing() -> None:
    """What is copied on the CPU is there at once."""
