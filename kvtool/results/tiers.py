"""What `kvtool tiers` measured of the tiers below a block pool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvtool.results.document import Struct, read_document
from kvtool.system.errors import KvtoolError


class TierRate(Struct, frozen=True, kw_only=True):
    """GB/s over `n` rounds; p90 is what nine of ten rounds reached or stayed below."""

    p50: float
    p90: float
    n: int


class TierRow(Struct, frozen=True, kw_only=True):
    """`tier`: dram, disk, or what a folder lies on that is no disk (tmpfs, overlay, page cache). `direction`: down, up
    or both. `method`: copies | pageable copies | gathered pages | page by page | requests | checked requests |
    beside a product. `size`: layer block | full block | chunk. `device_s` and `host_s`: seconds a request of the device
    (of the wall clock where that is no GPU) and of the host's processors. `product_slowdown`: how many times as long a
    matrix product took beside it."""

    tier: str
    direction: str
    method: str
    size: str
    size_bytes: int
    queue_depth: int
    streams: int
    gbps: TierRate
    latency_us: float
    device_s: float
    host_s: float
    measured: bool
    product_slowdown: float | None
    remark: str


class TierSpeed(Struct, frozen=True, kw_only=True):
    """Of full blocks: what a plan takes for the speed of a tier."""

    tier: str
    up_gbps: float
    down_gbps: float
    latency_us: float
    measured: bool
    remark: str


class BreakEvenRow(Struct, frozen=True, kw_only=True):
    """From `prefix_tokens` on, loading from the tier is faster than computing; None: not up to `up_to_tokens`. Times
    are of that many tokens, or of `up_to_tokens`; `points` are (tokens, load_ms, compute_ms)."""

    model: str
    tier: str
    prefix_tokens: int | None
    up_to_tokens: int
    load_ms: float
    compute_ms: float
    measured: bool
    points: list[tuple[int, float, float]]


class TiersDocument(Struct, frozen=True, kw_only=True):
    schema: str = "kvtool.tiers/1"
    environment: dict[str, Any]
    definitions: dict[str, str]
    assumptions: list[str]
    inputs: dict[str, str | int | float | bool | None]
    rows: list[TierRow]
    tiers: list[TierSpeed]
    break_even: list[BreakEvenRow]

    @property
    def up_gbps(self) -> dict[str, float]:
        """By tier."""
        return {speed.tier: speed.up_gbps for speed in self.tiers}

    @property
    def of_a_gpu(self) -> bool:
        """Whether `dram` is the way between host memory and a GPU."""
        return self.environment.get("gpu") is not None


def read_profile(path: Path) -> TiersDocument:
    """A tiers document for its speeds. Raises KvtoolError for any other file, and for one without any."""
    document = read_document(path, TiersDocument)
    if not document.tiers:
        raise KvtoolError(f"{path} has no tier that was measured to its end: run kvtool tiers again")
    return document
