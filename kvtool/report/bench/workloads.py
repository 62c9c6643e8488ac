"""The workloads of a bench document: what sharing saves in each, what the pool did, and policies side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median

from kvtool.machine.stats import Estimate, paired_median_difference
from kvtool.report.bench.cases import ttfts_ms, uncached_ttft_ms
from kvtool.report.cells import (
    DASH,
    format_flops,
    format_ms_signed,
    p50,
    percent,
    rate,
    tail,
)
from kvtool.report.tables import Table
from kvtool.results import BenchDocument, Saved, WorkloadCase
from kvtool.units import format_bytes, format_bytes_short, format_length, format_ms

NOT_SHOWN = "no significant difference"
GB = 10**9
GAP = 0.15


def workload_cases(document: BenchDocument) -> list[WorkloadCase]:
    """Those of the document that ran a scenario, the one that gains most first."""
    found = [case for case in document.cases if isinstance(case, WorkloadCase)]
    return sorted(found, key=lambda case: -case.workload.saved.ttft_ms)


def workload_tables(document: BenchDocument) -> list[Table]:
    """None where no scenario ran."""
    cases = workload_cases(document)
    if not cases:
        return []
    tables = [gain_table(cases), pool_table(cases)]
    if any(case.workload.tiers for case in cases):
        tables.append(tier_table(cases))
    rivals = same_requests(cases)
    return [*tables, policy_table(rivals)] if rivals else tables


def is_shown(saved: Saved) -> bool:
    """Whether a difference is one: its interval leaves out 0, and it is larger than any that the same arm had with its
    own repeat."""
    noise = max((abs(end) for end in (saved.repeat_ms_ci_low, saved.repeat_ms_ci_high) if end is not None), default=0.0)
    return not saved.ttft_ms_ci_low <= 0 <= saved.ttft_ms_ci_high and abs(saved.ttft_ms) > noise


def names(case: WorkloadCase, cases: Sequence[WorkloadCase]) -> tuple[str, ...]:
    """What tells a case from the others: its scenario, and its policies and hit rate where they vary."""
    told = {
        "scenario": case.workload.scenario,
        "policy": case.workload.policy,
        "preemption": case.workload.preemption,
        "asked": percent(case.workload.hit_rate_requested, digits=1),
    }
    varying: dict[str, set[object]] = {
        "policy": {other.workload.policy for other in cases},
        "preemption": {other.workload.preemption for other in cases},
        "asked": {other.inputs.get("hit_rate") for other in cases},
    }
    return tuple(told[key] for key in told if key == "scenario" or len(varying[key]) > 1)


def headings(cases: Sequence[WorkloadCase]) -> tuple[str, ...]:
    """Over the columns of `names`."""
    count = len(names(cases[0], cases))
    return ("workload", "eviction", "preemption", "hits asked")[:count]


def gain_table(cases: Sequence[WorkloadCase]) -> Table:
    """Share found, milliseconds and FLOPs saved."""
    rows = [
        (
            *names(case, cases),
            percent(case.workload.hit_rate_requested, digits=1),
            percent(case.workload.hit_rate_measured, digits=1),
            format_ms(uncached_ttft_ms(case)),
            p50(case.metrics.ttft_ms),
            saved_in_words(case.workload.saved),
            percent(case.workload.saved.ttft_ratio) if is_shown(case.workload.saved) else DASH,
            format_flops(case.workload.saved.flops),
            format_bytes_short(case.workload.saved.kv_bytes_not_written),
        )
        for case in cases
    ]
    return Table(
        title="What sharing saves, by workload",
        columns=(
            *headings(cases),
            *("hits\nasked", "hits\nfound", "TTFT ms\nuncached", "TTFT ms\ncached", "saved ms\n(95% interval)"),
            *("saved\n%", "FLOPs\nsaved", "KV not\nwritten"),
        ),
        rows=rows,
        labels=len(headings(cases)),
        spare=("hits\nasked", "KV not\nwritten", "TTFT ms\nuncached", "TTFT ms\ncached", "saved\n%"),
        note="The same requests with the prefix cache, without it and with it once more, in turns (A B A, then back), "
        "paired; in the order of their gain. hits found: share of prompt tokens, by the allocator's own counters; "
        "asked: what the prompts were made for. FLOPs and bytes are of one iteration. "
        f"{NOT_SHOWN}: the interval spans 0, or two runs of the same arm differ as much.",
    )


def saved_in_words(saved: Saved) -> str:
    """`812 (790 to 840)`, or that there is none to show."""
    if not is_shown(saved):
        return NOT_SHOWN
    ends = (format_ms_signed(end) for end in (saved.ttft_ms_ci_low, saved.ttft_ms_ci_high))
    return f"{format_ms_signed(saved.ttft_ms)} ({' to '.join(ends)})"


def pool_table(cases: Sequence[WorkloadCase]) -> Table:
    """What happened in the pool, and how long requests took in it."""
    promised = any(case.workload.goodput_ratio is not None for case in cases)
    rows = [
        (
            *names(case, cases),
            format_bytes_short(case.memory.kv_pool_bytes or 0),
            format_length(int(case.inputs.get("pool_tokens") or 0)),
            format_bytes_short(case.memory.kv_allocated_bytes),
            *(f"{count:,}" for count in (case.workload.evicted_pages, case.workload.preemptions)),
            *(f"{count:,}" for count in (case.workload.recomputed_tokens, case.workload.copied_pages)),
            tail(case.metrics.ttft_ms, ttfts_ms(case)),
            *([percent(case.workload.goodput_ratio)] if promised else []),
        )
        for case in cases
    ]
    goodput = " goodput: share of requests within --goodput." if promised else ""
    return Table(
        title="What the pool did, by workload",
        columns=(
            *headings(cases),
            *("pool", "pool\ntokens", "held at\nmost", "pages\nevicted", "gave\nway", "tokens\nagain"),
            *("pages\ncopied", "TTFT ms\nreach", *(["goodput"] if promised else [])),
        ),
        rows=rows,
        labels=len(headings(cases)),
        spare=("pool\ntokens", "pages\ncopied", "TTFT ms\nreach"),
        note="Of one iteration with the prefix cache. held: by running requests, shared pages once. gave way: requests "
        f"that were preempted; tokens again: computed a second time for it.{goodput}",
    )


def tier_table(cases: Sequence[WorkloadCase]) -> Table:
    """What came from the tiers below the pool, and what went there."""
    rows = [
        (
            *names(case, cases),
            tier.tier,
            percent(tier.hit_tokens / case.workload.prompt_tokens, digits=1),
            f"{tier.recomputed_tokens:,}",
            format_bytes_short(tier.bytes_out),
            format_bytes_short(tier.bytes_in),
            format_ms(1e3 * tier.stall_s),
        )
        for case in cases
        for tier in case.workload.tiers
    ]
    return Table(
        title="What the tiers gave, by workload",
        columns=(*headings(cases), "tier", "hits\nfound", "tokens\ncomputed", "read", "written", "waited\nms"),
        rows=rows,
        labels=len(headings(cases)) + 1,
        spare=("tokens\ncomputed",),
        note="Of one iteration with the prefix cache, by the tiers' own counters. hits found: share of prompt tokens, "
        "those of requests that came back from giving way too. computed: were there, but computing was faster. waited: "
        "steps for pages from this tier, or for room in it.",
    )


def same_requests(cases: Sequence[WorkloadCase]) -> list[tuple[WorkloadCase, WorkloadCase, Estimate]]:
    """Each case beside the first one that ran the same requests under another policy, and what it takes more."""
    groups: dict[tuple[object, ...], list[WorkloadCase]] = defaultdict(list)
    for case in cases:
        groups[case.workload.scenario, case.inputs.get("hit_rate")].append(case)
    first = {key: next(case for case in group if repeats(case)) for key, group in groups.items() if len(group) > 1}
    return [
        (first[key], case, paired_median_difference(cached_ttfts_ms(first[key]), cached_ttfts_ms(case)))
        for key, group in groups.items()
        for case in group
        if key in first and case is not first[key]
    ]


def repeats(case: WorkloadCase) -> bool:
    """Whether the arm was run twice: it is the policy that was named first."""
    return any(sample.arm == "repeat" for sample in case.samples)


def cached_ttfts_ms(case: WorkloadCase) -> list[float]:
    """By iteration; within one in the order of the requests."""
    own = sorted((sample for sample in case.samples if sample.arm == "cached"), key=lambda s: (s.run, s.iteration))
    return [1e3 * sample.ttft_s for sample in own]


def policy_table(rivals: Sequence[tuple[WorkloadCase, WorkloadCase, Estimate]]) -> Table:
    """Policies under the same requests and pool, beside the first that was named."""
    rows = [
        (
            other.workload.scenario,
            *policies(other, first),
            " / ".join(percent(case.workload.hit_rate_measured, 1) for case in (other, first)),
            " / ".join(format_ms(median(cached_ttfts_ms(case))) for case in (other, first)),
            difference_in_words(more, first.workload.saved),
        )
        for first, other, more in rivals
    ]
    return Table(
        title="Policies side by side",
        columns=("workload", "policy", "against", "hits found", "TTFT ms\np50", "takes more ms\n(95% interval)"),
        rows=rows,
        labels=3,
        spare=("TTFT ms\np50",),
        note="The same requests under both, in turns, paired. a / b: of the policy, and of what it stands against.",
    )


def policies(*cases: WorkloadCase) -> list[str]:
    """The eviction policy of each case, and who gives way where that differs between them."""
    differ = len({case.workload.preemption for case in cases}) > 1
    return [case.workload.policy + (f", {case.workload.preemption}" if differ else "") for case in cases]


def difference_in_words(more: Estimate, saved: Saved) -> str:
    """A difference between policies, where it is more than noise."""
    noise = max((abs(end) for end in (saved.repeat_ms_ci_low, saved.repeat_ms_ci_high) if end is not None), default=0.0)
    if more.low <= 0 <= more.high or abs(more.value) <= noise:
        return NOT_SHOWN
    return f"{format_ms_signed(more.value)} ({format_ms_signed(more.low)} to {format_ms_signed(more.high)})"


def workload_findings(document: BenchDocument) -> list[str]:
    """What each scenario showed, the one that gains most first."""
    return [_finding(case) for case in workload_cases(document)]


def _finding(case: WorkloadCase) -> str:
    work, saved = case.workload, case.workload.saved
    name = work.scenario if work.policy == "lru" else f"{work.scenario} under {work.policy}"
    hits = f"{percent(work.hit_rate_measured, digits=1)} hits" + "".join(
        f" ({percent(tier.hit_tokens / work.prompt_tokens, digits=1)} from {tier.tier})"
        for tier in work.tiers
        if tier.hit_tokens
    )
    requests = sum(sample.arm == "cached" and sample.iteration == 0 and sample.run == 0 for sample in case.samples)
    not_computed = f"{rate(saved.kv_bytes_not_written / max(1, requests) * 1000 / GB)} GB of K and V"
    below = "" if not work.tiers else f" over {' and '.join(tier.tier for tier in work.tiers)}"
    pool = f"{name}: this pool of {format_bytes(case.memory.kv_pool_bytes or 0)}{below} gives {hits}"
    idle = (
        " Nothing left the pool for them: --pool-tokens makes it smaller."
        if work.tiers and not work.evicted_pages
        else ""
    )
    if not is_shown(saved):
        return f"{pool}, {NOT_SHOWN} in time to first token, and {not_computed} not computed per 1000 requests.{idle}"
    verb = "less" if saved.ttft_ms > 0 else "MORE"
    return (
        f"{pool} = {p50(case.metrics.ttft_ms)} ms to the first token, {format_ms(abs(saved.ttft_ms))} ms "
        f"({percent(abs(saved.ttft_ratio))}) {verb} than without, and {not_computed} not computed per 1000 requests."
        f"{idle}{_gap(case)}"
    )


def _gap(case: WorkloadCase) -> str:
    """Why it takes longer than the roofline allows; in older documents, where the time left is by more than GAP more
    than the FLOPs left."""
    saved = case.workload.saved
    if case.roofline.ideal_ttft_ms is not None:
        return f" {case.roofline.ttft_reason}." if case.roofline.ttft_reason else ""
    if 1 - saved.ttft_ratio <= (1 + GAP) * (1 - saved.flops_ratio):
        return ""
    return (
        f" Its FLOPs fall by {percent(saved.flops_ratio)}: the rest is what a step takes however few its tokens (all "
        "weights are read), and waiting for other requests."
    )
