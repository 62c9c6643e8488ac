"""The tables of a size document: what the layers of a model keep, and a row for each context and batch size."""

from __future__ import annotations

from kvtool.report.tables import Table
from kvtool.results import SizeFit, SizeLayers, SizeRow
from kvtool.units import format_bytes, format_bytes_short, format_length, format_ms


def need(rows: list[SizeRow]) -> str:
    """The answer where no card is asked about: what the cache takes of a GPU, from the least row to the largest; or
    what an engine's pool holds.
    """
    pooled = next((row.engine for row in rows if row.engine.max_concurrency and row.engine.pool_bytes), None)
    if pooled is not None and pooled.gpu_kv_cache_tokens and pooled.name not in ("llama.cpp", "ollama"):
        longest = format_length(pooled.max_model_len or 0)
        return (
            f"{format_bytes(pooled.pool_bytes or 0)} hold {pooled.gpu_kv_cache_tokens:,} tokens, "
            f"{pooled.max_concurrency:,.2f} requests of {longest} at once."
        )
    each = " a GPU" if rows[0].inputs.num_gpus > 1 else ""
    least, *_, most = sorted([rows[0], *rows], key=lambda row: row.kv.bytes_per_gpu)
    if least.kv.bytes_per_gpu == most.kv.bytes_per_gpu:
        return f"{format_bytes(most.kv.bytes_per_gpu)} of KV cache{each} for {_asked(most)}."
    return (
        f"From {format_bytes(least.kv.bytes_per_gpu)} of KV cache{each} for {_asked(least)} to "
        f"{format_bytes(most.kv.bytes_per_gpu)} for {_asked(most)}."
    )


def _asked(row: SizeRow) -> str:
    inputs = row.inputs
    return f"{format_length(inputs.context)} x {inputs.batch_size:,} in {inputs.kv_cache_dtype}"


def layer_table(rows: list[SizeRow]) -> Table:
    """What the layers of one model keep, under each cache dtype of its rows."""
    shown = [
        (row.inputs.kv_cache_dtype, layers)
        for row in {row.inputs.kv_cache_dtype: row for row in rows}.values()
        for layers in row.layers
    ]
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


def layer_sentence(table: Table) -> str | None:
    """A table of one line, of layers that grow without bound, as a sentence; else None."""
    if len(table.rows) != 1 or table.rows[0][-1]:
        return None
    dtype, layers, shape, *_, size, _bound = table.rows[0]
    return f"A token takes {size} bytes in {dtype}: {layers} layers" + (f" of {shape}." if shape else ".")


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
    columns += ["most\nseqs", "longest", "least\nTPOT ms"] if inputs.gpu else ["read\na step"]
    where = f" on {inputs.num_gpus} x {inputs.gpu}" if inputs.gpu else ""
    pages = f"pages of {inputs.block_size} tokens" if inputs.block_size > 1 else "cells of one token"
    note = f"In {pages}. {_room(fit)}"
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
    if fit.kv_pool_bytes is None or fit.max_context is None:
        return (*cells, "?", "?", tpot)
    return (*cells, f"{fit.max_batch_size:,}", format_length(fit.max_context), tpot)
