"""Replays of policies at capacities, of one trace or of many, side by side where that is worth their start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvtool.replay.accesses import Accesses
from kvtool.replay.loops.core import LEAF_POLICIES, PLAIN_POLICIES, Core, IntArray, NodeArray
from kvtool.replay.loops.fastest import core
from kvtool.replay.policies import policy_hits
from kvtool.replay.workers import Workers

Point = tuple[str, int]  # policy and capacity
COMPILED_BLOCKS_A_SECOND, PYTHON_BLOCKS_A_SECOND = 50_000_000, 500_000


@dataclass(frozen=True, slots=True)
class Replays:
    """The points that one trace is replayed at; `sizes` as in core.py."""

    accesses: Accesses
    sizes: IntArray | None
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    point: Point
    accesses: Accesses
    sizes: IntArray | None
    next_use: NodeArray | None


def sweep(loops: Core, replays: Sequence[Replays], workers: Workers) -> list[Mapping[Point, IntArray]]:
    """For each trace, blocks that each request hits at each of its points."""
    parts = [part for one in replays for part in _parts(loops, one)]
    compiled = loops.name == "c" and all(part.point[0] in (*LEAF_POLICIES, *PLAIN_POLICIES) for part in parts)
    rate = COMPILED_BLOCKS_A_SECOND if compiled else PYTHON_BLOCKS_A_SECOND
    work_s = sum(len(part.accesses.nodes) for part in parts) / rate
    # The loops in C let other threads run; those in Python need processes, which share the arrays through files.
    found = iter(workers.map(_hits, parts, work_s=work_s, threads=compiled) if parts else [])
    return [dict(zip(one.points, found, strict=False)) for one in replays]


def _parts(loops: Core, one: Replays) -> list[_Part]:
    next_use = None
    if any(policy == "optimal" for policy, _ in one.points):
        next_use = loops.next_requests(one.accesses.walk(), 0)
    return [_Part(point, one.accesses, one.sizes, next_use if point[0] == "optimal" else None) for point in one.points]


def _hits(part: _Part) -> IntArray:
    policy, capacity = part.point
    return policy_hits(core(), policy, capacity, part.accesses, sizes=part.sizes, next_use=part.next_use)
