"""Many replays of one trace, side by side on all cores through joblib where that is worth its start."""

from __future__ import annotations

from kvtool.replay.accesses import Accesses
from kvtool.replay.loops.core import LEAF_POLICIES, PLAIN_POLICIES, Core, IntArray, NodeArray
from kvtool.replay.loops.fastest import core
from kvtool.replay.policies import policy_hits

Point = tuple[str, int]  # policy and capacity
COMPILED_BLOCKS_A_SECOND, PYTHON_BLOCKS_A_SECOND = 50_000_000, 500_000
WORTH_S = 1.0  # joblib takes a good part of it to import and to start


def sweep(
    loops: Core, points: list[Point], accesses: Accesses, sizes: IntArray | None, jobs: int
) -> dict[Point, IntArray]:
    """Blocks that each request hits, for each policy and capacity. `jobs` as joblib's n_jobs: -1 is every core."""
    next_use = None
    if any(policy == "optimal" for policy, _ in points):
        next_use = loops.next_requests(accesses.walk(), 0)
    work = [(point, accesses, sizes, next_use) for point in points]
    compiled = loops.name == "c" and all(policy in (*LEAF_POLICIES, *PLAIN_POLICIES) for policy, _ in points)
    rate = COMPILED_BLOCKS_A_SECOND if compiled else PYTHON_BLOCKS_A_SECOND
    if jobs == 1 or len(points) == 1 or len(points) * len(accesses.nodes) / rate < WORTH_S:
        return dict(zip(points, [_hits(*each) for each in work], strict=True))
    from joblib import Parallel, delayed

    # The loops in C let other threads run; those in Python need processes, which share the arrays through files.
    run = Parallel(n_jobs=jobs, prefer="threads" if compiled else "processes")
    return dict(zip(points, run(delayed(_hits)(*each) for each in work), strict=True))


def _hits(point: Point, accesses: Accesses, sizes: IntArray | None, next_use: NodeArray | None) -> IntArray:
    policy, capacity = point
    return policy_hits(core(), policy, capacity, accesses, sizes=sizes, next_use=next_use)
