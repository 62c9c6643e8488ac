"""What `kvtool compare` found, out: tables for a terminal, CSV, a chart and one page of HTML. Reads results only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from kvtool.report.compare.benches import compare_figure, compare_html, compare_tables, findings, widest_interval
from kvtool.report.compare.models import matrix_figure, matrix_html, matrix_tables, smallest_cache
from kvtool.report.files import png_bytes, write_result
from kvtool.report.rows import size_rows
from kvtool.report.terminal import print_notes
from kvtool.results import CompareDocument, MatrixDocument

if TYPE_CHECKING:
    from rich.console import Console


def print_compare(document: CompareDocument, console: Console, *, explain: bool = False) -> None:
    """Benchmarks: the findings, warnings, a table for each document, and what the figures rest on."""
    for sentence in findings(document):
        console.print(f"{sentence}.", style="bold", highlight=False, markup=False)
    _print_warnings(document.warnings, console)
    for table in compare_tables(document):
        console.print(table)
    print_notes(document.assumptions, console, hinge=widest_interval(document), explain=explain)


def print_matrix(document: MatrixDocument, console: Console, *, hinge: object = None, explain: bool = False) -> None:
    """Models: which cache is smallest, warnings, what each takes, and what an engine would cache of them."""
    console.print(smallest_cache(document), style="bold", highlight=False, markup=False)
    _print_warnings(document.warnings, console)
    for table in matrix_tables(document, console.width):
        console.print(table)
    print_notes(document.assumptions, console, hinge=hinge, explain=explain)


def _print_warnings(warnings: list[str], console: Console) -> None:
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)


def write_compare(document: CompareDocument, directory: Path, *, command: str = "") -> list[Path]:
    """compare.json, .csv, .png and report.html in `directory`; the paths written. Raises KvtoolError."""
    figure = compare_figure(document)
    page = compare_html(document, png_bytes(figure), command)
    rows = [msgspec.structs.asdict(row) for row in document.rows]
    return write_result(directory, "compare", document, rows=rows, figure=figure, html=page)


def write_matrix(document: MatrixDocument, directory: Path, *, command: str = "") -> list[Path]:
    """compare.json, .csv, .png and report.html in `directory`; the paths written. Raises KvtoolError."""
    figure = matrix_figure(document)
    page = matrix_html(document, png_bytes(figure), command)
    return write_result(directory, "compare", document, rows=list(size_rows(document.rows)), figure=figure, html=page)
