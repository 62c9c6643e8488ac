"""What a terminal would show, as Markdown: for an issue, a pull request or a wiki."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from kvtool.report.tables import WIDE, Table
from kvtool.report.terminal import Terminal
from kvtool.system.errors import visible

TEXT, LIST, CODE = "text", "list", "code"


class Markdown(Terminal):
    """Tables in pipes, sentences as paragraphs or list items; what is aligned by columns stands in fences.

    `close` ends the last fence.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, width=WIDE, color_system=None)
        self._kind = ""

    def print(self, *objects: Any, **options: Any) -> None:
        """A table, or lines of text: drawn ones (`no_wrap`, `soft_wrap`) go into a fence."""
        if len(objects) == 1 and isinstance(objects[0], Table):
            self.begin("")
            self._put(to_markdown(objects[0]))
            return
        lines = Text("\n").join(item if isinstance(item, Text) else self._text(str(item)) for item in objects)
        drawn = bool(options.get("soft_wrap")) or any(isinstance(item, Text) and item.no_wrap for item in objects)
        for line in visible(lines.plain).split("\n"):
            if line.strip():
                self.begin(CODE if drawn else LIST if line.startswith("- ") else TEXT)
                self._put(line.rstrip() if drawn else escaped(line.strip()))

    def begin(self, kind: str) -> None:
        """What follows is of another kind: end the fence before it, leave a line free, open one of its own."""
        if kind == self._kind and kind in (LIST, CODE):
            return
        self.close()
        if kind == CODE:
            self._put("```")
        self._kind = kind or TEXT

    def close(self) -> None:
        """End what was begun."""
        if self._kind == CODE:
            self._put("```")
        if self._kind:
            self._put("")
        self._kind = ""

    def _put(self, text: str) -> None:
        self.file.write(f"{text}\n")


def to_markdown(table: Table) -> str:
    """A pipe table under its title, numbers at the right, its note below."""
    width = len(table.columns)
    heads = [_cell(heading) for heading in table.columns]
    rule = ["---" if place < table.labels else "---:" for place in range(width)]
    rows = [_line(row) for row in ([heads, rule] if any(heads) else [[""] * width, rule])]
    rows += [_line([_cell(cell) for cell in row]) for row in table.rows]
    parts = [f"**{escaped(table.title)}**" if table.title else "", "\n".join(rows), escaped(table.note)]
    return "\n\n".join(part for part in parts if part)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return escaped(" ".join(visible(text).split()))


def escaped(text: str) -> str:
    """Text in which nothing is Markdown's; a name's inner `_` is none, as in int8_per_token_head."""
    return re.sub(r"([\\`*|<\[])|(?<!\w)(_)|(_)(?!\w)", lambda found: f"\\{found[0]}", text)
