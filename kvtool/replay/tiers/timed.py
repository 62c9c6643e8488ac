"""One request on the clock: what it was going to do, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvtool.replay.clock.network import Flow
from kvtool.replay.tiers.plan import Plan

NOTHING = Plan("none", (), 0.0, 0.0)


@dataclass(slots=True, eq=False)
class Timed:
    """A request arrives, and `plan_with` says what it does where so many blocks may come through. Once computed it
    writes `written` blocks to each tier, and it gives `output_tokens`, one at least. `needs`: its blocks in the GPU
    from a place on are those that another request computed; `shares`: those that another had loaded. `nodes` are the
    blocks of its prompt, where memory is counted.

    `compute_s` is its computing in all, of `new_tokens`, of which `tokens_left` are left. `loads` are on their way, by
    tier. `can_begin` once the first layer is there, or all, as its plan says. The GPU stood still for it for `stall_s`.
    """

    arrival_s: float
    plan_with: Callable[[int], Plan]
    written: tuple[int, ...] = ()
    input_tokens: int = 1
    output_tokens: int = 1
    in_gpu: int = 0
    needs: tuple[tuple[int, Timed], ...] = ()
    shares: tuple[tuple[int, Timed], ...] = ()
    nodes: Sequence[int] = ()
    plan: Plan = NOTHING
    started: bool = False
    loads: dict[int, Flow] = field(default_factory=dict)
    can_begin: bool = False
    loaded: bool = False
    deadline_s: float = 0.0
    missed_blocks: int = 0
    late_blocks: int = 0
    compute_s: float = 0.0
    new_tokens: int = 1
    tokens_left: int = 1
    output_left: int = 0
    layers: int = 1  # that its load comes in
    first_s: float = 0.0
    ended_s: float = 0.0
    stall_s: float = 0.0
    has_first: bool = False
    preemptions: int = 0
    recomputed_tokens: int = 0

    def start(self, room: int, layers: int) -> None:
        """It goes by a plan from here on."""
        self.plan, self.started, self.layers = self.plan_with(room), True, layers
        self.compute_s = self.plan.compute_s
        self.new_tokens = self.tokens_left = max(1, self.plan.new_tokens)
        self.loaded = not self.has_loads
        self.can_begin = self.loaded or self.plan.before_s > 0

    @property
    def has_loads(self) -> bool:
        return any(self.plan.blocks)

    @property
    def is_computed(self) -> bool:
        return self.started and not self.tokens_left

    @property
    def held_blocks(self) -> int:
        """Of those in the GPU, the ones that are computed, or loaded for another request."""
        computed = (place for place, other in self.needs if not other.is_computed)
        loaded = (place for place, other in self.shares if not (other.is_computed or other.has_loaded(place)))
        return min((self.in_gpu, *computed, *loaded))

    def has_loaded(self, block: int) -> bool:
        """Whether its load brought that block of its prompt."""
        return self.loaded and self.has_loads and block >= self.plan.first_block

    @property
    def shares_what_comes(self) -> bool:
        """Whether a block is on its way for another request: it comes once for both."""
        return any(
            other.has_loads and not other.loaded and not other.is_computed and place >= other.plan.first_block
            for place, other in self.shares
        )

    @property
    def tokens(self) -> int:
        """Of its prompt, and of its answer so far."""
        return self.input_tokens + (self.output_tokens - self.output_left if self.has_first else 0)

    def give_way(self, compute_s: float) -> None:
        """All its tokens are to be computed again."""
        self.preemptions += 1
        self.recomputed_tokens += self.tokens
        self.compute_s, self.new_tokens, self.tokens_left = compute_s, self.tokens, self.tokens

    def compute(self, tokens: int, compute_s: float) -> None:
        """So many tokens more."""
        self.compute_s += compute_s
        self.new_tokens += tokens
        self.tokens_left += tokens

    def share_s(self, tokens: int) -> float:
        """Seconds of computing so many of its new tokens."""
        return self.compute_s * tokens / self.new_tokens

    def tail_s(self, step_s: float) -> float:
        """Of a step of so long, what is left to do when its load ends later than all else: the last layer, or all
        behind the load.
        """
        return step_s / self.layers if self.layers > 1 else step_s - self.plan.before_s

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.arrival_s

    @property
    def e2e_s(self) -> float:
        return self.ended_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """None where it gave one token alone."""
        return (self.ended_s - self.first_s) / (self.output_tokens - 1) if self.output_tokens > 1 else None
