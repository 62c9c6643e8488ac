"""Four ways to give requests room for their K and V, in tokens.

contiguous   one piece a request, reserved when it is admitted: the maximum, its answer rounded up, or what it will need
grown        one piece a request, of just its tokens: a new one, and a copy, for every token more
paged        pages of `block_size` tokens, taken as they are needed
shared       the same, and prompts that begin alike share the whole pages of it
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

from kvtool.bench.fragmentation.arrivals import Request
from kvtool.bench.fragmentation.holes import Placement
from kvtool.cache.manager import CacheManager, SequenceCache

Piece = tuple[int, int, int]
"""Offset and size in tokens, and the number of the request that holds it; -1 where several do."""

SHARED = -1


class Allocator(ABC):
    """Room for requests. `gives_way`: the youngest leaves where one cannot grow; else one that outgrows its piece
    leaves itself, and is given twice as much when it comes back."""

    gives_way = True

    @abstractmethod
    def admit(self, request: Request) -> bool:
        """Room for the tokens that it has, or False and nothing changed."""

    @abstractmethod
    def grow(self, request: Request) -> bool:
        """Room for one token more, or False and nothing changed."""

    @abstractmethod
    def release(self, request: Request) -> None:
        """Take its room back."""

    @abstractmethod
    def pieces(self) -> Iterable[Piece]:
        """All that is held, by offset."""

    @property
    @abstractmethod
    def reserved(self) -> int:
        """Tokens that what is held has room for."""

    @abstractmethod
    def used(self, running: Iterable[Request]) -> int:
        """Tokens in it; shared ones count once."""

    @property
    @abstractmethod
    def largest_hole(self) -> int: ...

    @abstractmethod
    def needs(self, request: Request) -> int:
        """Tokens in one piece that admitting it takes."""


class Contiguous(Allocator):
    """`reserve` tells the tokens that a request is given."""

    gives_way = False

    def __init__(self, memory: Placement, reserve: Callable[[Request], int]) -> None:
        self._memory, self._reserve = memory, reserve
        self._offsets: dict[Request, int] = {}

    def needs(self, request: Request) -> int:
        return max(request.tokens, request.reserve_tokens or self._reserve(request))

    def admit(self, request: Request) -> bool:
        request.reserve_tokens = self.needs(request)
        return self._placed(request, request.reserve_tokens)

    def _placed(self, request: Request, size: int) -> bool:
        offset = self._memory.place(size)
        if offset is not None:
            self._offsets[request] = offset
        return offset is not None

    def grow(self, request: Request) -> bool:
        return request.tokens < self._memory.size_of(self._offsets[request])

    def release(self, request: Request) -> None:
        self._memory.free(self._offsets.pop(request))

    def pieces(self) -> Iterable[Piece]:
        held = ((offset, self._memory.size_of(offset), request.number) for request, offset in self._offsets.items())
        return sorted(held)

    @property
    def reserved(self) -> int:
        return sum(self._memory.size_of(offset) for offset in self._offsets.values())

    def used(self, running: Iterable[Request]) -> int:
        return sum(request.tokens for request in running)

    @property
    def largest_hole(self) -> int:
        return self._memory.largest_hole


class Grown(Contiguous):
    """The old piece is there until the new one has its copy."""

    gives_way = True

    def __init__(self, memory: Placement) -> None:
        super().__init__(memory, lambda request: request.tokens)

    def needs(self, request: Request) -> int:
        return request.tokens

    def grow(self, request: Request) -> bool:
        old = self._offsets[request]
        if not self._placed(request, request.tokens + 1):
            return False
        self._memory.free(old)
        return True


class Paged(Allocator):
    """The cache manager of the engine; only `shares` looks for prefixes."""

    def __init__(self, pool_tokens: int, block_size: int, *, shares: bool) -> None:
        self._cache = CacheManager(pool_tokens // block_size, block_size, prefix_caching=shares)
        self._open: dict[Request, tuple[SequenceCache, list[int]]] = {}

    def needs(self, request: Request) -> int:
        return self._cache.block_size

    def admit(self, request: Request) -> bool:
        token_ids = request.token_ids(request.tokens)
        sequence = self._cache.open(token_ids)
        if not self._cache.reserve(sequence, len(token_ids)):
            self._cache.close(sequence)
            return False
        self._cache.commit(sequence, token_ids)
        self._open[request] = sequence, token_ids
        return True

    def grow(self, request: Request) -> bool:
        sequence, token_ids = self._open[request]
        if not self._cache.reserve(sequence, len(token_ids) + 1):
            return False
        token_ids.append(request.token_ids(len(token_ids) + 1)[-1])
        self._cache.commit(sequence, token_ids)
        return True

    def release(self, request: Request) -> None:
        self._cache.close(self._open.pop(request)[0])

    def pieces(self) -> Iterable[Piece]:
        size = self._cache.block_size
        owners: dict[int, int] = {}
        for request, (sequence, _) in self._open.items():
            for page in sequence.table.pages:
                owners[page] = SHARED if page in owners else request.number
        return [(page * size, size, owner) for page, owner in sorted(owners.items())]

    @property
    def reserved(self) -> int:
        return self._cache.counters().allocated_pages * self._cache.block_size

    def used(self, running: Iterable[Request]) -> int:
        """Pages that several hold are whole, so that each holder but one has a page of tokens less."""
        entries = sum(len(sequence.table.pages) for sequence, _ in self._open.values())
        twice = entries * self._cache.block_size - self.reserved
        return sum(request.tokens for request in running) - twice

    @property
    def largest_hole(self) -> int:
        """A run of free pages has no meaning: any page serves."""
        return self._cache.num_available_pages * self._cache.block_size
