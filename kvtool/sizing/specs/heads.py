"""K and V of every KV head: full, sliding, chunked and cross attention."""

from __future__ import annotations

from dataclasses import dataclass

from kvtool.sizing.formats import WHOLE, CacheFormat
from kvtool.sizing.specs.base import CacheSpec
from kvtool.units import MAX_LENGTH_TOKENS, ceil_div


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadsSpec(CacheSpec):
    """K [kv_heads, k_head_dim] and V [kv_heads, v_head_dim] of each token that is kept; the newest of a format
    that has residual tokens stay in 16 bits, a buffer apart from the pages.
    """

    kv_heads: int
    k_head_dim: int
    v_head_dim: int
    cache_format: CacheFormat

    def __post_init__(self) -> None:
        self.cache_format.head_bytes(self.k_head_dim, self.v_head_dim)  # refuses what it cannot store

    @property
    def bytes_per_token(self) -> int:
        return self.kv_heads * self.cache_format.head_bytes(self.k_head_dim, self.v_head_dim)

    @property
    def bits_per_element(self) -> float:
        return 8 * self.bytes_per_token / (self.kv_heads * (self.k_head_dim + self.v_head_dim))

    @property
    def residual_bytes_per_token(self) -> int:
        return self.kv_heads * (WHOLE.stored_bytes(self.k_head_dim) + WHOLE.stored_bytes(self.v_head_dim))

    def residual_tokens(self, tokens: int) -> int:
        """Of the tokens kept, those that are not quantised yet."""
        return self._whole_tokens(self.stored_tokens(tokens))

    def _whole_tokens(self, kept: int) -> int:
        return kept - self.cache_format.quantised_tokens(kept) if self.cache_format.residual_tokens else 0

    def _extra_bytes(self, kept: int) -> int:
        """What `kept` tokens take more than their quantised bytes, the newest of them being whole."""
        whole = self._whole_tokens(kept)
        return whole * (self.residual_bytes_per_token - self.bytes_per_token)

    def stored_bytes(self, tokens: int) -> int:
        kept = self.stored_tokens(tokens)
        return kept * self.bytes_per_token + self._extra_bytes(kept)

    def read_bytes(self, tokens: int) -> int:
        read = self.read_tokens(tokens)
        return read * self.bytes_per_token + self._extra_bytes(read)

    def pages(self, tokens: int, block_size: int) -> int:
        return ceil_div(self.stored_tokens(tokens) - self.residual_tokens(tokens), block_size)

    def allocated_bytes(self, tokens: int, block_size: int) -> int:
        whole = self.residual_tokens(tokens) * self.residual_bytes_per_token
        return self.pages(tokens, block_size) * self.page_bytes(block_size) + whole

    def shared_pages(self, prefix_tokens: int, tokens: int, block_size: int) -> int:
        shared = super(HeadsSpec, self).shared_pages(prefix_tokens, tokens, block_size)
        return min(shared, self.pages(tokens, block_size))  # what is not quantised yet is each sequence's own

    def fixed_bytes(self, block_size: int) -> int:
        if self.grows:
            return self._extra_bytes(MAX_LENGTH_TOKENS)
        return self.allocated_bytes(MAX_LENGTH_TOKENS, block_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class FullSpec(HeadsSpec):
    """MHA, MQA, GQA: every token is kept. `top_k_tokens` bounds what is read where an indexer chooses the tokens."""

    kind = "full"
    grows = True
    dcp_splits = True
    top_k_tokens: int | None = None

    def read_tokens(self, tokens: int) -> int:
        return min(tokens, self.top_k_tokens or tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSpec(HeadsSpec):
    """At most `window` tokens are kept: what sliding and chunked layers have in common."""

    window: int

    def stored_tokens(self, tokens: int) -> int:
        return min(tokens, self.window)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidingSpec(WindowSpec):
    """Sliding window: the last `window` tokens, the current one included."""

    kind = "sliding"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkedSpec(WindowSpec):
    """Chunked attention: the tokens of the current chunk; sized by a full chunk, which every chunk becomes."""

    kind = "chunked"


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossSpec(HeadsSpec):
    """Attention to an encoder's output: K and V of its `encoder_tokens` tokens, constant per sequence."""

    kind = "cross"
    encoder_tokens: int

    def stored_tokens(self, tokens: int) -> int:
        return self.encoder_tokens

    def shared_pages(self, prefix_tokens: int, tokens: int, block_size: int) -> int:
        """None: a shared text prefix says nothing about what the encoder was shown."""
        return 0
