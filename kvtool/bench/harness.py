"""Runs requests through an engine as they arrive, and makes samples of what came out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence as Seq

from kvtool.engine.engine import Engine
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.sequence import SamplingParams, Sequence
from kvtool.results import ColdStart, Memory, Sample
from kvtool.sizing.specs import CacheSpec
from kvtool.units import ceil_div
from kvtool.workloads import Request

Value = str | int | float | bool | None
"""An input of a case."""


def run_requests(engine: Engine, requests: Seq[Request], *, concurrency: int | None = None) -> list[Sequence]:
    """Submit each request at its arrival time, at most `concurrency` in flight, and step until all are done.

    A request that the limit holds back is in from the moment it is submitted, as with a client that waits its turn.
    """
    start_s = engine.clock()
    pending = deque(sorted(requests, key=lambda request: request.arrival_s))
    submitted: list[Sequence] = []
    in_flight = 0
    while pending or in_flight:
        while pending and (concurrency is None or in_flight < concurrency):
            due_s = start_s + pending[0].arrival_s
            if engine.clock() < due_s:
                break
            request = pending.popleft()
            arrival_s = due_s if concurrency is None else None
            params = SamplingParams(max_tokens=request.output_len)
            submitted.append(engine.add(list(request.prompt_ids), params, arrival_s=arrival_s))
            in_flight += 1
        if engine.scheduler.is_idle:
            time.sleep(max(0.0, start_s + pending[0].arrival_s - engine.clock()))
        else:
            in_flight -= sum(sequence.is_finished for sequence in engine.step())
    return submitted


def sample_of(sequence: Sequence, *, arm: str, iteration: int) -> Sample:
    """The sample of a finished sequence."""
    return Sample(
        arm=arm,
        iteration=iteration,
        ttft_s=sequence.ttft_s,
        e2e_s=sequence.e2e_s,
        itl_s=sequence.itl_s,
        output_tokens=len(sequence.output_ids),
        prompt_tokens=sequence.prompt_tokens,
        cached_tokens=sequence.cached_tokens or 0,
        load_s=sequence.load_s if sequence.page_keys else None,
    )


def cold_start_of(engine: Engine) -> ColdStart:
    """What the engine has done once so far, apart from its steps."""
    graphs = engine.pipeline.graphs if engine.pipeline else None
    return ColdStart(
        jit_s=engine.compiling.seconds,
        capture_s=graphs.capture_s if graphs else None,
        graphs=len(graphs) if graphs else None,
    )


def at_once(engine: Engine, num_requests: int, concurrency: int | None) -> int:
    """The most requests that decode together."""
    return min(num_requests, concurrency or num_requests, engine.scheduler.limits.max_num_seqs)


def stored_tokens(request: Request) -> int:
    """Tokens of a request in the cache at its longest: the last one out is never written."""
    return len(request.prompt_ids) + request.output_len - 1


def pages_for(requests: Seq[Request], block_size: int) -> int:
    """Pages that hold all these requests at their longest, sharing nothing."""
    return sum(ceil_div(stored_tokens(request), block_size) for request in requests)


def kv_bytes(specs: Seq[CacheSpec], requests: Seq[Request], block_size: int) -> tuple[int, int]:
    """What the specs say of these requests at their longest: bytes in whole pages, and bytes of the tokens alone."""
    lengths = [(len(request.prompt_ids), stored_tokens(request)) for request in requests]
    allocated = sum(spec.peak_bytes(*tokens, block_size) for spec in specs for tokens in lengths)
    stored = sum(spec.stored_bytes(stored_tokens(request)) for spec in specs for request in requests)
    return allocated, stored


def engine_memory(engine: Engine, requests: Seq[Request], *, peak_bytes: int | None) -> Memory:
    """What the specs predict for these requests, and what the engine held at its peak since its counters began."""
    predicted, stored = kv_bytes(engine.loaded.specs, requests, engine.loaded.config.block_size)
    allocated = engine.cache.counters().peak_pages * engine.pool.page_bytes
    return Memory(
        kv_predicted_bytes=predicted,
        kv_allocated_bytes=allocated,
        kv_pool_bytes=engine.pool.bytes,
        kv_waste_bytes=allocated - stored,
        peak_bytes=peak_bytes,
    )


def case_inputs(loaded: LoadedModel) -> dict[str, Value]:
    """What any case of this model needs to be run again."""
    config = loaded.config
    return {
        "model": loaded.model.id,
        "weights": config.weights,
        "dtype": loaded.dtype,
        "kv_cache_dtype": loaded.cache_format.name,
        "block_size": config.block_size,
        "num_layers": loaded.model.num_layers,
        "device": str(loaded.device),
        "backend": loaded.backend,
        "threads": loaded.num_threads,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "graphs": config.graphs and loaded.capturable,
    }
