"""A mixture of experts on a GPU, of few rows and many, without asking the device which experts were chosen."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kvtool.kernels.fused import Normed
from kvtool.kernels.triton import checks, gpu
from kvtool.kernels.triton.jit.experts import add_chosen_kernel, assign_kernel, experts_kernel
from kvtool.kernels.triton.tiles import rules
from kvtool.kernels.triton.tiles.products import block_bound, expert_rows, expert_tile
from kvtool.kernels.triton.tiles.rules import padded
from kvtool.kernels.weights import ExpertWeights

PAIRS_AT_ONCE = 1024


# What a kernel makes of a gate, by the names that checkpoints use.
KERNEL_GATES = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "clamped_swiglu": "clamped_swiglu",
}


def experts_at_once(
    x: Tensor,
    weights: ExpertWeights,
    chosen: Tensor,
    shares: Tensor,
    plus: Tensor | None,
    norm: Normed | None = None,
) -> Tensor:
    """x [T,H], chosen and shares [T,k] -> [T,H]: for each token the sum of its experts times their shares, + plus. A
    norm of x is done in the first product.

    Four launches: pairs of token and expert sorted by expert; gate, up and activation; down, times the share; the sum.
    """
    checks.experts(x, weights, chosen, shares, plus)
    checks.norms(x.shape[1], None if norm is None else norm.weight)
    if len(x) == 0:
        return x.new_empty(0, x.shape[1])
    num_experts, hidden, width = weights.down.shape
    num_pairs = chosen.numel()
    block_m = expert_rows(num_pairs, num_experts, x.element_size())
    order, blocks = _placed(chosen, num_experts, block_m)
    inner = x.new_empty(num_pairs, width)
    gate = weights.gate
    gate_up = {"alpha": float(gate.alpha), "limit": float(gate.limit), "ACTIVATION": KERNEL_GATES[gate.activation]}
    gate_up |= {"norm_ptr": None if norm is None else norm.weight, "eps": 0.0 if norm is None else norm.eps}
    _product(x, weights.gate_up, weights.gate_up_bias, shares, order, blocks, inner, block_m, True, gate_up)
    each = x.new_empty(num_pairs, hidden)
    down = {"alpha": 0.0, "limit": 0.0, "ACTIVATION": "", "norm_ptr": None, "eps": 0.0}
    _product(inner, weights.down, weights.down_bias, shares, order, blocks, each, block_m, False, down)
    return _added(each, plus, chosen.shape[1])


def _placed(chosen: Tensor, num_experts: int, block_m: int) -> tuple[Tensor, Tensor]:
    """chosen [T,k] -> order [T*k] and blocks [bound, 4], as `assign_kernel` says. Grid: (E,)."""
    num_pairs = chosen.numel()
    bound = block_bound(num_pairs, num_experts, block_m)
    order = torch.empty(num_pairs, dtype=torch.int32, device=chosen.device)
    blocks = torch.empty(bound, 4, dtype=torch.int32, device=chosen.device)
    assign_kernel[(num_experts,)](
        chosen,
        order,
        blocks,
        num_pairs,
        bound,
        EXPERTS=num_experts,
        BLOCK_E=max(16, padded(num_experts)),
        BLOCK_P=max(16, min(padded(num_pairs), PAIRS_AT_ONCE)),
        BLOCK_M=block_m,
        **gpu.launched(chosen.device),
        num_warps=4,
    )
    return order, blocks


def _product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shares: Tensor,
    order: Tensor,
    blocks: Tensor,
    out: Tensor,
    block_m: int,
    is_gated: bool,
    gate: dict[str, object],
) -> None:
    """One product of all experts, as `experts_kernel` says. Grid: blocks of rows x blocks of columns."""
    num_blocks, num_columns, depth = len(blocks), out.shape[1], weight.shape[2]
    size, target = x.element_size(), gpu.target(x.device)
    tile = expert_tile(block_m, num_columns, num_blocks, size, target, is_gated=is_gated)
    experts_kernel[(num_blocks * math.ceil(num_columns / tile.block_n),)](
        x_ptr=x,
        weight_ptr=weight,
        bias_ptr=bias,
        shares_ptr=shares,
        order_ptr=order,
        blocks_ptr=blocks,
        out_ptr=out,
        num_blocks=num_blocks,
        top_k=shares.shape[1],
        num_columns=num_columns,
        depth=depth,
        x_stride=x.stride(0),
        GATED=is_gated,
        MASKED=depth % tile.block_k != 0,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        **gate,
        **gpu.launched(x.device),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        maxnreg=rules.MAX_REGISTERS,
    )


def _added(each: Tensor, plus: Tensor | None, top_k: int) -> Tensor:
    """each [T*k,H], plus [T,H] -> [T,H]. Grid: (T, blocks of a row)."""
    hidden = each.shape[1]
    out = each.new_empty(len(each) // top_k, hidden)
    block = min(padded(hidden), rules.STORE_BLOCK)
    add_chosen_kernel[(len(out), math.ceil(hidden / block))](
        each,
        plus,
        out,
        top_k,
        0 if plus is None else plus.stride(0),
        SIZE=hidden,
        BLOCK=block,
        **gpu.launched(each.device),
        num_warps=4,
    )
    return out
