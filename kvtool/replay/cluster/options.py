"""`--cluster prefill=2,decode=4`: nodes, their GPUs, and the speeds of their links in GB/s."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from kvtool.errors import KvtoolError, did_you_mean

EXAMPLE = "write prefill=2,decode=4, and gpus=8,nic=50,storage=50,dram=500 where nodes differ from these"
MODES = ("basic", "dualpath", "oracle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Nodes of `gpus` GPUs each, with a NIC of `nic_gbps` a GPU, storage NICs of `storage_gbps` together, and host
    memory of `dram_gbps` for both directions. As published for DualPath (arXiv 2602.21548, 400 Gb/s NICs) unless said.
    """

    prefill: int
    decode: int
    gpus: int = 8
    nic_gbps: Fraction = Fraction(50)
    storage_gbps: Fraction = Fraction(50)
    dram_gbps: Fraction = Fraction(500)

    def __post_init__(self) -> None:
        for name in ("prefill", "decode", "gpus"):
            if not 1 <= getattr(self, name) <= 4096:
                raise KvtoolError(f"--cluster {name}={getattr(self, name)} must be from 1 to 4096")
        for name in ("nic", "storage", "dram"):
            if not 0 < getattr(self, f"{name}_gbps") < 10**6:
                raise KvtoolError(f"--cluster {name}={float(getattr(self, f'{name}_gbps')):g} must be above 0 GB/s")


def parse_cluster(text: str) -> Cluster:
    """Raises KvtoolError for what is none, and for nodes of one kind alone."""
    fields = {"prefill": "prefill", "decode": "decode", "gpus": "gpus"}
    speeds = {"nic": "nic_gbps", "storage": "storage_gbps", "dram": "dram_gbps"}
    found: dict[str, int | Fraction] = {}
    for item in text.split(","):
        name, _, value = item.strip().partition("=")
        known = fields | speeds
        if name not in known:
            raise KvtoolError(f"--cluster {item.strip()!r} is not of a cluster: {EXAMPLE}{did_you_mean(name, known)}")
        try:
            number = int(value) if name in fields else Fraction(value)
        except (ValueError, ZeroDivisionError):
            raise KvtoolError(f"--cluster {name}={value} is no number: {EXAMPLE}") from None
        if known[name] in found:
            raise KvtoolError(f"--cluster names {name} twice: {EXAMPLE}")
        found[known[name]] = number
    missing = [name for name in ("prefill", "decode") if name not in found]
    if missing:
        raise KvtoolError(f"--cluster has no {missing[0]} nodes: {EXAMPLE}")
    return Cluster(**found)  # type: ignore[arg-type]


def parse_goal(text: str) -> dict[str, float]:
    """Seconds of `ttft:4000,tpot:50` (ms), by name. Raises KvtoolError."""
    goal: dict[str, float] = {}
    for item in text.split(","):
        name, _, value = item.strip().partition(":")
        try:
            milliseconds = float(value)
        except ValueError:
            milliseconds = 0.0
        if name not in ("ttft", "tpot") or not 0 < milliseconds < float("inf"):
            raise KvtoolError(f"--goodput {item.strip()!r} is no goal: write ttft:4000,tpot:50 (ms)")
        goal[name] = milliseconds / 1e3
    return goal
