"""What fits on a card: its memory less weights, activations and the runtime, against what the cache takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from kvtool.catalog.gpus import Gpu
from kvtool.catalog.model import Model
from kvtool.results import SizeFit
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.usage import GpuCache
from kvtool.units import GIB, MAX_LENGTH_TOKENS, ceil_div

# vLLM's defaults of max_num_batched_tokens and max_num_seqs, on cards of 70 GiB and more and on smaller ones.
LARGE_CARD_BYTES = 70 * GIB
LARGE_CARD_TOKENS, LARGE_CARD_SEQUENCES = 8192, 1024
SMALL_CARD_TOKENS, SMALL_CARD_SEQUENCES = 2048, 256
RESERVE_BYTES = GIB  # CUDA context, NCCL buffers, CUDA graphs: what engines typically lose to them
MAX_BATCH_SIZE = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """One card's memory, and what is spoken for before the cache. `weights_bytes` is None where it is not known."""

    memory_bytes: int
    usable_bytes: int
    weights_bytes: int | None
    activation_bytes: int
    reserve_bytes: int

    @property
    def kv_pool_bytes(self) -> int | None:
        """What is left for the cache; negative where not even the rest fits."""
        if self.weights_bytes is None:
            return None
        return self.usable_bytes - self.weights_bytes - self.activation_bytes - self.reserve_bytes


def batch_limits(gpu: Gpu) -> tuple[int, int]:
    """(tokens, sequences) that an engine with default settings runs at once on this card."""
    if gpu.memory_bytes >= LARGE_CARD_BYTES:
        return LARGE_CARD_TOKENS, LARGE_CARD_SEQUENCES
    return SMALL_CARD_TOKENS, SMALL_CARD_SEQUENCES


def activation_bytes(gpu: Gpu, model: Model, parallel: Parallel) -> int:
    """An estimate of the peak of one forward pass: in 16 bits, for each batched token, four rows of the hidden size
    (residual, norm, attention in and out) and three of the widest MLP (gate, up, product); fp32 logits a sequence.
    """
    widest = model.intermediate_size or 4 * model.hidden_size
    if model.moe is not None:
        widest = max(widest, model.moe.intermediate_size * model.moe.experts_per_token)
    tokens, sequences = batch_limits(gpu)
    rows = tokens * (4 * model.hidden_size + 3 * ceil_div(widest, parallel.tp)) * 2
    return rows + sequences * (model.vocab_size or 0) * 4


def budget(gpu: Gpu, model: Model, parallel: Parallel, *, weights_bytes: int | None, utilization: float) -> Budget:
    """How the memory of one GPU of the layout is spoken for."""
    return Budget(
        memory_bytes=gpu.memory_bytes,
        usable_bytes=math.floor(gpu.memory_bytes * utilization),
        weights_bytes=weights_bytes,
        activation_bytes=activation_bytes(gpu, model, parallel),
        reserve_bytes=RESERVE_BYTES,
    )


def fit(
    memory: Budget,
    cache: GpuCache,
    *,
    context: int,
    batch_size: int,
    shared_prefix: int,
    max_context: int | None,
    limit_name: str = "max_position_embeddings",
) -> SizeFit:
    """Whether the batch fits, and the largest batch and context that would; `limit_name` says what `max_context` is."""
    pool = memory.kv_pool_bytes
    if pool is None:
        return SizeFit(memory_bytes=memory.memory_bytes, usable_bytes=memory.usable_bytes, limited_by="unknown weights")
    needed = cache.bytes_per_gpu(tokens=context, batch_size=batch_size, shared_prefix=shared_prefix)

    def holds_batch(sequences: int) -> bool:
        return cache.bytes_per_gpu(tokens=context, batch_size=sequences, shared_prefix=shared_prefix) <= pool

    def holds_context(tokens: int) -> bool:
        prefix = min(shared_prefix, tokens)
        return cache.bytes_per_gpu(tokens=tokens, batch_size=batch_size, shared_prefix=prefix) <= pool

    longest = largest(holds_context, min(max_context or MAX_LENGTH_TOKENS, MAX_LENGTH_TOKENS))
    return SizeFit(
        memory_bytes=memory.memory_bytes,
        usable_bytes=memory.usable_bytes,
        weights_bytes=memory.weights_bytes,
        activation_bytes=memory.activation_bytes,
        reserve_bytes=memory.reserve_bytes,
        kv_pool_bytes=max(pool, 0),
        fits=needed <= pool,
        missing_bytes=max(0, needed - pool),
        max_batch_size=largest(holds_batch, MAX_BATCH_SIZE),
        max_context=longest,
        limited_by="weights" if pool <= 0 else limit_name if longest == max_context else "kv cache",
    )


def largest(holds: Callable[[int], bool], limit: int) -> int:
    """The largest n <= limit that holds, 0 if none does; `holds` must not become true again once false."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
