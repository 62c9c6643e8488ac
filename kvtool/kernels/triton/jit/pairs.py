"""A mixture of experts for a few tokens: each pair of token and expert reads that expert's weights for itself.

Nothing is sorted: the experts of a token are read where its choice says. Experts that all tokens share are so many more
of each token: `parts` of the same width, whose weights lie in one piece.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvtool.kernels.triton.jit.early import wait_for_launches
from kvtool.kernels.triton.jit.gate import gated
from kvtool.kernels.triton.jit.product import load_block, load_row


@triton.jit(do_not_specialize=["top_k", "parts"])
def pair_inner_kernel(
    x_ptr, norm_ptr, weight_ptr, bias_ptr, shared_ptr, chosen_ptr, shares_ptr, out_ptr,
    top_k, parts, num_columns, depth, x_stride, eps, alpha, limit,
    ACTIVATION: tl.constexpr, MASKED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program: BLOCK_N // 2 columns of one pair's activation(gate) * up, times its share.

    weight [E, 2N, K] and shared [2 parts N, K] are gate over up -> out [T, top_k + parts, N]. A norm of x [T, K] is
    done beside the product.
    """
    wait_for_launches(PDL)
    each = top_k + parts
    token = (tl.program_id(1) // each).to(tl.int64)
    one = tl.program_id(1) % each
    at = token * top_k + tl.minimum(one, top_k - 1)
    first = tl.load(chosen_ptr + at).to(tl.int64) * 2 * num_columns
    share = tl.load(shares_ptr + at).to(tl.float32)
    to_up = num_columns
    base = weight_ptr
    if shared_ptr is not None:  # noqa: SIM102 - this is known when it is compiled
        if one >= top_k:
            base = shared_ptr
            first = (one - top_k).to(tl.int64) * num_columns
            to_up = parts * num_columns
            share = 1.0
    # Columns of gate and up in turn; past the last the last again.
    place = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = first + place % 2 * to_up + tl.minimum(place // 2, num_columns - 1)
    weight_ptrs = base + row[:, None] * depth
    x_ptr += token * x_stride

    sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    squares = tl.zeros([1, BLOCK_K], tl.float32)
    for start in tl.range(0, depth, BLOCK_K, num_stages=STAGES):
        k = start + tl.arange(0, BLOCK_K)
        weight = load_block(weight_ptrs + k[None, :], (k < depth)[None, :], MASKED).to(tl.float32)
        x = load_row(x_ptr, k, depth, MASKED)
        if norm_ptr is not None:
            squares += x * x
            x *= load_row(norm_ptr, k, depth, MASKED)
        sums += weight * x
    acc = tl.sum(sums, 1)
    if norm_ptr is not None:
        acc *= tl.rsqrt(tl.sum(squares) / depth + eps)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + row).to(tl.float32)
    of_gate, up = tl.split(tl.reshape(acc, (BLOCK_N // 2, 2)))
    out = share * gated(of_gate, up, alpha, limit, ACTIVATION)
    column = tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    out_ptr += tl.program_id(1).to(tl.int64) * num_columns
    tl.store(out_ptr + column, out.to(out_ptr.dtype.element_ty), mask=column < num_columns)


@triton.jit(do_not_specialize=["top_k", "parts"])
def pair_sum_kernel(
    inner_ptr, weight_ptr, bias_ptr, shared_ptr, chosen_ptr, shares_ptr, plus_ptr, out_ptr,
    top_k, parts, num_columns, depth, plus_stride,
    MASKED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):
    """One program: BLOCK_N columns of one token: the sum of its experts' products, which are times their shares
    already, one expert after another. inner [T, top_k + parts, K], weight [E, N, K], shared [N, parts K] -> out [T, N].
    """
    wait_for_launches(PDL)
    token = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < num_columns
    row = tl.minimum(column, num_columns - 1).to(tl.int64)
    inner_ptr += token * (top_k + parts) * depth
    chosen_ptr += token * top_k
    blocks = tl.cdiv(depth, BLOCK_K)
    sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    expert = tl.load(chosen_ptr).to(tl.int64)
    for step in tl.range(0, top_k * blocks, num_stages=STAGES):
        # The next expert's number is fetched now: in front of its weights it would hold up their pipeline.
        next_expert = tl.load(chosen_ptr + tl.minimum((step + 1) // blocks, top_k - 1)).to(tl.int64)
        k = step % blocks * BLOCK_K + tl.arange(0, BLOCK_K)
        weight_ptrs = weight_ptr + (expert * num_columns + row)[:, None] * depth + k[None, :]
        weight = load_block(weight_ptrs, (k < depth)[None, :], MASKED).to(tl.float32)
        sums += weight * load_row(inner_ptr + step // blocks * depth, k, depth, MASKED)
        expert = next_expert
    if shared_ptr is not None:
        width = parts * depth
        for start in tl.range(0, width, BLOCK_K, num_stages=STAGES):
            k = start + tl.arange(0, BLOCK_K)
            weight_ptrs = shared_ptr + row[:, None] * width + k[None, :]
            weight = load_block(weight_ptrs, (k < width)[None, :], MASKED).to(tl.float32)
            sums += weight * load_row(inner_ptr + top_k * depth, k, width, MASKED)
    acc = tl.sum(sums, 1)
    if bias_ptr is not None:
        for one in range(top_k):
            share = tl.load(shares_ptr + token * top_k + one).to(tl.float32)
            bias_row = tl.load(chosen_ptr + one).to(tl.int64) * num_columns + row
            acc += share * tl.load(bias_ptr + bias_row).to(tl.float32)
    if plus_ptr is not None:
        acc += tl.load(plus_ptr + token * plus_stride + row).to(tl.float32)
    tl.store(out_ptr + token * num_columns + column, acc.to(out_ptr.dtype.element_ty), mask=inside)
