"""Values as the text of one table cell; what is not known is a dash."""

from __future__ import annotations

from collections.abc import Sequence

from kvtool.results import Summary
from kvtool.units import format_bytes, format_length, format_ms

DASH = "-"
CARRIES_P99 = 100  # values: of fewer, the 99th percentile is little else than the largest


def p50(summary: Summary | None) -> str:
    """The median of a summary of milliseconds."""
    return format_ms(None if summary is None else summary.p50)


def p99(summary: Summary | None) -> str:
    """The 99th percentile of a summary of milliseconds."""
    return format_ms(None if summary is None else summary.p99)


def tail(summary: Summary | None, values: Sequence[float]) -> str:
    """How far the values of a summary of milliseconds reach: p99 where there are enough for one, else both ends."""
    if summary is None or not values:
        return DASH
    if summary.n >= CARRIES_P99:
        return f"p99 {p99(summary)}"
    return f"{format_ms(min(values))}..{format_ms(max(values))}"


def format_ms_signed(milliseconds: float) -> str:
    """Milliseconds of either sign."""
    return f"-{format_ms(-milliseconds)}" if milliseconds < 0 else format_ms(milliseconds)


def optional_seconds(value: float | None) -> str:
    """Seconds with two decimals."""
    return DASH if value is None else f"{value:.2f}"


def optional_bytes(count: int | None) -> str:
    """A byte count in binary units."""
    return DASH if count is None else format_bytes(count)


def rate(per_second: float | None) -> str:
    """Three digits, all of those before the point, and no more than three behind it."""
    if per_second is None:
        return DASH
    digits = 0 if per_second >= 100 else 1 if per_second >= 10 else 2 if per_second >= 1 else 3
    return f"{per_second:,.{digits}f}"


def format_flops(count: int) -> str:
    """`2.75e11` -> `275 G`."""
    for factor, unit in ((10**15, "P"), (10**12, "T"), (10**9, "G"), (10**6, "M")):
        if abs(count) >= factor:
            return f"{count / factor:.3g} {unit}"
    return str(count)


def percent(ratio: float | None, digits: int = 0) -> str:
    """`0.123` -> `12%`."""
    return DASH if ratio is None else f"{100 * ratio:.{digits}f}%"


def ratio(value: float | None) -> str:
    """How many times as much: three digits and an x."""
    if value is None:
        return DASH
    return f"{value:.2f}x" if value < 10 else f"{value:.1f}x" if value < 100 else f"{value:.0f}x"


def bound(verdict: str | None) -> str:
    """`memory` -> `memory-bound`."""
    return DASH if verdict is None else f"{verdict}-bound"


def yes_no(answer: bool | None) -> str:
    """A no is loud."""
    return DASH if answer is None else "yes" if answer else "NO"


def input_cell(key: str, value: str | int | float | bool | None) -> str:
    """An input of a case; lengths as people write them: 32k."""
    if value is None:
        return DASH
    is_length = key == "context" or key.endswith("_len")
    return format_length(value) if is_length and isinstance(value, int) else str(value)
