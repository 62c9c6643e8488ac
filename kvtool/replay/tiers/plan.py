"""What one request loads and what it computes again, by the time that each takes on idle links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
                assert tier.read_gbps is not None
                seconds = max(seconds, tier.latency_s + below * self.block_bytes / (tier.read_gbps * 1e9))
        return seconds


@dataclass(frozen=True, slots=True)
class Plan:
    """`blocks` loaded of each tier. Of the computing `before_s` needs no load, and `after_s` comes behind it; layer by
    layer, each layer needs its part of the load alone. `decision`: none | load | recompute | both.
    """

    decision: str
    blocks: tuple[int, ...]
    before_s: float
    after_s: float

    @property
    def compute_s(self) -> float:
        return self.before_s + self.after_s


def plan(
    floor: PrefillFloor, links: Links, options: TierOptions, input_tokens: int, in_gpu: int, below: Sequence[int]
) -> Plan:
    """For a prompt with `in_gpu` blocks in the GPU and the next ones in tiers `below` (0: the first of them)."""
    planner = _Planner(floor, links, options.loading, input_tokens, in_gpu, tuple(below))
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
        whole_s = before_s + self.floor.prefill_s(self.input_tokens, end if count else known)
        return Plan(decision, blocks, before_s, whole_s - before_s)

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
        if not load_s:
            return tried.compute_s
        if self.loading == "bulk":
            return max(tried.before_s, load_s) + tried.after_s
        return max(load_s / layers + tried.compute_s, load_s + tried.compute_s / layers)
