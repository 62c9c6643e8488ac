"""Where contiguous pieces lie in one stretch of memory: the first hole that is large enough, or halves of halves."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Protocol


class Placement(Protocol):
    """Pieces of `size` tokens in a stretch of `capacity`."""

    def place(self, size: int) -> int | None:
        """The offset of a new piece, or None where no hole is large enough."""

    def size_of(self, offset: int) -> int:
        """What the piece at `offset` takes, rounding included."""

    def free(self, offset: int) -> None:
        """Give the piece at `offset` back."""

    @property
    def largest_hole(self) -> int: ...

    @property
    def free_tokens(self) -> int: ...


class FirstFit:
    """Holes in the order of their offsets; neighbours are one."""

    def __init__(self, capacity: int) -> None:
        self._holes = [(0, capacity)]
        self._sizes: dict[int, int] = {}

    def place(self, size: int) -> int | None:
        for index, (offset, hole) in enumerate(self._holes):
            if hole >= size:
                self._holes[index : index + 1] = [(offset + size, hole - size)] if hole > size else []
                self._sizes[offset] = size
                return offset
        return None

    def size_of(self, offset: int) -> int:
        return self._sizes[offset]

    def free(self, offset: int) -> None:
        size = self._sizes.pop(offset)
        index = bisect_left(self._holes, (offset, 0))
        if index < len(self._holes) and self._holes[index][0] == offset + size:
            size += self._holes.pop(index)[1]
        if index and sum(self._holes[index - 1]) == offset:
            before, grown = self._holes.pop(index - 1)
            offset, size = before, grown + size
        insort(self._holes, (offset, size))

    @property
    def largest_hole(self) -> int:
        return max((size for _, size in self._holes), default=0)

    @property
    def free_tokens(self) -> int:
        return sum(size for _, size in self._holes)


class Buddy:
    """Blocks of powers of two, halved as needed and joined with their other half again (Knowlton 1965), as the paper
    on vLLM gives the systems it compares with."""

    def __init__(self, capacity: int, smallest: int = 16) -> None:
        self._smallest = smallest
        self._free: dict[int, set[int]] = {}
        self._sizes: dict[int, int] = {}
        offset = 0
        while capacity - offset >= smallest:
            size = 1 << ((capacity - offset).bit_length() - 1)
            self._free.setdefault(size, set()).add(offset)
            offset += size

    def place(self, size: int) -> int | None:
        wanted = max(self._smallest, 1 << (size - 1).bit_length())
        found = min((have for have, offsets in self._free.items() if offsets and have >= wanted), default=None)
        if found is None:
            return None
        offset = min(self._free[found])
        self._free[found].remove(offset)
        while found > wanted:
            found //= 2
            self._free.setdefault(found, set()).add(offset + found)
        self._sizes[offset] = wanted
        return offset

    def size_of(self, offset: int) -> int:
        return self._sizes[offset]

    def free(self, offset: int) -> None:
        size = self._sizes.pop(offset)
        while offset ^ size in self._free.get(size, ()):
            self._free[size].remove(offset ^ size)
            offset, size = min(offset, offset ^ size), size * 2
        self._free.setdefault(size, set()).add(offset)

    @property
    def largest_hole(self) -> int:
        return max((size for size, offsets in self._free.items() if offsets), default=0)

    @property
    def free_tokens(self) -> int:
        return sum(size * len(offsets) for size, offsets in self._free.items())


PLACEMENTS = {"first-fit": FirstFit, "buddy": Buddy}
