"""Results as rows of CSV."""

from __future__ import annotations

import msgspec

from kvtool.report.files import CsvValue
from kvtool.results import ReplayMode, ReplayTiers, ReplayTtft


def flat_times(one: ReplayTiers | ReplayMode) -> dict[str, CsvValue]:
    """What is a single value, and a column for each percentile of its times; lists have rows of their own."""
    row: dict[str, CsvValue] = {}
    for name, value in msgspec.structs.asdict(one).items():
        if isinstance(value, ReplayTtft):
            row |= {f"{name}_{part}": time_ms for part, time_ms in msgspec.structs.asdict(value).items()}
        elif not isinstance(value, (dict, list, tuple)):
            row[name] = value
    return row
