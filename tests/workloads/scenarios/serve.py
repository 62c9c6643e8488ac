"""Runs a plan through a cache alone, in any order that its turns allow: an engine without tensors."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from kvtool.cache import CacheManager
from kvtool.cache.manager import SequenceCache
from kvtool.workloads.scenarios.base import Plan, Turn


@dataclass
class Serving:
    """`cached` has the tokens that each turn found; `copied_pages` those that answers to one prompt had to copy."""

    cache: CacheManager
    plan: Plan
    rng: random.Random
    vocab_size: int
    transcripts: dict[int, list[int]] = field(default_factory=dict)
    cached: dict[int, int] = field(default_factory=dict)
    prompts: dict[int, list[int]] = field(default_factory=dict)
    _open: dict[int, list[tuple[SequenceCache, list[int]]]] = field(default_factory=dict)

    def run(self) -> Serving:
        """Turns begin and end at random, each in its order."""
        for prompt in self.plan.priming:
            self._compute(self.cache.open(prompt), [*prompt])
        self.cache.reset_counters()
        waiting = set(range(len(self.plan.turns)))
        while waiting or self._open:
            ready = [i for i in sorted(waiting) if self.plan.turns[i].after in (None, *self.transcripts)]
            if ready and (not self._open or self.rng.random() < 0.6):
                index = self.rng.choice(ready)
                waiting.remove(index)
                self._begin(index, self.plan.turns[index])
            else:
                self._end(self.rng.choice(sorted(self._open)))
            self.cache.check()
        return self

    def _compute(self, pages: SequenceCache, tokens: list[int]) -> None:
        assert self.cache.reserve(pages, len(tokens))
        self.cache.commit(pages, tokens)
        self.cache.close(pages)

    def _begin(self, index: int, turn: Turn) -> None:
        prompt = turn.prompt(self.transcripts)
        assert len(prompt) == turn.prompt_tokens
        pages = self.cache.open(prompt)
        self.cached[index], self.prompts[index] = pages.cached_tokens, prompt
        assert self.cache.reserve(pages, len(prompt))
        self.cache.commit(pages, prompt)
        answers = [pages]
        for _ in range(turn.answers - 1):
            child = self.cache.fork(pages, prompt[:-1])
            assert self.cache.reserve(child, len(prompt))
            self.cache.commit(child, prompt)
            answers.append(child)
        self._open[index] = [(answer, [*prompt]) for answer in answers]

    def _end(self, index: int) -> None:
        """All answers are written, but for the last token of each."""
        turn = self.plan.turns[index]
        for pages, tokens in self._open.pop(index):
            answer = self.rng.choices(range(self.vocab_size), k=turn.output_len)
            if turn.output_len > 1:
                assert self.cache.reserve(pages, len(tokens) + turn.output_len - 1)
                self.cache.commit(pages, [*tokens, *answer[:-1]])
            self.cache.close(pages)
            self.transcripts[index] = [*tokens, *answer]


def served(plan: Plan, *, block_size: int, vocab_size: int, seed: int = 0) -> Serving:
    """The plan through a cache that holds all of it."""
    cache = CacheManager(num_pages=plan.pages(block_size) + len(plan.turns) + 8, block_size=block_size)
    return Serving(cache, plan, random.Random(seed), vocab_size).run()
