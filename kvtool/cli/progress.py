"""What long work is doing, on a terminal's standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kvtool.interrupts import interruptible


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float], None]]:
    """A bar that says what is going on; nothing where standard error is no terminal.

    Ctrl-C is a KeyboardInterrupt meanwhile: the bar gives the cursor back, and what was measured is kept.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with interruptible(), Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda doing, done: bar.update(task, description=doing, completed=done)
