from __future__ import annotations

from kvtool.cache import RadixTree
from kvtool.cache.node import Node, PageKey
from kvtool.cache.radix_tree import page_keys


def keys(*first_tokens: int) -> list[PageKey]:
    """Pages of two tokens, told apart by their first."""
    return [(token, 0) for token in first_tokens]


def insert(tree: RadixTree, names: list[PageKey], pages: list[int]) -> tuple[Node, int]:
    node, cached = tree.lock_prefix(names)
    return tree.extend(node, names[len(cached) :], pages[len(cached) :])


def test_page_keys_are_the_tokens_of_whole_pages() -> None:
    assert page_keys([1, 2, 3, 4, 5, 6, 7], 2, 1, 3) == [(3, 4), (5, 6)]


def test_an_edge_splits_where_two_prefixes_part() -> None:
    tree = RadixTree()
    insert(tree, keys(1, 2, 3), [10, 11, 12])
    node, cached = tree.lock_prefix(keys(1, 2, 4))
    assert cached == [10, 11]
    tree.extend(node, keys(4), [13])
    tree.check()
    assert tree.match(keys(1, 2, 3, 9)) == [10, 11, 12]
    assert tree.match(keys(1, 2, 4)) == [10, 11, 13]
    assert tree.match(keys(2)) == []
    assert tree.num_pages == 4


def test_match_changes_neither_the_tree_nor_the_order_of_eviction() -> None:
    tree = RadixTree()
    for first, page in ((1, 0), (2, 10)):
        node, _ = insert(tree, keys(first, 5, 6), [page, page + 1, page + 2])
        tree.unlock(node)
    before = str(tree)
    assert tree.match(keys(1, 5)) == [0, 1]
    assert str(tree) == before
    assert tree.evict(1) == [2], "the match did not make the first prefix the more recent one"


def test_pages_that_are_cached_already_are_named_as_duplicates() -> None:
    tree = RadixTree()
    first = tree.extend(tree.root, keys(1, 2), [0, 1])
    second = tree.extend(tree.root, keys(1, 2, 3), [5, 6, 7])
    assert (first.num_duplicates, second.num_duplicates) == (0, 2)
    assert tree.match(keys(1, 2, 3)) == [0, 1, 7]
    tree.check()


def test_the_only_sequence_on_a_leaf_makes_its_edge_longer() -> None:
    tree = RadixTree()
    node, _ = tree.extend(tree.root, keys(1), [0])
    longer, _ = tree.extend(node, keys(2), [1])
    assert longer is node
    tree.lock(node)
    child, _ = tree.extend(node, keys(3), [2])
    assert child.parent is node, "another sequence stands on the node: its end must not move"
    tree.check()


def test_a_run_that_was_hit_is_not_made_longer() -> None:
    """New pages have no hits, so they cannot share the count of the run before them."""
    tree = RadixTree()
    node, _ = insert(tree, keys(1, 2), [0, 1])
    tree.unlock(node)
    again, _ = tree.lock_prefix(keys(1, 2))
    tree.count_hit(again)
    child, _ = tree.extend(again, keys(3), [2])
    assert (again.hits, child.hits, child.parent) == (1, 0, again)
    assert child.depth_pages == 3
    tree.check()


def test_a_page_can_be_named_by_anything_hashable() -> None:
    tree = RadixTree()
    node, _ = tree.lock_prefix([])
    tree.extend(node, [11, "b", b"c"], [0, 1, 2])
    assert tree.match([11, "b", 7]) == [0, 1]
    assert str(tree).endswith("pages [0, 1, 2] key 11 locks 1")


def test_eviction_takes_the_tail_first_and_spares_locked_paths() -> None:
    tree = RadixTree()
    old, _ = insert(tree, keys(1, 2, 3), [0, 1, 2])
    new, _ = insert(tree, keys(1, 2, 4, 5), [0, 1, 3, 4])
    assert tree.evict(9) == []
    tree.unlock(new)
    assert tree.num_evictable_pages == 2
    assert tree.evict(1) == [4]
    assert tree.evict(9) == [3]
    tree.unlock(old)
    assert tree.evict(9) == [2, 1, 0]
    assert tree.num_pages == 0
    tree.check()


def test_the_least_recently_used_prefix_goes_first() -> None:
    tree = RadixTree()
    nodes = [insert(tree, keys(name, name), [2 * name, 2 * name + 1])[0] for name in (0, 1, 2)]
    for node in nodes:
        tree.unlock(node)
    again, cached = tree.lock_prefix(keys(0, 0))
    assert cached == [0, 1]
    tree.unlock(again)
    assert tree.evict(6) == [3, 2, 5, 4, 1, 0]


def test_the_text_of_a_tree_shows_pages_and_locks() -> None:
    tree = RadixTree()
    insert(tree, keys(1, 2), [4, 5])
    assert str(tree) == "2 cached pages, 0 evictable\n  pages [4, 5] tokens 1,0,.. locks 1"
