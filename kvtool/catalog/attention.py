"""The short name of a model's attention, from its layers: `gqa`, `mla+linear`, `mqa+sliding`."""

from __future__ import annotations

from collections.abc import Sequence

from kvtool.catalog.model import (
    ChunkedAttention,
    CompressedAttention,
    CrossAttention,
    FullAttention,
    GatedDeltaNet,
    KimiDeltaAttention,
    LatentAttention,
    Layer,
    LightningAttention,
    Mamba1,
    Mamba2,
    OtherState,
    ShortConvolution,
    SlidingAttention,
)

_EXTRA = (
    ("sliding", SlidingAttention),
    ("chunked", ChunkedAttention),
    ("compressed", CompressedAttention),
    ("cross", CrossAttention),
    ("linear", (GatedDeltaNet, KimiDeltaAttention, LightningAttention)),
    ("mamba", (Mamba1, Mamba2)),
    ("conv", ShortConvolution),
    ("state", OtherState),
)


def attention_name(layers: Sequence[Layer], num_heads: int) -> str:
    """What the layers keep: the head grouping (mha | gqa | mqa | mla), then sliding, chunked,
    compressed, cross, linear, mamba or conv.
    """
    caches = [cache for layer in layers for cache in (layer.cache, layer.cross)]
    kv_heads = {cache.kv_heads for cache in caches if isinstance(cache, FullAttention)}
    parts = []
    if any(isinstance(cache, LatentAttention) for cache in caches):
        parts.append("mla")
    if kv_heads:
        parts.append("mha" if kv_heads == {num_heads} else "mqa" if kv_heads == {1} else "gqa")
    parts += [name for name, kinds in _EXTRA if any(isinstance(cache, kinds) for cache in caches)]
    return "+".join(parts) or "none"
