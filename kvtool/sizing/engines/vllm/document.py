"""A plan of vLLM's as the `engine` part of a size row, and what it rests on in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from kvtool.catalog.model import SharedAttention
from kvtool.results import SizeEngine
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.versions import EXTRAPOLATED
from kvtool.sizing.engines.vllm.grouping import Group
from kvtool.sizing.engines.vllm.inputs import (
    ASSUMED_GPU,
    OTHER_DTYPES,
    Inputs,
    has_compressed,
    has_state,
    ignores_cache_dtype,
)
from kvtool.sizing.engines.vllm.ledger import ledger
from kvtool.sizing.engines.vllm.plan import VllmPlan
from kvtool.sizing.engines.vllm.versions import HISTORY
from kvtool.units import ceil_div

NAME = "vllm"


def size_engine(plan: VllmPlan, *, context: int | None = None) -> SizeEngine:
    """The plan in the words that all engines share. The ledger is that of a request of `context` tokens, at most the
    longest that vLLM takes; without one, of the longest.
    """
    inputs = plan.inputs
    longest = plan.max_model_len or inputs.max_model_len
    return SizeEngine(
        name=NAME,
        version=inputs.version,
        standing=HISTORY.standing(inputs.version),
        block_size=plan.block_size,
        bytes_per_block=_by_stage(plan.bytes_per_block),
        num_blocks=plan.num_blocks,
        blocks_per_request=plan.blocks_per_request,
        max_concurrency=plan.max_concurrency,
        gpu_kv_cache_tokens=plan.gpu_kv_cache_tokens,
        log_line=plan.log_line,
        groups=[_group(group, longest, inputs) for group in plan.groups] or None,
        refusal=plan.refusal,
        ledger=[asdict(term) for term in ledger(plan, min(context or longest, longest))] if plan.groups else None,
        exact_given_pool=not any(inexact(plan)) and HISTORY.standing(inputs.version) != EXTRAPOLATED,
        scheduler_block_size=plan.scheduler_block_size,
        max_model_len=longest,
        estimated_max_model_len=plan.estimated_max_model_len,
        max_num_batched_tokens=inputs.max_num_batched_tokens,
        max_num_seqs=inputs.max_num_seqs,
        kv_tp_replicas=plan.kv_tp_replicas if plan.groups else None,
        pool_bytes=plan.pool_bytes,
        bytes_needed=_by_stage(plan.bytes_needed),
        fixed_bytes_per_request=_fixed_bytes(plan, longest) if plan.groups else None,
        slope_bytes_per_token=_slope_bytes(plan) if plan.groups else None,
    )


def _by_stage(sizes: tuple[int, ...]) -> int | list[int] | None:
    """One number where all stages have the same."""
    if not sizes:
        return None
    return sizes[0] if len(set(sizes)) == 1 else list(sizes)


def _group(group: Group, tokens: int, inputs: Inputs) -> dict[str, Any]:
    pages = sorted({cache.page_bytes for cache in group.layers})
    return {
        "kind": group.kind,
        "layer_kinds": sorted({cache.kind for cache in group.layers}),
        "layers": len(group.layers),
        "layer_indices": _ranges([cache.layer for cache in group.layers]),
        "block_size": group.block_size,
        "page_size_bytes": pages[0] if len(pages) == 1 else pages,
        "page_size_bytes_total": group.page_bytes,
        "blocks_per_request": group.blocks(tokens, inputs),
    }


def _ranges(indices: list[int]) -> str:
    """`0-2,5*2`: layers 0 to 2, and layer 5 with two caches."""
    runs: list[tuple[int, int, int]] = []
    for index, count in sorted(Counter(indices).items()):
        if runs and runs[-1][1] == index - 1 and runs[-1][2] == count:
            runs[-1] = (runs[-1][0], index, count)
        else:
            runs.append((index, index, count))
    return ",".join(
        (f"{first}" if first == last else f"{first}-{last}") + (f"*{count}" if count > 1 else "")
        for first, last, count in runs
    )


def _fixed_bytes(plan: VllmPlan, tokens: int) -> int:
    """What a long request takes whatever its length, on a GPU of the fullest stage: full windows, states, encoders."""
    blocks = sum(group.blocks(tokens, plan.inputs) for group in plan.groups if not group.grows)
    return blocks * max(plan.bytes_per_block)


def _slope_bytes(plan: VllmPlan) -> int:
    """What one more token takes on a GPU of the fullest stage, in the long run, rounded up."""
    dcp = plan.inputs.parallel.dcp
    return sum(ceil_div(max(plan.bytes_per_block), group.block_size * dcp) for group in plan.groups if group.grows)


def inexact(plan: VllmPlan) -> Iterator[str]:
    """Why the plan may differ from what vLLM would do, given the same pool."""
    inputs = plan.inputs
    sm, name = inputs.capability, inputs.cache_format.name
    if sm is None:
        yield f"{inputs.gpu.name}: vLLM's kernels for it are not modelled; block sizes are those of an NVIDIA card"
    elif sm >= 100:
        yield f"{inputs.gpu.name}: which kernels vLLM picks on Blackwell is read from its source, not checked"
    elif sm < 80 or (sm < 90 and name.startswith("fp8") and not has_compressed(inputs.model)):
        yield f"{inputs.gpu.name}: which kernels vLLM picks for a {name} cache there is not checked"
    if name in OTHER_DTYPES:
        yield f"how vLLM lays out a {name} cache in blocks is not modelled exactly"
    if has_compressed(inputs.model) and inputs.block_size not in (None, 128, 256):
        yield f"--block-size {inputs.block_size}: how vLLM aligns such blocks of DeepSeek-V4 is not modelled"
    shared = [layer.cache for layer in inputs.model.layers if isinstance(layer.cache, SharedAttention)]
    if inputs.parallel.pp > 1 and any(cache.source_layer is None for cache in shared):
        yield "which layers share a cache is not known: vLLM refuses pipeline stages that come between them"


def assumptions(plan: VllmPlan, options: EngineOptions) -> Iterator[str]:
    """What the plan takes for given, and what vLLM would warn of."""
    inputs = plan.inputs
    if (caveat := HISTORY.caveat(options.version)) is not None:
        yield caveat
    if options.gpu is None:
        yield f"vLLM's defaults and block sizes are those on one {ASSUMED_GPU}: --gpu names another card"
    yield from (f"the vLLM plan is approximate: {reason}" for reason in inexact(plan))
    if ignores_cache_dtype(inputs.model):
        yield f"vLLM keeps the cache of {inputs.model.architecture} in the model's dtype whatever --kv-cache-dtype says"
    yield from _about_length(inputs)
    yield from _about_states(plan, options)


def _about_length(inputs: Inputs) -> Iterator[str]:
    longest = inputs.model.max_position_embeddings
    if longest is not None and inputs.max_model_len > longest:
        yield (
            f"--max-model-len {inputs.max_model_len:,} is more than the {longest:,} positions of {inputs.model.id}: "
            "vLLM may ask for VLLM_ALLOW_LONG_MAX_MODEL_LEN=1"
        )


def _about_states(plan: VllmPlan, options: EngineOptions) -> Iterator[str]:
    inputs = plan.inputs
    if not has_state(inputs.model):
        return
    if options.mamba_cache_mode == "all" or (options.mamba_cache_mode == "none" and inputs.aligned_state):
        yield f"--mamba-cache-mode {options.mamba_cache_mode}: with prefix caching vLLM takes align for these models"
    if options.mamba_cache_mode in ("align", "all") and not inputs.aligned_state:
        yield f"--mamba-cache-mode {options.mamba_cache_mode}: without prefix caching vLLM takes none"
    if plan.log_line and plan.num_blocks is not None and inputs.max_num_seqs > plan.num_blocks:
        yield (
            f"vLLM will fail to capture its CUDA graphs: max_num_seqs ({inputs.max_num_seqs}) exceeds available Mamba "
            f"cache blocks ({plan.num_blocks}); give --max-num-seqs {plan.num_blocks} or less"
        )
