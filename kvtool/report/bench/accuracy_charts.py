"""The panels of the accuracy part: KL over bytes, errors by layer, and steps over contexts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from kvtool.report.bench.accuracy import label, longest_timed
from kvtool.report.charts import COLOURS, GREY, LABEL_POINTS, RED, literal, log_axis
from kvtool.results import AccuracyCase
from kvtool.units import format_length

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALLEST_KL = 1e-7  # on a logarithmic axis
SMALLEST_ERROR = 1e-3  # of attention there: below a bf16's own rounding
CROWDED_WIDTH, CROWDED_HEIGHT = 0.25, 0.08  # of the points' range: what the name of a format takes of a panel


def draw_cost(figure: Figure, axes: Axes, cases: Sequence[AccuracyCase]) -> None:
    """KL of each format over its bytes a token, its name beside the point; whiskers are two standard errors."""
    points = [(c.accuracy.kv_bytes_per_token / 1024, max(c.accuracy.kl_mean, SMALLEST_KL)) for c in cases]
    for index, (case, (kib, kl)) in enumerate(zip(cases, points, strict=True)):
        found = case.accuracy
        colour = RED if found.verdict == "collapses" else COLOURS[1] if found.verdict == "loses" else COLOURS[0]
        reach = min(2 * (found.kl_mean_se or 0.0), 0.9 * kl)
        axes.errorbar([kib], [kl], yerr=[[reach], [reach]], color=colour, marker="o", markersize=5, capsize=2)
        axes.annotate(
            literal(label(case)),
            (kib, kl),
            (-6, 3) if is_crowded(points, index) else (6, 3),
            textcoords="offset points",
            ha="right" if is_crowded(points, index) else "left",
            fontsize=LABEL_POINTS - 1,
        )
    log_axis(axes)
    axes.set_xlabel("KiB a token")
    axes.set_ylabel("KL, nats a token")
    axes.margins(x=0.28, y=0.15)


def is_crowded(points: Sequence[tuple[float, float]], index: int) -> bool:
    """Whether a name at the right of this point would run into another point or its name; of two at one place the
    first is."""
    width = CROWDED_WIDTH * (max(x for x, _ in points) - min(x for x, _ in points))
    height = CROWDED_HEIGHT * math.log(max(y for _, y in points) / min(y for _, y in points))
    x, y = points[index]
    return any(
        abs(math.log(other_y / y)) <= height and (0 < other_x - x <= width or (other_x == x and place > index))
        for place, (other_x, other_y) in enumerate(points)
    )


def draw_layers(figure: Figure, axes: Axes, cases: Sequence[AccuracyCase]) -> None:
    """Error of attention by layer, a line a format."""
    shown = [case for case in cases if case.accuracy.attention_error]
    for index, case in enumerate(shown):
        errors = [100 * max(error, SMALLEST_ERROR) for error in case.accuracy.attention_error]
        style = "-" if index < len(COLOURS) else "--"
        axes.plot(range(len(errors)), errors, style, color=COLOURS[index % len(COLOURS)], label=literal(label(case)))
    log_axis(axes)
    axes.set_xlabel("layer")
    axes.set_ylabel("attention off, %")
    legend_below(axes)


def draw_speed(figure: Figure, axes: Axes, cases: Sequence[AccuracyCase]) -> None:
    """ITL over context, a line a format; black: the reference."""
    speeds = [(label(case), case.accuracy.speed) for case in cases if case.accuracy.speed is not None]
    first, reference = longest_timed([speed for _, speed in speeds]), cases[0].accuracy.reference
    for index, (name, speed) in enumerate(speeds):
        style = "-" if index < len(COLOURS) else "--"
        medians = [median(turns) for turns in speed.itl_ms]
        axes.plot(speed.contexts, medians, style, color=COLOURS[index % len(COLOURS)], marker=".", label=literal(name))
    medians = [median(turns) for turns in first.reference_itl_ms]
    axes.plot(first.contexts, medians, color="black", marker="o", markersize=4, label=literal(reference))
    log_axis(axes)
    axes.set_xticks(first.contexts, [format_length(context) for context in first.contexts])
    axes.set_xlabel("context, tokens")
    axes.set_ylabel("a decode step, ms")
    legend_below(axes)


def legend_below(axes: Axes) -> None:
    """In three columns under the axis."""
    axes.legend(
        fontsize=LABEL_POINTS - 2, frameon=False, ncols=3, labelcolor=GREY, loc="upper left", bbox_to_anchor=(0, -0.16)
    )
