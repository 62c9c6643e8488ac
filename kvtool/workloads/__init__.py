"""What to run: prompts and when they arrive, made from a seed. Knows nothing of models, caches or clocks."""

from kvtool.workloads.arrivals import arrival_times, poisson_arrivals
from kvtool.workloads.prompts import Request, SharedPrefix, fixed, shared_prefix

__all__ = ["Request", "SharedPrefix", "arrival_times", "fixed", "poisson_arrivals", "shared_prefix"]
