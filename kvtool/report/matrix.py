"""Models compared: a line per model and setting with a column per context, the same as bars, CSV and a page of HTML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvtool.report import html
from kvtool.report.charts import COLOURS, LABEL_POINTS, new_figure
from kvtool.report.compare import print_assumptions, print_warnings
from kvtool.report.files import CsvValue, png_bytes, write_result
from kvtool.report.size import size_csv_rows
from kvtool.report.tables import Table, to_html, to_rich
from kvtool.results import MatrixDocument, SizeDocument, SizeRow
from kvtool.units import format_bytes, format_length

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console

MAX_PANELS = 3
ROW_HEIGHT_IN = 0.3
Setting = tuple[str, int, int]  # cache dtype, GPUs, batch size


def print_matrix(document: MatrixDocument, console: Console) -> None:
    print_warnings(document.warnings, console)
    console.print(to_rich(matrix_table(document), console.width))
    print_assumptions(document.assumptions, console)


def write_matrix(directory: Path, document: MatrixDocument) -> list[Path]:
    """compare.json, .csv, .png and report.html in `directory`; the paths written. Raises KvtoolError."""
    figure = matrix_figure(document)
    page = html.page(
        "Models compared",
        f"KV cache of {', '.join(_models(document))}",
        [
            html.key_points(document.warnings),
            html.section("Chart", [html.charts({"KV cache bytes on one GPU": png_bytes(figure)})]),
            html.section("Table", [to_html(matrix_table(document))]),
            html.section("Assumptions", [html.bullets(document.assumptions)]),
        ],
    )
    return write_result(directory, "compare", document, rows=matrix_csv_rows(document), figure=figure, html=page)


def matrix_table(document: MatrixDocument) -> Table:
    """KV bytes on a GPU: a line per model and setting, a column per context, and the ratio to the baseline model."""
    contexts = _contexts(document)
    first = document.rows[0].inputs
    longest = format_length(contexts[-1])
    columns = ("cache", "a token", *(format_length(context) for context in contexts), "ratio")
    note = f"KV cache bytes on one GPU for the whole batch at each context; ratio: to {document.baseline} at {longest}."
    if first.gpu is not None:
        columns += ("fits", "most seqs")
        note += f" fits, most seqs: at {longest} on {first.gpu}."
    lines: list[tuple[str, ...]] = []
    model = None
    for rows in _groups(document):
        last = rows[contexts[-1]]
        if last.model.id != model:
            model = last.model.id
            lines.append((model.rsplit("/")[-1], *[""] * (len(columns) - 1)))
        lines.append((f"  {_setting_name(last)}", *_cells(document, [rows[context] for context in contexts])))
    return Table(title=f"KV cache against {document.baseline}", columns=columns, rows=lines, labels=1, note=note)


def _cells(document: MatrixDocument, rows: Sequence[SizeRow]) -> tuple[str, ...]:
    """The numbers of one model and setting, whose `rows` go up in context."""
    last = rows[-1]
    ratio = _ratio_to_baseline(document, last)
    cells = (
        format_bytes(last.kv.bytes_per_token),
        *(format_bytes(row.kv.bytes_per_gpu) for row in rows),
        "-" if ratio is None else f"{ratio:.3f}",
    )
    if last.inputs.gpu is None:
        return cells
    fits = "?" if last.fit.fits is None else "yes" if last.fit.fits else "no"
    return (*cells, fits, "?" if last.fit.max_batch_size is None else f"{last.fit.max_batch_size:,}")


def _models(document: MatrixDocument) -> list[str]:
    return list(dict.fromkeys(row.model.id for row in document.rows))


def _contexts(document: MatrixDocument) -> list[int]:
    return sorted({row.inputs.context for row in document.rows})


def _setting(row: SizeRow) -> Setting:
    return row.inputs.kv_cache_dtype, row.inputs.num_gpus, row.inputs.batch_size


def _groups(document: MatrixDocument) -> list[dict[int, SizeRow]]:
    """The rows of each model and setting, by context."""
    groups: dict[tuple[str, Setting], dict[int, SizeRow]] = {}
    for row in document.rows:
        groups.setdefault((row.model.id, _setting(row)), {})[row.inputs.context] = row
    return list(groups.values())


def _ratio_to_baseline(document: MatrixDocument, row: SizeRow) -> float | None:
    """KV bytes on a GPU over those of the baseline model under the same setting."""
    for other in document.rows:
        same = _setting(other) == _setting(row) and other.inputs.context == row.inputs.context
        if same and other.model.id == document.baseline and other.kv.bytes_per_gpu:
            return row.kv.bytes_per_gpu / other.kv.bytes_per_gpu
    return None


def matrix_csv_rows(document: MatrixDocument) -> list[dict[str, CsvValue]]:
    """The same flat rows as those of `kvtool size`."""
    return list(size_csv_rows(SizeDocument(rows=document.rows, assumptions=document.assumptions)))


def matrix_figure(document: MatrixDocument) -> Figure:
    """KV bytes on a GPU as bars: a panel for each of the longest contexts, a bar per model and setting."""
    contexts = _contexts(document)[-MAX_PANELS:]
    groups = _groups(document)
    colours = {model: COLOURS[place % len(COLOURS)] for place, model in enumerate(_models(document))}
    figure, panels = new_figure(
        "KV cache on one GPU", panels=len(contexts), width_in=11, height_in=1.4 + ROW_HEIGHT_IN * max(4, len(groups))
    )
    for axes, context in zip(panels, contexts, strict=True):
        rows = [group[context] for group in groups]
        _draw_bars(axes, rows, colours, labelled=axes is panels[0])
        axes.set_title(f"at {format_length(context)} tokens", fontsize=10, loc="left")
    return figure


def _draw_bars(axes: Axes, rows: Sequence[SizeRow], colours: dict[str, str], *, labelled: bool) -> None:
    values = [row.kv.bytes_per_gpu for row in rows]
    places = range(len(rows))
    axes.barh(places, values, color=[colours[row.model.id] for row in rows], height=0.7)
    for place, value in zip(places, values, strict=True):
        axes.annotate(
            format_bytes(value),
            (value, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=LABEL_POINTS,
        )
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, max(1, *values) * 1.3)
    axes.set_xticks([])
    axes.set_yticks(places, [f"{row.model.id} {_setting_name(row)}" for row in rows] if labelled else [""] * len(rows))
    axes.grid(False)


def _setting_name(row: SizeRow) -> str:
    """`bf16, 8 GPUs, batch 4`; one GPU and a batch of one go without saying."""
    dtype, num_gpus, batch_size = _setting(row)
    gpus = f", {num_gpus} GPUs" if num_gpus > 1 else ""
    return f"{dtype}{gpus}" + (f", batch {batch_size}" if batch_size > 1 else "")
