"""What stands under a table: every note where they are asked for, else the one thing that the answer hangs on most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


_ALWAYS = "assumed: "  # how notes begin that say which model was answered about, for lack of the one that was named


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
