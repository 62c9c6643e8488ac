"""A size document out: tables for a terminal, a row each as CSV, charts of memory. Reads results only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from kvtool.report.files import write_result
from kvtool.report.rows import size_rows
from kvtool.report.size.answers import print_answers, print_solutions
from kvtool.report.size.budget import budget_figure, print_budget, verdict, would_fit
from kvtool.report.size.charts import size_figure
from kvtool.report.size.planned import print_engine
from kvtool.report.size.tables import layer_sentence, layer_table, need, row_table
from kvtool.report.terminal import print_notes
from kvtool.results import SizeDocument, SizeRow
from kvtool.results.size import FIRST_NODE
from kvtool.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console


def print_size(
    document: SizeDocument,
    console: Console,
    *,
    hinge: object = None,
    remedies: Sequence[Sequence[str]] = (),
    passing: Sequence[int | None] = (),
    explain: bool = False,
) -> None:
    """The answer in line 1, then for each model what its layers keep and a row for each batch; what all of it hangs on
    last. Of solutions only the best is drawn, unless all is explained.

    `remedies` has for each row what would make it fit, `passing` the context at which its cache passes the weights;
    `explain` shows every assumption in place of the `hinge`.
    """
    ways = [list(some) for some in remedies] or [[] for _ in document.rows]
    told = verdict(document.rows, ways, passing)
    if document.solutions is not None:
        print_solutions(document.solutions, document.rejected or [], console)
    elif document.rows:
        console.print(told or need(document.rows), style="bold", highlight=False, markup=False)
    for _, rows in groupby(document.rows, key=lambda row: row.model.id):
        if document.solutions and not explain:
            _print_best(list(rows), console)
        else:
            _print_model(list(rows), console, told="" if document.solutions is not None else told or "")
    if len(document.rows) > 1 and (nearest := _nearest(document.rows, ways)):
        console.print(nearest, highlight=False, markup=False)
    print_notes(_notes(document), console, hinge=hinge, explain=explain)


def _nearest(rows: Sequence[SizeRow], ways: Sequence[Sequence[str]]) -> str | None:
    """What would do for the row that lacks least, where some fit or all are only told of one by one."""
    short = [(row, some) for row, some in zip(rows, ways, strict=False) if some and row.engine.refusal is None]
    if not short:
        return None
    return would_fit(*min(short, key=lambda one: one[0].fit.missing_bytes or 0))


def _notes(document: SizeDocument) -> list[str]:
    """The assumptions, without what is to be put into commands of several nodes where the commands shown have one."""
    best = next(iter(document.solutions or ()), None)
    if best is None or best.nodes > 1:
        return document.assumptions
    return [note for note in document.assumptions if FIRST_NODE not in note]


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


def _print_model(rows: list[SizeRow], console: Console, *, told: str) -> None:
    from rich.text import Text

    model, weights = rows[0].model, rows[0].weights
    known = f"weights {format_bytes(weights.bytes)}, {weights.source}" if weights.bytes else f"weights {weights.source}"
    console.print(Text.assemble((model.id, "bold"), f": {model.attention}, {model.num_layers} layers; {known}"))
    layers = layer_table(rows)
    if (one := layer_sentence(layers)) is None:
        console.print()
        console.print(layers)
    else:
        console.print(one, highlight=False, markup=False)
        console.print()
    for same in (list(group) for _, group in groupby(rows, key=_dtype)):
        console.print(row_table(same))
        print_budget(same, console)
        print_answers(same, console)
    print_engine(rows, console, told=told)


def _print_best(rows: list[SizeRow], console: Console) -> None:
    """Under the solutions: what the best of them leaves of a GPU."""
    for same in (list(group) for _, group in groupby(rows, key=_dtype)):
        print_budget(same, console)
        print_answers(same, console)


def _dtype(row: SizeRow) -> str:
    return row.inputs.kv_cache_dtype
