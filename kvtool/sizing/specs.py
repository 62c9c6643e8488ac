"""One frozen spec per attention kind: what one rank stores for one layer of one sequence, and reads in a decode step.

Every spec answers the same questions. Bytes stored and bytes read are different things: a window reads less than the
sequence is long, a sparse layer reads its top-k of all it stores. Shapes come from `kvtool.sizing.layers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvtool.catalog.model import IndexDtype
from kvtool.sizing.formats import INDEX_KEYS, WHOLE, CacheFormat, Row
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

    def fixed_bytes(self, block_size: int) -> int:
        """Bytes of a long sequence in whole pages, whatever its length: a full window, a state; 0 where it grows."""
        return 0 if self.grows else self.allocated_bytes(MAX_LENGTH_TOKENS, block_size)

    def shared_pages(self, prefix_tokens: int, tokens: int, block_size: int) -> int:
        """Pages that sequences with a common prefix share at `tokens` tokens: its whole pages, where still needed."""
        gone = round_up(tokens - self.stored_tokens(tokens), block_size)
        return max(0, prefix_tokens // block_size - gone // block_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadsSpec(CacheSpec):
    """K [kv_heads, k_head_dim] and V [kv_heads, v_head_dim] of each token that is kept; the newest `residual_tokens` of
    a format that has them stay in 16 bits, a buffer apart from the pages.
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
        return min(self.stored_tokens(tokens), self.cache_format.residual_tokens)

    def _extra_bytes(self, kept: int) -> int:
        """What `kept` tokens take more than their quantised bytes, the newest of them being whole."""
        whole = min(kept, self.cache_format.residual_tokens)
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
class RowSpec(CacheSpec):
    """One vector for every `ratio` tokens, whole on every tensor-parallel rank; tokens short of a group have none."""

    kv_heads: ClassVar[int] = 1
    v_head_dim: ClassVar[int] = 0  # V is read out of the same vector
    ratio: int = 1

    @property
    def k_head_dim(self) -> int:
        raise NotImplementedError

    @property
    def row_bytes(self) -> int:
        raise NotImplementedError

    @property
    def bytes_per_token(self) -> int:
        return self.growth_bytes(1)

    @property
    def bits_per_element(self) -> float:
        return 8 * self.row_bytes / self.k_head_dim

    def growth_bytes(self, layers: int) -> int:
        return ceil_div(layers * self.row_bytes, self.ratio)

    def stored_bytes(self, tokens: int) -> int:
        return self.stored_tokens(tokens) // self.ratio * self.row_bytes

    def read_bytes(self, tokens: int) -> int:
        return self.read_tokens(tokens) // self.ratio * self.row_bytes

    def page_rows(self, block_size: int) -> int:
        """Rows of a page: those of `block_size` tokens, one at least."""
        return max(1, block_size // self.ratio)

    def page_bytes(self, block_size: int) -> int:
        return self.page_rows(block_size) * self.row_bytes

    def pages(self, tokens: int, block_size: int) -> int:
        return ceil_div(self.stored_tokens(tokens) // self.ratio, self.page_rows(block_size))

    def shared_pages(self, prefix_tokens: int, tokens: int, block_size: int) -> int:
        return super(RowSpec, self).shared_pages(prefix_tokens, tokens, self.page_rows(block_size) * self.ratio)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentSpec(RowSpec):
    """MLA: a latent of `kv_lora_rank` elements and a rotary part. `sparse`: an indexer chooses what is read, which some
    formats store in a layout of its own (fp8_ds_mla).
    """

    kind = "mla"
    grows = True
    dcp_splits = True
    kv_lora_rank: int
    qk_rope_head_dim: int
    cache_format: CacheFormat
    sparse: bool = False
    top_k_tokens: int | None = None

    def __post_init__(self) -> None:
        self.cache_format.row_bytes(self.row, self.kv_lora_rank, self.qk_rope_head_dim)

    @property
    def row(self) -> Row | None:
        """How the format stores such a row; None where it has none."""
        return self.cache_format.sparse_mla if self.sparse else self.cache_format.mla

    @property
    def k_head_dim(self) -> int:
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def row_bytes(self) -> int:
        return self.cache_format.row_bytes(self.row, self.kv_lora_rank, self.qk_rope_head_dim)

    def read_tokens(self, tokens: int) -> int:
        return min(tokens, self.top_k_tokens or tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedRowSpec(RowSpec):
    """Rows of DeepSeek-V4, K and V at once: `rope_dim` of their elements are rotary."""

    head_dim: int
    rope_dim: int
    cache_format: CacheFormat

    def __post_init__(self) -> None:
        self.cache_format.row_bytes(self.row, self.head_dim - self.rope_dim, self.rope_dim)

    @property
    def row(self) -> Row | None:
        return self.cache_format.compressed

    @property
    def k_head_dim(self) -> int:
        return self.head_dim

    @property
    def row_bytes(self) -> int:
        return self.cache_format.row_bytes(self.row, self.head_dim - self.rope_dim, self.rope_dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidingRowSpec(SharedRowSpec):
    """The rows of the last `window` tokens, which every layer keeps beside what it compresses."""

    kind = "sliding"
    window: int

    def stored_tokens(self, tokens: int) -> int:
        return min(tokens, self.window)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedSpec(SharedRowSpec):
    """A row for every `ratio` tokens; a step reads at most `top_k_rows` of them where an indexer chooses."""

    kind = "compressed"
    grows = True
    dcp_splits = True
    top_k_rows: int | None = None

    def read_tokens(self, tokens: int) -> int:
        return min(tokens, self.top_k_rows * self.ratio) if self.top_k_rows else tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexerSpec(RowSpec):
    """Index keys beside a sparse layer, scored by every step, in a dtype of their own whatever the KV dtype is."""

    kind = "indexer"
    grows = True
    head_dim: int
    dtype: IndexDtype

    @property
    def k_head_dim(self) -> int:
        return self.head_dim

    @property
    def row_bytes(self) -> int:
        return INDEX_KEYS[self.dtype].stored_bytes(self.head_dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantSpec(CacheSpec):
    """The same bytes however long the sequence is."""

    kind = "state"
    per_token = False

    @property
    def state_bytes(self) -> int:
        raise NotImplementedError

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
class StateSpec(ConstantSpec):
    """Recurrent and convolution state: every step reads and rewrites it. A sequence has `slots` of them: its own, and
    one for each drafted token, which may be the last that is accepted.
    """

    conv_elements: int
    recurrent_elements: int
    conv_element_bytes: int
    recurrent_element_bytes: int
    slots: int = 1

    @property
    def slot_bytes(self) -> int:
        return self.conv_elements * self.conv_element_bytes + self.recurrent_elements * self.recurrent_element_bytes

    @property
    def state_bytes(self) -> int:
        return self.slots * self.slot_bytes

    def read_bytes(self, tokens: int) -> int:
        """One state read, all of them written."""
        return (1 + self.slots) * self.slot_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressorSpec(ConstantSpec):
    """What a compressor of DeepSeek-V4 still needs: values and scores, in fp32, of the newest `window` tokens, two
    groups of 4 that overlap or one of 128.
    """

    vector_dim: int
    ratio: int
    window: int

    @property
    def state_bytes(self) -> int:
        return 4 * self.vector_dim * self.window

    def read_bytes(self, tokens: int) -> int:
        """On average: a step writes one vector, and each whole group reads the window."""
        return 4 * self.vector_dim * (1 + self.window // self.ratio)


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
