"""What was used least recently goes first, in the order in which locks were lost."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from kvtool.cache.eviction.base import EvictionPolicy, Known
from kvtool.cache.index.node import Node


class Lru(EvictionPolicy):
    """What lost its last lock first goes first. O(1) a node.

    A path is unlocked from its end, and locking a node locks its ancestors, so every node stands before its ancestors:
    the first is always a leaf.
    """

    def __init__(self, known: Known | None = None) -> None:
        super().__init__(known)
        self._order: OrderedDict[Node, None] = OrderedDict()

    def add(self, node: Node) -> None:
        self._order[node] = None

    def discard(self, node: Node) -> None:
        del self._order[node]

    def update(self, node: Node) -> None:
        """What a node lost does not make it older."""

    def victim(self) -> Node:
        return next(iter(self._order))

    def check(self, unlocked: Sequence[Node]) -> None:
        place = {node: place for place, node in enumerate(self._order)}
        assert place.keys() == set(unlocked), "evictable is not the same as unlocked"
        for node in unlocked:
            if node.parent in place:
                assert place[node] < place[node.parent], "a node would be evicted after its parent"

    def __str__(self) -> str:
        return f"lru, {len(self._order)} nodes unlocked"
