"""Whole pages between the block pool and slots of host memory, each page one contiguous block of all layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import gcd

import torch
from torch import Tensor

from kvtool.kernels.interface import Pages

WORDS = {8: torch.int64, 4: torch.int32, 1: torch.uint8}


class PageCopies:
    """Copies by runs of neighbouring slots, so that many pages are few copies.

    On a GPU pages are gathered on the stream that computes, so that they may be reused at once, and go down on a stream
    of their own while steps compute. Up they go whole, on the stream that computes, before the step that needs them.
    """

    def __init__(self, layers: Sequence[Pages], slots: Tensor) -> None:
        """`slots` uint8 [num_slots, page_bytes] lies in host memory, pinned where the pool is on a GPU."""
        tensors = [tensor for layer in layers for tensor in layer.tensors]
        self.device = tensors[0].device
        self._slots = slots
        widths = [tensor[0].numel() * tensor.element_size() for tensor in tensors]
        word = max(size for size in WORDS if gcd(*widths) % size == 0)
        self._parts = [tensor.view(len(tensor), -1).view(WORDS[word]) for tensor in tensors]
        self._word = WORDS[word]
        self.page_bytes = sum(widths)
        self._down = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

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

    @torch.inference_mode()
    def up(self, slots: Sequence[int], pages: Sequence[int]) -> None:
        """Copy `slots` into `pages`. Both may be used at once afterwards."""
        if self._down is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._down)
        blocks = torch.empty(len(slots), self.page_bytes, dtype=torch.uint8, device=self.device)
        for start, stop, slot in runs(slots):
            blocks[start:stop].copy_(self._slots[slot : slot + stop - start], non_blocking=True)
        index = torch.tensor(pages, device=self.device)
        for part, column in zip(self._parts, self._columns(blocks), strict=True):
            part.index_copy_(0, index, column)
        if self._down is not None:
            torch.cuda.current_stream(self.device).synchronize()

    def _gather(self, pages: Sequence[int]) -> Tensor:
        """[len(pages), page_bytes] on the pool's device."""
        index = torch.tensor(pages, device=self.device)
        blocks = torch.empty(len(pages), self.page_bytes, dtype=torch.uint8, device=self.device)
        for part, column in zip(self._parts, self._columns(blocks), strict=True):
            column.copy_(part.index_select(0, index))
        return blocks

    def _columns(self, blocks: Tensor) -> Iterator[Tensor]:
        """Where each tensor of the pool stands in a block."""
        words, start = blocks.view(self._word), 0
        for part in self._parts:
            yield words[:, start : start + part.shape[1]]
            start += part.shape[1]

    def _to_slots(self, blocks: Tensor, slots: Sequence[int]) -> None:
        for start, stop, slot in runs(slots):
            self._slots[slot : slot + stop - start].copy_(blocks[start:stop], non_blocking=True)


def runs(slots: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Stretches of consecutive slots: where each starts and stops in the list, and its first slot."""
    start = 0
    for stop in range(1, len(slots) + 1):
        if stop == len(slots) or slots[stop] != slots[stop - 1] + 1:
            yield start, stop, slots[start]
            start = stop


def _nothing() -> None:
    """What is copied on the CPU is there at once."""
