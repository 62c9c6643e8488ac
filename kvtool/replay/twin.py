"""The loops in Python: what c/ does, to read first, and to run where there is no gcc."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

import numpy as np

from kvtool.replay.core import NEVER, UNSEEN, IntArray, NodeArray


class PythonCore:
    """`Core` in Python."""

    name = "python"

    def tree(self) -> PythonTree:
        return PythonTree()

    def lru_distances(
        self, nodes: NodeArray, starts: IntArray, sizes: IntArray | None, num_nodes: int, *, tail_last: bool
    ) -> IntArray:
        return _Stack(len(starts) - 1, num_nodes, _sizes(sizes, num_nodes)).distances(nodes, starts, tail_last)

    def next_requests(self, nodes: NodeArray, starts: IntArray, num_nodes: int, first: int) -> NodeArray:
        following = np.empty(len(nodes), dtype=np.int32)
        coming = np.full(num_nodes, NEVER, dtype=np.int32)
        for request in range(len(starts) - 2, -1, -1):
            own = nodes[starts[request] : starts[request + 1]]
            following[starts[request] : starts[request + 1]] = coming[own]
            coming[own] = request if request >= first else NEVER
        return following

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
        following = np.zeros(len(nodes), np.int32) if next_use is None else next_use
        cache = _Leaves(KEYS[policy], capacity, parents.tolist(), _sizes(sizes, len(parents)), policy == "optimal")
        hits = [
            cache.request(number, own, following[at : at + len(own)].tolist())
            for number, (at, own) in enumerate(_requests(nodes, starts))
        ]
        return np.array(hits, dtype=np.int64)

    def plain(
        self,
        policy: str,
        capacity: int,
        nodes: NodeArray,
        starts: IntArray,
        sizes: IntArray | None,
        num_nodes: int,
    ) -> IntArray:
        cache = _Plain(KEYS[policy], capacity, _sizes(sizes, num_nodes))
        return np.array([cache.request(at, own) for at, own in _requests(nodes, starts)], dtype=np.int64)

    def minimum(
        self, capacity: int, nodes: NodeArray, starts: IntArray, num_nodes: int, next_use: NodeArray
    ) -> IntArray:
        cache = _Minimum(capacity)
        uses = next_use.tolist()
        return np.array(
            [cache.request(own, uses[at : at + len(own)]) for at, own in _requests(nodes, starts)], np.int64
        )


def _sizes(sizes: IntArray | None, num_nodes: int) -> list[int]:
    return [1] * num_nodes if sizes is None else sizes.tolist()


def _requests(nodes: NodeArray, starts: IntArray) -> Iterator[tuple[int, list[int]]]:
    """Where each request begins, and its nodes."""
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        yield start, nodes[start:end].tolist()


class PythonTree:
    """`Tree` as a dict of (parent, id)."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, int], int] = {}

    def add(self, ids: IntArray, lengths: IntArray) -> NodeArray:
        nodes: list[int] = []
        own = iter(ids.tolist())
        for length in lengths.tolist():
            node = -1
            for _ in range(length):
                node = self._nodes.setdefault((node, next(own)), len(self._nodes))
                nodes.append(node)
        return np.array(nodes, dtype=np.int32)

    def ids(self) -> IntArray:
        return np.array([key[1] for key in self._nodes], dtype=np.int64)

    def parents(self) -> NodeArray:
        return np.array([key[0] for key in self._nodes], dtype=np.int32)


class _Stack:
    """The stack of LRU: what each request still holds of it, newest on top.

    A request's nodes move to the top together. What an older request still holds of its path is then a run of nodes,
    and the path of the next one takes whole runs from the top of it. So the stack is a sum a request (Fenwick tree),
    not one a block, and a path of k blocks in j runs costs k + j log(requests).
    """

    def __init__(self, num_requests: int, num_nodes: int, sizes: list[int]) -> None:
        self._sizes = sizes
        self._sums = [0] * (num_requests + 1)
        self._total = 0
        self._own = [0] * num_requests
        self._last = [UNSEEN] * num_nodes

    def distances(self, nodes: NodeArray, starts: IntArray, tail_last: bool) -> IntArray:
        """Room for each access. `tail_last`: plain LRU, whose older nodes of a path lie below the newer, so that a run
        hits whole or not at all."""
        distances: list[int] = []
        for request, (_, own) in enumerate(_requests(nodes, starts)):
            at = 0
            while at < len(own) and (holder := self._last[own[at]]) != UNSEEN:
                above, run = self._above(holder), 0
                whole = above + self._own[holder]
                while at < len(own) and self._last[own[at]] == holder:
                    run += self._sizes[own[at]]
                    distances.append(whole if tail_last else above + run)
                    self._last[own[at]] = request
                    at += 1
                self._move(run, holder, request)
            fresh = own[at:]
            distances += [UNSEEN] * len(fresh)
            for node in fresh:
                self._last[node] = request
            self._add(request, sum(self._sizes[node] for node in fresh))
        return np.array(distances, dtype=np.int64)

    def _move(self, amount: int, holder: int, request: int) -> None:
        """From an older request to this one; to holders older still it stays above."""
        self._add(holder, -amount)
        self._add(request, amount)

    def _add(self, request: int, amount: int) -> None:
        self._own[request] += amount
        self._total += amount
        index = request + 1
        while index < len(self._sums):
            self._sums[index] += amount
            index += index & -index

    def _above(self, request: int) -> int:
        """What requests after `request` hold."""
        total, index = self._total, request + 1
        while index:
            total -= self._sums[index]
            index -= index & -index
        return total


Key = tuple[int, int]
KeyOf = Callable[[Key | None, int, int], Key]
KEYS: dict[str, KeyOf] = {
    "lru": lambda old, request, following: (request, 0),
    "fifo": lambda old, request, following: old or (request, 0),
    "lfu": lambda old, request, following: ((old[0] if old else 0) + 1, request),
    "fifo-plain": lambda old, clock, following: old or (clock, 0),
    "lfu-plain": lambda old, clock, following: ((old[0] if old else 0) + 1, clock),
    "optimal": lambda old, request, following: (-following, 0),
}  # of a block used by `request` and next by `following`, from its key before; the lowest goes first


class _Leaves:
    """A cache that evicts leaves of the prefix tree, lowest key first, but for those of the current request.

    `bypass`: a block that would go before all others does not come in.
    """

    def __init__(self, key_of: KeyOf, capacity: int, parents: list[int], sizes: list[int], bypass: bool) -> None:
        self._key_of, self._capacity, self._parents, self._sizes, self._bypass = (
            key_of,
            capacity,
            parents,
            sizes,
            bypass,
        )
        self._keys: dict[int, Key] = {}  # of resident nodes
        self._children = [0] * len(parents)
        self._heap: list[tuple[Key, int]] = []
        self._used = 0

    def request(self, number: int, path: list[int], following: list[int]) -> int:
        """Look the path up, touch what hits, and bring in the rest head to tail. The blocks that hit."""
        hits = 0
        while hits < len(path) and path[hits] in self._keys:
            self._keys[path[hits]] = self._key_of(self._keys[path[hits]], number, following[hits])
            hits += 1
        deepest = path[hits - 1] if hits else -1
        for node, use in zip(path[hits:], following[hits:], strict=True):
            key = self._key_of(None, number, use)
            if not self._make_room(self._sizes[node], key, deepest):
                break
            self._used += self._sizes[node]
            self._keys[node] = key
            if deepest >= 0:
                self._children[deepest] += 1
            deepest = node
        if deepest >= 0:
            self._offer(deepest)
        return hits

    def _make_room(self, size: int, key: Key, deepest: int) -> bool:
        """Evict until `size` fits; False where nothing more can go. The path's only leaf is `deepest`."""
        while self._used + size > self._capacity:
            while self._heap and not self._holds(*self._heap[0], deepest):
                heapq.heappop(self._heap)
            if not self._heap or (self._bypass and self._heap[0][0] >= key):
                return False
            victim = heapq.heappop(self._heap)[1]
            del self._keys[victim]
            self._used -= self._sizes[victim]
            parent = self._parents[victim]
            if parent >= 0:
                self._children[parent] -= 1
                self._offer(parent)
        return True

    def _holds(self, key: Key, node: int, deepest: int) -> bool:
        """Whether an entry of the heap is still true, and not of the path in hand."""
        return node != deepest and self._children[node] == 0 and self._keys.get(node) == key

    def _offer(self, node: int) -> None:
        if self._children[node] == 0:
            heapq.heappush(self._heap, (self._keys[node], node))


class _Plain:
    """A cache that evicts whichever block has the lowest key; a request's blocks are touched head to tail."""

    def __init__(self, key_of: KeyOf, capacity: int, sizes: list[int]) -> None:
        self._key_of, self._capacity, self._sizes = key_of, capacity, sizes
        self._keys: dict[int, Key] = {}
        self._heap: list[tuple[Key, int]] = []
        self._used = 0

    def request(self, at: int, path: list[int]) -> int:
        hits = next((place for place, node in enumerate(path) if node not in self._keys), len(path))
        for clock, node in enumerate(path, at + 1):
            old = self._keys.get(node)
            if old is None and not self._bring_in(self._sizes[node]):
                continue
            self._keys[node] = self._key_of(old, clock, NEVER)
            if self._keys[node] != old:
                heapq.heappush(self._heap, (self._keys[node], node))
        return hits

    def _bring_in(self, size: int) -> bool:
        while self._used + size > self._capacity and self._keys:
            key, node = heapq.heappop(self._heap)
            if self._keys.get(node) == key:
                del self._keys[node]
                self._used -= self._sizes[node]
        if self._used + size > self._capacity:
            return False
        self._used += size
        return True


class _Minimum:
    """Belady's MIN over requests: of what is resident and what a request used, the blocks with the nearest next use
    stay, the upper ones of a path first. Blocks that are not used again never stay.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._keys: dict[int, Key] = {}
        self._heap: list[tuple[Key, int]] = []

    def request(self, path: list[int], following: list[int]) -> int:
        hits = next((place for place, node in enumerate(path) if node not in self._keys), len(path))
        for depth, (node, use) in enumerate(zip(path, following, strict=True)):
            self._keys.pop(node, None)
            if use != NEVER:
                self._keys[node] = (-use, -depth)
                heapq.heappush(self._heap, (self._keys[node], node))
        while len(self._keys) > self._capacity:
            key, node = heapq.heappop(self._heap)
            if self._keys.get(node) == key:
                del self._keys[node]
        return hits
