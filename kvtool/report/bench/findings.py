"""What a bench document says, in sentences a reader can repeat; none where its figures are missing."""

from __future__ import annotations

from collections.abc import Sequence

from kvtool.report.bench.accuracy import accuracy_findings
from kvtool.report.bench.cases import cases_by_arm, cases_of, speedup, waste_ratio, with_prefix
from kvtool.report.bench.endpoint import endpoint_findings
from kvtool.report.bench.fragmentation import fragmentation_findings
from kvtool.report.bench.ranks import ranks_findings
from kvtool.report.bench.workloads import workload_findings
from kvtool.report.cells import percent
from kvtool.results import BenchDocument, Case, Prefix
from kvtool.results.warnings import load_warnings
from kvtool.units import format_length, format_ms

WRONG = "WRONG"


def headline(document: BenchDocument) -> str:
    """The answer in one sentence: what a token takes and how close that is to what the device can do, else the first
    finding of the other parts; empty where there is none.
    """
    if (outputs := _outputs(document.cases)).startswith(WRONG):
        return outputs
    latency = [*cases_of(document, "latency"), *cases_of(document, "endpoint")]
    times = [
        (name, [summary.p50 for case in latency if (summary := getattr(case.metrics, key)) is not None])
        for name, key in (("TPOT", "tpot_ms"), ("TTFT", "ttft_ms"))
    ]
    told = [f"{name} {_ms_span(medians)}" for name, medians in times if medians]
    if not told:
        parts = (_prefix(cases_of(document, "prefix")), _arms(cases_of(document, "no-cache")))
        smaller = (*accuracy_findings(document), *fragmentation_findings(document), *ranks_findings(document))
        return next(filter(None, (*parts, *smaller)), "")
    shares = [case.roofline.mbu for case in latency if case.roofline.mbu is not None]
    reached = f"; decode reaches {_span(shares)} of the bandwidth measured in this run" if shares else ""
    return f"{_list(told)}{reached}."


def _ms_span(medians: Sequence[float]) -> str:
    low, high = format_ms(min(medians)), format_ms(max(medians))
    return f"{low} ms" if low == high else f"{low} to {high} ms"


def findings(document: BenchDocument) -> list[str]:
    """The document's main results; what makes them doubtful comes first."""
    latency, prefix, arms = (cases_of(document, part) for part in ("latency", "prefix", "no-cache"))
    told = [
        *load_warnings(document.environment, document.cases),
        _outputs(document.cases),
        _ceiling(document.cases),
        _decode(latency),
        _prefill(latency),
    ]
    told += [_prefix(prefix), _arms(arms), *workload_findings(document), _memory(latency)]
    told += [*endpoint_findings(document), *accuracy_findings(document), *fragmentation_findings(document)]
    told += ranks_findings(document)
    return [sentence for sentence in told if sentence]


def _outputs(cases: Sequence[Case]) -> str:
    compared = [case for case in cases if case.check.outputs_equal is not None]
    differing = [case.name for case in compared if not case.check.outputs_equal]
    if differing:
        return f"{WRONG}: the outputs of {', '.join(differing)} differ between arms; no figure of theirs counts."
    return (
        f"Outputs were compared inside this run and are the same in {_of(len(compared), compared)}." if compared else ""
    )


def _ceiling(cases: Sequence[Case]) -> str:
    reads, copies, products = (
        [rate for rate in rates if rate is not None]
        for rates in (
            [case.roofline.read_gbps_measured for case in cases],
            [case.roofline.copy_gbps_measured for case in cases],
            [case.roofline.tflops_measured for case in cases],
        )
    )
    if not reads:
        return ""
    parts = [f"reads {_from_to(reads, '.1f')} GB/s"]
    if copies:
        parts.append(f"copies {_from_to(copies, '.1f')} GB/s")
    if products:
        parts.append(f"multiplies at {_from_to(products, '.2f')} TFLOP/s")
    return f"This device, measured in this run, {_list(parts)}."


def _from_to(rates: list[float], digits: str) -> str:
    """One figure where the cases' limits agree within rounding and noise, else both ends."""
    low, high = min(rates), max(rates)
    return f"{high:,{digits}}" if high < 1.1 * low else f"{low:,{digits}} to {high:,{digits}}"


def _decode(cases: Sequence[Case]) -> str:
    return _bound("Decode", [case.roofline.bound for case in cases], "bandwidth", [case.roofline.mbu for case in cases])


def _prefill(cases: Sequence[Case]) -> str:
    bounds = [case.roofline.prefill_bound for case in cases]
    return _bound("Prefill", bounds, "FLOP/s", [case.roofline.mfu for case in cases])


def _bound(phase: str, bounds: list[str | None], limit: str, shares: list[float | None]) -> str:
    known = [bound for bound in bounds if bound is not None]
    if not known:
        return ""
    counts = {kind: known.count(kind) for kind in ("memory", "compute") if kind in known}
    verdict = " and ".join(f"{kind}-bound in {_of(count, known)}" for kind, count in counts.items())
    found = [share for share in shares if share is not None]
    reached = f", reaching {_span(found)} of the measured {limit}" if found else ""
    return f"{phase} is {verdict}{reached}."


def _prefix(cases: Sequence[Case]) -> str:
    results = [prefix for _, prefix in with_prefix(cases) if prefix.measured_hit_rate > 0]
    if not results:
        return ""
    prefix = max(results, key=lambda result: result.measured_hit_rate)
    low, high = prefix.ttft_saved_ms_ci_low, prefix.ttft_saved_ms_ci_high
    if low <= 0 <= high:
        return (
            f"A prefix hit of {percent(prefix.measured_hit_rate)} saves no time to first token that this run can show."
        )
    verb = "saves" if prefix.ttft_saved_ms > 0 else "COSTS"
    return (
        f"A prefix hit of {percent(prefix.measured_hit_rate)} {verb} {format_ms(abs(prefix.ttft_saved_ms))} ms "
        f"to the first token ({percent(abs(prefix.ttft_saved_ratio))}; "
        f"95% interval {format_ms(min(abs(low), abs(high)))} to {format_ms(max(abs(low), abs(high)))} ms)."
        f"{_ttft_gap(cases, prefix)}"
    )


def _ttft_gap(cases: Sequence[Case], shown: Prefix) -> str:
    """Why that case takes longer than the roofline allows, where it does."""
    reasons = [case.roofline.ttft_reason for case, prefix in with_prefix(cases) if prefix is shown]
    return "".join(f" {reason}." for reason in reasons if reason)


def _arms(cases: Sequence[Case]) -> str:
    by_arm, lengths = cases_by_arm(cases)
    ratios = [(length, ratio) for length in lengths if (ratio := speedup(by_arm, length)) is not None]
    if not ratios:
        return ""
    length, ratio = ratios[-1]
    return f"At {format_length(length)} tokens, a token without a cache takes {ratio:.1f} times as long as with pages."


def _memory(cases: Sequence[Case]) -> str:
    if not cases:
        return ""
    exact = [case for case in cases if case.memory.kv_predicted_bytes == case.memory.kv_allocated_bytes]
    waste = [share for case in cases if (share := waste_ratio(case)) is not None]
    wasted = f"; page rounding leaves {_span(waste, digits=1)} of it unused" if waste else ""
    return f"Predicted and allocated KV bytes are equal in {_of(len(exact), cases)}{wasted}."


def _of(count: int, cases: Sequence[object]) -> str:
    if count == len(cases):
        return f"all {count} cases" if count > 1 else "the one case"
    return f"{count} of {len(cases)} cases"


def _span(shares: Sequence[float], digits: int = 0) -> str:
    low, high = percent(min(shares), digits), percent(max(shares), digits)
    return low if low == high else f"{low} to {high}"


def _list(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
