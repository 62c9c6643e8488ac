"""Replay a trace: every policy asked for at every capacity asked for, beside the ceilings, as one document."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvtool.catalog.gpus import Gpu
from kvtool.catalog.model import Model
from kvtool.errors import KvtoolError
from kvtool.replay.accesses import Accesses, read_accesses
from kvtool.replay.capacity import BlockBytes, Capacity, block_bytes, in_unit
from kvtool.replay.ceilings import Ceiling, Ceilings, limited_by
from kvtool.replay.clock.steps import StepTimes, card_steps
from kvtool.replay.cluster.cluster import ClusterOptions, replay_cluster
from kvtool.replay.curves import STACKS, Curve
from kvtool.replay.loops.core import Core, IntArray
from kvtool.replay.loops.fastest import core
from kvtool.replay.policies import check_policies
from kvtool.replay.saved import PrefillFloor, prefill_floor
from kvtool.replay.sweep import sweep
from kvtool.replay.tiers.breakeven import break_even
from kvtool.replay.tiers.fits import has_steps, measured_steps, steps_words
from kvtool.replay.tiers.options import TierOptions
from kvtool.replay.tiers.plan import Links
from kvtool.replay.tiers.profile import NOTHING_MEASURED, Measured
from kvtool.replay.tiers.tiers import TierReplay, sweep_tiers
from kvtool.replay.totals import first_counted, totals
from kvtool.replay.words import CLUSTER_ASSUMPTIONS, assumptions, definition, tier_assumptions, warnings
from kvtool.results import (
    ReplayCluster,
    ReplayCurve,
    ReplayDocument,
    ReplayKnee,
    ReplayPoint,
    ReplayRow,
    ReplayTiers,
    ReplayTrace,
)
from kvtool.sizing.dtypes import AUTO
from kvtool.sizing.formats import parse_cache_format
from kvtool.workloads.traces import Trace

CURVE_POINTS = 64


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """What to replay. `last` is the part of the requests that counts, those before it only fill the cache."""

    policies: tuple[str, ...] = ("lru",)
    capacities: tuple[Capacity, ...] = (Capacity(),)
    last: float = 1.0
    sort_by_time: bool = False
    kv_cache_dtype: str = AUTO
    state_every: int = 1
    tp: int = 1
    jobs: int = -1
    tiers: TierOptions | None = None
    cluster: ClusterOptions | None = None
    measured: Measured = NOTHING_MEASURED
    goals_s: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_policies(self.policies)
        if not 0 < self.last <= 1:
            raise KvtoolError(f"--last {self.last:g} must be above 0 and at most 1, as 0.5")


def replay(
    trace: Trace,
    options: ReplayOptions,
    *,
    model: Model | None = None,
    gpu: Gpu | None = None,
    progress: Callable[[str, float], None] = lambda doing, done: None,
) -> ReplayDocument:
    """The document. `progress` is told what is being done, and which part of it all is behind.

    Raises KvtoolError for a trace that cannot be decoded, and for bytes or a card without a model.
    """
    _check_asked(options, model, gpu)
    loops = core()
    progress(f"reading {trace.name}", 0.0)
    accesses = read_accesses(trace, loops)
    found = warnings(accesses)
    accesses = accesses.by_time() if options.sort_by_time else accesses
    room = None
    if model is not None:
        room = block_bytes(
            model,
            block_size=accesses.block_size,
            kv_cache_dtype=options.kv_cache_dtype,
            state_every=options.state_every,
        )
    times = None if model is None or room is None else _step_times(model, gpu, options, room, accesses.block_size)
    floor = None if times is None else times.floor
    progress("lru at every capacity", 0.4)
    run = _Run(loops, accesses, options, room, floor)
    lower = _lower(accesses, options, model, gpu, room, times, run.full_blocks)
    if lower is not None:
        run.serve(lower)
    progress("policies and ceilings", 0.5)
    return ReplayDocument(
        trace=run.fingerprint(),
        model=None if model is None else model.id,
        kv_cache_dtype=None if model is None else parse_cache_format(options.kv_cache_dtype, model.dtype).name,
        bytes_per_block=None if room is None else room.uniform,
        gpu=_device(gpu, options.measured, times),
        definition=definition(options.policies, options.last),
        rows=list(run.rows()),
        curves=list(run.curve_documents()),
        tiers=list(run.tiers.values()),
        cluster=None if options.cluster is None else _cluster(trace, options, model, gpu, progress),
        break_even=[] if lower is None else break_even(lower.times.floor, lower.links),
        warnings=found,
        assumptions=[
            *(() if model is None else model.assumed),
            *assumptions(accesses, room, floor, sorted_by_time=options.sort_by_time),
            *([] if lower is None else tier_assumptions(lower.options)),
            *([] if options.cluster is None else CLUSTER_ASSUMPTIONS),
            *options.measured.sources,
            *([] if times is None or times.spread is None else [steps_words(times)]),
        ],
    )


def _step_times(
    model: Model, gpu: Gpu | None, options: ReplayOptions, room: BlockBytes, block_size: int
) -> StepTimes | None:
    """As measured of this model, else at a card's figures; None without either. Raises KvtoolError."""
    if has_steps(model, options.measured):
        return measured_steps(model, options.measured, options.tp)
    if gpu is None:
        return None
    floor = prefill_floor(model, gpu, options.tp, options.measured.tflops)
    return card_steps(floor, gpu, room.page_bytes / block_size, options.tp)


def _device(gpu: Gpu | None, measured: Measured, times: StepTimes | None) -> str | None:
    """What milliseconds are of."""
    if times is None:
        return None
    return measured.device or "the measured device" if gpu is None else gpu.name


def _check_asked(options: ReplayOptions, model: Model | None, gpu: Gpu | None) -> None:
    """Before the trace is read, which takes long. Raises KvtoolError for what says nothing without a model or card."""
    if options.tiers is not None:
        if model is None or (gpu is None and not has_steps(model, options.measured)):
            raise KvtoolError(
                "--tiers need a MODEL and a card: kvtool replay TRACE MODEL --gpu h100 --tiers dram=64GiB, or in place "
                "of the card a --profile with steps of that model"
            )
        ends = all(capacity != Capacity() for capacity in options.capacities)
        if "lru" not in options.policies or (options.tiers.tiers and not ends):
            raise KvtoolError("--tiers lie below an LRU cache that ends: give --capacity 20GiB, and lru as a --policy")
    if options.cluster is not None:
        nodes = options.cluster.cluster
        if model is None or (gpu is None and (nodes.prefill_card is None or nodes.decode_card is None)):
            raise KvtoolError(
                "--cluster needs a MODEL and cards: kvtool replay TRACE MODEL --cluster prefill=2xh100,decode=4xh200, "
                "or --gpu h100 for all nodes"
            )
        if options.tp != 1:
            raise KvtoolError(f"--tp {options.tp} is not of --cluster, whose nodes have gpus=8")
    if gpu is None and options.tp != 1 and not options.measured.observed:
        raise KvtoolError(f"--tp {options.tp} shares the prefill of a card: name it with --gpu")
    if model is not None:
        return
    if gpu is not None:
        raise KvtoolError(f"milliseconds on {gpu.name} need a MODEL: kvtool replay TRACE MODEL --gpu {gpu.name}")
    if options.kv_cache_dtype != AUTO or options.state_every != 1:
        raise KvtoolError("--kv-cache-dtype and --state-every are of a MODEL: kvtool replay TRACE MODEL")
    for capacity in options.capacities:
        in_unit(capacity, None)


def _cluster(
    trace: Trace, options: ReplayOptions, model: Model | None, gpu: Gpu | None, progress: Callable[[str, float], None]
) -> ReplayCluster:
    assert options.cluster is not None
    assert model is not None
    return replay_cluster(
        trace,
        options.cluster,
        model,
        gpu,
        kv_cache_dtype=options.kv_cache_dtype,
        tflops=options.measured.tflops,
        progress=progress,
    )


def _lower(
    accesses: Accesses,
    options: ReplayOptions,
    model: Model | None,
    gpu: Gpu | None,
    room: BlockBytes | None,
    times: StepTimes | None,
    full_blocks: int,
) -> TierReplay | None:
    """The tiers below the GPU, where they were asked for. Raises KvtoolError for blocks of unequal bytes."""
    if options.tiers is None:
        return None
    assert model is not None
    assert room is not None
    assert times is not None
    if room.uniform is None:
        raise KvtoolError("--tiers move blocks of one size: leave out --state-every")
    pcie_gbps = None if gpu is None or gpu.pcie_gbps is None else gpu.pcie_gbps * options.tp
    with_speeds = options.tiers.with_speeds(options.measured.tiers, pcie_gbps)
    links = Links(with_speeds.tiers, room.uniform, accesses.block_size, model.num_layers)
    first = first_counted(accesses.num_requests, options.last)
    return TierReplay(accesses, times, links, with_speeds, first, full_blocks, options.goals_s)


class _Run:
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
        found = sweep_tiers(lower, list(dict.fromkeys(rooms.values())), self._options.jobs)
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

    def rows(self) -> Iterator[ReplayRow]:
        """Policy by policy, each at the capacities in the order asked for."""
        ceilings = Ceilings(self._core, self._accesses, sizes=self._sizes, first=self._first, match=self._match)
        bounds = {unit: ceilings.at(unit) for unit in self._units}
        replayed = self._replayed()
        for policy in self._options.policies:
            for unit in self._units:
                if unit is None:
                    hits = self._unlimited.request_hits(None)
                elif policy in STACKS:
                    hits = self._curves[policy].request_hits(unit)
                else:
                    hits = replayed[policy, unit] // self._match * self._match
                yield self._row(policy, unit, hits, bounds[unit])

    def _replayed(self) -> dict[tuple[str, int], IntArray]:
        """The policies that need a replay for each capacity."""
        points = [
            (policy, unit)
            for policy in self._options.policies
            for unit in self._units
            if policy not in STACKS and unit is not None
        ]
        return sweep(self._core, list(dict.fromkeys(points)), self._accesses, self._sizes, self._options.jobs)

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
