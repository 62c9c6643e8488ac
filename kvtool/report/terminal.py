"""Where tables are printed."""

from __future__ import annotations

from rich.console import Console


class Terminal(Console):
    """A console that lets a closed pipe (`kvtool size ... | head`) be what it is: no fault, and no answer "no"."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError
