"""Statistics of measured samples: bootstrap intervals, and verdicts in words.

Knows numbers only. Every interval is seeded, so the same samples always give the same interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    FloatArray = np.ndarray[Any, np.dtype[np.float64]]

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95
PRIOR_FREEDOM = 4
_MAX_CELLS = 1 << 20  # resamples x values held at once: 8 MiB of int64
_SMALLEST = 1e-30  # below it a value is 0 for a ratio, which would overflow


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its bootstrap interval (percentile method, 95 % unless asked otherwise)."""

    value: float
    low: float
    high: float


def paired_median_difference(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Estimate:
    """The median of b - a over pairs, with the interval from resampling pairs. Raises ValueError without pairs."""
    import numpy as np

    first, second = _pairs(a, b)
    differences = second - first
    picks = np.random.default_rng(seed).integers(0, len(differences), (NUM_RESAMPLES, len(differences)))
    return _estimate(float(np.median(differences)), np.median(differences[picks], axis=1))


def paired_ratio_of_medians(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Estimate:
    """median(b) / median(a), resampling pairs together. Raises ValueError without pairs or with values not above 0."""
    import numpy as np

    first, second = _pairs(a, b)
    if first.min() <= 0 or second.min() <= 0:
        raise ValueError("a ratio needs values above 0")
    picks = np.random.default_rng(seed).integers(0, len(first), (NUM_RESAMPLES, len(first)))
    ratios = np.median(second[picks], axis=1) / np.median(first[picks], axis=1)
    return _estimate(float(np.median(second) / np.median(first)), ratios)


def ratio_of_medians(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], seed: int = 0) -> Estimate | None:
    """median(b) / median(a) of two independent sides, each given as clusters of values that share their noise (the
    requests of one iteration). Whole clusters are resampled. None with fewer than two clusters, or values of 0.
    """
    import numpy as np

    a, b = [c for c in a if c], [c for c in b if c]
    if min(len(a), len(b)) < 2 or min(min(cluster) for cluster in (*a, *b)) < _SMALLEST:
        return None
    rng = np.random.default_rng(seed)
    ratios = _resampled_medians(b, rng) / _resampled_medians(a, rng)
    value = np.median(np.concatenate(b)) / np.median(np.concatenate(a))
    return _estimate(float(value), ratios)


def _resampled_medians(clusters: Sequence[Sequence[float]], rng: np.random.Generator) -> FloatArray:
    """The median of each bootstrap resample of whole clusters, shape [NUM_RESAMPLES].

    The values are sorted once. A resample only gives each value a weight, how often its cluster was drawn, so its
    median is where the running weight passes the middle.
    """
    import numpy as np

    values = np.concatenate([np.asarray(cluster, dtype=np.float64) for cluster in clusters])
    owner = np.repeat(np.arange(len(clusters)), [len(cluster) for cluster in clusters])
    order = np.argsort(values, kind="stable")
    values, owner = values[order], owner[order]
    draws = rng.multinomial(len(clusters), np.full(len(clusters), 1 / len(clusters)), size=NUM_RESAMPLES).astype(
        np.int32
    )
    rows = max(1, _MAX_CELLS // len(values))
    return np.concatenate(
        [_weighted_medians(values, part[:, owner]) for part in np.array_split(draws, range(rows, len(draws), rows))]
    )


def _weighted_medians(values: FloatArray, weights: Any) -> FloatArray:
    """Medians of sorted `values` [n] repeated `weights` [rows, n] times: the mean of the two middle ones."""
    running = weights.cumsum(axis=1, dtype=weights.dtype)
    total = running[:, -1:]
    low = (running <= (total - 1) // 2).sum(axis=1)
    high = (running <= total // 2).sum(axis=1)
    medians: FloatArray = (values[low] + values[high]) / 2
    return medians


@dataclass(frozen=True, slots=True)
class Spread:
    """A variance between whole runs, and the degrees of freedom that it was estimated with."""

    variance: float
    freedom: int


def spread_between(*sides: Sequence[float]) -> Spread:
    """Of the values of runs around the mean of their own side, pooled over the sides."""
    squares = sum(sum((value - sum(side) / len(side)) ** 2 for value in side) for side in sides)
    freedom = sum(len(side) - 1 for side in sides)
    return Spread(squares / freedom if freedom else 0.0, freedom)


def moderated(own: Spread, others: Sequence[Spread]) -> Spread:
    """`own`, drawn towards the variance that `others` have in common, which counts as up to PRIOR_FREEDOM of them:
    three runs a side tell little of their own spread, and cases of one session share most of it (Smyth 2004)."""
    freedom = sum(other.freedom for other in others)
    if not freedom:
        return own
    common, weight = sum(o.variance * o.freedom for o in others) / freedom, min(PRIOR_FREEDOM, freedom)
    total = own.freedom + weight
    return Spread((own.variance * own.freedom + common * weight) / total, total)


def t_tail(t: float, freedom: int) -> float:
    """The chance that Student's t of so many degrees of freedom is further from 0 than `t`."""
    import numpy as np

    nodes, weights = _quadrature()

    def area(start: float) -> float:
        """Of the density from tan(start) on, with x = sqrt(freedom) tan(angle), but for its constant."""
        half = (np.pi / 2 - start) / 2
        return float(half * np.sum(weights * np.cos(start + half * (nodes + 1)) ** (freedom - 1)))

    return area(float(np.arctan(abs(t) / freedom**0.5))) / area(0.0)


@cache
def _quadrature() -> tuple[FloatArray, FloatArray]:
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(64)
    return nodes, weights


@cache
def t_bound(confidence: float, freedom: int) -> float:
    """The t that is exceeded, either way, with the chance 1 - confidence."""
    low, high = 0.0, 1e4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, freedom) > 1 - confidence else (low, middle)
    return high


def holm(chances: Sequence[float]) -> list[float]:
    """Each of many tests' p-values, corrected so that all of them together err with the chance they name (Holm)."""
    adjusted, largest = [0.0] * len(chances), 0.0
    for place, index in enumerate(sorted(range(len(chances)), key=lambda i: chances[i])):
        largest = max(largest, min(1.0, chances[index] * (len(chances) - place)))
        adjusted[index] = largest
    return adjusted


TIMES = 3  # from so many times on a change is told as such, not in percent


def verdict(ratio: Estimate, better: str = "faster", worse: str = "slower", lower_is_better: bool = True) -> str:
    """A ratio b / a in words: `faster by 12.3 %`, `slower by 4.0 %`, `188x slower`, or `no difference shown`.

    The percentage is the change of the value itself: 0.877 of the time is "faster by 12.3 %".
    """
    if ratio.low == ratio.high == ratio.value == 1:
        return "same"
    if ratio.low <= 1 <= ratio.high:
        return "no difference shown"
    word = better if (ratio.value < 1) == lower_is_better else worse
    factor = max(ratio.value, 1 / ratio.value) if ratio.value > 0 else 1.0
    return f"{factor:.3g}x {word}" if factor >= TIMES else f"{word} by {abs(ratio.value - 1) * 100:.1f} %"


def _pairs(a: Sequence[float], b: Sequence[float]) -> tuple[FloatArray, FloatArray]:
    import numpy as np

    if len(a) != len(b) or not a:
        raise ValueError(f"{len(a)} and {len(b)} values do not make pairs")
    return np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)


def _estimate(value: float, resampled: FloatArray) -> Estimate:
    import numpy as np

    tail = (1 - CONFIDENCE) / 2 * 100
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Estimate(value=value, low=float(low), high=float(high))
