"""What goes wrong below the block pool costs time, never a token: it is told once a kind."""

from __future__ import annotations

from collections.abc import Callable


class Notices:
    """The first warning of each kind, kept and passed on to `tell`."""

    def __init__(self, tell: Callable[[str], None] = lambda line: None) -> None:
        self._tell = tell
        self._by_kind: dict[str, str] = {}
        self.remarks: list[str] = []

    def warn(self, kind: str, line: str) -> None:
        """Only the first of a kind is told."""
        if kind not in self._by_kind:
            self._by_kind[kind] = line
            self._tell(line)

    def remark(self, line: str) -> None:
        """What a reader of the figures must know, though nothing went wrong; each is told once."""
        if line not in self.remarks:
            self.remarks.append(line)

    @property
    def lines(self) -> list[str]:
        return list(self._by_kind.values())
