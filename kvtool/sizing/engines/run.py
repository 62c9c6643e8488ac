"""One start of the engine that was asked for, as the rows of a size need it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvtool.catalog.model import Model
from kvtool.errors import KvtoolError, did_you_mean
from kvtool.results import SizeEngine
from kvtool.sizing.engines import vllm
from kvtool.sizing.engines.options import EngineOptions

ENGINES = ("vllm",)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRun:
    """`at(context)` describes the engine's plan, with the ledger of a request of `context` tokens."""

    options: EngineOptions
    at: Callable[[int], SizeEngine]
    assumptions: tuple[str, ...]


def run_engine(model: Model, options: EngineOptions, *, estimated_pool_bytes: int | None) -> EngineRun:
    """The plan for what was given of memory, else for the estimate. Raises KvtoolError where there is neither."""
    pool_bytes = options.kv_cache_memory_bytes
    if pool_bytes is None:
        pool_bytes = estimated_pool_bytes
    if pool_bytes is None:
        if options.gpu is None:
            raise KvtoolError(f"--engine {options.name} needs --kv-cache-memory-bytes, as 40GiB, or --gpu")
        raise KvtoolError(
            f"--engine {options.name} on {options.gpu.name}: the weights of {model.id} are not known, so neither is "
            "what they leave: give --kv-cache-memory-bytes, as 40GiB"
        )
    plan = vllm.plan(model, options, pool_bytes=max(0, pool_bytes))
    return EngineRun(
        options=options,
        at=lambda context: vllm.size_engine(plan, context=context),
        assumptions=tuple(vllm.assumptions(plan, options)),
    )


def parse_engine(text: str) -> tuple[str, str | None]:
    """(name, version) of `vllm` or `vllm==0.34`. Raises KvtoolError."""
    name, _, version = text.strip().lower().partition("==")
    if name not in ENGINES:
        near = did_you_mean(name, ENGINES) or f": use one of {', '.join(ENGINES)}"
        raise KvtoolError(f"unknown engine {text!r}{near}")
    return name, version or None
