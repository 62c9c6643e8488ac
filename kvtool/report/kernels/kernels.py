"""A kernels document out: a table for each kind of kernel, one row a case as CSV, a chart. Reads results only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvtool.report.files import write_result
from kvtool.report.inputs import shared_inputs
from kvtool.report.kernels.charts import kernels_figure
from kvtool.report.kernels.peers import library_lines
from kvtool.report.kernels.tables import VARIANTS, kernel_tables, verdict
from kvtool.report.peers import peer_columns, with_peers
from kvtool.report.rows import case_rows
from kvtool.results import KernelCase, KernelPeer, KernelsDocument
from kvtool.results.warnings import load_warnings, throttle_warnings
from kvtool.units import format_ms

if TYPE_CHECKING:
    from rich.console import Console

SHARED_INPUTS = (*VARIANTS, "backend", "device", "threads", "num_iters")


def print_kernels(document: KernelsDocument, console: Console) -> None:
    """What was reached, what ran, a table for each kind of kernel, and what was assumed."""
    from rich.text import Text

    if document.cases:
        told = verdict(document)
        console.print(Text(told[0].upper() + told[1:], style="bold"))
    console.print(Text(shared_inputs(document.cases, SHARED_INPUTS), style="dim"))
    for table in kernel_tables(document):
        console.print()
        console.print(table)
    for line in library_lines(with_peers(document.cases)):
        console.print(Text(f"- {line}"))
    if cold := cold_start(document.cases):
        console.print(Text(f"- {cold}", style="dim"))
    warnings = [*load_warnings(document.environment), *throttle_warnings(document.cases)]
    for assumption in document.assumptions:
        console.print(Text(f"- {assumption}", style="yellow" if assumption in warnings else "dim"))


def cold_start(cases: Sequence[KernelCase]) -> str:
    """The longest first call and the longest capture, which no time above holds; empty where nothing was recorded."""
    first_s = max((case.cold_start.first_call_s or 0.0 for case in cases), default=0.0)
    capture_s = max((case.cold_start.capture_s or 0.0 for case in cases), default=0.0)
    captures = f", capturing a graph up to {format_ms(1e3 * capture_s)} ms" if capture_s else ""
    return (
        f"cold start, in no time above: a first call took up to {format_ms(1e3 * first_s)} ms{captures}"
        if first_s
        else ""
    )


def write_kernels(document: KernelsDocument, directory: Path) -> list[Path]:
    """kernels.json, .csv and .png in `directory`; the paths written. Raises KvtoolError."""
    peers = peer_columns(document.cases, lambda name: KernelPeer(name=name, version=None))
    rows = [row | columns for row, columns in zip(case_rows(document.cases), peers, strict=True)]
    return write_result(directory, "kernels", document, rows=rows, figure=kernels_figure(document))
