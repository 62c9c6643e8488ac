"""What a scenario of a benchmark adds to its case: hits asked for and counted, what they saved, what the pool did."""

from __future__ import annotations

import msgspec

from kvtool.results.document import Struct

SHARED, KEPT = -1, -2  # in place of a request, of pages that several hold, or none any more


class TierUse(Struct, frozen=True, kw_only=True):
    """Of one tier below the pool over all requests; bytes are those moved into it and out of it. `stall_s` is how long
    steps waited for it; `recomputed_tokens` it had, but computing them was faster."""

    tier: str
    hit_tokens: int
    bytes_in: int
    bytes_out: int
    stall_s: float
    recomputed_tokens: int = 0


class Saved(Struct, frozen=True, kw_only=True):
    """Of the cached arm against the uncached one, over the same requests.

    Milliseconds are the median of paired differences with their 95 % bootstrap interval. `repeat_ms` is the same of the
    cached arm against its own repeat: what two runs of one thing differ by. FLOPs are those of prefill, `flops_ratio`
    the share of all of them; they and the bytes are of one iteration.
    """

    ttft_ms: float
    ttft_ms_ci_low: float
    ttft_ms_ci_high: float
    ttft_ratio: float
    repeat_ms: float | None
    repeat_ms_ci_low: float | None
    repeat_ms_ci_high: float | None
    flops: int
    flops_ratio: float
    kv_bytes_not_written: int


class Workload(Struct, frozen=True, kw_only=True):
    """Counts are of one iteration of the cached arm, by the allocator's own counters.

    `hit_rate_requested` is what was asked for, or what the scenario's prompts have by their making, and
    `hit_tokens_expected` the tokens that makes in a pool that evicts nothing: found exactly so where `hits_exact`, and
    fewer where one request may come before another has computed what both share. `hit_tokens` are found when a request
    is first admitted; `recomputed_tokens` were computed once more after it had given way. `occupancy` tells at which
    second so many pages were in use, by running requests and as cached prefixes, `held` by running requests alone.
    `map` has runs of pages, [first page, pages, owner], when running requests held the most: an owner is a request in
    the order of the samples, -1 several, -2 none that still runs.
    `kept_below`: what left the pool stayed in one of the `tiers`, so that all of it was found there or computed because
    that was faster.
    """

    scenario: str
    policy: str
    admission: str
    preemption: str
    scale: str
    hit_rate_requested: float
    hit_rate_measured: float
    hit_tokens_expected: int
    hits_exact: bool
    hit_tokens: int
    recomputed_tokens: int
    prompt_tokens: int
    evicted_pages: int
    preemptions: int
    copied_pages: int
    tiers: list[TierUse]
    kept_below: bool = False
    occupancy: list[tuple[float, int]]
    held: list[tuple[float, int]]
    map: list[tuple[int, int, int]] = msgspec.field(default_factory=list)
    goodput_ratio: float | None
    saved: Saved
