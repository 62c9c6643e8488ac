"""Architectures whose every layer is full MHA, MQA or GQA, with the names each uses for its sizes."""

from __future__ import annotations

from kvtool.catalog.families.family import Shape, check_groups, derived_head_dim, every_layer, grouped_attention
from kvtool.catalog.families.per_layer import listed_heads
from kvtool.catalog.fields import Fields
from kvtool.catalog.model import FullAttention, Layer, SharedAttention


def plain(fields: Fields, shape: Shape) -> list[Layer]:
    """Llama and all that differ from it in nothing the cache sees; KV heads may be a list, one number a layer."""
    return listed_heads(fields, shape) or every_layer(grouped_attention(fields, shape), shape)


def derived(fields: Fields, shape: Shape) -> list[Layer]:
    """As plain, but heads are always hidden_size / heads wide (StableLM)."""
    head_dim = derived_head_dim(fields, shape)
    kv_heads = check_groups(fields, shape, fields.optional_integer("num_key_value_heads") or shape.num_heads)
    return every_layer(FullAttention(kv_heads=kv_heads, k_head_dim=head_dim, v_head_dim=head_dim), shape)


def cross_layer(fields: Fields, shape: Shape) -> list[Layer]:
    """Hunyuan: with `use_cla`, each run of `cla_share_factor` layers shares the K and V of its first."""
    layers = plain(fields, shape)
    factor = fields.optional_integer("cla_share_factor")
    if not fields.flag("use_cla", default=False):
        return layers
    if factor is None:
        raise fields.error("'use_cla' is set, but 'cla_share_factor' is missing")
    first = [layer - layer % factor for layer in range(shape.num_layers)]
    return [
        layers[layer] if source == layer else Layer(cache=SharedAttention(source_layer=source))
        for layer, source in enumerate(first)
    ]


def softmax_only(fields: Fields, shape: Shape) -> list[Layer]:
    """MiniMax-M2: `attn_type_list` must mark every layer as softmax attention (1)."""
    marks = fields.integers("attn_type_list", length=shape.num_layers)
    if marks is not None and set(marks) != {1}:
        raise fields.error("'attn_type_list' marks layers that are not softmax attention, which is not known here")
    return plain(fields, shape)


def searched_blocks(fields: Fields, shape: Shape) -> list[Layer]:
    """Nemotron-NAS: `block_configs` says for each layer how many query heads share a KV head, or that it has none."""
    blocks = fields.objects("block_configs", length=shape.num_layers)
    head_dim = derived_head_dim(fields, shape)
    return [Layer(cache=_searched_attention(block, shape, head_dim)) for block in blocks]


def _searched_attention(block: Fields, shape: Shape, head_dim: int) -> FullAttention | None:
    attention = block.nested("attention")
    if attention is None:
        raise block.error("field 'attention' is missing")
    for name in ("window_length", "num_sink_tokens", "sparsify", "unshifted_sink", "is_mamba", "mamba", "llama4"):
        attention.refuse(name, "it is not known here")
    gone = [attention.flag(name, default=False) for name in ("no_op", "replace_with_linear")]
    if any(gone):
        return None
    group = attention.integer("n_heads_in_group")
    if shape.num_heads % group:
        raise attention.error(f"{shape.num_heads} attention heads do not divide into groups of {group}")
    return FullAttention(kv_heads=shape.num_heads // group, k_head_dim=head_dim, v_head_dim=head_dim)


def multi_head(fields: Fields, shape: Shape) -> list[Layer]:
    """As many KV heads as query heads, of hidden_size / heads (GPT-2, GPT-J, GPT-NeoX, OPT, BLOOM, Persimmon)."""
    head_dim = derived_head_dim(fields, shape)
    return every_layer(FullAttention(kv_heads=shape.num_heads, k_head_dim=head_dim, v_head_dim=head_dim), shape)


def multi_query_flag(fields: Fields, shape: Shape) -> list[Layer]:
    """GPT-BigCode: one KV head when `multi_query`, which is its default."""
    kv_heads = 1 if fields.flag("multi_query", default=True) else shape.num_heads
    if fields.optional_integer("num_key_value_heads") not in {None, kv_heads}:
        raise fields.error(f"'num_key_value_heads' differs from the {kv_heads} that 'multi_query' makes")
    head_dim = derived_head_dim(fields, shape)
    return every_layer(FullAttention(kv_heads=kv_heads, k_head_dim=head_dim, v_head_dim=head_dim), shape)


def falcon(fields: Fields, shape: Shape) -> list[Layer]:
    """Falcon: `num_kv_heads` counts only in the new architecture; the old one is MQA or MHA by `multi_query`."""
    multi_query = fields.flag("multi_query", default=True)
    if fields.flag("new_decoder_architecture", default=False):
        kv_heads = fields.integer("num_kv_heads", "num_key_value_heads", "n_head_kv")
    else:
        kv_heads = 1 if multi_query else shape.num_heads
        fields.read |= {"num_kv_heads", "num_key_value_heads", "n_head_kv"}
    head_dim = derived_head_dim(fields, shape)
    kv_heads = check_groups(fields, shape, kv_heads)
    return every_layer(FullAttention(kv_heads=kv_heads, k_head_dim=head_dim, v_head_dim=head_dim), shape)


def chatglm(fields: Fields, shape: Shape) -> list[Layer]:
    """ChatGLM2 and 3: `multi_query_group_num` KV heads of `kv_channels` when `multi_query_attention`."""
    multi_query = fields.flag("multi_query_attention", default=False)
    kv_heads = fields.integer("multi_query_group_num") if multi_query else shape.num_heads
    fields.read.add("multi_query_group_num")
    head_dim = fields.optional_integer("kv_channels") or derived_head_dim(fields, shape)
    kv_heads = check_groups(fields, shape, kv_heads)
    return every_layer(FullAttention(kv_heads=kv_heads, k_head_dim=head_dim, v_head_dim=head_dim), shape)


def attn_config(fields: Fields, shape: Shape) -> list[Layer]:
    """MPT and DBRX: the KV heads stand in the nested `attn_config`."""
    nested = fields.nested("attn_config")
    if nested is None:
        raise fields.error("field 'attn_config' is missing")
    kind = nested.text("attn_type", default="multihead_attention")
    if kind not in {"multihead_attention", "grouped_query_attention", "multiquery_attention"}:
        raise fields.error(f"attn_type {kind!r} is not known")
    given, outer = nested.optional_integer("kv_n_heads"), fields.optional_integer("num_key_value_heads")
    kv_heads = 1 if kind == "multiquery_attention" else given or outer or shape.num_heads
    if outer not in {None, kv_heads}:
        raise fields.error(f"'num_key_value_heads' is {outer}, but 'attn_config' makes it {kv_heads}")
    if nested.optional_integer("sliding_window_size", low=-1) not in {None, -1}:
        raise fields.error("attn_config has a sliding_window_size, which is not known for this architecture")
    head_dim = derived_head_dim(fields, shape)
    kv_heads = check_groups(fields, shape, kv_heads)
    return every_layer(FullAttention(kv_heads=kv_heads, k_head_dim=head_dim, v_head_dim=head_dim), shape)
