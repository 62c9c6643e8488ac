"""What sampling asks of a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.kernels.triton import checks, gpu
from kvtool.kernels.triton.jit.sample import largest_kernel, nucleus_kernel
from kvtool.kernels.triton.tiles import rules
from kvtool.kernels.triton.tiles.rules import padded


def largest(keys: Tensor) -> Tensor:
    """keys int64 [n, blocks], as `key_of` makes them -> places int64 [n]. One program a row."""
    num_rows, num_keys = keys.shape
    out = keys.new_empty(num_rows)
    block = min(padded(num_keys), rules.LARGEST_BLOCK)
    largest_kernel[(num_rows,)](keys, out, num_keys, BLOCK=block, **gpu.launched(out.device), num_warps=16)
    return out


def nucleus(probabilities: Tensor, top_ps: Tensor) -> Tensor:
    """probabilities [n, vocab], top_ps [n] -> [n, vocab]. One program a row."""
    checks.nucleus(probabilities, top_ps)
    num_rows, size = probabilities.shape
    out = torch.empty(num_rows, size, dtype=torch.float32, device=probabilities.device)
    if out.numel() == 0:
        return out
    stride = probabilities.stride(0)
    block = min(padded(size), rules.SAMPLED_BLOCK)
    nucleus_kernel[(num_rows,)](
        probabilities, top_ps, out, size, stride, BLOCK=block, **gpu.launched(out.device), num_warps=8
    )
    return out
