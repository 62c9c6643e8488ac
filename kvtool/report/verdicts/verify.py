"""What an engine logged beside what was predicted: a table, what each term says, and why the engine did not start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvtool.report.cells import DASH
from kvtool.report.tables import Table
from kvtool.report.terminal import print_notes
from kvtool.results import VerifyDocument, VerifyRow
from kvtool.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {"agrees": "green", "off": "bold red", "refused": "bold yellow", "uncompared": "yellow"}
_SUMMARIES = {
    "agrees": "Agrees: every term that must be exact is.",
    "off": "Off: a term that must be exact is not.",
    "refused": "The engine did not start.",
    "uncompared": "Nothing in the log must be exact: there is nothing to hold a prediction against.",
}


def print_verify(document: VerifyDocument, console: Console, *, explain: bool = False) -> None:
    """The verdict, the start, the table, the explanations; what the prediction hangs on last."""
    console.print(_SUMMARIES[document.verdict], style=_STYLES[document.verdict], highlight=False)
    engine = document.engine
    title = f"{engine.name} {engine.version}" if engine.version else engine.name
    flags = ", ".join(f"{name} {value}" for name, value in document.inputs.items() if value is not None)
    console.print(f"{title}, {document.model}: {flags or 'no flags in the log'}", highlight=False, markup=False)
    if document.rows:
        console.print(verify_table(document.rows))
    for row in document.rows:
        if row.explanation:
            console.print(f"{row.term}: {row.explanation}", highlight=False, markup=False)
    if document.refusal is not None:
        console.print(f'The log: "{document.refusal.line}"', highlight=False, markup=False)
        console.print(document.refusal.explanation, highlight=False, markup=False)
    print_notes(document.assumptions, console, hinge=largest_error(document.rows), explain=explain)


def largest_error(rows: list[VerifyRow]) -> str | None:
    """The estimate that is furthest from the log, as a share of the cache's pool; where the pool is not logged, of the
    memory that may be used.
    """
    logged = {row.term: row.logged for row in rows if row.unit == "bytes" and row.logged}
    whole = next((name for name in ("KV cache pool", "usable memory") if name in logged), None)
    estimates = [row for row in rows if row.verdict == "estimate" and row.difference and row.term != whole]
    in_bytes = [row for row in estimates if row.unit == "bytes"]
    if whole is None or not in_bytes:
        return None
    furthest = max(in_bytes, key=lambda row: abs(row.difference or 0))
    off = abs(furthest.difference or 0)
    share = off / (logged[whole] or 1)
    return f"{furthest.term}, an estimate: it is off by {format_bytes(round(off))}, {share:.1%} of the {whole}"


def verify_table(rows: list[VerifyRow]) -> Table:
    """One line a term; a prediction from a rounded number is the range that the rounding leaves open."""
    return Table(
        title="Logged and predicted, for one GPU",
        columns=("term", "verdict", "logged", "predicted", "difference"),
        rows=[
            (row.term, row.verdict, _number(row.unit, row.logged), _predicted(row), _difference(row)) for row in rows
        ],
        labels=2,
        note=_note(rows),
    )


def _note(rows: list[VerifyRow]) -> str:
    if any(row.verdict == "equal" and row.difference for row in rows):
        return "A difference in brackets is within what the log's rounding leaves open."
    return ""


def _predicted(row: VerifyRow) -> str:
    low, high = row.predicted_low, row.predicted_high
    if row.unit != "bytes" and low != high:
        return f"{_number(row.unit, low)} .. {_number(row.unit, high)}"
    return _number(row.unit, row.predicted)


def _number(unit: str, value: float | int | None) -> str:
    if value is None:
        return DASH
    if unit == "bytes":
        return format_bytes(round(value))
    return f"{value:,.2f}x" if unit == "requests" else f"{value:,.0f}"


def _difference(row: VerifyRow) -> str:
    if row.difference is None or row.difference == 0:
        return DASH if row.difference is None else "0"
    amount = f"{'+' if row.difference > 0 else '-'}{_number(row.unit, abs(row.difference))}"
    if row.verdict == "equal":
        return f"({amount})"
    if not row.logged:
        return amount
    share = row.difference / row.logged
    return f"{amount} ({share:+.1%})" if abs(share) < 1 else f"{amount} ({share:+.0%})"
