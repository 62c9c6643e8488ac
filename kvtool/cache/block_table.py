"""Where the tokens of one sequence lie: logical page -> physical page, and position -> slot."""

from __future__ import annotations

from kvtool.units import ceil_div

GONE = -1  # the entry of a page that was let go of


class BlockTable:
    """The pages of one sequence, in order. `num_tokens` of their slots are written; the rest is reserved. GONE stands
    for those that were let go of."""

    def __init__(self, block_size: int, pages: list[int] | None = None, num_tokens: int = 0) -> None:
        self.block_size = block_size
        self.pages = pages if pages is not None else []
        self.num_tokens = num_tokens

    @property
    def capacity_tokens(self) -> int:
        return len(self.pages) * self.block_size

    @property
    def held(self) -> list[int]:
        """The pages that it still holds."""
        return [page for page in self.pages if page != GONE]

    def pages_missing(self, num_tokens: int) -> int:
        """How many more pages `num_tokens` need: the 17th token asks for the second page of 16."""
        return max(0, ceil_div(num_tokens, self.block_size) - len(self.pages))

    def slot(self, position: int) -> int:
        """The slot in the pool (page * block_size + offset) of the token at `position`."""
        page, offset = divmod(position, self.block_size)
        return self.pages[page] * self.block_size + offset

    def slots(self, start: int, stop: int) -> list[int]:
        """The slots of positions `start` to `stop`, page by page."""
        found: list[int] = []
        for index in range(start // self.block_size, ceil_div(stop, self.block_size)):
            first = index * self.block_size
            origin = self.pages[index] * self.block_size - first
            found.extend(range(origin + max(start, first), origin + min(stop, first + self.block_size)))
        return found

    def __str__(self) -> str:
        return f"{self.num_tokens} tokens in pages {self.pages}"
