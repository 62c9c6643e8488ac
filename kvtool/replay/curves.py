"""The hit rate of LRU at every capacity, from one replay.

LRU's cache is the top of a stack whose order no capacity changes: a request moves its path to the top, and what no
longer fits falls off below. So an access hits at all capacities from its distance on (what the stack holds down to its
block), and one pass that notes distances is a replay at every capacity. This is so of blocks of unequal bytes too, as
evicting stops with the first block that makes room: what is resident is always the longest top of the stack that fits.

Evicting the least recently used leaf is this stack with a path's tail below its head. Plain LRU, touched head to tail,
has the head below: a hit needs all of a run, and the stack may drop a head before its tail.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvtool.replay.accesses import Accesses
from kvtool.replay.loops.core import UNSEEN, Core, IntArray
from kvtool.replay.totals import Totals, totals

STACKS = {"lru": False, "lru-plain": True}  # policy -> whether a path's tail is newer than its head


@dataclass(frozen=True, slots=True)
class Knee:
    """Where more capacity begins to give less: the point furthest above the line from nothing to everything."""

    capacity: int
    block_hit_ratio: float


class Curve:
    """Hits at any capacity, in the unit of `sizes` (None: blocks), over requests from `first` on. A hit is a multiple
    of `match` blocks.
    """

    def __init__(
        self, core: Core, accesses: Accesses, policy: str, *, sizes: IntArray | None, first: int, match: int = 1
    ) -> None:
        self._accesses, self._first = accesses, first
        distances = core.lru_distances(accesses.walk(sizes), tail_last=STACKS[policy])
        self._distances = distances if match == 1 else _of_last_in_group(distances, accesses, match)
        counted = self._distances[accesses.starts[first] :]
        self._needed = np.sort(counted[counted != UNSEEN])
        self.total_blocks = len(counted)

    @property
    def full_capacity(self) -> int:
        """The capacity from which nothing more is hit; 0 where nothing ever is."""
        return int(self._needed[-1]) if len(self._needed) else 0

    def request_hits(self, capacity: int | None) -> IntArray:
        """Blocks that each request hits, int64 [requests]; None is no limit."""
        hit = self._distances != UNSEEN
        if capacity is not None:
            hit &= self._distances <= capacity
        before = np.concatenate(([0], np.cumsum(hit)))
        hits: IntArray = before[self._accesses.starts[1:]] - before[self._accesses.starts[:-1]]
        return hits

    def at(self, capacity: int | None) -> Totals:
        """All averages at one capacity; None is no limit."""
        return totals(self._accesses, self.request_hits(capacity), self._first)

    def hit_blocks(self, capacities: IntArray) -> IntArray:
        """Blocks hit at each of many capacities."""
        hits: IntArray = np.searchsorted(self._needed, capacities, side="right").astype(np.int64)
        return hits

    def knee(self) -> Knee | None:
        """None where nothing is hit at any capacity."""
        if not len(self._needed):
            return None
        share = np.arange(1, len(self._needed) + 1) / len(self._needed)
        best = int(np.argmax(share - self._needed / self.full_capacity))
        capacity = int(self._needed[best])
        hits = int(self.hit_blocks(np.array([capacity]))[0])
        return Knee(capacity=capacity, block_hit_ratio=hits / self.total_blocks)


def _of_last_in_group(distances: IntArray, accesses: Accesses, match: int) -> IntArray:
    """Of `match` blocks in a row the last needs most room and decides for all; a group that is not whole never hits."""
    begins = np.repeat(accesses.starts[:-1], accesses.lengths)
    ends = np.repeat(accesses.starts[1:], accesses.lengths)
    last = begins + (np.arange(len(distances)) - begins) // match * match + match - 1
    whole = last < ends
    return np.asarray(np.where(whole, distances[np.where(whole, last, 0)], UNSEEN), dtype=np.int64)
