"""Vectors of four bits an element, a step and a minimum in fp16 behind each group: written, read back, attended to.

    a group's bytes    element 1 | element 0, element 3 | element 2, ...     step     minimum
                       GROUP_HALF bytes, the first element in the low bits   2 bytes  2 bytes

Elements of even and of odd place lie in one byte each: they go through the products apart, and never change places.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvtool.kernels.triton.jit.decode import merge_if_last
from kvtool.kernels.triton.jit.early import wait_for_launches
from kvtool.kernels.triton.jit.paged import FLOOR, dot, first_softmax, normalise, split_tiles, tanh, used_splits

_TO_INTEGER = tl.constexpr(12582912.0)  # 1.5 * 2**23: adding it rounds fp32 to the nearest integer
_SCALE_BYTES = tl.constexpr(4)
_LARGEST_CODE = tl.constexpr(15.0)


@triton.jit
def store_groups_kernel(
    x_ptr, cache_ptr, scales_ptr, slots_ptr,
    x_token_stride, x_head_stride, page_stride, slot_stride, head_stride,
    UNITS: tl.constexpr, GROUPS: tl.constexpr, GROUP_HALF: tl.constexpr, PAGE: tl.constexpr, BLOCK_U: tl.constexpr,
    BLOCK_G: tl.constexpr, PDL: tl.constexpr,
):
    """One program writes BLOCK_U units of one token, a unit being a group of a head. Strides are bytes of the cache;
    scales_ptr is the same memory in fp16."""
    wait_for_launches(PDL)
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    if slot < 0:
        return
    unit = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    head = unit // GROUPS
    group = unit % GROUPS
    column = tl.arange(0, BLOCK_G)
    is_unit = unit < UNITS
    inside = is_unit[:, None] & (column < GROUP_HALF)[None, :]
    first = x_ptr + token * x_token_stride + head * x_head_stride + group * (2 * GROUP_HALF)
    even = tl.load(first[:, None] + 2 * column[None, :], mask=inside, other=0.0).to(tl.float32)
    odd = tl.load(first[:, None] + (2 * column + 1)[None, :], mask=inside, other=0.0).to(tl.float32)
    low = tl.min(tl.where(inside, tl.minimum(even, odd), float("inf")), 1)
    high = tl.max(tl.where(inside, tl.maximum(even, odd), float("-inf")), 1)
    low = tl.where(is_unit, low, 0.0)
    step = tl.div_rn(tl.where(is_unit, high, 0.0) - low, tl.full([BLOCK_U], _LARGEST_CODE, tl.float32))
    divisor = tl.where(step == 0.0, 1.0, step)
    codes = _code(even, low, divisor) + 16 * _code(odd, low, divisor)
    row = (slot // PAGE) * page_stride + (slot % PAGE) * slot_stride + head * head_stride
    row += group * (GROUP_HALF + _SCALE_BYTES)
    tl.store(cache_ptr + row[:, None] + column[None, :], codes.to(tl.uint8), mask=inside)
    behind = scales_ptr + (row + GROUP_HALF) // 2
    tl.store(behind, step.to(tl.float16), mask=is_unit)
    tl.store(behind + 1, low.to(tl.float16), mask=is_unit)


@triton.jit
def _code(x, low, divisor):
    """x [U, G] in steps above the minimum [U], as int32 of 0 to 15."""
    steps = tl.div_rn(x - low[:, None], tl.zeros_like(x) + divisor[:, None])
    return tl.minimum(tl.maximum((steps + _TO_INTEGER) - _TO_INTEGER, 0.0), _LARGEST_CODE).to(tl.int32)


@triton.jit
def load_groups(
    cache_ptr, scales_ptr, rows, inside, HALF: tl.constexpr, BLOCK: tl.constexpr, GROUP_HALF: tl.constexpr,
    dtype: tl.constexpr,
):
    """The vectors at `rows` [N], in bytes -> their elements of even and of odd place [N, BLOCK]; zeros from HALF on,
    and of rows that are not inside."""
    column = tl.arange(0, BLOCK)
    group = column // GROUP_HALF
    stored = inside[:, None] & (column < HALF)[None, :]
    of_code = group * (GROUP_HALF + _SCALE_BYTES) + column % GROUP_HALF
    of_scale = (group * (GROUP_HALF + _SCALE_BYTES) + GROUP_HALF) // 2
    codes = tl.load(cache_ptr + rows[:, None] + of_code[None, :], mask=stored, other=0).to(tl.int32)
    scales = scales_ptr + (rows // 2)[:, None] + of_scale[None, :]
    step = tl.load(scales, mask=stored, other=0.0).to(tl.float32)
    low = tl.load(scales + 1, mask=stored, other=0.0).to(tl.float32)
    even = low + step * (codes & 15).to(tl.float32)
    odd = low + step * (codes >> 4).to(tl.float32)
    return even.to(dtype), odd.to(dtype)


@triton.jit
def unpack_groups_kernel(
    cache_ptr, scales_ptr, pages_ptr, out_ptr, num_pages, page_stride, slot_stride, head_stride,
    HEADS: tl.constexpr, HALF: tl.constexpr, GROUP_HALF: tl.constexpr, PAGE: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):
    """One program: BLOCK_R vectors of one page to out [n, PAGE, HEADS, 2 * HALF]. A page outside the pool, as nobody
    reads it, gives any other's."""
    wait_for_launches(PDL)
    index = tl.program_id(0).to(tl.int64)
    page = tl.load(pages_ptr + index)
    page = tl.minimum(tl.maximum(page, 0), num_pages - 1).to(tl.int64)
    row = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < PAGE * HEADS
    rows = page * page_stride + (row // HEADS) * slot_stride + (row % HEADS) * head_stride
    even, odd = load_groups(
        cache_ptr, scales_ptr, rows, inside, HALF, BLOCK, GROUP_HALF, out_ptr.dtype.element_ty
    )
    column = tl.arange(0, BLOCK)
    stored = inside[:, None] & (column < HALF)[None, :]
    out = out_ptr + (index * PAGE * HEADS + row)[:, None] * (2 * HALF) + 2 * column[None, :]
    tl.store(out, even, mask=stored)
    tl.store(out + 1, odd, mask=stored)


# What changes from step to step must not compile a new variant.
@triton.jit(do_not_specialize=["window", "group", "query_len", "num_heads", "num_splits", "table_stride"])
def decode_groups_kernel(
    q_ptr, k_ptr, k_scales_ptr, v_ptr, v_scales_ptr, sinks_ptr, table_ptr, lens_ptr, out_ptr, partial_ptr, lse_ptr,
    arrivals_ptr,
    qk_scale, cap, window, group, query_len, num_heads, num_splits,
    q_token_stride, q_head_stride, table_stride,
    k_page_stride, k_slot_stride, k_head_stride, v_page_stride, v_slot_stride, v_head_stride,
    SPLIT: tl.constexpr, CAPPED: tl.constexpr, HALF_K: tl.constexpr, HALF_V: tl.constexpr, GROUP_K: tl.constexpr,
    GROUP_V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    MERGED_ROWS: tl.constexpr, BLOCK_SPLITS: tl.constexpr, MIN_TILES: tl.constexpr, PAGE: tl.constexpr,
    PDL: tl.constexpr,
):
    """As `decode_kernel`: up to BLOCK_M rows of one KV head over one split of one sequence, and splits meet as there.
    GROUP_K and GROUP_V are the bytes of a group's codes."""
    wait_for_launches(PDL)
    seq = tl.program_id(0).to(tl.int64)
    row_blocks = tl.cdiv(group * query_len, BLOCK_M)
    kv_head = tl.program_id(1) // row_blocks
    split = tl.program_id(2)
    length = tl.load(lens_ptr + seq)
    span = window + query_len - 1
    begin, end = split_tiles(split, length, span, num_splits, BLOCK_N, MIN_TILES)
    if SPLIT and begin >= end and split > 0:
        return  # the merge knows which splits are empty and reads nothing of them

    row = (tl.program_id(1) % row_blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = row < group * query_len
    token = row // group
    head = kv_head * group + row % group
    half = tl.arange(0, BLOCK_K)
    q_ptrs = q_ptr + ((seq * query_len + token) * q_token_stride + head * q_head_stride)[:, None] + 2 * half[None, :]
    is_q = is_row[:, None] & (half < HALF_K)[None, :]
    q_even = tl.load(q_ptrs, mask=is_q, other=0.0)
    q_odd = tl.load(q_ptrs + 1, mask=is_q, other=0.0)

    even = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    odd = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    row_max, row_sum = first_softmax(sinks_ptr, head, is_row, BLOCK_M)
    if sinks_ptr is not None:  # a sink enters once, in the first split, which every sequence has
        row_max = tl.where(split == 0, row_max, FLOOR)
        row_sum = tl.where(split == 0, row_sum, 0.0)
    k_head = kv_head.to(tl.int64) * k_head_stride
    v_head = kv_head.to(tl.int64) * v_head_stride
    table_ptr += seq * table_stride
    position = length - query_len + token
    first_key = tl.maximum(length - query_len - window + 1, 0)
    for tile in tl.range(begin, end):
        key = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = (key >= first_key) & (key < length)
        page = tl.load(table_ptr + key // PAGE, mask=inside, other=0).to(tl.int64)
        k_rows = page * k_page_stride + (key % PAGE) * k_slot_stride + k_head
        k_even, k_odd = load_groups(k_ptr, k_scales_ptr, k_rows, inside, HALF_K, BLOCK_K, GROUP_K, q_even.dtype)
        scores = (dot(q_even, tl.trans(k_even)) + dot(q_odd, tl.trans(k_odd))) * qk_scale
        if CAPPED:
            scores = cap * tanh(scores)
        visible = (key[None, :] <= position[:, None]) & (key[None, :] > position[:, None] - window)
        scores = tl.where(visible, scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        weights = tl.exp2(scores - new_max[:, None])
        decay = tl.exp2(row_max - new_max)
        row_sum = row_sum * decay + tl.sum(weights, 1)
        row_max = new_max
        weights = weights.to(q_even.dtype)
        v_rows = page * v_page_stride + (key % PAGE) * v_slot_stride + v_head
        v_even, v_odd = load_groups(v_ptr, v_scales_ptr, v_rows, inside, HALF_V, BLOCK_V, GROUP_V, q_even.dtype)
        even = even * decay[:, None] + dot(weights, v_even)
        odd = odd * decay[:, None] + dot(weights, v_odd)

    column = tl.arange(0, BLOCK_V)
    stored = is_row[:, None] & (column < HALF_V)[None, :]
    even = normalise(even, row_sum, 1.0)
    odd = normalise(odd, row_sum, 1.0)
    if not SPLIT:
        out_row = (seq * query_len + token) * num_heads + head
        out = out_ptr + out_row[:, None] * (2 * HALF_V) + 2 * column[None, :]
        tl.store(out, even.to(out_ptr.dtype.element_ty), mask=stored)
        tl.store(out + 1, odd.to(out_ptr.dtype.element_ty), mask=stored)
    else:
        of_block = tl.arange(0, BLOCK_M)
        unit = (seq * tl.num_programs(1) + tl.program_id(1)) * num_splits * BLOCK_M
        part = unit + split * BLOCK_M
        partial = partial_ptr + (part + of_block)[:, None] * (2 * HALF_V) + 2 * column[None, :]
        tl.store(partial, even, mask=stored)
        tl.store(partial + 1, odd, mask=stored)
        # A row that has seen no key of this split keeps the floor, whose weight beside any score is 0.
        lse = row_max + tl.log2(tl.where(row_sum == 0.0, 1.0, row_sum))
        tl.store(lse_ptr + part + of_block, lse, mask=is_row)
        if arrivals_ptr is not None:
            merge_if_last(
                partial_ptr, lse_ptr, arrivals_ptr + seq * tl.num_programs(1) + tl.program_id(1), out_ptr,
                unit, seq * query_len * num_heads + kv_head * group, (tl.program_id(1) % row_blocks) * BLOCK_M,
                group, query_len, num_heads, used_splits(length, span, num_splits, BLOCK_N, MIN_TILES),
                2 * HALF_V, 2 * BLOCK_V, BLOCK_M, MERGED_ROWS, BLOCK_SPLITS,
            )
