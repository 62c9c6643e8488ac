"""What a cache manager asks an index of prefixes, whichever it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

Place = TypeVar("Place")
BYTES_A_TOKEN = 4
PACKED_PAGES = 64  # at a time, as a prompt that is not cached ends at the first
NO_PARENT = 0  # the hash before the first page


class Extension(NamedTuple, Generic[Place]):
    """Where the sequence stands, and how many of its pages (the first ones) stay its own, as the index held them."""

    place: Place
    num_duplicates: int


class PartialHit(NamedTuple, Generic[Place]):
    """A cached page that begins with the `num_tokens` next tokens of a prompt, then goes on with others; `place` is
    behind it, and locked until the page is copied."""

    place: Place
    page: int
    num_tokens: int


class PrefixIndex(ABC, Generic[Place]):
    """The cached pages by the tokens that they and all pages before them hold.

    It takes and gives back pages, and leaves reference counts to its owner. A sequence locks the pages up to the place
    where it stands; the others can be evicted. Of the tokens that a method is given, whole pages count.
    """

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.num_pages = 0  # cached
        self.num_evictable_pages = 0  # what `evict` can give: the cached ones that nobody locks, and the blank ones
        self.num_blank_pages = 0  # pages without content that wait their turn here

    @abstractmethod
    def match(self, tokens: Sequence[int]) -> list[int]:
        """The pages of the longest cached prefix. Changes nothing: neither the index nor the order of eviction."""

    @abstractmethod
    def lock_prefix(self, tokens: Sequence[int]) -> tuple[Place, list[int]]:
        """Lock the longest cached prefix: the place where it ends, and its pages."""

    def lock_partial(self, place: Place, tokens: Sequence[int]) -> PartialHit[Place] | None:
        """Lock the page behind `place` that begins with most of `tokens`; None where no page does, or where whole pages
        alone can be found."""
        return None

    @abstractmethod
    def extend(self, place: Place, tokens: Sequence[int], pages: Sequence[int]) -> Extension[Place]:
        """Move a sequence's lock from `place` on by `tokens`, which its `pages` hold.

        The index takes `pages[num_duplicates:]`; the first ones it has already, as pages of someone else.
        """

    @abstractmethod
    def count_hit(self, place: Place) -> None:
        """A sequence that stands at `place` was spared the pages before it."""

    def retain(self, place: Place, priority: int, expires_s: float) -> None:
        """The pages before locked `place` are wanted so much until then, for an order that heeds it."""

    @abstractmethod
    def unlock(self, place: Place) -> None:
        """A sequence leaves `place`: what nobody else locks becomes evictable, the tail first."""

    @abstractmethod
    def evict(self, count: int) -> list[int]:
        """Give back up to `count` evictable pages, in the order of eviction."""

    def take(self, count: int) -> list[int]:
        """Evict, and order the pages as they are best used anew."""
        return self.evict(count)

    def retire(self, page: int) -> bool:
        """Whether the index keeps a page that nobody holds and that has no content to be found by."""
        return False

    @abstractmethod
    def depth_pages(self, place: Place) -> int:
        """Pages from the start of the prefix to `place`."""

    @abstractmethod
    def pages(self) -> Iterator[int]:
        """Every page that the index holds, cached or blank."""

    @abstractmethod
    def check(self, places: Iterable[Place] | None = None) -> None:
        """The invariants of the index, and that exactly the pages before `places` are locked, where they are given."""


def pack(tokens: Sequence[int]) -> array[int]:
    """Four bytes a token, which compare and hash as fast as memory is read."""
    return array("I", tokens)


def chain_hashes(parent: int, tokens: Sequence[int], block_size: int) -> Iterator[int]:
    """The hash of each whole page behind one with hash `parent`: of its tokens, and of the hash before."""
    stop, page_bytes = len(tokens) // block_size * block_size, block_size * BYTES_A_TOKEN
    for start in range(0, stop, PACKED_PAGES * block_size):
        packed = pack(tokens[start : min(stop, start + PACKED_PAGES * block_size)]).tobytes()
        for at in range(0, len(packed), page_bytes):
            parent = hash((parent, packed[at : at + page_bytes]))
            yield parent
