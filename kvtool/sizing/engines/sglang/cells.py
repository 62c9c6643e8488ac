"""Bytes of a token and of a state slot on one rank, pool by pool, as SGLang's configurators count them.

Truth: sglang 0.5.23, srt/model_executor/pool_configurator.py and srt/configs/mamba_utils.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from kvtool.catalog.model import (
    ChunkedAttention,
    CompressedAttention,
    CrossAttention,
    FullAttention,
    LatentAttention,
    Layer,
    Model,
    RecurrentLayer,
    SharedAttention,
    SlidingAttention,
)
from kvtool.sizing.dtypes import AUTO, FLOAT_BYTES, parse_float_dtype
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.sglang.backend import SM90, SM100, Backend, is_hybrid, is_sparse_mla
from kvtool.sizing.engines.sglang.refusal import RefusedError
from kvtool.sizing.engines.sglang.versions import rules_of
from kvtool.sizing.specs.recurrent import conv_elements, recurrent_elements
from kvtool.units import ceil_div

# model_type of the text model of those architectures that get a pool of their own for sliding layers
# (configs/model_config.py: is_hybrid_swa_model); every other model keeps all tokens of all layers.
SWA_POOL_ARCHITECTURES = (
    *("llama4_text", "gpt_oss", "gemma4_text", "step3p5", "step3p7", "mimo_v2", "mimo_v2_flash", "laguna", "mellum"),
    *("muse_glimmer", "muse_glimmer_text", "granite_swa", "granitemoe_swa"),
)
# Those with recurrent layers that SGLang has a model for (srt/models/), and of them those whose radix cache keeps two
# more state slots a request for overlapped scheduling (overrides.py: _MAMBA_EXTRA_BUFFER_ARCHS).
EXTRA_BUFFER_ARCHITECTURES = (
    *("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "nemotron_h", "falcon_h1", "granitemoehybrid"),
    *("kimi_linear", "kimi_k3"),
)
STATE_ARCHITECTURES = (*EXTRA_BUFFER_ARCHITECTURES, "lfm2", "lfm2_moe", "zaya", "mamba", "mamba2", "falcon_mamba")
# Those whose config's own mamba_ssm_dtype is heard; the rest keep fp32 (configs/mamba_utils.py: mamba2_state_dtype).
_STATE_DTYPE_OF_CONFIG = ("qwen3_5_text", "qwen3_5_moe_text")
SCALE_GROUP, SCALE_BYTES = 128, 4  # elements of an fp8 latent or index key to an fp32 scale
CONV_BYTES = FLOAT_BYTES["bf16"]  # SGLANG_MAMBA_CONV_DTYPE, whatever the model's dtype is


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCell:
    """`layers` equal layers of a pool: bytes that one token takes in each, in K and V (MLA: all of it in K)."""

    layers: int = 0
    k_bytes: int = 0
    v_bytes: int = 0
    index_layers: int = 0
    index_bytes: int = 0
    draft_bytes: int = 0  # of a draft's own pool, which a token of this one is charged with

    @property
    def kv_bytes(self) -> int:
        return self.layers * (self.k_bytes + self.v_bytes)

    @property
    def bytes_per_token(self) -> int:
        return self.kv_bytes + self.index_layers * self.index_bytes

    @property
    def charged_bytes(self) -> int:
        """What the memory for caches is divided by: the draft's layers too."""
        return self.bytes_per_token + self.draft_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StateCell:
    """One slot of recurrent and convolution state over the layers of a rank."""

    layers: int
    conv_bytes: int
    recurrent_bytes: int

    @property
    def bytes_per_slot(self) -> int:
        return self.conv_bytes + self.recurrent_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCells:
    """What a rank of one pipeline stage keeps; `charged_state` is the slot that memory is set aside for: the largest
    of all stages. `window` is that of the SWA pool as SGLang counts it.
    """

    full: TokenCell
    swa: TokenCell | None
    state: StateCell | None
    charged_state_bytes: int
    window: int | None


def stage_cells(model: Model, options: EngineOptions, backend: Backend) -> list[StageCells]:
    """The cells of each pipeline stage. Raises RefusedError for what SGLang has no pool for, KvtoolError where state
    cannot be dealt out to tp ranks.
    """
    _check(model, options)
    stages = [model.layers[start:end] for start, end in stage_bounds(model.num_layers, options.parallel.pp)]
    states = [_state_cell(stage, model, options) for stage in stages]
    charged = max((state.bytes_per_slot for state in states if state), default=0)
    return [
        StageCells(
            full=_with_draft(_token_cell(_full_layers(model, stage), model, options, backend), model, options, backend),
            swa=_token_cell(_swa_layers(model, stage), model, options, backend) if has_swa_pool(model) else None,
            state=state,
            charged_state_bytes=charged,
            window=_window(model),
        )
        for stage, state in zip(stages, states, strict=True)
    ]


def _with_draft(cell: TokenCell, model: Model, options: EngineOptions, backend: Backend) -> TokenCell:
    """The cell charged with a draft: as many layers of its own size (EAGLE, MTP), or of the draft's (DFlash)."""
    if not options.num_speculative_tokens or not rules_of(options).drafts_in_cells or not model.draft_layers:
        return cell
    caches = [layer.cache for layer in model.draft_layers if isinstance(layer.cache, FullAttention | LatentAttention)]
    rows = sum(sum(_row_bytes(cache, options, backend)) for cache in caches)
    index = len(caches) * cell.index_bytes if cell.index_layers else 0
    return replace(cell, draft_bytes=rows + index)


def stage_bounds(num_layers: int, pp: int) -> list[tuple[int, int]]:
    """Layers of each stage: equal shares, those left over one each to the last stages (distributed/utils.py)."""
    share, left = divmod(num_layers, pp)
    bounds = [0]
    for stage in range(pp):
        bounds.append(bounds[-1] + share + (stage >= pp - left))
    return list(pairwise(bounds))


def has_swa_pool(model: Model) -> bool:
    return model.architecture in SWA_POOL_ARCHITECTURES and any(_is_sliding(model, layer) for layer in model.layers)


def _check(model: Model, options: EngineOptions) -> None:
    if is_hybrid(model) and model.architecture not in STATE_ARCHITECTURES:
        raise RefusedError(f"SGLang 0.5.23 has no model with recurrent state of architecture {model.architecture}")
    if any(isinstance(layer.cache, CompressedAttention) for layer in model.layers):
        raise RefusedError("SGLang's pools of compressed layers (DeepSeek-V4) are not planned")
    if any(isinstance(layer.cache, CrossAttention) for layer in model.layers):
        raise RefusedError("encoder tokens share SGLang's token pool: cross attention is not planned")
    if any(isinstance(layer.cache, SharedAttention) and layer.cache.source_layer is None for layer in model.layers):
        raise RefusedError(f"which layers the KV-sharing layers of {model.id} read is not known, nor then their shape")
    if options.parallel.dcp > 1 and (has_swa_pool(model) or is_hybrid(model)):
        raise RefusedError("dcp with a pool for windows or states is not planned")


def _stored(model: Model, layer: Layer) -> FullAttention | LatentAttention | RecurrentLayer | None:
    """The cache that SGLang allocates for a layer: a KV-sharing layer gets one like that of the layer it reads."""
    if isinstance(layer.cache, SharedAttention):
        source = layer.cache.source_layer
        return None if source is None else _stored(model, model.layers[source])
    return None if isinstance(layer.cache, CompressedAttention) else layer.cache


def _is_sliding(model: Model, layer: Layer) -> bool:
    return isinstance(_stored(model, layer), SlidingAttention | ChunkedAttention)


def _swa_layers(model: Model, stage: Sequence[Layer]) -> list[Layer]:
    return [layer for layer in stage if _is_sliding(model, layer)]


def _full_layers(model: Model, stage: Sequence[Layer]) -> list[Layer]:
    """Layers of the (full) token pool: those with attention in a hybrid; else all, attention or not."""
    if is_hybrid(model):
        return [layer for layer in stage if isinstance(layer.cache, FullAttention | LatentAttention)]
    if has_swa_pool(model):
        return [layer for layer in stage if not _is_sliding(model, layer)]
    return list(stage)


def _window(model: Model) -> int | None:
    """SGLang leaves the current token out of a sliding window (models/gpt_oss.py), but not out of a chunk."""
    if not has_swa_pool(model):
        return None
    caches = (_stored(model, layer) for layer in model.layers)
    windows = {
        cache.window - isinstance(cache, SlidingAttention)
        for cache in caches
        if isinstance(cache, SlidingAttention | ChunkedAttention)
    }
    return max(windows)


def _token_cell(layers: Sequence[Layer], model: Model, options: EngineOptions, backend: Backend) -> TokenCell:
    shapes = Counter(_row_bytes(cache, options, backend) for layer in layers if (cache := _stored(model, layer)))
    if not shapes:
        return TokenCell()
    if len(shapes) > 1:
        raise RefusedError(f"SGLang sizes the layers of a pool alike, and those of {model.id} differ")
    (k_bytes, v_bytes), _ = shapes.popitem()
    indexers = {_index_bytes(model, layer, backend) for layer in layers if layer.indexer}
    return TokenCell(
        layers=len(layers),
        k_bytes=k_bytes,
        v_bytes=v_bytes,
        index_layers=sum(layer.indexer is not None for layer in layers),
        # every dcp rank keeps the index keys of all tokens, and a token of its pool stands for dcp of them
        index_bytes=max(indexers, default=0) * options.parallel.dcp,
    )


def _row_bytes(
    cache: FullAttention | LatentAttention | RecurrentLayer, options: EngineOptions, backend: Backend
) -> tuple[int, int]:
    """K and V bytes of one token in one layer."""
    if isinstance(cache, LatentAttention):
        if backend.scaled_rows:
            scales = cache.kv_lora_rank // SCALE_GROUP * SCALE_BYTES
            return cache.kv_lora_rank + scales + 2 * cache.qk_rope_head_dim, 0
        return (cache.kv_lora_rank + cache.qk_rope_head_dim) * backend.element_bytes, 0
    if not isinstance(cache, FullAttention):
        return 0, 0
    heads = max(1, cache.kv_heads // (options.parallel.attention_tp // options.parallel.dcp))
    return heads * cache.k_head_dim * backend.element_bytes, heads * cache.v_head_dim * backend.element_bytes


def _index_bytes(model: Model, layer: Layer, backend: Backend) -> int:
    """An index key: fp8 with fp32 scales for sparse MLA; MiniMax-M3 keeps it like its cache where fp8 kernels run."""
    assert layer.indexer is not None
    head_dim = layer.indexer.head_dim
    if is_sparse_mla(model):
        return ceil_div(head_dim + head_dim // SCALE_GROUP * SCALE_BYTES, layer.indexer.ratio)
    in_fp8 = backend.cache_dtype == "fp8" and backend.platform in (SM90, SM100)
    return head_dim * (1 if in_fp8 else 2)


def _state_cell(stage: Sequence[Layer], model: Model, options: EngineOptions) -> StateCell | None:
    """State in fp32 unless --mamba-ssm-dtype or the config says otherwise; convolutions in bf16."""
    if not is_hybrid(model):
        return None
    caches = [layer.cache for layer in stage if isinstance(layer.cache, RecurrentLayer)]
    tp, element_bytes = options.parallel.attention_tp, FLOAT_BYTES[state_dtype(model, options)]
    return StateCell(
        layers=len(caches),
        conv_bytes=sum(conv_elements(cache, tp) for cache in caches) * CONV_BYTES,
        recurrent_bytes=sum(recurrent_elements(cache, tp) for cache in caches) * element_bytes,
    )


def state_dtype(model: Model, options: EngineOptions) -> str:
    """fp32, bf16 or fp16 of recurrent state. Raises KvtoolError for another name."""
    asked = options.mamba_ssm_cache_dtype
    if asked == AUTO and model.architecture in _STATE_DTYPE_OF_CONFIG and model.recurrent_state_dtype:
        asked = model.recurrent_state_dtype
    return "fp32" if asked == AUTO else parse_float_dtype(asked, "mamba ssm cache dtype")
