"""One request as the engine sees it: its tokens, what of them is computed, and when each came out."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from kvtool.cache.index.node import DEFAULT_PRIORITY
from kvtool.cache.manager import SequenceCache
from kvtool.cache.retention import Retention
from kvtool.system.errors import KvtoolError

if TYPE_CHECKING:
    from torch import Tensor

_GREEDY_BELOW = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when to stop. `temperature` 0 is greedy; `ignore_eos` makes the output length exact."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    ignore_eos: bool = True

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise KvtoolError(f"output length {self.max_tokens} must be at least 1 token")
        if not 0.0 <= self.temperature <= 100.0:
            raise KvtoolError(f"temperature {self.temperature} must be from 0 (greedy) to 100")
        if not 0.0 < self.top_p <= 1.0:
            raise KvtoolError(f"top-p {self.top_p} must be above 0 and at most 1")

    @property
    def is_greedy(self) -> bool:
        """A temperature this low leaves only the maximum, and dividing by it would overflow."""
        return self.temperature < _GREEDY_BELOW

    @property
    def divisor(self) -> float:
        """What the logits are divided by; 0 for greedy rows, whose logits are left alone."""
        return 0.0 if self.is_greedy else self.temperature


class Status(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False, slots=True, kw_only=True)
class Sequence:
    """A request in flight. `token_ids` are prompt and output; the first `num_computed` of them have K/V in the cache.

    Times are seconds on the engine's clock. `cached_tokens` is the prefix hit of the first admission: a preempted
    sequence that finds its own pages again was not saved anything. `processed_tokens` went through the model, what was
    computed once more included. `retention` says how important the request is, while it runs and of what it leaves in
    the cache. `page_keys` name its first whole pages for the tiers below the pool; the tokens behind the first
    `join_at` are being loaded from there, and `load_s` is how long it waited for such pages before its first token.
    `logits` has a row a token if the engine keeps them.
    """

    id: int
    token_ids: list[int]
    prompt_tokens: int
    params: SamplingParams
    arrival_s: float
    retention: Retention | None = None
    status: Status = Status.WAITING
    num_computed: int = 0
    pages: SequenceCache | None = None
    cached_tokens: int | None = None
    peak_pages: int = 0
    num_preemptions: int = 0
    processed_tokens: int = 0
    page_keys: list[bytes] = field(default_factory=list)
    join_at: int | None = None
    load_s: float = 0.0
    token_times_s: list[float] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    @property
    def num_pending(self) -> int:
        """Tokens whose K/V is still to be computed: the prompt at first, then one at a time."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_ready(self) -> int:
        """Pending tokens that may be computed now."""
        return self.num_pending if self.join_at is None else self.join_at - self.num_computed

    @property
    def num_recomputed_if_preempted(self) -> int:
        """Tokens that were computed for it alone, as nothing cached was found for them."""
        return self.num_computed - (0 if self.pages is None else self.pages.cached_tokens)

    @property
    def priority(self) -> int:
        """0 gives way first, 100 last."""
        return DEFAULT_PRIORITY if self.retention is None else self.retention.priority

    @property
    def num_output(self) -> int:
        return len(self.token_ids) - self.prompt_tokens

    @property
    def output_ids(self) -> list[int]:
        return self.token_ids[self.prompt_tokens :]

    @property
    def is_decoding(self) -> bool:
        """True once a step of it is one token: it has produced output and was not preempted since."""
        return self.num_pending == 1 and len(self.token_ids) > self.prompt_tokens

    @property
    def is_finished(self) -> bool:
        return self.status is Status.FINISHED

    @property
    def ttft_s(self) -> float:
        """First token out minus request in, queueing included."""
        return self.token_times_s[0] - self.arrival_s

    @property
    def e2e_s(self) -> float:
        return self.token_times_s[-1] - self.arrival_s

    @property
    def itl_s(self) -> list[float]:
        """The gap before every token after the first."""
        return [b - a for a, b in zip(self.token_times_s, self.token_times_s[1:], strict=False)]
