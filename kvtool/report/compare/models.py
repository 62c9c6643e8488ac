"""Models compared: a line per model and setting, a column per context; as a table, heat map and page of HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from textwrap import wrap
from typing import TYPE_CHECKING

from kvtool.report import html
from kvtool.report.compare.heatmap import Cell, Group, heat_map
from kvtool.report.tables import WIDE, Table, to_html
from kvtool.results import PLANNED_NAMES, MatrixDocument, SizeRow
from kvtool.units import format_bytes, format_bytes_short, format_length

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Setting = tuple[str, int, int]  # cache dtype, GPUs, batch size


@dataclass(frozen=True, slots=True)
class Index:
    """The rows of a document, looked through once: each model's by setting and context, and each model's on so many
    GPUs in their order, with the place of every row among those."""

    groups: dict[str, list[dict[int, SizeRow]]]
    layouts: dict[tuple[str, int], list[SizeRow]]
    places: dict[int, int]  # by id of the row


def smallest_cache(document: MatrixDocument) -> str:
    """`At 128k the smallest cache on a GPU is DeepSeek-V3's in bf16: 8.58 GiB, 0.536 times that of Llama-3.1-8B.`"""
    longest = _contexts(document)[-1]
    row = min((row for row in document.rows if row.inputs.context == longest), key=lambda row: row.kv.bytes_per_gpu)
    taken = f"{row.model.id.rsplit('/')[-1]}'s in {_setting_name(row)}: {format_bytes(row.kv.bytes_per_gpu)}"
    ratio = None if row.model.id == document.baseline else _ratio_to_baseline(_index(document), document.baseline, row)
    against = "" if ratio is None else f", {ratio:.3f} times that of {document.baseline.rsplit('/')[-1]}"
    return f"At {format_length(longest)} the smallest cache on a GPU is {taken}{against}."


def matrix_tables(document: MatrixDocument, width: int) -> list[Table]:
    """What a terminal of `width` columns shows."""
    engine = engine_table(document)
    return [*_tables_within(document, width), *([] if engine is None else [engine])]


def matrix_html(document: MatrixDocument, chart: bytes, command: str = "") -> str:
    """The whole comparison as one page that needs no network."""
    return html.page(
        "Models compared",
        f"KV cache of {', '.join(_models(document))}",
        [
            html.warnings(document.warnings),
            html.made_of(command, ("compare.json", "compare.csv", "compare.png")),
            html.key_points([smallest_cache(document)]),
            html.section("Chart", [html.charts({"KV cache bytes on one GPU": chart})]),
            html.section("Table", [to_html(table) for table in _tables(document)]),
            html.section("Assumptions", [html.bullets(document.assumptions)]),
        ],
    )


def matrix_table(document: MatrixDocument, contexts: Sequence[int] = (), *, short: bool = False) -> Table:
    """KV bytes on a GPU: a line per model and setting, a column for each of `contexts` (all by default), and beside the
    longest of the document the ratio to the baseline model; `short` byte counts have at most four digits.
    """
    every = _contexts(document)
    contexts = contexts or every
    first, longest = document.rows[0].inputs, format_length(every[-1])
    columns = ("cache", "a token", *(format_length(context) for context in contexts))
    note = "KV cache bytes on one GPU for the whole batch at each context"
    if contexts[-1] == every[-1]:
        columns += ("ratio",) if first.gpu is None else ("ratio", "fits", "most seqs")
        note += f"; ratio: to {document.baseline} at {longest}"
        note += f". fits, most seqs: at {longest} on {first.gpu}" if first.gpu is not None else ""
    lines: list[tuple[str, ...]] = []
    index = _index(document)
    for model in _models(document):
        lines.append((model.rsplit("/")[-1], *[""] * (len(columns) - 1)))
        for rows in index.groups.get(model, []):
            cells = _cells(
                index, document.baseline, [rows[context] for context in contexts], rows[every[-1]], short=short
            )
            lines.append((f"  {_setting_name(rows[every[-1]])}", *cells))
        lines += _refused_lines(document, model, len(columns))
    return Table(title=f"KV cache against {document.baseline}", columns=columns, rows=lines, labels=1, note=f"{note}.")


def _refused_lines(document: MatrixDocument, model: str, columns: int) -> list[tuple[str, ...]]:
    """The layouts that this model cannot take, for which it has no numbers."""
    refused = [one for one in document.refused if one.model == model]
    return [(f"  {_gpus(one.num_gpus)}", *["-"] * (columns - 1)) for one in refused]


def _tables_within(document: MatrixDocument, width: int) -> list[Table]:
    """For a terminal of `width` columns: as many contexts side by side as fit, the others in tables below; models'
    names that are longer than there is room for go over several lines.
    """
    contexts, short = _contexts(document), width < WIDE
    a_token, *others = _number_widths(matrix_table(document, short=short), gap=2 if short else 3)
    of_contexts, behind = others[: len(contexts)], sum(others[len(contexts) :])
    name_width = max(len(_setting_name(row)) for row in document.rows) + 2
    for most in range(len(contexts), 0, -1):
        starts = range(0, len(contexts), most)
        rooms = [width - 2 - a_token - sum(of_contexts[start : start + most]) for start in starts]
        rooms[-1] -= behind
        if min(rooms) >= name_width:
            break
    tables = [matrix_table(document, contexts[start : start + most], short=short) for start in starts]
    return [_folded(table, max(room, 1)) for table, room in zip(tables, rooms, strict=True)]


def _number_widths(table: Table, *, gap: int) -> list[int]:
    """What each column but the first takes when printed, with the gap before it."""
    columns = list(zip(table.columns, *table.rows, strict=True))
    return [max(map(len, column)) + gap for column in columns[1:]]


def _folded(table: Table, room: int) -> Table:
    rows = [("\n".join(wrap(row[0], room)) if len(row[0]) > room else row[0], *row[1:]) for row in table.rows]
    return replace(table, rows=rows)


def _cells(index: Index, baseline: str, rows: Sequence[SizeRow], last: SizeRow, *, short: bool) -> tuple[str, ...]:
    """The numbers of one model and setting at some contexts, in `rows`; `last` is that of the longest of all."""
    count = format_bytes_short if short else format_bytes
    cells = (count(last.kv.bytes_per_token), *(count(row.kv.bytes_per_gpu) for row in rows))
    if rows[-1] is not last:
        return cells
    ratio = _ratio_to_baseline(index, baseline, last)
    cells += ("-" if ratio is None else f"{ratio:.3f}",)
    if last.inputs.gpu is None:
        return cells
    fits = "?" if last.fit.fits is None else "yes" if last.fit.fits else "no"
    return (*cells, fits, "?" if last.fit.max_batch_size is None else f"{last.fit.max_batch_size:,}")


def engine_table(document: MatrixDocument) -> Table | None:
    """What the engine would cache of each model and setting, on the GPUs of one replica; None without an engine."""
    engine = document.rows[0].engine
    if engine.name is None:
        return None
    lines: list[tuple[str, ...]] = []
    index = _index(document)
    for model in _models(document):
        lines.append((model.rsplit("/")[-1], "", "", "", ""))
        for rows in index.groups.get(model, []):
            row = next(iter(rows.values()))
            lines.append((f"  {_setting_name(row)}", *_engine_cells(row)))
        lines += _refused_lines(document, model, 5)
    return Table(
        title=f"What {PLANNED_NAMES.get(engine.name, engine.name)} {engine.version} would cache",
        columns=("cache", "memory", "tokens", "longest", "at once"),
        rows=lines,
        labels=1,
        note="at once: sequences as long as the longest that it is started for; no: it would not start.",
    )


def _engine_cells(row: SizeRow) -> tuple[str, ...]:
    engine = row.engine
    memory = "-" if engine.pool_bytes is None else format_bytes(engine.pool_bytes)
    longest = "-" if engine.max_model_len is None else format_length(engine.max_model_len)
    if engine.refusal or engine.gpu_kv_cache_tokens is None or engine.max_concurrency is None:
        return memory, "no", longest, "-"
    return memory, f"{engine.gpu_kv_cache_tokens:,}", longest, f"{engine.max_concurrency:,.2f}"


def _tables(document: MatrixDocument) -> list[Table]:
    engine = engine_table(document)
    return [matrix_table(document)] if engine is None else [matrix_table(document), engine]


def _models(document: MatrixDocument) -> list[str]:
    """Those with rows, in their order, then those of which every layout was refused."""
    return list(dict.fromkeys([*(row.model.id for row in document.rows), *(one.model for one in document.refused)]))


def _contexts(document: MatrixDocument) -> list[int]:
    return sorted({row.inputs.context for row in document.rows})


def _setting(row: SizeRow) -> Setting:
    return row.inputs.kv_cache_dtype, row.inputs.num_gpus, row.inputs.batch_size


def _index(document: MatrixDocument) -> Index:
    groups: dict[str, dict[Setting, dict[int, SizeRow]]] = {}
    layouts: dict[tuple[str, int], list[SizeRow]] = {}
    places: dict[int, int] = {}
    for row in document.rows:
        groups.setdefault(row.model.id, {}).setdefault(_setting(row), {})[row.inputs.context] = row
        alike = layouts.setdefault((row.model.id, row.inputs.num_gpus), [])
        places[id(row)] = len(alike)
        alike.append(row)
    return Index({model: list(settings.values()) for model, settings in groups.items()}, layouts, places)


def _ratio_to_baseline(index: Index, baseline: str, row: SizeRow) -> float | None:
    """KV bytes on a GPU over those of the baseline model at the same place of its own rows on as many GPUs: the same
    options, though `auto` may have become another dtype. None where the baseline does not take that layout.
    """
    own, base = (index.layouts.get((model, row.inputs.num_gpus), []) for model in (row.model.id, baseline))
    place = index.places[id(row)]
    if len(base) != len(own) or not base[place].kv.bytes_per_gpu:
        return None
    return row.kv.bytes_per_gpu / base[place].kv.bytes_per_gpu


def matrix_figure(document: MatrixDocument) -> Figure:
    """KV bytes on a GPU as a heat map: a line per model and setting, a column per context; hatched where the card
    cannot hold it.
    """
    contexts = _contexts(document)
    groups: dict[str, list[tuple[str, list[Cell]]]] = {}
    for model, own in _index(document).groups.items():
        for rows in own:
            cells = [Cell(count=rows[c].kv.bytes_per_gpu, crossed=rows[c].fit.fits is False) for c in contexts]
            groups.setdefault(model, []).append((_setting_name(rows[contexts[0]]), cells))
    gpu = document.rows[0].inputs.gpu
    return heat_map(
        "KV cache on one GPU, in GiB",
        "by tokens of context" + (f"; hatched: does not fit {gpu}" if gpu else ""),
        [format_length(context) for context in contexts],
        [Group(heading=model.rsplit("/")[-1], rows=rows) for model, rows in groups.items()],
    )


def _setting_name(row: SizeRow) -> str:
    """`bf16, 8 GPUs, batch 4`; one GPU and a batch of one go without saying."""
    dtype, num_gpus, batch_size = _setting(row)
    gpus = f", {_gpus(num_gpus)}" if num_gpus > 1 else ""
    return f"{dtype}{gpus}" + (f", batch {batch_size}" if batch_size > 1 else "")


def _gpus(num_gpus: int) -> str:
    return f"{num_gpus} GPU{'s' if num_gpus > 1 else ''}"
