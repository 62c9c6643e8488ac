"""Runs a plan through an engine as its requests come due, and watches them and the pool."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from msgspec.structs import replace

from kvtool.bench.harness import Client, sample_of
from kvtool.cache.manager import CacheCounters
from kvtool.cache.tiers.counters import TierCounters
from kvtool.engine.engine import Engine
from kvtool.engine.sequence import Sequence
from kvtool.results import Sample
from kvtool.results.cases.workload import KEPT, SHARED
from kvtool.workloads.scenarios.base import Plan

Point = tuple[float, int]
"""Seconds since the start, and pages."""


@dataclass(frozen=True, slots=True)
class Served:
    """A plan that is done. `sequences` are in the order of its turns, the answers to one prompt side by side; times are
    seconds since the start. `in_use` are pages with K/V after each step, `held` those of running requests alone;
    `empty_slots` had no token when the most were held, and `owners` has the owner of each page that was in use then."""

    sequences: list[Sequence]
    arrivals_s: list[float]
    queues_s: list[float]
    counters: CacheCounters
    tiers: list[TierCounters]
    in_use: list[Point]
    held: list[Point]
    empty_slots: int
    owners: dict[int, int]

    @property
    def hit_tokens(self) -> int:
        """Found when a request was first admitted, in what the allocator gave it then, or in a tier below."""
        return sum(sequence.cached_tokens or 0 for sequence in self.sequences)

    @property
    def recomputed_tokens(self) -> int:
        """Computed once more, by requests that had given way."""
        return sum(sequence.processed_tokens - needed_tokens(sequence) for sequence in self.sequences)

    @property
    def preemptions(self) -> int:
        """How often a request gave way."""
        return sum(sequence.num_preemptions for sequence in self.sequences)

    def samples(self, arm: str, iteration: int) -> list[Sample]:
        """One a request, in their order."""
        return [
            replace(
                sample_of(sequence, arm=arm, iteration=iteration),
                arrival_s=arrival_s,
                queue_s=queue_s,
            )
            for sequence, arrival_s, queue_s in zip(self.sequences, self.arrivals_s, self.queues_s, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Fullest:
    """The pool when running requests held the most: references to each page, the pages of each request, and slots
    without a token."""

    references: Seq[int]
    pages_of: dict[Sequence, list[int]]
    empty_slots: int


def page_owners(pool: Fullest, places: Mapping[Sequence, int]) -> dict[int, int]:
    """The place of the request that holds each page; SHARED where several do, KEPT where none does any more."""
    owners = {page: KEPT for page, references in enumerate(pool.references) if references}
    for sequence, pages in pool.pages_of.items():
        for page in pages:
            owners[page] = places[sequence] if owners[page] == KEPT else SHARED
    return owners


def needed_tokens(sequence: Sequence) -> int:
    """That a finished request had to compute: all but what it found, and the last one, which nobody reads."""
    return len(sequence.token_ids) - 1 - (sequence.cached_tokens or 0)


def serve(
    engine: Engine,
    plan: Plan,
    *,
    concurrency: int | None = None,
    forks: bool = True,
    sleep: Callable[[float], None] = time.sleep,
) -> Served:
    """The plan's requests, each when it is due, at most `concurrency` in flight. `forks` lets the answers to one prompt
    share its pages; without, each is a request of its own.
    """
    return _Serving(engine, plan, forks, Client(engine, concurrency, sleep)).run()


class _Serving:
    """The state of one run. `_due` is a heap of times and turns; `_unfinished` counts the answers of a turn."""

    def __init__(self, engine: Engine, plan: Plan, forks: bool, client: Client) -> None:
        self.engine, self.plan = engine, plan
        self._forks, self._client = forks, client
        self._due = [(turn.arrival_s, i) for i, turn in enumerate(plan.turns) if turn.after is None]
        heapify(self._due)
        self._followers: dict[int, list[int]] = defaultdict(list)
        for index, turn in enumerate(plan.turns):
            if turn.after is not None:
                self._followers[turn.after].append(index)
        self._answers: dict[int, list[Sequence]] = defaultdict(list)
        self._to_fork: dict[Sequence, int] = {}  # further answers, once the first token is out
        self._turn_of: dict[Sequence, int] = {}  # of those in flight
        self._queued: list[Sequence] = []
        self._transcripts: dict[int, list[int]] = {}
        self._admitted_s: dict[Sequence, float] = {}
        self._in_use: list[Point] = []
        self._held: list[Point] = []
        self._most_held = 0
        self._fullest = Fullest([], {}, 0)

    def run(self) -> Served:
        """Submit, step, watch, until nothing is left."""
        while self._due or self._turn_of:
            self._submit()
            if self.engine.scheduler.is_idle:
                self._client.rest(self._due[0][0])
                self._watch_pool()  # until now it was as it is
            else:
                self._step()
        sequences = [sequence for index in range(len(self.plan.turns)) for sequence in self._answers[index]]
        arrivals_s = [sequence.arrival_s - self._client.start_s for sequence in sequences]
        return Served(
            sequences=sequences,
            arrivals_s=arrivals_s,
            queues_s=[
                max(0.0, self._admitted_s[s] - arrival_s) for s, arrival_s in zip(sequences, arrivals_s, strict=True)
            ],
            counters=self.engine.cache.counters(),
            tiers=self.engine.tiers(),
            in_use=self._in_use,
            held=self._held,
            empty_slots=self._fullest.empty_slots,
            owners=page_owners(self._fullest, {sequence: place for place, sequence in enumerate(sequences)}),
        )

    def _submit(self) -> None:
        while self._due and self._client.may_submit(self._due[0][0], len(self._turn_of)):
            due_s, index = heappop(self._due)
            turn = self.plan.turns[index]
            prompt = turn.prompt(self._transcripts)
            first = self._client.submit(prompt, turn.output_len, due_s, turn.retention)
            self._watch(first, index)
            if self._forks and turn.answers > 1:
                self._to_fork[first] = turn.answers - 1
                continue
            for _ in range(turn.answers - 1):
                self._watch(self._client.submit(prompt, turn.output_len, due_s, turn.retention), index)

    def _watch(self, sequence: Sequence, index: int) -> None:
        """It is in flight, as an answer to that turn."""
        self._answers[index].append(sequence)
        self._queued.append(sequence)
        self._turn_of[sequence] = index

    def _step(self) -> None:
        """Requests that were admitted waited until the step began."""
        begin_s = self._client.now_s()
        stepped = self.engine.step()
        for sequence in self._queued:
            if sequence.cached_tokens is not None:
                self._admitted_s[sequence] = begin_s
        self._queued = [sequence for sequence in self._queued if sequence.cached_tokens is None]
        self._watch_pool()
        for sequence in stepped:
            if sequence in self._to_fork:
                for other in self.engine.fork(sequence, self._to_fork.pop(sequence)):
                    self._watch(other, self._turn_of[sequence])
            if sequence.is_finished:
                self._finish(sequence)

    def _watch_pool(self) -> None:
        now_s, cache = self._client.now_s(), self.engine.cache
        held = cache.pool.num_pages - cache.num_available_pages
        self._in_use.append((now_s, cache.pool.num_pages - cache.counters().free_pages))
        self._held.append((now_s, held))
        if held > self._most_held:
            tables = {s: s.pages.table for s in self.engine.scheduler.running if s.pages is not None}
            self._most_held = held
            self._fullest = Fullest(
                references=cache.pool.all_references(),
                pages_of={sequence: [*table.pages] for sequence, table in tables.items()},
                empty_slots=sum(table.capacity_tokens - table.num_tokens for table in tables.values()),
            )

    def _finish(self, sequence: Sequence) -> None:
        index = self._turn_of.pop(sequence)
        if any(other in self._turn_of for other in self._answers[index]):
            return
        self._transcripts[index] = sequence.token_ids
        now_s = self._client.now_s()
        for follower in self._followers.pop(index, []):
            heappush(self._due, (now_s + self.plan.turns[follower].think_s, follower))
