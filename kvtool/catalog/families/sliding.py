"""Architectures that mix full layers with sliding-window or chunked ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kvtool.catalog.families.family import Shape, check_groups, every_layer, grouped_attention
from kvtool.catalog.fields import Fields
from kvtool.catalog.model import (
    ChunkedAttention,
    FullAttention,
    Layer,
    SharedAttention,
    SlidingAttention,
)

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"


def windowed(kind: FullAttention, window: int) -> SlidingAttention:
    return SlidingAttention(
        kv_heads=kind.kv_heads, k_head_dim=kind.k_head_dim, v_head_dim=kind.v_head_dim, window=window
    )  # fmt: skip


def read_window(fields: Fields) -> int | None:
    """`sliding_window`: null switches it off, an absent one takes the class's default."""
    if fields.has("sliding_window") and fields.given("sliding_window") is None:
        return None
    return fields.optional_integer("sliding_window")


def one_window(fields: Fields, shape: Shape) -> list[Layer]:
    """Every layer has the same window, or none (Mistral, Phi-3, Starcoder2, Mixtral)."""
    full, window = grouped_attention(fields, shape), read_window(fields)
    return every_layer(windowed(full, window) if window else full, shape)


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
        default = [SLIDING if (i + 1) % period else FULL for i in range(shape.num_layers)]
        return by_layer_type(fields, shape, default, full=grouped_attention(fields, shape), window=read_window(fields))

    return read


def by_layer_type(
    fields: Fields, shape: Shape, default: list[str], *, full: FullAttention, window: int | None
) -> list[Layer]:
    """One layer for each name of `layer_types`, or of `default` where the file gives none."""
    types = fields.strings("layer_types", length=shape.num_layers) or default
    if SLIDING in types and window is None:
        raise fields.error("'layer_types' has sliding_attention layers, but no 'sliding_window' is given")
    kinds = {FULL: Layer(cache=full), SLIDING: Layer(cache=windowed(full, window or 1))}
    return named_layers(fields, types, kinds)


def named_layers(fields: Fields, types: list[str], kinds: dict[str, Layer]) -> list[Layer]:
    """The layers of these type names. A name outside `kinds` is refused."""
    for name in types:
        if name not in kinds:
            raise fields.error(f"layer type {name!r} is not known here (known: {', '.join(kinds)})")
    return [kinds[name] for name in types]


def llama4(fields: Fields, shape: Shape) -> list[Layer]:
    """Llama 4: chunked layers, full where `no_rope_layers` is 0 (every fourth by default)."""
    full = grouped_attention(fields, shape)
    chunk = None if _is_null(fields, "attention_chunk_size") else fields.optional_integer("attention_chunk_size")
    interval = fields.optional_integer("no_rope_layer_interval") or 4
    rope = fields.integers("no_rope_layers", high=1) or [int((i + 1) % interval != 0) for i in range(shape.num_layers)]
    if len(rope) != shape.num_layers:
        raise fields.error(f"'no_rope_layers' has {len(rope)} items, but there are {shape.num_layers} layers")
    types = fields.strings("layer_types", length=shape.num_layers) or [CHUNKED if local else FULL for local in rope]
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
    """Gemma 4: full layers have `global_head_dim`, and `num_global_key_value_heads` of them with `attention_k_eq_v`.

    K and V are both stored even then. The last layer is always full.
    """
    sliding = grouped_attention(fields, shape)
    kv_heads = fields.optional_integer("num_global_key_value_heads")
    if not fields.flag("attention_k_eq_v", default=False):
        kv_heads = None
    kv_heads = check_groups(fields, shape, kv_heads or sliding.kv_heads)
    head_dim = fields.optional_integer("global_head_dim") or 512
    full = replace(sliding, kv_heads=kv_heads, k_head_dim=head_dim, v_head_dim=head_dim)
    default = [SLIDING if (i + 1) % 6 else FULL for i in range(shape.num_layers)]
    types = fields.strings("layer_types", length=shape.num_layers) or default
    window = read_window(fields)
    if window is None:
        raise fields.error("field 'sliding_window' is null, but Gemma 4 has sliding layers")
    kinds = {FULL: Layer(cache=full), SLIDING: Layer(cache=windowed(sliding, window))}
    return share_last(fields, shape, named_layers(fields, [*types[:-1], FULL], kinds))


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
