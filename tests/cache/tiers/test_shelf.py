"""A shelf against a list that is searched: what it holds, in which order it goes, and what pins keep."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvtool.cache.tiers.keys import KEY_BYTES, extend_keys, fingerprint
from kvtool.cache.tiers.shelf import Shelf

OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["add", "touch", "pin", "unpin", "trim"]), st.integers(0, 5), st.integers(1, 4)),
    max_size=60,
)


@given(operations=OPERATIONS, capacity=st.integers(0, 8))
def test_a_shelf_is_a_list_by_use(operations: list[tuple[str, int, int]], capacity: int) -> None:
    shelf, order, pins = Shelf(capacity), dict[bytes, int](), list[bytes]()
    for name, number, size in operations:
        key = bytes([number])
        if name == "add" and key not in order:
            shelf.add(key, size)
            order[key] = size
        elif name == "touch" and key in order:
            shelf.touch(key)
            order[key] = order.pop(key)
        elif name == "pin" and key in order:
            shelf.pin(key)
            pins.append(key)
        elif name == "unpin" and key in pins:
            shelf.unpin(key)
            pins.remove(key)
        elif name == "trim":
            victims = shelf.victims(size)
            loose = [key for key in order if key not in pins]
            assert victims == loose[: len(victims)]
            left = sum(order.values()) - sum(order[key] for key in victims)
            assert left + size <= capacity or victims == loose
            assert not victims or left + order[victims[-1]] + size > capacity, "one went that could have stayed"
            for key in victims:
                shelf.discard(key)
                del order[key]
        shelf.check()
        assert (list(shelf), shelf.used) == (list(order), sum(order.values()))


@given(
    first=st.lists(st.integers(0, 3), min_size=1, max_size=24),
    second=st.lists(st.integers(0, 3), min_size=1, max_size=24),
    block_size=st.integers(1, 5),
)
def test_two_pages_share_a_name_exactly_where_all_tokens_up_to_their_end_are_the_same(
    first: list[int], second: list[int], block_size: int
) -> None:
    keys: list[list[bytes]] = []
    for tokens in (first, second):
        keys.append([])
        extend_keys(keys[-1], tokens, block_size, len(tokens) // block_size, fingerprint("run"))
    for page, (a, b) in enumerate(zip(*keys, strict=False), start=1):
        assert len(a) == KEY_BYTES
        assert (a == b) == (first[: page * block_size] == second[: page * block_size])


def test_a_name_depends_on_the_run_and_grows_with_the_sequence() -> None:
    grown: list[bytes] = []
    for num_pages in (1, 3):
        extend_keys(grown, list(range(12)), 4, num_pages, fingerprint("run"))
    other: list[bytes] = []
    extend_keys(other, list(range(12)), 4, 3, fingerprint("another run"))
    assert len(set(grown) | set(other)) == 6
