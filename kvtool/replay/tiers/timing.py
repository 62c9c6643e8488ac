"""A replay with a clock: requests arrive, load through shared links, and are served.

Layer by layer, a prefill begins when the first layer is loaded and ends no sooner than a layer's time after the last
one is: with equal layers this is l + (L - 1) max(c, l) + c. In bulk, it begins when all is loaded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from kvtool.replay.clock.clock import Call, Clock
from kvtool.replay.clock.network import Path
from kvtool.replay.clock.steps import StepTimes
from kvtool.replay.tiers.options import TierOptions
from kvtool.replay.tiers.plan import Links
from kvtool.replay.tiers.room import Room
from kvtool.replay.tiers.serving import Gpu
from kvtool.replay.tiers.timed import Timed

NO_LIMIT = 1 << 60
PREFETCHED = ("disk", "remote")  # on whose blocks a request need not wait; host memory is near


@dataclass(slots=True)
class Run:
    """All requests, ended, the bytes read from and written to each tier, and those of them read in vain."""

    requests: list[Timed]
    read: list[int]
    written: list[int]
    unused_bytes: int = 0
    busy: list[float] = field(default_factory=list)  # of each link, the part of the time until the last request ended

    def ttft_s(self) -> list[float]:
        return [one.ttft_s for one in self.requests]


def run(requests: Sequence[Timed], links: Links, options: TierOptions, times: StepTimes) -> Run:
    """Play all requests through; they are changed."""
    return _Play(links, options, times).play(list(requests))


class _Play:
    def __init__(self, links: Links, options: TierOptions, times: StepTimes) -> None:
        self._links, self._options, self._floor = links, options, times.floor
        staged = NO_LIMIT if options.staging_bytes is None else options.staging_bytes // links.block_bytes
        self._room = staged  # blocks, less those on their way, which are pinned until their prompt is computed
        self._bytes_per_s = [  # reads at even places, writes at odd ones
            tier.bytes_per_s(links.block_bytes, write=write) for tier in links.tiers for write in (False, True)
        ]
        self._clock = Clock(self._bytes_per_s)
        room = None if options.pool_tokens is None else Room(options.pool_tokens // links.block_size, links.block_size)
        self._gpu = Gpu(self._clock, times, take=self._take, prefilled=self._prefilled, ended=self._ended, room=room)
        self._held_back: deque[Timed] = deque()
        self._in_flight = 0
        self._line: dict[int, Timed] = {}  # in the order of their arrival
        self._moved = [0.0] * len(self._bytes_per_s)  # through each link, when the last request ended
        self._run = Run([], [0] * len(links.tiers), [0] * len(links.tiers))

    def play(self, requests: list[Timed]) -> Run:
        for request in requests:
            self._clock.at(request.arrival_s, partial(self._submit, request))
        self._clock.run()
        end_s = max((one.ended_s for one in requests), default=0.0)
        self._run.requests = requests
        self._run.busy = [
            (moved / speed if end_s else 0.0) / (end_s or 1.0)
            for moved, speed in zip(self._moved, self._bytes_per_s, strict=True)
        ]
        return self._run

    def _submit(self, request: Timed) -> None:
        self._held_back.append(request)
        self._let_in()

    def _let_in(self) -> None:
        """As many as may be in at a time; one that was held back arrives when it comes in."""
        most = self._options.concurrency
        while self._held_back and (most is None or self._in_flight < most):
            request = self._held_back.popleft()
            self._in_flight += 1
            if most is not None:
                request.arrival_s = self._clock.now_s
            self._line[id(request)] = request
            self._look_ahead(request)
            self._clock.at(self._clock.now_s, self._gpu.poke)  # behind all others that come in this moment

    def _look_ahead(self, newest: Timed | None = None) -> None:
        """The first ones in line start to load."""
        if self._options.look_ahead is None:
            first = [] if newest is None else [newest]
        else:
            first = list(islice(self._line.values(), self._options.look_ahead))
        for request in first:
            if not request.started:
                self._start(request)

    def _start(self, request: Timed) -> None:
        options, layers = self._options, self._links.num_layers
        layerwise = options.loading == "layerwise"
        request.start(self._room, layers if layerwise else 1)
        self._room -= sum(request.plan.blocks)
        loads = {tier: blocks for tier, blocks in enumerate(request.plan.blocks) if blocks}
        for tier, blocks in loads.items():
            self._run.read[tier] += blocks * self._links.block_bytes
        if not loads:
            return
        if options.prefetch.kind == "timeout":
            low = sum(blocks for tier, blocks in loads.items() if self._may_be_cut(tier))
            wait_s = options.prefetch.base_s + options.prefetch.token_s * low * self._links.block_size
            request.deadline_s = self._clock.now_s + wait_s
            self._clock.at(request.deadline_s, self._gpu.poke)
        if request.can_begin or layers == 1 or not layerwise:
            self._load(request, loads, 1.0, lambda: self._loaded(request), latency=True)
            return

        def first_layer() -> None:
            request.can_begin = True
            self._load(request, loads, (layers - 1) / layers, lambda: self._loaded(request))
            self._gpu.poke()

        self._load(request, loads, 1 / layers, first_layer, latency=True)

    def _load(self, request: Timed, loads: dict[int, int], share: float, then: Call, *, latency: bool = False) -> None:
        """That share of all loads, each on its path; then go on."""

        def arrived(tier: int) -> None:
            del request.loads[tier]
            if not request.loads:
                then()

        for tier, blocks in loads.items():
            request.loads[tier] = self._clock.send(
                self._path(tier, write=False),
                blocks * self._links.block_bytes * share,
                partial(arrived, tier),
                latency_s=self._links.tiers[tier].latency_s if latency else 0.0,
            )

    def _path(self, tier: int, *, write: bool) -> Path:
        """The links between a tier and the GPU; a half-duplex link has one direction for both."""
        return tuple(2 * place + (write and not self._options.half_duplex) for place in range(tier + 1))

    def _loaded(self, request: Timed) -> None:
        request.loaded = request.can_begin = True
        self._gpu.loaded(request)
        self._gpu.poke()

    def _take(self) -> Timed | None:
        """The first in line that can begin. One without room holds up those behind it."""
        for request in self._line.values():
            if not request.started:
                continue
            if not self._gpu.fits(request):
                return None
            if not request.shares_what_comes and self._can_begin(request):
                del self._line[id(request)]
                self._look_ahead()
                self._compute_late(request)
                return request
        return None

    def _compute_late(self, request: Timed) -> None:
        """What another request has not computed yet is not there: both compute it."""
        size, held = self._links.block_size, request.held_blocks
        request.late_blocks = request.in_gpu - held
        if request.late_blocks:
            end = min(request.in_gpu * size, request.input_tokens - 1)
            request.compute(end - held * size, self._floor.compute_s(held * size, end))

    def _can_begin(self, request: Timed) -> bool:
        kind = self._options.prefetch.kind
        if not request.can_begin and (
            kind == "best-effort" or (kind == "timeout" and self._clock.now_s >= request.deadline_s)
        ):
            self._cut(request)
        return request.can_begin

    def _may_be_cut(self, tier: int) -> bool:
        return self._links.tiers[tier].name in PREFETCHED

    def _cut(self, request: Timed) -> None:
        """What has not come from the lower tiers is computed instead, from the end of the load backwards."""
        size, end = self._links.block_bytes, request.plan.loaded_end
        for tier in [tier for tier in request.loads if self._may_be_cut(tier)]:
            flow = request.loads.pop(tier)
            left = self._clock.stop(flow)
            missing = -int(-left // size)
            tokens = missing * self._links.block_size
            request.missed_blocks += missing
            request.compute(tokens, self._floor.compute_s(end - tokens, end))
            end -= tokens
            self._run.read[tier] -= int(left)
            self._run.unused_bytes += int(missing * size - left)
        if not request.loads:
            request.loaded = request.can_begin = True

    def _prefilled(self, request: Timed) -> None:
        """What it loaded is no longer pinned, and what it computed is written down."""
        self._room += sum(request.plan.blocks)
        for tier, blocks in enumerate(request.written):
            num_bytes = blocks * self._links.block_bytes
            self._run.written[tier] += num_bytes
            self._clock.send(self._path(tier, write=True), num_bytes, lambda: None)

    def _ended(self, request: Timed) -> None:
        self._moved = list(self._clock.network.moved)
        self._in_flight -= 1
        if self._held_back:
            self._clock.at(self._clock.now_s, self._let_in)
