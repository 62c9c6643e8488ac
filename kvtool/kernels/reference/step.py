"""The torch twins of `step`: the same in plain operations, in fp32, or in fp64 where they are given that. Where no
kernels are fused, `place` is also what the engine runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu
from torch.nn.functional import linear as torch_linear

from kvtool.kernels.interface import GATES
from kvtool.kernels.reference.attention import store

if TYPE_CHECKING:
    from kvtool.kernels.interface import ExpertWeights, Pages, Rotation

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": partial(gelu, approximate="tanh"),
}


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None, x_weight: Tensor | None = None, *, eps: float
) -> tuple[Tensor, Tensor]:
    wide = _wide(x) if x_weight is None else (_rms_norm(_wide(x), eps) * x_weight).to(x.dtype)
    added = (wide + residual).to(x.dtype)
    return added if weight is None else (_rms_norm(_wide(added), eps) * weight).to(x.dtype), added


def split_qkv(qkv: Tensor, norms: Tensor | None, eps: float, rotation: Rotation, pages: Pages, slots: Tensor) -> Tensor:
    kv_heads = pages.k.shape[2]
    qk, v = qkv[:, :-kv_heads], qkv[:, -kv_heads:]
    wide = _wide(qk)
    if norms is not None:
        wide = _rms_norm(wide, eps) * norms
    turned = _turned(wide, rotation)
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
    k_rope = _turned(wide[:, None, latent_dim:], rotation).squeeze(1)
    store(torch.cat((normed, k_rope), dim=1), None, pages, slots)
    q_rope = _turned(_wide(q[..., -rope_dim:]), rotation).to(q.dtype)
    absorbed = q.new_empty(num_absorbed, q.shape[1], latent_dim + rope_dim)
    absorbed[..., latent_dim:] = q_rope[:num_absorbed]
    q[num_absorbed:, :, -rope_dim:] = q_rope[num_absorbed:]
    return absorbed


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
    product = torch_linear(_wide(x), weight.to(_wide(x).dtype), None if bias is None else bias.to(_wide(x).dtype))
    return (product if plus is None else product + plus).to(x.dtype)


def gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    return (ACTIVATIONS[GATES[activation]](_wide(gate)) * up).to(gate.dtype)


def experts(x: Tensor, weights: ExpertWeights, chosen: Tensor, shares: Tensor, plus: Tensor | None = None) -> Tensor:
    wide = _wide(x)
    out = torch.zeros_like(wide) if plus is None else plus.to(wide.dtype, copy=True)
    for token, (row, of_token, shares_of_token) in enumerate(zip(wide, chosen.tolist(), shares, strict=True)):
        for expert, share in zip(of_token, shares_of_token, strict=True):
            out[token] = out[token] + share * _expert(row, weights, expert)
    return out.to(x.dtype)


def _expert(x: Tensor, weights: ExpertWeights, expert: int) -> Tensor:
    """x [H] through one expert."""
    gate_up_bias, down_bias = (
        None if bias is None else bias[expert] for bias in (weights.gate_up_bias, weights.down_bias)
    )
    gate, up = linear(x, weights.gate_up[expert], gate_up_bias).chunk(2)
    if weights.activation == "clamped_swiglu":
        gate, up = gate.clamp(max=weights.limit), up.clamp(-weights.limit, weights.limit) + 1
        activated = gate * (weights.alpha * gate).sigmoid()
    else:
        activated = ACTIVATIONS[GATES[weights.activation]](gate)
    return linear(activated * up, weights.down[expert], down_bias)


def _turned(x: Tensor, rotation: Rotation) -> Tensor:
    cos, sin = rotation
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


def _rms_norm(x: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
