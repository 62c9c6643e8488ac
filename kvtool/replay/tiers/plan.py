"""What one request loads and what it computes again, by the time that each takes on idle links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvtool.replay.saved import PrefillFloor
from kvtool.replay.tiers.options import Tier, TierOptions


@dataclass(frozen=True, slots=True)
class Links:
    """The tiers with their speeds, the bytes of a block and its tokens, and the layers that a load comes in."""

    tiers: tuple[Tier, ...]
    block_bytes: int
    block_size: int
    num_layers: int

    def load_s(self, blocks: Sequence[int]) -> float:
        """Seconds to load so many blocks of each tier: those of a lower one pass through the links above it."""
        seconds = 0.0
        for place, tier in enumerate(self.tiers):
            below = sum(blocks[place:])
            if below:
                rate = tier.bytes_per_s(self.block_bytes)
                seconds = max(seconds, tier.latency_s + below * self.block_bytes / rate)
        return seconds


@dataclass(frozen=True, slots=True)
class Plan:
    """`blocks` loaded of each tier, up to token `loaded_end`. Of computing `new_tokens`, `before_s` needs no load, and
    `after_s` comes behind it; layer by layer, each layer needs its part of the load alone. `cut_blocks` hit, but had no
    room to come through. The first block that is loaded is the prompt's `first_block`. `decision`: none | load |
    recompute | both.
    """

    decision: str
    blocks: tuple[int, ...]
    before_s: float
    after_s: float
    new_tokens: int = 1
    loaded_end: int = 0
    cut_blocks: int = 0
    first_block: int = 0

    @property
    def compute_s(self) -> float:
        return self.before_s + self.after_s


@dataclass(frozen=True, slots=True)
class Found:
    """What a request finds: of `input_tokens`, `in_gpu` blocks in the GPU, and the next ones in tiers `below` (0: the
    first of them).
    """

    input_tokens: int
    in_gpu: int
    below: tuple[int, ...]


def plan(floor: PrefillFloor, links: Links, options: TierOptions, found: Found, room: int) -> Plan:
    """For a request of which `room` blocks may come through."""
    below = found.below[:room]
    chosen = _plan(floor, links, options, replace(found, below=below))
    return replace(chosen, cut_blocks=len(found.below) - len(below))


def _plan(floor: PrefillFloor, links: Links, options: TierOptions, found: Found) -> Plan:
    planner, below = _Planner(floor, links, options.loading, found.input_tokens, found.in_gpu, found.below), found.below
    if not below:
        return planner.loading_last(0, "none")
    last = len(below)
    match options.decision:
        case "load":
            return planner.loading_last(last, "load")
        case "recompute":
            return planner.loading_last(0, "recompute")
        case "both":
            return planner.loading_last(planner.meeting(), "both")
        case _:
            ways = (planner.loading_last(last, "load"), planner.loading_last(0, "recompute"))
            meeting = planner.meeting()
            both = [planner.loading_last(meeting, "both")] if 0 < meeting < last else []
            return min((*ways, *both), key=planner.estimate_s)


@dataclass(frozen=True, slots=True)
class _Planner:
    floor: PrefillFloor
    links: Links
    loading: str
    input_tokens: int
    in_gpu: int
    below: tuple[int, ...]

    def loading_last(self, count: int, decision: str) -> Plan:
        """Load the last `count` blocks of the tiers and compute those before."""
        loaded = self.below[len(self.below) - count :]
        blocks = tuple(loaded.count(place) for place in range(len(self.links.tiers)))
        known = min(self.in_gpu * self.links.block_size, self.input_tokens - 1)
        start = min((self.in_gpu + len(self.below) - count) * self.links.block_size, self.input_tokens - 1)
        end = min((self.in_gpu + len(self.below)) * self.links.block_size, self.input_tokens - 1)
        before_s = self.floor.compute_s(known, start) if count else 0.0
        first_new = end if count else known
        new_tokens = self.input_tokens - first_new + (start - known if count else 0)
        return Plan(
            decision,
            blocks,
            before_s,
            self.floor.last_s(self.input_tokens, first_new),
            new_tokens,
            loaded_end=end,
            first_block=self.in_gpu + len(self.below) - count,
        )

    def meeting(self) -> int:
        """Blocks to load from the back so that loading ends when computing from the front does: the largest number
        whose load takes no longer.
        """
        low, high = 0, len(self.below)
        while low < high:
            middle = (low + high + 1) // 2
            tried = self.loading_last(middle, "both")
            if self.links.load_s(tried.blocks) <= tried.before_s:
                low = middle
            else:
                high = middle - 1
        return low

    def estimate_s(self, tried: Plan) -> float:
        """Time to the first token on idle links."""
        load_s, layers = self.links.load_s(tried.blocks), self.links.num_layers
        step_s = self.floor.step_s(tried.compute_s)
        if not load_s:
            return step_s
        if self.loading == "bulk":
            return max(tried.before_s, load_s) + step_s - tried.before_s
        return max(load_s / layers + step_s, load_s + step_s / layers)
