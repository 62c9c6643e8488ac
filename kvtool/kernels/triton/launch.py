"""The operations of `Kernels` by Triton, as functions of tensors: what is wrong with these is refused here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvtool.kernels.triton import attention, checks, step
from kvtool.kernels.triton.arguments import Keys, Softmax, latent_keys
from kvtool.kernels.triton.store import gather_rows, store_rows

if TYPE_CHECKING:
    from kvtool.kernels.interface import Scale, StepKernels

fused: StepKernels | None = step


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
    """k [T,HKV,D] and v [T,HKV,DV] into slots [T] of [P,B,HKV,*], one launch each."""
    store_rows(k, k_cache, slots, k_scale)
    store_rows(v, v_cache, slots, v_scale)


def store_latent(latent: Tensor, cache: Tensor, slots: Tensor, *, latent_dim: int, scale: Scale = 1.0) -> None:
    """latent [T,R+E] into slots [T] of [P,B,R+E]: a row of one head, or its two parts where each has its scale."""
    rows, pool = latent.unsqueeze(1), cache.unsqueeze(2)
    if not isinstance(scale, Tensor):
        store_rows(rows, pool, slots, scale)
        return
    checks.latent(cache, latent_dim)
    checks.latent_scales(scale, cache)
    for part, one in ((slice(latent_dim), scale[..., :1]), (slice(latent_dim, None), scale[..., 1:])):
        store_rows(rows[..., part], pool[..., part], slots, one)


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
    """q [S*Q,HQ,D] -> [S*Q,HQ,DV]: softmax(scale * k_scale * q K^T) V * v_scale, the rows of a KV head together."""
    checks.attention(q, k_cache, v_cache, block_tables, seq_lens, window)
    checks.queries(q, seq_lens)
    softmax = Softmax(scale, window, softcap, sinks)
    return attention.decode(q, Keys(k_cache, v_cache, k_scale, v_scale), block_tables, seq_lens, softmax)


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
    """q [T,HQ,D] -> [T,HQ,DV]: as `paged_decode`, query i of q_len seeing keys 0 .. seq_len - q_len + i."""
    keys, softmax = Keys(k_cache, v_cache, k_scale, v_scale, k_rope), Softmax(scale, window, softcap, sinks)
    checks.attention(q, k_cache, v_cache, block_tables, seq_lens, window, k_rope)
    checks.shared_keys(k_rope, k_cache, k_scale)
    checks.query_starts(query_starts, seq_lens)
    longest = _longest(query_starts, max_query_len)
    return attention.prefill(q, keys, block_tables, seq_lens, query_starts, longest, softmax)


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
    """q [S*Q,H,R+E] absorbed -> [S*Q,H,R]: `paged_decode` of H heads on one latent head, its keys its values."""
    keys = latent_keys(cache, latent_dim, cache_scale)
    checks.attention(q, keys.k, keys.k, block_tables, seq_lens, window=0, k_rope=keys.rope)
    checks.queries(q, seq_lens)
    return attention.decode(q, keys, block_tables, seq_lens, Softmax(scale))


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
    """q [T,H,R+E] absorbed -> [T,H,R]: `paged_prefill` of H heads on one latent head."""
    keys = latent_keys(cache, latent_dim, cache_scale)
    checks.attention(q, keys.k, keys.k, block_tables, seq_lens, window=0, k_rope=keys.rope)
    checks.query_starts(query_starts, seq_lens)
    longest = _longest(query_starts, max_query_len)
    return attention.prefill(q, keys, block_tables, seq_lens, query_starts, longest, Softmax(scale))


def gather_latents(cache: Tensor, pages: Tensor, *, latent_dim: int, dtype: torch.dtype, scale: Scale = 1.0) -> Tensor:
    """cache [P,B,R+E] at pages [n] -> [n,B,R+E] in dtype, times their scale."""
    checks.latent(cache, latent_dim)
    checks.cache(cache, "the cache", ndim=3)
    checks.indices(pages, "pages", torch.int32, ndim=1)
    if isinstance(scale, Tensor):
        checks.latent_scales(scale, cache)
    return gather_rows(cache, pages, latent_dim, dtype, scale)


def _longest(query_starts: Tensor, max_query_len: int | None) -> int:
    if max_query_len is not None:
        return max_query_len
    return int(query_starts.diff().max()) if len(query_starts) > 1 else 0
