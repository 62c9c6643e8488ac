"""Charts of workloads: TTFT with and without sharing side by side, and the timeline of a scenario's requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvtool.report.bench.cases import uncached_ttft_ms
from kvtool.report.bench.workloads import is_shown, names, workload_cases
from kvtool.report.cells import percent
from kvtool.report.charts import COLOURS, GREY, LABEL_POINTS, literal
from kvtool.results import BenchDocument, Case, Sample, WorkloadCase

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUEUED, LOADING, PREFILL, DECODE = GREY, COLOURS[3], COLOURS[1], COLOURS[0]
IN_USE, HELD = "#cfe3f1", COLOURS[0]
ROW_IN, LEAST_ROWS, MOST_ROWS = 0.16, 14, 44
LEAST_SHARE = 0.001  # of the whole time, below which a phase cannot be seen


def draw_gains(figure: Figure, axes: Axes, cases: Sequence[Case]) -> None:
    """Two bars a scenario: TTFT without the prefix cache and with it, what it saves written behind them."""
    shown = [case for case in cases if isinstance(case, WorkloadCase)][::-1]
    longest = 0.0
    for place, case in enumerate(shown):
        summary = case.metrics.ttft_ms
        without, cached = uncached_ttft_ms(case) or 0.0, 0.0 if summary is None else summary.p50
        axes.barh(place + 0.2, without, height=0.36, color=GREY)
        axes.barh(place - 0.2, cached, height=0.36, color=COLOURS[0])
        saved = case.workload.saved
        told = f"{percent(saved.ttft_ratio)} less" if is_shown(saved) else "no significant difference"
        told = told.replace("-", "", 1).replace("less", "more") if saved.ttft_ms < 0 and is_shown(saved) else told
        text = f"{percent(case.workload.hit_rate_measured)} hits, {told}"
        axes.annotate(
            text, (max(without, cached), place), (5, 0), textcoords="offset points", fontsize=LABEL_POINTS, va="center"
        )
        longest = max(longest, without, cached)
    axes.set_yticks(range(len(shown)), [literal(", ".join(names(case, shown))) for case in shown])
    axes.set_xlim(0, 1.75 * longest or 1.0)
    axes.set_xlabel("TTFT p50, ms")
    axes.grid(False, axis="y")


def timelines(document: BenchDocument) -> dict[str, Figure]:
    """A figure a workload case, by the name of its file."""
    return {
        "-".join(("timeline", *case.name.split("/")[1:])): timeline(case)
        for case in workload_cases(document)
        if first_iteration(case)
    }


def first_iteration(case: WorkloadCase) -> list[Sample]:
    """The requests that the case's curves are of, whose times are known."""
    return [s for s in case.samples if s.arm == "cached" and s.iteration == s.run == 0 and s.arrival_s is not None]


def timeline(case: WorkloadCase) -> Figure:
    """Requests over time, each queued, prefilling, decoding; under it the pages in use."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    samples = first_iteration(case)
    rows = min(max(len(samples), LEAST_ROWS), MOST_ROWS)
    size = (9.0, ROW_IN * rows + 3.2)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12), facecolor="white")
    title = f"{case.workload.scenario} under {case.workload.policy}: each request, and the pool"
    figure.suptitle(literal(title), x=0.01, ha="left", fontsize=13, fontweight="bold")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(ROW_IN * rows, 1.3))
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=LABEL_POINTS)
    draw_requests(top, samples)
    draw_occupancy(bottom, case)
    return figure


def draw_requests(axes: Axes, samples: Sequence[Sample]) -> None:
    """A bar a request, from the top in the order of arrival."""
    from matplotlib.ticker import MaxNLocator

    phases: dict[str, list[tuple[float, float]]] = {"queued": [], "loading": [], "prefill": [], "decode": []}
    ordered = sorted(samples, key=lambda sample: sample.arrival_s or 0.0)
    for sample in ordered:
        arrival, queue, load = (seconds or 0.0 for seconds in (sample.arrival_s, sample.queue_s, sample.load_s))
        ends = (arrival, arrival + queue, arrival + queue + load, arrival + sample.ttft_s, arrival + sample.e2e_s)
        for phase, start, end in zip(phases, ends, ends[1:], strict=False):
            phases[phase].append((start, max(0.0, end - start)))
    end_s = max((sample.arrival_s or 0.0) + sample.e2e_s for sample in samples)
    for (phase, bars), colour in zip(phases.items(), (QUEUED, LOADING, PREFILL, DECODE), strict=True):
        if any(width > LEAST_SHARE * end_s for _, width in bars):
            starts, widths = zip(*bars, strict=True)
            axes.barh(range(len(bars)), widths, left=starts, height=0.8, color=colour, label=phase)
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    axes.set_ylabel("request")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(False, axis="y")
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, fontsize=LABEL_POINTS, borderaxespad=0.2
    )


def draw_occupancy(axes: Axes, case: WorkloadCase) -> None:
    """Pages in use after each step, and those of them that running requests hold; dashed what the pool has."""
    pool = int(case.inputs.get("pool_tokens") or 0) // int(case.inputs.get("block_size") or 1)
    curves = (
        ("kept for later requests", case.workload.occupancy, IN_USE),
        ("held by running ones", case.workload.held, HELD),
    )
    for label, points, colour in curves:
        seconds, pages = (
            [0.0, *(s for s, _ in points)],
            [points[0][1] if points else 0, *(count for _, count in points)],
        )
        axes.fill_between(seconds, pages, step="pre", color=colour, label=label, linewidth=0)
    axes.axhline(pool, color="black", linestyle="--", linewidth=1)
    axes.annotate(f"{pool:,} pages", (0, pool), (4, -11), textcoords="offset points", fontsize=LABEL_POINTS)
    axes.set_ylim(0, 1.05 * pool or 1)
    axes.set_xlim(left=0)
    axes.set_ylabel("pages")
    axes.set_xlabel("seconds since the first request")
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=LABEL_POINTS, borderaxespad=0.2
    )
