"""Which cached pages go first when room is needed: eviction policies, chosen by name.

A policy holds the nodes that no sequence locks and names the leaf that goes next. Most are a rank of nodes:

    class Largest(Ranked):
        def rank(self, node):
            return -len(node.pages)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any

from kvtool.cache.node import Node
from kvtool.errors import KvtoolError, did_you_mean


class EvictionPolicy(ABC):
    """The unlocked nodes of one index, and the order in which they go. The index calls `add`, `discard` and `update`.

    `by_run` says that all pages of a run rank alike; where it is False, the next victim is asked for after every page.
    """

    by_run = True

    @abstractmethod
    def add(self, node: Node) -> None:
        """`node` lost its last lock: it may go as soon as nothing hangs below it."""

    @abstractmethod
    def discard(self, node: Node) -> None:
        """`node` is locked again, or gone."""

    @abstractmethod
    def update(self, node: Node) -> None:
        """Unlocked `node` lost pages or its last child."""

    @abstractmethod
    def victim(self) -> Node:
        """The leaf whose last page goes next. At least one node must be there."""

    @abstractmethod
    def check(self, unlocked: Sequence[Node]) -> None:
        """The policy holds exactly the `unlocked` nodes of the index, in its own order."""


class Lru(EvictionPolicy):
    """What lost its last lock first goes first. O(1) a node.

    A path is unlocked from its end, and locking a node locks its ancestors, so every node stands before its ancestors:
    the first is always a leaf.
    """

    def __init__(self) -> None:
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


class Ranked(EvictionPolicy):
    """The leaf of the lowest rank goes first, the one that was ranked first among equals. O(log n) a node.

    `_entries` has the heap's entry of each unlocked leaf, None for a node with children. Entries that are no longer
    the node's own are skipped when they surface, and dropped when they are the most.
    """

    def __init__(self) -> None:
        self._entries: dict[Node, tuple[Any, int, Node] | None] = {}
        self._heap: list[tuple[Any, int, Node]] = []
        self._serial = count()

    @abstractmethod
    def rank(self, node: Node) -> Any:
        """Anything that compares: the lowest goes first. It must not change but by hits, pages and children."""

    def add(self, node: Node) -> None:
        self._entries[node] = None
        self.update(node)

    def discard(self, node: Node) -> None:
        del self._entries[node]

    def update(self, node: Node) -> None:
        if node.children:
            return
        entry, rank = self._entries[node], self.rank(node)
        if entry is None or entry[0] != rank:
            self._push((rank, next(self._serial), node))

    def _push(self, entry: tuple[Any, int, Node]) -> None:
        self._entries[entry[2]] = entry
        heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._entries) + 64:
            self._heap = [own for own in self._entries.values() if own is not None]
            heapify(self._heap)

    def victim(self) -> Node:
        while self._entries.get(self._heap[0][2]) is not self._heap[0]:
            heappop(self._heap)
        return self._heap[0][2]

    def check(self, unlocked: Sequence[Node]) -> None:
        assert self._entries.keys() == set(unlocked), "evictable is not the same as unlocked"
        waiting = {id(entry) for entry in self._heap}
        for node, entry in self._entries.items():
            assert (entry is None) == bool(node.children), "a leaf is not ranked, or a node with children is"
            if entry is not None:
                assert id(entry) in waiting, "a leaf would never be evicted"
                assert entry[0] == self.rank(node), "a leaf stands where it stood before it changed"

    def __str__(self) -> str:
        return f"{type(self).__name__.lower()}, {len(self._entries)} nodes unlocked"


class Lfu(Ranked):
    """The least often hit goes first, the least recently used among equals."""

    def rank(self, node: Node) -> tuple[int, int]:
        return node.hits, node.last_used


class Fifo(Ranked):
    """What was added first goes first, used or not."""

    def rank(self, node: Node) -> int:
        return node.created


EVICTION: dict[str, type[EvictionPolicy]] = {"lru": Lru, "lfu": Lfu, "fifo": Fifo}


def eviction_policy(name: str) -> EvictionPolicy:
    """A policy for one index. Raises KvtoolError for a name that is not known."""
    if name not in EVICTION:
        raise KvtoolError(f"eviction policy {name!r} is not one of {', '.join(EVICTION)}{did_you_mean(name, EVICTION)}")
    return EVICTION[name]()
