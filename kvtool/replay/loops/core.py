"""What the loops of a replay promise: `native` in C and its `twin` in Python, where no gcc is, give the same numbers.

Capacities are in the unit of a walk's sizes: bytes, or blocks where it has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

IntArray = np.ndarray[Any, np.dtype[np.int64]]
NodeArray = np.ndarray[Any, np.dtype[np.int32]]
FloatArray = np.ndarray[Any, np.dtype[np.float64]]

NEVER = np.iinfo(np.int32).max  # the next use of a block that is not used again
LEAF_POLICIES = ("lru", "fifo", "lfu", "optimal")  # in the order of c/policies.c
PLAIN_POLICIES = ("fifo-plain", "lfu-plain")
UNSEEN = -1  # the distance of a block that no capacity could have held


@dataclass(frozen=True, slots=True)
class Walk:
    """The paths of all requests down the prefix tree.

    `nodes` [blocks] int32 are those of one request after the other, request r's from `starts[r]` to `starts[r + 1]`
    (int64 [requests + 1]). `parents` [nodes] int32 is -1 below the root, and every parent comes before its children.
    `sizes` [nodes] int64 are bytes, None for blocks of one size.
    """

    nodes: NodeArray
    starts: IntArray
    parents: NodeArray
    sizes: IntArray | None = None

    @property
    def num_requests(self) -> int:
        return len(self.starts) - 1

    @property
    def num_nodes(self) -> int:
        return len(self.parents)


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

    def lru_distances(self, walk: Walk, *, tail_last: bool) -> IntArray:
        """The smallest capacity at which LRU hits each access, UNSEEN for the first of a node; int64 [blocks]."""

    def next_requests(self, walk: Walk, first: int) -> NodeArray:
        """The request that uses each access's node next, of those from `first` on, or NEVER; int32 [blocks]."""

    def leaves(self, policy: str, capacity: int, walk: Walk, next_use: NodeArray | None = None) -> IntArray:
        """Blocks that each request hits under one of LEAF_POLICIES; int64 [requests]. `next_use` is for optimal."""

    def plain(self, policy: str, capacity: int, walk: Walk) -> IntArray:
        """Blocks that each request hits under one of PLAIN_POLICIES, which ignore the tree; int64 [requests]."""

    def minimum(self, capacity: int, walk: Walk, next_use: NodeArray) -> IntArray:
        """Blocks that each request hits under Belady's MIN over requests, blocks of one size; int64 [requests]."""
