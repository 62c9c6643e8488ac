"""A plan of SGLang's as the `engine` part of a size row: pools, log lines, and where the bytes go."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from kvtool.catalog.model import FullAttention, SharedAttention, SlidingAttention
from kvtool.results import SizeEngine
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.sglang.backend import is_mla
from kvtool.sizing.engines.sglang.cells import StateCell, TokenCell
from kvtool.sizing.engines.sglang.log import log_lines, rows_bytes
from kvtool.sizing.engines.sglang.plan import VERSION, Allocation, SglangPlan, sliding_kept_whole
from kvtool.sizing.engines.sglang.versions import HISTORY
from kvtool.sizing.engines.versions import EXTRAPOLATED
from kvtool.units import ceil_div, round_up

NAME = "sglang"


def size_engine(plan: SglangPlan, *, context: int | None = None) -> SizeEngine:
    """The plan in the words that all engines share; a block is a page of the full pool. What is idle, and the page
    tail, are those of sequences of `context` tokens, at most the longest; without one, of the longest.
    """
    allocation, backend = plan.allocation, plan.backend
    version = plan.options.version or VERSION
    if allocation is None or backend is None:
        return SizeEngine(
            name=NAME,
            version=version,
            standing=HISTORY.standing(version),
            refusal=plan.refusal,
            exact_given_pool=False,
            pool_bytes=plan.pool_bytes,
        )
    page, longest = allocation.flags.page_size, allocation.flags.context
    cell = (allocation.cells.full if allocation.tokens.full else allocation.cells.swa) or allocation.cells.full
    return SizeEngine(
        name=NAME,
        version=version,
        standing=HISTORY.standing(version),
        block_size=page,
        bytes_per_block=page * cell.bytes_per_token,
        num_blocks=allocation.max_total_num_tokens // page,
        blocks_per_request=ceil_div(longest, page * allocation.dcp),
        max_concurrency=allocation.sequences(longest),
        gpu_kv_cache_tokens=allocation.cached_tokens,
        log_line="\n".join(log_lines(allocation, backend)),
        groups=list(_groups(allocation, longest)),
        ledger=[*_shares(plan, allocation), *_costs(plan, allocation, min(context or longest, longest))],
        exact_given_pool=not plan.inexact and HISTORY.standing(version) != EXTRAPOLATED,
        max_model_len=longest,
        max_num_batched_tokens=allocation.flags.chunked_prefill_size,
        max_num_seqs=allocation.max_running_requests,
        kv_tp_replicas=_copies(plan),
        pool_bytes=plan.pool_bytes,
        fixed_bytes_per_request=_fixed_bytes(allocation),
        slope_bytes_per_token=ceil_div(allocation.cells.full.bytes_per_token, allocation.dcp),
    )


def _fixed_bytes(allocation: Allocation) -> int:
    """What a long request keeps of windows and states on a GPU."""
    cells, flags = allocation.cells, allocation.flags
    windows = 0 if cells.swa is None else allocation.swa_tokens_of(flags.context) * cells.swa.bytes_per_token
    return windows + (flags.slots_per_request * cells.charged_state_bytes if cells.state else 0)


def assumptions(plan: SglangPlan, options: EngineOptions) -> Iterator[str]:
    """What the plan takes for given, and why it may not be what SGLang does."""
    if (caveat := HISTORY.caveat(options.version)) is not None:
        yield caveat
    yield from (f"SGLang: {remark}" for remark in plan.remarks)
    yield from (f"the SGLang plan is approximate: {reason}" for reason in plan.inexact)
    if options.kv_cache_memory_bytes is None:
        yield (
            "SGLang measures its pool at the start; here it is an estimate (--kv-cache-memory-bytes gives the real one)"
        )


def _groups(allocation: Allocation, context: int) -> Iterator[dict[str, Any]]:
    """The pools; `sequences` of `context` tokens is how many each can hold at once."""
    tokens, cells, page = allocation.tokens, allocation.cells, allocation.flags.page_size
    at_once = allocation.concurrency(context)
    if cells.full.layers:
        yield _token_group("full", cells.full, tokens.full, page) | {"sequences": at_once.get("full")}
    if cells.swa is not None and tokens.swa is not None:
        yield _token_group("swa", cells.swa, tokens.swa, page) | {
            "window": cells.window,
            "sequences": at_once.get("swa"),
        }
    if cells.state is not None and tokens.state_slots is not None:
        yield _state_group(cells.state, tokens.state_slots) | {
            "slots_per_request": allocation.flags.slots_per_request,
            "sequences": at_once["state"],
        }


def _token_group(pool: str, cell: TokenCell, tokens: int, page: int) -> dict[str, Any]:
    return {
        "pool": pool,
        "layers": cell.layers,
        "bytes_per_token": cell.bytes_per_token,
        "index_bytes_per_token": cell.index_layers * cell.index_bytes,
        "tokens": tokens,
        "bytes": rows_bytes(cell, tokens, page),
    }


def _state_group(cell: StateCell, slots: int) -> dict[str, Any]:
    return {
        "pool": "state",
        "layers": cell.layers,
        "bytes_per_slot": cell.bytes_per_slot,
        "slots": slots,
        "bytes": (slots + 1) * cell.bytes_per_slot,
    }


def _shares(plan: SglangPlan, allocation: Allocation) -> Iterator[dict[str, Any]]:
    """What the bytes of a GPU are given to; these terms add up to all of them."""
    tokens, cells = allocation.tokens, allocation.cells
    index_bytes = cells.full.index_layers * cells.full.index_bytes
    yield _term(plan, "tokens of full attention", tokens.full * cells.full.kv_bytes)
    if index_bytes:
        yield _term(plan, "index keys", tokens.full * index_bytes)
    if cells.full.draft_bytes:
        yield _term(plan, "drafts", tokens.full * cells.full.draft_bytes)
    if cells.swa is not None and tokens.swa is not None:
        yield _term(plan, "tokens of windows", tokens.swa * cells.swa.bytes_per_token)
    if tokens.state_slots is not None:
        yield _term(plan, "state slots", (tokens.state_slots + 1) * allocation.cells.charged_state_bytes)
    limited = " (--max-total-tokens)" if plan.options.max_total_tokens else ""
    yield _term(plan, f"left over{limited}", plan.pool_bytes - allocation.charged_bytes)


def _costs(plan: SglangPlan, allocation: Allocation, context: int) -> Iterator[dict[str, Any]]:
    """What a part of those bytes is spent on, and what is allocated beside them; each with what would save it."""
    yield from _layout_costs(plan, allocation, context)
    if allocation.cells.swa is not None:
        yield from _window_costs(plan, allocation, context)
    yield from _slot_costs(plan, allocation)
    page = allocation.flags.page_size
    tail = round_up(context, page) - context
    if tail:
        yield _term(
            plan,
            f"page tail of a sequence of {context:,} tokens",
            tail * allocation.cells.full.bytes_per_token,
            "a smaller --page-size where the backend takes one",
        )
    padding = page * (allocation.cells.full.bytes_per_token + _swa_bytes_per_token(allocation))
    yield _term(plan, "padding page, allocated beside the pools", padding)
    yield _term(
        plan,
        "request table, allocated beside the pools",
        allocation.request_table_bytes,
        "a smaller --context-length or --max-running-requests",
    )


def _layout_costs(plan: SglangPlan, allocation: Allocation, context: int) -> Iterator[dict[str, Any]]:
    model, copies = plan.model, _copies(plan)
    if copies > 1:
        stored = allocation.max_total_num_tokens * allocation.cells.full.bytes_per_token
        yield _term(
            plan,
            f"the same tokens on {copies} ranks: what a rank would save if they were split",
            stored - stored // copies,
            "--enable-dp-attention, or --dcp-size",
        )
    shared = sum(isinstance(layer.cache, SharedAttention) for layer in model.layers)
    if shared:
        stored = allocation.charged_bytes * shared // model.num_layers
        yield _term(plan, f"about what the {shared} KV-sharing layers take, which store nothing of their own", stored)
    if sliding_kept_whole(model):
        yield _sliding_whole(plan, allocation, context)


def _copies(plan: SglangPlan) -> int:
    """Ranks that keep the same tokens: all of those that tp would split, for MLA; tp over KV heads for the rest."""
    ranks = plan.options.parallel.attention_tp // plan.options.parallel.dcp
    heads = [layer.cache.kv_heads for layer in plan.model.layers if isinstance(layer.cache, FullAttention)]
    return ranks if is_mla(plan.model) else max(1, ranks // max(heads)) if heads else 1


def _sliding_whole(plan: SglangPlan, allocation: Allocation, context: int) -> dict[str, Any]:
    """Bytes of a sequence that no sliding layer will read again."""
    cell = allocation.cells.full
    windows = [layer.cache.window for layer in plan.model.layers if isinstance(layer.cache, SlidingAttention)]
    beyond = sum(max(0, context - window) for window in windows) * (cell.k_bytes + cell.v_bytes)
    return _term(plan, f"of a sequence of {context:,} tokens, what is past the window of its sliding layers", beyond)


def _window_costs(plan: SglangPlan, allocation: Allocation, context: int) -> Iterator[dict[str, Any]]:
    """What one of the two pools cannot use at full length because the other, or the scheduler, is out first."""
    cells, tokens = allocation.cells, allocation.tokens
    assert cells.swa is not None
    runs = allocation.sequences(context)
    of_swa, of_full = allocation.swa_tokens_of(context), round_up(context, allocation.flags.page_size)
    ratio = max(1, math.ceil(1000 * of_swa / of_full)) / 1000
    remedy = f"--swa-full-tokens-ratio {ratio} balances the pools at {context:,} tokens"
    idle_swa = tokens.swa - round(runs * of_swa) if tokens.swa is not None else 0
    idle_full = tokens.full - round(runs * of_full) if cells.full.layers else 0
    if idle_swa > 0:
        name = f"window tokens that {context:,}-token sequences leave idle"
        yield _term(plan, name, idle_swa * cells.swa.bytes_per_token, remedy)
    if idle_full > 0:
        name = f"full tokens that {context:,}-token sequences leave idle"
        yield _term(plan, name, idle_full * cells.full.bytes_per_token, remedy)


def _slot_costs(plan: SglangPlan, allocation: Allocation) -> Iterator[dict[str, Any]]:
    slots = allocation.tokens.state_slots
    if slots is None:
        return
    spare = slots - allocation.max_running_requests
    yield _term(
        plan,
        f"state slots beyond one for each of {allocation.max_running_requests:,} requests: cached prefixes, overlap",
        spare * allocation.cells.charged_state_bytes,
        "--disable-radix-cache takes one slot a request; --mamba-full-memory-ratio sets the share",
    )


def _swa_bytes_per_token(allocation: Allocation) -> int:
    return 0 if allocation.cells.swa is None else allocation.cells.swa.bytes_per_token


def _term(plan: SglangPlan, term: str, count: int, remedy: str | None = None) -> dict[str, Any]:
    """`ratio` is to the bytes that a GPU has for caches."""
    return {
        "term": term,
        "bytes": count,
        "ratio": round(count / plan.pool_bytes, 6) if plan.pool_bytes > 0 else None,
        "remedy": remedy,
    }
