"""Whatever is shared, kept, evicted or given way to: the tokens are those of a request that runs alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtool.cache.admission import ADMISSION
from kvtool.cache.eviction.eviction import EVICTION
from kvtool.cache.retention import Retention
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.preemption import PREEMPTION
from kvtool.engine.sequence import SamplingParams, Sequence
from tests.engine.conftest import SaveTiny
from tests.engine.running import as_it_is, engine_of, load, prompt

OUTPUT = 6
Alone = Callable[[tuple[int, ...]], list[int]]
ROOTS = [prompt(40, seed=seed) for seed in range(2)]


@pytest.fixture(scope="module")
def loaded(tiny: SaveTiny) -> LoadedModel:
    return load(tiny("llama-3-gqa").folder)


@pytest.fixture(scope="module")
def alone(loaded: LoadedModel) -> Alone:
    """What a prompt gives when nothing else runs, each computed once."""

    def run(tokens: tuple[int, ...]) -> list[int]:
        engine = engine_of(loaded, prefix_caching=False)
        sequence = engine.add(list(tokens), SamplingParams(max_tokens=OUTPUT))
        list(engine.run_until_idle())
        return sequence.output_ids

    return cache(run)


def prompt_of(root: int, shared: int, own: int) -> tuple[int, ...]:
    return (*ROOTS[root][:shared], *ROOTS[1 - root][:own])


prompts = st.builds(prompt_of, st.integers(0, 1), st.sampled_from([1, 7, 16, 24, 33, 40]), st.sampled_from([0, 1, 9]))
requests = st.lists(
    st.tuples(prompts, st.integers(0, 12), st.sampled_from([None, Retention(5), Retention(90, 2.0)])),
    min_size=2,
    max_size=6,
)


@settings(max_examples=120, deadline=None)
@given(
    requests=requests,
    block_size=st.sampled_from([1, 4, 16]),
    spare_pages=st.sampled_from([0, 1, 4, 30]),
    index=st.sampled_from(["hashed", *EVICTION]),
    admission=st.sampled_from(ADMISSION),
    preemption=st.sampled_from(sorted(PREEMPTION)),
    partial_hits=st.booleans(),
    budget=st.sampled_from([5, 8192]),
    fork=st.booleans(),
    ahead=st.booleans(),
)
def test_every_request_gives_the_tokens_that_it_gives_alone(
    loaded: LoadedModel,
    alone: Alone,
    requests: list[tuple[tuple[int, ...], int, Retention | None]],
    block_size: int,
    spare_pages: int,
    index: str,
    admission: str,
    preemption: str,
    partial_hits: bool,
    budget: int,
    fork: bool,
    ahead: bool,
) -> None:
    """`index` is "hashed", or the eviction policy of a radix tree. The pool is the smallest that can run, and little
    more."""
    longest = max(len(tokens) for tokens, _, _ in requests) + OUTPUT
    engine = engine_of(
        loaded,
        num_pages=-(-longest // block_size) + spare_pages,
        block_size=block_size,
        index="hashed" if index == "hashed" else "radix",
        eviction="lru" if index == "hashed" else index,
        admission=admission,
        preemption=preemption,
        partial_hits=partial_hits and index != "hashed",
        max_num_batched_tokens=budget,
        max_num_seqs=4,
        capture=as_it_is if ahead else None,
    )
    engine.keep_logits = False
    sequences: list[Sequence] = []
    waiting = sorted(requests, key=lambda request: request[1])
    for step in range(10_000):
        while waiting and (waiting[0][1] <= step or engine.scheduler.is_idle):
            tokens, _, retention = waiting.pop(0)
            sequences.append(engine.add(list(tokens), SamplingParams(max_tokens=OUTPUT), retention=retention))
            if fork and len(sequences) > 1:
                sequences += engine.fork(sequences[-2], 1)
        if engine.scheduler.is_idle:
            break
        engine.step()
        engine.cache.check()
    for sequence in sequences:
        assert sequence.output_ids == alone(tuple(sequence.token_ids[: sequence.prompt_tokens]))
    assert engine.cache.counters().allocated_pages == 0
