"""Bytes and FLOPs that a case must move and do, and how far its times are from the device's own limits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean, median

import msgspec

from kvtool.bench.roofline import Ceiling
from kvtool.engine.loaded import LoadedModel
from kvtool.errors import KvtoolError
from kvtool.results import Case, Roofline, StepBytes
from kvtool.sizing.dtypes import FLOAT_BYTES
from kvtool.sizing.layers import layer_specs
from kvtool.sizing.params import ParamCount, count_params
from kvtool.sizing.traffic import decode_flops, decode_kv_read_bytes, experts_touched, kv_written_bytes, prefill_flops
from kvtool.workloads import Request

ACCOUNTING_LIMIT = 1.03  # more than this share of a measured limit means that bytes or FLOPs were miscounted
IMPOSSIBLE = "accounting error"
CACHE_MULTIPLE = 2  # a working set under this many last-level caches may be served from them
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


def with_roofline(case: Case, ceiling: Ceiling) -> Case:
    """The case next to the measured limits. An MBU or MFU that no device can reach is null, and `reason` says so."""
    moved = case.bytes
    step_total = moved.weights_read + moved.kv_read + moved.kv_written + moved.other
    memory_s, compute_s = step_total / (ceiling.read_gbps * 1e9), moved.decode_flops / (ceiling.tflops * 1e12)
    prefill_memory_s = moved.weights_read / (ceiling.read_gbps * 1e9)
    prefill_compute_s = moved.prefill_flops / (ceiling.tflops * 1e12)
    reason = _no_mbu_reason(case, step_total, ceiling.llc_bytes)
    mbu = None if reason or case.metrics.tpot_ms is None else memory_s / (case.metrics.tpot_ms.p50 / 1e3)
    mfu = (
        None
        if case.inputs.get("request_rate") or case.inputs.get("concurrency")
        else prefill_compute_s / _prefill_s(case)
    )
    wrong = [f"{n} {v:.2f}" for n, v in (("MBU", mbu), ("MFU", mfu)) if v is not None and v > ACCOUNTING_LIMIT]
    if wrong:
        mbu, mfu, reason = None, None, f"{IMPOSSIBLE}: {' and '.join(wrong)} of what the device did in the same run"
    roofline = Roofline(
        read_gbps_measured=ceiling.read_gbps,
        copy_gbps_measured=ceiling.copy_gbps,
        tflops_measured=ceiling.tflops,
        ideal_tpot_ms=max(memory_s, compute_s) * 1e3,
        mbu=mbu,
        mfu=mfu,
        bound="memory" if memory_s >= compute_s else "compute",
        prefill_bound="memory" if prefill_memory_s >= prefill_compute_s else "compute",
        reason=reason,
    )
    return msgspec.structs.replace(case, roofline=roofline)


def is_impossible(case: Case) -> bool:
    """Whether the accounting of the case must be wrong."""
    return (case.roofline.reason or "").startswith(IMPOSSIBLE)


def _prefill_s(case: Case) -> float:
    """The median time of a prefill of the whole batch with nothing cached."""
    batches = defaultdict(list)
    for sample in case.samples:
        if sample.arm != "cached":
            batches[sample.iteration].append(sample.ttft_s)
    return median(max(batch) for batch in batches.values())


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
