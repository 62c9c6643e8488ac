"""The cached prefixes, as a radix tree whose edges are runs of whole pages.

The tree says which pages hold which tokens; it takes and gives back pages, and leaves reference counts to its owner.
A sequence locks the path it stands on. Pages of paths that nobody locks can be evicted, in the order of a policy.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kvtool.cache.eviction import EvictionPolicy, Lru
from kvtool.cache.node import Node, PageKey, path


def page_keys(tokens: Sequence[int], block_size: int, first_page: int, last_page: int) -> list[PageKey]:
    """The token ids of pages `first_page` to `last_page` (exclusive) of a sequence."""
    starts = range(first_page * block_size, last_page * block_size, block_size)
    return [tuple(tokens[start : start + block_size]) for start in starts]


class Extension(NamedTuple):
    """Where the sequence stands now, and how many of its pages (the first ones) the tree held already."""

    node: Node
    num_duplicates: int


class RadixTree:
    """Longest cached prefix, insertion and eviction, each O(pages touched). `eviction` is the tree's own: LRU unless
    another policy is handed in."""

    def __init__(self, eviction: EvictionPolicy | None = None) -> None:
        self.root = Node(keys=[], pages=[], parent=None)
        self.eviction = Lru() if eviction is None else eviction
        self.num_pages = 0
        self.num_evictable_pages = 0
        self._ticks = itertools.count()

    def match(self, keys: Sequence[PageKey]) -> list[int]:
        """The pages of the longest cached prefix. Changes nothing: neither the tree nor the order of eviction."""
        node = self.root
        pages: list[int] = []
        while len(pages) < len(keys) and (child := node.children.get(keys[len(pages)])) is not None:
            common = _common_pages(child.keys, keys, len(pages))
            pages += child.pages[:common]
            if common < len(child.keys):
                break
            node = child
        return pages

    def lock_prefix(self, keys: Sequence[PageKey]) -> tuple[Node, list[int]]:
        """Lock the longest cached prefix: the node where it ends, and its pages."""
        node = self.root
        pages: list[int] = []
        while (child := self._enter(node, keys, len(pages))) is not None:
            pages += child.pages
            node = child
        return node, pages

    def extend(self, node: Node, keys: Sequence[PageKey], pages: Sequence[int]) -> Extension:
        """Move a sequence's lock from `node` down by `keys`, adding those of its `pages` that are not cached yet.

        The tree takes `pages[num_duplicates:]`; the first ones it holds already, as pages of someone else.
        """
        depth = 0
        while (child := self._enter(node, keys, depth)) is not None:
            depth += len(child.keys)
            node = child
        if depth < len(keys):
            node = self._append(node, list(keys[depth:]), list(pages[depth:]))
        return Extension(node, num_duplicates=depth)

    def lock(self, node: Node) -> None:
        """One more sequence stands on `node`, which another one has locked."""
        for member in path(node):
            self._lock_one(member)

    def count_hit(self, node: Node) -> None:
        """A sequence that stands on `node` was spared the pages on its path."""
        for member in path(node):
            member.hits += 1

    def unlock(self, node: Node) -> None:
        """A sequence leaves `node`: what nobody else locks on its path becomes evictable, the tail first."""
        for member in path(node):
            if member.locks == 0:
                raise ValueError("the node is not locked")
            member.locks -= 1
            if member.locks == 0:
                member.last_used = next(self._ticks)
                self.eviction.add(member)
                self.num_evictable_pages += len(member.pages)

    def evict(self, count: int) -> list[int]:
        """Drop up to `count` unlocked pages: the policy's victims, each from its tail."""
        count = min(count, self.num_evictable_pages)
        evicted: list[int] = []
        while len(evicted) < count:
            node = self.eviction.victim()
            evicted += self._shorten(node, count - len(evicted) if self.eviction.by_run else 1)
        self.num_pages -= len(evicted)
        self.num_evictable_pages -= len(evicted)
        return evicted

    def _shorten(self, node: Node, count: int) -> list[int]:
        """Take up to `count` pages off the end of an unlocked leaf, the last one first."""
        assert not node.children, "only leaves are evicted"
        keep = max(0, len(node.pages) - count)
        pages = node.pages[keep:]
        if keep == 0:
            self._remove_leaf(node)
        del node.pages[keep:], node.keys[keep:]
        if keep > 0:
            self.eviction.update(node)
        pages.reverse()
        return pages

    def _enter(self, node: Node, keys: Sequence[PageKey], depth: int) -> Node | None:
        """Lock the child of `node` that goes on with `keys[depth:]`, cut to the pages that agree; None without one."""
        child = node.children.get(keys[depth]) if depth < len(keys) else None
        if child is None:
            return None
        common = _common_pages(child.keys, keys, depth)
        if common < len(child.keys):
            child = self._split(child, common)
        self._lock_one(child)
        return child

    def _split(self, node: Node, at: int) -> Node:
        """Cut a node in two: the new upper one takes the first `at` pages, so who stands on `node` stays there."""
        parent = node.parent
        assert parent is not None
        upper = Node(
            keys=node.keys[:at],
            pages=node.pages[:at],
            parent=parent,
            locks=node.locks,
            hits=node.hits,
            created=node.created,
            last_used=node.last_used,
            children={node.keys[at]: node},
        )
        parent.children[node.keys[0]] = upper
        node.parent = upper
        del node.keys[:at], node.pages[:at]
        if upper.locks == 0:
            self.eviction.add(upper)
            self.eviction.update(node)
        return upper

    def _append(self, node: Node, keys: list[PageKey], pages: list[int]) -> Node:
        """New pages below a locked node: on its own edge while only the sequence that made it is there and nobody has
        hit it, else as a new child."""
        self.num_pages += len(pages)
        if node.parent is not None and node.locks == 1 and node.hits == 0 and not node.children:
            node.keys += keys
            node.pages += pages
            return node
        child = Node(keys, pages, parent=node, locks=1, created=next(self._ticks))
        node.children[keys[0]] = child
        return child

    def _lock_one(self, node: Node) -> None:
        if node.locks == 0:
            self.eviction.discard(node)
            self.num_evictable_pages -= len(node.pages)
        node.locks += 1

    def _remove_leaf(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None
        del parent.children[node.keys[0]]
        self.eviction.discard(node)
        if parent.locks == 0 and not parent.children and parent is not self.root:
            self.eviction.update(parent)

    def __iter__(self) -> Iterator[Node]:
        """Every node but the root, parents first."""
        waiting = list(self.root.children.values())
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(node.children.values())

    def check(self) -> None:
        """The invariants of the tree, its counters and the order of eviction."""
        nodes = list(self)
        pages = [page for node in nodes for page in node.pages]
        unlocked = [node for node in nodes if node.locks == 0]
        assert len(pages) == len(set(pages)) == self.num_pages, "a page is in the tree twice, or miscounted"
        assert sum(len(node.pages) for node in unlocked) == self.num_evictable_pages, "evictable pages miscounted"
        self.eviction.check(unlocked)
        for node in nodes:
            assert node.pages, "a node without pages"
            assert len(node.keys) == len(node.pages), "a page without its key"
            assert node.parent is not None
            assert node.parent.children[node.keys[0]] is node, "a node is not the child its first page names"
            assert node.locks >= sum(child.locks for child in node.children.values()), "a path is locked in part"
            assert node.hits >= max((child.hits for child in node.children.values()), default=0), "a hit skipped a page"

    def __str__(self) -> str:
        lines = [f"{self.num_pages} cached pages, {self.num_evictable_pages} evictable"]
        waiting = [(child, 1) for child in self.root.children.values()]
        while waiting:
            node, depth = waiting.pop()
            lines.append(f"{'  ' * depth}pages {node.pages} {_described(node.keys[0])} locks {node.locks}")
            waiting.extend((child, depth + 1) for child in node.children.values())
        return "\n".join(lines)


def _common_pages(edge: Sequence[PageKey], keys: Sequence[PageKey], start: int) -> int:
    """How many leading pages of `edge` agree with `keys[start:]`."""
    count = 0
    for own, other in zip(edge, keys[start : start + len(edge)], strict=False):
        if own != other:
            break
        count += 1
    return count


def _described(key: PageKey) -> str:
    """A page by its first tokens, or by whatever else names it."""
    return f"tokens {','.join(map(str, key[:4]))},.." if isinstance(key, tuple) else f"key {key}"
