"""The cached prefixes, as a radix tree whose edges are runs of whole pages.

A sequence locks the path it stands on. Pages of paths that nobody locks can be evicted, in the order of a policy.
"""

from __future__ import annotations

import itertools
from array import array
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from kvtool.cache.eviction.base import EvictionPolicy
from kvtool.cache.eviction.lru import Lru
from kvtool.cache.index.base import Extension, PartialHit, PrefixIndex, pack
from kvtool.cache.index.node import Node, path


class RadixTree(PrefixIndex[Node]):
    """Longest cached prefix, insertion and eviction, each O(pages touched). `eviction` is the tree's own: LRU unless
    another policy is handed in. A place is the node whose last page is the sequence's last."""

    def __init__(self, block_size: int, eviction: EvictionPolicy | None = None) -> None:
        super().__init__(block_size)
        self.root = Node(array("I"), array("i"), parent=None)
        self.eviction = Lru() if eviction is None else eviction
        self._orders: dict[Node, list[bytes]] = {}  # sorted keys of the children, where they were asked for
        self._uses = itertools.count()
        self._additions = itertools.count()

    def match(self, tokens: Sequence[int]) -> list[int]:
        node, pages = self.root, list[int]()
        while (child := self._child(node, tokens, len(pages))) is not None:
            common = self._common_pages(child, tokens, len(pages))
            pages += child.pages[:common]
            if common < len(child.pages):
                break
            node = child
        return pages

    def lock_prefix(self, tokens: Sequence[int]) -> tuple[Node, list[int]]:
        node, pages = self.root, list[int]()
        while (child := self._enter(node, tokens, len(pages))) is not None:
            pages += child.pages
            node = child
        return node, pages

    def lock_partial(self, place: Node, tokens: Sequence[int]) -> PartialHit[Node] | None:
        wanted = pack(tokens[: self.block_size])
        alike = [(_common_tokens(child.tokens, wanted), child) for child in self._neighbours(place, wanted.tobytes())]
        num_tokens, child = max(alike, key=lambda pair: pair[0], default=(0, place))
        if num_tokens == 0:
            return None
        for member in path(child):
            self._lock_one(member)
        return PartialHit(child, child.pages[0], num_tokens)

    def _neighbours(self, node: Node, key: bytes) -> list[Node]:
        """The children before and after `key` in the order of their keys: no others have more of it in common."""
        if node not in self._orders:
            self._orders[node] = sorted(node.children)
        order = self._orders[node]
        at = bisect_left(order, key)
        return [node.children[own] for own in order[max(0, at - 1) : at + 1]]

    def extend(self, place: Node, tokens: Sequence[int], pages: Sequence[int]) -> Extension[Node]:
        node, depth = place, 0
        while (child := self._enter(node, tokens, depth)) is not None:
            depth += len(child.pages)
            node = child
        if depth < len(pages):
            node = self._append(node, pack(tokens[depth * self.block_size :]), array("i", pages[depth:]))
        return Extension(node, num_duplicates=depth)

    def count_hit(self, place: Node) -> None:
        for member in path(place):
            member.hits += 1

    def retain(self, place: Node, priority: int, expires_s: float) -> None:
        for member in path(place):
            member.priority, member.expires_s = priority, expires_s

    def unlock(self, place: Node) -> None:
        reach_pages, tick = place.depth_pages, next(self._uses)
        for member in path(place):
            if member.locks == 0:
                raise ValueError("the node is not locked")
            member.locks -= 1
            if member.locks == 0:
                member.last_used = tick
                member.reach_pages = reach_pages
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

    def take(self, count: int) -> list[int]:
        """Evict; the head of a run first, so that runs of neighbouring pages survive."""
        return self.evict(count)[::-1]

    def _shorten(self, node: Node, count: int) -> array[int]:
        """Take up to `count` pages off the end of an unlocked leaf, the last one first."""
        assert not node.children, "only leaves are evicted"
        keep = max(0, len(node.pages) - count)
        pages = node.pages[keep:]
        if keep == 0:
            self._remove_leaf(node)
        del node.pages[keep:], node.tokens[keep * self.block_size :]
        if keep > 0:
            self.eviction.update(node)
        pages.reverse()
        return pages

    def _child(self, node: Node, tokens: Sequence[int], depth: int) -> Node | None:
        """The child of `node` that goes on with page `depth` of `tokens`."""
        if not node.children or len(tokens) < (depth + 1) * self.block_size:
            return None
        return node.children.get(self._key(tokens, depth))

    def _key(self, tokens: Sequence[int], depth: int) -> bytes:
        """Page `depth` of the tokens, exactly."""
        return pack(tokens[depth * self.block_size : (depth + 1) * self.block_size]).tobytes()

    def _enter(self, node: Node, tokens: Sequence[int], depth: int) -> Node | None:
        """Lock the child of `node` that goes on with page `depth`, cut to the pages that agree; None without one."""
        child = self._child(node, tokens, depth)
        if child is None:
            return None
        common = self._common_pages(child, tokens, depth)
        if common < len(child.pages):
            child = self._split(child, common)
        self._lock_one(child)
        return child

    def _common_pages(self, node: Node, tokens: Sequence[int], depth: int) -> int:
        """How many leading pages of a run agree with `tokens` from page `depth` on; the first one does."""
        start = depth * self.block_size
        own, other = node.tokens, pack(tokens[start : start + len(node.tokens)])
        agree, differ = 1, len(other) // self.block_size + 1
        if own == other:
            return differ - 1
        while differ - agree > 1:
            middle = (agree + differ) // 2
            same = own[: middle * self.block_size] == other[: middle * self.block_size]
            agree, differ = (middle, differ) if same else (agree, middle)
        return agree

    def _split(self, node: Node, at: int) -> Node:
        """Cut a node in two: the new upper one takes the first `at` pages, so who stands on `node` stays there."""
        parent = node.parent
        assert parent is not None
        upper = Node(
            tokens=node.tokens[: at * self.block_size],
            pages=node.pages[:at],
            parent=parent,
            locks=node.locks,
            hits=node.hits,
            created=node.created,
            last_used=node.last_used,
            sharers=node.sharers,
            reach_pages=node.reach_pages,
            priority=node.priority,
            expires_s=node.expires_s,
            children={self._key(node.tokens, at): node},
        )
        parent.children[self._key(node.tokens, 0)] = upper
        node.parent = upper
        del node.tokens[: at * self.block_size], node.pages[:at]
        if upper.locks == 0:
            self.eviction.add(upper)
            self.eviction.update(node)
        return upper

    def _append(self, node: Node, tokens: array[int], pages: array[int]) -> Node:
        """New pages below a locked node: on its own edge while only the sequence that made it is there and nobody has
        hit or shared it, else as a new child."""
        self.num_pages += len(pages)
        if node.parent is not None and node.locks == node.sharers == 1 and node.hits == 0 and not node.children:
            node.tokens += tokens
            node.pages += pages
            return node
        if node.children:
            for member in path(node):
                member.sharers += 1
        child = Node(tokens, pages, parent=node, locks=1, created=next(self._additions))
        key = self._key(tokens, 0)
        node.children[key] = child
        if node in self._orders:
            insort(self._orders[node], key)
        return child

    def _lock_one(self, node: Node) -> None:
        if node.locks == 0:
            self.eviction.discard(node)
            self.num_evictable_pages -= len(node.pages)
        node.locks += 1

    def _remove_leaf(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None
        key = self._key(node.tokens, 0)
        del parent.children[key]
        if parent in self._orders:
            del self._orders[parent][bisect_left(self._orders[parent], key)]
        self._orders.pop(node, None)
        self.eviction.discard(node)
        if parent.locks == 0 and not parent.children and parent is not self.root:
            self.eviction.update(parent)

    def depth_pages(self, place: Node) -> int:
        return place.depth_pages

    def pages(self) -> Iterator[int]:
        return (page for node in self for page in node.pages)

    def __iter__(self) -> Iterator[Node]:
        """Every node but the root, parents first."""
        waiting = list(self.root.children.values())
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(node.children.values())

    def check(self, places: Iterable[Node] | None = None) -> None:
        nodes = list(self)
        pages = list(self.pages())
        unlocked = [node for node in nodes if node.locks == 0]
        assert len(pages) == len(set(pages)) == self.num_pages, "a page is in the tree twice, or miscounted"
        assert sum(len(node.pages) for node in unlocked) == self.num_evictable_pages, "evictable pages miscounted"
        self.eviction.check(unlocked)
        for node, order in self._orders.items():
            assert order == sorted(node.children), "the order of the children is not theirs"
        for node in nodes:
            self._check_node(node)
        if places is not None:
            locks = Counter(member for place in places for member in path(place))
            for node in nodes:
                assert node.locks == locks[node], f"{node.locks} locks for {locks[node]} sequences"

    def _check_node(self, node: Node) -> None:
        children = node.children.values()
        assert node.pages, "a node without pages"
        assert len(node.tokens) == len(node.pages) * self.block_size, "a page without its tokens"
        assert node.parent is not None
        assert node.parent.children[self._key(node.tokens, 0)] is node, "a node is not the child its first page names"
        assert node.locks >= sum(child.locks for child in children), "a path is locked in part"
        assert node.hits >= max((child.hits for child in children), default=0), "a hit skipped a page"
        assert node.sharers >= max((child.sharers for child in children), default=0), (
            "who shares a page shares its prefix"
        )

    def __str__(self) -> str:
        lines = [f"{self.num_pages} cached pages, {self.num_evictable_pages} evictable"]
        waiting = [(child, 1) for child in self.root.children.values()]
        while waiting:
            node, depth = waiting.pop()
            first = ",".join(map(str, node.tokens[: min(4, self.block_size)]))
            lines.append(f"{'  ' * depth}pages {list(node.pages)} tokens {first},.. locks {node.locks}")
            waiting.extend((child, depth + 1) for child in node.children.values())
        return "\n".join(lines)


def _common_tokens(own: array[int], other: array[int]) -> int:
    """How many leading tokens agree."""
    return next((at for at, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), min(len(own), len(other)))
