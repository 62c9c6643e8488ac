"""One trace replayed: hits of every policy at every capacity, beside the ceilings, and LRU's curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kvtool.replay.accesses import Accesses
from kvtool.replay.capacity import BlockBytes, in_unit
from kvtool.replay.ceilings import Ceiling, Ceilings, limited_by
from kvtool.replay.curves import STACKS, Curve
from kvtool.replay.loops.core import Core, IntArray
from kvtool.replay.options import ReplayOptions
from kvtool.replay.saved import PrefillFloor
from kvtool.replay.sweep import Point, Replays
from kvtool.replay.tiers.tiers import TierReplay, sweep_tiers
from kvtool.replay.totals import first_counted, totals
from kvtool.results import ReplayCurve, ReplayKnee, ReplayPoint, ReplayRow, ReplayTiers, ReplayTrace

CURVE_POINTS = 64


class Run:
    """One replay: the trace, in one unit of capacity, with a curve for each policy that has one."""

    def __init__(
        self,
        loops: Core,
        accesses: Accesses,
        options: ReplayOptions,
        room: BlockBytes | None,
        floor: PrefillFloor | None,
    ) -> None:
        self._core, self._accesses, self._options, self._room, self._floor = loops, accesses, options, room, floor
        self._first = first_counted(accesses.num_requests, options.last)
        self._sizes = None if room is None else room.sizes(accesses)
        self._match = 1 if room is None else room.match_blocks
        self._units = [in_unit(capacity, room) for capacity in options.capacities]
        self._unlimited = self._curve("lru")
        self._curves = {name: self._curve(name) for name in options.policies if name in STACKS and name != "lru"}
        self._curves["lru"] = self._unlimited
        self.tiers: dict[int | None, ReplayTiers] = {}

    @property
    def full_blocks(self) -> int:
        """Room with which LRU hits all that was seen before."""
        return self._unlimited.full_capacity

    def serve(self, lower: TierReplay) -> None:
        """On the clock, at each capacity; without a limit there is room for all blocks."""
        rooms = {unit: len(self._accesses.parents) if unit is None else unit for unit in self._units}
        found = sweep_tiers(lower, list(dict.fromkeys(rooms.values())), self._options.workers)
        self.tiers = {unit: found[room] for unit, room in rooms.items()}

    def _curve(self, policy: str) -> Curve:
        return Curve(self._core, self._accesses, policy, sizes=self._sizes, first=self._first, match=self._match)

    def fingerprint(self) -> ReplayTrace:
        accesses, ideal = self._accesses, self._unlimited.at(None)
        return ReplayTrace(
            name=accesses.name,
            format=accesses.format,
            sha256=accesses.sha256,
            requests=accesses.num_requests,
            requests_counted=accesses.num_requests - self._first,
            block_size=accesses.block_size,
            total_blocks=len(accesses.nodes),
            unique_blocks=len(accesses.parents),
            input_tokens=int(accesses.input_tokens.sum()),
            ideal_block_hit_ratio=ideal.block_hit_ratio,
            ideal_token_hit_ratio=ideal.token_hit_ratio,
            ideal_mean_request_token_hit_ratio=ideal.mean_request_token_hit_ratio,
        )

    def rows(self, replayed: Mapping[Point, IntArray]) -> Iterator[ReplayRow]:
        """Policy by policy, each at the capacities in the order asked for. `replayed` has the hits of `replays`."""
        ceilings = Ceilings(self._core, self._accesses, sizes=self._sizes, first=self._first, match=self._match)
        bounds = {unit: ceilings.at(unit) for unit in self._units}
        for policy in self._options.policies:
            for unit in self._units:
                if unit is None:
                    hits = self._unlimited.request_hits(None)
                elif policy in STACKS:
                    hits = self._curves[policy].request_hits(unit)
                else:
                    hits = replayed[policy, unit] // self._match * self._match
                yield self._row(policy, unit, hits, bounds[unit])

    @property
    def replays(self) -> Replays:
        """The policies that need a replay for each capacity."""
        points = dict.fromkeys(
            (policy, unit)
            for policy in self._options.policies
            for unit in self._units
            if policy not in STACKS and unit is not None
        )
        return Replays(self._accesses, self._sizes, tuple(points))

    def _row(self, policy: str, unit: int | None, hits: IntArray, ceiling: Ceiling) -> ReplayRow:
        found = totals(self._accesses, hits, self._first)
        below = self.tiers.get(unit) if policy == "lru" else None
        moved = None if below is None else below.tiers
        capacity: dict[str, Any] = self._capacity(unit)
        blocks = max(1, found.total_blocks)
        return ReplayRow(
            policy=policy,
            **capacity,
            hit_blocks=found.hit_blocks,
            total_blocks=found.total_blocks,
            block_hit_ratio=found.block_hit_ratio,
            token_hit_ratio=found.token_hit_ratio,
            mean_request_token_hit_ratio=found.mean_request_token_hit_ratio,
            ceiling_content=ceiling.content / blocks,
            ceiling_relaxed=ceiling.relaxed / blocks,
            ceiling_strict=None if ceiling.strict is None else ceiling.strict / blocks,
            limited_by=limited_by(found.hit_blocks, ceiling),
            ttft_saved_ms=self._saved_ms(hits),
            bytes_read=None if moved is None else {one.tier: one.bytes_read for one in moved},
            bytes_written=None if moved is None else {one.tier: one.bytes_written for one in moved},
        )

    def _saved_ms(self, hits: IntArray) -> float | None:
        return None if self._floor is None else self._floor.saved_ms(self._accesses, hits, self._first)

    def _capacity(self, unit: int | None) -> dict[str, int | None]:
        """A capacity in the run's unit, in blocks and in bytes, as far as each is known."""
        if unit is None or self._room is None:
            return {"capacity_blocks": unit, "capacity_bytes": None}
        each = self._room.uniform
        return {
            "capacity_blocks": None if each is None else unit,
            "capacity_bytes": unit if each is None else unit * each,
        }

    def curve_documents(self) -> Iterator[ReplayCurve]:
        """LRU at many capacities, for each of its two kinds that was asked for."""
        for policy in self._options.policies:
            if policy in STACKS:
                yield self._curve_document(policy, self._curves[policy])

    def _curve_document(self, policy: str, curve: Curve) -> ReplayCurve:
        knee = curve.knee()
        spread = np.geomspace(1, max(1, curve.full_capacity), CURVE_POINTS)
        capacities = np.unique(np.round([*spread, *([knee.capacity] if knee else [])]).astype(np.int64))
        points = [
            ReplayPoint(**self._capacity(int(capacity)), block_hit_ratio=int(hits) / max(1, curve.total_blocks))
            for capacity, hits in zip(capacities, curve.hit_blocks(capacities), strict=True)
        ]
        return ReplayCurve(policy=policy, points=points, knee=self._knee(curve, knee.capacity) if knee else None)

    def _knee(self, curve: Curve, capacity: int) -> ReplayKnee:
        hits = curve.request_hits(capacity)
        found = totals(self._accesses, hits, self._first)
        return ReplayKnee(
            **self._capacity(capacity),
            block_hit_ratio=found.block_hit_ratio,
            token_hit_ratio=found.token_hit_ratio,
            ttft_saved_ms=self._saved_ms(hits),
        )
