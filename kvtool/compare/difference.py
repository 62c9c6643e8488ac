"""How sure a difference of two cases is: what runs of the same code differ by, against what the two sides differ by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvtool.compare.metrics import (
    METRICS,
    Metric,
    Speed,
    clusters_of,
    medians_of_runs,
    num_samples,
)
from kvtool.compare.speeds import doubt, equal_speed
from kvtool.machine.pace import is_disturbed
from kvtool.machine.stats import (
    CONFIDENCE,
    Estimate,
    Spread,
    holm,
    moderated,
    ratio_of_medians,
    spread_between,
    t_bound,
    t_tail,
    verdict,
)
from kvtool.results import Case

MIN_SAMPLES = 8  # behind a side, below which there is no verdict
NORMAL_BOUND = 1.96  # standard errors from the middle to the end of a bootstrap's 95 % interval
WIDE = 0.10  # an interval that reaches so far past 1 cannot tell; a narrower one shows that there is no difference


@dataclass(frozen=True, slots=True)
class Difference:
    """Of one timing between two cases. `interval` and `p_value` come from the spread between runs, `noise` is the
    largest difference between two runs of one side (the A/A arm). Where a side has one run, there is no `p_value` and
    no `noise`, and the interval is that within the run. With a `speed`, all of them are of times at an equal speed of
    that kind. `unlike` says why the sides cannot be told apart, whatever their times."""

    n: int
    runs: int
    interval: Estimate | None = None
    p_value: float | None = None
    noise: float | None = None
    speed: str | None = None
    unlike: str | None = None

    @property
    def equal_speed_ratio(self) -> float | None:
        """b / a at an equal speed of the device, None where times are compared as they are."""
        return self.interval.value if self.speed and self.interval else None

    @property
    def shown(self) -> bool:
        """Whether the sides differ by more than chance and more than runs of the same side do."""
        if self.interval is None or self.p_value is None or self.noise is None or self.n < MIN_SAMPLES:
            return False
        if self.unlike or self.interval.low <= 1 <= self.interval.high:
            return False
        return self.p_value < 1 - CONFIDENCE and abs(math.log(self.interval.value)) > math.log1p(self.noise)

    def words(self, metric: Metric, ratio: float) -> str:
        """The verdict on `ratio`, of this timing or of a rate that follows it."""
        if self.shown:
            return verdict(Estimate(ratio, ratio, ratio), metric.better, metric.worse, metric.lower_is_better)
        if self.unlike:
            return f"cannot tell: {self.unlike}"
        if self.runs < 2:
            return "cannot tell from one run"
        if self.n < MIN_SAMPLES:
            return f"cannot tell from {self.n} samples"
        if self.interval is None:
            return "cannot tell from these samples"
        if max(1 / self.interval.low, self.interval.high) > 1 + WIDE:
            return f"cannot tell: runs differ by {100 * (self.noise or 0.0):.1f} %"
        return "no difference shown"


def differences(pairs: Sequence[tuple[Case, Case]]) -> dict[tuple[str, str], Difference]:
    """By the name of the first case and of the metric, for every timing of these pairs; tested all together."""
    found: dict[tuple[str, str], Difference] = {}
    for metric in METRICS:
        if metric.of_sample is not None:
            found |= {(a.name, metric.name): one for (a, _), one in zip(pairs, _of(metric, pairs), strict=True)}
    tested = [key for key, one in found.items() if one.p_value is not None]
    corrected = holm([found[key].p_value or 0.0 for key in tested])
    for key, p_value in zip(tested, corrected, strict=True):
        one = found[key]
        found[key] = replace(one, p_value=p_value)
    return found


def _of(metric: Metric, pairs: Sequence[tuple[Case, Case]]) -> list[Difference]:
    """One metric in every pair. The spread between runs of each is drawn towards that of the others."""
    speeds = [equal_speed(metric, a, b) for a, b in pairs]
    runs = [
        tuple(_logs(medians_of_runs(metric, case, speed)) for case in pair)
        for pair, speed in zip(pairs, speeds, strict=True)
    ]
    spreads = [spread_between(*(side for side in sides if side)) for sides in runs]
    found = []
    for place, ((a, b), speed) in enumerate(zip(pairs, speeds, strict=True)):
        others = spreads[:place] + spreads[place + 1 :]
        n = min(num_samples(metric, a), num_samples(metric, b))
        spread = moderated(spreads[place], others)
        one = _difference(n, runs[place], spread, _within_runs(metric, a, b, speed), doubt(metric, a, b, speed))
        found.append(replace(one, speed=speed.name if speed else None, unlike=_chose_other_threads(a, b)))
    return found


def _chose_other_threads(a: Case, b: Case) -> str | None:
    """Says so where the sides had unequal threads, and others were busy beside one of them, or before it: fewer are
    taken then."""
    threads = a.inputs.get("threads"), b.inputs.get("threads")
    busy = any(case.load.fewer_threads or is_disturbed(case.load.other_cores) for case in (a, b))
    return f"{threads[0]} and {threads[1]} threads beside busy others" if busy and threads[0] != threads[1] else None


def _within_runs(metric: Metric, a: Case, b: Case, speed: Speed | None) -> Estimate | None:
    """The ratio with what iterations differ by. None where a document's median is not that of its samples: then they
    cannot speak for it."""
    clusters_a, clusters_b = clusters_of(metric, a, speed), clusters_of(metric, b, speed)
    return ratio_of_medians(clusters_a, clusters_b) if clusters_a and clusters_b else None


def _difference(
    n: int, sides: Sequence[list[float]], spread: Spread, within: Estimate | None, owed: float
) -> Difference:
    """The noise is the larger of that between runs and that within them: runs may agree by chance. The
    interval is wider by what of the logarithm may be `owed` to the device."""
    runs = min(len(side) for side in sides)
    if runs < 2 or within is None:
        return Difference(n, runs, interval=within)
    between = math.sqrt(spread.variance * sum(1 / len(side) for side in sides))
    error = max(1e-9, between, math.log(within.high / within.low) / (2 * NORMAL_BOUND))
    reach, value = owed + t_bound(CONFIDENCE, spread.freedom) * error, math.log(within.value)
    interval = Estimate(*(math.exp(value + step) for step in (0.0, -reach, reach)))
    noise = math.expm1(max(max(side) - min(side) for side in sides))
    return Difference(n, runs, interval, t_tail(value / error, spread.freedom), noise)


def _logs(values: Sequence[float]) -> list[float]:
    """Of the values above 0: what runs differ by is a share."""
    return [math.log(value) for value in values if value > 0]
