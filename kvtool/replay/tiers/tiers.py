"""LRU in the GPU with tiers below it: what each request finds where, what it does about it, and when it is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

import numpy as np

from kvtool.replay.accesses import Accesses, requests_of
from kvtool.replay.clock.steps import StepTimes
from kvtool.replay.saved import PrefillFloor
from kvtool.replay.tiers.options import TierOptions
from kvtool.replay.tiers.plan import Found, Links, plan
from kvtool.replay.tiers.stores import Moved, Stores
from kvtool.replay.tiers.timed import Timed
from kvtool.replay.tiers.timing import Run, run
from kvtool.replay.workers import Workers
from kvtool.results import ReplayTier, ReplayTiers, ReplayTtft

DAY_S = 86400
BLOCKS_A_SECOND = 100_000  # of a replay with tiers, its three runs together


@dataclass(frozen=True, slots=True)
class TierReplay:
    """What a replay with tiers takes. `options` have all speeds; requests from `first` on count; LRU hits all that was
    seen before with room for `full_blocks`. `goals_s` are limits of a request's ttft, tpot and e2e, as far as given.
    """

    accesses: Accesses
    times: StepTimes
    links: Links
    options: TierOptions
    first: int
    full_blocks: int
    goals_s: Mapping[str, float] = field(default_factory=dict)

    def at(self, capacity_blocks: int) -> ReplayTiers:
        """With room for so many blocks in the GPU."""
        moved = self._moved(capacity_blocks)
        timed = self._run(moved)
        without = _times(one.ttft_s for one in self._counted(self._run([_without(one) for one in moved])))
        oracle = _times(one.ttft_s for one in self._counted(self._run([_all_in_gpu(one) for one in moved])))
        counted = self._counted(timed)
        tpot_s = [one.tpot_s for one in counted if one.tpot_s is not None]
        ttft_ms = _times(one.ttft_s for one in counted)
        found = np.array([len(one.places) for one in moved], dtype=np.int64)
        inputs = self.accesses.input_tokens[self.first :].sum()
        read = sum(timed.read)
        return ReplayTiers(
            capacity_blocks=capacity_blocks,
            capacity_bytes=capacity_blocks * self.links.block_bytes,
            write_policy=str(self.options.write),
            exclusive=self.options.exclusive,
            loading=self.options.loading,
            decisions=dict(Counter(one.plan.decision for one in counted)),
            token_hit_ratio=float(self.accesses.tokens_of(found)[self.first :].sum() / max(1, inputs)),
            ttft_ms=ttft_ms,
            without_ttft_ms=without,
            oracle_ttft_ms=oracle,
            ttft_saved_ms=without.mean - ttft_ms.mean,
            stall_s=sum(one.stall_s for one in timed.requests),
            tiers=[self._tier(place, moved, timed) for place in range(len(self.links.tiers))],
            tpot_ms=_times(tpot_s) if tpot_s else None,
            e2e_ms=_times(one.e2e_s for one in counted),
            goodput_ratio=self._goodput(counted),
            ttft_p50_range_ms=self._range_ms(moved, ttft_ms.p50),
            prefetch=str(self.options.prefetch),
            hit_tokens=sum(self._hit_tokens(one) for one in timed.requests),
            cut_tokens=self.links.block_size * sum(one.plan.cut_blocks for one in timed.requests),
            missed_tokens=self.links.block_size * sum(one.missed_blocks for one in timed.requests),
            late_tokens=self.links.block_size * sum(one.late_blocks for one in timed.requests),
            useful_read_ratio=1 - timed.unused_bytes / read if read else None,
            preemptions=sum(one.preemptions for one in timed.requests),
            recomputed_tokens=sum(one.recomputed_tokens for one in timed.requests),
            full_tier_bytes=self._full_blocks(capacity_blocks) * self.links.block_bytes,
        )

    def _hit_tokens(self, one: Timed) -> int:
        """As an engine counts them: whole blocks, the last token of a prompt left out."""
        size = self.links.block_size
        blocks = one.in_gpu - one.late_blocks + sum(one.plan.blocks) - one.missed_blocks
        return min(blocks, (one.input_tokens - 1) // size) * size

    def _moved(self, capacity_blocks: int) -> list[Moved]:
        capacities = [tier.capacity_bytes // self.links.block_bytes for tier in self.links.tiers]
        stores = Stores(
            [capacity_blocks, *capacities],
            exclusive=self.options.exclusive,
            write_after=self.options.write.after_hits,
            watermark=self.options.watermark,
        )
        return [stores.request(nodes.tolist()) for nodes in requests_of(self.accesses)]

    def _run(self, moved: Sequence[Moved], times: StepTimes | None = None) -> Run:
        times = times or self.times
        requests: list[Timed] = []
        for index, (one, nodes) in enumerate(zip(moved, requests_of(self.accesses), strict=True)):
            timed = self._timed(index, one, times.floor, requests)
            requests.append(timed if self.options.pool_tokens is None else replace(timed, nodes=nodes.tolist()))
        return run(requests, self.links, self.options, times)

    def _timed(self, index: int, moved: Moved, floor: PrefillFloor, before: Sequence[Timed]) -> Timed:
        """The blocks in the GPU before the first that is not, and what lies below from there on."""
        in_gpu = next((at for at, place in enumerate(moved.places) if place), len(moved.places))
        below = tuple(max(0, place - 1) for place in moved.places[in_gpu:])
        tokens = max(1, int(self.accesses.input_tokens[index]))
        found = Found(tokens, in_gpu, below)
        return Timed(
            arrival_s=float(self.accesses.arrival_s[index] - self.accesses.arrival_s.min()),
            plan_with=lambda room: plan(floor, self.links, self.options, found, room),
            written=moved.written,
            input_tokens=tokens,
            output_tokens=max(1, int(self.accesses.output_tokens[index])),
            in_gpu=in_gpu,
            needs=tuple((place, before[other]) for place, other in moved.stored_by),
            shares=tuple((place, before[other]) for place, other in moved.brought_by),
        )

    def _counted(self, played: Run) -> list[Timed]:
        return played.requests[self.first :]

    def _goodput(self, requests: Sequence[Timed]) -> float | None:
        if not self.goals_s or not requests:
            return None
        kept = [
            all((getattr(one, f"{name}_s") or 0.0) <= most for name, most in self.goals_s.items()) for one in requests
        ]
        return sum(kept) / len(kept)

    def _range_ms(self, moved: Sequence[Moved], p50_ms: float) -> tuple[float, float] | None:
        """The median first token at both ends of what was measured. A faster step may take fewer requests with it, so
        that the ends are not always the least and the most.
        """
        if self.times.spread is None:
            return None
        ends = [
            _times(one.ttft_s for one in self._counted(self._run(moved, self.times.slower(factor)))).p50
            for factor in self.times.spread
        ]
        return min(p50_ms, *ends), max(p50_ms, *ends)

    def _full_blocks(self, capacity_blocks: int) -> int:
        """Room in a tier below the GPU with which all that was seen before hits: beside the GPU's own where nothing is
        kept twice, and as much more as a watermark leaves empty.
        """
        needed = max(0, self.full_blocks - capacity_blocks) if self.options.exclusive else self.full_blocks
        return ceil(needed / self.options.watermark[1])

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
            full_writes_per_day=written / days / tier.capacity_bytes if days else None,
            write_amplification=written / read if read else None,
            stall_s=sum(one.stall_s for one, low in zip(timed.requests, lowest, strict=True) if low == place),
            read_busy=timed.busy[2 * place],
            write_busy=timed.busy[2 * place + 1],
        )


def sweep_tiers(lower: TierReplay, capacities: Sequence[int], workers: Workers) -> dict[int, ReplayTiers]:
    """Each capacity, side by side where that is worth it."""
    work_s = len(capacities) * len(lower.accesses.nodes) / BLOCKS_A_SECOND
    return dict(zip(capacities, workers.map(lower.at, capacities, work_s=work_s), strict=True))


def _without(moved: Moved) -> Moved:
    """The request where nothing lies below the GPU."""
    in_gpu = next((at for at, place in enumerate(moved.places) if place), len(moved.places))
    computed_by = (*moved.stored_by, *moved.brought_by)  # what was loaded there is computed here
    none = tuple(0 for _ in moved.written)
    return replace(moved, places=moved.places[:in_gpu], written=none, stored_by=computed_by, brought_by=())


def _all_in_gpu(moved: Moved) -> Moved:
    """The request where loads take no time."""
    none = tuple(0 for _ in moved.written)
    return replace(moved, places=tuple(0 for _ in moved.places), written=none, brought_by=())


def _times(seconds: Iterable[float]) -> ReplayTtft:
    times_ms = np.array(list(seconds) or [0.0]) * 1e3
    p50, p90, p99 = (float(value) for value in np.percentile(times_ms, (50, 90, 99)))
    return ReplayTtft(mean=float(times_ms.mean()), p50=p50, p90=p90, p99=p99)
