"""What an eviction policy is: it holds the runs that no sequence locks and names the leaf that goes next.

Most are a rank of nodes:

    class Largest(Ranked):
        def rank(self, node):
            return -len(node.pages)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any

from kvtool.cache.index.node import Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a policy may know beside the runs.

    - clock: gives seconds; time stands still where nobody says otherwise.
    - page_tokens: tokens a page.
    - spare_tokens: how many tokens of its past a next turn may compute again without being late.
    - even_tokens: the context at which attention takes as many FLOPs a token as all the rest.
    """

    clock: Callable[[], float] = lambda: 0.0
    page_tokens: int = 1
    spare_tokens: int = 512
    even_tokens: float = 32_768


class EvictionPolicy(ABC):
    """The unlocked nodes of one index, and the order in which they go. The index calls `add`, `discard` and `update`.

    `by_run` says that all pages of a run rank alike; where it is False, the next victim is asked for after every page.
    """

    by_run = True

    def __init__(self, known: Known | None = None) -> None:
        self.known = known or Known()

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


class Ranked(EvictionPolicy):
    """The leaf of the lowest rank goes first, the one that was ranked first among equals. O(log n) a node.

    `_entries` has the heap's entry of each unlocked leaf, None for a node with children. Entries that are no longer
    the node's own are skipped when they surface, and dropped when they are the most.
    """

    def __init__(self, known: Known | None = None) -> None:
        super().__init__(known)
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
