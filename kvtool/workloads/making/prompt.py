"""A prompt as pieces of texts that nobody writes, cut into blocks whose ids stand for whole prefixes."""

from __future__ import annotations

from collections.abc import Hashable

ROOT = -1  # stands before the first block of a prompt


class BlockNames:
    """Ids of blocks from 0 on, in the order in which they are first seen: one for the same content after the same."""

    def __init__(self) -> None:
        self._ids: dict[tuple[int, Hashable], int] = {}

    def name(self, before: int, content: Hashable) -> int:
        """The id of a block of this content behind block `before`."""
        return self._ids.setdefault((before, content), len(self._ids))

    def names(self, contents: list[Hashable]) -> list[int]:
        """The ids of a whole prompt's blocks."""
        ids, before = [], ROOT
        for content in contents:
            before = self.name(before, content)
            ids.append(before)
        return ids


class Prompt:
    """Text that grows at its end. A piece of it is `tokens` of a text by number; texts of two numbers share nothing."""

    def __init__(self, names: BlockNames, block_size: int) -> None:
        self.tokens = 0
        self._names, self._block_size = names, block_size
        self._whole: list[int] = []
        self._open: list[tuple[int, int, int]] = []  # text, from, to: of the block that is not yet full
        self._open_tokens = 0

    def append(self, text: int, tokens: int, start: int = 0) -> None:
        """`tokens` of a text from its token `start` on."""
        self.tokens += tokens
        while tokens:
            taken = min(tokens, self._block_size - self._open_tokens)
            self._open.append((text, start, start + taken))
            self._open_tokens += taken
            start, tokens = start + taken, tokens - taken
            if self._open_tokens == self._block_size:
                self._whole.append(self._name_open())
                self._open, self._open_tokens = [], 0

    def block_ids(self) -> list[int]:
        """Of all blocks; the last may hold fewer tokens than the others."""
        return [*self._whole, self._name_open()] if self._open else list(self._whole)

    def _name_open(self) -> int:
        joined = [self._open[0]]
        for text, start, stop in self._open[1:]:
            last = joined[-1]
            if last[0] == text and last[2] == start:
                joined[-1] = (text, last[1], stop)
            else:
                joined.append((text, start, stop))
        return self._names.name(self._whole[-1] if self._whole else ROOT, tuple(joined))
