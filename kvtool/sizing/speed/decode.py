"""The floor under a decode step: bytes over bandwidth or FLOPs over the peak rate, whichever takes longer."""

from __future__ import annotations

from kvtool.catalog.gpus import Gpu
from kvtool.results import SizeDecode
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.speed.roofline import bound, compute_s, memory_s
from kvtool.sizing.speed.traffic import DecodeWork
from kvtool.sizing.usage import GpuCache
from kvtool.sizing.weights import Weights
from kvtool.units import ceil_div


def decode_floor(
    work: DecodeWork,
    cache: GpuCache,
    weights: Weights,
    parallel: Parallel,
    gpu: Gpu | None,
    *,
    context: int,
    batch_size: int,
) -> SizeDecode:
    """What one rank reads and computes in a step (over all pipeline stages: a token passes through each), and the time
    that takes at the card's figures: the time of reading alone where the FLOPs are not known, none without a card.
    """
    kv_read = cache.read_bytes_per_step(tokens=context, batch_size=batch_size)
    weights_read = weights.read_bytes_per_step(batch_size, parallel)
    flops = work.flops([context])
    flops_per_rank = None if flops is None else ceil_div(flops * parallel.sequences_of_ranks(batch_size), parallel.tp)
    memory_ms, compute_ms = _times_ms(gpu, kv_read, weights_read, flops_per_rank)
    return SizeDecode(
        kv_read_bytes_per_step=kv_read,
        weights_read_bytes_per_step=weights_read,
        flops_per_step=flops_per_rank,
        ideal_tpot_ms=None if memory_ms is None else max(memory_ms, compute_ms or 0.0),
        bound=None if memory_ms is None or compute_ms is None else bound(memory_ms, compute_ms),
    )


def _times_ms(
    gpu: Gpu | None, kv_read: int, weights_read: int | None, flops: int | None
) -> tuple[float | None, float | None]:
    """Milliseconds to read the bytes, and to do the FLOPs in bf16; None for what is not known."""
    memory_ms = compute_ms = None
    if gpu is not None and gpu.memory_bandwidth_gbps is not None and weights_read is not None:
        memory_ms = memory_s(kv_read + weights_read, gpu.memory_bandwidth_gbps) * 1e3
    if gpu is not None and gpu.bf16_tflops is not None and flops is not None:
        compute_ms = compute_s(flops, gpu.bf16_tflops) * 1e3
    return memory_ms, compute_ms
