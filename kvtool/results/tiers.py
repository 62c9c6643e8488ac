"""What the tiers below a block pool gave and took in a run."""

from __future__ import annotations

from kvtool.results.document import Struct


class TierUse(Struct, frozen=True, kw_only=True):
    """Of `tier` (dram | disk): `hit_tokens` were loaded, `recomputed_tokens` were there, but computing them was faster.
    Bytes of pages that moved down into the tier and up from it; `stall_s`: steps waited for it."""

    tier: str
    hit_tokens: int
    bytes_in: int
    bytes_out: int
    stall_s: float
    recomputed_tokens: int
