"""Which blocks each tier holds, request by request; each tier evicts what was used least recently, tails first."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Moved:
    """Blocks of one request. `places` says of its hits, in the order of the prompt, which tier holds each (0: the GPU).
    `written` counts what is written to each tier below. `stored_by` has, for runs of hits, the place where a run begins
    and the number of the request that last stored it; `brought_by` that of the one that last had it loaded, for runs in
    the GPU that one did.
    """

    places: tuple[int, ...]
    written: tuple[int, ...]
    stored_by: tuple[tuple[int, int], ...] = ()
    brought_by: tuple[tuple[int, int], ...] = ()


class Stores:
    """Room for `capacities` blocks in the GPU, then in each tier below it. Options as of TierOptions."""

    def __init__(
        self,
        capacities: Sequence[int],
        *,
        exclusive: bool,
        write_after: int | None,
        watermark: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        gpu, *below = capacities
        high, low = watermark
        self._shelves = [_Shelf(gpu, gpu), *(_Shelf(int(room * high), int(room * low)) for room in below)]
        self._exclusive, self._write_after = exclusive, write_after
        self._hits: dict[int, int] = {}
        self._stored_by: dict[int, int] = {}
        self._brought_by: dict[int, int] = {}
        self._number = 0

    def request(self, path: list[int]) -> Moved:
        """Look a path up, bring all of it into the GPU, and move down what the policy says."""
        places = self._find(path)
        hit = path[: len(places)]
        if self._exclusive:
            for shelf in self._shelves[1:]:
                shelf.drop(hit)
        else:
            for shelf in self._shelves[1:]:
                shelf.touch(hit)
        leaving = self._shelves[0].bring(path)
        written = self._back(leaving) if self._write_after is None else self._through(path, len(places))
        stored_by = tuple(_runs(map(self._stored_by.get, hit)))
        in_gpu = itertools.takewhile(lambda at: not places[at], range(len(hit)))
        brought_by = tuple(_runs(self._brought_by.get(hit[at]) for at in in_gpu))
        self._stored_by.update(dict.fromkeys(path[len(hit) :], self._number))
        self._brought_by.update((node, self._number) for node, place in zip(hit, places, strict=True) if place)
        self._number += 1
        return Moved(tuple(places), tuple(written), stored_by, brought_by)

    def _find(self, path: list[int]) -> list[int]:
        places = []
        for node in path:
            place = next((tier for tier, shelf in enumerate(self._shelves) if node in shelf.held), None)
            if place is None:
                break
            places.append(place)
        return places

    def _back(self, leaving: list[int]) -> list[int]:
        """What leaves a tier is written to the next, unless that has it."""
        written = []
        for shelf in self._shelves[1:]:
            fresh = [node for node in leaving if node not in shelf.held]
            leaving = shelf.bring(leaving[::-1])
            written.append(sum(node in shelf.held for node in fresh))
        return written

    def _through(self, path: list[int], hits: int) -> list[int]:
        """What has been hit often enough is written to every tier that does not have it."""
        ready = path
        if self._write_after:
            for node in path[:hits]:
                self._hits[node] = self._hits.get(node, 0) + 1
            ready = [node for node in path if self._hits.get(node, 0) >= self._write_after]
        written = []
        for shelf in self._shelves[1:]:
            fresh = [node for node in ready if node not in shelf.held]
            shelf.bring(ready)
            written.append(sum(node in shelf.held for node in fresh))
        return written


def _runs(numbers: Iterable[int | None]) -> Iterator[tuple[int, int]]:
    """Where a number begins that is not the one before it; None is no number."""
    before = None
    for place, number in enumerate(numbers):
        if number is not None and number != before:
            yield place, number
        before = number


class _Shelf:
    """Blocks of one tier, the least recently used first. With more than `high` of them it evicts down to `low`."""

    def __init__(self, high: int, low: int) -> None:
        self.held: OrderedDict[int, None] = OrderedDict()
        self._high, self._low = high, low

    def touch(self, path: Sequence[int]) -> None:
        """Use those of a path that are here: its tail goes before its head."""
        for node in reversed(path):
            if node in self.held:
                self.held.move_to_end(node)

    def bring(self, path: Sequence[int]) -> list[int]:
        """Use or store all of a path, and the blocks that have to go for it, deepest first."""
        for node in reversed(path):
            self.held[node] = None
            self.held.move_to_end(node)
        leaving = len(self.held) - self._low if len(self.held) > self._high else 0
        return [self.held.popitem(last=False)[0] for _ in range(leaving)]

    def drop(self, nodes: Iterable[int]) -> None:
        for node in nodes:
            self.held.pop(node, None)
