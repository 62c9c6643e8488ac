"""What a scheduler asks: pages for a sequence, the prefix it shares with earlier ones, and their return.

seq = cache.open(prompt)             the longest cached prefix is shared, seq.cached_tokens need no prefill
cache.reserve(seq, num_tokens)       pages for the next tokens; False: none left, preempt somebody
cache.fork(seq, tokens)              a second sequence on the same pages; cache.take_copies() tells what to copy
cache.commit(seq, tokens)            their K/V is written: whole pages can be hit by others from now on
cache.close(seq)                     finished or preempted; cached pages stay until they are evicted
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kvtool.cache.admission import Admission, Always, Offer
from kvtool.cache.block_pool import BlockPool
from kvtool.cache.block_table import GONE, BlockTable
from kvtool.cache.eviction.base import EvictionPolicy
from kvtool.cache.index.base import PartialHit, PrefixIndex
from kvtool.cache.index.radix import RadixTree
from kvtool.cache.retention import Retention


class PageCopy(NamedTuple):
    """The K/V of page `source` must be copied to page `target` before the next token is written."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class CacheCounters:
    """A snapshot. Tokens and evicted or copied pages are counted since the start or `reset_counters`.

    `allocated_pages` are those that open sequences hold or lock, `peak_pages` their maximum; cached pages that could
    be evicted are not in them. A sequence that is closed before its first tokens are committed counts nowhere.
    """

    queried_tokens: int
    hit_tokens: int
    allocated_pages: int
    peak_pages: int
    cached_pages: int
    free_pages: int
    evicted_pages: int
    copied_pages: int


@dataclass(eq=False, slots=True)
class SequenceCache:
    """What one open sequence holds. Its table only grows.

    `place` is where it stands in the index, behind its first `num_cached_pages` pages. `partial` is a cached page
    whose first tokens it shares, until there is a page to copy it to; `cached_tokens` counts them from then on.
    """

    table: BlockTable
    place: Any
    num_cached_pages: int
    cached_tokens: int
    queried_tokens: int  # 0 once they have been counted
    offer: Offer
    retention: Retention | None = None
    partial: PartialHit[Any] | None = None
    is_open: bool = True


class CacheManager:
    """The block pool and the index of cached prefixes: a radix tree with LRU unless another one is handed in.

    Every entry of an open block table holds one reference to its page, and so does the index for each page in it. A
    sequence locks its pages in the index, so only pages that no open sequence holds are evicted. `handing_out` is told
    of pages that get a new owner, while what they held is still there.
    """

    def __init__(
        self,
        num_pages: int,
        block_size: int,
        prefix_caching: bool = True,
        eviction: EvictionPolicy | None = None,
        *,
        index: PrefixIndex[Any] | None = None,
        admission: Admission | None = None,
        partial_hits: bool = False,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`eviction` is of the tree that is made where no `index` is handed in. With `partial_hits` a prompt that
        shares a part of a cached page gets a copy of it. `clock` gives the seconds that retention is counted in."""
        if block_size < 1:
            raise ValueError(f"a page holds at least one token, not {block_size}")
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.pool = BlockPool(num_pages)
        self.index = RadixTree(block_size, eviction) if index is None else index
        self.admission = Always(block_size) if admission is None else admission
        self.partial_hits = partial_hits and prefix_caching
        self.handing_out: Callable[[list[int]], None] = _forget
        self._clock = clock
        self._open: set[SequenceCache] = set()
        self._copies: list[PageCopy] = []
        self.reset_counters()

    @property
    def num_available_pages(self) -> int:
        """Pages that can be had now: free ones, and cached ones that may be evicted."""
        return self.pool.num_free + self.index.num_evictable_pages

    def match(self, tokens: Sequence[int]) -> int:
        """How many tokens `open` would find cached. Changes nothing."""
        return len(self.index.match(self._shareable(tokens[:-1]))) * self.block_size

    def open(self, tokens: Sequence[int], retention: Retention | None = None) -> SequenceCache:
        """A sequence that shares the longest cached prefix of whole pages; its last token is always left to compute."""
        sequence = self._opened(self._shareable(tokens[:-1]), [], queried_tokens=len(tokens))
        sequence.retention = retention
        if self.partial_hits:
            sequence.partial = self.index.lock_partial(sequence.place, tokens[sequence.cached_tokens : -1])
        return sequence

    def _opened(self, shareable: Sequence[int], more: Sequence[int], queried_tokens: int) -> SequenceCache:
        """A sequence on what is cached of `shareable`, and on the pages of `more` that lie behind it."""
        place, pages = self.index.lock_prefix(shareable)
        num_cached_pages = len(pages)
        pages += more[num_cached_pages:]
        self.pool.share_all(pages)
        sequence = SequenceCache(
            table=BlockTable(self.block_size, pages, num_tokens=len(pages) * self.block_size),
            place=place,
            num_cached_pages=num_cached_pages,
            cached_tokens=len(pages) * self.block_size,
            queried_tokens=queried_tokens,
            # Shared pages that the index does not hold must never get there: another sequence writes behind them.
            offer=Offer(num_cached_pages, ends=num_cached_pages < len(pages)),
        )
        self._open.add(sequence)
        return sequence

    def fork(self, sequence: SequenceCache, tokens: Sequence[int]) -> SequenceCache | None:
        """A second sequence with `tokens`, the first ones of `sequence`. It shares the pages that they fill, and gets a
        copy of the one where the two may part: see `take_copies`. None, and nothing changed, when no page is left."""
        self._require_open(sequence)
        if len(tokens) > sequence.table.num_tokens:
            raise ValueError(f"{len(tokens)} tokens cannot be forked off {sequence.table.num_tokens}")
        num_whole, num_rest = divmod(len(tokens), self.block_size)
        child = self._opened(self._shareable(tokens), sequence.table.pages[:num_whole], queried_tokens=0)
        child.retention = sequence.retention
        if num_rest and not self.reserve(child, len(tokens)):
            self.close(child)
            return None
        if num_rest:
            self._copy(sequence.table.pages[num_whole], child.table.pages[num_whole])
        child.table.num_tokens = child.cached_tokens = len(tokens)
        self._note_peak()  # what it shares through the index may have been evictable
        return child

    def reserve(self, sequence: SequenceCache, num_tokens: int) -> bool:
        """Make room for `num_tokens` in total, evicting if need be. False, and nothing changed, when it cannot."""
        self._require_open(sequence)
        missing = sequence.table.pages_missing(num_tokens)
        if missing == 0:
            return True
        pages = self._take(missing)
        if pages is None and sequence.partial is not None:
            self._drop_partial(sequence)  # what it locks may be what is missing
            pages = self._take(missing)
        if pages is None:
            return False
        sequence.table.pages += pages
        self._note_peak()
        self._copy_partial(sequence, num_tokens)
        return True

    def let_go(self, sequence: SequenceCache, logical: range) -> None:
        """Give back the sequence's pages at these places of its table, which nothing reads any more. A later range
        begins where the first did."""
        self._require_open(sequence)
        pages = sequence.table.pages
        for index in reversed(logical):
            if index < sequence.num_cached_pages:
                raise ValueError(f"page {index} of the sequence is cached for others: it cannot be let go of")
            if pages[index] == GONE:
                return  # and so are those before it
            self.pool.release(pages[index])
            pages[index] = GONE

    def _copy_partial(self, sequence: SequenceCache, num_tokens: int) -> None:
        """Begin the first page of its own with what it shares of a cached one, if it goes on behind that."""
        partial, table = sequence.partial, sequence.table
        if partial is None:
            return
        if table.num_tokens + partial.num_tokens < num_tokens:
            self._copy(partial.page, table.pages[sequence.num_cached_pages])
            table.num_tokens += partial.num_tokens
            sequence.cached_tokens = table.num_tokens
        self._drop_partial(sequence)

    def _drop_partial(self, sequence: SequenceCache) -> None:
        if sequence.partial is not None:
            self.index.unlock(sequence.partial.place)
            sequence.partial = None

    def _copy(self, source: int, target: int) -> None:
        self._copies.append(PageCopy(source, target))
        self._copied_pages += 1

    def take_copies(self) -> list[PageCopy]:
        """The copies that the caller must make, in this order, before anything else is computed. Each is told once."""
        copies, self._copies = self._copies, []
        return copies

    def commit(self, sequence: SequenceCache, tokens: Sequence[int]) -> None:
        """The K/V of `tokens`, the whole sequence so far, is written. O(pages that became whole).

        A page whose content the index holds already stays the sequence's own, uncached, until it closes.
        """
        self._require_open(sequence)
        table = sequence.table
        if not table.num_tokens <= len(tokens) <= table.capacity_tokens:
            raise ValueError(
                f"{len(tokens)} tokens committed, {table.num_tokens} before, room for {table.capacity_tokens}"
            )
        table.num_tokens = len(tokens)
        self._count_query(sequence)
        start, stop = sequence.num_cached_pages, len(tokens) // self.block_size
        if not self.prefix_caching or start == stop:
            return
        stop = self.admission.admitted(sequence.offer, tokens)
        if start == stop:
            return
        pages = table.pages[start:stop]
        content = tokens[start * self.block_size : stop * self.block_size]
        sequence.place, duplicates = self.index.extend(sequence.place, content, pages)
        sequence.num_cached_pages = stop
        self.pool.share_all(pages[duplicates:])
        self._note_peak()  # the path locked for a duplicate may have been evictable

    def close(self, sequence: SequenceCache) -> None:
        """Give everything back. Cached pages stay, evictable once no open sequence holds them."""
        self._require_open(sequence)
        sequence.is_open = False
        self._open.remove(sequence)
        pages = sequence.table.pages
        self._drop_partial(sequence)
        if sequence.retention is not None:
            until_s = self._clock() + sequence.retention.duration_s
            self.index.retain(sequence.place, sequence.retention.priority, until_s)
        for page in reversed(pages[sequence.num_cached_pages :]):
            if page == GONE:
                continue
            if self.pool.references(page) > 1 or not self.index.retire(page):
                self.pool.release(page)
        self.index.unlock(sequence.place)
        self.pool.release_all(reversed(pages[: sequence.num_cached_pages]))
        pages.clear()
        sequence.table.num_tokens = 0

    def reset(self) -> None:
        """Forget every cached prefix. Raises ValueError while sequences are open."""
        if self._open:
            raise ValueError(f"{len(self._open)} sequences are open: close them before the cache is reset")
        self.pool.release_all(self.index.evict(self.index.num_evictable_pages))

    def reset_counters(self) -> None:
        """Start counting anew; the peak starts from what is held now."""
        self._queried_tokens = self._hit_tokens = self._evicted_pages = self._copied_pages = 0
        self._peak_pages = self._allocated_pages

    def counters(self) -> CacheCounters:
        return CacheCounters(
            queried_tokens=self._queried_tokens,
            hit_tokens=self._hit_tokens,
            allocated_pages=self._allocated_pages,
            peak_pages=self._peak_pages,
            cached_pages=self.index.num_pages,
            free_pages=self.pool.num_free + self.index.num_blank_pages,
            evicted_pages=self._evicted_pages,
            copied_pages=self._copied_pages,
        )

    @property
    def _allocated_pages(self) -> int:
        return self.pool.num_pages - self.num_available_pages

    def _shareable(self, tokens: Sequence[int]) -> Sequence[int]:
        """What of the tokens may be looked up: nothing without prefix caching."""
        return tokens if self.prefix_caching else []

    def _take(self, count: int) -> list[int] | None:
        """`count` pages, the free ones first, then evicted ones; None, and nothing evicted, when too few exist."""
        if count > self.num_available_pages:
            return None
        pages = self.pool.allocate(min(count, self.pool.num_free)) or []
        num_cached = self.index.num_pages
        pages += self.index.take(count - len(pages))  # with the reference that the index held
        self._evicted_pages += num_cached - self.index.num_pages
        self.handing_out(pages)
        return pages

    def _require_open(self, sequence: SequenceCache) -> None:
        if not sequence.is_open:
            raise ValueError("the sequence is closed")

    def _count_query(self, sequence: SequenceCache) -> None:
        if sequence.queried_tokens:
            self.index.count_hit(sequence.place)
            self._queried_tokens += sequence.queried_tokens
            self._hit_tokens += sequence.cached_tokens
            sequence.queried_tokens = 0
            self._note_peak()  # shared pages are held without a reservation

    def _note_peak(self) -> None:
        self._peak_pages = max(self._peak_pages, self._allocated_pages)

    def check(self) -> None:
        """All invariants over pool, index and open sequences."""
        self.pool.check()
        partial = [sequence.partial.place for sequence in self._open if sequence.partial is not None]
        self.index.check([*(sequence.place for sequence in self._open), *partial])
        references = Counter(page for sequence in self._open for page in sequence.table.held)
        references.update(self.index.pages())
        for page in range(self.pool.num_pages):
            found = self.pool.references(page)
            assert found == references[page], f"page {page} has {found} references but {references[page]} holders"
        for sequence in self._open:
            table, depth = sequence.table, self.index.depth_pages(sequence.place)
            assert depth == sequence.num_cached_pages, "a sequence does not stand where its cached pages end"
            assert depth * self.block_size <= table.num_tokens <= table.capacity_tokens, "more tokens than room"

    def __str__(self) -> str:
        return f"{self.pool}, {len(self._open)} sequences open\n{self.index}"


def _forget(pages: list[int]) -> None:
    """Nobody keeps the K/V of pages that get a new owner."""
