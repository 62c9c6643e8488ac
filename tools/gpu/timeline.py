"""What a device did in some steps, launch by launch, as a table. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Launch:
    """A kernel or a copy; microseconds of the device's clock."""

    name: str
    start_us: float
    busy_us: float


def as_table(launches: Sequence[Launch], num_steps: int) -> dict[str, Any]:
    """A row a kind of launch, the one that takes most first, and all launches of the last step in their order.

    `gap_us`: the device was idle so long before a launch, since whatever ended last. Figures are of one step.
    """
    ordered = sorted(launches, key=lambda launch: launch.start_us)
    gaps = _gaps_us(ordered)
    rows: dict[str, dict[str, Any]] = {}
    for launch, gap_us in zip(ordered, gaps, strict=True):
        row = rows.setdefault(launch.name, {"name": launch.name, "count": 0.0, "busy_us": 0.0, "gap_us": 0.0})
        row["count"] += 1 / num_steps
        row["busy_us"] += launch.busy_us / num_steps
        row["gap_us"] += gap_us / num_steps
    per_step = round(len(ordered) / num_steps)
    last = ordered[-per_step:] if per_step else []
    return {
        "launches": len(ordered) / num_steps,
        "busy_us": sum(row["busy_us"] for row in rows.values()),
        "gap_us": sum(row["gap_us"] for row in rows.values()),
        "kernels": sorted(rows.values(), key=lambda row: -float(row["busy_us"])),
        "last_step": [[launch.name, launch.start_us - last[0].start_us, launch.busy_us] for launch in last],
    }


def _gaps_us(ordered: Sequence[Launch]) -> list[float]:
    gaps, end_us = [], ordered[0].start_us if ordered else 0.0
    for launch in ordered:
        gaps.append(max(0.0, launch.start_us - end_us))
        end_us = max(end_us, launch.start_us + launch.busy_us)
    return gaps
