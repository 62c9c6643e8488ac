"""Kernels of plain operations on whole tensors: as Triton's they never look at what a tensor holds."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.kernels import load_kernels
from kvtool.kernels.interface import Rotation
from kvtool.kernels.pages import Pages
from kvtool.kernels.rows import Rows, Softmax

cpu = load_kernels("torch")


class AskNothing:
    """`Kernels`, as far as decoding goes. Products are torch's, experts take turns and ask which were chosen."""

    fused, tile_tokens = cpu.fused, cpu.tile_tokens
    linear, gated, experts = staticmethod(cpu.linear), staticmethod(cpu.gated), staticmethod(cpu.experts)
    rms_norm, add_rms_norm = staticmethod(cpu.rms_norm), staticmethod(cpu.add_rms_norm)
    rotate, place, nucleus = staticmethod(cpu.rotate), staticmethod(cpu.place), staticmethod(cpu.nucleus)
    likeliest = staticmethod(cpu.likeliest)

    @classmethod
    def split_qkv(
        cls, qkv: Tensor, norms: Tensor | None, eps: float, rotation: Rotation | None, pages: Pages, slots: Tensor
    ) -> Tensor:
        kv_heads = pages.k.shape[2]
        qk = qkv[:, :-kv_heads] if norms is None else cpu.rms_norm(qkv[:, :-kv_heads], norms, eps)
        turned = qk if rotation is None else cpu.rotate(qk, rotation)
        cls.store(turned[:, -kv_heads:], qkv[:, -kv_heads:], pages, slots)
        return turned[:, :-kv_heads]

    @classmethod
    def split_latent(
        cls,
        q: Tensor,
        latent: Tensor,
        norm: Tensor,
        eps: float,
        rotation: Rotation,
        pages: Pages,
        slots: Tensor,
        num_absorbed: int,
    ) -> Tensor:
        rank, rope = len(norm), rotation[0].shape[-1]
        k_rope = cpu.rotate(latent[:, None, rank:], rotation).squeeze(1)
        cls.store(torch.cat((cpu.rms_norm(latent[:, :rank], norm, eps), k_rope), dim=1), None, pages, slots)
        turned = cpu.rotate(q[..., -rope:], rotation)
        q[num_absorbed:, :, -rope:] = turned[num_absorbed:]
        return torch.cat((q.new_empty(num_absorbed, q.shape[1], rank), turned[:num_absorbed]), dim=2)

    @staticmethod
    def store(k: Tensor, v: Tensor | None, pages: Pages, slots: Tensor) -> None:
        for rows, cache in ((k, pages.k), (v, pages.v)):
            if rows is not None and cache is not None:
                where = slots // cache.shape[1], slots % cache.shape[1]  # slot -1 comes to the last one
                written = (slots >= 0).view(-1, *[1] * (rows.dim() - 1))
                cache[where] = torch.where(written, rows, cache[where])

    @staticmethod
    def decode(q: Tensor, pages: Pages, rows: Rows, softmax: Softmax) -> Tensor:
        k_cache = pages.k if pages.v is not None else pages.k.unsqueeze(2)
        v_cache = pages.v if pages.v is not None else k_cache[..., : pages.latent_dim]
        group, found = q.shape[1] // k_cache.shape[2], rows.block_tables.long()
        k, v = (cache[found].flatten(1, 2).repeat_interleave(group, 2) for cache in (k_cache, v_cache))
        scores = torch.einsum("shd,sthd->sht", q, k) * softmax.scale
        if softmax.softcap:
            scores = softmax.softcap * torch.tanh(scores / softmax.softcap)
        ages = rows.seq_lens[:, None] - 1 - torch.arange(k.shape[1])
        hidden = (ages < 0) | (ages >= softmax.window) if softmax.window else ages < 0
        weights = scores.masked_fill(hidden[:, None], float("-inf")).softmax(-1).nan_to_num()
        return torch.einsum("sht,sthd->shd", weights, v)
