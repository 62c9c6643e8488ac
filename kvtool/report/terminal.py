"""Where tables are printed, and the notes under them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from kvtool.report.fitting import to_rich
from kvtool.report.tables import Table
from kvtool.system.errors import visible

HANG = 2  # columns by which the lines of a sentence behind its first are indented
_ALWAYS = "assumed: "  # how notes begin that say which model was answered about, for lack of the one that was named
NARROWEST = 20  # columns; a terminal that claims fewer, or none, does not know its width


class Terminal(Console):
    """A console for text that users name: nothing in it is markup or moves the cursor, and no width is too small.

    Sentences wrap between words and hang, and no line ends in blanks.

    A closed pipe (`kvtool size ... | head`) is what it is: no fault, and no answer "no".
    """

    def __init__(self, **options: Any) -> None:
        columns = os.environ.get("COLUMNS", "")
        narrow = columns.isascii() and columns.isdigit() and int(columns) < NARROWEST
        told = {name: value for name, value in os.environ.items() if name != "COLUMNS" or not narrow}
        super().__init__(_environ=told, markup=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """A table within the width, else as rich's; text that comes wrapped (`soft_wrap`) is left as it is."""
        if len(objects) == 1 and isinstance(objects[0], Table):
            objects = (to_rich(objects[0], self.width),)
        if len(objects) != 1 or not isinstance(objects[0], str | Text) or options.get("soft_wrap"):
            super().print(*objects, **options)
            return
        style = {"style": options.pop("style")} if "style" in options else {}
        given = objects[0] if isinstance(objects[0], Text) else self._text(objects[0], **options)
        for line in given.split("\n", allow_blank=True):
            for part in self._hung(line):
                super().print(part, soft_wrap=True, highlight=False, **style)

    def _text(self, text: str, *, markup: bool | None = None, **_: Any) -> Text:
        return self.render_str(text, markup=markup, emoji=False, highlight=False)

    def _hung(self, line: Text) -> list[Text]:
        if line.no_wrap or line.cell_len <= self.width:
            return [line]
        first, *others = line.divide(_breaks(line.plain, self.width))
        lines = [first, *(Text(" " * HANG) + part for part in others)]
        for part in lines:
            part.rstrip()
        return lines

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable, with control characters in its text written out."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)

    def close(self) -> None:
        """Nothing is left open."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _breaks(text: str, width: int) -> list[int]:
    """Where the lines of `text` begin behind the first: at words, so that no line is longer unless a word is."""
    breaks: list[int] = []
    begin, indent = 0, 0
    for word in re.finditer(r"\S+", text):
        if word.end() - begin + indent > width and word.start() > begin:
            breaks.append(word.start())
            begin, indent = word.start(), HANG
    return breaks


def print_notes(notes: Sequence[str], console: Console, *, hinge: object, explain: bool) -> None:
    """Every note with `explain`; else those that stand always, and one line of what the answer hangs on most, and how
    to see the notes.
    """
    always = [f"- {note}" for note in notes if note.startswith(_ALWAYS)]
    lines = [f"- {note}" for note in notes] if explain else [*always, short_notes(notes, hinge)]
    for line in filter(None, lines):
        console.print(line, style="dim", highlight=False, markup=False)


def short_notes(notes: Sequence[str], hinge: object) -> str:
    """`Hangs most on activations, an estimate: 1 GiB, 3% of the room. 4 notes: --explain or --json.`"""
    most = [f"Hangs most on {hinge}."] if hinge else []
    count = [f"{len(notes)} note{'s' if len(notes) > 1 else ''}: --explain or --json."] if notes else []
    return " ".join(most + count)
