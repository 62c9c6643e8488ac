"""The block size of models that mix attention with recurrent state: a page of tokens must hold at least one state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from kvtool.catalog.model import GatedDeltaNet
from kvtool.sizing.engines.vllm.backend import Backend
from kvtool.sizing.engines.vllm.inputs import Inputs
from kvtool.sizing.engines.vllm.layers import STATE, LayerCache, flashinfer_delta_net, layer_caches
from kvtool.sizing.specs import CacheSpec, HeadsSpec, LatentSpec
from kvtool.units import ceil_div, round_up

_MLA_ALIGNMENT = 128  # kernel blocks of MLA decode must come in multiples of 128 tokens
_DELTA_NET_ALIGNMENT = 64  # tokens between the states that FlashInfer's delta net can write


def paged_layers(inputs: Inputs, backend: Backend) -> list[list[LayerCache]]:
    """Every layer's caches, in blocks of the size that vLLM would settle on."""
    caches = layer_caches(inputs, block_size=backend.block_size)
    flat = [cache for layer in caches for cache in layer]
    states = [cache for cache in flat if cache.kind == STATE]
    attention = [cache for cache in flat if cache.kind != STATE]
    if not states or not attention or not any(cache.content_bytes for cache in states):
        return caches
    first = _probed(attention[0].spec)
    block_size = hybrid_block_size(inputs, backend, states, first)
    state_page_bytes = first.page_bytes(block_size)
    return layer_caches(inputs, block_size=block_size, state_page_bytes=state_page_bytes)


def _probed(spec: CacheSpec) -> CacheSpec:
    """The layer that pages are fitted to: vLLM takes its V to be as wide as its K."""
    return replace(spec, v_head_dim=spec.k_head_dim) if isinstance(spec, HeadsSpec) else spec


def hybrid_block_size(inputs: Inputs, backend: Backend, states: Sequence[LayerCache], attention: CacheSpec) -> int:
    """Tokens of a block whose attention page holds the largest state (Platform._align_hybrid_block_size)."""
    alignment = max(backend.kernel_block, backend.block_size)
    if isinstance(attention, LatentSpec) and inputs.rules.aligned_latent_blocks:
        alignment = max(alignment, _MLA_ALIGNMENT)
    if inputs.aligned_state and inputs.rules.delta_net_grid and _writes_states_on_a_grid(inputs):
        alignment = math.lcm(alignment, _DELTA_NET_ALIGNMENT)
    state_bytes = max(cache.content_bytes for cache in states)
    needed = alignment * ceil_div(state_bytes, alignment * attention.bytes_per_token)
    return max(backend.block_size, round_up(needed, backend.kernel_block))


def _writes_states_on_a_grid(inputs: Inputs) -> bool:
    delta_nets = any(isinstance(layer.cache, GatedDeltaNet) for layer in inputs.model.layers)
    return delta_nets and flashinfer_delta_net(inputs)
