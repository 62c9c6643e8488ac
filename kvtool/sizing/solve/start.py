"""What an engine would be started with to serve a layout: its batch limits and its share of the memory."""

from __future__ import annotations

from dataclasses import replace

from kvtool.catalog.gpus import Gpu
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.sglang.memory import START_BYTES
from kvtool.sizing.engines.vllm import rules_at
from kvtool.sizing.fit import BatchLimits, Budget, free_share
from kvtool.sizing.options import DEFAULT_BLOCK_SIZE, SizeOptions
from kvtool.units import round_up

SGLANG_CHUNK_STEP = 128  # its chunks are whole pages, of 128 tokens at most (validation_hook.py, check_server_args)


def start_of(name: str, options: SizeOptions, limits: BatchLimits, memory: Budget) -> EngineOptions:
    """That engine on the options' layout, with their cache dtype, for `limits` and sequences of --max-model-len: what
    was asked of it, and all else that decides its plan.
    """
    given = options.engine or EngineOptions(
        name=name,
        gpu=options.gpu,
        gpu_memory_utilization=options.gpu_memory_utilization,
        block_size=None if options.block_size == DEFAULT_BLOCK_SIZE else options.block_size,
        mamba_ssm_cache_dtype=options.state_dtype,
        num_speculative_tokens=options.num_speculative_tokens,
    )
    start = replace(
        given,
        parallel=options.parallel,
        kv_cache_dtype=options.kv_cache_dtypes[0],
        max_model_len=options.max_model_len,
        auto_fit=False,
        max_num_batched_tokens=limits.tokens,
        max_num_seqs=limits.sequences,
        gpu_memory_utilization=given.gpu_memory_utilization or _usual_utilization(given, options.gpu),
        dtype=options.dtype,
    )
    if name != "sglang":
        return start
    replicas = options.parallel.dp if options.parallel.dp_attention else 1  # which share out the requests that may run
    return replace(
        start,
        mem_fraction_static=given.mem_fraction_static or _static_share(given, memory),
        chunked_prefill_size=given.chunked_prefill_size or round_up(limits.tokens, SGLANG_CHUNK_STEP),
        max_running_requests=given.max_running_requests or limits.sequences * replicas,
    )


def _usual_utilization(given: EngineOptions, gpu: Gpu | None) -> float:
    """The engine's own, or what is free of the card where that is less."""
    usual = rules_at(given.version if given.name == "vllm" else None).gpu_memory_utilization
    return usual if gpu is None else min(usual, free_share(gpu))


def _static_share(given: EngineOptions, memory: Budget) -> float | None:
    """The --mem-fraction-static that leaves the budget's pool for caches, rounded down: SGLang takes it of what is free
    once its runtime is loaded. The least that it takes where there is no room at all.
    """
    pool_bytes = memory.kv_pool_bytes if given.kv_cache_memory_bytes is None else given.kv_cache_memory_bytes
    if memory.weights_bytes is None or pool_bytes is None:
        return None
    return max(1, 1000 * (memory.weights_bytes + pool_bytes) // (memory.memory_bytes - START_BYTES)) / 1000
