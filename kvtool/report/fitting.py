"""A table within the columns of a terminal: which columns there is room for, how wide each is, and its lines.

No value is broken: prose wraps between words, and columns that find no room fall away whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from textwrap import wrap
from typing import TYPE_CHECKING

from kvtool.report.tables import WIDE, Table, paragraph
from kvtool.system.errors import visible

if TYPE_CHECKING:
    from rich.text import Text

NARROWEST_PROSE = 24  # columns that a name keeps before numbers beside it fall away
GAP, WIDE_GAP = 2, 3


@dataclass(frozen=True, slots=True)
class Fitted:
    """The lines of a table under its title, and the headings of the columns that fell away."""

    head: list[str]
    body: list[str]
    hidden: list[str]
    width: int


def fitted(table: Table, width: int) -> Fitted:
    """The table in at most `width` columns; wider only where a single word is."""
    table = replace(table, rows=[tuple(map(visible, row)) for row in table.rows])
    dropped = iter(_falling(table))
    shown, hidden = list(range(len(table.columns))), []
    widths, excess = _widths(table, shown, width)
    while excess > 0 and (column := next(dropped, None)) is not None:
        shown.remove(column)
        hidden.append(_one_line(table.columns[column]))
        widths, excess = _widths(table, shown, width)
    if excess > 0:
        widths, _ = _widths(table, shown, width, narrowest=0)
    on_one_line = replace(table, columns=tuple(map(_one_line, table.columns)))
    wider, too_wide = _widths(on_one_line, shown, width)
    if width >= WIDE and too_wide <= 0:
        table, widths = on_one_line, wider
    gap = _gap(width)
    total = sum(widths) + gap * (len(widths) - 1)
    head = _lines(table, [table.columns[i] for i in shown], shown, widths, gap, bottom=True)
    body: list[str] = []
    for row in table.rows:
        body += _spanning(row, width) if _spans(row) else _lines(table, [row[i] for i in shown], shown, widths, gap)
    return Fitted(head if any(table.columns) else [], body, hidden, min(total, width))


def _falling(table: Table) -> list[int]:
    """Columns in the order in which they fall away: those that the table can spare, then numbers from the right."""
    first = [table.columns.index(name) for name in table.spare if name in table.columns]
    numbers = [i for i in reversed(range(max(table.labels, 1), len(table.columns))) if i not in first]
    return first + numbers[:-1]


def _widths(table: Table, shown: Sequence[int], width: int, narrowest: int = NARROWEST_PROSE) -> tuple[list[int], int]:
    """The width of each column, and by how many columns of the terminal all of them are too wide."""
    rows = [table.columns, *(row for row in table.rows if not _spans(row))]
    widths = [max(len(line) for row in rows for line in row[i].split("\n")) for i in shown]
    excess = sum(widths) + _gap(width) * (len(shown) - 1) - width
    for place in sorted(range(len(shown)), key=lambda place: -widths[place]):
        if excess > 0 and shown[place] < table.labels:
            words = [word for row in rows for word in row[shown[place]].split()]
            give = min(excess, widths[place] - max(narrowest, *map(len, words), 0))
            if give > 0:
                widths[place] -= give
                excess -= give
    return widths, excess


def _gap(width: int) -> int:
    return GAP if width < WIDE else WIDE_GAP


def _one_line(heading: str) -> str:
    return heading.replace("\n/", "/").replace("\n", " ")


def _spans(row: Sequence[str]) -> bool:
    """Whether a row is a heading of those below it."""
    return len(row) > 1 and not any(row[1:])


def _spanning(row: Sequence[str], width: int) -> list[str]:
    return [line for part in row[0].split("\n") for line in _wrapped(part, width)]


def _lines(
    table: Table, cells: Sequence[str], shown: Sequence[int], widths: Sequence[int], gap: int, *, bottom: bool = False
) -> list[str]:
    """One row as lines: names at the left, numbers at the right; headings stand at the bottom of theirs."""
    blocks = [
        [line for part in cell.split("\n") for line in (_wrapped(part, width) if i < table.labels else [part])]
        for cell, i, width in zip(cells, shown, widths, strict=True)
    ]
    if bottom:
        height = max(map(len, blocks))
        blocks = [[""] * (height - len(block)) + block for block in blocks]
    lines = []
    for parts in zip_longest(*blocks, fillvalue=""):
        told = [
            part.ljust(width) if i < table.labels else part.rjust(width)
            for part, i, width in zip(parts, shown, widths, strict=True)
        ]
        lines.append((" " * gap).join(told).rstrip())
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    """Between words; what is indented stays so."""
    indent = text[: len(text) - len(text.lstrip())]
    return wrap(
        text.strip(), width, initial_indent=indent, subsequent_indent=indent, break_long_words=False,
        break_on_hyphens=False,
    ) or [""]  # fmt: skip


def to_rich(table: Table, width: int) -> Text:
    """For a terminal of `width` columns, an empty line behind it. Columns fall away where there is no room for all of
    them, and the last line says which.

    A Text, since names of files and cases may hold brackets, which rich would take for markup.
    """
    from rich.text import Text

    fit = fitted(table, width)
    hidden = f"Not shown in {width} columns: {', '.join(fit.hidden)} (see --json)." if fit.hidden else ""
    parts = [(table.title, "bold")] if table.title else []
    parts += [(line, "bold") for line in fit.head]
    parts += [("─" * fit.width, "")] if fit.head else []
    parts += [(line, "") for line in fit.body]
    for told in filter(None, (table.note, hidden)):
        parts += [(line, "dim") for line in paragraph(told, min(width, WIDE))]
    return Text("\n").join(Text(text, style=style) for text, style in [*parts, ("", "")])
