"""One vector that all query heads share: MLA latents, compressed rows, indexer keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvtool.catalog.model import IndexDtype
from kvtool.sizing.formats import INDEX_KEYS, CacheFormat, Row
from kvtool.sizing.specs.base import CacheSpec
from kvtool.units import ceil_div


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
