"""A verify document as a table: ranges, rounding, and sizes that a reader knows."""

from __future__ import annotations

from typing import Any

from kvtool.report.verdicts.verify import largest_error, verify_table
from kvtool.results import VerifyRow

GIB = 1 << 30


def row(**changes: Any) -> VerifyRow:
    fields: dict[str, Any] = {
        "term": "blocks",
        "unit": "blocks",
        "verdict": "equal",
        "explanation": "",
        "difference": None,
    }
    for side in ("logged", "predicted"):
        value = changes.pop(side, None)
        low, high = changes.pop(f"{side}_range", (value, value))
        fields |= {side: value, f"{side}_low": low, f"{side}_high": high}
    return VerifyRow(**(fields | changes))


def cells(**changes: Any) -> tuple[str, ...]:
    return tuple(verify_table([row(**changes)]).rows[0])


def test_a_prediction_from_a_rounded_pool_is_a_range() -> None:
    shown = cells(logged=28_781, predicted=28_779, predicted_range=(28_776, 28_782), difference=-2)
    assert shown == ("blocks", "equal", "28,781", "28,776 .. 28,782", "(-2)")


def test_what_is_off_is_so_many_percent_off() -> None:
    shown = cells(verdict="off", logged=1000, predicted=1100, difference=100)
    assert shown[-1] == "+100 (+10.0%)"


def test_bytes_and_requests_have_their_own_forms() -> None:
    shown = cells(unit="bytes", verdict="estimate", logged=2 * GIB, predicted=GIB, difference=-GIB)
    assert shown[2:] == ("2 GiB", "1 GiB", "-1 GiB (-50.0%)")
    assert cells(unit="requests", logged=3.51, predicted=3.5133, difference=0.0033)[2:4] == ("3.51x", "3.51x")


def test_a_side_that_is_not_there() -> None:
    assert cells(verdict="unlogged", predicted=69)[2:] == ("-", "69", "-")
    assert cells(verdict="unpredicted", logged=0)[2:] == ("0", "-", "-")


def test_the_note_is_there_where_rounding_is() -> None:
    assert verify_table([row(logged=1, predicted=1, difference=0)]).note == ""
    assert "rounding" in verify_table([row(logged=1, predicted=2, difference=1)]).note


def test_what_a_prediction_hangs_on_is_the_estimate_that_is_furthest_off() -> None:
    pool = row(term="KV cache pool", unit="bytes", verdict="estimate", logged=20 * GIB, predicted=18 * GIB)
    graphs = row(term="CUDA graphs", unit="bytes", verdict="estimate", logged=GIB, predicted=2 * GIB, difference=GIB)
    weights = row(
        term="weights", unit="bytes", verdict="estimate", logged=9 * GIB, predicted=7 * GIB, difference=-2 * GIB
    )
    assert largest_error([pool, graphs, weights]) == (
        "weights, an estimate: it is off by 2 GiB, 10.0% of the KV cache pool"
    )
    assert largest_error([pool]) is None
    assert largest_error([weights]) is None, "a share of what is not logged is none"
