from __future__ import annotations

import pytest

from kvtool.cache import CacheManager
from kvtool.cache.admission import Offer, SecondHit, admission_policy
from kvtool.system.errors import KvtoolError
from tests.cache.test_manager import run

PROMPT = list(range(10))


def second_hit(num_pages: int = 16) -> CacheManager:
    return CacheManager(num_pages, 4, admission=admission_policy("second-hit", block_size=4, num_pages=num_pages))


def test_a_prefix_is_kept_when_it_is_seen_for_the_second_time() -> None:
    cache = second_hit()
    cached = []
    for _ in range(3):
        sequence = run(cache, PROMPT)
        cached.append((sequence.cached_tokens, cache.counters().cached_pages))
        cache.close(sequence)
        cache.check()
    assert cached == [(0, 0), (0, 2), (8, 2)]


def test_what_two_prompts_share_is_kept_and_the_rest_of_them_is_not() -> None:
    cache = second_hit()
    for last in (50, 60, 70):
        cache.close(run(cache, [*PROMPT[:8], last, last, last, last, last]))
    assert cache.counters().cached_pages == 2
    assert cache.match([*PROMPT, 0]) == 8


def test_pages_that_become_whole_one_by_one_are_offered_one_by_one() -> None:
    cache = second_hit()
    for expected in (0, 4):
        sequence = cache.open([0])
        for length in range(1, 18):
            assert cache.reserve(sequence, length)
            cache.commit(sequence, list(range(length)))
            cache.check()
        cache.close(sequence)
        assert cache.counters().cached_pages == expected


def test_only_so_many_ghosts_are_remembered_the_heads_of_prefixes_longest() -> None:
    admission = SecondHit(block_size=1, max_ghosts=3)
    assert admission.admitted(Offer(0), [1, 2, 3, 4, 5]) == 0
    assert admission.num_ghosts == 3
    assert admission.admitted(Offer(0), [1, 2, 3, 4, 5]) == 3
    for other in range(10, 20):
        admission.admitted(Offer(0), [other])
    assert admission.admitted(Offer(0), [1, 2, 3]) == 0, "others came since"


def test_what_is_cached_already_needs_no_ghost() -> None:
    admission = SecondHit(block_size=1, max_ghosts=9)
    assert admission.admitted(Offer(num_admitted=2), [1, 2, 3]) == 2
    assert admission.admitted(Offer(num_admitted=2), [1, 2, 3]) == 3


def test_names_that_are_none_are_refused() -> None:
    with pytest.raises(KvtoolError, match="admission 'second' is not one of always, second-hit"):
        admission_policy("second", block_size=4, num_pages=4)


def test_a_fork_that_finds_what_its_parent_holds_uncached_counts_in_the_peak() -> None:
    """It locks cached pages that nobody held, beside its parent's own: both are held at once."""
    cache = second_hit()
    first = run(cache, PROMPT[:8])
    cache.close(run(cache, PROMPT[:8]))
    cache.reset_counters()
    assert cache.fork(first, PROMPT[:8]) is not None
    assert (cache.counters().allocated_pages, cache.counters().peak_pages) == (4, 4)
