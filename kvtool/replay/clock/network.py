"""Links shared by flows, max-min fair: a flow gets all that no flow with less could use.

Flows over the same links get the same rate, so they are a class: it counts the bytes that each of its flows was served
since it began, and a flow is done when that has grown by its size. An event costs as much as there are classes, however
many flows wait.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

Path = tuple[int, ...]  # the links of a flow; one that it crosses twice stands there twice
Done = Callable[[], None]
NEVER = float("inf")
MOMENT_S = 1e-9  # a time of hours has no smaller step in which the last bit of a flow could pass


@dataclass(slots=True, eq=False)
class Flow:
    """Bytes over the links of `path`; `done` is called when the last of them is there, unless it was stopped."""

    path: Path
    num_bytes: float
    done: Done
    stopped: bool = False


class _Class:
    """Flows over one path. `heap` has what `served` must come to for each of them."""

    def __init__(self, path: Path) -> None:
        self.crossings = {link: path.count(link) for link in path}
        self.heap: list[tuple[float, int, Flow]] = []
        self.served = 0.0
        self.rate = 0.0

    def left_s(self) -> float:
        return max(0.0, self.heap[0][0] - self.served) / self.rate if self.heap and self.rate else NEVER


class Network:
    """Links of `bytes_per_s` each."""

    def __init__(self, bytes_per_s: Sequence[float]) -> None:
        self.moved = [0.0] * len(bytes_per_s)  # bytes through each link so far
        self._capacity = list(bytes_per_s)
        self._classes: dict[Path, _Class] = {}
        self._number = count()
        self._stale = False

    def add(self, flow: Flow) -> None:
        """It starts now; its `done` is called from `advance` when the last byte is there."""
        flows = self._classes.get(flow.path)
        if flows is None:
            flows = self._classes[flow.path] = _Class(flow.path)
        heapq.heappush(flows.heap, (flows.served + flow.num_bytes, next(self._number), flow))
        self._stale = True

    def remove(self, flow: Flow) -> float:
        """The bytes of a flow that have not arrived: it ends here. All of them where it has not started."""
        flows = self._classes.get(flow.path)
        entry = next((entry for entry in flows.heap if entry[2] is flow), None) if flows else None
        if flows is None or entry is None:
            return flow.num_bytes
        left = max(0.0, entry[0] - flows.served)
        flows.heap.remove(entry)
        heapq.heapify(flows.heap)
        if not flows.heap:
            del self._classes[flow.path]
        self._stale = True
        return left

    def left_s(self) -> float:
        """Until the next flow is done, if none is added before; NEVER where none is there."""
        self._refresh()
        return min((flows.left_s() for flows in self._classes.values()), default=NEVER)

    def advance(self, seconds: float) -> None:
        """Let that time pass, of at most `left_s`, and call what is done."""
        self._refresh()
        done: list[Flow] = []
        for path, flows in list(self._classes.items()):
            ends = flows.left_s() - seconds <= MOMENT_S
            step = flows.rate * seconds
            for link, times in flows.crossings.items():
                self.moved[link] += step * times * len(flows.heap)
            flows.served = flows.heap[0][0] if ends else flows.served + step
            while flows.heap and flows.heap[0][0] <= flows.served:
                done.append(heapq.heappop(flows.heap)[2])
                self._stale = True
            if not flows.heap:
                del self._classes[path]  # a class begins at 0 again: sums of many flows would lose digits
        for flow in done:
            if not flow.stopped:  # by one that was done in the same moment
                flow.done()

    def _refresh(self) -> None:
        if self._stale:
            counted = {path: (len(flows.heap), flows.crossings) for path, flows in self._classes.items()}
            rates = fair_rates(counted, self._capacity)
            for path, flows in self._classes.items():
                flows.rate = rates[path]
            self._stale = False


def fair_rates(classes: Mapping[Path, tuple[int, Mapping[int, int]]], capacity: Sequence[float]) -> dict[Path, float]:
    """The rate of a flow of each class, of so many flows that cross each link so often.

    Water rises for all alike until a link is full; its flows stay there, and the others rise on.
    """
    left = list(capacity)
    rates: dict[Path, float] = {}
    open_classes = dict(classes)
    while open_classes:
        load: dict[int, int] = {}
        for flows, crossings in open_classes.values():
            for link, times in crossings.items():
                load[link] = load.get(link, 0) + flows * times
        full = min(load, key=lambda link: left[link] / load[link])
        share = max(0.0, left[full]) / load[full]
        for path in [path for path, (_, crossings) in open_classes.items() if full in crossings]:
            flows, crossings = open_classes.pop(path)
            rates[path] = share
            for link, times in crossings.items():
                left[link] -= share * flows * times
    return rates
