"""What a scheduler asks: pages for a sequence, the prefix it shares with earlier ones, and their return.

seq = cache.open(prompt)             the longest cached prefix is shared, seq.cached_tokens need no prefill
cache.reserve(seq, num_tokens)       pages for the next tokens; False: none left, preempt somebody
cache.commit(seq, tokens)            their K/V is written: whole pages can be hit by others from now on
cache.close(seq)                     finished or preempted; cached pages stay until they are evicted
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kvtool.cache.block_pool import BlockPool
from kvtool.cache.block_table import BlockTable
from kvtool.cache.eviction import EvictionPolicy
from kvtool.cache.node import Node, PageKey
from kvtool.cache.radix_tree import RadixTree, page_keys
from kvtool.units import ceil_div


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
    """What one open sequence holds. Its table only grows, except where `make_writable` says that a page was copied.

    `node` is where it stands in the tree of cached prefixes, which ends after its first `num_cached_pages` pages.
    """

    table: BlockTable
    node: Node
    num_cached_pages: int
    cached_tokens: int
    queried_tokens: int  # 0 once they have been counted
    is_open: bool = True


class CacheManager:
    """The block pool and the cached prefixes. Every entry of an open block table holds one reference to its page,
    and so does the tree for each page in it. A sequence locks its path in the tree, so only pages that no open
    sequence holds are evicted. `evicting` is told which, the last of each prefix first, while their K/V is still there.
    """

    def __init__(
        self,
        num_pages: int,
        block_size: int,
        prefix_caching: bool = True,
        eviction: EvictionPolicy | None = None,
    ) -> None:
        if block_size < 1:
            raise ValueError(f"a page holds at least one token, not {block_size}")
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.pool = BlockPool(num_pages)
        self.tree = RadixTree(eviction)
        self.evicting: Callable[[list[int]], None] = _let_go
        self._open: set[SequenceCache] = set()
        self.reset_counters()

    @property
    def num_available_pages(self) -> int:
        """Pages that can be had now: free ones, and cached ones that may be evicted."""
        return self.pool.num_free + self.tree.num_evictable_pages

    def match(self, tokens: Sequence[int]) -> int:
        """How many tokens `open` would find cached. Changes nothing."""
        return len(self.tree.match(self._shareable_keys(tokens))) * self.block_size

    def open(self, tokens: Sequence[int]) -> SequenceCache:
        """A sequence that shares the longest cached prefix of whole pages; its last token is always left to compute."""
        node, pages = self.tree.lock_prefix(self._shareable_keys(tokens))
        for page in pages:
            self.pool.share(page)
        cached_tokens = len(pages) * self.block_size
        sequence = SequenceCache(
            table=BlockTable(self.block_size, pages, num_tokens=cached_tokens),
            node=node,
            num_cached_pages=len(pages),
            cached_tokens=cached_tokens,
            queried_tokens=len(tokens),
        )
        self._open.add(sequence)
        return sequence

    def reserve(self, sequence: SequenceCache, num_tokens: int) -> bool:
        """Make room for `num_tokens` in total, evicting if need be. False, and nothing changed, when it cannot."""
        self._require_open(sequence)
        missing = sequence.table.pages_missing(num_tokens)
        if missing == 0:
            return True
        pages = self._take(missing)
        if pages is None:
            return False
        sequence.table.pages += pages
        self._note_peak()
        return True

    def commit(self, sequence: SequenceCache, tokens: Sequence[int]) -> None:
        """The K/V of `tokens`, the whole sequence so far, is written. O(pages that became whole).

        A page whose content someone else cached first stays the sequence's own, uncached, until it closes.
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
        pages = table.pages[start:stop]
        sequence.node, duplicates = self.tree.extend(
            sequence.node, page_keys(tokens, self.block_size, start, stop), pages
        )
        sequence.num_cached_pages = stop
        for page in pages[duplicates:]:
            self.pool.share(page)
        self._note_peak()  # the path locked for a duplicate may have been evictable

    def fork(self, sequence: SequenceCache) -> SequenceCache:
        """A second sequence with the same tokens on the same pages; `make_writable` parts them on the last one."""
        self._require_open(sequence)
        table = sequence.table
        pages = table.pages[: ceil_div(table.num_tokens, self.block_size)]
        for page in pages:
            self.pool.share(page)
        self.tree.lock(sequence.node)
        child = SequenceCache(
            table=BlockTable(self.block_size, pages, table.num_tokens),
            node=sequence.node,
            num_cached_pages=sequence.num_cached_pages,
            cached_tokens=table.num_tokens,
            queried_tokens=0,
        )
        self._open.add(child)
        return child

    def make_writable(self, sequence: SequenceCache) -> list[PageCopy] | None:
        """Give the sequence a last page of its own, if it is partly filled and shared: the copies that the caller must
        make before the next token is written. None, and nothing changed, when no page is left."""
        table = sequence.table
        index, filled = divmod(table.num_tokens, self.block_size)
        if filled == 0 or self.pool.references(table.pages[index]) == 1:
            return []
        pages = self._take(1)
        if pages is None:
            return None
        copy = PageCopy(source=table.pages[index], target=pages[0])
        table.pages[index] = copy.target
        self.pool.release(copy.source)
        self._copied_pages += 1
        self._note_peak()
        return [copy]

    def close(self, sequence: SequenceCache) -> None:
        """Give everything back. Cached pages stay, evictable once no open sequence holds them."""
        self._require_open(sequence)
        sequence.is_open = False
        self._open.remove(sequence)
        self.tree.unlock(sequence.node)
        for page in reversed(sequence.table.pages):
            self.pool.release(page)
        sequence.table.pages.clear()
        sequence.table.num_tokens = 0

    def cached_pages(self) -> list[int]:
        """Every page that holds a cached prefix, or a part of one."""
        return [page for node in self.tree for page in node.pages]

    def reset(self) -> None:
        """Forget every cached prefix. Raises ValueError while sequences are open."""
        if self._open:
            raise ValueError(f"{len(self._open)} sequences are open: close them before the cache is reset")
        self._release_all(self.tree.evict(self.tree.num_pages))

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
            cached_pages=self.tree.num_pages,
            free_pages=self.pool.num_free,
            evicted_pages=self._evicted_pages,
            copied_pages=self._copied_pages,
        )

    @property
    def _allocated_pages(self) -> int:
        return self.pool.num_pages - self.num_available_pages

    def _shareable_keys(self, tokens: Sequence[int]) -> list[PageKey]:
        """The whole pages before the last token, or none without prefix caching."""
        num_pages = max(0, len(tokens) - 1) // self.block_size if self.prefix_caching else 0
        return page_keys(tokens, self.block_size, 0, num_pages)

    def _take(self, count: int) -> list[int] | None:
        """`count` pages, the free ones first, then evicted ones; None, and nothing evicted, when too few exist."""
        if count > self.num_available_pages:
            return None
        evicted = self.tree.evict(count - self.pool.num_free)
        self._evicted_pages += len(evicted)
        self.evicting(evicted)
        self._release_all(evicted)
        return self.pool.allocate(count)

    def _require_open(self, sequence: SequenceCache) -> None:
        if not sequence.is_open:
            raise ValueError("the sequence is closed")

    def _release_all(self, pages: list[int]) -> None:
        for page in pages:
            self.pool.release(page)

    def _count_query(self, sequence: SequenceCache) -> None:
        if sequence.queried_tokens:
            self.tree.count_hit(sequence.node)
            self._queried_tokens += sequence.queried_tokens
            self._hit_tokens += sequence.cached_tokens
            sequence.queried_tokens = 0
            self._note_peak()  # shared pages are held without a reservation

    def _note_peak(self) -> None:
        self._peak_pages = max(self._peak_pages, self._allocated_pages)

    def check(self) -> None:
        """All invariants over pool, tree and open sequences."""
        self.pool.check()
        self.tree.check()
        references = Counter(page for sequence in self._open for page in sequence.table.pages)
        references.update(page for node in self.tree for page in node.pages)
        for page in range(self.pool.num_pages):
            found = self.pool.references(page)
            assert found == references[page], f"page {page} has {found} references but {references[page]} holders"
        locks: Counter[Node] = Counter()
        for sequence in self._open:
            table, node, depth = sequence.table, sequence.node, 0
            while node.parent is not None:
                locks[node] += 1
                depth += len(node.pages)
                node = node.parent
            assert depth == sequence.num_cached_pages, "a sequence does not stand where its cached pages end"
            assert depth * self.block_size <= table.num_tokens <= table.capacity_tokens, "more tokens than room"
        for node in self.tree:
            assert node.locks == locks[node], f"{node.locks} locks for {locks[node]} sequences"

    def __str__(self) -> str:
        return f"{self.pool}, {len(self._open)} sequences open\n{self.tree}"


def _let_go(pages: list[int]) -> None:
    """Nobody keeps the K/V of evicted pages."""
