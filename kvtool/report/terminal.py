"""Where tables are printed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from kvtool.errors import visible

NARROWEST = 20  # columns; a terminal that claims fewer, or none, does not know its width


class Terminal(Console):
    """A console for text that users name: nothing in it is markup or moves the cursor, and no width is too small.

    A closed pipe (`kvtool size ... | head`) is what it is: no fault, and no answer "no".
    """

    def __init__(self, **options: Any) -> None:
        columns = os.environ.get("COLUMNS", "")
        narrow = columns.isascii() and columns.isdigit() and int(columns) < NARROWEST
        told = {name: value for name, value in os.environ.items() if name != "COLUMNS" or not narrow}
        super().__init__(_environ=told, markup=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable, with control characters in its text written out."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError
