"""What each tier gave and took."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TierCounters:
    """Since the start. Bytes are of pages: `bytes_in` moved down into the tier, `bytes_out` up from it. `stall_s` is
    how long steps waited for it; `recomputed_tokens` it had, but computing them was faster."""

    tier: str
    hit_tokens: int
    bytes_in: int
    bytes_out: int
    stall_s: float
    recomputed_tokens: int


@dataclass(slots=True)
class TierCount:
    """The running count of one tier."""

    tier: str
    hit_tokens: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    stall_s: float = 0.0
    recomputed_tokens: int = 0

    def snapshot(self) -> TierCounters:
        return TierCounters(
            tier=self.tier,
            hit_tokens=self.hit_tokens,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            stall_s=self.stall_s,
            recomputed_tokens=self.recomputed_tokens,
        )
