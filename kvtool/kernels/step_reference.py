"""The torch twins of `step`: the same in plain operations, in fp32, or in fp64 where they are given that. Where no
kernels are fused, `place` is also what the engine runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import silu

from kvtool.kernels.reference import store_kv, store_latent

if TYPE_CHECKING:
    from kvtool.kernels import Scale


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None, x_weight: Tensor | None = None, *, eps: float
) -> tuple[Tensor, Tensor]:
    wide = _wide(x) if x_weight is None else (_rms_norm(_wide(x), eps) * x_weight).to(x.dtype)
    added = (wide + residual).to(x.dtype)
    return added if weight is None else (_rms_norm(_wide(added), eps) * weight).to(x.dtype), added


def split_qkv(
    qkv: Tensor,
    norms: Tensor | None,
    eps: float,
    rotation: tuple[Tensor, Tensor],
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    *,
    k_scale: Scale = 1.0,
    v_scale: Scale = 1.0,
) -> Tensor:
    kv_heads = k_cache.shape[2]
    qk, v = qkv[:, :-kv_heads], qkv[:, -kv_heads:]
    wide = _wide(qk)
    if norms is not None:
        wide = _rms_norm(wide, eps) * norms
    turned = _turned(wide, rotation)
    store_kv(turned[:, -kv_heads:], v, k_cache, v_cache, slots, k_scale=k_scale, v_scale=v_scale)
    return turned[:, :-kv_heads].to(qkv.dtype)


def place(positions: Tensor, block_tables: Tensor, block_size: int) -> tuple[Tensor, Tensor, Tensor]:
    at = positions.clamp(min=0)
    pages = block_tables.gather(1, (at // block_size).unsqueeze(1)).squeeze(1)
    slots = torch.add(at % block_size, pages, alpha=block_size)  # int64, as positions are
    slots, seq_lens = slots.masked_fill_(positions < 0, -1), (positions + 1).int()
    positions.add_(positions >= 0)
    return at, slots, seq_lens


def split_latent(
    q: Tensor,
    latent: Tensor,
    norm: Tensor,
    eps: float,
    rotation: tuple[Tensor, Tensor],
    cache: Tensor,
    slots: Tensor,
    num_absorbed: int,
    *,
    scale: Scale = 1.0,
) -> Tensor:
    latent_dim, rope_dim = len(norm), rotation[0].shape[-1]
    wide = _wide(latent)
    normed = _rms_norm(wide[:, :latent_dim], eps) * norm
    k_rope = _turned(wide[:, None, latent_dim:], rotation).squeeze(1)
    store_latent(torch.cat((normed, k_rope), dim=1), cache, slots, latent_dim=latent_dim, scale=scale)
    q_rope = _turned(_wide(q[..., -rope_dim:]), rotation).to(q.dtype)
    absorbed = q.new_empty(num_absorbed, q.shape[1], latent_dim + rope_dim)
    absorbed[..., latent_dim:] = q_rope[:num_absorbed]
    q[num_absorbed:, :, -rope_dim:] = q_rope[num_absorbed:]
    return absorbed


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    return (silu(_wide(gate)) * up).to(gate.dtype)


def _turned(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotation
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


def _rms_norm(x: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
