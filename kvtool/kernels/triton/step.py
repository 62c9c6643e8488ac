"""The rest of a decoder step: residual and norm, all between the QKV product and attention."""

from __future__ import annotations

import triton
import triton.language as tl

from kvtool.kernels.triton.store import write_heads


@triton.jit
def add_rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, normed_ptr, sum_ptr, eps, x_stride, residual_stride,
    SIZE: tl.constexpr, BLOCK: tl.constexpr,
):
    """One program a row: sum = x + residual, rounded as it is stored, and its RMSNorm."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + row * residual_stride + column, mask=inside, other=0.0).to(tl.float32)
    added = (x + residual).to(sum_ptr.dtype.element_ty)
    tl.store(sum_ptr + row * SIZE + column, added, mask=inside)
    added = added.to(tl.float32)
    rms = tl.rsqrt(tl.sum(added * added, 0) / SIZE + eps)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed_ptr + row * SIZE + column, (added * rms * weight).to(normed_ptr.dtype.element_ty), mask=inside)


@triton.jit
def qkv_kernel(
    qkv_ptr, norms_ptr, cos_ptr, sin_ptr, slots_ptr, q_ptr, k_cache_ptr, v_cache_ptr, k_scales_ptr, v_scales_ptr,
    eps, k_scale, v_scale, qkv_stride, rotation_stride,
    k_page_stride, k_slot_stride, k_head_stride, v_page_stride, v_slot_stride, v_head_stride,
    scale_page_stride, scale_slot_stride, scale_head_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE: tl.constexpr, MAX: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program a (token, head of [Q | K | V]): Q and K normalised and turned, K and V written to their slot."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    dim = tl.arange(0, BLOCK_D)
    inside = dim < HEAD_DIM
    row_ptr = qkv_ptr + token * qkv_stride + head * HEAD_DIM
    x = tl.load(row_ptr + dim, mask=inside, other=0.0).to(tl.float32)
    if head < HEADS + KV_HEADS:
        other_half = (dim + HEAD_DIM // 2) % HEAD_DIM
        turned = tl.load(row_ptr + other_half, mask=inside, other=0.0).to(tl.float32)
        if norms_ptr is not None:
            rms = tl.rsqrt(tl.sum(x * x, 0) / HEAD_DIM + eps)
            x *= rms * tl.load(norms_ptr + head * HEAD_DIM + dim, mask=inside, other=0.0).to(tl.float32)
            turned *= rms * tl.load(norms_ptr + head * HEAD_DIM + other_half, mask=inside, other=0.0).to(tl.float32)
        cos = tl.load(cos_ptr + token * rotation_stride + dim, mask=inside, other=0.0).to(tl.float32)
        sin = tl.load(sin_ptr + token * rotation_stride + dim, mask=inside, other=0.0).to(tl.float32)
        x = x * cos + turned * sin

    if head < HEADS:
        tl.store(q_ptr + (token * HEADS + head) * HEAD_DIM + dim, x.to(q_ptr.dtype.element_ty), mask=inside)
        return
    slot = tl.load(slots_ptr + token)
    if slot < 0:
        return
    page = slot // PAGE
    slot = slot % PAGE
    if head < HEADS + KV_HEADS:
        kv_head = head - HEADS
        at = k_cache_ptr + page * k_page_stride + slot * k_slot_stride + kv_head * k_head_stride
        write_vector(
            x, at, dim, inside, k_scales_ptr, page * scale_page_stride + slot * scale_slot_stride
            + kv_head * scale_head_stride, k_scale, MAX,
        )
    else:
        kv_head = head - HEADS - KV_HEADS
        at = v_cache_ptr + page * v_page_stride + slot * v_slot_stride + kv_head * v_head_stride
        write_vector(
            x, at, dim, inside, v_scales_ptr, page * scale_page_stride + slot * scale_slot_stride
            + kv_head * scale_head_stride, v_scale, MAX,
        )


@triton.jit
def write_vector(x, cache_ptr, dim, inside, scales_ptr, scale_offset, scale, MAX: tl.constexpr):
    """x [D] fp32 to one vector of a cache, as a store of one head."""
    one = tl.full([1], 0, tl.int32)
    scale_ptrs = scales_ptr
    if scales_ptr is not None:
        scale_ptrs = scales_ptr + scale_offset + one
    write_heads(x[None, :], cache_ptr + dim[None, :], inside[None, :], scale_ptrs, one == 0, scale, MAX)
