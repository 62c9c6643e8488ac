"""Rows of what was timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from kvtool.results import TierRate, TierRow
from kvtool.results.summary import summarise


@dataclass(frozen=True, slots=True, kw_only=True)
class What:
    """What a row is about: its tier, what moved, how and where to."""

    tier: str
    direction: str
    method: str
    size: str
    size_bytes: int
    queue_depth: int = 1
    streams: int = 1
    remark: str = ""


def tier_row(
    what: What,
    rates: Sequence[float],
    *,
    latency_s: Sequence[float],
    device_s: float,
    host_s: float,
    product_slowdown: float | None = None,
) -> TierRow:
    """`rates` are bytes a second of each round."""
    summary = summarise([rate / 1e9 for rate in rates])
    assert summary is not None
    return TierRow(
        tier=what.tier,
        direction=what.direction,
        method=what.method,
        size=what.size,
        size_bytes=what.size_bytes,
        queue_depth=what.queue_depth,
        streams=what.streams,
        gbps=TierRate(p50=summary.p50, p90=summary.p90, n=summary.n),
        latency_us=1e6 * median(latency_s),
        device_s=device_s,
        host_s=host_s,
        measured=True,
        product_slowdown=product_slowdown,
        remark=what.remark,
    )
