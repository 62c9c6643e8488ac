"""Architectures that mix full layers with sliding-window or chunked ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kvtool.catalog.families.family import (
    CHUNKED,
    FULL,
    SLIDING,
    Shape,
    check_groups,
    every_layer,
    grouped_attention,
    named_layers,
    read_layer_types,
)
from kvtool.catalog.fields import Fields
from kvtool.catalog.model import (
    ChunkedAttention,
    FullAttention,
    Layer,
    SharedAttention,
    SlidingAttention,
)

_ALSO_PERIODS = ("sliding_window_pattern", "_sliding_window_pattern")


def windowed(kind: FullAttention, window: int) -> SlidingAttention:
    return SlidingAttention(
        kv_heads=kind.kv_heads, k_head_dim=kind.k_head_dim, v_head_dim=kind.v_head_dim, window=window
    )  # fmt: skip


def read_window(fields: Fields) -> int | None:
    """`sliding_window`: null switches it off, an absent one takes the class's default."""
    if fields.has("sliding_window") and fields.given("sliding_window") is None:
        return None
    return fields.optional_integer("sliding_window", "sliding_window_size")


def one_window(fields: Fields, shape: Shape) -> list[Layer]:
    """Every layer has the same window, or none (Mistral, Phi-3, Starcoder2, Mixtral).

    A window as long as the longest context never cuts anything off (Phi-3.5: 262144 of 131072): it counts as none.
    """
    full, window = grouped_attention(fields, shape), read_window(fields)
    longest = fields.optional_integer("max_position_embeddings")
    cuts = window is not None and (longest is None or window < longest)
    return every_layer(windowed(full, window) if window and cuts else full, shape)


def upper_layers(fields: Fields, shape: Shape) -> list[Layer]:
    """Qwen2 and Qwen3: with `use_sliding_window`, the layers from `max_window_layers` on."""
    window = _switched_window(fields)
    first = fields.optional_integer("max_window_layers", low=0)
    if window and first is None and not fields.has("layer_types"):
        raise fields.error("'use_sliding_window' is set, but neither 'max_window_layers' nor 'layer_types' says where")
    default = [SLIDING if window and i >= (first or 0) else FULL for i in range(shape.num_layers)]
    return by_layer_type(fields, shape, default, full=grouped_attention(fields, shape), window=window)


def qwen3_moe(fields: Fields, shape: Shape) -> list[Layer]:
    """Qwen3-MoE: with `use_sliding_window`, every layer."""
    full, window = grouped_attention(fields, shape), _switched_window(fields)
    fields.read.add("max_window_layers")
    return every_layer(windowed(full, window) if window else full, shape)


def _switched_window(fields: Fields) -> int | None:
    """The window where `use_sliding_window` is set; it means nothing otherwise."""
    if fields.flag("use_sliding_window", default=False):
        return read_window(fields)
    fields.read |= {"sliding_window", "max_window_layers"}
    return None


def every_nth_full(nth: int, field: str | None = None) -> Callable[[Fields, Shape], list[Layer]]:
    """`layer_types`, else every nth layer is full; some configs give n in `field`."""

    def read(fields: Fields, shape: Shape) -> list[Layer]:
        period = (fields.optional_integer(field) if field else None) or nth
        fields.read |= {name for name in _ALSO_PERIODS if fields.values.get(name) == period}
        default = [SLIDING if (i + 1) % period else FULL for i in range(shape.num_layers)]
        return by_layer_type(fields, shape, default, full=grouped_attention(fields, shape), window=read_window(fields))

    return read


def by_layer_type(
    fields: Fields, shape: Shape, default: list[str], *, full: FullAttention, window: int | None
) -> list[Layer]:
    """One layer for each name of `layer_types`, or of `default` where the file gives none."""
    types = read_layer_types(fields, shape) or default
    if SLIDING in types and window is None:
        raise fields.error("'layer_types' has sliding_attention layers, but no 'sliding_window' is given")
    kinds = {FULL: Layer(cache=full), SLIDING: Layer(cache=windowed(full, window or 1))}
    return named_layers(fields, types, kinds)


def llama4(fields: Fields, shape: Shape) -> list[Layer]:
    """Llama 4: chunked layers, full where `no_rope_layers` is 0 (every fourth by default)."""
    full = grouped_attention(fields, shape)
    chunk = None if _is_null(fields, "attention_chunk_size") else fields.optional_integer("attention_chunk_size")
    interval = fields.optional_integer("no_rope_layer_interval") or 4
    rope = fields.integers("no_rope_layers", high=1) or [int((i + 1) % interval != 0) for i in range(shape.num_layers)]
    if len(rope) != shape.num_layers:
        raise fields.error(f"'no_rope_layers' has {len(rope)} items, but there are {shape.num_layers} layers")
    types = read_layer_types(fields, shape) or [CHUNKED if local else FULL for local in rope]
    chunked = ChunkedAttention(
        kv_heads=full.kv_heads, k_head_dim=full.k_head_dim, v_head_dim=full.v_head_dim, window=chunk or 1
    )  # fmt: skip
    return named_layers(fields, types, {FULL: Layer(cache=full), CHUNKED: Layer(cache=chunked if chunk else full)})


def _is_null(fields: Fields, name: str) -> bool:
    return fields.has(name) and fields.given(name) is None


def gemma3n(fields: Fields, shape: Shape) -> list[Layer]:
    """Gemma 3n: every fifth layer is full, and the last `num_kv_shared_layers` store nothing."""
    return share_last(fields, shape, every_nth_full(5)(fields, shape))


def share_last(fields: Fields, shape: Shape, layers: list[Layer]) -> list[Layer]:
    """The last `num_kv_shared_layers` take K and V from the last layer of their own type that stores any."""
    shared = fields.optional_integer("num_kv_shared_layers", low=0, high=shape.num_layers - 1) or 0
    stored = layers[: shape.num_layers - shared]
    reused = []
    for layer in layers[len(stored) :]:
        if layer not in stored:
            raise fields.error(f"'num_kv_shared_layers' {shared} leaves no layer to share with for one of its types")
        source = len(stored) - 1 - stored[::-1].index(layer)
        reused.append(Layer(cache=SharedAttention(source_layer=source)))
    return stored + reused


def gemma4(fields: Fields, shape: Shape) -> list[Layer]:
    """Gemma 4: full layers differ from sliding ones in head_dim and KV heads. The last layer is always full.

    `attention_k_eq_v` leaves out a projection, not a part of the cache: K and V are both stored.
    """
    sliding = grouped_attention(fields, shape)
    default = [SLIDING if (i + 1) % 6 else FULL for i in range(shape.num_layers)]
    types = [*(read_layer_types(fields, shape) or default)[:-1], FULL]
    window = read_window(fields)
    if window is None:
        raise fields.error("field 'sliding_window' is null, but Gemma 4 has sliding layers")
    full = _gemma4_full(fields, shape, sliding, [layer for layer, name in enumerate(types) if name == FULL])
    kinds = {FULL: Layer(cache=full), SLIDING: Layer(cache=windowed(sliding, window))}
    return share_last(fields, shape, named_layers(fields, types, kinds))


def _gemma4_full(fields: Fields, shape: Shape, sliding: FullAttention, at: list[int]) -> FullAttention:
    """Full layers: from `global_*`, or from `per_layer_config`, which must say the same for each of them."""
    fields.read |= {"global_head_dim", "num_global_key_value_heads", "attention_k_eq_v"}
    overrides = fields.nested("per_layer_config")
    if overrides is None:
        kv_heads = fields.optional_integer("num_global_key_value_heads")
        own_heads = kv_heads if fields.flag("attention_k_eq_v", default=False) else None
        head_dim = fields.optional_integer("global_head_dim") or 512
        return _resized(fields, shape, sliding, head_dim, own_heads)
    found = set()
    for name in overrides.values:
        layer = overrides.nested(name) or Fields({}, where=overrides.where)
        found.add((layer.optional_integer("head_dim"), layer.optional_integer("num_key_value_heads")))
        if set(layer.values) - layer.read:
            raise overrides.error(
                f"layer {name!r} overrides {min(set(layer.values) - layer.read)!r}, which is not known"
            )
    named = sorted(int(name) if name.isdecimal() else -1 for name in overrides.values)
    if len(found) != 1 or named != at:
        raise overrides.error("does not override each full layer, and only those, in the same way")
    width, heads = found.pop()
    return _resized(fields, shape, sliding, width or sliding.k_head_dim, heads)


def _resized(fields: Fields, shape: Shape, kind: FullAttention, head_dim: int, kv_heads: int | None) -> FullAttention:
    own_heads = check_groups(fields, shape, kv_heads or kind.kv_heads)
    return replace(kind, kv_heads=own_heads, k_head_dim=head_dim, v_head_dim=head_dim)


def listed(fields: Fields, shape: Shape) -> list[Layer]:
    """Whatever `layer_types` says; it must be there."""
    return by_layer_type(fields, shape, [], full=grouped_attention(fields, shape), window=read_window(fields))


def smollm3(fields: Fields, shape: Shape) -> list[Layer]:
    """SmolLM3: with `use_sliding_window`, the layers without rotary positions have the window."""
    window = _switched_window(fields)
    interval = fields.optional_integer("no_rope_layer_interval") or 4
    rope = fields.integers("no_rope_layers", length=shape.num_layers, high=1)
    rope = rope or [int((i + 1) % interval != 0) for i in range(shape.num_layers)]
    default = [SLIDING if window and not has_rope else FULL for has_rope in rope]
    return by_layer_type(fields, shape, default, full=grouped_attention(fields, shape), window=window)


def lettered(fields: Fields, shape: Shape) -> list[Layer]:
    """EXAONE 4: `layer_types`, else a pattern of L and G or a period; without a window all layers are full."""
    window = read_window(fields)
    pattern = fields.get("sliding_window_pattern")
    local = [False] * shape.num_layers
    if window and isinstance(pattern, str) and pattern and set(pattern) <= {"L", "G"}:
        local = [i != shape.num_layers - 1 and pattern[i % len(pattern)] == "L" for i in range(shape.num_layers)]
    elif window:
        period = fields.optional_integer("sliding_window_pattern") or 4
        local = [(i + 1) % period != 0 for i in range(shape.num_layers)]
    default = [SLIDING if is_local else FULL for is_local in local]
    return by_layer_type(fields, shape, default, full=grouped_attention(fields, shape), window=window)
