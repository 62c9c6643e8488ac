"""One start of the engine that was asked for, as the rows of a size need it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kvtool.catalog.model import Model
from kvtool.results import SizeEngine
from kvtool.sizing.engines import free_share, llama_cpp, sglang, vllm
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.versions import History
from kvtool.sizing.fit import Budget
from kvtool.system.errors import KvtoolError, did_you_mean
from kvtool.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRun:
    """`at(context)` describes the engine's plan, with the ledger of a request of `context` tokens; `holds(context,
    prefix)` is how many such requests its pools hold at once, that many tokens of theirs shared, of the `max_requests`
    that it runs. With a `refusal` it holds none. `block_size`: tokens of its smallest block, where it got so far.
    """

    options: EngineOptions
    at: Callable[[int], SizeEngine]
    holds: Callable[[int, int], float]
    max_requests: int
    block_size: int | None
    refusal: str | None
    assumptions: tuple[str, ...]


def run_engine(model: Model, options: EngineOptions, memory: Budget | None) -> EngineRun:
    """The plan for what was given of memory, else for the estimate. Raises KvtoolError where there is neither."""
    return ENGINES[options.name](model, options, memory)


def _run_vllm(model: Model, options: EngineOptions, memory: Budget | None) -> EngineRun:
    pool_bytes = _pool_bytes(model, options, memory.kv_pool_bytes if memory else None)
    plan = vllm.plan(model, options, pool_bytes=pool_bytes)
    doubt: tuple[str, ...] = ()
    if plan.refusal is not None and (most := _most_bytes(options, memory, pool_bytes)) > pool_bytes:
        larger = vllm.plan(model, options, pool_bytes=most)
        if larger.refusal is None:
            doubt, plan = (_within_margin(plan.refusal, most),), larger
    plan = _if_free(plan, options, memory)
    return EngineRun(
        options=options,
        at=lambda context: vllm.size_engine(plan, context=context),
        holds=lambda context, prefix: vllm.capacity(plan, context, shared_prefix=prefix),
        max_requests=plan.inputs.max_num_seqs,
        block_size=plan.block_size,
        refusal=plan.refusal,
        assumptions=(*doubt, *vllm.assumptions(plan, options), *_about_pool(options, memory)),
    )


def _if_free(plan: vllm.VllmPlan, options: EngineOptions, memory: Budget | None) -> vllm.VllmPlan:
    """The plan, or its refusal where other processes leave less of the card than vLLM asks for."""
    if options.gpu is None or memory is None:
        return plan
    share = options.gpu_memory_utilization or vllm.rules_of(options).gpu_memory_utilization
    try:
        vllm.check_free(options.gpu, share)
    except vllm.RefusedError as refused:
        return replace(plan, refusal=str(refused))
    return plan


def _run_sglang(model: Model, options: EngineOptions, memory: Budget | None) -> EngineRun:
    pool_bytes = _pool_bytes(model, options, sglang.estimate_pool_bytes(model, options, memory) if memory else None)
    plan = sglang.plan(model, options, pool_bytes=pool_bytes)
    return EngineRun(
        options=options,
        at=lambda context: sglang.size_engine(plan, context=context),
        holds=lambda context, prefix: sglang.capacity(plan, context, shared_prefix=prefix),
        max_requests=plan.allocation.max_running_requests if plan.allocation else 0,
        block_size=plan.allocation.flags.page_size if plan.allocation else None,
        refusal=plan.refusal,
        assumptions=(*sglang.assumptions(plan, options), *_about_pool(options, memory)),
    )


def _run_llama_cpp(model: Model, options: EngineOptions, memory: Budget | None) -> EngineRun:
    """llama.cpp or Ollama: its caches follow from its flags, whatever the memory."""
    plan = llama_cpp.plan_of(model, options)
    version = options.version or ("0.30 and later" if options.name == "ollama" else None)
    return EngineRun(
        options=options,
        at=lambda context: llama_cpp.size_engine(plan, name=options.name, version=version, context=context),
        holds=lambda context, prefix: llama_cpp.capacity(plan, context),
        max_requests=plan.start.slots,
        block_size=1 if plan.refusal is None else None,
        refusal=plan.refusal,
        assumptions=tuple(llama_cpp.assumptions(plan)),
    )


def _run_free_share(model: Model, options: EngineOptions, memory: Budget | None) -> EngineRun:
    """TensorRT-LLM or LMDeploy."""
    plan = free_share.plan(
        model, options, pool_bytes=_pool_bytes(model, options, memory.kv_pool_bytes if memory else None)
    )
    return EngineRun(
        options=options,
        at=lambda context: free_share.size_engine(plan, context=context),
        holds=lambda context, prefix: free_share.capacity(plan, context, shared_prefix=prefix),
        max_requests=options.max_num_seqs or plan.num_blocks,
        block_size=plan.block_size,
        refusal=plan.refusal,
        assumptions=(*free_share.assumptions(plan), *_about_pool(options, memory)),
    )


ENGINES: Mapping[str, Callable[[Model, EngineOptions, Budget | None], EngineRun]] = {
    "vllm": _run_vllm,
    "sglang": _run_sglang,
    **dict.fromkeys(free_share.NAMES, _run_free_share),
    "llama.cpp": _run_llama_cpp,
    "ollama": _run_llama_cpp,
}


HISTORIES: Mapping[str, History[Any]] = {"vllm": vllm.HISTORY, "sglang": sglang.HISTORY}
VERSIONS = {name: history.modelled for name, history in HISTORIES.items()} | {"ollama": "0.30"}


def _pool_bytes(model: Model, options: EngineOptions, estimated_bytes: int | None) -> int:
    """What one GPU has for caches: given, else estimated."""
    pool_bytes = estimated_bytes if options.kv_cache_memory_bytes is None else options.kv_cache_memory_bytes
    if pool_bytes is not None:
        return max(0, pool_bytes)
    if options.gpu is None:
        raise KvtoolError(f"--engine {options.name} needs --kv-cache-memory-bytes, as 40GiB, or --gpu")
    raise KvtoolError(
        f"--engine {options.name} on {options.gpu.name}: the weights of {model.id} are not known, so neither is what"
        " they leave: give --kv-cache-memory-bytes, as 40GiB"
    )


def _most_bytes(options: EngineOptions, memory: Budget | None, pool_bytes: int) -> int:
    """The largest pool that the estimate leaves open."""
    if options.kv_cache_memory_bytes is not None or memory is None:
        return pool_bytes
    return max(0, (memory.kv_pool_bytes or 0) + memory.margin_bytes)


def _within_margin(refusal: str, most: int) -> str:
    return (
        f"by the estimate alone it would not start ({refusal}); this is the plan of {format_bytes(most)}, the most "
        "that the margin leaves open"
    )


def _about_pool(options: EngineOptions, memory: Budget | None) -> Iterator[str]:
    """That the pool is no measurement, where it is none, and how far off it may be."""
    if options.kv_cache_memory_bytes is not None or memory is None or "kv_pool_bytes" in memory.measured:
        return
    yield (
        f"the engine's pool is an estimate that may be off by {format_bytes(memory.margin_bytes)}, and its plan by as "
        "much; an engine measures it at its start (--kv-cache-memory-bytes gives what it found)"
    )


def parse_engine(text: str) -> tuple[str, str | None]:
    """(name, version) of `vllm` or `sglang==0.6`. Raises KvtoolError."""
    name, _, version = text.strip().lower().partition("==")
    if name not in ENGINES:
        near = did_you_mean(name, ENGINES) or f": use one of {', '.join(ENGINES)}"
        raise KvtoolError(f"unknown engine {text!r}{near}")
    if version and name not in VERSIONS:
        raise KvtoolError(f"engine {text!r}: {name} is planned by one set of rules; write {name} alone")
    if version and not version[0].isdigit():
        raise KvtoolError(f"engine {text!r}: {version[:20]!r} is no version; write {name}=={VERSIONS[name]}")
    return name, version or None
