"""Pages in the order in which they go, any of which can leave at once."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

ABSENT = -1


class PageQueue:
    """A doubly linked list in two arrays, 8 bytes a page. Every operation is O(1).

    Place `num_pages` of the arrays is both ends: what follows it is the first page, what stands before it the last.
    """

    def __init__(self, num_pages: int) -> None:
        self._end = num_pages
        self._next = array("i", [ABSENT]) * (num_pages + 1)
        self._before = array("i", [ABSENT]) * (num_pages + 1)
        self._next[self._end] = self._before[self._end] = self._end

    def append(self, page: int) -> None:
        """To the end. Raises ValueError for a page that waits already."""
        if self._next[page] != ABSENT:
            raise ValueError(f"page {page} waits already")
        last = self._before[self._end]
        self._next[last] = self._before[self._end] = page
        self._before[page], self._next[page] = last, self._end

    def remove(self, page: int) -> None:
        """From wherever it stands. Raises ValueError for a page that does not wait."""
        before, after = self._before[page], self._next[page]
        if after == ABSENT:
            raise ValueError(f"page {page} does not wait")
        self._next[before], self._before[after] = after, before
        self._next[page] = self._before[page] = ABSENT

    def pop_first(self) -> int:
        """The page that waited longest. At least one must wait."""
        page = self._next[self._end]
        self.remove(page)
        return page

    def __iter__(self) -> Iterator[int]:
        page = self._next[self._end]
        while page != self._end:
            yield page
            page = self._next[page]
