"""Allocators under the same requests: what a reader can count by hand, and what a paper published."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from kvtool.bench.cases.fragmentation import FragmentationPart
from kvtool.bench.fragmentation.allocators import Contiguous, Grown, Paged
from kvtool.bench.fragmentation.arrivals import SHAREGPT_OUTPUT, SHAREGPT_PROMPT, Request, chat_requests
from kvtool.bench.fragmentation.holes import PLACEMENTS, Buddy, FirstFit
from kvtool.bench.fragmentation.run import run_requests
from kvtool.results import FragmentationCase
from kvtool.system.errors import KvtoolError

TOKEN_BYTES = 3


def request(number: int, prompt: int, output: int, prefix: int = 0) -> Request:
    return Request(number, prompt, output, group=0, prefix_tokens=prefix)


@pytest.mark.parametrize("kind", PLACEMENTS.values())
def test_pieces_never_overlap_and_all_comes_back(kind: type[FirstFit] | type[Buddy]) -> None:
    rng, memory, held = Random(0), kind(1000), {}
    whole = memory.free_tokens
    for _ in range(2000):
        if held and rng.random() < 0.5:
            memory.free(_taken(held, rng))
            continue
        size = rng.randint(1, 200)
        offset = memory.place(size)
        if offset is not None:
            held[offset] = memory.size_of(offset)
            assert held[offset] >= size
        ends = sorted((start, start + length) for start, length in held.items())
        assert all(a[1] <= b[0] for a, b in pairwise(ends))
        assert memory.free_tokens + sum(held.values()) == whole
    for offset in held:
        memory.free(offset)
    assert memory.free_tokens == whole
    assert memory.place(512) is not None


def _taken(held: dict[int, int], rng: Random) -> int:
    offset = rng.choice(list(held))
    del held[offset]
    return offset


def test_what_is_free_but_in_no_hole_is_external() -> None:
    """Room for 10: pieces of 3, 2 and 3 leave 2; the one of 2 goes, and a piece of 4 fits the 4 free, but no hole."""
    requests = [request(0, 1, 2), request(1, 1, 1), request(2, 1, 2), request(3, 1, 3)]
    outcome = run_requests(Contiguous(FirstFit(10), lambda each: each.total_tokens), requests, 10)
    assert outcome.largest_batch == 3
    assert outcome.external_sum == 4
    assert outcome.completed_tokens == 3 + 2 + 3 + 4


def test_too_little_reserved_interrupts_and_ends_in_the_same_tokens() -> None:
    outcome = run_requests(Contiguous(FirstFit(64), lambda each: 8), [request(0, 4, 20)], 64)
    assert (outcome.interrupted, outcome.refused, outcome.completed_tokens) == (2, 0, 24)  # 8, 16, then 32


def test_what_never_fits_is_refused() -> None:
    assert run_requests(Contiguous(FirstFit(64), lambda each: 100), [request(0, 4, 20)], 64).refused == 1
    assert run_requests(Paged(32, 16, shares=False), [request(0, 40, 2), request(1, 4, 2)], 32).refused == 1


def test_a_grown_piece_is_there_twice_while_it_is_copied() -> None:
    """Of 10 and 11 tokens one copy each: a pool of 20 has no room for both, one of 40 wherever they lie."""
    assert run_requests(Grown(FirstFit(40)), [request(0, 2, 9)], 40).completed_tokens == 11
    assert run_requests(Grown(FirstFit(20)), [request(0, 2, 9)], 20).refused == 1


def test_shared_pages_count_once() -> None:
    """Two prompts of 40 tokens begin with the same 32, two pages of 16: 4 pages in all, 48 tokens in them."""
    allocator = Paged(160, 16, shares=True)
    both = [request(n, 40, 2, prefix=32) for n in range(2)]
    for each in both:
        each.tokens = each.prompt_tokens
        assert allocator.admit(each)
    assert allocator.reserved == 64
    assert allocator.used(both) == 48
    assert [owner for _, _, owner in allocator.pieces()] == [-1, -1, 0, 1]


@pytest.fixture(scope="module")
def cases() -> dict[str, FragmentationCase]:
    part = FragmentationPart(num_prompts=60, pool_tokens=4096, max_model_len=1024, prefix_len=64)
    return {arm: part.case_of(arm, TOKEN_BYTES, 16, {}, seed=1) for arm in part.arms(16)}


def test_every_allocator_ends_in_the_same_tokens(cases: dict[str, FragmentationCase]) -> None:
    assert len({case.fragmentation.completed_tokens for case in cases.values()}) == 1
    assert all(case.check.outputs_equal for case in cases.values())


def test_what_is_held_is_on_the_map_and_adds_up(cases: dict[str, FragmentationCase]) -> None:
    for case in cases.values():
        found = case.fragmentation
        assert found.reserved_bytes == found.used_bytes + found.internal_bytes == sum(size for _, size, _ in found.map)
        ends = [(offset, offset + size) for offset, size, _ in found.map]
        assert all(a[1] <= b[0] for a, b in pairwise(ends))
        assert ends[-1][1] <= found.pool_bytes


def test_the_waste_of_pages_is_their_tails() -> None:
    """Of each running request the empty slots of its last page, and nothing else: shared pages are whole."""
    for shares in (False, True):
        allocator = Paged(4096, 16, shares=shares)
        running = chat_requests(9, max_tokens=400, prefix_tokens=64, seed=2)
        for each in running:
            each.tokens = each.prompt_tokens
            assert allocator.admit(each)
        for _ in range(30):
            for each in running:
                assert allocator.grow(each)
                each.tokens += 1
            assert allocator.reserved - allocator.used(running) == sum(-each.tokens % 16 for each in running)


def test_sharing_holds_more_requests_than_pages_and_pages_more_than_pieces(cases: dict[str, FragmentationCase]) -> None:
    batches = [
        cases[arm].fragmentation.largest_batch for arm in ("contiguous-max", "contiguous-pow2", "paged", "shared")
    ]
    assert batches == sorted(batches)
    assert batches[0] == 4096 // 1024


@pytest.mark.parametrize(
    ("reserve", "published"),
    [("contiguous-max", 0.204), ("contiguous-pow2", 0.268), ("contiguous-exact", 0.382), ("paged", 0.963)],
)
def test_used_memory_is_what_the_paper_on_vllm_measured(reserve: str, published: float) -> None:
    """Kwon et al. 2023 (arXiv 2309.06180), figure 2: OPT-13B on an A100 (15.7k slots, table 1), 2,048 tokens at most,
    ShareGPT's lengths, buddy allocation. Lengths here have ShareGPT's means alone."""
    part = FragmentationPart(num_prompts=150, pool_tokens=15700, placement="buddy")
    used = part.case_of(reserve, TOKEN_BYTES, 16, {}, seed=0).fragmentation.used_ratio
    assert used == pytest.approx(published, abs=0.04)


def test_lengths_have_the_means_that_were_published() -> None:
    found = chat_requests(4000, max_tokens=1 << 20, prefix_tokens=0, seed=0)
    assert sum(each.prompt_tokens for each in found) / 4000 == pytest.approx(SHAREGPT_PROMPT, rel=0.05)
    assert sum(each.output_tokens for each in found) / 4000 == pytest.approx(SHAREGPT_OUTPUT, rel=0.05)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"placement": "best"}, "unknown placement 'best'"),
        ({"prefix_len": 4096}, "a prefix of 4096"),
        ({"num_prompts": 0}, "count 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        FragmentationPart(**given)
    with pytest.raises(KvtoolError, match="no page of 16"):
        FragmentationPart(pool_tokens=8).arms(16)
