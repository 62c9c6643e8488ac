"""Requests that come while others run, through an engine to its end."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from kvtool.engine.engine import Engine
from kvtool.engine.sequence import SamplingParams, Sequence


@dataclass(frozen=True)
class Request:
    """Comes before step `arrival` of the engine."""

    prompt: list[int]
    max_tokens: int
    arrival: int = 0
    ignore_eos: bool = True


def run(engine: Engine, requests: list[Request]) -> list[Sequence]:
    """Sequences in the order of the requests; the cache is checked after every step, and empty of them at the end."""
    pending = deque(sorted(range(len(requests)), key=lambda index: requests[index].arrival))
    sequences: dict[int, Sequence] = {}
    step = 0
    while pending or not engine.scheduler.is_idle:
        while pending and (requests[pending[0]].arrival <= step or engine.scheduler.is_idle):
            request = requests[pending[0]]
            params = SamplingParams(max_tokens=request.max_tokens, ignore_eos=request.ignore_eos)
            sequences[pending.popleft()] = engine.add(request.prompt, params)
        stepped = engine.step()
        assert all(len(sequence.token_times_s) == sequence.num_output for sequence in stepped)
        engine.cache.check()
        step += 1
    assert engine.cache.counters().allocated_pages == 0
    return [sequences[index] for index in range(len(requests))]
