"""Every formula of a size with the numbers put in, line by line."""

from __future__ import annotations

from collections.abc import Iterator

from kvtool.catalog.model import Model
from kvtool.results import SizeRow
from kvtool.sizing.formats import INDEX_KEYS, Row, Vector
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.plan import SizePlan, make_plan
from kvtool.sizing.specs import (
    CacheSpec,
    CompressorSpec,
    ConstantSpec,
    CrossSpec,
    HeadsSpec,
    IndexerSpec,
    LatentSpec,
    SharedRowSpec,
    SlidingRowSpec,
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
        if isinstance(spec, ConstantSpec):
            yield f"{formula} = {count * spec.state_bytes:,} B/sequence"
        elif not spec.per_token:
            yield f"{formula} = 0 B"
        else:
            yield f"{formula} = {spec.growth_bytes(count):,} B/token" + _cap(spec, count)


def _formula(spec: CacheSpec, layers: str) -> str:
    match spec:
        case HeadsSpec():
            return _heads_formula(spec, layers)
        case LatentSpec(row=Row() as row):
            return f"{layers} x {_row(row, spec.kv_lora_rank, spec.qk_rope_head_dim)}"
        case SharedRowSpec(row=Row() as row):
            return f"{layers} x {_row(row, spec.head_dim - spec.rope_dim, spec.rope_dim)}{_every(spec.ratio)}"
        case IndexerSpec():
            return f"{layers} x {_group(_vector(INDEX_KEYS[spec.dtype], spec.head_dim))}{_every(spec.ratio)}"
        case CompressorSpec():
            return f"{layers} x {spec.window} tokens x {spec.vector_dim:,} values and scores of a compressor x 4 B"
        case StateSpec():
            conv = f"{spec.conv_elements:,} convolution elements x {spec.conv_element_bytes} B"
            slots = f" x {spec.slots} states" if spec.slots > 1 else ""
            recurrent = f"{spec.recurrent_elements:,} recurrent x {spec.recurrent_element_bytes} B"
            return f"{layers} x ({conv} + {recurrent}){slots}"
        case _:
            return f"{layers} without K and V of their own"


def _heads_formula(spec: HeadsSpec, layers: str) -> str:
    k, v, key, value = spec.k_head_dim, spec.v_head_dim, spec.cache_format.key, spec.cache_format.value
    if key is None or value is None:
        return f"{layers} without K and V heads"
    heads = f"{layers} x {spec.kv_heads} KV heads x"
    scales = key.groups(k) * key.scale_bytes + value.groups(v) * value.scale_bytes
    if not scales and key == value:
        return f"2 x {heads} {k} x {_element(key)}" if k == v else f"{heads} ({k} + {v}) x {_element(key)}"
    elements = f"({k} + {v}) x {_element(key)}" if key == value else f"{k} x {_element(key)} + {v} x {_element(value)}"
    return f"{heads} ({elements} + {scales} B of scales)"


def _element(vector: Vector) -> str:
    return f"{vector.bits // 8} B" if vector.bits % 8 == 0 else f"{vector.bits} bits"


def _vector(vector: Vector, elements: int) -> str:
    groups = vector.groups(elements)
    scales = f" + {groups} scale{'s' if groups > 1 else ''} x {vector.scale_bytes} B" if groups else ""
    return f"{elements} x {_element(vector)}{scales}"


def _group(text: str) -> str:
    return f"({text})" if " + " in text else text


def _row(row: Row, latent: int, rope: int) -> str:
    if row.latent == row.rope and not row.latent.scale_bytes:
        return f"({latent} latent + {rope} rotary) x {_element(row.latent)}"
    padded = row.stored_bytes(latent, rope) - Row(latent=row.latent, rope=row.rope).stored_bytes(latent, rope)
    padding = f" + {padded} B of padding" if padded else ""
    return f"({_vector(row.latent, latent)} + {_vector(row.rope, rope)}{padding})"


def _every(ratio: int) -> str:
    return f" / {ratio} tokens" if ratio > 1 else ""


def _cap(spec: CacheSpec, count: int) -> str:
    if isinstance(spec, WindowSpec | SlidingRowSpec):
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
    yield from _activations(plan)
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


def _activations(plan: SizePlan) -> Iterator[str]:
    """The estimated terms beside weights and cache, where they are any."""
    memory = plan.memory
    if memory is None or memory.estimates is None or {"activation_bytes", "kv_pool_bytes"} & set(memory.measured):
        return
    yield f"{memory.estimates.activation.text}: {memory.activation_bytes:,} B"


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
