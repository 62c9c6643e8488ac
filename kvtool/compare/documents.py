"""Bench documents against the first of them: a row per case, metric and document."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kvtool.compare.difference import MIN_SAMPLES, NORMAL_BOUND, Difference, differences
from kvtool.compare.metrics import BY_NAME, METRICS, Metric, clusters_of, num_iterations, num_runs
from kvtool.compare.pairing import Pairing, pair_cases
from kvtool.machine.stats import CONFIDENCE, Estimate, verdict
from kvtool.results import BenchDocument, Case, CompareDocument, CompareRow
from kvtool.results.warnings import load_warnings
from kvtool.system.errors import KvtoolError

# Facts of a run that differ between any two runs and say nothing about whether they may be compared.
INCIDENTAL = frozenset({"date_utc", "git_commit", "other_load_cores"})
MAX_LISTED = 4


class NamedDocument(NamedTuple):
    """`remarks`: how another tool's words became ours."""

    name: str
    document: BenchDocument
    remarks: tuple[str, ...] = ()


def compare_documents(baseline: NamedDocument, others: Sequence[NamedDocument]) -> CompareDocument:
    """Every other document against the baseline. Raises KvtoolError when one of them has no case in common with it."""
    rows: list[CompareRow] = []
    warnings = [*_disturbed(baseline), *_remarked(baseline)]
    for other in others:
        name, document, _ = other
        pairing = pair_cases(baseline.document.cases, document.cases)
        if not pairing.pairs:
            raise KvtoolError(f"{baseline.name} and {name} have no case in common: {_first_difference(pairing)}")
        warnings += [*_disturbed(other), *_remarked(other)]
        warnings += [f"{name}: {text}" for text in _warnings(baseline.document, document, pairing)]
        tests = differences(pairing.pairs)
        rows += [row for a, b in pairing.pairs for row in _compare_cases(a, b, name, tests)]
    order = {case.name: place for place, case in enumerate(baseline.document.cases)}
    rows.sort(key=lambda row: (order[row.case], list(BY_NAME).index(row.metric)))
    return CompareDocument(baseline=baseline.name, rows=rows, warnings=warnings, assumptions=_assumptions(rows))


def _disturbed(named: NamedDocument) -> list[str]:
    """That others used the machine of this run."""
    return [f"{named.name}: {text}" for text in load_warnings(named.document.environment, named.document.cases)]


def _remarked(named: NamedDocument) -> list[str]:
    return [f"{named.name}: {remark}" for remark in named.remarks]


def regressions(rows: Iterable[CompareRow], limit: float) -> list[CompareRow]:
    """The rows whose metric is worse by more than `limit` (0.05 is 5 %), with the whole interval beyond it.

    Of timings and rates only those that show a difference; byte counts are exact and count by their ratio alone.
    """
    return [row for row in rows if _gates(row) and _least_worsening(row) > limit]


def _gates(row: CompareRow) -> bool:
    """Whether the row may fail a gate: it is sure of what it says."""
    metric = BY_NAME[row.metric]
    is_count = metric.of_sample is None and metric.follows is None and metric.error is None
    return metric.gates and (is_count or not {metric.better, metric.worse}.isdisjoint(row.verdict.split()))


def _least_worsening(row: CompareRow) -> float:
    """By how much the metric is worse at the better end of its interval; below 0 when it may have improved."""
    ratio = row.judged_ratio
    if ratio is None or ratio == 0:
        return -1.0
    if BY_NAME[row.metric].lower_is_better:
        return (ratio if row.ci_low is None else row.ci_low) - 1
    return 1 / (ratio if row.ci_high is None else row.ci_high) - 1


def _compare_cases(a: Case, b: Case, document: str, tests: Mapping[tuple[str, str], Difference]) -> list[CompareRow]:
    timings: dict[str, float] = {}
    rows = []
    for metric in METRICS:
        value_a, value_b = metric.value(a), metric.value(b)
        if value_a is None and value_b is None:
            continue
        ratio = _ratio(value_a, value_b)
        if ratio is not None and metric.of_sample is not None:
            timings[metric.name] = ratio
        # A rate is as sure as the timing that it is the inverse of.
        test = tests.get((a.name, metric.follows or metric.name))
        equal = _at_equal_speed(metric, ratio, timings, test)
        judged = ratio if equal is None else equal
        of_text = _interval_of_text(metric, a, b)
        estimate = of_text or _interval(metric, judged, test)
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
                verdict=NEAR if _is_near(of_text) else _words(metric, value_a, value_b, judged, test),
                document=document,
                p_value=test.p_value if test else None,
                noise=test.noise if test else None,
                n=test.n if test else None,
                equal_speed_ratio=equal,
                speed=test.speed if test and equal is not None else None,
            )
        )
    return rows


def _at_equal_speed(
    metric: Metric, ratio: float | None, timings: Mapping[str, float], test: Difference | None
) -> float | None:
    """b / a at an equal speed of the device. A rate moves as the timing that it follows, the other way round."""
    equal = test.equal_speed_ratio if test else None
    if ratio is None or equal is None or metric.is_share:
        return None
    if metric.of_sample is not None:
        return equal
    timing = timings.get(metric.follows or "")
    return ratio * timing / equal if timing else None


def _ratio(a: float | None, b: float | None) -> float | None:
    ratio = b / a if a and b is not None else None
    return ratio if ratio is not None and math.isfinite(ratio) else None


NEAR = "within the error of these texts"


def _interval_of_text(metric: Metric, a: Case, b: Case) -> Estimate | None:
    """The interval of b / a of a figure that tells its standard error: to first order, and as if the texts had nothing
    in common, so too wide where they are the same."""
    if metric.error is None:
        return None
    values, errors = (metric.value(a), metric.value(b)), (metric.error(a), metric.error(b))
    if not all(values) or None in errors:
        return None
    shares = [(error or 0.0) / (value or 1.0) for value, error in zip(values, errors, strict=True)]
    ratio, reach = (values[1] or 0.0) / (values[0] or 1.0), NORMAL_BOUND * math.hypot(*shares)
    return Estimate(ratio, ratio * math.exp(-reach), ratio * math.exp(reach))


def _is_near(estimate: Estimate | None) -> bool:
    return estimate is not None and estimate.low <= 1 <= estimate.high != estimate.low


def _interval(metric: Metric, ratio: float | None, test: Difference | None) -> Estimate | None:
    """The interval of `ratio`: between the runs of a timing, within the run where a side is one, or for a rate its
    timing's, inverted."""
    timing = test.interval if test else None
    if ratio is None or timing is None:
        return None
    if metric.of_sample is not None:
        return timing
    return Estimate(ratio, low=ratio * timing.value / timing.high, high=ratio * timing.value / timing.low)


def _words(metric: Metric, a: float | None, b: float | None, ratio: float | None, test: Difference | None) -> str:
    if a == b:
        return "same"
    if ratio is None:
        return "not comparable: one side has no value" if a is None or b is None else f"not comparable: {a:g} and {b:g}"
    if test is not None:
        return test.words(metric, ratio)
    return verdict(Estimate(ratio, ratio, ratio), metric.better, metric.worse, metric.lower_is_better)


def _warnings(a: BenchDocument, b: BenchDocument, pairing: Pairing) -> list[str]:
    """Whatever differs besides the numbers, and what the numbers cannot say."""
    both = a.environment and b.environment  # another tool's document does not say on what it ran
    environment = _differences(a.environment, b.environment) if both else {}
    warnings = [f"the environment differs: {_against(environment)}"] if environment else []
    if pairing.differing:
        warnings.append(f"inputs differ: {_against(pairing.differing)}")
    if both and a.definitions != b.definitions:
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
    if min(num_runs(a), num_runs(b)) < 2 <= max(num_runs(a), num_runs(b)):
        warnings.append("one side is a single run, which cannot tell what runs differ by")
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
    names = [name for name in {**a, **b} if name not in INCIDENTAL and not _alike(name, a.get(name), b.get(name))]
    return {name: (a.get(name), b.get(name)) for name in names}


def _alike(name: str, a: Any, b: Any) -> bool:
    """Equal, or as many bytes to a percent: a machine's memory is a little less after each start of its kernel."""
    if name.endswith("_bytes") and isinstance(a, int) and isinstance(b, int):
        return abs(a - b) <= 0.01 * max(a, b)
    return bool(a == b)


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
        f"intervals are {interval} intervals of the ratio, from the spread between runs; where a side is one run, "
        "bootstrap intervals of its iterations, which cover no noise between runs",
        f"a difference is called where it passes a t-test between runs at {1 - CONFIDENCE:.0%}, corrected for all "
        "timings together (Holm), exceeds what two runs of one side differ by (A/A), and has "
        f"{MIN_SAMPLES} samples a side",
        "throughput and mbu take over the interval of TTFT (prefill) or TPOT (decode, mbu); byte counts have none",
        *_equal_speeds(rows),
        *_spread_between_runs(rows),
    ]


def _equal_speeds(rows: Sequence[CompareRow]) -> list[str]:
    """Which timings are compared at an equal speed of the device."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.speed and BY_NAME[row.metric].of_sample and row.metric not in found[row.speed]:
            found[row.speed].append(row.metric)
    return [
        f"the ratio of {', '.join(metrics)} is at equal {speed}, as measured beside each iteration, since it accounts "
        "for more of what iterations of one side differ by than chance would; the values are as measured"
        for speed, metrics in found.items()
    ]


def _spread_between_runs(rows: Sequence[CompareRow]) -> list[str]:
    """What runs of the same code differ by."""
    noises: dict[str, float] = defaultdict(float)
    for row in rows:
        if BY_NAME[row.metric].of_sample and row.noise is not None:
            noises[row.metric] = max(noises[row.metric], row.noise)
    if not noises:
        return ["one run a side: `kvtool bench --runs 3` measures what runs differ by"]
    largest = ", ".join(f"{metric} {noise:.1%}" for metric, noise in noises.items())
    return [f"two runs of one side differ by at most {largest}"]
