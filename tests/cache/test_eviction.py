from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtool.cache import EVICTION, BlockPool, EvictionPolicy, RadixTree, eviction_policy
from kvtool.cache.eviction.base import Ranked
from kvtool.cache.eviction.eviction import Fifo, Lfu
from kvtool.cache.eviction.lru import Lru
from kvtool.errors import KvtoolError
from tests.cache.policies import DeepestPage, LargestRun

A, B, C, D, E, F, G, END = range(8)  # pages of one token


def serve(tree: RadixTree, pool: BlockPool, keys: list[int]) -> int:
    """A request that shares, evicts, and keeps what has room. Returns the pages that it found."""
    node, cached = tree.lock_prefix(keys)
    tree.count_hit(node)
    missing = len(keys) - len(cached)
    for page in tree.evict(missing - pool.num_free):
        pool.release(page)
    pages = pool.allocate(min(missing, pool.num_free)) or []
    node, _ = tree.extend(node, keys[len(cached) :][: len(pages)], pages)
    tree.unlock(node)
    return len(cached)


def prefixes(tree: RadixTree) -> set[tuple[int, ...]]:
    """Every cached page, named by its whole prefix."""
    found: set[tuple[int, ...]] = set()
    waiting = [(child, ()) for child in tree.root.children.values()]
    while waiting:
        node, before = waiting.pop()
        found.update((*before, *node.tokens[: end + 1]) for end in range(len(node.tokens)))
        waiting.extend((child, (*before, *node.tokens)) for child in node.children.values())
    return found


def lone_prefixes(eviction: EvictionPolicy, *names: int) -> tuple[RadixTree, BlockPool]:
    """A pool that is full of prefixes of two pages each."""
    tree, pool = RadixTree(1, eviction), BlockPool(2 * len(names))
    for name in names:
        serve(tree, pool, [name, END])
    return tree, pool


def survivors(tree: RadixTree) -> list[int]:
    return sorted({prefix[0] for prefix in prefixes(tree)})


def test_the_least_often_hit_goes_first_and_the_oldest_use_among_equals() -> None:
    tree, pool = lone_prefixes(Lfu(), A, B, C)
    for name in (A, A, C, B):
        serve(tree, pool, [name, END])
    serve(tree, pool, [D, END])
    assert survivors(tree) == [A, B, D], "b and c were hit once, c longer ago"


def test_first_in_first_out_whatever_was_hit() -> None:
    tree, pool = lone_prefixes(Fifo(), A, B, C)
    serve(tree, pool, [A, END])
    serve(tree, pool, [D, END])
    assert survivors(tree) == [B, C, D]


def test_a_parent_is_ranked_once_its_last_child_is_gone() -> None:
    tree, pool = RadixTree(1, Fifo()), BlockPool(4)
    for keys in ([A, B], [A, C], [D]):
        serve(tree, pool, keys)
    serve(tree, pool, [E])
    assert survivors(tree) == [A, D, E]
    serve(tree, pool, [F, G])
    assert survivors(tree) == [D, E, F], "both children of a went, then a itself, which is older than d"


def test_a_policy_that_ranks_pages_takes_them_one_at_a_time() -> None:
    tree, pool = RadixTree(1, DeepestPage()), BlockPool(6)
    serve(tree, pool, [A, B, C, D])
    serve(tree, pool, [E, F])
    tree.evict(3)
    assert prefixes(tree) == {(A,), (A, B), (E,)}, "d, c, then f, which was ranked before b was"


def test_the_names_make_policies_of_their_own() -> None:
    assert {name: type(eviction_policy(name)) for name in EVICTION} == {"lru": Lru, "lfu": Lfu, "fifo": Fifo}
    assert eviction_policy("lru") is not eviction_policy("lru")
    with pytest.raises(KvtoolError, match="eviction policy 'lfru' is not one of lru, lfu, fifo: did you mean"):
        eviction_policy("lfru")


def test_hits_without_evictions_do_not_let_the_heap_grow() -> None:
    policy = Lfu()
    tree, pool = lone_prefixes(policy, A, B)
    for _ in range(1000):
        serve(tree, pool, [A, END])
    assert len(policy._heap) < 100
    assert str(policy) == "lfu, 2 nodes unlocked"
    tree.check()


@dataclass
class Page:
    """What the naive model knows of a cached page."""

    created: int
    last_used: int
    hits: int = 0


NAIVE_RANK: dict[str, Callable[[Page], object]] = {
    "lru": lambda page: page.last_used,
    "lfu": lambda page: (page.hits, page.last_used),
    "fifo": lambda page: page.created,
}


class NaiveCache:
    """The same policies page by page: of all pages that end a prefix, the lowest rank goes, found by looking at all."""

    def __init__(self, name: str, num_pages: int) -> None:
        self.rank, self.num_pages = NAIVE_RANK[name], num_pages
        self.pages: dict[tuple[int, ...], Page] = {}

    def serve(self, keys: list[int], now: int) -> int:
        wanted = [tuple(keys[: end + 1]) for end in range(len(keys))]
        hit = [prefix for prefix in wanted if prefix in self.pages]
        for prefix in hit:
            self.pages[prefix].hits += 1
            self.pages[prefix].last_used = now
        missing = wanted[len(hit) :]
        while len(self.pages) + len(missing) > self.num_pages and (leaves := self.leaves(spared=hit)):
            del self.pages[min(leaves, key=lambda prefix: self.rank(self.pages[prefix]))]
        for prefix in missing[: self.num_pages - len(self.pages)]:
            self.pages[prefix] = Page(created=now, last_used=now)
        return len(hit)

    def leaves(self, spared: Iterable[tuple[int, ...]]) -> set[tuple[int, ...]]:
        return self.pages.keys() - {prefix[:-1] for prefix in self.pages} - set(spared)


requests = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=30)


@pytest.mark.parametrize("name", NAIVE_RANK)
@settings(max_examples=150, deadline=None)
@given(requests=requests, num_pages=st.integers(1, 14))
def test_each_policy_keeps_what_a_page_by_page_search_keeps(
    name: str, requests: list[list[int]], num_pages: int
) -> None:
    tree, pool, naive = RadixTree(1, eviction_policy(name)), BlockPool(num_pages), NaiveCache(name, num_pages)
    for now, keys in enumerate(requests):
        assert serve(tree, pool, keys) == naive.serve(keys, now)
        assert prefixes(tree) == naive.pages.keys()
        tree.check()
        pool.check()


@pytest.mark.parametrize("policy", [DeepestPage, LargestRun])
@settings(max_examples=60, deadline=None)
@given(requests=requests, num_pages=st.integers(1, 14))
def test_the_victim_has_the_lowest_rank_of_all_leaves(
    policy: type[Ranked], requests: list[list[int]], num_pages: int
) -> None:
    ranked = policy()
    tree, pool = RadixTree(1, ranked), BlockPool(num_pages)
    for keys in requests:
        serve(tree, pool, keys)
        tree.check()
        assert ranked.rank(ranked.victim()) == min(ranked.rank(node) for node in tree if not node.children)
