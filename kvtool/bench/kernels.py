"""The attention kernels alone, over contexts and batch sizes, next to the device's limits measured in the same run."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import msgspec
import torch

from kvtool.bench.accounting import ACCOUNTING_LIMIT, CACHE_MULTIPLE, IMPOSSIBLE, IN_CACHE
from kvtool.bench.environment import describe_environment
from kvtool.bench.kernel_calls import Measurement, filled_pool
from kvtool.bench.kernel_options import KernelsOptions
from kvtool.bench.kernel_work import KernelWork, left_out, plan
from kvtool.bench.metrics import summary_ms
from kvtool.bench.roofline import Ceiling, last_level_cache_bytes, measure_roofline, stream_buffer_bytes
from kvtool.bench.run import CEILING_SECONDS, Progress
from kvtool.bench.timers import Call, CallTimer, call_timer, is_cuda, time_samples
from kvtool.catalog.model import Model
from kvtool.engine.config import available_bytes, resolve_backend, resolve_device, resolve_dtype
from kvtool.engine.device import device_errors
from kvtool.engine.loaded import TORCH_DTYPES
from kvtool.engine.pool import KvPool, cache_dtype
from kvtool.errors import DeviceError
from kvtool.kernels import load_kernels
from kvtool.results import KernelCase, KernelMemory, KernelMetrics, KernelRoofline, KernelsDocument
from kvtool.sizing.formats import CacheFormat, parse_cache_format
from kvtool.units import format_bytes, format_length

PASS_SECONDS = 0.5  # a pass has fewer calls where it would take longer
USABLE_SHARE = 0.9  # of the memory that is free: the rest is for the allocator and the kernels' scratch
DEFINITIONS = {
    "time_ms": "of one call: the mean over a pass through the working set; percentiles are over passes. Where Triton "
    "runs, a CUDA graph of the pass is replayed, so that no launch from Python is in it",
    "bytes": "what a call must move at least once: K and V of the tokens that its queries see, once; other = queries, "
    "outputs and block tables, or the rows to store",
    "working_set_bytes": "the cache that the calls of one pass go through, each on pages of its own in random order",
    "gbps": "bytes / median time",
    "tflops": "FLOPs of QK^T and PV, causal, a multiply-accumulate being two / median time",
    "mbu": "gbps / read bandwidth measured in this run",
    "mfu": "tflops / FLOP/s of a matrix product measured in this run",
    "ideal_ms": "the longer of bytes / measured read bandwidth and FLOPs / measured FLOP/s",
    "max_abs_diff": "of one call: largest difference from the reference kernels, which compute in fp32",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """`errors` name cases whose accounting cannot be right, `unequal` those that the reference contradicts."""

    document: KernelsDocument
    interrupted: bool
    errors: list[str]
    unequal: list[str]


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


def measure_kernels(model: Model, options: KernelsOptions, *, progress: Progress) -> Outcome:
    """Everything asked for. Ctrl-C keeps the cases that were done. Raises KvtoolError or DeviceError.

    `progress` is told what is going on and how much is behind it, 0 to 1.
    """
    setup = _setup(model, options)
    works = plan(model, options, setup.formats, setup.dtype)
    fitting = _fitting(works, setup)
    progress("measuring the device", 0.0)
    ceiling = _ceiling(setup)
    cases, interrupted = _run(fitting, setup, progress)
    if not cases:
        raise KeyboardInterrupt
    progress("measuring the device again", 1.0)
    # The device may have been busier with others before or after: its limit is the better of the two.
    ceiling = ceiling if interrupted else ceiling.best_of(_ceiling(setup))
    cases = [with_roofline(case, ceiling) for case in cases]
    assumptions = ["K, V and queries are random: the work is that of real ones, the outputs mean nothing"]
    assumptions += left_out(model, setup.formats[0])
    if len(fitting) < len(works):
        assumptions.append(f"{len(works) - len(fitting)} cases of the default grid do not fit the memory: left out")
    if interrupted:
        assumptions.append("interrupted: cases are missing")
    document = KernelsDocument(
        environment=describe_environment(str(setup.device)),
        definitions=DEFINITIONS,
        assumptions=assumptions,
        cases=cases,
    )
    return Outcome(
        document,
        interrupted,
        errors=[f"{c.name}: {c.roofline.reason}" for c in cases if (c.roofline.reason or "").startswith(IMPOSSIBLE)],
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


def _run(works: list[KernelWork], setup: Setup, progress: Progress) -> tuple[list[KernelCase], bool]:
    """The cases of all works, or of those before Ctrl-C and True."""
    cases: list[KernelCase] = []
    try:
        for work, pool in _with_pools(works, setup):
            progress(f"{work.kernel}: {format_length(work.context)} x {work.batch_size}", len(cases) / len(works))
            with device_errors(f"measuring {work.name}"), torch.inference_mode():
                cases.append(_case(work, pool, setup))
    except KeyboardInterrupt:
        return cases, True
    return cases, False


def _with_pools(works: list[KernelWork], setup: Setup) -> Iterator[tuple[KernelWork, KvPool]]:
    """Each work with a pool that has room for it; works of one layer and page size share theirs."""
    for _, group in groupby(works, key=lambda work: (work.spec, work.block_size)):
        sharing = list(group)
        num_pages = max(work.pool_pages(setup.stream_bytes) for work in sharing)
        with device_errors(f"making a pool of {num_pages} pages"), torch.inference_mode():
            pool = filled_pool(sharing[0], num_pages, setup.device, _random(setup))
        for work in sharing:
            yield work, pool
        del pool
        gc.collect()  # before the next group asks for its own


def _case(work: KernelWork, pool: KvPool, setup: Setup) -> KernelCase:
    options = setup.options
    measurement = Measurement(work, load_kernels(setup.backend), pool, work.calls(setup.stream_bytes), _random(setup))
    check = measurement.check()
    calls = _within(PASS_SECONDS, measurement.calls, call_timer(str(setup.device)))
    sweep = captured(calls, setup.device) if setup.backend == "triton" else partial(run_all, calls)
    passes = time_samples(
        sweep, device=str(setup.device), warmup=options.num_iters_warmup, iterations=options.num_iters
    )
    samples = [seconds / len(calls) for seconds in passes]
    time_ms = summary_ms(samples)
    assert time_ms is not None
    moved, seconds = work.bytes, time_ms.p50 / 1e3
    return KernelCase(
        name=work.name,
        kernel=work.kernel,
        inputs=_inputs(work, setup),
        samples_s=samples,
        metrics=KernelMetrics(
            time_ms=time_ms,
            gbps=(moved.kv_read + moved.kv_written + moved.other) / seconds / 1e9,
            tflops=moved.flops / seconds / 1e12 if moved.flops else None,
        ),
        bytes=moved,
        memory=KernelMemory(
            pool_bytes=pool.bytes, working_set_bytes=len(calls) * work.kv_bytes, calls_per_sample=len(calls)
        ),
        roofline=KernelRoofline(),
        check=check,
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


def run_all(calls: Sequence[Call]) -> None:
    """One pass through the working set."""
    for call in calls:
        call()


def _within(seconds: float, calls: Sequence[Call], timer: CallTimer) -> Sequence[Call]:
    """As many of the calls, at least one, as take so long together."""
    spent_s = 0.0
    for count, call in enumerate(calls, 1):
        spent_s += timer(call)
        if spent_s >= seconds:
            return calls[:count]
    return calls


def captured(calls: Sequence[Call], device: torch.device) -> Call:
    """A pass as one CUDA graph: replaying it leaves the cost of launching from Python out."""
    with torch.cuda.device(device):
        run_all(calls)  # compiles what has not run yet, which a capture must not
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run_all(calls)
    return graph.replay


def with_roofline(case: KernelCase, ceiling: Ceiling) -> KernelCase:
    """The case next to the measured limits. A share that no device can reach is null, and `reason` says so."""
    moved, seconds = case.bytes, case.metrics.time_ms.p50 / 1e3
    memory_s = (moved.kv_read + moved.kv_written + moved.other) / (ceiling.read_gbps * 1e9)
    compute_s = moved.flops / (ceiling.tflops * 1e12)
    streams = ceiling.llc_bytes is None or case.memory.working_set_bytes >= CACHE_MULTIPLE * ceiling.llc_bytes
    mbu = memory_s / seconds if streams else None
    mfu = compute_s / seconds if moved.flops else None
    reason = None if streams else IN_CACHE
    wrong = [f"{n} {v:.2f}" for n, v in (("MBU", mbu), ("MFU", mfu)) if v is not None and v > ACCOUNTING_LIMIT]
    if wrong:
        mbu, mfu, reason = None, None, f"{IMPOSSIBLE}: {' and '.join(wrong)} of what the device did in the same run"
    roofline = KernelRoofline(
        read_gbps_measured=ceiling.read_gbps,
        copy_gbps_measured=ceiling.copy_gbps,
        tflops_measured=ceiling.tflops,
        ideal_ms=max(memory_s, compute_s) * 1e3,
        mbu=mbu,
        mfu=mfu,
        bound="memory" if memory_s >= compute_s else "compute",
        reason=reason,
    )
    return msgspec.structs.replace(case, roofline=roofline)


def _ceiling(setup: Setup) -> Ceiling:
    return measure_roofline(str(setup.device), TORCH_DTYPES[setup.dtype], seconds=CEILING_SECONDS)


def _random(setup: Setup) -> torch.Generator:
    return torch.Generator(setup.device).manual_seed(setup.options.seed)
