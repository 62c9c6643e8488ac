"""Write rows of this step's tokens into the slots of a paged cache, in its dtype, and read whole pages back."""

from __future__ import annotations

import triton
import triton.language as tl

from kvtool.kernels.quantise import SMALLEST_LARGEST
from kvtool.kernels.triton.jit.early import wait_for_launches

_SMALLEST = tl.constexpr(SMALLEST_LARGEST)
_LARGEST_FP32 = tl.constexpr(3.4028234663852886e38)
_TO_INTEGER = tl.constexpr(12582912.0)  # 1.5 * 2**23: fp32 has no fractions there, so adding it rounds to the nearest


@triton.jit
def store_kernel(
    x_ptr, cache_ptr, scales_ptr, slots_ptr, scale,
    x_token_stride, x_head_stride, page_stride, slot_stride, head_stride,
    scale_page_stride, scale_slot_stride, scale_head_stride,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE: tl.constexpr, MAX: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):
    """One program writes BLOCK_H heads of one token; with scales_ptr each vector gets the scale that suits it."""
    wait_for_launches(PDL)
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    if slot < 0:
        return
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    dim = tl.arange(0, BLOCK_D)
    is_head = head < HEADS
    inside = is_head[:, None] & (dim < HEAD_DIM)[None, :]
    x_ptrs = x_ptr + token * x_token_stride + head[:, None] * x_head_stride + dim[None, :]
    x = tl.load(x_ptrs, mask=inside, other=0.0).to(tl.float32)
    row_ptr = cache_ptr + (slot // PAGE) * page_stride + (slot % PAGE) * slot_stride
    scale_ptrs = scales_ptr
    if scales_ptr is not None:
        scale_ptrs = scales_ptr + (slot // PAGE) * scale_page_stride + (slot % PAGE) * scale_slot_stride
        scale_ptrs += head * scale_head_stride
    write_heads(x, row_ptr + head[:, None] * head_stride + dim[None, :], inside, scale_ptrs, is_head, scale, MAX)


@triton.jit
def gather_kernel(
    cache_ptr, scales_ptr, pages_ptr, out_ptr, scale,
    page_stride, slot_stride, scale_page_stride, scale_slot_stride, scale_part_stride,
    LATENT: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program copies BLOCK_S slots of one page to out [n, PAGE, WIDTH], times their scale: that of the first LATENT
    columns and that of the rest, where each row has its two."""
    wait_for_launches(PDL)
    index = tl.program_id(0).to(tl.int64)
    page = tl.load(pages_ptr + index).to(tl.int64)
    slot = tl.program_id(1) * BLOCK_S + tl.arange(0, BLOCK_S)
    dim = tl.arange(0, BLOCK_D)
    inside = (slot < PAGE)[:, None] & (dim < WIDTH)[None, :]
    row_ptrs = cache_ptr + page * page_stride + slot[:, None] * slot_stride
    x = tl.load(row_ptrs + dim[None, :], mask=inside, other=0.0).to(tl.float32)
    if scales_ptr is not None:
        part = tl.where(dim < LATENT, 0, 1)
        at = page * scale_page_stride + slot[:, None] * scale_slot_stride + part[None, :] * scale_part_stride
        x *= tl.load(scales_ptr + at, mask=inside, other=0.0)
    else:
        x *= scale
    out_ptrs = out_ptr + (index * PAGE + slot[:, None]) * WIDTH + dim[None, :]
    tl.store(out_ptrs, x.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def write_heads(x, cache_ptrs, inside, scale_ptrs, is_head, scale, MAX: tl.constexpr):
    """x [H, D] fp32 to cache_ptrs [H, D], over `scale`, or over scales of their own, which go to scale_ptrs [H]."""
    if scale_ptrs is not None:
        largest = tl.max(tl.abs(x), 1)
        scales = tl.div_rn(tl.minimum(tl.maximum(largest, _SMALLEST), _LARGEST_FP32), MAX)
        tl.store(scale_ptrs, scales, mask=is_head)
        x = tl.div_rn(x, scales[:, None])
    else:
        x = tl.div_rn(x, scale)
    stored = tl.clamp(x, -MAX, MAX, propagate_nan=tl.PropagateNan.ALL)
    if cache_ptrs.dtype.element_ty == tl.int8:
        stored = (stored + _TO_INTEGER) - _TO_INTEGER
    tl.store(cache_ptrs, stored.to(cache_ptrs.dtype.element_ty), mask=inside)
