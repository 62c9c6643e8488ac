"""Architectures with layers that keep a recurrent or convolution state of constant size."""

from __future__ import annotations

from kvtool.catalog.families.family import (
    FULL,
    LINEAR,
    SLIDING,
    Shape,
    grouped_attention,
    named_layers,
    read_head_dim,
    read_layer_types,
)
from kvtool.catalog.families.latent import read_latent
from kvtool.catalog.families.sliding import read_window, windowed
from kvtool.catalog.fields import Fields
from kvtool.catalog.model import (
    CacheKind,
    GatedDeltaNet,
    KimiDeltaAttention,
    Layer,
    LightningAttention,
    Mamba1,
    Mamba2,
    ShortConvolution,
)


def gated_delta_net(fields: Fields, shape: Shape) -> list[Layer]:
    """Qwen3-Next and Qwen3.5: every `full_attention_interval`-th layer is full, the others a gated delta net."""
    interval = fields.optional_integer("full_attention_interval") or 4
    state = GatedDeltaNet(
        key_heads=fields.integer("linear_num_key_heads"),
        value_heads=fields.integer("linear_num_value_heads"),
        key_head_dim=fields.integer("linear_key_head_dim"),
        value_head_dim=fields.integer("linear_value_head_dim"),
        conv_kernel=fields.integer("linear_conv_kernel_dim"),
    )
    if state.value_heads % state.key_heads:
        raise fields.error(
            f"linear_num_value_heads {state.value_heads} does not divide among {state.key_heads} linear_num_key_heads"
        )
    return _linear_every(fields, shape, interval, state, grouped_attention(fields, shape))


def _linear_every(fields: Fields, shape: Shape, interval: int, state: CacheKind, full: CacheKind) -> list[Layer]:
    default = [LINEAR if (layer + 1) % interval else FULL for layer in range(shape.num_layers)]
    types = read_layer_types(fields, shape) or default
    return named_layers(fields, types, {FULL: Layer(cache=full), LINEAR: Layer(cache=state)})


def lightning(fields: Fields, shape: Shape) -> list[Layer]:
    """MiniMax-Text-01: lightning attention in all heads; full where `layer_types` or `attn_type_list` says so."""
    full = grouped_attention(fields, shape)
    state = LightningAttention(heads=shape.num_heads, head_dim=read_head_dim(fields, shape))
    flags = fields.integers("attn_type_list", length=shape.num_layers, high=1)
    types = read_layer_types(fields, shape)
    if types is None and flags is None:
        raise fields.error("neither 'layer_types' nor 'attn_type_list' says which layers are full")
    if types is None:
        types = [FULL if flag else LINEAR for flag in flags or []]
    return named_layers(fields, types, {FULL: Layer(cache=full), LINEAR: Layer(cache=state)})


def kimi_linear(fields: Fields, shape: Shape) -> list[Layer]:
    """Kimi Linear: KDA layers and MLA layers, named from 1 in `linear_attn_config` or from 0 by `layer_types`."""
    nested = fields.nested("linear_attn_config")
    if nested is None:
        return _kimi_by_type(fields, shape)
    state = KimiDeltaAttention(
        heads=nested.integer("num_heads"),
        head_dim=nested.integer("head_dim"),
        conv_kernel=nested.integer("short_conv_kernel_size"),
    )
    full_layers, kda_layers = nested.integers("full_attn_layers"), nested.integers("kda_layers")
    if full_layers is None or kda_layers is None:
        raise fields.error("'linear_attn_config' lacks 'full_attn_layers' or 'kda_layers'")
    if sorted(full_layers + kda_layers) != list(range(1, shape.num_layers + 1)):
        raise fields.error(
            f"'full_attn_layers' and 'kda_layers' do not name each of the {shape.num_layers} layers once"
        )
    kinds = {True: Layer(cache=read_latent(fields)), False: Layer(cache=state)}
    return [kinds[layer in set(full_layers)] for layer in range(1, shape.num_layers + 1)]


def _kimi_by_type(fields: Fields, shape: Shape) -> list[Layer]:
    """The same model as transformers writes it: `layer_types` and `linear_*` sizes."""
    state = KimiDeltaAttention(
        heads=fields.integer("linear_num_heads"),
        head_dim=fields.integer("linear_head_dim"),
        conv_kernel=fields.integer("linear_conv_kernel_dim"),
    )
    types = read_layer_types(fields, shape)
    if types is None:
        raise fields.error("field 'linear_attn_config' (or 'layer_types') is missing")
    return named_layers(fields, types, {FULL: Layer(cache=read_latent(fields)), LINEAR: Layer(cache=state)})


def read_mamba1(fields: Fields, shape: Shape) -> Mamba1:
    inner_dim = fields.optional_integer("intermediate_size") if shape.num_heads == 0 else None
    return Mamba1(
        inner_dim=inner_dim or fields.integer("mamba_expand", "expand") * shape.hidden_size,
        state_dim=fields.integer("mamba_d_state", "state_size"),
        conv_kernel=fields.integer("mamba_d_conv", "conv_kernel"),
    )


def pure_shape(fields: Fields) -> Shape:
    """The shape of a model without attention."""
    return Shape(
        num_layers=fields.integer("num_hidden_layers", "n_layer", high=4096),
        hidden_size=fields.integer("hidden_size", "d_model"),
        num_heads=0,
    )


def mamba1(fields: Fields, shape: Shape) -> list[Layer]:
    """Mamba and Falcon-Mamba: every layer keeps a state."""
    return [Layer(cache=read_mamba1(fields, shape))] * shape.num_layers


def _state_groups(fields: Fields, heads: int, *names: str) -> int:
    """Groups of heads with B and C in common, which the heads must divide among."""
    groups = fields.integer(*names)
    if heads % groups:
        raise fields.error(f"{heads} state heads do not divide among {groups} {names[0]}")
    return groups


def mamba2(fields: Fields, shape: Shape) -> list[Layer]:
    """Mamba-2: every layer keeps a state of num_heads x head_dim x state_size."""
    heads, head_dim = fields.integer("num_heads"), fields.integer("head_dim")
    if heads * head_dim != fields.integer("expand") * shape.hidden_size:
        raise fields.error(f"num_heads {heads} x head_dim {head_dim} is not expand x hidden_size")
    state = Mamba2(
        heads=heads,
        head_dim=head_dim,
        state_dim=fields.integer("state_size"),
        groups=_state_groups(fields, heads, "n_groups"),
        conv_kernel=fields.integer("conv_kernel"),
    )
    return [Layer(cache=state)] * shape.num_layers


def jamba(fields: Fields, shape: Shape) -> list[Layer]:
    """Jamba: full attention at `attn_layer_offset` of every `attn_layer_period` layers, Mamba elsewhere."""
    period = fields.integer("attn_layer_period")
    offset = fields.integer("attn_layer_offset", low=0, high=period - 1)
    full, state = Layer(cache=grouped_attention(fields, shape)), Layer(cache=read_mamba1(fields, shape))
    return [full if layer % period == offset else state for layer in range(shape.num_layers)]


def read_mamba2(fields: Fields, shape: Shape) -> Mamba2:
    """The second form as Bamba and Granite 4 name it; `auto` head size is expand x hidden_size / heads."""
    heads = fields.integer("mamba_n_heads")
    inner = fields.integer("mamba_expand") * shape.hidden_size
    automatic = fields.get("mamba_d_head") in (None, "auto")
    head_dim = inner // heads if automatic else fields.integer("mamba_d_head")
    if heads * head_dim != inner:
        raise fields.error(
            f"mamba_n_heads {heads} x mamba_d_head {head_dim} is not mamba_expand x hidden_size ({inner})"
        )
    return Mamba2(
        heads=heads,
        head_dim=head_dim,
        state_dim=fields.integer("mamba_d_state"),
        groups=_state_groups(fields, heads, "mamba_n_groups"),
        conv_kernel=fields.integer("mamba_d_conv"),
    )


def bamba(fields: Fields, shape: Shape) -> list[Layer]:
    """Bamba: full attention in the layers of `attn_layer_indices`, Mamba-2 elsewhere."""
    full, state = Layer(cache=grouped_attention(fields, shape)), Layer(cache=read_mamba2(fields, shape))
    at = set(fields.integers("attn_layer_indices", high=shape.num_layers - 1) or [])
    return [full if layer in at else state for layer in range(shape.num_layers)]


def granite_hybrid(fields: Fields, shape: Shape) -> list[Layer]:
    """Granite 4: `layer_types` of attention and mamba; a model without the list is Mamba-2 throughout."""
    types = read_layer_types(fields, shape) or [LINEAR] * shape.num_layers
    kinds = {FULL: Layer(cache=grouped_attention(fields, shape))}
    if set(types) == {FULL}:
        fields.read |= {
            "mamba_n_heads",
            "mamba_expand",
            "mamba_d_head",
            "mamba_d_state",
            "mamba_n_groups",
            "mamba_d_conv",
        }
        return named_layers(fields, types, kinds)
    return named_layers(fields, types, kinds | {LINEAR: Layer(cache=read_mamba2(fields, shape))})


_NEMOTRON_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}


def nemotron_shape(fields: Fields) -> Shape:
    """Nemotron-H: the pattern itself says how many layers there are; num_hidden_layers must agree where it is given."""
    pattern = _nemotron_types(fields)
    given = fields.optional_integer("num_hidden_layers", high=4096)
    if given not in {None, len(pattern)}:
        raise fields.error(f"num_hidden_layers is {given}, but the layer pattern has {len(pattern)} layers")
    return Shape(
        num_layers=len(pattern),
        hidden_size=fields.integer("hidden_size"),
        num_heads=fields.integer("num_attention_heads"),
    )


def _nemotron_types(fields: Fields) -> list[str]:
    names = fields.strings("layers_block_type", "layer_types")
    letters = fields.text("hybrid_override_pattern")
    if names is None and letters is not None:
        names = [_NEMOTRON_LETTERS.get(letter, letter) for letter in letters]
    if not names:
        raise fields.error("field 'hybrid_override_pattern' (or 'layers_block_type') is missing")
    return names


def nemotron_h(fields: Fields, shape: Shape) -> list[Layer]:
    """Nemotron-H: each layer is one of Mamba-2, attention, MLP or experts."""
    heads = fields.integer("mamba_num_heads")
    state = Mamba2(
        heads=heads,
        head_dim=fields.integer("mamba_head_dim"),
        state_dim=fields.integer("ssm_state_size"),
        groups=_state_groups(fields, heads, "n_groups", "mamba_n_groups"),
        conv_kernel=fields.integer("conv_kernel", "mamba_d_conv"),
    )
    full, none = Layer(cache=grouped_attention(fields, shape)), Layer(cache=None)
    kinds = {"attention": full, FULL: full, "mamba": Layer(cache=state), LINEAR: Layer(cache=state)}
    return named_layers(fields, _nemotron_types(fields), kinds | {"mlp": none, "moe": none})


def short_convolution(fields: Fields, shape: Shape) -> list[Layer]:
    """LFM2: `layer_types` of conv and full_attention, or the indices of the full layers."""
    full = grouped_attention(fields, shape)
    dim = fields.optional_integer("conv_dim") or shape.hidden_size
    if dim != shape.hidden_size:
        raise fields.error(f"conv_dim {dim} differs from hidden_size {shape.hidden_size}")
    state = ShortConvolution(dim=dim, conv_kernel=fields.integer("conv_L_cache"))
    types = read_layer_types(fields, shape)
    indices = fields.integers("full_attn_idxs", high=shape.num_layers - 1)
    if types is None and indices is None:
        raise fields.error("field 'layer_types' (or 'full_attn_idxs') is missing")
    if types is None:
        types = [FULL if layer in set(indices or []) else "conv" for layer in range(shape.num_layers)]
    kinds: dict[str, Layer] = {FULL: Layer(cache=full), "conv": Layer(cache=state)}
    window = read_window(fields)
    if window is not None and SLIDING in types:
        kinds[SLIDING] = Layer(cache=windowed(full, window))
    return named_layers(fields, types, kinds)
