"""A tiers document out: tables, the findings in words, a row a figure as CSV, a chart, a page. Reads results only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from kvtool.report import html
from kvtool.report.cells import DASH, rate
from kvtool.report.files import CsvValue, png_bytes, write_result
from kvtool.report.machine.machine import environment_table
from kvtool.report.machine.tiers_chart import tiers_figure
from kvtool.report.machine.tiers_sentences import findings
from kvtool.report.tables import Table, to_html
from kvtool.results import BreakEvenRow, TierRow, TiersDocument
from kvtool.results.warnings import load_warnings
from kvtool.units import format_bytes, format_length, format_ms

if TYPE_CHECKING:
    from rich.console import Console


def print_tiers(document: TiersDocument, console: Console) -> None:
    """What was moved, the tables, the findings, and what was assumed."""
    from rich.text import Text

    console.print(Text(_title(document), style="dim"))
    for table in tables(document):
        console.print()
        console.print(table)
    warnings = load_warnings(document.environment)
    for sentence in findings(document):
        console.print(Text(f"- {sentence}"))
    for assumption in document.assumptions:
        console.print(Text(f"- {assumption}", style="yellow" if assumption in warnings else "dim"))


def write_tiers(document: TiersDocument, directory: Path, *, command: str = "") -> list[Path]:
    """tiers.json (which other commands take as --profile), .csv, .png and report.html; the paths written. Raises
    KvtoolError."""
    figure = tiers_figure(document)
    return write_result(
        directory,
        "tiers",
        document,
        rows=[_csv_row(row) for row in document.rows],
        figure=figure,
        html=html.page(
            "kvtool tiers",
            _title(document),
            [
                html.warnings(load_warnings(document.environment)),
                html.key_points(findings(document)),
                html.section(
                    "Charts", [html.charts({"Speed by size, and loading against computing": png_bytes(figure)})]
                ),
                html.section("Figures", [to_html(table) for table in tables(document)]),
                html.section("Assumed", [html.bullets(document.assumptions)]),
                html.section("Machine", [to_html(environment_table(document.environment))]),
                html.section("Words", [html.definitions(document.definitions)]),
                html.made_of(command, ["tiers.json", "tiers.csv"]),
            ],
        ),
    )


def tables(document: TiersDocument) -> list[Table]:
    """Host memory, each disk or what stands for one, and the break-evens."""
    names = dict.fromkeys(row.tier for row in document.rows)
    found = [_host_table(document.rows)] if "dram" in names else []
    found += [_disk_table(name, document.rows) for name in names if name != "dram"]
    return [*found, *([_break_even_table(document.break_even)] if document.break_even else [])]


def _title(document: TiersDocument) -> str:
    inputs = document.inputs
    return (
        f"pages of {inputs['block_size']} tokens of {inputs['model']}, {inputs['kv_cache_dtype']}, {inputs['device']}"
    )


def _csv_row(row: TierRow) -> dict[str, CsvValue]:
    flat: dict[str, CsvValue] = msgspec.to_builtins(row)
    del flat["gbps"]
    return flat | {"gbps_p50": row.gbps.p50, "gbps_p90": row.gbps.p90, "gbps_n": row.gbps.n}


def _host_table(rows: Sequence[TierRow]) -> Table:
    own = [row for row in rows if row.tier == "dram"]
    return Table(
        title="dram: between the block pool and host memory",
        columns=("moved", "of", "way", "at a\ntime", "GB/s\np50", "GB/s\np90", "µs\nhost"),
        rows=[
            (
                row.method,
                f"{row.size}, {format_bytes(row.size_bytes)}",
                row.direction,
                f"{row.queue_depth:,}",
                rate(row.gbps.p50),
                rate(row.gbps.p90),
                rate(1e6 * row.host_s),
            )
            for row in own
        ],
        labels=3,
        note=f"{own[0].remark}. µs host: processor time a copy. gathered pages: as the tiers move them, together.",
    )


def _disk_table(name: str, rows: Sequence[TierRow]) -> Table:
    """A row a size; a column a direction and queue depth."""
    own = [row for row in rows if row.tier == name]
    kinds = list(dict.fromkeys((row.method, row.size, row.size_bytes) for row in own))
    columns = sorted(
        {(row.direction, row.queue_depth) for row in own}, key=lambda c: ("up down both".index(c[0]), c[1])
    )
    cells = {(row.method, row.size, row.size_bytes, row.direction, row.queue_depth): rate(row.gbps.p50) for row in own}
    return Table(
        title=f"{name}: GB/s by requests in flight",
        columns=("moved", "of", *(f"{direction}\nx {depth}" for direction, depth in columns)),
        rows=[
            (kind[0], f"{kind[1]}, {format_bytes(kind[2])}", *(cells.get((*kind, *column), DASH) for column in columns))
            for kind in kinds
        ],
        labels=2,
        note=f"{own[0].remark}. down: written, up: read, both: half each. Checked: with a page file's checksums.",
    )


def _break_even_table(rows: Sequence[BreakEvenRow]) -> Table:
    return Table(
        title="From which prefix on loading is faster than computing",
        columns=("tier", "tokens", "ms to\nload", "ms to\ncompute"),
        rows=[
            (
                row.tier,
                f"not up to {format_length(row.up_to_tokens)}"
                if row.prefix_tokens is None
                else f"{row.prefix_tokens:,}",
                format_ms(row.load_ms),
                format_ms(row.compute_ms),
            )
            for row in rows
        ],
        labels=1,
    )
