"""Programs that start before the launch in front of theirs is over, and wait for it: programmatic dependent launch.

What the device does in between, placing programs and fetching their code, then costs nothing. A weight is never written
to, so its first bytes are asked for before the wait; all else is touched behind it, by every program, or a launch could
be over before the one in front of it is. With PDL off nothing of this is compiled: cards before Hopper know no such
launch, and nor does the interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

LINE = tl.constexpr(128)  # bytes that the second-level cache fetches at once


@triton.jit
def wait_for_launches(PDL: tl.constexpr):
    """Behind this line all earlier launches are over. The next may place its programs from now on."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def prefetch_rows(row_ptrs, first, depth, BLOCK_K: tl.constexpr, PDL: tl.constexpr):
    """Elements first .. first + BLOCK_K - 1 of the rows at row_ptrs [N, 1], into the second-level cache."""
    if PDL:
        EACH: tl.constexpr = LINE * 8 // row_ptrs.dtype.element_ty.primitive_bitwidth
        k = tl.minimum(first + EACH * tl.arange(0, BLOCK_K // EACH), depth - 1)
        addresses = (row_ptrs + k[None, :]).to(tl.int64)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [addresses], dtype=tl.int32, is_pure=False, pack=1
        )
