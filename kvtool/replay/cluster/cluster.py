"""A cluster's document: its range, its links, and each mode side by side."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from statistics import fmean

import numpy as np

from kvtool.catalog.gpus import Gpu
from kvtool.catalog.model import Model
from kvtool.replay.capacity import block_bytes
from kvtool.replay.cluster.layout import decode_node, prefill_node
from kvtool.replay.cluster.links import KINDS, balanced_range, limits, link_loads
from kvtool.replay.cluster.options import MODES, Cluster
from kvtool.replay.cluster.schedule import ROUTING
from kvtool.replay.cluster.simulate import Played, Simulation, Speeds
from kvtool.replay.cluster.turns import Session, sessions_of, started_at
from kvtool.results import ReplayCluster, ReplayLink, ReplayMode, ReplaySplit, ReplayTtft
from kvtool.system.errors import KvtoolError, did_you_mean
from kvtool.workloads.traces import Trace

BISECTIONS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """`mode` is the one that the document's own figures are of. With a goal (mean seconds to the first token and for
    each one after it), agents per second are found that keep it; else all of the trace's are run as it has them. With
    `splits` the best of them takes the place of `cluster`.
    """

    cluster: Cluster
    splits: tuple[Cluster, ...] = ()
    mode: str = "dualpath"
    routing: str = "dualpath"
    ttft_goal_s: float | None = None
    tpot_goal_s: float | None = None
    seed: int = 0

    @property
    def has_goal(self) -> bool:
        return self.ttft_goal_s is not None or self.tpot_goal_s is not None

    def __post_init__(self) -> None:
        for flag, value, known in (("cluster-mode", self.mode, MODES), ("routing", self.routing, ROUTING)):
            if value not in known:
                raise KvtoolError(f"--{flag} {value!r} is not one of {', '.join(known)}{did_you_mean(value, known)}")


def replay_cluster(
    trace: Trace,
    options: ClusterOptions,
    model: Model,
    gpu: Gpu | None,
    *,
    kv_cache_dtype: str = "auto",
    tflops: float | None = None,
    progress: Callable[[str, float], None] = lambda doing, done: None,
) -> ReplayCluster:
    """Every mode on the trace's sessions; nodes without a card of their own have `gpu`. Raises KvtoolError for a trace
    without blocks, and a card without figures.
    """
    sessions = sessions_of(trace)
    speeds = node_speeds(model, gpu, options.cluster, kv_cache_dtype=kv_cache_dtype, tflops=tflops)
    splits = []
    for place, split in enumerate(options.splits):
        progress(f"{split.prefill} prefill and {split.decode} decode nodes", place / len(options.splits))
        splits.append(_split(replace(options, cluster=split), speeds, sessions))
    if splits:
        best = max(range(len(splits)), key=lambda place: splits[place].agents_per_s)
        options = replace(options, cluster=options.splits[best])
    cluster, modes = options.cluster, []
    for place, mode in enumerate(MODES):
        progress(f"cluster, {mode}", place / len(MODES))
        modes.append(_mode(mode, Simulation(cluster, speeds, mode, options.routing).play(sessions), cluster, sessions))
    chosen = modes[MODES.index(options.mode)]
    rate = chosen.agents_per_s
    if options.has_goal:
        progress(f"agents per second, {options.mode}", 1.0)
        rate = agents_at_goal(options, speeds, sessions, upper=modes[-1].agents_per_s)
    low, high = balanced_range(cluster)
    return ReplayCluster(
        mode=options.mode,
        routing=options.routing,
        prefill=cluster.prefill,
        decode=cluster.decode,
        prefill_gpu=_card(cluster.prefill_card, gpu).name,
        decode_gpu=_card(cluster.decode_card, gpu).name,
        layout={"gpus": cluster.gpus, "tp": cluster.layout.tp, **_degrees(cluster)},
        splits=splits,
        range=[float(low), None if high is None else float(high)],
        bound=bound_words(cluster),
        loads=[
            ReplayLink(link=f"{one.node} {one.link}", utilisation=float(one.utilisation)) for one in link_loads(cluster)
        ],
        links=chosen.links,
        agents_per_s=rate,
        modes=modes,
    )


def _degrees(cluster: Cluster) -> dict[str, int]:
    return {name: getattr(cluster.layout, name) for name in ("cp", "dp", "dcp")}


def _split(options: ClusterOptions, speeds: Speeds, sessions: Sequence[Session]) -> ReplaySplit:
    """Agents a second of one split: at the goal, else with all sessions as the trace has them."""
    cluster = options.cluster
    played = Simulation(cluster, speeds, options.mode, options.routing).play(sessions)
    rate = len(sessions) / played.ended_s if played.ended_s else 0.0
    if options.has_goal:
        oracle = Simulation(cluster, speeds, "oracle", options.routing).play(sessions)
        rate = agents_at_goal(options, speeds, sessions, upper=len(sessions) / oracle.ended_s)
    return ReplaySplit(prefill=cluster.prefill, decode=cluster.decode, agents_per_s=rate, bound=bound_words(cluster))


def bound_words(cluster: Cluster) -> str:
    """What is full besides the storage NICs when these read all they can: nothing, or which link."""
    full = [one for one in link_loads(cluster) if one.utilisation > 1]
    if not full:
        return "storage"
    worst = max(full, key=lambda one: one.utilisation)
    return f"{worst.node} {worst.link}"


def node_speeds(
    model: Model, gpu: Gpu | None, cluster: Cluster, *, kv_cache_dtype: str = "auto", tflops: float | None = None
) -> Speeds:
    """Of nodes with their own cards, else `gpu`. Raises KvtoolError for what is not known."""
    token_bytes = block_bytes(model, block_size=1, kv_cache_dtype=kv_cache_dtype).page_bytes
    alpha_s = float(cluster.alpha_us) / 1e6
    return Speeds(
        prefill_node(model, _card(cluster.prefill_card, gpu), cluster.layout, token_bytes, tflops, alpha_s),
        decode_node(model, _card(cluster.decode_card, gpu), cluster.layout, kv_cache_dtype, alpha_s),
        token_bytes,
        model.num_layers,
    )


def _card(own: Gpu | None, gpu: Gpu | None) -> Gpu:
    found = own or gpu
    if found is None:
        raise KvtoolError("--cluster names no card: write prefill=2xh100,decode=4xh200, or --gpu h100 for all nodes")
    return found


def agents_at_goal(options: ClusterOptions, speeds: Speeds, sessions: Sequence[Session], *, upper: float) -> float:
    """The most sessions a second, as a Poisson process, whose mean times keep the goal: by halves below `upper`."""
    low, high = 0.0, upper
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        rng = random.Random(f"cluster {options.seed}")
        gaps = (rng.expovariate(middle) for _ in sessions)
        starts = list(accumulate(gaps))
        played = Simulation(options.cluster, speeds, options.mode, options.routing).play(started_at(sessions, starts))
        low, high = (middle, high) if _keeps(options, played) else (low, middle)
    return low


def _keeps(options: ClusterOptions, played: Played) -> bool:
    goals = ((options.ttft_goal_s, played.ttft_s), (options.tpot_goal_s, played.tpot_s))
    return all(goal is None or not times or fmean(times) <= goal for goal, times in goals)


def _mode(mode: str, played: Played, cluster: Cluster, sessions: Sequence[Session]) -> ReplayMode:
    nodes = ["prefill"] * cluster.prefill + ["decode"] * cluster.decode
    known = [float(limit) * 1e9 for limit in limits(cluster).values()]
    busy: dict[str, list[float]] = {}
    for index, node in enumerate(nodes):
        for place, link in enumerate(KINDS):
            moved = played.moved[index * len(KINDS) + place] if played.moved else 0.0
            busy.setdefault(f"{node} {link}", []).append(moved / known[place] / (played.ended_s or 1.0))
    storage = [use for name, uses in busy.items() if name.endswith("snic") for use in uses]
    return ReplayMode(
        mode=mode,
        agents_per_s=len(sessions) / played.ended_s if played.ended_s else 0.0,
        makespan_s=played.ended_s,
        session_s=fmean(played.session_s or [0.0]),
        ttft_ms=_times(played.ttft_s),
        tpot_ms=_times(played.tpot_s),
        storage_max_over_mean=max(storage) / fmean(storage) if any(storage) else None,
        links=[ReplayLink(link=name, utilisation=fmean(uses)) for name, uses in busy.items()],
    )


def _times(seconds: Sequence[float]) -> ReplayTtft:
    values = np.array(list(seconds) or [0.0]) * 1e3
    p50, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
    return ReplayTtft(mean=float(values.mean()), p50=p50, p90=p90, p99=p99)
