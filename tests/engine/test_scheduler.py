"""The scheduler and its cache, with a model that only remembers: each slot holds the prefix whose K/V it would hold."""

from __future__ import annotations

import subprocess
import sys
from itertools import count
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtool.cache.admission import ADMISSION, admission_policy
from kvtool.cache.eviction.base import Known
from kvtool.cache.eviction.eviction import EVICTION
from kvtool.cache.index.index import prefix_index
from kvtool.cache.manager import CacheManager, SequenceCache
from kvtool.cache.retention import Retention
from kvtool.engine.preemption import PREEMPTION, Preemption, cheapest, preemption_policy, youngest
from kvtool.engine.scheduler import Scheduler, SchedulerLimits, Work
from kvtool.engine.sequence import SamplingParams, Sequence, Status
from kvtool.system.errors import KvtoolError


class Done(NamedTuple):
    """What a step computed of one sequence."""

    id: int
    num_tokens: int
    is_decode: bool


class FakeEngine:
    """Schedule, run, postprocess, as the engine does, but a token is a sum over what the pages hold."""

    def __init__(
        self,
        *,
        num_pages: int = 100,
        block_size: int = 4,
        caching: bool = True,
        index: str = "radix",
        eviction: str = "lru",
        admission: str = "always",
        partial_hits: bool = False,
        preemption: Preemption = youngest,
        swaps: bool = False,
        **limits: object,
    ) -> None:
        self.cache = CacheManager(
            num_pages,
            block_size,
            caching,
            index=prefix_index(index, eviction, num_pages=num_pages, known=Known(page_tokens=block_size)),
            admission=admission_policy(admission, block_size=block_size, num_pages=num_pages),
            partial_hits=partial_hits,
        )
        swap = FakeSwap(self) if swaps else None
        self.scheduler = Scheduler(self.cache, SchedulerLimits(**limits), preemption, swap)
        self.contents: dict[int, tuple[int, ...]] = {}
        self._ids = count()

    def add(self, prompt: list[int], max_tokens: int) -> Sequence:
        sequence = Sequence(
            id=next(self._ids),
            token_ids=list(prompt),
            prompt_tokens=len(prompt),
            params=SamplingParams(max_tokens=max_tokens),
            arrival_s=0.0,
        )
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> list[Done]:
        work = self.scheduler.schedule()
        self.copy()
        done = [Done(item.sequence.id, item.num_tokens, item.is_decode) for item in work]
        completed = [item.sequence for item in work if item.completes]
        for item in work:
            self._compute(item)
            self.scheduler.computed(item)
        for sequence in completed:
            sequence.token_ids.append(next_token(sequence.token_ids))
            if len(sequence.output_ids) == sequence.params.max_tokens:
                self.scheduler.finish(sequence)
        self.cache.check()
        return done

    def fork(self, parent: Sequence) -> Sequence:
        child = Sequence(
            id=next(self._ids),
            token_ids=parent.token_ids[: parent.prompt_tokens],
            prompt_tokens=parent.prompt_tokens,
            params=parent.params,
            arrival_s=0.0,
        )
        self.scheduler.fork(parent, child)
        self.copy()
        return child

    def copy(self) -> None:
        size = self.cache.block_size
        for source, target in self.cache.take_copies():
            for offset in range(size):
                self.contents[target * size + offset] = self.contents.get(source * size + offset, ())

    def _compute(self, item: Work) -> None:
        """Write the K/V of the item's tokens, and check that attention would find that of all tokens before them."""
        sequence = item.sequence
        assert sequence.pages is not None
        table, stop = sequence.pages.table, sequence.num_computed + item.num_tokens
        for position in range(sequence.num_computed, stop):
            page = table.pages[position // self.cache.block_size]
            assert self.cache.pool.references(page) == 1, "another sequence reads the page that is written"
            self.contents[table.slot(position)] = tuple(sequence.token_ids[: position + 1])
        for position in range(stop):
            assert self.contents[table.slot(position)] == tuple(sequence.token_ids[: position + 1])


class FakeSwap:
    """Keeps the prefixes that the slots of a sequence hold, and puts them into other slots."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.kept = engine, dict[int, list[tuple[int, ...]]]()

    def out(self, sequence: Sequence) -> None:
        assert sequence.pages is not None
        self.engine.copy()  # pages that are still to be copied hold nothing to be kept, or would cover what is put back
        slots = sequence.pages.table.slots(0, sequence.num_computed)
        self.kept[sequence.id] = [self.engine.contents[slot] for slot in slots]

    def back(self, sequence: Sequence, pages: SequenceCache) -> int:
        self.engine.copy()
        kept = self.kept.pop(sequence.id, [])
        first, stop = pages.cached_tokens, max(len(kept), pages.cached_tokens)
        for slot, prefix in zip(pages.table.slots(first, stop), kept[first:], strict=True):
            self.engine.contents[slot] = prefix
        return stop


def next_token(tokens: list[int]) -> int:
    return (sum(tokens) + len(tokens)) % 3


def continued(prompt: list[int], max_tokens: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


def oldest(running: list[Sequence]) -> Sequence:
    return running[0]


def largest(running: list[Sequence]) -> Sequence:
    return max(running, key=lambda sequence: len(sequence.token_ids))


def amounts(step: list[Done]) -> list[tuple[int, int]]:
    return [(done.id, done.num_tokens) for done in step]


def test_scheduling_needs_no_tensors() -> None:
    program = "import sys, kvtool.engine.scheduler; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_request_joins_the_batch_that_is_already_decoding() -> None:
    engine = FakeEngine()
    first = engine.add([1, 2, 0, 1, 2], max_tokens=4)
    assert amounts(engine.step()) == [(0, 5)]
    second = engine.add([2, 2, 1], max_tokens=2)
    assert amounts(engine.step()) == [(0, 1), (1, 3)]
    assert amounts(engine.step()) == [(0, 1), (1, 1)]
    assert second.is_finished
    assert not first.is_finished
    engine.step()
    assert engine.scheduler.is_idle
    assert first.output_ids == continued([1, 2, 0, 1, 2], 4)


def test_a_long_prompt_is_cut_into_chunks_and_gives_a_token_after_the_last() -> None:
    engine = FakeEngine(max_num_batched_tokens=8)
    sequence = engine.add([1] * 20, max_tokens=2)
    chunks = []
    while not sequence.output_ids:
        chunks += engine.step()
    assert [item.num_tokens for item in chunks] == [8, 8, 4]
    assert not any(item.is_decode for item in chunks)


def test_decodes_come_before_the_chunk_that_fills_the_budget() -> None:
    engine = FakeEngine(max_num_batched_tokens=8)
    engine.add([1, 2, 0], max_tokens=9)
    engine.step()
    engine.add([2] * 20, max_tokens=1)
    work = engine.step()
    assert amounts(work) == [(0, 1), (1, 7)]
    assert [done.is_decode for done in work] == [True, False]


def test_prefill_first_never_decodes_beside_a_prefill() -> None:
    engine = FakeEngine(max_num_batched_tokens=8, prefill_first=True)
    for _ in range(3):
        engine.add([1, 0, 2, 2, 1, 0], max_tokens=3)
    steps = []
    while not engine.scheduler.is_idle:
        steps.append([item.is_decode for item in engine.step()])
    assert all(len(set(kinds)) == 1 for kinds in steps)
    assert steps.index([True] * 3) == sum(kinds[0] is False for kinds in steps), "a decode ran before a prefill"


def test_a_batch_larger_than_the_budget_is_still_prefilled_first() -> None:
    engine = FakeEngine(max_num_batched_tokens=2, prefill_first=True)
    sequences = [engine.add([1], max_tokens=3) for _ in range(4)]
    engine.step()
    engine.step()
    assert [len(sequence.output_ids) for sequence in sequences] == [1] * 4


def test_first_come_first_served() -> None:
    engine = FakeEngine(num_pages=6, block_size=4)
    running = engine.add([0] * 12, max_tokens=8)
    engine.step()
    large = engine.add([1] * 16, max_tokens=1)
    small = engine.add([2] * 2, max_tokens=1)
    engine.step()
    assert (large.status, small.status) == (Status.WAITING, Status.WAITING), "the small one would fit, but came later"
    while not running.is_finished:
        engine.step()
    assert amounts(engine.step()) == [(large.id, 16), (small.id, 2)]


def test_no_more_sequences_run_than_allowed() -> None:
    engine = FakeEngine(max_num_seqs=2)
    sequences = [engine.add([1, 2], max_tokens=3) for _ in range(5)]
    most = 0
    while not engine.scheduler.is_idle:
        most = max(most, len(engine.step()))
    assert most == 2
    assert all(sequence.output_ids == continued([1, 2], 3) for sequence in sequences)


def test_the_youngest_gives_way_and_is_computed_anew_with_what_it_had_produced() -> None:
    engine = FakeEngine(num_pages=4, block_size=4, caching=False)
    old, young = engine.add([0] * 7, max_tokens=6), engine.add([1] * 7, max_tokens=6)
    for _ in range(3):
        work = engine.step()
    assert amounts(work) == [(old.id, 1)]
    assert (old.num_preemptions, young.num_preemptions) == (0, 1)
    assert (young.num_computed, young.pages, young.status) == (0, None, Status.WAITING)
    assert list(engine.scheduler.waiting) == [young]
    while not old.is_finished:
        engine.step()
    assert amounts(engine.step()) == [(young.id, 9)], "its prompt and the two tokens that it had produced"
    while not young.is_finished:
        engine.step()
    assert young.output_ids == continued([1] * 7, 6)


def test_who_gives_way_is_a_policy() -> None:
    engine = FakeEngine(num_pages=4, block_size=4, caching=False, preemption=oldest)
    old, young = engine.add([0] * 7, max_tokens=6), engine.add([1] * 7, max_tokens=6)
    for _ in range(3):
        work = engine.step()
    assert amounts(work) == [(young.id, 1)]
    assert (old.num_preemptions, young.num_preemptions) == (1, 0)


@pytest.mark.parametrize(
    ("name", "victim"), [("youngest", 2), ("priority", 1), ("fewest-remaining", 0), ("cheapest", 2)]
)
def test_the_policies_choose(name: str, victim: int) -> None:
    """Three run: the first has 2 tokens left, the second the lowest priority, the third was computed least."""
    engine = FakeEngine(preemption=preemption_policy(name))
    sequences = [engine.add([0] * 9, max_tokens=3), engine.add([1] * 9, max_tokens=9), engine.add([2, 1], max_tokens=9)]
    sequences[1].retention = Retention(priority=10)
    engine.step()
    assert engine.scheduler.preemption(engine.scheduler.running) is sequences[victim]


def test_what_was_found_cached_is_cheap_to_compute_again() -> None:
    engine = FakeEngine(preemption=cheapest)
    engine.add([0] * 17, max_tokens=1)
    engine.step()
    long, short = engine.add([0] * 17, max_tokens=9), engine.add([1] * 4, max_tokens=9)
    engine.step()
    assert (long.num_recomputed_if_preempted, short.num_recomputed_if_preempted) == (1, 4)
    assert cheapest(engine.scheduler.running) is long


def test_preemption_policies_have_names() -> None:
    assert preemption_policy("youngest") is youngest
    with pytest.raises(KvtoolError, match=r"policy 'yungest' is not one of youngest, priority, .*: did you mean young"):
        preemption_policy("yungest")


def test_preempted_sequences_wait_before_everybody_who_came_later() -> None:
    engine = FakeEngine(num_pages=6, block_size=4, max_num_seqs=3, caching=False)
    sequences = [engine.add([i] * 7, max_tokens=9) for i in range(4)]
    finished: list[int] = []
    while not engine.scheduler.is_idle:
        engine.step()
        finished += [s.id for s in sequences if s.is_finished and s.id not in finished]
    assert finished == [0, 1, 2, 3]
    assert sum(sequence.num_preemptions for sequence in sequences) > 0


def test_a_prompt_waits_until_all_of_it_has_room() -> None:
    engine = FakeEngine(num_pages=5, block_size=4, max_num_batched_tokens=4)
    engine.add([0] * 12, max_tokens=1)
    second = engine.add([1] * 12, max_tokens=1)
    engine.step()
    engine.step()
    assert second.status is Status.WAITING, "two free pages are no use to a prompt of three"
    engine.step()
    engine.step()
    assert second.num_computed == 4


def test_the_last_token_out_needs_no_room() -> None:
    engine = FakeEngine(num_pages=2, block_size=4)
    sequence = engine.add([1, 2, 0, 1, 2], max_tokens=4)
    while not engine.scheduler.is_idle:
        engine.step()
    assert (len(sequence.token_ids), sequence.peak_pages, sequence.num_preemptions) == (9, 2, 0)


def test_a_request_that_can_never_fit_is_refused_at_once() -> None:
    engine = FakeEngine(num_pages=2, block_size=4)
    with pytest.raises(KvtoolError, match=r"10 tokens needs 3 pages of 4, but the pool has 2: shorten it"):
        engine.add([1, 2, 0, 1, 2], max_tokens=5)
    assert engine.scheduler.is_idle


requests_strategy = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=20), st.integers(1, 12), st.integers(0, 15)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=250, deadline=None)
@given(
    requests=requests_strategy,
    block_size=st.sampled_from([1, 2, 4, 16]),
    spare_pages=st.integers(0, 20),
    max_num_seqs=st.integers(1, 5),
    max_num_batched_tokens=st.integers(1, 24),
    prefill_first=st.booleans(),
    caching=st.booleans(),
    index=st.sampled_from(["hashed", *EVICTION]),
    admission=st.sampled_from(ADMISSION),
    partial_hits=st.booleans(),
    preemption=st.sampled_from([*PREEMPTION.values(), oldest, largest]),
    swaps=st.booleans(),
    forks=st.booleans(),
)
def test_any_requests_finish_with_exactly_their_tokens(
    requests: list[tuple[list[int], int, int]],
    block_size: int,
    spare_pages: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    prefill_first: bool,
    caching: bool,
    index: str,
    admission: str,
    partial_hits: bool,
    preemption: Preemption,
    swaps: bool,
    forks: bool,
) -> None:
    """`index` is "hashed", or the eviction policy of a radix tree."""
    longest = max(len(prompt) + max_tokens for prompt, max_tokens, _ in requests)
    engine = FakeEngine(
        num_pages=-(-longest // block_size) + spare_pages,
        block_size=block_size,
        caching=caching,
        index="hashed" if index == "hashed" else "radix",
        eviction="lru" if index == "hashed" else index,
        admission=admission,
        partial_hits=partial_hits,
        preemption=preemption,
        swaps=swaps,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        prefill_first=prefill_first,
    )
    pending = sorted(requests, key=lambda request: request[2])
    sequences: list[Sequence] = []
    children: list[Sequence] = []
    for step in count():
        while pending and (pending[0][2] <= step or engine.scheduler.is_idle):
            prompt, max_tokens, _ = pending.pop(0)
            sequences.append(engine.add(prompt, max_tokens))
            if forks and len(sequences) > 1:
                children.append(engine.fork(sequences[-2]))
        if engine.scheduler.is_idle:
            break
        work = engine.step()
        assert 0 < sum(done.num_tokens for done in work) <= max_num_batched_tokens
        assert len({done.id for done in work}) == len(work) <= max_num_seqs
        preempted = any(sequence.num_preemptions for sequence in sequences)
        assert not prefill_first or preempted or forks or len({done.is_decode for done in work}) == 1
        assert work == sorted(work, key=lambda done: not done.is_decode), "decodes come first"
        assert step < 5000, "no progress"
    assert [sequence.output_ids for sequence in sequences] == [
        continued(prompt, max_tokens) for prompt, max_tokens, _ in sorted(requests, key=lambda request: request[2])
    ]
    for child in children:
        assert child.output_ids == continued(child.token_ids[: child.prompt_tokens], child.params.max_tokens)
    assert engine.cache.counters().allocated_pages == 0
