"""Split-KV flash decoding: several programs share a sequence's keys, and the last one to finish merges their softmaxes.

Where that is more than one program reads in the time of a launch, the programs of a second one merge a row each.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvtool.kernels.triton.jit.early import wait_for_launches
from kvtool.kernels.triton.jit.paged import (
    FLOOR,
    attend,
    first_softmax,
    listed_share,
    load_rows,
    normalise,
    split_tiles,
    used_splits,
)


# What changes from step to step must not compile a new variant.
@triton.jit(
    do_not_specialize=[
        "window", "group", "query_len", "num_heads", "num_splits", "table_stride", "num_pages", "num_seqs",
    ]
)  # fmt: skip
def decode_kernel(
    q_ptr, k_ptr, v_ptr, rope_ptr, k_scale_ptr, v_scale_ptr, rope_scale_ptr, sinks_ptr, table_ptr, lens_ptr, out_ptr,
    partial_ptr, lse_ptr, arrivals_ptr,
    qk_scale, v_scale, cap, window, group, query_len, num_heads, num_splits,
    q_token_stride, q_head_stride, table_stride,
    k_page_stride, k_slot_stride, k_head_stride, v_page_stride, v_slot_stride, v_head_stride,
    rope_page_stride, rope_slot_stride, scale_page_stride, scale_slot_stride, scale_head_stride, num_pages, num_seqs,
    SPLIT: tl.constexpr, NARROW: tl.constexpr, CAPPED: tl.constexpr, WINDOWED: tl.constexpr, TMA: tl.constexpr,
    HEAD_DIM: tl.constexpr, V_DIM: tl.constexpr, ROPE_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_ROPE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MERGED_ROWS: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr, BLOCK_SEQS: tl.constexpr, MIN_TILES: tl.constexpr, PAGE: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program: up to BLOCK_M rows of one KV head, over one split of one sequence. A row is one (token, query head
    of the group) pair of the sequence's last query_len tokens. With BLOCK_SEQS the splits are `listed_share`s.

    out is [T, HQ, V_DIM]. With SPLIT the programs of a block of rows meet at partial [S, HKV x row blocks, splits,
    BLOCK_M, V_DIM] ([HKV x row blocks, items, ...] of shares) and lse (base 2), and arrivals [S, HKV x row blocks]
    counts them; it is zero before and after.
    """
    wait_for_launches(PDL)
    row_blocks = tl.cdiv(group * query_len, BLOCK_M)
    kv_head = tl.program_id(1) // row_blocks
    span = window + query_len - 1
    if BLOCK_SEQS > 0:
        seq, length, split, begin, end, first_item, used = listed_share(
            lens_ptr, tl.program_id(0), num_seqs, span, BLOCK_SEQS, BLOCK_N, MIN_TILES
        )
    else:
        seq = tl.program_id(0).to(tl.int64)
        split = tl.program_id(2)
        length = tl.load(lens_ptr + seq)
        begin, end = split_tiles(split, length, span, num_splits, BLOCK_N, MIN_TILES)
    if SPLIT and begin >= end and split > 0:
        return  # the merge knows which splits are empty and reads nothing of them

    row = (tl.program_id(1) % row_blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = row < group * query_len
    token = row // group
    head = kv_head * group + row % group
    q_ptrs = q_ptr + (seq * query_len + token) * q_token_stride + head * q_head_stride
    q = load_rows(q_ptrs, is_row, HEAD_DIM, BLOCK_D, True)
    q_rope = q
    if rope_ptr is not None:
        q_rope = load_rows(q_ptrs + HEAD_DIM, is_row, ROPE_DIM, BLOCK_ROPE, True)

    if NARROW != "":
        q, q_rope, scale = narrowed(q, q_rope, NARROW)
        qk_scale = qk_scale * scale[:, None]

    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    # A sink enters once, in the first split, which every sequence has.
    row_max, row_sum = first_softmax(sinks_ptr, head, is_row, BLOCK_M)
    if sinks_ptr is not None:
        row_max = tl.where(split == 0, row_max, FLOOR)
        row_sum = tl.where(split == 0, row_sum, 0.0)
    k_ptr += kv_head.to(tl.int64) * k_head_stride
    if v_ptr is not None:
        v_ptr += kv_head.to(tl.int64) * v_head_stride
    if k_scale_ptr is not None:
        k_scale_ptr += kv_head.to(tl.int64) * scale_head_stride
        v_scale_ptr += kv_head.to(tl.int64) * scale_head_stride
    table_ptr += seq * table_stride
    first_key = tl.maximum(length - query_len - window + 1, 0)
    # A masked load costs nothing; a box of TMA is masked after it came, so tiles that all rows see whole go apart.
    PARTS: tl.constexpr = 3 if TMA else 1
    full = end
    tail = end
    if TMA:
        full = tl.minimum(tl.maximum(tl.cdiv(tl.maximum(length - window, 0), BLOCK_N), begin), end)
        tail = tl.minimum(tl.maximum((length - query_len + 1) // BLOCK_N, full), end)
    FIRST: tl.constexpr = 1 if TMA and not WINDOWED else 0  # nothing is hidden before a window that there is not
    for part in tl.static_range(FIRST, PARTS):
        acc, row_max, row_sum = attend(
            acc, row_max, row_sum, q, q_rope, length - query_len + token,
            k_ptr, v_ptr, rope_ptr, k_scale_ptr, v_scale_ptr, rope_scale_ptr, table_ptr,
            begin if part == 0 else full if part == 1 else tail, full if part == 0 else tail if part == 1 else end,
            first_key, length, window, qk_scale, 1.0 / v_scale, cap,
            k_page_stride, k_slot_stride, v_page_stride, v_slot_stride, rope_page_stride, rope_slot_stride,
            scale_page_stride, scale_slot_stride, num_pages,
            CAPPED, TMA, part != 1, HEAD_DIM, V_DIM, ROPE_DIM, BLOCK_D, BLOCK_DV, BLOCK_ROPE, BLOCK_N, PAGE,
        )

    out = normalise(acc, row_sum, v_scale)
    out_row = seq * query_len * num_heads + kv_head * group
    of_seq = token * num_heads + row % group if v_ptr is not None else row  # of latents there is one KV head
    if not SPLIT:
        store_rows(out_ptr, out_row, of_seq, out, is_row, V_DIM, BLOCK_DV)
    else:
        arrivals_at = seq * tl.num_programs(1) + tl.program_id(1)
        first_row = (tl.program_id(1) % row_blocks) * BLOCK_M
        if BLOCK_SEQS == 0:
            unit = arrivals_at * num_splits * BLOCK_M
            keep_split(
                partial_ptr, lse_ptr, unit + split * BLOCK_M, out, row_max, row_sum, is_row, V_DIM, BLOCK_DV, BLOCK_M
            )
            if arrivals_ptr is not None:
                merge_if_last(
                    partial_ptr, lse_ptr, arrivals_ptr + arrivals_at, out_ptr, unit, out_row, first_row,
                    group, query_len, num_heads, used_splits(length, span, num_splits, BLOCK_N, MIN_TILES),
                    V_DIM, BLOCK_DV, BLOCK_M, MERGED_ROWS, BLOCK_SPLITS,
                )
        elif used == 1:
            store_rows(out_ptr, out_row, of_seq, out, is_row, V_DIM, BLOCK_DV)
        else:
            unit = (tl.program_id(1).to(tl.int64) * tl.num_programs(0) + first_item) * BLOCK_M
            keep_split(
                partial_ptr, lse_ptr, unit + split * BLOCK_M, out, row_max, row_sum, is_row, V_DIM, BLOCK_DV, BLOCK_M
            )
            merge_if_last(
                partial_ptr, lse_ptr, arrivals_ptr + arrivals_at, out_ptr, unit, out_row, first_row,
                group, query_len, num_heads, used, V_DIM, BLOCK_DV, BLOCK_M, MERGED_ROWS, BLOCK_SPLITS,
            )


@triton.jit
def store_rows(ptr, first, row, out, is_row, V_DIM: tl.constexpr, BLOCK_DV: tl.constexpr):
    """out [M, BLOCK_DV] to rows [first + row, V_DIM]. Offsets from a scalar, in 32 bits and few terms: what addresses a
    tile is kept through the loop."""
    dim = tl.arange(0, BLOCK_DV)
    ptrs = ptr + first * V_DIM + (row[:, None] * V_DIM + dim[None, :])
    tl.store(ptrs, out.to(ptr.dtype.element_ty), mask=is_row[:, None] & (dim < V_DIM)[None, :])


@triton.jit
def keep_split(
    partial_ptr, lse_ptr, part, out, row_max, row_sum, is_row, V_DIM: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """The outputs of a split's rows and their weight, for whoever merges them."""
    of_block = tl.arange(0, BLOCK_M)
    store_rows(partial_ptr, part, of_block, out, is_row, V_DIM, BLOCK_DV)
    # A row that has seen no key of this split keeps the floor, whose weight beside any score is 0.
    lse = row_max + tl.log2(tl.where(row_sum == 0.0, 1.0, row_sum))
    tl.store(lse_ptr + part + of_block, lse, mask=is_row)


@triton.jit
def merge_if_last(
    partial_ptr, lse_ptr, arrivals_ptr, out_ptr, first_part, out_row, first_row, group, query_len, num_heads, used,
    V_DIM: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, ROWS: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
):
    """The last of a block's `used` programs to come here merges their partial outputs, which begin at first_part. The
    block begins at first_row of its KV head, whose rows of out begin at out_row. The count is zero again then."""
    tl.debug_barrier()  # all threads' stores come before the count, which releases them to the last program
    if tl.atomic_add(arrivals_ptr, 1) == used - 1:
        row = first_row + tl.arange(0, ROWS)
        merge_rows(
            partial_ptr, lse_ptr, out_ptr, first_part, out_row + row // group * num_heads + row % group,
            tl.minimum(group * query_len - first_row, BLOCK_M), used, V_DIM, BLOCK_DV, BLOCK_M, ROWS, BLOCK_SPLITS,
        )
        tl.store(arrivals_ptr, 0)


@triton.jit
def narrowed(q, q_rope, KIND: tl.constexpr):
    """Queries [M, *] over the scale of their row, which is returned: "fp16" has the range for them then, and is what a
    card converts fp8 to in one step; in "int8" they are multiplied with int8 keys as they lie."""
    wide = q.to(tl.float32)
    wide_rope = q_rope.to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(wide), 1), tl.max(tl.abs(wide_rope), 1))
    scale = tl.where(scale == 0.0, 1.0, scale)
    if KIND == "int8":
        scale = scale / 127.0
    wide = wide / scale[:, None]
    wide_rope = wide_rope / scale[:, None]
    if KIND == "int8":
        q = tl.floor(wide + 0.5).to(tl.int8)
        q_rope = tl.floor(wide_rope + 0.5).to(tl.int8)
    else:
        q = wide.to(tl.float16)
        q_rope = wide_rope.to(tl.float16)
    return q, q_rope, scale


@triton.jit(do_not_specialize=["window", "group", "query_len", "num_heads", "num_splits"])
def merge_kernel(
    partial_ptr, lse_ptr, lens_ptr, out_ptr, window, group, query_len, num_heads, num_splits,
    V_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr, MIN_TILES: tl.constexpr, PDL: tl.constexpr,
):
    """One program merges one row: the splits of one query head of one token."""
    wait_for_launches(PDL)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    seq = token // query_len
    splits = used_splits(tl.load(lens_ptr + seq), window + query_len - 1, num_splits, BLOCK_N, MIN_TILES)
    row = token % query_len * group + head % group
    row_blocks = tl.cdiv(group * query_len, BLOCK_M)
    unit = (seq * (num_heads // group) + head // group) * row_blocks + row // BLOCK_M
    part = unit * num_splits * BLOCK_M + row % BLOCK_M
    merged = token * num_heads + head + tl.arange(0, 1)
    merge_rows(partial_ptr, lse_ptr, out_ptr, part, merged, 1, splits, V_DIM, BLOCK_DV, BLOCK_M, 1, BLOCK_SPLITS)


@triton.jit
def merge_rows(
    partial_ptr, lse_ptr, out_ptr, first_part, out_row, num_rows, used, V_DIM: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, ROWS: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
):
    """out [out_row, V_DIM] of num_rows rows, up to ROWS: means of the `used` splits of partial, BLOCK_M parts apart, by
    weights exp2(lse). All rows at once: what is waited for is the memory, once for BLOCK_SPLITS splits of them."""
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, BLOCK_DV)
    is_row = row < num_rows
    acc = tl.zeros([ROWS, BLOCK_DV], tl.float32)
    row_max = tl.full([ROWS], FLOOR, tl.float32)
    row_sum = tl.zeros([ROWS], tl.float32)
    for first in range(0, used, BLOCK_SPLITS):
        split = first + tl.arange(0, BLOCK_SPLITS)
        part = first_part + split[:, None] * BLOCK_M + row[None, :]
        there = (split < used)[:, None] & is_row[None, :]
        # Past the first-level cache, which may hold what was here before.
        lse = tl.load(lse_ptr + part, mask=there, other=float("-inf"), cache_modifier=".cg")
        ptrs = partial_ptr + part[:, :, None] * V_DIM + dim[None, None, :]
        loaded = there[:, :, None] & (dim < V_DIM)[None, None, :]
        partial = tl.load(ptrs, mask=loaded, other=0.0, cache_modifier=".cg")
        new_max = tl.maximum(row_max, tl.max(lse, 0))
        weight = tl.exp2(lse - new_max[None, :])
        decay = tl.exp2(row_max - new_max)
        acc = acc * decay[:, None] + tl.sum(weight[:, :, None] * partial, 0)
        row_sum = row_sum * decay + tl.sum(weight, 0)
        row_max = new_max
    out = acc / tl.where(row_sum == 0.0, 1.0, row_sum)[:, None]
    out_ptrs = out_ptr + out_row[:, None] * V_DIM + dim[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=is_row[:, None] & (dim < V_DIM)[None, :])
