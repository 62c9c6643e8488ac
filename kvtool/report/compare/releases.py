"""Releases of an engine side by side: a line a term, a column a release, and what the changes between them make."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvtool.report.files import CsvValue, write_result
from kvtool.report.tables import Table
from kvtool.report.terminal import print_notes
from kvtool.results import ReleaseChange, ReleasesDocument
from kvtool.units import format_bytes, format_length

if TYPE_CHECKING:
    from rich.console import Console

NAMES = {
    "usable_bytes": "usable",
    "weights_bytes": "weights",
    "activation_bytes": "activations",
    "reserve_bytes": "runtime and graphs",
    "pool_bytes": "pool",
    "block_size": "tokens a block",
    "bytes_per_block": "bytes of a block",
    "num_blocks": "blocks",
    "blocks_per_request": "blocks a request",
    "gpu_kv_cache_tokens": "tokens",
    "max_concurrency": "requests at once",
}


def print_releases(document: ReleasesDocument, console: Console, *, explain: bool = False) -> None:
    console.print(releases_table(document))
    for change in document.changes:
        if change.effects:
            console.print(change_line(change), soft_wrap=False, highlight=False)
    if idle := sum(not change.effects for change in document.changes):
        console.print(f"{idle} other changes between them make no difference here (--json lists them).")
    print_notes(document.assumptions, console, hinge=None, explain=explain)


def write_releases(document: ReleasesDocument, directory: Path) -> list[Path]:
    """compare.json and .csv in `directory`; the paths written. Raises KvtoolError."""
    return write_result(directory, "compare", document, rows=list(_csv_rows(document)))


def releases_table(document: ReleasesDocument) -> Table:
    """A line for each term that any of the releases has; an empty cell where one has it not."""
    columns = ("term", *(f"{row.engine} {row.release}" for row in document.rows))
    lines = [
        (NAMES[term], *(_cell(term, row.terms[term]) for row in document.rows))
        for term in NAMES
        if any(row.terms[term] is not None for row in document.rows)
    ]
    lines.append(("rules", *(row.standing or "" for row in document.rows)))
    title = f"{document.model}, requests of {format_length(document.context)} tokens at most"
    return Table(title=title, columns=columns, rows=lines, labels=1)


def change_line(change: ReleaseChange) -> str:
    """`0.26: ...: blocks a request 5,510 -> 8,582`."""
    effects = ", ".join(
        f"{NAMES[term]} {_cell(term, without)} -> {_cell(term, found)}"
        for term, (without, found) in change.effects.items()
    )
    return f"{change.since}: {change.what}: {effects} ({change.source})"


def _cell(term: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(_cell(term, one) for one in value)
    if term.endswith("_bytes"):
        return format_bytes(value) if value >= 0 else f"-{format_bytes(-value)}"
    return f"{value:,.2f}x" if isinstance(value, float) else f"{value:,}"


def _csv_rows(document: ReleasesDocument) -> Iterator[dict[str, CsvValue]]:
    for row in document.rows:
        terms = {
            term: " ".join(map(str, value)) if isinstance(value, list) else value for term, value in row.terms.items()
        }
        yield {"engine": row.engine, "release": row.release, "standing": row.standing, **terms}
