"""Kernels of plain operations on whole tensors: as Triton's they never look at what a tensor holds."""

from __future__ import annotations

import torch
from torch import Tensor


class AskNothing:
    """`Kernels`, as far as decoding goes."""

    fused = None

    @staticmethod
    def store_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, **scales: object) -> None:
        for rows, cache in ((k, k_cache), (v, v_cache)):
            AskNothing.store_latent(rows, cache, slots)

    @staticmethod
    def store_latent(latent: Tensor, cache: Tensor, slots: Tensor, **scales: object) -> None:
        where = slots // cache.shape[1], slots % cache.shape[1]  # slot -1 comes to the last one
        written = (slots >= 0).view(-1, *[1] * (latent.dim() - 1))
        cache[where] = torch.where(written, latent, cache[where])

    @staticmethod
    def mla_decode(
        q: Tensor, cache: Tensor, block_tables: Tensor, seq_lens: Tensor, *, latent_dim: int, scale: float, **_: object
    ) -> Tensor:
        one_head = cache.unsqueeze(2)
        return AskNothing.paged_decode(q, one_head, one_head[..., :latent_dim], block_tables, seq_lens, scale=scale)

    @staticmethod
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
        **others: object,
    ) -> Tensor:
        group = q.shape[1] // k_cache.shape[2]
        k, v = (cache[block_tables.long()].flatten(1, 2).repeat_interleave(group, 2) for cache in (k_cache, v_cache))
        scores = torch.einsum("shd,sthd->sht", q, k) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        ages = seq_lens[:, None] - 1 - torch.arange(k.shape[1])
        hidden = (ages < 0) | (ages >= window) if window else ages < 0
        weights = scores.masked_fill(hidden[:, None], float("-inf")).softmax(-1).nan_to_num()
        return torch.einsum("sht,sthd->shd", weights, v)
