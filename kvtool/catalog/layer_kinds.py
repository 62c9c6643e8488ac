"""The kinds of layers by the names that models.yaml and layer specs have for them, and layers written out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import TypeVar

import msgspec

from kvtool.catalog.model import (
    CacheKind,
    ChunkedAttention,
    CompressedAttention,
    CrossAttention,
    FullAttention,
    GatedDeltaNet,
    Indexer,
    KimiDeltaAttention,
    LatentAttention,
    Layer,
    LightningAttention,
    Mamba1,
    Mamba2,
    OtherState,
    SharedAttention,
    ShortConvolution,
    SlidingAttention,
)
from kvtool.system.errors import KvtoolError, did_you_mean

T = TypeVar("T")
MAX_LAYERS = 4096
CACHES: dict[str, type[CacheKind]] = {
    "full": FullAttention,
    "sliding": SlidingAttention,
    "chunked": ChunkedAttention,
    "cross": CrossAttention,
    "mla": LatentAttention,
    "compressed": CompressedAttention,
    "mamba1": Mamba1,
    "mamba2": Mamba2,
    "gated_delta_net": GatedDeltaNet,
    "kda": KimiDeltaAttention,
    "lightning": LightningAttention,
    "short_conv": ShortConvolution,
    "state": OtherState,
}
_WRITTEN = {**CACHES, "shared": SharedAttention}
_MAY_BE_ZERO = {"ratio", "v_head_dim", "source_layer", "conv_elements", "qk_rope_head_dim"}


def written_layers(groups: list[dict[str, object]], num_heads: int) -> list[Layer]:
    """Layers of groups such as `{count: 8, kind: full, kv_heads: 4, ..., indexer: {...}}`. Raises KvtoolError."""
    layers: list[Layer] = []
    for group in groups:
        rest = dict(group)
        count, kind = rest.pop("count", 1), rest.pop("kind", None)
        if type(count) is not int or not 1 <= count <= MAX_LAYERS - len(layers):
            raise KvtoolError(f"layers: count {str(count)[:20]} must be from 1, and {MAX_LAYERS} layers in all")
        layers += [_written_layer(kind, rest)] * count
    for index, layer in enumerate(layers):
        _check(index, layer, layers, num_heads)
    return layers


def _written_layer(kind: object, rest: dict[str, object]) -> Layer:
    indexer, cross = rest.pop("indexer", None), rest.pop("cross", None)
    if kind != "none" and (not isinstance(kind, str) or kind not in _WRITTEN):
        near = did_you_mean(str(kind)[:40], _WRITTEN) or f": use one of {', '.join([*_WRITTEN, 'none'])}"
        raise KvtoolError(f"layers: kind {str(kind)[:40]!r} is not known{near}")
    if kind == "none" and rest:
        raise KvtoolError(f"layers: kind 'none' has no {min(rest)!r}")
    return Layer(
        cache=None if kind == "none" else _block(_WRITTEN[str(kind)], rest, str(kind)),
        indexer=None if indexer is None else _block(Indexer, indexer, "indexer"),
        cross=None if cross is None else _block(CrossAttention, cross, "cross"),
    )


def _block(cls: type[T], values: object, name: str) -> T:
    """The dataclass of that name, every key known, every number at least 1 where 0 means nothing."""
    if not isinstance(values, Mapping):
        raise KvtoolError(f"layers: {name!r} is not a block of fields")
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    unknown = [key for key in values if key not in known]
    if unknown:
        raise KvtoolError(f"layers: kind {name!r} has no {str(unknown[0])[:40]!r} (it has {', '.join(known)})")
    missing = [key for key, field in known.items() if key not in values and field.default is MISSING]
    if missing:
        raise KvtoolError(f"layers: kind {name!r} lacks {', '.join(missing)}")
    for key, value in values.items():
        if type(value) is int and value < (0 if key in _MAY_BE_ZERO else 1):
            raise KvtoolError(f"layers: {key} {value} of kind {name!r} is too small")
    try:
        return msgspec.convert(values, cls)
    except msgspec.ValidationError as error:
        raise KvtoolError(f"layers: kind {name!r}: {error}") from error


def _check(index: int, layer: Layer, layers: list[Layer], num_heads: int) -> None:
    for cache in (layer.cache, layer.cross):
        if isinstance(cache, FullAttention) and num_heads % cache.kv_heads:
            raise KvtoolError(f"layer {index}: {num_heads} heads do not divide among {cache.kv_heads} KV heads")
    if isinstance(layer.cache, SharedAttention) and layer.cache.source_layer is not None:
        source = layer.cache.source_layer
        if source >= index or layers[source].cache is None or isinstance(layers[source].cache, SharedAttention):
            raise KvtoolError(f"layer {index} shares with layer {source}, which keeps nothing before it")
