"""How a model is laid out over GPUs: what each kind of parallelism divides, and what it repeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from kvtool.catalog.model import CompressedAttention, FullAttention, LatentAttention, Model
from kvtool.system.errors import KvtoolError
from kvtool.units import ceil_div

T = TypeVar("T")
DEGREES = ("tp", "pp", "dp", "dcp", "ep")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """Degrees of parallelism. `dcp` divides tokens inside the tensor-parallel group and `ep` experts over tp x dp: both
    reuse the same GPUs. With `dp_attention` (SGLang's --enable-dp-attention) so does `dp`: it divides the tp ranks into
    replicas of the attention, while the rest of the model stays split over all of them.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    dcp: int = 1
    ep: int = 1
    dp_attention: bool = False

    def __post_init__(self) -> None:
        for name in DEGREES:
            if getattr(self, name) < 1:
                raise KvtoolError(f"{name} {getattr(self, name)} must be at least 1")
        if self.dp_attention and self.tp % self.dp:
            raise KvtoolError(
                f"dp {self.dp} does not divide tp {self.tp}: --enable-dp-attention makes its replicas of it"
            )
        if self.attention_tp % self.dcp:
            group = f"tp {self.tp}" if self.attention_tp == self.tp else f"the {self.attention_tp} ranks of attention"
            raise KvtoolError(f"dcp {self.dcp} does not divide {group}: it shares out tokens inside the tp group")
        if self.ranks % self.ep:
            ranks = f"tp = {self.tp}" if self.dp_attention else f"tp x dp = {self.ranks}"
            raise KvtoolError(f"ep {self.ep} does not divide {ranks}")

    @property
    def attention_tp(self) -> int:
        """Ranks that the heads of one sequence are split over."""
        return self.tp // self.dp if self.dp_attention else self.tp

    @property
    def ranks(self) -> int:
        """GPUs of one pipeline stage: what experts can be dealt out to."""
        return self.tp if self.dp_attention else self.tp * self.dp

    @property
    def expert_shards(self) -> int:
        return max(self.tp, self.ep)

    @property
    def num_gpus(self) -> int:
        return self.ranks * self.pp

    def sequences_of_replica(self, batch_size: int) -> int:
        """Of a batch, what the fullest replica has in its cache."""
        return ceil_div(batch_size, self.dp)

    def sequences_of_ranks(self, batch_size: int) -> int:
        """Of a batch, what one tp group runs through its dense layers: all of it where only attention is replicated."""
        return batch_size if self.dp_attention else ceil_div(batch_size, self.dp)


def check_layout(model: Model, parallel: Parallel) -> None:
    """Raises KvtoolError where the model cannot be laid out so; tp against heads is checked with each layer."""
    if parallel.pp > model.num_layers:
        raise KvtoolError(f"pp {parallel.pp} is more than the {model.num_layers} layers of {model.id}")
    if parallel.ep > 1 and (model.moe is None or parallel.ep > model.moe.num_experts):
        experts = f"{model.moe.num_experts} experts" if model.moe else "no experts"
        raise KvtoolError(f"ep {parallel.ep} needs at least as many experts: {model.id} has {experts}")
    if parallel.dcp > 1:
        _check_dcp(model, parallel)


def _check_dcp(model: Model, parallel: Parallel) -> None:
    """DCP shares out the copies that tp makes of the same KV head: tp of them for MLA, tp / KV heads for GQA."""
    for layer in model.layers:
        cache = layer.cache
        if isinstance(cache, LatentAttention | CompressedAttention) or type(cache) is FullAttention:
            kv_heads = cache.kv_heads if isinstance(cache, FullAttention) else 1
            copies = max(1, parallel.attention_tp // kv_heads)
            if copies % parallel.dcp:
                made = f"the copies that tp {parallel.attention_tp} makes of a KV head ({copies})"
                raise KvtoolError(f"dcp {parallel.dcp} must divide {made}")


def pipeline_stages(layers: Sequence[T], pp: int) -> list[list[T]]:
    """Layers of each stage: equal shares; those left over go one each to the last stages, but not to the very last,
    which has the output head (as vLLM's get_pp_indices does).
    """
    share, left = divmod(len(layers), pp)
    sizes = [share] * pp
    for i in range(left):
        sizes[pp - 2 - i] += 1
    bounds = [sum(sizes[:i]) for i in range(pp + 1)]
    return [list(layers[start:end]) for start, end in pairwise(bounds)]
