"""What the tables, sentences and charts of a bench document ask of its cases."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from kvtool.report.cells import input_cell
from kvtool.report.inputs import varying_inputs
from kvtool.results import BenchDocument, Case, Prefix

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
    *("num_iters", "num_iters_warmup", "concurrency", "request_rate", "burstiness", "seed"),
)
HEADINGS = {"input_len": "input", "batch_size": "batch", "prefix_len": "prefix"}


def cases_of(document: BenchDocument, part: str) -> list[Case]:
    """The cases of one part: latency, prefix, no-cache or workload."""
    return [case for case in document.cases if case.part == part]


def varying(cases: Sequence[Case], always: tuple[str, ...]) -> tuple[str, ...]:
    """The inputs that tell these cases apart, `always` included where the cases have them."""
    told = varying_inputs(cases, SHARED_INPUTS)
    return told + tuple(key for key in always if any(case.inputs.get(key) is not None for case in cases))


def heading(key: str) -> str:
    """An input's name over its column."""
    return HEADINGS.get(key, key.replace("_", "\n"))


def labels(case: Case, keys: tuple[str, ...]) -> tuple[str, ...]:
    """The cells of a case's inputs."""
    return tuple(input_cell(key, case.inputs.get(key)) for key in keys)


def waste_ratio(case: Case) -> float | None:
    allocated = case.memory.kv_allocated_bytes
    return case.memory.kv_waste_bytes / allocated if allocated else None


def with_prefix(cases: Sequence[Case]) -> list[tuple[Case, Prefix]]:
    """The cases that have a prefix result, with it."""
    return [(case, case.prefix) for case in cases if case.prefix is not None]


def uncached_ttft_ms(case: Case) -> float | None:
    """The median TTFT of the uncached arm, from its samples."""
    seconds = [sample.ttft_s for sample in case.samples if sample.arm == "uncached"]
    return 1e3 * median(seconds) if seconds else None


def tpot_ms(case: Case | None) -> float | None:
    return None if case is None or case.metrics.tpot_ms is None else case.metrics.tpot_ms.p50


def ttfts_ms(case: Case) -> list[float]:
    """Of every request behind the case's metrics."""
    return [1e3 * sample.ttft_s for sample in case.samples if not sample.is_compared]


def tpots_ms(case: Case) -> list[float]:
    """As `ttfts_ms`, of requests with more than one output token."""
    found = [sample.tpot_s for sample in case.samples if not sample.is_compared]
    return [1e3 * seconds for seconds in found if seconds is not None]


def total_tokens(case: Case) -> int:
    """Prompt and output tokens of one request."""
    return int(case.inputs.get("input_len") or 0) + int(case.inputs.get("output_len") or 0)


def cases_by_arm(cases: Sequence[Case]) -> tuple[dict[str, dict[int, Case]], list[int]]:
    """Cases by arm (in the order of ARM_NAMES) and total length, and all lengths in order."""
    arms: dict[str, dict[int, Case]] = {arm: {} for arm in ARM_NAMES}
    for case in cases:
        arms.setdefault(str(case.inputs.get("arm") or "paged"), {})[total_tokens(case)] = case
    return {arm: found for arm, found in arms.items() if found}, sorted({total_tokens(case) for case in cases})


def speedup(by_arm: dict[str, dict[int, Case]], length: int) -> float | None:
    """How many times longer a token takes without a cache than with pages."""
    none, paged = (tpot_ms(by_arm.get(arm, {}).get(length)) for arm in ("no_cache", "paged"))
    return none / paged if none and paged else None
