"""What goes first by how often, and by how many, it was used."""

from __future__ import annotations

from kvtool.cache.eviction.base import Ranked
from kvtool.cache.index.node import Node


class Lfu(Ranked):
    """The least often hit goes first, the least recently used among equals."""

    def rank(self, node: Node) -> tuple[int, int]:
        return node.hits, node.last_used


class Fifo(Ranked):
    """What was added first goes first, used or not."""

    def rank(self, node: Node) -> int:
        return node.created


class NeverHitFirst(Ranked):
    """What nobody ever found cached goes first, the least recently used among equals."""

    def rank(self, node: Node) -> tuple[bool, int]:
        return node.hits > 0, node.last_used


class SharedPrefixFirst(Ranked):
    """What the fewest different prefixes go through goes first, the least recently used among equals: what many share
    is kept first of all."""

    def rank(self, node: Node) -> tuple[int, int]:
        return node.sharers, node.last_used
