"""The attention kernels alone, over contexts and batch sizes, next to the device's limits measured in the same run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import msgspec
import torch

from kvtool.bench.definitions import KERNEL_DEFINITIONS
from kvtool.bench.kernels.calls import Measurement, filled_pool
from kvtool.bench.kernels.options import KernelsOptions
from kvtool.bench.kernels.passes import Pass, cache_flush, first_call_s, make_pass, within
from kvtool.bench.kernels.race import Track, enter, with_times
from kvtool.bench.kernels.work import KernelWork, left_out, plan
from kvtool.bench.limits import CACHE_MULTIPLE, IN_CACHE, accounting_errors, beyond, streams
from kvtool.bench.metrics import summary_ms
from kvtool.bench.session import Outcome, Progress, Session, Step
from kvtool.catalog.model import Model
from kvtool.engine.config import resolve_backend, resolve_dtype
from kvtool.engine.loaded import TORCH_DTYPES
from kvtool.engine.pool import KvPool, cache_dtype
from kvtool.kernels import load_kernels
from kvtool.machine.device import device_errors, resolve_device
from kvtool.machine.memory import available_bytes
from kvtool.machine.nvml import NvmlSampler, open_card
from kvtool.machine.roofline import Ceiling, last_level_cache_bytes, stream_buffer_bytes
from kvtool.machine.timers import Call, call_timer, is_cuda, time_in_turns
from kvtool.results import KernelCase, KernelColdStart, KernelMemory, KernelMetrics, KernelRoofline, KernelsDocument
from kvtool.results.warnings import unsteady_warnings
from kvtool.sizing.formats import CacheFormat, parse_cache_format
from kvtool.sizing.speed.roofline import bound, compute_s, memory_s
from kvtool.system.errors import DeviceError
from kvtool.units import format_bytes, format_length

PASS_SECONDS = 0.5  # a pass has fewer calls where it would take longer
USABLE_SHARE = 0.9  # of the memory that is free: the rest is for the allocator and the kernels' scratch


@dataclass(frozen=True, slots=True)
class Setup:
    """What all cases share, resolved once. A pass goes through `stream_bytes` of cache."""

    options: KernelsOptions
    device: torch.device
    backend: str
    dtype: str
    formats: tuple[CacheFormat, ...]
    llc_bytes: int | None
    stream_bytes: int
    flush: Call | None


def measure_kernels(
    model: Model, options: KernelsOptions, *, progress: Progress, ceiling: Ceiling | None = None
) -> Outcome[KernelsDocument]:
    """Everything asked for, beside the device's `ceiling`, measured before and after where it is None. Ctrl-C keeps the
    cases that were done. Raises KvtoolError or DeviceError."""
    setup = _setup(model, options)
    works = plan(model, options, setup.formats, setup.dtype)
    fitting = _fitting(works, setup)
    session = Session(str(setup.device), TORCH_DTYPES[setup.dtype], progress, ceiling)
    measured = session.run(_steps(fitting, setup), total=len(fitting))
    conditions = session.end()
    cases = [with_roofline(case, conditions.ceiling) for case in measured]
    random = "K, V and queries are random: the work is that of real ones, the outputs mean nothing"
    assumptions = [*model.assumed, random]
    assumptions += left_out(model, setup.formats[0])
    if len(fitting) < len(works):
        assumptions.append(f"{len(works) - len(fitting)} cases of the default grid do not fit the memory: left out")
    document = KernelsDocument(
        environment=conditions.environment,
        definitions=KERNEL_DEFINITIONS,
        assumptions=[*assumptions, *unsteady_warnings(cases), *conditions.warnings(cases)],
        cases=cases,
    )
    return Outcome(
        document=document,
        interrupted=conditions.interrupted,
        errors=[*conditions.failures, *accounting_errors(cases)],
        unequal=[f"{case.name}: {case.check.text}" for case in cases if not case.check.outputs_equal],
    )


def _setup(model: Model, options: KernelsOptions) -> Setup:
    device = resolve_device(options.device)
    dtype = resolve_dtype(options.dtype, model, device)
    formats = tuple(parse_cache_format(name, dtype) for name in options.kv_cache_dtypes)
    for cache_format in formats:
        cache_dtype(cache_format.name)
    llc_bytes = last_level_cache_bytes(str(device))
    return Setup(
        options=options,
        device=device,
        backend=resolve_backend(options.backend, device),
        dtype=dtype,
        formats=formats,
        llc_bytes=llc_bytes,
        stream_bytes=_stream_bytes(str(device), llc_bytes),
        flush=cache_flush(str(device), CACHE_MULTIPLE * llc_bytes) if llc_bytes else None,
    )


def _stream_bytes(device: str, llc_bytes: int | None) -> int:
    """Cache that a pass goes through: what the ceiling streams over, or less where that takes a CPU too long."""
    return stream_buffer_bytes(device, llc_bytes) if is_cuda(device) or not llc_bytes else CACHE_MULTIPLE * llc_bytes


def _fitting(works: list[KernelWork], setup: Setup) -> list[KernelWork]:
    """The works that memory has room for. Raises DeviceError where none does, or one that was asked for does not."""
    usable = int(USABLE_SHARE * available_bytes(setup.device))
    fitting = [work for work in works if work.needed_bytes(setup.stream_bytes) <= usable]
    if len(fitting) == len(works) or (setup.options.drop_oversized and fitting):
        return fitting
    largest = max(works, key=lambda work: work.needed_bytes(setup.stream_bytes))
    raise DeviceError(
        f"{largest.kernel} at context {format_length(largest.context)} x batch {largest.batch_size} needs "
        f"{format_bytes(largest.needed_bytes(setup.stream_bytes))} and {setup.device} has {format_bytes(usable)} "
        "to give: lower --context or --batch-size"
    )


def _steps(works: list[KernelWork], setup: Setup) -> Iterator[Step[KernelCase]]:
    """One for each work, with a pool that has room for it; works of one layer and page size share theirs."""
    for _, group in groupby(works, key=lambda work: (work.spec, work.block_size)):
        sharing = list(group)
        num_pages = max(work.pool_pages(setup.stream_bytes) for work in sharing)
        shared: list[KvPool] = []  # made by the first case that can
        for work in sharing:
            name = f"{work.kernel}: {format_length(work.context)} x {work.batch_size}"
            yield Step(name, partial(_measured, work, shared, num_pages, setup))
        shared.clear()  # before the next group asks for its own


def _measured(work: KernelWork, shared: list[KvPool], num_pages: int, setup: Setup) -> KernelCase:
    """On the pool of its group, `shared`, of `num_pages`."""
    with torch.inference_mode():
        if not shared:
            with device_errors(f"making a pool of {num_pages} pages"):
                shared.append(filled_pool(work, num_pages, setup.device, _random(setup)))
        with device_errors(f"measuring {work.name}"):
            return _case(work, shared[0], setup)


def _case(work: KernelWork, pool: KvPool, setup: Setup) -> KernelCase:
    device = str(setup.device)
    measurement = Measurement(work, load_kernels(setup.backend), pool, work.calls(setup.stream_bytes), _random(setup))
    first_s = first_call_s(measurement.calls[0], device)
    check = measurement.check()
    timer, capture = call_timer(device), setup.backend == "triton"
    ours = make_pass(within(PASS_SECONDS, measurement.calls, timer), setup.device, capture=capture)
    track = Track(setup.device, ours.num_calls, PASS_SECONDS, timer, capture)
    raced = measurement.scenes and not work.decompressed  # peers attend to pages as they are
    entries = [enter(name, measurement, track) for name in setup.options.peers] if raced else []
    passes = [ours, *(entry.timed for entry in entries if entry.timed is not None)]
    flushes = [setup.flush if _may_stay_cached(each, work, setup) else None for each in passes]
    with NvmlSampler(open_card(device)) as power:
        timed = time_in_turns(
            [each.contender(flush) for each, flush in zip(passes, flushes, strict=True)],
            device=device,
            warmup=setup.options.num_iters_warmup,
            iterations=setup.options.num_iters,
        )
    samples = [seconds / ours.num_calls for seconds in timed[0].seconds]
    peers_s = iter(timed[1:])
    return KernelCase(
        name=work.name,
        kernel=work.kernel,
        inputs=_inputs(work, setup),
        samples_s=samples,
        metrics=_metrics(work, samples),
        bytes=work.bytes,
        memory=_memory(work, pool, ours, flushed=flushes[0] is not None),
        roofline=KernelRoofline(),
        check=check,
        cold_start=KernelColdStart(first_call_s=first_s, capture_s=ours.capture_s),
        power=power.summary,
        steady=timed[0].warm_up.steady,
        peers=[with_times(e, next(peers_s).seconds, samples) if e.timed is not None else e.result for e in entries],
    )


def _memory(work: KernelWork, pool: KvPool, ours: Pass, *, flushed: bool) -> KernelMemory:
    return KernelMemory(
        pool_bytes=pool.bytes,
        working_set_bytes=ours.num_calls * work.kv_bytes,
        calls_per_sample=ours.num_calls,
        flushed=flushed,
    )


def _may_stay_cached(each: Pass, work: KernelWork, setup: Setup) -> bool:
    """Whether a pass goes through so little that the next may find it in the device's cache."""
    return not streams(each.num_calls * work.kv_bytes, setup.llc_bytes)


def _metrics(work: KernelWork, samples: list[float]) -> KernelMetrics:
    time_ms = summary_ms(samples)
    assert time_ms is not None
    called, seconds = work.bytes, time_ms.p50 / 1e3
    return KernelMetrics(
        time_ms=time_ms,
        gbps=called.moved / seconds / 1e9,
        tflops=called.flops / seconds / 1e12 if called.flops else None,
    )


def _inputs(work: KernelWork, setup: Setup) -> dict[str, str | int | float | bool | None]:
    """All that is needed to run the case again."""
    return {
        "model": work.model.id,
        "layer": work.spec.kind,
        "context": None if work.part == "store" else work.context,
        "batch_size": work.batch_size,
        "query_len": work.query_len,
        "dtype": work.dtype,
        "kv_cache_dtype": work.cache_dtype,
        "block_size": work.block_size,
        "device": str(setup.device),
        "backend": setup.backend,
        "threads": torch.get_num_threads(),
        "num_iters": setup.options.num_iters,
        "num_iters_warmup": setup.options.num_iters_warmup,
        "seed": setup.options.seed,
    }


def with_roofline(case: KernelCase, ceiling: Ceiling) -> KernelCase:
    """The case next to the measured limits. A share that no device can reach is null, and `reason` says so."""
    work, memory, seconds = case.bytes, case.memory, case.metrics.time_ms.p50 / 1e3
    read_s, flops_s = memory_s(work.moved, ceiling.read_gbps), compute_s(work.flops, ceiling.tflops)
    # What is read after a flush comes from memory; what is written may still be on its way there.
    flushed = memory.flushed and not work.kv_written
    reason = None if flushed or streams(memory.working_set_bytes, ceiling.llc_bytes) else IN_CACHE
    mbu = None if reason else read_s / seconds
    mfu = flops_s / seconds if work.flops else None
    if wrong := beyond(mbu, mfu):
        mbu, mfu, reason = None, None, wrong
    roofline = KernelRoofline(
        read_gbps_measured=ceiling.read_gbps,
        copy_gbps_measured=ceiling.copy_gbps,
        tflops_measured=ceiling.tflops,
        ideal_ms=max(read_s, flops_s) * 1e3,
        mbu=mbu,
        mfu=mfu,
        bound=bound(read_s, flops_s),
        reason=reason,
    )
    return msgspec.structs.replace(case, roofline=roofline)


def _random(setup: Setup) -> torch.Generator:
    return torch.Generator(setup.device).manual_seed(setup.options.seed)
