"""Tiers below the cache: what each gave and took, what that does to first tokens, and when computing is faster."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from kvtool.report.files import CsvValue
from kvtool.report.tables import Table
from kvtool.results import ReplayDocument, ReplayTiers
from kvtool.units import format_bytes, format_bytes_short, format_length, format_ms


def tier_tables(document: ReplayDocument) -> list[Table]:
    """A table a capacity, and the break-even; none without tiers."""
    return [*map(_tier_table, document.tiers), *([_break_even_table(document)] if document.break_even else [])]


def tier_sentences(document: ReplayDocument) -> Iterator[str]:
    """First tokens with the tiers, without them, and with loads that take no time."""
    for one in document.tiers:
        made = ", ".join(f"{count:,} {name}" for name, count in one.decisions.items() if name != "none")
        yield (
            f"Below {format_bytes(one.capacity_bytes)} tiers save {format_ms(one.ttft_saved_ms)} ms a request: the "
            f"mean first token comes after {format_ms(one.ttft_ms.mean)} ms, {format_ms(one.without_ttft_ms.mean)} "
            f"without them and {format_ms(one.oracle_ttft_ms.mean)} if loads took no time"
            f"{f' (requests: {made})' if made else ''}."
        )


def tier_rows(document: ReplayDocument) -> list[dict[str, CsvValue]]:
    """A row a capacity and tier."""
    return [
        {"cache_bytes": one.capacity_bytes, "write_policy": one.write_policy, **msgspec.structs.asdict(tier)}
        for one in document.tiers
        for tier in one.tiers
    ]


def _tier_table(one: ReplayTiers) -> Table:
    return Table(
        title=f"Below {format_bytes(one.capacity_bytes)}, --write-policy {one.write_policy}, loaded {one.loading}",
        columns=("tier", "capacity", "hit\ntokens", "loaded\ntokens", "read", "written", "written\n/ read", "stall\ns",
                 "busy %\nread", "busy %\nwrite"),
        rows=[
            (
                tier.tier,
                format_bytes_short(tier.capacity_bytes),
                f"{tier.hit_tokens:,}",
                f"{tier.loaded_tokens:,}",
                format_bytes_short(tier.bytes_read),
                format_bytes_short(tier.bytes_written),
                "-" if tier.write_amplification is None else f"{tier.write_amplification:.2f}",
                f"{tier.stall_s:,.2f}",
                f"{100 * tier.read_busy:.1f}",
                f"{100 * tier.write_busy:.1f}",
            )
            for tier in one.tiers
        ],
        labels=1,
        spare=("busy %\nwrite", "busy %\nread"),
    )  # fmt: skip


def _break_even_table(document: ReplayDocument) -> Table:
    return Table(
        title="Load or compute",
        columns=("tier", "prefix", "load\nms", "compute\nms", "same at\nGB/s", "loads faster\nfrom tokens"),
        rows=[
            (
                row.tier,
                format_length(row.prefix_tokens),
                format_ms(row.load_ms),
                format_ms(row.compute_ms),
                f"{row.break_even_gbps:.2f}",
                "never" if row.shortest_tokens is None else f"{row.shortest_tokens:,}",
            )
            for row in document.break_even
        ],
        labels=1,
    )
