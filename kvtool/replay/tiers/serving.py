"""A GPU that serves as engines do: each step computes prompts, as many as its tokens allow, and a token of each request
that decodes. Requests come in one by one as they can begin. Where its memory is limited, one without room waits, and so
do those behind it; the one that decodes since the shortest time gives way to the others' next tokens.

Loads that come layer by layer let a step begin early, and end no sooner than a layer's time after the last of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from kvtool.replay.clock.clock import Clock
from kvtool.replay.clock.steps import StepTimes
from kvtool.replay.tiers.room import Room
from kvtool.replay.tiers.timed import Timed

MAX_STEP_TOKENS, MAX_SEQUENCES = 8192, 256  # as vLLM's max_num_batched_tokens and max_num_seqs, and kvtool's engine
MOST_STEPS = 32  # of decodes alone that are taken at once, at the mean of their contexts

Told = Callable[[Timed], None]


@dataclass(slots=True, eq=False)
class _Step:
    """`count` steps of `each_s` from `began_s` on, with so many tokens of each prompt in `parts`. They end at `end_s`,
    and not before `late_s`, when the last load is computed.
    """

    parts: list[tuple[Timed, int]]
    count: int
    began_s: float
    each_s: float
    end_s: float
    late_s: float = 0.0
    last_loaded: Timed | None = None

    def completes(self, request: Timed) -> bool:
        return any(one is request and tokens == one.tokens_left for one, tokens in self.parts)

    @property
    def is_loaded(self) -> bool:
        return all(one.loaded for one, tokens in self.parts if tokens == one.tokens_left)


class Gpu:
    """`take` gives the next request that can begin, None where there is none. `prefilled` and `ended` are told. All
    have memory enough where no `room` is given.
    """

    def __init__(
        self,
        clock: Clock,
        times: StepTimes,
        *,
        take: Callable[[], Timed | None],
        prefilled: Told,
        ended: Told,
        room: Room | None = None,
    ) -> None:
        self._clock, self._times, self._room = clock, times, room
        self._take, self._prefilled, self._ended = take, prefilled, ended
        self._prefilling: list[Timed] = []
        self._decoding: list[Timed] = []
        self._preempted: deque[Timed] = deque()
        self._context = 0  # tokens of those that decode
        self._step: _Step | None = None
        self._idle_since_s = 0.0

    def poke(self) -> None:
        """A request may have become able to begin: at the end of the step in hand, however many were to follow."""
        step = self._step
        if step is None:
            self._begin()
        elif not step.parts and step.count > 1 and step.each_s:
            done = max(1, -int(-(self._clock.now_s - step.began_s) / step.each_s // 1))
            if done < step.count:
                step.count, step.end_s = done, step.began_s + done * step.each_s
                self._clock.at(step.end_s, lambda: self._over(step))

    def fits(self, request: Timed) -> bool:
        """Whether it may begin beside those that run and those that gave way."""
        return self._room is None or (not self._preempted and self._room.fits(request))

    def loaded(self, request: Timed) -> None:
        """The last of its load is there: if it is being computed, what needs it is left to do."""
        step = self._step
        if step is not None and step.completes(request):
            step.last_loaded = request
            step.late_s = max(step.late_s, self._clock.now_s + request.tail_s(step.each_s))
            self._clock.at(max(step.end_s, step.late_s), lambda: self._over(step))

    def _begin(self) -> None:
        gave_way = self._make_room()
        parts = self._prompts(new=not gave_way)
        if not parts and not self._decoding:
            return
        decoding = len(self._decoding)
        count = 1 if parts else self._steps_at_once()
        each_s = self._times.step_s(
            sum(one.share_s(tokens) for one, tokens in parts), decoding, self._context + decoding * (count - 1) / 2
        )
        now_s = self._clock.now_s
        step = self._step = _Step(parts, count, now_s, each_s, now_s + count * each_s)
        for one, _ in parts[:1]:
            if one.has_loads:  # the GPU stood still for it
                one.stall_s += max(0.0, now_s - max(one.arrival_s, self._idle_since_s))
        self._clock.at(step.end_s, lambda: self._over(step))

    def _make_room(self) -> bool:
        """For a token of each request that decodes, and whether one gave way for it."""
        room, gave_way = self._room, False
        if room is None:
            return False
        while len(self._decoding) > 1 and not room.has(self._decoding, 1):
            youngest = self._decoding.pop()
            self._context -= youngest.tokens
            room.leave(youngest)
            youngest.give_way(self._times.floor.compute_s(0, youngest.tokens))
            self._preempted.appendleft(youngest)
            gave_way = True
        room.grow(self._decoding, 1)
        return gave_way

    def _steps_at_once(self) -> int:
        """Of decodes alone, until the first of them ends or memory does."""
        count = min(MOST_STEPS, min(one.output_left for one in self._decoding))
        while self._room is not None and count > 1 and not self._room.has(self._decoding, count):
            count //= 2
        return count

    def _next(self) -> Timed | None:
        """One that gave way before any that is new; it runs."""
        room = self._room
        if room is None:
            return self._take()
        if self._preempted:
            new = self._preempted.popleft() if room.fits(self._preempted[0]) else None
        else:
            new = self._take()
        if new is not None:
            room.enter(new)
        return new

    def _prompts(self, *, new: bool) -> list[tuple[Timed, int]]:
        """Those that are half done, then as many others as there are tokens and seats, if any may come."""
        budget = MAX_STEP_TOKENS - len(self._decoding)
        parts: list[tuple[Timed, int]] = []
        for one in self._prefilling:
            parts.append((one, min(one.tokens_left, budget)))
            budget -= parts[-1][1]
        while new and budget > 0 and len(self._prefilling) + len(self._decoding) < MAX_SEQUENCES:
            comes = self._next()
            if comes is None:
                break
            self._prefilling.append(comes)
            parts.append((comes, min(comes.tokens_left, budget)))
            budget -= parts[-1][1]
        return parts

    def _over(self, step: _Step) -> None:
        """Its time is up; a load that it needs may not be."""
        if step is not self._step or not step.is_loaded or self._clock.now_s < step.end_s:
            return
        if self._clock.now_s < step.late_s:
            self._clock.at(step.late_s, lambda: self._over(step))
            return
        if step.last_loaded is not None:
            step.last_loaded.stall_s += self._clock.now_s - step.end_s
        self._step, self._idle_since_s = None, self._clock.now_s
        done = self._decoded(step.count)
        whole = self._computed(step.parts)
        for one in [*done, *(one for one in whole if not one.output_left)]:
            one.ended_s = self._clock.now_s
            if self._room is not None:
                self._room.leave(one)
            self._ended(one)
        if self._step is None:
            self._begin()

    def _decoded(self, count: int) -> list[Timed]:
        """Those that have their last token."""
        self._context += count * len(self._decoding)
        for one in self._decoding:
            one.output_left -= count
        done = [one for one in self._decoding if not one.output_left]
        if done:
            self._decoding = [one for one in self._decoding if one.output_left]
            self._context -= sum(one.tokens for one in done)
        return done

    def _computed(self, parts: list[tuple[Timed, int]]) -> list[Timed]:
        """Those that have their first token, or, computed again, their next; they go on to decode."""
        for one, tokens in parts:
            one.tokens_left -= tokens
        whole = [one for one, _ in parts if not one.tokens_left]
        self._prefilling = [one for one in self._prefilling if one.tokens_left]
        for one in whole:
            if one.has_first:
                one.output_left -= 1
            else:
                one.has_first, one.first_s, one.output_left = True, self._clock.now_s, one.output_tokens - 1
                self._prefilled(one)
            if one.output_left:
                self._decoding.append(one)
                self._context += one.tokens
        return whole
