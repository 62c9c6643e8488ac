from __future__ import annotations

import pytest

from kvtool.cache import BlockPool


def test_a_fresh_pool_hands_out_ascending_pages() -> None:
    pool = BlockPool(8)
    assert pool.allocate(3) == [0, 1, 2]
    assert pool.allocate(5) == [3, 4, 5, 6, 7]
    assert pool.num_free == 0


def test_pages_released_tail_first_come_back_as_one_run() -> None:
    pool = BlockPool(8)
    pages = pool.allocate(6)
    assert pages is not None
    for page in reversed(pages):
        pool.release(page)
    assert pool.allocate(8) == list(range(8))


def test_an_allocation_that_does_not_fit_takes_nothing() -> None:
    pool = BlockPool(4)
    assert pool.allocate(5) is None
    assert pool.num_free == 4
    assert pool.allocate(0) == []


def test_a_page_is_free_after_its_last_reference() -> None:
    pool = BlockPool(2)
    assert pool.allocate(1) == [0]
    pool.share_all([0])
    pool.release(0)
    assert (pool.references(0), pool.num_free) == (1, 1)
    pool.release(0)
    assert (pool.references(0), pool.num_free) == (0, 2)
    pool.check()


@pytest.mark.parametrize("page", [0, -1, 2])
def test_free_or_unknown_pages_cannot_be_released_or_shared(page: int) -> None:
    pool = BlockPool(2)
    with pytest.raises(ValueError, match=f"page {page} "):
        pool.release(page)
    with pytest.raises(ValueError, match=f"page {page} "):
        pool.share_all([page])
    pool.check()


def test_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one page"):
        BlockPool(0)
    with pytest.raises(ValueError, match="-1"):
        BlockPool(1).allocate(-1)


def test_check_finds_a_page_that_is_free_twice() -> None:
    pool = BlockPool(2)
    pool._free.append(1)
    with pytest.raises(AssertionError, match="free twice"):
        pool.check()
