"""Sends the requests of a plan to a server as they come due, by as many threads as are in flight, and keeps what came
back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from queue import Empty, SimpleQueue
from threading import Thread

from kvtool.bench.engines.server.options import MOST_IN_FLIGHT
from kvtool.engine.endpoint.answer import Answer, read_answer
from kvtool.engine.endpoint.client import Client
from kvtool.engine.endpoint.faults import FATAL, EndpointError
from kvtool.engine.endpoint.wire import Asking, Prompt, Wire
from kvtool.workloads.scenarios.base import Plan

NOT_SENT = EndpointError("not sent", "not sent: the turn before it, or the server, had failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchanged:
    """One request and its answer. `in_s` is when it was due where requests come by the clock, else when it was sent;
    seconds since the start of the plan."""

    turn: int
    in_s: float
    start_s: float
    answer: Answer

    @property
    def ttft_s(self) -> float:
        return self.answer.token_s[0] - self.start_s - self.in_s

    @property
    def e2e_s(self) -> float:
        return self.answer.token_s[-1] - self.start_s - self.in_s

    @property
    def late_s(self) -> float:
        """From when it was due to when the client sent it."""
        return self.answer.sent_s - self.start_s - self.in_s

    @property
    def fault(self) -> EndpointError | None:
        """What makes the answer no measurement."""
        answer = self.answer
        if answer.fault is None and answer.output_tokens > 1 and len(answer.token_s) == 1:
            return EndpointError("not streamed", f"{answer.output_tokens} tokens came in one event: no time is of each")
        return answer.fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Driven:
    """All requests of a plan in its order. `lost` is the fault after which nothing more was sent."""

    plan: Plan
    exchanged: list[Exchanged]
    wall_s: float
    lost: EndpointError | None = None
    interrupted: bool = False

    @property
    def whole(self) -> list[Exchanged]:
        """Those that were answered."""
        return [one for one in self.exchanged if one.fault is None]

    @property
    def failed(self) -> list[tuple[Exchanged, EndpointError]]:
        return [(one, fault) for one in self.exchanged if (fault := one.fault) is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """Who asks, and how prompts are written."""

    client: Client
    wire: Wire
    asking: Asking

    def prime(self, prompts: Sequence[Sequence[int]]) -> None:
        """Have the server compute these prompts, one after another. Raises EndpointError."""
        for own_ids in prompts:
            answer = self.ask(self.wire.start(own_ids), 1)
            if answer.fault is not None and answer.fault.kind not in ("empty", "no usage"):
                raise answer.fault

    def ask(self, prompt: Prompt, output_len: int) -> Answer:
        """One request, now."""
        return read_answer(self.client.stream(self.wire.path, self.wire.body(self.asking, prompt, output_len)))

    def drive(self, plan: Plan, *, concurrency: int | None = None, by_clock: bool = False) -> Driven:
        """The plan's requests, at most `concurrency` in flight; `by_clock`: a request is in when it is due, not when
        the client comes to send it. Ctrl-C ends it with what is done."""
        return _Driving(self, plan, concurrency, by_clock and concurrency is None).run()


class _Driving:
    """The state of one run. `_due` is a heap of seconds and turns; `_left` counts the answers of a turn in flight."""

    def __init__(self, driver: Driver, plan: Plan, concurrency: int | None, by_clock: bool) -> None:
        self.driver, self.plan, self.by_clock = driver, plan, by_clock
        self._most = concurrency or MOST_IN_FLIGHT
        self._clock = driver.client.clock
        self._due = [(turn.arrival_s, index) for index, turn in enumerate(plan.turns) if turn.after is None]
        heapify(self._due)
        self._followers: dict[int, list[int]] = defaultdict(list)
        for index, turn in enumerate(plan.turns):
            if turn.after is not None:
                self._followers[turn.after].append(index)
        self._prompts = {index: driver.wire.start(plan.turns[index].own_ids) for _, index in self._due}
        self._bodies = {index: self._body(index) for _, index in self._due}
        self._done: SimpleQueue[Exchanged] = SimpleQueue()
        self._to_ask: SimpleQueue[tuple[int, float, bytes] | None] = SimpleQueue()  # None ends a thread
        self._threads = 0
        self._found: dict[int, list[Exchanged]] = defaultdict(list)
        self._in_flight = 0
        self._lost: EndpointError | None = None
        self._start_s = self._clock()

    def run(self) -> Driven:
        interrupted = False
        try:
            while self._due or self._in_flight:
                self._submit()
                self._collect()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            for _ in range(self._threads):
                self._to_ask.put(None)
        wall_s = self._now_s()
        self._count_unsent(interrupted)
        exchanged = [one for index in range(len(self.plan.turns)) for one in self._found[index]]
        return Driven(plan=self.plan, exchanged=exchanged, wall_s=wall_s, lost=self._lost, interrupted=interrupted)

    def _now_s(self) -> float:
        return self._clock() - self._start_s

    def _body(self, index: int) -> bytes:
        driver, turn = self.driver, self.plan.turns[index]
        return driver.wire.body(driver.asking, self._prompts[index], turn.output_len)

    def _submit(self) -> None:
        """All that are due and have room, the answers to one prompt as requests of their own."""
        while self._due and self._in_flight < self._most and self._due[0][0] <= self._now_s():
            due_s, index = heappop(self._due)
            for _ in range(self.plan.turns[index].answers):
                self._in_flight += 1
                self._to_ask.put((index, due_s, self._bodies[index]))
                if self._threads < self._in_flight:
                    self._threads += 1
                    Thread(target=self._ask_all, daemon=True).start()

    def _ask_all(self) -> None:
        """In a thread, one request after the other: to wake one takes less than to start one."""
        driver = self.driver
        while (asked := self._to_ask.get()) is not None:
            index, due_s, body = asked
            answer = read_answer(driver.client.stream(driver.wire.path, body))
            in_s = due_s if self.by_clock else answer.sent_s - self._start_s
            self._done.put(Exchanged(turn=index, in_s=in_s, start_s=self._start_s, answer=answer))

    def _collect(self) -> None:
        """Wait for an answer, or until the next request is due."""
        has_room = self._due and self._in_flight < self._most
        wait_s = max(0.0, self._due[0][0] - self._now_s()) if has_room else None
        try:
            one = self._done.get(timeout=wait_s)
        except Empty:
            return
        self._in_flight -= 1
        self._found[one.turn].append(one)
        if one.fault is not None:
            if one.fault.kind in FATAL:
                self._lost = self._lost or one.fault
                self._due.clear()
        elif len(self._found[one.turn]) == self.plan.turns[one.turn].answers and self._lost is None:
            self._follow(one)

    def _follow(self, one: Exchanged) -> None:
        """The turns that waited for this one are due after their pause."""
        for index in self._followers.pop(one.turn, []):
            turn, wire = self.plan.turns[index], self.driver.wire
            before = self._prompts[one.turn]
            goes_on = turn.continues
            self._prompts[index] = wire.go_on(before, one.answer, turn.own_ids) if goes_on else wire.start(turn.own_ids)
            self._bodies[index] = self._body(index)
            heappush(self._due, (self._now_s() + turn.think_s, index))

    def _count_unsent(self, interrupted: bool) -> None:
        """Requests that a failure before them kept from being sent are failures too."""
        now_s = self._clock()
        unsent = Answer(sent_s=now_s, ended_s=now_s, fault=NOT_SENT)
        for index, turn in enumerate(self.plan.turns):
            for _ in range(0 if interrupted else turn.answers - len(self._found[index])):
                self._found[index].append(
                    Exchanged(turn=index, in_s=now_s - self._start_s, start_s=self._start_s, answer=unsent)
                )
