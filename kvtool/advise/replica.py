"""One copy of a model on some cards: how long its work takes there, and how much their memory holds.

Times are floors: FLOPs at the card's rate or bytes at its bandwidth, whichever take longer, and what ranks send each
other. A rate that was measured takes the place of the card's where a profile has it.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvtool.catalog.gpus import Gpu
from kvtool.catalog.model import CompressedAttention, FullAttention, LatentAttention, Layer, Model
from kvtool.replay.saved import PrefillFloor, prefill_floor
from kvtool.sizing.dtypes import AUTO
from kvtool.sizing.fit import largest
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.plan import SizePlan, make_plan
from kvtool.sizing.speed.decode import decode_floor
from kvtool.sizing.speed.exchange import COLLECTIVE_S
from kvtool.sizing.speed.roofline import memory_s
from kvtool.system.errors import KvtoolError
from kvtool.units import MAX_LENGTH_TOKENS

ACTIVATION_BYTES = 2  # of an element that ranks send: bf16


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """`pool_bytes` are what each card has for caches; `sequences` what an engine runs at a time at most."""

    model: Model
    gpu: Gpu
    plan: SizePlan
    floor: PrefillFloor
    pool_bytes: int
    sequences: int

    @property
    def parallel(self) -> Parallel:
        return self.plan.options.parallel

    @property
    def kv_cache_dtype(self) -> str:
        return self.plan.cache_format.name

    def prefill_s(self, tokens: int, cached: int = 0, batch: int = 1) -> float:
        """Seconds of `batch` prompts of `tokens` behind their first `cached`, of which the last token is computed."""
        new = tokens - min(cached, tokens - 1)
        flops = batch * self.floor.work.flops(new, tokens - new)
        return max(flops / self.floor.flops_per_s, self._weights_s(batch * new)) + self._collectives_s(batch * new)

    def step_s(self, context: int, batch: int) -> float:
        """Seconds of a decode step of `batch` sequences of `context` tokens."""
        floor = decode_floor(
            self.plan.work,
            self.plan.cache,
            self.plan.weights,
            self.parallel,
            self.gpu,
            context=context,
            batch_size=batch,
        )
        if floor.ideal_tpot_ms is None:
            raise KvtoolError(f"what a step of {self.model.id} reads is not known: nothing can be advised")
        return floor.ideal_tpot_ms / 1e3 + self._collectives_s(batch) + self._shared_context_s(batch)

    def kv_share(self, context: int, batch: int) -> float:
        """Of the bytes that a decode step reads, the cache's part."""
        kv = self.plan.cache.read_bytes_per_step(tokens=context, batch_size=batch)
        return kv / (kv + (self.plan.weights.read_bytes_per_step(batch, self.parallel) or 0))

    def holds(self, context: int) -> int:
        """Sequences of `context` tokens that the memory holds and an engine runs."""
        return largest(
            lambda batch: self.plan.cache.bytes_per_gpu(tokens=context, batch_size=batch) <= self.pool_bytes,
            self.sequences,
        )

    def cached_bytes(self, tokens: int) -> int:
        """Of so many tokens of one prefix, on each card."""
        return self.plan.cache.bytes_per_gpu(tokens=tokens, batch_size=1) if tokens else 0

    def pool_tokens(self) -> int:
        """Tokens that the memory holds, as one long sequence."""
        return largest(lambda tokens: self.cached_bytes(tokens) <= self.pool_bytes, MAX_LENGTH_TOKENS)

    def _weights_s(self, tokens: int) -> float:
        """Of reading once what so many tokens need: the experts that they reach, and no embedding."""
        read = self.plan.weights.read_bytes_per_step(tokens, self.parallel)
        if read is None or self.gpu.memory_bandwidth_gbps is None:
            return self.floor.weights_s
        return memory_s(read, self.gpu.memory_bandwidth_gbps)

    def _collectives_s(self, tokens: int) -> float:
        """Two all-reduces of the hidden state a layer, in rings: (ranks - 1) / ranks of it go out twice."""
        ranks, hidden = self.parallel.tp, self.model.hidden_size or 0
        if ranks == 1:
            return 0.0
        return 2 * self.model.num_layers * self._sent_s(2 * (ranks - 1) / ranks * tokens * hidden)

    def _shared_context_s(self, batch: int) -> float:
        """Of DCP, a layer: queries are gathered by all ranks, and their partial outputs summed where they belong."""
        ranks = self.parallel.dcp
        if ranks == 1:
            return 0.0
        part = (ranks - 1) / ranks * batch * self.model.num_heads
        sent = [part * elements for layer in self.model.layers for elements in head_dims(layer)]
        return sum(map(self._sent_s, sent))

    def _sent_s(self, elements: float) -> float:
        link_gbps = self.gpu.link_gbps or self.gpu.pcie_gbps
        if link_gbps is None:
            raise KvtoolError(f"no link between cards of {self.gpu.name} is known: TP cannot be timed")
        return COLLECTIVE_S + elements * ACTIVATION_BYTES / (link_gbps * 1e9)


def head_dims(layer: Layer) -> tuple[int, ...]:
    """Elements of one head's query and output as the cache meets them; none where no tokens are shared out."""
    match layer.cache:
        case LatentAttention(kv_lora_rank=rank, qk_rope_head_dim=rope):
            return rank + rope, rank
        case CompressedAttention(head_dim=dim):
            return dim, dim
        case FullAttention(k_head_dim=key, v_head_dim=value):
            return key, value
        case _:
            return ()


def replica(
    model: Model, gpu: Gpu, *, tp: int = 1, dcp: int = 1, kv_cache_dtype: str = AUTO, block_size: int = 16
) -> Replica:
    """Raises KvtoolError for a layout that the model cannot take, and for what is not known of card or model."""
    parallel = Parallel(tp=tp, dcp=dcp)
    plan = make_plan(model, SizeOptions(gpu=gpu, parallel=parallel, block_size=block_size), kv_cache_dtype)
    floor = prefill_floor(model, gpu, tp)
    pool = None if plan.memory is None else plan.memory.kv_pool_bytes
    if pool is None or plan.limits is None:
        raise KvtoolError(f"{model.id}: weights {plan.weights.source}: what is left for a cache is not known")
    return Replica(
        model=model, gpu=gpu, plan=plan, floor=floor, pool_bytes=max(0, pool), sequences=plan.limits.sequences
    )
