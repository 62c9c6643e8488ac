"""What must hold of any trace."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvtool.replay.accesses import Accesses
from kvtool.replay.ceilings import Ceilings
from kvtool.replay.curves import STACKS, Curve
from kvtool.replay.loops.fastest import core
from kvtool.replay.policies import policy_hits

prompts = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=30)


def made(requests: Sequence[Sequence[int]]) -> Accesses:
    lengths = np.array([len(ids) for ids in requests], dtype=np.int64)
    tree = core().tree()
    nodes = tree.add(np.array([block for ids in requests for block in ids], dtype=np.int64), lengths)
    count = len(requests)
    return Accesses(
        name="made", sha256="", format="mooncake", block_size=4, nodes=nodes,
        starts=np.concatenate(([0], np.cumsum(lengths))), parents=tree.parents(), lines=np.arange(1, count + 1),
        arrival_s=np.arange(count, dtype=np.float64), input_tokens=4 * lengths, output_tokens=lengths,
        shared_ids=0,
    )  # fmt: skip


@given(prompts, st.booleans(), st.integers(0, 2**32))
def test_lru_hits_never_fall_with_capacity(requests: list[list[int]], equal: bool, seed: int) -> None:
    accesses = made(requests)
    sizes = None if equal else np.random.default_rng(seed).integers(1, 9, len(accesses.parents))
    for policy in STACKS:
        curve = Curve(core(), accesses, policy, sizes=sizes, first=0)
        hits = [curve.at(capacity).hit_blocks for capacity in range(curve.full_capacity + 2)]
        assert hits == sorted(hits)
        assert hits[-1] == curve.at(None).hit_blocks


@given(prompts, st.integers(0, 40))
def test_optimal_is_at_least_every_policy(requests: list[list[int]], capacity: int) -> None:
    accesses = made(requests)
    following = core().next_requests(accesses.walk(), 0)
    hits = {
        policy: int(policy_hits(core(), policy, capacity, accesses, sizes=None, next_use=following).sum())
        for policy in ("optimal", "lru", "fifo", "lfu", "fifo-plain", "lfu-plain")
    }
    plain = Curve(core(), accesses, "lru-plain", sizes=None, first=0).at(capacity).hit_blocks
    assert hits["optimal"] >= max(*hits.values(), plain)
    ceiling = Ceilings(core(), accesses, sizes=None, first=0).at(capacity)
    assert ceiling.content >= ceiling.relaxed >= hits["optimal"] == ceiling.strict


@given(prompts)
def test_without_a_limit_every_policy_hits_the_content(requests: list[list[int]]) -> None:
    accesses = made(requests)
    content = Ceilings(core(), accesses, sizes=None, first=0).content
    assert content == len(accesses.nodes) - len(accesses.parents)
    following = core().next_requests(accesses.walk(), 0)
    for policy in ("optimal", "lru", "fifo", "lfu", "fifo-plain", "lfu-plain"):
        hits = policy_hits(core(), policy, len(accesses.parents), accesses, sizes=None, next_use=following)
        assert hits.sum() == content
