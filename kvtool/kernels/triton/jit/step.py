"""The rest of a decoder step: residual and norm, all between the QKV product and attention."""

from __future__ import annotations

import triton
import triton.language as tl

from kvtool.kernels.triton.jit.early import wait_for_launches
from kvtool.kernels.triton.jit.store import write_heads


@triton.jit
def rms_normed(x, weight_ptrs, inside, eps, SIZE: tl.constexpr):
    """x fp32, zero where not `inside`, over the root of its mean square, times a weight."""
    weight = tl.load(weight_ptrs, mask=inside, other=0.0).to(tl.float32)
    return x * tl.rsqrt(tl.sum(x * x, 0) / SIZE + eps) * weight


@triton.jit
def add_rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, x_weight_ptr, normed_ptr, sum_ptr, eps, x_stride, residual_stride,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):
    """One program a row: sum = x + residual, rounded as it is stored, and its RMSNorm; x may have a norm of its own.
    Without a residual the norm of x alone."""
    wait_for_launches(PDL)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    dtype = normed_ptr.dtype.element_ty
    added = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0)
    if residual_ptr is not None:
        x = added.to(tl.float32)
        residual = tl.load(residual_ptr + row * residual_stride + column, mask=inside, other=0.0).to(tl.float32)
        if x_weight_ptr is not None:
            x = rms_normed(x, x_weight_ptr + column, inside, eps, SIZE).to(dtype).to(tl.float32)
        added = (x + residual).to(dtype)
        tl.store(sum_ptr + row * SIZE + column, added, mask=inside)
    if weight_ptr is not None:
        normed = rms_normed(added.to(tl.float32), weight_ptr + column, inside, eps, SIZE)
        tl.store(normed_ptr + row * SIZE + column, normed.to(dtype), mask=inside)


@triton.jit
def qkv_kernel(
    qkv_ptr, norms_ptr, cos_ptr, sin_ptr, slots_ptr, q_ptr, k_cache_ptr, v_cache_ptr, k_scales_ptr, v_scales_ptr,
    eps, k_scale, v_scale, qkv_stride, rotation_stride,
    k_page_stride, k_slot_stride, k_head_stride, v_page_stride, v_slot_stride, v_head_stride,
    scale_page_stride, scale_slot_stride, scale_head_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, ROTARY: tl.constexpr, PAGE: tl.constexpr,
    MAX: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):
    """One program a (token, head of [Q | K | V]): Q and K normalised, their first ROTARY columns turned, K and V
    written to their slot."""
    wait_for_launches(PDL)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    dim = tl.arange(0, BLOCK_D)
    inside = dim < HEAD_DIM
    row_ptr = qkv_ptr + token * qkv_stride + head * HEAD_DIM
    x = tl.load(row_ptr + dim, mask=inside, other=0.0).to(tl.float32)
    if head < HEADS + KV_HEADS:
        if norms_ptr is not None:
            rms = tl.rsqrt(tl.sum(x * x, 0) / HEAD_DIM + eps)
            x *= rms * tl.load(norms_ptr + head * HEAD_DIM + dim, mask=inside, other=0.0).to(tl.float32)
        if ROTARY > 0:
            is_turned = dim < ROTARY
            other_half = (dim + ROTARY // 2) % ROTARY
            turned = tl.load(row_ptr + other_half, mask=is_turned, other=0.0).to(tl.float32)
            if norms_ptr is not None:
                gain = tl.load(norms_ptr + head * HEAD_DIM + other_half, mask=is_turned, other=0.0)
                turned *= rms * gain.to(tl.float32)
            cos = tl.load(cos_ptr + token * rotation_stride + dim, mask=is_turned, other=1.0).to(tl.float32)
            sin = tl.load(sin_ptr + token * rotation_stride + dim, mask=is_turned, other=0.0).to(tl.float32)
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


@triton.jit(do_not_specialize=["num_absorbed"])
def latent_kernel(
    q_ptr, latent_ptr, norm_ptr, cos_ptr, sin_ptr, slots_ptr, absorb_ptr, absorbed_ptr, cache_ptr, scales_ptr,
    eps, scale, num_absorbed, q_token_stride, q_head_stride, latent_stride, rotation_stride, page_stride, slot_stride,
    absorb_stride,
    scale_page_stride, scale_slot_stride, scale_part_stride,
    HEADS: tl.constexpr, NOPE: tl.constexpr, LATENT: tl.constexpr, ROPE: tl.constexpr, PAGE: tl.constexpr,
    MAX: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_HALF: tl.constexpr,
    BLOCK_NOPE: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, PDL: tl.constexpr,
):
    """One program: the latent and rotary key of a token, or the rotary parts of BLOCK_H of its query heads, or, with
    absorb_ptr [H, NOPE, LATENT], BLOCK_COLUMNS of what one head's other part becomes by its matrix.

    A token below num_absorbed gives its rotary parts to absorbed [*, H, LATENT + ROPE]; another keeps them in q.
    """
    wait_for_launches(PDL)
    token = tl.program_id(0).to(tl.int64)
    cos_ptr += token * rotation_stride
    sin_ptr += token * rotation_stride
    of_heads = tl.cdiv(HEADS, BLOCK_H)
    if absorb_ptr is not None:  # noqa: SIM102 - this is known when it is compiled
        if tl.program_id(1) > of_heads:
            one = tl.program_id(1) - of_heads - 1
            blocks = tl.cdiv(LATENT, BLOCK_COLUMNS)
            absorb(
                q_ptr + token * q_token_stride, absorb_ptr, absorbed_ptr + token * HEADS * (LATENT + ROPE),
                one // blocks, one % blocks, q_head_stride, absorb_stride, NOPE, LATENT, LATENT + ROPE, BLOCK_NOPE,
                BLOCK_COLUMNS,
            )
            return
    if tl.program_id(1) > 0:
        # A thread holds the same columns of both halves, so that none is overwritten before it was read.
        half = tl.arange(0, BLOCK_HALF)
        is_half = half < ROPE // 2
        cos = tl.load(cos_ptr + half, mask=is_half, other=0.0).to(tl.float32)
        sin = tl.load(sin_ptr + half, mask=is_half, other=0.0).to(tl.float32)
        cos_too = tl.load(cos_ptr + ROPE // 2 + half, mask=is_half, other=0.0).to(tl.float32)
        sin_too = tl.load(sin_ptr + ROPE // 2 + half, mask=is_half, other=0.0).to(tl.float32)
        head = (tl.program_id(1) - 1) * BLOCK_H + tl.arange(0, BLOCK_H)
        inside = (head < HEADS)[:, None] & is_half[None, :]
        q_ptrs = q_ptr + token * q_token_stride + head[:, None] * q_head_stride + NOPE + half[None, :]
        x = tl.load(q_ptrs, mask=inside, other=0.0).to(tl.float32)
        too = tl.load(q_ptrs + ROPE // 2, mask=inside, other=0.0).to(tl.float32)
        turned = (x * cos[None, :] + too * sin[None, :]).to(q_ptr.dtype.element_ty)
        turned_too = (too * cos_too[None, :] + x * sin_too[None, :]).to(q_ptr.dtype.element_ty)
        is_absorbed = inside & (token < num_absorbed)
        absorbed_ptrs = absorbed_ptr + (token * HEADS + head[:, None]) * (LATENT + ROPE) + LATENT + half[None, :]
        tl.store(absorbed_ptrs, turned, mask=is_absorbed)
        tl.store(absorbed_ptrs + ROPE // 2, turned_too, mask=is_absorbed)
        is_kept = inside & (token >= num_absorbed)
        tl.store(q_ptrs, turned, mask=is_kept)
        tl.store(q_ptrs + ROPE // 2, turned_too, mask=is_kept)
        return

    slot = tl.load(slots_ptr + token)
    if slot < 0:
        return
    latent_ptr += token * latent_stride
    cache_ptr += (slot // PAGE) * page_stride + (slot % PAGE) * slot_stride
    scale_offset = (slot // PAGE) * scale_page_stride + (slot % PAGE) * scale_slot_stride
    dim = tl.arange(0, BLOCK_R)
    inside = dim < LATENT
    x = tl.load(latent_ptr + dim, mask=inside, other=0.0).to(tl.float32)
    x = rms_normed(x, norm_ptr + dim, inside, eps, LATENT)
    write_vector(x, cache_ptr, dim, inside, scales_ptr, scale_offset, scale, MAX)
    dim = tl.arange(0, 2 * BLOCK_HALF)
    inside = dim < ROPE
    other_half = (dim + ROPE // 2) % ROPE
    x = tl.load(latent_ptr + LATENT + dim, mask=inside, other=0.0).to(tl.float32)
    too = tl.load(latent_ptr + LATENT + other_half, mask=inside, other=0.0).to(tl.float32)
    cos = tl.load(cos_ptr + dim, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + dim, mask=inside, other=0.0).to(tl.float32)
    x = x * cos + too * sin
    write_vector(x, cache_ptr + LATENT, dim, inside, scales_ptr, scale_offset + scale_part_stride, scale, MAX)


@triton.jit
def absorb(
    q_ptr, absorb_ptr, absorbed_ptr, head, block, q_head_stride, absorb_stride,
    NOPE: tl.constexpr, LATENT: tl.constexpr, WIDTH: tl.constexpr, BLOCK_NOPE: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """absorbed [H, WIDTH]: a head's columns of q [H, NOPE] times its matrix [NOPE, LATENT]."""
    nope = tl.arange(0, BLOCK_NOPE)
    column = block * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    inside = (nope < NOPE)[:, None] & (column < LATENT)[None, :]
    ptrs = absorb_ptr + head.to(tl.int64) * absorb_stride + (nope[:, None] * LATENT + column[None, :])
    matrix = tl.load(ptrs, mask=inside, other=0.0).to(tl.float32)
    q = tl.load(q_ptr + head * q_head_stride + nope, mask=nope < NOPE, other=0.0).to(tl.float32)
    out = tl.sum(q[:, None] * matrix, 0).to(absorbed_ptr.dtype.element_ty)
    tl.store(absorbed_ptr + head * WIDTH + column, out, mask=column < LATENT)


@triton.jit
def write_vector(x, cache_ptr, dim, inside, scales_ptr, scale_offset, scale, MAX: tl.constexpr):
    """x [D] fp32 to one vector of a cache, as a store of one head."""
    one = tl.full([1], 0, tl.int32)
    scale_ptrs = scales_ptr
    if scales_ptr is not None:
        scale_ptrs = scales_ptr + scale_offset + one
    write_heads(x[None, :], cache_ptr + dim[None, :], inside[None, :], scale_ptrs, one == 0, scale, MAX)


@triton.jit
def place_kernel(
    positions_ptr, table_ptr, at_ptr, slots_ptr, lens_ptr, num_rows, table_stride,
    PAGE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):
    """BLOCK decode rows a program: where each writes and how much it sees; then its position goes on."""
    wait_for_launches(PDL)
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_rows
    position = tl.load(positions_ptr + row, mask=inside, other=-1)
    is_live = position >= 0
    at = tl.maximum(position, 0)
    page = tl.load(table_ptr + row * table_stride + at // PAGE, mask=is_live, other=0).to(tl.int64)
    tl.store(at_ptr + row, at, mask=inside)
    tl.store(slots_ptr + row, tl.where(is_live, page * PAGE + at % PAGE, -1), mask=inside)
    tl.store(lens_ptr + row, (position + 1).to(tl.int32), mask=inside)
    tl.store(positions_ptr + row, position + 1, mask=is_live)
