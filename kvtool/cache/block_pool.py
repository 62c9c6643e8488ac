"""The pages that exist: who refers to each, and which are free. Knows nothing of tokens or tensors."""

from __future__ import annotations

from array import array
from collections.abc import Iterable


class BlockPool:
    """Pages 0..num_pages-1 with reference counts and a free stack, so that every operation is O(1) a page.

    A fresh pool hands out ascending ids. Pages given back tail first are handed out head first again, so runs of
    neighbouring pages survive, which a kernel can read as one stretch.
    """

    def __init__(self, num_pages: int) -> None:
        if num_pages < 1:
            raise ValueError(f"a pool needs at least one page, not {num_pages}")
        self.num_pages = num_pages
        self._references = array("i", bytes(4 * num_pages))
        self._free = array("i", range(num_pages - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def all_references(self) -> array[int]:
        """How many hold each page, as it is now."""
        return self._references[:]

    def references(self, page: int) -> int:
        """How many hold the page: 0 when it is free."""
        return self._references[page]

    def allocate(self, count: int) -> list[int] | None:
        """`count` pages with one reference each, or None (and nothing taken) when fewer are free."""
        if count < 0:
            raise ValueError(f"cannot allocate {count} pages")
        if count > len(self._free):
            return None
        first = len(self._free) - count
        pages = self._free[first:].tolist()
        pages.reverse()
        del self._free[first:]
        for page in pages:
            self._references[page] = 1
        return pages

    def share_all(self, pages: Iterable[int]) -> None:
        """One more reference to each, all in use."""
        references = self._references
        for page in pages:
            if page < 0 or page >= self.num_pages or references[page] == 0:
                self._refuse(page)
            references[page] += 1

    def release(self, page: int) -> None:
        """One reference less; the last one frees the page."""
        self.release_all([page])

    def release_all(self, pages: Iterable[int]) -> None:
        """One reference to each less; what loses its last one is free, the last page the first to be taken again."""
        references, free = self._references, self._free
        for page in pages:
            if page < 0 or page >= self.num_pages or references[page] == 0:
                self._refuse(page)
            references[page] -= 1
            if references[page] == 0:
                free.append(page)

    def _refuse(self, page: int) -> None:
        if not 0 <= page < self.num_pages:
            raise ValueError(f"page {page} is not one of the pool's {self.num_pages}")
        raise ValueError(f"page {page} is free: it cannot be shared or released")

    def check(self) -> None:
        """Every page is either free once or referred to; no count is negative."""
        free = set(self._free)
        assert len(free) == len(self._free), "a page is free twice"
        for page, references in enumerate(self._references):
            assert references >= 0, f"page {page} has {references} references"
            assert (references == 0) == (page in free), f"page {page} is free with {references} references, or lost"

    def __str__(self) -> str:
        return f"{self.num_pages} pages, {self.num_free} free"
