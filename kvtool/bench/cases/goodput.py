"""Goodput: the share of requests that keep what was promised of their times."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from kvtool.results import Sample
from kvtool.system.errors import KvtoolError
from kvtool.units import split_list

LIMITED: dict[str, Callable[[Sample], float | None]] = {
    "ttft": lambda sample: sample.ttft_s,
    "tpot": lambda sample: sample.tpot_s,
    "e2e": lambda sample: sample.e2e_s,
}


def parse_goodput(text: str) -> dict[str, float]:
    """`ttft:200,tpot:50` -> most milliseconds by metric. Raises KvtoolError."""
    limits: dict[str, float] = {}
    for item in split_list(text):
        name, _, number = item.partition(":")
        if name not in LIMITED:
            raise KvtoolError(f"goodput {item!r} limits none of {', '.join(LIMITED)}: write ttft:200,tpot:50 (ms)")
        limits[name] = _milliseconds(item, number)
    return limits


def _milliseconds(item: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise KvtoolError(f"goodput {item!r} has no limit above 0 milliseconds: write ttft:200,tpot:50")
    return value


def goodput_ratio(samples: Sequence[Sample], limits_ms: Mapping[str, float]) -> float | None:
    """Share of requests within every limit; one output token has no TPOT to keep. None without limits."""
    if not limits_ms or not samples:
        return None
    return sum(_keeps(sample, limits_ms) for sample in samples) / len(samples)


def _keeps(sample: Sample, limits_ms: Mapping[str, float]) -> bool:
    times = ((LIMITED[name](sample), limit) for name, limit in limits_ms.items())
    return all(seconds is None or seconds * 1e3 <= limit for seconds, limit in times)
