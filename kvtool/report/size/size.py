"""A size document as tables for a terminal, as rows for a CSV file, and as a chart of memory against context."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

import msgspec

from kvtool.report.charts import COLOURS, GREY, RED, EndLabel, bytes_axis, label_ends, new_figure, tokens_axis
from kvtool.report.files import CsvValue
from kvtool.report.size.answers import print_answers, print_solutions
from kvtool.report.size.budget import print_budget
from kvtool.report.size.planned import print_engine
from kvtool.report.tables import Table, to_rich
from kvtool.results import SizeDocument, SizeFit, SizeLayers, SizeRow, Struct
from kvtool.units import format_bytes, format_bytes_short, format_length, format_ms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console


# What a CSV file tells of the engine that was asked for; groups and ledgers are in the JSON.
ENGINE_COLUMNS = (
    *("name", "version", "block_size", "num_blocks", "blocks_per_request", "max_concurrency"),
    *("gpu_kv_cache_tokens", "max_model_len", "refusal"),
)


def print_size(document: SizeDocument, console: Console) -> None:
    """What was found, then for each model what its layers keep and a row for each batch; the assumptions last."""
    if document.solutions is not None:
        print_solutions(document.solutions, document.rejected or [], console)
    for _, rows in groupby(document.rows, key=lambda row: row.model.id):
        _print_model(list(rows), console)
    for assumption in document.assumptions:
        console.print(f"- {assumption}", style="dim", highlight=False, markup=False)


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


def layer_table(rows: list[SizeRow]) -> Table:
    """What the layers of one model keep, under each cache dtype of its rows."""
    shown = [(_dtype(row), layers) for row in {_dtype(row): row for row in rows}.values() for layers in row.layers]
    odd = any(layers.bits_per_element is not None and layers.bits_per_element % 8 for _, layers in shown)
    bits = [(f"{layers.bits_per_element or 0:.4g}" if odd and layers.bits_per_element else "",) for _, layers in shown]
    lines = [
        (dtype, *_layer_cells(layers)[:2], *(cell if odd else ()), *_layer_cells(layers)[2:])
        for (dtype, layers), cell in zip(shown, bits, strict=True)
    ]
    element = ("bits an\nelement",) if odd else ()
    return Table(
        title="What the layers keep",
        columns=("cache", "layers", "heads x dims", *element, "bytes a token", "bounded by"),
        rows=lines,
        labels=3,
    )


def _layer_cells(layers: SizeLayers) -> tuple[str, str, str, str]:
    shape = ""
    if layers.kv_heads is not None:
        dims = f"({layers.k_head_dim} + {layers.v_head_dim})" if layers.v_head_dim else f"{layers.k_head_dim}"
        shape = f"{layers.kv_heads} x {dims}"
    bound = f"{format_length(layers.window)} tokens" if layers.window else ""
    if layers.kind in ("state", "cross"):
        bound = f"{format_bytes(layers.bytes_per_sequence)} a sequence"
    return f"{layers.count} {layers.kind}", shape, f"{layers.bytes_per_token:,}", bound


def row_table(rows: list[SizeRow]) -> Table:
    """One line a row, of one model and one cache dtype; columns about a card only where there is one."""
    inputs, fit = rows[0].inputs, rows[0].fit
    columns = ["context", "batch", "a seq", "a GPU" if inputs.num_gpus > 1 else "in all"]
    columns += ["fits", "room\nleft", "most\nseqs", "longest", "least\nTPOT ms"] if inputs.gpu else ["read\na step"]
    where = f" on {inputs.num_gpus} x {inputs.gpu}" if inputs.gpu else ""
    note = f"In pages of {inputs.block_size} tokens. "
    note += _room(fit)
    title = f"KV cache in {inputs.kv_cache_dtype}{where}"
    return Table(title=title, columns=tuple(columns), rows=[_row_cells(row) for row in rows], note=note)


def _room(fit: SizeFit) -> str:
    """Where the room for cache comes from."""
    if fit.kv_pool_bytes is None or fit.usable_bytes is None:
        return ""
    if "kv_pool_bytes" in (fit.measured or ()):
        return f"A GPU: {format_bytes(fit.kv_pool_bytes)} for cache, as given."
    return (
        f"A GPU: {format_bytes(fit.usable_bytes)} usable - {format_bytes(fit.weights_bytes or 0)} weights - "
        f"{format_bytes(fit.activation_bytes or 0)} activations - {format_bytes(fit.reserve_bytes or 0)} runtime = "
        f"{format_bytes(fit.kv_pool_bytes)} for cache, give or take {format_bytes(fit.margin_bytes or 0)}."
    )


def _row_cells(row: SizeRow) -> tuple[str, ...]:
    inputs, kv, fit = row.inputs, row.kv, row.fit
    cells = [format_length(inputs.context), f"{inputs.batch_size:,}"]
    cells += [format_bytes_short(kv.allocated_bytes_per_sequence), format_bytes_short(kv.bytes_per_gpu)]
    if inputs.gpu is None:
        return (*cells, format_bytes_short(row.decode.kv_read_bytes_per_step))
    tpot = format_ms(row.decode.ideal_tpot_ms)
    if fit.kv_pool_bytes is None or fit.missing_bytes is None or fit.max_context is None:
        return (*cells, "?", "?", "?", "?", tpot)
    left = (
        f"-{format_bytes_short(fit.missing_bytes)}"
        if fit.missing_bytes
        else format_bytes_short(fit.kv_pool_bytes - kv.bytes_per_gpu)
    )
    return (*cells, "yes" if fit.fits else "no", left, f"{fit.max_batch_size:,}", format_length(fit.max_context), tpot)


def size_csv_rows(document: SizeDocument) -> Iterator[dict[str, CsvValue]]:
    """One flat row each: the model's id and inputs under their own names, results under their group's."""
    for row in document.rows:
        flat: dict[str, CsvValue] = {"model": row.model.id, "attention": row.model.attention}
        flat |= msgspec.structs.asdict(row.inputs)
        for group in ("kv", "weights", "decode", "fit"):
            flat |= {f"{group}_{name}": _cell(value) for name, value in _items(getattr(row, group))}
        if row.sharing is not None:
            flat |= {f"sharing_{name}": _cell(value) for name, value in _items(row.sharing)}
        if row.engine.name is not None:
            flat |= {f"engine_{name}": _cell(getattr(row.engine, name)) for name in ENGINE_COLUMNS}
        yield flat


def _items(part: Struct) -> Iterator[tuple[str, object]]:
    yield from msgspec.structs.asdict(part).items()


def _cell(value: object) -> CsvValue:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return value if value is None or isinstance(value, str | int | float) else str(value)


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
    axes.set_xlabel("context, tokens a sequence")
    axes.set_ylabel("bytes on a GPU")
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
