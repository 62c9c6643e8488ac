"""The lines of llama.cpp's log that say what it allocated, word for word."""

from __future__ import annotations

from collections.abc import Iterator

from kvtool.sizing.engines.llama_cpp.plan import STATES, Cache, LlamaCppPlan
from kvtool.units import MIB


def log_lines(plan: LlamaCppPlan) -> Iterator[str]:
    for cache in plan.caches:
        yield _state_line(plan, cache) if cache.name == STATES else _cells_line(plan, cache)


def _cells_line(plan: LlamaCppPlan, cache: Cache) -> str:
    start, flags = plan.start, plan.flags
    cells = cache.rows // start.streams
    return (
        f"llama_kv_cache: size = {_mib(cache.total_bytes)} MiB ({cells:6d} cells, {len(cache.layers):3d} layers, "
        f"{start.slots:2d}/{start.streams} seqs), K ({flags.cache_type_k}): {_mib(cache.k_bytes)} MiB, "
        f"V ({flags.cache_type_v}): {_mib(cache.v_bytes)} MiB"
    )


def _state_line(plan: LlamaCppPlan, cache: Cache) -> str:
    return (
        f"llama_memory_recurrent: size = {_mib(cache.total_bytes)} MiB ({cache.rows:6d} cells, "
        f"{plan.model.num_layers:3d} layers, {plan.start.slots:2d} seqs  0 rs_seq), "
        f"R (f32): {_mib(cache.k_bytes)} MiB, S (f32): {_mib(cache.v_bytes)} MiB"
    )


def _mib(count: int) -> str:
    return f"{count / MIB:7.2f}"
