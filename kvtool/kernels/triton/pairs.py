"""A mixture of experts for a few tokens in two launches, the experts that all share among them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from kvtool.kernels.triton import checks, gpu
from kvtool.kernels.triton.experts import KERNEL_GATES
from kvtool.kernels.triton.jit.pairs import pair_inner_kernel, pair_sum_kernel
from kvtool.kernels.triton.tiles import rules
from kvtool.kernels.triton.tiles.products import GEMV_ROWS, pair_tile

if TYPE_CHECKING:
    from kvtool.kernels.fused import Normed, Shared
    from kvtool.kernels.weights import ExpertWeights


def serves(num_tokens: int, weights: ExpertWeights, shared: Shared | None) -> bool:
    """Few tokens, and shared experts that are whole ones of the same width and gate, without biases."""
    few = 0 < num_tokens <= GEMV_ROWS and weights.gate.activation in KERNEL_GATES
    if shared is None or not few:
        return few
    alike = shared.width % weights.down.shape[2] == 0 and shared.inner.gate == weights.gate
    biases = weights.gate_up_bias, weights.down_bias, shared.inner.bias, shared.down.bias
    return alike and all(bias is None for bias in biases)


def experts_of_few(
    x: Tensor,
    norm: Normed | None,
    weights: ExpertWeights,
    chosen: Tensor,
    shares: Tensor,
    plus: Tensor | None,
    shared: Shared | None,
) -> Tensor:
    """x [T,H], chosen and shares [T,k] -> [T,H]. Grids: (blocks of inner columns, T x (k + shared experts)), then
    (blocks of columns, T)."""
    checks.experts(x, weights, chosen, shares, plus)
    checks.norms(x.shape[1], None if norm is None else norm.weight)
    (_, hidden, width), (num_tokens, top_k) = weights.down.shape, chosen.shape
    parts = 0 if shared is None else shared.width // width
    tile, gate = pair_tile(x.element_size(), gpu.target(x.device)), weights.gate
    pairs = {"chosen_ptr": chosen, "shares_ptr": shares, "top_k": top_k, "parts": parts}
    pairs |= {"BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k, "STAGES": tile.num_stages}
    options = {"num_warps": tile.num_warps, "maxnreg": rules.MAX_REGISTERS, **gpu.launched(x.device)}
    inner = x.new_empty(num_tokens, top_k + parts, width)
    pair_inner_kernel[(math.ceil(2 * width / tile.block_n), num_tokens * (top_k + parts))](
        x_ptr=x,
        norm_ptr=None if norm is None else norm.weight,
        weight_ptr=weights.gate_up,
        bias_ptr=weights.gate_up_bias,
        shared_ptr=None if shared is None else shared.inner.weight,
        out_ptr=inner,
        num_columns=width,
        depth=hidden,
        x_stride=x.stride(0),
        eps=0.0 if norm is None else norm.eps,
        alpha=float(gate.alpha),
        limit=float(gate.limit),
        ACTIVATION=KERNEL_GATES[gate.activation],
        MASKED=hidden % tile.block_k != 0,
        **pairs,
        **options,
    )
    out = x.new_empty(num_tokens, hidden)
    pair_sum_kernel[(math.ceil(hidden / tile.block_n), num_tokens)](
        inner_ptr=inner,
        weight_ptr=weights.down,
        bias_ptr=weights.down_bias,
        shared_ptr=None if shared is None else shared.down.weight,
        plus_ptr=plus,
        out_ptr=out,
        num_columns=hidden,
        depth=width,
        plus_stride=0 if plus is None else plus.stride(0),
        MASKED=width % tile.block_k != 0,
        **pairs,
        **options,
    )
    return out
