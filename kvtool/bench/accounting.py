"""Bytes and FLOPs that a case must move and do, and how far its times are from the device's own limits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean, median

import msgspec

from kvtool.bench.metrics import tpot_s
from kvtool.engine.loaded import LoadedModel
from kvtool.errors import KvtoolError
from kvtool.machine.roofline import Ceiling
from kvtool.results import Case, Roofline, StepBytes
from kvtool.sizing.dtypes import FLOAT_BYTES
from kvtool.sizing.layers import layer_specs
from kvtool.sizing.params import ParamCount, count_params
from kvtool.sizing.traffic import decode_flops, decode_kv_read_bytes, experts_touched, kv_written_bytes, prefill_flops
from kvtool.workloads import Request

ACCOUNTING_LIMIT = 1.03  # more than this share of a measured limit means that bytes or FLOPs were miscounted
IMPOSSIBLE = "accounting error"
CACHE_MULTIPLE = 2  # a working set under this many last-level caches may be served from them
MOVED = "the device's speed changed in the middle of the case"
IN_CACHE = f"the working set is under {CACHE_MULTIPLE}x the last-level cache, which may serve it faster than memory"


def step_bytes(loaded: LoadedModel, requests: Sequence[Request]) -> StepBytes:
    """Of the requests prefilled together and then decoded together, all of one length."""
    model, itemsize = loaded.model, FLOAT_BYTES[loaded.dtype]
    params = _counted(loaded)
    specs = layer_specs(model, loaded.cache_format)  # what attention reads, which a window bounds
    lengths = [len(request.prompt_ids) for request in requests]
    steps = range(1, max(2, requests[0].output_len))
    return StepBytes(
        weights_read=_weights_read(loaded, params, len(requests)) * itemsize,
        kv_read=round(mean(decode_kv_read_bytes(specs, [n + step for n in lengths]) for step in steps)),
        kv_written=kv_written_bytes(specs, len(requests)),
        other=len(requests) * (model.hidden_size + (model.vocab_size or 0)) * itemsize,
        prefill_flops=sum(_known(prefill_flops(model, n)) for n in lengths),
        decode_flops=round(mean(_known(decode_flops(model, [n + step for n in lengths])) for step in steps)),
    )


def _counted(loaded: LoadedModel) -> ParamCount:
    params = count_params(loaded.model)
    if params is None:
        raise KvtoolError(f"the parameters of {loaded.model.id} cannot be counted, so neither can its bytes")
    return params


def _known(flops: int | None) -> int:
    assert flops is not None, "the parameters were counted before"
    return flops


def _weights_read(loaded: LoadedModel, params: ParamCount, batch_size: int) -> int:
    """Parameters that a decode step reads: the dense ones, and those of the experts that the batch reaches."""
    moe = loaded.model.moe
    if moe is None:
        return params.dense_read
    return params.dense_read + round(params.experts * experts_touched(moe, batch_size) / moe.num_experts)


def with_roofline(case: Case, best: Ceiling, beside: Sequence[Ceiling] = ()) -> Case:
    """The case next to the limits measured `beside` each of its iterations, where they were, or to the run's `best`.

    An MBU or MFU that no device can reach is null, and `reason` says so.
    """
    iterations = 1 + max(sample.iteration for sample in case.samples)
    limits = beside if len(beside) == iterations else [best] * iterations
    read_gbps, tflops = median(limit.read_gbps for limit in limits), median(limit.tflops for limit in limits)
    moved = case.bytes
    step_total = moved.weights_read + moved.kv_read + moved.kv_written + moved.other
    memory_s, compute_s = step_total / (read_gbps * 1e9), moved.decode_flops / (tflops * 1e12)
    prefill_memory_s, prefill_compute_s = moved.weights_read / (read_gbps * 1e9), moved.prefill_flops / (tflops * 1e12)
    reason = _no_mbu_reason(case, step_total, best.llc_bytes)
    queues = case.inputs.get("request_rate") or case.inputs.get("concurrency")
    mbu = mfu = None
    if not reason:
        mbu = median(step_total / s / (limits[i].read_gbps * 1e9) for i, s in _tpot_s(case).items())
    if not queues:
        mfu = median(moved.prefill_flops / s / (limits[i].tflops * 1e12) for i, s in _prefill_s(case).items())
    if beyond := _beyond(mbu, mfu, read_gbps / best.read_gbps, tflops / best.tflops):
        mbu, mfu, reason = None, None, beyond
    roofline = Roofline(
        read_gbps_measured=read_gbps,
        copy_gbps_measured=best.copy_gbps,
        tflops_measured=tflops,
        ideal_tpot_ms=max(memory_s, compute_s) * 1e3,
        mbu=mbu,
        mfu=mfu,
        bound="memory" if memory_s >= compute_s else "compute",
        prefill_bound="memory" if prefill_memory_s >= prefill_compute_s else "compute",
        reason=reason,
    )
    return msgspec.structs.replace(case, roofline=roofline)


def _beyond(mbu: float | None, mfu: float | None, read_share: float, tflops_share: float) -> str | None:
    """What is wrong with an MBU or MFU above the limit. Beside the case the device did these shares of the run's best,
    which nothing can beat; the speed beside a case it may have beaten by changing in its middle."""
    wrong = [f"{n} {v:.2f}" for n, v in (("MBU", mbu), ("MFU", mfu)) if v is not None and v > ACCOUNTING_LIMIT]
    if not wrong:
        return None
    impossible = max((mbu or 0.0) * read_share, (mfu or 0.0) * tflops_share) > ACCOUNTING_LIMIT
    return f"{IMPOSSIBLE if impossible else MOVED}: {' and '.join(wrong)} of what the device did in the same run"


def is_impossible(case: Case) -> bool:
    """Whether the accounting of the case must be wrong."""
    return (case.roofline.reason or "").startswith(IMPOSSIBLE)


def _tpot_s(case: Case) -> dict[int, float]:
    """The median TPOT of each iteration, of the arm that the case's metrics are of."""
    found = defaultdict(list)
    for sample in case.samples:
        if sample.arm != "uncached" and (seconds := tpot_s(sample)) is not None:
            found[sample.iteration].append(seconds)
    return {iteration: median(seconds) for iteration, seconds in found.items()}


def _prefill_s(case: Case) -> dict[int, float]:
    """The time of each iteration's prefill of the whole batch with nothing cached."""
    batches = defaultdict(list)
    for sample in case.samples:
        if sample.arm != "cached":
            batches[sample.iteration].append(sample.ttft_s)
    return {iteration: max(batch) for iteration, batch in batches.items()}


def _no_mbu_reason(case: Case, step_total: int, llc_bytes: int | None) -> str | None:
    """Why decode has no MBU, or None where it has one."""
    if case.metrics.tpot_ms is None:
        return "one output token has no TPOT"
    if case.inputs.get("request_rate") or case.inputs.get("concurrency"):
        return "requests queue, so that a step also prefills others"
    if case.inputs.get("arm") == "no_cache":
        return "without a cache a step is a prefill"
    if llc_bytes is not None and step_total < CACHE_MULTIPLE * llc_bytes:
        return IN_CACHE
    return None
