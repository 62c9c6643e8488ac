"""Where tables and sentences are printed."""

from __future__ import annotations

import re
from typing import Any

from rich.console import Console
from rich.text import Text

HANG = 2  # columns by which the lines of a sentence behind its first are indented


class Terminal(Console):
    """A console that lets a closed pipe (`kvtool size ... | head`) be what it is: no fault, and no answer "no".

    Sentences wrap between words, under their first word or two columns in; no line ends in blanks.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich's, of text that does not come wrapped (`soft_wrap`)."""
        if len(objects) != 1 or not isinstance(objects[0], str | Text) or options.get("soft_wrap"):
            super().print(*objects, **options)
            return
        style = {"style": options.pop("style")} if "style" in options else {}
        given = objects[0] if isinstance(objects[0], Text) else self._text(objects[0], **options)
        for line in given.split("\n", allow_blank=True):
            for part in self._hung(line):
                super().print(part, soft_wrap=True, highlight=False, **style)

    def _text(self, text: str, *, markup: bool | None = None, **_: Any) -> Text:
        return self.render_str(text, markup=markup, highlight=False)

    def _hung(self, line: Text) -> list[Text]:
        if line.no_wrap or line.cell_len <= self.width:
            return [line]
        first, *others = line.divide(_breaks(line.plain, self.width))
        lines = [first, *(Text(" " * HANG) + part for part in others)]
        for part in lines:
            part.rstrip()
        return lines

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
