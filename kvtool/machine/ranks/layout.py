"""How the ranks of a run share heads and tokens. Arithmetic alone: knows no tensors and no processes."""

from __future__ import annotations

from dataclasses import dataclass

from kvtool.catalog.model import FullAttention, LatentAttention, Model, SlidingAttention
from kvtool.sizing.parallel import Parallel, check_layout
from kvtool.system.errors import KvtoolError

PASSES = ("auto", "measured", "pass-kv", "pass-q")


@dataclass(frozen=True, slots=True, kw_only=True)
class RankLayout:
    """tp x cp ranks: `tp` share heads, `cp` the tokens of a step, and `dcp` of the tp ranks that would keep the same KV
    head share its tokens. Rank = tp * (its place in cp) + its place in tp. `ring` says what goes round where tokens are
    shared: keys and values, queries, whichever is fewer bytes, or sooner sent over the link as measured. With a
    `replicated_head` every rank has all of the vocabulary. `dp` replicas of the attention, one a rank, leave heads
    whole and keep requests of their own.
    """

    tp: int = 1
    cp: int = 1
    dcp: int = 1
    dp: int = 1
    ring: str = "auto"
    replicated_head: bool = False

    def __post_init__(self) -> None:
        for name, degree in self.degrees.items():
            if degree < 1:
                raise KvtoolError(f"{name} {degree} must be at least 1")
        if self.dp > 1 and (self.dp != self.tp or self.cp > 1 or self.dcp > 1):
            raise KvtoolError(f"dp {self.dp}: attention has a replica on each of the tp ranks, so write --tp {self.dp}")
        if self.tp % self.dcp:
            raise KvtoolError(f"dcp {self.dcp} does not divide tp {self.tp}: it shares out tokens inside the tp group")
        if self.ring not in PASSES:
            raise KvtoolError(f"ring {self.ring!r} is not one of {', '.join(PASSES)}")

    @property
    def ranks(self) -> int:
        """Processes that run the model."""
        return self.tp * self.cp

    @property
    def degrees(self) -> dict[str, int]:
        """By their flags' names."""
        return {"tp": self.tp, "cp": self.cp, "dcp": self.dcp, "dp": self.dp}

    @property
    def heads_tp(self) -> int:
        """Ranks that share heads."""
        return self.tp // self.dp

    @property
    def shares_vocabulary(self) -> bool:
        """Whether each rank has a part of it."""
        return self.tp > 1 and self.dp == 1 and not self.replicated_head

    @property
    def token_shards(self) -> int:
        """Ranks that share out the tokens of one KV head: token p lies with shard p mod so many."""
        return self.cp * self.dcp

    def tp_index(self, rank: int) -> int:
        """Which heads the rank has."""
        return rank % self.tp

    def cp_index(self, rank: int) -> int:
        """Which tokens of a step the rank computes: p mod cp."""
        return rank // self.tp

    def shard(self, rank: int) -> int:
        """Which tokens the rank keeps: p mod token_shards."""
        return self.cp_index(rank) + self.cp * (self.tp_index(rank) % self.dcp)

    def tensor_group(self, rank: int) -> list[int]:
        """The ranks that share the heads of the same tokens, in the order of their heads."""
        first = self.tp * self.cp_index(rank)
        return list(range(first, first + self.tp))

    def token_group(self, rank: int) -> list[int]:
        """The ranks that share the tokens of the same KV heads, in the order of their shards."""
        first = self.tp_index(rank) // self.dcp * self.dcp
        members = [self.tp * c + first + d for c in range(self.cp) for d in range(self.dcp)]
        return sorted(members, key=self.shard)

    def __str__(self) -> str:
        parts = [f"{name} {degree}" for name, degree in self.degrees.items() if degree > 1]
        return " x ".join(parts) or "tp 1"


def check_ranks(model: Model, layout: RankLayout) -> None:
    """Raises KvtoolError where the engine cannot lay the model out so."""
    if layout.dp > 1:
        return
    heads = [layer.cache for layer in model.layers if isinstance(layer.cache, FullAttention)]
    if model.num_heads % layout.tp:
        raise KvtoolError(f"tp {layout.tp} does not divide the {model.num_heads} query heads of {model.id}")
    for cache in heads:
        if cache.kv_heads % layout.tp and layout.tp % cache.kv_heads:
            raise KvtoolError(f"tp {layout.tp} neither divides the {cache.kv_heads} KV heads nor is a multiple of them")
    check_layout(model, Parallel(tp=layout.tp, dcp=layout.dcp))
    if layout.dcp > 1 and any(isinstance(cache, SlidingAttention) for cache in heads):
        raise KvtoolError(
            f"dcp {layout.dcp}: the sliding layers of {model.id} keep every KV head whole, use --cp or --tp"
        )
    if layout.tp > 1 and model.decoder is not None and model.decoder.qk_norm_spans_heads:
        raise KvtoolError(f"tp {layout.tp}: {model.id} normalises queries over all heads, which no rank has together")


def even_part(total: int, parts: int, index: int) -> range:
    """Part `index` of `total` things dealt out as evenly as can be: the first parts get one more."""
    share, left = divmod(total, parts)
    start = index * share + min(index, left)
    return range(start, start + share + (index < left))


def tokens_of_shard(tokens: int, shard: int, shards: int) -> int:
    """How many of the first `tokens` positions p have p mod shards = shard."""
    return (tokens - shard + shards - 1) // shards if tokens > shard else 0


def kv_head_range(kv_heads: int, tp: int, index: int) -> range:
    """The KV heads of one tensor rank: a share of them, or one that other ranks have too."""
    start = index * kv_heads // tp
    return range(start, start + max(1, kv_heads // tp))


def is_latent(model: Model) -> bool:
    """Whether its attention is over latents (MLA), which every tensor rank keeps whole."""
    return isinstance(model.layers[0].cache, LatentAttention)
