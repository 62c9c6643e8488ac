"""A logged figure beside a predicted one: how they compare once each is a range."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from kvtool.results import VerifyRow
from kvtool.verify.facts import Figure

BYTES, TOKENS, BLOCKS, REQUESTS = "bytes", "tokens", "blocks", "requests"


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """A prediction, as a range where what it follows from is only known rounded."""

    value: float
    low: float
    high: float


def exact(value: float) -> Predicted:
    """A prediction that nothing rounded went into."""
    return Predicted(value=value, low=value, high=value)


def exact_row(
    term: str, unit: str, logged: Figure | None, predicted: Predicted | None, explanation: str = ""
) -> VerifyRow:
    """A row of a term that must agree: `equal` where the two ranges meet."""
    verdict = "unlogged" if logged is None else "unpredicted"
    if logged is not None and predicted is not None:
        verdict = "equal" if logged.meets(predicted.low, predicted.high) else "off"
    return _row(term, unit, logged, predicted, verdict, explanation)


def bounded(row: VerifyRow, ranks: int) -> VerifyRow:
    """Where the log lacks the pool of some ranks, less than predicted is no fault: the smallest pool decides."""
    if not ranks or row.verdict != "off" or row.logged is None or row.logged > (row.predicted_low or 0):
        return row
    text = f"no more than that: the log lacks the pool of {ranks} ranks, and the smallest decides"
    return msgspec.structs.replace(row, verdict="bounded", explanation="; ".join(filter(None, (row.explanation, text))))


def estimate_row(
    term: str, unit: str, logged: Figure | None, predicted: float | None, explanation: str = ""
) -> VerifyRow:
    """A row of a term that kvtool only estimates: never wrong, only near or far."""
    verdict = "unlogged" if logged is None else "unpredicted" if predicted is None else "estimate"
    return _row(term, unit, logged, None if predicted is None else exact(predicted), verdict, explanation)


def _row(
    term: str, unit: str, logged: Figure | None, predicted: Predicted | None, verdict: str, explanation: str
) -> VerifyRow:
    difference = None if logged is None or predicted is None else predicted.value - logged.value
    return VerifyRow(
        term=term,
        unit=unit,
        logged=_number(unit, logged.value if logged else None),
        logged_low=_number(unit, logged.low if logged else None),
        logged_high=_number(unit, logged.high if logged else None),
        predicted=_number(unit, predicted.value if predicted else None),
        predicted_low=_number(unit, predicted.low if predicted else None),
        predicted_high=_number(unit, predicted.high if predicted else None),
        difference=_number(unit, difference),
        verdict="equal" if verdict == "estimate" and difference == 0 else verdict,
        explanation=explanation,
    )


def _number(unit: str, value: float | None) -> float | int | None:
    """Requests have decimals; everything else is counted."""
    return value if value is None or unit == REQUESTS else round(value)
