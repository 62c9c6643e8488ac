"""What an engine would allocate, for a terminal: the line it logs or its refusal, its groups, where the bytes go."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from kvtool.report.tables import Table
from kvtool.results import PLANNED_NAMES, SizeDocument, SizeEngine, SizeRow
from kvtool.units import format_bytes, format_length

if TYPE_CHECKING:
    from rich.console import Console

_POOLS = {"indexer": "indexer keys", "full": "tokens", "swa": "tokens of windows", "state": "states"}
# vLLM's names of its specs, as the layer table calls such layers.
_WORDS = {
    "FullAttentionSpec": "full",
    "MLAAttentionSpec": "mla",
    "SlidingWindowSpec": "sliding",
    "SlidingWindowMLASpec": "sliding rows",
    "ChunkedLocalAttentionSpec": "chunked",
    "CrossAttentionSpec": "cross",
    "MambaSpec": "state",
}


def print_engine(rows: list[SizeRow], console: Console, *, told: str = "") -> None:
    """The engine's section under the rows of one model: one part for each cache dtype; no refusal that is `told`."""
    from rich.text import Text

    for dtype, same in groupby(rows, key=lambda row: row.inputs.kv_cache_dtype):
        row, several = _largest_start([*same])
        engine = row.engine
        if engine.name is None:
            continue
        name = f"{engine_name(engine)} {engine.version}{_extrapolated(engine)}"
        started = f", started for {format_length(row.inputs.context)} x {row.inputs.batch_size}" if several else ""
        console.print(Text.assemble((name, "bold"), f", {dtype} cache{started}: {_blocks(engine)}"))
        if engine.log_line:
            console.print(engine.log_line, highlight=False, soft_wrap=True)
        if engine.refusal and engine.refusal.removesuffix(".") not in told:
            console.print(f"would not start: {engine.refusal}", style="red", highlight=False, markup=False)
        if engine.groups:
            console.print(_groups_of(engine))
            console.print(_request(engine), style="dim", highlight=False)


def _largest_start(rows: list[SizeRow]) -> tuple[SizeRow, bool]:
    """The row whose start has the most cells, and whether rows have starts of their own (llama.cpp's, without -c)."""
    starts = {row.engine.num_blocks for row in rows}
    if len(starts) < 2 or _unit(rows[0].engine) != "cells":
        return rows[0], False
    return max(rows, key=lambda row: row.engine.num_blocks or 0), True


def _extrapolated(engine: SizeEngine) -> str:
    """That no rules of this release are known, which the numbers hang on more than on anything else."""
    return " (extrapolated)" if engine.standing == "extrapolated" else ""


def engine_name(engine: SizeEngine) -> str:
    """As its makers write it."""
    return PLANNED_NAMES.get(engine.name or "", engine.name or "")


def _blocks(engine: SizeEngine) -> str:
    if engine.num_blocks is None or engine.bytes_per_block is None:
        return "no plan"
    sizes = engine.bytes_per_block if isinstance(engine.bytes_per_block, list) else [engine.bytes_per_block]
    each = " and ".join(f"{size:,}" for size in sizes)
    approximate = "" if engine.exact_given_pool else ", approximate"
    return f"{engine.num_blocks:,} {_unit(engine)} of {each} B in {format_bytes(engine.pool_bytes or 0)}{approximate}"


def _unit(engine: SizeEngine) -> str:
    """What the engine counts."""
    return "cells" if engine.name in ("llama.cpp", "ollama") else "blocks"


def _groups_of(engine: SizeEngine) -> Table:
    return pool_table(engine) if "pool" in (engine.groups or [{}])[0] else group_table(engine)


def pool_table(engine: SizeEngine) -> Table:
    """Pools of SGLang's: of tokens for full layers and for windows, and of slots for states."""
    lines = []
    for pool in engine.groups or []:
        each, count = ("bytes_per_slot", "slots") if pool["pool"] == "state" else ("bytes_per_token", "tokens")
        sequences = "-" if pool["sequences"] is None else f"{pool['sequences']:,.2f}"
        cells = (f"{pool['layers']}", f"{pool[each]:,}", f"{pool[count]:,}", format_bytes(pool["bytes"]), sequences)
        lines.append((_POOLS[pool["pool"]], *cells))
    return Table(
        title=f"Pools of {engine_name(engine)}",
        columns=("", "layers", "B each", "count", "bytes", f"seqs of {format_length(engine.max_model_len or 0)}"),
        rows=lines,
        labels=1,
    )


def group_table(engine: SizeEngine) -> Table:
    """Alike groups on one line; blocks are those of a request as long as the engine takes."""
    lines = []
    for cells, same in groupby(engine.groups or [], key=_group_cells):
        lines.append((f"{len(list(same))} x", *cells))
    return Table(
        title=f"Groups of {engine_name(engine)}",
        columns=("", "layers", "tokens\na block", "page B\na layer", "page B", "blocks"),
        rows=lines,
        labels=2,
    )


def _request(engine: SizeEngine) -> str:
    """What one request takes: at its longest, and the two numbers that tell it for any length."""
    two = (
        f"Per request and GPU in the long run: {format_bytes(engine.fixed_bytes_per_request or 0)} + "
        f"{engine.slope_bytes_per_token or 0:,} B a token."
    )
    if engine.blocks_per_request is None:
        return two
    # A cell holds one token of a row's context, where vLLM's blocks are those of the longest request.
    tokens = engine.blocks_per_request if _unit(engine) == "cells" else engine.max_model_len or 0
    return f"A request of {format_length(tokens)} tokens takes {engine.blocks_per_request:,} {_unit(engine)}. {two}"


def _group_cells(group: dict[str, Any]) -> tuple[str, ...]:
    words = "+".join(_WORDS.get(kind, kind) for kind in group["layer_kinds"])
    pages = group["page_size_bytes"]
    each = " ".join(f"{page:,}" for page in pages) if isinstance(pages, list) else f"{pages:,}"
    return (
        f"{group['layers']} {words}",
        f"{group['block_size']:,}",
        each,
        f"{group['page_size_bytes_total']:,}",
        f"{group['blocks_per_request']:,}",
    )


def print_ledgers(document: SizeDocument, console: Console) -> None:
    """Where the bytes of a request go, for every row whose engine says it."""
    for row in document.rows:
        if row.engine.ledger:
            console.print(ledger_table(row))


def _share(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:.1f} %"


def ledger_table(row: SizeRow) -> Table:
    """The terms of one row's engine, and what would make them fewer."""
    lines = [
        (term["term"], term["remedy"] or "", format_bytes(term["bytes"]), _share(term["ratio"]))
        for term in row.engine.ledger or []
    ]
    tokens = format_length(min(row.inputs.context, row.engine.max_model_len or row.inputs.context))
    where = " on all GPUs" if row.inputs.num_gpus > 1 else ""
    what = f"reserves for {tokens} tokens{where}"
    if row.engine.groups and "pool" in row.engine.groups[0]:
        what = f"has for caches on a GPU, under sequences of {tokens} tokens"
    return Table(
        title=f"{engine_name(row.engine)} {what} ({row.inputs.kv_cache_dtype} cache)",
        columns=("of which", "less of it with", "bytes", "share"),
        rows=lines,
        labels=2,
    )
