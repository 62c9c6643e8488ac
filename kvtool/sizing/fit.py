"""What fits on a card: its memory less weights, activations and the runtime, against what the cache takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from kvtool.catalog.gpus import Gpu
from kvtool.results import Calibration, SizeFit
from kvtool.results.size import FITS, FITS_WITHIN_MARGIN, NO
from kvtool.sizing.engines.estimates import Estimates
from kvtool.units import GIB, MAX_LENGTH_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """What an engine runs in one step at most: its --max-num-batched-tokens and --max-num-seqs."""

    tokens: int
    sequences: int


# What `vllm serve` takes for max_num_batched_tokens and max_num_seqs, by the memory of the card.
HUGE_CARD_BYTES, LARGE_CARD_BYTES = 160 * GIB, 70 * GIB
HUGE_CARD_LIMITS = BatchLimits(tokens=16384, sequences=1024)
LARGE_CARD_LIMITS = BatchLimits(tokens=8192, sequences=1024)
SMALL_CARD_LIMITS = BatchLimits(tokens=2048, sequences=256)
CAUTIOUS_CARDS = ("a100", "gb10")  # as small cards, whatever their memory
MAX_BATCH_SIZE = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """One card's memory, and what is spoken for before the cache. `weights_bytes` is None where it is not known.

    `measured_pool_bytes` is the cache's part where an engine or a user told it: then nothing is subtracted.
    `margin_bytes` is by how much the estimates among the terms may be off; `measured` names the terms that are none,
    `estimates` has all that were made, in words too.
    """

    memory_bytes: int
    usable_bytes: int
    weights_bytes: int | None
    activation_bytes: int
    reserve_bytes: int
    measured_pool_bytes: int | None = None
    margin_bytes: int = 0
    measured: tuple[str, ...] = ()
    estimates: Estimates | None = None

    @property
    def kv_pool_bytes(self) -> int | None:
        """What is left for the cache; negative where not even the rest fits."""
        if self.measured_pool_bytes is not None:
            return self.measured_pool_bytes
        if self.weights_bytes is None:
            return None
        return self.usable_bytes - self.weights_bytes - self.activation_bytes - self.reserve_bytes


def batch_limits(
    gpu: Gpu,
    *,
    tokens: int | None = None,
    sequences: int | None = None,
    max_model_len: int | None = None,
    huge_cards: bool = True,
) -> BatchLimits:
    """What is asked for, else what `vllm serve` takes by default on this card: tokens for all sequences to decode at
    once at least, and no more than they can have in all.
    """
    usual = usual_limits(gpu, huge_cards=huge_cards)
    sequences = sequences or usual.sequences
    return BatchLimits(
        tokens=tokens or max(sequences, min(usual.tokens, sequences * (max_model_len or usual.tokens))),
        sequences=sequences,
    )


def usual_limits(gpu: Gpu, *, huge_cards: bool = True) -> BatchLimits:
    """What `vllm serve` starts from on this card (EngineArgs.get_batch_defaults); releases before 0.28 know no
    `huge_cards`.
    """
    if gpu.memory_bytes < LARGE_CARD_BYTES or any(name in gpu.name.lower() for name in CAUTIOUS_CARDS):
        return SMALL_CARD_LIMITS
    return HUGE_CARD_LIMITS if huge_cards and gpu.memory_bytes >= HUGE_CARD_BYTES else LARGE_CARD_LIMITS


def free_share(gpu: Gpu) -> float:
    """The largest --gpu-memory-utilization, to a hundredth, that asks for no more than is free."""
    return math.floor(100 * gpu.free_bytes / gpu.memory_bytes) / 100


def budget(
    gpu: Gpu,
    estimates: Estimates,
    *,
    weights_bytes: int | None,
    utilization: float,
    calibration: Calibration | None = None,
    pool_bytes: int | None = None,
) -> Budget:
    """How the memory of one GPU of the layout is spoken for: each term as `calibration` measured it, else estimated;
    the cache's part is `pool_bytes` where that is given.
    """
    usable_bytes = min(math.ceil(gpu.memory_bytes * utilization), gpu.free_bytes)
    measured = dict(calibration.measured) if calibration else {}
    if pool_bytes is not None:
        measured["kv_pool_bytes"] = pool_bytes
    margins = {
        "activation_bytes": estimates.activation.margin_bytes,
        "reserve_bytes": estimates.reserve_margin_bytes,
    }
    estimated = [margin for name, margin in margins.items() if name not in measured]
    estimated.append(round(gpu.memory_margin_bytes * utilization))
    return Budget(
        memory_bytes=gpu.memory_bytes,
        usable_bytes=usable_bytes,
        weights_bytes=measured.get("weights_bytes", weights_bytes),
        activation_bytes=measured.get("activation_bytes", estimates.activation.bytes),
        reserve_bytes=measured.get("reserve_bytes", estimates.reserve_bytes),
        measured_pool_bytes=measured.get("kv_pool_bytes"),
        margin_bytes=0 if "kv_pool_bytes" in measured else sum(estimated),
        measured=tuple(measured),
        estimates=estimates,
    )


class Held(Protocol):
    """What the fullest GPU holds of a batch."""

    def bytes_per_gpu(self, *, tokens: int, batch_size: int, shared_prefix: int = 0) -> int: ...


def fit(
    memory: Budget,
    cache: Held,
    *,
    context: int,
    batch_size: int,
    shared_prefix: int,
    max_context: int | None,
    limit_name: str = "max_position_embeddings",
) -> SizeFit:
    """Whether the batch fits, and the largest batch and context that would; `limit_name` says what `max_context` is.
    The answer is no where not even the margin would be enough.
    """
    pool = memory.kv_pool_bytes
    if pool is None:
        return SizeFit(memory_bytes=memory.memory_bytes, usable_bytes=memory.usable_bytes, limited_by="unknown weights")
    needed = cache.bytes_per_gpu(tokens=context, batch_size=batch_size, shared_prefix=shared_prefix)

    verdict = _verdict(needed, pool, memory.margin_bytes)

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
        margin_bytes=memory.margin_bytes,
        fits=verdict != NO,
        verdict=verdict,
        activation_margin_bytes=memory.estimates.activation.margin_bytes if memory.estimates else None,
        reserve_margin_bytes=memory.estimates.reserve_margin_bytes if memory.estimates else None,
        missing_bytes=max(0, needed - pool),
        max_batch_size=largest(holds_batch, MAX_BATCH_SIZE),
        max_context=longest,
        limited_by="weights" if pool <= 0 else limit_name if longest == max_context else "kv cache",
        measured=list(memory.measured),
    )


def _verdict(needed: int, pool: int, margin: int) -> str:
    """What can be said of `needed` bytes in a pool that may be off by `margin` either way."""
    if needed <= pool - margin:
        return FITS
    return FITS_WITHIN_MARGIN if needed <= pool + margin else NO


def largest(holds: Callable[[int], bool], limit: int) -> int:
    """The largest n <= limit that holds, 0 if none does; `holds` must not become true again once false."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
