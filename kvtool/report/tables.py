"""A table as text cells, and its two faces: rich for a terminal, HTML for a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from kvtool.errors import visible

if TYPE_CHECKING:
    from rich.table import Table as RichTable

WIDE = 100


@dataclass(frozen=True)
class Table:
    """`labels` leading columns are names (left), the others numbers (right). `note` explains what a reader may ask."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    labels: int = 0
    note: str = ""


def to_rich(table: Table, width: int) -> RichTable:
    """For a terminal of `width` columns: narrow ones get one space between columns instead of two.

    Every string is a Text, since names of files and cases may hold brackets, which rich would take for markup.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    rich = RichTable(
        title=Text(table.title, style="bold"),
        caption=Text(table.note) if table.note else None,
        box=SIMPLE_HEAD,
        show_header=any(table.columns),
        title_justify="left",
        caption_justify="left",
        title_style="",
        caption_style="dim",
        collapse_padding=width < WIDE,
        pad_edge=False,
    )
    for index, column in enumerate(table.columns):
        left = index < table.labels
        rich.add_column(column, justify="left" if left else "right", vertical="top", overflow="fold")
    for row in table.rows:
        rich.add_row(*(Text(visible(cell)) for cell in row))
    return rich


def to_html(table: Table) -> str:
    """A `<figure>` that scrolls sideways on its own where the page is too narrow."""
    head = "".join(f"<th{_side(i, table)}>{escape(c)}</th>" for i, c in enumerate(table.columns) if any(table.columns))
    body = "".join(
        "<tr>" + "".join(f"<td{_side(i, table)}>{escape(c)}</td>" for i, c in enumerate(row)) + "</tr>\n"
        for row in table.rows
    )
    note = f"<figcaption>{escape(table.note)}</figcaption>" if table.note else ""
    return (
        f'<figure><h3>{escape(table.title)}</h3><div class="scroll"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>{note}</figure>"
    )


def _side(index: int, table: Table) -> str:
    return ' class="label"' if index < table.labels else ""
