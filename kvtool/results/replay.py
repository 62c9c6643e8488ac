"""What `kvtool replay` found: the hits of each policy at each capacity, beside what bounds them."""

from __future__ import annotations

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
    warnings: list[str]
    assumptions: list[str]
