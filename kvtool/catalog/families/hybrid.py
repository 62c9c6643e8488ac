"""Architectures whose layers hold attention and a state at once, or recurrences that no other architecture has.

A layer that keeps a cache and a state counts as two: engines store them apart too.
"""

from __future__ import annotations

from kvtool.catalog.families.family import LINEAR, MAX_LAYERS, Shape, check_groups, grouped_attention, read_layer_types
from kvtool.catalog.families.sliding import windowed
from kvtool.catalog.fields import Fields
from kvtool.catalog.model import FullAttention, Layer, Mamba2, OtherState

HYBRID = "hybrid"


def falcon_h1(fields: Fields, shape: Shape) -> list[Layer]:
    """Falcon-H1: attention and Mamba-2 side by side in every layer, the state `mamba_d_ssm` wide."""
    if fields.given("attn_layer_indices") is not None:
        raise fields.error("field 'attn_layer_indices' is set: layers without attention are not known here")
    heads, head_dim = fields.integer("mamba_n_heads"), fields.integer("mamba_d_head")
    inner = fields.optional_integer("mamba_d_ssm") or fields.integer("mamba_expand") * shape.hidden_size
    fields.read.add("mamba_expand")
    state = _mamba2(fields, heads, head_dim, inner, groups="mamba_n_groups")
    return [Layer(cache=grouped_attention(fields, shape)), Layer(cache=state)] * shape.num_layers


def zamba2(fields: Fields, shape: Shape) -> list[Layer]:
    """Zamba2: Mamba-2 in every layer; `hybrid` ones also run a shared attention block, each with a cache of its own."""
    fields.read |= {"hybrid_layer_ids", "num_mem_blocks", "use_shared_attention_adapter", "attention_hidden_size"}
    fields.read |= {"num_query_groups", "kv_channels", "use_mem_rope", "use_mem_eff_path", "layers_block_type"}
    types = fields.strings("layers_block_type", "layer_types", length=shape.num_layers)
    if types is None:
        raise fields.error("field 'layers_block_type' is missing")
    unknown = next((name for name in types if name not in {HYBRID, LINEAR, "mamba"}), None)
    if unknown is not None:
        raise fields.error(f"layer type {unknown!r} is not known here (known: {HYBRID}, mamba)")
    inner = fields.integer("mamba_expand") * shape.hidden_size
    heads = fields.integer("n_mamba_heads")
    head_dim = fields.optional_integer("mamba_headdim") or inner // heads
    state = Layer(cache=_mamba2(fields, heads, head_dim, inner, groups="mamba_ngroups"))
    attention_dim = fields.optional_integer("attention_head_dim") or 2 * shape.hidden_size // shape.num_heads
    kv_heads = check_groups(fields, shape, fields.optional_integer("num_key_value_heads") or shape.num_heads)
    full = Layer(cache=FullAttention(kv_heads=kv_heads, k_head_dim=attention_dim, v_head_dim=attention_dim))
    return [layer for name in types for layer in ([full, state] if name == HYBRID else [state])]


def _mamba2(fields: Fields, heads: int, head_dim: int, inner: int, *, groups: str) -> Mamba2:
    if heads * head_dim != inner:
        raise fields.error(f"{heads} state heads of {head_dim} are not the {inner} channels of the state")
    count = fields.integer(groups)
    if heads % count:
        raise fields.error(f"{heads} state heads do not divide among {count} {groups}")
    return Mamba2(
        heads=heads,
        head_dim=head_dim,
        state_dim=fields.integer("mamba_d_state"),
        groups=count,
        conv_kernel=fields.integer("mamba_d_conv"),
    )


def recurrent_gemma(fields: Fields, shape: Shape) -> list[Layer]:
    """RecurrentGemma: `block_types`, repeated, of a window of attention and RG-LRU: a value and the newest inputs of a
    convolution for each of `lru_width` channels.
    """
    pattern = fields.strings("block_types", "_block_types")
    if not pattern or not set(pattern) <= {"recurrent", "attention"}:
        raise fields.error("field 'block_types' is missing, or names blocks other than recurrent and attention")
    full, width = grouped_attention(fields, shape), fields.optional_integer("lru_width") or shape.hidden_size
    state = OtherState(recurrent_elements=width, conv_elements=(fields.integer("conv1d_width") - 1) * width)
    attention = Layer(cache=windowed(full, fields.integer("attention_window_size")))
    kinds = {"recurrent": Layer(cache=state), "attention": attention}
    return [kinds[pattern[index % len(pattern)]] for index in range(shape.num_layers)]


def rwkv7_shape(fields: Fields) -> Shape:
    """RWKV-7 has no attention heads."""
    return Shape(
        num_layers=fields.integer("num_hidden_layers", "n_layer", high=MAX_LAYERS),
        hidden_size=fields.integer("hidden_size", "n_embd"),
        num_heads=0,
    )


def rwkv7(fields: Fields, shape: Shape) -> list[Layer]:
    """RWKV-7: a head_dim x head_dim matrix a head, and the last input of the time mix and of the channel mix."""
    fields.refuse("attn", "layers of attention among RWKV's are not known")
    head_dim = fields.integer("head_dim", "head_size")
    if shape.hidden_size % head_dim:
        raise fields.error(f"hidden_size {shape.hidden_size} does not divide into heads of {head_dim}")
    heads = shape.hidden_size // head_dim
    if fields.optional_integer("num_heads") not in {None, heads}:
        raise fields.error(f"'num_heads' is not hidden_size / head_dim ({heads})")
    if fields.uniform("value_dim") not in {None, shape.hidden_size}:
        raise fields.error("'value_dim' differs from hidden_size, which is not known here")
    state = OtherState(recurrent_elements=heads * head_dim**2, conv_elements=2 * shape.hidden_size)
    read_layer_types(fields, shape)
    return [Layer(cache=state)] * shape.num_layers
