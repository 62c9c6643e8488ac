"""Read memory as fast as the device can and keep one number of it: the ceiling that paged reads are held against."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def stream_kernel(x_ptr, sums_ptr, numel, BLOCK: tl.constexpr):
    """Each program sums every num_programs-th BLOCK of x [numel] into one float of sums [num_programs]."""
    program = tl.program_id(0)
    first = program.to(tl.int64) * BLOCK
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    sums = tl.zeros((BLOCK,), tl.float32)
    for start in range(first, numel, step):
        offsets = start + tl.arange(0, BLOCK)
        sums += tl.load(x_ptr + offsets, mask=offsets < numel, other=0.0, eviction_policy="evict_first")
    tl.store(sums_ptr + program, tl.sum(sums))
