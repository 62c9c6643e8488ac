"""The roofline by hand: an H100's 3350 GB/s and 989 TFLOP/s (its data sheet) meet at 295 FLOPs a byte."""

from __future__ import annotations

import pytest

from kvtool.sizing.speed.roofline import bound, compute_s, memory_s


def test_bytes_and_flops_take_their_time() -> None:
    assert memory_s(67_000_000_000, gbps=3350.0) == pytest.approx(0.02)
    assert compute_s(1.978e13, tflops=989.0) == pytest.approx(0.02)


@pytest.mark.parametrize(("flops_per_byte", "expected"), [(1, "memory"), (295, "memory"), (296, "compute")])
def test_what_takes_longer_bounds(flops_per_byte: int, expected: str) -> None:
    num_bytes = 10**9
    assert bound(memory_s(num_bytes, 3350.0), compute_s(flops_per_byte * num_bytes, 989.0)) == expected


def test_memory_bounds_where_both_take_as_long() -> None:
    assert bound(1.0, 1.0) == "memory"
