"""What bounds every policy at a capacity: content >= relaxed >= strict >= policy, and which of them holds one back.

content  whatever was seen before is there: no limit.
relaxed  the best choice of blocks with all requests known, each block for itself (Belady's MIN over requests).
strict   the same where a block counts only behind its whole prefix.

With blocks of one size relaxed and strict are the same number. A block's ancestors are used whenever it is, so none of
them is used later than it next, and MIN, which drops what is used last, can drop the deepest first: what it keeps for
a request is a prefix. With blocks of unequal bytes the best choice is a knapsack; relaxed is then the lower of two
bounds, and strict is not computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvtool.replay.accesses import Accesses
from kvtool.replay.loops.core import NEVER, Core, FloatArray, IntArray, NodeArray

ROUNDING = 1 + 1e-9  # a sum of many floats may come out a little high, and a bound must not come out low


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Blocks hit at one capacity; `strict` is None where it was not computed."""

    content: int
    relaxed: int
    strict: int | None


class Ceilings:
    """The ceilings of a trace at any capacity, over requests from `first` on, `sizes` as in core.py. A hit is a
    multiple of `match` blocks.
    """

    def __init__(self, core: Core, accesses: Accesses, *, sizes: IntArray | None, first: int, match: int = 1) -> None:
        self._core, self._accesses, self._sizes, self._first = core, accesses, sizes, first
        self._next: NodeArray = core.next_requests(accesses.walk(), first)
        self._intervals = None if sizes is None else self._costs(sizes)
        seen = np.bincount(self._next[self._next != NEVER])  # blocks of each request that an earlier one had
        self.content = int((seen // match * match).sum())

    def at(self, capacity: int | None) -> Ceiling:
        """None is no limit."""
        if capacity is None:
            return Ceiling(self.content, self.content, self.content)
        if self._sizes is None:
            most = self._minimum(capacity)
            return Ceiling(self.content, most, most)
        by_count = self._minimum(capacity // max(1, int(self._sizes.min())))
        return Ceiling(self.content, min(self.content, by_count, self._by_area(capacity)), None)

    def _minimum(self, capacity: int) -> int:
        hits = self._core.minimum(capacity, self._accesses.walk(), self._next)
        return int(hits[self._first :].sum())

    def _costs(self, sizes: IntArray) -> FloatArray:
        """Running sum of bytes x requests for which each hit must have kept its block, the cheapest first."""
        request = np.repeat(np.arange(self._accesses.num_requests), self._accesses.lengths)
        used_again = self._next != NEVER
        costs = (self._next - request)[used_again] * sizes[self._accesses.nodes[used_again]]
        return np.asarray(np.cumsum(np.sort(costs), dtype=np.float64))

    def _by_area(self, capacity: int) -> int:
        """Hits whose bytes x requests fit into the capacity over all gaps between requests, the cheapest first."""
        assert self._intervals is not None
        room = capacity * (self._accesses.num_requests - 1) * ROUNDING
        return int(np.searchsorted(self._intervals, room, side="right"))


def limited_by(hit_blocks: int, ceiling: Ceiling) -> str:
    """`none` where everything that was seen before is hit; else what stands further from it: `policy`, the gap to the
    best choice at this capacity, or `capacity`, the gap from there to no limit.
    """
    if hit_blocks >= ceiling.content:
        return "none"
    best = ceiling.relaxed if ceiling.strict is None else ceiling.strict
    return "policy" if best - hit_blocks > ceiling.content - best else "capacity"
