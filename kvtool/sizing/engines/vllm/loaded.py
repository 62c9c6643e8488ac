"""What vLLM holds beside the weights once a model is loaded: tables of positions, what pads experts for their kernels,
what MLA's work in, and what torch's allocator rounds up. Its log counts it as weights ("Model loading took").

Read in model_executor/layers/rotary_embedding/, layers/fused_moe/oracle/mxfp4.py, v1/attention/backends/mla/ and
torch's CUDACachingAllocator.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from kvtool.catalog.decoder import Decoder
from kvtool.catalog.model import FullAttention, LatentAttention, Model, SlidingAttention
from kvtool.sizing.dtypes import FLOAT_BYTES, canonical_dtype
from kvtool.sizing.engines.estimates import Estimate
from kvtool.sizing.engines.vllm.rules import VllmRules
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.params import mlp_matrices
from kvtool.sizing.weights import Weights
from kvtool.units import MIB, ceil_div, format_bytes, round_up

HOPPER, BLACKWELL, BLACKWELL_ULTRA = 90, 100, 103
MXFP4 = "mxfp4"
# Families without tables of positions (learned ones, or biases), and those that have several times the positions that a
# model was made for: MRotaryEmbedding keeps four times as many for long videos.
_WITHOUT_TABLES = ("bloom", "gpt2", "gpt_bigcode", "mpt", "nemotron_h", "opt")
_VIDEO_POSITIONS = 4
_VIDEO_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_omni", "qwen3_5")
_TWO_THETAS = ("gemma3_text", "gemma3n_text", "gemma4_text", "gemma4_unified_text")  # windows rotate by their own
# Part of a head that rotates, where the decoder does not say it.
_ROTATED = {
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), 0.25),
    **dict.fromkeys(("chatglm", "glm", "glm4", "glm4_moe", "minimax_m2"), 0.5),
}
_ROTATION_BYTES = 4  # an element of FlashInfer's tables
_WORKSPACE_BYTES = 128 * MIB  # FLASHINFER_MLA_WORKSPACE_BUFFER_SIZE, and CUTLASS's g_sm100_workspace
_UNPACKED_BITS = 16
_SEGMENT_BYTES, _OWN_SEGMENT_BYTES, _KEPT_REST_BYTES = 2 * MIB, 10 * MIB, MIB


def beside_weights(
    weights: Weights, parallel: Parallel, capability: int | None, rules: VllmRules, *, eager: bool = False
) -> Estimate:
    """Of one rank: no estimate but arithmetic, so without a margin."""
    tables = table_bytes(weights.model, fp32_yarn=eager and rules.flashinfer_rotation)
    beside = {
        "that pad experts for their kernel": padding_bytes(weights, parallel, capability),
        "of MLA's up-projections unpacked": absorbed_bytes(weights, parallel),
        "that MLA's kernels work in": workspace_bytes(weights.model, capability, rules),
    }
    rounding = sum(count * rounding_bytes(size) for size, count in _tensors(weights, parallel)) // parallel.pp
    told = "".join(f", {format_bytes(size)} {what}" for what, size in beside.items() if size)
    return Estimate(
        bytes=tables + sum(beside.values()) + rounding,
        margin_bytes=0,
        text=(
            f"weights of a GPU count what vLLM loads with them: {format_bytes(tables)} of tables of positions{told}, "
            f"{format_bytes(rounding)} that torch rounds up"
        ),
    )


def workspace_bytes(model: Model, capability: int | None, rules: VllmRules) -> int:
    """Buffers that modules of MLA kernels take when they are imported, all of which a start does that may run them:
    FlashInfer's until 0.24, and CUTLASS's on Blackwell.
    """
    if capability is None or not _is_latent(model):
        return 0
    return _WORKSPACE_BYTES * (rules.latent_workspace + (capability in (BLACKWELL, BLACKWELL_ULTRA)))


def _is_latent(model: Model) -> bool:
    return any(isinstance(layer.cache, LatentAttention) for layer in model.layers)


def table_bytes(model: Model, *, fp32_yarn: bool = False) -> int:
    """Cosines and sines of every position, once for all layers that rotate alike; MLA's under YaRN in fp32 where so
    asked. 0 where positions are not known.
    """
    decoder = model.decoder
    learned = decoder is not None and decoder.position_offset is not None
    if model.max_position_embeddings is None or learned or model.architecture in _WITHOUT_TABLES:
        return 0
    element = FLOAT_BYTES.get(canonical_dtype(model.dtype or "bf16"), 2)
    if fp32_yarn and _is_latent(model) and (decoder is None or _may_be_yarn(decoder)):
        element = _ROTATION_BYTES
    tables = {_table(model, layer.cache) for layer in model.layers} - {(0, False), (0, True)}
    return sum(_positions(model, scaled=scaled) * width * element for width, scaled in tables)


def _may_be_yarn(decoder: Decoder) -> bool:
    """Whether its config says so, or says nothing: models with MLA are made longer by it."""
    scaling = decoder.rope_scaling
    return not decoder.exact if scaling is None else scaling.kind == "yarn"


def _table(model: Model, cache: object) -> tuple[int, bool]:
    """(elements of a row, whether positions are scaled) of the table that a layer reads; (0, ...) for none."""
    match cache:
        case LatentAttention():
            return cache.qk_rope_head_dim, True
        case FullAttention():
            own = isinstance(cache, SlidingAttention) and model.architecture in _TWO_THETAS
            return round(cache.k_head_dim * _rotated(model)), not own
        case _:
            return 0, False


def _rotated(model: Model) -> float:
    decoder = model.decoder
    if decoder is not None and decoder.rotary_fraction != 1.0:
        return decoder.rotary_fraction
    return _ROTATED.get(model.architecture or "", 1.0)


def _positions(model: Model, *, scaled: bool) -> int:
    """Rows of a table: linear scaling multiplies what the config says, other kinds reach it."""
    positions = model.max_position_embeddings or 0
    scaling = None if model.decoder is None else model.decoder.rope_scaling
    if scaled and scaling is not None and scaling.kind == "linear":
        return round(positions * scaling.factor)
    if (model.architecture or "").startswith(_VIDEO_FAMILIES):
        return positions * _VIDEO_POSITIONS
    return positions


def padding_bytes(weights: Weights, parallel: Parallel, capability: int | None) -> int:
    """By how much experts in MXFP4 grow to the multiples that their kernel takes: Marlin's before Hopper, Triton's
    there, FlashInfer's on Blackwell. 0 for other formats and cards.
    """
    moe, model = weights.model.moe, weights.model
    if moe is None or capability is None or weights.format.name != MXFP4:
        return 0
    inner_multiple, outer_multiple = _multiples(capability)
    inner, outer = _expert_width(weights, parallel), moe.hidden_size or model.hidden_size
    padded = round_up(inner, inner_multiple) * round_up(outer, outer_multiple)
    each = (padded - inner * outer) * mlp_matrices(model) * weights.format.expert_bits / 8
    layers = sum(moe.is_sparse(index) for index in range(model.num_layers))
    return round(each * _local_experts(weights, parallel) * layers / parallel.pp)


def absorbed_bytes(weights: Weights, parallel: Parallel) -> int:
    """Copies in 16 bits of the matrices that decode multiplies latents with, where the checkpoint stores them in fewer
    (W_UK_T and W_UV of layers/attention/mla_attention.py).
    """
    if weights.format.mixer_bits >= _UNPACKED_BITS or weights.format.layers:
        return 0
    heads = ceil_div(weights.model.num_heads, parallel.attention_tp)
    kept = 0
    for layer in weights.model.layers:
        mla = layer.cache
        if isinstance(mla, LatentAttention) and mla.qk_nope_head_dim and mla.v_head_dim:
            kept += heads * (mla.qk_nope_head_dim + mla.v_head_dim) * mla.kv_lora_rank
    return kept * _UNPACKED_BITS // 8 // parallel.pp


def _multiples(capability: int) -> tuple[int, int]:
    """Of the inner and the outer width of an expert."""
    if capability < HOPPER:
        return 128, 256
    return (64, 1) if capability < BLACKWELL else (128, 256)


def _expert_width(weights: Weights, parallel: Parallel) -> int:
    moe = weights.model.moe
    return 0 if moe is None else ceil_div(moe.intermediate_size, 1 if parallel.ep > 1 else parallel.tp)


def _local_experts(weights: Weights, parallel: Parallel) -> int:
    moe = weights.model.moe
    return 0 if moe is None else ceil_div(moe.num_experts, parallel.ep)


def rounding_bytes(size: int) -> int:
    """What torch's allocator adds to a tensor: one of 10 MiB has a segment of its own in steps of 2 MiB, and a rest of
    1 MiB at most is not given to others. Smaller tensors share segments.
    """
    rest = round_up(size, _SEGMENT_BYTES) - size
    return rest if size >= _OWN_SEGMENT_BYTES and rest <= _KEPT_REST_BYTES else 0


def _tensors(weights: Weights, parallel: Parallel) -> Iterator[tuple[int, int]]:
    """(bytes, how many) of the large matrices of all layers on one rank, those that vLLM joins as one."""
    model, stored = weights.model, weights.format
    # Layers of one kind share the object that describes their cache.
    for _, same in groupby(model.layers, key=lambda layer: id(layer.cache)):
        layers = list(same)
        cache = layers[0].cache
        if isinstance(cache, FullAttention):
            for size in _attention(model, cache, parallel.attention_tp, int(stored.mixer_bits)):
                yield size, len(layers)
    sparse = 0 if model.moe is None else sum(model.moe.is_sparse(index) for index in range(model.num_layers))
    width = ceil_div(model.intermediate_size or 0, parallel.tp)
    for size in _mlp(model, width * model.hidden_size, int(stored.bits)):
        yield size, model.num_layers - sparse
    for size in _expert_tensors(weights, parallel):
        yield size, sparse


def _expert_tensors(weights: Weights, parallel: Parallel) -> Iterator[int]:
    """Of a sparse layer: its routed experts and the shared ones."""
    model, stored = weights.model, weights.format
    if model.moe is None:
        return
    outer = model.moe.hidden_size or model.hidden_size
    expert = _local_experts(weights, parallel) * _expert_width(weights, parallel) * outer
    yield from _mlp(model, expert, int(stored.expert_bits))
    shared = ceil_div(model.moe.shared_intermediate_size, parallel.tp) * model.hidden_size
    yield from _mlp(model, shared, int(stored.bits))


def _attention(model: Model, cache: FullAttention, tp: int, bits: int) -> Iterator[int]:
    """Queries, keys and values in one matrix, and the output."""
    kv_width = max(1, cache.kv_heads // tp) * (cache.k_head_dim + cache.v_head_dim)
    heads = ceil_div(model.num_heads, tp)
    yield (heads * cache.k_head_dim + kv_width) * model.hidden_size * bits // 8
    yield heads * cache.v_head_dim * model.hidden_size * bits // 8


def _mlp(model: Model, elements: int, bits: int) -> Iterator[int]:
    """Gate and up in one matrix, where there is a gate, and down; `elements` are those of one."""
    yield (mlp_matrices(model) - 1) * elements * bits // 8
    yield elements * bits // 8
