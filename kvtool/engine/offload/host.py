"""The host tier: slots of one page each in one piece of host memory, pinned where a GPU copies.

A disk tier that kvikio serves has slots alone, on the device: no page passes through host memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvtool.cache.tiers.shelf import Key, Shelf
from kvtool.engine.offload.notices import Notices
from kvtool.machine.memory import available_bytes
from kvtool.units import MIB, format_bytes

STAGING_BYTES = 64 * MIB
LEAST_STAGING = 4


class HostTier:
    """`capacity` pages stay, the least recently used go first; further slots are for pages on their way.

    Every page that goes down or up passes through a slot, so a capacity of 0 is the staging pool of a disk tier alone.
    """

    def __init__(self, capacity: int, staging: int, slots: Tensor) -> None:
        self.capacity, self.staging, self.slots = capacity, staging, slots
        self.shelf = Shelf(capacity)
        self._slot_of: dict[Key, int] = {}
        self._free = list(range(capacity + staging - 1, -1, -1))

    def __contains__(self, key: Key) -> bool:
        return key in self._slot_of

    @property
    def num_free(self) -> int:
        return len(self._free)

    def slot(self, key: Key) -> int:
        return self._slot_of[key]

    def page(self, key: Key) -> Tensor:
        """uint8 [page_bytes]"""
        return self.slots[self._slot_of[key]]

    def put(self, keys: list[Key]) -> list[int]:
        """Slots for new keys, as many as are free; neighbours where it can be."""
        taken = sorted(self._free.pop() for _ in range(min(len(keys), len(self._free))))
        for key, slot in zip(keys, taken, strict=False):
            self._slot_of[key] = slot
            self.shelf.add(key)
        return taken

    def drop(self, key: Key) -> None:
        """Its slot is free again. Raises ValueError while the page is on its way."""
        if self.shelf.is_pinned(key):
            raise ValueError("a page on its way cannot be dropped")
        self.shelf.discard(key)
        self._free.append(self._slot_of.pop(key))

    def check(self) -> None:
        """Every slot is free once or holds one page."""
        self.shelf.check()
        held = sorted([*self._free, *self._slot_of.values()])
        assert held == list(range(self.capacity + self.staging)), "a slot is lost, or used twice"
        assert self._slot_of.keys() == set(self.shelf), "a page has no slot, or a slot no page"

    def __str__(self) -> str:
        return f"host tier of {self.capacity} pages and {self.staging} on their way, {self.num_free} slots free"


@dataclass(frozen=True, slots=True)
class SlotPlace:
    """Where the slots of a pool on `device` lie: in host memory unless `on_device`."""

    device: torch.device
    on_device: bool = False

    @property
    def memory(self) -> torch.device:
        return self.device if self.on_device else torch.device("cpu")

    def empty(self, slots: int, page_bytes: int) -> Tensor:
        """uint8 [slots, page_bytes]"""
        pinned = self.device.type == "cuda" and not self.on_device
        return torch.empty(slots, page_bytes, dtype=torch.uint8, device=self.memory, pin_memory=pinned)


def host_tier(
    dram_bytes: int | None, page_bytes: int, place: SlotPlace, notices: Notices, *, staged: bool
) -> HostTier | None:
    """The tier of so many bytes, staging slots within them. Where memory is refused only the staging slots are tried,
    for a disk tier (`staged`), with one warning; None where there is no memory for those either."""
    staging = max(LEAST_STAGING, STAGING_BYTES // page_bytes)
    capacity = (dram_bytes or 0) // page_bytes
    if dram_bytes is not None and not capacity:
        notices.warn("dram", f"host tier: {format_bytes(dram_bytes)} hold no page of {format_bytes(page_bytes)}")
    if capacity:
        try:
            return _allocated(capacity, min(staging, max(LEAST_STAGING, capacity)), page_bytes, place)
        except (MemoryError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            notices.warn("dram", f"host tier: memory was refused ({reason}); this run goes on without a host tier")
    if not staged:
        return None
    try:
        return _allocated(0, staging, page_bytes, place)
    except (MemoryError, RuntimeError):
        notices.warn("staging", "disk tier: no memory to stage its pages; this run goes on without a disk tier")
        return None


def _allocated(capacity: int, staging: int, page_bytes: int, place: SlotPlace) -> HostTier:
    """Raises MemoryError where the machine has not so much left: touching it would end the process."""
    needed = (capacity + staging) * page_bytes
    available = available_bytes(place.memory)
    if needed > available:
        raise MemoryError(f"{format_bytes(needed)} asked for, {format_bytes(available)} free")
    return HostTier(capacity, staging, place.empty(capacity + staging, page_bytes))
