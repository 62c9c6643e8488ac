"""Bench documents against the first of them: a row per case, metric and document."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kvtool.compare.metrics import BY_NAME, METRICS, Metric, clusters_of, num_iterations
from kvtool.compare.pairing import Pairing, pair_cases
from kvtool.errors import KvtoolError
from kvtool.results import BenchDocument, Case, CompareDocument, CompareRow
from kvtool.stats import CONFIDENCE, Estimate, ratio_of_medians, verdict

# Facts of a run that differ between any two runs and say nothing about whether they may be compared.
INCIDENTAL = frozenset({"date_utc", "git_commit", "other_load_cores"})
MAX_LISTED = 4


class NamedDocument(NamedTuple):
    name: str
    document: BenchDocument


def compare_documents(baseline: NamedDocument, others: Sequence[NamedDocument]) -> CompareDocument:
    """Every other document against the baseline. Raises KvtoolError when one of them has no case in common with it."""
    rows: list[CompareRow] = []
    warnings: list[str] = []
    for name, document in others:
        pairing = pair_cases(baseline.document.cases, document.cases)
        if not pairing.pairs:
            raise KvtoolError(f"{name} and {baseline.name} have no case in common: {_first_difference(pairing)}")
        warnings += [f"{name}: {text}" for text in _warnings(baseline.document, document, pairing)]
        rows += [row for a, b in pairing.pairs for row in _compare_cases(a, b, name)]
    order = {case.name: place for place, case in enumerate(baseline.document.cases)}
    rows.sort(key=lambda row: (order[row.case], list(BY_NAME).index(row.metric)))
    return CompareDocument(baseline=baseline.name, rows=rows, warnings=warnings, assumptions=_assumptions(rows))


def regressions(rows: Iterable[CompareRow], limit: float) -> list[CompareRow]:
    """The rows whose metric is worse by more than `limit` (0.05 is 5 %), with the whole interval beyond it.

    A row without an interval counts by its ratio alone: a gate that cannot be sure does not stay silent.
    """
    return [row for row in rows if BY_NAME[row.metric].gates and _least_worsening(row) > limit]


def _least_worsening(row: CompareRow) -> float:
    """By how much the metric is worse at the better end of its interval; below 0 when it may have improved."""
    if row.ratio is None or row.ratio == 0:
        return -1.0
    if BY_NAME[row.metric].lower_is_better:
        return (row.ratio if row.ci_low is None else row.ci_low) - 1
    return 1 / (row.ratio if row.ci_high is None else row.ci_high) - 1


def _compare_cases(a: Case, b: Case, document: str) -> list[CompareRow]:
    estimates: dict[str, Estimate | None] = {}
    rows = []
    for metric in METRICS:
        value_a, value_b = metric.value(a), metric.value(b)
        if value_a is None and value_b is None:
            continue
        ratio = _ratio(value_a, value_b)
        estimate = estimates[metric.name] = _interval(metric, a, b, ratio, estimates)
        rows.append(
            CompareRow(
                case=a.name,
                metric=metric.name,
                unit=metric.unit,
                a=value_a,
                b=value_b,
                ratio=ratio,
                ci_low=estimate.low if estimate else None,
                ci_high=estimate.high if estimate else None,
                verdict=_words(metric, value_a, value_b, ratio, estimate),
                document=document,
            )
        )
    return rows


def _ratio(a: float | None, b: float | None) -> float | None:
    ratio = b / a if a and b is not None else None
    return ratio if ratio is not None and math.isfinite(ratio) else None


def _interval(
    metric: Metric, a: Case, b: Case, ratio: float | None, timings: Mapping[str, Estimate | None]
) -> Estimate | None:
    """The bootstrap interval of `ratio`: from the samples of a timing, or for a rate from its timing's, inverted."""
    if ratio is None:
        return None
    if metric.of_sample is not None:
        clusters_a, clusters_b = clusters_of(metric, a), clusters_of(metric, b)
        return ratio_of_medians(clusters_a, clusters_b) if clusters_a and clusters_b else None
    timing = timings.get(metric.follows) if metric.follows else None
    if timing is None:
        return None
    return Estimate(ratio, low=ratio * timing.value / timing.high, high=ratio * timing.value / timing.low)


def _words(metric: Metric, a: float | None, b: float | None, ratio: float | None, interval: Estimate | None) -> str:
    if a == b:
        return "same"
    if ratio is None:
        return "not comparable: one side has no value" if a is None or b is None else f"not comparable: {a:g} and {b:g}"
    words = verdict(interval or Estimate(ratio, ratio, ratio), metric.better, metric.worse, metric.lower_is_better)
    is_count = metric.of_sample is None and metric.follows is None
    return words if interval or is_count else f"{words} (no interval)"


def _warnings(a: BenchDocument, b: BenchDocument, pairing: Pairing) -> list[str]:
    """Whatever differs besides the numbers, and what the numbers cannot say."""
    environment = _differences(a.environment, b.environment)
    warnings = [f"the environment differs: {_against(environment)}"] if environment else []
    if pairing.differing:
        warnings.append(f"inputs differ: {_against(pairing.differing)}")
    if a.definitions != b.definitions:
        warnings.append("its metrics are defined in other words than the baseline's: read both documents' definitions")
    for cases, where in ((pairing.only_a, "only in the baseline"), (pairing.only_b, "not in the baseline")):
        if cases:
            warnings.append(f"{len(cases)} cases {where}: {_listed([case.name for case in cases])}")
    told: dict[str, list[str]] = defaultdict(list)
    for case_a, case_b in pairing.pairs:
        for text in _case_warnings(case_a, case_b):
            told[text].append(case_a.name)
    return warnings + [f"{text}: {_listed(names)}" for text, names in told.items()]


def _case_warnings(a: Case, b: Case) -> list[str]:
    warnings = []
    if min(num_iterations(a), num_iterations(b)) < 2:
        warnings.append("one iteration a side, so that intervals are those of its requests alone, or missing")
    for metric in METRICS:
        timed = [case for case in (a, b) if metric.of_sample and metric.value(case) is not None]
        if any(clusters_of(metric, case) is None for case in timed):
            warnings.append(f"{metric.name} is not the median of its samples, so it gets no interval")
    if a.check.outputs_equal is False or b.check.outputs_equal is False:
        warnings.append("outputs were not equal to those of the reference, so a gain may be an error")
    return warnings


def _listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = [name for name in {**a, **b} if name not in INCIDENTAL and a.get(name) != b.get(name)]
    return {name: (a.get(name), b.get(name)) for name in names}


def _against(differing: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{name} {a} against {b}" for name, (a, b) in differing.items())


def _first_difference(pairing: Pairing) -> str:
    if not pairing.only_a or not pairing.only_b:
        return "one of them has no cases"
    a, b = pairing.only_a[0], pairing.only_b[0]
    differing = _differences({"part": a.part, **a.inputs}, {"part": b.part, **b.inputs})
    return _against(differing) or "their inputs differ"


def _assumptions(rows: Sequence[CompareRow]) -> list[str]:
    interval = f"{CONFIDENCE:.0%}"
    return [
        "timings are compared by their medians (p50)",
        f"intervals are {interval} bootstrap intervals of the ratio of medians, resampling whole iterations",
        "throughput and mbu take over the interval of TTFT (prefill) or TPOT (decode, mbu); byte counts have none",
        *_spread_between_runs(rows),
    ]


def _spread_between_runs(rows: Sequence[CompareRow]) -> list[str]:
    """What several documents say about the noise between runs, which no interval of one run covers."""
    by_case: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row.b and BY_NAME[row.metric].of_sample:
            by_case[row.metric, row.case].append(row.b)
    spread: dict[str, float] = defaultdict(float)
    for (metric, _), values in by_case.items():
        spread[metric] = max(spread[metric], max(values) / min(values) - 1)
    if len({row.document for row in rows}) < 2:
        return ["one run a side: intervals cover the noise within a run, not between runs"]
    largest = ", ".join(f"{metric} {value:.1%}" for metric, value in spread.items())
    return [
        "intervals cover the noise within a run; between the documents other than the baseline, the largest spread of "
        f"a case's median is {largest}"
    ]
