"""The cached pages by a hash of all that they and their prefix hold, and one queue of all pages that nobody holds.

This is vLLM's way (docs/design/prefix_caching.md). A page that is given back joins the end of the queue, the tail of a
sequence before its head, with content to be found by or without; a hit takes it out again, and the front of the queue
goes first. Pages of the same content stand beside each other. Each operation is O(1) a page.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kvtool.cache.index.base import NO_PARENT, Extension, PrefixIndex, chain_hashes
from kvtool.cache.index.queue import PageQueue


@dataclass(eq=False, slots=True)
class Chain:
    """Where a sequence stands: its cached pages, and the hash of the last one."""

    last_hash: int
    pages: list[int]


class HashedIndex(PrefixIndex[Chain]):
    """A dict from hash to page. A hash is Python's own, of 61 bits and keyed anew in every process: among a million
    pages two share one by accident with odds of 2 in 10 million."""

    def __init__(self, block_size: int, num_pages: int) -> None:
        super().__init__(block_size)
        self._pages: dict[int, int] = {}  # the first page of each hash
        self._twins: dict[int, list[int]] = {}  # the others
        self._hashes: list[int | None] = [None] * num_pages
        self._users = array("i", bytes(4 * num_pages))
        self._queue = PageQueue(num_pages)

    def match(self, tokens: Sequence[int]) -> list[int]:
        return [page for _, page in self._found(tokens)]

    def lock_prefix(self, tokens: Sequence[int]) -> tuple[Chain, list[int]]:
        last_hash, pages, users = NO_PARENT, list[int](), self._users
        for own, page in self._found(tokens):
            if users[page] == 0:
                self._queue.remove(page)
                self.num_evictable_pages -= 1
            users[page] += 1
            last_hash = own
            pages.append(page)
        return Chain(last_hash, pages), list(pages)

    def extend(self, place: Chain, tokens: Sequence[int], pages: Sequence[int]) -> Extension[Chain]:
        for own, page in zip(chain_hashes(place.last_hash, tokens, self.block_size), pages, strict=True):
            if self._pages.setdefault(own, page) != page:
                self._twins.setdefault(own, []).append(page)
            self._hashes[page] = own
            self._users[page] = 1
            place.last_hash = own
        place.pages += pages
        self.num_pages += len(pages)
        return Extension(place, num_duplicates=0)

    def count_hit(self, place: Chain) -> None:
        """The queue goes by the time of return, not by hits."""

    def unlock(self, place: Chain) -> None:
        left = []
        for page in reversed(place.pages):
            if self._users[page] == 0:
                raise ValueError(f"page {page} is not locked")
            self._users[page] -= 1
            if self._users[page] == 0:
                left.append(page)
        self._queue.extend(left)
        self.num_evictable_pages += len(left)

    def retire(self, page: int) -> bool:
        self._queue.extend([page])
        self.num_evictable_pages += 1
        self.num_blank_pages += 1
        return True

    def evict(self, count: int) -> list[int]:
        evicted = self._queue.pop(count)
        for page in evicted:
            self._forget(page)
        self.num_evictable_pages -= len(evicted)
        return evicted

    def _forget(self, page: int) -> None:
        """Nobody finds the page any more; one of the same content takes its place."""
        own = self._hashes[page]
        if own is None:
            self.num_blank_pages -= 1
            return
        self._hashes[page] = None
        self.num_pages -= 1
        others = self._twins.get(own)
        if others is None:
            del self._pages[own]
            return
        if self._pages[own] == page:
            self._pages[own] = others.pop(0)
        else:
            others.remove(page)
        if not others:
            del self._twins[own]

    def _found(self, tokens: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Hash and page of the longest cached prefix, page after page."""
        for own in chain_hashes(NO_PARENT, tokens, self.block_size):
            page = self._pages.get(own)
            if page is None:
                return
            yield own, page

    def depth_pages(self, place: Chain) -> int:
        return len(place.pages)

    def pages(self) -> Iterator[int]:
        yield from (page for page, own in enumerate(self._hashes) if own is not None)
        yield from (page for page in self._queue if self._hashes[page] is None)

    def check(self, places: Iterable[Chain] | None = None) -> None:
        cached = {page for page, own in enumerate(self._hashes) if own is not None}
        queued = list(self._queue)
        assert len(queued) == len(set(queued)) == self.num_evictable_pages, "a page waits twice, or is miscounted"
        assert len(cached) == self.num_pages, "cached pages miscounted"
        assert len(set(queued) - cached) == self.num_blank_pages, "blank pages miscounted"
        assert {page for page in cached if self._users[page] == 0} == cached & set(queued), "who is unlocked waits"
        found = [*self._pages.values(), *(page for others in self._twins.values() for page in others)]
        assert sorted(found) == sorted(cached), "a cached page is not found, or found twice"
        for own, page in self._pages.items():
            assert {self._hashes[each] for each in (page, *self._twins.get(own, []))} == {own}, "a page of another hash"
        if places is not None:
            users = Counter(page for place in places for page in place.pages)
            for page in cached:
                assert self._users[page] == users[page], f"{self._users[page]} locks for {users[page]} sequences"

    def __str__(self) -> str:
        head = f"{self.num_pages} cached pages, {self.num_evictable_pages} in the queue"
        return f"{head}: {', '.join(map(str, self._queue))}" if self.num_evictable_pages else head
