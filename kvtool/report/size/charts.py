"""The chart of a size document: memory of one GPU against context."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvtool.report.charts import COLOURS, GREY, RED, EndLabel, bytes_axis, label_ends, new_figure, tokens_axis
from kvtool.results import SizeDocument, SizeRow
from kvtool.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def size_figure(document: SizeDocument) -> Figure:
    """Weights and cache of one GPU against context, a line for each dtype and batch size, under the card's limit.

    `document` is of one model, with contexts close enough for a curve.
    """
    first = document.rows[0]
    where = f"one of {first.inputs.num_gpus} GPUs" if first.inputs.num_gpus > 1 else "one GPU"
    what = "weights + KV cache" if first.weights.bytes_per_gpu else "KV cache (weights are not known)"
    room = "; limit: usable memory less activations and runtime" if first.fit.kv_pool_bytes else ""
    figure, (axes,) = new_figure(f"{first.model.id}: memory against context", subtitle=f"{what} on {where}{room}")
    bytes_axis(axes)
    tokens_axis(axes)
    labels = [_draw_line(axes, rows, colour) for rows, colour in _lines(document)]
    labels += _draw_levels(axes, document)
    axes.set_xlabel("context, tokens a sequence, log scale")
    axes.set_ylabel("bytes on a GPU, log scale")
    label_ends(figure, axes, labels)
    return figure


def _lines(document: SizeDocument) -> Iterator[tuple[list[SizeRow], str]]:
    """The rows of each dtype and batch size by growing context, and a colour for them."""
    lines: dict[tuple[str, int], list[SizeRow]] = {}
    for row in document.rows:
        lines.setdefault((row.inputs.kv_cache_dtype, row.inputs.batch_size), []).append(row)
    for index, rows in enumerate(lines.values()):
        yield sorted(rows, key=lambda row: row.inputs.context), COLOURS[index % len(COLOURS)]


def _draw_line(axes: Axes, rows: list[SizeRow], colour: str) -> EndLabel:
    weights = rows[0].weights.bytes_per_gpu or 0
    contexts = [row.inputs.context for row in rows]
    total = [weights + row.kv.bytes_per_gpu for row in rows]
    axes.plot(contexts, total, color=colour, linewidth=2)
    inputs = rows[-1].inputs
    return EndLabel(contexts[-1], total[-1], f"{inputs.kv_cache_dtype}, batch {inputs.batch_size}", colour)


def _draw_levels(axes: Axes, document: SizeDocument) -> list[EndLabel]:
    """The weights below every line, and what the card has for weights and cache: above it nothing fits."""
    row = document.rows[0]
    contexts = [row.inputs.context for row in document.rows]
    left, right = min(contexts), max(contexts)
    levels = []
    if row.weights.bytes_per_gpu:
        levels.append((row.weights.bytes_per_gpu, f"weights, {format_bytes(row.weights.bytes_per_gpu)}", GREY))
    if row.fit.kv_pool_bytes:
        room = row.fit.kv_pool_bytes + (row.fit.weights_bytes or 0)
        levels.append((room, f"limit of {row.inputs.gpu}, {format_bytes(room)}", RED))
        axes.set_ylim(top=max(axes.get_ylim()[1], 1.5 * room))
        axes.axhspan(room, axes.get_ylim()[1], color=RED, alpha=0.06, linewidth=0)
    if levels:
        axes.set_ylim(bottom=min(axes.get_ylim()[0], 0.9 * min(level for level, *_ in levels)))
    axes.set_xlim(left, right * 1.02)
    axes.hlines([level for level, *_ in levels], left, right, [colour for *_, colour in levels], linestyles="--")
    return [EndLabel(right, level, text, colour) for level, text, colour in levels]
