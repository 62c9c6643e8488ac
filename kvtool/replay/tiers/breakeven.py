"""From where on loading a prefix beats computing it."""

from __future__ import annotations

from kvtool.replay.saved import PrefillFloor
from kvtool.replay.tiers.plan import Links
from kvtool.results import ReplayBreakEven

PREFIX_TOKENS = (1024, 4096, 16384, 65536)
LONGEST_TOKENS = 1 << 20


def break_even_gbps(kv_bytes: float, flops: float, flops_per_s: float) -> float:
    """GB/s at which loading `kv_bytes` takes as long as computing them anew (Mooncake, FAST '25, eq. 2)."""
    return kv_bytes / (flops / flops_per_s) / 1e9


def transfer_s(num_bytes: float, gbps: float, latency_s: float) -> float:
    """Seconds of one transfer on an idle link."""
    return latency_s + num_bytes / (gbps * 1e9)


def break_even(floor: PrefillFloor, links: Links) -> list[ReplayBreakEven]:
    """For each tier and some prefixes: what loading and computing take, the speed at which they take the same, and the
    shortest prefix for which loading is faster (None: none of up to a million tokens is).
    """
    rows = []
    for place, tier in enumerate(links.tiers):
        assert tier.read_gbps is not None
        shortest = _shortest(floor, links, place)
        for tokens in PREFIX_TOKENS:
            blocks = -(-tokens // links.block_size)
            compute_s = floor.compute_s(0, tokens)
            rows.append(
                ReplayBreakEven(
                    tier=tier.name,
                    prefix_tokens=tokens,
                    load_ms=_load_s(links, place, blocks) * 1e3,
                    compute_ms=compute_s * 1e3,
                    break_even_gbps=break_even_gbps(
                        blocks * links.block_bytes, compute_s * floor.flops_per_s, floor.flops_per_s
                    ),
                    shortest_tokens=shortest,
                )
            )
    return rows


def _load_s(links: Links, place: int, blocks: int) -> float:
    return links.load_s([blocks if tier == place else 0 for tier in range(len(links.tiers))])


def _shortest(floor: PrefillFloor, links: Links, place: int) -> int | None:
    """A longer prefix gains more, as the latency counts less and attention grows: found by halves, in blocks."""
    low, high = 1, LONGEST_TOKENS // links.block_size

    def loads(blocks: int) -> bool:
        return _load_s(links, place, blocks) < floor.compute_s(0, blocks * links.block_size)

    if high < 1 or not loads(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if loads(middle) else (middle + 1, high)
    return low * links.block_size
