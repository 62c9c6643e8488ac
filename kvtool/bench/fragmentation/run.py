"""All requests through one allocator, first come first served, a token a step each: what was held, what stood empty."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from kvtool.bench.fragmentation.allocators import Allocator, Piece
from kvtool.bench.fragmentation.arrivals import Request


@dataclass(frozen=True, slots=True)
class Moment:
    """In tokens, when the most were used. `external` is free while the next request fits into it, but in no hole."""

    reserved: int = 0
    used: int = 0
    external: int = 0
    largest_hole: int = 0
    pieces: tuple[Piece, ...] = ()


@dataclass(slots=True)
class Outcome:
    """What came of the requests. Sums are over the steps while one waited."""

    fullest: Moment = field(default_factory=Moment)
    refused: int = 0
    interrupted: int = 0
    largest_batch: int = 0
    completed_tokens: int = 0
    steps: int = 0
    waited_steps: int = 0
    used_sum: int = 0
    reserved_sum: int = 0
    external_sum: int = 0


@dataclass(slots=True)
class Run:
    """Requests that wait and that run, the oldest first."""

    allocator: Allocator
    pool_tokens: int
    waiting: deque[Request]
    running: list[Request] = field(default_factory=list)
    outcome: Outcome = field(default_factory=Outcome)
    full: bool = False  # one gave way: nobody is admitted before a request has ended

    def step(self) -> None:
        """Admit, note, and one token more for each that runs."""
        self._admit()
        self._note()
        for request in list(self.running):
            if request in self.running:
                self._advance(request)

    def _admit(self) -> None:
        while self.waiting and not (self.full and self.running):
            if self.allocator.admit(self.waiting[0]):
                self.running.append(self.waiting.popleft())
            elif self.running:
                return
            else:  # it has the pool for itself, and no room in it
                self.waiting.popleft()
                self.outcome.refused += 1

    def _advance(self, request: Request) -> None:
        """One token more, or somebody gives way for it."""
        while not self.allocator.grow(request):
            alone = self.running == [request]
            leaves = self.running[-1] if self.allocator.gives_way else request
            self._leave(leaves)
            if alone and self.allocator.gives_way:
                self.outcome.refused += 1
                return
            self.outcome.interrupted += 1
            self.full = self.allocator.gives_way
            self.waiting.appendleft(leaves)
            if leaves is request:
                request.reserve_tokens *= 2
                return
        request.tokens += 1
        if request.tokens == request.total_tokens:
            self._leave(request)
            self.full = False
            self.outcome.completed_tokens += request.total_tokens

    def _leave(self, request: Request) -> None:
        self.allocator.release(request)
        self.running.remove(request)

    def _note(self) -> None:
        outcome, allocator = self.outcome, self.allocator
        reserved, used = allocator.reserved, allocator.used(self.running)
        external = self._external(reserved)
        outcome.steps += 1
        outcome.largest_batch = max(outcome.largest_batch, len(self.running))
        if self.waiting:
            outcome.waited_steps += 1
            outcome.used_sum += used
            outcome.reserved_sum += reserved
            outcome.external_sum += external
        if used > outcome.fullest.used:
            pieces = tuple(allocator.pieces())
            outcome.fullest = Moment(reserved, used, external, allocator.largest_hole, pieces)

    def _external(self, reserved: int) -> int:
        free = self.pool_tokens - reserved
        if not self.waiting:
            return 0
        needed = self.allocator.needs(self.waiting[0])
        return free if self.allocator.largest_hole < needed <= free else 0


def run_requests(allocator: Allocator, requests: list[Request], pool_tokens: int) -> Outcome:
    """Every request until it is complete, or refused: what it needs is not there in an empty pool."""
    fresh = [replace(request, tokens=request.prompt_tokens, reserve_tokens=0) for request in requests]
    run = Run(allocator, pool_tokens, deque(fresh))
    while run.waiting or run.running:
        run.step()
    return run.outcome
