"""Host memory over a disk: pages go down through both, and come up from where they lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from kvtool.cache.tiers.counters import TierCount
from kvtool.cache.tiers.shelf import Key
from kvtool.engine.offload.arrival import Arrival
from kvtool.engine.offload.break_even import BreakEven
from kvtool.engine.offload.copies import PageCopies
from kvtool.engine.offload.disk import DiskTier
from kvtool.engine.offload.host import HostTier

Reading = Future[str | None]


class Coming(NamedTuple):
    """What comes up into a page of the pool, from a slot where it is pinned: of which tier it is, and of which tier's
    speed loading it tells, None for none."""

    key: Key
    tier: str
    tells_of: str | None


class TierStack:
    """`exclusive`: a page that came up leaves host memory. Only one thread calls; the disk's threads move bytes alone.

    A page that leaves host memory and is not on the disk is written there before its slot is free.
    """

    def __init__(
        self,
        copies: PageCopies,
        host: HostTier,
        disk: DiskTier | None,
        *,
        exclusive: bool,
        break_even: BreakEven,
        clock: Callable[[], float],
    ) -> None:
        self.host, self.disk = host, disk
        self._copies = copies
        self._exclusive = exclusive
        self._break_even = break_even
        self.clock = clock
        self._batch = max(1, host.staging // 2)  # the other half is for what is read ahead
        self._ready: dict[Key, Callable[[], None]] = {}  # waits for the copy into the slot
        self._ahead: dict[Key, Reading] = {}
        self._coming: dict[int, Coming] = {}  # by page
        self._arrival: Arrival | None = None  # once that has begun
        self._fetch_s = 0.0  # that reading it took
        self.counts = {name: TierCount(name) for name in ("dram", "disk")}

    @property
    def holds_anything(self) -> bool:
        """False once nothing could be kept, because the only tier has failed."""
        return self.host.capacity > 0 or (self.disk is not None and self.disk.works)

    def tier_of(self, key: Key) -> str | None:
        """Where a page would be loaded from; None where it lies in no tier."""
        if key in self.host and key not in self._ahead:
            return "dram" if self.host.capacity else "disk"  # without capacity it is on its way to the disk
        return "disk" if key in self._ahead or (self.disk is not None and key in self.disk) else None

    def cost_of(self, key: Key) -> str:
        """The tier whose speed loading it goes at: what was read ahead is in host memory by now."""
        reading = self._ahead.get(key)
        return "dram" if key in self.host and (reading is None or reading.done()) else "disk"

    @property
    def room_ahead(self) -> int:
        """Pages that can be read ahead now."""
        return max(0, min(self._batch - len(self._ahead), self.host.num_free - self._batch))

    def is_kept(self, key: Key) -> bool:
        """Whether the first tier has the page, or the disk where that is all there is."""
        return key in self.host or (not self.host.capacity and self.disk is not None and self.disk.is_coming(key))

    def store(self, pages: Sequence[int], keys: Sequence[Key], *, through: bool) -> None:
        """Copy pages of the pool down, the last of them as the most recently used. `through` to the disk at once, else
        when host memory has no room for them."""
        if not self.holds_anything:
            return
        missing = [(page, key) for page, key in zip(pages, keys, strict=True) if not self.is_kept(key)]
        for start in range(0, len(missing), self._batch):
            self._store(missing[start : start + self._batch], through)

    def _store(self, missing: Sequence[tuple[int, Key]], through: bool) -> None:
        if any(page in self._coming for page, _ in missing):
            self.arrive()
        self._free_what_arrives(len(missing))
        start_s = self.clock()
        self._make_room(len(missing))
        self.counts["disk"].stall_s += self.clock() - start_s
        keys = [key for _, key in missing]
        slots = self.host.put(keys)
        if not slots:
            return
        ready = self._copies.down([page for page, _ in missing[: len(slots)]], slots)
        for key in keys[: len(slots)]:
            self._ready[key] = ready
            if through:
                self._write_down(key)
        if self.host.capacity:
            self.counts["dram"].bytes_in += len(slots) * self._copies.page_bytes
        self._trim()

    def moved_up(self, keys: Sequence[Key]) -> None:
        """The pool has these pages: an exclusive host memory gives its own up."""
        for key in keys:
            if self._exclusive and key in self.host and not self.host.shelf.is_pinned(key):
                self._drop(key)

    def write_all_down(self) -> None:
        """What host memory holds and the disk does not."""
        for key in list(self.host.shelf):
            if not self.host.shelf.is_pinned(key):
                self._write_down(key)

    def _write_down(self, key: Key) -> bool:
        """Begin to write a page of host memory to the disk, unless it is there; its slot stays until it has landed."""
        if self.disk is None or self.disk.is_coming(key):
            return False
        done, ready = lambda: self.host.shelf.unpin(key), self._ready.get(key, _at_once)
        if not self.disk.write(key, self.host.page(key), done=done, ready=ready):
            return False
        self.host.shelf.pin(key)
        self.counts["disk"].bytes_in += self._copies.page_bytes
        return True

    def _trim(self) -> None:
        """Bring host memory back within its capacity: what goes is dropped, or written to the disk first."""
        for key in self.host.shelf.victims():
            if not self._write_down(key):
                self._drop(key)

    def _drop(self, key: Key) -> None:
        self._ready.pop(key, _at_once)()
        self.host.drop(key)

    def _make_room(self, count: int) -> None:
        """Wait until so many slots are free, or nothing more will become free."""
        if self.disk is not None:
            self.disk.landed()
        self._trim()
        while self.host.num_free < count and self.disk is not None and self.disk.wait():
            self._trim()

    def load(self, keys: Sequence[Key], pages: Sequence[int], *, overlapped: bool = False) -> int:
        """Have what fills these pages of the pool in slots, in order, up to the first that cannot be had; how many can.
        They come up when the next step begins. What was read while others were computed (`overlapped`) says nothing of
        the disk's speed."""
        done = 0
        while done < len(keys):
            wanted = keys[done : done + self._batch]
            count = self._load(wanted, pages[done : done + len(wanted)], overlapped)
            done += count
            if count < len(wanted):
                break
        return done

    def _load(self, keys: Sequence[Key], pages: Sequence[int], overlapped: bool) -> int:
        self._free_what_arrives(sum(key not in self.host for key in keys))
        tiers, costs = [self.tier_of(key) for key in keys], [self.cost_of(key) for key in keys]
        start_s = self.clock()
        count = self._fetched(keys)
        fetch_s = self.clock() - start_s
        self.counts["disk"].stall_s += fetch_s
        self._fetch_s += 0.0 if overlapped else fetch_s
        for key, page, tier, cost in zip(keys[:count], pages, tiers, costs, strict=False):
            self._coming[page] = Coming(key, tier or "", None if overlapped else cost)
            self.counts[tier or ""].bytes_out += self._copies.page_bytes
        return count

    def comes_into(self, pages: Sequence[int]) -> bool:
        """Whether something is on its way into one of the pages."""
        return not self._coming.keys().isdisjoint(pages)

    def begin(self) -> Arrival | None:
        """Let what was loaded come up, the first layers first; None where nothing was."""
        if self._coming and self._arrival is None:
            self._arrival = self._copies.up([self.host.slot(one.key) for one in self._coming.values()], [*self._coming])
        return self._arrival

    def arrive(self) -> float:
        """Wait until all that was loaded is in the pool; how many seconds computing waited for it."""
        arrival = self.begin()
        if arrival is None:
            return 0.0
        waited_s, coming = arrival.finish(), [*self._coming.values()]
        for name in ("dram", "disk"):
            loaded, told = sum(one.tier == name for one in coming), sum(one.tells_of == name for one in coming)
            self.counts[name].stall_s += waited_s * loaded / len(coming)
            if told:
                fetch_s = self._fetch_s if name == "disk" else 0.0
                self._break_even.loaded(name, told, waited_s * told / len(coming) + fetch_s)
        self._coming, self._arrival, self._fetch_s = {}, None, 0.0
        self._let_go([one.key for one in coming])
        return waited_s

    def _free_what_arrives(self, count: int) -> None:
        """Where fewer slots are free, those of pages on their way are waited for."""
        if self.host.num_free < count:
            self.arrive()

    def _let_go(self, keys: Sequence[Key]) -> None:
        """They are in the pool: unpin them, the first as the most recently used, since the last go first."""
        for key in reversed(keys):
            self.host.shelf.unpin(key)
            self.host.shelf.touch(key)
        self.moved_up(keys)
        self._trim()

    def _fetched(self, keys: Sequence[Key]) -> int:
        """Have the pages in slots, pinned: how many of the first could be had."""
        self._make_room(sum(key not in self.host for key in keys))
        readings: list[Reading | None] = []
        for key in keys:
            reading = self._ahead.pop(key, None)
            if reading is None and key in self.host:
                self.host.shelf.pin(key)
            elif reading is None:
                reading = self._begin_read(key)
                if reading is None:
                    break
            readings.append(reading)
        whole = [self._finish_read(key, reading) for key, reading in zip(keys, readings, strict=False)]
        count = whole.index(False) if False in whole else len(whole)
        for key, is_whole in zip(keys[count:], whole[count:], strict=False):
            if is_whole:
                self.host.shelf.unpin(key)
        return count

    def _begin_read(self, key: Key) -> Reading | None:
        """Read a page from the disk into a slot, pinned; None where it is not there or no slot is free."""
        if self.disk is None or key not in self.disk or not self.host.put([key]):
            return None
        self.host.shelf.pin(key)
        return self.disk.read(key, self.host.page(key))

    def _finish_read(self, key: Key, reading: Reading | None) -> bool:
        """Whether its slot has the page; a slot without it is freed."""
        if reading is None:
            return True
        assert self.disk is not None
        if self.disk.finish_read(key, reading.result()):
            return True
        self.host.shelf.unpin(key)
        self._drop(key)
        return False

    def read_ahead(self, keys: Sequence[Key]) -> None:
        """Begin to read pages that will be loaded, as far as half of the staging slots go."""
        for key in keys:
            if key in self.host:
                continue
            if not self.room_ahead:
                break
            reading = self._begin_read(key)
            if reading is None:
                break
            self._ahead[key] = reading

    def forget_ahead(self, keys: Sequence[Key]) -> None:
        """They were not loaded after all: their slots are host memory's to keep, or free."""
        for key in keys:
            reading = self._ahead.pop(key, None)
            if reading is not None and self._finish_read(key, reading):
                self.host.shelf.unpin(key)
        self._trim()

    def settle(self) -> None:
        """Wait until what moves has landed, and what host memory need not keep is gone."""
        self.arrive()
        while self.disk is not None and self.disk.wait():
            pass
        self._trim()

    def reset(self) -> None:
        """Forget every page, and count from 0."""
        self.forget_ahead(list(self._ahead))
        self.settle()
        for key in list(self.host.shelf):
            self._drop(key)
        if self.disk is not None:
            self.disk.reset()
        self.reset_counters()

    def reset_counters(self) -> None:
        """Count from 0."""
        self.counts = {name: TierCount(name) for name in self.counts}

    def close(self) -> None:
        """Wait for every write."""
        self.arrive()
        self._copies.close()
        if self.disk is not None:
            self.disk.close()

    def check(self) -> None:
        """Slots, shelves and what is on its way agree."""
        self.host.check()
        assert all(key in self.host for key in self._ahead), "a page that is read ahead has no slot"
        assert all(self.host.shelf.is_pinned(one.key) for one in self._coming.values()), "a slot on its way up is free"
        if self.disk is not None:
            self.disk.check()


def _at_once() -> None:
    """Nothing is on its way into the slot."""
