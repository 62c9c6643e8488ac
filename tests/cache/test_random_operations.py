"""Random operations against a naive model: what every slot of every page really holds.

The K/V of a token depends on all tokens before it, so the model writes the whole prefix into a slot. A wrong hit, a
page given to two writers or evicted under a reader, a forgotten copy: each shows as a slot that holds another prefix.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvtool.cache import EVICTION, CacheManager, EvictionPolicy, SequenceCache
from tests.cache.policies import DeepestPage, LargestRun

POLICIES = [*EVICTION.values(), DeepestPage, LargestRun]
NUM_PAGES = 12
tokens_strategy = st.lists(st.integers(0, 1), min_size=1, max_size=14)


class CacheMachine(RuleBasedStateMachine):
    @initialize(
        block_size=st.sampled_from([1, 2, 3, 4]),
        prefix_caching=st.sampled_from([True, True, True, False]),
        policy=st.sampled_from(POLICIES),
    )
    def start(self, block_size: int, prefix_caching: bool, policy: type[EvictionPolicy]) -> None:
        self.cache = CacheManager(NUM_PAGES, block_size, prefix_caching, policy())
        self.contents: dict[int, tuple[int, ...]] = {}
        self.tokens: dict[SequenceCache, list[int]] = {}

    def write(self, sequence: SequenceCache, tokens: list[int]) -> None:
        for position in range(sequence.table.num_tokens, len(tokens)):
            page = sequence.table.pages[position // self.cache.block_size]
            assert self.cache.pool.references(page) == 1, "two hold the page that is written"
            self.contents[sequence.table.slot(position)] = tuple(tokens[: position + 1])
        self.cache.commit(sequence, tokens)
        self.tokens[sequence] = tokens

    def grow(self, sequence: SequenceCache, tokens: list[int]) -> None:
        if not self.cache.reserve(sequence, len(tokens)):
            assert self.cache.num_available_pages < sequence.table.pages_missing(len(tokens))
            return
        copies = self.cache.make_writable(sequence)
        if copies is None:
            assert self.cache.num_available_pages == 0
            return
        for source, target in copies:
            for offset in range(self.cache.block_size):
                slot = source * self.cache.block_size + offset
                if slot in self.contents:
                    self.contents[target * self.cache.block_size + offset] = self.contents[slot]
        self.write(sequence, tokens)

    def pick(self, data: st.DataObject) -> SequenceCache:
        return list(self.tokens)[data.draw(st.integers(0, len(self.tokens) - 1))]

    @rule(tokens=tokens_strategy, share=st.floats(0, 1))
    def open(self, tokens: list[int], share: float) -> None:
        matched = self.cache.match(tokens)
        sequence = self.cache.open(tokens)
        assert sequence.cached_tokens == matched < len(tokens)
        self.tokens[sequence] = tokens[: sequence.cached_tokens]
        chunk = max(sequence.cached_tokens, round(share * len(tokens)))
        self.grow(sequence, tokens[:chunk])

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), more=st.lists(st.integers(0, 1), min_size=1, max_size=5))
    def append(self, data: st.DataObject, more: list[int]) -> None:
        sequence = self.pick(data)
        self.grow(sequence, self.tokens[sequence] + more)

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        sequence = self.pick(data)
        self.tokens[self.cache.fork(sequence)] = list(self.tokens[sequence])

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        sequence = self.pick(data)
        del self.tokens[sequence]
        self.cache.close(sequence)

    @precondition(lambda self: not self.tokens)
    @rule()
    def reset(self) -> None:
        self.cache.reset()
        assert self.cache.pool.num_free == NUM_PAGES

    @invariant()
    def every_position_holds_its_own_prefix(self) -> None:
        if not hasattr(self, "cache"):
            return
        self.cache.check()
        counters = self.cache.counters()
        assert counters.hit_tokens <= counters.queried_tokens
        if not any(sequence.queried_tokens for sequence in self.tokens):
            assert counters.allocated_pages <= counters.peak_pages <= NUM_PAGES
        for sequence, tokens in self.tokens.items():
            assert sequence.table.num_tokens == len(tokens)
            for position in range(len(tokens)):
                assert self.contents[sequence.table.slot(position)] == tuple(tokens[: position + 1])


CacheMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)
test_random_operations = CacheMachine.TestCase
