"""What long work is doing, on a terminal's standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kvtool.system.interrupts import interruptible

LINE_EVERY_S = 60
LEAST_DONE = 0.05  # of the work, before what is left can be told


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float], None]]:
    """A bar that says what is going on and how long it may take; where standard error is no terminal, a line a minute.

    Ctrl-C is a KeyboardInterrupt meanwhile: the bar gives the cursor back, and what was measured is kept.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[left]}"))
    told = Told(time.monotonic)
    with interruptible(), Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("starting", total=1.0, left="")

        def update(doing: str, done: float) -> None:
            bar.update(task, description=doing, completed=done, left=told.left(done))
            if bar.disable and (line := told.line(doing, done)):
                print(line, file=sys.stderr, flush=True)

        yield update


@dataclass
class Told:
    """What is told of long work by a `clock` in seconds, from when it is made."""

    clock: Callable[[], float]

    def __post_init__(self) -> None:
        self.began_s = self.last_line_s = self.clock()

    def left(self, done: float) -> str:
        """`about 40 s left` where `done`, from 0 to 1, is enough to tell by."""
        if not LEAST_DONE <= done < 1:
            return ""
        left_s = (self.clock() - self.began_s) * (1 - done) / done
        return f"about {left_s / 60:.0f} min left" if left_s >= 100 else f"about {left_s:.0f} s left"

    def line(self, doing: str, done: float) -> str | None:
        """A line of where the work is, at most one in LINE_EVERY_S."""
        if self.clock() - self.last_line_s < LINE_EVERY_S:
            return None
        self.last_line_s = self.clock()
        left = self.left(done)
        return f"kvtool: {doing}, {done:.0%} done{f', {left}' if left else ''}"
