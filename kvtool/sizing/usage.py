"""What a batch of sequences takes: on one copy of the model, and on the fullest GPU of a parallel layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from kvtool.catalog.model import Model
from kvtool.sizing.formats import CacheFormat
from kvtool.sizing.layers import StateFormat, specs_by_layer
from kvtool.sizing.parallel import Parallel, check_layout, pipeline_stages
from kvtool.sizing.specs import CacheSpec
from kvtool.units import ceil_div

SpecCounts = tuple[tuple[CacheSpec, int], ...]


def count_specs(specs: Iterable[CacheSpec]) -> SpecCounts:
    """Equal layers together, in order of first appearance: (spec, how many layers). One and the same object is compared
    with others once, as a hash goes through all that a spec is made of."""
    own = list(specs)
    times = Counter(map(id, own))
    counts: Counter[CacheSpec] = Counter()
    for key, spec in {id(spec): spec for spec in own}.items():
        counts[spec] += times[key]
    return tuple(counts.items())


def growth_bytes(specs: SpecCounts, *, indexer: bool) -> int:
    """Bytes that one more token adds for good: of index keys, or of all other layers that grow without bound."""
    return sum(spec.growth_bytes(count) for spec, count in specs if spec.grows and (spec.kind == "indexer") == indexer)


def allocated_bytes(
    specs: SpecCounts, *, tokens: int, batch_size: int, block_size: int, shared_prefix: int = 0, dcp: int = 1
) -> int:
    """Bytes in whole pages that `batch_size` sequences of `tokens` tokens take, the pages of a common prefix once.

    `dcp` ranks each hold every dcp-th token of full and MLA layers; other kinds are whole on each of them.
    """
    total = 0
    for spec, count in specs:
        split = dcp if spec.dcp_splits else 1
        held = ceil_div(tokens, split)
        shared = spec.shared_pages(shared_prefix // split, held, block_size) * spec.page_bytes(block_size)
        total += count * (batch_size * spec.allocated_bytes(held, block_size) - (batch_size - 1) * shared)
    return total


def read_bytes(specs: SpecCounts, *, tokens: int, batch_size: int, dcp: int = 1) -> int:
    """Bytes of cache that one decode step reads for `batch_size` sequences of `tokens` tokens."""
    return batch_size * sum(
        count * spec.read_bytes(ceil_div(tokens, dcp if spec.dcp_splits else 1)) for spec, count in specs
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuCache:
    """The cache of one tensor-parallel rank, stage by stage; the batch is dealt out to `dp` replicas."""

    stages: tuple[SpecCounts, ...]
    block_size: int
    dp: int
    dcp: int

    def bytes_per_gpu(self, *, tokens: int, batch_size: int, shared_prefix: int = 0) -> int:
        """Bytes on the GPU that holds most: a rank of the fullest stage, in the replica with most sequences."""
        return max(
            allocated_bytes(
                stage,
                tokens=tokens,
                batch_size=ceil_div(batch_size, self.dp),
                block_size=self.block_size,
                shared_prefix=shared_prefix,
                dcp=self.dcp,
            )
            for stage in self.stages
        )

    def read_bytes_per_step(self, *, tokens: int, batch_size: int) -> int:
        """Bytes that one rank of each stage reads in a step, all stages together: a token passes through them all."""
        sequences = ceil_div(batch_size, self.dp)
        return sum(read_bytes(stage, tokens=tokens, batch_size=sequences, dcp=self.dcp) for stage in self.stages)


def gpu_cache(
    model: Model, cache_format: CacheFormat, *, parallel: Parallel, block_size: int, state: StateFormat
) -> GpuCache:
    """The cache of one rank of `parallel`. Raises KvtoolError where the model cannot be laid out so."""
    check_layout(model, parallel)
    layers = specs_by_layer(model, cache_format, tp=parallel.attention_tp, state=state)
    by_stage = pipeline_stages(layers[: model.num_layers], parallel.pp)
    by_stage[-1] += layers[model.num_layers :]  # draft layers run where the output head is
    stages = tuple(count_specs(spec for layer in stage for spec in layer) for stage in by_stage)
    return GpuCache(stages=stages, block_size=block_size, dp=parallel.dp, dcp=parallel.dcp)
