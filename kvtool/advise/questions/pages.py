"""How large a page? Larger ones move in fewer pieces; a sequence wastes half a page, and a hit loses half of one."""

from __future__ import annotations

from kvtool.advise import commands
from kvtool.advise.decision import decision
from kvtool.advise.serving import Serving
from kvtool.advise.situation import Situation
from kvtool.advise.traffic import Traffic
from kvtool.results import AdviseDecision
from kvtool.units import format_bytes

QUESTION = "Which page size?"
SIZES = (16, 32, 64, 128, 256)
MOST_LOST = 0.01  # of the memory, or of the prefills


def decide(situation: Situation, serving: Serving) -> AdviseDecision:
    """The largest page that loses no more than that."""
    lost = {size: lost_share(situation.traffic, size) for size in SIZES}
    chosen = max((size for size in SIZES if lost[size] <= MOST_LOST), default=SIZES[0])
    page = format_bytes(serving.replica.cached_bytes(chosen))
    fewest = "" if lost[chosen] <= MOST_LOST else "; engines start from no smaller one"
    traffic = situation.traffic
    return decision(
        QUESTION,
        f"{chosen} tokens",
        value=lost[chosen],
        threshold=MOST_LOST,
        unit="lost to page ends",
        because=f"half a page is so much of the {traffic.longest_tokens:,} tokens stored, or of the "
        f"{traffic.input_tokens - traffic.hit_tokens:,} computed; a page takes {page} of a card{fewest}",
        command=commands.size(situation, serving, "--block-size", str(chosen)),
        options={f"{size}": share for size, share in lost.items()},
    )


def lost_share(traffic: Traffic, size: int) -> float:
    """Of the memory to ends of sequences, or of the prefills to ends of prefixes, whichever is more: half a page."""
    half = (size - 1) / 2
    stored = half / traffic.longest_tokens
    computed = half / (traffic.input_tokens - traffic.hit_tokens) if traffic.hit_tokens else 0.0
    return max(stored, computed)
