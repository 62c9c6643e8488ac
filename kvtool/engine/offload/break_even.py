"""Whether loading a prefix beats computing it, from what both took in this run so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import ceil
from statistics import median

WINDOW = 8  # last measurements that count
PROBE = 16  # every so many refusals in a row a tier is loaded from all the same, so that it is measured again


@dataclass(frozen=True, slots=True)
class Plan:
    """Pages to load first, pages to compute then, and pages behind those that are read meanwhile."""

    load: int
    compute: int = 0
    load_behind: int = 0


class BreakEven:
    """Seconds a page, as medians of the last few loads from each tier and of the last few prefills. What was not
    measured yet is taken to be free: the first load measures it.

    A prefill's time a token is taken as even, though it grows with the context: long prefixes are worth a little more.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._loads: dict[str, deque[float]] = {}
        self._prefills: deque[float] = deque(maxlen=WINDOW)
        self._refusals = 0

    def loaded(self, tier: str, pages: int, seconds: float) -> None:
        """So many pages came from `tier`, the wait for them included."""
        self._loads.setdefault(tier, deque(maxlen=WINDOW)).append(seconds / pages)

    def computed(self, tokens: int, seconds: float) -> None:
        """A step of prefills alone computed so many tokens."""
        self._prefills.append(seconds / tokens)

    def load_s(self, tier: str) -> float:
        """Of a page."""
        return median(self._loads[tier]) if tier in self._loads else 0.0

    def compute_s(self) -> float | None:
        """Of a page; None before any prefill."""
        return median(self._prefills) * self._block_size if self._prefills else None

    def plan(self, tiers: Sequence[str], *, room: int) -> Plan:
        """For pages that lie in `tiers`, one behind the other, of which `room` can be read while others are computed.

        Both ends at once pay where the disk's pages would take about as long either way, and a page is saved by it.
        """
        front = len(list(takewhile(lambda tier: tier == "dram", tiers)))
        rest, compute_s, load_s = len(tiers) - front, self.compute_s(), self.load_s("disk")
        if compute_s and load_s and "dram" not in tiers[front:]:
            compute = max(ceil(rest * load_s / (compute_s + load_s)), rest - room)
            both_s = max(compute * compute_s, (rest - compute) * load_s)
            if 0 < compute < rest and rest * min(compute_s, load_s) - both_s >= compute_s:
                return Plan(load=front, compute=compute, load_behind=rest - compute)
        return Plan(load=self.pages_worth_loading(tiers))

    def pages_worth_loading(self, tiers: Sequence[str]) -> int:
        """How many of the pages that lie in `tiers`, one behind the other, save the most time."""
        compute_s = self.compute_s()
        if compute_s is None:
            return len(tiers)
        saved, best, worth = 0.0, 0.0, 0
        for count, tier in enumerate(tiers, start=1):
            saved += compute_s - self.load_s(tier)
            if saved >= best:
                best, worth = saved, count
        self._refusals = 0 if worth == len(tiers) else self._refusals + 1
        return len(tiers) if self._refusals % PROBE == PROBE - 1 else worth


class AlwaysLoad(BreakEven):
    """Loading is what is measured, whatever it takes."""

    def plan(self, tiers: Sequence[str], *, room: int) -> Plan:
        return Plan(load=len(tiers))

    def load_s(self, tier: str) -> float:
        return 0.0
