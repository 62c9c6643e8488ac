"""One replay at every capacity, against a naive replay at each."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from kvtool.replay.curves import STACKS, Curve
from kvtool.replay.loops.core import Core
from kvtool.replay.totals import totals
from tests.replay import naive


@pytest.mark.parametrize("policy", STACKS)
@pytest.mark.parametrize("equal", [True, False])
def test_one_pass_is_a_naive_replay_at_every_capacity(core: Core, policy: str, equal: bool, tmp_path: Path) -> None:
    """200 random capacities over 50 random traces, blocks of one size and of many."""
    for seed in range(50):
        rng = random.Random(seed)
        requests = naive.random_requests(seed, count=rng.randint(5, 25), ids=rng.randint(1, 4), longest=6)
        accesses = naive.make(core, requests, tmp_path)
        num_nodes = len(accesses.parents)
        sizes = None if equal else np.array([rng.randint(1, 9) for _ in range(num_nodes)], dtype=np.int64)
        each = [1] * num_nodes if sizes is None else sizes.tolist()
        curve = Curve(core, accesses, policy, sizes=sizes, first=0)
        trace, parents = naive.paths(accesses), accesses.parents.tolist()
        for capacity in [rng.randint(0, sum(each) + 2) for _ in range(4)]:
            if policy == "lru":
                expected = naive.leaves("lru", capacity, trace, parents, each)
            else:
                expected = naive.plain(policy, capacity, trace, each)
            assert curve.request_hits(capacity).tolist() == expected, (seed, capacity)
            assert curve.hit_blocks(np.array([capacity]))[0] == sum(expected)


@pytest.mark.parametrize("policy", STACKS)
def test_one_pass_is_the_replay_by_leaves(core: Core, policy: str, tmp_path: Path) -> None:
    """The same numbers as the policy's own loop, which takes capacities one by one."""
    accesses = naive.make(core, naive.random_requests(3, count=400, ids=5, longest=12), tmp_path)
    curve = Curve(core, accesses, "lru", sizes=None, first=0)
    for capacity in (0, 1, 2, 7, 30, 100, 400, 10_000):
        hits = core.leaves("lru", capacity, accesses.walk())
        assert curve.request_hits(capacity).tolist() == hits.tolist()


def test_hits_in_multiples_of_the_match_unit(core: Core, tmp_path: Path) -> None:
    """Where a state is kept with every third block, a hit ends there: the rest below it is computed again."""
    accesses = naive.make(core, naive.random_requests(5, count=60, ids=2, longest=11), tmp_path)
    plain = Curve(core, accesses, "lru", sizes=None, first=0)
    curve = Curve(core, accesses, "lru", sizes=None, first=0, match=3)
    for capacity in (*range(0, 60, 7), None):
        assert curve.request_hits(capacity).tolist() == (plain.request_hits(capacity) // 3 * 3).tolist()


def test_only_the_last_requests_count(core: Core, tmp_path: Path) -> None:
    accesses = naive.make(core, [[1, 2, 3], [1, 2, 4], [1, 2, 3, 5]], tmp_path)
    curve = Curve(core, accesses, "lru", sizes=None, first=2)
    assert curve.total_blocks == 4
    found = curve.at(None)
    assert (found.hit_blocks, found.hit_tokens, found.total_tokens) == (3, 12, 15)
    assert found.mean_request_token_hit_ratio == found.token_hit_ratio == 0.8
    assert curve.full_capacity == 4  # 1, 2 and 4 were used after 3
    assert curve.at(3).hit_blocks == 2


def test_the_last_block_has_what_is_left_of_the_prompt(core: Core, tmp_path: Path) -> None:
    """Prompts of 7 and 3 tokens in blocks of 4: whole hits are of 7 and 3 tokens, not of 8 and 4."""
    accesses = naive.make(core, [[1, 2], [1, 2], [1]], tmp_path)
    found = totals(accesses, np.array([0, 2, 1]), 0)
    assert (found.hit_blocks, found.total_blocks, found.hit_tokens, found.total_tokens) == (3, 5, 10, 17)
    assert found.mean_request_token_hit_ratio == pytest.approx((0 + 1 + 1) / 3)


def test_the_knee_is_the_point_above_the_line(core: Core, tmp_path: Path) -> None:
    """Nine of ten hits need one block, the tenth needs eleven: the knee is at one."""
    requests = [[100]] * 10 + [[n] for n in range(10)] + [[100]]
    accesses = naive.make(core, requests, tmp_path)
    curve = Curve(core, accesses, "lru", sizes=None, first=0)
    knee = curve.knee()
    assert knee is not None
    assert (knee.capacity, curve.full_capacity) == (1, 11)
    assert knee.block_hit_ratio == pytest.approx(9 / 21)
    assert Curve(core, naive.make(core, [[1], [2]], tmp_path), "lru", sizes=None, first=0).knee() is None
