"""The memory of the card that a size is for: what an engine runs in a step, and what is spoken for before its cache."""

from __future__ import annotations

from dataclasses import replace

from kvtool.catalog.gpus import Gpu
from kvtool.catalog.model import Model
from kvtool.sizing.engines import free_share, vllm
from kvtool.sizing.engines.llama_cpp import LlamaCppCard
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.fit import BatchLimits, Budget, batch_limits, budget
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.weights import Weights

VLLM = "vllm"


def card_memory(
    model: Model, options: SizeOptions, weights: Weights, allocating: LlamaCppCard | None = None
) -> tuple[BatchLimits | None, Budget | None]:
    """What the engine runs in a step, and how one GPU's memory is spoken for; None without a card. `allocating` is the
    fullest GPU of llama.cpp, whose budget is another than vLLM's.
    """
    if options.gpu is None:
        return None, None
    if allocating is not None:
        return _allocated(options, options.gpu, allocating)
    start = memory_start(options)
    rules = vllm.rules_of(start)
    limits = batch_limits(
        options.gpu,
        tokens=options.max_num_batched_tokens,
        sequences=options.max_num_seqs,
        max_model_len=options.max_context(model),
        huge_cards=rules.huge_cards,
    )
    shared = options.engine if options.engine is not None and options.engine.name in free_share.NAMES else None
    if shared is not None:  # one sequence: the sampler is no part of what these profile
        limits = BatchLimits(tokens=options.max_num_batched_tokens or limits.tokens, sequences=1)
    longest = options.max_context(model) or limits.tokens
    taken = vllm.estimates(replace(weights, model=model), options.gpu, start, limits, max_model_len=longest)
    weights_bytes = weights.bytes_per_gpu(options.parallel)
    loaded = None if weights_bytes is None else weights_bytes + taken.beside_weights.bytes
    share = options.gpu_memory_utilization or rules.gpu_memory_utilization
    if shared is not None:
        free = options.gpu.free_bytes
        taken, share = free_share.estimates(taken, shared, free_bytes=free, weights_bytes=loaded or 0), 1.0
    memory = budget(
        options.gpu,
        taken,
        weights_bytes=loaded,
        utilization=share,
        calibration=options.calibration,
        pool_bytes=options.engine.kv_cache_memory_bytes if options.engine else None,
    )
    return limits, memory


def _allocated(options: SizeOptions, gpu: Gpu, card: LlamaCppCard) -> tuple[BatchLimits, Budget]:
    start = card.plan.start
    memory = budget(
        gpu,
        card.estimates(),
        weights_bytes=card.weights_bytes,
        utilization=1.0,
        calibration=options.calibration,
        pool_bytes=None,
    )
    return BatchLimits(tokens=start.ubatch, sequences=start.slots), memory


def memory_start(options: SizeOptions) -> EngineOptions:
    """The start whose activations and runtime the budget has: vLLM's, of the release asked for, else the newest."""
    given = options.engine
    if given is None or given.name != VLLM:
        given = EngineOptions(name=VLLM, gpu=options.gpu)
    return replace(
        given, parallel=options.parallel, num_speculative_tokens=options.num_speculative_tokens, dtype=options.dtype
    )
