"""Make a trace: sessions and their turns, in the order of their arrival."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from kvtool.workloads.arrivals import arrival_times
from kvtool.workloads.making.options import Making
from kvtool.workloads.making.prompt import BlockNames, Prompt
from kvtool.workloads.scenarios.agent import trajectories
from kvtool.workloads.traces.base import TraceRequest


@dataclass(frozen=True, slots=True)
class Turn:
    """A request of a session, `after_s` after the one before it."""

    input_tokens: int
    output_tokens: int
    block_ids: list[int]
    after_s: float = 0.0


def make_trace(making: Making) -> list[TraceRequest]:
    """The requests by time; those of one time stand turn by turn. The same seed gives the same trace.

    Raises KvtoolError for options that the kind does not have. Time that answers take is not in the arrivals.
    """
    making = making.filled()
    sessions = _Maker(making).sessions()
    starts_s = _starts(making)
    drawn = [
        (time_s, turn, session, request)
        for session, (start_s, turns) in enumerate(zip(starts_s, sessions, strict=True))
        for turn, (time_s, request) in enumerate(_timed(start_s, turns))
    ]
    drawn.sort(key=lambda one: one[:3])
    return [
        TraceRequest(
            line=line,
            arrival_s=time_s,
            input_tokens=request.input_tokens,
            output_tokens=request.output_tokens,
            block_size=making.block_size,
            block_ids=request.block_ids,
            session=str(session),
        )
        for line, (time_s, _, session, request) in enumerate(drawn, 1)
    ]


def _starts(making: Making) -> list[float]:
    if making.request_rate is None:
        return [0.0] * making.num_sessions
    return arrival_times(making.num_sessions, making.request_rate, making.seed, burstiness=making.burstiness)


def _timed(start_s: float, turns: list[Turn]) -> Iterator[tuple[float, Turn]]:
    time_s = start_s
    for turn in turns:
        time_s += turn.after_s
        yield round(time_s, 3), turn


class _Maker:
    """Sessions of one kind. `_text` numbers the texts that prompts are made of; 0 is common to all."""

    def __init__(self, making: Making) -> None:
        self._making, self._names, self._text = making, BlockNames(), count(1)
        self._rng = random.Random(f"trace {making.kind} {making.seed}")
        self._prefix, self._input, self._output = (
            value or 0 for value in (making.prefix_len, making.input_len, making.output_len)
        )

    def sessions(self) -> Iterator[list[Turn]]:
        match self._making.kind:
            case "agents":
                return self._agents()
            case "multi-turn":
                return self._conversations()
            case "shared-prefix":
                return self._questions()
            case "zipf":
                return self._again()
            case _:
                return self._rankings()

    def _agents(self) -> Iterator[list[Turn]]:
        """Each turn has all before it, answers included."""
        for own in trajectories(self._making.num_sessions, self._making.max_len or 1, self._rng):
            steps = []
            before = 0
            for prompt_len, output_len in zip(own.prompt_lens, own.output_lens, strict=True):
                steps.append((prompt_len - before, output_len))
                before = prompt_len + output_len
            yield self._session(steps)

    def _conversations(self) -> Iterator[list[Turn]]:
        for _ in range(self._making.num_sessions):
            turns = self._about(self._making.turns or 1)
            yield self._session([(self._about(self._input), self._about(self._output)) for _ in range(turns)])

    def _session(self, steps: list[tuple[int, int]]) -> list[Turn]:
        """Turns that append and answer so much, one text a session behind what is common to all."""
        making, text, said = self._making, next(self._text), 0
        prompt = Prompt(self._names, making.block_size)
        prompt.append(0, self._prefix)
        turns = []
        for appended, answered in steps:
            prompt.append(text, appended, said)
            pause_s = self._rng.expovariate(1 / making.think_s) if making.think_s and turns else 0.0
            turns.append(Turn(prompt.tokens, answered, prompt.block_ids(), pause_s))
            prompt.append(text, answered, said + appended)
            said += appended + answered
        return turns

    def _questions(self) -> Iterator[list[Turn]]:
        texts = [next(self._text) for _ in range(self._making.prefixes or 1)]
        for chosen in self._popular(texts):
            own = (next(self._text), self._about(self._input))
            yield [self._turn([(chosen, self._prefix), own], self._about(self._output))]

    def _again(self) -> Iterator[list[Turn]]:
        texts = [next(self._text) for _ in range(self._making.prefixes or 1)]
        lengths = {text: self._about(self._input) for text in texts}
        for chosen in self._popular(texts):
            yield [self._turn([(chosen, lengths[chosen])], self._about(self._output))]

    def _rankings(self) -> Iterator[list[Turn]]:
        """A session is a user; items are common to all users, but stand behind a history of one's own."""
        items = [(next(self._text), self._input) for _ in range(self._making.items or 1)]
        for _ in range(self._making.num_sessions):
            history = (next(self._text), self._prefix)
            yield [self._turn([history, item], self._output) for item in items]

    def _turn(self, pieces: list[tuple[int, int]], output_tokens: int) -> Turn:
        prompt = Prompt(self._names, self._making.block_size)
        for text, tokens in pieces:
            prompt.append(text, tokens)
        return Turn(prompt.tokens, output_tokens, prompt.block_ids())

    def _popular(self, texts: list[int]) -> list[int]:
        """One a session, the k-th with a weight of 1 / k^zipf."""
        weights = [(rank + 1) ** -float(self._making.zipf or 0) for rank in range(len(texts))]
        return self._rng.choices(texts, weights, k=self._making.num_sessions)

    def _about(self, mean: int) -> int:
        """A geometric draw of 1 or more with that mean."""
        return 1 if mean <= 1 else 1 + math.floor(math.log(1 - self._rng.random()) / math.log(1 - 1 / mean))
