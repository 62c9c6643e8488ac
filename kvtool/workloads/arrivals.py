"""When requests arrive."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from kvtool.errors import KvtoolError
from kvtool.workloads.prompts import Request


def poisson_arrivals(requests: Sequence[Request], rate_per_s: float, seed: int) -> list[Request]:
    """The requests as a Poisson process of `rate_per_s`: the first at once, then independent exponential gaps."""
    if not 0 < rate_per_s < float("inf"):
        raise KvtoolError(f"request rate {rate_per_s} must be above 0 requests per second")
    rng = random.Random(f"arrivals {seed}")
    arrived: list[Request] = []
    time_s = 0.0
    for request in requests:
        arrived.append(replace(request, arrival_s=time_s))
        time_s += rng.expovariate(rate_per_s)
    return arrived
