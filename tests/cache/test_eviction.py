from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtool.cache import EVICTION, BlockPool, EvictionPolicy, RadixTree, eviction_policy
from kvtool.cache.eviction.base import Known, Ranked
from kvtool.cache.eviction.by_length import CostAware, RemainingLength
from kvtool.cache.eviction.by_use import Fifo, Lfu, NeverHitFirst, SharedPrefixFirst
from kvtool.cache.eviction.priority import Priority
from kvtool.cache.index.node import DEFAULT_PRIORITY
from kvtool.system.errors import KvtoolError
from tests.cache.policies import DeepestPage, LargestRun

A, B, C, D, E, F, G, END = range(8)  # pages of one token


def serve(tree: RadixTree, pool: BlockPool, keys: list[int], wish: tuple[int, float] | None = None) -> int:
    """A request that shares, evicts, and keeps what has room. Returns the pages that it found."""
    node, cached = tree.lock_prefix(keys)
    tree.count_hit(node)
    missing = len(keys) - len(cached)
    for page in tree.evict(max(0, missing - pool.num_free)):
        pool.release(page)
    pages = pool.allocate(min(missing, pool.num_free)) or []
    node, _ = tree.extend(node, keys[len(cached) :][: len(pages)], pages)
    if wish is not None:
        tree.retain(node, *wish)
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
    for name, kind in EVICTION.items():
        assert type(eviction_policy(name)) is kind
        assert eviction_policy(name) is not eviction_policy(name)
    with pytest.raises(KvtoolError, match=r"eviction policy 'lfru' is not one of lru, lfu, fifo, .*: did you mean"):
        eviction_policy("lfru")


def test_a_priority_falls_back_to_the_default_after_its_time() -> None:
    """TensorRT-LLM: lower priorities go first, 35 is the default, and the one to come back to."""
    now = 0.0
    tree, pool = RadixTree(1, Priority(Known(clock=lambda: now))), BlockPool(3)
    for name, wish in ((A, (90, 10.0)), (B, None), (C, (34, inf))):
        serve(tree, pool, [name], wish)
    serve(tree, pool, [D])
    assert survivors(tree) == [A, B, D], "34 is under the default"
    serve(tree, pool, [E])
    assert survivors(tree) == [A, D, E], "a is wanted"
    now = 10.0
    serve(tree, pool, [F])
    assert survivors(tree) == [D, E, F], "a is as any other by now, and the oldest"
    tree.check()


def test_what_was_never_hit_goes_before_what_was() -> None:
    tree, pool = lone_prefixes(NeverHitFirst(), A, B, C)
    serve(tree, pool, [A, END])
    serve(tree, pool, [D, END])
    serve(tree, pool, [E, END])
    assert survivors(tree) == [A, D, E], "b and c went; a is older than d, but was found"


def test_what_many_prefixes_share_stays_longest() -> None:
    tree, pool = RadixTree(1, SharedPrefixFirst()), BlockPool(4)
    for keys in ([A, B], [A, C], [A, D], [E, F]):
        serve(tree, pool, keys)
    for _ in range(9):
        serve(tree, pool, [E, F])
    serve(tree, pool, [G, B, C])
    assert survivors(tree) == [A, G], "hits count for nothing: e had nine, but a led to three ends"


def test_the_end_of_a_long_conversation_goes_before_all_that_is_needed_to_be_on_time() -> None:
    """Of 6 pages a turn that may compute 3 again needs the first 4: one page is always computed."""
    tree, pool = RadixTree(1, RemainingLength(Known(spare_tokens=3))), BlockPool(8)
    serve(tree, pool, [A, B])
    serve(tree, pool, [C, B, C, D, E, F])
    tree.evict(4)
    assert prefixes(tree) == {(C,), (C, B), (C, B, C), (C, B, C, D)}, (
        "f and e, then the short one, all of which is spare"
    )


def test_deep_pages_are_worth_more_where_attention_is_dear() -> None:
    for even_tokens, survivor in ((1.0, B), (1e9, C)):
        tree, pool = RadixTree(1, CostAware(Known(even_tokens=even_tokens))), BlockPool(5)
        serve(tree, pool, [B, B, B, B])
        serve(tree, pool, [C])
        tree.evict(1)
        assert (survivor,) in prefixes(tree)
        assert ((C,) in prefixes(tree)) == (survivor == C)


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

    depth: int
    created: int
    last_used: int = 0
    hits: int = 0
    sharers: int = 1
    reach: int = 0
    floor: float = 0.0
    priority: int = DEFAULT_PRIORITY
    expires_s: float = inf


SPARE, EVEN = 2, 3.0
NAIVE_RANK: dict[str, Callable[[Page], tuple[float, ...]]] = {
    "lru": lambda page: (page.last_used,),
    "lfu": lambda page: (page.hits, page.last_used),
    "fifo": lambda page: (page.created,),
    "priority": lambda page: (page.priority, page.last_used),
    "never-hit-first": lambda page: (min(page.hits, 1), page.last_used),
    "shared-prefix-first": lambda page: (page.sharers, page.last_used),
    "size-aware": lambda page: (page.floor + (page.hits + 1) / page.depth, page.last_used),
    "remaining-length": lambda page: (page.reach - page.depth + 1 > SPARE, page.last_used),
    "cost-aware": lambda page: (page.last_used + CostAware.WORTH * page.depth / EVEN, page.last_used),
}
Prefix = tuple[int, ...]


class NaiveCache:
    """The same policies page by page: of all pages that end a prefix, the lowest rank goes, found by looking at all."""

    def __init__(self, name: str, num_pages: int) -> None:
        self.rank, self.num_pages = NAIVE_RANK[name], num_pages
        self.pages: dict[Prefix, Page] = {}
        self.floor = 0.0

    def serve(self, keys: list[int], now: int, wish: tuple[int, float] | None) -> int:
        wanted = [tuple(keys[: end + 1]) for end in range(len(keys))]
        hit = [prefix for prefix in wanted if prefix in self.pages]
        for prefix in hit:
            self.pages[prefix].hits += 1
        self.make_room(len(wanted) - len(hit), now, spared=hit)
        stored = wanted[len(hit) :][: self.num_pages - len(self.pages)]
        if stored and hit and any(prefix[:-1] == hit[-1] for prefix in self.pages):
            for prefix in hit:
                self.pages[prefix].sharers += 1
        for prefix in stored:
            self.pages[prefix] = Page(depth=len(prefix), created=now)
        for prefix in hit + stored:
            page = self.pages[prefix]
            page.last_used, page.reach, page.floor = now, len(hit) + len(stored), self.floor
            page.priority, page.expires_s = wish or (page.priority, page.expires_s)
        return len(hit)

    def make_room(self, count: int, now: int, spared: list[Prefix]) -> None:
        for page in self.pages.values():
            if page.expires_s <= now:
                page.priority, page.expires_s = DEFAULT_PRIORITY, inf
        while len(self.pages) + count > self.num_pages and (leaves := self.leaves(spared)):
            victim = min(leaves, key=lambda prefix: self.rank(self.pages[prefix]))
            self.floor = self.rank(self.pages.pop(victim))[0]

    def leaves(self, spared: Iterable[Prefix]) -> set[Prefix]:
        return self.pages.keys() - {prefix[:-1] for prefix in self.pages} - set(spared)


requests = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=30)
wishes = st.lists(st.none() | st.tuples(st.integers(33, 37), st.integers(1, 6)), min_size=30, max_size=30)


@pytest.mark.parametrize("name", EVICTION)
@settings(max_examples=100, deadline=None)
@given(requests=requests, wishes=wishes, num_pages=st.integers(1, 14))
def test_each_policy_keeps_what_a_page_by_page_search_keeps(
    name: str, requests: list[list[int]], wishes: list[tuple[int, int] | None], num_pages: int
) -> None:
    now = 0
    known = Known(clock=lambda: float(now), spare_tokens=SPARE, even_tokens=EVEN)
    tree, pool, naive = RadixTree(1, eviction_policy(name, known)), BlockPool(num_pages), NaiveCache(name, num_pages)
    for now, (keys, wish) in enumerate(zip(requests, wishes, strict=False)):
        until = None if wish is None else (wish[0], float(now + wish[1]))
        assert serve(tree, pool, keys, until) == naive.serve(keys, now, until)
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
