"""From which context a format is faster than the reference: lines through both, turn by turn, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvtool.bench.accuracy.speed import Timed
from kvtool.machine.stats import CONFIDENCE, t_bound
from kvtool.results import CacheSpeed
from kvtool.units import format_length


@dataclass(frozen=True, slots=True)
class Line:
    """ms = intercept + slope * tokens, of each turn."""

    intercepts: Sequence[float]
    slopes: Sequence[float]


def line(contexts: Sequence[int], itl_ms: Sequence[Sequence[float]]) -> Line:
    """By least squares through the contexts of each turn."""
    slopes, intercepts = np.polyfit(np.array(contexts, dtype=float), np.array(itl_ms), 1)
    return Line(intercepts.tolist(), slopes.tolist())


@dataclass(frozen=True, slots=True)
class Bounds:
    """A median over turns, its standard error, and its interval."""

    value: float
    se: float
    low: float
    high: float


def bounds(values: Sequence[float], confidence: float = CONFIDENCE) -> Bounds:
    """The error of a median is 1.25 times that of a mean, and a spread 1.48 times the median distance from the middle,
    as of a normal distribution: a turn that others disturbed widens nothing. Two turns at least."""
    middle = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(np.asarray(values) - middle)))
    se = 1.2533 * spread / len(values) ** 0.5
    reach = t_bound(confidence, len(values) - 1) * se
    return Bounds(middle, se, middle - reach, middle + reach)


NEVER, UNKNOWN = "never pays here: {0}", "nothing can be said: "
SURE = 0.99  # of an answer that is looked for turn by turn: who looks often finds what is not there
SAME = 0.05  # of a step: less is no difference that anybody would choose by


def pays(own: Line, other: Line, longest: int, confidence: float = CONFIDENCE) -> tuple[int | None, str]:
    """The context from which `own` is below `other`, and that in words; `longest` is the model's."""
    intercept = bounds([a - b for a, b in zip(own.intercepts, other.intercepts, strict=True)], confidence)
    slope = bounds([a - b for a, b in zip(own.slopes, other.slopes, strict=True)], confidence)
    if slope.low > 0 or (slope.high >= 0 and intercept.low > 0):
        longer = "" if slope.low > 0 else "a step takes longer, and "
        return None, NEVER.format(f"{longer}to read a token takes {_times(slope, other)} as long")
    if slope.high >= 0:
        return None, f"{UNKNOWN}to read a token takes {_times(slope, other)} as long"
    if intercept.value <= 0:
        return 0, "pays at any context"
    tokens = round(intercept.value / -slope.value)
    if tokens > longest:
        return tokens, f"would pay from {_about(tokens)} tokens, beyond the {format_length(longest)} of the model"
    return tokens, f"pays from {_about(tokens)} tokens"


def answer(
    own_ms: Sequence[Sequence[float]],
    other_ms: Sequence[Sequence[float]],
    contexts: Sequence[int],
    longest: int,
    confidence: float = CONFIDENCE,
) -> tuple[int | None, str]:
    """As `pays`, of ITL by context, a value a turn; where the lines say nothing, what whole steps say."""
    tokens, words = pays(line(contexts, own_ms), line(contexts, other_ms), longest, confidence)
    if words.startswith(UNKNOWN):
        words = _by_steps(own_ms, other_ms, contexts, confidence) or words
    return tokens, words


def _by_steps(
    own_ms: Sequence[Sequence[float]], other_ms: Sequence[Sequence[float]], contexts: Sequence[int], confidence: float
) -> str | None:
    """What steps of every measured context say together; None where their intervals are too wide."""
    steps = [bounds(ratios, confidence) for ratios in paired_ratios(own_ms, other_ms)]
    last, at = steps[-1], format_length(contexts[-1])
    times = f"a step there takes {_span(last.value, last.low, last.high)} as long"
    if last.low > 1 and all(each.high >= 1 for each in steps):
        return f"does not pay up to {at} tokens: {times}"
    if last.high < 1:
        return f"pays at {at} tokens, and from where cannot be said: {times}"
    if all(each.low > 1 - SAME and each.high < 1 + SAME for each in steps):
        return f"makes no difference up to {at} tokens: {times}"
    return None


def paired_ratios(own_ms: Sequence[Sequence[float]], other_ms: Sequence[Sequence[float]]) -> list[list[float]]:
    """By context, how many times as long as the other's each turn's step took."""
    return [[a / b for a, b in zip(own, other, strict=True)] for own, other in zip(own_ms, other_ms, strict=True)]


def has_answer(own: Timed, reference: Timed, *, contexts: Sequence[int], longest: int) -> bool:
    """Whether more turns would not change what is said."""
    other_ms = _as_many(reference.itl_ms, own.itl_ms)
    return not answer(own.itl_ms, other_ms, contexts, longest, SURE)[1].startswith(UNKNOWN)


def _as_many(turns_ms: Sequence[list[float]], as_of: Sequence[list[float]]) -> list[list[float]]:
    """The first turns of each context, as many as the other has."""
    return [turns[: len(own)] for turns, own in zip(turns_ms, as_of, strict=True)]


def _times(slope: Bounds, other: Line) -> str:
    """What is added to the slope of another line, as a multiple of that: `1.2 (1.1 to 1.4) times`."""
    whole = float(np.median(other.slopes))
    if whole <= 0:
        return "an unknown number of times"
    return _span(*(1 + added / whole for added in (slope.value, slope.low, slope.high)))


def _span(value: float, low: float, high: float) -> str:
    return f"{value:.2f} ({low:.2f} to {high:.2f}) times"


def _about(tokens: int) -> str:
    """Two digits: more would be noise."""
    return f"{float(f'{tokens:.2g}') / 1000:.2g}k" if tokens >= 1000 else f"{float(f'{tokens:.2g}'):.0f}"


def speed_of(own: Timed, reference: Timed, contexts: Sequence[int], *, dtype: str, longest: int) -> CacheSpeed:
    """The figures of one format, beside the reference in the turns that it took."""
    reference_ms = _as_many(reference.itl_ms, own.itl_ms)
    mine, other = line(contexts, own.itl_ms), line(contexts, reference_ms)
    intercept, slope = bounds(mine.intercepts), bounds(mine.slopes)
    tokens, words = answer(own.itl_ms, reference_ms, contexts, longest)
    return CacheSpeed(
        dtype=dtype,
        contexts=list(contexts),
        itl_ms=own.itl_ms,
        reference_itl_ms=reference_ms,
        intercept_ms=intercept.value,
        intercept_ms_se=intercept.se,
        slope_us_per_token=slope.value * 1e3,
        slope_us_per_token_se=slope.se * 1e3,
        reference_intercept_ms=bounds(other.intercepts).value,
        reference_slope_us_per_token=(reads := bounds(other.slopes)).value * 1e3,
        reference_slope_us_per_token_se=reads.se * 1e3,
        store_us_per_token=own.store_us,
        reference_store_us_per_token=reference.store_us,
        held_bytes=own.held,
        reference_held_bytes=reference.held,
        pays_from_tokens=tokens,
        pays=words,
    )
