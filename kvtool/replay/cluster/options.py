"""`--cluster prefill=2xh100,decode=4xh200`: nodes, their cards and layout, and the speeds of their links in GB/s."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from kvtool.catalog.gpus import Gpu, find_gpu
from kvtool.replay.cluster.layout import Layout
from kvtool.sizing.speed.exchange import COLLECTIVE_S
from kvtool.system.errors import KvtoolError, did_you_mean
from kvtool.units import parse_length, parse_size

EXAMPLE = (
    "write prefill=2xh100,decode=4xh200 (or total=48 GPUs), and gpus=8,nic=50,storage=50,dram=500 where nodes differ "
    "from these, cp=2,dp=2,dcp=2 for a layout, alpha=10 (us a collective), local=64GiB for caches in nodes, "
    "pool=2m for tokens that the GPUs of a decode node hold"
)
MODES = ("basic", "dualpath", "oracle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Nodes of `gpus` GPUs each, with a NIC of `nic_gbps` a GPU, storage NICs of `storage_gbps` together, and host
    memory of `dram_gbps` for both directions. As published for DualPath (arXiv 2602.21548, 400 Gb/s NICs) unless said.
    Of the GPUs' NICs the model's own traffic takes the part `reserved` first, but leaves a hundredth, as virtual lanes
    do. Nodes of each kind have their card, None for the one that is named elsewhere. `local_bytes` of a prefill node's
    host memory keep the last prompts of sessions. A collective of a node's GPUs takes `alpha_us` beside its bytes. The
    GPUs of a decode node hold `pool_tokens` of requests, None for as many as there are.
    """

    prefill: int
    decode: int
    gpus: int = 8
    prefill_card: Gpu | None = None
    decode_card: Gpu | None = None
    layout: Layout = field(default_factory=Layout)
    reserved: Fraction = Fraction(0)
    local_bytes: int = 0
    pool_tokens: int | None = None
    nic_gbps: Fraction = Fraction(50)
    storage_gbps: Fraction = Fraction(50)
    dram_gbps: Fraction = Fraction(500)
    alpha_us: Fraction = Fraction(round(COLLECTIVE_S * 1e6))

    def __post_init__(self) -> None:
        for name in ("prefill", "decode", "gpus"):
            if not 1 <= getattr(self, name) <= 4096:
                raise KvtoolError(f"--cluster {name}={getattr(self, name)} must be from 1 to 4096")
        if not 0 <= self.reserved <= 1:
            raise KvtoolError(f"--cluster reserved={float(self.reserved):g} is a part of the NICs, from 0 to 1")
        if not 0 <= self.alpha_us < 10**6:
            raise KvtoolError(f"--cluster alpha={float(self.alpha_us):g} is no microseconds of a collective")
        for name in ("nic", "storage", "dram"):
            if not 0 < getattr(self, f"{name}_gbps") < 10**6:
                raise KvtoolError(f"--cluster {name}={float(getattr(self, f'{name}_gbps')):g} must be above 0 GB/s")


NODES = ("prefill", "decode")
COUNTS = ("gpus", "cp", "dp", "dcp", "total")
SPEEDS = {
    "nic": "nic_gbps",
    "storage": "storage_gbps",
    "dram": "dram_gbps",
    "reserved": "reserved",
    "alpha": "alpha_us",
}


def parse_clusters(text: str) -> list[Cluster]:
    """The cluster that is asked for; of `total` GPUs, every split into prefill and decode nodes. Raises KvtoolError."""
    found: dict[str, str] = {}
    for item in text.split(","):
        name, _, value = item.strip().partition("=")
        known = (*NODES, *COUNTS, *SPEEDS, "local", "pool")
        if name not in known:
            raise KvtoolError(f"--cluster {item.strip()!r} is not of a cluster: {EXAMPLE}{did_you_mean(name, known)}")
        if name in found:
            raise KvtoolError(f"--cluster names {name} twice: {EXAMPLE}")
        found[name] = value
    counts = {name: _count(name, found[name]) for name in COUNTS if name in found}
    total, gpus = counts.pop("total", None), counts.pop("gpus", 8)
    speeds: dict[str, Any] = {
        field_name: _fraction(name, found[name]) for name, field_name in SPEEDS.items() if name in found
    }
    layout = Layout(gpus=gpus, **counts) if 1 <= gpus <= 4096 else Layout(gpus=8)
    local = parse_size(found["local"], "--cluster local") if "local" in found else 0
    pool = parse_length(found["pool"], "--cluster pool") if "pool" in found else None
    like = Cluster(prefill=1, decode=1, gpus=gpus, layout=layout, local_bytes=local, pool_tokens=pool, **speeds)
    if total is not None:
        return _splits(like, total, found)
    return [_with_nodes(like, found)]


def parse_cluster(text: str) -> Cluster:
    """The one cluster that is asked for. Raises KvtoolError for what is none, and for nodes of one kind alone."""
    (one,) = parse_clusters(text)
    return one


def _with_nodes(like: Cluster, found: dict[str, str]) -> Cluster:
    """`prefill=2` or `prefill=2xh100`."""
    nodes: dict[str, Any] = {}
    for name in NODES:
        if name not in found:
            raise KvtoolError(f"--cluster has no {name} nodes: {EXAMPLE}")
        count, _, card = found[name].partition("x")
        nodes[name] = _count(name, count)
        nodes[f"{name}_card"] = find_gpu(card) if card else None
    return replace(like, **nodes)


def _splits(like: Cluster, total: int, found: dict[str, str]) -> list[Cluster]:
    """`total=48`: at least one node of each kind."""
    if named := [name for name in NODES if name in found]:
        raise KvtoolError(f"--cluster total={total} is split into nodes: leave {named[0]} out")
    nodes, left = divmod(total, like.gpus)
    if left or nodes < 2:
        raise KvtoolError(f"--cluster total={total} is not two nodes or more of {like.gpus} GPUs: {EXAMPLE}")
    return [replace(like, prefill=count, decode=nodes - count) for count in range(1, nodes)]


def _count(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise KvtoolError(f"--cluster {name}={text} is no number: {EXAMPLE}") from None


def _fraction(name: str, text: str) -> Fraction:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise KvtoolError(f"--cluster {name}={text} is no number: {EXAMPLE}") from None


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
