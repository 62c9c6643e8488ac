"""The lines of SGLang 0.5.23's log that say what a rank allocated, word for word as far as the plan knows them."""

from __future__ import annotations

from collections.abc import Iterator

from kvtool.sizing.engines.sglang.backend import Backend
from kvtool.sizing.engines.sglang.cells import TokenCell
from kvtool.sizing.engines.sglang.plan import Allocation
from kvtool.units import GIB

MAX_PREFILL_TOKENS = 16384


def log_lines(allocation: Allocation, backend: Backend) -> Iterator[str]:
    """In the order of the log; the last one ends before the free memory, which only a start can know."""
    cells, tokens, page = allocation.cells, allocation.tokens, allocation.flags.page_size
    if cells.swa is not None and cells.full.layers:
        yield f"Use sliding window memory pool. full_layer_tokens={tokens.full}, swa_layer_tokens={tokens.swa}"
    if cells.state is not None and tokens.state_slots is not None:
        rows = tokens.state_slots + 1
        yield (
            f"Mamba Cache is allocated. max_mamba_cache_size: {tokens.state_slots}, "
            f"conv_state size: {_gb(rows * cells.state.conv_bytes)}GB, "
            f"ssm_state size: {_gb(rows * cells.state.recurrent_bytes)}GB"
        )
    if cells.swa is None:
        yield _pool_line("KV Cache", cells.full, tokens.full, page, backend)
    else:
        yield _pool_line("Full KV Cache", cells.full, tokens.full, page, backend)
        yield _pool_line("SWA KV Cache", cells.swa, tokens.swa or 0, page, backend)
        total = rows_bytes(cells.full, tokens.full, page) + rows_bytes(cells.swa, tokens.swa or 0, page)
        yield f"SWAKVPool mem usage: {_gb(total)} GB, swa size: {tokens.swa}, full size: {tokens.full}"
    yield (
        f"max_total_num_tokens={allocation.max_total_num_tokens}, "
        f"chunked_prefill_size={allocation.flags.chunked_prefill_size}, max_prefill_tokens={MAX_PREFILL_TOKENS}, "
        f"max_running_requests={allocation.max_running_requests}, context_len={allocation.flags.context}"
    )


def rows_bytes(cell: TokenCell, tokens: int, page_size: int) -> int:
    """What a pool really allocates: its tokens and a page more, where padding is written."""
    return (tokens + page_size) * cell.bytes_per_token


def _pool_line(name: str, cell: TokenCell, tokens: int, page_size: int, backend: Backend) -> str:
    rows = tokens + page_size
    head = f"{name} is allocated. dtype: {backend.torch_dtype}, #tokens: {tokens}"
    if not cell.v_bytes:
        return f"{head}, KV size: {_gb(rows * cell.bytes_per_token)} GB"
    k_size, v_size = rows * cell.layers * cell.k_bytes, rows * cell.layers * cell.v_bytes
    return f"{head}, K size: {_gb(k_size)} GB, V size: {_gb(v_size)} GB"


def _gb(count: int) -> str:
    return f"{count / GIB:.2f}"
