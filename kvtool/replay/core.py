"""The loops of a replay, of which there are two that give the same numbers: in C, and in Python where no gcc is.

`core()` says which. All of them take a trace as `nodes` and `starts` (see accesses.py). `sizes` [nodes] int64 are the
bytes of each node, None for one block each; capacities are in the same unit.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

import numpy as np

IntArray = np.ndarray[Any, np.dtype[np.int64]]
NodeArray = np.ndarray[Any, np.dtype[np.int32]]
FloatArray = np.ndarray[Any, np.dtype[np.float64]]

NEVER = np.iinfo(np.int32).max  # the next use of a block that is not used again
LEAF_POLICIES = ("lru", "fifo", "lfu", "optimal")  # in the order of c/policies.c
PLAIN_POLICIES = ("fifo-plain", "lfu-plain")
UNSEEN = -1  # the distance of a block that no capacity could have held


class Tree(Protocol):
    """Block ids as nodes of a prefix tree, numbered in the order in which they are first seen."""

    def add(self, ids: IntArray, lengths: IntArray) -> NodeArray:
        """The node of each id, of requests with so many ids each, one after the other."""

    def ids(self) -> IntArray:
        """The id of each node."""

    def parents(self) -> NodeArray:
        """The parent of each node, -1 below the root."""


class Core(Protocol):
    """What replays are made of."""

    name: str

    def tree(self) -> Tree:
        """A prefix tree without nodes."""

    def lru_distances(
        self, nodes: NodeArray, starts: IntArray, sizes: IntArray | None, num_nodes: int, *, tail_last: bool
    ) -> IntArray:
        """The smallest capacity at which LRU hits each access, UNSEEN for the first of a node; int64 [blocks]."""

    def next_requests(self, nodes: NodeArray, starts: IntArray, num_nodes: int, first: int) -> NodeArray:
        """The request that uses each access's node next, of those from `first` on, or NEVER; int32 [blocks]."""

    def leaves(
        self,
        policy: str,
        capacity: int,
        nodes: NodeArray,
        starts: IntArray,
        parents: NodeArray,
        sizes: IntArray | None,
        next_use: NodeArray | None,
    ) -> IntArray:
        """Blocks that each request hits when leaves are evicted; int64 [requests]."""

    def plain(
        self,
        policy: str,
        capacity: int,
        nodes: NodeArray,
        starts: IntArray,
        sizes: IntArray | None,
        num_nodes: int,
    ) -> IntArray:
        """Blocks that each request hits under a policy that ignores the tree; int64 [requests]."""

    def minimum(
        self, capacity: int, nodes: NodeArray, starts: IntArray, num_nodes: int, next_use: NodeArray
    ) -> IntArray:
        """Blocks that each request hits under Belady's MIN over requests, blocks of one size; int64 [requests]."""


@cache
def core() -> Core:
    """The loops in C, built now if this machine has not built them before, else those in Python."""
    from kvtool.replay.native import native
    from kvtool.replay.twin import PythonCore

    return native() or PythonCore()
