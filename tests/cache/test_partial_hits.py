from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvtool.cache import CacheManager, PageCopy, RadixTree
from tests.cache.test_manager import run

PROMPT = list(range(13))


def warm(num_pages: int = 8) -> CacheManager:
    """Three cached pages of four."""
    cache = CacheManager(num_pages, 4, partial_hits=True)
    cache.close(run(cache, PROMPT))
    assert cache.take_copies() == []
    return cache


def test_the_part_of_a_page_that_is_shared_is_copied_and_the_rest_computed() -> None:
    cache = warm()
    prompt = [*PROMPT[:6], 99, 99, 99]
    assert cache.match(prompt) == 4, "whole pages alone"
    sequence = cache.open(prompt)
    assert sequence.cached_tokens == 4, "there is nothing to copy to yet"
    assert cache.reserve(sequence, len(prompt))
    assert sequence.cached_tokens == sequence.table.num_tokens == 6
    assert cache.take_copies() == [PageCopy(source=1, target=sequence.table.pages[1])]
    cache.commit(sequence, prompt)
    cache.check()
    counters = cache.counters()
    assert (counters.hit_tokens, counters.copied_pages) == (6, 1)


def test_the_last_token_is_left_to_compute_though_it_is_cached() -> None:
    cache = warm()
    sequence = cache.open(PROMPT[:8])
    assert cache.reserve(sequence, 8)
    assert sequence.cached_tokens == 7


def test_a_page_that_is_needed_for_room_is_not_kept_to_copy_from() -> None:
    cache = warm(num_pages=4)
    prompt = [0, 1, 99, *range(50, 63)]
    sequence = cache.open(prompt)
    assert sequence.partial is not None
    assert cache.reserve(sequence, 16), "all four pages, the cached ones with them"
    assert (sequence.cached_tokens, cache.take_copies(), sequence.partial) == (0, [], None)
    cache.check()


def test_a_sequence_that_is_not_admitted_lets_go_of_the_page() -> None:
    cache = warm()
    cache.close(cache.open([0, 1, 99, 99]))
    cache.check()
    assert cache.counters().copied_pages == 0
    assert cache.num_available_pages == 8


pages = st.lists(st.integers(0, 2), min_size=4, max_size=4)


@given(cached=st.lists(pages, max_size=12), wanted=st.lists(st.integers(0, 2), max_size=4), gone=st.integers(0, 3))
def test_the_page_with_most_in_common_is_found(cached: list[list[int]], wanted: list[int], gone: int) -> None:
    """Against a search through all; pages come and go between two look-ups, as the order of the keys must."""
    tree = RadixTree(4)
    for _ in range(2):
        for number, tokens in enumerate(cached):
            tree.unlock(tree.extend(tree.root, tokens, [number]).place)
        held = [list(node.tokens) for node in tree]
        most = max((common(tokens, wanted) for tokens in held if tokens != wanted), default=0)
        hit = tree.lock_partial(tree.root, wanted)
        tree.check()
        if wanted not in held:
            assert (0 if hit is None else hit.num_tokens) == most
        if hit is not None:
            assert most == 0 or hit.num_tokens >= most
            tree.unlock(hit.place)
        tree.evict(gone)
        tree.check()


def common(own: list[int], other: list[int]) -> int:
    return next((at for at, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), min(len(own), len(other)))
