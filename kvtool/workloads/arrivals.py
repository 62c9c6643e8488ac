"""When requests arrive."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from kvtool.system.errors import KvtoolError
from kvtool.workloads.prompts import Request


def arrival_times(count: int, rate_per_s: float, seed: int, *, burstiness: float = 1.0) -> list[float]:
    """Seconds at which `count` requests arrive, the first at once.

    The gaps are gamma distributed with the mean 1 / `rate_per_s`: a `burstiness` of 1 is a Poisson process, a smaller
    one sends requests in bursts (the gaps' standard deviation over their mean is 1 / sqrt(burstiness)), a larger one
    makes them even. Raises KvtoolError.
    """
    for what, value in (("request rate", rate_per_s), ("burstiness", burstiness)):
        if not 0 < value < float("inf"):
            raise KvtoolError(f"{what} {value} must be above 0{' requests per second' if 'rate' in what else ''}")
    rng = random.Random(f"arrivals {seed}")
    times = [0.0]
    for _ in range(count - 1):
        poisson = burstiness == 1
        gap_s = rng.expovariate(rate_per_s) if poisson else rng.gammavariate(burstiness, 1 / (burstiness * rate_per_s))
        times.append(times[-1] + gap_s)
    return times[:count]


def random_arrivals(
    requests: Sequence[Request], rate_per_s: float, seed: int, *, burstiness: float = 1.0
) -> list[Request]:
    """The requests in their order, with the times of `arrival_times`."""
    times = arrival_times(len(requests), rate_per_s, seed, burstiness=burstiness)
    return [replace(request, arrival_s=time_s) for request, time_s in zip(requests, times, strict=True)]
