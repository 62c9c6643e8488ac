"""K and V of every head where attention reads a part of them: StreamingLLM, which lets the rest go, and Quest."""

from __future__ import annotations

from dataclasses import dataclass

from kvtool.sizing.formats import CacheFormat, Sparse
from kvtool.sizing.specs.heads import FullSpec, HeadsSpec, WindowSpec
from kvtool.system.errors import KvtoolError
from kvtool.units import ceil_div


def _sparse_of(cache_format: CacheFormat) -> Sparse:
    assert cache_format.sparse is not None
    return cache_format.sparse


def _without(tokens: int, kept_pages: int, page_tokens: int) -> int:
    """Tokens of a sequence without its pages beyond so many, the last one being read as far as it is filled."""
    return tokens - max(0, ceil_div(tokens, page_tokens) - kept_pages) * page_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingSpec(WindowSpec):
    """The first page and the newest; one page more holds the sinks turned, once any page was let go."""

    kind = "sliding"

    def stored_tokens(self, tokens: int) -> int:
        sparse = _sparse_of(self.cache_format)
        return _without(tokens, sparse.pages + 1, sparse.page_tokens)

    def read_tokens(self, tokens: int) -> int:
        sparse = _sparse_of(self.cache_format)
        return _without(tokens, sparse.pages, sparse.page_tokens)

    def peak_bytes(self, prompt_tokens: int, tokens: int, block_size: int) -> int:
        """A step of the prompt begins with a whole window."""
        sparse = _sparse_of(self.cache_format)
        prompt_pages = min(ceil_div(prompt_tokens, block_size), sparse.pages + sparse.step_tokens // block_size)
        return max(self.pages(tokens, block_size), prompt_pages) * self.page_bytes(block_size)

    def shared_pages(self, prefix_tokens: int, tokens: int, block_size: int) -> int:
        """None: sinks are turned for each sequence."""
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestSpec(FullSpec):
    """Every token, and beside each page the bounds of its keys; a step reads all bounds, and the pages it chose."""

    @property
    def bounds_bytes(self) -> int:
        """Of a page: the least and the largest of every channel of K, as wide as K is."""
        assert self.cache_format.key is not None
        return 2 * self.kv_heads * self.cache_format.key.stored_bytes(self.k_head_dim)

    @property
    def _token_bytes(self) -> int:
        return self.kv_heads * self.cache_format.head_bytes(self.k_head_dim, self.v_head_dim)

    @property
    def bytes_per_token(self) -> int:
        """Its share of the bounds in it."""
        return self._token_bytes + ceil_div(self.bounds_bytes, _sparse_of(self.cache_format).page_tokens)

    def page_bytes(self, block_size: int) -> int:
        return block_size * self._token_bytes + self.bounds_bytes

    def read_tokens(self, tokens: int) -> int:
        sparse = _sparse_of(self.cache_format)
        return _without(tokens, sparse.pages, sparse.page_tokens)

    def read_bytes(self, tokens: int) -> int:
        """A sequence of no more pages than are read is read without asking its bounds."""
        read, pages = self.read_tokens(tokens), ceil_div(tokens, _sparse_of(self.cache_format).page_tokens)
        return read * self._token_bytes + (pages * self.bounds_bytes if read < tokens else 0)


def sparse_spec(is_full: bool, *, kv_heads: int, k_head_dim: int, v_head_dim: int, fmt: CacheFormat) -> HeadsSpec:
    """Of a layer with that format. Raises KvtoolError for one that is not of full attention."""
    sparse = _sparse_of(fmt)
    if not is_full:
        raise KvtoolError(f"a {sparse.way} cache is one of full attention: this model has layers of another kind")
    shape = {"kv_heads": kv_heads, "k_head_dim": k_head_dim, "v_head_dim": v_head_dim}
    if sparse.way == "quest":
        return QuestSpec(**shape, cache_format=fmt)
    return StreamingSpec(**shape, cache_format=fmt, window=(sparse.pages + 1) * sparse.page_tokens)
