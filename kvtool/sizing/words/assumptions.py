"""What a size was worked out from without being read or measured, and what a layout stores more than once, in words."""

from __future__ import annotations

from collections.abc import Iterator

from kvtool.catalog.gpus import Gpu
from kvtool.sizing.dtypes import FLOAT_BYTES
from kvtool.sizing.engines.llama_cpp import LlamaCppCard
from kvtool.sizing.fit import Budget, free_share
from kvtool.sizing.formats import CacheFormat
from kvtool.sizing.layers import format_by_layer
from kvtool.sizing.plan import SizePlan
from kvtool.sizing.specs import (
    ChunkedSpec,
    CompressedSpec,
    CompressorSpec,
    CrossSpec,
    FullSpec,
    HeadsSpec,
    IndexerSpec,
    LatentSpec,
    RowSpec,
    SharedRowSpec,
    SharedSpec,
    StateSpec,
)
from kvtool.sizing.words.passing import passing_tokens
from kvtool.units import format_bytes


def assumptions(plan: SizePlan, *, automatic: bool) -> list[str]:
    """Every assumption of a plan. `automatic`: the cache dtype was left to kvtool."""
    return [
        *plan.model.assumed,
        *_cache(plan, automatic=automatic),
        *_state(plan),
        *_layout(plan),
        *_batch(plan),
        *_lengths(plan),
        *_weights(plan),
        *_passing(plan),
        *_card(plan),
        *(plan.engine.assumptions if plan.engine else ()),
    ]


def _cache(plan: SizePlan, *, automatic: bool) -> Iterator[str]:
    model, name = plan.model, plan.cache_format.name
    if automatic and model.dtype is None:
        yield f"{model.id}: no dtype is known, so the cache is taken to be {name}"
    elif automatic and name == "fp32":
        yield f"{model.id}: the cache is fp32 like the checkpoint; engines serve it in 16 bits (--kv-cache-dtype bf16)"
    if _has_tensor_scales(plan):
        yield f"{name} cache: one scale per tensor, which takes no bytes per token"
    if plan.cache_format.residual_tokens:
        yield _residual(plan.cache_format)
    whole = sum(fmt is not plan.cache_format for fmt in format_by_layer(model, plan.cache_format))
    if whole and plan.cache_format.sparse is not None:
        yield f"{name} cache: the first {whole} layers are read whole, as the paper leaves them"
    elif whole:
        yield f"{name} cache: the outermost {whole} layers keep the model's dtype, as vLLM leaves them"
    for spec, _ in plan.specs:
        if isinstance(spec, LatentSpec | SharedRowSpec) and name == "fp8" and spec.row != plan.cache_format.mla:
            yield f"fp8 cache of sparse MLA: vLLM's fp8_ds_mla layout, {spec.row_bytes} B a row (fp8_plain has none)"
        if isinstance(spec, IndexerSpec):
            stored = {"fp8": "fp8 with fp32 scales", "fp4": "fp4 with a scale for 32"}.get(spec.dtype, spec.dtype)
            yield f"index keys are stored in {stored} whatever the KV dtype: {spec.row_bytes} B a key and layer"
        if isinstance(spec, FullSpec | LatentSpec) and spec.top_k_tokens:
            yield f"a decode step reads all index keys, and at most {spec.top_k_tokens:,} tokens of a sparse cache"
        if isinstance(spec, CompressedSpec) and spec.top_k_rows:
            yield f"a decode step reads all index keys, and at most {spec.top_k_rows:,} rows of {spec.ratio} tokens"
        if isinstance(spec, CrossSpec):
            yield f"cross attention is sized for a full encoder: {spec.encoder_tokens:,} tokens a sequence"
        if isinstance(spec, ChunkedSpec):
            yield f"chunked layers are sized by a full chunk of {spec.window} tokens"
        if isinstance(spec, SharedSpec) and spec.source is None:
            yield f"{model.id}: which layers its KV-sharing layers read is not known; their reads are not counted"


def _residual(cache_format: CacheFormat) -> str:
    """Of a format that packs whole groups of tokens, up to a group less one waits beside the residual."""
    least, key = cache_format.residual_tokens, cache_format.key
    group = key.group if key is not None and key.per_channel else None
    newest = f"{least} to {least + group - 1}" if group else f"{least}"
    return f"{cache_format.name} cache: the newest {newest} tokens of a sequence are kept in 16 bits"


def _has_tensor_scales(plan: SizePlan) -> bool:
    """Whether a quantised vector has no scale beside it."""
    vectors = []
    for spec, _ in plan.specs:
        if isinstance(spec, HeadsSpec):
            vectors += [spec.cache_format.key, spec.cache_format.value]
        if isinstance(spec, LatentSpec | SharedRowSpec) and spec.row is not None:
            vectors.append(spec.row.latent)
    return any(vector.bits == 8 and not vector.scale_bytes for vector in vectors if vector is not None)


def _state(plan: SizePlan) -> Iterator[str]:
    kept = sum(count * spec.state_bytes for spec, count in plan.specs if isinstance(spec, CompressorSpec))
    if kept:
        yield (
            f"compressors keep {kept:,} B a sequence in fp32: in bytes_per_sequence and fixed_bytes_per_sequence, "
            "not in state_bytes_per_sequence, which is recurrent state"
        )
    drafted = plan.state.speculative_tokens
    if drafted and plan.draft is not None:
        weights = plan.draft.weights_bytes
        counted = "not known, and not counted" if weights is None else f"taken to be {format_bytes(weights)}"
        yield (
            f"{plan.draft.assumption}; recurrent layers keep {1 + drafted} states a sequence; the draft's own weights "
            f"are {counted}"
        )
    states = [(spec, count) for spec, count in plan.specs if isinstance(spec, StateSpec) and spec.recurrent_elements]
    if not states:
        return
    used = plan.state.recurrent
    other = "bf16" if used == "fp32" else "fp32"
    elements = sum(count * spec.slots * spec.recurrent_elements for spec, count in states)
    conv_bytes = sum(count * spec.slots * spec.conv_elements * spec.conv_element_bytes for spec, count in states)
    yield (
        f"recurrent state in {used}, convolution state in {plan.state.conv}: "
        f"{conv_bytes + elements * FLOAT_BYTES[used]:,} B a sequence; with --mamba-ssm-cache-dtype {other} it is "
        f"{conv_bytes + elements * FLOAT_BYTES[other]:,} B"
    )


def _layout(plan: SizePlan) -> Iterator[str]:
    parallel, specs = plan.options.parallel, [spec for spec, _ in plan.specs]
    tp, dcp = parallel.attention_tp, parallel.dcp
    for heads in sorted({spec.kv_heads for spec in specs if isinstance(spec, HeadsSpec)}):
        if heads < tp:
            split = f", {dcp} ways split by dcp" if dcp > 1 else ""
            yield f"tp {tp} is more than the {heads} KV heads: each head is on {tp // heads} ranks{split}"
    if tp > 1 and any(isinstance(spec, RowSpec) and spec.dcp_splits for spec in specs):
        yield f"tp does not split the MLA latent: {tp // dcp} whole copies on {tp} ranks"
    if tp > 1 and any(isinstance(spec, IndexerSpec) for spec in specs):
        yield f"neither tp nor dcp splits index keys: {tp} whole copies on {tp} ranks"
    if dcp > 1:
        yield f"dcp {dcp} splits the tokens of full and MLA layers; windows, states and index keys stay whole"
    if parallel.dp_attention and parallel.dp > 1:
        yield (
            f"dp attention: {parallel.dp} replicas of attention weights and cache on {parallel.tp} ranks, {tp} each; "
            f"a sequence is in one of them; all else is split {parallel.tp} ways, experts {parallel.expert_shards}"
        )
    if parallel.pp > 1:
        yield f"pp {parallel.pp}: the fullest stage decides bytes per GPU; a decode step passes through all stages"
    if parallel.dp > 1:
        yield f"dp {parallel.dp}: each replica has its share of the batch, rounded up, and its own shared prefix"
    if parallel.dp > 1 and not parallel.dp_attention and plan.weights.stored_bytes is not None:
        dealt = f", experts are split {parallel.expert_shards} ways" if plan.model.moe else ""
        yield f"each of the {parallel.dp} replicas has its own copy of the dense weights{dealt}"
    if parallel.num_gpus > 1:
        yield "norms and other small weights are taken as split like the rest; decode figures are those of one GPU"


def _batch(plan: SizePlan) -> Iterator[str]:
    model, options = plan.model, plan.options
    longest = max(options.contexts_of(model))
    if model.max_position_embeddings is not None and longest > model.max_position_embeddings:
        yield f"{model.id} was made for {model.max_position_embeddings:,} positions: beyond them it is only arithmetic"
    if options.shared_prefix:
        pages = options.shared_prefix // options.block_size
        yield (
            f"shared prefix: its {pages} whole pages are stored once and read by every sequence; "
            "recurrent state is not shared"
        )


def _lengths(plan: SizePlan) -> Iterator[str]:
    if plan.lengths is not None:
        yield (
            "requests of --lengths: each counts with its full length from the start, drawn independently of others; "
            "a younger request holds less"
        )


def _weights(plan: SizePlan) -> Iterator[str]:
    model, weights = plan.model, plan.weights
    if weights.stored_bytes is None:
        yield f"{model.id}: weights {weights.source}"
    if model.moe is not None and weights.params is not None:
        yield (
            "experts read in a step: E x (1 - (1 - k/E)^batch) of each sparse layer, k of E routed evenly "
            f"(E = {model.moe.num_experts}, k = {model.moe.experts_per_token})"
        )
    if weights.params is None and weights.stored_bytes is not None:
        what = (
            "the part of the experts that a step reads" if model.moe else "the part of the weights not read by a step"
        )
        yield f"{model.id}: its parameters are not known block by block, so {what} is not worked out"


def _passing(plan: SizePlan) -> Iterator[str]:
    """Where the cache is what decides."""
    for batch_size in plan.options.batch_sizes:
        tokens = passing_tokens(plan, batch_size)
        if tokens is not None:
            sequences = f"{batch_size:,} sequences" if batch_size > 1 else "one sequence"
            held = f"{plan.model.id}: the {plan.cache_format.name} cache"
            yield f"{held} passes the weights at {sequences} of {tokens:,} tokens"


def _card(plan: SizePlan) -> Iterator[str]:
    gpu = plan.options.gpu
    if gpu is None:
        return
    yield from _card_memory(gpu, None if isinstance(plan.held, LlamaCppCard) else plan.memory)
    yield from _memory(plan)
    yield (
        "the decode floor is the time to read weights and cache at the card's listed bandwidth, or to do the FLOPs"
        " at its dense bf16 rate; recurrent state counts as read and written"
    )


def _card_memory(gpu: Gpu, memory: Budget | None) -> Iterator[str]:
    """Where the card's total comes from, how good it is, and what of it is not to be had."""
    if gpu.memory_margin_bytes:
        yield (
            f"{gpu.name}: memory is {'assumed' if gpu.memory_assumed else 'taken'} to be "
            f"{format_bytes(gpu.memory_bytes)}, good to {format_bytes(gpu.memory_margin_bytes)}: {gpu.memory_source}"
        )
    if gpu.kept_bytes:
        yield (
            f"{gpu.name}: {format_bytes(gpu.kept_bytes)} of its memory is the system's or other processes': "
            "--free-memory says otherwise"
        )
    if memory is not None and gpu.kept_bytes and memory.usable_bytes == gpu.free_bytes:
        yield (
            f"{format_bytes(gpu.free_bytes)} are free, less than an engine asks for by default, so that is what "
            f"counts: vLLM starts with --gpu-memory-utilization {free_share(gpu):g} at most"
        )


def _given_pool(memory: Budget) -> Iterator[str]:
    """That a pool was not subtracted from the card's memory, where the weights beside it are more than that."""
    beside = (memory.weights_bytes or 0) + (memory.measured_pool_bytes or 0)
    if beside > memory.memory_bytes:
        yield (
            f"the pool is taken as given, but with {format_bytes(memory.weights_bytes or 0)} of weights beside it that "
            f"is more than the card's {format_bytes(memory.memory_bytes)}: take more GPUs or a smaller pool"
        )


def _memory(plan: SizePlan) -> Iterator[str]:
    """Which terms of the card's memory were measured, and how the others were estimated."""
    memory, calibration = plan.memory, plan.options.calibration
    if memory is None or memory.estimates is None:
        return
    estimates = memory.estimates
    if calibration is not None:
        terms = ", ".join(f"{name} {format_bytes(value)}" for name, value in calibration.measured.items())
        yield f"measured, not estimated: {terms} a GPU ({calibration.source})"
    if memory.measured_pool_bytes is not None:
        yield from _given_pool(memory)
        return
    if "weights_bytes" not in memory.measured and memory.weights_bytes is not None and estimates.beside_weights.bytes:
        yield estimates.beside_weights.text
    if "activation_bytes" not in memory.measured:
        yield estimates.activation.text
    if "reserve_bytes" not in memory.measured:
        yield f"{estimates.runtime.text}; {estimates.graphs.text}"
