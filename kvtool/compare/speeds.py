"""How times follow the speed of a device that changes from second to second, as it was measured beside each sample."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from kvtool.compare.metrics import Metric, measured_samples
from kvtool.results import Case, Sample

SETS_SPEED = ("device", "threads", "dtype")  # inputs that the device's measured speed depends on too
MOST_UNKNOWN = 0.5  # of the slope of the logarithms of times over those of bandwidths
SURE = 6.6  # twice the gain in log likelihood that chance brings one time in a hundred (chi squared, one parameter)


@dataclass(frozen=True, slots=True)
class ReadSpeed:
    """How fast something was read beside a sample, which has it as `key`: GB/s, 0 where that was not measured."""

    name: str
    key: str

    def __call__(self, sample: Sample) -> float:
        return getattr(sample, self.key) or 0.0


# The closest to what a step does comes first: its weights, be they in memory or in a cache.
READ_SPEEDS = (
    ReadSpeed("speed of reading weights", "weights_read_gbps"),
    ReadSpeed("memory bandwidth", "device_read_gbps"),
)


@dataclass(frozen=True, slots=True)
class EqualSpeed:
    """A time of which `share` waits for what is read, and the rest for matrix products."""

    share: float
    read: ReadSpeed

    @property
    def name(self) -> str:
        names = {self.read.name: self.share, "speed of matrix products": 1 - self.share}
        return " and ".join(name for name, share in names.items() if share)

    def __call__(self, sample: Sample) -> float:
        """The factor that makes the sample's times those of a device whose speeds are 1."""
        return float(self.read(sample) ** self.share * (sample.device_tflops or 0.0) ** (1 - self.share))


def read_speed(*cases: Case) -> ReadSpeed | None:
    """The first that is known beside all samples of these cases; None where none is."""
    samples = [sample for case in cases for sample in measured_samples(case)]
    return next((speed for speed in READ_SPEEDS if all(map(speed, samples))), None)


def equal_speed(metric: Metric, a: Case, b: Case) -> EqualSpeed | None:
    """The share by which this timing follows the device best; None where no share accounts for more of what iterations
    of one side differ by than chance would.

    It looks at what happens within the sides alone, so that it cannot favour either. Where they differ in what sets the
    speeds, such as their threads, it would take out what is compared.
    """
    samples = [sample for case in (a, b) for sample in measured_samples(case)]
    read = read_speed(a, b)
    if read is None or not all(sample.device_tflops for sample in samples) or _set_apart(a, b):
        return None
    before = _squares(metric, (a, b), None)
    speeds = [EqualSpeed(quarters / 4, read) for quarters in range(4, -1, -1)]
    left = {speed: _squares(metric, (a, b), speed) for speed in speeds}
    best = min(speeds, key=left.__getitem__)
    num_iterations = sum(len(_iterations(metric, case, None)) for case in (a, b))
    sure = left[best] and num_iterations * math.log(before / left[best]) > SURE
    return best if sure else None


def doubt(metric: Metric, a: Case, b: Case, speed: EqualSpeed | None) -> float:
    """What the logarithm of the ratio may owe to the device all the same: how far apart the bandwidths are that the
    sides met, times what is not known of how the metric follows them.

    Caches, latencies and clocks change along with the bandwidth, and no measured speed tells of them. How closely times
    follow is known from within the sides alone, to two standard errors of the slope. Where a setting sets the speeds,
    their difference is what is compared.
    """
    read = read_speed(a, b)
    if read is None or _set_apart(a, b):
        return 0.0
    met = [_bandwidths(metric, case, read) for case in (a, b)]
    if not all(met):
        return 0.0
    times = [_iterations(metric, case, speed) for case in (a, b)]
    unknown = min(MOST_UNKNOWN, 2 * slope_error(met, times))
    return unknown * abs(statistics.median(met[1]) - statistics.median(met[0]))


def _set_apart(a: Case, b: Case) -> bool:
    """Whether a setting has the sides meet another device, or more of it: then speeds are what is compared."""
    return any(a.inputs.get(name) != b.inputs.get(name) for name in SETS_SPEED)


def slope_error(sides_x: Sequence[Sequence[float]], sides_y: Sequence[Sequence[float]]) -> float:
    """The standard error of the slope of y over x within sides; without end where x does not vary."""
    x, y = ([value - statistics.fmean(side) for side in sides for value in side] for sides in (sides_x, sides_y))
    squares, freedom = sum(value**2 for value in x), len(x) - len(sides_x) - 1
    if squares <= 0 or freedom < 1:
        return math.inf
    slope = sum(one * other for one, other in zip(x, y, strict=True)) / squares
    left = sum((other - slope * one) ** 2 for one, other in zip(x, y, strict=True))
    return math.sqrt(left / freedom / squares)


def _bandwidths(metric: Metric, case: Case, read: ReadSpeed) -> list[float]:
    """Logarithms of what was read at beside each iteration, in the order of `_iterations`."""
    assert metric.of_sample is not None
    met = {
        (s.run, s.iteration): math.log(read(s))
        for s in measured_samples(case)
        if any(value > 0 for value in metric.of_sample(s))
    }
    return list(met.values())


def _squares(metric: Metric, cases: Sequence[Case], speed: EqualSpeed | None) -> float:
    """Of the logarithms of iterations' medians around the mean of their own side."""
    return sum(_around_mean(_iterations(metric, case, speed)) for case in cases)


def _iterations(metric: Metric, case: Case, speed: EqualSpeed | None) -> list[float]:
    """Logarithms of the median time of each, at an equal speed where one is given."""
    assert metric.of_sample is not None
    times: dict[tuple[int, int], list[float]] = defaultdict(list)
    for sample in measured_samples(case):
        factor = speed(sample) if speed else 1.0
        times[sample.run, sample.iteration] += [factor * value for value in metric.of_sample(sample) if value > 0]
    return [math.log(statistics.median(values)) for values in times.values() if values]


def _around_mean(values: Sequence[float]) -> float:
    return sum((value - statistics.fmean(values)) ** 2 for value in values)
