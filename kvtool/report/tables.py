"""A table as text cells, and its two faces: rich for a terminal, HTML for a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

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


def to_rich(table: Table, width: int) -> Text:
    """For a terminal of `width` columns, an empty line behind it. Columns fall away where there is no room for all of
    them, and the last line says which.

    A Text, since names of files and cases may hold brackets, which rich would take for markup.
    """
    from rich.text import Text

    from kvtool.report.fitting import fitted

    fit = fitted(table, width)
    hidden = f"Not shown in {width} columns: {', '.join(fit.hidden)} (see --json)." if fit.hidden else ""
    parts = [(table.title, "bold")] if table.title else []
    parts += [(line, "bold") for line in fit.head]
    parts += [("─" * fit.width, "")] if fit.head else []
    parts += [(line, "") for line in fit.body]
    for told in filter(None, (table.note, hidden)):
        parts += [(line, "dim") for line in paragraph(told, min(width, WIDE))]
    return Text("\n").join(Text(text, style=style) for text, style in [*parts, ("", "")])


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
