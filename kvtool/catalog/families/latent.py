"""Architectures that store MLA's latent, with or without a sparse-attention indexer."""

from __future__ import annotations

from kvtool.catalog.families.family import (
    FULL,
    INDEXED,
    Shape,
    every_layer,
    grouped_attention,
    named_layers,
    read_layer_types,
)
from kvtool.catalog.fields import Fields
from kvtool.catalog.model import Indexer, LatentAttention, Layer

FULL_INDEX, SHARED_INDEX = "full", "shared"


def read_latent(fields: Fields) -> LatentAttention:
    """The ranks and head sizes of MLA. `head_dim`, where a config has it too, describes no stored vector; `v_head_dim`
    shapes the weights alone.
    """
    fields.read |= {"num_key_value_heads", "head_dim"}
    nope, rope = fields.integer("qk_nope_head_dim"), fields.integer("qk_rope_head_dim")
    if fields.optional_integer("qk_head_dim") not in {None, nope + rope}:
        raise fields.error(f"'qk_head_dim' is not qk_nope_head_dim + qk_rope_head_dim ({nope + rope})")
    return LatentAttention(
        kv_lora_rank=fields.integer("kv_lora_rank"),
        qk_rope_head_dim=rope,
        qk_nope_head_dim=nope,
        v_head_dim=fields.optional_integer("v_head_dim"),
        q_lora_rank=fields.optional_integer("q_lora_rank"),
    )


def mla(fields: Fields, shape: Shape) -> list[Layer]:
    """Every layer stores the latent (DeepSeek-V2 and V3, Kimi K2, GLM-4.7-Flash, MiniCPM3)."""
    types = read_layer_types(fields, shape) or [FULL] * shape.num_layers
    return named_layers(fields, types, {FULL: Layer(cache=read_latent(fields))})


def two_mla(fields: Fields, shape: Shape) -> list[Layer]:
    """LongCat-Flash: each of its layers holds two attention blocks, each with a latent of its own."""
    return [Layer(cache=read_latent(fields))] * (2 * shape.num_layers)


def read_indexer(fields: Fields) -> Indexer:
    """The indexer of DeepSeek-V3.2 and its kin: fp8 keys, one for `index_kpool` tokens where they are pooled."""
    return Indexer(
        head_dim=fields.integer("index_head_dim"),
        heads=fields.integer("index_n_heads"),
        top_k_tokens=fields.integer("index_topk"),
        dtype="fp8",
        ratio=fields.optional_integer("index_kpool") or 1,
    )


def indexed_mla(fields: Fields, shape: Shape) -> list[Layer]:
    """DeepSeek-V3.2 and GLM-5: a latent in every layer, and index keys in the layers that choose for themselves."""
    latent, indexer = read_latent(fields), read_indexer(fields)
    own, reuse = Layer(cache=latent, indexer=indexer), Layer(cache=latent)
    named_layers(fields, read_layer_types(fields, shape) or [], {INDEXED: own})
    return [own if owns else reuse for owns in index_owners(fields, shape.num_layers)]


def index_owners(fields: Fields, num_layers: int) -> list[bool]:
    """Which layers keep index keys: `indexer_types`, else a pattern of F and S, else every `index_topk_freq`-th."""
    types = fields.strings("indexer_types", length=num_layers)
    pattern = fields.text("index_topk_pattern")
    frequency = fields.optional_integer("index_topk_freq") or 1
    offset = fields.optional_integer("index_skip_topk_offset", low=0)
    if types is None and pattern is not None:
        types = [{"F": FULL_INDEX, "S": SHARED_INDEX}.get(letter, letter) for letter in pattern]
        if len(types) != num_layers:
            raise fields.error(f"'index_topk_pattern' has {len(types)} letters, but there are {num_layers} layers")
    if types is None:
        start = 2 if offset is None else offset
        return [max(layer - start + 1, 0) % frequency == 0 for layer in range(num_layers)]
    for name in types:
        if name not in {FULL_INDEX, SHARED_INDEX}:
            raise fields.error(f"indexer type {name!r} is not known (known: {FULL_INDEX}, {SHARED_INDEX})")
    return [name == FULL_INDEX for name in types]


def block_sparse(fields: Fields, shape: Shape) -> list[Layer]:
    """MiniMax-M3: GQA in every layer, and a bf16 index key a token in the layers that `sparse_attention_freq` marks."""
    full = grouped_attention(fields, shape)
    sparse = fields.nested("sparse_attention_config")
    if sparse is None or not sparse.flag("use_sparse_attention", default=False):
        return every_layer(full, shape)
    marks = sparse.integers("sparse_attention_freq", length=shape.num_layers, high=1)
    if marks is None:
        raise sparse.error("field 'sparse_attention_freq' is missing")
    indexer = Indexer(
        head_dim=sparse.integer("sparse_index_dim"),
        heads=sparse.integer("sparse_num_index_heads"),
        top_k_tokens=sparse.integer("sparse_topk_blocks") * sparse.integer("sparse_block_size"),
        dtype="bf16",
    )
    return [Layer(cache=full, indexer=indexer if mark else None) for mark in marks]
