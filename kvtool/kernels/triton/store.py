"""Write rows of this step's tokens into the slots of a paged cache, converting to the cache's dtype."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def store_kernel(
    x_ptr, cache_ptr, slots_ptr, scale,
    x_token_stride, x_head_stride, page_stride, slot_stride, head_stride,
    ROW: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE: tl.constexpr, MAX: tl.constexpr, BLOCK: tl.constexpr,
):
    """One program writes BLOCK of the ROW = heads * HEAD_DIM values of one token."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    if slot < 0:
        return
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    head = column // HEAD_DIM
    dim = column % HEAD_DIM
    inside = column < ROW
    x = tl.load(x_ptr + token * x_token_stride + head * x_head_stride + dim, mask=inside).to(tl.float32)
    stored = tl.clamp(x / scale, -MAX, MAX, propagate_nan=tl.PropagateNan.ALL)
    row_ptr = cache_ptr + (slot // PAGE) * page_stride + (slot % PAGE) * slot_stride
    tl.store(row_ptr + head * head_stride + dim, stored.to(cache_ptr.dtype.element_ty), mask=inside)
