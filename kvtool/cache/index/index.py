"""The indexes by name."""

from __future__ import annotations

from typing import Any

from kvtool.cache.eviction.base import Known
from kvtool.cache.eviction.eviction import eviction_policy
from kvtool.cache.index.base import PrefixIndex
from kvtool.cache.index.hashed import HashedIndex
from kvtool.cache.index.radix import RadixTree
from kvtool.system.errors import KvtoolError, did_you_mean

INDEXES = ("radix", "hashed")


def check_index(name: str, eviction: str) -> None:
    """Raises KvtoolError for a name that is not known, and for a policy that the hashed index has no use for."""
    if name not in INDEXES:
        raise KvtoolError(f"index {name!r} is not one of {', '.join(INDEXES)}{did_you_mean(name, INDEXES)}")
    eviction_policy(eviction)
    if name == "hashed" and eviction != "lru":
        raise KvtoolError(f"the hashed index evicts in the order of its queue, lru: for {eviction} take index radix")


def prefix_index(name: str, eviction: str, *, num_pages: int, known: Known) -> PrefixIndex[Any]:
    """An index of an empty pool. Raises KvtoolError as `check_index`."""
    check_index(name, eviction)
    if name == "hashed":
        return HashedIndex(known.page_tokens, num_pages)
    return RadixTree(known.page_tokens, eviction_policy(eviction, known))
