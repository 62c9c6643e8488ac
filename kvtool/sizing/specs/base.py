"""What all cache specs answer, and the spec of a layer that stores nothing of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvtool.units import MAX_LENGTH_TOKENS, ceil_div, round_up


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSpec:
    """What all kinds share. A kind overrides what differs; `tokens` is the sequence's length so far, >= 1.

    `kind` is its word in result documents; `grows` is True where every token adds bytes for good, `per_token` where
    tokens are stored at all (in pages), be it under a cap, and `dcp_splits` where context parallelism deals them out.
    """

    kind: ClassVar[str]
    grows: ClassVar[bool] = False
    per_token: ClassVar[bool] = True
    dcp_splits: ClassVar[bool] = False

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one more token adds before any cap, rounded up; also what a decode step writes."""
        return 0

    @property
    def bits_per_element(self) -> float | None:
        """Bits of one stored element, its share of scales and padding included; None where there are no vectors."""
        return None

    def growth_bytes(self, layers: int) -> int:
        """Bytes that one more token adds to `layers` such layers before any cap, rounded up over all of them."""
        return layers * self.bytes_per_token

    def stored_tokens(self, tokens: int) -> int:
        """Tokens of the sequence that this layer still needs."""
        return tokens

    def read_tokens(self, tokens: int) -> int:
        """Tokens whose vectors one decode step reads."""
        return self.stored_tokens(tokens)

    def stored_bytes(self, tokens: int) -> int:
        """Bytes of one sequence before rounding up to pages."""
        return self.stored_tokens(tokens) * self.bytes_per_token

    def read_bytes(self, tokens: int) -> int:
        """Bytes that one decode step moves for one sequence."""
        return self.read_tokens(tokens) * self.bytes_per_token

    def page_bytes(self, block_size: int) -> int:
        """Bytes of one page of `block_size` tokens."""
        return block_size * self.bytes_per_token

    def pages(self, tokens: int, block_size: int) -> int:
        """Pages that one sequence holds."""
        return ceil_div(self.stored_tokens(tokens), block_size)

    def allocated_bytes(self, tokens: int, block_size: int) -> int:
        """Bytes of one sequence in whole pages."""
        return self.pages(tokens, block_size) * self.page_bytes(block_size)

    def peak_bytes(self, prompt_tokens: int, tokens: int, block_size: int) -> int:
        """Bytes in whole pages at most, while a prompt is computed and the sequence grows from it to `tokens`."""
        return self.allocated_bytes(tokens, block_size)

    def fixed_bytes(self, block_size: int) -> int:
        """Bytes of a long sequence in whole pages, whatever its length: a full window, a state; 0 where it grows."""
        return 0 if self.grows else self.allocated_bytes(MAX_LENGTH_TOKENS, block_size)

    def shared_pages(self, prefix_tokens: int, tokens: int, block_size: int) -> int:
        """Pages that sequences with a common prefix share at `tokens` tokens: its whole pages, where still needed."""
        gone = round_up(tokens - self.stored_tokens(tokens), block_size)
        return max(0, prefix_tokens // block_size - gone // block_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSpec(CacheSpec):
    """A layer that reads the K and V of an earlier layer: stores nothing, reads what that layer reads."""

    kind = "shared"
    per_token = False
    source: CacheSpec | None = None

    def stored_tokens(self, tokens: int) -> int:
        return 0

    def read_bytes(self, tokens: int) -> int:
        """What the source reads; 0 where the model does not say which layer that is."""
        return self.source.read_bytes(tokens) if self.source else 0

    def shared_pages(self, prefix_tokens: int, tokens: int, block_size: int) -> int:
        return 0
