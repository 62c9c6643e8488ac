"""The obvious torch twins of the kernels: one sequence at a time, gather its pages, mask, softmax.

For reading and for tests; slow on purpose. Everything is computed in fp32, or in fp64 where the queries are fp64.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvtool.kernels.quantise import stored, vector_scales

if TYPE_CHECKING:
    from kvtool.kernels.pages import Pages, Scale
    from kvtool.kernels.rows import Rows, Softmax


def store(k: Tensor, v: Tensor | None, pages: Pages, slots: Tensor) -> None:
    if v is None:
        for rows, cache, scale in zip(
            (k[:, : pages.latent_dim], k[:, pages.latent_dim :]), *_parts(pages), strict=True
        ):
            _store(rows, cache, slots, scale)
        return
    assert pages.v is not None
    _store(k, pages.k, slots, pages.k_scale)
    _store(v, pages.v, slots, pages.v_scale)


def decode(q: Tensor, pages: Pages, rows: Rows, softmax: Softmax) -> Tensor:
    return prefill(q, pages, rows.with_starts(len(q)), softmax)


def prefill(q: Tensor, pages: Pages, rows: Rows, softmax: Softmax) -> Tensor:
    out = q.new_zeros(*q.shape[:2], pages.value_dim)
    bounds = pairwise(rows.starts)
    for table, seq_len, (start, stop) in zip(rows.block_tables, rows.lengths, bounds, strict=True):
        if seq_len == 0 or start == stop:
            continue
        # The lowest key in use is the first query's.
        first = max(0, seq_len - (stop - start) - softmax.window + 1) if softmax.window else 0
        k, v = _keys_and_values(pages, table, first, seq_len, q.dtype)
        out[start:stop] = causal_attention(q[start:stop], k, v, softmax).to(q.dtype)
    return out


def gather(pages: Pages, chosen: Tensor, dtype: torch.dtype) -> Tensor:
    rows = _latents(pages, chosen, 0, len(chosen) * pages.block_size, dtype)
    return rows.to(dtype).view(len(chosen), pages.block_size, -1)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, softmax: Softmax) -> Tensor:
    """q [Q,HQ,D], k [L,HKV,D], v [L,HKV,DV] -> [Q,HQ,DV]; the last query sits at the last key."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q.to(k.dtype), k) * softmax.scale
    if softmax.softcap:
        scores = softmax.softcap * torch.tanh(scores / softmax.softcap)
    ages = torch.arange(len(q), device=q.device)[:, None] + (len(k) - len(q)) - torch.arange(len(k), device=q.device)
    visible = (ages >= 0) & (ages < softmax.window) if softmax.window else ages >= 0
    scores = scores.masked_fill(~visible, float("-inf"))
    if softmax.sinks is not None:  # one more logit a row, whose weight falls on nothing
        sinks = softmax.sinks.to(scores.dtype)[:, None, None].expand(-1, len(q), 1)
        scores = torch.cat((scores, sinks), dim=-1)
    weights = scores.softmax(dim=-1)[..., : len(k)]
    return torch.einsum("hqk,khd->qhd", weights, v)


def _keys_and_values(pages: Pages, table: Tensor, first: int, last: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """k [L,HKV,D] and v [L,HKV,DV] of tokens first .. last-1. MLA is one head whose values begin its keys."""
    if pages.v is None:
        latents = _latents(pages, table, first, last, dtype).unsqueeze(1)
        return latents, latents[..., : pages.latent_dim]
    k = _gather(pages.k, pages.k_scale, table, first, last, dtype)
    v = _gather(pages.v, pages.v_scale, table, first, last, dtype)
    if pages.k_rope is not None:
        shared = _gather(pages.k_rope, 1.0, table, first, last, dtype)
        k = torch.cat((k, shared.unsqueeze(1).expand(-1, k.shape[1], -1)), dim=-1)
    return k, v


def _latents(pages: Pages, table: Tensor, first: int, last: int, dtype: torch.dtype) -> Tensor:
    """Rows [L,R+E] of tokens first .. last-1."""
    parts = zip(*_parts(pages), strict=True)
    return torch.cat([_gather(cache, scale, table, first, last, dtype) for cache, scale in parts], dim=-1)


def _parts(pages: Pages) -> tuple[tuple[Tensor, Tensor], tuple[Scale, Scale]]:
    """The latents [P,B,R] and the other columns [P,B,E], then their scales."""
    caches, scale = (pages.k[..., : pages.latent_dim], pages.k[..., pages.latent_dim :]), pages.k_scale
    return caches, (scale[..., 0], scale[..., 1]) if isinstance(scale, Tensor) else (scale, scale)


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


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
