"""What a reader of one architecture is made of: its layers, its experts, and the defaults of its config class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kvtool.catalog.fields import Fields
from kvtool.catalog.model import FullAttention, Layer, Moe

MAX_LAYERS = 4096
FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
LINEAR, INDEXED = "linear_attention", "indexed_attention"
_OLDER_NAMES = {"attention": FULL, "mamba": LINEAR, "deepseek_sparse_attention": INDEXED}
_MADE_FROM = {
    *("sliding_window_pattern", "_sliding_window_pattern", "window_pattern", "global_attn_every_n_layers"),
    *("full_attention_interval", "layer_group_size", "max_window_layers", "no_rope_layers", "no_rope_layer_interval"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes every architecture has. `num_heads` counts query heads, 0 in a model without attention."""

    num_layers: int
    hidden_size: int
    num_heads: int


def read_shape(fields: Fields) -> Shape:
    """Layers, width and query heads under any of the names in use."""
    return Shape(
        num_layers=fields.integer("num_hidden_layers", "n_layer", "n_layers", "num_layers", high=MAX_LAYERS),
        hidden_size=fields.integer("hidden_size", "n_embd", "d_model", "n_embed"),
        num_heads=fields.integer("num_attention_heads", "n_head", "n_heads", "num_heads", high=1 << 16),
    )


def no_experts(fields: Fields, shape: Shape) -> Moe | None:
    """A dense model."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How to read one `model_type`.

    `required` fields must be in the file, although the config class has a default for them: a default there is the
    shape of one particular model. `defaults` are the class's others. `nested` are the shape's defaults, which hold
    inside a multimodal config only, because those are written without what equals the class. `mlp_factor` times
    hidden_size is the MLP's width where the file gives none.
    """

    layers: Callable[[Fields, Shape], list[Layer]]
    shape: Callable[[Fields], Shape] = read_shape
    experts: Callable[[Fields, Shape], Moe | None] = no_experts
    required: tuple[str, ...] = ()
    tie: bool | None = None
    mlp_factor: int | None = None
    encoder_decoder: bool = False
    defaults: Mapping[str, object] = field(default_factory=dict)
    nested: Mapping[str, object] = field(default_factory=dict)


def grouped_attention(fields: Fields, shape: Shape) -> FullAttention:
    """MHA, GQA or MQA: KV heads default to the query heads, the size of K and V heads to hidden_size / heads."""
    kv_heads = fields.optional_integer("num_key_value_heads", "num_kv_heads", "n_head_kv") or shape.num_heads
    head_dim = read_head_dim(fields, shape)
    return FullAttention(kv_heads=check_groups(fields, shape, kv_heads), k_head_dim=head_dim, v_head_dim=head_dim)


def check_groups(fields: Fields, shape: Shape, kv_heads: int) -> int:
    """`kv_heads` if the query heads divide evenly among them."""
    if shape.num_heads % kv_heads:
        raise fields.error(f"{shape.num_heads} attention heads do not divide among {kv_heads} key-value heads")
    return kv_heads


def read_head_dim(fields: Fields, shape: Shape) -> int:
    head_dim = fields.optional_integer("head_dim", "attention_head_dim", high=1 << 16)
    if head_dim is not None:
        return head_dim
    if shape.hidden_size % shape.num_heads:
        raise fields.error(
            f"hidden_size {shape.hidden_size} is not divisible by {shape.num_heads} heads, and no head_dim is given"
        )
    return shape.hidden_size // shape.num_heads


def read_layer_types(fields: Fields, shape: Shape) -> list[str] | None:
    """`layer_types`, one name a layer, older names replaced as transformers does.

    Where the list is given, the periods and counts that it was made from say nothing more.
    """
    types = fields.strings("layer_types", length=shape.num_layers)
    if types is None:
        return None
    fields.read |= _MADE_FROM
    return [_OLDER_NAMES.get(name, name) for name in types]


def named_layers(fields: Fields, types: list[str], kinds: dict[str, Layer]) -> list[Layer]:
    """The layers of these type names. A name outside `kinds` is refused."""
    for name in types:
        if name not in kinds:
            raise fields.error(f"layer type {name!r} is not known here (known: {', '.join(kinds)})")
    return [kinds[name] for name in types]


def derived_head_dim(fields: Fields, shape: Shape) -> int:
    """hidden_size / heads, for architectures that have no head_dim of their own: one that differs is refused."""
    if shape.hidden_size % shape.num_heads:
        raise fields.error(f"hidden_size {shape.hidden_size} is not divisible by {shape.num_heads} heads")
    head_dim = shape.hidden_size // shape.num_heads
    if fields.optional_integer("head_dim") not in {None, head_dim}:
        raise fields.error(
            f"field 'head_dim' differs from hidden_size / heads ({head_dim}), which this architecture uses"
        )
    return head_dim


def every_layer(kind: FullAttention, shape: Shape) -> list[Layer]:
    return [Layer(cache=kind)] * shape.num_layers
