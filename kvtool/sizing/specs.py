"""One frozen spec per attention kind: what one rank stores for one layer of one sequence, and reads in a decode step.

Every spec answers the same questions. Bytes stored and bytes read are different things: a window reads less than the
sequence is long, a sparse layer reads its top-k of all it stores. Shapes come from `kvtool.sizing.layers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvtool.sizing.dtypes import CacheFormat
from kvtool.units import MAX_LENGTH_TOKENS, ceil_div, round_up

FP8_DS_MLA_GROUP = 128  # elements of the latent that share one fp32 scale in the fp8_ds_mla layout
INDEXER_SCALE_GROUP = 128  # elements of an fp8 index key that share one fp32 scale


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSpec:
    """What all kinds share. A kind overrides what differs; `tokens` is the sequence's length so far, >= 1.

    `kind` is its word in result documents; `grows` is True where every token adds bytes for good, and `per_token`
    where tokens are stored at all (in pages), be it under a cap.
    """

    kind: ClassVar[str]
    grows: ClassVar[bool] = False
    per_token: ClassVar[bool] = True

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one more token adds before any cap; also what a decode step writes."""
        return 0

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

    def fixed_bytes(self, block_size: int) -> int:
        """Bytes of a long sequence in whole pages, whatever its length: a full window, a state; 0 where it grows."""
        return 0 if self.grows else self.allocated_bytes(MAX_LENGTH_TOKENS, block_size)

    def shared_pages(self, prefix_tokens: int, tokens: int, block_size: int) -> int:
        """Pages that sequences with a common prefix share at `tokens` tokens: its whole pages, where still needed."""
        gone = round_up(tokens - self.stored_tokens(tokens), block_size)
        return max(0, prefix_tokens // block_size - gone // block_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadsSpec(CacheSpec):
    """K [kv_heads, k_head_dim] and V [kv_heads, v_head_dim] of each token that is kept."""

    kv_heads: int
    k_head_dim: int
    v_head_dim: int
    cache_format: CacheFormat

    @property
    def bytes_per_token(self) -> int:
        vector_bytes = self.cache_format.vector_bytes
        return self.kv_heads * (vector_bytes(self.k_head_dim) + vector_bytes(self.v_head_dim))


@dataclass(frozen=True, slots=True, kw_only=True)
class FullSpec(HeadsSpec):
    """MHA, MQA, GQA: every token is kept. `top_k_tokens` bounds what is read where an indexer chooses the tokens."""

    kind = "full"
    grows = True
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
class LatentSpec(CacheSpec):
    """MLA: one vector of kv_lora_rank + qk_rope_head_dim per token, whole on every tensor-parallel rank.

    `fp8_ds_mla` is vLLM's layout of sparse MLA under an fp8 cache: the latent in fp8 with an fp32 scale per 128
    elements, the rotary part in bf16 (656 B for DeepSeek-V3.2).
    """

    kind = "mla"
    grows = True
    kv_lora_rank: int
    qk_rope_head_dim: int
    cache_format: CacheFormat
    fp8_ds_mla: bool = False
    top_k_tokens: int | None = None

    @property
    def kv_heads(self) -> int:
        return 1

    @property
    def k_head_dim(self) -> int:
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def v_head_dim(self) -> int:
        return 0  # V is read out of the latent

    @property
    def bytes_per_token(self) -> int:
        if self.fp8_ds_mla:
            return self.kv_lora_rank + 4 * ceil_div(self.kv_lora_rank, FP8_DS_MLA_GROUP) + 2 * self.qk_rope_head_dim
        vector_bytes = self.cache_format.vector_bytes
        return vector_bytes(self.kv_lora_rank) + vector_bytes(self.qk_rope_head_dim)

    def read_tokens(self, tokens: int) -> int:
        return min(tokens, self.top_k_tokens or tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexerSpec(CacheSpec):
    """Index keys beside a sparse layer, scored by every step. Whole on every rank, whatever the KV dtype is."""

    kind = "indexer"
    grows = True
    head_dim: int
    quantised: bool

    @property
    def kv_heads(self) -> int:
        return 1

    @property
    def k_head_dim(self) -> int:
        return self.head_dim

    @property
    def v_head_dim(self) -> int:
        return 0

    @property
    def bytes_per_token(self) -> int:
        if self.quantised:
            return self.head_dim + 4 * ceil_div(self.head_dim, INDEXER_SCALE_GROUP)
        return 2 * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSpec(CacheSpec):
    """Recurrent and convolution state: the same bytes however long the sequence; every step reads and rewrites it."""

    kind = "state"
    per_token = False
    conv_elements: int
    recurrent_elements: int
    conv_element_bytes: int
    recurrent_element_bytes: int

    @property
    def state_bytes(self) -> int:
        return self.conv_elements * self.conv_element_bytes + self.recurrent_elements * self.recurrent_element_bytes

    def stored_tokens(self, tokens: int) -> int:
        return 0

    def stored_bytes(self, tokens: int) -> int:
        return self.state_bytes

    def read_bytes(self, tokens: int) -> int:
        """The whole state, read and written back."""
        return 2 * self.state_bytes

    def allocated_bytes(self, tokens: int, block_size: int) -> int:
        return self.state_bytes

    def shared_pages(self, prefix_tokens: int, tokens: int, block_size: int) -> int:
        """None: the state after a prefix is overwritten by what follows it, so each sequence has its own."""
        return 0


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
