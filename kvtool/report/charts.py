"""The look that all charts share, and the small things they need: byte and token axes, labels at the ends of lines.

Figures are made without pyplot: nothing global, no display.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtool.system.errors import visible
from kvtool.units import format_bytes, format_length

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart by colour-blind readers too, and in print.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444")
GREY = "#8c8c8c"
RED = "#b2182b"
LABEL_POINTS = 9
LEAST_TICKS = 4  # of an axis of bytes
ON_LINES = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}  # behind text that a line may cross
RATIO_STEPS = ((10, 100, 1000), (2, 4, 8), (1.25, 1.5), (1.1, 1.2), (1.025, 1.05))  # ticks, wide reaches first
LEAST_REACH = 1.06  # of a ratios' axis, so that noise of a percent does not fill the panel
SUBTITLE_IN = 0.405  # below the top edge, whatever the height of the figure


def new_figure(
    title: str, *, subtitle: str = "", panels: int = 1, width_in: float = 9.0, height_in: float = 5.4
) -> tuple[Figure, list[Axes]]:
    """A figure with a title at the left and `panels` axes side by side, each with a light grid and no frame."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained", facecolor="white")
    title, subtitle = literal(title), literal(subtitle)
    figure.suptitle(f"{title}\n" if subtitle else title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    if subtitle:
        figure.text(0.01, 1 - SUBTITLE_IN / height_in, subtitle, ha="left", va="top", fontsize=10, color="#555555")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, which="major", color="#e6e6e6", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def literal(text: str) -> str:
    """`text` as it stands: names of files and models may hold dollars, between which matplotlib would see formulas."""
    return visible(text).replace("$", r"\$")


@dataclass(frozen=True, slots=True)
class EndLabel:
    """Text to stand at the right of the point (x, y), in data coordinates."""

    x: float
    y: float
    text: str
    colour: str


def label_ends(figure: Figure, axes: Axes, labels: Sequence[EndLabel]) -> None:
    """Write each label beside its point, pushed apart vertically so that none overlaps, with a thin line to the point
    where it had to move. Set the axis limits before.
    """
    figure.draw_without_rendering()
    points_a_pixel = 72 / figure.dpi
    ordered = sorted(labels, key=lambda label: label.y)
    wanted = [float(axes.transData.transform((label.x, label.y))[1]) * points_a_pixel for label in ordered]
    for label, here, there in zip(ordered, wanted, spread(wanted, LABEL_POINTS * 1.4), strict=True):
        axes.annotate(
            literal(label.text),
            (label.x, label.y),
            xytext=(14, there - here),
            textcoords="offset points",
            color=label.colour,
            fontsize=LABEL_POINTS,
            va="center",
            bbox=ON_LINES,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": label.colour,
                "linewidth": 0.6,
                "shrinkA": 0,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Ascending positions at least `gap` apart, as near to the ascending `wanted` ones as that allows."""
    clusters: list[list[float]] = []  # each cluster stands `gap` apart around the mean of what its members want
    for position in wanted:
        clusters.append([position])
        while len(clusters) > 1 and _bottom(clusters[-1], gap) < _bottom(clusters[-2], gap) + gap * len(clusters[-2]):
            crowded = clusters.pop()
            clusters[-1] += crowded
    return [_bottom(cluster, gap) + gap * i for cluster in clusters for i in range(len(cluster))]


def _bottom(cluster: Sequence[float], gap: float) -> float:
    return sum(cluster) / len(cluster) - gap * (len(cluster) - 1) / 2


def bytes_axis(axes: Axes) -> None:
    """Round sizes in KiB, MiB, GiB on a logarithmic y axis."""
    from matplotlib.ticker import FuncFormatter, Locator, NullLocator

    class ByteLocator(Locator):
        def __call__(self) -> list[float]:
            return self.tick_values(*axes.get_ylim())

        def tick_values(self, vmin: float, vmax: float) -> list[float]:
            return byte_ticks(vmin, vmax)

    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_locator(ByteLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(round(value))))


def byte_ticks(low: float, high: float) -> list[float]:
    """Powers of two from `low` to `high`, every second or fourth over a wide range; over a narrow one as many parts of
    them as it takes for LEAST_TICKS.
    """
    first, last = math.floor(math.log2(max(low, 1))), math.ceil(math.log2(max(high, 2)))
    stride = 1 + (last - first) // 12
    powers = [2.0**power for power in range(first - first % stride, last + 1, stride)]
    ticks: list[float] = []
    for parts in (1, 2, 4, 8, 16) if stride == 1 else (1,):
        every = [power * (1 + part / parts) for power in powers for part in range(parts)]
        ticks = [tick for tick in every if low <= tick <= high]
        if len(ticks) >= LEAST_TICKS:
            break
    return ticks


def tokens_axis(axes: Axes) -> None:
    """Powers of two as 4k, 8k, ... on a logarithmic x axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=12))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_length(round(value))))


def log_axis(axes: Axes) -> None:
    """A logarithmic y axis that says 10, 20, 50, 100, and not 10 to a power."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())


def ratio_axis(axes: Axes, label: str) -> None:
    """A logarithmic x axis, as far left of 1 as right of it, so that twice as fast is as far as half as fast."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log")
    low, high = axes.dataLim.intervalx
    reach = LEAST_REACH if not 0 < low <= high else max(LEAST_REACH, high, 1 / low) ** 1.05
    axes.set_xlim(1 / reach, reach)
    steps = next((steps for steps in RATIO_STEPS if steps[0] <= reach), RATIO_STEPS[-1])
    ticks = [step for step in steps if step <= reach]
    axes.xaxis.set_major_locator(FixedLocator([*(1 / tick for tick in reversed(ticks)), 1, *ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}x"))
    axes.set_xlabel(label, fontsize=LABEL_POINTS)
