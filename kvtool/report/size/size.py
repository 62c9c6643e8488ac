"""A size document out: tables for a terminal, a row each as CSV, charts of memory. Reads results only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from kvtool.report.files import write_result
from kvtool.report.notes import print_notes
from kvtool.report.rows import size_rows
from kvtool.report.size.answers import print_answers, print_solutions
from kvtool.report.size.budget import budget_figure, print_budget, would_fit
from kvtool.report.size.charts import size_figure
from kvtool.report.size.planned import print_engine
from kvtool.report.size.tables import layer_table, row_table
from kvtool.report.tables import to_rich
from kvtool.results import SizeDocument, SizeRow
from kvtool.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console


def print_size(
    document: SizeDocument,
    console: Console,
    *,
    hinge: object = None,
    remedies: Sequence[Sequence[str]] = (),
    explain: bool = False,
) -> None:
    """What was found, then for each model what its layers keep and a row for each batch; what all of it hangs on last.

    `remedies` has for each row what would make it fit; `explain` shows every assumption in place of the `hinge`.
    """
    if document.solutions is not None:
        print_solutions(document.solutions, document.rejected or [], console)
    for _, rows in groupby(document.rows, key=lambda row: row.model.id):
        _print_model(list(rows), console)
    for row, ways in zip(document.rows, remedies, strict=False):
        if ways:
            console.print(would_fit(row, ways), highlight=False, markup=False)
    print_notes(document.assumptions, console, hinge=hinge, explain=explain)


def write_size(document: SizeDocument, directory: Path, *, curve: SizeDocument) -> list[Path]:
    """size.json, .csv and .png in `directory`, and size-budget.png where there is a card; the paths written.

    `curve` is the same question at contexts close enough for a chart. Raises KvtoolError.
    """
    bars = budget_figure(document)
    return write_result(
        directory,
        "size",
        document,
        rows=list(size_rows(document.rows)),
        figure=size_figure(curve),
        more={"size-budget": bars} if bars else None,
    )


def _print_model(rows: list[SizeRow], console: Console) -> None:
    from rich.text import Text

    model, weights = rows[0].model, rows[0].weights
    known = f"weights {format_bytes(weights.bytes)}, {weights.source}" if weights.bytes else f"weights {weights.source}"
    console.print(Text.assemble((model.id, "bold"), f": {model.attention}, {model.num_layers} layers; {known}"))
    console.print(to_rich(layer_table(rows), console.width))
    for same in (list(group) for _, group in groupby(rows, key=_dtype)):
        console.print(to_rich(row_table(same), console.width))
        print_budget(same, console)
        print_answers(same, console)
    print_engine(rows, console)


def _dtype(row: SizeRow) -> str:
    return row.inputs.kv_cache_dtype
