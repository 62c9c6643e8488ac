"""Split-KV flash decoding: several programs share a sequence's keys, a second kernel merges their partial softmaxes."""

from __future__ import annotations

import triton
import triton.language as tl

from kvtool.kernels.triton.paged import FLOOR, attend, first_softmax, load_rows, normalise, split_tiles


# What changes from step to step must not compile a new variant.
@triton.jit(do_not_specialize=["window", "group", "query_len", "num_heads", "num_splits", "table_stride"])
def decode_kernel(
    q_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, sinks_ptr, table_ptr, lens_ptr, out_ptr, lse_ptr,
    qk_scale, v_scale, cap, window, group, query_len, num_heads, num_splits,
    q_token_stride, q_head_stride, table_stride,
    k_page_stride, k_slot_stride, k_head_stride, v_page_stride, v_slot_stride, v_head_stride,
    scale_page_stride, scale_slot_stride, scale_head_stride,
    SPLIT: tl.constexpr, CAPPED: tl.constexpr, HEAD_DIM: tl.constexpr, V_DIM: tl.constexpr, ROPE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_ROPE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, MIN_TILES: tl.constexpr, PAGE: tl.constexpr,
):
    """One program: up to BLOCK_M rows of one KV head, over one split of one sequence. A row is one (token, query head
    of the group) pair of the sequence's last query_len tokens.

    out [T, HQ, splits, V_DIM] and lse [T, HQ, splits] (base 2); without SPLIT there is one split and out is the answer.
    """
    seq = tl.program_id(0).to(tl.int64)
    row_blocks = tl.cdiv(group * query_len, BLOCK_M)
    kv_head = tl.program_id(1) // row_blocks
    split = tl.program_id(2)

    length = tl.load(lens_ptr + seq)
    begin, end = split_tiles(split, length, window + query_len - 1, num_splits, BLOCK_N, MIN_TILES)
    if SPLIT and begin >= end:
        return  # the merge knows which splits are empty and reads nothing of them

    row = (tl.program_id(1) % row_blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = row < group * query_len
    token = row // group
    head = kv_head * group + row % group
    q_ptrs = q_ptr + (seq * query_len + token) * q_token_stride + head * q_head_stride
    q = load_rows(q_ptrs, is_row, HEAD_DIM, BLOCK_D, True)
    q_rope = q
    if ROPE_DIM > 0:
        q_rope = load_rows(q_ptrs + HEAD_DIM, is_row, ROPE_DIM, BLOCK_ROPE, True)

    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    # A sink enters once, in the first split, which every sequence has.
    row_max, row_sum = first_softmax(sinks_ptr, head, is_row, BLOCK_M)
    if sinks_ptr is not None:
        row_max = tl.where(split == 0, row_max, FLOOR)
        row_sum = tl.where(split == 0, row_sum, 0.0)
    k_ptr += kv_head.to(tl.int64) * k_head_stride
    v_ptr += kv_head.to(tl.int64) * v_head_stride
    if k_scale_ptr is not None:
        k_scale_ptr += kv_head.to(tl.int64) * scale_head_stride
        v_scale_ptr += kv_head.to(tl.int64) * scale_head_stride
    table_ptr += seq * table_stride
    first_key = tl.maximum(length - query_len - window + 1, 0)
    acc, row_max, row_sum = attend(
        acc, row_max, row_sum, q, q_rope, length - query_len + token,
        k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table_ptr,
        begin, end, first_key, length, window, qk_scale, 1.0 / v_scale, cap,
        k_page_stride, k_slot_stride, v_page_stride, v_slot_stride, scale_page_stride, scale_slot_stride,
        CAPPED, True, HEAD_DIM, V_DIM, ROPE_DIM, BLOCK_D, BLOCK_DV, BLOCK_ROPE, BLOCK_N, PAGE,
    )

    out_row = ((seq * query_len + token) * num_heads + head) * num_splits + split
    dim = tl.arange(0, BLOCK_DV)
    stored = is_row[:, None] & (dim < V_DIM)[None, :]
    out = normalise(acc, row_sum, v_scale)
    tl.store(out_ptr + out_row[:, None] * V_DIM + dim[None, :], out.to(out_ptr.dtype.element_ty), mask=stored)
    if SPLIT:
        # A row that has seen no key of this split keeps the floor, whose weight beside any score is 0.
        tl.store(lse_ptr + out_row, row_max + tl.log2(tl.where(row_sum == 0.0, 1.0, row_sum)), mask=is_row)


@triton.jit(do_not_specialize=["window", "query_len", "num_heads", "num_splits"])
def merge_kernel(
    partial_ptr, lse_ptr, lens_ptr, out_ptr, window, query_len, num_heads, num_splits,
    V_DIM: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_SPLITS: tl.constexpr, BLOCK_N: tl.constexpr,
    MIN_TILES: tl.constexpr,
):
    """out [T, HQ, V_DIM] = mean of partial [T, HQ, splits, V_DIM] by weights exp2(lse); zeros for an empty sequence."""
    token = tl.program_id(0).to(tl.int64)
    row = token * num_heads + tl.program_id(1)
    split = tl.arange(0, BLOCK_SPLITS)
    length = tl.load(lens_ptr + token // query_len)
    begin, end = split_tiles(split, length, window + query_len - 1, num_splits, BLOCK_N, MIN_TILES)
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
