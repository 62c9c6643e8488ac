"""Architectures that count KV heads layer by layer, or apart for layers with a window."""

from __future__ import annotations

from kvtool.catalog.families.family import MAX_LAYERS, Shape, check_groups, read_head_dim
from kvtool.catalog.fields import Fields
from kvtool.catalog.model import FullAttention, Layer, SlidingAttention

KV_HEADS = ("num_key_value_heads_per_layer", "num_key_value_heads", "num_kv_heads")


def listed_heads(fields: Fields, shape: Shape) -> list[Layer] | None:
    """One layer for each number in a list of KV heads; None where no field is such a list. A layer with 0 heads has no
    attention.
    """
    name = next((name for name in KV_HEADS if isinstance(fields.given(name), list)), None)
    if name is None:
        return None
    counts = fields.integers(name, length=shape.num_layers, high=1 << 16) or []
    head_dim = read_head_dim(fields, shape)
    return [_layer(check_groups(fields, shape, count) if count else 0, head_dim) for count in counts]


def _layer(kv_heads: int, head_dim: int) -> Layer:
    return Layer(cache=FullAttention(kv_heads=kv_heads, k_head_dim=head_dim, v_head_dim=head_dim) if kv_heads else None)


def openelm_shape(fields: Fields) -> Shape:
    """OpenELM: query heads grow from layer to layer; the widest layer counts."""
    layers = fields.integer("num_transformer_layers", high=MAX_LAYERS)
    heads = fields.integers("num_query_heads", length=layers, low=1, high=1 << 16)
    if heads is None:
        raise fields.error("field 'num_query_heads' is missing")
    return Shape(num_layers=layers, hidden_size=fields.integer("model_dim"), num_heads=max(heads))


def openelm(fields: Fields, shape: Shape) -> list[Layer]:
    """OpenELM: `num_query_heads` and `num_kv_heads` of each layer, heads of one size."""
    fields.read |= {"num_gqa_groups", "qkv_multipliers", "share_input_output_layers"}
    queries = fields.integers("num_query_heads", length=shape.num_layers, low=1) or []
    counts = fields.integers("num_kv_heads", length=shape.num_layers, low=1)
    if counts is None:
        raise fields.error("field 'num_kv_heads' is missing")
    uneven = next((at for at, count in enumerate(counts) if queries[at] % count), None)
    if uneven is not None:
        raise fields.error(f"layer {uneven}: {queries[uneven]} query heads do not divide among {counts[uneven]}")
    head_dim = fields.integer("head_dim", high=1 << 16)
    return [_layer(count, head_dim) for count in counts]


def mimo_v2(fields: Fields, shape: Shape) -> list[Layer]:
    """MiMo-V2: `hybrid_layer_pattern` marks layers with a window (1), which have `swa_*` heads; K and V heads differ
    in size.
    """
    fields.read |= {"sliding_window_size", "attention_chunk_size", "swa_num_attention_heads"}
    fields.read |= {"add_swa_attention_sink_bias", "add_full_attention_sink_bias"}
    marks = fields.integers("hybrid_layer_pattern", length=shape.num_layers, high=1)
    if marks is None:
        raise fields.error("field 'hybrid_layer_pattern' is missing: it says which layers have a window")
    full = FullAttention(
        kv_heads=check_groups(fields, shape, fields.integer("num_key_value_heads")),
        k_head_dim=fields.integer("head_dim", high=1 << 16),
        v_head_dim=fields.optional_integer("v_head_dim", high=1 << 16) or fields.integer("head_dim", high=1 << 16),
    )
    sliding = SlidingAttention(
        kv_heads=check_groups(fields, shape, fields.optional_integer("swa_num_key_value_heads") or full.kv_heads),
        k_head_dim=fields.optional_integer("swa_head_dim", high=1 << 16) or full.k_head_dim,
        v_head_dim=fields.optional_integer("swa_v_head_dim", high=1 << 16) or full.v_head_dim,
        window=fields.integer("sliding_window"),
    )
    kinds = {0: Layer(cache=full), 1: Layer(cache=sliding)}
    return [kinds[mark] for mark in marks]
