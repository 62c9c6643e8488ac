"""The ceilings against every choice there is, their order, and the word that follows from them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from kvtool.replay.ceilings import Ceiling, Ceilings, limited_by
from kvtool.replay.curves import Curve
from kvtool.replay.loops.core import Core
from kvtool.replay.policies import policy_hits
from tests.replay import naive


def test_the_exact_ceiling_is_the_best_of_all_choices(core: Core, tmp_path: Path) -> None:
    """Tried out on small traces, over all requests and over the last half; relaxed is Belady's MIN, block by block."""
    for seed in range(60):
        rng = random.Random(seed)
        requests = naive.random_requests(seed, count=rng.randint(3, 8), ids=rng.randint(1, 3), longest=4)
        accesses = naive.make(core, requests, tmp_path)
        trace = naive.paths(accesses)
        for first in (0, len(requests) // 2):
            ceilings = Ceilings(core, accesses, sizes=None, first=first)
            for capacity in range(5):
                found = ceilings.at(capacity)
                assert found.strict == naive.best(trace, capacity, first), (seed, first, capacity)
                if first == 0:
                    assert found.relaxed == naive.belady(trace, capacity)


@pytest.mark.parametrize("first", [0, 150])
def test_content_relaxed_strict_policy_in_this_order(core: Core, first: int, tmp_path: Path) -> None:
    accesses = naive.make(core, naive.random_requests(1, count=300, ids=6, longest=10), tmp_path)
    ceilings = Ceilings(core, accesses, sizes=None, first=first)
    following = core.next_requests(accesses.walk(), 0)
    curves = {name: Curve(core, accesses, name, sizes=None, first=first) for name in ("lru", "lru-plain")}
    for capacity in (0, 1, 5, 20, 80, 300, 2000):
        found = ceilings.at(capacity)
        assert found.strict is not None
        assert found.content >= found.relaxed >= found.strict
        replayed = [
            policy_hits(core, policy, capacity, accesses, sizes=None, next_use=following)[first:].sum()
            for policy in ("fifo", "lfu", "optimal", "fifo-plain", "lfu-plain")
        ]
        for hits in (*replayed, *(curve.at(capacity).hit_blocks for curve in curves.values())):
            assert found.strict >= hits
    assert ceilings.at(None) == Ceiling(found.content, found.content, found.content)
    assert found.content == curves["lru"].at(None).hit_blocks


def test_over_all_requests_the_optimal_policy_reaches_the_exact_ceiling(core: Core, tmp_path: Path) -> None:
    accesses = naive.make(core, naive.random_requests(2, count=300, ids=6, longest=10), tmp_path)
    ceilings = Ceilings(core, accesses, sizes=None, first=0)
    following = core.next_requests(accesses.walk(), 0)
    for capacity in (1, 5, 20, 80, 300):
        hits = policy_hits(core, "optimal", capacity, accesses, sizes=None, next_use=following)
        assert ceilings.at(capacity).strict == hits.sum()


def test_with_unequal_blocks_the_relaxed_ceiling_bounds_every_policy(core: Core, tmp_path: Path) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        accesses = naive.make(core, naive.random_requests(seed, count=60, ids=3, longest=6), tmp_path)
        sizes = np.array([rng.randint(1, 9) for _ in accesses.parents], dtype=np.int64)
        ceilings = Ceilings(core, accesses, sizes=sizes, first=30)
        following = core.next_requests(accesses.walk(), 0)
        for capacity in (0, 5, 20, 60, int(sizes.sum())):
            found = ceilings.at(capacity)
            assert found.strict is None
            assert found.content >= found.relaxed
            for policy in ("lru", "fifo", "lfu", "optimal", "fifo-plain", "lfu-plain"):
                hits = policy_hits(core, policy, capacity, accesses, sizes=sizes, next_use=following)
                assert found.relaxed >= hits[30:].sum()
        assert ceilings.at(int(sizes.sum())).relaxed == ceilings.content


def test_hits_in_multiples_have_a_lower_content_ceiling(core: Core, tmp_path: Path) -> None:
    accesses = naive.make(core, [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [1, 2, 3]], tmp_path)
    sizes = np.array([1, 5, 1, 5, 1], dtype=np.int64)
    assert Ceilings(core, accesses, sizes=sizes, first=0, match=2).content == 4 + 2


@pytest.mark.parametrize(
    ("hits", "ceiling", "word"),
    [
        (90, Ceiling(90, 90, 90), "none"),
        (10, Ceiling(90, 20, 20), "capacity"),
        (10, Ceiling(90, 80, 80), "policy"),
        (40, Ceiling(90, 80, None), "policy"),
        (40, Ceiling(90, 40, None), "capacity"),
    ],
)
def test_what_limits_is_the_larger_gap(hits: int, ceiling: Ceiling, word: str) -> None:
    assert limited_by(hits, ceiling) == word
