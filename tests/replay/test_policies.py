"""Every policy against its definition, and the loops in C against those in Python."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from kvtool.cache.eviction.eviction import EVICTION
from kvtool.replay.accesses import read_accesses
from kvtool.replay.loops.core import LEAF_POLICIES, PLAIN_POLICIES, Core
from kvtool.replay.loops.native import native
from kvtool.replay.loops.twin import PythonCore
from kvtool.replay.policies import POLICIES, check_policies, policy_hits
from kvtool.replay.tree import tree_hits
from kvtool.system.errors import KvtoolError
from kvtool.workloads.traces import open_trace
from tests.replay import naive


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("policy", [*LEAF_POLICIES, *PLAIN_POLICIES])
def test_a_policy_is_what_its_definition_says(core: Core, policy: str, equal: bool, tmp_path: Path) -> None:
    for seed in range(25):
        rng = random.Random(seed)
        requests = naive.random_requests(seed, count=rng.randint(4, 20), ids=rng.randint(1, 3), longest=5)
        accesses = naive.make(core, requests, tmp_path)
        num_nodes = len(accesses.parents)
        sizes = None if equal else np.array([rng.randint(1, 6) for _ in range(num_nodes)], dtype=np.int64)
        each = [1] * num_nodes if sizes is None else sizes.tolist()
        following = core.next_requests(accesses.walk(), 0)
        for capacity in (0, 1, rng.randint(1, sum(each)), sum(each)):
            hits = policy_hits(core, policy, capacity, accesses, sizes=sizes, next_use=following)
            trace = naive.paths(accesses)
            if policy in PLAIN_POLICIES:
                expected = naive.plain(policy, capacity, trace, each)
            else:
                expected = naive.leaves(policy, capacity, trace, accesses.parents.tolist(), each)
            assert hits.tolist() == expected, (seed, capacity)


def test_the_two_loops_give_the_same_numbers(tmp_path: Path) -> None:
    """On a trace too long for the naive replays, blocks of one size and of many."""
    built, python = native(), PythonCore()
    if built is None:
        pytest.skip("there is no gcc here")
    requests = naive.random_requests(11, count=1500, ids=40, longest=20)
    a, b = naive.make(built, requests, tmp_path), naive.make(python, requests, tmp_path)
    for name in ("nodes", "starts", "parents", "lines", "arrival_s", "input_tokens"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    num_nodes = len(a.parents)
    for sizes in (None, np.random.default_rng(0).integers(1, 50, num_nodes)):
        room = num_nodes if sizes is None else int(sizes.sum())
        for tail_last in (False, True):
            pair = [c.lru_distances(a.walk(sizes), tail_last=tail_last) for c in (built, python)]
            assert np.array_equal(*pair)
        following = [c.next_requests(a.walk(), 0) for c in (built, python)]
        counted = [c.next_requests(a.walk(), 700) for c in (built, python)]
        assert np.array_equal(*following)
        assert np.array_equal(*counted)
        for capacity in (room // 50, room // 10, room // 2):
            for policy in (*LEAF_POLICIES, *PLAIN_POLICIES):
                hits = [
                    policy_hits(c, policy, capacity, a, sizes=sizes, next_use=following[0]) for c in (built, python)
                ]
                assert np.array_equal(*hits), (policy, capacity)
            most = [c.minimum(capacity, a.walk(), counted[0]) for c in (built, python)]
            assert np.array_equal(*most)


@pytest.mark.parametrize("policy", [name for name in EVICTION if name in LEAF_POLICIES])
def test_the_engines_own_tree_and_policies_hit_the_same(core: Core, policy: str, tmp_path: Path) -> None:
    """What is replayed fast is what the engine evicts: the same classes, block for block, at every capacity."""
    accesses = naive.make(core, naive.random_requests(13, count=500, ids=4, longest=12), tmp_path)
    for capacity in (0, 1, 3, 12, 50, 200, len(accesses.parents)):
        hits = policy_hits(core, policy, capacity, accesses, sizes=None, next_use=None)
        assert tree_hits(policy, capacity, accesses).tolist() == hits.tolist(), capacity


def test_a_replay_keeps_what_its_requests_call_important(core: Core, tmp_path: Path) -> None:
    """Room for two prompts of one block. The first outlives the second by its priority, until its second is over."""
    path = tmp_path / "trace.jsonl"

    def hits(policy: str, duration_ms: int) -> list[int]:
        lines = [
            {"timestamp": 500 * place, "input_length": 4, "hash_ids": [block], "block_size": 4}
            for place, block in enumerate([1, 2, 3, 1, 4, 2])
        ]
        lines[0] |= {"priority": 90, "priority_duration_ms": duration_ms}
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return tree_hits(policy, 2, read_accesses(open_trace(path), core)).tolist()

    assert hits("lru", 10_000) == [0, 0, 0, 0, 0, 0]
    assert hits("priority", 10_000) == [0, 0, 0, 1, 0, 0]
    assert hits("priority", 900) == [0, 0, 0, 0, 0, 0]


def test_ids_of_any_sign_and_chains_that_break(core: Core) -> None:
    """An id below two parents is two nodes; the numbers are given in the order of first sight."""
    tree = core.tree()
    ids = np.array([7, -3, 2**62, -3, 7, 7, -3], dtype=np.int64)
    nodes = tree.add(ids, np.array([3, 0, 2, 2], dtype=np.int64))
    assert nodes.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert tree.parents().tolist() == [-1, 0, 1, -1, 3]
    assert tree.ids().tolist() == [7, -3, 2**62, -3, 7]


def test_without_a_compiler_python_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert native() is None


def test_a_wrong_policy_names_those_there_are() -> None:
    with pytest.raises(KvtoolError, match=r"policy 'lruu' is not one of .*: did you mean lru"):
        check_policies(("lruu",))
    check_policies(tuple(POLICIES))
