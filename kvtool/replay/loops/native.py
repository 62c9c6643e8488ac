"""The loops in C: built once by the machine's gcc, in about a second, and called through ctypes."""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from kvtool.replay.loops.core import LEAF_POLICIES, IntArray, NodeArray, Walk
from kvtool.system.compiled import load_library

SOURCES = Path(__file__).with_name("c")

_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "prefixes_new": (c_void_p, ()),
    "prefixes_free": (None, (c_void_p,)),
    "prefixes_size": (c_int64, (c_void_p,)),
    "prefixes_copy": (None, (c_void_p,) * 3),
    "prefixes_add": (c_int, (c_void_p, c_void_p, c_void_p, c_int64, c_void_p)),
    "lru_distances": (c_int, (c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_int, c_void_p)),
    "next_requests": (c_int, (c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p)),
    "replay_leaves": (
        c_int,
        (c_int, c_int64, c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_void_p, c_void_p),
    ),
    "replay_minimum": (c_int, (c_int64, c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p)),
    "replay_plain_fifo": (c_int, (c_int64, c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p)),
    "replay_plain_lfu": (c_int, (c_int64, c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p)),
}


def native() -> NativeCore | None:
    """The loops, built now if this machine has not built them before; None where they cannot be."""
    library = load_library(SOURCES).handle
    return None if library is None else NativeCore(library)


class NativeCore:
    """`Core` in C. Its functions keep no state and hold no lock of Python's, so that threads run them side by side."""

    name = "c"

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments

    def tree(self) -> NativeTree:
        return NativeTree(self._library)

    def lru_distances(self, walk: Walk, *, tail_last: bool) -> IntArray:
        distances = np.empty(len(walk.nodes), dtype=np.int64)
        _fits(self._library.lru_distances(*_paths(walk), walk.num_nodes, _at(walk.sizes), tail_last, _at(distances)))
        return distances

    def next_requests(self, walk: Walk, first: int) -> NodeArray:
        following = np.empty(len(walk.nodes), dtype=np.int32)
        _fits(self._library.next_requests(*_paths(walk), walk.num_nodes, first, _at(following)))
        return following

    def leaves(self, policy: str, capacity: int, walk: Walk, next_use: NodeArray | None = None) -> IntArray:
        hits, tree = np.empty(walk.num_requests, dtype=np.int64), (_at(walk.parents), walk.num_nodes, _at(walk.sizes))
        number = LEAF_POLICIES.index(policy)
        _fits(self._library.replay_leaves(number, capacity, *_paths(walk), *tree, _at(next_use), _at(hits)))
        return hits

    def plain(self, policy: str, capacity: int, walk: Walk) -> IntArray:
        loop = {"fifo-plain": self._library.replay_plain_fifo, "lfu-plain": self._library.replay_plain_lfu}[policy]
        hits = np.empty(walk.num_requests, dtype=np.int64)
        _fits(loop(capacity, *_paths(walk), walk.num_nodes, _at(walk.sizes), _at(hits)))
        return hits

    def minimum(self, capacity: int, walk: Walk, next_use: NodeArray) -> IntArray:
        hits = np.empty(walk.num_requests, dtype=np.int64)
        _fits(self._library.replay_minimum(capacity, *_paths(walk), walk.num_nodes, _at(next_use), _at(hits)))
        return hits


class NativeTree:
    """`Tree` in C; its memory goes back with it."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._tree = library.prefixes_new()
        _fits(self._tree)

    def __del__(self) -> None:
        self._library.prefixes_free(self._tree)

    def add(self, ids: IntArray, lengths: IntArray) -> NodeArray:
        nodes = np.empty(len(ids), dtype=np.int32)
        _fits(self._library.prefixes_add(self._tree, _at(ids), _at(lengths), len(lengths), _at(nodes)))
        return nodes

    def ids(self) -> IntArray:
        return self._copy()[0]

    def parents(self) -> NodeArray:
        return self._copy()[1]

    def _copy(self) -> tuple[IntArray, NodeArray]:
        size = self._library.prefixes_size(self._tree)
        ids, parents = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int32)
        self._library.prefixes_copy(self._tree, _at(ids), _at(parents))
        return ids, parents


def _paths(walk: Walk) -> tuple[int | None, int | None, int]:
    """What all loops begin with: nodes, starts, and how many requests."""
    return _at(walk.nodes), _at(walk.starts), walk.num_requests


def _at(values: np.ndarray[Any, Any] | None) -> int | None:
    """The address of an array, which must be contiguous and of the type that its name in core.py says."""
    if values is None:
        return None
    assert values.flags.c_contiguous
    return int(values.ctypes.data)


def _fits(result: int | None) -> None:
    if not result:
        raise MemoryError("the replay does not fit into memory")
