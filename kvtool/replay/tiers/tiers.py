"""LRU in the GPU with tiers below it: what each request finds where, what it does about it, and when it is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvtool.replay.accesses import Accesses, requests_of
from kvtool.replay.saved import PrefillFloor
from kvtool.replay.sweep import WORTH_S
from kvtool.replay.tiers.options import TierOptions
from kvtool.replay.tiers.plan import Links, plan
from kvtool.replay.tiers.stores import Moved, Stores
from kvtool.replay.tiers.timing import Run, Timed, run
from kvtool.results import ReplayTier, ReplayTiers, ReplayTtft

DAY_S = 86400
BLOCKS_A_SECOND = 100_000  # of a replay with tiers, its three runs together


@dataclass(frozen=True, slots=True)
class TierReplay:
    """What a replay with tiers takes. `options` have all speeds; requests from `first` on count."""

    accesses: Accesses
    floor: PrefillFloor
    links: Links
    options: TierOptions
    first: int

    def at(self, capacity_blocks: int) -> ReplayTiers:
        """With room for so many blocks in the GPU."""
        moved = self._moved(capacity_blocks)
        timed = self._run([self._timed(index, one) for index, one in enumerate(moved)])
        without = self._run([self._timed(index, _without(one)) for index, one in enumerate(moved)])
        oracle = self._run([self._timed(index, _all_in_gpu(one)) for index, one in enumerate(moved)])
        ttft_ms, without_ms, oracle_ms = (self._ttft(one) for one in (timed, without, oracle))
        found = [len(one.places) for one in moved]
        counted = self.accesses.tokens_of(np.array(found, dtype=np.int64))[self.first :]
        return ReplayTiers(
            capacity_blocks=capacity_blocks,
            capacity_bytes=capacity_blocks * self.links.block_bytes,
            write_policy=str(self.options.write),
            exclusive=self.options.exclusive,
            loading=self.options.loading,
            decisions=dict(Counter(one.plan.decision for one in timed.requests[self.first :])),
            token_hit_ratio=float(counted.sum() / max(1, self.accesses.input_tokens[self.first :].sum())),
            ttft_ms=ttft_ms,
            without_ttft_ms=without_ms,
            oracle_ttft_ms=oracle_ms,
            ttft_saved_ms=without_ms.mean - ttft_ms.mean,
            stall_s=sum(one.stall_s for one in timed.requests),
            tiers=[self._tier(place, moved, timed) for place in range(len(self.links.tiers))],
        )

    def _moved(self, capacity_blocks: int) -> list[Moved]:
        capacities = [tier.capacity_bytes // self.links.block_bytes for tier in self.links.tiers]
        stores = Stores(
            [capacity_blocks, *capacities], exclusive=self.options.exclusive, write_after=self.options.write.after_hits
        )
        return [stores.request(nodes.tolist()) for nodes in requests_of(self.accesses)]

    def _timed(self, index: int, moved: Moved) -> Timed:
        """The blocks in the GPU before the first that is not, and what lies below from there on."""
        in_gpu = next((at for at, place in enumerate(moved.places) if place), len(moved.places))
        below = [max(0, place - 1) for place in moved.places[in_gpu:]]
        tokens = max(1, int(self.accesses.input_tokens[index]))
        return Timed(
            arrival_s=float(self.accesses.arrival_s[index] - self.accesses.arrival_s.min()),
            plan=plan(self.floor, self.links, self.options, tokens, in_gpu, below),
            written=moved.written,
        )

    def _run(self, requests: list[Timed]) -> Run:
        return run(requests, self.links, self.options)

    def _ttft(self, played: Run) -> ReplayTtft:
        times_ms = np.array(played.ttft_s()[self.first :] or [0.0]) * 1e3
        p50, p90, p99 = (float(value) for value in np.percentile(times_ms, (50, 90, 99)))
        return ReplayTtft(mean=float(times_ms.mean()), p50=p50, p90=p90, p99=p99)

    def _tier(self, place: int, moved: Sequence[Moved], timed: Run) -> ReplayTier:
        tier, block_size = self.links.tiers[place], self.links.block_size
        read, written = timed.read[place], timed.written[place]
        arrivals = self.accesses.arrival_s
        days = float(arrivals.max() - arrivals.min()) / DAY_S if len(arrivals) else 0.0
        lowest = [
            max((at for at, blocks in enumerate(one.plan.blocks) if blocks), default=-1) for one in timed.requests
        ]
        return ReplayTier(
            tier=tier.name,
            capacity_bytes=tier.capacity_bytes,
            read_gbps=tier.read_gbps or 0.0,
            write_gbps=tier.write_gbps or tier.read_gbps or 0.0,
            latency_us=tier.latency_s * 1e6,
            source=tier.source,
            hit_tokens=block_size * sum(one.places.count(place + 1) for one in moved),
            loaded_tokens=block_size * sum(one.plan.blocks[place] for one in timed.requests),
            bytes_read=read,
            bytes_written=written,
            bytes_written_per_day=written / days if days else None,
            write_amplification=written / read if read else None,
            stall_s=sum(one.stall_s for one, low in zip(timed.requests, lowest, strict=True) if low == place),
            read_busy=timed.busy[2 * place],
            write_busy=timed.busy[2 * place + 1],
        )


def sweep_tiers(lower: TierReplay, capacities: Sequence[int], jobs: int) -> dict[int, ReplayTiers]:
    """Each capacity, side by side in processes where that is worth their start. `jobs` as joblib's n_jobs."""
    work = len(capacities) * len(lower.accesses.nodes)
    if jobs == 1 or len(capacities) < 2 or work / BLOCKS_A_SECOND < WORTH_S:
        return {capacity: lower.at(capacity) for capacity in capacities}
    from joblib import Parallel, delayed

    found = Parallel(n_jobs=jobs, prefer="processes")(delayed(lower.at)(capacity) for capacity in capacities)
    return dict(zip(capacities, found, strict=True))


def _without(moved: Moved) -> Moved:
    """The request where nothing lies below the GPU."""
    in_gpu = next((at for at, place in enumerate(moved.places) if place), len(moved.places))
    return Moved(moved.places[:in_gpu], tuple(0 for _ in moved.written))


def _all_in_gpu(moved: Moved) -> Moved:
    """The request where loads take no time."""
    return Moved(tuple(0 for _ in moved.places), tuple(0 for _ in moved.written))
