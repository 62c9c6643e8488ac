"""From a model's layers to the specs of what one rank keeps for them: heads split or replicated, state sharded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from kvtool.catalog.model import (
    ChunkedAttention,
    CompressedAttention,
    CrossAttention,
    FullAttention,
    KimiDeltaAttention,
    LatentAttention,
    Layer,
    Model,
    RecurrentLayer,
    SharedAttention,
    SlidingAttention,
)
from kvtool.sizing.dtypes import AUTO, FLOAT_BYTES, parse_float_dtype
from kvtool.sizing.formats import INDEX_KEYS, CacheFormat, parse_cache_format
from kvtool.sizing.specs import (
    CacheSpec,
    ChunkedSpec,
    CompressedSpec,
    CompressorSpec,
    CrossSpec,
    FullSpec,
    IndexerSpec,
    LatentSpec,
    SharedSpec,
    SlidingRowSpec,
    SlidingSpec,
    StateSpec,
    sparse_spec,
)
from kvtool.sizing.specs.recurrent import conv_elements, recurrent_elements
from kvtool.system.errors import KvtoolError


@dataclass(frozen=True, slots=True, kw_only=True)
class StateFormat:
    """Dtypes of constant state: `conv` is the model's own, `recurrent` what --mamba-ssm-cache-dtype asks for.

    With `speculative_tokens`, convolutions but those of the `undrafted` kinds keep as many inputs more, each of them
    has a state of its own, and the model's draft layers keep a cache too.
    """

    conv: str
    recurrent: str
    speculative_tokens: int = 0
    undrafted: tuple[type, ...] = ()


def state_format(model: Model, recurrent: str = AUTO) -> StateFormat:
    """`auto` as vLLM decides it: what a Nemotron-H or Qwen3.5 config asks for (fp32 by default), fp32 for KDA, else the
    model's dtype. Raises KvtoolError.
    """
    asked = AUTO if recurrent == AUTO else parse_float_dtype(recurrent, "mamba ssm cache dtype")
    if not any(isinstance(layer.cache, RecurrentLayer) for layer in model.layers):
        return StateFormat(conv="bf16", recurrent="bf16")  # there is none to store
    conv = parse_float_dtype(model.dtype or "bf16", "model dtype")
    if asked != AUTO:
        return StateFormat(conv=conv, recurrent=asked)
    if (model.architecture or "").startswith(("nemotron_h", "qwen3_5")):
        return StateFormat(conv=conv, recurrent=parse_float_dtype(model.recurrent_state_dtype or "fp32", "state dtype"))
    keeps_fp32 = any(isinstance(layer.cache, KimiDeltaAttention) for layer in model.layers)
    return StateFormat(conv=conv, recurrent="fp32" if keeps_fp32 else conv)


def layer_specs(
    model: Model, cache_format: CacheFormat, *, tp: int = 1, state: StateFormat | None = None
) -> tuple[CacheSpec, ...]:
    """What one of `tp` ranks keeps, in layer order: one spec for each layer that keeps anything, then its indexer's.

    Raises KvtoolError where the query heads, KV heads or state heads cannot be dealt out to `tp` ranks.
    """
    return tuple(spec for layer in specs_by_layer(model, cache_format, tp=tp, state=state) for spec in layer)


def specs_by_layer(
    model: Model, cache_format: CacheFormat, *, tp: int = 1, state: StateFormat | None = None
) -> list[tuple[CacheSpec, ...]]:
    """`layer_specs` layer by layer, for pipeline stages: an empty tuple for a layer without attention or recurrence.
    Draft layers, where they run, come last.
    """
    if model.num_heads % tp:
        raise KvtoolError(f"tp {tp} does not divide the {model.num_heads} query heads of {model.id}")
    layers: list[tuple[CacheSpec, ...]] = []
    made: dict[tuple[Layer, int | None, int], tuple[CacheSpec, ...]] = {}  # most layers are alike
    formats = format_by_layer(model, cache_format)
    sparse = any(layer.indexer for layer in model.layers)
    state = state or state_format(model)
    if state.speculative_tokens:
        model = replace(model, layers=model.layers + model.draft_layers)
        formats += [cache_format] * len(model.draft_layers)
    for layer, top_k_tokens, layer_format in zip(model.layers, top_k_by_layer(model), formats, strict=True):
        if isinstance(layer.cache, SharedAttention):
            source = layer.cache.source_layer
            shared = SharedSpec(source=None if source is None else layers[source][0])
            layers.append((shared, *_index_specs(layer)))
            continue
        alike = layer, top_k_tokens, id(layer_format)
        if alike not in made:
            builder = _Builder(cache_format=layer_format, tp=tp, state=state, sparse=sparse, top_k_tokens=top_k_tokens)
            made[alike] = (*builder.specs(layer), *_index_specs(layer))
        layers.append(made[alike])
    return layers


def has_indexer(model: Model) -> bool:
    """Whether any layer has the index keys of sparse attention."""
    return any(layer.indexer for layer in model.layers)


def with_index_dtype(model: Model, dtype: str) -> Model:
    """The model with its index keys stored in `dtype`; `auto` leaves them as its engine stores them. Raises KvtoolError
    where they cannot be.
    """
    if dtype == AUTO:
        return model
    stored = next((name for name in INDEX_KEYS if name == dtype), None)
    if stored is None:
        raise KvtoolError(f"unknown index dtype {dtype[:40]!r}: use one of {', '.join([AUTO, *INDEX_KEYS])}")
    if not has_indexer(model):
        raise KvtoolError(f"--index-dtype {dtype} means nothing for {model.id}: it has no sparse-attention indexer")
    layers, drafts = (
        tuple(
            replace(layer, indexer=replace(layer.indexer, dtype=stored)) if layer.indexer else layer for layer in group
        )
        for group in (model.layers, model.draft_layers)
    )
    return replace(model, layers=layers, draft_layers=drafts)


def format_by_layer(model: Model, cache_format: CacheFormat) -> list[CacheFormat]:
    """The format of each layer's cache: TurboQuant leaves the outermost layers at the model's dtype, as vLLM does, but
    not those of a model with recurrent layers. A sparse cache reads its first layers whole.
    """
    if cache_format.sparse is not None:
        first = min(cache_format.sparse.whole_layers, model.num_layers)
        return [cache_format.whole] * first + [cache_format] * (model.num_layers - first)
    count = min(cache_format.whole_layers, model.num_layers // 2)
    if count == 0 or any(isinstance(layer.cache, RecurrentLayer) for layer in model.layers):
        return [cache_format] * model.num_layers
    whole = [parse_cache_format(AUTO, model.dtype)] * count
    return [*whole, *[cache_format] * (model.num_layers - 2 * count), *whole]


def _index_specs(layer: Layer) -> Iterator[CacheSpec]:
    """Index keys, and for compressed ones what their compressor keeps."""
    indexer = layer.indexer
    if indexer is None:
        return
    yield IndexerSpec(head_dim=indexer.head_dim, dtype=indexer.dtype, ratio=indexer.ratio)
    if isinstance(layer.cache, CompressedAttention):
        yield _compressor(layer.cache, indexer.head_dim)


def _compressor(cache: CompressedAttention, head_dim: int) -> CompressorSpec:
    """It makes rows of `head_dim`: for each group it sums over, a value and a score of every input element."""
    groups = cache.compressor_groups
    return CompressorSpec(vector_dim=2 * groups * head_dim, ratio=cache.ratio, window=groups * cache.ratio)


def top_k_by_layer(model: Model) -> Iterator[int | None]:
    """How many tokens each layer's attention reads at most. An MLA layer without an indexer of its own takes the choice
    of the one before it (GLM-5.2 and 5.3 share indexers); other layers without an indexer read everything.
    """
    inherited: int | None = None
    for layer in model.layers:
        if layer.indexer is not None:
            inherited = layer.indexer.top_k_tokens
            yield inherited
        else:
            yield inherited if isinstance(layer.cache, LatentAttention) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Builder:
    """Makes one rank's specs of a layer. `sparse`: the model has indexers, which decides how some formats store MLA."""

    cache_format: CacheFormat
    tp: int
    state: StateFormat
    sparse: bool
    top_k_tokens: int | None

    def specs(self, layer: Layer) -> Iterator[CacheSpec]:
        """Its own cache first."""
        match layer.cache:
            case None | SharedAttention():
                pass
            case LatentAttention():
                yield self._latent_spec(layer.cache)
            case CompressedAttention():
                yield from self._compressed_specs(layer.cache)
            case FullAttention():
                yield self._heads_spec(layer.cache)
            case _:
                yield self._state_spec(layer.cache)
        if layer.cross is not None:
            yield self._heads_spec(layer.cross)

    def _latent_spec(self, cache: LatentAttention) -> LatentSpec:
        return LatentSpec(
            kv_lora_rank=cache.kv_lora_rank,
            qk_rope_head_dim=cache.qk_rope_head_dim,
            cache_format=self.cache_format,
            sparse=self.sparse,
            top_k_tokens=self.top_k_tokens,
        )

    def _compressed_specs(self, cache: CompressedAttention) -> Iterator[CacheSpec]:
        dim, rope, fmt = cache.head_dim, cache.qk_rope_head_dim, self.cache_format
        yield SlidingRowSpec(head_dim=dim, rope_dim=rope, cache_format=fmt, window=cache.window)
        if cache.ratio:
            top_k = self.top_k_tokens
            yield CompressedSpec(head_dim=dim, rope_dim=rope, cache_format=fmt, ratio=cache.ratio, top_k_rows=top_k)
            yield _compressor(cache, dim)

    def _heads_spec(self, cache: FullAttention) -> CacheSpec:
        kv_heads = self._kv_heads(cache.kv_heads)
        k, v, fmt = cache.k_head_dim, cache.v_head_dim, self.cache_format
        if fmt.sparse is not None:
            return sparse_spec(type(cache) is FullAttention, kv_heads=kv_heads, k_head_dim=k, v_head_dim=v, fmt=fmt)
        match cache:
            case SlidingAttention(window=window):
                return SlidingSpec(kv_heads=kv_heads, k_head_dim=k, v_head_dim=v, window=window, cache_format=fmt)
            case ChunkedAttention(window=window):
                return ChunkedSpec(kv_heads=kv_heads, k_head_dim=k, v_head_dim=v, window=window, cache_format=fmt)
            case CrossAttention(encoder_tokens=tokens):
                return CrossSpec(kv_heads=kv_heads, k_head_dim=k, v_head_dim=v, encoder_tokens=tokens, cache_format=fmt)
            case _:
                return FullSpec(
                    kv_heads=kv_heads, k_head_dim=k, v_head_dim=v, cache_format=fmt, top_k_tokens=self.top_k_tokens
                )

    def _kv_heads(self, total: int) -> int:
        """KV heads of one rank: split, or one copy each where there are fewer heads than ranks."""
        if total % self.tp and self.tp % total:
            raise KvtoolError(f"tp {self.tp} neither divides the {total} KV heads nor is a multiple of them")
        return max(1, total // self.tp)

    def _state_spec(self, cache: RecurrentLayer) -> StateSpec:
        drafted = self.state.speculative_tokens
        kept = 0 if isinstance(cache, self.state.undrafted) else drafted
        return StateSpec(
            slots=1 + drafted,
            conv_elements=conv_elements(cache, self.tp, kept),
            recurrent_elements=recurrent_elements(cache, self.tp),
            conv_element_bytes=FLOAT_BYTES[self.state.conv],
            recurrent_element_bytes=FLOAT_BYTES[self.state.recurrent],
        )
