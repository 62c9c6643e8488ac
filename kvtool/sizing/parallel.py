"""How a model is laid out over GPUs: what each kind of parallelism divides, and what it repeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TypeVar

from kvtool.catalog.model import CompressedAttention, FullAttention, LatentAttention, Model
from kvtool.errors import KvtoolError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """Degrees of parallelism. `dcp` divides tokens inside the tensor-parallel group and `ep` experts over tp x dp: both
    reuse the same GPUs.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    dcp: int = 1
    ep: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise KvtoolError(f"{field.name} {getattr(self, field.name)} must be at least 1")
        if self.tp % self.dcp:
            raise KvtoolError(f"dcp {self.dcp} does not divide tp {self.tp}: it shares out tokens inside the tp group")
        if (self.tp * self.dp) % self.ep:
            raise KvtoolError(f"ep {self.ep} does not divide tp x dp = {self.tp * self.dp}")

    @property
    def num_gpus(self) -> int:
        return self.tp * self.pp * self.dp


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
            copies = max(1, parallel.tp // kv_heads)
            if copies % parallel.dcp:
                raise KvtoolError(
                    f"dcp {parallel.dcp} must divide the copies that tp {parallel.tp} makes of a KV head ({copies})"
                )


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
