"""Sessions played through a cluster on a clock: read from storage, prefill layer by layer, hand over, decode.

basic: prefill nodes read. dualpath: the chosen prefill or decode node reads, whichever has less to read. oracle: bytes
take no time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from kvtool.replay.clock.clock import Call, Clock, Server
from kvtool.replay.clock.network import Path
from kvtool.replay.cluster.layout import DecodeNode, PrefillNode
from kvtool.replay.cluster.links import INTO_DECODE, KINDS, READ, TO_DECODE, TO_PREFILL, Crossing, limits
from kvtool.replay.cluster.options import Cluster
from kvtool.replay.cluster.schedule import (
    COMPUTE_S,
    READ_S,
    Node,
    Router,
    choose_decode,
    reading_side,
)
from kvtool.replay.cluster.turns import Session, Turn


@dataclass(frozen=True, slots=True)
class Speeds:
    """Of a node of each kind, and the bytes of a token's cache, which comes in so many layers."""

    prefill: PrefillNode
    decode: DecodeNode
    token_bytes: float
    num_layers: int


@dataclass(slots=True)
class Played:
    """What came out. Of each session its whole time; bytes through each link of each node until `ended_s`."""

    ttft_s: list[float] = field(default_factory=list)
    tpot_s: list[float] = field(default_factory=list)
    session_s: list[float] = field(default_factory=list)
    ended_s: float = 0.0
    moved: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Request:
    turn: Turn
    session: int
    arrived_s: float
    ended: Call
    prefill: Node
    decode: Node
    began_s: float | None = None
    loaded: bool = False
    computed: bool = False
    handed: bool = False
    waited_s: float = 0.0  # for memory of the GPUs that decode
    to_hand: int = 0  # tokens that the decode node does not have
    local: int = 0  # tokens of the prefix that the prefill node's memory has
    side: str = "prefill"  # that reads the rest of it

    @property
    def read(self) -> int:
        return self.turn.cached_tokens - self.local


class Simulation:
    """One mode on one cluster; `play` once."""

    def __init__(self, cluster: Cluster, speeds: Speeds, mode: str, routing: str = "dualpath") -> None:
        self._speeds, self._mode, self._cluster = speeds, mode, cluster
        known = [float(limit) * 1e9 for limit in limits(cluster).values()]
        self._clock = Clock(known * (cluster.prefill + cluster.decode))
        room = cluster.local_bytes / speeds.token_bytes
        self._prefill = [Node(index, room_tokens=room) for index in range(cluster.prefill)]
        self._decode = [Node(cluster.prefill + index) for index in range(cluster.decode)]
        self._decoding = {node.index: 0 for node in self._decode}  # tokens of requests that decode
        self._batches = {node.index: 0 for node in self._decode}  # and how many these are
        self._memory = {node.index: Server(cluster.pool_tokens) for node in self._decode}
        self._gpus = [Server(speeds.prefill.lanes) for _ in self._prefill]
        self._waiting: deque[tuple[int, Turn, float, Call]] = deque()
        self._router = Router(
            routing,
            self._prefill,
            short_queue_tokens=READ_S * float(cluster.storage_gbps) * 1e9 / speeds.token_bytes,
            most_tokens=speeds.prefill.tokens_in(COMPUTE_S),
        )
        self._played = Played()

    def play(self, sessions: Sequence[Session]) -> Played:
        """All sessions, each turn after the answer to the one before."""
        for session in sessions:
            self._clock.at(session.start_s, partial(self._start, session))
        self._clock.run()
        return self._played

    def _start(self, session: Session) -> None:
        """Its first turn arrives."""
        self._next(session, 0, self._clock.now_s)

    def _next(self, session: Session, number: int, began_s: float) -> None:
        """A turn arrives; when it ends, the next one comes after its pause."""
        now_s = self._clock.now_s

        def ended() -> None:
            if number + 1 < len(session.turns):
                pause_s = session.turns[number + 1].after_s
                self._clock.at(self._clock.now_s + pause_s, lambda: self._next(session, number + 1, began_s))
            else:
                self._played.session_s.append(self._clock.now_s - began_s)

        self._waiting.append((id(session), session.turns[number], now_s, ended))
        self._dispatch()

    def _dispatch(self) -> None:
        """First come, first served: nodes for the requests that wait, until every prefill node has enough."""
        while self._waiting:
            session, turn, arrived_s, ended = self._waiting[0]
            prefill = self._router.choose(session)
            if prefill is None:
                return
            self._waiting.popleft()
            decode = choose_decode(self._decode, turn.input_tokens)
            for node in (prefill, decode):
                node.requests += 1
                node.tokens += turn.input_tokens
            self._read(_Request(turn, session, arrived_s, ended, prefill, decode))

    def _read(self, request: _Request) -> None:
        """Bring what is cached into host memory, on one side, then to the GPUs as they compute."""
        request.side = reading_side(self._mode, request.prefill, request.decode)
        request.local = min(request.prefill.held.get(request.session, 0), request.turn.cached_tokens)
        reader = request.prefill if request.side == "prefill" else request.decode
        reader.read_tokens += request.read

        def in_memory() -> None:
            reader.read_tokens -= request.read
            self._to_gpus(request, 1 / self._speeds.num_layers, lambda: self._first_layer(request))

        self._send(request, READ[request.side], request.read, in_memory)

    def _to_gpus(self, request: _Request, share: float, then: Call) -> None:
        """That share of the prefix, from the memory of both nodes as far as each has it."""
        left = 2

        def arrived() -> None:
            nonlocal left
            left -= 1
            if not left:
                then()

        self._send(request, TO_PREFILL["prefill"], request.local * share, arrived)
        self._send(request, TO_PREFILL[request.side], request.read * share, arrived)

    def _first_layer(self, request: _Request) -> None:
        """It can begin; the other layers come meanwhile."""

        def loaded() -> None:
            request.loaded = True
            if request.began_s is not None:
                self._compute_rest(request)

        self._gpus[request.prefill.index].take(lambda: self._begin(request))
        self._to_gpus(request, 1 - 1 / self._speeds.num_layers, loaded)

    def _begin(self, request: _Request) -> None:
        """Layers go to the decode node as they are done: what was read there is there already."""
        request.began_s = self._clock.now_s
        request.to_hand = request.turn.input_tokens - (0 if request.side == "prefill" else request.read)
        share = 1 - 1 / self._speeds.num_layers

        def handed() -> None:
            request.handed = True
            if request.computed:
                self._hand_over(request)

        self._send(request, TO_DECODE, request.to_hand * share, handed)
        if request.loaded:
            self._compute_rest(request)

    def _compute_rest(self, request: _Request) -> None:
        """The prefill ends a layer's time after the last layer is there, or when all is computed."""
        assert request.began_s is not None
        compute_s = self._speeds.prefill.prefill_s(request.turn.input_tokens, request.turn.cached_tokens)
        now_s = self._clock.now_s
        late_s = now_s + compute_s / self._speeds.num_layers if now_s > request.began_s else 0.0
        self._clock.at(max(request.began_s + compute_s, late_s), lambda: self._computed(request))

    def _computed(self, request: _Request) -> None:
        """The first token is out, and the node is free for others."""
        request.computed = True
        self._played.ttft_s.append(self._clock.now_s - request.arrived_s)
        request.prefill.requests -= 1
        request.prefill.tokens -= request.turn.input_tokens
        request.prefill.hold(request.session, request.turn.input_tokens)
        self._gpus[request.prefill.index].free()
        self._dispatch()
        if request.handed:
            self._hand_over(request)

    def _hand_over(self, request: _Request) -> None:
        """The last layer, then all of it into the GPUs that decode, once they have room for it and its answer."""

        def there() -> None:
            there_s = self._clock.now_s
            self._memory[request.decode.index].take(lambda: into_gpus(there_s), request.turn.tokens)

        def into_gpus(there_s: float) -> None:
            request.waited_s = self._clock.now_s - there_s
            self._send(request, INTO_DECODE, request.turn.input_tokens, lambda: self._decode_all(request))

        self._send(request, TO_DECODE, request.to_hand / self._speeds.num_layers, there)

    def _decode_all(self, request: _Request) -> None:
        """It keeps the step time of the batch that it joins; what it waited for memory came between its tokens too."""
        node, turn = request.decode.index, request.turn
        self._decoding[node] += turn.input_tokens
        self._batches[node] += 1
        step_s = self._speeds.decode.step_s(self._batches[node], self._decoding[node])
        steps = max(0, turn.output_tokens - 1)
        if steps:
            self._played.tpot_s.append(step_s + request.waited_s / steps)
        self._clock.at(self._clock.now_s + steps * step_s, lambda: self._end(request))

    def _end(self, request: _Request) -> None:
        self._decoding[request.decode.index] -= request.turn.input_tokens
        self._batches[request.decode.index] -= 1
        request.decode.requests -= 1
        request.decode.tokens -= request.turn.input_tokens
        self._memory[request.decode.index].free(request.turn.tokens)
        self._played.ended_s = self._clock.now_s
        self._played.moved = list(self._clock.network.moved)
        request.ended()

    def _send(self, request: _Request, crossings: Sequence[Crossing], tokens: float, then: Call) -> None:
        num_bytes = 0.0 if self._mode == "oracle" else tokens * self._speeds.token_bytes
        self._clock.send(self._path(request, crossings), num_bytes, then)

    def _path(self, request: _Request, crossings: Sequence[Crossing]) -> Path:
        """The links of the request's own two nodes."""
        at = {"prefill": request.prefill.index, "decode": request.decode.index}
        return tuple(at[node] * len(KINDS) + KINDS.index(link) for node, link in crossings)
