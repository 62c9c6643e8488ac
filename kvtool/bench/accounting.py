"""Bytes and FLOPs that a case must move and do, and how far its times are from the device's own limits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any, TypeVar

import msgspec

from kvtool.bench.limits import IN_CACHE, beyond, streams
from kvtool.bench.metrics import prefill_s
from kvtool.engine.loaded import LoadedModel
from kvtool.machine.roofline import Ceiling
from kvtool.results import AccuracyCase, Case, PrefixCase, Roofline, Sample, StepBytes, WorkloadCase
from kvtool.sizing.dtypes import FLOAT_BYTES
from kvtool.sizing.layers import layer_specs
from kvtool.sizing.params import ParamCount, count_params
from kvtool.sizing.speed.roofline import bound, compute_s, memory_s
from kvtool.sizing.speed.traffic import (
    decode_flops,
    decode_kv_read_bytes,
    experts_touched,
    kv_written_bytes,
    prefill_flops,
)
from kvtool.system.errors import KvtoolError
from kvtool.workloads import Request

C = TypeVar("C", bound=Case)
TTFT_GAP = 1.15  # times what the roofline allows, beyond which a case says why
LEAST_PART = 0.02  # of a time to first token, that is worth a word


def step_bytes(loaded: LoadedModel, requests: Sequence[Request]) -> StepBytes:
    """Of the requests prefilled together and then decoded together, all of one length."""
    model, itemsize = loaded.model, FLOAT_BYTES[loaded.dtype]
    params = _counted(loaded)
    specs = layer_specs(model, loaded.cache_format)  # what attention reads, which a window bounds
    lengths = [len(request.prompt_ids) for request in requests]
    steps = range(1, max(2, requests[0].output_len))
    saved = loaded.transformer.saved_bytes(len(requests))
    return StepBytes(
        weights_read=_weights_read(loaded, params, len(requests)) * itemsize - saved,
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


def with_roofline(case: C, best: Ceiling, beside: Sequence[Ceiling] = ()) -> C:
    """The case next to the limits measured `beside` each of its iterations, where they were, or to the run's `best`.

    An MBU or MFU that no device can reach is null, and `reason` says so. A case without samples has the limits alone
    where it times anything.
    """
    if not case.samples:
        return _with_limits(case, best) if isinstance(case, AccuracyCase) and case.accuracy.speed else case
    iterations = 1 + max(sample.iteration for sample in case.samples)
    limits = beside if len(beside) == iterations else [best] * iterations
    read_gbps, tflops = median(limit.read_gbps for limit in limits), median(limit.tflops for limit in limits)
    reason = _no_mbu_reason(case, best.llc_bytes)
    mbu = None if reason else _mbu(case, limits)
    mfu = None if _queues(case) else _mfu(case, limits)
    if wrong := beyond(mbu, mfu, read_share=read_gbps / best.read_gbps, tflops_share=tflops / best.tflops):
        mbu, mfu, reason = None, None, wrong
    work = case.bytes
    step_s = memory_s(work.moved, read_gbps), compute_s(work.decode_flops, tflops)
    prefill_s = memory_s(work.weights_read, read_gbps), compute_s(work.prefill_flops, tflops)
    roofline = Roofline(
        read_gbps_measured=read_gbps,
        copy_gbps_measured=best.copy_gbps,
        tflops_measured=tflops,
        ideal_tpot_ms=max(step_s) * 1e3,
        mbu=mbu,
        mfu=mfu,
        bound=bound(*step_s),
        prefill_bound=bound(*prefill_s),
        reason=reason,
        **time_to_first_token(case, read_gbps, tflops),
    )
    return msgspec.structs.replace(case, roofline=roofline)


def _with_limits(case: C, best: Ceiling) -> C:
    limits = {"read_gbps_measured": best.read_gbps, "copy_gbps_measured": best.copy_gbps}
    roofline = msgspec.structs.replace(case.roofline, **limits, tflops_measured=best.tflops)
    return msgspec.structs.replace(case, roofline=roofline)


def time_to_first_token(case: Case, read_gbps: float, tflops: float) -> dict[str, Any]:
    """`ideal_ttft_ms`, `ttft_over_ideal` and `ttft_reason` of a case with hits; nothing of another."""
    work, summary = _prefill_work(case), case.metrics.ttft_ms
    if work is None or summary is None:
        return {}

    def ideal_ms(flops: float, kv_bytes: float) -> float:
        moved_s = memory_s(case.bytes.weights_read + kv_bytes, read_gbps)
        return 1e3 * max(moved_s, compute_s(flops, tflops))

    ideal, without = ideal_ms(work.flops, work.kv_read_bytes), ideal_ms(work.whole_flops, 0)
    over = summary.p50 / ideal
    reason = _ttft_reason(case, summary.p50, ideal, without) if over > TTFT_GAP else None
    return {"ideal_ttft_ms": ideal, "ttft_over_ideal": over, "ttft_reason": reason}


@dataclass(frozen=True, slots=True)
class PrefillWork:
    """Of the average request: FLOPs with and without hits, and bytes of K and V that it finds, and reads."""

    flops: float
    whole_flops: float
    kv_read_bytes: float


def _prefill_work(case: Case) -> PrefillWork | None:
    """None of a case without hits."""
    whole = float(case.bytes.prefill_flops)
    if isinstance(case, PrefixCase):
        return PrefillWork(whole - case.prefix.flops_saved, whole, case.prefix.kv_bytes_not_written)
    if not isinstance(case, WorkloadCase):
        return None
    saved = case.workload.saved
    requests = sum(s.arm == "cached" and s.iteration == s.run == 0 for s in case.samples) or 1
    if saved.flops_ratio:
        whole = saved.flops / saved.flops_ratio / requests
    return PrefillWork(whole - saved.flops / requests, whole, saved.kv_bytes_not_written / requests)


def _ttft_reason(case: Case, ttft_ms: float, ideal_ms: float, ideal_without_ms: float) -> str:
    """What more than the roofline's time goes to, in milliseconds: waiting in turn and for pages from below, requests
    that are prefilled beside it, kernels that do not reach the limits without hits either, and the rest."""
    cached, uncached = ([s for s in case.samples if s.arm == arm] for arm in ("cached", "uncached"))
    beside = beside_ms(cached, ideal_ms)
    without_ms = ideal_without_ms + beside_ms(uncached, ideal_without_ms) if uncached else 0.0
    slower = _computing_ms(uncached) / without_ms if without_ms else 1.0
    left = ttft_ms - ideal_ms
    parts = []
    for ms, what in (
        (1e3 * median(s.queue_s or 0.0 for s in cached), "waiting to be admitted"),
        (1e3 * median(s.load_s or 0.0 for s in cached), "waiting for pages from below"),
        (beside, "at the roofline for requests that are prefilled beside it"),
        (
            max(0.0, slower - 1) * (ideal_ms + beside),
            f"because kernels take {slower:.2f}x the roofline's time without hits too",
        ),
        (left, "small steps, and decodes of others" if _queues(case) else "what a step takes however few its tokens"),
    ):
        part = min(left, ms)
        left -= part
        if part > LEAST_PART * ttft_ms:
            parts.append(f"{part:.3g} ms {what}")
    return (
        f"TTFT of {ttft_ms:.3g} ms is {ttft_ms / ideal_ms:.2f}x the {ideal_ms:.3g} ms that the roofline allows: "
        f"{', '.join(parts) or 'many small waits'}"
    )


def _computing_ms(samples: Sequence[Sample]) -> float:
    """Of the times to first token, what is neither in turn nor for pages from below."""
    return 1e3 * median(s.ttft_s - (s.queue_s or 0.0) - (s.load_s or 0.0) for s in samples)


def beside_ms(samples: Sequence[Sample], alone_ms: float) -> float:
    """What a typical request's neighbours take while it is prefilled, where the average one takes `alone_ms`: each by
    its tokens, as far as both are at it at once. 0 where a batch is prefilled whole, which is then one request."""
    groups = defaultdict(list)
    for sample in samples:
        groups[sample.run, sample.iteration].append(sample)
    token_ms = alone_ms / max(1.0, mean(map(_computed_tokens, samples)))
    found = [
        sum(token_ms * _computed_tokens(other) * _overlap(other, own) for other in group if other is not own)
        for group in groups.values()
        for own in group
    ]
    return median(found)


def _computed_tokens(sample: Sample) -> int:
    return sample.prompt_tokens - sample.cached_tokens


def _overlap(sample: Sample, other: Sample) -> float:
    """The share of a request's prefill during which the other is prefilled too."""
    if sample.arrival_s is None or other.arrival_s is None:
        return 0.0
    start, stop = sample.arrival_s + (sample.queue_s or 0.0), sample.arrival_s + sample.ttft_s
    first, last = other.arrival_s + (other.queue_s or 0.0), other.arrival_s + other.ttft_s
    both = min(stop, last) - max(start, first)
    return max(0.0, both) / (stop - start) if stop > start else 0.0


def _mbu(case: Case, limits: Sequence[Ceiling]) -> float:
    """Of decode: the median over iterations, each against its own limit."""
    return median(memory_s(case.bytes.moved, limits[i].read_gbps) / s for i, s in _tpot_s(case).items())


def _mfu(case: Case, limits: Sequence[Ceiling]) -> float:
    """Of prefill, as `_mbu`."""
    return median(compute_s(case.bytes.prefill_flops, limits[i].tflops) / s for i, s in _prefill_s(case).items())


def _tpot_s(case: Case) -> dict[int, float]:
    """The median TPOT of each iteration, of the arm that the case's metrics are of."""
    found = defaultdict(list)
    for sample in case.samples:
        if not sample.is_compared and (seconds := sample.tpot_s) is not None:
            found[sample.iteration].append(seconds)
    return {iteration: median(seconds) for iteration, seconds in found.items()}


def _prefill_s(case: Case) -> dict[int, float]:
    """The time of each iteration's prefill of the whole batch with nothing cached."""
    batches = defaultdict(list)
    for sample in case.samples:
        if sample.arm != "cached":
            batches[sample.iteration].append(sample)
    return {iteration: prefill_s(batch) for iteration, batch in batches.items()}


def _queues(case: Case) -> bool:
    """Whether prefill and decode of different requests mix in a step."""
    return case.part == "workload" or bool(case.inputs.get("request_rate") or case.inputs.get("concurrency"))


def _no_mbu_reason(case: Case, llc_bytes: int | None) -> str | None:
    """Why decode has no MBU, or None where it has one."""
    if case.metrics.tpot_ms is None:
        return "one output token has no TPOT"
    if _queues(case):
        return "requests queue, so that a step also prefills others"
    if case.inputs.get("arm") == "no_cache":
        return "without a cache a step is a prefill"
    return None if streams(case.bytes.moved, llc_bytes) else IN_CACHE
