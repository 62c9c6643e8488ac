"""Random operations against a naive model: what every slot of every page really holds.

The K/V of a token depends on all tokens before it, so the model writes the whole prefix into a slot. A wrong hit, a
page given to two writers or evicted under a reader, a forgotten copy: each shows as a slot that holds another prefix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvtool.cache import EVICTION, CacheManager, HashedIndex, RadixTree, SequenceCache, eviction_policy
from kvtool.cache.admission import ADMISSION, admission_policy
from kvtool.cache.index.base import PrefixIndex
from tests.cache.policies import DeepestPage, LargestRun

NUM_PAGES = 12
INDEXES: dict[str, Callable[[int], PrefixIndex[Any]]] = {
    "hashed": lambda block_size: HashedIndex(block_size, NUM_PAGES),
    "deepest page": lambda block_size: RadixTree(block_size, DeepestPage()),
    "largest run": lambda block_size: RadixTree(block_size, LargestRun()),
} | {name: lambda block_size, name=name: RadixTree(block_size, eviction_policy(name)) for name in EVICTION}
tokens_strategy = st.lists(st.integers(0, 1), min_size=1, max_size=14)


class CacheMachine(RuleBasedStateMachine):
    @initialize(
        block_size=st.sampled_from([1, 2, 3, 4]),
        prefix_caching=st.sampled_from([True, True, True, False]),
        index=st.sampled_from(sorted(INDEXES)),
        admission=st.sampled_from(ADMISSION),
        partial_hits=st.booleans(),
    )
    def start(self, block_size: int, prefix_caching: bool, index: str, admission: str, partial_hits: bool) -> None:
        self.cache = CacheManager(
            NUM_PAGES,
            block_size,
            prefix_caching,
            index=INDEXES[index](block_size),
            admission=admission_policy(admission, block_size=block_size, num_pages=NUM_PAGES),
            partial_hits=partial_hits,
        )
        self.contents: dict[int, tuple[int, ...]] = {}
        self.tokens: dict[SequenceCache, list[int]] = {}
        self.prompts: dict[SequenceCache, list[int]] = {}

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
            assert sequence.partial is None
            return
        self.copy()
        self.write(sequence, tokens)

    def copy(self) -> None:
        for source, target in self.cache.take_copies():
            for offset in range(self.cache.block_size):
                slot = source * self.cache.block_size + offset
                if slot in self.contents:
                    self.contents[target * self.cache.block_size + offset] = self.contents[slot]

    def pick(self, data: st.DataObject) -> SequenceCache:
        return list(self.tokens)[data.draw(st.integers(0, len(self.tokens) - 1))]

    @rule(tokens=tokens_strategy, share=st.floats(0, 1))
    def open(self, tokens: list[int], share: float) -> None:
        matched = self.cache.match(tokens)
        sequence = self.cache.open(tokens)
        assert sequence.cached_tokens == matched < len(tokens)
        self.tokens[sequence] = tokens[: sequence.cached_tokens]
        self.prompts[sequence] = tokens
        chunk = max(sequence.cached_tokens, round(share * len(tokens)))
        self.grow(sequence, tokens[:chunk])
        assert sequence.cached_tokens - matched < self.cache.block_size

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), more=st.lists(st.integers(0, 1), min_size=1, max_size=5))
    def append(self, data: st.DataObject, more: list[int]) -> None:
        """The rest of the prompt first, which may begin in a copied page; then anything."""
        sequence = self.pick(data)
        tokens = self.tokens[sequence]
        rest = self.prompts.get(sequence, [])[len(tokens) :]
        self.grow(sequence, tokens + (rest[: len(more)] or more))

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        sequence = self.pick(data)
        tokens = self.tokens[sequence][: data.draw(st.integers(0, len(self.tokens[sequence])))]
        child = self.cache.fork(sequence, tokens)
        self.copy()
        if child is None:
            assert self.cache.num_available_pages == 0
        else:
            self.tokens[child] = tokens

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
