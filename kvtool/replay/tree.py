"""A replay through the very tree and eviction policies that the engine runs, for blocks of one size.

The loops in C know the policies of core.py and must give the same numbers; every other policy of cache/eviction/ is
replayed here.
"""

from __future__ import annotations

import numpy as np

from kvtool.cache.eviction.base import Known
from kvtool.cache.eviction.eviction import eviction_policy
from kvtool.cache.index.radix import RadixTree
from kvtool.replay.accesses import Accesses, requests_of
from kvtool.replay.loops.core import IntArray


def tree_hits(name: str, capacity: int, accesses: Accesses) -> IntArray:
    """Blocks that each request hits in a tree of `capacity` pages, int64 [requests]."""
    policy = eviction_policy(name, Known(page_tokens=accesses.block_size))
    tree = RadixTree(1, policy)  # the node of a block stands for its tokens
    hits = [_request(tree, capacity, nodes.tolist()) for nodes in requests_of(accesses)]
    return np.array(hits, dtype=np.int64)


def _request(tree: RadixTree, capacity: int, nodes: list[int]) -> int:
    """Lock the prefix that is cached, store of the rest what there is room for, and unlock. The blocks that hit."""
    place, cached = tree.lock_prefix(nodes)
    tree.count_hit(place)
    missing = nodes[len(cached) :]
    tree.evict(max(0, tree.num_pages + len(missing) - capacity))
    kept = missing[: capacity - tree.num_pages]
    tree.unlock(tree.extend(place, kept, kept).place)
    return len(cached)
