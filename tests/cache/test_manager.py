from __future__ import annotations

import pytest

from kvtool.cache import CacheManager, HashedIndex, PageCopy, SequenceCache


def run(cache: CacheManager, tokens: list[int]) -> SequenceCache:
    """Open, reserve and commit as a scheduler that prefills everything at once."""
    sequence = cache.open(tokens)
    assert cache.reserve(sequence, len(tokens))
    cache.commit(sequence, tokens)
    cache.check()
    return sequence


def test_three_requests_take_32_19_and_13_pages_of_16() -> None:
    """Worked by hand: ceil(500/16) = 32, ceil(300/16) = 19, ceil(200/16) = 13."""
    cache = CacheManager(num_pages=64, block_size=16)
    pages = [run(cache, list(range(start, start + n))).table.pages for start, n in ((0, 500), (1000, 300), (2000, 200))]
    assert pages == [list(range(32)), list(range(32, 51)), list(range(51, 64))]
    assert cache.counters().allocated_pages == 64


@pytest.mark.parametrize("hashed", [False, True])
def test_the_vllm_prefix_caching_example(hashed: bool) -> None:
    """vLLM docs/design/prefix_caching.md: ten blocks of four; the same hits, and cached blocks evicted in its order.

    The hashed index hands out the very blocks of the page. The radix tree differs in one: a block that never filled is
    free at once, so it is taken before any cached one.
    """
    cache = CacheManager(num_pages=10, block_size=4, index=HashedIndex(4, 10) if hashed else None)
    first = list(range(15))
    request0 = run(cache, first)
    assert request0.table.pages == [0, 1, 2, 3]
    assert cache.reserve(request0, 17)
    cache.commit(request0, [*first, 15, 16])
    assert request0.table.pages == [0, 1, 2, 3, 4]

    request1 = run(cache, [*first[:10], 90, 91, 92, 93])
    assert request1.cached_tokens == 8
    assert request1.table.pages == [0, 1, 5, 6]

    cache.close(request0)
    cache.close(request1)
    cache.check()
    if hashed:
        assert str(cache.index).endswith("in the queue: 4, 3, 2, 6, 5, 1, 0"), "behind 7, 8, 9, never used yet"
    request2 = cache.open([*first[:12], *range(200, 217)])
    assert request2.table.pages == [0, 1, 2]
    assert cache.reserve(request2, 29)
    if hashed:
        assert request2.table.pages == [0, 1, 2, 7, 8, 9, 4, 3]
        assert str(cache.index).endswith("in the queue: 6, 5")
        assert cache.counters().evicted_pages == 1, "block 3; block 4 never filled"
    else:
        assert sorted(request2.table.pages) == [0, 1, 2, 4, 6, 7, 8, 9]
        assert cache.counters().evicted_pages == 0
        assert [cache.reserve(request2, num_tokens) and request2.table.pages[-1] for num_tokens in (33, 37)] == [3, 5]
        assert cache.counters().evicted_pages == 2
    cache.check()


def test_at_least_the_last_token_is_left_to_compute() -> None:
    cache = CacheManager(num_pages=8, block_size=4)
    cache.close(run(cache, list(range(8))))
    assert cache.open(list(range(8))).cached_tokens == 4
    assert cache.open(list(range(9))).cached_tokens == 8
    assert cache.open([]).cached_tokens == 0


def test_a_running_sequence_can_be_hit_already() -> None:
    cache = CacheManager(num_pages=8, block_size=4)
    run(cache, list(range(10)))
    assert cache.match(list(range(12))) == 8
    assert cache.open(list(range(12))).table.pages == [0, 1]


def test_equal_prompts_computed_side_by_side_are_cached_once() -> None:
    cache = CacheManager(num_pages=8, block_size=4)
    tokens = list(range(9))
    first, second = cache.open(tokens), cache.open(tokens)
    for sequence in (first, second):
        assert cache.reserve(sequence, len(tokens))
        cache.commit(sequence, tokens)
        cache.check()
    assert (first.table.pages, second.table.pages) == ([0, 1, 2], [3, 4, 5])
    cache.close(first)
    cache.close(second)
    assert (cache.counters().cached_pages, cache.counters().free_pages) == (2, 6)


def test_reserve_that_cannot_be_met_changes_nothing() -> None:
    cache = CacheManager(num_pages=4, block_size=4)
    cache.close(run(cache, list(range(8))))
    sequence = run(cache, list(range(100, 108)))
    before = str(cache)
    assert not cache.reserve(sequence, 17)
    assert str(cache) == before
    assert cache.reserve(sequence, 16)
    assert cache.counters().evicted_pages == 2


def test_without_prefix_caching_nothing_is_kept() -> None:
    cache = CacheManager(num_pages=4, block_size=4, prefix_caching=False)
    cache.close(run(cache, list(range(9))))
    assert cache.open(list(range(9))).cached_tokens == 0
    assert cache.counters().cached_pages == 0
    assert cache.counters().free_pages == 4


def fork(cache: CacheManager, parent: SequenceCache, tokens: list[int]) -> tuple[SequenceCache, list[PageCopy]]:
    child = cache.fork(parent, tokens)
    assert child is not None
    cache.check()
    return child, cache.take_copies()


def test_fork_copies_only_a_partial_last_page() -> None:
    cache = CacheManager(num_pages=8, block_size=4)
    parent = run(cache, list(range(6)))
    child, copies = fork(cache, parent, list(range(6)))
    assert (parent.table.pages, child.table.pages) == ([0, 1], [0, 2])
    assert copies == [PageCopy(source=1, target=2)]
    assert cache.take_copies() == [], "each copy is told once"
    whole, copies = fork(cache, run(cache, list(range(50, 54))), list(range(50, 54)))
    assert (whole.table.pages, copies) == ([3], []), "the next token takes a page of its own"
    assert cache.counters().copied_pages == 1


@pytest.mark.parametrize("caching", [True, False])
def test_a_fork_may_stop_before_the_end_of_what_it_is_forked_off(caching: bool) -> None:
    """The page of its last token is copied even where it is full and cached: the fork goes on within it."""
    cache = CacheManager(num_pages=8, block_size=4, prefix_caching=caching)
    parent = run(cache, list(range(8)))
    child, copies = fork(cache, parent, list(range(7)))
    assert (child.table.pages, child.table.num_tokens, child.cached_tokens) == ([0, 2], 7, 7)
    assert copies == [PageCopy(source=1, target=2)]
    cache.commit(child, [*range(7), 99])
    cache.check()
    cache.close(parent)
    cache.close(child)
    cache.check()
    with pytest.raises(ValueError, match="9 tokens cannot be forked off 8"):
        cache.fork(run(cache, list(range(8))), list(range(9)))


def test_a_fork_does_not_share_pages_that_are_only_reserved() -> None:
    cache = CacheManager(num_pages=8, block_size=4)
    parent = run(cache, list(range(8)))
    assert cache.reserve(parent, 12)
    assert fork(cache, parent, list(range(8)))[0].table.pages == [0, 1]


def test_a_fork_without_a_page_for_the_copy_changes_nothing() -> None:
    cache = CacheManager(num_pages=2, block_size=4)
    parent = run(cache, list(range(6)))
    assert cache.fork(parent, list(range(6))) is None
    assert cache.take_copies() == []
    cache.check()


def test_counters_say_what_was_asked_and_hit() -> None:
    cache = CacheManager(num_pages=8, block_size=4)
    cache.close(run(cache, list(range(10))))
    cache.close(cache.open(list(range(10))))
    counters = cache.counters()
    assert (counters.queried_tokens, counters.hit_tokens) == (10, 0), "nothing was computed the second time"
    run(cache, list(range(10)))
    counters = cache.counters()
    assert (counters.queried_tokens, counters.hit_tokens) == (20, 8)
    assert (counters.allocated_pages, counters.peak_pages) == (3, 3)
    cache.reset_counters()
    assert (cache.counters().queried_tokens, cache.counters().peak_pages) == (0, 3)


def test_a_sequence_that_is_not_admitted_leaves_no_trace_in_the_counters() -> None:
    cache = CacheManager(num_pages=4, block_size=4)
    cache.close(run(cache, list(range(9))))
    cache.reset_counters()
    waiting = cache.open(list(range(20)))
    assert not cache.reserve(waiting, 20)
    cache.close(waiting)
    assert (cache.counters().queried_tokens, cache.counters().peak_pages) == (0, 0)


def test_reset_forgets_all_prefixes_but_not_open_sequences() -> None:
    cache = CacheManager(num_pages=8, block_size=4)
    sequence = run(cache, list(range(10)))
    with pytest.raises(ValueError, match="1 sequences are open"):
        cache.reset()
    cache.close(sequence)
    cache.reset()
    assert cache.match(list(range(10))) == 0
    assert cache.counters().free_pages == 8
    assert cache.counters().evicted_pages == 0
    cache.check()


def test_misuse_is_refused() -> None:
    cache = CacheManager(num_pages=4, block_size=4)
    sequence = run(cache, list(range(6)))
    with pytest.raises(ValueError, match="9 tokens committed"):
        cache.commit(sequence, list(range(9)))
    with pytest.raises(ValueError, match="5 tokens committed"):
        cache.commit(sequence, list(range(5)))
    cache.close(sequence)
    for call in (
        cache.close,
        lambda s: cache.fork(s, []),
        lambda s: cache.reserve(s, 1),
        lambda s: cache.commit(s, []),
    ):
        with pytest.raises(ValueError, match="closed"):
            call(sequence)
    cache.check()
    with pytest.raises(ValueError, match="at least one token"):
        CacheManager(num_pages=1, block_size=0)
