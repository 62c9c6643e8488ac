from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtool.cache import CacheManager
from kvtool.system.errors import KvtoolError
from kvtool.workloads import Request, fixed, random_arrivals, shared_prefix


def run_through(cache: CacheManager, request: Request) -> int:
    """Compute a prompt as an engine would; how many of its tokens were cached."""
    sequence = cache.open(request.prompt_ids)
    assert cache.reserve(sequence, len(request.prompt_ids))
    cache.commit(sequence, request.prompt_ids)
    cache.close(sequence)
    return sequence.cached_tokens


def test_fixed_prompts_have_their_lengths_and_come_back_with_their_seed() -> None:
    first = fixed(batch_size=4, input_len=100, output_len=7, vocab_size=50, seed=1)
    assert [(len(r.prompt_ids), r.output_len, r.arrival_s) for r in first] == [(100, 7, 0.0)] * 4
    assert first == fixed(batch_size=4, input_len=100, output_len=7, vocab_size=50, seed=1)
    assert first != fixed(batch_size=4, input_len=100, output_len=7, vocab_size=50, seed=2)
    assert all(0 <= token < 50 for request in first for token in request.prompt_ids)


def test_fixed_prompts_never_hit_each_other() -> None:
    cache = CacheManager(num_pages=1000, block_size=1)
    requests = fixed(batch_size=20, input_len=30, output_len=1, vocab_size=20, seed=0)
    assert [run_through(cache, request) for request in requests] == [0] * 20


@given(
    num_requests=st.integers(1, 6),
    input_len=st.integers(1, 60),
    hit_rate=st.floats(0, 1),
    block_size=st.sampled_from([1, 4, 16]),
    vocab_size=st.integers(7, 9),
    seed=st.integers(0, 5),
)
def test_the_cache_hits_exactly_what_the_workload_says(
    num_requests: int, input_len: int, hit_rate: float, block_size: int, vocab_size: int, seed: int
) -> None:
    workload = shared_prefix(
        num_requests=num_requests, input_len=input_len, output_len=1, hit_rate=hit_rate, block_size=block_size,
        vocab_size=vocab_size, seed=seed,
    )  # fmt: skip
    cache = CacheManager(num_pages=1000, block_size=block_size)
    if workload.priming is not None:
        run_through(cache, workload.priming)
    assert [run_through(cache, request) for request in workload.requests] == [workload.cached_len] * num_requests
    assert all(len(request.prompt_ids) == input_len for request in workload.requests)
    assert workload.hit_rate == workload.cached_len / input_len
    if hit_rate * input_len <= (input_len - 1) // block_size * block_size:
        assert abs(workload.hit_rate - hit_rate) * input_len <= block_size / 2 + 1e-6


def test_rates_that_whole_pages_allow_are_met_exactly() -> None:
    for hit_rate, cached_len in ((0, 0), (0.5, 512), (0.875, 896), (1, 1008)):
        workload = shared_prefix(
            num_requests=2, input_len=1024, output_len=1, hit_rate=hit_rate, block_size=16, vocab_size=100, seed=0
        )
        assert workload.cached_len == cached_len


def test_a_poisson_process_keeps_its_rate_and_its_seed() -> None:
    requests = fixed(batch_size=2000, input_len=1, output_len=1, vocab_size=2000, seed=0)
    arrived = random_arrivals(requests, rate_per_s=4, seed=0)
    times = [request.arrival_s for request in arrived]
    assert times[0] == 0
    assert times == sorted(times)
    assert times[-1] == pytest.approx(2000 / 4, rel=0.1)
    assert arrived == random_arrivals(requests, rate_per_s=4, seed=0)
    assert times != [request.arrival_s for request in random_arrivals(requests, rate_per_s=4, seed=1)]


def test_what_cannot_be_made_is_refused_in_one_line() -> None:
    with pytest.raises(KvtoolError, match="5 prompts cannot all begin differently with a vocabulary of 4 tokens"):
        fixed(batch_size=5, input_len=1, output_len=1, vocab_size=4, seed=0)
    with pytest.raises(KvtoolError, match="input len 0 must be at least 1"):
        fixed(batch_size=1, input_len=0, output_len=1, vocab_size=4, seed=0)
    with pytest.raises(KvtoolError, match=r"hit rate 1.5 must be from 0 to 1"):
        shared_prefix(num_requests=1, input_len=9, output_len=1, hit_rate=1.5, block_size=4, vocab_size=9, seed=0)
    for rate in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(KvtoolError, match="request rate"):
            random_arrivals([], rate_per_s=rate, seed=0)
