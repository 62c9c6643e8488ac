"""Which experts each token goes to: its logits by several programs, the choice by whichever of them comes last."""

from __future__ import annotations

import triton
import triton.language as tl

from kvtool.kernels.triton.jit.early import prefetch_rows, wait_for_launches
from kvtool.kernels.triton.jit.gate import sigmoid
from kvtool.kernels.triton.jit.paged import LOG2E
from kvtool.kernels.triton.jit.product import load_row


@triton.jit
def route_kernel(
    x_ptr, norm_ptr, weight_ptr, logit_bias_ptr, bias_ptr, logits_ptr, chosen_ptr, shares_ptr, arrivals_ptr,
    depth, x_stride, eps, scale,
    EXPERTS: tl.constexpr, TOP_K: tl.constexpr, SIGMOID: tl.constexpr, NORMALISED: tl.constexpr, GROUPS: tl.constexpr,
    GROUPS_KEPT: tl.constexpr, TOP_TWO: tl.constexpr, MASKED: tl.constexpr, BLOCK_ALL: tl.constexpr,
    BLOCK_TOP: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):
    """One program: the logits fp32 [T, E] of BLOCK_E experts for one token x [T, K], through a norm where there is one;
    weight fp32 [E, K]. arrivals [T] counts the programs of a token; it is zero before and after."""
    token = tl.program_id(0).to(tl.int64)
    expert = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    row = tl.minimum(expert, EXPERTS - 1)
    weight_ptrs = weight_ptr + row[:, None] * depth
    prefetch_rows(weight_ptrs, 0, depth, BLOCK_K, PDL)
    wait_for_launches(PDL)
    x_ptr += token * x_stride
    sums = tl.zeros([BLOCK_E, BLOCK_K], tl.float32)
    squares = tl.zeros([1, BLOCK_K], tl.float32)
    for start in tl.range(0, depth, BLOCK_K, num_stages=STAGES):
        k = start + tl.arange(0, BLOCK_K)
        # Not evicted first: all tokens read it, and it is small.
        if MASKED:
            weight = tl.load(weight_ptrs + k[None, :], mask=(k < depth)[None, :], other=0.0)
        else:
            weight = tl.load(weight_ptrs + k[None, :])
        x = load_row(x_ptr, k, depth, MASKED)
        if norm_ptr is not None:
            squares += x * x
            x *= load_row(norm_ptr, k, depth, MASKED)
        sums += weight * x
    logits = tl.sum(sums, 1)
    if norm_ptr is not None:
        logits *= tl.rsqrt(tl.sum(squares) / depth + eps)
    if logit_bias_ptr is not None:
        logits += tl.load(logit_bias_ptr + row)
    tl.store(logits_ptr + token * EXPERTS + expert, logits, mask=expert < EXPERTS)
    arrivals_ptr += token
    tl.debug_barrier()  # all threads' stores come before the count, which releases them to the last program
    if tl.atomic_add(arrivals_ptr, 1) == tl.num_programs(1) - 1:
        choose(
            logits_ptr, bias_ptr, chosen_ptr, shares_ptr, token, scale, EXPERTS, TOP_K, SIGMOID, NORMALISED,
            GROUPS, GROUPS_KEPT, TOP_TWO, BLOCK_ALL, BLOCK_TOP,
        )
        tl.store(arrivals_ptr, 0)


@triton.jit
def choose(
    logits_ptr, bias_ptr, chosen_ptr, shares_ptr, token, scale,
    EXPERTS: tl.constexpr, TOP_K: tl.constexpr, SIGMOID: tl.constexpr, NORMALISED: tl.constexpr, GROUPS: tl.constexpr,
    GROUPS_KEPT: tl.constexpr, TOP_TWO: tl.constexpr, BLOCK_ALL: tl.constexpr, BLOCK_TOP: tl.constexpr,
):
    """chosen int64 and shares fp32 [T, TOP_K]: the experts of the highest scores, the highest first, of equal ones the
    first. bias fp32 [E] corrects the choice alone."""
    expert = tl.arange(0, BLOCK_ALL)
    inside = expert < EXPERTS
    # Past the first-level cache, which may hold what was here before.
    logits = tl.load(logits_ptr + token * EXPERTS + expert, mask=inside, other=float("-inf"), cache_modifier=".cg")
    if SIGMOID:
        scores = sigmoid(logits)
    else:
        weights = tl.exp2((logits - tl.max(logits, 0)) * LOG2E)
        scores = weights / tl.sum(weights, 0)
    preferred = scores
    if bias_ptr is not None:
        preferred += tl.load(bias_ptr + expert, mask=inside, other=0.0)
    preferred = tl.where(inside, preferred, float("-inf"))
    if GROUPS > 1:
        preferred = inside_best_groups(preferred, expert // (EXPERTS // GROUPS), expert, GROUPS, GROUPS_KEPT, TOP_TWO)
    rank = tl.arange(0, BLOCK_TOP)
    chosen = tl.zeros([BLOCK_TOP], tl.int32)
    shares = tl.zeros([BLOCK_TOP], tl.float32)
    for one in range(TOP_K):
        best = tl.max(preferred, 0)
        at = tl.min(tl.where(preferred == best, expert, EXPERTS - 1), 0)
        chosen = tl.where(rank == one, at, chosen)
        shares = tl.where(rank == one, tl.sum(tl.where(expert == at, scores, 0.0), 0), shares)
        preferred = tl.where(expert == at, float("-inf"), preferred)
    if NORMALISED:
        shares = shares / (tl.sum(shares, 0) + 1e-20)
    at = token * TOP_K + rank
    tl.store(chosen_ptr + at, chosen.to(tl.int64), mask=rank < TOP_K)
    tl.store(shares_ptr + at, shares * scale, mask=rank < TOP_K)


@triton.jit
def inside_best_groups(preferred, group, expert, GROUPS: tl.constexpr, KEPT: tl.constexpr, TOP_TWO: tl.constexpr):
    """Experts outside the KEPT best groups cannot be chosen. A group is as good as its best expert, or its best two."""
    score = tl.zeros_like(preferred)
    for one in tl.static_range(GROUPS):
        mine = tl.where(group == one, preferred, float("-inf"))
        best = tl.max(mine, 0)
        if TOP_TWO:
            at = tl.min(tl.where(mine == best, expert, GROUPS * 1024), 0)
            best += tl.max(tl.where(expert == at, float("-inf"), mine), 0)
        score = tl.where(group == one, best, score)
    better = tl.zeros_like(expert)
    for one in tl.static_range(GROUPS):
        other = tl.max(tl.where(group == one, score, float("-inf")), 0)
        better += ((other > score) | ((other == score) & (one < group))).to(tl.int32)
    return tl.where(better < KEPT, preferred, float("-inf"))
