"""The rest of a decoder step by Triton: products with weights, and what lies between two of them, a launch each."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvtool.kernels import plain
from kvtool.kernels.quantise import largest
from kvtool.kernels.triton import checks, gpu, products
from kvtool.kernels.triton.experts import KERNEL_GATES, experts_at_once
from kvtool.kernels.triton.jit.step import latent_kernel, place_kernel, qkv_kernel
from kvtool.kernels.triton.products import Around
from kvtool.kernels.triton.rows import add_rms_norm
from kvtool.kernels.triton.tiles import rules
from kvtool.kernels.triton.tiles.rules import padded

if TYPE_CHECKING:
    from kvtool.kernels.interface import Rotation
    from kvtool.kernels.pages import Pages
    from kvtool.kernels.weights import AnyWeight, ExpertWeights, GatedWeight, Weight

__all__ = [
    "add_rms_norm",
    "experts",
    "gated",
    "linear",
    "place",
    "prepare",
    "split_latent",
    "split_qkv",
    "weight_copies",
]


def prepare(weight: AnyWeight) -> AnyWeight:
    """As it is."""
    return weight


def weight_copies(dtype: torch.dtype, device: torch.device) -> int:
    """One."""
    return 1


def linear(x: Tensor, weight: Weight) -> Tensor:
    """By cuBLAS or by Triton."""
    return products.linear(x, weight.weight, weight.bias)


def gated(x: Tensor, weight: GatedWeight) -> Tensor:
    """One product, of a weight so large that it is read nearer to the memory's speed, and the gate of its halves."""
    return products.linear(x, weight.weight, weight.bias, around=Around(gate=weight.gate))


def experts(x: Tensor, weights: ExpertWeights, chosen: Tensor, shares: Tensor, plus: Tensor | None = None) -> Tensor:
    """All at once; those whose gate no kernel computes take turns."""
    if weights.gate.activation in KERNEL_GATES:
        return experts_at_once(x, weights, chosen, shares, plus)

    def expert(number: int) -> plain.Expert:
        inner, down = plain.expert_weights(weights, number)
        return lambda rows: linear(gated(rows, inner), down)

    return plain.experts_in_turn(x, expert, chosen, shares, plus)


def split_qkv(
    qkv: Tensor, norms: Tensor | None, eps: float, rotation: Rotation | None, pages: Pages, slots: Tensor
) -> Tensor:
    """qkv [T,HQ+2*HKV,D] -> q [T,HQ,D]. Grid: (T, heads of Q, K and V)."""
    checks.split_qkv(qkv, norms, rotation, pages, slots)
    k_cache, v_cache, k_scale, v_scale = pages.k, pages.v, pages.k_scale, pages.v_scale
    assert v_cache is not None
    num_tokens, all_heads, head_dim = qkv.shape
    kv_heads = k_cache.shape[2]
    q = qkv.new_empty(num_tokens, all_heads - 2 * kv_heads, head_dim)
    if num_tokens == 0:
        return q
    cos, sin = rotation or (None, None)
    k_scales = k_scale if isinstance(k_scale, Tensor) else None
    v_scales = v_scale if isinstance(v_scale, Tensor) else None
    page, slot, head = (0, 0, 0) if k_scales is None else k_scales.stride()
    qkv_kernel[(num_tokens, all_heads)](
        qkv_ptr=qkv,
        norms_ptr=norms,
        cos_ptr=cos,
        sin_ptr=sin,
        slots_ptr=slots,
        q_ptr=q,
        k_cache_ptr=k_cache,
        v_cache_ptr=v_cache,
        k_scales_ptr=k_scales,
        v_scales_ptr=v_scales,
        eps=eps,
        k_scale=1.0 if isinstance(k_scale, Tensor) else k_scale,
        v_scale=1.0 if isinstance(v_scale, Tensor) else v_scale,
        qkv_stride=qkv.stride(0),
        rotation_stride=0 if cos is None else cos.stride(0),
        k_page_stride=k_cache.stride(0),
        k_slot_stride=k_cache.stride(1),
        k_head_stride=k_cache.stride(2),
        v_page_stride=v_cache.stride(0),
        v_slot_stride=v_cache.stride(1),
        v_head_stride=v_cache.stride(2),
        scale_page_stride=page,
        scale_slot_stride=slot,
        scale_head_stride=head,
        HEADS=q.shape[1],
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        ROTARY=0 if cos is None else cos.shape[2],
        PAGE=k_cache.shape[1],
        MAX=largest(k_cache.dtype),
        BLOCK_D=padded(head_dim),
        **gpu.launched(qkv.device),
        num_warps=1,
    )
    return q


def place(positions: Tensor, block_tables: Tensor, block_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """positions [S] and block_tables [S,N] -> (positions, slots, seq_lens) [S]. Grid: blocks of rows."""
    checks.indices(positions, "positions", torch.int64, ndim=1)
    checks.indices(block_tables, "block_tables", torch.int32, ndim=2)
    num_rows = len(positions)
    at, slots = torch.empty_like(positions), torch.empty_like(positions)
    seq_lens = torch.empty_like(positions, dtype=torch.int32)
    place_kernel[(math.ceil(num_rows / rules.PLACE_ROWS),)](
        positions,
        block_tables,
        at,
        slots,
        seq_lens,
        num_rows,
        block_tables.stride(0),
        PAGE=block_size,
        BLOCK=rules.PLACE_ROWS,
        **gpu.launched(positions.device),
        num_warps=1,
    )
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
    """latent [T,R+E] to the cache, q [T,H,N+E] turned -> [num_absorbed,H,R+E]."""
    return latents_stored(q, latent, norm, eps, rotation, pages, slots, num_absorbed, None)


def latents_stored(
    q: Tensor,
    latent: Tensor,
    norm: Tensor,
    eps: float,
    rotation: Rotation,
    pages: Pages,
    slots: Tensor,
    num_absorbed: int,
    w_uk: Tensor | None,
) -> Tensor:
    """`split_latent`; with w_uk [H,N,R] the first R columns of what is returned are set too, and all tokens decode.

    Grid: (T, 1, then blocks of heads, then those of what each head absorbs).
    """
    checks.split_latent(q, latent, norm, rotation, pages, slots, num_absorbed)
    checks.absorbing(q, w_uk, pages.latent_dim, num_absorbed)
    cache, scale = pages.k, pages.k_scale
    (num_tokens, num_heads, head_dim), width, rope_dim = q.shape, latent.shape[1], rotation[0].shape[2]
    rank = width - rope_dim
    absorbed = q.new_empty(num_absorbed, num_heads, width)
    if num_tokens == 0:
        return absorbed
    block_h = min(padded(num_heads), rules.ROTARY_HEADS)
    scale_page, scale_slot, scale_part = scale.stride() if isinstance(scale, Tensor) else (0, 0, 0)
    absorbing = 0 if w_uk is None else num_heads * math.ceil(rank / rules.ABSORBED_COLUMNS)
    latent_kernel[(num_tokens, 1 + math.ceil(num_heads / block_h) + absorbing)](
        q_ptr=q,
        latent_ptr=latent,
        norm_ptr=norm,
        cos_ptr=rotation[0],
        sin_ptr=rotation[1],
        slots_ptr=slots,
        absorb_ptr=w_uk,
        absorbed_ptr=absorbed,
        cache_ptr=cache,
        scales_ptr=scale if isinstance(scale, Tensor) else None,
        eps=eps,
        scale=1.0 if isinstance(scale, Tensor) else scale,
        num_absorbed=num_absorbed,
        q_token_stride=q.stride(0),
        q_head_stride=q.stride(1),
        latent_stride=latent.stride(0),
        rotation_stride=rotation[0].stride(0),
        page_stride=cache.stride(0),
        slot_stride=cache.stride(1),
        absorb_stride=0 if w_uk is None else w_uk.stride(0),
        scale_page_stride=scale_page,
        scale_slot_stride=scale_slot,
        scale_part_stride=scale_part,
        **_latent_constants(num_heads, head_dim - rope_dim, rank, rope_dim, cache),
        BLOCK_H=block_h,
        **gpu.launched(q.device),
        num_warps=4,
    )
    return absorbed


def _latent_constants(num_heads: int, nope: int, rank: int, rope_dim: int, cache: Tensor) -> dict[str, int | float]:
    return {
        "HEADS": num_heads,
        "NOPE": nope,
        "LATENT": rank,
        "ROPE": rope_dim,
        "PAGE": cache.shape[1],
        "MAX": largest(cache.dtype),
        "BLOCK_R": padded(rank),
        "BLOCK_HALF": padded(rope_dim // 2),
        "BLOCK_NOPE": padded(nope),
        "BLOCK_COLUMNS": rules.ABSORBED_COLUMNS,
    }
