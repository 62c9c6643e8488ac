"""Causal attention of many queries a sequence over its pages: plain, chunked and prefix-cached prefill alike."""

from __future__ import annotations

import triton
import triton.language as tl

from kvtool.kernels.triton.jit.early import wait_for_launches
from kvtool.kernels.triton.jit.paged import attend, first_softmax, load_rows, normalise


# What changes from step to step must not compile a new variant.
@triton.jit(do_not_specialize=["window", "group", "num_heads", "num_seqs", "table_stride", "num_pages"])
def prefill_kernel(
    q_ptr, k_ptr, v_ptr, rope_ptr, k_scale_ptr, v_scale_ptr, rope_scale_ptr, sinks_ptr, table_ptr, lens_ptr, starts_ptr,
    out_ptr,
    qk_scale, v_scale, cap, window, group, num_heads, num_seqs,
    q_token_stride, q_head_stride, table_stride,
    k_page_stride, k_slot_stride, k_head_stride, v_page_stride, v_slot_stride, v_head_stride,
    rope_page_stride, rope_slot_stride, scale_page_stride, scale_slot_stride, scale_head_stride, num_pages,
    CAPPED: tl.constexpr, WINDOWED: tl.constexpr, TMA: tl.constexpr, HEAD_DIM: tl.constexpr, V_DIM: tl.constexpr,
    ROPE_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_ROPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PAGE: tl.constexpr, PDL: tl.constexpr,
):
    """One program: BLOCK_M rows of one KV head of one sequence, a row being one (token, query head of the group) pair.

    So K and V are read once for a whole group, and a short chunk still fills its rows. out is [T, HQ, V_DIM].
    """
    wait_for_launches(PDL)
    num_kv_heads = num_heads // group
    unit = tl.program_id(0) % (num_kv_heads * num_seqs)
    kv_head = unit % num_kv_heads
    seq = (unit // num_kv_heads).to(tl.int64)
    start = tl.load(starts_ptr + seq)
    query_len = tl.load(starts_ptr + seq + 1) - start
    num_rows = query_len * group
    # Programs start in order of their id: the last block of a sequence sees the most keys, so it goes first.
    block = tl.cdiv(num_rows, BLOCK_M) - 1 - tl.program_id(0) // (num_kv_heads * num_seqs)
    if block < 0:
        return

    row = block * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = row < num_rows
    token = row // group
    head = kv_head * group + row % group
    q_ptrs = q_ptr + (start + token).to(tl.int64) * q_token_stride + head * q_head_stride
    q = load_rows(q_ptrs, is_row, HEAD_DIM, BLOCK_D, True)
    q_rope = q
    if rope_ptr is not None:
        q_rope = load_rows(q_ptrs + HEAD_DIM, is_row, ROPE_DIM, BLOCK_ROPE, True)

    #   key      first_key ......................... end_key
    #   tiles    | some rows' window | seen by all rows | some rows' diagonal |
    #          first               full               tail                  last
    context = tl.load(lens_ptr + seq) - query_len
    lowest = context + block * BLOCK_M // group
    highest = context + tl.minimum(block * BLOCK_M + BLOCK_M - 1, num_rows - 1) // group
    first_key = tl.maximum(lowest - window + 1, 0)
    end_key = highest + 1
    first = first_key // BLOCK_N
    last = tl.cdiv(end_key, BLOCK_N)
    full = tl.minimum(tl.cdiv(tl.maximum(highest - window + 1, 0), BLOCK_N), last)
    tail = tl.maximum((lowest + 1) // BLOCK_N, full)

    k_ptr += kv_head.to(tl.int64) * k_head_stride
    if v_ptr is not None:
        v_ptr += kv_head.to(tl.int64) * v_head_stride
    if k_scale_ptr is not None:
        k_scale_ptr += kv_head.to(tl.int64) * scale_head_stride
        v_scale_ptr += kv_head.to(tl.int64) * scale_head_stride
    table_ptr += seq * table_stride
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    row_max, row_sum = first_softmax(sinks_ptr, head, is_row, BLOCK_M)
    for part in tl.static_range(0 if WINDOWED else 1, 3):
        begin = first if part == 0 else full if part == 1 else tail
        end = full if part == 0 else tail if part == 1 else last
        acc, row_max, row_sum = attend(
            acc, row_max, row_sum, q, q_rope, context + token,
            k_ptr, v_ptr, rope_ptr, k_scale_ptr, v_scale_ptr, rope_scale_ptr, table_ptr,
            begin, end, first_key, end_key, window, qk_scale, 1.0 / v_scale, cap,
            k_page_stride, k_slot_stride, v_page_stride, v_slot_stride, rope_page_stride, rope_slot_stride,
            scale_page_stride, scale_slot_stride, num_pages,
            CAPPED, TMA, part != 1, HEAD_DIM, V_DIM, ROPE_DIM, BLOCK_D, BLOCK_DV, BLOCK_ROPE, BLOCK_N, PAGE,
        )

    dim = tl.arange(0, BLOCK_DV)
    out_row = (start + token).to(tl.int64) * num_heads + head
    out = normalise(acc, row_sum, v_scale).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + out_row[:, None] * V_DIM + dim[None, :], out, mask=is_row[:, None] & (dim < V_DIM)[None, :])
