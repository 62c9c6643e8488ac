"""The fast torch path, for CPUs: index_copy into pages, then SDPA over the tokens of each sequence.

In bf16 the compiled kernels of `native` write the pages and attend over them in place, where this machine can build
them.

Consecutive pages are read in place; only pages that lie apart are copied together first. In decode the query heads of
a group are packed as rows of one attention, so that K and V are read once a group. Runs on any device torch runs on.

Between two layers' weights every operation runs with cold caches, so what depends on the block tables alone is worked
out once a step and shared by all layers (`_plan`), and small operations are avoided.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kvtool.kernels.cpu.dense import capped_attention, causal_attention, tokens_of
from kvtool.kernels.cpu.native import ROW, native, serves
from kvtool.kernels.quantise import largest, stored, vector_scales

if TYPE_CHECKING:
    from kvtool.kernels.interface import Scale, StepKernels

fused: StepKernels | None = None

# Up to this many tokens a sequence, one attention over all sequences padded to the longest beats one a sequence, in
# spite of the copy out of the pages; beyond, reading pages in place wins.
_BATCHED_DECODE_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """What a decode step's block tables and lengths come to. The padded part is for one attention over all sequences:
    `pages` [S * N], the mask [S, 1, 1, N * B], and the rows [n] of [S * N * B] that lie past the end of a sequence."""

    tables: list[list[int]]
    lengths: list[int]
    pages: Tensor
    mask: Tensor
    past_end: Tensor


@lru_cache(maxsize=2)
def _plan(block_tables: Tensor, seq_lens: Tensor, block_size: int, dtype: torch.dtype) -> DecodePlan:
    """Of two tensors that nobody writes to afterwards: they are remembered by identity."""
    slots = torch.arange(block_tables.shape[1] * block_size, device=seq_lens.device)
    past_end = slots >= seq_lens[:, None]
    return DecodePlan(
        tables=block_tables.tolist(),
        lengths=seq_lens.tolist(),
        pages=block_tables.masked_fill(past_end[:, ::block_size], 0).flatten(),  # past the end an entry is anything
        mask=torch.zeros(past_end.shape, dtype=dtype).masked_fill_(past_end, float("-inf"))[:, None, None],
        past_end=past_end.flatten().nonzero().flatten(),
    )


def store_kv(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    *,
    k_scale: Scale = 1.0,
    v_scale: Scale = 1.0,
) -> None:
    kernels = native()
    if kernels is not None and _are_one(k_scale, v_scale) and all(_whole_rows(t) for t in (k, v, k_cache, v_cache)):
        kernels.store_rows(k, k_cache, slots)
        kernels.store_rows(v, v_cache, slots)
        return
    if not _all_written(slots):
        kept = slots >= 0
        k, v, slots = k[kept], v[kept], slots[kept]
    _store(k, k_cache, slots, k_scale)
    _store(v, v_cache, slots, v_scale)


def store_latent(latent: Tensor, cache: Tensor, slots: Tensor, *, latent_dim: int, scale: Scale = 1.0) -> None:
    kernels = native()
    if kernels is not None and _are_one(scale) and serves(latent, cache):
        kernels.store_rows(latent, cache, slots)
        return
    if not _all_written(slots):
        latent, slots = latent[slots >= 0], slots[slots >= 0]
    if not isinstance(scale, Tensor):
        _store(latent, cache, slots, scale)
        return
    for part, one in ((slice(latent_dim), 0), (slice(latent_dim, None), 1)):
        _store(latent[:, part], cache[..., part], slots, scale[..., one])


def paged_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    k_scale: Scale = 1.0,
    v_scale: Scale = 1.0,
) -> Tensor:
    if softcap or sinks is not None or len(q) > len(seq_lens) or not _are_numbers(k_scale, v_scale):
        query_starts = torch.arange(len(seq_lens) + 1) * (len(q) // len(seq_lens))
        features: dict[str, Any] = {"softcap": softcap, "sinks": sinks, "k_scale": k_scale, "v_scale": v_scale}
        return paged_prefill(
            q, k_cache, v_cache, block_tables, seq_lens, query_starts, scale=scale, window=window, **features
        )
    kernels = native()
    if kernels is not None and _are_one(k_scale, v_scale) and serves(q, k_cache, v_cache):
        return kernels.paged_decode(q, k_cache, v_cache, block_tables, seq_lens, scale, window)
    num_heads, kv_heads = q.shape[1], k_cache.shape[2]
    # [S, HKV, G, D]: the queries of one group are rows over the same keys.
    grouped = q.view(len(q), kv_heads, num_heads // kv_heads, -1)
    plan = _plan(block_tables, seq_lens, k_cache.shape[1], q.dtype)
    longest = max(plan.lengths)
    if window == 0 and len(q) > 1 and min(plan.lengths) > 0 and longest <= _BATCHED_DECODE_TOKENS:
        k, v = _padded(k_cache, plan, q.dtype, k_scale), _padded(v_cache, plan, q.dtype, v_scale)
        return scaled_dot_product_attention(grouped, k, v, attn_mask=plan.mask, scale=scale).flatten(1, 2)
    rows = []
    for query, table, seq_len in zip(grouped, plan.tables, plan.lengths, strict=True):
        if seq_len == 0:
            rows.append(query.new_zeros(1, *query.shape[:2], v_cache.shape[3]))
            continue
        first = max(0, seq_len - window) if window else 0
        k = tokens_of(k_cache, table, first, seq_len, dtype=q.dtype, scale=k_scale).transpose(0, 1)
        v = tokens_of(v_cache, table, first, seq_len, dtype=q.dtype, scale=v_scale).transpose(0, 1)
        rows.append(scaled_dot_product_attention(query[None], k[None], v[None], scale=scale))
    return (rows[0] if len(rows) == 1 else torch.cat(rows)).flatten(1, 2)


def paged_prefill(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    query_starts: Tensor,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    k_scale: Scale = 1.0,
    v_scale: Scale = 1.0,
    k_rope: Tensor | None = None,
    max_query_len: int | None = None,
) -> Tensor:
    if k_rope is not None:  # to each head its whole keys
        k_cache = torch.cat((k_cache, k_rope.unsqueeze(2).expand(-1, -1, k_cache.shape[2], -1)), dim=-1)
    plain = not softcap and sinks is None and _are_one(k_scale, v_scale)
    kernels = native() if plain else None
    if kernels is not None and kernels.prefill_pays and serves(q, k_cache, v_cache):
        indices = (block_tables.int(), seq_lens.int(), query_starts.int())
        longest = max_query_len or int(query_starts.diff().max())
        return kernels.paged_prefill(q, k_cache, v_cache, *indices, scale, window, longest)
    out = q.new_empty(*q.shape[:2], v_cache.shape[3])  # every row is some sequence's
    starts = query_starts.tolist()
    for table, seq_len, start, stop in zip(block_tables.tolist(), seq_lens.tolist(), starts, starts[1:], strict=False):
        if start == stop:
            continue
        if seq_len == 0:  # a padding row
            out[start:stop] = 0
            continue
        first = max(0, seq_len - (stop - start) - window + 1) if window else 0
        k = tokens_of(k_cache, table, first, seq_len, dtype=q.dtype, scale=k_scale)
        v = tokens_of(v_cache, table, first, seq_len, dtype=q.dtype, scale=v_scale)
        if softcap or sinks is not None:
            out[start:stop] = capped_attention(
                q[start:stop], k, v, scale=scale, window=window, softcap=softcap, sinks=sinks
            )
        else:
            out[start:stop] = causal_attention(q[start:stop], k, v, scale=scale, window=window)
    return out


def mla_decode(
    q: Tensor,
    cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    *,
    latent_dim: int,
    scale: float,
    cache_scale: Scale = 1.0,
) -> Tensor:
    if len(q) > len(seq_lens):
        query_starts = torch.arange(len(seq_lens) + 1) * (len(q) // len(seq_lens))
        shape: dict[str, Any] = {"latent_dim": latent_dim, "scale": scale, "cache_scale": cache_scale}
        return mla_prefill(q, cache, block_tables, seq_lens, query_starts, **shape)
    kernels = native()
    if kernels is not None and _are_one(cache_scale) and latent_dim % ROW == 0 and serves(q, cache):
        k_cache = cache.unsqueeze(2)  # one key/value head, whose values are the first columns of its keys
        return kernels.paged_decode(q, k_cache, k_cache[..., :latent_dim], block_tables, seq_lens, scale, window=0)
    out = q.new_zeros(*q.shape[:2], latent_dim)
    for row, (table, seq_len) in enumerate(zip(block_tables.tolist(), seq_lens.tolist(), strict=True)):
        if seq_len > 0:
            latent = _latents_of(cache, table, seq_len, latent_dim, dtype=q.dtype, scale=cache_scale)
            weights = torch.softmax((q[row] @ latent.T).float() * scale, dim=-1).to(q.dtype)
            out[row] = weights @ latent[:, :latent_dim]
    return out


def mla_prefill(
    q: Tensor,
    cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    query_starts: Tensor,
    *,
    latent_dim: int,
    scale: float,
    cache_scale: Scale = 1.0,
    max_query_len: int | None = None,
) -> Tensor:
    out = q.new_zeros(*q.shape[:2], latent_dim)
    starts = query_starts.tolist()
    for table, seq_len, start, stop in zip(block_tables.tolist(), seq_lens.tolist(), starts, starts[1:], strict=False):
        if seq_len > 0 and start < stop:
            rows = _latents_of(cache, table, seq_len, latent_dim, dtype=q.dtype, scale=cache_scale).unsqueeze(1)
            out[start:stop] = causal_attention(q[start:stop], rows, rows[..., :latent_dim], scale=scale)
    return out


def gather_latents(cache: Tensor, pages: Tensor, *, latent_dim: int, dtype: torch.dtype, scale: Scale = 1.0) -> Tensor:
    table = pages.tolist()
    rows = _latents_of(cache, table, len(table) * cache.shape[1], latent_dim, dtype=dtype, scale=scale)
    return rows.view(len(table), cache.shape[1], -1)


def _latents_of(
    cache: Tensor, table: list[int], length: int, latent_dim: int, *, dtype: torch.dtype, scale: Scale
) -> Tensor:
    """Rows [L, R+E] of a sequence; the latent and the rotary key have a scale of their own where rows have any."""
    if not isinstance(scale, Tensor):
        return tokens_of(cache, table, 0, length, dtype=dtype, scale=scale)
    parts = ((cache[..., :latent_dim], scale[..., 0]), (cache[..., latent_dim:], scale[..., 1]))
    return torch.cat([tokens_of(part, table, 0, length, dtype=dtype, scale=one) for part, one in parts], dim=-1)


def _padded(cache: Tensor, plan: DecodePlan, dtype: torch.dtype, scale: Scale) -> Tensor:
    """All sequences out of their pages, padded to the longest: [S, heads, N * B, D]."""
    rows = cache.index_select(0, plan.pages).flatten(0, 1)
    if rows.dtype != dtype:
        rows = rows.to(dtype)
    # Unused slots may hold NaN, which a weight of zero does not stop.
    rows.index_fill_(0, plan.past_end, 0.0)
    if scale != 1.0:
        rows *= scale
    return rows.view(len(plan.lengths), -1, *rows.shape[1:]).transpose(1, 2)


def _whole_rows(tensor: Tensor) -> bool:
    """Whether [T, heads, dim] or pages [P, B, heads, dim] are bf16 on the CPU with all of a token's heads together."""
    return serves(tensor) and tensor.stride(-2) == tensor.shape[-1]


def _are_numbers(*scales: Scale) -> bool:
    return not any(isinstance(scale, Tensor) for scale in scales)


def _are_one(*scales: Scale) -> bool:
    return all(not isinstance(scale, Tensor) and scale == 1.0 for scale in scales)


@lru_cache(maxsize=2)
def _all_written(slots: Tensor) -> bool:
    """Whether no slot is -1. Remembered by identity, as in `_plan`."""
    return not bool((slots < 0).any())


def _store(rows: Tensor, cache: Tensor, slots: Tensor, scale: Scale) -> None:
    """rows [T, ...] to the slots [T] of cache [P, B, ...]."""
    if isinstance(scale, Tensor):
        vectors = vector_scales(rows, cache.dtype)
        _store(vectors, scale, slots, 1.0)
        rows, scale = rows.float() / vectors.unsqueeze(-1), 1.0
    if scale != 1.0:
        rows = rows / scale
    if largest(cache.dtype) < torch.finfo(rows.dtype).max:
        rows = stored(rows.float(), cache.dtype)
    rows = rows.to(cache.dtype)
    if cache.dtype.itemsize == 1:  # index_copy_ has no fp8: the same bytes as uint8
        cache, rows = cache.view(torch.uint8), rows.view(torch.uint8)
    page_size = cache.shape[1]
    if cache.stride(0) == page_size * cache.stride(1):
        cache.flatten(0, 1).index_copy_(0, slots, rows)
    else:  # pages lie apart, as in a pool [P, 2, B, ...]: flattening would write to a copy
        cache[slots // page_size, slots % page_size] = rows
