"""Two ranges agree where they meet; estimates never are wrong; what is missing is said."""

from __future__ import annotations

from kvtool.verify.facts import exactly, rounded
from kvtool.verify.rows import Predicted, bounded, estimate_row, exact, exact_row


def test_ranges_that_meet_are_equal() -> None:
    logged = rounded(3.51, 2)
    assert exact_row("t", "requests", logged, exact(3.5133)).verdict == "equal"
    assert exact_row("t", "requests", logged, exact(3.5151)).verdict == "off"
    assert exact_row("t", "tokens", exactly(10), Predicted(value=11, low=10, high=12)).verdict == "equal"
    assert exact_row("t", "tokens", exactly(9), Predicted(value=11, low=10, high=12)).verdict == "off"


def test_one_side_alone() -> None:
    assert exact_row("t", "tokens", None, exact(1)).verdict == "unlogged"
    assert exact_row("t", "tokens", exactly(1), None).verdict == "unpredicted"
    assert estimate_row("t", "bytes", None, 1).verdict == "unlogged"


def test_an_estimate_is_never_off() -> None:
    row = estimate_row("t", "bytes", exactly(100), 1)
    assert (row.verdict, row.difference) == ("estimate", -99)
    assert estimate_row("t", "bytes", exactly(100), 100).verdict == "equal"


def test_less_than_predicted_is_no_fault_where_a_rank_is_missing() -> None:
    less, more = (exact_row("t", "blocks", exactly(value), exact(10)) for value in (9, 11))
    assert bounded(less, 0).verdict == "off"
    assert bounded(less, 3).verdict == "bounded"
    assert bounded(more, 3).verdict == "off"
