from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtool.report.charts import byte_ticks, spread

GIB = 1024**3


@given(wanted=st.lists(st.floats(0, 1000), max_size=20), gap=st.floats(1, 50))
def test_labels_are_spread_apart_in_order(wanted: list[float], gap: float) -> None:
    placed = spread(sorted(wanted), gap)
    assert len(placed) == len(wanted)
    assert all(b - a >= gap - 1e-6 for a, b in pairwise(placed))


def test_labels_with_room_stay_and_crowded_ones_share_the_shift() -> None:
    assert spread([0, 100, 200], 10) == [0, 100, 200]
    assert spread([0, 100, 100], 10) == [0, 95, 105]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (40, 200, [48, 64, 96, 128, 192]),
        (1, 64, [1, 2, 4, 8, 16, 32, 64]),
        (1, 1 << 16, [1, 4, 16, 64, 256, 1024, 4096, 16384, 65536]),
    ],
)
def test_ticks_are_round_sizes(low: int, high: int, ticks: list[int]) -> None:
    assert byte_ticks(low * GIB, high * GIB) == [tick * GIB for tick in ticks]


@given(low=st.floats(1, 1e15), factor=st.floats(2, 1e6))
def test_any_range_has_a_few_ticks(low: float, factor: float) -> None:
    assert 2 <= len(byte_ticks(low, low * factor)) <= 16


@pytest.mark.parametrize(("low", "high"), [(15 << 30, 17 << 30), (15 << 30, 33 << 30), (1 << 20, 2 << 20)])
def test_a_narrow_axis_of_bytes_has_several_ticks(low: int, high: int) -> None:
    ticks = byte_ticks(low, high)
    assert len(ticks) >= 3
    assert all(low <= tick <= high for tick in ticks)
    assert ticks == sorted(set(ticks))
