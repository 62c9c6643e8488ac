"""A replay with a clock: requests arrive, load through shared links, and are computed one after the other.

Layer by layer, a prefill begins when the first layer is loaded and ends no sooner than a layer's time after the last
one is: with equal layers this is l + (L - 1) max(c, l) + c. In bulk, it begins when all is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kvtool.replay.clock.clock import Call, Clock, Server
from kvtool.replay.clock.network import Path
from kvtool.replay.tiers.options import TierOptions
from kvtool.replay.tiers.plan import Links, Plan


@dataclass(slots=True)
class Timed:
    """One request: when it arrives, what it does, the blocks that it writes to each tier; then when it ended and how
    long the GPU stood still for its loads.
    """

    arrival_s: float
    plan: Plan
    written: tuple[int, ...] = ()
    loaded: bool = False
    began_s: float | None = None
    ended_s: float = 0.0
    stall_s: float = 0.0


@dataclass(slots=True)
class Run:
    """All requests, ended, and the bytes read from and written to each tier."""

    requests: list[Timed]
    read: list[int]
    written: list[int]
    busy: list[float] = field(default_factory=list)  # of each link, the part of the time until the last request ended

    def ttft_s(self) -> list[float]:
        return [one.ended_s - one.arrival_s for one in self.requests]


def run(requests: Sequence[Timed], links: Links, options: TierOptions) -> Run:
    """Play all requests through; they are changed."""
    return _Play(links, options).play(list(requests))


class _Play:
    def __init__(self, links: Links, options: TierOptions) -> None:
        self._links, self._options = links, options
        self._half = options.half_duplex
        speeds = [speed for tier in links.tiers for speed in (tier.read_gbps, tier.write_gbps or tier.read_gbps)]
        self._bytes_per_s = [1e9 * (speed or 0.0) for speed in speeds]  # reads at even places, writes at odd ones
        self._clock = Clock(self._bytes_per_s)
        self._gpu = Server(self._clock)
        self._moved = [0.0] * len(speeds)  # through each link, when the last request ended
        self._read, self._written = [0] * len(links.tiers), [0] * len(links.tiers)

    def play(self, requests: list[Timed]) -> Run:
        for request in requests:
            self._clock.at(request.arrival_s, lambda request=request: self._arrive(request))  # type: ignore[misc]
        self._clock.run()
        end_s = max((one.ended_s for one in requests), default=0.0)
        busy = [
            (self._moved[place] / speed if speed and end_s else 0.0) / (end_s or 1.0)
            for place, speed in enumerate(self._bytes_per_s)
        ]
        return Run(requests, self._read, self._written, busy)

    def _path(self, tier: int, *, write: bool) -> Path:
        """The links between a tier and the GPU; a half-duplex link has one direction for both."""
        return tuple(2 * place + (write and not self._half) for place in range(tier + 1))

    def _arrive(self, request: Timed) -> None:
        """It stands in line at once where it has something to compute before what it loads."""
        loads = [(tier, blocks) for tier, blocks in enumerate(request.plan.blocks) if blocks]
        waits = bool(loads) and not request.plan.before_s
        request.loaded = not loads
        if not waits:
            self._ready(request)
        for tier, blocks in loads:
            self._read[tier] += blocks * self._links.block_bytes
        layers = self._links.num_layers
        if not waits or layers == 1 or self._options.loading == "bulk":
            self._load(loads, 1.0, lambda: self._loaded(request, waits), latency=True)
            return

        def first_layer() -> None:
            self._ready(request)
            self._load(loads, (layers - 1) / layers, lambda: self._loaded(request, False))

        self._load(loads, 1 / layers, first_layer, latency=True)

    def _load(self, loads: list[tuple[int, int]], share: float, then: Call, *, latency: bool = False) -> None:
        """That share of all loads, each on its path; then go on."""
        left = len(loads)

        def arrived() -> None:
            nonlocal left
            left -= 1
            if not left:
                then()

        for tier, blocks in loads:
            latency_s = self._links.tiers[tier].latency_s if latency else 0.0
            num_bytes = blocks * self._links.block_bytes * share
            self._clock.send(self._path(tier, write=False), num_bytes, arrived, latency_s=latency_s)

    def _ready(self, request: Timed) -> None:
        self._gpu.take(lambda: self._begin(request))

    def _loaded(self, request: Timed, waits: bool) -> None:
        request.loaded = True
        if waits:
            self._ready(request)
        elif request.began_s is not None:
            self._finish_after_load(request)

    def _begin(self, request: Timed) -> None:
        """What the GPU stood still for until here is the load's, if there is one."""
        now_s = self._clock.now_s
        request.began_s = now_s
        if any(request.plan.blocks):
            request.stall_s += max(0.0, now_s - max(request.arrival_s, self._gpu.idle_since_s))
        if request.loaded:
            self._clock.at(now_s + request.plan.compute_s, lambda: self._end(request))

    def _finish_after_load(self, request: Timed) -> None:
        assert request.began_s is not None
        tail_s = self._tail_s(request.plan)
        end_s = max(request.began_s + request.plan.compute_s, self._clock.now_s + tail_s)
        request.stall_s += end_s - request.began_s - request.plan.compute_s
        self._clock.at(end_s, lambda: self._end(request))

    def _tail_s(self, plan: Plan) -> float:
        """What is left to compute when the load ends later than all else: the last layer, or all behind the load."""
        return plan.after_s if self._options.loading == "bulk" else plan.compute_s / self._links.num_layers

    def _end(self, request: Timed) -> None:
        request.ended_s = self._clock.now_s
        self._moved = list(self._clock.network.moved)
        for tier, blocks in enumerate(request.written):
            num_bytes = blocks * self._links.block_bytes
            self._written[tier] += num_bytes
            self._clock.send(self._path(tier, write=True), num_bytes, lambda: None)
        self._gpu.free()
