"""What goes first by what its requests asked for."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from itertools import count
from math import inf

from kvtool.cache.eviction.base import Known, Ranked
from kvtool.cache.index.node import DEFAULT_PRIORITY, Node


class Priority(Ranked):
    """The lowest priority goes first, the least recently used among equals; a priority that was given for a time falls
    back to the default after it (TensorRT-LLM's rule)."""

    def __init__(self, known: Known | None = None) -> None:
        super().__init__(known)
        self._ending: list[tuple[float, int, Node]] = []
        self._numbers = count()

    def add(self, node: Node) -> None:
        super().add(node)
        if node.expires_s < inf:
            heappush(self._ending, (node.expires_s, next(self._numbers), node))
        if len(self._ending) > 2 * len(self._entries) + 64:
            waiting = [own for own in self._entries if own.expires_s < inf]
            self._ending = [(own.expires_s, next(self._numbers), own) for own in waiting]
            heapify(self._ending)

    def rank(self, node: Node) -> tuple[int, int]:
        return node.priority, node.last_used

    def victim(self) -> Node:
        now_s = self.known.clock()
        while self._ending and self._ending[0][0] <= now_s:
            self._end(heappop(self._ending)[2], now_s)
        return super().victim()

    def _end(self, node: Node, now_s: float) -> None:
        """The node may be locked or gone by now, or have got more time."""
        if node in self._entries and node.expires_s <= now_s:
            node.priority, node.expires_s = DEFAULT_PRIORITY, inf
            self.update(node)
