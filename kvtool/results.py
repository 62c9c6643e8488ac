"""The result documents, typed and versioned: what `--json` prints, `--out` writes, `compare` and `report` read.

All keys are always present; bytes and tokens are ints; times carry their unit in their name; no NaN, no Infinity.
"""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from kvtool.errors import KvtoolError


class Struct(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every part of a document."""


# --- kvtool.size/1 ---------------------------------------------------------------------------------------------------


class SizeModel(Struct, frozen=True, kw_only=True):
    id: str
    source: str
    attention: str
    num_layers: int
    params_total: int | None


class SizeInputs(Struct, frozen=True, kw_only=True):
    context: int
    batch_size: int
    kv_cache_dtype: str
    weight_dtype: str
    block_size: int
    tp: int
    pp: int
    dp: int
    dcp: int
    ep: int
    gpu: str | None
    num_gpus: int
    shared_prefix: int
    engine: str | None


class SizeLayers(Struct, frozen=True, kw_only=True):
    """A group of equal layers. `bytes_per_token` is what one more token adds before any cap."""

    kind: str
    count: int
    kv_heads: int | None
    k_head_dim: int | None
    v_head_dim: int | None
    window: int | None
    bytes_per_token: int
    bytes_per_sequence: int


class SizeKv(Struct, frozen=True, kw_only=True):
    bytes_per_token: int
    indexer_bytes_per_token: int
    window_bytes_per_token: int
    window_cap_bytes_per_sequence: int
    state_bytes_per_sequence: int
    bytes_per_sequence: int
    allocated_bytes_per_sequence: int
    fixed_bytes_per_sequence: int
    slope_bytes_per_token: int
    bytes_total: int
    bytes_per_gpu: int


class SizeWeights(Struct, frozen=True, kw_only=True):
    bytes: int | None
    bytes_per_gpu: int | None
    source: str


class SizeDecode(Struct, frozen=True, kw_only=True):
    kv_read_bytes_per_step: int
    weights_read_bytes_per_step: int | None
    flops_per_step: int | None
    ideal_tpot_ms: float | None
    bound: str | None


class SizeFit(Struct, frozen=True, kw_only=True):
    memory_bytes: int | None = None
    usable_bytes: int | None = None
    weights_bytes: int | None = None
    activation_bytes: int | None = None
    reserve_bytes: int | None = None
    kv_pool_bytes: int | None = None
    fits: bool | None = None
    missing_bytes: int | None = None
    max_batch_size: int | None = None
    max_context: int | None = None
    limited_by: str | None = None


class SizeEngine(Struct, frozen=True, kw_only=True):
    name: str | None = None
    version: str | None = None
    block_size: int | None = None
    bytes_per_block: int | list[int] | None = None
    num_blocks: int | None = None
    blocks_per_request: int | None = None
    max_concurrency: float | None = None
    gpu_kv_cache_tokens: int | None = None
    log_line: str | None = None
    groups: list[dict[str, Any]] | None = None
    refusal: str | None = None
    ledger: list[dict[str, Any]] | None = None
    exact_given_pool: bool | None = None


class SizeRow(Struct, frozen=True, kw_only=True):
    model: SizeModel
    inputs: SizeInputs
    layers: list[SizeLayers]
    kv: SizeKv
    weights: SizeWeights
    decode: SizeDecode
    fit: SizeFit
    engine: SizeEngine


class SizeDocument(Struct, frozen=True, kw_only=True):
    schema: str = "kvtool.size/1"
    rows: list[SizeRow]
    assumptions: list[str]


# --- kvtool.bench/1 --------------------------------------------------------------------------------------------------


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


class BenchDocument(Struct, frozen=True, kw_only=True):
    schema: str = "kvtool.bench/1"
    environment: dict[str, Any]
    definitions: dict[str, str]
    assumptions: list[str]
    cases: list[Case]


# --- kvtool.generate/1 -----------------------------------------------------------------------------------------------


class GeneratedSequence(Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    output_ids: list[int]
    text: str | None
    ttft_ms: float
    tpot_ms: float | None
    pages: int


class GenerateDocument(Struct, frozen=True, kw_only=True):
    schema: str = "kvtool.generate/1"
    model: str
    inputs: dict[str, str | int | float | bool | None]
    environment: dict[str, Any]
    assumptions: list[str]
    sequences: list[GeneratedSequence]


# --- kvtool.compare/1 ------------------------------------------------------------------------------------------------


class CompareRow(Struct, frozen=True, kw_only=True):
    """`ratio` is b / a; the interval is the bootstrap's for that ratio; `document` names where b came from."""

    case: str
    metric: str
    unit: str
    a: float | None
    b: float | None
    ratio: float | None
    ci_low: float | None
    ci_high: float | None
    verdict: str
    document: str


class CompareDocument(Struct, frozen=True, kw_only=True):
    schema: str = "kvtool.compare/1"
    baseline: str
    rows: list[CompareRow]
    warnings: list[str]
    assumptions: list[str]


class MatrixDocument(Struct, frozen=True, kw_only=True):
    """`kvtool compare` of models: one size row per model and setting; `baseline` is the first model."""

    schema: str = "kvtool.compare/1"
    baseline: str
    rows: list[SizeRow]
    warnings: list[str]
    assumptions: list[str]


# --- kvtool.kernels/1 ------------------------------------------------------------------------------------------------


class KernelMetrics(Struct, frozen=True, kw_only=True):
    """Of one call. `gbps` and `tflops` are at the median time; `tflops` is None for a kernel that computes nothing."""

    time_ms: Summary
    gbps: float
    tflops: float | None


class KernelBytes(Struct, frozen=True, kw_only=True):
    """What one call must move at least once: cached tokens, and queries, outputs, rows and block tables as `other`."""

    kv_read: int
    kv_written: int
    other: int
    flops: int


class KernelMemory(Struct, frozen=True, kw_only=True):
    """`working_set_bytes` is the cache that `calls_per_sample` calls go through, each on pages of its own."""

    pool_bytes: int
    working_set_bytes: int
    calls_per_sample: int


class KernelRoofline(Struct, frozen=True, kw_only=True):
    """Measured on the device in the same run. `bound`: memory | compute; `reason` says why a share is None."""

    read_gbps_measured: float | None = None
    copy_gbps_measured: float | None = None
    tflops_measured: float | None = None
    ideal_ms: float | None = None
    mbu: float | None = None
    mfu: float | None = None
    bound: str | None = None
    reason: str | None = None


class KernelCheck(Struct, frozen=True, kw_only=True):
    """Against the reference kernels; `max_abs_diff` is None where an output was not finite."""

    outputs_equal: bool
    max_abs_diff: float | None
    text: str


class KernelCase(Struct, frozen=True, kw_only=True):
    """`samples_s`: seconds of a call, each the mean over one pass through the working set."""

    name: str
    kernel: str
    inputs: dict[str, str | int | float | bool | None]
    samples_s: list[float]
    metrics: KernelMetrics
    bytes: KernelBytes
    memory: KernelMemory
    roofline: KernelRoofline
    check: KernelCheck


class KernelsDocument(Struct, frozen=True, kw_only=True):
    schema: str = "kvtool.kernels/1"
    environment: dict[str, Any]
    definitions: dict[str, str]
    assumptions: list[str]
    cases: list[KernelCase]


# --- kvtool.env/1 ----------------------------------------------------------------------------------------------------


class EnvDocument(Struct, frozen=True, kw_only=True):
    schema: str = "kvtool.env/1"
    environment: dict[str, Any]
    roofline: dict[str, Any] | None


# --- encoding, reading and writing -----------------------------------------------------------------------------------

D = TypeVar("D", bound=Struct)


def encode(document: Struct | dict[str, Any]) -> bytes:
    """Pretty JSON of a document, ending in a newline. Raises ValueError on NaN or Infinity: they never get in."""
    _refuse_non_finite(msgspec.to_builtins(document), "document")
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def _refuse_non_finite(value: object, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}: results must be finite")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_non_finite(item, f"{where}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_non_finite(item, f"{where}[{index}]")


def read_document(path: Path, kind: type[D]) -> D:
    """A document of `kind` from a file. Raises KvtoolError when it cannot be read or is of another schema."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise KvtoolError(f"cannot read {path}: {error.strerror}") from error
    expected = kind.__struct_fields__ and next(f.default for f in msgspec.structs.fields(kind) if f.name == "schema")
    try:
        found = msgspec.json.decode(data)
        schema = found.get("schema") if isinstance(found, dict) else None
        if schema != expected:
            raise KvtoolError(f"{path} is not a {expected} document (its schema is {schema!r})")
        return msgspec.convert(found, kind)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise KvtoolError(f"{path} is not a {expected} document: {error}") from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write through a temporary file and a rename, so that no half-written file is ever left. Raises KvtoolError."""
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise KvtoolError(f"cannot write {path}: {error.strerror}") from error
