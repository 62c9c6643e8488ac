"""The loops in Python: what c/ does, to read first, and to run where there is no gcc."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

import numpy as np

from kvtool.replay.loops.core import NEVER, UNSEEN, IntArray, NodeArray, Walk


class PythonCore:
    """`Core` in Python."""

    name = "python"

    def tree(self) -> PythonTree:
        return PythonTree()

    def lru_distances(self, walk: Walk, *, tail_last: bool) -> IntArray:
        return _Stack(walk).distances(tail_last)

    def next_requests(self, walk: Walk, first: int) -> NodeArray:
        following = np.empty(len(walk.nodes), dtype=np.int32)
        coming = np.full(walk.num_nodes, NEVER, dtype=np.int32)
        for request in range(walk.num_requests - 1, -1, -1):
            place = slice(walk.starts[request], walk.starts[request + 1])
            following[place] = coming[walk.nodes[place]]
            coming[walk.nodes[place]] = request if request >= first else NEVER
        return following

    def leaves(self, policy: str, capacity: int, walk: Walk, next_use: NodeArray | None = None) -> IntArray:
        following = np.zeros(len(walk.nodes), np.int32) if next_use is None else next_use
        cache = _Leaves(KEYS[policy], capacity, walk, bypass=policy == "optimal")
        hits = [
            cache.request(number, own, following[at : at + len(own)].tolist())
            for number, (at, own) in enumerate(_requests(walk))
        ]
        return np.array(hits, dtype=np.int64)

    def plain(self, policy: str, capacity: int, walk: Walk) -> IntArray:
        cache = _Plain(KEYS[policy], capacity, walk)
        return np.array([cache.request(at, own) for at, own in _requests(walk)], dtype=np.int64)

    def minimum(self, capacity: int, walk: Walk, next_use: NodeArray) -> IntArray:
        cache, uses = _Minimum(capacity), next_use.tolist()
        hits = [cache.request(own, uses[at : at + len(own)]) for at, own in _requests(walk)]
        return np.array(hits, dtype=np.int64)


def _sizes(walk: Walk) -> list[int]:
    return [1] * walk.num_nodes if walk.sizes is None else walk.sizes.tolist()


def _requests(walk: Walk) -> Iterator[tuple[int, list[int]]]:
    """Where each request begins, and its nodes."""
    for start, end in zip(walk.starts[:-1].tolist(), walk.starts[1:].tolist(), strict=True):
        yield start, walk.nodes[start:end].tolist()


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

    def __init__(self, walk: Walk) -> None:
        self._walk, self._sizes = walk, _sizes(walk)
        self._sums = [0] * (walk.num_requests + 1)
        self._total = 0
        self._own = [0] * walk.num_requests
        self._last = [UNSEEN] * walk.num_nodes

    def distances(self, tail_last: bool) -> IntArray:
        """Room for each access. `tail_last`: plain LRU, whose older nodes of a path lie below the newer, so that a run
        hits whole or not at all."""
        distances: list[int] = []
        for request, (_, own) in enumerate(_requests(self._walk)):
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

    def __init__(self, key_of: KeyOf, capacity: int, walk: Walk, *, bypass: bool) -> None:
        self._key_of, self._capacity, self._bypass = key_of, capacity, bypass
        self._parents, self._sizes = walk.parents.tolist(), _sizes(walk)
        self._keys: dict[int, Key] = {}  # of resident nodes
        self._children = [0] * walk.num_nodes
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

    def __init__(self, key_of: KeyOf, capacity: int, walk: Walk) -> None:
        self._key_of, self._capacity, self._sizes = key_of, capacity, _sizes(walk)
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
