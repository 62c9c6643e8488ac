"""The obvious torch twins of the kernels: one sequence at a time, gather its pages, mask, softmax.

For reading and for tests; slow on purpose. Everything is computed in fp32, or in fp64 where the queries are fp64.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    one_query_each = torch.arange(len(q) + 1)
    return paged_prefill(
        q,
        k_cache,
        v_cache,
        block_tables,
        seq_lens,
        one_query_each,
        scale=scale,
        window=window,
        k_scale=k_scale,
        v_scale=v_scale,
    )


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
    out = q.new_zeros(q.shape[0], q.shape[1], v_cache.shape[-1])
    starts = query_starts.tolist()
    for table, seq_len, start, end in zip(block_tables, seq_lens.tolist(), starts, starts[1:], strict=False):
        if seq_len == 0 or start == end:
            continue
        first_key = (
            max(0, seq_len - (end - start) - window + 1) if window else 0
        )  # of the first query: the lowest in use
        k = _gather(k_cache, table, first_key, seq_len, q.dtype) * k_scale
        v = _gather(v_cache, table, first_key, seq_len, q.dtype) * v_scale
        out[start:end] = _causal_attention(q[start:end], k, v, scale, window).to(q.dtype)
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
    k_cache = cache.unsqueeze(2)  # MLA is one shared key/value head whose values are the first columns of its keys
    v_cache = k_cache[..., :latent_dim]
    return paged_decode(
        q, k_cache, v_cache, block_tables, seq_lens, scale=scale, k_scale=cache_scale, v_scale=cache_scale
    )


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
    k_cache = cache.unsqueeze(2)
    v_cache = k_cache[..., :latent_dim]
    return paged_prefill(
        q, k_cache, v_cache, block_tables, seq_lens, query_starts, scale=scale, k_scale=cache_scale, v_scale=cache_scale
    )


def _store(rows: Tensor, cache: Tensor, slots: Tensor, scale: float) -> None:
    """rows [T,...] to the slots [T] of cache [P,B,...]; slot -1 writes nothing."""
    page_size = cache.shape[1]
    finite = torch.finfo(cache.dtype)
    for row, slot in zip(rows, slots.tolist(), strict=True):
        if slot >= 0:
            stored = (row.to(_compute_dtype(row.dtype)) / scale).clamp(finite.min, finite.max)
            cache[slot // page_size, slot % page_size] = stored.to(cache.dtype)


def _gather(cache: Tensor, table: Tensor, first: int, last: int, dtype: torch.dtype) -> Tensor:
    """Tokens first .. last-1 of the sequence with block table [N], from cache [P,B,...] -> [last-first,...]."""
    page_size = cache.shape[1]
    tokens = torch.arange(first, last, device=cache.device)
    pages = table[tokens // page_size].long()
    return cache[pages, tokens % page_size].to(_compute_dtype(dtype))


def _causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int) -> Tensor:
    """q [Q,HQ,D], k [L,HKV,D], v [L,HKV,DV] -> [Q,HQ,DV]; the last query sits at the last key."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q.to(k.dtype), k) * scale
    ages = torch.arange(len(q), device=q.device)[:, None] + (len(k) - len(q)) - torch.arange(len(k), device=q.device)
    visible = (ages >= 0) & (ages < window) if window else ages >= 0
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
