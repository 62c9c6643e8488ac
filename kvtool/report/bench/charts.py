"""The chart of a bench document: its panels, each of which also stands alone on the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from textwrap import fill
from typing import TYPE_CHECKING, Any

from kvtool.report.bench.accuracy import plain_cases
from kvtool.report.bench.accuracy_charts import draw_cost, draw_layers, draw_speed
from kvtool.report.bench.cases import (
    ARM_NAMES,
    cases_by_arm,
    cases_of,
    labels,
    tpot_ms,
    uncached_ttft_ms,
    varying,
    waste_ratio,
)
from kvtool.report.bench.disaggregate import disaggregate_cases, draw_served
from kvtool.report.bench.endpoint import draw_server_tpot, draw_server_ttft, endpoint_cases
from kvtool.report.bench.fragmentation import draw_map, fragmentation_cases
from kvtool.report.bench.ranks import draw_decode, draw_prefill, draw_rank_memory, ranks_cases
from kvtool.report.bench.timelines import draw_gains
from kvtool.report.bench.workloads import workload_cases
from kvtool.report.cells import percent
from kvtool.report.charts import COLOURS, GREY, LABEL_POINTS, EndLabel, label_ends, literal, log_axis, tokens_axis
from kvtool.results import BenchDocument, Case
from kvtool.units import MIB, format_length, format_ms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_WIDTH_IN, PANEL_HEIGHT_IN = 5.6, 4.2
TITLE_CHARACTERS = 44  # a panel's width of the figure's title
MAX_BARS = 10
WIDE_RANGE = 8  # times longer than the shortest: on a linear axis the short ones would lie on the ground


@dataclass(frozen=True)
class Panel:
    """One chart: `draw` fills an axes with `cases`; `explain` says how to read it."""

    title: str
    explain: str
    cases: Sequence[Case]
    draw: Callable[[Figure, Axes, Any], None]


def bench_panels(document: BenchDocument) -> list[Panel]:
    """The panels that the document has cases for."""
    latency = [case for case in cases_of(document, "latency") if case.metrics.tpot_ms is not None]
    prefix = [case for case in cases_of(document, "prefix") if case.prefix is not None and uncached_ttft_ms(case)]
    arms = [case for case in cases_of(document, "no-cache") if case.metrics.tpot_ms is not None]
    panels = [
        Panel(
            "Decode: time per output token",
            "dashed, small dots: the floor, bytes moved / bandwidth measured here",
            latency,
            draw_tpot,
        ),
        Panel(
            "Prefix hits: time to first token saved",
            "whiskers: 95% interval; dashed: if tokens found were free",
            prefix,
            draw_prefix,
        ),
        Panel("With and without a cache: time per token", "both axes logarithmic", arms, draw_arms),
        Panel(
            "KV cache memory of one sequence",
            "orange and % on top: empty slots; line: predicted by kvtool size",
            latency,
            draw_memory,
        ),
        *_server_panels(document),
        Panel(
            "Workloads: time to first token",
            "grey: without the prefix cache; blue: with it",
            workload_cases(document),
            draw_gains,
        ),
        *_smaller_panels(document),
        *_ranks_panels(document),
    ]
    return [panel for panel in panels if panel.cases]


def _smaller_panels(document: BenchDocument) -> list[Panel]:
    """What formats cost in accuracy and time, and what allocators leave empty."""
    cases = plain_cases(document)
    return [
        Panel(
            "What smaller caches cost",
            "whiskers: two standard errors; orange: loses, red: collapses",
            cases,
            draw_cost,
        ),
        Panel(
            "What smaller caches cost: attention by layer",
            "each layer on its own, given the reference's queries, keys and values",
            [case for case in cases if case.accuracy.attention_error],
            draw_layers,
        ),
        Panel(
            "What smaller caches cost: in time",
            "medians of a decode step of one sequence; black: the reference",
            [case for case in cases if case.accuracy.speed is not None],
            draw_speed,
        ),
        Panel(
            "Where the pool goes, by allocator",
            "when the most was used: a colour a request, dark: shared, light: free",
            fragmentation_cases(document),
            draw_map,
        ),
    ]


def _server_panels(document: BenchDocument) -> list[Panel]:
    """Of what a server answered."""
    cases = endpoint_cases(document)
    decoded = [case for case in cases if case.metrics.tpot_ms is not None]
    first = "medians; repeated: the share of a prompt that was sent before"
    return [
        Panel("The server at --url: time to first token", first, cases, draw_server_ttft),
        Panel(
            "The server at --url: time per output token",
            "medians, and the floor where --gpu names a card",
            decoded,
            draw_server_tpot,
        ),
    ]


def _ranks_panels(document: BenchDocument) -> list[Panel]:
    """Time and memory against ranks, and of engines that prefill or decode."""
    cases = ranks_cases(document)
    decoded = [case for case in cases if case.ranks.decode is not None]
    apart = "blue: computing; orange: waiting for others; hatched: sent meanwhile"
    return [
        Panel("Prefill against ranks", apart, cases, draw_prefill),
        Panel("Decode step against ranks", apart, decoded, draw_decode),
        Panel("Memory of a rank", "the fullest; dots: predicted by kvtool size's specs", cases, draw_rank_memory),
        Panel(
            "Prefill and decode together and apart",
            "medians; blue: time to first token; orange: time per token after it",
            disaggregate_cases(document),
            draw_served,
        ),
    ]


def chart(panels: Sequence[Panel], title: str = "") -> Figure:
    """The panels on one figure, two a row; a single one fills it."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = 1 if len(panels) == 1 else 2
    rows = max(1, -(-len(panels) // columns))
    size = (PANEL_WIDTH_IN * columns, PANEL_HEIGHT_IN * rows)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15), facecolor="white")
    if title:
        lines = [fill(line, TITLE_CHARACTERS * columns) for line in title.splitlines()]
        figure.suptitle(literal("\n".join(lines)), x=0.01, ha="left", fontsize=13, fontweight="bold")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        prepare(axes, panel)
        panel.draw(figure, axes, panel.cases)
    for axes in grid[len(panels) :]:
        axes.remove()
    return figure


def prepare(axes: Axes, panel: Panel) -> None:
    """Title, the line that says how to read it, a light grid, no frame."""
    axes.set_title(panel.title, loc="left", fontsize=12, fontweight="bold", pad=22)
    axes.text(0, 1.025, panel.explain, transform=axes.transAxes, fontsize=LABEL_POINTS, color="#555555")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=LABEL_POINTS)


def draw_tpot(figure: Figure, axes: Axes, cases: Sequence[Case]) -> None:
    """TPOT against input length, one line a batch size, the floor of each dashed in its colour."""
    ends = []
    for colour, (name, group) in zip(cycle(COLOURS), grouped(cases, "input_len"), strict=False):
        lengths = [input_len(case) for case in group]
        times = [tpot_ms(case) or 0.0 for case in group]
        axes.plot(lengths, times, color=colour, marker="o", markersize=4)
        floors = [(input_len(c), c.roofline.ideal_tpot_ms) for c in group if c.roofline.ideal_tpot_ms is not None]
        if floors:
            axes.plot(*zip(*floors, strict=True), color=colour, linestyle="--", linewidth=1, marker=".", markersize=4)
        mbu = group[-1].roofline.mbu
        reached = f", MBU {percent(mbu)}" if mbu is not None else ""
        ends.append(EndLabel(lengths[-1], times[-1], f"{name}{reached}", colour))
    tokens_axis(axes)
    axes.set_xticks(sorted({input_len(case) for case in cases}))
    if max(times_ms(cases)) > WIDE_RANGE * min(times_ms(cases)):
        log_axis(axes)
    else:
        axes.set_ylim(0, 1.1 * max(times_ms(cases)))
    axes.set_xlabel("input tokens")
    axes.set_ylabel("TPOT p50, ms")
    label_ends(figure, axes, ends)


def draw_prefix(figure: Figure, axes: Axes, cases: Sequence[Case]) -> None:
    """Share of the uncached TTFT that a hit saves, against the hit rate that was measured."""
    ends = []
    groups = grouped(cases, "hit_rate")
    axes.plot([0, 100], [0, 100], color=GREY, linestyle="--", linewidth=1)
    axes.axhline(0, color=GREY, linewidth=0.8)
    for colour, (name, group) in zip(cycle(COLOURS), groups, strict=False):
        hits = [100 * c.prefix.measured_hit_rate for c in group if c.prefix]
        saved = [100 * c.prefix.ttft_saved_ratio for c in group if c.prefix]
        axes.errorbar(hits, saved, yerr=interval_arms(group), color=colour, marker="o", markersize=4, capsize=3)
        if len(groups) == 1:
            for case, x, y in zip(group, hits, saved, strict=True):
                label_below(axes, x, y, saving_in_words(case), colour)
        ends.append(EndLabel(hits[-1], saved[-1], name, colour))
    axes.set_xlim(-3, 103)
    axes.set_ylim(bottom=min(-12, axes.get_ylim()[0]))
    axes.set_xlabel("prompt tokens found in the cache, %")
    axes.set_ylabel("TTFT saved, %")
    if len(groups) > 1:
        label_ends(figure, axes, ends)


def label_below(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    """Text at the lower right of a point, where a rising line is not."""
    axes.annotate(text, (x, y), (8, -13), textcoords="offset points", fontsize=LABEL_POINTS, color=colour)


def saving_in_words(case: Case) -> str:
    """`455 ms saved`, or that the interval leaves it open."""
    prefix = case.prefix
    if prefix is None or prefix.ttft_saved_ms_ci_low <= 0 <= prefix.ttft_saved_ms_ci_high:
        return "no saving shown"
    return f"{format_ms(abs(prefix.ttft_saved_ms))} ms {'saved' if prefix.ttft_saved_ms > 0 else 'lost'}"


def interval_arms(group: Sequence[Case]) -> list[list[float]]:
    """The interval's distances below and above each point, in percent of the uncached TTFT."""
    below, above = [], []
    for case in group:
        uncached_ms = uncached_ttft_ms(case)
        if case.prefix is not None and uncached_ms:
            below.append(max(0.0, 100 * (case.prefix.ttft_saved_ms - case.prefix.ttft_saved_ms_ci_low) / uncached_ms))
            above.append(max(0.0, 100 * (case.prefix.ttft_saved_ms_ci_high - case.prefix.ttft_saved_ms) / uncached_ms))
    return [below, above]


def draw_arms(figure: Figure, axes: Axes, cases: Sequence[Case]) -> None:
    """Time per token against the length a sequence has grown to, one line a way of keeping K and V."""
    by_arm, lengths = cases_by_arm(cases)
    ends = []
    for colour, (arm, found) in zip(cycle(COLOURS), by_arm.items(), strict=False):
        points = [(length, tpot_ms(found[length]) or 0.0) for length in lengths if length in found]
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4)
        ends.append(EndLabel(points[-1][0], points[-1][1], ARM_NAMES.get(arm, arm), colour))
    tokens_axis(axes)
    axes.set_xticks(lengths)
    log_axis(axes)
    axes.set_xlabel("tokens in the sequence")
    axes.set_ylabel("time per token p50, ms")
    label_ends(figure, axes, ends)


def draw_memory(figure: Figure, axes: Axes, cases: Sequence[Case]) -> None:
    """What one sequence holds at each input length (largest batch): tokens, page rounding, and what was predicted."""
    largest = {input_len(case): case for case in sorted(cases, key=lambda case: (input_len(case), batch_size(case)))}
    shown = list(largest.items())[-MAX_BARS:]
    places = range(len(shown))
    per_sequence = [1 / batch_size(case) / MIB for _, case in shown]
    memory = [case.memory for _, case in shown]
    filled = [(m.kv_allocated_bytes - m.kv_waste_bytes) * f for m, f in zip(memory, per_sequence, strict=True)]
    waste = [m.kv_waste_bytes * f for m, f in zip(memory, per_sequence, strict=True)]
    predicted = [m.kv_predicted_bytes * f for m, f in zip(memory, per_sequence, strict=True)]
    axes.bar(places, filled, width=0.6, color=COLOURS[0])
    axes.bar(places, waste, width=0.6, bottom=filled, color=COLOURS[1])
    axes.hlines(predicted, [p - 0.42 for p in places], [p + 0.42 for p in places], "black")
    for place, (_, case), top in zip(places, shown, predicted, strict=True):
        axes.annotate(
            percent(waste_ratio(case), digits=1),
            (place, top),
            (0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=LABEL_POINTS,
        )
    half_width = max(len(shown), 4) / 2 + 0.1
    middle = (len(shown) - 1) / 2
    axes.set_xlim(middle - half_width, middle + half_width)
    axes.set_xticks(list(places), [format_length(length) for length, _ in shown])
    axes.set_xlabel("input tokens")
    axes.set_ylabel("MiB a sequence")
    axes.margins(y=0.15)


# --- helpers ---------------------------------------------------------------------------------------------------------


def times_ms(cases: Sequence[Case]) -> list[float]:
    return [time for case in cases if (time := tpot_ms(case)) is not None]


def input_len(case: Case) -> int:
    return int(case.inputs.get("input_len") or 0)


def batch_size(case: Case) -> int:
    return int(case.inputs.get("batch_size") or 1)


def grouped(cases: Sequence[Case], along: str) -> list[tuple[str, list[Case]]]:
    """Cases that differ in `along` alone, in its order, each group named by the inputs that tell it from the others."""
    keys = _telling(cases, along) or ("batch_size",)
    groups: dict[tuple[str, ...], list[Case]] = {}
    for case in cases:
        groups.setdefault(labels(case, keys), []).append(case)
    names = [k.removesuffix("_len").removesuffix("_size").replace("_", " ") for k in keys]
    return [
        (", ".join(f"{name} {value}" for name, value in zip(names, told, strict=True)), sorted(group, key=order(along)))
        for told, group in groups.items()
    ]


def _telling(cases: Sequence[Case], along: str) -> tuple[str, ...]:
    """The inputs that vary and do not follow from `along` and the others: a hit rate of a prompt is its prefix."""
    keys = [k for k in varying(cases, ("prefix_len", "input_len", "batch_size", "tier")) if k != along]
    for key in tuple(keys):
        others = (along, *(k for k in keys if k != key))
        if len(set(_inputs(cases, others))) == len(set(_inputs(cases, (*others, key)))):
            keys.remove(key)
    return tuple(keys)


def _inputs(cases: Sequence[Case], keys: Sequence[str]) -> list[tuple[object, ...]]:
    return [tuple(case.inputs.get(key) for key in keys) for case in cases]


def order(key: str) -> Callable[[Case], float]:
    return lambda case: float(case.inputs.get(key) or 0)
