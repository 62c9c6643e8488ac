"""What the ranks of a run held and sent, beside what was predicted, as a document tells it."""

from __future__ import annotations

from kvtool.engine.loaded import LoadedModel
from kvtool.engine.pool import KvPool, pool_specs
from kvtool.engine.ranks.lead import RankedModel, RankFacts
from kvtool.engine.ranks.sharded import OneRank
from kvtool.engine.ranks.shards import shard_of
from kvtool.machine.ranks.layout import RankLayout
from kvtool.results import RankUse
from kvtool.sizing.dtypes import FLOAT_BYTES
from kvtool.sizing.layers import layer_specs
from kvtool.sizing.params import count_params


def rank_uses(loaded: LoadedModel, pool: KvPool) -> list[RankUse]:
    """Of every rank, where it has the one `pool`; empty for a model whose weights nobody counted."""
    kv_bytes = pool.num_pages * predicted_page_bytes(loaded)
    return [
        RankUse(
            rank=rank,
            weights_predicted_bytes=predicted_weights_bytes(loaded, rank),
            weights_allocated_bytes=facts.weights_bytes,
            kv_predicted_bytes=kv_bytes,
            kv_allocated_bytes=facts.pool_bytes,
            sent_bytes=round(facts.payload_bytes),
            socket_bytes=facts.socket_bytes,
            exposed_s=facts.exposed_s,
        )
        for rank, facts in enumerate(_facts(loaded, pool))
    ]


def _facts(loaded: LoadedModel, pool: KvPool) -> list[RankFacts]:
    if isinstance(loaded, RankedModel):
        return loaded.facts()
    if isinstance(loaded.part, OneRank):
        return [RankFacts(loaded.part.sharded.loaded_bytes, pool.bytes, 0.0, None, 0.0)]
    return []


def layout_of(loaded: LoadedModel) -> RankLayout:
    """The layout that the model runs on."""
    return loaded.seat.layout if isinstance(loaded, RankedModel) else RankLayout()


def predicted_weights_bytes(loaded: LoadedModel, rank: int) -> int | None:
    """Of the part that the rank runs, counted from its shape; random weights have no routers. None: not known."""
    layout = layout_of(loaded)
    params = count_params(shard_of(loaded.model, layout, layout.tp_index(rank)))
    if params is None:
        return None
    moe = loaded.model.moe
    unrouted = loaded.weights.even_routing and moe is not None
    routers = params.sparse_layers * moe.num_experts * loaded.model.hidden_size if unrouted and moe is not None else 0
    return (params.total - routers) * FLOAT_BYTES[loaded.dtype]


def predicted_page_bytes(loaded: LoadedModel) -> int:
    """Of one page of every layer on one rank, from the specs of the whole model's cache."""
    layout = layout_of(loaded)
    specs = pool_specs(layer_specs(loaded.model, loaded.cache_format, tp=layout.heads_tp))
    return sum(spec.page_bytes(loaded.config.block_size // layout.token_shards) for spec in specs)
