"""One model with one cache dtype on one layout: everything that its rows have in common, and a row for each batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from kvtool.catalog.model import Model
from kvtool.results import (
    SizeEngine,
    SizeFit,
    SizeInputs,
    SizeKv,
    SizeLayers,
    SizeLengths,
    SizeModel,
    SizeRow,
    SizeTier,
    SizeWeights,
)
from kvtool.sizing.card import card_memory
from kvtool.sizing.drafts import Draft, loaded_weights, with_draft
from kvtool.sizing.dtypes import AUTO
from kvtool.sizing.engines import llama_cpp
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.run import EngineRun, run_engine
from kvtool.sizing.fit import BatchLimits, Budget, fit
from kvtool.sizing.formats import CacheFormat, parse_cache_format
from kvtool.sizing.layers import StateFormat, layer_specs, state_format, with_index_dtype
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.questions.lengths import fitting_requests
from kvtool.sizing.questions.sharing import sharing
from kvtool.sizing.questions.tiers import Places, tiers
from kvtool.sizing.specs import CacheSpec, CompressorSpec, HeadsSpec, RowSpec, SlidingRowSpec, StateSpec, WindowSpec
from kvtool.sizing.speed.decode import decode_floor
from kvtool.sizing.speed.traffic import DecodeWork, decode_work
from kvtool.sizing.usage import GpuCache, SpecCounts, allocated_bytes, count_specs, gpu_cache, growth_bytes
from kvtool.sizing.weights import Weights, weigh


@dataclass(frozen=True, slots=True, kw_only=True)
class SizePlan:
    """`specs` are those of one whole copy of the model (tp 1); `cache` is what the GPUs of the layout hold, `held` the
    same as the engine allocates it, where that is known for a batch.
    """

    model: Model
    draft: Draft | None
    options: SizeOptions
    cache_format: CacheFormat
    state: StateFormat
    specs: SpecCounts
    cache: GpuCache
    held: GpuCache | llama_cpp.LlamaCppCard
    weights: Weights
    stored: SizeWeights
    work: DecodeWork
    limits: BatchLimits | None
    memory: Budget | None
    engine: EngineRun | None
    lengths: SizeLengths | None

    def row(self, context: int, batch_size: int) -> SizeRow:
        """The row of `batch_size` sequences of `context` tokens."""
        options = self.options
        prefix = options.shared_prefix
        return SizeRow(
            model=_model(self.model),
            inputs=self._inputs(context, batch_size),
            layers=_layer_groups(self.specs, context),
            kv=self._kv(context, batch_size),
            weights=self.stored,
            decode=decode_floor(
                self.work,
                self.cache,
                self.weights,
                options.parallel,
                options.gpu,
                context=context,
                batch_size=batch_size,
            ),
            fit=SizeFit()
            if self.memory is None
            else fit(
                self.memory,
                self.held,
                context=context,
                batch_size=batch_size,
                shared_prefix=prefix,
                max_context=options.max_context(self.model),
                limit_name="max_model_len" if options.max_model_len else "max_position_embeddings",
            ),
            engine=self._engine(context, batch_size),
            sharing=sharing(self.specs, context=context, batch_size=batch_size, options=options),
            tiers=None if options.places is None else self._tiers(context, batch_size),
            lengths=self.lengths,
        )

    def _engine(self, context: int, batch_size: int) -> SizeEngine:
        """The start that was asked for; of llama.cpp one whose -c holds the row, where none was told."""
        if self.engine is None:
            return SizeEngine()
        asked = self.options.engine
        if asked is None or asked.name not in llama_cpp.NAMES or asked.max_model_len is not None:
            return self.engine.at(context)
        own = llama_cpp.start_for(self.engine.options, tokens=context, batch_size=batch_size)
        return run_engine(self.model, own, self.memory).at(context)

    def _tiers(self, context: int, batch_size: int) -> list[SizeTier]:
        options = self.options
        return tiers(
            options.places or Places(),
            options.gpu,
            self.memory,
            gpu_cache=self.cache,
            whole_cache=GpuCache(stages=(self.specs,), block_size=options.block_size, dp=1, dcp=1),
            context=context,
            batch_size=batch_size,
            shared_prefix=options.shared_prefix,
        )

    def _inputs(self, context: int, batch_size: int) -> SizeInputs:
        options = self.options
        parallel = options.parallel
        return SizeInputs(
            context=context,
            batch_size=batch_size,
            kv_cache_dtype=self.cache_format.name,
            weight_dtype=self.weights.format.name,
            block_size=options.block_size,
            tp=parallel.tp,
            pp=parallel.pp,
            dp=parallel.dp,
            dcp=parallel.dcp,
            ep=parallel.ep,
            gpu=options.gpu.name if options.gpu else None,
            num_gpus=self.held.num_gpus if isinstance(self.held, llama_cpp.LlamaCppCard) else parallel.num_gpus,
            shared_prefix=options.shared_prefix,
            engine=self.engine.options.name if self.engine else None,
            num_speculative_tokens=options.num_speculative_tokens,
            enable_dp_attention=parallel.dp_attention,
        )

    def _kv(self, context: int, batch_size: int) -> SizeKv:
        block_size, prefix = self.options.block_size, self.options.shared_prefix
        windows = [(spec, count) for spec, count in self.specs if isinstance(spec, WindowSpec | SlidingRowSpec)]
        return SizeKv(
            bytes_per_token=growth_bytes(self.specs, indexer=False),
            indexer_bytes_per_token=growth_bytes(self.specs, indexer=True),
            window_bytes_per_token=sum(n * s.bytes_per_token for s, n in windows),
            window_cap_bytes_per_sequence=sum(n * s.stored_bytes(s.window) for s, n in windows),
            state_bytes_per_sequence=sum(n * s.state_bytes for s, n in self.specs if isinstance(s, StateSpec)),
            bytes_per_sequence=sum(n * s.stored_bytes(context) for s, n in self.specs),
            allocated_bytes_per_sequence=sum(n * s.allocated_bytes(context, block_size) for s, n in self.specs),
            fixed_bytes_per_sequence=sum(n * s.fixed_bytes(block_size) for s, n in self.specs),
            slope_bytes_per_token=sum(growth_bytes(self.specs, indexer=indexer) for indexer in (False, True)),
            bytes_total=allocated_bytes(
                self.specs, tokens=context, batch_size=batch_size, block_size=block_size, shared_prefix=prefix
            ),
            bytes_per_gpu=self.held.bytes_per_gpu(tokens=context, batch_size=batch_size, shared_prefix=prefix),
        )


def make_plan(model: Model, options: SizeOptions, kv_cache_dtype: str = AUTO) -> SizePlan:
    """Resolve names and layout. Raises KvtoolError for an unknown dtype and for a layout the model cannot take."""
    model = with_index_dtype(model, options.index_dtype)
    cache_format = parse_cache_format(kv_cache_dtype, model.dtype).paged(options.block_size)
    draft = options.draft_of(model)
    weights = weigh(model, options.weight_dtype, checkpoint=options.checkpoint)
    if options.engine is not None and options.engine.name in ("vllm", "sglang"):
        weights = loaded_weights(weights, draft)
    if draft is not None:
        model = with_draft(model, draft)
    state = replace(state_format(model, options.state_dtype), speculative_tokens=options.num_speculative_tokens)
    parallel = options.parallel
    cache = gpu_cache(model, cache_format, parallel=parallel, block_size=options.block_size, state=state)
    start = None if options.engine is None else engine_start(options.engine, options, kv_cache_dtype)
    card = None
    if start is not None and start.name in llama_cpp.NAMES:
        card = llama_cpp.fullest_card(replace(weights, model=model), start)
    limits, memory = card_memory(model, options, weights, card)
    run = None if start is None else run_engine(model, start, memory)
    if run is not None and run.block_size is not None:  # sequences are held in the engine's own pages
        options, cache = replace(options, block_size=run.block_size), replace(cache, block_size=run.block_size)
    return SizePlan(
        model=model,
        draft=draft,
        options=options,
        cache_format=cache_format,
        state=state,
        specs=count_specs(layer_specs(model, cache_format, state=state)),
        cache=cache,
        held=cache if card is None else card,
        weights=weights,
        stored=SizeWeights(
            bytes=weights.stored_bytes, bytes_per_gpu=weights.bytes_per_gpu(parallel), source=weights.source
        ),
        work=decode_work(model),
        limits=limits,
        memory=memory,
        engine=run,
        lengths=None
        if options.lengths is None or memory is None
        else fitting_requests(
            options.lengths,
            memory,
            cache,
            shared_prefix=options.shared_prefix,
            longest=options.max_context(model),
        ),
    )


def engine_start(engine: EngineOptions, options: SizeOptions, kv_cache_dtype: str) -> EngineOptions:
    """The engine's start for one plan: on its layout, with its cache dtype and its batch where it has one. llama.cpp's
    -c is the longest context asked for, unless --max-model-len says otherwise.
    """
    longest = engine.max_model_len
    if engine.name in llama_cpp.NAMES and longest is None and options.contexts:
        longest = max(options.contexts)
    return replace(
        engine,
        max_model_len=longest,
        kv_cache_dtype=kv_cache_dtype,
        parallel=options.parallel,
        max_num_batched_tokens=options.max_num_batched_tokens or engine.max_num_batched_tokens,
        max_num_seqs=options.max_num_seqs or engine.max_num_seqs,
        dtype=options.dtype,
    )


def _model(model: Model) -> SizeModel:
    return SizeModel(
        id=model.id,
        source=model.source,
        attention=model.attention,
        num_layers=model.num_layers,
        params_total=model.params_total,
    )


def _layer_groups(specs: SpecCounts, context: int) -> list[SizeLayers]:
    """Layers of one kind and shape together; the bytes are those of the whole group."""
    groups: dict[tuple[object, ...], SizeLayers] = {}
    for spec, count in specs:
        layers = _layers(spec, count, context)
        dims = (layers.kv_heads, layers.k_head_dim, layers.v_head_dim)
        shape = (layers.kind, *dims, layers.window, layers.bits_per_element)
        known = groups.get(shape)
        groups[shape] = _merged(known, layers) if known else layers
    return list(groups.values())


def _merged(a: SizeLayers, b: SizeLayers) -> SizeLayers:
    return msgspec.structs.replace(
        a,
        count=a.count + b.count,
        bytes_per_token=a.bytes_per_token + b.bytes_per_token,
        bytes_per_sequence=a.bytes_per_sequence + b.bytes_per_sequence,
    )


def _layers(spec: CacheSpec, count: int, context: int) -> SizeLayers:
    vectors = spec if isinstance(spec, HeadsSpec | RowSpec) else None
    return SizeLayers(
        kind=spec.kind,
        count=count,
        kv_heads=vectors.kv_heads if vectors else None,
        k_head_dim=vectors.k_head_dim if vectors else None,
        v_head_dim=vectors.v_head_dim if vectors else None,
        window=spec.window if isinstance(spec, WindowSpec | SlidingRowSpec | CompressorSpec) else None,
        bytes_per_token=spec.growth_bytes(count),
        bytes_per_sequence=count * spec.stored_bytes(context),
        bits_per_element=spec.bits_per_element,
    )
