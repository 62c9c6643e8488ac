"""The tables of a bench document: latency, memory, prefix hits, and the ways of keeping (or not keeping) K and V."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from kvtool.report.cases import varying_inputs
from kvtool.report.tables import Table
from kvtool.results import BenchDocument, Case, Prefix, Summary
from kvtool.units import format_bytes, format_length, format_ms

# In the order of the tutorials that lead from none to paged.
ARM_NAMES = {
    "no_cache": "no cache",
    "contiguous": "contiguous, grown",
    "preallocated": "preallocated",
    "paged": "paged",
}
# Inputs that become a column where they vary within a document, and are told once above the tables where they do not.
SHARED_INPUTS = (
    *("model", "dtype", "kv_cache_dtype", "block_size", "weights", "num_layers", "backend", "device", "threads"),
    *("num_iters", "num_iters_warmup", "concurrency", "request_rate", "seed"),
)
DASH = "-"


def cases_of(document: BenchDocument, part: str) -> list[Case]:
    """The cases of one part: latency, prefix or no-cache."""
    return [case for case in document.cases if case.part == part]


def bench_tables(document: BenchDocument) -> list[Table]:
    """Every table that the document has cases for."""
    latency, prefix, arms = (cases_of(document, part) for part in ("latency", "prefix", "no-cache"))
    tables = []
    if latency:
        tables += [latency_table(latency), roofline_table(latency), memory_table(latency)]
    if any(case.cold_start.jit_s is not None for case in latency):
        tables.append(cold_start_table(latency))
    if prefix:
        tables += [prefix_table(prefix), prefix_savings_table(prefix)]
    if arms:
        tables += [arm_time_table(arms), arm_memory_table(arms)]
    return tables


def latency_table(cases: Sequence[Case]) -> Table:
    keys = varying(cases, ("input_len", "batch_size"))
    rows = [
        (
            *labels(case, keys),
            p50(case.metrics.ttft_ms),
            p99(case.metrics.ttft_ms),
            p50(case.metrics.tpot_ms),
            p99(case.metrics.tpot_ms),
            rate(case.metrics.prefill_tokens_per_s),
            rate(case.metrics.decode_tokens_per_s),
        )
        for case in cases
    ]
    columns = ("TTFT ms\np50", "TTFT ms\np99", "TPOT ms\np50", "TPOT ms\np99", "prefill\ntok/s", "decode\ntok/s")
    return Table(
        title="How fast",
        columns=(*(heading(k) for k in keys), *columns),
        rows=rows,
        labels=len(keys),
        note="TTFT: time to the first token. TPOT: time for each token after it. Token rates are of the whole batch.",
    )


def roofline_table(cases: Sequence[Case]) -> Table:
    keys = varying(cases, ("input_len", "batch_size"))
    rows = [
        (
            *labels(case, keys),
            p50(case.metrics.tpot_ms),
            format_ms(case.roofline.ideal_tpot_ms),
            percent(case.roofline.mbu),
            bound(case.roofline.bound),
            percent(case.roofline.mfu),
            bound(case.roofline.prefill_bound),
        )
        for case in cases
    ]
    columns = ("TPOT ms\np50", "TPOT ms\nfloor", "decode\nMBU", "decode is", "prefill\nMFU", "prefill is")
    note = (
        "floor: the bytes a decode step must move / the read bandwidth measured in this run. MBU: share of that "
        "bandwidth that decode reached. MFU: share of the FLOP/s measured in this run that prefill reached."
    )
    reasons = sorted({case.roofline.reason for case in cases if case.roofline.reason})
    return Table(
        title="How close to what this device can do",
        columns=(*(heading(k) for k in keys), *columns),
        rows=rows,
        labels=len(keys),
        note=" ".join([note, *(f"Where a figure is {DASH}: {reason}." for reason in reasons)]),
    )


def memory_table(cases: Sequence[Case]) -> Table:
    keys = varying(cases, ("input_len", "batch_size"))
    rows = [
        (
            *labels(case, keys),
            format_bytes(case.memory.kv_predicted_bytes),
            format_bytes(case.memory.kv_allocated_bytes),
            yes_no(case.memory.kv_predicted_bytes == case.memory.kv_allocated_bytes),
            percent(waste_ratio(case), digits=1),
            optional_bytes(case.memory.peak_bytes),
        )
        for case in cases
    ]
    columns = ("predicted", "allocated", "equal", "waste\n%", "peak")
    return Table(
        title="KV cache memory",
        columns=(*(heading(k) for k in keys), *columns),
        rows=rows,
        labels=len(keys),
        note="predicted: what kvtool size computes. allocated: pages held by the requests at their longest. waste: "
        "slots of their last pages that no token fills. peak: most memory in use on the device, where it tells.",
    )


def cold_start_table(cases: Sequence[Case]) -> Table:
    keys = varying(cases, ("input_len", "batch_size"))
    rows = [
        (
            *labels(case, keys),
            optional_seconds(case.cold_start.jit_s),
            optional_seconds(case.cold_start.capture_s),
            str(DASH if case.cold_start.graphs is None else case.cold_start.graphs),
        )
        for case in cases
    ]
    return Table(
        title="Before the first sample",
        columns=(*(heading(k) for k in keys), "compiling\ns", "capturing\ns", "graphs"),
        rows=rows,
        labels=len(keys),
        note="compiling: Triton's kernels, those of an earlier case or run excepted. capturing: one CUDA graph of the "
        "whole decode step for each bucket of the batch.",
    )


def prefix_table(cases: Sequence[Case]) -> Table:
    keys = varying(cases, ("prefix_len", "input_len", "batch_size"))
    rows = [
        (
            *labels(case, keys),
            percent(prefix.measured_hit_rate, digits=1),
            format_ms(uncached_ttft_ms(case)),
            p50(case.metrics.ttft_ms),
            saved_with_interval(prefix),
            percent(prefix.ttft_saved_ratio),
        )
        for case, prefix in with_prefix(cases)
    ]
    columns = ("hits\nfound", "TTFT ms\nuncached", "TTFT ms\ncached", "saved ms\n(95% interval)", "saved\n%")
    return Table(
        title="What prefix hits save: time to first token",
        columns=(*(heading(k) for k in keys), *columns),
        rows=rows,
        labels=len(keys),
        note="The same prompts with and without the prefix cache, interleaved and paired. hits: share of prompt tokens "
        "found in the cache, counted by the allocator. An interval that spans 0 is no saving.",
    )


def prefix_savings_table(cases: Sequence[Case]) -> Table:
    keys = varying(cases, ("prefix_len", "input_len", "batch_size"))
    rows = [
        (
            *labels(case, keys),
            percent(prefix.requested_hit_rate),
            percent(prefix.measured_hit_rate, digits=1),
            format_flops(prefix.flops_saved),
            format_bytes(prefix.kv_bytes_not_written),
            yes_no(case.check.outputs_equal),
        )
        for case, prefix in with_prefix(cases)
    ]
    return Table(
        title="What prefix hits save: work",
        columns=(
            *(heading(k) for k in keys),
            "hits\nasked",
            "hits\nfound",
            "FLOPs\nsaved",
            "KV bytes\nnot written",
            "same\noutput",
        ),
        rows=rows,
        labels=len(keys),
        note="hits asked: --hit-rate; only whole pages can be found. same output: the cached and the uncached run gave "
        "the same tokens, compared inside this run.",
    )


def arm_time_table(cases: Sequence[Case]) -> Table:
    by_arm, lengths = cases_by_arm(cases)
    rows = []
    for length in lengths:
        times = [tpot_ms(by_arm[arm].get(length)) for arm in by_arm]
        ratio = speedup(by_arm, length)
        rows.append((format_length(length), *map(format_ms, times), f"{ratio:.1f}x" if ratio else DASH))
    return Table(
        title="With and without a cache: time per token, ms",
        columns=("tokens", *(ARM_NAMES.get(arm, arm) for arm in by_arm), "no cache /\npaged"),
        rows=rows,
        labels=1,
        note="Median time per token of a sequence that grows to this length. no cache: every step recomputes all "
        "tokens. contiguous, grown: each step copies K and V to append one. preallocated: one buffer for the longest.",
    )


def arm_memory_table(cases: Sequence[Case]) -> Table:
    by_arm, lengths = cases_by_arm(cases)
    rows = [(format_length(length), *(arm_memory(by_arm[arm].get(length)) for arm in by_arm)) for length in lengths]
    return Table(
        title="With and without a cache: K and V held",
        columns=("tokens", *(ARM_NAMES.get(arm, arm) for arm in by_arm)),
        rows=rows,
        labels=1,
        note="At the sequence's full length; in brackets the share that holds no token.",
    )


# --- cells -----------------------------------------------------------------------------------------------------------


def varying(cases: Sequence[Case], always: tuple[str, ...]) -> tuple[str, ...]:
    """The inputs that tell these cases apart, `always` included where the cases have them."""
    told = varying_inputs(cases, SHARED_INPUTS)
    return told + tuple(key for key in always if any(case.inputs.get(key) is not None for case in cases))


def heading(key: str) -> str:
    return {"input_len": "input", "batch_size": "batch", "prefix_len": "prefix"}.get(key, key.replace("_", "\n"))


def labels(case: Case, keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_label(key, case.inputs.get(key)) for key in keys)


def _label(key: str, value: str | int | float | bool | None) -> str:
    if value is None:
        return DASH
    return format_length(value) if key.endswith("_len") and isinstance(value, int) else str(value)


def p50(summary: Summary | None) -> str:
    return format_ms(None if summary is None else summary.p50)


def p99(summary: Summary | None) -> str:
    return format_ms(None if summary is None else summary.p99)


def bound(verdict: str | None) -> str:
    return DASH if verdict is None else f"{verdict}-bound"


def yes_no(answer: bool | None) -> str:
    return DASH if answer is None else "yes" if answer else "NO"


def percent(ratio: float | None, digits: int = 0) -> str:
    return DASH if ratio is None else f"{100 * ratio:.{digits}f}%"


def rate(tokens_per_s: float | None) -> str:
    if tokens_per_s is None:
        return DASH
    return f"{tokens_per_s:,.0f}" if tokens_per_s >= 100 else f"{tokens_per_s:.1f}"


def format_ms_signed(milliseconds: float) -> str:
    return f"-{format_ms(-milliseconds)}" if milliseconds < 0 else format_ms(milliseconds)


def format_flops(flops: int) -> str:
    """`2.75e11` -> `275 G`."""
    for factor, unit in ((10**15, "P"), (10**12, "T"), (10**9, "G"), (10**6, "M")):
        if abs(flops) >= factor:
            return f"{flops / factor:.3g} {unit}"
    return str(flops)


def optional_bytes(count: int | None) -> str:
    return DASH if count is None else format_bytes(count)


def optional_seconds(seconds: float | None) -> str:
    return DASH if seconds is None else f"{seconds:.2f}"


def waste_ratio(case: Case) -> float | None:
    allocated = case.memory.kv_allocated_bytes
    return case.memory.kv_waste_bytes / allocated if allocated else None


def with_prefix(cases: Sequence[Case]) -> list[tuple[Case, Prefix]]:
    """The cases that have a prefix result, with it."""
    return [(case, case.prefix) for case in cases if case.prefix is not None]


def saved_with_interval(prefix: Prefix) -> str:
    low, high = format_ms_signed(prefix.ttft_saved_ms_ci_low), format_ms_signed(prefix.ttft_saved_ms_ci_high)
    return f"{format_ms_signed(prefix.ttft_saved_ms)} ({low} to {high})"


def uncached_ttft_ms(case: Case) -> float | None:
    """The median TTFT of the uncached arm, from its samples."""
    seconds = [sample.ttft_s for sample in case.samples if sample.arm == "uncached"]
    return 1e3 * median(seconds) if seconds else None


# --- the arms of the no-cache part -----------------------------------------------------------------------------------


def cases_by_arm(cases: Sequence[Case]) -> tuple[dict[str, dict[int, Case]], list[int]]:
    """Cases by arm (in the order of ARM_NAMES) and total length, and all lengths in order."""
    arms: dict[str, dict[int, Case]] = {arm: {} for arm in ARM_NAMES}
    for case in cases:
        arms.setdefault(str(case.inputs.get("arm") or "paged"), {})[total_tokens(case)] = case
    return {arm: found for arm, found in arms.items() if found}, sorted({total_tokens(case) for case in cases})


def total_tokens(case: Case) -> int:
    """Prompt and output tokens of one request."""
    return int(case.inputs.get("input_len") or 0) + int(case.inputs.get("output_len") or 0)


def tpot_ms(case: Case | None) -> float | None:
    return None if case is None or case.metrics.tpot_ms is None else case.metrics.tpot_ms.p50


def speedup(by_arm: dict[str, dict[int, Case]], length: int) -> float | None:
    """How many times longer a token takes without a cache than with pages."""
    none, paged = (tpot_ms(by_arm.get(arm, {}).get(length)) for arm in ("no_cache", "paged"))
    return none / paged if none and paged else None


def arm_memory(case: Case | None) -> str:
    if case is None:
        return DASH
    waste = waste_ratio(case)
    return format_bytes(case.memory.kv_allocated_bytes) + (f" ({percent(waste)})" if waste else "")
