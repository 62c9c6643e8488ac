"""The metrics that cases are compared by: where each stands in a case, which way is better, the samples behind it."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from kvtool.results import AccuracyCase, Case, FragmentationCase, Sample, Summary


@dataclass(frozen=True, slots=True)
class Metric:
    """`of_sample` gives a timing's values of one request. A rate names in `follows` the timing that it is the inverse
    of: it has no samples of its own, so the interval and the test of that timing are carried over. A count
    has neither: it is exact, but for what an `error` tells, the standard error of a figure of a text.
    """

    name: str
    unit: str
    value: Callable[[Case], float | None]
    better: str
    worse: str
    lower_is_better: bool
    of_sample: Callable[[Sample], list[float]] | None = None
    follows: str | None = None
    gates: bool = True  # may fail --fail-on-regression
    is_share: bool = False  # of what the device did in the same run, so that its speed is out of it already
    error: Callable[[Case], float | None] | None = None


def _timing(name: str, summary: Callable[[Case], Summary | None], of_sample: Callable[[Sample], list[float]]) -> Metric:
    def median(case: Case) -> float | None:
        found = summary(case)
        return None if found is None else found.p50

    return Metric(name, "ms", median, "faster", "slower", lower_is_better=True, of_sample=of_sample)


def _tpot_ms(sample: Sample) -> list[float]:
    seconds = sample.tpot_s
    return [] if seconds is None else [seconds * 1e3]


def _of_text(name: str, unit: str, better: str, worse: str, *, lower_is_better: bool) -> Metric:
    """A figure of the accuracy part."""

    def of(case: Case, name: str) -> float | None:
        found: float | None = getattr(case.accuracy, name) if isinstance(case, AccuracyCase) else None
        return found

    return Metric(
        name,
        unit,
        lambda case: of(case, name),
        better,
        worse,
        lower_is_better,
        error=lambda case: of(case, f"{name}_se"),
    )


def _of_pool(name: str, unit: str, better: str, worse: str, *, lower_is_better: bool) -> Metric:
    """A count of the fragmentation part."""

    def value(case: Case) -> float | None:
        found: float | None = getattr(case.fragmentation, name) if isinstance(case, FragmentationCase) else None
        return found

    return Metric(name, unit, value, better, worse, lower_is_better)


METRICS = (
    _timing("ttft_ms", lambda case: case.metrics.ttft_ms, lambda sample: [sample.ttft_s * 1e3]),
    _timing("tpot_ms", lambda case: case.metrics.tpot_ms, _tpot_ms),
    _timing("itl_ms", lambda case: case.metrics.itl_ms, lambda sample: [gap * 1e3 for gap in sample.itl_s]),
    _timing("e2e_ms", lambda case: case.metrics.e2e_ms, lambda sample: [sample.e2e_s * 1e3]),
    Metric(
        "prefill_tokens_per_s", "tokens/s", lambda case: case.metrics.prefill_tokens_per_s,
        "faster", "slower", lower_is_better=False, follows="ttft_ms",
    ),
    Metric(
        "decode_tokens_per_s", "tokens/s", lambda case: case.metrics.decode_tokens_per_s,
        "faster", "slower", lower_is_better=False, follows="tpot_ms",
    ),
    # The measured bandwidth below it moves too, so a lower MBU alone is no regression.
    Metric(
        "mbu", "ratio", lambda case: case.roofline.mbu,
        "higher", "lower", lower_is_better=False, follows="tpot_ms", gates=False, is_share=True,
    ),
    Metric("kv_allocated_bytes", "bytes", lambda case: case.memory.kv_allocated_bytes or None, "less", "more", True),
    # What else a process holds moves it from run to run.
    Metric("peak_bytes", "bytes", lambda case: case.memory.peak_bytes, "less", "more", True, gates=False),
    _of_text("kl_mean", "nats", "less", "more", lower_is_better=True),
    _of_text("perplexity", "", "less", "more", lower_is_better=True),
    _of_text("top1_agreement", "ratio", "higher", "lower", lower_is_better=False),
    _of_pool("used_ratio", "ratio", "higher", "lower", lower_is_better=False),
    _of_pool("largest_batch", "requests", "higher", "lower", lower_is_better=False),
    _of_pool("steps", "steps", "less", "more", lower_is_better=True),
)  # fmt: skip

Speed = Callable[[Sample], float]
"""Of the device, beside a sample. A time multiplied by it is work: what the time would be at a speed of 1."""

BY_NAME = {metric.name: metric for metric in METRICS}


def measured_samples(case: Case) -> list[Sample]:
    """The samples behind a case's metrics: the cached or baseline arm, or the only arm there is."""
    arms = {sample.arm for sample in case.samples}
    for arm in ("cached", "baseline"):
        if arm in arms:
            return [sample for sample in case.samples if sample.arm == arm]
    return case.samples if len(arms) == 1 else []


def num_samples(metric: Metric, case: Case) -> int:
    """Requests that have this timing."""
    assert metric.of_sample is not None
    return sum(bool(metric.of_sample(sample)) for sample in measured_samples(case))


def medians_of_runs(metric: Metric, case: Case, speed: Speed | None = None) -> list[float]:
    """The timing's median in each run, of times or of times at an equal `speed`."""
    runs: dict[int, list[float]] = defaultdict(list)
    for sample in measured_samples(case):
        runs[sample.run] += _values(metric, sample, speed)
    return [statistics.median(values) for values in runs.values() if values]


def _values(metric: Metric, sample: Sample, speed: Speed | None) -> list[float]:
    assert metric.of_sample is not None
    factor = speed(sample) if speed else 1.0
    return [factor * value for value in metric.of_sample(sample)]


def clusters_of(metric: Metric, case: Case, speed: Speed | None = None) -> list[list[float]] | None:
    """A timing's values by iteration (by request where there is one iteration), at an equal `speed` where one is given.
    None when the document's median is not the median of its samples: then they cannot speak for it."""
    samples = measured_samples(case)
    pooled = [value for sample in samples for value in _values(metric, sample, None)]
    stated = metric.value(case)
    if not pooled or stated is None or not math.isclose(statistics.median(pooled), stated, rel_tol=1e-3):
        return None
    requests = [((sample.run, sample.iteration), _values(metric, sample, speed)) for sample in samples]
    iterations: dict[tuple[int, int], list[float]] = defaultdict(list)
    for iteration, values in requests:
        iterations[iteration] += values
    return list(iterations.values()) if len(iterations) > 1 else [values for _, values in requests]


def num_iterations(case: Case) -> int:
    return len({(sample.run, sample.iteration) for sample in measured_samples(case)})


def num_runs(case: Case) -> int:
    """Whole processes that measured it."""
    return len({sample.run for sample in measured_samples(case)})
