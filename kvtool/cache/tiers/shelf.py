"""What one tier holds: keys with their sizes, the least recently used first, within a capacity."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator

Key = bytes


class Shelf:
    """Sizes and capacity are in one unit, pages or bytes. A pinned key stays until its last pin is gone."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self._sizes: OrderedDict[Key, int] = OrderedDict()
        self._pins: Counter[Key] = Counter()

    def __contains__(self, key: Key) -> bool:
        return key in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[Key]:
        """The least recently used first."""
        return iter(self._sizes)

    def add(self, key: Key, size: int = 1) -> None:
        """As the most recently used, beyond the capacity if need be: `victims` brings it back within."""
        self.discard(key)
        self._sizes[key] = size
        self.used += size

    def touch(self, key: Key) -> None:
        """`key` was used."""
        self._sizes.move_to_end(key)

    def discard(self, key: Key) -> None:
        """`key` is gone, if it was there."""
        self.used -= self._sizes.pop(key, 0)

    def pin(self, key: Key) -> None:
        """Its bytes are being moved."""
        self._pins[key] += 1

    def unpin(self, key: Key) -> None:
        """One move less."""
        if not self._pins[key]:
            raise ValueError("the key is not pinned")
        self._pins[key] -= 1
        if not self._pins[key]:
            del self._pins[key]

    def is_pinned(self, key: Key) -> bool:
        return key in self._pins

    def victims(self, room: int = 0) -> list[Key]:
        """The keys that must go, in order, so that `room` more fits; fewer where the others are pinned."""
        excess, chosen = self.used + room - self.capacity, []
        for key, size in self._sizes.items():
            if excess <= 0:
                break
            if key not in self._pins:
                chosen.append(key)
                excess -= size
        return chosen

    def check(self) -> None:
        """The size of all keys is counted, and no pin is left of a key that is gone."""
        assert self.used == sum(self._sizes.values()), "used is not the sum of the sizes"
        assert self._pins.keys() <= self._sizes.keys(), "a key that is gone is pinned"
        assert all(count > 0 for count in self._pins.values()), "a key has no pins but is listed"

    def __str__(self) -> str:
        return f"{len(self)} keys, {self.used} of {self.capacity}, {len(self._pins)} pinned"
