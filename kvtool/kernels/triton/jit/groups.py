"""Vectors of few bits an element, with what stands behind each group of them: written, read back, attended to.

What a vector is made of is one constant of a kernel, its codec (`packed.codec`):

    a group's bytes    codes                                                             scales
    2 bits             elements 3 2 1 0, ...          the first in the low bits          step, minimum
    4 bits             elements 1 0, 3 2, ...                                            fp16 each, or one
    5 bits             the low four bits so, then the fifth of elements 7 ... 0, ...     scale in fp16 or
    8 bits, floats     one after another                                                 fp32, or none

Elements of even and of odd place go through the products apart, and never change places. Offsets count bytes, but
cache_ptr is the memory in the codec's dtype and scales_ptr in that of its scales.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvtool.kernels.quantise import SMALLEST_LARGEST
from kvtool.kernels.triton.jit.decode import merge_if_last
from kvtool.kernels.triton.jit.early import wait_for_launches
from kvtool.kernels.triton.jit.paged import FLOOR, dot, first_softmax, normalise, split_tiles, tanh, used_splits

_TO_INTEGER = tl.constexpr(12582912.0)  # 1.5 * 2**23: adding it rounds fp32 to the nearest integer
_SMALLEST = tl.constexpr(SMALLEST_LARGEST)


@triton.jit
def store_groups_kernel(
    x_ptr, cache_ptr, scales_ptr, slots_ptr, gain,
    x_token_stride, x_head_stride, page_stride, slot_stride, head_stride,
    CODEC: tl.constexpr, UNITS: tl.constexpr, PAGE: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_G: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program writes BLOCK_U units of one token, a unit being a group of a head. Where groups have no scale their
    values are divided by `gain`."""
    wait_for_launches(PDL)
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    if slot < 0:
        return
    GROUPS: tl.constexpr = CODEC.groups
    GROUP: tl.constexpr = CODEC.half_group
    CODE_BYTES: tl.constexpr = CODEC.code_bytes
    SCALE_BYTES: tl.constexpr = CODEC.scale_bytes
    unit = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    head = unit // GROUPS
    group = unit % GROUPS
    pair = tl.arange(0, BLOCK_G)
    is_unit = unit < UNITS
    inside = is_unit[:, None] & (pair < GROUP)[None, :]
    first = x_ptr + token * x_token_stride + head * x_head_stride + group * (2 * GROUP)
    even = tl.load(first[:, None] + 2 * pair[None, :], mask=inside, other=0.0).to(tl.float32)
    odd = tl.load(first[:, None] + (2 * pair + 1)[None, :], mask=inside, other=0.0).to(tl.float32)
    scale, low = group_scales(even, odd, inside, is_unit, gain, CODEC, BLOCK_U, BLOCK_G)
    row = (slot // PAGE) * page_stride + (slot % PAGE) * slot_stride + head * head_stride
    row += group * (CODE_BYTES + SCALE_BYTES)
    even = code_of(even, low, scale, CODEC)
    odd = code_of(odd, low, scale, CODEC)
    store_codes(cache_ptr, row, even, odd, inside, CODEC, BLOCK_U, BLOCK_G)
    if scales_ptr is not None:
        UNIT: tl.constexpr = scales_ptr.dtype.element_ty.primitive_bitwidth // 8
        behind = scales_ptr + (row + CODE_BYTES) // UNIT
        tl.store(behind, scale.to(scales_ptr.dtype.element_ty), mask=is_unit)
        if CODEC.scheme == "minimum":
            tl.store(behind + 1, low.to(scales_ptr.dtype.element_ty), mask=is_unit)


@triton.jit
def group_scales(
    even, odd, inside, is_unit, gain, CODEC: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_G: tl.constexpr
):
    """Of units of pairs [U, G] what the distance from their least value is divided by, and that value, which is 0 where
    no minimum is kept: [U] both."""
    ZERO: tl.constexpr = CODEC.zero
    LARGEST: tl.constexpr = CODEC.largest
    none = tl.zeros([BLOCK_U], tl.float32)
    low = none
    if CODEC.scheme == "minimum":
        least = tl.min(tl.where(inside, tl.minimum(even, odd), float("inf")), 1)
        most = tl.max(tl.where(inside, tl.maximum(even, odd), float("-inf")), 1)
        low = tl.where(is_unit, least, 0.0)
        scale = tl.div_rn(tl.where(is_unit, most, 0.0) - low, none + LARGEST)
    elif CODEC.scale_bytes == 0:
        scale = none + gain
    else:
        most = tl.max(tl.maximum(tl.abs(even), tl.abs(odd)), 1)
        if CODEC.scheme == "signed":
            scale = first_of(even, odd, most, BLOCK_G) * (-1.0 / ZERO)
        else:
            scale = tl.div_rn(tl.maximum(most, _SMALLEST), none + (LARGEST if CODEC.is_float else ZERO - 1.0))
    return scale, low


@triton.jit
def first_of(even, odd, most, BLOCK_G: tl.constexpr):
    """The first element [U] of pairs [U, G] whose magnitude is `most` [U]."""
    place = 2 * tl.arange(0, BLOCK_G)[None, :]
    of_even = tl.where(tl.abs(even) == most[:, None], place, 2 * BLOCK_G)
    of_odd = tl.where(tl.abs(odd) == most[:, None], place + 1, 2 * BLOCK_G)
    first = tl.min(tl.minimum(of_even, of_odd), 1)[:, None]
    return tl.sum(tl.where(of_even == first, even, 0.0) + tl.where(of_odd == first, odd, 0.0), 1)


@triton.jit
def code_of(x, low, scale, CODEC: tl.constexpr):
    """x [U, G] in steps of `scale` [U] above `low` [U]: floats within range, or int32."""
    ZERO: tl.constexpr = CODEC.zero
    LOWEST: tl.constexpr = CODEC.lowest
    LARGEST: tl.constexpr = CODEC.largest
    divisor = tl.where(scale == 0.0, 1.0, scale)
    steps = tl.div_rn(x - low[:, None], tl.zeros_like(x) + divisor[:, None])
    if CODEC.is_float:
        code = tl.minimum(tl.maximum(steps, -LARGEST), LARGEST)
    else:
        rounded = (steps + ZERO + _TO_INTEGER) - _TO_INTEGER
        code = tl.minimum(tl.maximum(rounded, LOWEST), LARGEST).to(tl.int32)
    return code


@triton.jit
def store_codes(
    cache_ptr, row, even, odd, inside, CODEC: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_G: tl.constexpr
):
    """Codes of pairs [U, G] to the groups at `row` [U]."""
    BITS: tl.constexpr = CODEC.bits
    GROUP: tl.constexpr = CODEC.half_group
    dtype: tl.constexpr = cache_ptr.dtype.element_ty
    UNIT: tl.constexpr = dtype.primitive_bitwidth // 8
    pair = tl.arange(0, BLOCK_G)[None, :]
    at = cache_ptr + (row // UNIT)[:, None]
    if CODEC.is_float:
        tl.store(at + 2 * pair, even.to(dtype), mask=inside)
        tl.store(at + 2 * pair + 1, odd.to(dtype), mask=inside)
    elif BITS == 8:
        tl.store(at + pair, (even + 256 * odd).to(dtype), mask=inside)
    elif BITS == 2:
        store_shares(at, (even + 4 * odd) << (4 * (pair % 2)), inside, BLOCK_U, BLOCK_G, 2)
    else:
        tl.store(at + pair, ((even & 15) + 16 * (odd & 15)).to(dtype), mask=inside)
        if BITS == 5:
            high = ((even >> 4) + 2 * (odd >> 4)) << (2 * (pair % 4))
            store_shares(at + GROUP, high, inside, BLOCK_U, BLOCK_G, 4)


@triton.jit
def store_shares(
    at, shares, inside, BLOCK_U: tl.constexpr, BLOCK_G: tl.constexpr, EACH: tl.constexpr
):
    """Bytes from `at` [U, 1] on, in each of which EACH neighbours of shares [U, G] have theirs."""
    BYTES: tl.constexpr = BLOCK_G // EACH
    whole = tl.sum(tl.reshape(tl.where(inside, shares, 0), [BLOCK_U, BYTES, EACH]), 2)
    filled = tl.sum(tl.reshape(inside.to(tl.int32), [BLOCK_U, BYTES, EACH]), 2) == EACH
    tl.store(at + tl.arange(0, BYTES)[None, :], whole.to(tl.uint8), mask=filled)


@triton.jit
def load_pairs(
    cache_ptr, scales_ptr, rows, inside, CODEC: tl.constexpr, BLOCK: tl.constexpr, dtype: tl.constexpr
):
    """The vectors at `rows` [N] -> their elements of even and of odd place [N, BLOCK]; zeros behind their end, and of
    rows that are not inside."""
    HALF: tl.constexpr = CODEC.half
    GROUP: tl.constexpr = CODEC.half_group
    CODE_BYTES: tl.constexpr = CODEC.code_bytes
    SCALE_BYTES: tl.constexpr = CODEC.scale_bytes
    pair = tl.arange(0, BLOCK)
    of_group = pair // GROUP * (CODE_BYTES + SCALE_BYTES)
    stored = inside[:, None] & (pair < HALF)[None, :]
    even, odd = load_codes(cache_ptr, rows, of_group, pair % GROUP, stored, CODEC)
    if scales_ptr is not None:
        UNIT: tl.constexpr = scales_ptr.dtype.element_ty.primitive_bitwidth // 8
        scales = scales_ptr + (rows // UNIT)[:, None] + ((of_group + CODE_BYTES) // UNIT)[None, :]
        scale = tl.load(scales, mask=stored, other=0.0).to(tl.float32)
        if CODEC.scheme == "minimum":
            low = tl.load(scales + 1, mask=stored, other=0.0).to(tl.float32)
            even = low + scale * even
            odd = low + scale * odd
        else:
            even *= scale
            odd *= scale
    return even.to(dtype), odd.to(dtype)


@triton.jit
def load_codes(cache_ptr, rows, of_group, pair, stored, CODEC: tl.constexpr):
    """What the codes of even and of odd place stand for, but for scales: fp32 [N, BLOCK], of pairs [BLOCK] of the group
    that begins at `of_group` [BLOCK]."""
    BITS: tl.constexpr = CODEC.bits
    ZERO: tl.constexpr = CODEC.zero
    GROUP: tl.constexpr = CODEC.half_group
    UNIT: tl.constexpr = cache_ptr.dtype.element_ty.primitive_bitwidth // 8
    at = cache_ptr + (rows // UNIT)[:, None]
    first = of_group // UNIT
    if CODEC.is_float:
        even = tl.load(at + (first + 2 * pair)[None, :], mask=stored, other=0.0)
        odd = tl.load(at + (first + 2 * pair + 1)[None, :], mask=stored, other=0.0)
    elif BITS == 8:
        both = tl.load(at + (first + pair)[None, :], mask=stored, other=0).to(tl.int32)
        even = both & 255
        odd = (both >> 8) & 255
    elif BITS == 2:
        both = tl.load(at + (first + pair // 2)[None, :], mask=stored, other=0).to(tl.int32)
        both = both >> (4 * (pair % 2))[None, :]
        even = both & 3
        odd = (both >> 2) & 3
    else:
        both = tl.load(at + (first + pair)[None, :], mask=stored, other=0).to(tl.int32)
        even = both & 15
        odd = both >> 4
        if BITS == 5:
            high = tl.load(at + (first + GROUP + pair // 4)[None, :], mask=stored, other=0).to(tl.int32)
            high = high >> (2 * (pair % 4))[None, :]
            even += (high & 1) << 4
            odd += (high & 2) << 3
    even = even.to(tl.float32)
    odd = odd.to(tl.float32)
    if ZERO > 0:
        even -= ZERO
        odd -= ZERO
    return even, odd


@triton.jit
def unpack_groups_kernel(
    cache_ptr, scales_ptr, pages_ptr, out_ptr, gain, num_pages, page_stride, slot_stride, head_stride,
    CODEC: tl.constexpr, HEADS: tl.constexpr, PAGE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program: BLOCK_R vectors of one page, times `gain`, to out [n, PAGE, HEADS, elements]. A page outside the
    pool, as nobody reads it, gives any other's."""
    wait_for_launches(PDL)
    HALF: tl.constexpr = CODEC.half
    index = tl.program_id(0).to(tl.int64)
    page = tl.load(pages_ptr + index)
    page = tl.minimum(tl.maximum(page, 0), num_pages - 1).to(tl.int64)
    row = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < PAGE * HEADS
    rows = page * page_stride + (row // HEADS) * slot_stride + (row % HEADS) * head_stride
    even, odd = load_pairs(cache_ptr, scales_ptr, rows, inside, CODEC, BLOCK, tl.float32)
    pair = tl.arange(0, BLOCK)
    stored = inside[:, None] & (pair < HALF)[None, :]
    out = out_ptr + (index * PAGE * HEADS + row)[:, None] * (2 * HALF) + 2 * pair[None, :]
    tl.store(out, (even * gain).to(out_ptr.dtype.element_ty), mask=stored)
    tl.store(out + 1, (odd * gain).to(out_ptr.dtype.element_ty), mask=stored)


# What changes from step to step must not compile a new variant.
@triton.jit(do_not_specialize=["window", "group", "query_len", "num_heads", "num_splits", "table_stride"])
def decode_groups_kernel(
    q_ptr, k_ptr, k_scales_ptr, v_ptr, v_scales_ptr, sinks_ptr, table_ptr, lens_ptr, out_ptr, partial_ptr, lse_ptr,
    arrivals_ptr,
    qk_scale, k_gain, v_gain, cap, window, group, query_len, num_heads, num_splits,
    q_token_stride, q_head_stride, table_stride,
    k_page_stride, k_slot_stride, k_head_stride, v_page_stride, v_slot_stride, v_head_stride,
    SPLIT: tl.constexpr, CAPPED: tl.constexpr, K_CODEC: tl.constexpr, V_CODEC: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MERGED_ROWS: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr, MIN_TILES: tl.constexpr, PAGE: tl.constexpr, PDL: tl.constexpr,
):
    """As `decode_kernel`: up to BLOCK_M rows of one KV head over one split of one sequence, and splits meet as there.
    Keys and values are those stored times k_gain and v_gain."""
    wait_for_launches(PDL)
    HALF_K: tl.constexpr = K_CODEC.half
    HALF_V: tl.constexpr = V_CODEC.half
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
        k_even, k_odd = load_pairs(k_ptr, k_scales_ptr, k_rows, inside, K_CODEC, BLOCK_K, q_even.dtype)
        scores = (dot(q_even, tl.trans(k_even)) + dot(q_odd, tl.trans(k_odd))) * (qk_scale * k_gain)
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
        v_even, v_odd = load_pairs(v_ptr, v_scales_ptr, v_rows, inside, V_CODEC, BLOCK_V, q_even.dtype)
        even = even * decay[:, None] + dot(weights, v_even)
        odd = odd * decay[:, None] + dot(weights, v_odd)

    column = tl.arange(0, BLOCK_V)
    stored = is_row[:, None] & (column < HALF_V)[None, :]
    even = normalise(even, row_sum, v_gain)
    odd = normalise(odd, row_sum, v_gain)
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
