"""Tiers below the cache: what each gave and took, what that does to first tokens, and when computing is faster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from kvtool.report.files import CsvValue
from kvtool.report.replay.rows import flat_times
from kvtool.report.tables import Table
from kvtool.results import ReplayDocument, ReplayTiers
from kvtool.units import format_bytes, format_bytes_short, format_length, format_ms


def tier_tables(document: ReplayDocument) -> list[Table]:
    """The clock, a table a capacity with tiers below, and the break-even; none without a clock."""
    if not document.tiers:
        return []
    below = [_tier_table(one) for one in document.tiers if one.tiers]
    return [_clock_table(document.tiers), *below, *([_break_even_table(document)] if document.break_even else [])]


def tier_sentences(document: ReplayDocument) -> Iterator[str]:
    """First tokens with the tiers, without them, and with loads that take no time; and from where on they end to give
    more, or wear out.
    """
    for one in document.tiers:
        if one.ttft_p50_range_ms is not None:
            low, high = (format_ms(value) for value in one.ttft_p50_range_ms)
            yield (
                f"With {format_bytes(one.capacity_bytes)} the median first token comes after "
                f"{format_ms(one.ttft_ms.p50)} ms, from {low} to {high} at the ends of what was measured."
            )
        if one.preemptions:
            yield (
                f"With {format_bytes(one.capacity_bytes)} memory ended {one.preemptions:,} times: "
                f"{one.recomputed_tokens:,} tokens of requests that gave way were computed again."
            )
        if not one.tiers:
            continue
        made = ", ".join(f"{count:,} {name}" for name, count in one.decisions.items() if name != "none")
        yield (
            f"Below {format_bytes(one.capacity_bytes)} tiers save {format_ms(one.ttft_saved_ms)} ms a request: the "
            f"mean first token comes after {format_ms(one.ttft_ms.mean)} ms, {format_ms(one.without_ttft_ms.mean)} "
            f"without them and {format_ms(one.oracle_ttft_ms.mean)} if loads took no time"
            f"{f' (requests: {made})' if made else ''}."
        )
        yield (
            f"From {format_bytes(one.full_tier_bytes)} on, {one.tiers[0].tier} below "
            f"{format_bytes(one.capacity_bytes)} gives nothing more: all that was seen before hits."
        )
        if one.useful_read_ratio is not None and one.useful_read_ratio < 1:
            yield f"Of the bytes that were read {100 * one.useful_read_ratio:.1f} % were used: the rest came too late."
        yield from (
            f"{tier.tier} is written over {tier.full_writes_per_day:.3g} times a day."
            for tier in one.tiers
            if tier.tier == "disk" and tier.full_writes_per_day
        )


def tier_rows(document: ReplayDocument) -> list[dict[str, CsvValue]]:
    """A row a capacity and tier."""
    return [
        {"cache_bytes": one.capacity_bytes, "write_policy": one.write_policy, **msgspec.structs.asdict(tier)}
        for one in document.tiers
        for tier in one.tiers
    ]


def clock_rows(document: ReplayDocument) -> list[dict[str, CsvValue]]:
    """A row a capacity of the GPU's cache; times have a column a percentile."""
    return [flat_times(one) for one in document.tiers]


def _clock_table(tiers: Sequence[ReplayTiers]) -> Table:
    """A row a capacity of the GPU's cache."""
    with_goal = any(one.goodput_ratio is not None for one in tiers)
    return Table(
        title="On the clock",
        columns=("cache", "TTFT ms\np50", "TTFT ms\np99", "TPOT ms\nmean", "E2E ms\nmean",
                 *(("goodput\n%",) if with_goal else ()), "hit\ntokens", "no room\ntokens", "too late\ntokens"),
        rows=[
            (
                format_bytes_short(one.capacity_bytes),
                format_ms(one.ttft_ms.p50),
                format_ms(one.ttft_ms.p99),
                "-" if one.tpot_ms is None else format_ms(one.tpot_ms.mean),
                format_ms(one.e2e_ms.mean),
                *((f"{100 * (one.goodput_ratio or 0):.1f}",) if with_goal else ()),
                f"{one.hit_tokens:,}",
                f"{one.cut_tokens:,}",
                f"{one.missed_tokens + one.late_tokens:,}",
            )
            for one in tiers
        ],
        labels=1,
        note="hit: there when the request's step began. no room: staging was full. too late: not loaded in time, or "
        "still being computed for another request.",
    )  # fmt: skip


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
