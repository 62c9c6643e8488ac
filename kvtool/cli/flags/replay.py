"""Which trace, and how it is replayed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.cli.flags.group import Group
from kvtool.cli.flags.layout import LAYOUT
from kvtool.system.errors import KvtoolError
from kvtool.units import parse_size, split_list

if TYPE_CHECKING:
    from kvtool.replay.cluster.cluster import ClusterOptions
    from kvtool.replay.options import ReplayOptions
    from kvtool.replay.tiers.options import TierOptions
    from kvtool.workloads.traces import Trace

TIERS, CLUSTER = "Tiers below the GPU", "A cluster"
OF_TIERS = (
    "write_policy", "loading", "load_or_compute", "prefetch", "look_ahead", "staging", "watermark", "concurrency",
    "pool_tokens",
)  # fmt: skip
_node = partial(typer.Option, rich_help_panel=CLUSTER)
_below = partial(typer.Option, rich_help_panel=TIERS)

TraceArgument = Annotated[
    Path, typer.Argument(metavar="TRACE", help="A trace, plain or gzip, or a folder of sessions.")
]

TracesArgument = Annotated[
    str, typer.Argument(metavar="TRACE", help="A trace, plain or gzip, or a folder of sessions; several with commas.")
]


def trace_paths(text: str) -> list[Path]:
    """A path that is there, commas and all, or each of several."""
    return [Path(text)] if Path(text).exists() else [Path(item) for item in split_list(text)] or [Path(text)]


@dataclass(frozen=True)
class TraceForm(Group):
    """How a trace is to be read."""

    trace_format: Annotated[
        str | None,
        typer.Option(help="mooncake, bailian, sessions, azure or kv-events (default: what it looks like)."),
    ] = None
    block_size: Annotated[
        int | None, typer.Option(help="Tokens a block (default: the format's own, or the trace's).")
    ] = None

    def opened(self, path: Path) -> Trace:
        """The trace at `path`. Raises KvtoolError for what is none."""
        from kvtool.workloads.traces import open_trace

        return open_trace(path, form=self.trace_format, block_size=self.block_size)


@dataclass(frozen=True)
class Replayed(Group):
    """What is replayed."""

    policy: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Of optimal, lru-plain, fifo-plain, lfu-plain, and what the engine evicts by: lru, lfu, fifo, "
            "priority, never-hit-first, shared-prefix-first, size-aware, remaining-length, cost-aware.",
        ),
    ] = "lru"
    capacity: Annotated[
        str, typer.Option(metavar="LIST", help="Blocks as 1000, bytes as 20GiB (with MODEL), or none for no limit.")
    ] = "none"
    last: Annotated[
        float, typer.Option(metavar="PART", help="Count this last part of the requests; those before fill the cache.")
    ] = 1.0
    sort_by_time: Annotated[bool, typer.Option("--sort-by-time", help="Replay by time, not in the file's order.")] = (
        False
    )
    kv_cache_dtype: Annotated[str, typer.Option(help="Of MODEL's cache, as for `size`.")] = "auto"
    state_every: Annotated[
        int, typer.Option(metavar="BLOCKS", help="Keep recurrent state at every so many blocks.")
    ] = 1
    tp: Annotated[int, typer.Option(help="GPUs that share a prefill.", rich_help_panel=LAYOUT)] = 1
    jobs: Annotated[int, typer.Option(help="Replays at a time (-1: every core).")] = -1
    cluster_address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Replay on this Ray cluster: HOST:PORT, auto or local.")
    ] = None

    def options(self, below: Below, nodes: Nodes) -> ReplayOptions:
        """Raises KvtoolError for what is none."""
        from kvtool.replay.capacity import parse_capacity
        from kvtool.replay.cluster.options import parse_goal
        from kvtool.replay.options import ReplayOptions
        from kvtool.replay.tiers.profile import read_profiles
        from kvtool.replay.workers import Workers

        if below.tiers is None and nodes.cluster is None:
            _need(nodes, ("goodput",), "--tiers or --cluster")
        return ReplayOptions(
            policies=tuple(split_list(self.policy)),
            capacities=tuple(parse_capacity(item) for item in split_list(self.capacity)),
            last=self.last,
            sort_by_time=self.sort_by_time,
            kv_cache_dtype=self.kv_cache_dtype,
            state_every=self.state_every,
            tp=self.tp,
            workers=Workers(self.jobs, self.cluster_address),
            tiers=below.options(),
            cluster=nodes.options(),
            goals_s={} if nodes.goodput is None else parse_goal(nodes.goodput),
            measured=read_profiles([Path(item) for item in split_list(below.profile)] if below.profile else []),
        )


def _need(group: Below | Nodes, names: tuple[str, ...], option: str) -> None:
    """Raises KvtoolError for a value that says nothing without another option."""
    for name in names:
        if getattr(group, name) != getattr(type(group), name):
            raise KvtoolError(f"--{name.replace('_', '-')} {getattr(group, name)} says nothing without {option}")


@dataclass(frozen=True)
class Below(Group):
    """What lies below the GPU, and how fast it is."""

    tiers: Annotated[
        str | None,
        _below(
            metavar="LIST",
            help="dram=64GiB,disk=1TiB@7/4x32 (GB/s read/write, blocks in flight), remote=; exclusive, half-duplex; or "
            "none: the GPU's cache alone, on the clock.",
        ),
    ] = None
    write_policy: Annotated[
        str | None, _below(help="through, selective:K (after K hits) or back (default: back with exclusive).")
    ] = None
    loading: Annotated[
        str | None,
        _below(help="layerwise (while the layers before compute) or bulk (default: as --prefetch needs it)."),
    ] = None
    load_or_compute: Annotated[str, _below(help="auto (the faster), load, recompute or both at once.")] = "auto"
    prefetch: Annotated[
        str, _below(help="wait for lower tiers, best-effort, or timeout:100+20 (ms, and ms a 1,024 tokens).")
    ] = "wait"
    look_ahead: Annotated[
        int | None, _below(metavar="N", help="Only the first N requests in line load (default: all).")
    ] = None
    staging: Annotated[
        str | None, _below(metavar="SIZE", help="Bytes that may be on their way: hits beyond them are computed.")
    ] = None
    watermark: Annotated[
        str | None, _below(metavar="HIGH/LOW", help="A tier fuller than HIGH evicts down to LOW, as 0.9/0.8.")
    ] = None
    concurrency: Annotated[
        int | None, _below(metavar="N", help="At most N requests at a time, each as soon as it may.")
    ] = None
    pool_tokens: Annotated[
        int | None, _below(metavar="N", help="Memory for N tokens of requests that run: others wait, or give way.")
    ] = None
    profile: Annotated[
        str | None, _below(metavar="FILES", help="Measured speeds: documents of kvtool bench and kvtool tiers.")
    ] = None

    def options(self) -> TierOptions | None:
        """None where no tiers were asked for. Raises KvtoolError."""
        from kvtool.cache.tiers.options import parse_write_policy
        from kvtool.replay.tiers.options import TierOptions, parse_prefetch, parse_tiers, parse_watermark

        if self.tiers is None:
            _need(self, OF_TIERS, "--tiers dram=64GiB")
            return None
        prefetch = parse_prefetch(self.prefetch)
        tiers, switches = parse_tiers(self.tiers)
        return TierOptions(
            tiers=tiers,
            exclusive="exclusive" in switches,
            half_duplex="half-duplex" in switches,
            write=parse_write_policy(self.write_policy or ("back" if "exclusive" in switches else "through")),
            loading=self.loading or ("layerwise" if prefetch.kind == "wait" else "bulk"),
            decision=self.load_or_compute,
            prefetch=prefetch,
            look_ahead=self.look_ahead,
            staging_bytes=None if self.staging is None else parse_size(self.staging, "--staging"),
            watermark=(1.0, 1.0) if self.watermark is None else parse_watermark(self.watermark),
            concurrency=self.concurrency,
            pool_tokens=self.pool_tokens,
        )


@dataclass(frozen=True)
class Nodes(Group):
    """Prefill and decode nodes."""

    cluster: Annotated[
        str | None,
        _node(
            metavar="LIST",
            help="prefill=2xh100,decode=4xh200, or total=48 GPUs for the best split; gpus=8,nic=50,storage=50,dram=500 "
            "(GB/s) unless said; cp=,dp=,dcp= of a node's GPUs, the rest is tp.",
        ),
    ] = None
    routing: Annotated[
        str,
        _node(
            help="To prefill nodes: dualpath, round-robin, least-loaded, cache-aware or session-sticky; with "
            "local=64GiB nodes keep prompts of their own."
        ),
    ] = "dualpath"
    cluster_mode: Annotated[str, _node(help="basic, dualpath or oracle: which one `links` are of.")] = "dualpath"
    goodput: Annotated[
        str | None,
        _node(
            metavar="GOAL",
            help="ttft:4000,tpot:50 (ms): the part of requests that keep it with --tiers; with --cluster the "
            "agents a second whose means do.",
        ),
    ] = None

    def options(self) -> ClusterOptions | None:
        """None where no cluster was asked for. Raises KvtoolError."""
        from kvtool.replay.cluster.cluster import ClusterOptions
        from kvtool.replay.cluster.options import parse_clusters, parse_goal

        if self.cluster is None:
            _need(self, ("cluster_mode", "routing"), "--cluster prefill=2,decode=4")
            return None
        goal = {} if self.goodput is None else parse_goal(self.goodput)
        clusters = parse_clusters(self.cluster)
        return ClusterOptions(
            cluster=clusters[0],
            splits=tuple(clusters) if len(clusters) > 1 else (),
            mode=self.cluster_mode,
            routing=self.routing,
            ttft_goal_s=goal.get("ttft"),
            tpot_goal_s=goal.get("tpot"),
        )
