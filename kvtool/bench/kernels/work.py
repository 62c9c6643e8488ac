"""The kernel calls that `kvtool kernels` measures, and what each must move and compute, from the sizing specs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import TypeGuard

from kvtool.bench.kernels.options import KernelsOptions
from kvtool.catalog.model import FullAttention, LatentAttention, Layer, Model
from kvtool.results import KernelBytes
from kvtool.sizing.dtypes import FLOAT_BYTES
from kvtool.sizing.formats import CacheFormat
from kvtool.sizing.layers import layer_specs, specs_by_layer
from kvtool.sizing.specs import CacheSpec, FullSpec, LatentSpec, SlidingSpec
from kvtool.sizing.speed.traffic import attention_flops
from kvtool.system.errors import KvtoolError
from kvtool.units import ceil_div

AttentionSpec = FullSpec | SlidingSpec | LatentSpec

DECODE, PREFILL, STORE = "decode", "prefill", "store"
MAX_CALLS = 1024  # of one pass through the working set: more launches than this measure the launching
TABLE_ENTRY_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelWork:
    """One kernel on one layer of a model: `batch_size` sequences of `context` cached tokens each.

    The last `query_len` tokens of each are this call's: its queries, or the rows that it stores. A prefill over latents
    is `decompressed` where it does what a step of the engine does: copy them out of their pages, multiply them back to
    keys and values of each head, and attend to those.
    """

    model: Model
    layer: Layer
    spec: AttentionSpec
    part: str  # decode | prefill | store
    dtype: str
    block_size: int
    context: int
    batch_size: int
    query_len: int
    decompressed: bool = False

    @property
    def kernel(self) -> str:
        """What a report calls the operation."""
        if self.decompressed:
            return "mla_prefill_decompressed"
        if isinstance(self.spec, LatentSpec):
            return {DECODE: "mla_decode", PREFILL: "mla_prefill", STORE: "store_latent"}[self.part]
        return {DECODE: "paged_decode", PREFILL: "paged_prefill", STORE: "store_kv"}[self.part]

    @property
    def name(self) -> str:
        size = f"{self.query_len}" if self.part == STORE else f"{self.query_len}@{self.context}"
        return f"{self.kernel}/{self.spec.kind}/{self.cache_dtype}/{self.block_size}/{size}x{self.batch_size}"

    @property
    def cache_dtype(self) -> str:
        return self.spec.cache_format.name

    @property
    def new_tokens(self) -> int:
        """Tokens of this call, over all sequences."""
        return self.batch_size * self.query_len

    @property
    def row_elements(self) -> int:
        """Elements of one token's K and V, or of its latent."""
        return self.spec.kv_heads * (self.spec.k_head_dim + self.spec.v_head_dim)

    @property
    def head_dims(self) -> tuple[int, int]:
        """Columns of a head's query and of its output."""
        if self.decompressed:
            nope, v_dim = decompressed_dims(self.layer)
            return nope + self.spec.k_head_dim - self.out_dim, v_dim
        return self.spec.k_head_dim, self.out_dim

    @property
    def out_dim(self) -> int:
        """Columns of what is attended to where it lies."""
        return self.spec.kv_lora_rank if isinstance(self.spec, LatentSpec) else self.spec.v_head_dim

    @property
    def up_shape(self) -> tuple[int, int, int]:
        """[heads, nope + v, R]: what decompresses a latent."""
        return self.model.num_heads, sum(decompressed_dims(self.layer)), self.out_dim

    @property
    def tokens_in_use(self) -> int:
        """Tokens of a sequence whose slots a call touches: a window hides those before its first query's."""
        if self.part == STORE:
            return self.query_len
        return self.spec.read_tokens(self.context - self.query_len + 1) + self.query_len - 1

    @property
    def first_page(self) -> int:
        """Logical pages of a sequence before this one are never followed."""
        return 0 if self.part == STORE else (self.context - self.tokens_in_use) // self.block_size

    @property
    def num_pages(self) -> int:
        """Logical pages of a sequence, those before `first_page` included."""
        return ceil_div(self.query_len if self.part == STORE else self.context, self.block_size)

    @property
    def call_pages(self) -> int:
        """Physical pages that one call uses."""
        return self.batch_size * (self.num_pages - self.first_page)

    @property
    def kv_bytes(self) -> int:
        """Bytes of cache that one call reads or writes."""
        return self.batch_size * self.tokens_in_use * self.spec.bytes_per_token

    @property
    def bytes(self) -> KernelBytes:
        itemsize = FLOAT_BYTES[self.dtype]
        if self.part == STORE:
            rows = self.new_tokens * self.row_elements * itemsize
            return KernelBytes(kv_read=0, kv_written=self.kv_bytes, other=rows, flops=0)
        other = self.new_tokens * self.model.num_heads * sum(self.head_dims) * itemsize
        other += self.batch_size * (self.num_pages - self.first_page) * TABLE_ENTRY_BYTES
        other += prod(self.up_shape) * itemsize if self.decompressed else 0
        return KernelBytes(kv_read=self.kv_bytes, kv_written=0, other=other, flops=self._flops())

    def _flops(self) -> int:
        layer = self.layer
        if isinstance(layer.cache, LatentAttention) and not self.decompressed:
            # The kernel attends over the latents themselves: without head dims sizing counts it so in prefill too.
            layer = Layer(cache=replace(layer.cache, qk_nope_head_dim=None))
        one_layer = replace(self.model, layers=(layer,))
        cached = self.context - self.query_len
        flops = attention_flops(one_layer, new_tokens=self.query_len, cached_tokens=cached)
        return self.batch_size * (flops + (2 * self.context * prod(self.up_shape) if self.decompressed else 0))

    def calls(self, stream_bytes: int) -> int:
        """Calls on pages of their own that go through `stream_bytes` of cache. Prefill computes: one is enough."""
        return 1 if self.part == PREFILL else min(MAX_CALLS, ceil_div(stream_bytes, self.kv_bytes))

    def pool_pages(self, stream_bytes: int) -> int:
        return self.calls(stream_bytes) * self.call_pages

    def needed_bytes(self, stream_bytes: int) -> int:
        """Memory to measure it: the pool, the rows to store, queries and outputs, what is decompressed, and the
        reference's fp32 copies."""
        pool = self.pool_pages(stream_bytes) * self.spec.page_bytes(self.block_size)
        if self.part == STORE:
            return pool + self.calls(stream_bytes) * self.bytes.other
        row = self.spec.k_head_dim + (prod(self.up_shape[:2]) if self.decompressed else 0)
        copied = self.batch_size * self.context * row * FLOAT_BYTES[self.dtype] if self.decompressed else 0
        return pool + self.bytes.other + copied + 12 * self.tokens_in_use * (self.spec.k_head_dim + self.out_dim)


def plan(model: Model, options: KernelsOptions, formats: Iterable[CacheFormat], dtype: str) -> list[KernelWork]:
    """All calls to measure, those on one pool side by side. Raises KvtoolError for a model with no layer to run."""
    return [
        work
        for cache_format, block_size in product(formats, options.block_sizes)
        for layer, spec in _attention_layers(model, cache_format)
        for work in _works(model, layer, spec, options, block_size, dtype)
        if work.part in options.parts
    ]


def left_out(model: Model, cache_format: CacheFormat) -> list[str]:
    """In words: kinds of layers that no kernel is for, in a model that has others."""
    specs = set(layer_specs(model, cache_format))
    kinds = sorted({spec.kind for spec in specs if not _has_kernel(spec)} - {"shared"})
    return [f"{kind} layers were not measured: kvtool has no kernel for them" for kind in kinds]


def can_decompress(layer: Layer) -> bool:
    """Whether it is known what latents of it are decompressed to."""
    cache = layer.cache
    return isinstance(cache, LatentAttention) and None not in (cache.qk_nope_head_dim, cache.v_head_dim)


def decompressed_dims(layer: Layer) -> tuple[int, int]:
    """Columns of a head's key, but for the part that all share, and of its value."""
    cache = layer.cache
    assert isinstance(cache, LatentAttention)
    assert cache.qk_nope_head_dim is not None
    assert cache.v_head_dim is not None
    return cache.qk_nope_head_dim, cache.v_head_dim


def _attention_layers(model: Model, cache_format: CacheFormat) -> list[tuple[Layer, AttentionSpec]]:
    """One layer of each shape. Raises KvtoolError where there is none."""
    found: dict[AttentionSpec, Layer] = {}
    for layer, specs in zip(model.layers, specs_by_layer(model, cache_format), strict=True):
        for spec in specs:
            if _has_kernel(spec):
                found.setdefault(spec, layer)
    if not found:
        raise KvtoolError(f"{model.id} has no layer to run: kernels are for full, sliding and MLA without an indexer")
    for spec, layer in found.items():
        if isinstance(layer.cache, FullAttention) and model.num_heads % spec.kv_heads:
            raise KvtoolError(
                f"{model.num_heads} query heads of {model.id} do not divide among {spec.kv_heads} KV heads"
            )
    return [(layer, spec) for spec, layer in found.items()]


def _has_kernel(spec: CacheSpec) -> TypeGuard[AttentionSpec]:
    """Dense attention over everything or a window: no indexer's choice, no mixed layout."""
    if isinstance(spec, LatentSpec):
        return spec.top_k_tokens is None and not spec.sparse
    return isinstance(spec, SlidingSpec) or (isinstance(spec, FullSpec) and spec.top_k_tokens is None)


def _works(
    model: Model, layer: Layer, spec: AttentionSpec, options: KernelsOptions, block_size: int, dtype: str
) -> Iterator[KernelWork]:
    def work(part: str, *, context: int, batch_size: int, query_len: int, decompressed: bool = False) -> KernelWork:
        return KernelWork(
            model=model,
            layer=layer,
            spec=spec,
            part=part,
            dtype=dtype,
            block_size=block_size,
            context=context,
            batch_size=batch_size,
            query_len=query_len,
            decompressed=decompressed,
        )

    for context, batch_size in product(options.contexts, options.batch_sizes):
        yield work(DECODE, context=context, batch_size=batch_size, query_len=1)
    for context in options.contexts:
        query_len = min(options.chunk_len, context)
        yield work(PREFILL, context=context, batch_size=1, query_len=query_len)
        if query_len > 1 and can_decompress(layer):
            yield work(PREFILL, context=context, batch_size=1, query_len=query_len, decompressed=True)
    for batch_size in options.batch_sizes:
        yield work(STORE, context=1, batch_size=batch_size, query_len=1)
    yield work(STORE, context=options.chunk_len, batch_size=1, query_len=options.chunk_len)
