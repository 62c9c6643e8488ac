"""llama.cpp's and Ollama's caches: the cells and bytes that the log says beside what the same start is planned to
allocate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from kvtool.catalog.model import CacheKind, FullAttention, LatentAttention, Model
from kvtool.results import VerifyRow
from kvtool.sizing.engines.llama_cpp import VERSION, LlamaCppFlags, LlamaCppPlan, ollama_start, plan
from kvtool.sizing.engines.llama_cpp.plan import Cache
from kvtool.sizing.engines.llama_cpp.start import CELL_MULTIPLE, DEFAULT_UBATCH_TOKENS, Start
from kvtool.sizing.engines.versions import parse_release
from kvtool.units import ceil_div, round_up
from kvtool.verify.facts import Figure, LogFacts, exactly
from kvtool.verify.rows import BYTES, estimate_row, exact, exact_row

CELLS, LAYERS = "cells", "layers"
_OWN_ENGINE = (0, 12)  # an Ollama with an engine of its own, where the log does not say which


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedCache:
    """One `llama_kv_cache: size = ...` line; cells and layers are None in the line of before mid 2025."""

    k_size: Figure
    v_size: Figure
    cells: Figure | None = None
    layers: Figure | None = None


def llama_cpp_rows(facts: LogFacts, model: Model, cache_type: str | None) -> tuple[list[VerifyRow], list[str]]:
    """The rows, and what they rest on. `cache_type` is K's and V's where the log does not tell. Raises KvtoolError."""
    start, assumed = _start(facts)
    flags = _flags(facts, cache_type)
    if start is None:
        return [], ["the log does not say how many cells there are (n_ctx, or the cells of a cache)"]
    if (whole := _heads_of_latents(facts, model)) is not None:
        model = whole
        assumed.append("its V has bytes: a GGUF without attn_k_b and attn_v_b, K and V of heads in place of latents")
    planned = plan(model, flags, start)
    if planned.refusal is not None:
        return [], [f"not planned: {planned.refusal}"]
    rows = [*_cache_rows(facts, planned), *_state_rows(facts, planned), *_ollama_rows(facts, planned)]
    return rows, [*assumed, f"predictions follow llama.cpp {VERSION}"]


def _heads_of_latents(facts: LogFacts, model: Model) -> Model | None:
    """MLA as llama.cpp keeps it from GGUFs of before May 2025; None where the log shows no V or no layer is MLA."""
    value = facts.first("v_size")
    if value is None or value.value <= 0:
        return None
    layers = [replace(layer, cache=_heads(layer.cache, model.num_heads)) for layer in model.layers]
    return replace(model, layers=tuple(layers)) if tuple(layers) != model.layers else None


def _heads(cache: CacheKind | None, heads: int) -> CacheKind | None:
    if not isinstance(cache, LatentAttention) or cache.qk_nope_head_dim is None or cache.v_head_dim is None:
        return cache
    key = cache.qk_nope_head_dim + cache.qk_rope_head_dim
    return FullAttention(kv_heads=heads, k_head_dim=key, v_head_dim=cache.v_head_dim)


def logged_caches(facts: LogFacts) -> list[LoggedCache]:
    """In the order of the log: llama.cpp makes the cache that sees everything first."""
    k_sizes, v_sizes, cells = facts.of("k_size"), facts.of("v_size"), facts.of("cells")
    if len(cells) != len(k_sizes):
        return [LoggedCache(k_size=k, v_size=v) for k, v in zip(k_sizes, v_sizes, strict=False)]
    parts = zip(k_sizes, v_sizes, cells, facts.of("layers"), strict=False)
    return [LoggedCache(k_size=k, v_size=v, cells=count, layers=layers) for k, v, count, layers in parts]


def _start(facts: LogFacts) -> tuple[Start | None, list[str]]:
    """The start as the log tells it, and what it does not."""
    slots = _whole(facts.first("n_seq_max") or facts.first("seqs") or facts.last("parallel")) or 1
    ubatch = _whole(facts.first("n_ubatch")) or DEFAULT_UBATCH_TOKENS
    unified = facts.flags.get("kv_unified") == "true" or slots == 1
    if (asked := _whole(facts.last("ctx_size"))) is not None and not facts.of("k_size"):
        version = parse_release(facts.version) if facts.version else _OWN_ENGINE
        flags = LlamaCppFlags(parallel=slots, ubatch=ubatch)
        return ollama_start(flags, ceil_div(asked, slots), version), []
    cells = _whole(facts.first("n_ctx") or facts.first("kv_size") or facts.largest("cells"))
    if cells is None:
        return None, []
    told = [] if facts.of("n_ubatch") else [f"the log does not say n_ubatch: {ubatch}"]
    streams = 1 if unified else slots
    each = round_up(max(1, cells // streams), CELL_MULTIPLE) if facts.of("n_ctx") else cells
    return Start(slots=slots, streams=streams, cells=each, ubatch=ubatch, swa_full=False), told


def _flags(facts: LogFacts, cache_type: str | None) -> LlamaCppFlags:
    named = cache_type or facts.flags.get("kv_cache_type") or "f16"
    off = facts.flags.get("flash_attn") in ("0", "disabled")
    return LlamaCppFlags(
        cache_type_k=cache_type or facts.flags.get("cache_type_k") or named,
        cache_type_v=cache_type or facts.flags.get("cache_type_v") or named,
        flash_attn="off" if off else "auto",
    )


def _cache_rows(facts: LogFacts, planned: LlamaCppPlan) -> Iterator[VerifyRow]:
    caches = [cache for cache in planned.caches if cache.name != "RS"]
    logged = logged_caches(facts)
    for cache, line in zip(caches, logged, strict=False):
        name = "" if cache.name == "KV" else f"{cache.name.removesuffix(' KV')} "
        if line.cells is not None:
            yield exact_row(f"{name}KV cells", CELLS, line.cells, exact(cache.rows // planned.start.streams))
            yield exact_row(f"{name}KV layers", LAYERS, line.layers, exact(len(cache.layers)))
        text = _cells_text(cache, planned.start)
        yield exact_row(f"{name}K size", BYTES, line.k_size, exact(cache.k_bytes), text)
        yield exact_row(f"{name}V size", BYTES, line.v_size, exact(cache.v_bytes))
    if facts.flags.get("pages"):
        each = round(facts.readings[0].figure.value) // planned.start.slots
        yield exact_row("tokens of a slot", CELLS, exactly(each), exact(planned.start.cells))
    for cache in caches[len(logged) :] if logged or facts.flags.get("pages") else ():
        yield exact_row(f"{cache.name} cache", BYTES, None, exact(cache.total_bytes), _cells_text(cache, planned.start))


def _cells_text(cache: Cache, start: Start) -> str:
    text = f"{len(cache.layers)} layers x {cache.rows:,} cells"
    if cache.window is None:
        return text
    sequences = start.slots if start.streams == 1 else 1
    return f"{text}: windows of {cache.window:,} x {sequences} and a batch of {start.ubatch}, the context at most"


def _state_rows(facts: LogFacts, planned: LlamaCppPlan) -> Iterator[VerifyRow]:
    for cache in planned.caches:
        if cache.name == "RS" and facts.of("ssm_state"):
            text = f"{len(cache.layers)} layers x {cache.rows} sequences, in fp32"
            yield exact_row("convolution state", BYTES, facts.first("conv_state"), exact(cache.k_bytes), text)
            yield exact_row("recurrent state", BYTES, facts.first("ssm_state"), exact(cache.v_bytes), text)


def _ollama_rows(facts: LogFacts, planned: LlamaCppPlan) -> Iterator[VerifyRow]:
    """Ollama's sum over the devices, and its estimate before it loads."""
    by_device = {reading.rank: reading.figure for reading in facts.readings if reading.term == "on_device"}
    total, figures = planned.total_bytes, by_device.values()
    if figures and not facts.of("k_size"):
        whole = Figure(
            value=sum(x.value for x in figures), low=sum(x.low for x in figures), high=sum(x.high for x in figures)
        )
        text = f"over {len(figures)} devices; {planned.start.cells * planned.start.streams:,} cells"
        yield exact_row("KV cache", BYTES, whole, exact(total), text)
    if (required := facts.last("required")) is not None:
        yield estimate_row("KV cache, before loading", BYTES, required, total, "Ollama's own estimate")


def _whole(figure: Figure | None) -> int | None:
    return None if figure is None or figure.value < 1 else round(figure.value)
