"""Replay a trace: every policy asked for at every capacity asked for, beside the ceilings, as one document."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kvtool.catalog.gpus import Gpu
from kvtool.catalog.model import Model
from kvtool.replay.accesses import Accesses, read_accesses
from kvtool.replay.capacity import BlockBytes, block_bytes
from kvtool.replay.clock.steps import StepTimes, card_steps
from kvtool.replay.cluster.cluster import replay_cluster
from kvtool.replay.loops.core import Core, IntArray
from kvtool.replay.loops.fastest import core
from kvtool.replay.options import ReplayOptions, check_asked
from kvtool.replay.run import Run
from kvtool.replay.saved import prefill_floor
from kvtool.replay.sweep import Point, sweep
from kvtool.replay.tiers.breakeven import break_even
from kvtool.replay.tiers.fits import has_steps, measured_steps, steps_words
from kvtool.replay.tiers.plan import Links
from kvtool.replay.tiers.profile import Measured
from kvtool.replay.tiers.tiers import TierReplay
from kvtool.replay.totals import first_counted
from kvtool.replay.words import CLUSTER_ASSUMPTIONS, assumptions, definition, tier_assumptions, warnings
from kvtool.results import ReplayCluster, ReplayDocument
from kvtool.sizing.formats import parse_cache_format
from kvtool.system.errors import KvtoolError
from kvtool.workloads.traces import Trace

Progress = Callable[[str, float], None]


def replay(
    trace: Trace,
    options: ReplayOptions,
    *,
    model: Model | None = None,
    gpu: Gpu | None = None,
    progress: Progress = lambda doing, done: None,
) -> ReplayDocument:
    """The document. `progress` is told what is being done, and which part of it all is behind.

    Raises KvtoolError for a trace that cannot be decoded, and for bytes or a card without a model.
    """
    (document,) = replay_all([trace], options, model=model, gpu=gpu, progress=progress)
    return document


def replay_all(
    traces: Sequence[Trace],
    options: ReplayOptions,
    *,
    model: Model | None = None,
    gpu: Gpu | None = None,
    progress: Progress = lambda doing, done: None,
) -> list[ReplayDocument]:
    """A document a trace, each as `replay` makes it; their replays run side by side. Raises KvtoolError as it does."""
    check_asked(options, model, gpu)
    loops, prepared = core(), []
    for place, trace in enumerate(traces):
        progress(f"reading {trace.name}", 0.5 * place / len(traces))
        prepared.append(_prepared(trace, loops, options, model, gpu))
    progress("policies and ceilings", 0.5)
    found = sweep(loops, [one.run.replays for one in prepared], options.workers)
    return [_document(one, hits, options, model, gpu, progress) for one, hits in zip(prepared, found, strict=True)]


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A trace that was read, with LRU's curve; `warnings` are of its own order."""

    trace: Trace
    accesses: Accesses
    warnings: list[str]
    room: BlockBytes | None
    times: StepTimes | None
    run: Run


def _prepared(trace: Trace, loops: Core, options: ReplayOptions, model: Model | None, gpu: Gpu | None) -> _Prepared:
    accesses = read_accesses(trace, loops)
    found = warnings(accesses)
    accesses = accesses.by_time() if options.sort_by_time else accesses
    room = times = None
    if model is not None:
        room = block_bytes(
            model,
            block_size=accesses.block_size,
            kv_cache_dtype=options.kv_cache_dtype,
            state_every=options.state_every,
        )
        times = _step_times(model, gpu, options, room, accesses.block_size)
    run = Run(loops, accesses, options, room, None if times is None else times.floor)
    return _Prepared(trace, accesses, found, room, times, run)


def _document(
    one: _Prepared,
    hits: Mapping[Point, IntArray],
    options: ReplayOptions,
    model: Model | None,
    gpu: Gpu | None,
    progress: Progress,
) -> ReplayDocument:
    lower = _lower(one, options, model, gpu)
    if lower is not None:
        progress("on the clock", 0.7)
        one.run.serve(lower)
    floor = None if one.times is None else one.times.floor
    return ReplayDocument(
        trace=one.run.fingerprint(),
        model=None if model is None else model.id,
        kv_cache_dtype=None if model is None else parse_cache_format(options.kv_cache_dtype, model.dtype).name,
        bytes_per_block=None if one.room is None else one.room.uniform,
        gpu=_device(gpu, options.measured, one.times),
        definition=definition(options.policies, options.last),
        rows=list(one.run.rows(hits)),
        curves=list(one.run.curve_documents()),
        tiers=list(one.run.tiers.values()),
        cluster=None if options.cluster is None else _cluster(one.trace, options, model, gpu, progress),
        break_even=[] if lower is None else break_even(lower.times.floor, lower.links),
        warnings=one.warnings,
        assumptions=[
            *(() if model is None else model.assumed),
            *assumptions(one.accesses, one.room, floor, sorted_by_time=options.sort_by_time),
            *([] if lower is None else tier_assumptions(lower.options)),
            *([] if options.cluster is None else CLUSTER_ASSUMPTIONS),
            *options.measured.sources,
            *([] if one.times is None or one.times.spread is None else [steps_words(one.times)]),
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


def _cluster(
    trace: Trace, options: ReplayOptions, model: Model | None, gpu: Gpu | None, progress: Progress
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


def _lower(one: _Prepared, options: ReplayOptions, model: Model | None, gpu: Gpu | None) -> TierReplay | None:
    """The tiers below the GPU, where they were asked for. Raises KvtoolError for blocks of unequal bytes."""
    if options.tiers is None:
        return None
    assert model is not None
    assert one.room is not None
    assert one.times is not None
    if one.room.uniform is None:
        raise KvtoolError("--tiers move blocks of one size: leave out --state-every")
    pcie_gbps = None if gpu is None or gpu.pcie_gbps is None else gpu.pcie_gbps * options.tp
    with_speeds = options.tiers.with_speeds(options.measured.tiers, pcie_gbps)
    links = Links(with_speeds.tiers, one.room.uniform, one.accesses.block_size, model.num_layers)
    first = first_counted(one.accesses.num_requests, options.last)
    return TierReplay(one.accesses, one.times, links, with_speeds, first, one.run.full_blocks, options.goals_s)
