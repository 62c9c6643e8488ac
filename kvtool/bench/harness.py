"""Runs requests through an engine as they arrive, and makes samples of what came out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq

from kvtool.cache.retention import Retention
from kvtool.engine.engine import Engine
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.sequence import SamplingParams, Sequence
from kvtool.results import ColdStart, Memory, Sample
from kvtool.sizing.specs import CacheSpec
from kvtool.units import ceil_div
from kvtool.workloads import Request

Value = str | int | float | bool | None
"""An input of a case."""


class Client:
    """Submits requests as they come due, in seconds since it began, at most `concurrency` in flight.

    A request that the limit holds back is in from the moment it is submitted, as with a client that waits its turn.
    """

    def __init__(self, engine: Engine, concurrency: int | None, sleep: Callable[[float], None] = time.sleep) -> None:
        self._engine, self._concurrency, self._sleep = engine, concurrency, sleep
        self.start_s = engine.clock()

    def now_s(self) -> float:
        """Seconds since it began."""
        return self._engine.clock() - self.start_s

    def may_submit(self, due_s: float, in_flight: int) -> bool:
        """Whether what is due then may come, beside so many."""
        return (self._concurrency is None or in_flight < self._concurrency) and due_s <= self.now_s()

    def submit(
        self, prompt_ids: Seq[int], output_len: int, due_s: float, retention: Retention | None = None
    ) -> Sequence:
        """Queue a request that may come."""
        arrival_s = self.start_s + due_s if self._concurrency is None else None
        params = SamplingParams(max_tokens=output_len)
        return self._engine.add(list(prompt_ids), params, arrival_s=arrival_s, retention=retention)

    def rest(self, until_s: float) -> None:
        """Nothing runs until then."""
        self._sleep(max(0.0, until_s - self.now_s()))


def run_requests(engine: Engine, requests: Seq[Request], *, concurrency: int | None = None) -> list[Sequence]:
    """Submit each request at its arrival time, at most `concurrency` in flight, and step until all are done."""
    client = Client(engine, concurrency)
    pending = deque(sorted(requests, key=lambda request: request.arrival_s))
    submitted: list[Sequence] = []
    in_flight = 0
    while pending or in_flight:
        while pending and client.may_submit(pending[0].arrival_s, in_flight):
            request = pending.popleft()
            submitted.append(client.submit(request.prompt_ids, request.output_len, request.arrival_s))
            in_flight += 1
        if engine.scheduler.is_idle:
            client.rest(pending[0].arrival_s)
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
