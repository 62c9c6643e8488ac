from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvtool.cache import BlockTable


def test_the_17th_token_takes_the_second_page_of_16() -> None:
    table = BlockTable(16)
    assert [table.pages_missing(n) for n in (0, 1, 16, 17, 33)] == [0, 1, 1, 2, 3]
    table.pages.append(7)
    assert [table.pages_missing(n) for n in (16, 17)] == [0, 1]
    assert table.capacity_tokens == 16


def test_a_slot_is_page_times_block_size_plus_offset() -> None:
    table = BlockTable(16, [5, 2])
    assert [table.slot(position) for position in (0, 15, 16, 20)] == [80, 95, 32, 36]


@given(st.integers(1, 5), st.permutations(range(6)), st.data())
def test_slots_are_the_slot_of_every_position(block_size: int, pages: list[int], data: st.DataObject) -> None:
    table = BlockTable(block_size, pages)
    start = data.draw(st.integers(0, table.capacity_tokens))
    stop = data.draw(st.integers(start, table.capacity_tokens))
    assert table.slots(start, stop) == [table.slot(position) for position in range(start, stop)]
