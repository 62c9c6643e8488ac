"""What a tiers document says, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvtool.report.cells import rate, ratio
from kvtool.results import BreakEvenRow, TierRow, TiersDocument
from kvtool.units import format_bytes, format_length


def findings(document: TiersDocument) -> list[str]:
    """The answers first, then why."""
    names = [name for name in dict.fromkeys(row.tier for row in document.rows) if name != "dram"]
    return [
        *map(_break_even, document.break_even),
        *_gathered(document.rows),
        *_product(document.rows),
        *(sentence for name in names for sentence in _depth(name, document.rows)),
    ]


def _break_even(row: BreakEvenRow) -> str:
    if row.prefix_tokens is None:
        return f"{row.tier}: loading never beats computing up to {format_length(row.up_to_tokens)} tokens"
    if row.prefix_tokens == row.points[0][0]:
        return f"{row.tier}: loading beats computing from the first page on"
    return f"{row.tier}: loading never pays below {row.prefix_tokens:,} tokens, and pays from there on"


def _gathered(rows: Sequence[TierRow]) -> Iterator[str]:
    for direction in ("down", "up"):
        speeds = {
            row.method: row.gbps.p50
            for row in rows
            if row.tier == "dram" and row.direction == direction and row.method in ("gathered pages", "page by page")
        }
        if len(speeds) == 2:
            times = speeds["gathered pages"] / speeds["page by page"]
            yield f"dram {direction}: gathered pages move {ratio(times)} as fast as page by page"


def _product(rows: Sequence[TierRow]) -> Iterator[str]:
    for row in rows:
        if row.product_slowdown is not None:
            yield f"dram {row.direction} beside a matrix product: {row.remark}"


def _depth(name: str, rows: Sequence[TierRow]) -> Iterator[str]:
    """What more requests in flight bring when full blocks are read."""
    read = [
        row for row in rows if (row.tier, row.direction, row.method, row.size) == (name, "up", "requests", "full block")
    ]
    if len(read) > 1:
        first, best = min(read, key=lambda row: row.queue_depth), max(read, key=lambda row: row.gbps.p50)
        with_few = "and more do not help" if best is first else f"{rate(first.gbps.p50)} with {first.queue_depth}"
        yield (
            f"{name}: blocks of {format_bytes(best.size_bytes)} are read at {rate(best.gbps.p50)} GB/s with "
            f"{best.queue_depth} in flight, {with_few}"
        )
