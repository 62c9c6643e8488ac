"""The streaming read as a function of a tensor; its torch twin is `x.sum()`."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.kernels.triton.jit.stream import stream_kernel

BLOCK = 4096  # 8 warps x 32 threads x 16 bytes, four loads in flight in each thread
NUM_WARPS = 8
PROGRAMS_PER_SM = 8  # of 256 threads each: the 2048 that a multiprocessor holds


def stream_read(x: Tensor, num_sms: int) -> Tensor:
    """x [N] fp32, contiguous -> [num_sms * PROGRAMS_PER_SM] fp32 partial sums, which add up to x.sum()."""
    if x.dtype != torch.float32 or x.ndim != 1 or not x.is_contiguous():
        raise ValueError(f"stream_read wants contiguous fp32 [N], not {x.dtype} {tuple(x.shape)}")
    sums = torch.empty(num_sms * PROGRAMS_PER_SM, dtype=torch.float32, device=x.device)
    stream_kernel[(len(sums),)](x, sums, x.numel(), BLOCK=BLOCK, num_warps=NUM_WARPS)
    return sums
