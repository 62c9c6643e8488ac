"""`--tiers dram=64GiB,disk=1TiB@7/4x32`: capacities, and GB/s where a card or a profile has none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from kvtool.cache.tiers.options import WritePolicy, tier_bytes, tier_items
from kvtool.system.errors import KvtoolError, did_you_mean

TIERS = ("dram", "disk", "remote")  # from the GPU down; bytes of a lower one pass through those above
SWITCHES = ("exclusive", "half-duplex")
NO_TIERS = "none"  # below the GPU: its own cache alone, on the clock
EXAMPLE = "write dram=64GiB,disk=1TiB@7/4x32 (GB/s read/write, blocks in flight)"
# Stated, not measured: a PCIe 4 drive, a 100 Gb/s network; host memory is as fast as the card's PCIe.
ASSUMED_GBPS = {"disk": (7.0, 4.0), "remote": (12.5, 12.5)}
LATENCY_S = {"dram": 10e-6, "disk": 100e-6, "remote": 500e-6}
LOADING = ("layerwise", "bulk")
DECISIONS = ("auto", "load", "recompute", "both")
_TIER = re.compile(
    r"(?:(?P<folder>.*):)?(?P<size>[^:@x]+)(?:@(?P<read>[\d.]+)(?:/(?P<write>[\d.]+))?)?(?:x(?P<depth>\d+))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """One tier: its capacity, its speeds in GB/s and its latency. `source` says where the speeds come from.

    `queue_depth` blocks are on their way at once, None for as many as there are: with q of b bytes behind a latency l
    no more than q b / l bytes a second come (Little's law).
    """

    name: str
    capacity_bytes: int
    read_gbps: float | None = None
    write_gbps: float | None = None
    latency_s: float = 0.0
    source: str = "given"
    queue_depth: int | None = None

    def bytes_per_s(self, block_bytes: int, *, write: bool = False) -> float:
        """Of blocks of so many bytes, one way. The tier has its speeds."""
        assert self.read_gbps is not None
        own = 1e9 * ((self.write_gbps or self.read_gbps) if write else self.read_gbps)
        if self.queue_depth is None or not self.latency_s:
            return own
        return min(own, self.queue_depth * block_bytes / self.latency_s)


PREFETCH = ("wait", "best-effort", "timeout")


@dataclass(frozen=True, slots=True)
class Prefetch:
    """What a request does whose blocks of lower tiers are still on their way when it could begin: `wait` for them all,
    `best-effort` compute what is not there, or so after a `timeout` of `base_s`, and `token_s` for each of them.
    """

    kind: str = "wait"
    base_s: float = 0.0
    token_s: float = 0.0

    def __str__(self) -> str:
        if self.kind != "timeout":
            return self.kind
        return f"timeout:{1e3 * self.base_s:g}+{1e3 * 1024 * self.token_s:g}"


def parse_prefetch(text: str) -> Prefetch:
    """`wait`, `best-effort`, or `timeout:100+20` (ms, and ms for each 1,024 tokens). Raises KvtoolError."""
    kind, colon, value = text.strip().partition(":")
    if kind in PREFETCH and bool(colon) == (kind == "timeout"):
        base, _, each = value.partition("+")
        try:
            found = Prefetch(kind, float(base or 0) / 1e3, float(each or 0) / 1e3 / 1024)
        except ValueError:
            found = Prefetch(base_s=-1.0)
        if 0 <= found.base_s < float("inf") and 0 <= found.token_s < float("inf"):
            return found
    example = "write wait, best-effort or timeout:100+20 (ms, and ms a 1,024 tokens)"
    raise KvtoolError(f"--prefetch {text!r} is none: {example}{did_you_mean(kind, PREFETCH)}")


def parse_watermark(text: str) -> tuple[float, float]:
    """`0.9/0.8`: the parts of a tier, of which it evicts down to the second once it is fuller than the first. Raises
    KvtoolError.
    """
    high, _, low = text.partition("/")
    try:
        found = float(high), float(low or high)
    except ValueError:
        found = (0.0, 0.0)
    if not 0 < found[1] <= found[0] <= 1:
        raise KvtoolError(
            f"--watermark {text!r} is none: write 0.9/0.8, the first of at most 1 and the second below it"
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class TierOptions:
    """Tiers from the GPU down. `exclusive`: what moves up leaves the tiers below. `half_duplex`: reads and writes share
    a link. `write` says when a block moves down, `watermark` how full a tier below the GPU gets.

    The first `look_ahead` requests in line load (None: all), as long as their blocks fit into `staging_bytes` together
    (None: no limit). At most `concurrency` requests are in at a time (None: each comes when the trace says), and those
    that run have memory for `pool_tokens` together (None: enough).
    """

    tiers: tuple[Tier, ...]
    exclusive: bool = False
    half_duplex: bool = False
    write: WritePolicy = field(default_factory=WritePolicy)
    loading: str = "layerwise"
    decision: str = "auto"
    prefetch: Prefetch = field(default_factory=Prefetch)
    look_ahead: int | None = None
    staging_bytes: int | None = None
    watermark: tuple[float, float] = (1.0, 1.0)
    concurrency: int | None = None
    pool_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, count in (("look-ahead", self.look_ahead), ("concurrency", self.concurrency)):
            if count is not None and count < 1:
                raise KvtoolError(f"--{name} {count} must be 1 request or more")
        if self.pool_tokens is not None and self.pool_tokens < 1:
            raise KvtoolError(f"--pool-tokens {self.pool_tokens} must be 1 or more")
        if self.prefetch.kind != "wait" and self.loading != "bulk":
            raise KvtoolError(f"--prefetch {self.prefetch} takes blocks whole as they come: it needs --loading bulk")
        if self.exclusive and self.write.kind != "back":
            raise KvtoolError("--tiers exclusive keeps a block in one place: it needs --write-policy back")
        for name, known in (("loading", LOADING), ("decision", DECISIONS)):
            value = getattr(self, name)
            if value not in known:
                flag = "loading" if name == "loading" else "load-or-compute"
                raise KvtoolError(f"--{flag} {value!r} is not one of {', '.join(known)}{did_you_mean(value, known)}")

    def with_speeds(self, measured: Mapping[str, tuple[float, float, float]], pcie_gbps: float | None) -> TierOptions:
        """Every tier with its speeds: as given, else as `measured` (read and write GB/s, seconds of latency), else as
        assumed, which for host memory is the card's PCIe. Raises KvtoolError for one that has none.
        """
        return replace(self, tiers=tuple(_with_speed(tier, measured, pcie_gbps) for tier in self.tiers))


def _with_speed(tier: Tier, measured: Mapping[str, tuple[float, float, float]], pcie_gbps: float | None) -> Tier:
    if tier.read_gbps is not None:
        return replace(tier, latency_s=LATENCY_S[tier.name])
    if tier.name in measured:
        read, write, latency_s = measured[tier.name]
        return replace(tier, read_gbps=read, write_gbps=write, latency_s=latency_s, source="measured")
    speeds = ASSUMED_GBPS.get(tier.name) or (None if pcie_gbps is None else (pcie_gbps, pcie_gbps))
    if speeds is None:
        raise KvtoolError(f"--tiers {tier.name}: the card's PCIe is not known: write {tier.name}=64GiB@50")
    return replace(tier, read_gbps=speeds[0], write_gbps=speeds[1], latency_s=LATENCY_S[tier.name], source="assumed")


def parse_tiers(text: str) -> tuple[tuple[Tier, ...], set[str]]:
    """The tiers in their order from the GPU down, and the switches; `none` has no tier. Raises KvtoolError."""
    if text.strip() == NO_TIERS:
        return (), set()
    found, switches = tier_items(text, names=TIERS, switches=SWITCHES, example=EXAMPLE)
    return tuple(_tier(name, value) for name, value in found.items()), switches


def _tier(name: str, text: str) -> Tier:
    """`SIZE`, `SIZE@READ/WRITE`, `SIZE@READ/WRITExDEPTH`, or with a folder before it, which a replay does not touch."""
    match = _TIER.fullmatch(text)
    if match is None:
        raise KvtoolError(f"--tiers {name}={text} does not say how much: {EXAMPLE}")
    read = _speed(name, match["read"])
    depth = None if match["depth"] is None else int(match["depth"])
    if depth == 0:
        raise KvtoolError(f"--tiers {name} x0 lets no block through: {EXAMPLE}")
    return Tier(
        name=name,
        capacity_bytes=tier_bytes(match["size"], name, EXAMPLE),
        read_gbps=read,
        write_gbps=_speed(name, match["write"]) or read,
        queue_depth=depth,
    )


def _speed(name: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        gbps = float(text)
    except ValueError:
        raise KvtoolError(f"--tiers {name}: {text!r} is no speed: {EXAMPLE}") from None
    if not 0 < gbps < 1e6:
        raise KvtoolError(f"--tiers {name}: {text} GB/s must be above 0: {EXAMPLE}")
    return gbps
