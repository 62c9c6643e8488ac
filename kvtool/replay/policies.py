"""The policies by name, and a replay of one at one capacity."""

from __future__ import annotations

from kvtool.cache.eviction.eviction import EVICTION
from kvtool.replay.accesses import Accesses
from kvtool.replay.loops.core import LEAF_POLICIES, PLAIN_POLICIES, Core, IntArray, NodeArray
from kvtool.replay.tree import tree_hits
from kvtool.system.errors import KvtoolError, did_you_mean

_OWN = {
    "lru": "evicts the leaf of the prefix tree that was used least recently",
    "fifo": "evicts the leaf that was stored first",
    "lfu": "evicts the leaf with the fewest uses since it was stored, the least recent of them",
    "optimal": "evicts the leaf that is used latest, knowing all requests, and does not store a block that would go "
    "first (Belady); where blocks differ in bytes it is a heuristic, and the ceilings alone are bounds",
    "priority": "evicts the leaf whose last request named the lowest priority, the least recently used among equals; "
    "as lru where a trace names none",
    "lru-plain": "ignores the tree: evicts the block that was used least recently, a request's own used head to tail",
    "fifo-plain": "ignores the tree: evicts the block that was stored first",
    "lfu-plain": "ignores the tree: evicts the block with the fewest uses since it was stored, then the least recent",
}
POLICIES = {name: " ".join((policy.__doc__ or name).split()) for name, policy in EVICTION.items()} | _OWN


def check_policies(names: tuple[str, ...]) -> None:
    """Raises KvtoolError for a name that is no policy."""
    for name in names:
        if name not in POLICIES:
            raise KvtoolError(f"policy {name!r} is not one of {', '.join(POLICIES)}{did_you_mean(name, POLICIES)}")


def policy_hits(
    core: Core,
    policy: str,
    capacity: int,
    accesses: Accesses,
    *,
    sizes: IntArray | None,
    next_use: NodeArray | None,
) -> IntArray:
    """Blocks that each request hits, int64 [requests]. `next_use` (core.next_requests from 0 on) is for optimal.

    Raises KvtoolError for a policy of the engine's alone where blocks differ in bytes.
    """
    if policy in PLAIN_POLICIES:
        return core.plain(policy, capacity, accesses.walk(sizes))
    if policy in LEAF_POLICIES:
        return core.leaves(policy, capacity, accesses.walk(sizes), next_use)
    if sizes is not None:
        raise KvtoolError(f"policy {policy} replays blocks of one size: leave out --state-every")
    return tree_hits(policy, capacity, accesses)
