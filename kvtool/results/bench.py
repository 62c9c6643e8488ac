"""What `kvtool bench` measured: cases with every sample, next to the limits of the device."""

from __future__ import annotations

from typing import Any

import msgspec

from kvtool.results.cases.accuracy import Accuracy
from kvtool.results.cases.endpoint import Endpoint
from kvtool.results.cases.fragmentation import Fragmentation
from kvtool.results.cases.ranks import Disaggregated, RankRun
from kvtool.results.cases.workload import Workload
from kvtool.results.document import Struct
from kvtool.results.summary import Summary


def tpot_s(ttft_s: float, e2e_s: float, output_tokens: int) -> float | None:
    """Time per output token after the first; None for a single one."""
    return (e2e_s - ttft_s) / (output_tokens - 1) if output_tokens > 1 else None


class Sample(Struct, frozen=True, kw_only=True):
    """One request of one iteration of one run (a whole process).

    `arm`: baseline | cached | uncached | repeat | no_cache | contiguous | preallocated. Of a workload: `arrival_s`
    since the iteration began, `queue_s` until it was admitted. `load_s`: of the time to its first token, what it waited
    for pages from below the pool; None without tiers. `device_read_gbps` and `device_tflops`: what the device did
    beside the iteration, None where not measured. `weights_read_gbps`: how fast a step's weights alone were read then.
    """

    arm: str
    iteration: int
    ttft_s: float
    e2e_s: float
    itl_s: list[float]
    output_tokens: int
    prompt_tokens: int
    cached_tokens: int
    run: int = 0
    arrival_s: float | None = None
    queue_s: float | None = None
    load_s: float | None = None
    device_read_gbps: float | None = None
    device_tflops: float | None = None
    weights_read_gbps: float | None = None
    error: str | None = None

    @property
    def tpot_s(self) -> float | None:
        return tpot_s(self.ttft_s, self.e2e_s, self.output_tokens)

    @property
    def is_compared(self) -> bool:
        """Of an arm that the case's own is held against: its metrics are not of it."""
        return self.arm in ("uncached", "repeat")


class Metrics(Struct, frozen=True, kw_only=True):
    """Of the baseline or cached arm. A summary is None where no request can have it (TPOT of one output token)."""

    ttft_ms: Summary | None
    tpot_ms: Summary | None
    itl_ms: Summary | None
    e2e_ms: Summary | None
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None

    @classmethod
    def none(cls) -> Metrics:
        """Of a case that times nothing."""
        return cls(
            ttft_ms=None,
            tpot_ms=None,
            itl_ms=None,
            e2e_ms=None,
            prefill_tokens_per_s=None,
            decode_tokens_per_s=None,
        )


class StepBytes(Struct, frozen=True, kw_only=True):
    """Per decode step, averaged over the steps of the case; FLOPs per prefill of the batch and per decode step."""

    weights_read: int
    kv_read: int
    kv_written: int
    other: int
    prefill_flops: int
    decode_flops: int

    @property
    def moved(self) -> int:
        """All that a decode step reads and writes."""
        return self.weights_read + self.kv_read + self.kv_written + self.other


class Roofline(Struct, frozen=True, kw_only=True):
    """Measured on the device in the same run. `bound` and the verdict of prefill beside it: memory | compute.

    Of a case with hits: `ideal_ttft_ms` is what the limits allow the average request, which is alone and spared what it
    finds; TTFT is `ttft_over_ideal` times that, and where it is more than 15 % longer, `ttft_reason` says by what.
    """

    read_gbps_measured: float | None = None
    copy_gbps_measured: float | None = None
    tflops_measured: float | None = None
    ideal_tpot_ms: float | None = None
    mbu: float | None = None
    mfu: float | None = None
    bound: str | None = None
    prefill_bound: str | None = None
    ideal_ttft_ms: float | None = None
    ttft_over_ideal: float | None = None
    ttft_reason: str | None = None
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

    def over(self, tokens: int) -> Power:
        """The same, with the energy of each of the tokens that came out in the meantime, where there were any."""
        if self.energy_j is None or not tokens:
            return self
        return msgspec.structs.replace(self, energy_per_token_j=self.energy_j / tokens)


class ColdStart(Struct, frozen=True, kw_only=True):
    """What the case did once, outside its samples: seconds that Triton compiled, seconds in which CUDA graphs of the
    decode step were captured, warm-up included, and how many. None where there was no such thing."""

    jit_s: float | None = None
    capture_s: float | None = None
    graphs: int | None = None


class PeerTurn(Struct, frozen=True, kw_only=True):
    """One batch, generated by a peer and by us. TPOT is None of a single output token."""

    ttft_s: float
    tpot_s: float | None
    ours_ttft_s: float
    ours_tpot_s: float | None


class BenchPeer(Struct, frozen=True, kw_only=True):
    """Another engine on the same weights and prompts, in turns with ours. Ratios: its median time / ours.

    `same_tokens`: share of its first tokens that are ours. Where it could not run, or said something else, there is no
    time, and `note` says why.
    """

    name: str
    version: str | None
    ttft_ms: Summary | None = None
    tpot_ms: Summary | None = None
    ttft_ratio: float | None = None
    ttft_ratio_ci_low: float | None = None
    ttft_ratio_ci_high: float | None = None
    tpot_ratio: float | None = None
    tpot_ratio_ci_low: float | None = None
    tpot_ratio_ci_high: float | None = None
    same_tokens: float | None = None
    note: str = ""
    turns: list[PeerTurn] = msgspec.field(default_factory=list)


class Load(Struct, frozen=True, kw_only=True):
    """Of others while the case's iterations ran: cores on average (None: not known), and the iterations that they
    disturbed, measured again in vain. With `fewer_threads` they were so busy beforehand that fewer ran than usual."""

    other_cores: float | None = None
    disturbed_iterations: int = 0
    fewer_threads: bool = False


class Case(Struct, frozen=True, kw_only=True, tag_field="part"):
    """What the cases of all parts tell. A part adds a struct of its own, whose tag is the part's name."""

    name: str
    inputs: dict[str, str | int | float | bool | None]
    samples: list[Sample]
    metrics: Metrics
    bytes: StepBytes
    roofline: Roofline
    memory: Memory
    prefix: Prefix | None = None
    check: Check
    power: Power = Power()
    cold_start: ColdStart = ColdStart()
    load: Load = Load()
    peers: list[BenchPeer] = msgspec.field(default_factory=list)

    @property
    def part(self) -> str:
        """latency | prefix | no-cache | workload | accuracy | fragmentation | endpoint | ranks | disaggregate"""
        return str(self.__struct_config__.tag)


class LatencyCase(Case, frozen=True, kw_only=True, tag="latency"):
    """A batch prefilled, then decoded."""


class PrefixCase(Case, frozen=True, kw_only=True, tag="prefix"):
    """The same prompts with a part of them cached and without."""

    prefix: Prefix


class NoCacheCase(Case, frozen=True, kw_only=True, tag="no-cache"):
    """One way of keeping K and V."""


class WorkloadCase(Case, frozen=True, kw_only=True, tag="workload"):
    """A scenario under one policy, with the prefix cache, without it, and with it once more."""

    workload: Workload


class AccuracyCase(Case, frozen=True, kw_only=True, tag="accuracy"):
    """One cache format beside the run's own."""

    accuracy: Accuracy


class FragmentationCase(Case, frozen=True, kw_only=True, tag="fragmentation"):
    """One allocator; nothing is computed, so that it has no samples."""

    fragmentation: Fragmentation


class EndpointCase(Case, frozen=True, kw_only=True, tag="endpoint"):
    """Traffic to a server that already ran; its arm is `baseline`, and what failed has no sample."""

    endpoint: Endpoint


class RanksCase(Case, frozen=True, kw_only=True, tag="ranks"):
    """A batch on one layout of ranks. `memory` is the first rank's."""

    ranks: RankRun


class DisaggregateCase(Case, frozen=True, kw_only=True, tag="disaggregate"):
    """The same requests served by engines that do both, or by some that prefill and others that decode."""

    disaggregate: Disaggregated


AnyCase = (
    LatencyCase
    | PrefixCase
    | NoCacheCase
    | WorkloadCase
    | AccuracyCase
    | FragmentationCase
    | EndpointCase
    | RanksCase
    | DisaggregateCase
)


class BenchDocument(Struct, frozen=True, kw_only=True):
    schema: str = "kvtool.bench/1"
    environment: dict[str, Any]
    definitions: dict[str, str]
    assumptions: list[str]
    cases: list[AnyCase]
