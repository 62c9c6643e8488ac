"""What to run: prompts and when they arrive, made from a seed. Knows nothing of models, caches or clocks."""

from kvtool.workloads.arrivals import poisson_arrivals
from kvtool.workloads.prompts import Request, SharedPrefix, fixed, shared_prefix

__all__ = ["Request", "SharedPrefix", "fixed", "poisson_arrivals", "shared_prefix"]
