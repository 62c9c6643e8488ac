"""How long a measurement may take, and which of its iterations others disturbed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from kvtool.machine.other_load import LoadMeter
from kvtool.machine.threads import BUSY_CORES

SHORTEST_S = 0.1  # whose load can be told: the system counts times in hundredths of a second


@dataclass(slots=True)
class Budget:
    """Seconds for all cases, each of which gets an even share of what is left. `trims` says whether iterations are left
    out where a case's share is spent; iterations beyond those asked for are only made within it."""

    total_s: float = float("inf")
    num_cases: int = 1
    trims: bool = False
    clock: Callable[[], float] = time.monotonic
    _end_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._end_s = self.clock() + self.total_s

    @property
    def left_s(self) -> float:
        """Seconds until the end, 0 behind it."""
        return max(0.0, self._end_s - self.clock())

    def case(self, parts: int = 1, *, shares: int = 1) -> Budget:
        """Begin the next case, or one that counts as so many: its share, as a budget for so many parts of it."""
        share_s = self.left_s * min(1.0, shares / max(1, self.num_cases))
        self.num_cases -= shares
        return Budget(share_s, parts, trims=self.trims, clock=self.clock)

    def share(self) -> Callable[[], bool]:
        """Begin the next case: whether its share is not spent yet, when asked."""
        case = self.case()
        return lambda: case.left_s > 0

    def times(self, took_s: float) -> float:
        """How often what took so long can be done again in what is left; without end where nothing is trimmed."""
        return self.left_s / max(took_s, SHORTEST_S / 1e6) if self.trims else float("inf")


class Disturbance:
    """Of an iteration that begins when it is made. Too short a one tells nothing (None)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._start_s = clock, clock()
        self._meter = LoadMeter()

    def cores(self) -> float | None:
        """That others kept busy since then."""
        return self._meter.other_cores() if self._clock() - self._start_s >= SHORTEST_S else None


def is_disturbed(cores: float | None) -> bool:
    """Whether an iteration is to be measured again."""
    return cores is not None and cores >= BUSY_CORES
