"""What stands in a cell: digits that mean something, units, a dash for what is not known."""

from __future__ import annotations

import pytest

from kvtool.report.cells import (
    DASH,
    bound,
    format_flops,
    format_ms_signed,
    input_cell,
    optional_bytes,
    optional_seconds,
    p50,
    p99,
    percent,
    rate,
    ratio,
    yes_no,
)


def test_what_is_not_known_is_a_dash() -> None:
    cells = (p50, p99, optional_seconds, optional_bytes, rate, percent, ratio, bound, yes_no)
    assert {cell(None) for cell in cells} == {input_cell("tp", None), DASH}


def test_rates_have_three_digits_and_all_before_the_point() -> None:
    assert [rate(value) for value in (0.0345, 9.876, 70.64, 487.2, 1395.6)] == ["0.035", "9.88", "70.6", "487", "1,396"]


def test_ratios_have_three_digits_and_an_x() -> None:
    assert [ratio(value) for value in (0.071, 9.99, 12.34, 123.4)] == ["0.07x", "9.99x", "12.3x", "123x"]


def test_flops_are_short() -> None:
    assert [format_flops(n) for n in (0, 999, 2_750_000_000, 1_408_000_000_000)] == ["0", "999", "2.75 G", "1.41 T"]


def test_a_loss_keeps_its_sign() -> None:
    assert [format_ms_signed(value) for value in (-2.5, 0.0, 98.34)] == ["-2.50", "0", "98.3"]


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [("context", 32768, "32k"), ("input_len", 320, "320"), ("batch_size", 4096, "4096"), ("dtype", "bf16", "bf16")],
)
def test_lengths_are_written_as_people_write_them(key: str, value: int | str, text: str) -> None:
    assert input_cell(key, value) == text


def test_a_no_is_loud() -> None:
    assert (yes_no(True), yes_no(False), bound("memory")) == ("yes", "NO", "memory-bound")
