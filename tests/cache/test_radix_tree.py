from __future__ import annotations

from kvtool.cache import RadixTree
from kvtool.cache.index.node import Node


def tokens(*firsts: int) -> list[int]:
    """Pages of two tokens, told apart by their first."""
    return [token for first in firsts for token in (first, 0)]


def insert(tree: RadixTree, content: list[int], pages: list[int]) -> tuple[Node, int]:
    node, cached = tree.lock_prefix(content)
    return tree.extend(node, content[2 * len(cached) :], pages[len(cached) :])


def test_an_edge_splits_where_two_prefixes_part() -> None:
    tree = RadixTree(2)
    insert(tree, tokens(1, 2, 3), [10, 11, 12])
    node, cached = tree.lock_prefix(tokens(1, 2, 4))
    assert cached == [10, 11]
    tree.extend(node, tokens(4), [13])
    tree.check()
    assert tree.match(tokens(1, 2, 3, 9)) == [10, 11, 12]
    assert tree.match(tokens(1, 2, 4)) == [10, 11, 13]
    assert tree.match(tokens(2)) == []
    assert tree.num_pages == 4


def test_match_changes_neither_the_tree_nor_the_order_of_eviction() -> None:
    tree = RadixTree(2)
    for first, page in ((1, 0), (2, 10)):
        node, _ = insert(tree, tokens(first, 5, 6), [page, page + 1, page + 2])
        tree.unlock(node)
    before = str(tree)
    assert tree.match(tokens(1, 5)) == [0, 1]
    assert str(tree) == before
    assert tree.evict(1) == [2], "the match did not make the first prefix the more recent one"


def test_pages_that_are_cached_already_are_named_as_duplicates() -> None:
    tree = RadixTree(2)
    first = tree.extend(tree.root, tokens(1, 2), [0, 1])
    second = tree.extend(tree.root, tokens(1, 2, 3), [5, 6, 7])
    assert (first.num_duplicates, second.num_duplicates) == (0, 2)
    assert tree.match(tokens(1, 2, 3)) == [0, 1, 7]
    tree.check()


def test_the_only_sequence_on_a_leaf_makes_its_edge_longer() -> None:
    tree = RadixTree(2)
    node, _ = tree.extend(tree.root, tokens(1), [0])
    longer, _ = tree.extend(node, tokens(2), [1])
    assert longer is node
    tree.lock_prefix(tokens(1, 2))
    child, _ = tree.extend(node, tokens(3), [2])
    assert child.parent is node, "another sequence stands on the node: its end must not move"
    tree.check()


def test_a_run_that_was_hit_is_not_made_longer() -> None:
    """New pages have no hits, so they cannot share the count of the run before them."""
    tree = RadixTree(2)
    node, _ = insert(tree, tokens(1, 2), [0, 1])
    tree.unlock(node)
    again, _ = tree.lock_prefix(tokens(1, 2))
    tree.count_hit(again)
    child, _ = tree.extend(again, tokens(3), [2])
    assert (again.hits, child.hits, child.parent) == (1, 0, again)
    assert child.depth_pages == 3
    tree.check()


def test_eviction_takes_the_tail_first_and_spares_locked_paths() -> None:
    tree = RadixTree(2)
    old, _ = insert(tree, tokens(1, 2, 3), [0, 1, 2])
    new, _ = insert(tree, tokens(1, 2, 4, 5), [0, 1, 3, 4])
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
    tree = RadixTree(2)
    nodes = [insert(tree, tokens(name, name), [2 * name, 2 * name + 1])[0] for name in (0, 1, 2)]
    for node in nodes:
        tree.unlock(node)
    again, cached = tree.lock_prefix(tokens(0, 0))
    assert cached == [0, 1]
    tree.unlock(again)
    assert tree.evict(6) == [3, 2, 5, 4, 1, 0]


def test_the_text_of_a_tree_shows_pages_and_locks() -> None:
    tree = RadixTree(2)
    insert(tree, tokens(1, 2), [4, 5])
    assert str(tree) == "2 cached pages, 0 evictable\n  pages [4, 5] tokens 1,0,.. locks 1"
