"""Split-KV flash decoding: several programs share a sequence's keys, a second kernel merges their partial softmaxes."""

from __future__ import annotations

import triton
import triton.language as tl

from kvtool.kernels.triton.paged import FLOOR, attend, load_rows, normalise, split_tiles


# What changes from step to step must not compile a new variant.
@triton.jit(do_not_specialize=["window", "group", "num_heads", "num_splits", "table_stride"])
def decode_kernel(
    q_ptr, k_ptr, v_ptr, table_ptr, lens_ptr, out_ptr, lse_ptr,
    qk_scale, v_scale, window, group, num_heads, num_splits,
    q_seq_stride, q_head_stride, table_stride,
    k_page_stride, k_slot_stride, k_head_stride, v_page_stride, v_slot_stride, v_head_stride,
    SPLIT: tl.constexpr, HEAD_DIM: tl.constexpr, V_DIM: tl.constexpr, ROPE_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr, BLOCK_ROPE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    MIN_TILES: tl.constexpr, PAGE: tl.constexpr,
):
    """One program: up to BLOCK_M query heads of one KV head, over one split of one sequence.

    out [S, HQ, splits, V_DIM] and lse [S, HQ, splits] (base 2); without SPLIT there is one split and out is the answer.
    """
    seq = tl.program_id(0).to(tl.int64)
    head_blocks = tl.cdiv(group, BLOCK_M)
    kv_head = tl.program_id(1) // head_blocks
    split = tl.program_id(2)

    length = tl.load(lens_ptr + seq)
    begin, end = split_tiles(split, length, window, num_splits, BLOCK_N, MIN_TILES)
    if SPLIT and begin >= end:
        return  # the merge knows which splits are empty and reads nothing of them

    member = (tl.program_id(1) % head_blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_head = member < group
    head = kv_head * group + member
    q_ptrs = q_ptr + seq * q_seq_stride + head * q_head_stride
    q = load_rows(q_ptrs, is_head, HEAD_DIM, BLOCK_D, True)
    q_rope = q
    if ROPE_DIM > 0:
        q_rope = load_rows(q_ptrs + HEAD_DIM, is_head, ROPE_DIM, BLOCK_ROPE, True)

    position = tl.full([BLOCK_M], 0, tl.int32) + (length - 1)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    row_max = tl.full([BLOCK_M], FLOOR, tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    k_ptr += kv_head.to(tl.int64) * k_head_stride
    v_ptr += kv_head.to(tl.int64) * v_head_stride
    table_ptr += seq * table_stride
    acc, row_max, row_sum = attend(
        acc, row_max, row_sum, q, q_rope, position,
        k_ptr, v_ptr, table_ptr, begin, end, tl.maximum(length - window, 0), length, window, qk_scale,
        k_page_stride, k_slot_stride, v_page_stride, v_slot_stride,
        True, HEAD_DIM, V_DIM, ROPE_DIM, BLOCK_D, BLOCK_DV, BLOCK_ROPE, BLOCK_N, PAGE,
    )

    row = (seq * num_heads + head) * num_splits + split
    dim = tl.arange(0, BLOCK_DV)
    stored = is_head[:, None] & (dim < V_DIM)[None, :]
    out = normalise(acc, row_sum, v_scale)
    tl.store(out_ptr + row[:, None] * V_DIM + dim[None, :], out.to(out_ptr.dtype.element_ty), mask=stored)
    if SPLIT:
        tl.store(lse_ptr + row, row_max + tl.log2(row_sum), mask=is_head)


@triton.jit(do_not_specialize=["window", "num_heads", "num_splits"])
def merge_kernel(
    partial_ptr, lse_ptr, lens_ptr, out_ptr, window, num_splits, num_heads,
    V_DIM: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_SPLITS: tl.constexpr, BLOCK_N: tl.constexpr,
    MIN_TILES: tl.constexpr,
):
    """out [S, HQ, V_DIM] = mean of partial [S, HQ, splits, V_DIM] by weights exp2(lse); zeros for an empty sequence."""
    seq = tl.program_id(0).to(tl.int64)
    row = seq * num_heads + tl.program_id(1)
    split = tl.arange(0, BLOCK_SPLITS)
    begin, end = split_tiles(split, tl.load(lens_ptr + seq), window, num_splits, BLOCK_N, MIN_TILES)
    active = (split < num_splits) & (begin < end)

    lse = tl.load(lse_ptr + row * num_splits + split, mask=active, other=float("-inf"))
    weight = tl.exp2(lse - tl.maximum(tl.max(lse, 0), FLOOR))
    total = tl.sum(weight, 0)

    dim = tl.program_id(2) * BLOCK_DV + tl.arange(0, BLOCK_DV)
    inside = dim < V_DIM
    partial_row = row * num_splits + split
    loaded = active[:, None] & inside[None, :]
    partial = tl.load(partial_ptr + partial_row[:, None] * V_DIM + dim[None, :], mask=loaded, other=0.0)
    out = tl.sum(weight[:, None] * partial, 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out_ptr + row * V_DIM + dim, out.to(out_ptr.dtype.element_ty), mask=inside)
