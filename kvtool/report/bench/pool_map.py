"""The map of a workload's pool: whose each page was when running requests held the most."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from kvtool.report.bench.workloads import workload_cases
from kvtool.report.charts import COLOURS, LABEL_POINTS, literal
from kvtool.results import BenchDocument, WorkloadCase
from kvtool.results.cases.workload import KEPT, SHARED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FREE_COLOUR, KEPT_COLOUR, SHARED_COLOUR = "#f0f0f0", "#c8c8c8", "#444444"
LEAST_COLUMNS, MOST_ROWS, ROW_IN = 64, 32, 0.14
LABELLED_ROWS = 8  # under which the label of the axis is longer than it
NAMED = 8  # requests in the legend; there are as many colours as COLOURS but the last, which is that of shared pages


def pool_maps(document: BenchDocument) -> dict[str, Figure]:
    """A figure a workload case that has a map, by the name of its file."""
    return {
        "-".join(("map", *case.name.split("/")[1:])): pool_map(case)
        for case in workload_cases(document)
        if case.workload.map
    }


def colour_of(owner: int) -> str:
    """Requests take turns with the colours."""
    if owner < 0:
        return {SHARED: SHARED_COLOUR, KEPT: KEPT_COLOUR}[owner]
    return COLOURS[owner % (len(COLOURS) - 1)]


def pool_map(case: WorkloadCase) -> Figure:
    """Page after page in rows, each in the colour of its owner."""
    from matplotlib.figure import Figure

    pages = int(case.inputs.get("pool_tokens") or 0) // int(case.inputs.get("block_size") or 1)
    columns = max(LEAST_COLUMNS, ceil(pages / MOST_ROWS))
    rows = max(1, ceil(pages / columns))
    figure = Figure(figsize=(9.0, 1.9 + ROW_IN * rows), layout="constrained", facecolor="white")
    title = f"{case.workload.scenario} under {case.workload.policy}: whose the {pages:,} pages were at the fullest"
    figure.suptitle(literal(title), x=0.01, ha="left", fontsize=13, fontweight="bold")
    axes = figure.subplots()
    for page in range(0, pages, columns):
        axes.barh(page // columns, min(columns, pages - page), color=FREE_COLOUR, height=0.9)
    for first, count, owner in case.workload.map:
        for start, stop in _by_row(first, first + count, columns):
            axes.barh(start // columns, stop - start, left=start % columns, color=colour_of(owner), height=0.9)
    _finish(axes, case, columns, rows)
    return figure


def _by_row(first: int, last: int, columns: int) -> list[tuple[int, int]]:
    """The pages from `first` up to `last`, parted at the ends of rows."""
    ends = [*range((first // columns + 1) * columns, last, columns), last]
    return list(zip([first, *ends[:-1]], ends, strict=True))


def _finish(axes: Axes, case: WorkloadCase, columns: int, rows: int) -> None:
    from matplotlib.patches import Patch

    owners = {owner for _, _, owner in case.workload.map}
    requests = sorted(owner for owner in owners if owner >= 0)
    named = [(f"request {owner}", colour_of(owner)) for owner in requests[:NAMED]]
    named += [
        (label, colour_of(owner))
        for label, owner in (("several", SHARED), ("kept for later ones", KEPT))
        if owner in owners
    ]
    axes.legend(
        handles=[Patch(color=colour, label=label) for label, colour in [*named, ("free", FREE_COLOUR)]],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=6,
        frameon=False,
        fontsize=LABEL_POINTS,
    )
    axes.set_xlim(0, columns)
    axes.set_ylim(rows - 0.4, -0.6)
    axes.set_yticks(range(rows), [f"{row * columns:,}" for row in range(rows)], fontsize=LABEL_POINTS - 1)
    if rows >= LABELLED_ROWS:
        axes.set_ylabel("first page of a row")
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
