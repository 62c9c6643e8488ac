"""What `kvtool kernels` measured: each attention kernel alone."""

from __future__ import annotations

from typing import Any

import msgspec

from kvtool.results.bench import Power
from kvtool.results.document import Struct
from kvtool.results.summary import Summary


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

    @property
    def moved(self) -> int:
        return self.kv_read + self.kv_written + self.other


class KernelMemory(Struct, frozen=True, kw_only=True):
    """`working_set_bytes` is the cache that `calls_per_sample` calls go through, each on pages of its own.

    `flushed`: something else filled the device's cache before every sample.
    """

    pool_bytes: int
    working_set_bytes: int
    calls_per_sample: int
    flushed: bool = False


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


class KernelColdStart(Struct, frozen=True, kw_only=True):
    """Before anything was timed. `capture_s` is None where no graph was captured."""

    first_call_s: float | None = None
    capture_s: float | None = None


class KernelPeer(Struct, frozen=True, kw_only=True):
    """Another library's kernel on the same pages and queries, timed in turns with ours. `ratio`: its time / ours.

    Where it could not run, or computed something else, there is no time, and `note` says why. `moved_bytes`: what a
    call of it moves at least, where that is more than `KernelBytes.moved`.
    """

    name: str
    version: str | None
    time_ms: Summary | None = None
    ratio: float | None = None
    ratio_ci_low: float | None = None
    ratio_ci_high: float | None = None
    outputs_equal: bool | None = None
    max_abs_diff: float | None = None
    note: str = ""
    moved_bytes: int | None = None
    samples_s: list[float] = msgspec.field(default_factory=list)


class KernelCase(Struct, frozen=True, kw_only=True):
    """`samples_s`: seconds of a call, each the mean over one pass through the working set.

    `steady`: the last passes of the warm-up took the same time within a few percent.
    """

    name: str
    kernel: str
    inputs: dict[str, str | int | float | bool | None]
    samples_s: list[float]
    metrics: KernelMetrics
    bytes: KernelBytes
    memory: KernelMemory
    roofline: KernelRoofline
    check: KernelCheck
    cold_start: KernelColdStart = KernelColdStart()
    power: Power = Power()
    steady: bool = False
    peers: list[KernelPeer] = msgspec.field(default_factory=list)


class KernelsDocument(Struct, frozen=True, kw_only=True):
    schema: str = "kvtool.kernels/1"
    environment: dict[str, Any]
    definitions: dict[str, str]
    assumptions: list[str]
    cases: list[KernelCase]
