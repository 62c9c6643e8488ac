"""The fast torch path, for CPUs: index_copy into pages, then SDPA over the tokens of each sequence.

Consecutive pages are read in place; only pages that lie apart are copied together first. In decode the query heads of
a group are packed as rows of one attention, so that K and V are read once a group. Runs on any device torch runs on.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kvtool.kernels.dense import causal_attention, tokens_of

# Up to this many tokens a sequence, one attention over all sequences padded to the longest beats one a sequence, in
# spite of the copy out of the pages; beyond, reading pages in place wins.
_BATCHED_DECODE_TOKENS = 1024


def store_kv(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    *,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    _store(k, k_cache, slots, k_scale)
    _store(v, v_cache, slots, v_scale)


def store_latent(latent: Tensor, cache: Tensor, slots: Tensor, *, scale: float = 1.0) -> None:
    _store(latent, cache, slots, scale)


def paged_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
    window: int = 0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> Tensor:
    num_heads, kv_heads = q.shape[1], k_cache.shape[2]
    # [S, HKV, G, D]: the queries of one group are rows over the same keys.
    grouped = q.unflatten(1, (kv_heads, num_heads // kv_heads))
    lengths = seq_lens.tolist()
    if window == 0 and len(q) > 1 and min(lengths) > 0 and max(lengths) <= _BATCHED_DECODE_TOKENS:
        return _batched_decode(grouped, k_cache, v_cache, block_tables, lengths, scale, k_scale, v_scale).flatten(1, 2)
    out = q.new_zeros(*grouped.shape[:3], v_cache.shape[3])
    for row, (table, seq_len) in enumerate(zip(block_tables.tolist(), lengths, strict=True)):
        if seq_len == 0:
            continue
        first = max(0, seq_len - window) if window else 0
        k = tokens_of(k_cache, table, first, seq_len, dtype=q.dtype, scale=k_scale).transpose(0, 1)
        v = tokens_of(v_cache, table, first, seq_len, dtype=q.dtype, scale=v_scale).transpose(0, 1)
        out[row] = scaled_dot_product_attention(grouped[row][None], k[None], v[None], scale=scale)[0]
    return out.flatten(1, 2)


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
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    max_query_len: int | None = None,
) -> Tensor:
    out = q.new_zeros(*q.shape[:2], v_cache.shape[3])
    starts = query_starts.tolist()
    for table, seq_len, start, stop in zip(block_tables.tolist(), seq_lens.tolist(), starts, starts[1:], strict=False):
        if start == stop:
            continue
        first = max(0, seq_len - (stop - start) - window + 1) if window else 0
        k = tokens_of(k_cache, table, first, seq_len, dtype=q.dtype, scale=k_scale)
        v = tokens_of(v_cache, table, first, seq_len, dtype=q.dtype, scale=v_scale)
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
    cache_scale: float = 1.0,
) -> Tensor:
    out = q.new_zeros(*q.shape[:2], latent_dim)
    for row, (table, seq_len) in enumerate(zip(block_tables.tolist(), seq_lens.tolist(), strict=True)):
        if seq_len > 0:
            latent = tokens_of(cache, table, 0, seq_len, dtype=q.dtype, scale=cache_scale)
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
    cache_scale: float = 1.0,
    max_query_len: int | None = None,
) -> Tensor:
    k_cache = cache.unsqueeze(2)  # one key/value head, whose values are the first columns of its keys
    return paged_prefill(
        q,
        k_cache,
        k_cache[..., :latent_dim],
        block_tables,
        seq_lens,
        query_starts,
        scale=scale,
        k_scale=cache_scale,
        v_scale=cache_scale,
    )


def _batched_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    lengths: list[int],
    scale: float,
    k_scale: float,
    v_scale: float,
) -> Tensor:
    """q [S, HKV, G, D] over every page of the tables at once; a mask hides what is past the end of a sequence."""
    num_tokens = block_tables.shape[1] * k_cache.shape[1]
    pages = block_tables.flatten().clamp(0, len(k_cache) - 1)  # entries past a sequence's end may hold anything

    def padded(cache: Tensor, factor: float) -> Tensor:
        rows = cache.index_select(0, pages).view(len(q), num_tokens, *cache.shape[2:]).to(q.dtype)
        for row, length in zip(rows, lengths, strict=True):
            row[length:] = 0.0  # unused slots may hold NaN, which a weight of zero does not stop
        return (rows if factor == 1.0 else rows * factor).transpose(1, 2)

    mask = q.new_zeros(len(q), 1, 1, num_tokens)
    for row, length in zip(mask, lengths, strict=True):
        row[..., length:] = float("-inf")
    return scaled_dot_product_attention(
        q, padded(k_cache, k_scale), padded(v_cache, v_scale), attn_mask=mask, scale=scale
    )


def _store(rows: Tensor, cache: Tensor, slots: Tensor, scale: float) -> None:
    """rows [T, ...] to the slots [T] of cache [P, B, ...]; slot -1 writes nothing."""
    if len(slots) and int(slots.min()) < 0:
        rows, slots = rows[slots >= 0], slots[slots >= 0]
    if scale != 1.0:
        rows = rows / scale
    finite = torch.finfo(cache.dtype)
    if finite.max < torch.finfo(rows.dtype).max:
        rows = rows.float().clamp(finite.min, finite.max)
    stored = rows.to(cache.dtype)
    if cache.dtype.itemsize == 1:  # index_copy_ has no fp8: the same bytes as uint8
        cache, stored = cache.view(torch.uint8), stored.view(torch.uint8)
    page_size = cache.shape[1]
    if cache.stride(0) == page_size * cache.stride(1):
        cache.flatten(0, 1).index_copy_(0, slots, stored)
    else:  # pages lie apart, as in a pool [P, 2, B, ...]: flattening would write to a copy
        cache[slots // page_size, slots % page_size] = stored
