"""The chart of a kernels document: GB/s and TFLOP/s against context, and peers beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

from kvtool.report.cells import rate
from kvtool.report.charts import COLOURS, GREY, EndLabel, label_ends, literal, new_figure, ratio_axis, tokens_axis
from kvtool.report.inputs import case_title, shared_inputs, varying_inputs
from kvtool.report.kernels.peers import is_timed, point
from kvtool.report.kernels.tables import VARIANTS, cases_of, input_cells
from kvtool.report.peers import find_peer, peer_names
from kvtool.results import KernelCase, KernelPeer, KernelRoofline, KernelsDocument

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOT_GAP = 0.13  # of a row, between the dots of two peers


@dataclass(frozen=True)
class Panel:
    """What one axes shows: a value of each case against context, under the device's own `limit`."""

    label: str
    points: list[tuple[KernelCase, float]]
    limit: tuple[str, float]


def kernels_figure(document: KernelsDocument) -> Figure:
    """Decode's GB/s and prefill's TFLOP/s against context, under what the device reached in the same run."""
    panels = [panel for panel in kernel_panels(document) if panel.points]
    compared = [case for case in document.cases if is_timed(case)]
    subtitle = shared_inputs(document.cases, (*VARIANTS[1:], "backend"))
    figure, axes = new_figure(
        case_title("kernels", document.cases, document.environment),
        subtitle=subtitle,
        panels=max(1, len(panels) + bool(compared)),
        width_in=18.0 if compared else 11.5,
        height_in=max(5.4, 2.0 + 0.22 * len(compared)),
    )
    for axis, panel in zip(axes, panels, strict=False):
        draw(figure, axis, panel)
    if compared:
        draw_peers(axes[-1], compared)
    return figure


def kernel_panels(document: KernelsDocument) -> list[Panel]:
    """Decode under the read bandwidth, prefill under the product rate that were measured."""
    decode, prefill = cases_of(document, "decode"), cases_of(document, "prefill")
    roofline = document.cases[0].roofline if document.cases else KernelRoofline()
    return [
        Panel(
            "decode, GB/s",
            [(case, case.metrics.gbps) for case in decode],
            ("measured read", roofline.read_gbps_measured or 0.0),
        ),
        Panel(
            "prefill, TFLOP/s",
            [(case, case.metrics.tflops or 0.0) for case in prefill],
            ("measured matmul", roofline.tflops_measured or 0.0),
        ),
    ]


def lines_of(panel: Panel) -> dict[str, list[tuple[int, float]]]:
    """Points of growing context under the name of what they share."""
    variant = varying_inputs([case for case, _ in panel.points], VARIANTS)
    several_batches = len({case.inputs["batch_size"] for case, _ in panel.points}) > 1
    lines: dict[str, list[tuple[int, float]]] = {}
    for case, value in panel.points:
        names = [*input_cells(case, variant), *([f"batch {case.inputs['batch_size']}"] if several_batches else [])]
        lines.setdefault(" ".join(names), []).append((int(case.inputs["context"] or 0), value))
    return {name: sorted(line) for name, line in lines.items()}


def draw(figure: Figure, axes: Axes, panel: Panel) -> None:
    """A line for each variant and batch size, and the measured limit dashed above them."""
    ends = []
    for colour, (name, line) in zip(cycle(COLOURS), lines_of(panel).items(), strict=False):
        axes.plot(*zip(*line, strict=True), color=colour, marker="o", markersize=4)
        ends.append(EndLabel(*line[-1], ": ".join(filter(None, (name, rate(line[-1][1])))), colour))
    contexts = sorted({int(case.inputs["context"] or 0) for case, _ in panel.points})
    name, limit = panel.limit
    axes.axhline(limit, color=GREY, linestyle="--", linewidth=1)
    ends.append(EndLabel(contexts[-1], limit, f"{name}: {rate(limit)}", GREY))
    tokens_axis(axes)
    axes.set_xticks(contexts)
    axes.set_ylim(0, 1.1 * max([limit, *(value for _, value in panel.points)]))
    axes.set_xlabel("context, tokens a sequence")
    axes.set_ylabel(panel.label)
    label_ends(figure, axes, ends)


def draw_peers(axes: Axes, cases: Sequence[KernelCase]) -> None:
    """A row a case, a dot a peer at its time over ours, with its interval; ours is the line at 1."""
    cases = [case for case in cases if is_timed(case)]
    axes.axvline(1, color=GREY, linestyle="--", linewidth=1)
    names = peer_names(cases)
    for index, (colour, name) in enumerate(zip(COLOURS, names, strict=False)):
        above = DOT_GAP * (index - (len(names) - 1) / 2)
        dots = [
            (row + above, peer)
            for row, case in enumerate(cases)
            if (peer := find_peer(case.peers, name)) and peer.ratio
        ]
        if dots:
            draw_dots(axes, dots, name, colour)
    axes.set_yticks(range(len(cases)), [literal(point(case, cases)) for case in cases], fontsize=9)
    axes.invert_yaxis()
    ratio_axis(axes, "time of a peer / ours (right of 1x: ours is faster)")
    axes.legend(loc="upper left", bbox_to_anchor=(0, 1.12), ncols=3, frameon=False, fontsize=9)


def draw_dots(axes: Axes, dots: Sequence[tuple[float, KernelPeer]], name: str, colour: str) -> None:
    """The ratios of one peer with their intervals, each in its row."""
    rows = [row for row, _ in dots]
    ratios = [peer.ratio or 1.0 for _, peer in dots]
    low = [ratio - (peer.ratio_ci_low or ratio) for ratio, (_, peer) in zip(ratios, dots, strict=True)]
    high = [(peer.ratio_ci_high or ratio) - ratio for ratio, (_, peer) in zip(ratios, dots, strict=True)]
    axes.errorbar(ratios, rows, xerr=(low, high), fmt="o", color=colour, markersize=6, elinewidth=1, label=name)
