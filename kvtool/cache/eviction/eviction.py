"""The eviction policies by name."""

from __future__ import annotations

from kvtool.cache.eviction.base import EvictionPolicy, Ranked
from kvtool.cache.eviction.lru import Lru
from kvtool.cache.index.node import Node
from kvtool.errors import KvtoolError, did_you_mean


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
