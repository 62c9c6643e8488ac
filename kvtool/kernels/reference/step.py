"""The torch twins of all that lies around attention: plain operations in fp32, or in fp64 where they are given that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from kvtool.kernels import plain
from kvtool.kernels.reference.attention import store

if TYPE_CHECKING:
    from kvtool.kernels.interface import Rotation
    from kvtool.kernels.pages import Pages
    from kvtool.kernels.weights import AnyWeight, ExpertWeights, Gate, GatedWeight, Weight


def prepare(weight: AnyWeight) -> AnyWeight:
    return weight


def weight_copies(dtype: torch.dtype, device: torch.device) -> int:
    return 1


def linear(x: Tensor, weight: Weight) -> Tensor:
    return product(x, weight.weight, weight.bias)


def gated(x: Tensor, weight: GatedWeight) -> Tensor:
    of_gate, up = product(x, weight.weight, weight.bias).chunk(2, dim=-1)
    return gate(of_gate, up, weight.gate)


def experts(x: Tensor, weights: ExpertWeights, chosen: Tensor, shares: Tensor, plus: Tensor | None = None) -> Tensor:
    wide = _wide(x)
    out = torch.zeros_like(wide) if plus is None else plus.to(wide.dtype, copy=True)
    for token, (row, of_token, shares_of_token) in enumerate(zip(wide, chosen.tolist(), shares, strict=True)):
        for expert, share in zip(of_token, shares_of_token, strict=True):
            inner, down = plain.expert_weights(weights, expert)
            out[token] = out[token] + share * linear(gated(row, inner), down)
    return out.to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return (_rms_norm(_wide(x), eps) * weight).to(x.dtype)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    return plain.rotate(_wide(x), rotation).to(x.dtype)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None, x_weight: Tensor | None = None, *, eps: float
) -> tuple[Tensor, Tensor]:
    wide = _wide(x) if x_weight is None else (_rms_norm(_wide(x), eps) * x_weight).to(x.dtype)
    added = (wide + residual).to(x.dtype)
    return added if weight is None else (_rms_norm(_wide(added), eps) * weight).to(x.dtype), added


def split_qkv(
    qkv: Tensor, norms: Tensor | None, eps: float, rotation: Rotation | None, pages: Pages, slots: Tensor
) -> Tensor:
    kv_heads = pages.k.shape[2]
    qk, v = qkv[:, :-kv_heads], qkv[:, -kv_heads:]
    wide = _wide(qk)
    if norms is not None:
        wide = _rms_norm(wide, eps) * norms
    turned = wide if rotation is None else plain.rotate(wide, rotation)
    store(turned[:, -kv_heads:], v, pages, slots)
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
    rotation: Rotation,
    pages: Pages,
    slots: Tensor,
    num_absorbed: int,
) -> Tensor:
    latent_dim, rope_dim = len(norm), rotation[0].shape[-1]
    wide = _wide(latent)
    normed = _rms_norm(wide[:, :latent_dim], eps) * norm
    k_rope = plain.rotate(wide[:, None, latent_dim:], rotation).squeeze(1)
    store(torch.cat((normed, k_rope), dim=1), None, pages, slots)
    q_rope = plain.rotate(_wide(q[..., -rope_dim:]), rotation).to(q.dtype)
    absorbed = q.new_empty(num_absorbed, q.shape[1], latent_dim + rope_dim)
    absorbed[..., latent_dim:] = q_rope[:num_absorbed]
    q[num_absorbed:, :, -rope_dim:] = q_rope[num_absorbed:]
    return absorbed


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
    """x [T,K], weight [N,K], bias [N], plus [T,N] -> x W^T + bias + plus [T,N]."""
    wide = _wide(x)
    found = functional.linear(wide, weight.to(wide.dtype), None if bias is None else bias.to(wide.dtype))
    return (found if plus is None else found + plus).to(x.dtype)


def gate(of_gate: Tensor, up: Tensor, kind: Gate) -> Tensor:
    """Both [T,n] -> [T,n], as `Gate` says."""
    return plain.gated(_wide(of_gate), _wide(up), kind).to(of_gate.dtype)


def _rms_norm(x: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
