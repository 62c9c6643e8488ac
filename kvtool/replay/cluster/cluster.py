"""A cluster's document: its range, its links, and each mode side by side."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean

import numpy as np

from kvtool.catalog.gpus import Gpu
from kvtool.catalog.model import Model
from kvtool.errors import KvtoolError, did_you_mean
from kvtool.replay.capacity import block_bytes
from kvtool.replay.cluster.links import KINDS, balanced_range, limits, link_loads
from kvtool.replay.cluster.options import MODES, Cluster
from kvtool.replay.cluster.simulate import Played, Simulation, Speeds
from kvtool.replay.cluster.turns import Session, sessions_of, started_at
from kvtool.replay.saved import prefill_floor
from kvtool.results import ReplayCluster, ReplayLink, ReplayMode, ReplayTtft
from kvtool.workloads.traces import Trace

BISECTIONS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """`mode` is the one that the document's own figures are of. With a goal (mean seconds to the first token and for
    each one after it), agents per second are found that keep it; else all of the trace's are run as it has them.
    """

    cluster: Cluster
    mode: str = "dualpath"
    ttft_goal_s: float | None = None
    tpot_goal_s: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            near = did_you_mean(self.mode, MODES)
            raise KvtoolError(f"--cluster-mode {self.mode!r} is not one of {', '.join(MODES)}{near}")


def replay_cluster(
    trace: Trace,
    options: ClusterOptions,
    model: Model,
    gpu: Gpu,
    *,
    kv_cache_dtype: str = "auto",
    tflops: float | None = None,
    progress: Callable[[str, float], None] = lambda doing, done: None,
) -> ReplayCluster:
    """Every mode on the trace's sessions. Raises KvtoolError for a trace without blocks, or a card without figures."""
    cluster = options.cluster
    sessions = sessions_of(trace)
    speeds = node_speeds(model, gpu, cluster, kv_cache_dtype=kv_cache_dtype, tflops=tflops)
    modes = []
    for place, mode in enumerate(MODES):
        progress(f"cluster, {mode}", place / len(MODES))
        modes.append(_mode(mode, Simulation(cluster, speeds, mode).play(sessions), cluster, sessions))
    chosen = modes[MODES.index(options.mode)]
    rate = chosen.agents_per_s
    if options.ttft_goal_s is not None or options.tpot_goal_s is not None:
        progress(f"agents per second, {options.mode}", 1.0)
        rate = agents_at_goal(options, speeds, sessions, upper=modes[-1].agents_per_s)
    low, high = balanced_range(cluster)
    return ReplayCluster(
        mode=options.mode,
        prefill=cluster.prefill,
        decode=cluster.decode,
        range=[float(low), None if high is None else float(high)],
        bound=bound_words(cluster),
        loads=[
            ReplayLink(link=f"{one.node} {one.link}", utilisation=float(one.utilisation)) for one in link_loads(cluster)
        ],
        links=chosen.links,
        agents_per_s=rate,
        modes=modes,
    )


def bound_words(cluster: Cluster) -> str:
    """What is full besides the storage NICs when these read all they can: nothing, or which link."""
    full = [one for one in link_loads(cluster) if one.utilisation > 1]
    if not full:
        return "storage"
    worst = max(full, key=lambda one: one.utilisation)
    return f"{worst.node} {worst.link}"


def node_speeds(
    model: Model, gpu: Gpu, cluster: Cluster, *, kv_cache_dtype: str = "auto", tflops: float | None = None
) -> Speeds:
    """Of a node whose GPUs share a prefill and a decode step evenly. Raises KvtoolError for what is not known."""
    room = block_bytes(model, block_size=1, kv_cache_dtype=kv_cache_dtype)
    floor = prefill_floor(model, gpu, cluster.gpus, tflops)
    assert gpu.memory_bandwidth_gbps is not None
    return Speeds(floor, room.page_bytes, model.num_layers, 1 / (gpu.memory_bandwidth_gbps * 1e9 * cluster.gpus))


def agents_at_goal(options: ClusterOptions, speeds: Speeds, sessions: Sequence[Session], *, upper: float) -> float:
    """The most sessions a second, as a Poisson process, whose mean times keep the goal: by halves below `upper`."""
    low, high = 0.0, upper
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        rng = random.Random(f"cluster {options.seed}")
        gaps = (rng.expovariate(middle) for _ in sessions)
        starts = list(accumulate(gaps))
        played = Simulation(options.cluster, speeds, options.mode).play(started_at(sessions, starts))
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
