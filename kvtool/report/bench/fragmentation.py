"""The fragmentation part of a bench document: what allocators hold, fill and waste, and the map of their memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvtool.report.cells import percent
from kvtool.report.charts import COLOURS, LABEL_POINTS, literal
from kvtool.report.tables import Table
from kvtool.results import BenchDocument, FragmentationCase
from kvtool.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RESERVES = {"max": "the maximum", "pow2": "rounded up", "exact": "what is needed"}
SHARED_COLOUR = "#444444"


def fragmentation_cases(document: BenchDocument) -> list[FragmentationCase]:
    """In the order in which allocators ran."""
    return [case for case in document.cases if isinstance(case, FragmentationCase)]


def fragmentation_tables(document: BenchDocument) -> list[Table]:
    """None where no allocators ran."""
    cases = fragmentation_cases(document)
    return [memory_table(cases)] if cases else []


def label(case: FragmentationCase) -> str:
    """`contiguous, the maximum`."""
    reserve = case.inputs.get("reserve")
    return case.fragmentation.allocator + (f", {RESERVES.get(str(reserve), reserve)}" if reserve else "")


def memory_table(cases: Sequence[FragmentationCase]) -> Table:
    """Where the bytes of the pool are."""
    rows = [
        (
            label(case),
            percent(found.used_ratio, digits=1),
            percent(found.internal_ratio, digits=1),
            percent(found.external_ratio, digits=1),
            format_bytes(found.largest_hole_bytes),
            f"{found.largest_batch:,}",
            f"{found.interrupted_requests:,}",
            f"{found.refused_requests:,}",
            f"{found.steps:,}",
        )
        for case in cases
        for found in [case.fragmentation]
    ]
    return Table(
        title="Where the pool goes, by allocator",
        columns=(
            *("allocator", "used", "internal", "external", "largest\nhole", "largest\nbatch", "gave\nway"),
            *("refused", "steps"),
        ),
        rows=rows,
        labels=1,
        spare=("largest\nhole", "refused", "external"),
        note=f"{cases[0].inputs.get('num_prompts')} requests in {format_bytes(cases[0].fragmentation.pool_bytes)}, "
        "each a token a step. used, internal (held, but empty), external (free, but in no hole that the next request "
        "fits): means while a request waits. contiguous reserves the longest request, the answer rounded up to a power "
        "of two, or what will be needed. gave way: requests interrupted.",
    )


def fragmentation_findings(document: BenchDocument) -> list[str]:
    """What pages, and sharing them, are worth to these requests."""
    by_arm = {label(case): case.fragmentation for case in fragmentation_cases(document)}
    first, paged, shared = (by_arm.get(arm) for arm in ("contiguous, the maximum", "paged", "shared"))
    if first is None or paged is None or shared is None:
        return []
    return [
        f"Contiguous pieces of the longest request leave {percent(1 - first.used_ratio)} of the pool without a token, "
        f"pages {percent(1 - paged.used_ratio, digits=1)}: {paged.largest_batch} requests at a time instead of "
        f"{first.largest_batch}, and {shared.largest_batch} where prompts share their pages."
    ]


def draw_map(figure: Figure, axes: Axes, cases: Sequence[FragmentationCase]) -> None:
    """The pool of each allocator as one bar, a colour a request, at the moment when the most was used."""
    for row, case in enumerate(reversed(cases)):
        found = case.fragmentation
        axes.barh(row, 100, color="#f0f0f0", height=0.7)
        for offset, size, owner in found.map:
            colour = SHARED_COLOUR if owner < 0 else COLOURS[owner % (len(COLOURS) - 1)]
            left, width = (100 * value / found.pool_bytes for value in (offset, size))
            axes.barh(row, width, left=left, color=colour, height=0.7, edgecolor="white", linewidth=0.15)
    axes.set_yticks(range(len(cases)), [literal(label(case)) for case in reversed(cases)], fontsize=LABEL_POINTS - 1)
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the pool")
    axes.grid(visible=False)
