"""x W^T for few rows of x, which takes as long as W takes to be read: K in splits, so that all of the card reads.

The last program of a block of columns to arrive adds up its splits, in one order whoever it is: equal calls give equal
bits.

What stands around a product is done in it. RMSNorm before it: each program multiplies x by the norm's weight as it
comes, adds up the squares of x beside the products, and divides by the root at the end, where a row is one factor.
Behind it: the bias, the gate of its two halves, what is added. Or of all columns only where the largest stands.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvtool.kernels.triton.jit.early import prefetch_rows, wait_for_launches
from kvtool.kernels.triton.jit.gate import gated
from kvtool.kernels.triton.jit.paged import dot
from kvtool.kernels.triton.jit.sample import key_of


# What changes from step to step must not compile a new variant.
@triton.jit(do_not_specialize=["num_rows", "num_splits"])
def gemv_kernel(
    x_ptr, weight_ptr, bias_ptr, plus_ptr, norm_ptr, out_ptr, partial_ptr, arrivals_ptr,
    num_rows, num_columns, depth, num_splits, x_stride, weight_stride, plus_stride, eps, alpha, limit,
    ACTIVATION: tl.constexpr, ROWS: tl.constexpr, MASKED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):
    """One program: BLOCK_N columns of up to ROWS (1, 2 or 4) rows, over one split of K. Sums stay apart in the threads
    until the end: partial [splits, num_rows, num_columns] fp32, out [num_rows, num_columns]. With an ACTIVATION the
    columns are those of gate and up in turn, and out has half as many."""
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    begin, end = split_blocks(tl.program_id(1), depth, num_splits, BLOCK_K)
    weight_row = weight_rows(column, num_columns, ACTIVATION)
    weight_ptrs = weight_ptr + weight_row.to(tl.int64)[:, None] * weight_stride
    prefetch_rows(weight_ptrs, begin * BLOCK_K, depth, BLOCK_K, PDL)
    wait_for_launches(PDL)
    last = num_rows - 1
    sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    sums1 = sums
    sums2 = sums
    sums3 = sums
    squares = tl.zeros([1, BLOCK_K], tl.float32)
    squares1 = squares
    squares2 = squares
    squares3 = squares
    # Said aloud, because loads that feed no dot are else not pipelined.
    for block in tl.range(begin, end, num_stages=STAGES):
        k = block * BLOCK_K + tl.arange(0, BLOCK_K)
        weight = load_block(weight_ptrs + k[None, :], (k < depth)[None, :], MASKED).to(tl.float32)
        x = load_row(x_ptr, k, depth, MASKED)
        if norm_ptr is not None:
            gain = load_row(norm_ptr, k, depth, MASKED)
            squares += x * x
            x *= gain
        sums += weight * x
        if ROWS > 1:
            x = load_row(x_ptr + tl.minimum(1, last) * x_stride, k, depth, MASKED)
            if norm_ptr is not None:
                squares1 += x * x
                x *= gain
            sums1 += weight * x
        if ROWS > 2:
            x = load_row(x_ptr + tl.minimum(2, last) * x_stride, k, depth, MASKED)
            if norm_ptr is not None:
                squares2 += x * x
                x *= gain
            sums2 += weight * x
            x = load_row(x_ptr + tl.minimum(3, last) * x_stride, k, depth, MASKED)
            if norm_ptr is not None:
                squares3 += x * x
                x *= gain
            sums3 += weight * x
    row = tl.arange(0, ROWS)
    acc = tl.zeros([BLOCK_N, ROWS], tl.float32) + tl.sum(sums, 1)[:, None]
    square = tl.zeros([ROWS], tl.float32)
    if norm_ptr is not None:
        square += tl.sum(squares)
    if ROWS > 1:
        acc = tl.where((row == 1)[None, :], tl.sum(sums1, 1)[:, None], acc)
        if norm_ptr is not None:
            square = tl.where(row == 1, tl.sum(squares1), square)
    if ROWS > 2:
        acc = tl.where((row == 2)[None, :], tl.sum(sums2, 1)[:, None], acc)
        acc = tl.where((row == 3)[None, :], tl.sum(sums3, 1)[:, None], acc)
        if norm_ptr is not None:
            square = tl.where(row == 2, tl.sum(squares2), square)
            square = tl.where(row == 3, tl.sum(squares3), square)
    finish(
        acc, square, column, row, bias_ptr, plus_ptr, norm_ptr, out_ptr, partial_ptr, arrivals_ptr,
        num_rows, num_columns, depth, num_splits, plus_stride, eps, alpha, limit,
        ACTIVATION, weight_ptr.dtype.element_ty, BLOCK_N, ROWS, BLOCK_SPLITS,
    )


@triton.jit(do_not_specialize=["num_rows", "num_splits"])
def product_kernel(
    x_ptr, weight_ptr, bias_ptr, plus_ptr, norm_ptr, out_ptr, partial_ptr, arrivals_ptr,
    num_rows, num_columns, depth, num_splits, x_stride, weight_stride, plus_stride, eps, alpha, limit,
    ACTIVATION: tl.constexpr, MASKED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_SPLITS: tl.constexpr, PDL: tl.constexpr,
):
    """One program: BLOCK_N columns of all rows, BLOCK_M or fewer, over one split of K.

    The product is turned, W x^T: what is tall fills the matrix instruction, and rows that are missing cost little.
    """
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.arange(0, BLOCK_M)
    begin, end = split_blocks(tl.program_id(1), depth, num_splits, BLOCK_K)
    # Past the last row and column lie others' values: the last is read again, and not stored.
    weight_row = weight_rows(column, num_columns, ACTIVATION)
    weight_ptrs = weight_ptr + weight_row.to(tl.int64)[:, None] * weight_stride
    prefetch_rows(weight_ptrs, begin * BLOCK_K, depth, BLOCK_K, PDL)
    wait_for_launches(PDL)
    x_ptrs = x_ptr + tl.minimum(row, num_rows - 1).to(tl.int64)[:, None] * x_stride
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    square = tl.zeros([BLOCK_M], tl.float32)
    for block in tl.range(begin, end):
        k = block * BLOCK_K + tl.arange(0, BLOCK_K)
        weight = load_block(weight_ptrs + k[None, :], (k < depth)[None, :], MASKED)
        if MASKED:
            x = tl.load(x_ptrs + k[None, :], mask=(k < depth)[None, :], other=0.0)
        else:
            x = tl.load(x_ptrs + k[None, :])
        if norm_ptr is not None:
            wide = x.to(tl.float32)
            square += tl.sum(wide * wide, 1)
            x = (wide * load_row(norm_ptr, k, depth, MASKED)).to(weight.dtype)
        acc += dot(weight, tl.trans(x))
    finish(
        acc, square, column, row, bias_ptr, plus_ptr, norm_ptr, out_ptr, partial_ptr, arrivals_ptr,
        num_rows, num_columns, depth, num_splits, plus_stride, eps, alpha, limit,
        ACTIVATION, weight_ptr.dtype.element_ty, BLOCK_N, BLOCK_M, BLOCK_SPLITS,
    )


@triton.jit
def weight_rows(column, num_columns, ACTIVATION: tl.constexpr):
    """The rows of a weight that columns stand for, those of gate and up in turn; past the last the last again."""
    row = tl.minimum(column, num_columns - 1)
    if ACTIVATION != "":
        row = row % 2 * (num_columns // 2) + row // 2
    return row


@triton.jit
def split_blocks(split, depth, num_splits, BLOCK_K: tl.constexpr):
    """First and one past the last block of K of a split. The launcher leaves none empty."""
    blocks = tl.cdiv(depth, BLOCK_K)
    per_split = tl.cdiv(blocks, num_splits)
    begin = split * per_split
    return begin, tl.minimum(begin + per_split, blocks)


@triton.jit
def load_block(ptrs, inside, MASKED: tl.constexpr):
    """Weights pass through once: the second-level cache keeps what is read again."""
    if MASKED:
        weight = tl.load(ptrs, mask=inside, other=0.0, eviction_policy="evict_first")
    else:
        weight = tl.load(ptrs, eviction_policy="evict_first")
    return weight


@triton.jit
def load_row(row_ptr, k, depth, MASKED: tl.constexpr):
    """x[k] fp32 [1, BLOCK_K]."""
    x = tl.load(row_ptr + k, mask=k < depth, other=0.0) if MASKED else tl.load(row_ptr + k)
    return x.to(tl.float32)[None, :]


@triton.jit
def finish(
    acc, square, column, row, bias_ptr, plus_ptr, norm_ptr, out_ptr, partial_ptr, arrivals_ptr,
    num_rows, num_columns, depth, num_splits, plus_stride, eps, alpha, limit,
    ACTIVATION: tl.constexpr, DTYPE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    """acc [N, M] and square [M] of one split go to out, or to partial, which whoever comes last adds up."""
    if partial_ptr is None:
        write(
            acc, square, column, row, bias_ptr, plus_ptr, norm_ptr, out_ptr, num_rows, num_columns, depth, plus_stride,
            eps, alpha, limit, ACTIVATION, DTYPE, BLOCK_N, BLOCK_M,
        )
    else:
        inside = (column < num_columns)[:, None] & (row < num_rows)[None, :]
        split_row = tl.program_id(1).to(tl.int64) * num_rows + row
        tl.store(partial_ptr + split_row[None, :] * num_columns + column[:, None], acc, mask=inside)
        if norm_ptr is not None:
            squares_ptr = squares_of_block(partial_ptr, num_rows, num_columns, num_splits)
            tl.store(squares_ptr + split_row, square, mask=row < num_rows)
        arrivals_ptr += tl.program_id(0)
        tl.debug_barrier()  # all threads' stores come before the count, which releases them to the last program
        if tl.atomic_add(arrivals_ptr, 1) == num_splits - 1:
            total, square = added_splits(
                partial_ptr, norm_ptr, column, row, num_rows, num_columns, num_splits, BLOCK_N, BLOCK_M, BLOCK_SPLITS
            )
            write(
                total, square, column, row, bias_ptr, plus_ptr, norm_ptr, out_ptr, num_rows, num_columns, depth,
                plus_stride, eps, alpha, limit, ACTIVATION, DTYPE, BLOCK_N, BLOCK_M,
            )
            tl.store(arrivals_ptr, 0)


@triton.jit
def squares_of_block(partial_ptr, num_rows, num_columns, num_splits):
    """Behind partial [splits, M, N] lie sums of squares [blocks of columns, splits, M]: this block's."""
    rows = num_splits * num_rows.to(tl.int64)
    return partial_ptr + rows * num_columns + tl.program_id(0) * rows


@triton.jit
def added_splits(
    partial_ptr, norm_ptr, column, row, num_rows, num_columns, num_splits, BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
):
    """The sums over splits of partial [splits, M, N] -> [N, M] and of the squares -> [M], BLOCK_SPLITS loads in flight
    at once."""
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    square = tl.zeros([BLOCK_M], tl.float32)
    inside = (column < num_columns)[:, None] & (row < num_rows)[None, :]
    squares_ptr = squares_of_block(partial_ptr, num_rows, num_columns, num_splits)
    for first in range(0, num_splits, BLOCK_SPLITS):
        for one in tl.static_range(BLOCK_SPLITS):
            split_row = (first + one) * num_rows.to(tl.int64) + row
            is_there = first + one < num_splits
            ptrs = partial_ptr + split_row[None, :] * num_columns + column[:, None]
            # Past the first-level cache, which may hold what was here before.
            total += tl.load(ptrs, mask=inside & is_there, other=0.0, cache_modifier=".cg")
            if norm_ptr is not None:
                square_ptrs = squares_ptr + split_row
                square += tl.load(square_ptrs, mask=(row < num_rows) & is_there, other=0.0, cache_modifier=".cg")
    return total, square


@triton.jit
def write(
    acc, square, column, row, bias_ptr, plus_ptr, norm_ptr, out_ptr, num_rows, num_columns, depth, plus_stride,
    eps, alpha, limit, ACTIVATION: tl.constexpr, DTYPE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):
    """out [num_rows, num_columns] = acc [N, M] turned, over the root of its row's mean square, + bias, gated, + plus,
    rounded once to DTYPE. With an ACTIVATION out has half the columns. An out of int64 [num_rows, blocks] takes the key
    of the largest of these columns instead."""
    if norm_ptr is not None:
        acc *= tl.rsqrt(square / depth + eps)[None, :]
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + weight_rows(column, num_columns, ACTIVATION)).to(tl.float32)[:, None]
    if ACTIVATION != "":
        of_gate, up = tl.split(tl.permute(tl.reshape(acc, (BLOCK_N // 2, 2, BLOCK_M)), (0, 2, 1)))
        acc = gated(of_gate, up, alpha, limit, ACTIVATION)
        column = tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        num_columns = num_columns // 2
    inside = (column < num_columns)[:, None] & (row < num_rows)[None, :]
    if plus_ptr is not None:
        plus_ptrs = plus_ptr + row.to(tl.int64)[None, :] * plus_stride + column[:, None]
        acc += tl.load(plus_ptrs, mask=inside, other=0.0).to(tl.float32)
    if out_ptr.dtype.element_ty == tl.int64:
        acc = tl.where((column < num_columns)[:, None], acc.to(DTYPE).to(tl.float32), float("-inf"))
        keys = tl.max(key_of(acc, column[:, None]), 0)
        tl.store(out_ptr + row * tl.num_programs(0) + tl.program_id(0), keys, mask=row < num_rows)
    else:
        out_ptrs = out_ptr + row.to(tl.int64)[None, :] * num_columns + column[:, None]
        tl.store(out_ptrs, acc.to(DTYPE), mask=inside)
