"""A plan of llama.cpp's as the `engine` part of a size row: caches, log lines, and where the bytes go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvtool.results import SizeEngine
from kvtool.sizing.engines.llama_cpp.compute import compute_bytes
from kvtool.sizing.engines.llama_cpp.log import log_lines
from kvtool.sizing.engines.llama_cpp.plan import STATES, VERSION, WINDOWED, Cache, LlamaCppPlan, capacity
from kvtool.units import format_bytes

POOLS = {"KV": "full", "SWA KV": "swa", "indexer KV": "indexer", STATES: "state"}


def size_engine(plan: LlamaCppPlan, *, name: str, version: str | None = None, context: int | None = None) -> SizeEngine:
    """The plan in the words that all engines share: a block is one cell. Nothing of it follows from a card's memory."""
    start = plan.start
    if plan.refusal is not None:
        return SizeEngine(name=name, version=version or VERSION, refusal=plan.refusal, exact_given_pool=False)
    longest = min(context or start.context, start.context)
    return SizeEngine(
        name=name,
        version=version or VERSION,
        block_size=1,
        bytes_per_block=_bytes_per_cell(plan),
        num_blocks=start.cells * start.streams,
        blocks_per_request=longest,
        max_concurrency=capacity(plan, longest),
        gpu_kv_cache_tokens=start.cells * start.streams,
        log_line="\n".join(log_lines(plan)),
        groups=[_group(cache, plan) for cache in plan.caches],
        ledger=list(_ledger(plan)),
        exact_given_pool=True,
        max_model_len=start.context,
        max_num_seqs=start.slots,
        pool_bytes=plan.total_bytes,
        bytes_needed=_needed_bytes(plan),
        slope_bytes_per_token=_bytes_per_cell(plan),
    )


def assumptions(plan: LlamaCppPlan) -> Iterator[str]:
    """What the plan takes for given."""
    start = plan.start
    shared = "which share its cells" if start.streams == 1 and start.slots > 1 else "each with cells of its own"
    yield f"llama.cpp: {start.cells * start.streams:,} cells for {start.slots} slots, {shared} (--parallel)"
    yield f"llama.cpp as in {VERSION.removeprefix('of ')}"
    if plan.refusal is None:
        yield (
            f"llama.cpp: about {format_bytes(compute_bytes(plan))} more to compute in, an estimate of the graph of "
            f"{start.ubatch:,} tokens (--ubatch-size), on the GPU that has the output; not in the bytes of its caches"
        )
    if plan.flags.flash_attn == "auto":
        yield "llama.cpp: flash attention is taken to be on; without it a V of layers of several widths is padded"
    kept_whole = [layer for layer in plan.model.layers if getattr(layer.cache, "window", None)]
    if kept_whole and plan.model.architecture not in WINDOWED:
        yield f"llama.cpp knows no windows of {plan.model.architecture}: its sliding layers keep every token"


def _group(cache: Cache, plan: LlamaCppPlan) -> dict[str, Any]:
    """A pool in the words of SGLang's: tokens (cells) or slots, and what each takes in all of its layers."""
    each = cache.total_bytes // cache.rows
    rows = {"bytes_per_slot": each, "slots": cache.rows} if cache.name == STATES else {}
    return {
        "pool": POOLS[cache.name],
        "layers": len(cache.layers),
        **(rows or {"bytes_per_token": each, "tokens": cache.rows}),
        "window": cache.window,
        "bytes": cache.total_bytes,
        "bytes_by_gpu": [cache.bytes_on(gpu) for gpu in range(len(plan.flags.tensor_split))],
        "bytes_on_cpu": cache.bytes_on(None),
        "sequences": None,
    }


def _ledger(plan: LlamaCppPlan) -> Iterator[dict[str, Any]]:
    total = plan.total_bytes
    for cache in plan.caches:
        yield _term(
            f"{cache.name} cache, {cache.rows:,} {'states' if cache.name == STATES else 'cells'}",
            cache.total_bytes,
            total,
        )
    for cache in plan.caches:
        if cache.window is None or plan.start.swa_full:
            continue
        needed = cache.window * plan.start.slots
        beyond = max(0, cache.rows - needed)
        yield _term(
            f"of it, cells of windows beyond {plan.start.slots} x {cache.window:,}: a batch's tokens and padding",
            cache.total_bytes * beyond // cache.rows,
            total,
            "a smaller --ubatch-size",
        )
    yield _term("to compute in, an estimate beside the caches", compute_bytes(plan), None, "a smaller --ubatch-size")


def _term(term: str, count: int, total: int | None, remedy: str | None = None) -> dict[str, Any]:
    return {"term": term, "bytes": count, "ratio": round(count / total, 6) if total else None, "remedy": remedy}


def _bytes_per_cell(plan: LlamaCppPlan) -> int:
    """Of the caches that grow with the context."""
    growing = [cache for cache in plan.caches if cache.window is None and cache.name != STATES]
    return sum(layer.k_bytes + layer.v_bytes for cache in growing for layer in cache.layers)


def _needed_bytes(plan: LlamaCppPlan) -> int | list[int]:
    """On the GPU, or on each of several."""
    needed = [plan.bytes_on(gpu) for gpu in range(len(plan.flags.tensor_split))]
    return needed[0] if len(needed) == 1 else needed
