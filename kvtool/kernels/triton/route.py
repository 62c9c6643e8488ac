"""The choice of experts in one launch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvtool.kernels.triton import checks, gpu
from kvtool.kernels.triton.jit.route import route_kernel
from kvtool.kernels.triton.tiles import rules
from kvtool.kernels.triton.tiles.products import route_tile
from kvtool.kernels.triton.tiles.rules import padded

if TYPE_CHECKING:
    from kvtool.kernels.fused import Choice, Normed


def route(x: Tensor, norm: Normed | None, choice: Choice) -> tuple[Tensor, Tensor]:
    """x [T,H] -> experts int64 [T,k] and their shares fp32 [T,k]. Grid: (T, blocks of experts)."""
    checks.choice(x, choice)
    checks.norms(x.shape[1], None if norm is None else norm.weight)
    (num_tokens, hidden), num_experts, tile = x.shape, len(choice.weight), route_tile()
    chosen = torch.empty(num_tokens, choice.top_k, dtype=torch.int64, device=x.device)
    shares = torch.empty(num_tokens, choice.top_k, dtype=torch.float32, device=x.device)
    if num_tokens == 0:
        return chosen, shares
    logits = torch.empty(num_tokens, num_experts, dtype=torch.float32, device=x.device)
    route_kernel[(num_tokens, math.ceil(num_experts / tile.block_n))](
        x_ptr=x,
        norm_ptr=None if norm is None else norm.weight,
        weight_ptr=choice.weight,
        logit_bias_ptr=choice.logit_bias,
        bias_ptr=choice.bias,
        logits_ptr=logits,
        chosen_ptr=chosen,
        shares_ptr=shares,
        arrivals_ptr=gpu.arrivals(x.device, num_tokens),
        depth=hidden,
        x_stride=x.stride(0),
        eps=0.0 if norm is None else norm.eps,
        scale=float(choice.scale),
        MASKED=hidden % tile.block_k != 0,
        BLOCK_E=tile.block_n,
        BLOCK_K=tile.block_k,
        STAGES=tile.num_stages,
        **_constants(choice),
        **gpu.launched(x.device),
        num_warps=tile.num_warps,
        maxnreg=rules.MAX_REGISTERS,
    )
    return chosen, shares


def _constants(choice: Choice) -> dict[str, object]:
    return {
        "EXPERTS": len(choice.weight),
        "TOP_K": choice.top_k,
        "SIGMOID": choice.is_sigmoid,
        "NORMALISED": choice.normalised,
        "GROUPS": choice.groups,
        "GROUPS_KEPT": choice.groups_kept,
        "TOP_TWO": choice.top_two,
        "BLOCK_ALL": max(16, padded(len(choice.weight))),
        "BLOCK_TOP": padded(choice.top_k),
    }
