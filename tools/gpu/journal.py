"""What became of each case of a piece: a line when it begins and one when it ends, which no end of a process loses.

Processes that run side by side append to one file: a line is written at once, and those of a case are of one process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from tools.gpu.store import Store

STARTED, DONE, FAILED, LOST, SKIPPED = "started", "done", "failed", "lost", "skipped"
EVENTS = "events.jsonl"


@dataclass(frozen=True)
class Event:
    """`state`: started | done | skipped | failed | lost. A case is lost whose process ended in the middle of it."""

    case: str
    state: str
    seconds: float | None = None
    error: str | None = None
    traceback: str | None = None

    @property
    def line(self) -> str:
        """The first line of what went wrong."""
        return (self.error or "").strip().partition("\n")[0]


class Journal:
    """The events of one piece, with those of the processes in it that have journals of their own."""

    def __init__(self, store: Store, piece: str) -> None:
        self.store, self.piece = store, piece

    def tell(self, event: Event) -> None:
        """It outlives this process when this returns. It begins a line of its own: the one before may be torn."""
        self.store.append(f"{self.piece}/{EVENTS}", f"\n{json.dumps(asdict(event))}\n".encode())

    def events(self) -> Iterator[Event]:
        """All that were told; a line that a process died in is left out."""
        for path in self.store.below(self.piece, EVENTS):
            for line in path.read_bytes().splitlines():
                try:
                    yield Event(**json.loads(line))
                except (ValueError, TypeError):
                    continue

    def ended(self) -> dict[str, Event]:
        """The end of each case that has one."""
        return {event.case: event for event in self.events() if event.state != STARTED}

    def open(self) -> list[str]:
        """Cases that began and have no end."""
        ended = self.ended()
        return list(dict.fromkeys(event.case for event in self.events() if event.case not in ended))

    def give_up(self, reason: str) -> list[str]:
        """Say of every open case that its process is gone, and why; their names."""
        lost = self.open()
        for case in lost:
            self.tell(Event(case, LOST, error=reason))
        return lost
