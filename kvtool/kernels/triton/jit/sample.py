"""Which token is next: the largest of a row, and the nucleus of a row of probabilities, without sorting it."""

from __future__ import annotations

import triton
import triton.language as tl

from kvtool.kernels.triton.jit.early import wait_for_launches

_ONE = tl.constexpr(0x3F800000)  # 1.0 as bits, which of numbers from 0 on are ordered as they are
_NAN = tl.constexpr(0x7FC00000)
_MAX32 = tl.constexpr(0x7FFFFFFF)
_MIN64 = tl.constexpr(-(2**63))


@triton.jit
def key_of(x, place):
    """int64 that orders fp32 x as they are, NaN above all, and of equal ones the first: the value's bits, below which
    is how far from the last its place int32 is."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)  # -0.0 equals 0.0
    bits = tl.where(x != x, _NAN, bits)
    ordered = bits ^ ((bits >> 31) & _MAX32)
    return (ordered.to(tl.int64) << 32) | (place ^ _MAX32).to(tl.int64)


@triton.jit(do_not_specialize=["num_keys"])
def largest_kernel(keys_ptr, out_ptr, num_keys, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """One program a row of keys int64 [rows, num_keys] -> the place int64 [rows] that its largest stands for."""
    wait_for_launches(PDL)
    row = tl.program_id(0).to(tl.int64)
    best = tl.full([BLOCK], _MIN64, tl.int64)
    for start in range(0, num_keys, BLOCK):
        at = start + tl.arange(0, BLOCK)
        best = tl.maximum(best, tl.load(keys_ptr + row * num_keys + at, mask=at < num_keys, other=_MIN64))
    tl.store(out_ptr + row, (tl.max(best, 0) & _MAX32) ^ _MAX32)


@triton.jit
def nucleus_kernel(p_ptr, top_p_ptr, out_ptr, size, p_stride, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """One program a row fp32: out is p where less than top_p is likelier than it, else 0.

    The least of those is found by its bits, between `low` and `high`, of which each pass tries three: what is above
    `high` adds up to less than top_p.
    """
    wait_for_launches(PDL)
    row = tl.program_id(0).to(tl.int64)
    p_ptr += row * p_stride
    top_p = tl.load(top_p_ptr + row)
    high = tl.where(top_p < 1.0, _ONE, 0)  # a rounded sum may reach 1 before the last token
    low = high * 0
    while low < high:
        step = (high - low) // 4
        first, second, third = low + step, low + 2 * step, low + 3 * step
        above_first = tl.zeros([BLOCK], tl.float32)
        above_second = above_first
        above_third = above_first
        for start in range(0, size, BLOCK):
            at = start + tl.arange(0, BLOCK)
            p = tl.load(p_ptr + at, mask=at < size, other=0.0)
            bits = p.to(tl.int32, bitcast=True)
            above_first += tl.where(bits > first, p, 0.0)
            above_second += tl.where(bits > second, p, 0.0)
            above_third += tl.where(bits > third, p, 0.0)
        one = tl.sum(above_first, 0) < top_p
        two = tl.sum(above_second, 0) < top_p
        three = tl.sum(above_third, 0) < top_p
        low = tl.where(one, low, tl.where(two, first + 1, tl.where(three, second + 1, third + 1)))
        high = tl.where(one, first, tl.where(two, second, tl.where(three, third, high)))
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        p = tl.load(p_ptr + at, mask=at < size, other=0.0)
        kept = tl.where(p.to(tl.int32, bitcast=True) >= high, p, 0.0)
        tl.store(out_ptr + row * size + at, kept, mask=at < size)
