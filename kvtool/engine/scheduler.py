"""Which tokens of which sequences the next step computes: continuous batching, chunked prefill, preemption.

Knows pages, not tensors.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from kvtool.cache.manager import CacheManager, SequenceCache
from kvtool.cache.window import SinkWindow
from kvtool.engine.preemption import Preemption, Swap, youngest
from kvtool.engine.sequence import Sequence, Status
from kvtool.system.errors import KvtoolError
from kvtool.units import ceil_div


@dataclass(frozen=True, slots=True)
class Work:
    """`num_tokens` of a sequence's pending tokens, computed in one step."""

    sequence: Sequence
    num_tokens: int

    @property
    def is_decode(self) -> bool:
        return self.sequence.is_decoding

    @property
    def completes(self) -> bool:
        """Nothing is pending afterwards, so that the step's logits give the next token."""
        return self.num_tokens == self.sequence.num_pending

    @property
    def is_last(self) -> bool:
        """The token that it gives is the sequence's last, whatever it is."""
        return self.sequence.num_output + 1 >= self.sequence.params.max_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """`prefill_first` lets no sequence decode while another one prefills, so that TPOT is decode alone."""

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    prefill_first: bool = False


class Scheduler:
    """First come, first served. Running sequences go before waiting ones; `preemption` says who gives way when pages
    run out."""

    def __init__(
        self,
        cache: CacheManager,
        limits: SchedulerLimits,
        preemption: Preemption = youngest,
        swap: Swap | None = None,
        window: SinkWindow | None = None,
    ) -> None:
        """Without a `swap`, sequences that gave way are computed anew. With a `window` they let go of pages."""
        self.cache = cache
        self.limits = limits
        self.preemption = preemption
        self.swap = swap
        self.window = window
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def is_idle(self) -> bool:
        return not self.waiting and not self.running

    def add(self, sequence: Sequence) -> None:
        """Queue a request. Raises KvtoolError when it could never run, even alone."""
        longest = sequence.prompt_tokens + sequence.params.max_tokens
        pages = self._pages_at_once(longest - 1)  # the last token out is never written
        if pages > self.cache.pool.num_pages:
            raise KvtoolError(
                f"a request of {longest} tokens needs {pages} pages of {self.cache.block_size}, "
                f"but the pool has {self.cache.pool.num_pages}: shorten it or enlarge the pool"
            )
        self.waiting.append(sequence)

    def _pages_at_once(self, num_tokens: int) -> int:
        """That a sequence of so many tokens needs at its longest."""
        block_size = self.cache.block_size
        return self.window.most_pages(num_tokens, block_size) if self.window else ceil_div(num_tokens, block_size)

    def fork(self, sequence: Sequence, child: Sequence) -> None:
        """Run `child`, another answer of the same prompt, on the pages of `sequence`, but for the prompt's last token,
        whose logits it needs. Where it has no room to, or the prompt is not computed yet, it waits as any other."""
        prompt_tokens = child.prompt_tokens
        computed = self.window is None and sequence.num_computed >= prompt_tokens  # sinks are turned for each sequence
        if sequence.pages is not None and computed and self._has_seat:
            pages = self.cache.fork(sequence.pages, child.token_ids[: prompt_tokens - 1])
            if pages is not None and self.cache.reserve(pages, prompt_tokens):
                self._run(child, pages)
                return
            if pages is not None:
                self.cache.close(pages)
        self.waiting.append(child)

    @property
    def _has_seat(self) -> bool:
        return len(self.running) < self.limits.max_num_seqs

    def schedule(self) -> list[Work]:
        """The next step, decodes first. Pages for its tokens are reserved; empty only when nothing is left to do."""
        if self.limits.prefill_first:
            work = self._prefills_alone()
        else:
            work = self._with_admitted(self._continue(self.running))
        return sorted(work, key=lambda item: not item.is_decode)

    def repeats(self, work: list[Work]) -> bool:
        """Whether the step after `work` decodes the same sequences, whatever their tokens will be. If so, pages for it
        are reserved. False also where no page is left, as somebody would have to give way."""
        others_may_join = bool(self.waiting) and self._has_seat
        if others_may_join or [item.sequence for item in work] != self.running:
            return False
        if any(item.is_last or not item.completes for item in work):
            return False
        return all(self._reserve_ahead(item) for item in work)

    def _reserve_ahead(self, item: Work) -> bool:
        """Room for the tokens of the next step and for that of the step behind it."""
        assert item.sequence.pages is not None
        return self.cache.reserve(item.sequence.pages, item.sequence.num_computed + item.num_tokens + 1)

    def _prefills_alone(self) -> list[Work]:
        """Prefills while there are any, then decodes. A preempted sequence comes back as a prefill of what it lost."""
        prefilling = [sequence for sequence in self.running if not sequence.is_decoding]
        prefills = self._with_admitted(self._continue(prefilling))
        # A lone sequence that locks cached twins of its own pages may have to give way to itself, and comes back.
        return prefills or self._continue(self.running) or self._with_admitted([])

    def _continue(self, sequences: list[Sequence]) -> list[Work]:
        """Work on running sequences, as far as the budget of tokens goes."""
        budget = self.limits.max_num_batched_tokens
        work: list[Work] = []
        for sequence in list(sequences):
            num_tokens = self._at_once(sequence, budget)
            if num_tokens == 0:
                break
            if sequence.status is Status.RUNNING and self._reserve_or_preempt(sequence, num_tokens):
                work.append(Work(sequence, num_tokens))
                budget -= num_tokens
        return [item for item in work if item.sequence.status is Status.RUNNING]

    def _at_once(self, sequence: Sequence, budget: int) -> int:
        """Tokens that the next step may compute of it; where pages are let go of, whole pages or up to the last."""
        if self.window is None:
            return min(sequence.num_ready, budget)
        wanted = min(sequence.num_ready, self.window.step_tokens)
        return wanted if wanted <= budget else 0

    def _let_go(self, sequence: Sequence) -> None:
        """Of what the token to be computed next, and all later ones, do not read."""
        if self.window is not None and sequence.pages is not None:
            unread = self.window.unread(sequence.num_computed + 1, self.cache.block_size)
            self.cache.let_go(sequence.pages, unread)

    def _reserve_or_preempt(self, sequence: Sequence, num_tokens: int) -> bool:
        """Reserve pages, taking them from sequences that give way if need be. False when `sequence` itself had to."""
        assert sequence.pages is not None
        self._let_go(sequence)
        while not self.cache.reserve(sequence.pages, sequence.num_computed + num_tokens):
            victim = self.preemption(self.running)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Give all pages back; the sequence is computed anew from its tokens, the ones it produced included, but for
        what a swap keeps."""
        assert sequence.pages is not None
        if self.swap is not None:
            self.swap.out(sequence)
        self.running.remove(sequence)
        self.cache.close(sequence.pages)
        sequence.pages, sequence.num_computed, sequence.join_at = None, 0, None
        sequence.status = Status.WAITING
        sequence.num_preemptions += 1
        self.waiting.appendleft(sequence)

    def _with_admitted(self, work: list[Work]) -> list[Work]:
        """`work`, and waiting sequences for what it leaves of the budget."""
        budget = self.limits.max_num_batched_tokens - sum(item.num_tokens for item in work)
        while self.waiting and self._has_seat:
            sequence = self.waiting[0]
            if not self._at_once(sequence, budget):
                break
            pages = self.cache.open(sequence.token_ids, sequence.retention)
            # A prompt is admitted only when all of it has room: half-prefilled prompts would only preempt each other.
            needed = self._pages_at_once(len(sequence.token_ids)) * self.cache.block_size
            if not self.cache.reserve(pages, min(needed, len(sequence.token_ids))):
                self.cache.close(pages)
                break
            self._run(self.waiting.popleft(), pages)
            work.append(Work(sequence, self._at_once(sequence, budget)))
            budget -= work[-1].num_tokens
        return work

    def _run(self, sequence: Sequence, pages: SequenceCache) -> None:
        """Seat a sequence on pages that have room for all its tokens, the first of them computed."""
        sequence.pages, sequence.status = pages, Status.RUNNING
        sequence.num_computed = pages.cached_tokens if self.swap is None else self.swap.back(sequence, pages)
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.num_computed
        self.running.append(sequence)

    def computed(self, item: Work) -> None:
        """The K/V of `item` is in the cache: its whole pages can be hit from now on."""
        sequence = item.sequence
        assert sequence.pages is not None
        sequence.num_computed += item.num_tokens
        sequence.processed_tokens += item.num_tokens
        sequence.peak_pages = max(sequence.peak_pages, ceil_div(sequence.num_computed, self.cache.block_size))
        tokens = sequence.token_ids if sequence.num_pending == 0 else sequence.token_ids[: sequence.num_computed]
        self.cache.commit(sequence.pages, tokens)

    def finish(self, sequence: Sequence) -> None:
        assert sequence.pages is not None
        self.running.remove(sequence)
        self.cache.close(sequence.pages)
        sequence.pages = None
        sequence.status = Status.FINISHED
