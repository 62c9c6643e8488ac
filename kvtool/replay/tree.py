"""A replay through the very tree and eviction policies that the engine runs, for blocks of one size.

The loops in C know the policies of core.py and must give the same numbers; every other policy of cache/eviction/ is
replayed here.
"""

from __future__ import annotations

import numpy as np

from kvtool.cache.eviction.base import Known
from kvtool.cache.eviction.eviction import eviction_policy
from kvtool.cache.index.radix import RadixTree
from kvtool.cache.retention import Retention
from kvtool.replay.accesses import Accesses, requests_of
from kvtool.replay.loops.core import IntArray


class _Clock:
    """Seconds of the trace: when the request that is replayed came."""

    now_s = 0.0


def tree_hits(name: str, capacity: int, accesses: Accesses) -> IntArray:
    """Blocks that each request hits in a tree of `capacity` pages, int64 [requests]."""
    clock = _Clock()
    policy = eviction_policy(name, Known(clock=lambda: clock.now_s, page_tokens=accesses.block_size))
    tree = RadixTree(1, policy)  # the node of a block stands for its tokens
    hits = []
    for place, nodes in enumerate(requests_of(accesses)):
        clock.now_s = float(accesses.arrival_s[place])
        hits.append(_request(tree, capacity, nodes.tolist(), accesses.retentions.get(place), clock.now_s))
    return np.array(hits, dtype=np.int64)


def _request(tree: RadixTree, capacity: int, nodes: list[int], retention: Retention | None, now_s: float) -> int:
    """Lock the prefix that is cached, store of the rest what there is room for, and unlock, as important as the request
    says. The blocks that hit."""
    place, cached = tree.lock_prefix(nodes)
    tree.count_hit(place)
    missing = nodes[len(cached) :]
    tree.evict(max(0, tree.num_pages + len(missing) - capacity))
    kept = missing[: capacity - tree.num_pages]
    place = tree.extend(place, kept, kept).place
    if retention is not None:
        tree.retain(place, retention.priority, now_s + retention.duration_s)
    tree.unlock(place)
    return len(cached)
