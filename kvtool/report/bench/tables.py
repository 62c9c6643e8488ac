"""The tables of a bench document: latency, memory, prefix hits, and the ways of keeping (or not keeping) K and V."""

from __future__ import annotations

from collections.abc import Sequence

from kvtool.report.bench.cases import (
    ARM_NAMES,
    cases_by_arm,
    cases_of,
    heading,
    labels,
    speedup,
    tpot_ms,
    tpots_ms,
    ttfts_ms,
    uncached_ttft_ms,
    varying,
    waste_ratio,
    with_prefix,
)
from kvtool.report.cells import (
    CARRIES_P99,
    DASH,
    bound,
    format_flops,
    format_ms_signed,
    optional_bytes,
    optional_seconds,
    p50,
    percent,
    rate,
    tail,
    yes_no,
)
from kvtool.report.tables import Table
from kvtool.results import BenchDocument, Case, Prefix
from kvtool.units import format_bytes, format_length, format_ms

COPYING = ("contiguous, grown", "preallocated")  # ways of keeping K and V that a narrow terminal can spare
GRID = ("input_len", "batch_size")
PREFIX_GRID = ("prefix_len", *GRID, "tier")


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


def case_table(
    title: str,
    cases: Sequence[Case],
    always: tuple[str, ...],
    *,
    columns: tuple[str, ...],
    figures: Sequence[tuple[str, ...]],
    note: str,
    spare: tuple[str, ...] = (),
) -> Table:
    """One line a case: what tells it from the others, with the inputs in `always`, then its figures."""
    keys = varying(cases, always)
    return Table(
        title=title,
        columns=(*map(heading, keys), *columns),
        rows=[(*labels(case, keys), *cells) for case, cells in zip(cases, figures, strict=True)],
        labels=len(keys),
        note=note,
        spare=spare,
    )


def latency_table(cases: Sequence[Case]) -> Table:
    """TTFT and TPOT of every case, and the tokens a second that follow."""
    figures = [
        (
            p50(case.metrics.ttft_ms),
            tail(case.metrics.ttft_ms, ttfts_ms(case)),
            p50(case.metrics.tpot_ms),
            tail(case.metrics.tpot_ms, tpots_ms(case)),
            rate(case.metrics.prefill_tokens_per_s),
            rate(case.metrics.decode_tokens_per_s),
            DASH if case.metrics.ttft_ms is None else str(case.metrics.ttft_ms.n),
        )
        for case in cases
    ]
    return case_table(
        "How fast",
        cases,
        GRID,
        columns=("TTFT ms\np50", "+-", "TPOT ms\np50", "+-", "prefill\ntok/s", "decode\ntok/s", "n"),
        figures=figures,
        note="TTFT: time to the first token. TPOT: time for each token after it. +-: from the least to the most of n "
        f"requests, or p99 where there are {CARRIES_P99}. Token rates are of the whole batch.",
    )


def roofline_table(cases: Sequence[Case]) -> Table:
    """Decode beside the bandwidth and prefill beside the FLOP/s that were measured in the same run."""
    figures = [
        (
            p50(case.metrics.tpot_ms),
            format_ms(case.roofline.ideal_tpot_ms),
            percent(case.roofline.mbu),
            bound(case.roofline.bound),
            percent(case.roofline.mfu),
            bound(case.roofline.prefill_bound),
        )
        for case in cases
    ]
    note = (
        "floor: the bytes a decode step must move / the read bandwidth measured in this run. MBU: share of that "
        "bandwidth that decode reached. MFU: share of the FLOP/s measured in this run that prefill reached."
    )
    reasons = sorted({case.roofline.reason for case in cases if case.roofline.reason})
    return case_table(
        "How close to what this device can do",
        cases,
        GRID,
        columns=("TPOT ms\np50", "TPOT ms\nfloor", "decode\nMBU", "decode is", "prefill\nMFU", "prefill is"),
        figures=figures,
        note=" ".join([note, *(f"Where a figure is {DASH}: {reason}." for reason in reasons)]),
    )


def memory_table(cases: Sequence[Case]) -> Table:
    """Predicted beside allocated KV bytes."""
    figures = [
        (
            format_bytes(case.memory.kv_predicted_bytes),
            format_bytes(case.memory.kv_allocated_bytes),
            yes_no(case.memory.kv_predicted_bytes == case.memory.kv_allocated_bytes),
            percent(waste_ratio(case), digits=1),
            optional_bytes(case.memory.peak_bytes),
        )
        for case in cases
    ]
    return case_table(
        "KV cache memory",
        cases,
        GRID,
        columns=("predicted", "allocated", "equal", "waste\n%", "peak"),
        figures=figures,
        note="predicted: what kvtool size computes. allocated: pages held by the requests at their longest. waste: "
        "slots of their last pages that no token fills. peak: most memory in use on the device, where it tells.",
    )


def cold_start_table(cases: Sequence[Case]) -> Table:
    """What a case did once, before its samples."""
    figures = [
        (
            optional_seconds(case.cold_start.jit_s),
            optional_seconds(case.cold_start.capture_s),
            str(DASH if case.cold_start.graphs is None else case.cold_start.graphs),
        )
        for case in cases
    ]
    return case_table(
        "Before the first sample",
        cases,
        GRID,
        columns=("compiling\ns", "capturing\ns", "graphs"),
        figures=figures,
        note="compiling: Triton's kernels, those of an earlier case or run excepted. capturing: one CUDA graph of the "
        "whole decode step for each bucket of the batch.",
    )


def prefix_table(cases: Sequence[Case]) -> Table:
    """Time to the first token with and without prefix hits."""
    found = with_prefix(cases)
    figures = [
        (
            percent(prefix.measured_hit_rate, digits=1),
            format_ms(uncached_ttft_ms(case)),
            p50(case.metrics.ttft_ms),
            saved_with_interval(prefix),
            percent(prefix.ttft_saved_ratio),
        )
        for case, prefix in found
    ]
    return case_table(
        "What prefix hits save: time to first token",
        [case for case, _ in found],
        PREFIX_GRID,
        columns=("hits\nfound", "TTFT ms\nuncached", "TTFT ms\ncached", "saved ms\n(95% interval)", "saved\n%"),
        spare=("TTFT ms\nuncached", "TTFT ms\ncached", "saved\n%"),
        figures=figures,
        note="The same prompts with and without the prefix cache, interleaved and paired. hits: share of prompt tokens "
        "found in the cache, counted by the allocator. An interval that spans 0 is no saving.",
    )


def prefix_savings_table(cases: Sequence[Case]) -> Table:
    """Work that prefix hits make needless, and whether the tokens stayed the same."""
    found = with_prefix(cases)
    figures = [
        (
            percent(prefix.requested_hit_rate),
            percent(prefix.measured_hit_rate, digits=1),
            format_flops(prefix.flops_saved),
            format_bytes(prefix.kv_bytes_not_written),
            yes_no(case.check.outputs_equal),
        )
        for case, prefix in found
    ]
    return case_table(
        "What prefix hits save: work",
        [case for case, _ in found],
        PREFIX_GRID,
        columns=("hits\nasked", "hits\nfound", "FLOPs\nsaved", "KV bytes\nnot written", "same\noutput"),
        figures=figures,
        note="hits asked: --hit-rate; only whole pages can be found. same output: the cached and the uncached run gave "
        "the same tokens, compared inside this run.",
    )


def arm_time_table(cases: Sequence[Case]) -> Table:
    """Time per token of each way of keeping K and V, as a sequence grows."""
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
        spare=COPYING,
        note="Median time per token of a sequence that grows to this length. no cache: every step recomputes all "
        "tokens. contiguous, grown: each step copies K and V to append one. preallocated: one buffer for the longest.",
    )


def arm_memory_table(cases: Sequence[Case]) -> Table:
    """Bytes that each way of keeping K and V holds."""
    by_arm, lengths = cases_by_arm(cases)
    rows = [(format_length(length), *(arm_memory(by_arm[arm].get(length)) for arm in by_arm)) for length in lengths]
    return Table(
        title="With and without a cache: K and V held",
        columns=("tokens", *(ARM_NAMES.get(arm, arm) for arm in by_arm)),
        rows=rows,
        labels=1,
        spare=COPYING,
        note="At the sequence's full length; in brackets the share that holds no token.",
    )


def saved_with_interval(prefix: Prefix) -> str:
    """`98.3 (94.1 to 105)`."""
    low, high = format_ms_signed(prefix.ttft_saved_ms_ci_low), format_ms_signed(prefix.ttft_saved_ms_ci_high)
    return f"{format_ms_signed(prefix.ttft_saved_ms)} ({low} to {high})"


def arm_memory(case: Case | None) -> str:
    """What a case holds, and the share of it that holds no token."""
    if case is None:
        return DASH
    waste = waste_ratio(case)
    return format_bytes(case.memory.kv_allocated_bytes) + (f" ({percent(waste)})" if waste else "")
