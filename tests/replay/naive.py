"""Replays written as the definitions say, with a scan for everything; what the fast ones are held to."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from kvtool.replay.accesses import Accesses, read_accesses
from kvtool.replay.loops.core import Core
from kvtool.workloads.traces import open_trace

Path_ = tuple[int, ...]


def make(core: Core, requests: Sequence[Sequence[int]], folder: Path, block_size: int = 4) -> Accesses:
    """The requests, lists of block ids, as a trace that was read from a file."""
    lines = [
        f'{{"timestamp": {at}, "input_length": {block_size * len(ids) - 1}, "hash_ids": {list(ids)}}}\n'
        for at, ids in enumerate(requests)
    ]
    path = folder / "trace.jsonl"
    path.write_text("".join(lines))
    return read_accesses(open_trace(path, block_size=block_size), core)


def random_requests(seed: int, *, count: int, ids: int, longest: int) -> list[list[int]]:
    """Prompts that often go on from an earlier one, so that the tree has depth."""
    rng = random.Random(seed)
    requests: list[list[int]] = []
    for _ in range(count):
        start = rng.choice(requests) if requests and rng.random() < 0.6 else []
        start = start[: rng.randint(0, len(start))]
        more = rng.randint(0 if start else 1, max(1, longest - len(start)))
        requests.append((start + [rng.randrange(ids) for _ in range(more)])[:longest])
    return requests


def paths(accesses: Accesses) -> list[Path_]:
    return [tuple(nodes.tolist()) for nodes in np.split(accesses.nodes, accesses.starts[1:-1])]


def leaves(policy: str, capacity: int, trace: list[Path_], parents: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Look up, touch the hit path, store what is missing head to tail, evicting the leaf that the policy names."""
    resident: dict[int, tuple[int, int, int]] = {}  # node -> (stored, used, uses)
    hits = []

    def next_use(node: int, now: int) -> int:
        return next((r for r in range(now + 1, len(trace)) if node in trace[r]), len(trace))

    def rank(node: int, now: int) -> tuple[int, ...]:
        stored, used, uses = resident[node]
        ranks = {"lru": (used,), "fifo": (stored,), "lfu": (uses, used), "optimal": (-next_use(node, now),)}
        return ranks[policy]

    for now, path in enumerate(trace):
        hit = list(itertools.takewhile(resident.__contains__, path))
        hits.append(len(hit))
        for node in hit:
            stored, _, uses = resident[node]
            resident[node] = (stored, now, uses + 1)
        for node in path[len(hit) :]:
            while sum(sizes[n] for n in resident) + sizes[node] > capacity:
                inner = {parents[n] for n in resident}
                candidates = [n for n in resident if n not in inner and n not in path]
                if not candidates:
                    break
                victim = min(candidates, key=lambda n: rank(n, now))
                if policy == "optimal" and next_use(victim, now) <= next_use(node, now):
                    break
                del resident[victim]
            if sum(sizes[n] for n in resident) + sizes[node] > capacity:
                break
            resident[node] = (now, now, 1)
    return hits


def plain(policy: str, capacity: int, trace: list[Path_], sizes: Sequence[int]) -> list[int]:
    """Look up, then touch or store block after block, evicting the block that the policy names, whichever it is."""
    resident: dict[int, tuple[int, int]] = {}  # node -> (uses, clock)
    stored: dict[int, int] = {}
    clock, hits = 0, []
    rank: Callable[[int], tuple[int, ...]] = {
        "lru-plain": lambda node: (resident[node][1],),
        "fifo-plain": lambda node: (stored[node],),
        "lfu-plain": lambda node: resident[node],
    }[policy]
    for path in trace:
        hits.append(len(list(itertools.takewhile(resident.__contains__, path))))
        for node in path:
            clock += 1
            if node in resident:
                resident[node] = (resident[node][0] + 1, clock)
                continue
            while resident and sum(sizes[n] for n in resident) + sizes[node] > capacity:
                del resident[min(resident, key=rank)]
            if sizes[node] <= capacity:
                resident[node], stored[node] = (1, clock), clock
    return hits


def best(trace: list[Path_], capacity: int, first: int) -> int:
    """The most blocks that requests from `first` on can hit behind their whole prefixes: every choice is tried."""

    @lru_cache(None)
    def most(now: int, resident: frozenset[int]) -> int:
        if now == len(trace):
            return 0
        hit = len(list(itertools.takewhile(resident.__contains__, trace[now]))) if now >= first else 0
        wanted = {node for path in trace[now + 1 :] for node in path}
        pool = sorted((resident | set(trace[now])) & wanted)
        return hit + max(
            most(now + 1, frozenset(kept)) for kept in itertools.combinations(pool, min(capacity, len(pool)))
        )

    return most(0, frozenset())


def belady(trace: list[Path_], capacity: int) -> int:
    """Blocks hit when the block used latest gives way, access by access, wherever in a prompt a hit is."""
    sequence = [node for path in trace for node in path]
    resident: set[int] = set()
    hits = 0

    def next_use(node: int, at: int) -> int:
        return next((i for i in range(at + 1, len(sequence)) if sequence[i] == node), len(sequence))

    for at, node in enumerate(sequence):
        hits += node in resident
        resident.add(node)
        if len(resident) > capacity:
            resident.remove(max(resident, key=lambda n: next_use(n, at)))
    return hits
