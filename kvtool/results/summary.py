"""Many samples in a few figures."""

from __future__ import annotations

from collections.abc import Sequence

from kvtool.results.document import Struct


class Summary(Struct, frozen=True, kw_only=True):
    """`std` is the sample's (n - 1; 0 for one value); percentiles interpolate linearly, as numpy does."""

    mean: float
    std: float
    p50: float
    p90: float
    p95: float
    p99: float
    n: int


def summarise(values: Sequence[float]) -> Summary | None:
    """Mean, spread and percentiles in the unit of the values; None when there are none."""
    import numpy as np

    if not values:
        return None
    data = np.asarray(values, dtype=np.float64)
    p50, p90, p95, p99 = (float(p) for p in np.percentile(data, [50, 90, 95, 99]))
    std = float(data.std(ddof=1)) if len(data) > 1 else 0.0
    return Summary(mean=float(data.mean()), std=std, p50=p50, p90=p90, p95=p95, p99=p99, n=len(data))
