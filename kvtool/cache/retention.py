"""How much a request wants its pages kept once it is gone."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from kvtool.cache.index.node import DEFAULT_PRIORITY
from kvtool.system.errors import KvtoolError


@dataclass(frozen=True, slots=True)
class Retention:
    """A priority of 0 (goes first) to 100, for `duration_s` after the pages are given back."""

    priority: int = DEFAULT_PRIORITY
    duration_s: float = inf

    def __post_init__(self) -> None:
        if not 0 <= self.priority <= 100:
            raise KvtoolError(f"priority {self.priority} must be from 0, which goes first, to 100")
        if not self.duration_s > 0:
            raise KvtoolError(f"a priority for {self.duration_s} s is none: give it more than 0 s")

    def __str__(self) -> str:
        return str(self.priority) if self.duration_s == inf else f"{self.priority}:{self.duration_s:g}"


def parse_retention(text: str) -> Retention:
    """`80`, or `80:30` for 30 s. Raises KvtoolError."""
    priority, colon, seconds = text.strip().partition(":")
    try:
        return Retention(int(priority), float(seconds) if colon else inf)
    except ValueError:
        raise KvtoolError(f"priority {text.strip()!r} is none: write 80, or 80:30 for 30 seconds") from None
