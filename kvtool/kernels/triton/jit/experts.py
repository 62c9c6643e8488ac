"""Products of a mixture of experts, all experts in one launch: which rows an expert has is known on the device alone.

T tokens choose k of E experts each, which makes P = T k pairs. Sorted by expert they are cut into blocks of BLOCK_M
rows of one expert; how many blocks there are is bounded by P and E, and programs past the last one end at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvtool.kernels.triton.jit.early import wait_for_launches
from kvtool.kernels.triton.jit.gate import gated
from kvtool.kernels.triton.jit.paged import dot
from kvtool.kernels.triton.jit.product import load_row

NO_BLOCK = tl.constexpr(-1)
GROUP = tl.constexpr(8)  # blocks of rows that go by the same weights while these are in the second-level cache


@triton.jit(do_not_specialize=["num_pairs", "num_blocks"])
def assign_kernel(
    chosen_ptr, order_ptr, blocks_ptr, num_pairs, num_blocks,
    EXPERTS: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_M: tl.constexpr, PDL: tl.constexpr,
):
    """One program an expert. From chosen [P]: order [P], the pairs sorted by expert, an expert's in their order, and
    blocks [num_blocks, 4] int32: expert, first row and last (exclusive) in that order; NO_BLOCK past the last block."""
    wait_for_launches(PDL)
    mine = tl.program_id(0)
    expert = tl.arange(0, BLOCK_E)
    counts = tl.zeros([BLOCK_E], tl.int32)
    for start in range(0, num_pairs, BLOCK_P):
        pair = start + tl.arange(0, BLOCK_P)
        chosen = tl.load(chosen_ptr + pair, mask=pair < num_pairs, other=0).to(tl.int32)
        counts += tl.histogram(chosen, BLOCK_E, mask=pair < num_pairs)
    first = tl.sum(tl.where(expert < mine, counts, 0), 0)
    count = tl.sum(tl.where(expert == mine, counts, 0), 0)
    blocks = tl.cdiv(counts, BLOCK_M)
    block = tl.sum(tl.where(expert < mine, blocks, 0), 0)

    row = first
    for start in range(0, num_pairs, BLOCK_P):
        pair = start + tl.arange(0, BLOCK_P)
        chosen = tl.load(chosen_ptr + pair, mask=pair < num_pairs, other=EXPERTS).to(tl.int32)
        is_mine = (chosen == mine).to(tl.int32)
        tl.store(order_ptr + row + tl.cumsum(is_mine, 0) - 1, pair, mask=is_mine == 1)
        row += tl.sum(is_mine, 0)

    for one in range(tl.cdiv(count, BLOCK_M)):
        at = blocks_ptr + (block + one) * 4
        tl.store(at, mine)
        tl.store(at + 1, first + one * BLOCK_M)
        tl.store(at + 2, tl.minimum(first + one * BLOCK_M + BLOCK_M, first + count))
    if mine == EXPERTS - 1:
        for unused in range(tl.sum(blocks, 0), num_blocks):
            tl.store(blocks_ptr + unused * 4, NO_BLOCK)


@triton.jit(do_not_specialize=["num_blocks", "top_k"])
def experts_kernel(
    x_ptr, weight_ptr, bias_ptr, norm_ptr, shares_ptr, order_ptr, blocks_ptr, out_ptr,
    num_blocks, top_k, num_columns, depth, x_stride, eps, alpha, limit,
    GATED: tl.constexpr, ACTIVATION: tl.constexpr, MASKED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):
    """One program: BLOCK_N columns of one block of rows.

    GATED: x [T, H] and weight [E, 2N, H], gate over up -> out [P, N], rows in sorted order. Else x [P, K] in sorted
    order and weight [E, N, K] -> out [P, N], row by pair, times the pair's share. A norm of x is done beside the
    product.
    """
    wait_for_launches(PDL)
    column_blocks = tl.cdiv(num_columns, BLOCK_N)
    group = tl.program_id(0) // (GROUP * column_blocks)
    within = tl.program_id(0) % (GROUP * column_blocks)
    group_blocks = tl.minimum(num_blocks - group * GROUP, GROUP)
    blocks_ptr += (group * GROUP + within % group_blocks) * 4
    expert = tl.load(blocks_ptr).to(tl.int64)
    if expert == NO_BLOCK:
        return
    first = tl.load(blocks_ptr + 1)
    end = tl.load(blocks_ptr + 2)
    column = within // group_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    # Past the last row and column lie others' values: the last is read again, and not stored.
    weight_row = tl.minimum(column, num_columns - 1)
    row = first + tl.arange(0, BLOCK_M)
    pair = tl.load(order_ptr + tl.minimum(row, end - 1))
    if GATED:
        x_row = pair // top_k
        weight_ptrs = weight_ptr + (expert * 2 * num_columns + weight_row)[:, None] * depth
        bias_row = expert * 2 * num_columns + weight_row
    else:
        x_row = tl.minimum(row, end - 1)
        weight_ptrs = weight_ptr + (expert * num_columns + weight_row)[:, None] * depth
        bias_row = expert * num_columns + weight_row
    x_ptrs = x_ptr + x_row.to(tl.int64)[:, None] * x_stride
    to_up = num_columns.to(tl.int64) * depth

    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    up = acc
    square = tl.zeros([BLOCK_M], tl.float32)
    for start in tl.range(0, depth, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = (k < depth)[None, :]
        weight = load_tile(weight_ptrs + k[None, :], inside, MASKED)
        if GATED:
            up_weight = load_tile(weight_ptrs + to_up + k[None, :], inside, MASKED)
        x = load_tile(x_ptrs + k[None, :], inside, MASKED)
        if norm_ptr is not None:
            wide = x.to(tl.float32)
            square += tl.sum(wide * wide, 1)
            x = (wide * load_row(norm_ptr, k, depth, MASKED)).to(weight.dtype)
        acc += dot(weight, tl.trans(x))
        if GATED:
            up += dot(up_weight, tl.trans(x))

    if norm_ptr is not None:
        scale = tl.rsqrt(square / depth + eps)[None, :]
        acc *= scale
        up *= scale
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + bias_row).to(tl.float32)[:, None]
        if GATED:
            up += tl.load(bias_ptr + num_columns + bias_row).to(tl.float32)[:, None]
    if GATED:
        acc = gated(acc, up, alpha, limit, ACTIVATION)
        out_row = row
    else:
        acc *= tl.load(shares_ptr + pair).to(tl.float32)[None, :]
        out_row = pair
    out_ptrs = out_ptr + out_row.to(tl.int64)[None, :] * num_columns + column[:, None]
    stored = (column < num_columns)[:, None] & (row < end)[None, :]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=stored)


@triton.jit
def load_tile(ptrs, inside, MASKED: tl.constexpr):
    return tl.load(ptrs, mask=inside, other=0.0) if MASKED else tl.load(ptrs)


@triton.jit(do_not_specialize=["top_k"])
def add_chosen_kernel(
    y_ptr, plus_ptr, out_ptr, top_k, plus_stride, SIZE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):
    """out [T, n] = the sum over k of y [T, k, n], in their order, + plus [T, n]: BLOCK columns of a token a program."""
    wait_for_launches(PDL)
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < SIZE
    total = tl.zeros([BLOCK], tl.float32)
    if plus_ptr is not None:
        total += tl.load(plus_ptr + token * plus_stride + column, mask=inside, other=0.0).to(tl.float32)
    for one in range(top_k):
        total += tl.load(y_ptr + (token * top_k + one) * SIZE + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + token * SIZE + column, total.to(out_ptr.dtype.element_ty), mask=inside)
