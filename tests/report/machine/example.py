"""A tiers document made of round numbers."""

from __future__ import annotations

from kvtool.results import BreakEvenRow, TierRate, TierRow, TiersDocument, TierSpeed
from kvtool.units import KIB, MIB


def row(
    tier: str, direction: str, method: str, size_bytes: int, gbps: float, depth: int = 1, **more: object
) -> TierRow:
    given: dict[str, object] = {
        "size": "full block" if size_bytes == MIB else "chunk",
        "streams": depth,
        "latency_us": 100.0,
        "device_s": 1e-4,
        "host_s": 1e-5,
        "measured": True,
        "product_slowdown": None,
        "remark": f"of {tier}",
    }
    return TierRow(
        tier=tier,
        direction=direction,
        method=method,
        size_bytes=size_bytes,
        queue_depth=depth,
        gbps=TierRate(p50=gbps, p90=1.1 * gbps, n=7),
        **given | more,
    )


ROWS = [
    row("dram", "up", "copies", 8 * KIB, 1.0),
    row("dram", "up", "copies", MIB, 9.0),
    row("dram", "down", "gathered pages", MIB, 6.0, 32),
    row("dram", "down", "page by page", MIB, 2.0, 32),
    row("dram", "up", "beside a product", MIB, 4.0, 32, product_slowdown=1.25, remark="copies take 1.50x"),
    row("disk", "up", "requests", MIB, 0.5),
    row("disk", "up", "requests", MIB, 2.5, 16),
    row("disk", "down", "requests", MIB, 1.5),
    row("disk", "up", "requests", 8 * KIB, 0.1),
]
POINTS = [(16, 2.0, 1.0), (32, 3.0, 2.5), (64, 5.0, 6.0)]


def even(tier: str, prefix_tokens: int | None) -> BreakEvenRow:
    return BreakEvenRow(
        model="example/llama",
        tier=tier,
        prefix_tokens=prefix_tokens,
        up_to_tokens=64,
        load_ms=3.0,
        compute_ms=4.0,
        measured=True,
        points=POINTS,
    )


DOCUMENT = TiersDocument(
    environment={"device": "cpu"},
    definitions={"tier": "where pages lie"},
    assumptions=["a prefill goes on as it began"],
    inputs={"model": "example/llama", "block_size": 16, "kv_cache_dtype": "bf16", "device": "cpu"},
    rows=ROWS,
    tiers=[
        TierSpeed(tier="dram", up_gbps=20.0, down_gbps=18.0, latency_us=10.0, measured=True, remark=""),
        TierSpeed(tier="disk", up_gbps=2.5, down_gbps=1.5, latency_us=90.0, measured=True, remark=""),
    ],
    break_even=[even("dram", 16), even("disk", 48)],
)
