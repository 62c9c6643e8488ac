"""What a scenario is made with, and the plan it becomes: requests, and which of them wait for another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

from kvtool.cache.retention import Retention
from kvtool.system.errors import KvtoolError
from kvtool.workloads.arrivals import arrival_times


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a scenario is made with. Lengths are tokens: `input_len` of its longest prompt, `output_len` of an answer,
    `prefix_len` of what it shares. `hit_rate` and `prefix_len` None leave the scenario its own; `think_s` is the mean
    pause before a turn that goes on from another."""

    num_prompts: int
    input_len: int
    output_len: int
    block_size: int
    vocab_size: int
    seed: int = 0
    prefix_len: int | None = None
    hit_rate: float | None = None
    think_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("num_prompts", "input_len", "output_len", "block_size"):
            if getattr(self, name) < 1:
                raise KvtoolError(f"{name.replace('_', ' ')} {getattr(self, name)} must be at least 1")
        if self.hit_rate is not None and not 0 <= self.hit_rate < 1:
            raise KvtoolError(f"hit rate {self.hit_rate} must be from 0 to below 1: the last token is always computed")
        if not 0 <= self.think_s < float("inf"):
            raise KvtoolError(f"think time {self.think_s} must be 0 seconds or more")

    def whole_pages(self, tokens: float) -> int:
        """The tokens of the whole pages in so many."""
        return max(0, int(tokens)) // self.block_size * self.block_size

    def shared_len(self, share: float) -> int:
        """Tokens of a shared prefix in whole pages: as asked for, else that share of the longest prompt, and always
        short enough that a token is left to compute."""
        return self.whole_pages(min(self.input_len * share if self.prefix_len is None else self.prefix_len,
                                    self.input_len - 1))  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One request of a plan. It waits until the request `after` is finished, and `think_s` more.

    Where it `continues` that one, the whole prompt and the answer that the model really gave stand before `own_ids`.
    `prompt_tokens` is the whole prompt's length, of which `cached_tokens` are found in a cache that evicts nothing.
    `answers` share one prompt: all but the first find it whole, but for its last token, whose logits each needs.
    `retention` says how important the request is.
    """

    own_ids: tuple[int, ...]
    output_len: int
    prompt_tokens: int
    cached_tokens: int
    arrival_s: float = 0.0
    after: int | None = None
    continues: bool = False
    think_s: float = 0.0
    answers: int = 1
    retention: Retention | None = None

    @property
    def longest_tokens(self) -> int:
        """Prompt and answer together."""
        return self.prompt_tokens + self.output_len

    def prompt(self, transcripts: Mapping[int, Sequence[int]]) -> list[int]:
        """The whole prompt; `transcripts` has prompt and answer of each finished request by its place in the plan."""
        if not self.continues:
            return list(self.own_ids)
        assert self.after is not None
        return [*transcripts[self.after], *self.own_ids]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The requests of one run. `priming` prompts are computed before the clock starts, and count nowhere.

    In an `exact` plan whatever a request shares is in the cache before it starts, so that its hits do not depend on
    when others run. `scale` says in words how its lengths came about.
    """

    turns: tuple[Turn, ...]
    priming: tuple[tuple[int, ...], ...] = ()
    exact: bool = True
    scale: str = ""

    @property
    def prompt_tokens(self) -> int:
        """Of all answers: each of them stands behind the whole prompt."""
        return sum(turn.prompt_tokens * turn.answers for turn in self.turns)

    @property
    def cached_tokens(self) -> int:
        """Of `prompt_tokens`, those that a cache which evicts nothing holds."""
        return sum(turn.cached_tokens + (turn.prompt_tokens - 1) * (turn.answers - 1) for turn in self.turns)

    @property
    def hit_rate(self) -> float:
        """Cached tokens over prompt tokens."""
        return self.cached_tokens / self.prompt_tokens

    @property
    def longest_tokens(self) -> int:
        """Prompt and answer of the longest request."""
        return max(turn.longest_tokens for turn in self.turns)

    def pages(self, block_size: int) -> int:
        """Pages that hold everything at once and share nothing."""
        primed = sum(-(-(len(ids) + 1) // block_size) for ids in self.priming)
        return primed + sum(-(-turn.longest_tokens // block_size) * turn.answers for turn in self.turns)

    def distinct_pages(self, block_size: int) -> int:
        """Pages that hold everything at once, what is shared only once."""
        spared = sum(turn.cached_tokens // block_size for turn in self.turns)
        forked = sum(turn.prompt_tokens // block_size * (turn.answers - 1) for turn in self.turns)
        return max(1, self.pages(block_size) - spared - forked)

    def arriving(self, rate_per_s: float | None, *, burstiness: float = 1.0, seed: int = 0) -> Plan:
        """The same requests; those that wait for no other arrive at random, or all at once where there is no rate."""
        if rate_per_s is None:
            return self
        free = [index for index, turn in enumerate(self.turns) if turn.after is None]
        times = dict(zip(free, arrival_times(len(free), rate_per_s, seed, burstiness=burstiness), strict=True))
        turns = (replace(turn, arrival_s=times.get(index, 0.0)) for index, turn in enumerate(self.turns))
        return replace(self, turns=tuple(turns))

    def of_priorities(self, retentions: Sequence[Retention]) -> Plan:
        """The same requests, which take turns with these; what waits for another is as important as that."""
        if not retentions:
            return self
        taken: list[Retention] = []
        free = cycle(retentions)
        for turn in self.turns:
            taken.append(next(free) if turn.after is None else taken[turn.after])
        turns = (replace(turn, retention=one) for turn, one in zip(self.turns, taken, strict=True))
        return replace(self, turns=tuple(turns))


def spread(total: int, count: int) -> list[int]:
    """`count` whole numbers that make up `total`, and differ by one at most."""
    return [total * (i + 1) // count - total * i // count for i in range(count)]


def unreachable(name: str, shape: Shape, why: str) -> KvtoolError:
    """The error for a hit rate that no such prompts have."""
    return KvtoolError(f"{name} cannot have a hit rate of {shape.hit_rate}: {why}")
