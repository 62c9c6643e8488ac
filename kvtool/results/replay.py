"""What `kvtool replay` found: the hits of each policy at each capacity, beside what bounds them."""

from __future__ import annotations

import msgspec

from kvtool.results.document import Struct


class ReplayTrace(Struct, frozen=True, kw_only=True):
    """The trace's fingerprint. `sha256` is of its uncompressed bytes; the ideal ratios are those without a limit of
    capacity, over the requests that count, in all three averages.
    """

    name: str
    format: str
    sha256: str
    requests: int
    requests_counted: int
    block_size: int
    total_blocks: int
    unique_blocks: int
    input_tokens: int
    ideal_block_hit_ratio: float
    ideal_token_hit_ratio: float
    ideal_mean_request_token_hit_ratio: float


class ReplayRow(Struct, frozen=True, kw_only=True):
    """One policy at one capacity, over the requests that count. A capacity without a limit is None in both units, and
    one whose blocks differ in bytes has no blocks.

    The ceilings are block ratios that bound every policy at that capacity; `ceiling_strict` is None where it was not
    computed. `limited_by`: capacity | policy | none. `ttft_saved_ms` is the mean of a request, None without a card.
    Bytes read and written are by tier, None where there are no tiers below this policy.
    """

    policy: str
    capacity_blocks: int | None
    capacity_bytes: int | None
    hit_blocks: int
    total_blocks: int
    block_hit_ratio: float
    token_hit_ratio: float
    mean_request_token_hit_ratio: float
    ceiling_content: float
    ceiling_relaxed: float
    ceiling_strict: float | None
    limited_by: str
    ttft_saved_ms: float | None
    bytes_read: dict[str, int] | None = None
    bytes_written: dict[str, int] | None = None


class ReplayPoint(Struct, frozen=True, kw_only=True):
    """A point of a curve: LRU at one capacity."""

    capacity_blocks: int | None
    capacity_bytes: int | None
    block_hit_ratio: float


class ReplayKnee(Struct, frozen=True, kw_only=True):
    """The point of the curve furthest above the straight line from nothing to all that LRU can hit."""

    capacity_blocks: int | None
    capacity_bytes: int | None
    block_hit_ratio: float
    token_hit_ratio: float
    ttft_saved_ms: float | None


class ReplayCurve(Struct, frozen=True, kw_only=True):
    """One replay of LRU at every capacity, of which some points are here; `knee` is None where nothing is hit."""

    policy: str
    points: list[ReplayPoint]
    knee: ReplayKnee | None


class ReplayBreakEven(Struct, frozen=True, kw_only=True):
    """Loading a prefix against computing it. At `break_even_gbps` both take the same; from `shortest_tokens` on loading
    is faster (None: never).
    """

    tier: str
    prefix_tokens: int
    load_ms: float
    compute_ms: float
    break_even_gbps: float
    shortest_tokens: int | None


class ReplayTtft(Struct, frozen=True, kw_only=True):
    """Times to the first token, milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float


class ReplayTier(Struct, frozen=True, kw_only=True):
    """What one tier gave and took. `source` of its speeds: given | measured | assumed. `write_amplification` is bytes
    written for each that was read, None where nothing was; `full_writes_per_day` are of its whole capacity, as a
    drive's endurance is stated; `stall_s` is how long the GPU stood still for loads of which this was the lowest tier;
    `busy` are the parts of the time for which its link read and wrote.
    """

    tier: str
    capacity_bytes: int
    read_gbps: float
    write_gbps: float
    latency_us: float
    source: str
    hit_tokens: int
    loaded_tokens: int
    bytes_read: int
    bytes_written: int
    bytes_written_per_day: float | None
    full_writes_per_day: float | None
    write_amplification: float | None
    stall_s: float
    read_busy: float
    write_busy: float


class ReplayTiers(Struct, frozen=True, kw_only=True):
    """LRU at one capacity with the tiers below it, on a clock. `decisions` counts requests: none had nothing below.

    `without` has no tiers, `oracle` loads in no time. `tpot_ms` is over requests of two tokens and more;
    `goodput_ratio` is the part of requests that keep every limit asked for, None without limits. `ttft_p50_range_ms`
    is the median where every step takes what the fastest and the slowest tenth of those measured took, None at a card's
    figures. `hit_tokens` were there in time, of all requests, counted as engines do; `cut_tokens` had no room on their
    way, `missed_tokens` came too late, and `late_tokens` were still being computed for another request.
    `preemptions` counts how often one gave way to others' next tokens, `recomputed_tokens` what it computed again.
    `useful_read_ratio` is the part of the bytes read that a prompt used. From `full_tier_bytes` on a tier below this
    capacity gives nothing more.
    """

    capacity_blocks: int
    capacity_bytes: int
    write_policy: str
    exclusive: bool
    loading: str
    decisions: dict[str, int]
    token_hit_ratio: float
    ttft_ms: ReplayTtft
    without_ttft_ms: ReplayTtft
    oracle_ttft_ms: ReplayTtft
    ttft_saved_ms: float
    stall_s: float
    tiers: list[ReplayTier]
    tpot_ms: ReplayTtft | None
    e2e_ms: ReplayTtft
    goodput_ratio: float | None
    ttft_p50_range_ms: tuple[float, float] | None
    prefetch: str
    hit_tokens: int
    cut_tokens: int
    missed_tokens: int
    late_tokens: int
    useful_read_ratio: float | None
    full_tier_bytes: int
    preemptions: int = 0
    recomputed_tokens: int = 0


class ReplayLink(Struct, frozen=True, kw_only=True):
    """A link of all nodes of a kind, as `decode cnic read`, and the part of its bandwidth that is used, on the mean."""

    link: str
    utilisation: float


class ReplayMode(Struct, frozen=True, kw_only=True):
    """Sessions played through a cluster in one mode. `session_s` is the mean of a whole session, first request to last
    token; `storage_max_over_mean` compares the busiest storage NIC with the mean, None where none moved a byte.
    """

    mode: str
    agents_per_s: float
    makespan_s: float
    session_s: float
    ttft_ms: ReplayTtft
    tpot_ms: ReplayTtft
    storage_max_over_mean: float | None
    links: list[ReplayLink]


class ReplaySplit(Struct, frozen=True, kw_only=True):
    """One way to split GPUs into prefill and decode nodes; `bound` as of ReplayCluster."""

    prefill: int
    decode: int
    agents_per_s: float
    bound: str


class ReplayCluster(Struct, frozen=True, kw_only=True):
    """A cluster of nodes, each with the `layout` of its GPUs: the best of `splits`, where these were asked for.

    `range` is of prefill nodes for each decode node: within it, no link is full before all storage NICs are (None: no
    end); `loads` are the links' then, and `bound` names the one that is over its limit, or storage. `links` and
    `agents_per_s` are of `mode`; `modes` has all of them.
    """

    mode: str
    routing: str
    prefill: int
    decode: int
    prefill_gpu: str
    decode_gpu: str
    layout: dict[str, int]
    splits: list[ReplaySplit]
    range: list[float | None]
    bound: str
    loads: list[ReplayLink]
    links: list[ReplayLink]
    agents_per_s: float
    modes: list[ReplayMode]


class ReplayDocument(Struct, frozen=True, kw_only=True):
    schema: str = "kvtool.replay/1"
    trace: ReplayTrace
    model: str | None
    kv_cache_dtype: str | None
    bytes_per_block: int | None
    gpu: str | None
    definition: dict[str, str]
    rows: list[ReplayRow]
    curves: list[ReplayCurve]
    tiers: list[ReplayTiers] = msgspec.field(default_factory=list)
    break_even: list[ReplayBreakEven] = msgspec.field(default_factory=list)
    cluster: ReplayCluster | None = None
    warnings: list[str]
    assumptions: list[str]


class ReplaySweep(Struct, frozen=True, kw_only=True):
    """Several traces, each as it is replayed alone."""

    schema: str = "kvtool.replays/1"
    replays: list[ReplayDocument]
