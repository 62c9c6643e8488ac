from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtool.results import Summary, summarise

times = st.lists(st.floats(0.001, 1000), min_size=1, max_size=30)


def test_a_summary_worked_by_hand() -> None:
    summary = summarise([4.0, 1.0, 3.0, 2.0])
    assert summary == Summary(
        mean=2.5, std=pytest.approx((5 / 3) ** 0.5), p50=2.5, p90=pytest.approx(3.7), p95=pytest.approx(3.85),
        p99=pytest.approx(3.97), n=4,
    )  # fmt: skip


def test_one_value_has_no_spread_and_no_value_no_summary() -> None:
    assert summarise([7.0]) == Summary(mean=7.0, std=0.0, p50=7.0, p90=7.0, p95=7.0, p99=7.0, n=1)
    assert summarise([]) is None


@given(times)
def test_a_summary_agrees_with_the_standard_library(values: list[float]) -> None:
    summary = summarise(values)
    assert summary is not None
    assert summary.p50 == pytest.approx(statistics.median(values))
    assert summary.mean == pytest.approx(statistics.fmean(values))
    if len(values) > 1:
        assert summary.std == pytest.approx(statistics.stdev(values), abs=1e-9)
    assert summary.p50 <= summary.p90 <= summary.p95 <= summary.p99 <= max(values)
