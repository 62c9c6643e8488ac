"""Pages in the order in which they go, any of which can leave at once."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from itertools import islice

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

    def extend(self, pages: Iterable[int]) -> None:
        """To the end, one after the other. Raises ValueError for a page that waits already."""
        following, before, end = self._next, self._before, self._end
        last = before[end]
        for page in pages:
            if following[page] != ABSENT:
                raise ValueError(f"page {page} waits already")
            following[last], before[page], following[page], before[end] = page, last, end, page
            last = page

    def remove(self, page: int) -> None:
        """From wherever it stands. Raises ValueError for a page that does not wait."""
        before, after = self._before[page], self._next[page]
        if after == ABSENT:
            raise ValueError(f"page {page} does not wait")
        self._next[before], self._before[after] = after, before
        self._next[page] = self._before[page] = ABSENT

    def pop(self, count: int) -> list[int]:
        """The `count` pages that waited longest, in their order, or all."""
        pages = list(islice(self, count))
        following = self._next[pages[-1]] if pages else self._next[self._end]
        for page in pages:
            self._next[page] = self._before[page] = ABSENT
        self._next[self._end], self._before[following] = following, self._end
        return pages

    def __iter__(self) -> Iterator[int]:
        page = self._next[self._end]
        while page != self._end:
            yield page
            page = self._next[page]
