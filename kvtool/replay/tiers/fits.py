"""Times of steps from what a benchmark measured of the same model: prompts interpolated, decodes fitted."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np

from kvtool.catalog.model import Model
from kvtool.replay.clock.steps import StepTimes
from kvtool.replay.saved import PrefillFloor, counted_work
from kvtool.replay.tiers.profile import Measured, Observed
from kvtool.sizing.speed.traffic import PrefillWork

LOW, HIGH = 5, 95  # percentiles of the spread


def has_steps(model: Model, measured: Measured) -> bool:
    """Whether steps of this very model were measured; of another one the rate alone is taken over."""
    return bool(measured.observed) and (measured.model, measured.num_layers) == (model.id, model.num_layers)


def measured_steps(model: Model, measured: Measured, num_gpus: int = 1) -> StepTimes:
    """Of a model that `has_steps`. Raises KvtoolError where its parameters cannot be counted."""
    assert measured.tflops is not None
    work, rate = counted_work(model), measured.tflops * 1e12
    points = _rising([(_flops(work, one) / rate, median(one.ttft_s), len(one.ttft_s)) for one in measured.observed])
    floor = PrefillFloor(work, rate, 0.0, tuple(points))
    ratios = [seconds / floor.step_s(_flops(work, one) / rate) for one in measured.observed for seconds in one.ttft_s]
    low, high = (float(value) for value in np.percentile(ratios, (LOW, HIGH)))
    decode_s, sequence_s, context_s = _decodes(measured.observed)
    times = StepTimes(floor, decode_s, sequence_s, context_s, floor.last_s(1, 0), spread=(low, high))
    return times if num_gpus == 1 else times.slower(1 / num_gpus)


def steps_words(times: StepTimes) -> str:
    """What the steps take, for the assumptions."""
    (first, fastest_s), (last, slowest_s) = times.floor.measured[0], times.floor.measured[-1]
    assert times.spread is not None
    low, high = times.spread
    return (
        f"a step of prompts takes {1e3 * fastest_s:.4g} to {1e3 * slowest_s:.4g} ms, interpolated over "
        f"{1e3 * first:.3g} to {1e3 * last:.3g} ms of computing (less takes as long), one of decodes "
        f"{1e3 * times.decode_s:.3g} ms, {1e3 * times.sequence_s:.3g} a request and {1e6 * times.context_s:.3g} a "
        f"thousand tokens of context, as measured of this model; nine in ten steps took x{low:.2f} to x{high:.2f} of "
        "that"
    )


def _flops(work: PrefillWork, one: Observed) -> int:
    """Of its step: all new tokens of all its requests."""
    return one.sequences * work.flops(one.prompt_tokens - one.cached_tokens, one.cached_tokens)


def _rising(points: Sequence[tuple[float, float, int]]) -> list[tuple[float, float]]:
    """Seconds of computing and seconds measured, of so many samples, as a curve that never falls: neighbours that do
    become their mean (the pool-adjacent-violators algorithm).
    """
    pools: list[tuple[list[float], float, int]] = []
    for compute_s, took_s, count in sorted(points):
        pools.append(([compute_s], took_s, count))
        while len(pools) > 1 and (pools[-2][1] >= pools[-1][1] or pools[-2][0][-1] == pools[-1][0][0]):
            (left, a, m), (right, b, n) = pools[-2:]
            pools[-2:] = [([*left, *right], (a * m + b * n) / (m + n), m + n)]
    return [(compute_s, took_s) for at, took_s, _ in pools for compute_s in dict.fromkeys((at[0], at[-1]))]


def _decodes(observed: Sequence[Observed]) -> tuple[float, float, float]:
    """Seconds of a decode step, of each request and of each token of context in it: the best fit in parts of what was
    measured, none of them below 0.
    """
    rows = [
        (1.0, one.sequences, one.sequences * (one.prompt_tokens + one.output_tokens / 2), median(one.tpot_s))
        for one in observed
        if one.tpot_s
    ]
    if not rows:
        return 0.0, 0.0, 0.0
    table = np.array(rows)
    table = table / table[:, 3:]
    for columns in ((0, 1, 2), (0, 1), (0, 2), (0,)):
        used = table[:, columns]
        if len(np.unique(used, axis=0)) < len(columns):
            continue
        fit = np.linalg.lstsq(used, np.ones(len(rows)), rcond=None)[0]
        if (fit >= 0).all():
            found = dict(zip(columns, fit.tolist(), strict=True))
            return found[0], found.get(1, 0.0), found.get(2, 0.0)
    raise AssertionError("a mean of times is above 0")
