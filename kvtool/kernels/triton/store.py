"""Launch the kernels that write rows to slots of a pool, and that read whole pages of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvtool.kernels.quantise import largest
from kvtool.kernels.triton import checks, gpu
from kvtool.kernels.triton.jit.store import gather_kernel, store_kernel
from kvtool.kernels.triton.tiles import rules
from kvtool.kernels.triton.tiles.rules import padded

if TYPE_CHECKING:
    from kvtool.kernels.pages import Pages, Scale


def store_rows(rows: Tensor, cache: Tensor, slots: Tensor, scale: Scale) -> None:
    """rows [T,H,D] into slots [T] of cache [P,B,H,D]. Grid: (T, blocks of heads)."""
    checks.store(rows, cache, slots)
    checks.scales(scale, scale, cache)
    num_tokens, num_heads, head_dim = rows.shape
    if num_tokens == 0:
        return
    block_d = padded(head_dim)
    block_h = max(1, min(padded(num_heads), rules.STORE_BLOCK // block_d))
    scales = scale if isinstance(scale, Tensor) else None
    store_kernel[(num_tokens, math.ceil(num_heads / block_h))](
        x_ptr=rows,
        cache_ptr=cache,
        scales_ptr=scales,
        slots_ptr=slots,
        scale=1.0 if isinstance(scale, Tensor) else scale,
        x_token_stride=rows.stride(0),
        x_head_stride=rows.stride(1),
        page_stride=cache.stride(0),
        slot_stride=cache.stride(1),
        head_stride=cache.stride(2),
        **scale_strides(scales),
        HEADS=num_heads,
        HEAD_DIM=head_dim,
        PAGE=cache.shape[1],
        MAX=largest(cache.dtype),
        BLOCK_H=block_h,
        BLOCK_D=block_d,
        **gpu.launched(cache.device),
        num_warps=4,
    )


def gather_rows(pages: Pages, chosen: Tensor, dtype: torch.dtype) -> Tensor:
    """Latents [P,B,R+E] at pages [n] -> [n,B,R+E]. Grid: (n, blocks of slots)."""
    cache, scale = pages.k, pages.k_scale
    page, width = cache.shape[1:]
    out = torch.empty(len(chosen), page, width, dtype=dtype, device=cache.device)
    if out.numel() == 0:
        return out
    block_d = padded(width)
    block_s = max(1, min(padded(page), rules.GATHER_BLOCK // block_d))
    scales = scale if isinstance(scale, Tensor) else None
    scale_page, scale_slot, scale_part = (0, 0, 0) if scales is None else scales.stride()
    gather_kernel[(len(chosen), math.ceil(page / block_s))](
        cache_ptr=cache,
        scales_ptr=scales,
        pages_ptr=chosen,
        out_ptr=out,
        scale=1.0 if isinstance(scale, Tensor) else scale,
        page_stride=cache.stride(0),
        slot_stride=cache.stride(1),
        scale_page_stride=scale_page,
        scale_slot_stride=scale_slot,
        scale_part_stride=scale_part,
        LATENT=pages.latent_dim,
        WIDTH=width,
        PAGE=page,
        BLOCK_S=block_s,
        BLOCK_D=block_d,
        **gpu.launched(cache.device),
        num_warps=4,
    )
    return out


def scale_strides(scales: Tensor | None) -> dict[str, object]:
    page, slot, head = (0, 0, 0) if scales is None else scales.stride()
    return {"scale_page_stride": page, "scale_slot_stride": slot, "scale_head_stride": head}
