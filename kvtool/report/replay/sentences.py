"""What a replay says, in sentences: the ideal, the knee, and what holds each policy back."""

from __future__ import annotations

from collections.abc import Sequence

from kvtool.report.replay.tiers import tier_sentences
from kvtool.results import ReplayDocument, ReplayKnee, ReplayRow
from kvtool.units import format_bytes, format_ms


def in_short(document: ReplayDocument) -> list[str]:
    """The sentences to read when one reads nothing else."""
    trace = document.trace
    lines = [
        f"Without a limit of capacity {percent(trace.ideal_block_hit_ratio)} of blocks hit: "
        f"{percent(trace.ideal_token_hit_ratio)} of tokens, {percent(trace.ideal_mean_request_token_hit_ratio)} as the "
        "mean over requests."
    ]
    knees = [f"{curve.policy}: {knee_words(curve.knee)}" for curve in document.curves if curve.knee]
    lines += [f"{knee}; from there on more capacity gives less." for knee in knees]
    for policy in dict.fromkeys(row.policy for row in document.rows):
        lines += held_back([row for row in document.rows if row.policy == policy])
    return [*lines, *tier_sentences(document)]


def knee_words(knee: ReplayKnee) -> str:
    """`2.3 TiB -> 35.0 % of blocks -> 87 ms saved a request`."""
    saved = "" if knee.ttft_saved_ms is None else f" -> {format_ms(knee.ttft_saved_ms)} ms saved a request"
    return f"{capacity_words(knee)} -> {percent(knee.block_hit_ratio)} of blocks{saved}"


def capacity_words(point: ReplayKnee | ReplayRow) -> str:
    """In bytes where these are known, else in blocks."""
    if point.capacity_bytes is not None:
        return format_bytes(point.capacity_bytes)
    return "no limit" if point.capacity_blocks is None else f"{point.capacity_blocks:,} blocks"


def held_back(rows: Sequence[ReplayRow]) -> list[str]:
    """Why a policy does not hit all that can be hit, a line for each of the two reasons that it has anywhere."""
    lines = []
    by_policy = [row for row in rows if row.limited_by == "policy"]
    if by_policy:
        most = max(best_choice(row) - row.block_hit_ratio for row in by_policy)
        lines.append(
            f"{by_policy[0].policy} is limited by its policy at {_capacities(by_policy)}: the best choice hits up to "
            f"{100 * most:.1f} points more."
        )
    by_capacity = [row for row in rows if row.limited_by == "capacity"]
    if by_capacity:
        most = max(best_choice(row) for row in by_capacity)
        lines.append(
            f"{by_capacity[0].policy} is limited by capacity at {_capacities(by_capacity)}: no policy hits more than "
            f"{percent(most)} of blocks there."
        )
    return lines


def best_choice(row: ReplayRow) -> float:
    """The lowest ceiling that is known."""
    return row.ceiling_relaxed if row.ceiling_strict is None else row.ceiling_strict


def _capacities(rows: Sequence[ReplayRow]) -> str:
    words = [capacity_words(row) for row in rows]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def percent(ratio: float) -> str:
    return f"{100 * ratio:.1f} %"
