"""A table as text cells, and its two faces: rich for a terminal, HTML for a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

WIDE = 100


@dataclass(frozen=True)
class Table:
    """`labels` leading columns are names (left), the others numbers (right). `note` explains what a reader may ask;
    `spare` names the columns that fall away first on a narrow terminal, in that order.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    labels: int = 0
    note: str = ""
    spare: tuple[str, ...] = ()


def paragraph(text: str, width: int, *, hang: int = 0) -> list[str]:
    """Lines of at most `width` columns, those behind the first indented by `hang`; no word is broken."""
    return wrap(text, width, subsequent_indent=" " * hang, break_long_words=False, break_on_hyphens=False)


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
