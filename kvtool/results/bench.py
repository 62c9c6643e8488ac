"""What `kvtool bench` measured: cases with every sample, next to the limits of the device."""

from __future__ import annotations

from typing import Any

from kvtool.results.document import Struct


class Sample(Struct, frozen=True, kw_only=True):
    """One request of one iteration. `arm`: baseline | cached | uncached | no_cache | contiguous | preallocated."""

    arm: str
    iteration: int
    ttft_s: float
    e2e_s: float
    itl_s: list[float]
    output_tokens: int
    prompt_tokens: int
    cached_tokens: int


class Summary(Struct, frozen=True, kw_only=True):
    mean: float
    std: float
    p50: float
    p90: float
    p95: float
    p99: float
    n: int


class Metrics(Struct, frozen=True, kw_only=True):
    """Of the baseline or cached arm. A summary is None where no request can have it (TPOT of one output token)."""

    ttft_ms: Summary | None
    tpot_ms: Summary | None
    itl_ms: Summary | None
    e2e_ms: Summary | None
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None


class StepBytes(Struct, frozen=True, kw_only=True):
    """Per decode step, averaged over the steps of the case; FLOPs per prefill of the batch and per decode step."""

    weights_read: int
    kv_read: int
    kv_written: int
    other: int
    prefill_flops: int
    decode_flops: int


class Roofline(Struct, frozen=True, kw_only=True):
    """Measured on the device in the same run. `bound` and the verdict of prefill beside it: memory | compute."""

    read_gbps_measured: float | None = None
    copy_gbps_measured: float | None = None
    tflops_measured: float | None = None
    ideal_tpot_ms: float | None = None
    mbu: float | None = None
    mfu: float | None = None
    bound: str | None = None
    prefill_bound: str | None = None
    reason: str | None = None


class Memory(Struct, frozen=True, kw_only=True):
    kv_predicted_bytes: int
    kv_allocated_bytes: int
    kv_pool_bytes: int | None
    kv_waste_bytes: int
    peak_bytes: int | None


class Prefix(Struct, frozen=True, kw_only=True):
    requested_hit_rate: float
    measured_hit_rate: float
    ttft_saved_ms: float
    ttft_saved_ratio: float
    ttft_saved_ms_ci_low: float
    ttft_saved_ms_ci_high: float
    flops_saved: int
    kv_bytes_not_written: int


class Check(Struct, frozen=True, kw_only=True):
    """`outputs_equal` is None when nothing was compared, and `text` says why."""

    outputs_equal: bool | None = None
    max_abs_logit_diff: float | None = None
    text: str | None = None


class Power(Struct, frozen=True, kw_only=True):
    """Of the card while the case ran, through NVML; all None without it."""

    samples: int = 0
    power_w: float | None = None
    power_max_w: float | None = None
    sm_clock_mhz: int | None = None
    sm_clock_min_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_max_c: int | None = None
    memory_used_max_bytes: int | None = None
    energy_j: float | None = None
    energy_per_token_j: float | None = None
    throttle_reasons: list[str] | None = None


class ColdStart(Struct, frozen=True, kw_only=True):
    """What the case did once, outside its samples: seconds that Triton compiled, seconds in which CUDA graphs of the
    decode step were captured, warm-up included, and how many. None where there was no such thing."""

    jit_s: float | None = None
    capture_s: float | None = None
    graphs: int | None = None


class Case(Struct, frozen=True, kw_only=True):
    name: str
    part: str
    inputs: dict[str, str | int | float | bool | None]
    samples: list[Sample]
    metrics: Metrics
    bytes: StepBytes
    roofline: Roofline
    memory: Memory
    prefix: Prefix | None
    check: Check
    power: Power = Power()
    cold_start: ColdStart = ColdStart()


class BenchDocument(Struct, frozen=True, kw_only=True):
    schema: str = "kvtool.bench/1"
    environment: dict[str, Any]
    definitions: dict[str, str]
    assumptions: list[str]
    cases: list[Case]
