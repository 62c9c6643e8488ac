"""`--tiers dram=64GiB,disk=1TiB@7/4`: capacities, and speeds in GB/s where a card or a profile does not give them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from kvtool.cache.tiers.options import WritePolicy, tier_bytes, tier_items
from kvtool.errors import KvtoolError, did_you_mean

TIERS = ("dram", "disk", "remote")  # from the GPU down; bytes of a lower one pass through those above
SWITCHES = ("exclusive", "half-duplex")
EXAMPLE = "write dram=64GiB,disk=1TiB@7/4 (GB/s read/write)"
# Stated, not measured: a PCIe 4 drive, a 100 Gb/s network; host memory is as fast as the card's PCIe.
ASSUMED_GBPS = {"disk": (7.0, 4.0), "remote": (12.5, 12.5)}
LATENCY_S = {"dram": 10e-6, "disk": 100e-6, "remote": 500e-6}
LOADING = ("layerwise", "bulk")
DECISIONS = ("auto", "load", "recompute", "both")
_TIER = re.compile(r"(?:(?P<folder>.*):)?(?P<size>[^:@]+)(?:@(?P<read>[\d.]+)(?:/(?P<write>[\d.]+))?)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """One tier: its capacity, its speeds in GB/s and its latency. `source` says where the speeds come from."""

    name: str
    capacity_bytes: int
    read_gbps: float | None = None
    write_gbps: float | None = None
    latency_s: float = 0.0
    source: str = "given"


@dataclass(frozen=True, slots=True, kw_only=True)
class TierOptions:
    """Tiers from the GPU down. `exclusive`: what moves up leaves the tiers below. `half_duplex`: reads and writes share
    a link. `write` says when a block moves down."""

    tiers: tuple[Tier, ...]
    exclusive: bool = False
    half_duplex: bool = False
    write: WritePolicy = field(default_factory=WritePolicy)
    loading: str = "layerwise"
    decision: str = "auto"

    def __post_init__(self) -> None:
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
    """The tiers in their order from the GPU down, and the switches. Raises KvtoolError."""
    found, switches = tier_items(text, names=TIERS, switches=SWITCHES, example=EXAMPLE)
    return tuple(_tier(name, value) for name, value in found.items()), switches


def _tier(name: str, text: str) -> Tier:
    """`SIZE`, `SIZE@READ/WRITE`, or with a folder before it, which a replay does not touch."""
    match = _TIER.fullmatch(text)
    if match is None:
        raise KvtoolError(f"--tiers {name}={text} does not say how much: {EXAMPLE}")
    read = _speed(name, match["read"])
    return Tier(
        name=name,
        capacity_bytes=tier_bytes(match["size"], name, EXAMPLE),
        read_gbps=read,
        write_gbps=_speed(name, match["write"]) or read,
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
