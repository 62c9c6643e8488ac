from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtool.cache.index.queue import PageQueue


@given(st.lists(st.tuples(st.sampled_from(["extend", "remove", "pop"]), st.integers(0, 7), st.integers(0, 7))))
def test_the_queue_is_a_list_from_which_any_page_can_leave(steps: list[tuple[str, int, int]]) -> None:
    queue, expected = PageQueue(8), list[int]()
    for step, page, other in steps:
        if step == "extend":
            joining = [new for new in dict.fromkeys((page, other)) if new not in expected]
            queue.extend(joining)
            expected += joining
        elif step == "remove" and page in expected:
            queue.remove(page)
            expected.remove(page)
        elif step == "pop":
            assert queue.pop(page) == expected[:page]
            del expected[:page]
        assert list(queue) == expected


def test_a_page_waits_once_and_leaves_once() -> None:
    queue = PageQueue(2)
    queue.extend([1])
    with pytest.raises(ValueError, match="page 1 waits already"):
        queue.extend([1])
    with pytest.raises(ValueError, match="page 0 does not wait"):
        queue.remove(0)
