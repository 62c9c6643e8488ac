"""DeepSeek-V4: every layer keeps a window, most also rows that sum up 4 or 128 tokens; those of 4 have an indexer."""

from __future__ import annotations

from kvtool.catalog.families.family import Shape
from kvtool.catalog.fields import Fields
from kvtool.catalog.model import CompressedAttention, Indexer, Layer

_RATIO_OF_TYPE = {"sliding_attention": 0, "compressed_sparse_attention": 4, "heavily_compressed_attention": 128}
INDEXED_RATIO = 4
# Hyper-connections and the output's low-rank groups change weights, not the cache.
_WEIGHTS_ONLY = {
    *("hc_mult", "hc_eps", "hc_sinkhorn_iters", "o_groups", "o_lora_rank", "q_lora_rank"),
    *("compress_rope_theta", "num_key_value_heads"),
}


def deepseek_v4(fields: Fields, shape: Shape) -> list[Layer]:
    """One layer for each of `compress_ratios` (draft layers follow at its end) or of `layer_types`."""
    fields.read |= _WEIGHTS_ONLY
    head_dim = fields.integer("head_dim", high=1 << 16)
    cache = CompressedAttention(
        head_dim=head_dim,
        qk_rope_head_dim=fields.integer("qk_rope_head_dim", high=head_dim),
        window=fields.integer("sliding_window"),
    )
    indexer = Indexer(
        head_dim=fields.integer("index_head_dim"),
        heads=fields.integer("index_n_heads"),
        top_k_tokens=fields.integer("index_topk"),
        dtype="fp8",
        ratio=INDEXED_RATIO,
    )
    kinds = {
        ratio: Layer(cache=_with_ratio(cache, ratio), indexer=indexer if ratio == INDEXED_RATIO else None)
        for ratio in _RATIO_OF_TYPE.values()
    }
    return [kinds[ratio] for ratio in _ratios(fields, shape)]


def _with_ratio(cache: CompressedAttention, ratio: int) -> CompressedAttention:
    return CompressedAttention(
        head_dim=cache.head_dim, qk_rope_head_dim=cache.qk_rope_head_dim, window=cache.window, ratio=ratio
    )


def _ratios(fields: Fields, shape: Shape) -> list[int]:
    types = fields.strings("layer_types", length=shape.num_layers)
    given = fields.integers("compress_ratios")
    if types is None and given is None:
        raise fields.error("neither 'compress_ratios' nor 'layer_types' says what each layer keeps")
    if types is not None:
        unknown = next((name for name in types if name not in _RATIO_OF_TYPE), None)
        if unknown is not None:
            raise fields.error(f"layer type {unknown!r} is not known here (known: {', '.join(_RATIO_OF_TYPE)})")
        _check_rates(fields)
        return [_RATIO_OF_TYPE[name] for name in types]
    ratios = given or []
    drafts = fields.optional_integer("num_nextn_predict_layers", low=0) or 0
    if len(ratios) not in {shape.num_layers, shape.num_layers + drafts}:
        raise fields.error(
            f"'compress_ratios' has {len(ratios)} items for {shape.num_layers} layers and {drafts} drafts"
        )
    unknown_ratio = next((ratio for ratio in ratios if ratio not in _RATIO_OF_TYPE.values()), None)
    if unknown_ratio is not None:
        raise fields.error(f"compress ratio {unknown_ratio} is not known (known: 0, 4, 128)")
    return ratios[: shape.num_layers]


def _check_rates(fields: Fields) -> None:
    """transformers also writes the ratio of each type: it must be the one that engines have."""
    rates = fields.nested("compress_rates")
    for name in rates.values if rates else ():
        if rates and rates.integer(name) != _RATIO_OF_TYPE.get(name):
            raise rates.error(f"compress rate {name!r} differs from what its type has ({_RATIO_OF_TYPE.get(name)})")
