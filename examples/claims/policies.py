"""Claims about eviction and load paths, each against a replay of a trace that `kvtool trace make` makes.

python examples/claims/policies.py
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence

import msgspec
from claim import RIGHT, WRONG, Claim, kvtool

from kvtool.results import ReplayDocument

BURSTS = "kvtool trace make multi-turn bursts.jsonl --num-sessions 200 --request-rate 2 --burstiness 0.2"
EVICTION = "kvtool replay bursts.jsonl --policy lru,fifo-plain,lfu,optimal --capacity 1000,4000"
AGENTS = "kvtool trace make agents agents.jsonl --num-sessions 12 --max-len 32k"
PATHS = (
    "kvtool replay agents.jsonl qwen2.5-32b --gpu h800 --cluster prefill=1,decode=2",
    "kvtool replay agents.jsonl deepseek-v3 --gpu h800 --cluster prefill=2,decode=4",
)


def policy_claims() -> Iterator[Claim]:
    hits = block_hits(*replays(BURSTS, [EVICTION]))
    yield lru(hits)
    yield fifo(hits)
    yield dual_path(*(gain(document) for document in replays(AGENTS, PATHS)))


def replays(made: str, commands: Sequence[str]) -> list[ReplayDocument]:
    """Of a trace that is made for them, in a folder that goes again."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        kvtool(made)
        return [msgspec.json.decode(kvtool(f"{command} --json"), type=ReplayDocument) for command in commands]


Hits = dict[tuple[str, int], float]


def block_hits(document: ReplayDocument) -> Hits:
    """Share of blocks by policy and capacity."""
    return {(row.policy, row.capacity_blocks or 0): row.block_hit_ratio for row in document.rows}


def lru(hits: Hits) -> Claim:
    best = all(hits["lru", size] >= hits[other, size] for size in (1000, 4000) for other in ("fifo-plain", "lfu"))
    return Claim(
        said="LRU suits bursts",
        found=f"chats in bursts: LRU hits {shares(hits, 'lru')} of blocks with room for 1,000 and 4,000, LFU "
        f"{shares(hits, 'lfu')}, and the best choice {shares(hits, 'optimal')}",
        verdict=RIGHT if best else WRONG,
        why="Who spoke last speaks next; counts keep what was asked for often long ago.",
        shown_by=(BURSTS, EVICTION),
    )


def fifo(hits: Hits) -> Claim:
    less = all(hits["fifo-plain", size] < hits["lru", size] for size in (1000, 4000))
    return Claim(
        said="FIFO drops what active requests need",
        found=f"plain FIFO hits {shares(hits, 'fifo-plain')} there, where LRU hits {shares(hits, 'lru')}",
        verdict=RIGHT if less else WRONG,
        why="It evicts what was stored first, the system prompt of all, however lately it was used.",
        shown_by=(BURSTS, EVICTION),
    )


def shares(hits: Hits, policy: str) -> str:
    return " and ".join(f"{hits[policy, size]:.0%}" for size in (1000, 4000))


def gain(document: ReplayDocument) -> float:
    """Agents a second with both load paths, over those with one."""
    assert document.cluster is not None
    rates = {mode.mode: mode.agents_per_s for mode in document.cluster.modes}
    return rates["dualpath"] / rates["basic"]


def dual_path(storage_bound: float, compute_bound: float) -> Claim:
    return Claim(
        said="DualPath makes agents 1.87x as fast",
        found=f"{storage_bound:.2f}x for Qwen2.5-32B on 1 prefill and 2 decode nodes, {compute_bound:.2f}x for "
        "DeepSeek-V3 on 2 and 4",
        verdict=RIGHT if all(f"{times:.2f}" == "1.87" for times in (storage_bound, compute_bound)) else WRONG,
        why="Where storage is the limit both sides' NICs allow (P + D) / P = 3x; where computing is, next to nothing. "
        "1.87x is the best of their own system, between the two.",
        shown_by=(AGENTS, *PATHS),
    )


if __name__ == "__main__":
    for claim in policy_claims():
        print(f"{claim.said}: {claim.verdict}, {claim.found}")
