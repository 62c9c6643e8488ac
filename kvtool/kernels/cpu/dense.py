"""Attention over tokens that lie side by side, and how to get them out of pages: torch's own SDPA, on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

if TYPE_CHECKING:
    from kvtool.kernels.pages import Scale
    from kvtool.kernels.rows import Softmax


def tokens_of(
    cache: Tensor, table: list[int], first: int, last: int, *, dtype: torch.dtype, scale: Scale = 1.0
) -> Tensor:
    """Tokens first .. last-1 of a sequence out of cache [P, B, ...]: [last - first, ...] in `dtype`, times `scale`.

    A view of the pool where the sequence's pages are consecutive, a copy elsewhere.
    """
    if isinstance(scale, Tensor):
        scales = tokens_of(scale, table, first, last, dtype=torch.float32)
        return (tokens_of(cache, table, first, last, dtype=torch.float32) * scales.unsqueeze(-1)).to(dtype)
    block_size = cache.shape[1]
    start, stop = first // block_size, -(-last // block_size)
    pages = table[start:stop]
    offset = first - start * block_size
    if pages[-1] - pages[0] == len(pages) - 1 and pages == list(range(pages[0], pages[-1] + 1)):
        found = cache[pages[0] : pages[-1] + 1]
    else:
        found = cache.index_select(0, torch.tensor(pages, device=cache.device))
    tokens = found.flatten(0, 1)[offset : offset + last - first]
    if tokens.dtype != dtype:
        tokens = tokens.to(dtype)
    return tokens if scale == 1.0 else tokens * scale


def causal_attention(q: Tensor, k: Tensor, v: Tensor, softmax: Softmax) -> Tensor:
    """q [Q, HQ, D] at the last Q of the L positions of k [L, HKV, D], v [L, HKV, DV] -> [Q, HQ, DV].

    Without softcap and sinks, which SDPA lacks.
    """
    head_dim, v_head_dim = q.shape[-1], v.shape[-1]
    if v_head_dim < head_dim:
        v = pad(v, (0, head_dim - v_head_dim))  # SDPA's fast paths want equal head dims
    mask = causal_mask(len(q), len(k), softmax.window, q.device)
    attended = scaled_dot_product_attention(
        q.transpose(0, 1).unsqueeze(0),
        k.transpose(0, 1).unsqueeze(0),
        v.transpose(0, 1).unsqueeze(0),
        attn_mask=mask,
        is_causal=mask is None and len(q) > 1,
        scale=softmax.scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return attended[0].transpose(0, 1)[..., :v_head_dim]


def capped_attention(q: Tensor, k: Tensor, v: Tensor, softmax: Softmax) -> Tensor:
    """`causal_attention` with scores bounded by the softcap, and with sinks."""
    grouped = q.float().unflatten(1, (k.shape[1], -1))
    scores = torch.einsum("qhgd,khd->hgqk", grouped, k.float()) * softmax.scale
    if softmax.softcap:
        scores = scores.div_(softmax.softcap).tanh_().mul_(softmax.softcap)
    mask = causal_mask(len(q), len(k), softmax.window, q.device, square=True)
    if mask is not None:
        scores.masked_fill_(~mask, float("-inf"))
    if softmax.sinks is not None:
        logits = softmax.sinks.float().view(k.shape[1], -1, 1, 1).expand(-1, -1, len(q), 1)
        scores = torch.cat((scores, logits), dim=-1)
    weights = scores.softmax(dim=-1)[..., : len(k)]
    return torch.einsum("hgqk,khd->qhgd", weights, v.float()).flatten(1, 2).to(q.dtype)


def causal_mask(
    num_queries: int, num_keys: int, window: int, device: torch.device, *, square: bool = False
) -> Tensor | None:
    """[Q, L], True where a query sees a key. None where one query sees all or, unless `square`, Q = L is causal."""
    windowed = 0 < window < num_keys
    if not windowed and (num_queries == 1 or (num_queries == num_keys and not square)):
        return None
    keys = torch.arange(num_keys, device=device)
    ages = keys[num_keys - num_queries :, None] - keys
    return (ages >= 0) & (ages < window) if windowed else ages >= 0
