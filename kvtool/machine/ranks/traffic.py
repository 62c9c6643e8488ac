"""What the ranks of a layout send each other in one step, by formula, over all ranks: arithmetic, no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvtool.catalog.model import FullAttention, LatentAttention, Layer, Model
from kvtool.machine.ranks.layout import RankLayout, even_part, kv_head_range, tokens_of_shard
from kvtool.sizing.speed.exchange import (
    Link,
    RingShape,
    all_reduce_bytes,
    pass_kv_bytes,
    pass_q_bytes,
    passes_kv,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Positions start .. stop-1 of a sequence, computed in a step; `is_sampled`: the last one gives a token."""

    start: int
    stop: int
    is_sampled: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes sent in a step by all ranks: sums over heads, keys or queries that go round, logits for the first rank."""

    reduce_bytes: float
    ring_bytes: float
    logits_bytes: float

    @property
    def total_bytes(self) -> float:
        return self.reduce_bytes + self.ring_bytes + self.logits_bytes


def step_traffic(
    model: Model, layout: RankLayout, asked: Sequence[Asked], element_bytes: int, link: Link | None = None
) -> Traffic:
    """Of a step of the whole `model`, whose activations and cache have elements of so many bytes; `link` as it was
    measured. Attention in replicas has steps of its own: `replica_traffic`."""
    return Traffic(
        reduce_bytes=sum(
            _reduce_bytes(model, layout, len(_own(asked, layout, c)) or 1, element_bytes) for c in range(layout.cp)
        ),
        ring_bytes=sum(
            layout.tp // layout.dcp * _ring_bytes(ring_of(model, layer, layout, element_bytes), layout, asked, link)
            for layer in model.layers
        ),
        logits_bytes=float(_logits_bytes(model, layout, asked, element_bytes)),
    )


def _own(asked: Sequence[Asked], layout: RankLayout, cp_index: int) -> list[int]:
    """The positions that one place of cp computes."""
    return [p for one in asked for p in range(one.start, one.stop) if p % layout.cp == cp_index]


def _reduce_bytes(model: Model, layout: RankLayout, tokens: int, element_bytes: int) -> float:
    """After attention and MLP of each layer, and of the embedding where the vocabulary is shared."""
    sums = 2 * model.num_layers + layout.shares_vocabulary
    return sums * layout.tp * all_reduce_bytes(tokens * model.hidden_size * element_bytes, layout.tp)


def ring_of(model: Model, layer: Layer, layout: RankLayout, element_bytes: int) -> RingShape:
    """What goes round for one layer, of one rank's heads."""
    heads, cache = model.num_heads // layout.tp, layer.cache
    if isinstance(cache, LatentAttention):
        rank = cache.kv_lora_rank
        key = rank + cache.qk_rope_head_dim
        return RingShape(heads=heads, kv_heads=1, key_dim=key, value_dim=0, out_dim=rank, element_bytes=element_bytes)
    assert isinstance(cache, FullAttention)
    return RingShape(
        heads=heads,
        kv_heads=len(kv_head_range(cache.kv_heads, layout.tp, 0)),
        key_dim=cache.k_head_dim,
        value_dim=cache.v_head_dim,
        out_dim=cache.v_head_dim,
        element_bytes=element_bytes,
    )


def ring_tokens(layout: RankLayout, asked: Sequence[Asked]) -> tuple[list[int], list[int]]:
    """Keys and queries of each member of a token group, in the order of shards."""
    shards = layout.token_shards
    keys = [sum(tokens_of_shard(one.stop, shard, shards) for one in asked) for shard in range(shards)]
    own = [len(_own(asked, layout, c)) for c in range(layout.cp)]
    return keys, [own[shard % layout.cp] for shard in range(shards)]


def chosen_pass(shape: RingShape, layout: RankLayout, asked: Sequence[Asked], link: Link | None = None) -> str:
    """What goes round: as asked for, else what is fewer bytes, or sent sooner over the link that was measured."""
    if layout.ring in ("pass-kv", "pass-q"):
        return layout.ring
    assert layout.ring == "auto" or link is not None, "the ring is chosen by a link that nobody measured"
    known = link if layout.ring == "measured" else None
    return "pass-kv" if passes_kv(shape, *ring_tokens(layout, asked), known) else "pass-q"


def _ring_bytes(shape: RingShape, layout: RankLayout, asked: Sequence[Asked], link: Link | None) -> float:
    keys, queries = ring_tokens(layout, asked)
    members = range(layout.token_shards)
    if chosen_pass(shape, layout, asked, link) == "pass-kv":
        return float(sum(pass_kv_bytes(shape, keys, member) for member in members))
    return float(sum(pass_q_bytes(shape, queries, member) for member in members))


def _logits_bytes(model: Model, layout: RankLayout, asked: Sequence[Asked], element_bytes: int) -> int:
    """Of each sampled token all of the vocabulary but what the first rank has itself."""
    assert model.vocab_size is not None
    total = 0
    for one in (one for one in asked if one.is_sampled):
        here = (one.stop - 1) % layout.cp == 0
        first = len(even_part(model.vocab_size, layout.tp, 0)) if layout.shares_vocabulary else model.vocab_size
        total += model.vocab_size - (first if here else 0)
    return total * element_bytes


def replica_traffic(model: Model, tokens: Sequence[int], sampled: Sequence[int], element_bytes: int) -> Traffic:
    """Of a step in which each replica of the attention computes so many `tokens`, one of padding where it has none, of
    which so many are `sampled`: before the MLP all tell all of their tokens, behind it each gets his own back."""
    assert model.vocab_size is not None
    told = 2 * (len(tokens) - 1) * sum(count or 1 for count in tokens) * model.hidden_size
    return Traffic(
        reduce_bytes=float(model.num_layers * told * element_bytes),
        ring_bytes=0.0,
        logits_bytes=float(sum(sampled[1:]) * model.vocab_size * element_bytes),
    )
