"""The eviction policies by name."""

from __future__ import annotations

from kvtool.cache.eviction.base import EvictionPolicy, Known
from kvtool.cache.eviction.by_length import CostAware, RemainingLength, SizeAware
from kvtool.cache.eviction.by_use import Fifo, Lfu, NeverHitFirst, SharedPrefixFirst
from kvtool.cache.eviction.lru import Lru
from kvtool.cache.eviction.priority import Priority
from kvtool.system.errors import KvtoolError, did_you_mean

EVICTION: dict[str, type[EvictionPolicy]] = {
    "lru": Lru,
    "lfu": Lfu,
    "fifo": Fifo,
    "priority": Priority,
    "never-hit-first": NeverHitFirst,
    "shared-prefix-first": SharedPrefixFirst,
    "size-aware": SizeAware,
    "remaining-length": RemainingLength,
    "cost-aware": CostAware,
}


def eviction_policy(name: str, known: Known | None = None) -> EvictionPolicy:
    """A policy for one index. Raises KvtoolError for a name that is not known."""
    if name not in EVICTION:
        raise KvtoolError(f"eviction policy {name!r} is not one of {', '.join(EVICTION)}{did_you_mean(name, EVICTION)}")
    return EVICTION[name](known)
