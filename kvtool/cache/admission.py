"""Which computed pages are worth keeping at all: admission policies, chosen by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from kvtool.cache.index.base import NO_PARENT, chain_hashes
from kvtool.system.errors import KvtoolError, did_you_mean


@dataclass(slots=True)
class Offer:
    """How far the pages of one sequence were offered: so many, the last one with that hash, of which the first
    `num_admitted` may be kept. What was found cached is admitted already."""

    num_admitted: int
    num_pages: int = 0
    last_hash: int = NO_PARENT
    ends: bool = False  # nothing more of it is kept


class Admission(ABC):
    """Asked whenever pages become whole. A page behind one that is not kept could not be found, so it is not either."""

    @abstractmethod
    def admitted(self, offer: Offer, tokens: Sequence[int]) -> int:
        """How many pages of a sequence, from its start, may be kept, with K/V of all its `tokens` written."""


class Always(Admission):
    """Every page."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size

    def admitted(self, offer: Offer, tokens: Sequence[int]) -> int:
        return offer.num_admitted if offer.ends else len(tokens) // self._block_size


class SecondHit(Admission):
    """Pages whose whole prefix was seen before, in another sequence or in one that gave way and came back.

    Of the last `max_ghosts` prefixes it remembers a hash each; by a collision a page is kept too early, no more.
    """

    def __init__(self, block_size: int, max_ghosts: int) -> None:
        self._block_size = block_size
        self._max_ghosts = max_ghosts
        self._ghosts: OrderedDict[int, None] = OrderedDict()

    @property
    def num_ghosts(self) -> int:
        return len(self._ghosts)

    def admitted(self, offer: Offer, tokens: Sequence[int]) -> int:
        if offer.ends:
            return offer.num_admitted
        found = list(chain_hashes(offer.last_hash, tokens[offer.num_pages * self._block_size :], self._block_size))
        for page, own in enumerate(found, offer.num_pages):
            if page == offer.num_admitted and own in self._ghosts:
                offer.num_admitted += 1
        self._remember(found)
        offer.num_pages += len(found)
        offer.last_hash = found[-1] if found else offer.last_hash
        return offer.num_admitted

    def _remember(self, found: list[int]) -> None:
        """The head of a prefix last, so that it is forgotten last: without it the rest is no use."""
        for own in reversed(found):
            self._ghosts[own] = None
            self._ghosts.move_to_end(own)
        while len(self._ghosts) > self._max_ghosts:
            self._ghosts.popitem(last=False)


ADMISSION = ("always", "second-hit")


def check_admission(name: str) -> None:
    """Raises KvtoolError for a name that is not known."""
    if name not in ADMISSION:
        raise KvtoolError(f"admission {name!r} is not one of {', '.join(ADMISSION)}{did_you_mean(name, ADMISSION)}")


def admission_policy(name: str, *, block_size: int, num_pages: int) -> Admission:
    """A policy for a pool of so many pages, which remembers as many ghosts. Raises KvtoolError as `check_admission`."""
    check_admission(name)
    return SecondHit(block_size, max_ghosts=num_pages) if name == "second-hit" else Always(block_size)
