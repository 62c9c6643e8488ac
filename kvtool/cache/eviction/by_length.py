"""What goes first by where it stands in its prefix: how long that is, what is left of it, what it costs to compute."""

from __future__ import annotations

from kvtool.cache.eviction.base import Known, Ranked
from kvtool.cache.index.node import Node


class SizeAware(Ranked):
    """A long prefix that is seldom hit goes first: uses a page of the whole prefix, over a floor that rises with every
    victim, so that what was used often long ago goes at last (as GreedyDual-Size with frequency, of web caches)."""

    by_run = False

    def __init__(self, known: Known | None = None) -> None:
        super().__init__(known)
        self._floor = 0.0
        self._floors: dict[Node, float] = {}  # when each node was used last

    def add(self, node: Node) -> None:
        self._floors[node] = self._floor
        super().add(node)

    def discard(self, node: Node) -> None:
        super().discard(node)
        del self._floors[node]

    def rank(self, node: Node) -> tuple[float, int]:
        return self._floors[node] + (node.hits + 1) / node.depth_pages, node.last_used

    def victim(self) -> Node:
        node = super().victim()
        self._floor = self.rank(node)[0]
        return node


class RemainingLength(Ranked):
    """What a next turn can compute again within `spare_tokens` goes first, then the least recently used (Tail-Optimized
    LRU, arXiv 2510.15152): the ends of long conversations go before any beginning."""

    by_run = False

    def rank(self, node: Node) -> tuple[bool, int]:
        lost_tokens = (node.reach_pages - node.depth_pages + 1) * self.known.page_tokens
        return lost_tokens > self.known.spare_tokens, node.last_used


class CostAware(Ranked):
    """What is old and cheap to compute again goes first: by the count of its last use, plus `WORTH` for every
    `even_tokens` before it, each of which adds the FLOPs of one layer stack without attention to what a page saves
    (recency + alpha x FLOPs saved a byte, as Marconi, arXiv 2411.19379)."""

    WORTH = 32
    by_run = False

    def rank(self, node: Node) -> tuple[float, int]:
        depth_tokens = node.depth_pages * self.known.page_tokens
        return node.last_used + self.WORTH * depth_tokens / self.known.even_tokens, node.last_used
