"""A replay document out: a table, sentences, CSV, a chart, a page. Reads results only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from kvtool.report import html
from kvtool.report.files import CsvValue, csv_bytes, png_bytes, write_result
from kvtool.report.replay.chart import replay_figure
from kvtool.report.replay.clocked import clocked_figure, clocked_words
from kvtool.report.replay.cluster import cluster_tables, link_rows, mode_rows, split_rows
from kvtool.report.replay.sentences import capacity_words, in_short
from kvtool.report.replay.tiers import clock_rows, tier_rows, tier_tables
from kvtool.report.tables import Table, to_html
from kvtool.results import ReplayDocument, ReplayRow
from kvtool.system.files import write_all
from kvtool.units import format_bytes_short, format_ms

if TYPE_CHECKING:
    from rich.console import Console

CLOCK_PICTURE = "replay-clock.png"


def print_replay(document: ReplayDocument, console: Console) -> None:
    """The answer, what was replayed, the table, what follows from it, and what was assumed."""
    from rich.text import Text

    answer, *others = in_short(document)
    console.print(Text(answer, style="bold"))
    console.print(Text(describe(document), style="dim"))
    console.print()
    for table in _tables(document):
        console.print(table)
    for heading, lines, style in (
        ("In short", others, ""),
        ("Odd about the trace", document.warnings, "yellow"),
        ("Assumed", document.assumptions, "dim"),
    ):
        if lines:
            console.print(Text(heading, style="bold"))
        for line in lines:
            console.print(Text(f"- {line}", style=style))
        if lines:
            console.print()


def write_replay(document: ReplayDocument, directory: Path, *, command: str = "") -> list[Path]:
    """replay.json, .csv and .png, the curve as CSV, and report.html in `directory`. The page names the `command` that
    made it. Raises KvtoolError.
    """
    pictures = _pictures(document)
    written = write_result(
        directory,
        "replay",
        document,
        rows=[flat(row) for row in document.rows],
        figure=replay_figure(document),
        html=replay_html(document, pictures, command),
    )
    made = {name: csv_bytes(rows) for name, rows in _beside_rows(document).items()}
    made[CLOCK_PICTURE] = pictures.get(clocked_words(document), b"")
    beside = {name: made[name] for name in beside_names(document)}
    write_all({directory / name: data for name, data in beside.items()})
    return [*written, *(directory / name for name in beside)]


def beside_names(document: ReplayDocument) -> list[str]:
    """The files that a replay has besides those of every document."""
    return [*_beside_rows(document), *([CLOCK_PICTURE] if document.tiers or document.cluster else [])]


def _beside_rows(document: ReplayDocument) -> dict[str, list[dict[str, CsvValue]]]:
    """The rows of each table beside the first, by the name of its file; none of those that were not asked for."""
    rows = {
        "replay-curve.csv": curve_rows(document),
        "replay-clock.csv": clock_rows(document),
        "replay-tiers.csv": tier_rows(document),
        "replay-break-even.csv": [msgspec.structs.asdict(row) for row in document.break_even],
        "replay-cluster.csv": mode_rows(document),
        "replay-links.csv": link_rows(document),
        "replay-splits.csv": split_rows(document),
    }
    return {name: found for name, found in rows.items() if found or name == "replay-curve.csv"}


def _pictures(document: ReplayDocument) -> dict[str, bytes]:
    """What each chart shows, in words, and the chart."""
    pictures = {_chart_words(document): png_bytes(replay_figure(document))}
    figure = clocked_figure(document)
    return pictures if figure is None else {**pictures, clocked_words(document): png_bytes(figure)}


def _tables(document: ReplayDocument) -> list[Table]:
    """Hits, then what was asked for beside them."""
    return [replay_table(document), *tier_tables(document), *cluster_tables(document)]


def flat(row: ReplayRow) -> dict[str, CsvValue]:
    """A row for CSV: what has a row a tier stands in a file of its own."""
    return {name: value for name, value in msgspec.structs.asdict(row).items() if not name.startswith("bytes_")}


def curve_rows(document: ReplayDocument) -> list[dict[str, CsvValue]]:
    """One row a point of each curve."""
    return [
        {"policy": curve.policy, **msgspec.structs.asdict(point)} for curve in document.curves for point in curve.points
    ]


def describe(document: ReplayDocument) -> str:
    """The trace's fingerprint and the model in one line."""
    trace = document.trace
    counted = "" if trace.requests_counted == trace.requests else f", the last {trace.requests_counted:,} counted"
    model = f"; {document.model}, {document.kv_cache_dtype} cache" if document.model else ""
    return (
        f"{trace.name}: {trace.requests:,} requests{counted}, {trace.total_blocks:,} blocks of {trace.block_size} "
        f"tokens, {trace.unique_blocks:,} of them unique, sha256 {trace.sha256[:16]}{model}"
    )


def replay_table(document: ReplayDocument) -> Table:
    """A row a policy and capacity; the ceilings are of blocks."""
    with_bytes = any(row.capacity_bytes is not None for row in document.rows)
    with_ms = document.gpu is not None
    ratios = ("% of\nblocks", "% of\ntokens", "% mean\nrequest", "strict\n%", "relaxed\n%", "content\n%")
    columns = (
        "policy",
        "capacity" if with_bytes else "blocks",
        *ratios,
        "limited\nby",
        *(("ms\nsaved",) if with_ms else ()),
    )
    return Table(
        title="Hits of a prefix cache",
        columns=columns,
        rows=[_cells(row, with_bytes, with_ms) for row in document.rows],
        labels=1,
        spare=("content\n%", "relaxed\n%", "% mean\nrequest"),
        note="strict, relaxed, content: the most that any policy can hit at the capacity, in % of blocks: behind whole "
        "prefixes, block by block, and without a limit.",
    )


def _cells(row: ReplayRow, with_bytes: bool, with_ms: bool) -> tuple[str, ...]:
    unlimited = row.capacity_blocks is None and row.capacity_bytes is None
    room = format_bytes_short(row.capacity_bytes or 0) if with_bytes else f"{row.capacity_blocks or 0:,}"
    ratios = (row.block_hit_ratio, row.token_hit_ratio, row.mean_request_token_hit_ratio)
    ceilings = (row.ceiling_strict, row.ceiling_relaxed, row.ceiling_content)
    return (
        row.policy,
        "no limit" if unlimited else room,
        *("-" if ratio is None else f"{100 * ratio:.2f}" for ratio in (*ratios, *ceilings)),
        row.limited_by,
        *((format_ms(row.ttft_saved_ms),) if with_ms else ()),
    )


def replay_html(document: ReplayDocument, pictures: Mapping[str, bytes], command: str = "") -> str:
    """The page for somebody who was not there. Names out of logs are escaped where the page is made."""
    trace = document.trace
    fingerprint = Table(
        title="The trace",
        columns=("", ""),
        rows=[(name.replace("_", " "), _plain(value)) for name, value in msgspec.structs.asdict(trace).items()],
        labels=2,
    )
    return html.page(
        title=f"kvtool replay: {trace.name}",
        subtitle=describe(document),
        body=[
            html.warnings(document.warnings),
            html.made_of(
                command,
                ("replay.json", "replay.csv", "replay.png", *beside_names(document)),
            ),
            html.key_points(in_short(document)),
            html.section("Charts", [html.charts({words: png}) for words, png in pictures.items()]),
            html.section("Table", [to_html(table) for table in _tables(document)]),
            html.section("Trace", [to_html(fingerprint)]),
            html.section("Definitions", [html.definitions(document.definition)]),
            html.section("Assumptions", [html.bullets(document.assumptions)]),
        ],
    )


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{100 * value:.2f} %"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _chart_words(document: ReplayDocument) -> str:
    """What the chart shows, for readers who cannot see it."""
    knees = [f"{c.policy} has its knee at {capacity_words(c.knee)}" for c in document.curves if c.knee]
    return "; ".join(["Hits over capacity, each policy and the ceilings", *knees])
