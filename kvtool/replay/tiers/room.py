"""Memory of the GPU for requests that run: blocks of prompts, which those that begin alike share, and of answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from kvtool.replay.tiers.timed import Timed
from kvtool.units import ceil_div


class Room:
    """Room for so many `blocks` of `block_size` tokens. A request that is longer than all of it runs alone."""

    def __init__(self, blocks: int, block_size: int) -> None:
        self._blocks, self._block_size = blocks, block_size
        self._users: Counter[int] = Counter()  # of each block of a prompt
        self._own: dict[int, int] = {}  # blocks behind its prompt's, by id of a request
        self._held = 0

    def fits(self, request: Timed) -> bool:
        """Whether there is room for it and its next token, or nothing else runs."""
        fresh = sum(node not in self._users for node in request.nodes)
        return not self._own or self._held + fresh + self._behind(request, 1) <= self._blocks

    def enter(self, request: Timed) -> None:
        """It runs, with room for its next token."""
        self._held += sum(node not in self._users for node in request.nodes)
        self._users.update(request.nodes)
        self._own[id(request)] = 0
        self.grow([request], 1)

    def leave(self, request: Timed) -> None:
        """It has ended, or gave way."""
        for node in request.nodes:
            self._users[node] -= 1
            if not self._users[node]:
                del self._users[node]
                self._held -= 1
        self._held -= self._own.pop(id(request))

    def has(self, requests: Iterable[Timed], tokens: int) -> bool:
        """Whether there is room for so many more tokens of each."""
        more = sum(self._behind(one, tokens) - self._own[id(one)] for one in requests)
        return self._held + more <= self._blocks

    def grow(self, requests: Iterable[Timed], tokens: int) -> None:
        """Hold room for so many more tokens of each."""
        for one in requests:
            behind = self._behind(one, tokens)
            self._held += behind - self._own[id(one)]
            self._own[id(one)] = behind

    def _behind(self, request: Timed, tokens: int) -> int:
        return max(0, ceil_div(request.tokens + tokens, self._block_size) - len(request.nodes))
