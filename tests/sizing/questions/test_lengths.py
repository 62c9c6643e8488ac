from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from kvtool.results import SizeLengths
from kvtool.sizing.fit import Budget
from kvtool.sizing.formats import CACHE_FORMATS
from kvtool.sizing.layers import state_format
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.questions import lengths as lengths_module
from kvtool.sizing.questions.lengths import Lengths, fitting_requests
from kvtool.sizing.usage import gpu_cache
from kvtool.system.errors import KvtoolError
from tests.sizing.example import LLAMA_8B

PAGE = 16 * 131_072  # bytes of 16 tokens


def fitting(
    tokens: Sequence[int],
    pages: float,
    *,
    parallel: Parallel | None = None,
    prefix: int = 0,
    longest: int | None = None,
) -> SizeLengths:
    memory = Budget(
        memory_bytes=0, usable_bytes=0, weights_bytes=0, activation_bytes=0, reserve_bytes=-round(pages * PAGE)
    )
    cache = gpu_cache(
        LLAMA_8B,
        CACHE_FORMATS["bf16"],
        parallel=parallel or Parallel(),
        block_size=16,
        state=state_format(LLAMA_8B),
    )
    lengths = Lengths(source="by hand", tokens=tuple(sorted(tokens)), requests=len(tokens))
    return fitting_requests(lengths, memory, cache, shared_prefix=prefix, longest=longest)


def counts(found: SizeLengths) -> tuple[int, int, int]:
    return found.expected_requests, found.likely_requests, found.worst_case_requests


def test_one_or_two_pages_by_hand() -> None:
    """Six requests of 1.5 pages fit ten pages on average, but 7 times of 64 they take 11 or 12."""
    assert counts(fitting([16, 32], 10)) == (6, 5, 5)


@pytest.mark.parametrize("pages", [40, 333, 1000])
def test_the_likely_number_is_the_binomials(pages: int) -> None:
    def stays_within(requests: int) -> float:
        return sum(math.comb(requests, twos) for twos in range(pages - requests + 1)) / 2**requests

    likely = fitting([16, 32], pages).likely_requests
    assert stays_within(likely) >= 0.99 > stays_within(likely + 1)


def test_equal_lengths_leave_nothing_to_chance() -> None:
    assert counts(fitting([100], 70)) == (10, 10, 10)
    assert counts(fitting([100], 69.9)) == (9, 9, 9)


def test_a_coarse_grid_keeps_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [16 * (1 + i * i % 97) for i in range(500)]
    exact = fitting(tokens, 20_000)
    monkeypatch.setattr(lengths_module, "MAX_STEPS", 3000)
    coarse = fitting(tokens, 20_000)
    assert "13.33 MiB" in coarse.method
    assert coarse.likely_requests == pytest.approx(exact.likely_requests, rel=0.005)
    assert coarse.expected_requests == exact.expected_requests


def test_many_requests_come_near_to_a_normal_distribution() -> None:
    tokens = [16 * (1 + i % 40) for i in range(400)]
    mean = sum(range(1, 41)) / 40
    deviation = math.sqrt((40**2 - 1) / 12)
    likely = fitting(tokens, 100_000).likely_requests
    assert likely * mean + 2.3263 * deviation * math.sqrt(likely) == pytest.approx(100_000, rel=2e-4)


def test_a_shared_prefix_is_held_once() -> None:
    assert counts(fitting([32, 48], 11, prefix=16)) == counts(fitting([16, 32], 10))


def test_a_request_no_longer_than_the_prefix_adds_nothing() -> None:
    assert counts(fitting([16], 1, prefix=16))[0] == 1 << 24


def test_layouts_hold_what_their_parts_hold() -> None:
    one = counts(fitting([16, 32], 50))
    assert counts(fitting([16, 32], 25, parallel=Parallel(tp=2))) == one
    assert counts(fitting([16, 32], 25, parallel=Parallel(pp=2))) == one
    replicas = fitting([16, 32], 50, parallel=Parallel(dp=3))
    assert counts(replicas)[:2] == (3 * one[0], 3 * one[1])
    assert replicas.method.endswith("of each of 3 replicas")


def test_no_room_holds_nothing() -> None:
    assert counts(fitting([16], 0.5)) == (0, 0, 0)
    assert counts(fitting([32], 0.5, prefix=16)) == (0, 0, 0)


def test_requests_beyond_the_model_are_left_out_and_told() -> None:
    found = fitting([16, 32, 4000], 10, longest=1000)
    assert (counts(found), found.requests, found.max_tokens) == ((6, 5, 5), 2, 32)
    assert "33.33% longer than 1,000 tokens left out" in found.source
    with pytest.raises(KvtoolError, match="every request is longer than the 1,000 tokens"):
        fitting([4000], 10, longest=1000)


def test_figures_of_the_lengths() -> None:
    found = fitting([16 * i for i in range(1, 101)], 1000)
    assert (found.p50_tokens, found.p95_tokens, found.max_tokens) == (800, 1520, 1600)
    assert found.mean_tokens == 808


def test_a_pool_that_is_not_known_is_refused() -> None:
    memory = Budget(memory_bytes=1, usable_bytes=1, weights_bytes=None, activation_bytes=0, reserve_bytes=0)
    cache = gpu_cache(LLAMA_8B, CACHE_FORMATS["bf16"], parallel=Parallel(), block_size=16, state=state_format(LLAMA_8B))
    with pytest.raises(KvtoolError, match="needs the bytes of the weights"):
        fitting_requests(Lengths(source="", tokens=(1,), requests=1), memory, cache, shared_prefix=0, longest=None)
    with pytest.raises(KvtoolError, match="--lengths is about the memory of a card"):
        SizeOptions(lengths=Lengths(source="", tokens=(1,), requests=1))
