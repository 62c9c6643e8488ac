"""What the ranks of a run held and sent, beside what was predicted, as a document tells it."""

from __future__ import annotations

from kvtool.engine.loaded import LoadedModel
from kvtool.engine.pool import pool_specs
from kvtool.engine.ranks.lead import RankedModel
from kvtool.engine.ranks.shards import shard_of
from kvtool.results import RankUse
from kvtool.sizing.dtypes import FLOAT_BYTES
from kvtool.sizing.layers import layer_specs
from kvtool.sizing.params import count_params


def rank_uses(loaded: LoadedModel, num_pages: int) -> list[RankUse]:
    """Of every rank, with one pool of so many pages; empty for a model that one process runs."""
    if not isinstance(loaded, RankedModel):
        return []
    kv_bytes = num_pages * predicted_page_bytes(loaded)
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
        for rank, facts in enumerate(loaded.facts())
    ]


def predicted_weights_bytes(loaded: RankedModel, rank: int) -> int | None:
    """Of the part that the rank runs, counted from its shape; random weights have no routers. None: not known."""
    layout = loaded.seat.layout
    params = count_params(shard_of(loaded.model, layout, layout.tp_index(rank)))
    if params is None:
        return None
    moe = loaded.model.moe
    unrouted = loaded.weights.even_routing and moe is not None
    routers = params.sparse_layers * moe.num_experts * loaded.model.hidden_size if unrouted and moe is not None else 0
    return (params.total - routers) * FLOAT_BYTES[loaded.dtype]


def predicted_page_bytes(loaded: RankedModel) -> int:
    """Of one page of every layer on one rank, from the specs of the whole model's cache."""
    specs = pool_specs(layer_specs(loaded.model, loaded.cache_format, tp=loaded.seat.layout.tp))
    tokens = loaded.config.block_size // loaded.seat.layout.token_shards
    return sum(spec.page_bytes(tokens) for spec in specs)
