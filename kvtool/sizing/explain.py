"""Every formula of a size with the numbers put in, line by line."""

from __future__ import annotations

from collections.abc import Iterator

from kvtool.catalog.model import Model
from kvtool.results import SizeRow
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.plan import SizePlan, make_plan
from kvtool.sizing.specs import (
    FP8_DS_MLA_GROUP,
    INDEXER_SCALE_GROUP,
    CacheSpec,
    CrossSpec,
    HeadsSpec,
    IndexerSpec,
    LatentSpec,
    StateSpec,
    WindowSpec,
)
from kvtool.units import ceil_div, format_bytes


def explain(*models: Model, options: SizeOptions) -> list[str]:
    """The lines for every row that `size` gives for the same arguments."""
    lines: list[str] = []
    for model in models:
        for dtype in options.kv_cache_dtypes:
            plan = make_plan(model, options, dtype)
            lines += [f"{model.id}, {plan.cache_format.name} cache", *(f"  {line}" for line in _per_token(plan))]
            for context in options.contexts_of(model):
                for batch_size in options.batch_sizes:
                    row = plan.row(context, batch_size)
                    lines.append(f"  {context:,} tokens, batch {batch_size}")
                    lines += [f"    {line}" for line in _per_row(plan, row)]
    return lines


def _per_token(plan: SizePlan) -> Iterator[str]:
    """What a layer kind adds per token, or takes per sequence."""
    for spec, count in plan.specs:
        layers = f"{count} layer{'s' if count > 1 else ''}"
        formula = f"{spec.kind}: {_formula(spec, layers)}"
        if isinstance(spec, StateSpec):
            yield f"{formula} = {count * spec.state_bytes:,} B/sequence"
        elif not spec.per_token:
            yield f"{formula} = 0 B"
        else:
            yield f"{formula} = {count * spec.bytes_per_token:,} B/token" + _cap(spec, count)


def _formula(spec: CacheSpec, layers: str) -> str:
    match spec:
        case HeadsSpec():
            return _heads_formula(spec, layers)
        case LatentSpec(fp8_ds_mla=True):
            groups = ceil_div(spec.kv_lora_rank, FP8_DS_MLA_GROUP)
            return f"{layers} x ({spec.kv_lora_rank} x 1 B + {groups} scales x 4 B + {spec.qk_rope_head_dim} x 2 B)"
        case LatentSpec():
            scales = f" + {2 * spec.cache_format.scale_bytes} B of scales" if spec.cache_format.scale_bytes else ""
            data = (
                f"({spec.kv_lora_rank} latent + {spec.qk_rope_head_dim} rotary) x {spec.cache_format.element_bytes} B"
            )
            return f"{layers} x ({data}{scales})" if scales else f"{layers} x {data}"
        case IndexerSpec(quantised=True):
            return f"{layers} x ({spec.head_dim} x 1 B + {ceil_div(spec.head_dim, INDEXER_SCALE_GROUP)} scale x 4 B)"
        case IndexerSpec():
            return f"{layers} x {spec.head_dim} x 2 B"
        case StateSpec():
            conv = f"{spec.conv_elements:,} convolution elements x {spec.conv_element_bytes} B"
            return f"{layers} x ({conv} + {spec.recurrent_elements:,} recurrent x {spec.recurrent_element_bytes} B)"
        case _:
            return f"{layers} without K and V of their own"


def _heads_formula(spec: HeadsSpec, layers: str) -> str:
    k, v, scale = spec.k_head_dim, spec.v_head_dim, spec.cache_format.scale_bytes
    if scale:
        element = f"({k} + {v}) x {spec.cache_format.element_bytes} B + {2 * scale} B of scales"
        return f"{layers} x {spec.kv_heads} KV heads x ({element})"
    if k == v:
        return f"2 x {layers} x {spec.kv_heads} KV heads x {k} x {spec.cache_format.element_bytes} B"
    return f"{layers} x {spec.kv_heads} KV heads x ({k} + {v}) x {spec.cache_format.element_bytes} B"


def _cap(spec: CacheSpec, count: int) -> str:
    if isinstance(spec, WindowSpec):
        return f", for at most {spec.window:,} tokens = {count * spec.stored_bytes(spec.window):,} B/sequence"
    if isinstance(spec, CrossSpec):
        return f" x {spec.encoder_tokens:,} encoder tokens = {count * spec.stored_bytes(1):,} B/sequence"
    return ""


def _per_row(plan: SizePlan, row: SizeRow) -> Iterator[str]:
    context, block_size = row.inputs.context, row.inputs.block_size
    yield f"one sequence: {_sum(count * spec.stored_bytes(context) for spec, count in plan.specs)} B"
    pages = ceil_div(context, block_size)
    yield (
        f"in whole pages of {block_size} (ceil({context:,} / {block_size}) = {pages:,} pages where nothing caps): "
        f"{_sum(count * spec.allocated_bytes(context, block_size) for spec, count in plan.specs)} B"
    )
    shared = f", {row.inputs.shared_prefix // block_size:,} pages of prefix once" if row.inputs.shared_prefix else ""
    allocated, total = row.kv.allocated_bytes_per_sequence, row.kv.bytes_total
    yield f"the batch: {row.inputs.batch_size} x {allocated:,} B{shared} = {total:,} B"
    if row.inputs.num_gpus > 1:
        yield f"the fullest of {row.inputs.num_gpus} GPUs: {row.kv.bytes_per_gpu:,} B"
    if row.sharing is not None:
        yield f"the prefix once: {row.sharing.words}"
    yield from _decode(plan, row)
    yield from _fit(row)


def _sum(parts: Iterator[int]) -> str:
    terms = list(parts)
    total = f"{sum(terms):,}"
    return total if len(terms) == 1 else f"{' + '.join(f'{term:,}' for term in terms)} = {total}"


def _decode(plan: SizePlan, row: SizeRow) -> Iterator[str]:
    decode, gpu = row.decode, plan.options.gpu
    if decode.weights_read_bytes_per_step is None:
        yield f"a decode step reads {decode.kv_read_bytes_per_step:,} B of cache; what it reads of weights is not known"
        return
    read = decode.kv_read_bytes_per_step + decode.weights_read_bytes_per_step
    yield (
        f"a decode step reads {decode.weights_read_bytes_per_step:,} B of weights"
        f" + {decode.kv_read_bytes_per_step:,} B of cache = {read:,} B"
    )
    if decode.bound is not None and decode.ideal_tpot_ms is not None and gpu is not None:
        yield (
            f"TPOT at least max({read:,} B / {gpu.memory_bandwidth_gbps:,} GB/s, {decode.flops_per_step:,} FLOP / "
            f"{gpu.bf16_tflops:,} TFLOP/s) = {decode.ideal_tpot_ms:.3f} ms: {decode.bound}-bound"
        )


def _fit(row: SizeRow) -> Iterator[str]:
    fit = row.fit
    if fit.kv_pool_bytes is None or fit.usable_bytes is None:
        return
    parts = (fit.usable_bytes, fit.weights_bytes, fit.activation_bytes, fit.reserve_bytes)
    usable, weights, activations, reserve = (format_bytes(part or 0) for part in parts)
    verdict = "fits" if fit.fits else f"{fit.missing_bytes:,} B missing"
    if "kv_pool_bytes" in (fit.measured or ()):
        yield f"room for cache, measured: {fit.kv_pool_bytes:,} B: {verdict}"
        return
    yield (
        f"room for cache: {usable} usable - {weights} weights - {activations} activations - {reserve} reserve"
        f" = {fit.kv_pool_bytes:,} B, give or take {format_bytes(fit.margin_bytes or 0)}: {verdict}"
    )
