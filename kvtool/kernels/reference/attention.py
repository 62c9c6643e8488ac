"""The obvious torch twins of the kernels: one sequence at a time, gather its pages, mask, softmax.

For reading and for tests; slow on purpose. Everything is computed in fp32, or in fp64 where the queries are fp64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvtool.kernels.quantise import stored, vector_scales

if TYPE_CHECKING:
    from kvtool.kernels.interface import Scale, StepKernels

fused: StepKernels | None = None


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
    _store(k, k_cache, slots, k_scale)
    _store(v, v_cache, slots, v_scale)


def store_latent(latent: Tensor, cache: Tensor, slots: Tensor, *, latent_dim: int, scale: Scale = 1.0) -> None:
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
    query_starts = torch.arange(len(seq_lens) + 1) * (len(q) // max(1, len(seq_lens)))
    return paged_prefill(
        q,
        k_cache,
        v_cache,
        block_tables,
        seq_lens,
        query_starts,
        scale=scale,
        window=window,
        softcap=softcap,
        sinks=sinks,
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
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    k_scale: Scale = 1.0,
    v_scale: Scale = 1.0,
    k_rope: Tensor | None = None,
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
        k = _gather(k_cache, k_scale, table, first_key, seq_len, q.dtype)
        v = _gather(v_cache, v_scale, table, first_key, seq_len, q.dtype)
        if k_rope is not None:
            shared = _gather(k_rope, 1.0, table, first_key, seq_len, q.dtype)
            k = torch.cat((k, shared.unsqueeze(1).expand(-1, k.shape[1], -1)), dim=-1)
        out[start:end] = _causal_attention(q[start:end], k, v, scale, window, softcap, sinks).to(q.dtype)
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
    query_starts = torch.arange(len(seq_lens) + 1) * (len(q) // max(1, len(seq_lens)))
    where = (block_tables, seq_lens, query_starts)
    return mla_prefill(q, cache, *where, latent_dim=latent_dim, scale=scale, cache_scale=cache_scale)


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
    """MLA is one shared key/value head whose values are the first columns of its keys."""
    out = q.new_zeros(q.shape[0], q.shape[1], latent_dim)
    starts = query_starts.tolist()
    for table, seq_len, start, end in zip(block_tables, seq_lens.tolist(), starts, starts[1:], strict=False):
        if seq_len == 0 or start == end:
            continue
        rows = _gather_latent(cache, cache_scale, table, seq_len, latent_dim, q.dtype).unsqueeze(1)
        attended = _causal_attention(q[start:end], rows, rows[..., :latent_dim], scale, 0, 0.0, None)
        out[start:end] = attended.to(q.dtype)
    return out


def gather_latents(cache: Tensor, pages: Tensor, *, latent_dim: int, dtype: torch.dtype, scale: Scale = 1.0) -> Tensor:
    num_pages, page_size = len(pages), cache.shape[1]
    found = _gather_latent(cache, scale, pages, num_pages * page_size, latent_dim, dtype)
    return found.to(dtype).view(num_pages, page_size, -1)


def _gather_latent(
    cache: Tensor, scale: Scale, table: Tensor, length: int, latent_dim: int, dtype: torch.dtype
) -> Tensor:
    """Rows [L,R+E] of the sequence with block table [N]; each part has a scale of its own where rows have any."""
    one, other = (scale[..., 0], scale[..., 1]) if isinstance(scale, Tensor) else (scale, scale)
    parts = ((cache[..., :latent_dim], one), (cache[..., latent_dim:], other))
    return torch.cat([_gather(part, factor, table, 0, length, dtype) for part, factor in parts], dim=-1)


def _store(rows: Tensor, cache: Tensor, slots: Tensor, scale: Scale) -> None:
    """rows [T,...] to the slots [T] of cache [P,B,...]; slot -1 writes nothing."""
    for row, slot in zip(rows, slots.tolist(), strict=True):
        if slot < 0:
            continue
        where = slot // cache.shape[1], slot % cache.shape[1]
        row_scale: Scale = scale
        if isinstance(scale, Tensor):
            scale[where] = vector_scales(row, cache.dtype)
            row_scale = scale[where].unsqueeze(-1)
        cache[where] = stored(row.to(_compute_dtype(row.dtype)) / row_scale, cache.dtype)


def _gather(cache: Tensor, scale: Scale, table: Tensor, first: int, last: int, dtype: torch.dtype) -> Tensor:
    """Tokens first .. last-1 of the sequence with block table [N], from cache [P,B,...] -> [last-first,...]."""
    page_size = cache.shape[1]
    tokens = torch.arange(first, last, device=cache.device)
    where = table[tokens // page_size].long(), tokens % page_size
    return cache[where].to(_compute_dtype(dtype)) * (scale[where].unsqueeze(-1) if isinstance(scale, Tensor) else scale)


def _causal_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int, softcap: float, sinks: Tensor | None
) -> Tensor:
    """q [Q,HQ,D], k [L,HKV,D], v [L,HKV,DV] -> [Q,HQ,DV]; the last query sits at the last key."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q.to(k.dtype), k) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    ages = torch.arange(len(q), device=q.device)[:, None] + (len(k) - len(q)) - torch.arange(len(k), device=q.device)
    visible = (ages >= 0) & (ages < window) if window else ages >= 0
    scores = scores.masked_fill(~visible, float("-inf"))
    if sinks is not None:  # one more logit a row, whose weight falls on nothing
        scores = torch.cat((scores, sinks.to(scores.dtype)[:, None, None].expand(-1, len(q), 1)), dim=-1)
    weights = scores.softmax(dim=-1)[..., : len(k)]
    return torch.einsum("hqk,khd->qhd", weights, v)


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
