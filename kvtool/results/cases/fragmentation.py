"""What the fragmentation part of `kvtool bench` found of one allocator under one stream of requests."""

from __future__ import annotations

from kvtool.results.document import Struct


class Fragmentation(Struct, frozen=True, kw_only=True):
    """Bytes are of one moment, when the most were used (the first such); ratios are of the pool, means over the steps
    while a request waited.

    reserved = used + internal: what allocations hold, what tokens fill of it, and what none fills (yet). `external`:
    what is free while the next request fits into it, but into no hole. `interrupted_requests`: how often one outgrew
    what was reserved, or had to give way. `map`: [offset_bytes, bytes, owner], an owner being a request, or -1 where
    several share.
    """

    allocator: str
    pool_bytes: int
    reserved_bytes: int
    used_bytes: int
    internal_bytes: int
    external_bytes: int
    largest_hole_bytes: int
    refused_requests: int
    interrupted_requests: int
    largest_batch: int
    completed_tokens: int
    steps: int
    used_ratio: float
    internal_ratio: float
    external_ratio: float
    map: list[tuple[int, int, int]]
